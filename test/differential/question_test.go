package differential

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// A question is what a client asks, and how.
type question struct {
	name       string // spelled as asked
	typ, class uint16
	rd, ad, cd bool
	edns       bool
	size       uint16
	version    uint8
	do         bool
	option     string // none, cookie, client subnet, padding, or one that nobody knows
	tcp        bool
	again      bool // asked a second time, with the letters' case turned round
}

func (q question) String() string {
	s := fmt.Sprintf("%s %s", q.name, dns.Type(q.typ))
	if q.class != dns.ClassINET {
		s += " " + dns.Class(q.class).String()
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{!q.rd, "-rd"}, {q.ad, "+ad"}, {q.cd, "+cd"}, {q.do, "+do"}, {q.tcp, "tcp"}} {
		if f.set {
			s += " " + f.name
		}
	}
	if q.edns {
		s += fmt.Sprintf(" edns=%d", q.size)
		if q.version != 0 {
			s += fmt.Sprintf(" version=%d", q.version)
		}
		if q.option != "" {
			s += " " + q.option
		}
	}
	return s
}

// message is the question without an id.
func (q question) message() *dns.Msg {
	m := new(dns.Msg)
	m.Question = []dns.Question{{Name: q.name, Qtype: q.typ, Qclass: q.class}}
	m.RecursionDesired, m.AuthenticatedData, m.CheckingDisabled = q.rd, q.ad, q.cd
	if !q.edns {
		return m
	}
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(q.size)
	opt.SetVersion(q.version)
	opt.SetDo(q.do)
	if o := options[q.option]; o != nil {
		opt.Option = append(opt.Option, o)
	}
	m.Extra = append(m.Extra, opt)
	return m
}

var options = map[string]dns.EDNS0{
	"cookie":  &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"},
	"subnet":  &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{198, 51, 100, 0}},
	"padding": &dns.EDNS0_PADDING{Padding: make([]byte, 32)},
	"unknown": &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("?")},
}

var optionNames = []string{"", "", "", "", "cookie", "subnet", "padding", "unknown"}

// types are those asked for, the usual ones more often.
var types = []uint16{
	dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeAAAA,
	dns.TypeSRV, dns.TypeMX, dns.TypeTXT, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeCAA, dns.TypeDS, dns.TypeDNSKEY,
	dns.TypeNS, dns.TypeSOA, dns.TypePTR, dns.TypeCNAME, dns.TypeDNAME, dns.TypeNAPTR, dns.TypeTLSA, dns.TypeSSHFP, dns.TypeURI,
	dns.TypeANY, 65280, 65281, 65399, dns.TypeHIP,
}

// prefixes stand before some of the names.
var prefixes = []string{
	"_http._tcp.", "*.", `\255\000\ .`, `a\.b.`, strings.Repeat("x", 63) + ".", strings.Repeat("longer.", 20), "xn--bcher-kva.", "-.",
}

// generate makes n questions, the same ones from the same source. The names of
// one question are nobody else's, but for those of the cluster: these are asked
// again and again, and always alike, so that it does not matter who was first.
func generate(r *rand.Rand, n int) []question {
	shares := 0
	for _, k := range kinds {
		shares += k.share
	}
	var out []question
	for len(out) < n {
		switch i := len(out); {
		case r.IntN(100) < 2:
			out = append(out, walk(r, i)...)
		case r.IntN(100) < 8:
			out = append(out, clusterQuestion(r))
		default:
			at, k := r.IntN(shares), 0
			for ; at >= kinds[k].share; k++ {
				at -= kinds[k].share
			}
			if kinds[k].name == "silent" && r.IntN(6) > 0 {
				continue // the others take seconds for it
			}
			out = append(out, unique(r, i, kinds[k]))
		}
	}
	return out[:n]
}

// unique asks for a name of its own.
func unique(r *rand.Rand, i int, k kind) question {
	name := fmt.Sprintf("q%d.%s.%s", i, k.name, zone)
	switch {
	case k.name == "dname":
		name = "www." + name
	case r.IntN(10) == 0 && !strings.Contains(k.name, "chain") && k.name != "loop" && k.name != "dangling":
		name = prefixes[r.IntN(len(prefixes))] + name
	}
	q := question{
		name: name, typ: types[r.IntN(len(types))], class: dns.ClassINET,
		rd: r.IntN(50) > 0, ad: r.IntN(8) == 0, cd: r.IntN(16) == 0, tcp: r.IntN(10) == 0, again: r.IntN(3) == 0,
	}
	if slices.Contains([]string{"big", "shortdata", "nxanswer"}, k.name) || strings.HasPrefix(k.name, "ttl") {
		q.typ = dns.TypeA
	}
	if r.IntN(2) == 0 {
		q.name = flip(r, q.name)
	}
	if r.IntN(100) == 0 {
		q.class = dns.ClassCHAOS
	}
	if r.IntN(5) < 3 {
		q.edns, q.size = true, []uint16{0, 512, 1232, 1232, 1400, 4096}[r.IntN(6)]
		q.do, q.option = r.IntN(3) == 0, optionNames[r.IntN(len(optionNames))]
		if k.name == "big" && q.size > 1232 {
			q.size = 4096
		}
		if r.IntN(60) == 0 {
			q.version = 1
		}
	}
	return q
}

// clusterNames are names that kube-dns knows, or nearly.
var clusterNames = []string{
	"kubernetes.default.svc.cluster.local.", "_https._tcp.kubernetes.default.svc.cluster.local.", "web.shop.svc.cluster.local.",
	"_http._tcp.web.shop.svc.cluster.local.", "_tcp.web.shop.svc.cluster.local.", "_nosuch._tcp.web.shop.svc.cluster.local.", "x.web.shop.svc.cluster.local.",
	"dual.shop.svc.cluster.local.", "db.shop.svc.cluster.local.", "db-0.db.shop.svc.cluster.local.", "db-9.db.shop.svc.cluster.local.", "x.db-0.db.shop.svc.cluster.local.",
	"_postgres._tcp.db.shop.svc.cluster.local.", "mail.shop.svc.cluster.local.", "many.shop.svc.cluster.local.", "big.shop.svc.cluster.local.",
	"shop.svc.cluster.local.", "nosuch.svc.cluster.local.", "nosuch.shop.svc.cluster.local.", "x.nosuch.shop.svc.cluster.local.", "_tcp.nosuch.shop.svc.cluster.local.",
	"x.y.nosuch.shop.svc.cluster.local.", "web.nosuch.svc.cluster.local.", "svc.cluster.local.", "pod.cluster.local.", "cluster.local.", "nosuch.cluster.local.",
	"10-244-1-11.shop.pod.cluster.local.", "x.shop.pod.cluster.local.", "1.0.96.10.in-addr.arpa.", "9.9.9.10.in-addr.arpa.", "96.10.in-addr.arpa.", "www.example.com.", "nosuch.example.com.", ".", "com.",
}

func clusterQuestion(r *rand.Rand) question {
	q := plainly(clusterNames[r.IntN(len(clusterNames))], []uint16{dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeTXT, dns.TypeSOA, dns.TypeNS, dns.TypeHTTPS}[r.IntN(9)])
	if r.IntN(2) == 0 {
		q.name = flip(r, q.name)
	}
	q.tcp, q.again = r.IntN(10) == 0, r.IntN(3) == 0
	return q
}

func plainly(name string, typ uint16) question {
	return question{name: name, typ: typ, class: dns.ClassINET, rd: true}
}

// walk is what one lookup asks on a search path with ndots:5, A and AAAA, in order.
func walk(r *rand.Rand, i int) []question {
	names := []string{
		"www.example.com", "mail.example.com", "web.shop", "web", "db-0.db.shop", "web.shop.svc", "web.shop.svc.cluster.local", "nosuch.shop",
		fmt.Sprintf("q%d.plain.example", i), fmt.Sprintf("q%d.nx.example", i), "com", "www.example", "_http._tcp.web.shop", "_tcp.web",
	}
	namespaces := []string{"default", "shop", "kube-system", "nosuch"}
	name, ns := names[r.IntN(len(names))], namespaces[r.IntN(len(namespaces))]
	var out []question
	for _, suffix := range []string{ns + ".svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
			out = append(out, plainly(name+"."+suffix, typ))
		}
	}
	return out
}

// flip spells a name with other letters, big and small by chance. What is written
// as digits behind a backslash is no letter.
func flip(r *rand.Rand, name string) string {
	return strings.Map(func(c rune) rune {
		if r.IntN(2) == 0 {
			return c
		}
		return turned(c)
	}, name)
}

// turned is a letter in the other case.
func turned(c rune) rune {
	switch {
	case 'a' <= c && c <= 'z':
		return c - 'a' + 'A'
	case 'A' <= c && c <= 'Z':
		return c - 'A' + 'a'
	}
	return c
}

// second is the question when it is asked again.
func (q question) second() question {
	q.name = strings.Map(turned, q.name)
	return q
}

// packet is the question on the wire.
func (q question) packet(id uint16) ([]byte, error) {
	p, err := q.message().Pack()
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", q, err)
	}
	binary.BigEndian.PutUint16(p, id)
	return p, nil
}

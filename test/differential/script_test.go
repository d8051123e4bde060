package differential

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"nodelocaldns/test/kubedns"
)

// What upstream says is in the name: LABEL.KIND.example. is answered as the kind
// has it, and label makes it a name that nobody has asked before. Labels before
// those two belong to chains (c0, c1, …), or to the name alone. All other names
// are answered as kube-dns would.
const zone = "example."

// Times of life are multiples of ttlUnit, which is longer than the run, so that a
// TTL that was counted down still tells which one it was.
const (
	ttlUnit  = 600
	ttlShort = ttlUnit
	ttlLong  = 6 * ttlUnit
	ttlLimit = 86400 // what all resolvers are told to cap at
)

// An asked is a question as upstream sees it.
type asked struct {
	name         string // spelled as asked
	label, kind  string // of the name, folded; kind is empty for names of kube-dns
	link         int    // of a chain
	typ          uint16
	do, edns, cd bool
	ad           bool
	udp          bool
}

// variant is a number below n that goes with the label.
func (a asked) variant(n int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(a.label))
	return int(h.Sum32() % uint32(n))
}

// A said is what upstream answers.
type said struct {
	*dns.Msg        // response code, AA, AD, TC and records; the rest follows from the query
	bare     bool   // without OPT, whatever the query had
	ra0      bool   // recursion is said to be not available
	silent   bool   // nothing at all
	folded   bool   // the question comes back in lower case
	spoofs   []fake // come over UDP before the reply
	spoil    func(packet []byte) []byte
}

// A fake is a packet made from the reply.
type fake func(packet []byte) []byte

// A kind is a way to answer.
type kind struct {
	name  string
	share int // of the questions
	// apart has every resolver ask servers of its own for these names: what it learns
	// of a server that behaves so (that it knows no EDNS, is lame, is dead) must not
	// change what it makes of others' replies.
	apart bool
	says  func(a asked) said
}

// kinds are all of them. The order is that of generation.
var kinds = []kind{
	{"plain", 24, false, func(a asked) said { return answer(data(a)...) }},
	{"nx", 6, false, func(a asked) said { return denial(dns.RcodeNameError, a) }},
	{"nodata", 4, false, func(a asked) said { return denial(dns.RcodeSuccess, a) }},
	{"nosoa", 3, false, func(a asked) said {
		s := denial(pick(a, dns.RcodeNameError, dns.RcodeSuccess), a)
		s.Ns = nil
		return s
	}},

	{"chain", 5, false, func(a asked) said { return chain(a, 1+a.variant(3)) }},
	{"chain10", 2, false, func(a asked) said { return chain(a, 10) }},
	{"chain12", 3, false, func(a asked) said { return chain(a, 12) }},
	{"chain30", 2, false, func(a asked) said { return chain(a, 30) }},
	{"shuffled", 2, false, func(a asked) said {
		s := chain(a, 4)
		for i, j := 0, len(s.Answer)-1; i < j; i, j = i+1, j-1 {
			s.Answer[i], s.Answer[j] = s.Answer[j], s.Answer[i]
		}
		return s
	}},
	{"loop", 2, false, func(a asked) said {
		n := 1 + a.variant(3) // names in the circle
		s := answer()
		for i := range n {
			s.Answer = append(s.Answer, cname(a.chainName((a.link+i)%n), a.chainName((a.link+i+1)%n), ttlShort))
		}
		if a.wantsAlias() {
			s.Answer = s.Answer[:1]
		}
		return s
	}},
	{"chainnx", 2, false, func(a asked) said { return deniedChain(a, dns.RcodeNameError) }},
	{"chainnodata", 2, false, func(a asked) said { return deniedChain(a, dns.RcodeSuccess) }},
	{"dangling", 2, false, func(a asked) said { // the chain in pieces
		if a.link == 2 {
			return answer(data(a)...)
		}
		return answer(cname(a.name, a.chainName(a.link+1), ttlLong))
	}},
	{"dname", 2, false, dname},

	{"big", 5, false, func(a asked) said {
		s := answer()
		for i := range pick(a, 40, 100, 200, 400) {
			s.Answer = append(s.Answer, &dns.A{Hdr: header(a.name, dns.TypeA, ttlShort), A: net.IPv4(10, 0, byte(i>>8), byte(i))})
		}
		if a.typ != dns.TypeA {
			return denial(dns.RcodeSuccess, a)
		}
		return s
	}},
	{"tcponly", 2, false, func(a asked) said {
		if a.udp {
			s := answer()
			s.Truncated = true
			return s
		}
		return answer(data(a)...)
	}},
	{"neverwhole", 1, true, func(asked) said {
		s := answer()
		s.Truncated = true
		return s
	}},

	{"ttlzero", 2, false, func(a asked) said { return withTTLs(a, 0) }},
	{"ttlhuge", 2, false, func(a asked) said { return withTTLs(a, 1<<31+5) }},
	{"ttluneven", 3, false, func(a asked) said { return withTTLs(a, ttlLong, ttlShort, 2*ttlUnit) }},
	{"ttlsets", 2, false, func(a asked) said {
		s := chain(a, 1)
		for _, rr := range s.Answer {
			if rr.Header().Rrtype != dns.TypeCNAME {
				rr.Header().Ttl = ttlShort
			}
		}
		return s
	}},

	{"scattered", 2, false, func(a asked) said { // the set does not stand together
		s := chain(a, 1)
		for i, rr := range s.Answer {
			if rr.Header().Rrtype != dns.TypeCNAME {
				rr.Header().Ttl = ttlShort
				s.Answer[0], s.Answer[i] = rr, s.Answer[0]
				break
			}
		}
		return s
	}},

	{"signed", 6, false, signed},
	{"aa", 2, false, func(a asked) said {
		s := answer(data(a)...)
		s.Authoritative = true
		return s
	}},
	{"ra0", 2, false, func(a asked) said {
		s := answer(data(a)...)
		s.ra0 = true
		return s
	}},
	{"bare", 2, false, func(a asked) said {
		s := answer(data(a)...)
		s.bare = true
		return s
	}},
	{"folded", 2, true, func(a asked) said {
		s := answer(data(a)...)
		s.folded = true
		return s
	}},

	{"extrabehind", 1, false, func(a asked) said { return foreign(a, func(s *said) { s.Answer = append(s.Answer, stranger()) }) }},
	{"extrafirst", 1, false, func(a asked) said {
		return foreign(a, func(s *said) { s.Answer = append([]dns.RR{stranger()}, s.Answer...) })
	}},
	{"extrans", 1, false, func(a asked) said {
		return foreign(a, func(s *said) {
			s.Ns = append(s.Ns, record(strangersZone+" 3600 IN NS ns.thief.test."))
			s.Extra = append(s.Extra, record("ns.thief.test. 3600 IN A 203.0.113.66"))
		})
	}},
	{"extrasoa", 1, false, func(a asked) said {
		s := denial(dns.RcodeNameError, a)
		s.Ns = append([]dns.RR{record(strangersZone + " 3600 IN NS ns.thief.test.")}, s.Ns...)
		return s
	}},
	{"wrongsoa", 1, false, func(a asked) said { // a denial by somebody else's zone
		s := denial(dns.RcodeNameError, a)
		s.Ns = []dns.RR{record(strangersZone + " 3600 IN SOA ns.bank.test. admin.bank.test. 1 7200 1800 86400 600")}
		return s
	}},
	{"nxanswer", 1, false, func(a asked) said { // there is no such name, and this is its data
		s := answer(data(a)...)
		s.Rcode = dns.RcodeNameError
		return s
	}},
	{"aliasanddata", 1, false, func(a asked) said { // what an alias may not have beside it (RFC 2181 10.1)
		s := chain(a, 1)
		if a.link == 0 && !a.wantsAlias() {
			s.Answer = append(s.Answer, data(a)...)
		}
		return s
	}},
	{"extraglue", 1, false, func(a asked) said { return foreign(a, func(s *said) { s.Extra = append(s.Extra, stranger()) }) }},

	{"referral", 2, true, func(a asked) said {
		s := answer()
		s.Ns = []dns.RR{record(a.label + "." + a.kind + "." + zone + " 3600 IN NS ns." + a.label + "." + a.kind + "." + zone)}
		s.Extra = []dns.RR{record("ns." + a.label + "." + a.kind + "." + zone + " 3600 IN A 192.0.2.53")}
		return s
	}},
	{"formerr", 1, true, func(asked) said { return fails(dns.RcodeFormatError) }},
	{"servfail", 2, true, func(asked) said { return fails(dns.RcodeServerFailure) }},
	{"notimp", 1, true, func(asked) said { return fails(dns.RcodeNotImplemented) }},
	{"refused", 2, true, func(asked) said { return fails(dns.RcodeRefused) }},
	{"notauth", 1, true, func(asked) said { return fails(dns.RcodeNotAuth) }},
	{"badvers", 1, true, func(a asked) said {
		if a.edns {
			return fails(dns.RcodeBadVers)
		}
		return answer(data(a)...)
	}},
	{"noedns", 2, true, func(a asked) said { return old(a, dns.RcodeFormatError) }},
	{"noedns4", 1, true, func(a asked) said { return old(a, dns.RcodeNotImplemented) }},

	{"wrongid", 2, false, func(a asked) said { return spoofed(a, otherID) }},
	{"wrongname", 2, false, func(a asked) said { return spoofed(a, otherName) }},
	{"noreply", 1, false, func(a asked) said { return spoofed(a, func(p []byte) []byte { p[2] &^= 0x80; return p }) }},
	{"tooshort", 1, false, func(a asked) said { return spoofed(a, func(p []byte) []byte { return p[:7] }) }},
	{"silent", 1, true, func(asked) said { return said{Msg: new(dns.Msg), silent: true} }},

	// These are cut or bent behind the question, so that it is plain whose they are.
	{"cutshort", 1, true, func(a asked) said { return spoilt(a, func(p []byte) []byte { return p[:len(p)-3] }) }},
	{"miscounted", 1, true, func(a asked) said {
		return spoilt(a, func(p []byte) []byte { binary.BigEndian.PutUint16(p[6:], 9); return p })
	}},
	{"bombself", 1, true, func(a asked) said {
		return spoilt(a, func(p []byte) []byte { return bend(p, func(at int) uint16 { return uint16(at) }) })
	}},
	{"bombahead", 1, true, func(a asked) said {
		return spoilt(a, func(p []byte) []byte { return bend(p, func(at int) uint16 { return uint16(at + 2) }) })
	}},
	{"bombheader", 1, true, func(a asked) said {
		return spoilt(a, func(p []byte) []byte { return bend(p, func(int) uint16 { return 4 }) })
	}},
	{"shortdata", 1, true, func(a asked) said {
		// An address of three bytes.
		s := answer(&dns.RFC3597{Hdr: header(a.name, dns.TypeA, ttlShort), Rdata: "c00002"})
		if a.typ != dns.TypeA {
			return denial(dns.RcodeSuccess, a)
		}
		return s
	}},
}

var kindsByName = func() map[string]kind {
	m := map[string]kind{}
	for _, k := range kinds {
		m[k.name] = k
	}
	return m
}()

// ask is the question in a query. The query has one.
func ask(m *dns.Msg, udp bool) asked {
	q := m.Question[0]
	a := asked{name: q.Name, typ: q.Qtype, ad: m.AuthenticatedData, cd: m.CheckingDisabled, udp: udp}
	if opt := m.IsEdns0(); opt != nil {
		a.edns, a.do = true, opt.Do()
	}
	labels := dns.SplitDomainName(strings.ToLower(q.Name))
	n := len(labels)
	if n < 3 || labels[n-1]+"." != zone {
		return a
	}
	if _, ok := kindsByName[labels[n-2]]; !ok {
		return a
	}
	a.kind, a.label = labels[n-2], labels[n-3]
	if n > 3 && labels[n-4][0] == 'c' {
		a.link, _ = strconv.Atoi(labels[n-4][1:])
	}
	return a
}

// says is what upstream says to a query: the same, always.
func says(query *dns.Msg, udp bool) (said, error) {
	a := ask(query, udp)
	if a.kind != "" {
		return kindsByName[a.kind].says(a), nil
	}
	m, err := kubedns.Answer(query)
	if err != nil {
		return said{}, err
	}
	for _, rr := range append(append([]dns.RR{}, m.Answer...), m.Ns...) {
		rr.Header().Ttl = ttlShort
		if soa, ok := rr.(*dns.SOA); ok {
			soa.Minttl = ttlShort
		}
	}
	return said{Msg: m}, nil
}

// chainName is link i of the chain; 0 is the name itself.
func (a asked) chainName(i int) string {
	if i == a.link {
		return a.name
	}
	base := a.label + "." + a.kind + "." + zone
	if i == 0 {
		return base
	}
	return fmt.Sprintf("c%d.%s", i, base)
}

func pick[T any](a asked, of ...T) T { return of[a.variant(len(of))] }

func header(name string, typ uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: ttl}
}

func cname(owner, target string, ttl uint32) dns.RR {
	return &dns.CNAME{Hdr: header(owner, dns.TypeCNAME, ttl), Target: target}
}

// record is one that is written in this file: it can be read.
func record(s string) dns.RR {
	rr, err := dns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return rr
}

// stranger is a record that nobody has asked for.
func stranger() dns.RR { return record(strangersName + " 3600 IN A 203.0.113.66") }

const (
	strangersZone = "bank.test."
	strangersName = "www." + strangersZone
)

// soa is that of the kind's zone. Its own time of life is longer than what it says
// denials live.
func (a asked) soa() dns.RR {
	apex := a.kind + "." + zone
	return record(apex + " 3600 IN SOA ns." + apex + " admin." + apex + " 1 7200 1800 86400 600")
}

func answer(rrs ...dns.RR) said { return said{Msg: &dns.Msg{Answer: rrs}} }

func fails(rcode int) said { return said{Msg: &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}} }

func denial(rcode int, a asked) said {
	s := fails(rcode)
	s.Ns = []dns.RR{a.soa()}
	return s
}

// texts are data of the types that have one record each.
var texts = map[uint16]string{
	dns.TypeNS: "NS1.Example.net.", dns.TypeSOA: "ns.example.net. admin.example.net. 7 7200 1800 86400 600",
	dns.TypePTR: "Host.Example.net.", dns.TypeCNAME: "Alias.example.net.", dns.TypeDNAME: "elsewhere.example.net.",
	dns.TypeMX: "10 Mail.example.net.", dns.TypeSRV: "0 5 443 host.example.net.",
	dns.TypeTXT: `"Letters Are Kept" "\000\255\"\\"`, dns.TypeCAA: `0 issue "ca.example.net"`,
	dns.TypeHTTPS: `1 . alpn="h2,h3" ipv4hint="192.0.2.1" ech="AEX+DQ=="`, dns.TypeSVCB: `2 svc.example.net. port="8443" key65400="x"`,
	dns.TypeDS: "1 13 2 9f000000000000000000000000000000000000000000000000000000000000ff", dns.TypeDNSKEY: "256 3 13 AAECAwQFBgcICQ==",
	dns.TypeNAPTR: `1 2 "u" "E2U+sip" "!^.*$!sip:x@example.net!" .`, dns.TypeTLSA: "3 1 1 00ff", dns.TypeSSHFP: "4 2 00ff",
	dns.TypeURI: `1 2 "https://example.net/"`, dns.TypeHINFO: `"RFC8482" ""`,
}

// data is the records of the type asked for.
func data(a asked) []dns.RR {
	owner := a.name
	var rrs []dns.RR
	switch text, known := texts[a.typ]; {
	case a.typ == dns.TypeA:
		for i := range 1 + a.variant(4) {
			rrs = append(rrs, &dns.A{Hdr: header(owner, a.typ, ttlLong), A: net.IPv4(192, 0, 2, byte(i+1))})
		}
	case a.typ == dns.TypeAAAA:
		for i := range 1 + a.variant(4) {
			rrs = append(rrs, &dns.AAAA{Hdr: header(owner, a.typ, ttlLong), AAAA: net.IP{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: byte(i)}})
		}
	case a.typ == dns.TypeANY:
		b := a
		for _, b.typ = range []uint16{dns.TypeA, dns.TypeMX, dns.TypeTXT} {
			rrs = append(rrs, data(b)...)
		}
	case a.typ >= 65280:
		for i := range 1 + a.variant(2) {
			rrs = append(rrs, &dns.RFC3597{Hdr: header(owner, a.typ, ttlLong), Rdata: fmt.Sprintf("c00c%02x", i)})
		}
	case known:
		rr := record(". 3600 IN " + dns.TypeToString[a.typ] + " " + text)
		rr.Header().Name = owner
		rrs = append(rrs, rr)
	}
	return rrs
}

// withTTLs is data of three addresses or texts with the times of life given.
func withTTLs(a asked, ttls ...uint32) said {
	s := answer(data(a)...)
	if a.typ == dns.TypeA {
		s = answer()
		for i := range 3 {
			s.Answer = append(s.Answer, &dns.A{Hdr: header(a.name, a.typ, 0), A: net.IPv4(192, 0, 2, byte(i+1))})
		}
	}
	for i, rr := range s.Answer {
		rr.Header().Ttl = ttls[i%len(ttls)]
	}
	return s
}

// wantsAlias reports whether an alias is itself what is asked for, and is not to be
// followed (RFC 1034 4.3.2).
func (a asked) wantsAlias() bool { return a.typ == dns.TypeCNAME || a.typ == dns.TypeANY }

// chain leads from the link asked for to the last one, which has the data.
func chain(a asked, links int) said {
	s := answer()
	if a.link < links && a.wantsAlias() {
		return answer(cname(a.name, a.chainName(a.link+1), ttlLong))
	}
	for i := a.link; i < links; i++ {
		s.Answer = append(s.Answer, cname(a.chainName(i), a.chainName(i+1), ttlLong))
	}
	last := a
	last.link, last.name = links, a.chainName(links)
	s.Answer = append(s.Answer, data(last)...)
	return s
}

// deniedChain is an alias of what there is not.
func deniedChain(a asked, rcode int) said {
	s := denial(rcode, a)
	if a.link == 0 {
		s.Answer = []dns.RR{cname(a.name, a.chainName(1), ttlLong)}
		if a.wantsAlias() {
			s.Rcode, s.Ns = dns.RcodeSuccess, nil
		}
	}
	return s
}

// dname redirects all below LABEL.dname.example. to LABEL.plain.example. (RFC 6672).
func dname(a asked) said {
	from, to := a.label+"."+a.kind+"."+zone, a.label+".plain."+zone
	redirect := &dns.DNAME{Hdr: header(from, dns.TypeDNAME, ttlLong), Target: to}
	if strings.EqualFold(a.name, from) {
		if a.typ == dns.TypeDNAME {
			return answer(redirect)
		}
		return denial(dns.RcodeSuccess, a)
	}
	target := a
	target.name, target.kind = a.name[:len(a.name)-len(from)]+to, "plain"
	s := answer(redirect, cname(a.name, target.name, ttlLong))
	if !a.wantsAlias() {
		s.Answer = append(s.Answer, data(target)...)
	}
	return s
}

// signed has signatures for who wants them, and says AD to who wants to know and
// has not switched validation off.
func signed(a asked) said {
	s := answer(data(a)...)
	if len(s.Answer) == 0 || a.variant(4) == 0 {
		s = denial(dns.RcodeSuccess, a)
		if a.do {
			s.Ns = append(s.Ns, record(a.label+"."+a.kind+"."+zone+" 600 IN NSEC \\000."+a.label+"."+a.kind+"."+zone+" RRSIG NSEC"))
		}
	}
	s.AuthenticatedData = (a.do || a.ad) && !a.cd
	if !a.do {
		return s
	}
	for _, section := range []*[]dns.RR{&s.Answer, &s.Ns} {
		covered := map[uint16]bool{}
		for _, rr := range *section {
			h := rr.Header()
			if covered[h.Rrtype] {
				continue
			}
			covered[h.Rrtype] = true
			*section = append(*section, &dns.RRSIG{
				Hdr: header(h.Name, dns.TypeRRSIG, h.Ttl), TypeCovered: h.Rrtype, Algorithm: dns.ECDSAP256SHA256,
				Labels: uint8(dns.CountLabel(h.Name)), OrigTtl: h.Ttl, Expiration: 4102444800, Inception: 1700000000, KeyTag: 7,
				SignerName: a.kind + "." + zone, Signature: "AAECAwQFBgcICQ==",
			})
		}
	}
	return s
}

// foreign is data, and what it has no right to say.
func foreign(a asked, add func(*said)) said {
	s := answer(data(a)...)
	add(&s)
	return s
}

// old is a server from before EDNS (RFC 6891 7).
func old(a asked, rcode int) said {
	s := answer(data(a)...)
	if a.edns {
		s = fails(rcode)
	}
	s.bare = true
	return s
}

// spoofed is data behind a forgery that says something else.
func spoofed(a asked, f fake) said {
	s := answer(data(a)...)
	s.spoofs = []fake{f}
	return s
}

func otherID(p []byte) []byte {
	p[0] ^= 0x55
	return forge(p)
}

// otherName asks for another name, of the same length.
func otherName(p []byte) []byte {
	p[13] ^= 1
	return forge(p)
}

// forge makes the forgery say what the reply does not: there is no such name.
func forge(p []byte) []byte {
	p[3] = p[3]&0xF0 | dns.RcodeNameError
	return p
}

// spoilt is data in a packet that is bent.
func spoilt(a asked, spoil func([]byte) []byte) said {
	s := answer(data(a)...)
	if len(s.Answer) == 0 {
		s = denial(dns.RcodeSuccess, a)
	}
	s.spoil = spoil
	return s
}

// bend has the owner of the first record be a pointer to what to says.
func bend(p []byte, to func(at int) uint16) []byte {
	at, err := questionEnd(p)
	if err != nil {
		panic(err) // it was packed a moment ago
	}
	bent := append([]byte(nil), p[:at]...)
	bent = binary.BigEndian.AppendUint16(bent, 0xC000|to(at))
	_, end, err := dns.UnpackDomainName(p, at)
	if err != nil {
		panic(err)
	}
	return append(bent, p[end:]...)
}

// questionEnd is the offset behind the question.
func questionEnd(p []byte) (int, error) {
	_, off, err := dns.UnpackDomainName(p, 12)
	return off + 4, err
}

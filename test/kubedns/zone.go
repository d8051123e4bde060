package kubedns

import (
	_ "embed"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

//go:embed cluster.zone
var clusterZone string

// maxChain bounds how many CNAMEs one answer follows, as CoreDNS does, so that
// a loop in a zone ends.
const maxChain = 8

// A zone holds records by folded owner name.
type zone struct {
	records map[string][]dns.RR
	// names are the owner names and the empty names above them.
	names map[string]bool
	soas  map[string]*dns.SOA
}

func parseZone(text string) (*zone, error) {
	z := &zone{records: map[string][]dns.RR{}, names: map[string]bool{}, soas: map[string]*dns.SOA{}}
	p := dns.NewZoneParser(strings.NewReader(text), "", "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		name := dns.CanonicalName(rr.Header().Name)
		z.records[name] = append(z.records[name], rr)
		if soa, ok := rr.(*dns.SOA); ok {
			z.soas[name] = soa
		}
		z.addNames(name)
	}
	if err := p.Err(); err != nil {
		return nil, fmt.Errorf("reading the zone: %w", err)
	}
	return z, nil
}

// cluster is the zone that the stand-in serves.
var cluster = sync.OnceValues(func() (*zone, error) { return parseZone(clusterZone) })

// Answer is what the stand-in says to req, a query with one question, unless it
// was told to behave otherwise: always the same. The reply has no OPT record, and is as
// long as it is. It is the caller's.
func Answer(req *dns.Msg) (*dns.Msg, error) {
	z, err := cluster()
	if err != nil {
		return nil, err
	}
	return z.reply(req), nil
}

// reply is the reply to a query with one question.
func (z *zone) reply(req *dns.Msg) *dns.Msg {
	q := req.Question[0]
	m := new(dns.Msg).SetReply(req)
	z.answer(m, q)
	m.Authoritative = local(q.Name)
	m.RecursionAvailable = !m.Authoritative
	return m
}

// addNames makes name and the names above it exist. Names that begin with an
// underscore and own nothing do not: CoreDNS answers NXDOMAIN for
// _tcp.web.shop.svc.cluster.local although names below it exist.
func (z *zone) addNames(name string) {
	z.names[name] = true
	for off, end := dns.NextLabel(name, 0); !end; off, end = dns.NextLabel(name, off) {
		if up := name[off:]; up[0] != '_' {
			z.names[up] = true
		}
	}
	z.names["."] = true
}

// answer puts what z says about q into m: the answer with the CNAMEs that lead
// to it, or the SOA that a negative reply needs.
func (z *zone) answer(m *dns.Msg, q dns.Question) {
	name, owner := dns.CanonicalName(q.Name), q.Name
	for range maxChain {
		rrs := z.lookup(name)
		var next *dns.CNAME
		found := false
		for _, rr := range rrs {
			t := rr.Header().Rrtype
			cname, isCNAME := rr.(*dns.CNAME)
			switch {
			case t == q.Qtype || q.Qtype == dns.TypeANY:
				found = true
			case isCNAME:
				next = cname
			default:
				continue
			}
			rr = dns.Copy(rr)
			rr.Header().Name = owner
			m.Answer = append(m.Answer, rr)
		}
		if found {
			return
		}
		if next == nil {
			if !z.names[name] && rrs == nil {
				m.Rcode = dns.RcodeNameError
			}
			m.Ns = append(m.Ns, z.soa(name))
			return
		}
		name, owner = dns.CanonicalName(next.Target), next.Target
	}
}

// lookup returns the records of a folded name: those of the file, or the
// address that the name of a pod spells, such as 10-244-1-11.shop.pod.cluster.local.
func (z *zone) lookup(name string) []dns.RR {
	if rrs := z.records[name]; rrs != nil {
		return rrs
	}
	l := dns.SplitDomainName(name)
	if len(l) != 5 || l[2] != "pod" || l[3] != "cluster" || l[4] != "local" {
		return nil
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(l[0], "-", "."))
	if err != nil || !a.Is4() {
		return nil
	}
	return []dns.RR{&dns.A{
		Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30},
		A:   a.AsSlice(),
	}}
}

// soa returns a copy of the SOA of the zone that name lies in.
func (z *zone) soa(name string) dns.RR {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if soa := z.soas[name[off:]]; soa != nil {
			return dns.Copy(soa)
		}
	}
	return dns.Copy(z.soas["."])
}

// local says whether name belongs to the cluster, for which kube-dns is the
// authority.
func local(name string) bool {
	name = dns.CanonicalName(name)
	return dns.IsSubDomain("cluster.local.", name) || dns.IsSubDomain("10.in-addr.arpa.", name)
}

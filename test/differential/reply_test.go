package differential

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A record is what is compared of one, letters of names folded. It goes with its
// TTL, in units of ttlUnit and rounded up: what it was before it was counted down.
type content struct {
	owner, data string
	typ         uint16
}

type records map[content]int

// A seen is what a stub resolver sees of a reply. One that was truncated over UDP
// is seen as the reply over TCP that it asks for then.
type seen struct {
	silent        bool // there was none in time
	unread        bool // it cannot be read
	rcode         int
	cut, stillCut bool // it was truncated over UDP, and over TCP
	aa, ra, rd    bool
	ad, cd        bool
	opt, do       bool
	question      string // as it stands in the reply, on the wire
	answer        records
	soa           records // of the authority section

	part     records // the answer section of what was truncated over UDP,
	partSize int     // and its length
}

// read is what is seen of a packet.
func read(p []byte) seen {
	m := new(dns.Msg)
	if err := m.Unpack(p); err != nil {
		return seen{unread: true}
	}
	s := seen{
		rcode: m.Rcode, aa: m.Authoritative, ra: m.RecursionAvailable, rd: m.RecursionDesired, ad: m.AuthenticatedData, cd: m.CheckingDisabled,
		answer: contents(m.Answer, 0), soa: contents(m.Ns, dns.TypeSOA), cut: m.Truncated, stillCut: m.Truncated,
	}
	if m.Truncated {
		s.part, s.partSize = s.answer, len(p)
	}
	if opt := m.IsEdns0(); opt != nil {
		s.opt, s.do = true, opt.Do()
	}
	if len(m.Question) > 0 {
		end, _ := questionEnd(p) // it has been read a moment ago
		s.question = string(p[12:end])
	}
	return s
}

// overTCP is what is seen of a truncated reply when whole has come over TCP.
func (s seen) overTCP(whole seen) seen {
	whole.cut, whole.part, whole.partSize = true, s.part, s.partSize
	return whole
}

// contents are the records of a section, or those of one type.
func contents(section []dns.RR, typ uint16) records {
	out := make(records, len(section))
	for _, rr := range section {
		h := rr.Header()
		if typ != 0 && h.Rrtype != typ {
			continue
		}
		data := strings.TrimPrefix(rr.String(), h.String())
		if raw, ok := rr.(*dns.RFC3597); ok {
			data = raw.Rdata // which as text has another header
		}
		switch h.Rrtype {
		case dns.TypeNS, dns.TypeCNAME, dns.TypePTR, dns.TypeDNAME, dns.TypeMX, dns.TypeSRV, dns.TypeSOA:
			data = strings.ToLower(data)
		}
		ttl := (int(h.Ttl) + ttlUnit - 1) / ttlUnit
		c := content{owner: strings.ToLower(h.Name), data: data, typ: h.Rrtype}
		if had, twice := out[c]; twice {
			ttl = max(ttl, had)
		}
		out[c] = ttl
	}
	return out
}

// String is the records, sorted, with their TTLs.
func (r records) String() string {
	var lines []string
	for c, ttl := range r {
		lines = append(lines, fmt.Sprintf("%s %d %s %s", c.owner, ttl*ttlUnit, dns.Type(c.typ), c.data))
	}
	slices.Sort(lines)
	if len(lines) > 6 {
		lines = append(lines[:5], fmt.Sprintf("… %d more", len(lines)-5))
	}
	return "[" + strings.Join(lines, ", ") + "]"
}

// sameContent leaves TTLs out of account.
func (r records) sameContent(other records) bool {
	return maps.EqualFunc(r, other, func(int, int) bool { return true })
}

// strange reports whether it is nobody's business who asked.
func (c content) strange() bool { return c.owner == strangersName || c.owner == strangersZone }

// without leaves some records out.
func (r records) without(drop func(content) bool) records {
	out := maps.Clone(r)
	maps.DeleteFunc(out, func(c content, _ int) bool { return drop(c) })
	return out
}

// within reports whether all of r is in other.
func (r records) within(other records) bool {
	for c := range r {
		if _, ok := other[c]; !ok {
			return false
		}
	}
	return true
}

// String is the reply in a line.
func (s seen) String() string {
	switch {
	case s.silent:
		return "no reply"
	case s.unread:
		return "a reply that cannot be read"
	}
	text := dns.RcodeToString[s.rcode]
	for _, f := range []struct {
		set  bool
		name string
	}{
		{s.cut, "cut"}, {s.stillCut, "tc"}, {s.aa, "aa"}, {s.ra, "ra"}, {s.rd, "rd"}, {s.ad, "ad"}, {s.cd, "cd"}, {s.opt, "opt"}, {s.do, "do"},
	} {
		if f.set {
			text += " " + f.name
		}
	}
	return fmt.Sprintf("%s answer %v soa %v", text, s.answer, s.soa)
}

// An aspect is something that two replies may differ in.
type aspect string

// The aspects. Where replies differ in one of the first two, the rest is not
// compared but for the header and OPT.
const (
	inReply    aspect = "reply" // whether there is one that can be read
	inRCode    aspect = "rcode"
	inQuestion aspect = "question"
	inAA       aspect = "AA"
	inRA       aspect = "RA"
	inRD       aspect = "RD"
	inCD       aspect = "CD"
	inOPT      aspect = "OPT"
	inDO       aspect = "DO"
	inCut      aspect = "truncation"
	inAD       aspect = "AD"
	inAnswer   aspect = "answer"
	inTTL      aspect = "TTL" // of the same records
	inSOA      aspect = "SOA"
	inSOATTL   aspect = "TTL of SOA"
)

// differences are the aspects in which two replies differ.
func differences(a, b seen) []aspect {
	if a.silent != b.silent || a.unread != b.unread {
		return []aspect{inReply}
	}
	if a.silent || a.unread {
		return nil
	}
	var out []aspect
	differ := func(as aspect, is bool) {
		if is {
			out = append(out, as)
		}
	}
	differ(inRCode, a.rcode != b.rcode)
	differ(inQuestion, a.question != b.question)
	differ(inAA, a.aa != b.aa)
	differ(inRA, a.ra != b.ra)
	differ(inRD, a.rd != b.rd)
	differ(inCD, a.cd != b.cd)
	differ(inOPT, a.opt != b.opt)
	differ(inDO, a.opt && b.opt && a.do != b.do)
	if a.rcode != b.rcode {
		return out
	}
	differ(inCut, a.cut != b.cut || a.stillCut != b.stillCut)
	differ(inAD, a.ad != b.ad)
	differ(inAnswer, !a.answer.sameContent(b.answer))
	differ(inTTL, !commonTTLs(a.answer, b.answer))
	differ(inSOA, !a.soa.sameContent(b.soa))
	differ(inSOATTL, !commonTTLs(a.soa, b.soa))
	return out
}

// commonTTLs reports whether the records that both have live equally long.
func commonTTLs(a, b records) bool {
	for c, ttl := range a {
		if other, ok := b[c]; ok && other != ttl {
			return false
		}
	}
	return true
}

// truth is what there is to be known about a question: what upstream says over TCP
// to somebody who bears with its age.
func truth(t *testing.T, q question) said {
	t.Helper()
	m := q.message()
	a := ask(m, false)
	a.edns, a.ad = false, true
	if a.kind != "" {
		return kindsByName[a.kind].says(a)
	}
	s, err := says(m, false)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// faults are the rules that a reply of ours breaks, whatever the others do.
func faults(q question, up said, s seen) []string {
	if s.silent || s.unread {
		return []string{s.String()}
	}
	var out []string
	fault := func(is bool, text string, args ...any) {
		if is {
			out = append(out, fmt.Sprintf(text, args...))
		}
	}
	sent, _ := q.packet(0) // it was sent
	end, _ := questionEnd(sent)
	fault(s.question != string(sent[12:end]), "the question is not as sent (RFC 1035 4.1.2)")
	fault(s.aa, "AA: we are no authority (RFC 1035 4.1.1)")
	fault(!s.ra, "no RA (RFC 1035 4.1.1)")
	fault(s.rd != q.rd, "RD is not as sent (RFC 1035 4.1.1)")
	fault(s.cd != q.cd, "CD is not as sent (RFC 4035 3.2.2)")
	fault(s.opt != q.edns, "OPT where there was none, or none where there was one (RFC 6891 7)")
	fault(s.do != q.do, "DO is not as sent (RFC 3225 3)")
	fault(s.ad && !up.AuthenticatedData, "AD is invented (RFC 4035 3.2.3)")
	fault(s.ad && !q.ad && !q.do, "AD for somebody who has not asked (RFC 6840 5.8)")
	want := expect(q, up)
	fault(s.rcode != want, "%s and not %s", dns.RcodeToString[s.rcode], dns.RcodeToString[want])
	fault(s.stillCut, "truncated over TCP")
	limit := min(max(int(q.size), dns.MinMsgSize), 1232)
	fault(s.cut && s.partSize > limit, "%d bytes where %d are to be had (RFC 6891 6.2.3)", s.partSize, limit)
	fault(s.cut && !s.part.within(s.answer), "what was truncated is no part of the whole")
	if want == s.rcode && (want == dns.RcodeSuccess || want == dns.RcodeNameError) {
		told := contents(up.Answer, 0)
		fault(!s.answer.sameContent(told.without(content.strange)), "not the records that upstream has about the name (RFC 5452 6)")
		for c, ttl := range s.answer {
			fault(ttl > min(told[c], ttlLimit/ttlUnit), "the TTL of %s is above upstream's, or the cap", c.owner)
		}
		fault(!oneTTL(s.answer), "a set with several TTLs (RFC 2181 5.2)")
		fault(!s.soa.sameContent(contents(up.Ns, dns.TypeSOA).without(content.strange)), "not the SOA that upstream has for the name (RFC 2308 5)")
	}
	return slices.Compact(out)
}

// expect is the response code that is right.
func expect(q question, up said) int {
	switch {
	case q.version != 0:
		return dns.RcodeBadVers // RFC 6891 6.1.3
	case q.class != dns.ClassINET:
		return dns.RcodeRefused
	case up.silent || up.spoil != nil || up.Truncated || unreadable(up), aliases(up) > maxChain:
		return dns.RcodeServerFailure
	}
	return up.Rcode
}

// maxChain is how long a chain we follow: longer than any other resolver does.
const maxChain = 20

// aliases is how long the chain is that upstream sends.
func aliases(up said) int {
	n := 0
	for _, rr := range up.Answer {
		if rr.Header().Rrtype == dns.TypeCNAME {
			n++
		}
	}
	return n
}

// unreadable reports whether there is a record in what upstream says whose data
// is not what its type has.
func unreadable(up said) bool {
	for _, rr := range up.Answer {
		if raw, ok := rr.(*dns.RFC3597); ok && raw.Hdr.Rrtype == dns.TypeA {
			return true
		}
	}
	return false
}

// oneTTL reports whether the records of each set live equally long.
func oneTTL(r records) bool {
	sets := map[content]int{}
	for c, ttl := range r {
		set := content{owner: c.owner, typ: c.typ}
		if c.typ == dns.TypeRRSIG {
			set.data, _, _ = strings.Cut(c.data, " ") // each covers a set of its own
		}
		if other, ok := sets[set]; ok && other != ttl {
			return false
		}
		sets[set] = ttl
	}
	return true
}

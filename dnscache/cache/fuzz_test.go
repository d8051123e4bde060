package cache

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/dnstest"
	"nodelocaldns/dnscache/wire"
)

// Whatever upstream sends, nothing breaks; nothing is kept for longer than the
// cap; and a reply that others can read makes replies that others can read,
// fresh, aged and stale, in every rotation, for any client's query. They have no record
// that upstream did not send, none for longer, none of names that the answer does not
// lead to, and no signature that was not asked for.
func FuzzAdmit(f *testing.F) {
	add := func(key, reply []byte) {
		f.Add(wire.AppendUpstreamQuery(nil, 0, key, true), reply, uint16(30), uint16(5), uint16(7))
	}
	for _, r := range []replyText{
		{question: "a. A", records: "answer a. 20 A 1.2.3.4\nanswer a. 9 A 1.2.3.5\nanswer a. 9 A 1.2.3.6"},
		{question: "a. A", records: "answer c. 9 A 1.2.3.4\nanswer b. 9 CNAME c.\nanswer a. 20 CNAME b."},
		{question: "x.a. A", records: "answer a. 20 DNAME b.\nanswer x.a. 20 CNAME x.b.\nanswer x.b. 20 A 1.2.3.4"},
		{question: "x.example. A", rcode: 3, records: "authority example. 9 " + soa + "4"},
		{question: "_x._tcp.a. SRV", records: "answer _x._tcp.a. 20 SRV 0 0 53 b.\nadditional b. 20 A 1.2.3.5\nadditional b. 20 AAAA ::1"},
		{question: "a. MX", records: "answer a. 20 MX 0 b.\nauthority a. 5 NS b.\nadditional b. 20 A 1.2.3.5"},
		{question: "a. HTTPS", records: "answer a. 20 HTTPS 1 . alpn=h2\nanswer b. 1 TXT x"},
		{question: "a. HTTPS", records: "answer a. 20 HTTPS 0 b.\nadditional b. 20 HTTPS 1 c.\nadditional c. 20 A 1.2.3.4\nadditional d. 20 A 1.2.3.4"},
		{question: "a. ANY", records: "answer a. 20 PTR b.a.\nanswer a. 1 TXT \"x\""},
		{question: "a. A", records: "answer a. 20 CNAME b.c.\nanswer b.c. 9 A 1.2.3.4\nanswer b.c. 9 A 1.2.3.5", flags: func(m *dns.Msg) { m.Compress = false }},
		{question: "a. A", rcode: 2, flags: func(m *dns.Msg) { m.SetEdns0(1232, true) }},
		// Foreign records in every section, last and in between.
		{question: "a.b. A", records: "answer a.b. 9 A 1.2.3.4\nanswer c. 9 A 6.6.6.6\nauthority b. 9 NS ns.b.\nauthority c. 9 NS ns.c.\nadditional ns.b. 9 A 1.2.3.5\nadditional c. 9 A 6.6.6.6"},
		{question: "a.b. A", records: "answer a.b. 9 A 1.2.3.4\nauthority b. 9 NS ns.b.\nauthority c. 9 NS ns.c.\nauthority b. 9 NS ns.d.\nadditional ns.b. 9 A 1.2.3.5\nadditional c. 9 A 6.6.6.6\nadditional ns.b. 9 AAAA ::1"},
		{question: "a.b. A", records: "answer c. 9 A 6.6.6.6\nanswer a.b. 9 A 1.2.3.4"},
		{question: "a.b. A", rcode: 3, records: "authority c. 9 " + soa + "4"},
		{question: "a. A", records: "answer a. 9 A 1.2.3.4\nanswer a. 9 A 6.6.6.6", flags: func(m *dns.Msg) { m.Answer[1].Header().Class = dns.ClassCHAOS }},
		// Signatures, asked for and not.
		{question: "a.example. A", records: signed},
		{question: "a.example. A", records: signed, do: true},
		{question: "x.example. A", rcode: 3, records: "authority b.example. 9 NSEC z.example. A\nauthority b.example. 9 RRSIG NSEC 8 2 9 20300101000000 20200101000000 1 example. AAAA\nauthority example. 9 " + soa + "4"},
		// TTLs with their highest bit, and below it.
		{question: "a. A", records: "answer a. 2147483648 A 1.2.3.4\nanswer a. 2147483647 A 1.2.3.5"},
		{question: "a. A", records: "answer a. 4294967295 CNAME b.\nanswer b. 2147483647 A 1.2.3.5"},
		{question: "x.example. A", rcode: 3, records: "authority example. 2147483647 " + soa + "2147483648"},
		{question: "n0. A", records: chain(19)},
		{question: "n0. A", records: chain(20)},
	} {
		add(r.pack(f))
	}
	rrs, err := dnstest.Records("x.example.", 20)
	if err != nil {
		f.Fatal(err)
	}
	for i, rr := range rrs {
		for _, compress := range []bool{false, true} {
			name, typ := "x.example.", rr.Header().Rrtype
			m := new(dns.Msg).SetQuestion(name, typ)
			m.Response, m.Compress = true, compress
			m.Answer = []dns.RR{rr, rrs[(i+1)%len(rrs)]}
			m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 20}, Ns: "host.x.example."}}
			reply, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			add(keyOf(f, name, typ), reply)
		}
	}
	for _, bomb := range bombs() {
		add(keyOf(f, "a.", wire.TypeTXT), bomb)
	}
	f.Fuzz(func(t *testing.T, query, reply []byte, success, denial, age uint16) {
		var q wire.Query
		if wire.ParseQuery(query, &q) != wire.Answer {
			return
		}
		key := wire.AppendKey(nil, &q)
		up := wire.AppendUpstreamQuery(nil, 0, key, true)
		if len(reply) > wire.MaxMessage || len(reply) < 2 {
			return
		}
		reply = bytes.Clone(reply)
		copy(reply, up[:2])
		if wire.CheckReply(up, reply) != nil {
			return
		}
		sent := new(dns.Msg)
		readable := sent.Unpack(reply) == nil
		caps := Caps{uint32(success), uint32(denial)}
		a, err := Admit(key, reply, caps)
		if err != nil {
			return
		}
		limit := caps.Denial
		switch a.Class {
		case Success:
			limit = caps.Success
		case Failure:
			limit = 1
		case Uncached:
			limit = 0
		}
		if a.TTL > time.Duration(limit)*time.Second || a.TTL < 0 || a.TTL == 0 != (a.Class == Uncached) {
			t.Fatalf("class %d is kept for %v with caps %+v", a.Class, a.TTL, caps)
		}
		e := NewEntry(key, a, 0, 0)
		check := func(served []byte, size int) *dns.Msg {
			if len(served) > size {
				t.Fatalf("a reply of %d bytes to a client that takes %d", len(served), size)
			}
			if wire.Flags(served)&wire.FlagAA != 0 || !bytes.Equal(served[wire.HeaderLen:wire.HeaderLen+len(q.Question)], q.Question) {
				t.Fatalf("reply %x", served)
			}
			m := new(dns.Msg)
			if err := m.Unpack(served); err != nil {
				if readable {
					t.Fatalf("reply %x from %x: %v", served, reply, err)
				}
				return nil
			}
			if why := strays(m, &q); why != "" {
				t.Fatalf("%s: %v", why, m)
			}
			return m
		}
		for _, size := range []int{q.Limit(), wire.MaxMessage} {
			check(e.AppendStale(nil, &q, 30, size), size)
			for _, now := range []time.Duration{0, time.Duration(age) * time.Second} {
				if now > 0 && !e.Fresh(now) {
					continue
				}
				for range 3 {
					m := check(e.AppendReply(nil, &q, now, size), size)
					if m == nil {
						continue
					}
					if readable {
						if why := invented(m, sent, now); why != "" {
							t.Fatalf("after %v %s: %v\nof %v", now, why, m, sent)
						}
					}
					for _, rr := range records(m) {
						if ttl := rr.Header().Ttl; a.Class != Uncached && ttl == 0 || ttl > max(caps.Success, caps.Denial) {
							t.Fatalf("TTL %d after %v: %v", ttl, now, m)
						}
					}
				}
			}
		}
	})
}

const signed = "answer a.example. 9 CNAME b.example.\nanswer a.example. 9 RRSIG CNAME 8 2 9 20300101000000 20200101000000 1 example. AAAA\n" +
	"answer b.example. 9 A 1.2.3.4\nanswer b.example. 9 RRSIG A 8 2 9 20300101000000 20200101000000 1 example. AAAA\n" +
	"authority example. 9 NS b.example.\nadditional b.example. 9 A 1.2.3.4\nadditional b.example. 9 RRSIG A 8 2 9 20300101000000 20200101000000 1 example. AAAA"

// bombs are replies to a question for the TXT records of a., that are large once their
// names are spelled out, or whose names are long to follow.
func bombs() (all [][]byte) {
	begin := func(records uint16) []byte {
		return append(wire.AppendHeader(nil, 0, wire.FlagQR, 1, records, 0, 0), 1, 'a', 0, 0, byte(wire.TypeTXT), 0, 1)
	}
	record := func(msg []byte, typ uint16, data ...byte) []byte {
		msg = append(msg, 0xC0, 12, byte(typ>>8), byte(typ), 0, 1, 0, 0, 0, 9)
		return append(binary.BigEndian.AppendUint16(msg, uint16(len(data))), data...)
	}
	label := append([]byte{63}, bytes.Repeat([]byte{'x'}, 63)...)
	longest := slices.Concat(label, label, label, []byte{57}, label[1:58], []byte{0xC0, 12})
	// Every record has the longest name there is, in two bytes; and with a signature
	// among them, they are to be written anew.
	for _, typ := range []uint16{wire.TypeNS, wire.TypeRRSIG} {
		const n = 4000
		msg := record(begin(n), typ, slices.Concat(make([]byte, 18*int(typ/wire.TypeRRSIG)), longest)...)
		at := len(msg) - len(longest)
		for range n - 1 {
			msg = record(msg, wire.TypeNS, 0xC0|byte(at>>8), byte(at))
		}
		all = append(all, msg)
	}
	// Each name is one label and a pointer to the one before: 150 of them.
	msg := record(begin(150), wire.TypeCNAME, 1, 'b', 0xC0, 12)
	for range 149 {
		at := len(msg) - 4
		msg = record(msg, wire.TypeCNAME, 1, 'b', 0xC0|byte(at>>8), byte(at))
	}
	all = append(all, msg)
	// And a name that is nothing but pointers, as many as can be pointed at.
	msg = begin(2)
	at := wire.HeaderLen
	var data []byte
	for range 8000 {
		data = append(data, 0xC0|byte(at>>8), byte(at))
		at = len(msg) + 12 + len(data) - 2
	}
	msg = record(msg, 65280, data...)
	return append(all, record(msg, wire.TypeCNAME, 0xC0|byte(at>>8), byte(at)))
}

// records are those of all sections but OPT.
func records(m *dns.Msg) []dns.RR {
	return slices.DeleteFunc(slices.Concat(m.Answer, m.Ns, m.Extra), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
}

// identity is a record without its TTL. The letters of names may be the client's.
func identity(rr dns.RR) string {
	rr = dns.Copy(rr)
	rr.Header().Ttl = 0
	return strings.ToLower(rr.String())
}

// invented says what m has that upstream did not send, or not for so long.
func invented(m, sent *dns.Msg, age time.Duration) string {
	theirs := map[string][]uint32{}
	for _, rr := range records(sent) {
		id := identity(rr)
		theirs[id] = append(theirs[id], rr.Header().Ttl)
	}
	for _, rr := range records(m) {
		id := identity(rr)
		ttls := theirs[id]
		if len(ttls) == 0 {
			return "upstream did not send " + rr.String()
		}
		i := slices.Index(ttls, slices.Max(ttls))
		if int64(rr.Header().Ttl) > max(int64(ttls[i])-int64(age/time.Second), 0) {
			return "for longer than upstream said: " + rr.String()
		}
		theirs[id] = slices.Delete(ttls, i, i+1)
	}
	return ""
}

// strays says which record of m is about a name that the answer does not lead to, is of
// another class, or is a proof that q did not ask for.
func strays(m *dns.Msg, q *wire.Query) string {
	names := map[string]bool{dns.CanonicalName(m.Question[0].Name): true}
	for range m.Answer {
		for _, rr := range m.Answer {
			if c, ok := rr.(*dns.CNAME); ok && names[dns.CanonicalName(c.Hdr.Name)] {
				names[dns.CanonicalName(c.Target)] = true
			}
		}
	}
	above := func(zone string) bool {
		for name := range names {
			if dns.IsSubDomain(zone, name) {
				return true
			}
		}
		return false
	}
	targets, zones := map[string]bool{}, []string{}
	for _, rr := range m.Ns {
		if h := rr.Header(); (h.Rrtype == dns.TypeSOA || h.Rrtype == dns.TypeNS) && above(h.Name) {
			zones = append(zones, h.Name)
		}
	}
	for _, rr := range records(m) {
		owner := dns.CanonicalName(rr.Header().Name)
		switch rr := rr.(type) {
		case *dns.NS:
			targets[dns.CanonicalName(rr.Ns)] = true
		case *dns.CNAME:
			targets[dns.CanonicalName(rr.Target)] = true
		case *dns.MX:
			targets[dns.CanonicalName(rr.Mx)] = true
		case *dns.SRV:
			targets[dns.CanonicalName(rr.Target)] = true
		case *dns.SVCB:
			targets[dns.CanonicalName(rr.Target)], targets[owner] = true, true
		case *dns.HTTPS:
			targets[dns.CanonicalName(rr.Target)], targets[owner] = true, true
		}
		if typ := rr.Header().Rrtype; slices.Contains([]uint16{dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3}, typ) && !q.DO && typ != q.Type && q.Type != dns.TypeANY {
			return "a proof for nobody: " + rr.String()
		}
		if rr.Header().Class != dns.ClassINET {
			return "another class: " + rr.String()
		}
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if renames := h.Rrtype == dns.TypeDNAME || h.Rrtype == dns.TypeRRSIG; !names[dns.CanonicalName(h.Name)] && (!renames || !above(h.Name)) {
			return "a foreign answer: " + rr.String()
		}
	}
	for _, rr := range m.Ns {
		inside := func(zone string) bool { return dns.IsSubDomain(zone, rr.Header().Name) }
		if !above(rr.Header().Name) && !slices.ContainsFunc(zones, inside) {
			return "a foreign authority: " + rr.String()
		}
	}
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT && !targets[dns.CanonicalName(rr.Header().Name)] {
			return "a foreign additional record: " + rr.String()
		}
	}
	return ""
}

package cache

import (
	"bytes"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/wire"
)

// Whatever upstream sends, nothing breaks; nothing is kept for longer than the
// cap; and a reply that others can read makes replies that others can read,
// fresh and aged, in every rotation, for any client's query.
func FuzzAdmit(f *testing.F) {
	for _, r := range []replyText{
		{question: "a. A", records: "answer a. 20 A 1.2.3.4\nanswer a. 9 A 1.2.3.5\nanswer a. 9 A 1.2.3.6"},
		{question: "a. A", records: "answer c. 9 A 1.2.3.4\nanswer b. 9 CNAME c.\nanswer a. 20 CNAME b."},
		{question: "x.a. A", records: "answer a. 20 DNAME b.\nanswer x.a. 20 CNAME x.b.\nanswer x.b. 20 A 1.2.3.4"},
		{question: "x.example. A", rcode: 3, records: "authority example. 9 " + soa + "4"},
		{question: "_x._tcp.a. SRV", records: "answer _x._tcp.a. 20 SRV 0 0 53 b.\nadditional b. 20 A 1.2.3.5\nadditional b. 20 AAAA ::1"},
		{question: "a. MX", records: "answer a. 20 MX 0 b.\nauthority a. 5 NS b.\nadditional b. 20 A 1.2.3.5"},
		{question: "a. HTTPS", records: "answer a. 20 HTTPS 1 . alpn=h2\nanswer b. 1 TXT x"},
		{question: "a. ANY", records: "answer a. 20 PTR b.a.\nanswer a. 1 TXT \"x\""},
		{question: "a. A", records: "answer a. 20 CNAME b.c.\nanswer b.c. 9 A 1.2.3.4\nanswer b.c. 9 A 1.2.3.5", flags: func(m *dns.Msg) { m.Compress = false }},
		{question: "a. A", rcode: 2, flags: func(m *dns.Msg) { m.SetEdns0(1232, true) }},
	} {
		key, reply := r.pack(f)
		query := wire.AppendUpstreamQuery(nil, 0, key, true)
		f.Add(query, reply, uint16(30), uint16(5), uint16(7))
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
		readable := new(dns.Msg).Unpack(reply) == nil
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
		for _, now := range []time.Duration{0, time.Duration(age) * time.Second} {
			if now > 0 && !e.Fresh(now) {
				continue
			}
			for range 3 {
				size := q.Limit()
				for _, size := range []int{size, wire.MaxMessage} {
					served := e.AppendReply(nil, &q, now, size)
					if len(served) > size {
						t.Fatalf("a reply of %d bytes to a client that takes %d", len(served), size)
					}
					if wire.Flags(served)&wire.FlagAA != 0 || !bytes.Equal(served[wire.HeaderLen:wire.HeaderLen+len(q.Question)], q.Question) {
						t.Fatalf("reply %x", served)
					}
					m := new(dns.Msg)
					if err := m.Unpack(served); err != nil && readable {
						t.Fatalf("reply %x from %x: %v", served, reply, err)
					}
					for _, rr := range append(m.Answer, m.Ns...) {
						if ttl := rr.Header().Ttl; a.Class != Uncached && ttl == 0 || ttl > max(caps.Success, caps.Denial) {
							t.Fatalf("TTL %d after %v: %v", ttl, now, m)
						}
					}
				}
			}
		}
	})
}

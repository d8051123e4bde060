package dnscache

import (
	"testing"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/wire"
)

func TestTheCanaryIsAnsweredWholeOverTCPAndCutOverUDP(t *testing.T) {
	s := offline(t, exchangerFunc(func(*dns.Msg) *dns.Msg {
		t.Error("somebody was asked")
		return new(dns.Msg)
	}))
	for _, tt := range []struct {
		name      string
		class     uint16
		typ       uint16
		edns      uint16 // 0: none
		limit     int    // 0: the client's own
		rcode     int
		records   int
		truncated bool
	}{
		{"over TCP", dns.ClassCHAOS, dns.TypeTXT, 0, wire.MaxMessage, dns.RcodeSuccess, 16, false},
		{"over TCP with EDNS", dns.ClassCHAOS, dns.TypeTXT, 1232, wire.MaxMessage, dns.RcodeSuccess, 16, false},
		{"over UDP", dns.ClassCHAOS, dns.TypeTXT, 0, 0, dns.RcodeSuccess, 0, true},
		{"over UDP with EDNS", dns.ClassCHAOS, dns.TypeTXT, 65535, 0, dns.RcodeSuccess, 0, true},
		{"another type", dns.ClassCHAOS, dns.TypeA, 0, wire.MaxMessage, dns.RcodeRefused, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := new(dns.Msg).SetQuestion("Canary.NodeLocalDNS.", tt.typ)
			m.Question[0].Qclass = tt.class
			if tt.edns != 0 {
				m.SetEdns0(tt.edns, true)
			}
			pkt, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			var q question
			out, outcome := s.answer(&s.streamC, &q, pkt, nil, tt.limit, s.now())
			if outcome != replied {
				t.Fatalf("outcome %d", outcome)
			}
			var r dns.Msg
			if err := r.Unpack(out); err != nil {
				t.Fatal(err)
			}
			if r.Id != m.Id || r.Question[0] != m.Question[0] || r.Rcode != tt.rcode || len(r.Answer) != tt.records ||
				r.Truncated != tt.truncated || (r.IsEdns0() != nil) != (tt.edns != 0) {
				t.Errorf("got\n%s", &r)
			}
			if tt.records > 0 && len(out) <= 4096 {
				t.Errorf("%d bytes are not big", len(out))
			}
		})
	}
	if st := s.Stats(); st.CacheBytes != 0 {
		t.Errorf("%d bytes were cached", st.CacheBytes)
	}
	if misses := s.Stats().Cache[0].Misses + s.Stats().Cache[1].Misses + s.Stats().Cache[2].Misses; misses != 0 {
		t.Errorf("%d misses were counted", misses)
	}
}

func TestTheCanaryAllocatesNothing(t *testing.T) {
	s := offline(t, addresses(1))
	m := new(dns.Msg).SetQuestion("canary.nodelocaldns.", dns.TypeTXT)
	m.Question[0].Qclass = dns.ClassCHAOS
	pkt, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q question
	out := make([]byte, 0, wire.MaxMessage)
	if n := testing.AllocsPerRun(100, func() { s.answer(&s.streamC, &q, pkt, out, wire.MaxMessage, s.now()) }); n != 0 {
		t.Errorf("%.0f allocations, want 0", n)
	}
}

package dnscache

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// explained is what becomes of the question for an A record of www.example.
func explained(t *testing.T, s *Server) ExplainedAnswer {
	t.Helper()
	name, _ := wire.ParseName("www.example")
	ex := s.Explain(name, []uint16{wire.TypeA})
	if len(ex.Questions) != 1 {
		t.Fatalf("%d questions", len(ex.Questions))
	}
	return ex.Questions[0].Answer
}

func TestWhatAnswersInPlaceOfUpstreamIsExplained(t *testing.T) {
	up := &switched{Exchanger: addresses(1)}
	for _, tt := range []struct {
		what    string
		expired bool // there is something that has
		set     func(s *Server, rt *route)
		want    ExplainedAnswer
	}{
		{"nothing does", false, func(*Server, *route) {}, ExplainedAnswer{From: FromUpstream, Within: 0.9, Else: FromNobody}},
		{"later, what has expired", true, func(*Server, *route) {}, ExplainedAnswer{From: FromUpstream, Within: 0.4, Else: FromStale}},
		{"a loop", false, func(_ *Server, rt *route) { rt.loop.closed.Store(true) }, ExplainedAnswer{From: FromNobody, Why: BecauseLoop, RCode: "SERVFAIL", EDE: &ExplainedEDE{0, "Other"}}},
		{"a loop, and what has expired", true, func(_ *Server, rt *route) { rt.loop.closed.Store(true) }, ExplainedAnswer{From: FromStale, Why: BecauseLoop, RCode: "NOERROR", EDE: &ExplainedEDE{3, "Stale Answer"}}},
		{"the end", false, func(s *Server, _ *route) { s.flights.closeForNew() }, ExplainedAnswer{From: FromNobody, Why: BecauseStopping, RCode: "SERVFAIL", EDE: &ExplainedEDE{14, "Not Ready"}}},
		{"the end, and what has expired", true, func(s *Server, _ *route) { s.flights.closeForNew() }, ExplainedAnswer{From: FromStale, Why: BecauseStopping, RCode: "NOERROR", EDE: &ExplainedEDE{3, "Stale Answer"}}},
		{"no servers", false, func(_ *Server, rt *route) { rt.group = &upstream.Group{} }, ExplainedAnswer{From: FromNobody, Why: BecauseNoServer, RCode: "SERVFAIL", EDE: &ExplainedEDE{22, "No Reachable Authority"}}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s := staleServer(t, up)
			var q question
			pkt := packet(t, "www.example.", "A")
			if tt.expired {
				warm(t, s, pkt)
				s.wallClock = func() time.Time { return time.Now().Add(time.Minute) }
			}
			name, _ := wire.ParseName("www.example")
			rt := s.state.Load().routes.find(name)
			tt.set(s, rt)
			if diff := gocmp.Diff(tt.want, explained(t, s)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			// It is what a client is told, where that is known.
			reply, outcome := s.answer(&s.streamC, &q, pkt, nil, 0, s.now())
			if outcome == deferred && tt.want.From != FromUpstream {
				got := make(chan []byte, 1)
				s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: pkt, got: got})
				reply = <-got
			}
			if outcome != deferred && tt.want.From == FromUpstream {
				t.Error("upstream is not asked")
			}
			if reply != nil && rcodeText(wire.RCode(reply)) != tt.want.RCode {
				t.Errorf("a client was told %s", rcodeText(wire.RCode(reply)))
			}
		})
	}
}

func TestOverloadIsExplained(t *testing.T) {
	s := offline(t, addresses(1))
	name, _ := wire.ParseName("www.example")
	overload := func() *ExplainedOverload { return s.Explain(name, nil).Overload }
	if got := overload(); got != nil {
		t.Errorf("%+v where there is none", got)
	}
	s.shares.set(3, 0)
	s.flights.n, s.flights.refreshing = maxFlights+7, 7
	if diff := gocmp.Diff(&ExplainedOverload{NamesPerSecond: 150, Full: true}, overload()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	s.shares.set(0, 0)
	s.flights.n--
	if got := overload(); got != nil {
		t.Errorf("%+v when it is over", got)
	}
	s.flights.n = 0
}

func TestAFlightThatTooManyWaitForIsExplained(t *testing.T) {
	hang := make(chan struct{})
	s := offline(t, blocked(hang))
	defer close(hang)
	pkt := packet(t, "www.example.", "A")
	var q question
	s.answer(&s.streamC, &q, pkt, nil, 0, s.now())
	p := &client4test{c: &conversation{counters: &s.streamC}, query: pkt, got: make(chan []byte, maxWaiters)}
	for range maxWaiters {
		s.join(q.key, &q.query, p)
	}
	want := ExplainedAnswer{From: FromNobody, Why: BecauseCrowded, RCode: "SERVFAIL", EDE: &ExplainedEDE{14, "Not Ready"}}
	if diff := gocmp.Diff(want, explained(t, s)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// blocked answers nobody until the channel is closed.
type blocked chan struct{}

func (b blocked) Exchange(ctx context.Context, _, _ []byte) ([]byte, error) {
	select {
	case <-b:
	case <-ctx.Done():
	}
	return nil, context.Canceled
}

func TestRefreshesAreExplained(t *testing.T) {
	for _, tt := range []struct {
		what     string
		prefetch Prefetch
		reload   int
		hits     int
		unasked  uint8
		class    cache.Class
		want     string // as JSON; times are seconds of a life of 20 s
	}{
		{"off", Prefetch{}, 0, 3, 0, cache.Success, `null`},
		{"by the third query", Prefetch{10, 3}, 0, 0, 0, cache.Success, `{"begun":false,"from":18,"queries":3}`},
		{"by the next", Prefetch{10, 3}, 0, 2, 0, cache.Success, `{"begun":false,"from":18,"queries":1}`},
		{"without hits", Prefetch{10, 0}, 0, 0, 0, cache.Denial, `{"begun":false,"from":18,"queries":1}`},
		{"without queries", Prefetch{}, 2, 0, 1, cache.Success, `{"begun":false,"unasked":18.5}`},
		{"no longer", Prefetch{}, 2, 0, 2, cache.Success, `null`},
		{"again after a hit", Prefetch{}, 2, 1, 2, cache.Success, `{"begun":false,"unasked":18.5}`},
		{"not of denials", Prefetch{}, 2, 0, 0, cache.Denial, `null`},
		{"of failures", Prefetch{10, 0}, 2, 0, 0, cache.Failure, `null`},
	} {
		s := offline(t, addresses(1))
		x := &explaining{s: s, st: s.state.Load(), wall: time.Unix(0, 0)}
		x.st.cfg.Prefetch, x.st.cfg.Reload = tt.prefetch, tt.reload
		e := cache.NewEntry(make([]byte, 4), cache.Admission{Class: tt.class, TTL: 20 * time.Second, Unasked: tt.unasked}, 0, 0)
		for range tt.hits {
			e.Hit(100)
		}
		r := x.refresh(e, 20*time.Second)
		text := "null"
		if r != nil {
			var b strings.Builder
			b.WriteString(`{"begun":false`)
			if r.From != nil {
				b.WriteString(`,"from":` + secondsText(*r.From) + `,"queries":` + secondsText(time.Unix(int64(r.Queries), 0)))
			}
			if r.Unasked != nil {
				b.WriteString(`,"unasked":` + secondsText(*r.Unasked))
			}
			text = b.String() + "}"
		}
		if text != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, text, tt.want)
		}
	}
}

func secondsText(t time.Time) string {
	text, _ := json.Marshal(float64(t.UnixNano()) / 1e9)
	return string(text)
}

func TestServersAreExplainedInTheirOrder(t *testing.T) {
	cfg := testConfig(kubeDNS)
	cfg.External.Policy = upstream.RoundRobin
	cfg.External.Transport = TransportAuto
	at := netip.MustParseAddrPort
	cfg.Upstreams = Upstreams{Source: ServerList, Servers: []upstream.Addr{
		{AddrPort: at("192.0.2.1:53")}, {AddrPort: at("192.0.2.2:853"), TLSName: "dns.example"}, {AddrPort: kubeDNS},
	}}
	s, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler), Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return addresses(1) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	name, _ := wire.ParseName("www.example")
	want := ExplainedRoute{Zone: "external", Suffix: ".", Policy: "round-robin", Servers: []ExplainedServer{
		{Server: "192.0.2.1:53", Protos: []string{"udp", "tcp"}, State: "up"},
		{Server: "tls://192.0.2.2:853#dns.example", Protos: []string{"tls"}, State: "up"},
		{Server: "10.96.0.10:53", Protos: []string{"tcp"}, State: "up"},
	}}
	if diff := gocmp.Diff(want, s.Explain(name, nil).Route); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The number of a server is a byte. Those beyond are not known, and none is taken for
// another.
func TestWhoHasANumberIsFoundByIt(t *testing.T) {
	var u upstreamCounters
	for i := range 300 {
		c := u.of(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 53), TCP)
		n := u.source(c)
		if a, ok := u.named(n); ok != (i < 255) || ok && (a.Counters != c || int(n) != i+1) {
			t.Fatalf("server %d has number %d, which is %v, %v", i, n, a.server, ok)
		}
	}
	if n := u.source(nil); n != 0 {
		t.Errorf("nobody has number %d", n)
	}
	if _, ok := new(upstreamCounters).named(1); ok {
		t.Error("somebody is known before anybody was asked")
	}
}

// A record whose data is not what its type says is shown as one of an unknown type.
func TestEveryRecordHasAText(t *testing.T) {
	m := new(dns.Msg).SetQuestion("a.example.", dns.TypeHTTPS)
	m.Response = true
	m.Answer = []dns.RR{
		&dns.TXT{Hdr: dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 5}, Txt: []string{"a\tb", "c"}},
		&dns.RFC3597{Hdr: dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeHTTPS, Class: dns.ClassINET, Ttl: 5}, Rdata: "00"},
		&dns.RFC3597{Hdr: dns.RR_Header{Name: "a.example.", Rrtype: 65280, Class: dns.ClassINET, Ttl: 5}, Rdata: "0102"},
	}
	m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 5}, Ns: "ns.example."}}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	want := [3][]string{{
		`a.example. 5 IN TXT "a\009b" "c"`,
		`a.example. 5 CLASS1 TYPE65 \# 1 00`,
		`a.example. 5 CLASS1 TYPE65280 \# 2 0102`,
	}, {"example. 5 IN NS ns.example."}, nil}
	if diff := gocmp.Diff(want, recordTexts(msg)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Not even what the eviction and the next process go by.
func TestExplainingChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &switched{Exchanger: addresses(3)}
		s := staleServer(t, up)
		s.uptime = func() time.Duration { return time.Hour }
		warm(t, s, packet(t, "www.example.", "A"))
		name, _ := wire.ParseName("www.example")
		state := func() string {
			var snapshot bytes.Buffer
			if _, err := s.SaveCache(&snapshot); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%x\n%+v\nasked %d", snapshot.Bytes(), s.Stats(), up.asked.Load())
		}
		for _, later := range []time.Duration{0, 28 * time.Second, time.Minute} { // fresh, about to expire, stale
			time.Sleep(later)
			before := state()
			s.Explain(name, []uint16{wire.TypeA, wire.TypeAAAA})
			synctest.Wait()
			if after := state(); after != before {
				t.Errorf("%v later it was\n%s\nand is\n%s", later, before, after)
			}
		}
	})
}

package dnscache

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/dnstest"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// exchangerFunc is an upstream in a function.
type exchangerFunc func(query *dns.Msg) *dns.Msg

func (f exchangerFunc) Exchange(_ context.Context, query, buf []byte) ([]byte, error) {
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	m := f(q)
	m.Compress = true
	reply, err := m.Pack()
	return append(buf, reply...), err
}

// addresses answers every question with n addresses.
func addresses(n int) exchangerFunc {
	return func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		for i := range n {
			rr, err := dns.NewRR(fmt.Sprintf("%s 30 IN A 10.0.%d.%d", q.Question[0].Name, i/256, i%256))
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		return m
	}
}

// offline is a server without sockets.
func offline(t testing.TB, up upstream.Exchanger) *Server {
	t.Helper()
	return configured(t, testConfig(kubeDNS), up)
}

// configured is offline with another configuration.
func configured(t testing.TB, cfg Config, up upstream.Exchanger) *Server {
	t.Helper()
	s, err := New(cfg, Deps{
		Log:       slog.New(slog.DiscardHandler),
		Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return up },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

func packet(t testing.TB, words ...string) []byte {
	t.Helper()
	a, err := dnstest.ParseAsk(words)
	if err != nil {
		t.Fatal(err)
	}
	return a.Packet
}

// warm asks until the answer is in the cache.
func warm(t testing.TB, s *Server, pkt []byte) {
	t.Helper()
	var q question
	if _, outcome := s.answer(&s.streamC, &q, pkt, nil, 0, s.now()); outcome == deferred {
		got := make(chan []byte, 1)
		s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: pkt, got: got})
		<-got
	}
}

func TestAFreshHitAllocatesNothing(t *testing.T) {
	for _, tt := range []struct {
		what      string
		addresses int
		words     []string
		rcode     int
		wantTC    bool
	}{
		{"plain", 1, []string{"Web.ns.svc.cluster.local.", "A"}, 0, false},
		{"with EDNS and options", 1, []string{"web.ns.svc.cluster.local.", "A", "edns=1232", "cookie"}, 0, false},
		{"with DO", 1, []string{"web.ns.svc.cluster.local.", "A", "+do"}, 0, false},
		{"with rotation", 10, []string{"web.ns.svc.cluster.local.", "A", "edns=1232"}, 0, false},
		{"truncated", 60, []string{"web.ns.svc.cluster.local.", "A", "edns=512"}, 0, true},
		{"refused", 1, []string{"cluster.local.", "AXFR"}, dns.RcodeRefused, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s := offline(t, addresses(tt.addresses))
			pkt := packet(t, tt.words...)
			warm(t, s, pkt)
			var q question
			var reply []byte
			out := make([]byte, 0, wire.MaxUDP)
			now := s.now() + 2*time.Second // aged, too
			allocs := testing.AllocsPerRun(200, func() {
				var o outcome
				if reply, o = s.answer(&s.streamC, &q, pkt, out, 0, now); o != replied {
					t.Fatalf("outcome %v", o)
				}
			})
			if allocs != 0 {
				t.Errorf("%v allocations, want 0", allocs)
			}
			if wire.RCode(reply) != tt.rcode || wire.Flags(reply)&wire.FlagTC != 0 != tt.wantTC {
				t.Errorf("the reply is not what this is about: %x", reply)
			}
		})
	}
}

// Two who ask for the same names have no more than one who does.
func TestFloodsOfTheSameNamesAreShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		block := make(chan struct{})
		s := offline(t, exchangerFunc(func(q *dns.Msg) *dns.Msg {
			<-block
			return new(dns.Msg).SetReply(q)
		}))
		join := func(from int, name string, got chan []byte) {
			pkt := packet(t, name, "A")
			var q question
			s.answer(&s.streamC, &q, pkt, nil, 0, s.now())
			s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: pkt, got: got, from: address(from)})
		}
		floods, modest := make(chan []byte, 2*maxFlights), make(chan []byte, 50)
		for i := range maxFlights {
			for from := range 2 {
				join(1+from, fmt.Sprintf("n%d.example.", i), floods)
			}
		}
		for i := range 50 {
			join(3+i, fmt.Sprintf("m%d.example.", i), modest)
		}
		synctest.Wait()
		if len(modest) > 0 || len(floods) != 2*50 {
			t.Errorf("of 50 who ask for one name %d were shed, and %d of the others, want 100", len(modest), len(floods))
		}
		close(block)
		s.flights.running.Wait()
	})
}

// Waiters for one question, and questions, are bounded. Those that there is no
// room for hear so at once: who asks for more than its share loses the question
// that it has waited longest for, and nobody loses one that others wait for, too.
func TestFloodsAreShed(t *testing.T) { synctest.Test(t, testFloodsAreShed) }

func testFloodsAreShed(t *testing.T) {
	block := make(chan struct{})
	s := offline(t, exchangerFunc(func(q *dns.Msg) *dns.Msg {
		<-block
		return new(dns.Msg).SetReply(q)
	}))
	got := make(chan []byte, 2*(maxWaiters+maxFlights))
	join := func(from int, name string) {
		pkt := packet(t, name, "A", "edns=1232")
		var q question
		if _, o := s.answer(&s.streamC, &q, pkt, nil, 0, s.now()); o != deferred {
			t.Fatalf("outcome %v", o)
		}
		s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: pkt, got: got, from: address(from)})
	}
	const refused = ` SERVFAIL rd ra edns=1232 ede=14 "nodelocaldns: too many questions at once, about to stop, or kube-dns not known yet"`
	shed := func(want ...string) {
		t.Helper()
		synctest.Wait()
		var texts []string
		for len(got) > 0 {
			texts = append(texts, format(t, <-got))
		}
		if !slices.EqualFunc(texts, want, func(text, name string) bool { return strings.HasSuffix(text, name+" A"+refused) }) {
			t.Errorf("shed are %q, want %q", texts, want)
		}
	}
	for i := range maxWaiters + 1 {
		join(1+i%2, "one.example.")
	}
	shed("one.example.")
	for i := range maxFlights - 1 {
		join(3, fmt.Sprintf("n%d.example.", i))
	}
	shed()
	join(3, "more.example.")
	shed("n0.example.")
	join(4, "modest.example.")
	shed("n1.example.")
	if st := s.Stats(); st.Shed != 3 {
		t.Errorf("%d shed, want 3", st.Shed)
	}
	for i := range maxFlights {
		join(5, fmt.Sprintf("m%d.example.", i))
	}
	if n3, n4, n5 := s.flights.holders[address(3)].n, s.flights.holders[address(4)].n, s.flights.holders[address(5)].n; n4 != 1 || n3 < n5-1 || n3+n4+n5 != maxFlights-1 {
		t.Errorf("of %d flights two that ask for all have %d and %d, one that asks for one has %d", maxFlights-1, n3, n5, n4)
	}
	close(block)
	s.flights.running.Wait()
	if st := s.Stats(); st.Flights != 0 || s.flights.n != 0 {
		t.Errorf("%d flights, %d running at the end", st.Flights, s.flights.n)
	}
}

func BenchmarkFreshHit(b *testing.B) {
	const entries = 10_000
	s := offline(b, addresses(1))
	var pkts [][]byte
	for i := range entries {
		// More than 9,984 are evicted: half of them in each kind of zone.
		name := fmt.Sprintf("web%d.ns.svc.cluster.local.", i)
		if i%2 == 1 {
			name = fmt.Sprintf("www%d.example.com.", i)
		}
		pkts = append(pkts, packet(b, name, "A", "edns=1232"))
		warm(b, s, pkts[i])
	}
	now := s.now()
	run := func(c *counters) func() bool {
		var q question
		out := make([]byte, 0, wire.MaxUDP)
		i := 0
		return func() bool {
			i++
			_, o := s.answer(c, &q, pkts[i%entries], out, 0, now)
			return o == replied
		}
	}
	b.Run("one", func(b *testing.B) {
		hit := run(&counters{})
		b.ReportAllocs()
		for b.Loop() {
			if !hit() {
				b.Fatal("a miss")
			}
		}
	})
	b.Run("all-cpus", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			hit := run(&counters{})
			for pb.Next() {
				if !hit() {
					b.Error("a miss")
					return
				}
			}
		})
	})
}

// A miss, without what upstream and sockets cost.
func BenchmarkMiss(b *testing.B) {
	key := packet(b, "web.ns.svc.cluster.local.", "A")
	var q wire.Query
	wire.ParseQuery(key, &q)
	canned, err := addresses(1).Exchange(b.Context(), wire.AppendUpstreamQuery(nil, 0, wire.AppendKey(nil, &q), true), nil)
	if err != nil {
		b.Fatal(err)
	}
	s := offline(b, cannedReply(canned))
	s.cache.SetLimits([cache.Zones]cache.Limit{}, 1) // nothing is kept
	pkt := packet(b, "web.ns.svc.cluster.local.", "A", "edns=1232")
	got := make(chan []byte, 1)
	c := &conversation{counters: &s.streamC}
	var question question
	b.ReportAllocs()
	for b.Loop() {
		if _, o := s.answer(&s.streamC, &question, pkt, nil, 0, s.now()); o != deferred {
			b.Fatal("a hit")
		}
		s.join(question.key, &question.query, &client4test{c: c, query: pkt, got: got})
		<-got
	}
}

// cannedReply is an upstream that says one thing.
type cannedReply []byte

func (r cannedReply) Exchange(_ context.Context, _, buf []byte) ([]byte, error) {
	return append(buf, r...), nil
}

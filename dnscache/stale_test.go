package dnscache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// A switched upstream answers as long as nobody has put it off.
type switched struct {
	upstream.Exchanger
	off   atomic.Bool
	asked atomic.Int64
}

func (s *switched) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	s.asked.Add(1)
	if s.off.Load() {
		return nil, errors.New("connection refused")
	}
	return s.Exchanger.Exchange(ctx, query, buf)
}

// staleServer is an offline server that serves what has expired, and refreshes in
// the last tenth, after one hit.
func staleServer(t testing.TB, up upstream.Exchanger) *Server {
	t.Helper()
	cfg := testConfig(kubeDNS)
	for _, z := range []*Zone{&cfg.Cluster, &cfg.Reverse, &cfg.External} {
		z.Stale = Stale{For: time.Hour, AnswerTTL: 30 * time.Second, ClientTimeout: 400 * time.Millisecond}
	}
	cfg.Prefetch = Prefetch{At: 10, MinHits: 1}
	return configured(t, cfg, up)
}

func TestAReplyThatHasExpiredAllocatesNothing(t *testing.T) {
	for _, tt := range []struct {
		what      string
		addresses int
		words     []string
		wantTC    bool
		looped    bool
	}{
		{"plain", 1, []string{"Web.ns.svc.cluster.local.", "A"}, false, false},
		{"with EDNS", 1, []string{"web.ns.svc.cluster.local.", "A", "edns=1232", "cookie"}, false, false},
		{"with rotation", 10, []string{"web.ns.svc.cluster.local.", "A", "edns=1232"}, false, false},
		{"truncated", 60, []string{"web.ns.svc.cluster.local.", "A", "edns=512"}, true, false},
		{"on a route that loops", 1, []string{"web.ns.svc.cluster.local.", "A"}, false, true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			up := &switched{Exchanger: addresses(tt.addresses)}
			s := staleServer(t, up)
			pkt := packet(t, tt.words...)
			warm(t, s, pkt)
			up.off.Store(true)
			var q question
			now := s.now() + time.Minute
			if tt.looped {
				for _, rt := range s.state.Load().routes.all {
					rt.loop.closed.Store(true)
				}
			} else { // a refresh has just failed
				if _, o := s.answer(&s.streamC, &q, pkt, nil, 0, now); o != deferred {
					t.Fatalf("outcome %v", o)
				}
				s.cache.Get(q.key).Fail(now, false)
			}
			var reply []byte
			out := make([]byte, 0, wire.MaxUDP)
			allocs := testing.AllocsPerRun(200, func() {
				var o outcome
				if reply, o = s.answer(&s.streamC, &q, pkt, out, 0, now+time.Second); o != replied {
					t.Fatalf("outcome %v", o)
				}
			})
			if allocs != 0 {
				t.Errorf("%v allocations, want 0", allocs)
			}
			if r := format(t, reply); !strings.Contains(r, " 30 A 10.0.") || wire.Flags(reply)&wire.FlagTC != 0 != tt.wantTC {
				t.Errorf("the reply is not what this is about: %s", r)
			}
			if n := s.Stats().Cache[zoneCluster].Stale; n != 201 {
				t.Errorf("%d stale replies are counted, want 201", n)
			}
		})
	}
}

func TestAHitInTheLastTenthAllocatesNothing(t *testing.T) {
	s := staleServer(t, addresses(1))
	pkt := packet(t, "web.ns.svc.cluster.local.", "A")
	warm(t, s, pkt)
	var q question
	out := make([]byte, 0, wire.MaxUDP)
	now := s.now() + 28*time.Second
	// The refresh that the first one begins is under way, or done.
	s.flights.closeForNew()
	allocs := testing.AllocsPerRun(200, func() {
		if _, o := s.answer(&s.streamC, &q, pkt, out, 0, now); o != replied {
			t.Fatalf("outcome %v", o)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
	if s.cache.Get(q.key).Begin() {
		t.Error("this was not about a refresh")
	}
}

// However many readers find an expired answer at once, upstream is asked once.
func TestADeadUpstreamIsAskedOnceForAName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &switched{Exchanger: addresses(1)}
		s := staleServer(t, up)
		pkt := packet(t, "web.ns.svc.cluster.local.", "A")
		warm(t, s, pkt)
		time.Sleep(time.Minute)
		up.off.Store(true)
		got := make(chan []byte, 10)
		for i := range 5 {
			var q question
			other := packet(t, fmt.Sprintf("other%d.ns.svc.cluster.local.", i), "A")
			s.answer(&s.streamC, &q, other, nil, 0, s.now())
			s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: other, got: got})
			<-got
		}
		time.Sleep(5 * time.Second)
		if !s.state.Load().routes.find(pkt[wire.HeaderLen : len(pkt)-4]).group.Dead(time.Now()) {
			t.Fatal("not dead")
		}
		before := up.asked.Load()
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				var q question
				for range 1000 {
					if _, o := s.answer(&s.streamC, &q, pkt, nil, 0, s.now()); o != replied {
						t.Errorf("outcome %v", o)
					}
				}
			})
		}
		readers.Wait()
		s.flights.running.Wait()
		st := s.Stats()
		if asked := up.asked.Load() - before; st.Refreshes != [len(Refreshes)]uint64{refreshStale: 1} || asked < 1 || asked > 5 {
			t.Errorf("%d refreshes, upstream was asked %d times", st.Refreshes, asked)
		}
		if st.Cache[zoneCluster].Stale != 8000 {
			t.Errorf("%d stale replies, want 8000", st.Cache[zoneCluster].Stale)
		}
	})
}

// A refresh that is refused is not asked for again with the next query.
func TestARefusedRefreshIsRefusedOnce(t *testing.T) {
	s := staleServer(t, addresses(1))
	pkt := packet(t, "web.ns.svc.cluster.local.", "A")
	warm(t, s, pkt)
	var q question
	now := s.now() + time.Minute
	s.answer(&s.streamC, &q, pkt, nil, 0, now)
	st, e := s.state.Load(), s.cache.Get(q.key)
	s.flights.bound = bucket{at: now, queries: s.queries()}
	for i := range 100 {
		s.refresh(st, st.routes.find(q.key[:len(q.key)-3]), e, now+time.Duration(i), refreshStale, 0)
	}
	if st := s.Stats(); st.Refused != 1 || st.Refreshes != [len(Refreshes)]uint64{} {
		t.Errorf("%d refused, %d refreshes", st.Refused, st.Refreshes)
	}
}

// While upstream is dead it is not asked, and what it was not asked does not count.
func TestARefreshThatUpstreamIsNotAskedForCostsNothing(t *testing.T) {
	f := &flights{n: 3, refreshing: 2}
	f.running.Add(3)
	f.ended(&flight{refresh: true, why: refreshStale}, true)
	f.ended(&flight{refresh: true, why: refreshStale}, false)
	f.ended(&flight{}, true)
	if f.n != 0 || f.refreshing != 0 || f.bound.tokens != 1 || f.refreshes != [len(Refreshes)]uint64{refreshStale: 1} {
		t.Errorf("%d flights, %d refreshes under way, %v tokens, %d refreshes", f.n, f.refreshing, f.bound.tokens, f.refreshes)
	}
}

func TestRefreshesAreBoundedByTimeAndByQueries(t *testing.T) {
	b := newRefreshes()
	taken := func(now time.Duration, queries uint64) (n int) {
		for b.take(now, queries) {
			n++
		}
		return n
	}
	for _, tt := range []struct {
		now     time.Duration
		queries uint64
		want    int
	}{
		{0, 0, 200},
		{0, 9, 0},
		{0, 10, 1},
		{99 * time.Millisecond, 10, 0},
		{100 * time.Millisecond, 10, 1},
		{1100 * time.Millisecond, 110, 20},
		{time.Hour, 110, 200},
		{time.Hour, 1_000_000, 200},
	} {
		if n := taken(tt.now, tt.queries); n != tt.want {
			t.Errorf("after %v and %d queries: %d, want %d", tt.now, tt.queries, n, tt.want)
		}
	}
}

// Refreshes that hang take nothing from clients, and are bounded.
func TestRefreshesAreBesideWhatClientsWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		block := make(chan struct{})
		var blocking atomic.Bool
		s := staleServer(t, exchangerFunc(func(q *dns.Msg) *dns.Msg {
			if blocking.Load() {
				<-block
			}
			return addresses(1)(q)
		}))
		var pkts [][]byte
		for i := range maxRefreshes + 10 {
			pkts = append(pkts, packet(t, fmt.Sprintf("web%d.ns.svc.cluster.local.", i), "A"))
			warm(t, s, pkts[i])
		}
		blocking.Store(true)
		time.Sleep(28 * time.Second)
		for _, pkt := range pkts {
			var q question
			s.streamC.queries.Add(refreshShare)
			if _, o := s.answer(&s.streamC, &q, pkt, nil, 0, s.now()); o != replied {
				t.Fatalf("outcome %v", o)
			}
		}
		if st := s.Stats(); st.Flights != maxRefreshes || st.Refused != 10 {
			t.Errorf("%d refreshes, %d refused", st.Flights, st.Refused)
		}
		got := make(chan []byte, maxFlights)
		for i := range maxFlights {
			var q question
			pkt := packet(t, fmt.Sprintf("n%d.example.", i), "A")
			s.answer(&s.streamC, &q, pkt, nil, 0, s.now())
			s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: pkt, got: got})
		}
		if st := s.Stats(); st.Shed != 0 {
			t.Errorf("%d clients were shed", st.Shed)
		}
		close(block)
		s.flights.running.Wait()
		if st := s.Stats(); s.flights.n != 0 || s.flights.refreshing != 0 || st.Refreshes != [len(Refreshes)]uint64{refreshPrefetch: maxRefreshes} {
			t.Errorf("%d flights, %d of them refreshes, %d were made, at the end", s.flights.n, s.flights.refreshing, st.Refreshes)
		}
	})
}

// A reply that has expired, given at once: what an outage costs a query.
func BenchmarkStaleReply(b *testing.B) {
	const entries = 5000
	up := &switched{Exchanger: addresses(1)}
	s := staleServer(b, up)
	var pkts [][]byte
	for i := range entries {
		pkts = append(pkts, packet(b, fmt.Sprintf("web%d.ns.svc.cluster.local.", i), "A", "edns=1232"))
		warm(b, s, pkts[i])
	}
	now := s.now() + time.Minute
	var q question
	for _, pkt := range pkts {
		s.answer(&s.streamC, &q, pkt, nil, 0, now)
		s.cache.Get(q.key).Fail(now, false)
	}
	out := make([]byte, 0, wire.MaxUDP)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		if _, o := s.answer(&s.streamC, &q, pkts[i%entries], out, 0, now); o != replied {
			b.Fatal("not at once")
		}
	}
}

func TestNumbersThatMakeNoSenseAreRefused(t *testing.T) {
	good := Stale{For: time.Hour, AnswerTTL: time.Second, ClientTimeout: maxClientTimeout}
	for what, change := range map[string]func(*Config){
		"a negative time":          func(c *Config) { c.Reverse.Stale.For = -1 },
		"no TTL":                   func(c *Config) { c.Cluster.Stale = good; c.Cluster.Stale.AnswerTTL = time.Second - 1 },
		"no patience":              func(c *Config) { c.External.Stale = good; c.External.Stale.ClientTimeout = 0 },
		"too much patience":        func(c *Config) { c.External.Stale = good; c.External.Stale.ClientTimeout++ },
		"more than all of a life":  func(c *Config) { c.Prefetch.At = 101 },
		"fewer than no hits":       func(c *Config) { c.Prefetch.MinHits = -1 },
		"more hits than are kept":  func(c *Config) { c.Prefetch.MinHits = 101 },
		"more reloads than a byte": func(c *Config) { c.Reload = 256 },
	} {
		c := testConfig(kubeDNS)
		if change(&c); c.Validate() == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	c := testConfig(kubeDNS)
	c.Cluster.Stale, c.Prefetch, c.Reload = good, Prefetch{At: 100, MinHits: 100}, 255
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

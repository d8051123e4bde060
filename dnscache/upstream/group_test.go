package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/dnscache/wire"
)

// A fake is a server that does as it is told. What it was asked, and when, is
// in its group's log.
type fake struct {
	t     *testing.T
	log   *log
	name  string
	after time.Duration
	rcode uint16
	tc    bool
	err   error
	mute  bool
}

type log struct {
	mu    sync.Mutex
	start time.Time
	lines []string
}

func (l *log) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("%v %s", time.Since(l.start), s))
}

func (l *log) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.lines, ", ")
	l.lines = nil
	return s
}

func (f *fake) Exchange(ctx context.Context, query, _ []byte) ([]byte, error) {
	f.log.add(f.name)
	if f.mute {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if f.after > 0 {
		timer := time.NewTimer(f.after)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if f.err != nil {
		return nil, f.err
	}
	flags := wire.FlagQR | f.rcode
	if f.tc {
		flags |= wire.FlagTC
	}
	return append(wire.AppendHeader(nil, 0, flags, 1, 0, 0, 0), query[wire.HeaderLen:]...), nil
}

// group makes a group of servers that are asked over TCP.
func group(t *testing.T, servers ...*fake) (*Group, *log) {
	l := &log{start: time.Now()}
	g := &Group{Now: time.Now}
	for i, f := range servers {
		f.t, f.log, f.name = t, l, string(rune('a'+i))
		g.Servers = append(g.Servers, &Server{Addr: Addr{AddrPort: netip.MustParseAddrPort("192.0.2.1:53")}, TCP: f, TCPCounters: &Counters{}})
	}
	return g, l
}

var errDown = errors.New("connection refused")

func TestWhoIsAskedAndWhen(t *testing.T) {
	for _, tt := range []struct {
		what    string
		servers []*fake
		asked   string
		rcode   int
		err     error
	}{
		{"the first that answers is enough", []*fake{{}, {}}, "0s a", 0, nil},
		{"NXDOMAIN is an answer", []*fake{{rcode: wire.NXDomain}, {}}, "0s a", wire.NXDomain, nil},
		{"the next is asked at once after a refusal", []*fake{{rcode: wire.Refused}, {}}, "0s a, 0s b", 0, nil},
		{"and after a failure", []*fake{{rcode: wire.ServFail}, {rcode: wire.ServFail}, {}}, "0s a, 0s b, 0s c", 0, nil},
		{"nobody is asked again who refused", []*fake{{rcode: wire.Refused}}, "0s a", wire.Refused, nil},
		{"both refuse", []*fake{{rcode: wire.Refused}, {rcode: wire.ServFail}}, "0s a, 0s b", wire.ServFail, nil},
		{"one that cannot be reached is tried again", []*fake{{err: errDown}}, "0s a, 0s a, 0s a", 0, errDown},
		{"and beside another one", []*fake{{err: errDown}, {err: errDown}}, "0s a, 0s b, 0s a", 0, errDown},
		{"no more than three tries", []*fake{{err: errDown}, {err: errDown}, {err: errDown}, {}}, "0s a, 0s b, 0s c", 0, errDown},
		{"a refusal is better than nothing", []*fake{{rcode: wire.Refused}, {err: errDown}}, "0s a, 0s b, 0s a", wire.Refused, nil},
		{"silence: another one is asked beside it", []*fake{{mute: true}, {}}, "0s a, 30ms b", 0, nil},
		{"a slow one may still win", []*fake{{after: 300 * time.Millisecond}, {mute: true}}, "0s a, 30ms b, 60ms a", 0, nil},
		{"a slow one that fails late", []*fake{{after: 20 * time.Millisecond, err: errDown}, {mute: true}, {}}, "0s a, 20ms b, 50ms c", 0, nil},
		{"what fails after three tries is tried again", []*fake{{after: 70 * time.Millisecond, err: errDown}, {mute: true}, {mute: true}, {}}, "0s a, 30ms b, 60ms c, 70ms d", 0, nil},
		{"silence everywhere", []*fake{{mute: true}, {mute: true}}, "0s a, 30ms b, 60ms a", 0, context.DeadlineExceeded},
		{"silence of one", []*fake{{mute: true}}, "0s a, 30ms a, 60ms a", 0, context.DeadlineExceeded},
		{"nobody", nil, "", 0, ErrNoServer},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, l := group(t, tt.servers...)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				r, err := g.Exchange(ctx, key(t, "www.example"))
				synctest.Wait()
				if asked := l.take(); asked != tt.asked {
					t.Errorf("asked %s; want %s", asked, tt.asked)
				}
				if !errors.Is(err, tt.err) || err == nil && wire.RCode(r) != tt.rcode {
					t.Errorf("%x, %v; want rcode %d, %v", r, err, tt.rcode, tt.err)
				}
			})
		})
	}
}

func TestSilenceOverUDPIsAskedAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := group(t, &fake{mute: true}, &fake{mute: true})
		for i, s := range g.Servers {
			s.UDP, s.UDPCounters = &fake{t: t, log: l, name: string(rune('A' + i)), mute: true}, &Counters{}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err := g.Exchange(ctx, key(t, "www.example"))
		synctest.Wait()
		if asked := l.take(); !errors.Is(err, context.DeadlineExceeded) || asked != "0s A, 30ms B, 60ms a, 310ms B, 560ms A" {
			t.Errorf("asked %s: %v", asked, err)
		}
	})
}

func TestAServerThatFailsComesLastForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := &fake{err: errDown}, &fake{}
		g, l := group(t, bad, good)
		first := func() string {
			if _, err := g.Exchange(t.Context(), key(t, "www.example")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			_, name, _ := strings.Cut(l.take(), " ")
			return name[:1]
		}
		if a, b := first(), first(); a != "a" || b != "a" {
			t.Errorf("asked first: %s, %s; one failure is no outage", a, b)
		}
		for _, backoff := range []time.Duration{1, 2, 4, 8, 10, 10} {
			if got := first(); got != "b" {
				t.Errorf("a server that is down is asked first")
			}
			time.Sleep(backoff*time.Second - time.Nanosecond)
			if got := first(); got != "b" {
				t.Errorf("asked again before %d s are over", backoff)
			}
			time.Sleep(time.Nanosecond)
			if got := first(); got != "a" {
				t.Errorf("not asked again after %d s", backoff)
			}
		}
		time.Sleep(10 * time.Second)
		bad.err = nil
		for range 3 {
			if got := first(); got != "a" {
				t.Error("a server that is back does not come first")
			}
		}
		bad.err = errDown
		if a, b := first(), first(); a != "a" || b != "a" {
			t.Errorf("asked first: %s, %s; what was before the recovery still counts", a, b)
		}
	})
}

func TestAllServersDownAreStillAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &fake{err: errDown}, &fake{err: errDown}
		g, l := group(t, a, b)
		for range 5 {
			if _, err := g.Exchange(t.Context(), key(t, "www.example")); !errors.Is(err, errDown) {
				t.Fatal(err)
			}
		}
		for _, s := range g.Servers {
			if !s.Down(time.Now()) {
				t.Error("not down")
			}
		}
		l.take()
		b.err = nil
		if _, err := g.Exchange(t.Context(), key(t, "www.example")); err != nil {
			t.Errorf("%v; asked %s", err, l.take())
		}
	})
}

func TestOnlyAServersOwnSilenceIsItsFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &fake{mute: true}
		g, _ := group(t, a, &fake{})
		// Nobody else was asked, and the first one for less than patience, when the
		// question ended.
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), startDelay-1)
			if _, err := g.Exchange(ctx, key(t, "www.example")); err == nil {
				t.Fatal("an answer from a mute server")
			}
			cancel()
			synctest.Wait()
		}
		if g.Servers[0].failures.Load() != 0 {
			t.Error("a server that had no time to answer is blamed")
		}
	})
}

func TestTheOnlyServersFailureIsBelievedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := group(t, &fake{after: 300 * time.Millisecond, rcode: wire.ServFail})
		r, err := g.Exchange(t.Context(), key(t, "www.example"))
		if took := time.Since(l.start); err != nil || wire.RCode(r) != wire.ServFail || took != 300*time.Millisecond {
			t.Errorf("%x, %v after %v", r, err, took)
		}
	})
}

func TestFailuresAtOnceAreOneOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := group(t, &fake{after: 10 * time.Millisecond, err: errDown}, &fake{})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _, _ = g.Exchange(t.Context(), key(t, "www.example")) })
		}
		wg.Wait()
		if bad := g.Servers[0]; !bad.Down(time.Now()) || bad.Down(time.Now().Add(firstBackoff)) {
			t.Errorf("down until %v, now is %v; want %v", bad.epoch.time(bad.downUntil.Load()), time.Now(), firstBackoff)
		}
	})
}

// renewable counts how often its connections were given up.
type renewable struct {
	*fake
	renewed int
}

func (r *renewable) Renew() { r.renewed++ }

func TestConnectionsToASilentServerAreGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := group(t, &fake{mute: true})
		r := &renewable{fake: g.Servers[0].TCP.(*fake)}
		g.Servers[0].TCP = r
		ctx, cancel := context.WithTimeout(t.Context(), 2*startDelay+patience+1)
		defer cancel()
		_, _ = g.Exchange(ctx, key(t, "www.example"))
		if asked := l.take(); r.renewed == 0 || asked != "0s a, 30ms a, 60ms a" {
			t.Errorf("given up %d times; asked %s", r.renewed, asked)
		}
		r.renewed = 0
		synctest.Wait()

		// A name may be slow. While the server answers others its connections
		// are good.
		ctx, cancel = context.WithTimeout(t.Context(), 2*startDelay+patience+1)
		defer cancel()
		time.AfterFunc(patience-startDelay, func() { g.Servers[0].ok(time.Now()) })
		_, _ = g.Exchange(ctx, key(t, "slow.example"))
		if r.renewed != 0 {
			t.Error("given up although the server answers")
		}
	})
}

func TestTruncationOverTCPIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := group(t, &fake{tc: true}, &fake{})
		if r, err := g.Exchange(t.Context(), key(t, "www.example")); err != nil || wire.Flags(r)&wire.FlagTC != 0 {
			t.Errorf("%x, %v; want the other server's reply", r, err)
		}
	})
}

func TestTruncatedRepliesAreAskedForOverTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{start: time.Now()}
		udp, tcp := &fake{t: t, log: l, name: "udp", tc: true}, &fake{t: t, log: l, name: "tcp"}
		s := &Server{UDP: udp, TCP: tcp, UDPCounters: &Counters{}, TCPCounters: &Counters{}}
		g := &Group{Servers: []*Server{s}, Now: time.Now}
		r, err := g.Exchange(t.Context(), key(t, "www.example"))
		if err != nil || wire.Flags(r)&wire.FlagTC != 0 || l.take() != "0s udp, 0s tcp" {
			t.Errorf("%x, %v", r, err)
		}
		udp.tc = false
		if _, err := g.Exchange(t.Context(), key(t, "www.example")); err != nil || l.take() != "0s udp" {
			t.Error("asked over TCP without need")
		}
		if s.UDPCounters.Queries.Load() != 2 || s.TCPCounters.Queries.Load() != 1 {
			t.Error("counters")
		}
	})
}

func TestAnswersAreCountedByTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		g, _ := group(t, f)
		c := g.Servers[0].TCPCounters
		for _, d := range []time.Duration{0, 250 * time.Microsecond, 251 * time.Microsecond, 40 * time.Millisecond, 250 * time.Millisecond} {
			f.after = d
			if _, err := g.Exchange(t.Context(), key(t, "www.example")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		var got []uint64
		for i := range c.Latency {
			got = append(got, c.Latency[i].Load())
		}
		if want := []uint64{2, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0}; !slices.Equal(got, want) {
			t.Errorf("buckets %v, want %v", got, want)
		}
		if got, want := time.Duration(c.Sum.Load()), 290*time.Millisecond+501*time.Microsecond; got != want {
			t.Errorf("sum %v, want %v", got, want)
		}
	})
}

func TestResolvConf(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"nameserver 192.0.2.1\n", "192.0.2.1:53"},
		{"nameserver 192.0.2.1", "192.0.2.1:53"},
		{"nameserver\t192.0.2.1  \r\n", "192.0.2.1:53"},
		{"  nameserver 192.0.2.1 # the first\nnameserver 2001:db8::1\n", "192.0.2.1:53 [2001:db8::1]:53"},
		{"nameserver fe80::1%eth0\n", "[fe80::1%eth0]:53"},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.1\n", "192.0.2.1:53 192.0.2.2:53"},
		{"nameserver 127.0.0.53\nnameserver ::1\nnameserver 127.1.2.3\nnameserver ::ffff:127.0.0.1\n", ""},
		{"nameserver ::ffff:192.0.2.1\n", "192.0.2.1:53"},
		{"nameserver 0.0.0.0\nnameserver ::\n", ""},
		{"nameserver\nnameserver x\nnameserver 300.1.1.1\nnameserver 192.0.2.1:53\nnameserver 192.0.2.9\n", "192.0.2.9:53"},
		{"#nameserver 192.0.2.1\n; nameserver 192.0.2.2\nNAMESERVER 192.0.2.3\nnameservers 192.0.2.4\n", ""},
		{"search a b\noptions ndots:5\ndomain x\nsortlist 1.2.3.4\nnameserver 192.0.2.1", "192.0.2.1:53"},
		{"nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n", "1.1.1.1:53 2.2.2.2:53 3.3.3.3:53 4.4.4.4:53"},
	} {
		got, err := ParseResolvConf(strings.NewReader(tt.text))
		var text []string
		for _, a := range got {
			text = append(text, a.String())
		}
		if err != nil || strings.Join(text, " ") != tt.want {
			t.Errorf("%q: %v, %v; want %s", tt.text, got, err, tt.want)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nsearch x\n")
	f.Add("nameserver fe80::1%eth0\nnameserver ::ffff:127.0.0.1")
	f.Fuzz(func(t *testing.T, text string) {
		servers, err := ParseResolvConf(strings.NewReader(text))
		if err != nil {
			return
		}
		for i, s := range servers {
			if a := s.Addr(); !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.Is4In6() || s.Port() != 53 || slices.Contains(servers[:i], s) {
				t.Errorf("%q: %v", text, servers)
			}
		}
	})
}

func TestAReplyIsKnownByWhoGaveItAndHow(t *testing.T) {
	for _, tt := range []struct {
		what    string
		servers []*fake
		udp     *fake // of the last server
		want    string
	}{
		{"the only one", []*fake{{}}, nil, "tcp a"},
		{"the one that knew better", []*fake{{rcode: wire.ServFail}, {}}, nil, "tcp b"},
		{"the quicker one", []*fake{{mute: true}, {}}, nil, "tcp b"},
		{"the one whose refusal is passed on", []*fake{{rcode: wire.Refused}, {err: errDown}}, nil, "tcp a"},
		{"over UDP", []*fake{{}}, &fake{}, "udp a"},
		{"over TCP, since UDP's was cut", []*fake{{}}, &fake{tc: true}, "tcp a"},
		{"nobody", []*fake{{err: errDown}}, nil, ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, l := group(t, tt.servers...)
				if tt.udp != nil {
					tt.udp.t, tt.udp.log, tt.udp.name = t, l, "udp"
					last := g.Servers[len(g.Servers)-1]
					last.UDP, last.UDPCounters = tt.udp, &Counters{}
				}
				_, by, _ := g.Ask(t.Context(), key(t, "www.example"))
				got := ""
				for i, s := range g.Servers {
					switch {
					case by == nil:
					case by == s.TCPCounters:
						got += "tcp " + string(rune('a'+i))
					case by == s.UDPCounters:
						got += "udp " + string(rune('a'+i))
					}
				}
				if got != tt.want {
					t.Errorf("by %q, want %q", got, tt.want)
				}
			})
		})
	}
}

func TestTheOrderOfTheNextQuestionIsToldWithoutAsking(t *testing.T) {
	names := func(servers []*Server) string {
		var out string
		for _, s := range servers {
			out += s.TCP.(*fake).name
		}
		return out
	}
	for _, tt := range []struct {
		policy Policy
		want   string
	}{{Sequential, "abc"}, {Random, "abc"}, {RoundRobin, "bca"}} {
		g, _ := group(t, &fake{}, &fake{}, &fake{})
		g.Policy = tt.policy
		if tt.policy != Random { // chance is not told
			g.inOrder(time.Now())
		}
		first := names(g.Order(time.Now()))
		if again := names(g.Order(time.Now())); first != tt.want || again != first {
			t.Errorf("%s: %s, then %s; want %s", tt.policy, first, again, tt.want)
		}
		if tt.policy == RoundRobin && names(g.inOrder(time.Now())) != first {
			t.Error("others were asked")
		}
		now := time.Now()
		for range 2 {
			g.Servers[1].failed(now)
		}
		if got := names(g.Order(now)); strings.Index(got, "b") != 2 {
			t.Errorf("%s: %s where b has failed", tt.policy, got)
		}
	}
	if got := (&Group{Policy: RoundRobin}).Order(time.Now()); len(got) != 0 {
		t.Errorf("%v of nobody", got)
	}
}

func TestTheStateOfAServerIsWhatItsRepliesTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		g, _ := group(t, f)
		s, start := g.Servers[0], time.Now()
		state := func() State { return s.State(time.Now()) }
		if got := state(); got != (State{}) {
			t.Errorf("at first %+v", got)
		}
		// RFC 6298 2: each reply counts an eighth.
		for _, d := range []time.Duration{8 * time.Millisecond, 16 * time.Millisecond} {
			f.after = d
			if err := question(t, g, "a.example"); err != nil {
				t.Fatal(err)
			}
		}
		want := State{Answered: start.Add(24 * time.Millisecond), Latency: 9 * time.Millisecond}
		if got := state(); !got.Answered.Equal(want.Answered) || got.Latency != want.Latency || got.Err != nil || got.Down != 0 || got.Dead {
			t.Errorf("%+v; want %+v", got, want)
		}
		*f = fake{t: f.t, log: f.log, name: f.name, err: errDown}
		failed := time.Now()
		if err := question(t, g, "a.example"); !errors.Is(err, errDown) {
			t.Fatal(err)
		}
		time.Sleep(firstBackoff / 4)
		if got := state(); !errors.Is(got.Err, errDown) || !got.Failed.Equal(failed) || got.Down <= 0 || got.Down > maxBackoff || !got.Answered.Equal(want.Answered) {
			t.Errorf("%+v where it is down", got)
		}
		*f = fake{t: f.t, log: f.log, name: f.name, mute: true}
		time.Sleep(maxBackoff)
		if err := question(t, g, "a.example"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := state(); !errors.Is(got.Err, ErrNoReply) || !got.Failed.Equal(time.Now()) {
			t.Errorf("%+v where it was silent", got)
		}
		// Who gives a question up learns nothing about the server.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		was := state().Failed
		time.Sleep(deadFor)
		_, _ = g.Exchange(ctx, key(t, "b.example"))
		synctest.Wait()
		if got := state(); !got.Failed.Equal(was) {
			t.Errorf("%+v where it was given up", got)
		}
	})
}

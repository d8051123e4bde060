package upstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"nodelocaldns/dnscache/wire"
)

// question asks g as a client's question does, and returns the error.
func question(t *testing.T, g *Group, name string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	_, err := g.Exchange(ctx, key(t, name))
	return err
}

func TestAGroupThatCannotBeReachedIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := &fake{err: errDown}
		g, l := group(t, down)
		if g.Dead(time.Now()) || !g.Answered().IsZero() {
			t.Error("dead before it was asked")
		}
		if err := question(t, g, "a.example"); !errors.Is(err, errDown) || g.Dead(time.Now()) {
			t.Errorf("%v; three refusals at once are no outage", err)
		}
		time.Sleep(deadAfter)
		if g.Dead(time.Now()) {
			t.Error("dead though nobody has asked since")
		}
		// The same name will do: nobody answers, whatever is asked.
		if err := question(t, g, "a.example"); !errors.Is(err, errDown) || !g.Dead(time.Now()) {
			t.Errorf("%v; not dead", err)
		}
		l.take()
		probes := 0
		for range 40 {
			switch err := question(t, g, "b.example"); {
			case errors.Is(err, errDown):
				probes++
			case !errors.Is(err, ErrDead):
				t.Error(err)
			}
			time.Sleep(probeEvery / 10)
		}
		if probes != 4 || strings.Count(l.take(), "a") != 3*probes {
			t.Errorf("%d probes in a second", probes)
		}
		down.err = nil
		down.rcode = wire.ServFail
		time.Sleep(probeEvery)
		if err := question(t, g, "b.example"); err != nil || g.Dead(time.Now()) {
			t.Errorf("%v; a server that answers is not dead", err)
		}
		if !g.Answered().IsZero() {
			t.Error("SERVFAIL is no usable reply")
		}
		for _, rcode := range []uint16{wire.NXDomain, wire.NoError} {
			time.Sleep(time.Second)
			down.rcode = rcode
			if err := question(t, g, "b.example"); err != nil || !g.Answered().Equal(time.Now()) {
				t.Errorf("%v; answered %v, now is %v", err, g.Answered(), time.Now())
			}
		}
	})
}

func TestASlowNameIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := group(t, &fake{mute: true}, &fake{mute: true})
		for range 600 {
			for _, typ := range []uint16{wire.TypeA, wire.TypeAAAA, wire.TypeTXT} {
				for _, name := range []string{"slow.example", "slower.example"} {
					w, _ := wire.ParseName(name)
					k := wire.AppendKey(nil, &wire.Query{Flags: wire.FlagRD, Question: append(w, 0, byte(typ), 0, 1), Type: typ})
					ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
					if _, err := g.Exchange(ctx, k); !errors.Is(err, context.DeadlineExceeded) {
						t.Fatal(err)
					}
					cancel()
				}
			}
			if g.Dead(time.Now()) {
				t.Fatal("dead for two names")
			}
			time.Sleep(time.Second)
		}
	})
}

func TestSilenceAboutManyNamesIsDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mute := &fake{mute: true}
		g, l := group(t, mute)
		var wg sync.WaitGroup
		for i := range deadNames {
			wg.Go(func() { _ = question(t, g, fmt.Sprintf("n%d.example", i)) })
		}
		time.Sleep(2*startDelay + patience - 1)
		if g.Dead(time.Now()) {
			t.Error("dead before its time")
		}
		time.Sleep(2 * time.Nanosecond)
		if !g.Dead(time.Now()) {
			t.Error("not dead")
		}
		wg.Wait()
		l.take()
		last := time.Now()
		time.Sleep(probeAlone + 1)
		// What a client sends together goes together, where nothing was asked lately.
		for range 2 {
			wg.Go(func() { _ = question(t, g, "www.example") })
		}
		synctest.Wait()
		if asked := l.take(); strings.Count(asked, "a") != 2 {
			t.Errorf("asked %s; want both", asked)
		}
		wg.Wait()
		time.Sleep(time.Until(last.Add(deadFor + 2*time.Second)))
		if g.Dead(time.Now()) {
			t.Error("dead for ever")
		}
	})
}

// Its replies come too late for those who asked, but they come.
func TestASlowServerIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, steady(time.Second))
		p := n.pool()
		g := over(nil, p)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := question(t, g, fmt.Sprintf("n%d.example", i)); !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			})
		}
		time.Sleep(999 * time.Millisecond)
		if !g.Dead(time.Now()) {
			t.Error("not dead though it has never answered")
		}
		time.Sleep(2 * time.Millisecond)
		if g.Dead(time.Now()) {
			t.Error("dead though it answers")
		}
		wg.Wait()
		n.end(p)
	})
}

func TestOneServerThatAnswersKeepsAGroupAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := group(t, &fake{err: errDown}, &fake{after: time.Millisecond})
		for range 20 {
			if err := question(t, g, "www.example"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(deadAfter)
		}
		if now := time.Now(); !g.Servers[0].Dead(now) || g.Servers[1].Dead(now) || g.Dead(now) {
			t.Errorf("dead: %t, %t, group %t", g.Servers[0].Dead(now), g.Servers[1].Dead(now), g.Dead(now))
		}
	})
}

func TestADeadGroupsProbeAsksAllItsServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := group(t, &fake{mute: true}, &fake{mute: true})
		g.budget.spent.Store(budgetBurst * tenths) // nothing left, as in an outage
		now := time.Now()
		time.Sleep(time.Minute)
		for i := range deadNames {
			for _, s := range g.Servers {
				s.unanswered(time.Now(), now.Add(1), key(t, fmt.Sprintf("n%d.example", i)), false)
			}
		}
		if !g.Dead(time.Now()) {
			t.Fatal("not dead")
		}
		l.start = time.Now()
		_ = question(t, g, "www.example")
		if asked := l.take(); asked != "0s a, 30ms b, 60ms a" {
			t.Errorf("asked %s", asked)
		}
	})
}

func TestPoliciesSayWhoIsAskedFirst(t *testing.T) {
	for _, tt := range []struct {
		policy Policy
		want   string
	}{
		{Sequential, "a a a a a a"},
		{RoundRobin, "a b c a b c"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g, l := group(t, &fake{}, &fake{}, &fake{})
			g.Policy = tt.policy
			var got []string
			for range 6 {
				if err := question(t, g, "www.example"); err != nil {
					t.Fatal(err)
				}
				_, who, _ := strings.Cut(l.take(), " ")
				got = append(got, who)
			}
			if asked := strings.Join(got, " "); asked != tt.want {
				t.Errorf("policy %d: asked %s, want %s", tt.policy, asked, tt.want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		g, l := group(t, &fake{}, &fake{err: errDown}, &fake{})
		g.Policy = Random
		for range 3000 {
			if err := question(t, g, "www.example"); err != nil {
				t.Fatal(err)
			}
		}
		asked := l.take()
		// Whoever fails comes last, so the other two share the questions.
		for _, who := range []string{" a", " c"} {
			if n := strings.Count(asked, who); n < 900 || n > 2100 {
				t.Errorf("%s was asked %d times of 3000", who, n)
			}
		}
	})
}

func TestASilentServerComesLastWhenAnotherOneAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l := group(t, &fake{mute: true}, &fake{after: time.Millisecond})
		for _, want := range []string{"0s a, 30ms b", "31ms a, 61ms b", "62ms b"} {
			if err := question(t, g, "www.example"); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if asked := l.take(); asked != want {
				t.Errorf("asked %s, want %s", asked, want)
			}
		}
		if c := g.Servers[0].TCPCounters; c.Queries.Load() != 2 || c.Errors.Load() != 2 || c.Hedges.Load() != 0 {
			t.Errorf("%d queries, %d errors", c.Queries.Load(), c.Errors.Load())
		}
		if c := g.Servers[1].TCPCounters; c.Queries.Load() != 3 || c.Errors.Load() != 0 || c.Hedges.Load() != 2 {
			t.Errorf("%d queries, %d errors, %d of them hedges", c.Queries.Load(), c.Errors.Load(), c.Hedges.Load())
		}
	})
}

// Where TCP does not get through, only the questions with a large reply fail.
func TestAServerThatTruncatesItsRepliesIsNotDead(t *testing.T) {
	for what, tcp := range map[string]*fake{
		"refused": {after: time.Millisecond, err: errDown},
		"silent":  {mute: true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				udp := &fake{after: 5 * time.Millisecond, tc: true}
				g, _ := group(t, tcp)
				udp.t, udp.log, udp.name = tcp.t, tcp.log, "u"
				s := g.Servers[0]
				s.UDP, s.UDPCounters = udp, &Counters{}
				for i := range 4 {
					if err := question(t, g, fmt.Sprintf("large%d.example", i)); err == nil {
						t.Error("a reply came over TCP")
					}
					if g.Dead(time.Now()) {
						t.Errorf("dead after %d large replies", i+1)
					}
					time.Sleep(100 * time.Millisecond)
				}
				synctest.Wait()
				udp.tc = false
				var wg sync.WaitGroup
				for i := range 20 {
					wg.Go(func() {
						if err := question(t, g, fmt.Sprintf("n%d.example", i)); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// fast is t on a wall clock that is a day fast. The monotonic clock is the same;
// package time has no way to make such a time.
func fast(t time.Time) time.Time {
	const day = 24 * 60 * 60
	*(*uint64)(unsafe.Pointer(&t)) += day << 30 // the seconds
	return t
}

// NTP puts the clock of a node right after it has booted.
func TestAClockThatStepsBackChangesNothing(t *testing.T) {
	at := time.Now() // a bubble has no monotonic clock
	if f := fast(at); f.Sub(at) != 0 || f.UnixNano()-at.UnixNano() != int64(24*time.Hour) {
		t.Fatalf("%v does not step back to %v", f, at)
	}
	server := &fake{}
	g, _ := group(t, server)
	s := g.Servers[0]
	before := func() time.Time { return fast(at) }
	after := func() time.Time { return at }
	outage := func(first, then func() time.Time) {
		t.Helper()
		server.err, g.Now = errDown, first
		_ = question(t, g, "a.example")
		at, g.Now = at.Add(deadAfter), then
		_ = question(t, g, "b.example")
		if !g.Dead(after()) || !s.Down(after()) {
			t.Errorf("dead: %t, last: %t", g.Dead(after()), s.Down(after()))
		}
		if s.Down(after().Add(maxBackoff)) || g.Dead(after().Add(deadFor+1)) {
			t.Errorf("last: %t, dead: %t, for longer than ever", s.Down(after().Add(maxBackoff)), g.Dead(after().Add(deadFor+1)))
		}
	}
	back := func() {
		t.Helper()
		server.err, g.Now = nil, after
		at = at.Add(probeEvery)
		if err := question(t, g, "c.example"); err != nil || g.Dead(at) || g.Answered().Sub(at) != 0 {
			t.Errorf("%v; dead: %t, answered %v ago", err, g.Dead(at), at.Sub(g.Answered()))
		}
		at = at.Add(time.Second)
	}
	for _, when := range []struct{ answered, failed, then func() time.Time }{
		{after, before, before}, // at the end of an outage
		{after, before, after},  // in it
		{before, after, after},  // at its beginning
	} {
		g.Now = when.answered
		if err := question(t, g, "a.example"); err != nil {
			t.Error(err)
		}
		at = at.Add(time.Second)
		outage(when.failed, when.then)
		back()
	}
}

func TestAnAnswerDoesNotMakeALaterOneUndone(t *testing.T) {
	now := time.Now()
	g, _ := group(t, &fake{})
	s := g.Servers[0]
	for _, at := range []time.Time{now, now.Add(-time.Microsecond)} {
		s.ok(at)
		g.ok(at)
	}
	if !g.Answered().Equal(now) || s.health.silentSince(now) {
		t.Errorf("answered at %v, not %v", g.Answered(), now)
	}
}

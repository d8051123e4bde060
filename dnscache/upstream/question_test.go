package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ended is an asker that counts how often it was told how its question ended.
type ended struct {
	mu    sync.Mutex
	times int
	after time.Duration
	start time.Time
	err   error
}

func (e *ended) Answered(_ []byte, _ *Counters, err error, _ *Round) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.times++
	e.after, e.err = time.Since(e.start), err
}

// Replies, failures, time and those who stop it come at once.
func TestWhoAsksIsToldOnce(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			var mu sync.Mutex
			takes := func([]byte) time.Duration {
				mu.Lock()
				defer mu.Unlock()
				if random.IntN(10) == 0 {
					return -1
				}
				return time.Duration(random.IntN(30)) * time.Millisecond
			}
			n := newNetwork(t, &endpoint{after: takes}, &endpoint{after: takes, atOnce: true}, &endpoint{hole: true})
			p := n.pool()
			g := over(nil, p)
			if seed%2 == 0 {
				g = over(&datagrams{network: n}, p)
			}
			stopped := errors.New("stopped")
			var all []*ended
			for i := range 300 {
				e := &ended{start: time.Now()}
				all = append(all, e)
				var q Question
				if i%50 == 0 {
					q.Stop(stopped)
				}
				g.Start(&q, key(t, fmt.Sprintf("n%d.example", i)), e, nil)
				mu.Lock()
				stop := time.Duration(random.IntN(60)) * time.Millisecond
				wait := time.Duration(random.IntN(3)) * time.Millisecond
				mu.Unlock()
				for range 2 {
					time.AfterFunc(stop, func() { q.Stop(stopped) })
				}
				time.Sleep(wait)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
			n.end(p)
			answered := 0
			for i, e := range all {
				switch e.mu.Lock(); {
				case e.times != 1:
					t.Errorf("question %d was ended %d times", i, e.times)
				case e.err == nil:
					answered++
				case i%50 == 0 && !errors.Is(e.err, stopped):
					t.Errorf("question %d was stopped before it began, and ended with %v", i, e.err)
				}
				e.mu.Unlock()
			}
			if answered < 50 {
				t.Errorf("%d were answered: this was hardly about replies", answered)
			}
		})
	}
}

// burst asks n questions that came together, of which the first is for a name that
// hangs if slow, and returns how long each took.
func burst(t *testing.T, g *Group, n int, slow bool) (took []time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var together Together
	all := make([]ended, n)
	for i := range all {
		all[i].start = time.Now()
		name := fmt.Sprintf("n%d.example", i)
		if slow && i == 0 {
			name = "hangs.example"
		}
		var q Question
		context.AfterFunc(ctx, func() { q.Stop(context.Cause(ctx)) })
		g.Start(&q, key(t, name), &all[i], &together)
	}
	together.Send()
	<-ctx.Done()
	synctest.Wait()
	for i := range all {
		took = append(took, all[i].after)
	}
	return took
}

func TestOfManyThatComeTogetherSeveralShareAConnection(t *testing.T) {
	for _, tt := range []struct {
		what  string
		takes time.Duration
		n     int
		most  int // on one connection
	}{
		{"as many as there are connections", time.Millisecond, spread, 1},
		{"more", time.Millisecond, 20, 5},
		{"a server that is slow", quickReply, 20, 1},
		{"too many", time.Millisecond, 100, maxTogether},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := steady(tt.takes)
				n := newNetwork(t, e)
				p := n.pool()
				defer n.end(p)
				g := over(nil, p)
				var wg sync.WaitGroup
				for range 2 * spread {
					wg.Go(func() { asks(t, p, "www.example") })
				}
				wg.Wait()
				took := burst(t, g, tt.n, false)
				if e.most != tt.most {
					t.Errorf("%v; want %d", n, tt.most)
				}
				if tt.takes == time.Millisecond && slices.Max(took) > time.Duration(tt.n)*tt.takes {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// Who shares a connection with a name that hangs is asked for over another one.
func TestANameThatHangsHoldsUpThoseThatCameWithItForAMomentOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		e.after = func(q []byte) time.Duration {
			if isName(q, "hangs.example") {
				return 2 * time.Second
			}
			return time.Millisecond
		}
		n := newNetwork(t, e)
		p := n.pool()
		defer n.end(p)
		g := over(nil, p)
		for range 2 {
			var wg sync.WaitGroup
			for range 2 * latencyFew {
				wg.Go(func() { _ = question(t, g, "www.example") })
			}
			wg.Wait()
		}
		took := burst(t, g, 20, true)
		if slow := slices.Max(took[1:]); took[0] < time.Second || slow > 2*minDelay {
			t.Errorf("took %v: %v", took, n)
		}
	})
}

// A told notes what it is told.
type told struct{ log []string }

func (l *told) replied(reply []byte, err error, round *Round) {
	l.log = append(l.log, fmt.Sprintf("reply %d, %v", binary.BigEndian.Uint16(reply), err))
	round.Left = l
}

func (l *told) Send() { l.log = append(l.log, "end") }

func TestRepliesThatAreReadAtOnceAreOneRound(t *testing.T) {
	p := newPool(time.Now, firstPace, nil)
	ours, theirs := net.Pipe()
	now := time.Now()
	c := &conn{Conn: ours, pool: p, lastUsed: now, idleFor: idleLimit, until: now.Add(ageLimit)}
	var l told
	var first, more []byte
	for i := range 4 {
		q := &call{frame: framed(query(t, "www.example")), to: &l}
		p.mu.Lock()
		c.push(q, now)
		binary.BigEndian.PutUint16(q.frame[2:], uint16(i))
		p.mu.Unlock()
		more = append(more, framed(benchReply(nil, q.frame[2:]))...)
		if i == 0 {
			first, more = more, nil
		}
	}
	done := make(chan struct{})
	go func() {
		c.read()
		close(done)
	}()
	for _, b := range [][]byte{first, more, {0}} { // the last is nobody's
		_, _ = theirs.Write(b)
	}
	<-done
	want := []string{"reply 0, <nil>", "end", "reply 1, <nil>", "reply 2, <nil>", "reply 3, <nil>", "end"}
	if !slices.Equal(l.log, want) {
		t.Errorf("%q; want %q", l.log, want)
	}
}

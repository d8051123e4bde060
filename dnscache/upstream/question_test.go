package upstream

import (
	"bytes"
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

// nobody does not mind how it ended.
type nobody struct{}

func (nobody) Answered([]byte, *Counters, error, *Round) {}

// A question is stopped when its first try has begun, and asks after that.
func TestATryOfAQuestionThatIsOverEndsOnce(t *testing.T) {
	p := newPool(time.Now, firstPace, nil)
	g := over(nil, p)
	stopped := errors.New("stopped")
	q := &Question{group: g, key: key(t, "www.example"), to: nobody{}, servers: g.Servers}
	q.mu.Lock()
	first := q.begin(false)
	q.over, q.cause = true, stopped
	q.mu.Unlock()
	first.ask(nil)
	first.giveUp(stopped)
	if c := g.Servers[0].TCPCounters; q.running != 0 || c.Errors.Load() != 1 {
		t.Errorf("%d tries run, and %d failed", q.running, c.Errors.Load())
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

// learn has g learn how long its server takes, and make the connections for that.
func learn(t *testing.T, g *Group) {
	for range 2 {
		var wg sync.WaitGroup
		for range 2 * latencyFew {
			wg.Go(func() { _ = question(t, g, "www.example") })
		}
		wg.Wait()
	}
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
		{"a server that is slow", quickReplies, 20, 1},
		{"too many", time.Millisecond, 100, int(quickReplies / time.Millisecond)},
		{"too many for a quick one", 100 * time.Microsecond, 100, maxTogether},
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
				if tt.takes <= time.Millisecond && slices.Max(took) > time.Duration(tt.n)*tt.takes {
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
		learn(t, g)
		took := burst(t, g, 20, true)
		if slow := slices.Max(took[1:]); took[0] < time.Second || slow > 2*minDelay {
			t.Errorf("took %v: %v", took, n)
		}
	})
}

// Bursts of questions come, of which some hang, and more often than hedging pays for.
// Those beside them are as quick as if none of them shared a connection, and who is
// a little slow all the time is not asked more often for it.
func TestWhoComesTogetherWithNamesThatHangIsAnswered(t *testing.T) {
	for _, tt := range []struct {
		takes, limit time.Duration
		hang         int // of 100
	}{
		{time.Millisecond, 2 * minDelay, 5},
		{time.Millisecond, 2 * minDelay, 12},
		{time.Millisecond, 2 * minDelay, 30},
		{3 * time.Millisecond, minDelay, 0},
		{10 * time.Millisecond, 2 * minDelay, 0},
	} {
		t.Run(fmt.Sprintf("%v, %d %% hang", tt.takes, tt.hang), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hangs := []byte("\x05hangs")
				n := newNetwork(t, &endpoint{rtt: 200 * time.Microsecond, after: func(q []byte) time.Duration {
					if bytes.Contains(q, hangs) {
						return 5 * time.Second
					}
					return tt.takes
				}})
				p := n.pool()
				defer n.end(p)
				g := over(nil, p)
				learn(t, g)
				before := g.Servers[0].TCPCounters.Hedges.Load()
				random := rand.New(rand.NewPCG(1, 0))
				stopped := errors.New("stopped")
				var well []*ended
				for i := range 100 {
					var together Together
					for j := range 20 {
						e, name := &ended{start: time.Now()}, fmt.Sprintf("n%d.n%d.example", j, i)
						if random.IntN(100) < tt.hang {
							name = fmt.Sprintf("n%d.n%d.hangs.example", j, i)
						} else {
							well = append(well, e)
						}
						var q Question
						time.AfterFunc(3*time.Second, func() { q.Stop(stopped) })
						g.Start(&q, key(t, name), e, &together)
					}
					together.Send()
					time.Sleep(50 * time.Millisecond)
				}
				time.Sleep(4 * time.Second)
				synctest.Wait()
				var slowest time.Duration
				for _, e := range well {
					slowest = max(slowest, e.after)
				}
				hedges := g.Servers[0].TCPCounters.Hedges.Load() - before
				if slowest > tt.limit || tt.hang == 0 && hedges > 0 {
					t.Errorf("the slowest of %d took %v, and %d were asked again: %v", len(well), slowest, hedges, n)
				}
			})
		})
	}
}

// A told notes what it is told.
type told struct{ log []string }

func (l *told) replied(reply []byte, err error, round *Round) {
	l.log = append(l.log, fmt.Sprintf("reply %d, %v", binary.BigEndian.Uint16(reply), err))
	round.Left = l
}

func (l *told) Send() { l.log = append(l.log, "end") }

// A limited connection knows until when it may be written to.
type limited struct {
	net.Conn
	until time.Time
}

func (l *limited) Write(b []byte) (int, error) { return len(b), nil }

func (l *limited) SetWriteDeadline(at time.Time) error {
	l.until = at
	return nil
}

func TestAConnectionCanBeWrittenToLongAfterAFlush(t *testing.T) {
	p := newPool(time.Now, firstPace, nil)
	l := &limited{}
	c := &conn{Conn: l, pool: p}
	c.push(&call{frame: framed(query(t, "www.example"))}, time.Now())
	c.flush()
	if !l.until.IsZero() || len(c.out) > 0 {
		t.Errorf("until %v; %d bytes left", l.until, len(c.out))
	}
}

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

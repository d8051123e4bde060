package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/dnscache/wire"
)

// asks asks p one question and returns how long it took.
func asks(t *testing.T, p Exchanger, name string) time.Duration {
	t.Helper()
	start := time.Now()
	if _, err := p.Exchange(t.Context(), query(t, name), nil); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	return time.Since(start)
}

// rests reports whether p has nothing under way, and no timer.
func (p *Pool) rests() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.keeping && !p.pacing && p.dialling == 0
}

func TestIdleConnectionsAreClosedBeforeTheServerDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, steady(time.Millisecond))
		p := n.pool()
		defer n.end(p)
		for range 3 {
			asks(t, p, "www.example")
			time.Sleep(idleLimit - 2*time.Millisecond)
		}
		if n.dialled() != 1 {
			t.Errorf("in use: %v", n)
		}
		time.Sleep(idleLimit)
		synctest.Wait()
		if open(p) != 0 {
			t.Error("a connection that was idle for too long is still there")
		}
		if !p.rests() {
			t.Error("a pool without connections does not rest")
		}
		asks(t, p, "www.example")
		if n.dialled() != 2 {
			t.Errorf("after that: %v", n)
		}
	})
}

func TestAConnectionHasASuccessorBeforeItIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		n := newNetwork(t, e)
		p := n.pool()
		defer n.end(p)
		asks(t, p, "www.example")
		n.set(func() { e.rtt = 100 * time.Millisecond })
		start := time.Now()
		for n.dialled() == 1 {
			time.Sleep(time.Second)
			if took := asks(t, p, "www.example"); took != time.Millisecond {
				t.Fatalf("a question took %v", took)
			}
		}
		if age := time.Since(start); age < ageLimit*6/10 || age > ageLimit*9/10+2*time.Second {
			t.Errorf("a successor after %v", age)
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if open(p) != 1 {
			t.Errorf("%d connections; want the successor", open(p))
		}
		for range 100 {
			time.Sleep(time.Second)
			if took := asks(t, p, "www.example"); took != time.Millisecond {
				t.Fatalf("a question took %v", took)
			}
		}
		// Where there can be no successor, the old one is used to its end and no longer.
		n.set(func() { e.hole = true })
		time.Sleep(ageLimit)
		synctest.Wait()
		if open(p) != 0 {
			t.Error("a connection lives for ever")
		}
	})
}

func TestReplicasShareTheLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, steady(time.Millisecond), steady(time.Millisecond))
		p := n.pool()
		defer n.end(p)
		for n.dialled() < 100 {
			asks(t, p, "www.example")
			time.Sleep(49 * time.Millisecond)
		}
		a, b := n.endpoints[0].asked, n.endpoints[1].asked
		if mean := (a + b) / 2; max(a, b) > mean*120/100 {
			t.Errorf("%d and %d questions: %v", a, b, n)
		}
		t.Log(n)
	})
}

func TestABusyServerIsAskedOverSeveralConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var es []*endpoint
		for range 2 * spread {
			es = append(es, steady(time.Millisecond))
		}
		n := newNetwork(t, es...)
		next := -1
		n.pick = func(int) int {
			next++
			return next
		}
		p := n.pool()
		defer n.end(p)
		for range growAfter * spread * spread {
			asks(t, p, "www.example")
		}
		if open(p) != spread {
			t.Errorf("%d connections, want %d", open(p), spread)
		}
		n.set(func() {
			for _, e := range es {
				e.asked = 0
			}
		})
		for range 100 * spread {
			asks(t, p, "www.example")
		}
		for i, e := range es[:spread] {
			if e.asked != 100 {
				t.Errorf("connection %d had %d questions of %d", i, e.asked, 100*spread)
			}
		}
	})
}

func TestAConnectionThatIsClosedUnderAQuestionCostsNoQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := 0
		n := newNetwork(t, steady(time.Millisecond))
		p := newPool(time.Now, firstPace, func(ctx context.Context) (net.Conn, error) {
			if closed == maxLost {
				return n.dial(ctx)
			}
			ours, theirs := net.Pipe()
			go func() { // the first has a reply, the second is read
				_, _ = theirs.Write(framed(benchReply(nil, frame(theirs))))
				frame(theirs)
				closed++
				_ = theirs.Close()
			}()
			return ours, nil
		})
		defer n.end(p)
		for range 5 {
			asks(t, p, "www.example")
		}
		if closed != maxLost {
			t.Errorf("%d connections were closed", closed)
		}
	})
}

func TestAByteThatNobodyAskedForEndsAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		p := newPool(time.Now, firstPace, func(context.Context) (net.Conn, error) { return ours, nil })
		go func() {
			_, _ = theirs.Write(append(framed(benchReply(nil, frame(theirs))), 0))
		}()
		asks(t, p, "www.example")
		synctest.Wait()
		if open(p) != 0 {
			t.Error("the next reply would begin in the middle")
		}
	})
}

func TestAClosedPoolWaitsForNothingOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, steady(time.Second))
		p := n.pool()
		for _, first := range []func(cancel func()){
			func(cancel func()) { cancel(); synctest.Wait(); _ = p.Close() },
			func(cancel func()) { _ = p.Close(); cancel(); synctest.Wait() },
		} {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { _, _ = p.Exchange(ctx, query(t, "www.example"), nil) }()
			time.Sleep(100 * time.Millisecond)
			first(cancel)
			if open(p) != 0 {
				t.Error("a connection is kept")
			}
		}
		n.end(p)
	})
}

func TestASilentConnectionIsPassedOver(t *testing.T) {
	p := newPool(time.Now, firstPace, nil)
	now := time.Now()
	p.outOfOrder, p.dialling = now, spread
	old := now.Add(-quiet)
	conn4test := func(lastUsed time.Time, sent ...time.Time) *conn {
		c := &conn{pool: p, lastUsed: lastUsed, idleFor: idleLimit, until: now.Add(time.Minute)}
		for _, at := range sent {
			c.pending = append(c.pending, &call{sent: at})
		}
		p.conns = append(p.conns, c)
		return c
	}
	conn4test(old.Add(-1), old)
	answering, busy := conn4test(old.Add(1), old, now), conn4test(now, now, now, now)
	if c := p.pick(now, false); c != answering {
		t.Error("a silent connection, or a busier one, was taken")
	}
	p.conns = p.conns[:1]
	if c := p.pick(now, false); c != nil {
		t.Error("a silent connection was taken")
	}
	for range maxInFlight - 3 {
		busy.pending = append(busy.pending, &call{sent: now})
	}
	p.conns = []*conn{busy}
	if c := p.pick(now, false); c != nil {
		t.Error("a connection was taken that has too many in flight")
	}
}

func TestAPoolFullOfDeadConnectionsCostsTwoDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := steady(time.Millisecond), steady(time.Millisecond)
		n := newNetwork(t, a, b)
		to := 0
		n.pick = func(int) int { return to }
		p := n.pool()
		g := over(nil, p)
		var wg sync.WaitGroup
		for i := range 2 * spread {
			wg.Go(func() { asks(t, p, fmt.Sprintf("n%d.example", i)) })
		}
		wg.Wait()
		n.set(func() { a.hole, to = true, 1 })
		start := time.Now()
		if err := question(t, g, "www.example"); err != nil || time.Since(start) != 2*startDelay+time.Millisecond {
			t.Errorf("%v after %v: %v", err, time.Since(start), n)
		}
		n.end(p)
	})
}

func TestAnAnnouncedLengthCostsNoMemory(t *testing.T) {
	b := inbox{buf: make([]byte, readBuffer)}
	for i, c := range append([]byte{0xFF, 0xFF}, make([]byte, 3000)...) {
		b.room()[0] = c
		b.to++
		if msg, whole := b.message(); whole {
			t.Fatalf("%d bytes of it are %d", i, len(msg))
		}
		if len(b.buf) > 2*readBuffer {
			t.Fatalf("%d bytes have room for %d", i, len(b.buf))
		}
	}
}

// However what comes is cut into pieces.
func TestMessagesAreReadInPieces(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var want, got []string
	var stream []byte
	for _, n := range []int{0, 1, 12, 2046, 2047, 5000, 65535, 30, 30, 30, 1500, 1500, 1500} {
		msg := make([]byte, n)
		for i := range msg {
			msg[i] = byte(random.Uint32())
		}
		want = append(want, string(msg))
		stream = append(stream, framed(msg)...)
	}
	b := inbox{buf: make([]byte, readBuffer)}
	for len(stream) > 0 {
		n := copy(b.room(), stream[:min(len(stream), 1+random.IntN(4000))])
		stream = stream[n:]
		b.to += n
		for {
			msg, whole := b.message()
			if !whole {
				break
			}
			got = append(got, string(msg))
		}
	}
	if !slices.Equal(want, got) {
		t.Errorf("%d messages of %d", len(got), len(want))
	}
	if b.room(); !b.empty() || len(b.buf) != readBuffer {
		t.Errorf("%d bytes are left, in %d", b.to-b.from, len(b.buf))
	}
}

func TestQuestionsTakeTheFirstConnectionThatIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		n := newNetwork(t, e)
		p := n.pool()
		defer n.end(p)
		asks(t, p, "www.example")
		n.set(func() { e.rtt = 10 * time.Second }) // no other connection can be made
		var wg sync.WaitGroup
		start := time.Now()
		for i := range 5 {
			wg.Go(func() { asks(t, p, fmt.Sprintf("n%d.example", i)) })
		}
		wg.Wait()
		if took := time.Since(start); took != 5*time.Millisecond || e.most != 1 {
			t.Errorf("five questions took %v: %v", took, n)
		}
	})
}

func TestALateReplyFreesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, steady(500*time.Millisecond))
		p := n.pool()
		defer n.end(p)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if r, err := p.Exchange(ctx, query(t, "late.example"), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%x, %v", r, err)
		}
		time.Sleep(500 * time.Millisecond)
		if asks(t, p, "www.example"); n.dialled() != 1 {
			t.Error(n)
		}
	})
}

func TestASYNThatIsLostHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, steady(time.Millisecond), &endpoint{hole: true})
		order := []int{1, 1, 0}
		n.pick = func(int) int {
			i := order[0]
			order = order[1:]
			return i
		}
		p := n.pool()
		defer n.end(p)
		if took := asks(t, p, "www.example"); took != 2*firstPace+1200*time.Microsecond {
			t.Errorf("took %v: %v", took, n)
		}
		time.Sleep(dialLimit)
	})
}

func TestAServerThatCannotBeReachedIsAnErrorInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, &endpoint{hole: true})
		p := n.pool()
		defer n.end(p)
		start := time.Now()
		_, err := p.Exchange(t.Context(), query(t, "www.example"), nil)
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != dialLimit {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestManySYNsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, &endpoint{hole: true})
		p := n.pool()
		defer n.end(p)
		ctx, cancel := context.WithTimeout(t.Context(), dialLimit-1)
		defer cancel()
		if _, err := p.Exchange(ctx, query(t, "www.example"), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if n.dialled() != 1+maxExtra {
			t.Errorf("%v; want %d dials", n, 1+maxExtra)
		}
		time.Sleep(dialLimit)
		synctest.Wait()
		if n.dialled() != 1+maxExtra || !p.rests() {
			t.Errorf("nobody waits: %v", n)
		}
	})
}

// The same load on two kinds of server.
func TestOnlyAServerThatRepliesOutOfOrderIsAskedSeveralAtOnce(t *testing.T) {
	for _, atOnce := range []bool{false, true} {
		t.Run(fmt.Sprint(atOnce), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := steady(2 * time.Millisecond)
				e.after = func(q []byte) time.Duration {
					if isName(q, "slow.example") {
						return 150 * time.Millisecond
					}
					return 2 * time.Millisecond
				}
				e.atOnce = atOnce
				n := newNetwork(t, e)
				p := n.pool()
				defer n.end(p)
				var wg sync.WaitGroup
				round := func() {
					wg.Go(func() { asks(t, p, "slow.example") })
					time.Sleep(100 * time.Millisecond)
					for i := range 40 {
						wg.Go(func() {
							if took := asks(t, p, fmt.Sprintf("n%d.example", i)); took > 3*time.Millisecond {
								t.Errorf("a question took %v behind a slow one", took)
							}
						})
					}
					wg.Wait()
					synctest.Wait()
				}
				round()
				if atOnce != p.pipelines(time.Now()) {
					t.Errorf("pipelines %t", !atOnce)
				}
				if want := 2; e.most != want {
					t.Errorf("%v; want %d at once, of which one is a copy", n, want)
				}
				conns := e.conns
				time.Sleep(idleLimit + housekeeping)
				n.set(func() { e.asked = 0 })
				round()
				if e.conns -= conns; atOnce && (e.conns > spread || e.most > maxInFlight) || !atOnce && e.most > 2 {
					t.Errorf("%v; %d connections", n, e.conns)
				}
				if e.asked > 42 {
					t.Errorf("%v; want 41 questions and a copy at the most", n)
				}
			})
		})
	}
}

// It answers what comes behind a query that it has dropped, in turn.
func TestAServerThatDropsQueriesIsNotTakenForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		e.after = func(q []byte) time.Duration {
			if isName(q, "lost.example") {
				return -1
			}
			return time.Millisecond
		}
		n := newNetwork(t, e)
		p := n.pool()
		defer n.end(p)
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			go func() { _, _ = p.Exchange(ctx, query(t, "lost.example"), nil) }()
			time.Sleep(50 * time.Millisecond)
			asks(t, p, "www.example")
			time.Sleep(time.Minute)
			cancel()
		}
		if e.most != 2 || p.pipelines(time.Now()) {
			t.Errorf("pipelines: %v", n)
		}
	})
}

func TestCopiesAreSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		e.after = func(q []byte) time.Duration {
			if isName(q, "slow.example") {
				return 50 * time.Millisecond
			}
			return time.Millisecond
		}
		n := newNetwork(t, e)
		p := n.pool()
		defer n.end(p)
		asked := 0
		for start := time.Now(); time.Since(start) < 10*time.Minute; {
			var wg sync.WaitGroup
			wg.Go(func() { asks(t, p, "slow.example") })
			time.Sleep(40 * time.Millisecond)
			for range 6 {
				wg.Go(func() { asks(t, p, "www.example") })
			}
			wg.Wait()
			asked += 7
			time.Sleep(time.Second)
		}
		synctest.Wait()
		// After 10 s, 30 s, 70 s and so on.
		if copies := e.asked - asked; copies < 3 || copies > 7 {
			t.Errorf("%d copies in ten minutes", copies)
		}
	})
}

func TestPipeliningEndsWhenItIsNotSeenAnyMore(t *testing.T) {
	p := newPool(time.Now, firstPace, nil)
	now := time.Now()
	if p.pipelines(now) {
		t.Error("before it is seen")
	}
	p.outOfOrder = now
	if !p.pipelines(now.Add(outOfOrderFor-1)) || p.pipelines(now.Add(outOfOrderFor)) {
		t.Error("not for as long as it is to hold")
	}
}

// counting counts the writes of a connection, the first of which waits for go.
type counting struct {
	net.Conn
	mu     sync.Mutex
	writes int
	first  chan struct{}
}

func (c *counting) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.writes++
	first := c.writes == 1
	c.mu.Unlock()
	if first {
		<-c.first
	}
	return c.Conn.Write(b)
}

func TestQueuedQueriesGoOutInOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		e.atOnce = true
		n := newNetwork(t, e)
		var c *counting
		p := newPool(time.Now, firstPace, func(ctx context.Context) (net.Conn, error) {
			if c != nil {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			nc, err := n.dial(ctx)
			c = &counting{Conn: nc, first: make(chan struct{})}
			return c, err
		})
		defer n.end(p)
		p.outOfOrder = time.Now()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() { asks(t, p, fmt.Sprintf("n%d.example", i)) })
			synctest.Wait()
			if i == 0 {
				time.Sleep(time.Millisecond) // until it is connected, and the first write under way
			}
		}
		close(c.first)
		wg.Wait()
		if c.writes != 2 || e.most != 8 {
			t.Errorf("%d writes: %v", c.writes, n)
		}
		time.Sleep(dialLimit)
	})
}

func TestIDsOnAConnectionAreUnique(t *testing.T) {
	c := &conn{pool: newPool(time.Now, firstPace, nil)}
	seen := map[uint16]bool{}
	// Of 2000 numbers drawn out of 65,536 some 30 are alike.
	for range 2000 {
		q := &call{frame: make([]byte, 14)}
		c.push(q, time.Now())
		seen[q.id()] = true
	}
	if len(seen) != 2000 {
		t.Errorf("%d ids for 2000 questions", len(seen))
	}
}

func TestTheServersIdleTimeoutIsObeyed(t *testing.T) {
	for _, tt := range []struct {
		says []byte // options of the reply
		want time.Duration
	}{
		{nil, idleLimit},
		{[]byte{0, keepaliveCode, 0, 2, 0, 20}, 1500 * time.Millisecond}, // three quarters of 2 s
		{[]byte{0, 10, 0, 1, 9, 0, keepaliveCode, 0, 2, 0, 100}, 7500 * time.Millisecond},
		{[]byte{0, keepaliveCode, 0, 2, 0xFF, 0xFF}, ageLimit * 6 / 10},
		{[]byte{0, keepaliveCode, 0, 2, 0, 0}, 0},
		{[]byte{0, keepaliveCode, 0, 0}, idleLimit},
		{[]byte{0, keepaliveCode, 0, 9, 1}, idleLimit},
	} {
		synctest.Test(t, func(t *testing.T) {
			var got []byte
			ours, theirs := net.Pipe()
			p := newPool(time.Now, firstPace, func(context.Context) (net.Conn, error) { return ours, nil })
			p.Keepalive = true
			go func() {
				got = frame(theirs)
				r := benchReply(nil, got[:len(got)-4])
				if r[11] = 1; tt.says == nil {
					r[11] = 0
				} else {
					r = append(r, 0, 0, 41, 4, 0xD0, 0, 0, 0, 0, 0, byte(len(tt.says)))
					r = append(r, tt.says...)
				}
				_, _ = theirs.Write(framed(r))
			}()
			asks(t, p, "www.example")
			if want := append(query(t, "www.example"), 0, keepaliveCode, 0, 0); len(got) != len(want) || got[len(got)-5] != 4 || string(got[len(got)-4:]) != string(want[len(want)-4:]) {
				t.Errorf("asked %x", got)
			}
			start := time.Now()
			for open(p) != 0 {
				time.Sleep(100 * time.Millisecond)
			}
			// Housekeeping comes once a second.
			if lasted := time.Since(start); lasted < tt.want || lasted > tt.want+housekeeping && tt.want < ageLimit/2 {
				t.Errorf("%x: idle for %v, want %v", tt.says, lasted, tt.want)
			}
			_ = p.Close()
		})
	}
}

func TestWhatHangsMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		e.after = func(q []byte) time.Duration {
			if isName(q, "www.example") {
				return time.Millisecond
			}
			return time.Hour
		}
		n := newNetwork(t, e)
		p := n.pool()
		defer n.end(p)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		var failed []error
		var mu sync.Mutex
		defer wg.Wait()
		for i := range maxConns {
			wg.Go(func() {
				_, err := p.Exchange(ctx, query(t, fmt.Sprintf("hangs%d.example", i)), nil)
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			})
		}
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		if open(p) != maxConns {
			t.Fatalf("%d connections", open(p))
		}
		start := time.Now()
		asks(t, p, "www.example")
		if took := time.Since(start); took > giveUpAfter {
			t.Errorf("a question waited %v for those that hang", took)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if open(p) > maxConns || len(failed) == 0 || slices.ContainsFunc(failed, func(err error) bool { return !errors.Is(err, errGivenUp) }) {
			t.Errorf("%d connections, failed: %d", open(p), len(failed))
		}
		cancel()
	})
}

func TestNamesThatHangHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := steady(time.Millisecond)
		e.after = func(q []byte) time.Duration {
			if q[wire.HeaderLen+1] == 'h' {
				return 2 * time.Second // what CoreDNS takes for a name whose servers are gone
			}
			return time.Millisecond
		}
		n := newNetwork(t, e)
		p := n.pool()
		g := over(nil, p)
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 20 * time.Millisecond)
				_ = question(t, g, fmt.Sprintf("h%d.example", i))
			})
		}
		p999, failures := lives(t, g, 5000, 2*time.Millisecond)
		if p999 > 5*time.Millisecond || failures > 0 || g.Dead(time.Now()) {
			t.Errorf("p99.9 %v, %d failures: %v", p999, failures, n)
		}
		wg.Wait()
		n.end(p)
	})
}

// lives asks n questions in a row, apart by pause, some of them at once, and
// returns the longest of all but a thousandth and the number of failures.
func lives(t *testing.T, g *Group, n int, pause time.Duration) (p999 time.Duration, failures int) {
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := g.Exchange(ctx, key(t, fmt.Sprintf("n%d.example", i)))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(start))
			if err != nil {
				failures++
			}
		})
		time.Sleep(pause)
	}
	wg.Wait()
	slices.Sort(took)
	return took[len(took)*999/1000], failures
}

// Linux sends a segment again after 200 ms, and a SYN after a second.
func lossy(share float64, seed uint64) (lose func() bool, stall func() time.Duration) {
	chance := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	lose = func() bool {
		mu.Lock()
		defer mu.Unlock()
		return chance.Float64() < 1-(1-share)*(1-share) // there or back
	}
	return lose, func() time.Duration {
		if lose() {
			return 200 * time.Millisecond
		}
		return 0
	}
}

func TestAnEndpointThatIsGoneOrALossyNetworkCostsNoClientMuch(t *testing.T) {
	for _, tt := range []struct {
		what  string
		n     int
		udp   bool
		hole  bool
		loss  float64
		pause time.Duration
		p999  time.Duration
	}{
		{"one of two endpoints is gone, over TCP", 10000, false, true, 0, 2 * time.Millisecond, 100 * time.Millisecond},
		{"one of two endpoints is gone, over TCP, many at once", 10000, false, true, 0, 100 * time.Microsecond, 100 * time.Millisecond},
		{"one of two endpoints is gone, over TCP, few", 3000, false, true, 0, 700 * time.Millisecond, 100 * time.Millisecond},
		{"one of two endpoints is gone, over UDP", 10000, true, true, 0, 2 * time.Millisecond, 100 * time.Millisecond},
		{"one of two endpoints is gone, over UDP, many at once", 10000, true, true, 0, 100 * time.Microsecond, 100 * time.Millisecond},
		{"2 % loss over TCP", 10000, false, false, 0.02, 2 * time.Millisecond, 100 * time.Millisecond},
		{"2 % loss over TCP, many at once", 10000, false, false, 0.02, 100 * time.Microsecond, 100 * time.Millisecond},
		{"2 % loss over UDP", 10000, true, false, 0.02, 2 * time.Millisecond, 100 * time.Millisecond},
		{"10 % loss over TCP", 10000, false, false, 0.1, 2 * time.Millisecond, 400 * time.Millisecond},
		{"10 % loss over UDP", 10000, true, false, 0.1, 2 * time.Millisecond, 400 * time.Millisecond},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := steady(time.Millisecond), steady(time.Millisecond)
				n := newNetwork(t, a, b)
				lose, stall := lossy(tt.loss, 7)
				a.stall, b.stall = stall, stall
				p := newPool(time.Now, firstPace, func(ctx context.Context) (net.Conn, error) {
					if lose() && !pause(ctx, time.Second) {
						return nil, ctx.Err()
					}
					return n.dial(ctx)
				})
				var udp Exchanger
				if tt.udp {
					udp = &datagrams{n, lose}
				}
				g := over(udp, p)
				lives(t, g, 2000, tt.pause) // as it was before
				n.set(func() {
					b.hole = tt.hole
					a.asked, b.asked, n.dials = 0, 0, 0
				})
				p999, failures := lives(t, g, tt.n, tt.pause)
				if p999 > tt.p999 || failures > 0 {
					t.Errorf("p99.9 %v, %d failures: %v", p999, failures, n)
				}
				if sent := float64(a.asked+b.asked) / float64(tt.n); sent > 1.8 {
					t.Errorf("%.2f queries for a question: %v", sent, n)
				}
				t.Logf("p99.9 %v: %v", p999, n)
				n.end(p)
				time.Sleep(2 * time.Second)
			})
		})
	}
}

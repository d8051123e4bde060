package limit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/limit"
)

// A fate is what befalls one request of one node.
type fate string

const (
	none    fate = "none"
	dies    fate = "dies before"    // the process ends, and the request is not made
	done    fate = "dies after"     // it is made, and the process ends
	lost    fate = "reply is lost"  // it is made, and the process is told that nobody replied
	away    fate = "API is away"    // it is not made
	stopped fate = "stopped before" // the process is stopped for so long that its Lease has lapsed, and goes on
)

// world is two nodes that want a window each. Every request of theirs waits
// until it is let through, one at a time.
type world struct {
	*store
	t *testing.T
	trial

	choices []int // what is done next, each time that there is a choice
	open    []int // how many there were to choose from, as this run met them
	idle    int   // how often time may still pass while requests wait
	asked   int   // how many requests were let through

	mu      sync.Mutex
	waiting []*request // in the order of their nodes
	inside  map[string]bool
	log     strings.Builder

	came chan struct{} // has something after a request came
}

// A trial is what is the same in runs that differ in the order of requests.
type trial struct {
	fate  fate
	at    int  // the request of node a that it befalls, counted from 0
	ready bool // node a stays Ready when its process is dead
	slow  bool // windows last longer than a Lease that is not renewed
}

func (tr trial) String() string {
	return fmt.Sprintf("%s request %d, ready=%t, slow=%t", tr.fate, tr.at, tr.ready, tr.slow)
}

// A process is a run of a node.
type process struct {
	*world
	name           string
	first          bool // the one that a fate befalls
	asked          int
	dead, finished bool
	died           time.Time
	until          time.Time // it is stopped: none of its requests is made
}

type request struct {
	of   *process
	turn chan struct{}
}

// do makes a request when it is its turn.
func (p *process) do(ctx context.Context, what string, ask func() error) error {
	r := &request{p, make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, r)
	slices.SortStableFunc(p.waiting, func(a, b *request) int { return strings.Compare(a.of.name, b.of.name) })
	p.mu.Unlock()
	select {
	case p.came <- struct{}{}:
	default:
	}
	select {
	case <-r.turn:
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		p.waiting = slices.DeleteFunc(p.waiting, func(w *request) bool { return w == r })
		return ctx.Err()
	}
	f := p.befalls(what)
	switch f {
	case away:
		return apiserver.ErrUnreachable
	case dies:
		runtime.Goexit()
	}
	p.mu.Lock()
	stopped := time.Until(p.until)
	p.mu.Unlock()
	time.Sleep(stopped)
	err := ask()
	p.check()
	switch f {
	case done:
		runtime.Goexit()
	case lost:
		return apiserver.ErrUnreachable
	}
	return err
}

// befalls says what becomes of the next request, and ends who is dead.
func (p *process) befalls(what string) fate {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := none
	if p.first && p.asked == p.at {
		f = p.fate
	}
	p.asked++
	if p.dead {
		f = dies
	}
	fmt.Fprintf(&p.log, "%s %s (%s)\n", p.name, what, f)
	if f == dies || f == done {
		p.dead, p.died = true, time.Now()
	}
	if f == stopped {
		p.until = time.Now().Add(limit.TTL + 3*time.Minute)
	}
	return f
}

// check is the promise: one node is cordoned or was left broken, and no other
// is. A node that was stopped for longer than a Lease lasts may cordon itself
// beside another, but finds out then, and does not go on.
func (w *world) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	unavailable := 0
	for name, n := range w.nodes {
		if n.Annotations[mark] != "" || !n.Ready && w.leases[limit.Name(0)].Holder == name {
			unavailable++
		}
	}
	if len(w.inside) > 1 || unavailable > 1 && w.fate != stopped {
		w.t.Errorf("%d nodes are unavailable, %d in their windows", unavailable, len(w.inside))
	}
}

func (p *process) Lease(ctx context.Context, namespace, name string) (l apiserver.Lease, err error) {
	err = p.do(ctx, "reads the lease", func() error { l, err = p.store.Lease(ctx, namespace, name); return err })
	return l, err
}

func (p *process) CreateLease(ctx context.Context, l apiserver.Lease) (got apiserver.Lease, err error) {
	err = p.do(ctx, "creates the lease", func() error { got, err = p.store.CreateLease(ctx, l); return err })
	return got, err
}

func (p *process) UpdateLease(ctx context.Context, l apiserver.Lease) (got apiserver.Lease, err error) {
	err = p.do(ctx, fmt.Sprintf("updates the lease for %q", l.Holder), func() error { got, err = p.store.UpdateLease(ctx, l); return err })
	return got, err
}

func (p *process) Node(ctx context.Context, name string) (n apiserver.Node, err error) {
	err = p.do(ctx, "reads node "+name, func() error { n, err = p.store.Node(ctx, name); return err })
	return n, err
}

// run is a window: acquire, cordon, make sure, work, uncordon, give back.
func (p *process) run(ctx context.Context) {
	var log bytes.Buffer
	for {
		cfg := config(p, p.name, 1, &log)
		if p.name == "b" {
			cfg.Rand = func() float64 { return 27 } // it asks once a minute: the rest is the same
		}
		h, err := limit.Acquire(ctx, cfg)
		if err != nil {
			p.t.Error(err)
			return
		}
		p.cordon(ctx, true)
		var over *limit.Lost
		again(func() error {
			if err := h.Renew(ctx); !errors.As(err, &over) {
				return err
			}
			return nil
		})
		if over == nil {
			p.work()
		}
		p.cordon(ctx, false)
		again(func() error { return h.Release(ctx) })
		if over == nil {
			p.mu.Lock()
			p.finished = true
			p.mu.Unlock()
			return
		}
	}
}

// again tries until it is known to have worked.
func again(try func() error) {
	for try() != nil {
		time.Sleep(time.Second)
	}
}

func (p *process) cordon(ctx context.Context, is bool) {
	again(func() error {
		return p.do(ctx, fmt.Sprintf("cordons itself: %t", is), func() error { p.store.mark(p.name, is); return nil })
	})
}

func (p *process) work() {
	p.be(true)
	defer p.be(false)
	if p.check(); p.slow {
		time.Sleep(limit.TTL + time.Minute)
	}
}

func (p *process) be(inside bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.inside, p.name); inside {
		p.inside[p.name] = true
	}
}

func (w *world) start(ctx context.Context, name string, first bool) *process {
	p := &process{world: w, name: name, first: first}
	go p.run(ctx)
	return p
}

// play is one run: both nodes, until both had their windows. A node whose
// process is dead runs again when its Lease has lapsed for a while.
func (w *world) play(ctx context.Context) {
	a, b := w.start(ctx, "a", true), w.start(ctx, "b", false)
	for begin := time.Now(); ; {
		synctest.Wait()
		w.mu.Lock()
		over := a.finished && b.finished && len(w.waiting) == 0
		dead := a.dead && a.first
		again := dead && time.Since(a.died) > limit.TTL+time.Minute
		w.mu.Unlock()
		switch {
		case over:
			return
		case time.Since(begin) > 2*time.Hour:
			w.t.Error("somebody waits for ever")
			return
		case dead:
			w.set("a", w.ready)
		}
		if again {
			w.set("a", true)
			a = w.start(ctx, "a", false)
			continue
		}
		w.next()
	}
}

func (w *world) set(name string, ready bool) {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	n := w.nodes[name]
	n.Ready = ready
	w.nodes[name] = n
}

// next lets a request through, or time pass.
func (w *world) next() {
	w.mu.Lock()
	n := len(w.waiting)
	if n > 0 && w.idle > 0 && w.asked < 12 {
		n++
	}
	i := 0
	if n > 1 {
		if len(w.open) < len(w.choices) {
			i = w.choices[len(w.open)]
		}
		w.open = append(w.open, n)
	}
	if i < len(w.waiting) {
		w.asked++
		close(w.waiting[i].turn)
		w.waiting = slices.Delete(w.waiting, i, i+1)
		w.mu.Unlock()
		return
	}
	if idle := len(w.waiting) > 0; idle {
		w.idle--
		w.mu.Unlock()
		time.Sleep(time.Minute)
		return
	}
	w.mu.Unlock()
	select {
	case <-w.came:
	case <-time.After(5 * time.Minute): // all that live have finished
	}
}

// every plays a trial in every order, and returns in how many there are.
func (tr trial) every(t *testing.T, idle int) (runs int) {
	for choices := []int{}; choices != nil; runs++ {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			w := &world{store: newStore("a", "b"), t: t, trial: tr, choices: choices, idle: idle, inside: map[string]bool{}, came: make(chan struct{}, 1)}
			w.play(ctx)
			cancel()
			const want = "nodelocaldns-window-0 \"\"\na ready=true marked=false\nb ready=true marked=false\n"
			if w.store.String() != want {
				t.Errorf("got\n%s\nwant\n%s", w.store, want)
			}
			if t.Failed() {
				t.Fatalf("%s, choices %v:\n%s", tr, choices, &w.log)
			}
			if choices = following(w.open, choices); tr.slow {
				choices = nil // which renewal is beside which question does not matter
			}
		})
		if t.Failed() {
			return runs
		}
	}
	return runs
}

// following are the next choices, counting upwards with the last the fastest;
// nil after the last.
func following(open, choices []int) []int {
	next := make([]int, len(open))
	copy(next, choices)
	for i := len(next) - 1; i >= 0; i-- {
		if next[i]++; next[i] < open[i] {
			return next[:i+1]
		}
	}
	return nil
}

func TestTwoNodesNeverHaveTheSameWindow(t *testing.T) {
	runs := 0
	for _, f := range []fate{none, dies, done, lost, away, stopped} {
		for at := range 8 {
			for _, ready := range []bool{true, false} {
				for _, slow := range []bool{false, true} {
					idle := 0
					if f == none && !slow {
						idle = 1
					}
					if f == none && at > 0 || f != dies && f != done && !ready {
						continue
					}
					runs += trial{f, at, ready, slow}.every(t, idle)
					if t.Failed() {
						return
					}
				}
			}
		}
	}
	t.Logf("%d runs", runs)
}

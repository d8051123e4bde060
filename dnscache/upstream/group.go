package upstream

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// How a question is tried.
const (
	// quickTries are made one learnt delay after the other. Over TCP that is enough:
	// what is lost of them, the kernel sends again. Over UDP two more follow. Where a
	// tenth of the packets is lost each way, and TCP is not let through, they leave
	// 0.1 % without a reply, and three tries 3.6 %.
	quickTries = 3
	tries      = 5
	// patience is how long the later tries are waited for. All five end
	// before the second in which a client is answered. A server that was
	// silent for that long towards everybody has failed.
	patience = 250 * time.Millisecond
	// failures is how many tries may fail before the question does.
	failures = 3
)

// ErrNoServer is returned by a group that has no servers.
var ErrNoServer = errors.New("no upstream server is known")

// A Policy says which of several servers is asked first.
type Policy uint8

const (
	// Sequential asks them in their order: the next one only where the one before
	// fails, refuses or is late.
	Sequential Policy = iota
	// Random asks first whom chance picks.
	Random
	// RoundRobin asks each first in turn.
	RoundRobin
)

// String is p as the configuration spells it.
func (p Policy) String() string { return [...]string{"sequential", "random", "round-robin"}[p] }

// A Group is the servers that answer for one zone, in order of preference.
// Its fields do not change once it is in use. Its methods may be called at the
// same time.
type Group struct {
	Servers []*Server
	Now     func() time.Time
	Policy  Policy

	turn     atomic.Uint32 // of RoundRobin
	budget   budget
	epoch    epoch        // of the times below
	answered atomic.Int64 // with a usable reply, when last
	probed   atomic.Int64 // while dead, when last
}

// Dead reports whether every server is dead: nobody has been answered lately
// though asked. It is false for a group without servers, and of no longer ago than
// a minute: what was seen then tells nothing any more.
func (g *Group) Dead(now time.Time) bool {
	dead, _ := g.dead(now)
	return dead
}

func (g *Group) dead(now time.Time) (dead bool, last time.Time) {
	for _, s := range g.Servers {
		d, at := s.dead(now)
		if !d {
			return false, time.Time{}
		}
		if at.After(last) {
			last = at
		}
	}
	return len(g.Servers) > 0, last
}

// Answered is when a server of the group last gave a usable reply, NOERROR or
// NXDOMAIN, to anybody; zero for never. It is a time of Now, which may be compared with
// others whatever becomes of the node's clock.
func (g *Group) Answered() time.Time { return g.epoch.time(g.answered.Load()) }

// ok notes that a server gave a usable reply.
func (g *Group) ok(now time.Time) { latest(&g.answered, g.epoch.since(now)) }

// Exchange asks for key (wire.AppendKey), which must not be changed any more, and
// returns the reply, in memory that is the caller's. Servers that failed lately are
// asked last, never not at all. A server that answers with a failure is believed
// only if no other one knows better. Exchange ends with ctx. While the group is
// dead it fails at once with [ErrDead], but for one question every probeEvery.
func (g *Group) Exchange(ctx context.Context, key []byte) ([]byte, error) {
	reply, _, err := g.Ask(ctx, key)
	return reply, err
}

// Ask is Exchange, and says whose reply it is and over which protocol it came: by the
// counters that the server was given for it.
func (g *Group) Ask(ctx context.Context, key []byte) (reply []byte, by *Counters, err error) {
	if len(g.Servers) == 0 {
		return nil, nil, ErrNoServer
	}
	now := g.Now()
	dead, last := g.dead(now)
	if dead && !g.mayProbe(now, last) {
		return nil, nil, ErrDead
	}
	g.budget.question()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &race{g: g, ctx: ctx, cancel: cancel, key: key, servers: g.inOrder(now), free: dead}
	return r.run()
}

// mayProbe reports whether a question may go to the dead group, about which
// the last thing was learnt at last.
func (g *Group) mayProbe(now, last time.Time) bool {
	at, was := g.epoch.since(now), g.probed.Load()
	if at-max(g.epoch.since(last), was) > int64(probeAlone) {
		g.probed.Store(at - int64(probeAlone)) // those that come now may go too
		return true
	}
	return at-was >= int64(probeEvery) && g.probed.CompareAndSwap(was, at)
}

// A race is one question and its tries. The first try runs in the goroutine
// that asks, each that is made beside it in one of its own; whichever fails makes the
// next one where it stands.
type race struct {
	g       *Group
	ctx     context.Context
	cancel  context.CancelCauseFunc
	key     []byte
	servers []*Server
	free    bool // tries cost nothing: a dead group is probed on all its servers

	mu       sync.Mutex
	timer    *time.Timer // of the next try
	begun    [tries]time.Time
	done     [tries]bool // has ended
	beside   [tries]bool // made because the one before was late
	started  int
	running  int
	failures int
	refusals int
	over     bool
	reply    []byte    // the winner's
	refusal  []byte    // a reply that says failure
	by       *Counters // of whichever is returned
	err      error     // of the try that failed last
	woken    chan struct{}
}

func (r *race) run() ([]byte, *Counters, error) {
	r.mu.Lock()
	i := r.start(false)
	r.timer = time.AfterFunc(r.wait(), r.late)
	r.mu.Unlock()
	defer r.timer.Stop()
	r.from(i)
	r.mu.Lock()
	if !r.over && r.running > 0 {
		woken := make(chan struct{})
		r.woken = woken
		r.mu.Unlock()
		select {
		case <-woken:
		case <-r.ctx.Done():
		}
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	r.over = true
	switch {
	case r.reply != nil:
		return r.reply, r.by, nil
	case r.ctx.Err() != nil:
		r.overdue(r.g.Now())
	}
	switch {
	case r.refusal != nil:
		return r.refusal, r.by, nil
	case r.ctx.Err() != nil:
		return nil, nil, context.Cause(r.ctx)
	}
	return nil, nil, r.err
}

// server is who is asked by try i.
func (r *race) server(i int) *Server { return r.servers[i%len(r.servers)] }

// wait is how long the try started last is waited for. r.mu is held.
func (r *race) wait() time.Duration {
	d := r.server(r.started - 1).latency.wait()
	if r.started >= quickTries {
		return max(d, patience)
	}
	return d
}

// start begins the next try and returns its number. r.mu is held.
func (r *race) start(beside bool) int {
	i := r.started
	r.begun[i], r.beside[i] = r.g.Now(), beside
	r.started++
	r.running++
	return i
}

// late makes the next try beside those that are under way, if there is
// something left to pay it with.
func (r *race) late() {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return
	}
	r.overdue(r.g.Now())
	i, limit := r.started, quickTries
	if r.server(i).UDP != nil {
		limit = tries
	}
	paid := i < limit && (r.free || r.g.budget.spend())
	if paid {
		r.start(true)
		r.timer.Reset(r.wait())
	} else {
		r.timer.Reset(patience)
	}
	r.mu.Unlock()
	if paid {
		r.from(i)
	}
}

// overdue notes what the silence so far tells about the servers. r.mu is held.
func (r *race) overdue(now time.Time) {
	for i, at := range r.begun[:r.started] {
		if !r.done[i] && now.Sub(at) >= patience {
			if s := r.server(i); s.silentSince(at) {
				s.unanswered(now, at, r.key, false)
				s.renew()
			}
		}
	}
}

// from runs try i and, as long as they fail, those after it.
func (r *race) from(i int) {
	for more := true; more; {
		s := r.server(i)
		reply, by, err := s.ask(r.ctx, r.g.Now, r.key, i, r.beside[i])
		i, more = r.ended(i, s, reply, by, err)
	}
}

// ended notes how try i, of s, went. It returns the try to be made next, if any.
func (r *race) ended(i int, s *Server, reply []byte, by *Counters, err error) (next int, more bool) {
	now := r.g.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	defer func() {
		if r.woken != nil && (r.over || r.running == 0) {
			close(r.woken)
			r.woken = nil
		}
	}()
	took := now.Sub(r.begun[i])
	switch {
	case err == nil:
		s.ok(now)
		if usable(reply) {
			r.g.ok(now)
		}
	case r.over && r.reply != nil || r.ctx.Err() != nil:
		// It did not do well if it was silent towards everybody for longer than
		// patience, or for long enough that another server was asked and answered.
		if s.silentSince(r.begun[i]) && (took >= patience || len(r.servers) > 1 && r.reply != nil && took >= s.latency.wait()) {
			s.failed(now)
		}
		return 0, false
	default:
		s.failed(now)
		s.unanswered(now, r.begun[i], r.key, true)
	}
	r.done[i] = true
	if r.over {
		return 0, false
	}
	if err == nil && (usable(reply) || len(r.servers) == 1) {
		r.over, r.reply, r.by = true, reply, by
		if r.beside[i] {
			r.g.budget.worth()
		}
		r.cancel(errAnswered)
		return 0, false
	}
	r.failures++
	if err != nil {
		r.err = err
	} else {
		// Asking a server that refused once more changes nothing; one that
		// could not be reached is worth another connection.
		r.refusal, r.by = reply, by
		r.refusals++
	}
	if r.failures >= failures || r.refusals >= len(r.servers) || r.started == tries || r.ctx.Err() != nil {
		return 0, false
	}
	next = r.start(false)
	r.timer.Reset(r.wait())
	return next, true
}

func usable(reply []byte) bool {
	rcode := wire.RCode(reply)
	return rcode == wire.NoError || rcode == wire.NXDomain
}

// inOrder is the servers as the policy has them, those that failed lately
// behind the others.
func (g *Group) inOrder(now time.Time) []*Server {
	n := len(g.Servers)
	if n == 1 {
		return g.Servers
	}
	first := 0
	switch g.Policy {
	case Random:
		first = rand.IntN(n)
	case RoundRobin:
		first = int(g.turn.Add(1)-1) % n
	}
	return g.from(first, now)
}

// Order is the order in which the next question would go to the servers; where chance
// says which of them is first, that beginning with the first. It changes nothing.
func (g *Group) Order(now time.Time) []*Server {
	first := 0
	if g.Policy == RoundRobin && len(g.Servers) > 0 {
		first = int(g.turn.Load()) % len(g.Servers)
	}
	return g.from(first, now)
}

// from is the servers beginning with one of them, those that failed lately last.
func (g *Group) from(first int, now time.Time) []*Server {
	n := len(g.Servers)
	up := make([]*Server, 0, n)
	var down []*Server
	for i := range n {
		if s := g.Servers[(first+i)%n]; s.Down(now) {
			down = append(down, s)
		} else {
			up = append(up, s)
		}
	}
	return append(up, down...)
}

// Close closes the idle connections of all servers.
func (g *Group) Close() {
	for _, s := range g.Servers {
		for _, e := range []Exchanger{s.UDP, s.TCP} {
			if c, ok := e.(io.Closer); ok {
				_ = c.Close()
			}
		}
	}
}

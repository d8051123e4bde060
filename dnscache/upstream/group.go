package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/deadline"
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
	late     deadline.Queue
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
// returns the reply, in memory that is the caller's. It ends with ctx. See
// [Group.Start].
func (g *Group) Exchange(ctx context.Context, key []byte) ([]byte, error) {
	reply, _, err := g.Ask(ctx, key)
	return reply, err
}

// Ask is Exchange, and says whose reply it is and over which protocol it came: by the
// counters that the server was given for it.
func (g *Group) Ask(ctx context.Context, key []byte) (reply []byte, by *Counters, err error) {
	a := &asker{done: make(chan struct{})}
	var q Question
	g.Start(&q, key, a, nil)
	select {
	case <-a.done:
	case <-ctx.Done():
		q.Stop(context.Cause(ctx))
		<-a.done
	}
	return a.reply, a.by, a.err
}

// An asker waits for the answer.
type asker struct {
	done  chan struct{}
	reply []byte
	by    *Counters
	err   error
}

func (a *asker) Answered(reply []byte, by *Counters, err error, _ *Round) {
	a.reply, a.by, a.err = bytes.Clone(reply), by, err
	close(a.done)
}

// Start asks for key (wire.AppendKey), which must not be changed any more, and does not
// wait: to is told how q ends, once, from any goroutine, or before Start returns. q is
// new, and not to be used for another question.
//
// Servers that failed lately are asked last, never not at all. A server that answers
// with a failure is believed only if no other one knows better. A question that is not
// answered ends with [Question.Stop]. While the group is dead it fails at once with
// [ErrDead], but for one question every probeEvery.
//
// Where together is not nil what is to be written may go out only with its Send.
func (g *Group) Start(q *Question, key []byte, to Asker, together *Together) {
	if len(g.Servers) == 0 {
		to.Answered(nil, nil, ErrNoServer, nil)
		return
	}
	now := g.Now()
	dead, last := g.dead(now)
	var err error
	if dead && !g.mayProbe(now, last) {
		err = ErrDead
	} else {
		g.budget.question()
	}
	q.mu.Lock()
	if q.over { // before it began
		err = q.cause
	}
	if err != nil {
		q.over = true
		q.mu.Unlock()
		to.Answered(nil, nil, err, nil)
		return
	}
	q.group, q.key, q.to, q.servers, q.free = g, key, to, g.inOrder(now), dead
	t := q.begin(false)
	q.wind()
	q.mu.Unlock()
	t.ask(together)
}

// An Asker is told how a question ended.
type Asker interface {
	// Answered is called once, with no lock held, and does not block. The reply is
	// the asker's, to be changed too, until Answered returns. round is the one that
	// brought it, nil where none did.
	Answered(reply []byte, by *Counters, err error, round *Round)
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

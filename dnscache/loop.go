package dnscache

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// A loopProbe finds out whether a route leads back to us: kube-dns that
// forwards to the node's resolv.conf, which names us, is the usual way. It
// asks upstream for a name of the route's zone that nobody else asks for; if
// that name comes in as a query, it went round.
//
// Routes are probed when they are new, and when questions get no answer in
// time, as all do that go round. A loop costs little until then: queries of
// one key wait for the one upstream question that is under way, so nothing
// goes round twice. While a route is known to loop, its names get SERVFAIL at
// once.
type loopProbe struct {
	zone   []byte                 // wire form; for the root another name, see loopLabel
	name   atomic.Pointer[string] // of the probe under way, in wire form
	seen   atomic.Bool
	closed atomic.Bool // the route leads back to us
}

const (
	// loopAgain is how soon routes are probed again: in an outage every
	// question runs out of time, and probes must not add to it.
	loopAgain = 10 * time.Second
	// loopBudget is how long a probe may take to come round.
	loopBudget = 2 * time.Second
)

// loopLabel is the label below the zone in a probe's name, in wire form. Below
// the root it stands in front of "invalid", where nobody can own a name (RFC
// 6761 6.4).
var loopLabel = []byte("\x11nodelocaldns-loop")

// newLoopProbe makes the probe of the route for a zone in wire form.
func newLoopProbe(zone []byte) *loopProbe {
	if len(zone) == 1 {
		zone, _ = wire.ParseName("invalid")
	}
	return &loopProbe{zone: zone}
}

// isLoopProbe reports whether a key looks like a probe's: ours, or that of
// another node's resolver, which is a name like any other.
func isLoopProbe(key []byte) bool {
	return len(key) > 1+2*loopID && key[0] == 2*loopID && bytes.HasPrefix(key[1+2*loopID:], loopLabel)
}

// loopID is how many random bytes a probe's name has.
const loopID = 8

// met reports whether key is for the name of the probe under way, which has
// then gone round. The rest of the key is what others made of it on the way:
// a validating forwarder sets CD and DO, one that minimises names asks for
// another type.
func (p *loopProbe) met(key []byte) bool {
	name, _ := wire.SplitKey(key)
	if under := p.name.Load(); under != nil && *under == string(name) {
		p.seen.Store(true)
		return true
	}
	return false
}

// probeLoop asks rt's servers for a name of its own and notes whether it came
// back.
func (s *Server) probeLoop(ctx context.Context, rt *route) {
	var id [loopID]byte
	if _, err := io.ReadFull(s.random, id[:]); err != nil {
		return // without a name that nobody can guess there is no probe
	}
	q := wire.Query{Flags: wire.FlagRD, Type: wire.TypeA}
	q.Question = append(q.Question, 2*loopID)
	q.Question = hex.AppendEncode(q.Question, id[:])
	q.Question = append(q.Question, loopLabel...)
	q.Question = append(q.Question, rt.loop.zone...)
	q.Question = append(q.Question, 0, byte(q.Type), 0, byte(wire.ClassIN))
	if len(q.Name()) > wire.MaxName {
		return // a stub domain too long to have such a name
	}
	key := wire.AppendKey(nil, &q)
	name := string(q.Name())
	rt.loop.seen.Store(false)
	rt.loop.name.Store(&name)
	ctx, cancel := context.WithTimeout(ctx, loopBudget)
	defer cancel()
	_, err := rt.group.Exchange(ctx, key)
	rt.loop.name.Store(nil)
	seen := rt.loop.seen.Load()
	if !seen && err != nil {
		return // nobody answered: nothing was learnt
	}
	if was := rt.loop.closed.Swap(seen); seen == was {
		return
	}
	if seen {
		s.log.Error("forwarding loop: what we ask upstream comes back to us", "zone", ZoneKinds[rt.zone], "upstreams", rt.servers(),
			"hint", "an upstream forwards to this resolver; check where kube-dns forwards to, and the node's resolv.conf")
	} else {
		s.log.Info("forwarding loop ended", "zone", ZoneKinds[rt.zone], "upstreams", rt.servers())
	}
}

// watchLoops probes the routes when there is reason to, until ctx ends.
func (s *Server) watchLoops(ctx context.Context) {
	for {
		looping := false
		for _, rt := range s.state.Load().routes.all {
			if len(rt.group.Servers) > 0 {
				s.probeLoop(ctx, rt)
				looping = looping || rt.loop.closed.Load()
			}
		}
		if !s.pauseProbes(ctx, looping) {
			return
		}
	}
}

// pauseProbes waits until routes are to be probed again; false when ctx ended.
func (s *Server) pauseProbes(ctx context.Context, looping bool) bool {
	again := time.NewTimer(loopAgain)
	defer again.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s.rerouted:
		return true
	case <-again.C:
	}
	if looping {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-s.rerouted:
	case <-s.suspected:
	}
	return true
}

// signal wakes who waits on c, or leaves word for when they come.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (rt *route) servers() []string {
	var out []string
	for _, s := range rt.group.Servers {
		out = append(out, s.Addr.String())
	}
	return out
}

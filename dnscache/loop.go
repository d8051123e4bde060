package dnscache

import (
	"context"
	"encoding/hex"
	"io"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// A loopProbe finds out whether a route leads back to us: kube-dns that
// forwards to the node's resolv.conf, which names us, is the usual way. Now
// and then it asks upstream for a name that nobody else asks for; if that name
// comes in as a query, it went round.
//
// A loop costs little until it is mended. Queries of one key wait for the one
// upstream question that is under way, so nothing goes round twice; while the
// route is known to loop, its names get SERVFAIL at once.
type loopProbe struct {
	name   atomic.Pointer[string] // key of the probe under way
	seen   atomic.Bool
	closed atomic.Bool // the route leads back to us
}

// Times of the loop probe.
const (
	// loopEvery is how often a route is probed: a loop comes with a change of
	// somebody's configuration, and the probe is one query.
	loopEvery = 30 * time.Second
	// loopBudget is how long a probe may take to come round.
	loopBudget = 2 * time.Second
)

// loopZone is where probe names live. Nobody else can own a name there (RFC
// 6761 6.4).
var loopZone, _ = wire.ParseName("loop.nodelocaldns.invalid")

// isLoopProbe reports whether a key in lower case is a probe's, ours or that
// of the resolver on another node.
func isLoopProbe(key []byte) bool {
	name, _ := wire.SplitKey(key)
	return len(name) > len(loopZone) && wire.IsSubdomain(name, loopZone)
}

// met notes that a query for key has come in, and reports whether it was the
// probe's.
func (p *loopProbe) met(key []byte) bool {
	if name := p.name.Load(); name != nil && *name == string(key) {
		p.seen.Store(true)
		return true
	}
	return false
}

// probeLoop asks rt's servers for a name of its own and notes whether it came
// back.
func (s *Server) probeLoop(ctx context.Context, rt *route) {
	var id [8]byte
	if _, err := io.ReadFull(s.random, id[:]); err != nil {
		return // without a name that nobody can guess there is no probe
	}
	label := hex.EncodeToString(id[:])
	q := wire.Query{Flags: wire.FlagRD, Question: append([]byte{byte(len(label))}, label...), Type: wire.TypeA}
	q.Question = append(q.Question, loopZone...)
	q.Question = append(q.Question, 0, byte(q.Type), 0, byte(wire.ClassIN))
	key := string(wire.AppendKey(nil, &q))
	rt.loop.seen.Store(false)
	rt.loop.name.Store(&key)
	ctx, cancel := context.WithTimeout(ctx, loopBudget)
	defer cancel()
	_, err := rt.group.Exchange(ctx, []byte(key))
	rt.loop.name.Store(nil)
	seen := rt.loop.seen.Load()
	if !seen && err != nil {
		return // nobody answered: nothing was learnt
	}
	if was := rt.loop.closed.Swap(seen); seen != was {
		if seen {
			s.log.Error("forwarding loop: what we ask upstream comes back to us", "zone", ZoneKinds[rt.zone], "upstream", rt.servers(),
				"hint", "an upstream forwards to this resolver; check kube-dns' own upstreams and the node's resolv.conf")
		} else {
			s.log.Info("forwarding loop ended", "zone", ZoneKinds[rt.zone], "upstream", rt.servers())
		}
	}
}

// watchLoops probes every route at once, whenever names go elsewhere, and every
// loopEvery. It returns when ctx ends.
func (s *Server) watchLoops(ctx context.Context) {
	again := time.NewTicker(loopEvery)
	defer again.Stop()
	for {
		for _, rt := range s.state.Load().routes.all {
			if len(rt.group.Servers) > 0 {
				s.probeLoop(ctx, rt)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.rerouted:
		case <-again.C:
		}
	}
}

func (rt *route) servers() []string {
	var out []string
	for _, s := range rt.group.Servers {
		out = append(out, s.Addr.String())
	}
	return out
}

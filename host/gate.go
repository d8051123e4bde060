package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/link"
	"nodelocaldns/host/standby"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unit"
)

// A Gate is the last part of a rollback. A pod has its nameservers for life:
// after the kubelet has stopped naming us, our addresses stay and the resolver
// goes on answering until no pod of the node names them. Then what is left is
// taken back, by whoever finds that out: the rollback itself, or guard.
//
// Its methods may be called by several processes: what they write, they write
// under the lock.
type Gate struct {
	Node    *Node
	Durable *Durable

	// Naming are the pods that run on this node and name one of our addresses,
	// in words. An error says that it could not be found out: then nothing is
	// taken from anybody.
	Naming func(ctx context.Context) ([]string, error)
}

// A Phase says how far a rollback is.
type Phase int

// The phases, in their order.
const (
	NotAsked   Phase = iota // the off switch is not set
	Unfinished              // the kubelet has not got everything back: only rollback goes on from here
	Draining                // what pods may still need is in place
	Finished                // nothing is left to take back but what is to be kept
)

// String is the word for logs and status.
func (p Phase) String() string {
	return [...]string{"not asked for", "unfinished", "draining", "finished"}[p]
}

// Phase says how far the rollback is, by the off switch and the journals alone.
func (g *Gate) Phase() (Phase, error) {
	off, err := g.Durable.Off()
	if err != nil || !off {
		return NotAsked, err
	}
	keep, err := g.Durable.Kept()
	if err != nil {
		return Unfinished, err
	}
	lasting, err := g.Durable.journal.Open()
	if err != nil {
		return Unfinished, err
	}
	passing, err := g.Node.journal.Open()
	if err != nil {
		return Unfinished, err
	}
	return phase(lasting, passing, keep), nil
}

func phase(lasting, passing []engine.Record, keep []string) Phase {
	open := func(recs []engine.Record, which func(name string) bool) bool {
		return slices.ContainsFunc(recs, func(r engine.Record) bool {
			return which(r.Name) && !slices.Contains(keep, r.Name)
		})
	}
	all := func(string) bool { return true }
	switch {
	case open(lasting, func(name string) bool { return !servesPods(name) }):
		return Unfinished
	case open(lasting, all), open(passing, all):
		return Draining
	}
	return Finished
}

// servesPods says whether a durable step is one that pods which name us still
// need: what answers them. All others make the kubelet name us.
func servesPods(name string) bool { return name == unit.StepName }

// ErrKubeletFirst says why a rollback cannot be ended.
var ErrKubeletFirst = &step.Error{
	Err:  errors.New("the kubelet has not got everything back, so pods are still sent to us"),
	Next: "run nodelocaldns rollback again: it begins with the kubelet",
}

// Finish takes back what is left, but what the rollback is to keep. It asks no
// pod: that nobody needs it any more is for the caller to know. It is refused
// while the kubelet may still send pods to us.
//
// What ends with a reboot goes first: should this process die between the two,
// the units are there to start guard again.
func (g *Gate) Finish(ctx context.Context) error {
	switch p, err := g.Phase(); {
	case err != nil:
		return err
	case p == NotAsked:
		return ErrNotAsked
	case p == Unfinished:
		return ErrKubeletFirst
	}
	keep, err := g.Durable.Kept()
	if err != nil {
		return err
	}
	if err := g.Node.finish(ctx, keep); err != nil {
		return fmt.Errorf("taking back what ends with a reboot: %w", err)
	}
	defer g.Durable.forget()
	if err := g.Durable.finish(ctx, keep); err != nil {
		return err
	}
	run := fsys.Dir(g.Node.deps.RunDir)
	return errors.Join(facts.Remove(run), standby.Remove(run), g.Durable.state.Remove(refusedFile))
}

// Held are the addresses that records say are on the node because of us,
// whatever the configuration has become since.
func (n *Node) Held() ([]netip.Addr, error) {
	recs, err := n.journal.Open()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, r := range recs {
		if !strings.HasPrefix(r.Name, "link/") {
			continue
		}
		h, err := link.HeldBy(r.Saved)
		if err != nil {
			return nil, err
		}
		all = append(append(all, h.Device...), h.Lo...)
	}
	return all, nil
}

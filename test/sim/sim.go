// Package sim rolls a change through many simulated nodes. Each takes its window
// with the code that a real one takes it with, host/limit, from an API server or
// from a [Server], a model of one; what is simulated is the node itself: how long
// its window lasts, and what becomes of it. Time is that of package time, so a
// bubble of testing/synctest makes a day of it pass in seconds.
package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/cordon"
	"nodelocaldns/host/limit"
)

// API is what a node asks of the API server; *apiserver.Client is one.
type API interface {
	limit.API
	Cordon(ctx context.Context, n apiserver.Node, key, mark string) (apiserver.Node, error)
	Uncordon(ctx context.Context, n apiserver.Node, key string) (apiserver.Node, error)
}

// A Fate is what becomes of a node in its window.
type Fate int

// The fates.
const (
	Well       Fate = iota
	DiesBefore      // its process ends with a Lease, before it has cordoned anything
	Dies            // its process ends when the node is cordoned
	NotReady        // it comes back not Ready, for good, and stays cordoned
)

// A Roll is a change on its way through a cluster.
type Roll struct {
	Nodes  []string
	Max    int                           // --max-unavailable
	API    func(node string) API         // what each asks
	Ready  func(node string, is bool)    // is told what becomes of a node that dies or breaks
	Fate   func(i int) Fate              // of the node with that index; nil: all are well
	Window func(r float64) time.Duration // how long a window lasts, for a random number from 0 to 1
	Begin  time.Duration                 // all begin within so long
	Away   time.Duration                 // after which a node that died is back, and goes on
	Wait   time.Duration                 // for how long a node waits for its window; 0: for ever
	Seed   uint64
}

// A Result is what came of a Roll.
type Result struct {
	Wall   time.Duration
	Rolled int // nodes that had their window
	Left   int // nodes that came back not Ready
	Waited int // nodes that had none in time
	AtOnce int // most nodes that were cordoned at the same time
}

// pollEvery is that of host/cordon, for a cordon that was not answered.
const pollEvery = 2 * time.Second

// Run rolls the change through all nodes, and returns when none has anything left
// to do.
func (r Roll) Run(ctx context.Context) Result {
	c := &count{cordoned: map[string]bool{}}
	var all sync.WaitGroup
	start := time.Now()
	for i, name := range r.Nodes {
		n := &node{Roll: r, name: name, api: r.API(name), count: c, rand: rand.New(rand.NewPCG(r.Seed, uint64(i)))} // #nosec G404 -- a simulation is to be repeated
		if r.Fate != nil {
			n.fate = r.Fate(i)
		}
		all.Go(func() { n.run(ctx) })
	}
	all.Wait()
	c.Wall = time.Since(start)
	return c.Result
}

// count is shared by all nodes of a roll.
type count struct {
	sync.Mutex
	Result
	cordoned map[string]bool
}

// cordon counts a node from before its cordon is asked for until it is answered
// that it is none any more.
func (c *count) cordon(name string, is bool) {
	c.Lock()
	defer c.Unlock()
	if delete(c.cordoned, name); is {
		c.cordoned[name] = true
	}
	c.AtOnce = max(c.AtOnce, len(c.cordoned))
}

func (c *count) ends(what *int) {
	c.Lock()
	defer c.Unlock()
	*what++
}

type node struct {
	Roll
	*count
	name string
	api  API
	fate Fate
	rand *rand.Rand
}

// run is all that a node does, its processes after a crash included.
func (n *node) run(ctx context.Context) {
	time.Sleep(time.Duration(n.rand.Float64() * float64(n.Begin)))
	for {
		h, err := limit.Acquire(ctx, limit.Config{
			API: n.api, Node: n.name, Max: n.Max, Mark: cordon.Annotation, Timeout: n.Wait,
			Now: time.Now, Rand: n.rand.Float64, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			n.ends(&n.Waited)
			return
		}
		if n.window(ctx, h) {
			return
		}
	}
}

// window is what a node does with its Lease. It returns true when the node has
// nothing left to do.
func (n *node) window(ctx context.Context, h *limit.Held) (done bool) {
	fate := n.fate
	if fate == DiesBefore {
		n.dies(h)
		return false
	}
	n.cordon(n.name, true)
	n.again(ctx, func(now apiserver.Node) error {
		_, err := n.api.Cordon(ctx, now, cordon.Annotation, n.name)
		return err
	})
	if fate == Dies {
		n.dies(h)
		return false // it takes its own Lease up, and is still cordoned
	}
	var lost *limit.Lost
	for {
		err := h.Renew(ctx)
		if err == nil || errors.As(err, &lost) || ctx.Err() != nil {
			break
		}
		time.Sleep(pollEvery)
	}
	if lost == nil {
		time.Sleep(n.Window(n.rand.Float64()))
	}
	if fate == NotReady {
		n.Ready(n.name, false)
		h.Leave()
		n.ends(&n.Left)
		return true
	}
	n.again(ctx, func(now apiserver.Node) error { _, err := n.api.Uncordon(ctx, now, cordon.Annotation); return err })
	n.cordon(n.name, false)
	for h.Release(ctx) != nil && ctx.Err() == nil {
		time.Sleep(pollEvery)
	}
	if lost == nil {
		n.ends(&n.Rolled)
	}
	return lost == nil
}

// dies is the end of a process, with its node, which comes back.
func (n *node) dies(h *limit.Held) {
	h.Leave()
	n.fate = Well
	n.Ready(n.name, false)
	time.Sleep(n.Away)
	n.Ready(n.name, true)
}

// again changes the node as it is now until that is known to have worked.
func (n *node) again(ctx context.Context, change func(now apiserver.Node) error) {
	for ctx.Err() == nil {
		now, err := n.api.Node(ctx, n.name)
		if err == nil {
			err = change(now)
		}
		if err == nil {
			return
		}
		time.Sleep(pollEvery)
	}
}

// Names are those of so many nodes.
func Names(count int) []string {
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("sim-%d", i)
	}
	return names
}

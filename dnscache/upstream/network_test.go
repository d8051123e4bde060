package upstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"nodelocaldns/dnscache/wire"
)

// A network is a simulated one, on a fake clock: what is dialled leads to one of
// its endpoints, as a ClusterIP does. It prints what it did.
type network struct {
	t         *testing.T
	endpoints []*endpoint
	pick      func(n int) int // the endpoint of the next connection or flow

	mu    sync.Mutex
	dials int
	gone  sync.WaitGroup
	open  map[net.Conn]bool
}

// An endpoint answers each question after a while.
type endpoint struct {
	after  func(q []byte) time.Duration // of the server; negative: it drops q
	rtt    time.Duration                // of a connection that is made
	stall  func() time.Duration         // of the network, now and then; may be nil
	hole   bool                         // packets to it are lost without a word
	atOnce bool                         // questions of one connection are worked on at once

	conns, asked, most int // guarded by the network's mu
}

func (n *network) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := fmt.Sprintf("%d dials", n.dials)
	for i, e := range n.endpoints {
		s += fmt.Sprintf("; endpoint %d: %d connections, %d questions, at most %d at once on one", i, e.conns, e.asked, e.most)
	}
	return s
}

// newNetwork is one whose connections go to its endpoints by chance.
func newNetwork(t *testing.T, endpoints ...*endpoint) *network {
	chance := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	return &network{t: t, endpoints: endpoints, open: map[net.Conn]bool{}, pick: func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return chance.IntN(n)
	}}
}

// pool is a pool on n, which ends with the test.
func (n *network) pool() *Pool { return newPool(time.Now, firstPace, n.dial) }

// end closes all that is open, and waits for it: to be called before a bubble ends.
func (n *network) end(pools ...*Pool) {
	for _, p := range pools {
		_ = p.Close()
	}
	n.mu.Lock()
	for c := range n.open {
		_ = c.Close()
	}
	n.mu.Unlock()
	n.gone.Wait()
}

func (n *network) dial(ctx context.Context) (net.Conn, error) {
	n.mu.Lock()
	n.dials++
	e := n.endpoints[n.pick(len(n.endpoints))]
	hole, rtt := e.hole, e.rtt
	n.mu.Unlock()
	if hole {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if !pause(ctx, rtt) {
		return nil, ctx.Err()
	}
	ours, theirs := net.Pipe()
	n.mu.Lock()
	e.conns++
	n.open[theirs] = true
	n.mu.Unlock()
	n.gone.Go(func() { n.serve(e, theirs) })
	return ours, nil
}

// pause waits; false when ctx ends first. A timer that is over before it is looked
// at crashes the race detector of Go 1.26 in a synctest bubble.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (n *network) serve(e *endpoint, c net.Conn) {
	var mu sync.Mutex
	var work sync.WaitGroup
	flight := 0
	defer func() {
		_ = c.Close()
		work.Wait()
		n.mu.Lock()
		delete(n.open, c)
		n.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	before := make(chan struct{}) // is closed when the question before is done with
	close(before)
	for q := frame(c); q != nil; q = frame(c) {
		n.mu.Lock()
		flight++
		e.asked++
		e.most = max(e.most, flight)
		hole := e.hole
		n.mu.Unlock()
		if hole {
			continue
		}
		turn, done := before, make(chan struct{})
		before = done
		work.Go(func() {
			defer close(done)
			if !e.atOnce {
				select {
				case <-turn:
				case <-ctx.Done():
					return
				}
			}
			takes := e.after(q)
			if takes < 0 || !pause(ctx, takes) {
				return
			}
			if e.stall != nil && !pause(ctx, e.stall()) {
				return
			}
			n.mu.Lock()
			flight--
			lost := e.hole
			n.mu.Unlock()
			mu.Lock()
			defer mu.Unlock()
			if !lost {
				_, _ = c.Write(framed(benchReply(nil, q)))
			}
		})
	}
}

// dialled is how often n was dialled.
func (n *network) dialled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// set changes endpoints while they are in use.
func (n *network) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// steady is an endpoint that takes d for every question.
func steady(d time.Duration) *endpoint {
	return &endpoint{after: func([]byte) time.Duration { return d }, rtt: 200 * time.Microsecond}
}

// datagrams asks a network over UDP.
type datagrams struct {
	*network
	lose func() bool // a packet, there or back
}

func (d *datagrams) Exchange(ctx context.Context, query, _ []byte) ([]byte, error) {
	d.mu.Lock()
	e := d.endpoints[d.pick(len(d.endpoints))]
	e.asked++
	lost := e.hole || d.lose != nil && d.lose()
	d.mu.Unlock()
	if lost || !pause(ctx, e.after(query)) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return benchReply(nil, query), nil
}

// over makes a group of one server.
func over(udp Exchanger, tcp Exchanger) *Group {
	s := &Server{Addr: Addr{AddrPort: netip.MustParseAddrPort("10.96.0.10:53")}, UDP: udp, TCP: tcp, UDPCounters: &Counters{}, TCPCounters: &Counters{}}
	return &Group{Now: time.Now, Servers: []*Server{s}}
}

// isName reports whether q asks for name, in text.
func isName(q []byte, name string) bool {
	w, _ := wire.ParseName(name)
	return len(q) >= wire.HeaderLen+len(w) && string(q[wire.HeaderLen:wire.HeaderLen+len(w)]) == string(w)
}

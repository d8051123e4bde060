package sim

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"nodelocaldns/host/apiserver"
)

// A Cost is what requests of one kind cost an API server.
type Cost struct {
	Latency    time.Duration // of one alone, until its reply
	Throughput float64       // how many a second it answers at most
}

// Costs are those of a [Server].
type Costs struct{ Read, Write Cost }

// Faults are how often a request has no good end, each from 0 to 1.
type Faults struct {
	Busy     float64 // 429: nothing was done
	Broken   float64 // 500: nothing was done
	Lost     float64 // it is done, and no reply comes
	Conflict float64 // of a change: somebody else was faster
}

// Requests are how many a Server had.
type Requests struct {
	Reads, Writes, Conflicts int
	Peak                     int // most within a second
}

// patience is that of apiserver.Client for one attempt, and tries how often it
// makes a read.
const (
	patience = 10 * time.Second
	tries    = 3
)

// A Server is a model of an API server: it keeps Leases and nodes, changes them
// only as they were read, and takes its time. Requests wait for each other as in
// front of so many workers as its latency and its throughput come to.
type Server struct {
	costs  Costs
	faults Faults
	start  time.Time

	mu       sync.Mutex
	rand     *rand.Rand
	leases   map[string]apiserver.Lease
	nodes    map[string]apiserver.Node
	version  int
	read     workers
	write    workers
	requests Requests
	second   int // since start, of the requests counted in current
	current  int
}

// NewServer returns a Server that has these nodes, all Ready.
func NewServer(nodes []string, costs Costs, faults Faults, seed uint64) *Server {
	s := &Server{
		costs: costs, faults: faults, start: time.Now(),
		rand:   rand.New(rand.NewPCG(seed, 0)), // #nosec G404 -- a simulation is to be repeated
		leases: map[string]apiserver.Lease{}, nodes: map[string]apiserver.Node{},
		read: newWorkers(costs.Read), write: newWorkers(costs.Write),
	}
	for _, name := range nodes {
		s.nodes[name] = apiserver.Node{Name: name, Ready: true}
	}
	return s
}

// Requests are those until now.
func (s *Server) Requests() Requests {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests
	r.Peak = max(r.Peak, s.current)
	return r
}

// Ready changes the condition of a node.
func (s *Server) Ready(name string, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[name]
	n.Ready = is
	s.nodes[name] = n
}

// workers are when each of those that answer requests has time again.
type workers []time.Time

func newWorkers(c Cost) workers {
	return make(workers, max(1, int(c.Throughput*c.Latency.Seconds()+0.5)))
}

// takes is when a request that comes now is done.
func (w workers) takes(now time.Time, c Cost) time.Time {
	i := 0
	for j := range w {
		if w[j].Before(w[i]) {
			i = j
		}
	}
	begin := now
	if w[i].After(begin) {
		begin = w[i]
	}
	w[i] = begin.Add(time.Duration(float64(len(w)) / c.Throughput * float64(time.Second)))
	return begin.Add(c.Latency)
}

// arrives counts a request and says when it is done, and what becomes of it.
func (s *Server) arrives(write bool) (done time.Time, lost bool, fault error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if second := int(now.Sub(s.start) / time.Second); second != s.second {
		s.requests.Peak = max(s.requests.Peak, s.current)
		s.second, s.current = second, 0
	}
	s.current++
	if write {
		s.requests.Writes++
		done = s.write.takes(now, s.costs.Write)
	} else {
		s.requests.Reads++
		done = s.read.takes(now, s.costs.Read)
	}
	f, p := s.faults, s.rand.Float64()
	switch {
	case p < f.Busy:
		return done, false, &apiserver.Busy{RetryAfter: time.Second, Err: errors.New("429")}
	case p < f.Busy+f.Broken:
		return done, false, apiserver.ErrUnreachable
	case p < f.Busy+f.Broken+f.Lost:
		return done, true, nil
	case p < f.Busy+f.Broken+f.Lost+f.Conflict && write:
		s.requests.Conflicts++
		return done, false, errModified()
	}
	return done, false, nil
}

func errModified() error {
	return &apiserver.Conflict{Err: errors.New("the object has been modified")}
}

// ask makes a request: what it does is do.
func (s *Server) ask(ctx context.Context, write bool, do func() error) error {
	for try := 1; ; try++ {
		done, lost, fault := s.arrives(write)
		takes := time.Until(done)
		if takes > patience {
			takes, lost = patience, true
		}
		time.Sleep(takes)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case fault != nil:
			return fault
		}
		s.mu.Lock()
		err := do()
		var conflict *apiserver.Conflict
		if errors.As(err, &conflict) {
			s.requests.Conflicts++
		}
		s.mu.Unlock()
		switch {
		case !lost:
			return err
		case write || try == tries:
			return apiserver.ErrUnreachable
		}
	}
}

// Lease is limit.API.
func (s *Server) Lease(ctx context.Context, _, name string) (l apiserver.Lease, err error) {
	err = s.ask(ctx, false, func() error {
		var ok bool
		if l, ok = s.leases[name]; !ok {
			return apiserver.ErrNotFound
		}
		return nil
	})
	return l, err
}

// CreateLease is limit.API.
func (s *Server) CreateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	err := s.ask(ctx, true, func() error {
		if _, ok := s.leases[l.Name]; ok {
			return &apiserver.Conflict{Err: errors.New("it exists")}
		}
		l = s.put(l)
		return nil
	})
	return l, err
}

// UpdateLease is limit.API.
func (s *Server) UpdateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	err := s.ask(ctx, true, func() error {
		switch now, ok := s.leases[l.Name]; {
		case !ok:
			return apiserver.ErrNotFound
		case now.ResourceVersion != l.ResourceVersion:
			return errModified()
		}
		l = s.put(l)
		return nil
	})
	return l, err
}

func (s *Server) put(l apiserver.Lease) apiserver.Lease {
	l.ResourceVersion = s.next()
	s.leases[l.Name] = l
	return l
}

func (s *Server) next() string {
	s.version++
	return strconv.Itoa(s.version)
}

// Node is limit.API.
func (s *Server) Node(ctx context.Context, name string) (n apiserver.Node, err error) {
	err = s.ask(ctx, false, func() error {
		n = s.nodes[name]
		return nil
	})
	return n, err
}

// Cordon is [API].
func (s *Server) Cordon(ctx context.Context, n apiserver.Node, key, mark string) (apiserver.Node, error) {
	return s.change(ctx, n, map[string]string{key: mark}, true)
}

// Uncordon is [API].
func (s *Server) Uncordon(ctx context.Context, n apiserver.Node, _ string) (apiserver.Node, error) {
	return s.change(ctx, n, nil, false)
}

func (s *Server) change(ctx context.Context, n apiserver.Node, annotations map[string]string, unschedulable bool) (apiserver.Node, error) {
	err := s.ask(ctx, true, func() error {
		now := s.nodes[n.Name]
		if now.ResourceVersion != n.ResourceVersion {
			return errModified()
		}
		now.Annotations, now.Unschedulable, now.ResourceVersion = annotations, unschedulable, s.next()
		s.nodes[n.Name], n = now, now
		return nil
	})
	return n, err
}

// Held are the nodes that hold a Lease, sorted.
func (s *Server) Held() (holders []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range maps.Values(s.leases) {
		if l.Holder != "" {
			holders = append(holders, l.Holder)
		}
	}
	slices.Sort(holders)
	return holders
}

// Cordoned are the nodes that are, sorted.
func (s *Server) Cordoned() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range maps.Values(s.nodes) {
		if n.Unschedulable {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names
}

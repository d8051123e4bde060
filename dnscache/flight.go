package dnscache

import (
	"context"
	"errors"
	"sync"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// Bounds of the miss path.
const (
	// budget is how long a client waits at the most: with SERVFAIL before a
	// second is over it asks its next nameserver, where silence costs it five
	// (facts: glibc, musl, Go and c-ares all move on at once on SERVFAIL).
	budget = 900 * time.Millisecond
	// lateBudget is how long upstream is listened to. A reply that comes too
	// late for those who asked is there for those who ask again.
	lateBudget = 3 * time.Second
	// maxFlights bounds the upstream questions under way, and with some 30 KiB
	// each what a flood of misses costs.
	maxFlights = 2048
	// maxWaiters bounds those who wait for one of them.
	maxWaiters = 4096
)

// A peer is a client that can be sent a reply.
type peer interface {
	// deliver sends the reply to q that e holds. It does not block, and has no
	// use for q once it has returned: it may be a reader's, whose next packet
	// takes its place.
	deliver(q *wire.Query, e *cache.Entry, now time.Duration)
}

type waiter struct {
	query wire.Query // its own copy
	peer  peer
}

// A flight is one question to upstream and everybody who waits for it.
type flight struct {
	key     []byte
	route   *route
	waiters []waiter // guarded by flights.mu; nil once it has landed
}

// flights are the upstream questions under way, at most one a key.
type flights struct {
	mu      sync.Mutex
	byKey   map[string]*flight
	closed  bool // no new ones
	joined  uint64
	late    uint64         // clients told SERVFAIL because nobody answered in time
	shed    uint64         // clients told SERVFAIL because there was no room, or at the end no time
	n       int            // running flights, landed ones that still listen among them
	running sync.WaitGroup // the same
	waiting sync.WaitGroup // flights that have not landed
}

// join lets p wait for the reply to q: in the flight of its key if there is
// one, else in a new one. It does not block. q need not outlive the call.
func (s *Server) join(key []byte, q *wire.Query, p peer) {
	name, _ := wire.SplitKey(key)
	rt := s.state.Load().routes.find(name)
	now := s.now()
	f := &s.flights
	f.mu.Lock()
	if fl := f.byKey[string(key)]; fl != nil && len(fl.waiters) < maxWaiters {
		f.joined++
		fl.waiters = append(fl.waiters, waiter{q.Clone(), p})
		f.mu.Unlock()
		return
	} else if fl != nil || f.closed || f.n >= maxFlights {
		f.shed++
		f.mu.Unlock()
		p.deliver(q, cache.NewFailure(key, wire.ServFail, wire.EDENotReady, rt.zone, now), now)
		return
	}
	// The flight that this query just missed may have landed since the cache
	// was asked.
	if e := s.cache.Get(key); e != nil && e.Fresh(now) {
		f.mu.Unlock()
		p.deliver(q, e, now)
		return
	}
	fl := &flight{key: append([]byte(nil), key...), route: rt, waiters: []waiter{{q.Clone(), p}}}
	f.byKey[string(fl.key)] = fl
	f.n++
	f.running.Add(1)
	f.waiting.Add(1)
	f.mu.Unlock()
	go s.fly(fl)
}

// fly asks upstream and answers those who wait, in time even if upstream does
// not.
func (s *Server) fly(fl *flight) {
	defer func() {
		s.flights.mu.Lock()
		s.flights.n--
		s.flights.mu.Unlock()
		s.flights.running.Done()
	}()
	timer := time.AfterFunc(budget, func() {
		e := cache.NewFailure(fl.key, wire.ServFail, wire.EDENetworkError, fl.route.zone, s.now())
		s.land(fl, e, true)
		signal(s.suspected)
	})
	defer timer.Stop()
	ctx, cancel := context.WithTimeout(s.work, lateBudget)
	defer cancel()
	reply, err := fl.route.group.Exchange(ctx, fl.key)
	now := s.now()
	if err == nil {
		var a cache.Admission
		if a, err = cache.Admit(fl.key, reply, fl.route.caps); err == nil {
			s.land(fl, cache.NewEntry(fl.key, a, fl.route.zone, now), false)
			return
		}
		s.log.Debug("unusable reply", "zone", ZoneKinds[fl.route.zone], "error", err)
	}
	ede := wire.EDENetworkError
	switch {
	case fl.route.await:
		ede = wire.EDENotReady
	case errors.Is(err, upstream.ErrNoServer):
		ede = wire.EDENoReachable
	}
	s.land(fl, cache.NewFailure(fl.key, wire.ServFail, ede, fl.route.zone, now), true)
}

// closeForNew lets nobody begin another flight; those under way can be joined.
func (f *flights) closeForNew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

// land keeps the entry and gives it to those who wait. A second landing finds
// that its own have been told; an answer then goes to those who have asked again
// since, and anything else is dropped. What servers say that a reload has
// replaced meanwhile is not kept.
func (s *Server) land(fl *flight, e *cache.Entry, failure bool) {
	f := &s.flights
	f.mu.Lock()
	name, _ := wire.SplitKey(fl.key)
	current := s.state.Load().routes.find(name) == fl.route
	if fl.waiters == nil {
		if class := e.Class(); class != cache.Success && class != cache.Denial || !current {
			f.mu.Unlock()
			return
		}
		fl = f.byKey[string(fl.key)] // who have asked again, if any
	}
	if had := s.cache.Get(e.Key()); e.Class() == cache.Failure && had != nil && had.Fresh(s.now()) && had.Class() != cache.Failure {
		e = had // an earlier flight's late answer is better than our failure
	} else if current {
		s.cache.Put(e) // before the flight is gone, so that nobody can miss both
	}
	if fl == nil {
		f.mu.Unlock()
		return
	}
	defer f.waiting.Done()
	waiters := fl.waiters
	fl.waiters = nil
	if f.byKey[string(fl.key)] == fl {
		delete(f.byKey, string(fl.key))
	}
	if failure {
		f.late += uint64(len(waiters))
	}
	f.mu.Unlock()
	now := s.now()
	for i := range waiters {
		waiters[i].peer.deliver(&waiters[i].query, e, now)
	}
}

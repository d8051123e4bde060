package dnscache

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/deadline"
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
	// each what a flood of misses costs. Clients share them evenly (holders).
	maxFlights = 2048
	// maxWaiters bounds those who wait for one of them.
	maxWaiters = 4096
)

// A peer is a client that can be sent a reply.
type peer interface {
	// deliver sends the reply to q that t is. It does not block, and has no use
	// for q once it has returned: it may be a reader's, whose next packet takes
	// its place.
	deliver(q *wire.Query, t told, now time.Duration)
	// client is whose share of the flights it takes.
	client() netip.Addr
}

type waiter struct {
	query wire.Query // its own copy
	peer  peer
	since time.Duration
	after bool // upstream has answered somebody since the question was begun
}

// clientsOf is how many of those who wait are some.
func clientsOf(waiters []waiter) (n uint64) {
	for i := range waiters {
		if isClient(waiters[i].peer) {
			n++
		}
	}
	return n
}

func isClient(p peer) bool {
	_, flight := p.(lower)
	return !flight
}

// forNobody reports whether a peer is a flight that no client waits for.
func forNobody(p peer) bool {
	a, flight := p.(lower)
	return flight && a.nobody
}

// A flight is one question to upstream and everybody who waits for it. It has no
// goroutine: who brings the reply, or the time, lands it.
type flight struct {
	server *Server
	key    []byte
	route  *route
	began  time.Duration
	wait   time.Duration // until those who wait are told something
	again  bool          // it was asked in vain before, and others have been answered since
	state  *state        // when it began to ask
	asked  time.Duration // when upstream was

	question upstream.Question
	answer   deadline.Deadline // those who wait are told something
	last     deadline.Deadline // upstream is listened to no more; set when they have been
	alone    deadline.Deadline // it waits no more for word of the service above its name,
	waits    atomic.Bool       // which it does

	// Guarded by flights.mu.
	waiters []waiter
	landed  bool
	dropped bool // it has made room for another
	refresh bool // begun for nobody, for the reason why
	why     int
	unasked uint8 // of the entry that comes of it, unless somebody asks meanwhile
	wish    bool  // somebody has
	onward  bool  // others are asked for if a client wants it and it is denied, see searchOn
	upper   bool  // begun for another flight that was begun for nobody
	denied  bool  // by the service above, without a question of its own

	client       netip.Addr // whose it is, see holders,
	held         bool       // if it is anybody's
	older, newer *flight

	over        bool // it is not running any more
	prev, next  *flight
	firstWaiter [1]waiter
}

// flights are the upstream questions under way, at most one a key.
type flights struct {
	mu         sync.Mutex
	byKey      map[string]*flight
	closed     bool // no new ones
	joined     uint64
	late       uint64         // clients told SERVFAIL because nobody answered in time
	shed       uint64         // clients told SERVFAIL because there was no room, or at the end no time
	n          int            // running flights, landed ones that still listen among them
	refreshing int            // of them, those that were begun for nobody
	holders    holders        // the others
	first      *flight        // of those that are running, linked
	stopped    bool           // they are to end, and new ones too
	running    sync.WaitGroup // the same as n, and those that were dropped until they end
	waiting    sync.WaitGroup // flights that have not landed
	deadlines  deadline.Queue // of flights; it has a lock of its own

	bound     bucket // of refreshes
	guesses   bucket
	noGuess   atomic.Int64 // until when there is none to be had, on the server's clock
	guessed   uint64       // names that were asked for before a client did
	right     uint64       // of them, those that a client has asked for
	refreshes [len(Refreshes)]uint64
	refused   uint64 // refreshes that the bound did not let through
}

// join lets p wait for the reply to q: in the flight of its key if there is
// one, else in a new one. It does not block. q need not outlive the call.
func (s *Server) join(key []byte, q *wire.Query, p peer) { s.joinTogether(key, q, p, nil) }

// joinTogether is join for one of several that have come at once, if together is not
// nil: upstream is asked with its Send.
func (s *Server) joinTogether(key []byte, q *wire.Query, p peer, together *upstream.Together) {
	name, _ := wire.SplitKey(key)
	st := s.state.Load()
	rt := st.routes.find(name)
	now := s.now()
	f := &s.flights
	f.mu.Lock()
	fl := f.byKey[string(key)]
	if fl != nil && fl.route != rt {
		fl = nil // a reload has come between: others are to be asked now
	}
	if fl != nil && len(fl.waiters) < maxWaiters {
		if isClient(p) {
			f.joined++
		}
		fl.waiters = append(fl.waiters, waiter{q.Clone(), p, now, s.answeredSince(rt, fl.began)})
		fl.unasked = 0
		if isClient(p) {
			if fl.guessed() {
				f.wasRight()
			}
			fl.wish = true
		}
		if fl.held && fl.client != p.client() && fl.client != several && !forNobody(p) {
			f.release(fl)
			f.hold(fl, several)
		}
		f.mu.Unlock()
		return
	} else if fl != nil || f.closed {
		if isClient(p) {
			f.shed++
		}
		f.mu.Unlock()
		p.deliver(q, s.refusal(key, rt, now), now)
		return
	}
	// The flight that this query just missed may have landed since the cache
	// was asked.
	e := s.cache.Get(key)
	if rules := st.stale(rt); e != nil && e.Fresh(now) {
		f.mu.Unlock()
		p.deliver(q, told{Entry: e}, now)
		return
	} else if rules.mayServe(e, now) && s.pausing(st, rt, e, now) {
		f.mu.Unlock()
		p.deliver(q, rules.stale(e), now)
		return
	}
	if forNobody(p) {
		s.joinForNobody(st, rt, key, q, p.(lower), e, now)
		return
	}
	var shed []waiter
	var victim *flight
	if f.n-f.refreshing >= maxFlights {
		victim = f.holders.victim(p.client(), f.n-f.refreshing)
		shed = f.drop(victim)
	}
	fl = s.begin(st, rt, key, e, now)
	fl.firstWaiter[0] = waiter{q.Clone(), p, now, false}
	fl.waiters = fl.firstWaiter[:]
	f.hold(fl, p.client())
	f.mu.Unlock()
	s.fly(fl, together)
	if victim != nil {
		victim.stop(context.Canceled)
	}
	for i := range shed {
		w := &shed[i]
		w.peer.deliver(&w.query, s.refusal(victim.key, victim.route, now), now)
	}
}

// refusal is what those are told whose question there is no room for: what has
// expired, if there is something, else SERVFAIL.
func (s *Server) refusal(key []byte, rt *route, now time.Duration) told {
	if t, ok := s.expired(key, rt, now); ok {
		return t
	}
	return told{Entry: cache.NewFailure(key, wire.ServFail, wire.EDENotReady, rt.zone, now)}
}

// expired is what the cache has of a key and may be served, be it expired.
func (s *Server) expired(key []byte, rt *route, now time.Duration) (told, bool) {
	rules, e := s.state.Load().stale(rt), s.cache.Get(key)
	if !rules.mayServe(e, now) {
		return told{}, false
	}
	return rules.stale(e), true
}

// hold gives a flight to a holder. Each has one that was not begun for nobody, so
// that there is always one that makes room. mu is held.
func (f *flights) hold(fl *flight, client netip.Addr) {
	fl.client, fl.held = client, true
	f.holders.add(fl)
}

// release takes a flight from its holder. mu is held.
func (f *flights) release(fl *flight) {
	if fl.held {
		f.holders.remove(fl)
		fl.held = false
	}
}

// drop takes a flight out before its time, and returns who waited for it. It is then
// to be stopped. mu is held.
func (f *flights) drop(fl *flight) []waiter {
	f.release(fl)
	f.n--
	fl.dropped = true
	if fl.landed {
		return nil
	}
	waiters := fl.waiters
	fl.waiters, fl.landed = nil, true
	f.shed += clientsOf(waiters)
	if f.byKey[string(fl.key)] == fl {
		delete(f.byKey, string(fl.key))
	}
	f.waiting.Done()
	return waiters
}

// begin makes the flight of a key, which is then to fly. e is what the cache has of
// it, nil if nothing. flights.mu is held.
func (s *Server) begin(st *state, rt *route, key []byte, e *cache.Entry, now time.Duration) *flight {
	fl := &flight{server: s, key: append([]byte(nil), key...), route: rt, began: now, wait: budget}
	if rules := st.stale(rt); rules.For > 0 && rules.mayServe(e, now+rules.ClientTimeout) {
		fl.wait = rules.ClientTimeout
		at, _, failed := e.Failed()
		fl.again = failed && s.answeredSince(rt, at)
	}
	f := &s.flights
	if f.stopped {
		fl.question.Stop(context.Canceled)
	}
	if fl.next = f.first; fl.next != nil {
		fl.next.prev = fl
	}
	f.first = fl
	f.byKey[string(fl.key)] = fl
	f.n++
	f.running.Add(1)
	f.waiting.Add(1)
	return fl
}

// fly begins to ask upstream. Those who wait are answered in time even if upstream does
// not. Where together is not nil it is asked with its Send.
func (s *Server) fly(fl *flight, together *upstream.Together) {
	fl.state = s.state.Load()
	s.flights.deadlines.Set(&fl.answer, fl, fl.wait)
	if !s.askAbove(fl) {
		s.ask(fl, together)
	}
}

// ask asks upstream for the name of a flight.
func (s *Server) ask(fl *flight, together *upstream.Together) {
	fl.asked = s.now()
	fl.route.group.Start(&fl.question, fl.key, fl, together)
}

// stop ends a flight because of cause, if upstream has nothing better to say.
func (fl *flight) stop(cause error) {
	fl.question.Stop(cause)
	fl.server.heard(fl, nil)
}

// Due implements deadline.Owner.
func (fl *flight) Due(x *deadline.Deadline) {
	s := fl.server
	switch x {
	case &fl.alone:
		s.heard(fl, nil)
	case &fl.last:
		fl.stop(context.DeadlineExceeded)
	case &fl.answer:
		s.flights.listenOn(fl)
		s.land(fl, cache.NewFailure(fl.key, wire.ServFail, wire.EDENetworkError, fl.route.zone, s.now()), silent, nil)
		signal(s.suspected)
	}
}

// listenOn has a flight wait until it is too late for those, too, who ask again.
func (f *flights) listenOn(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !fl.over {
		f.deadlines.Set(&fl.last, fl, lateBudget-fl.wait)
	}
}

// Answered implements upstream.Asker.
func (fl *flight) Answered(reply []byte, by *upstream.Counters, err error, round *upstream.Round) {
	s := fl.server
	defer s.flights.ended(fl, errors.Is(err, upstream.ErrDead))
	now := s.now()
	how := silent
	if err == nil {
		how = unusable
		var a cache.Admission
		if a, err = cache.Admit(fl.key, reply, fl.route.caps); err == nil {
			s.learn(fl.state, fl, &a)
			s.flights.mu.Lock()
			onward, wanted := fl.onward, fl.wanted()
			a.Unasked, a.Guessed, a.Onward = fl.unasked, fl.guessed(), onward && !wanted
			s.flights.mu.Unlock()
			a.Took, a.Source = now-fl.asked, s.upstreams.source(by)
			if a.RCode == wire.NXDomain && onward && wanted {
				s.searchOn(fl.state, fl.key, now)
			}
			s.land(fl, cache.NewEntry(fl.key, a, fl.route.zone, now), usable, round)
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
	s.land(fl, cache.NewFailure(fl.key, wire.ServFail, ede, fl.route.zone, now), how, round)
}

// ended counts a flight that is over. spared says that upstream was not asked at all.
func (f *flights) ended(fl *flight, spared bool) {
	f.mu.Lock()
	fl.over = true
	f.deadlines.Stop(&fl.answer)
	f.deadlines.Stop(&fl.last)
	if fl.next != nil {
		fl.next.prev = fl.prev
	}
	if fl.prev != nil {
		fl.prev.next = fl.next
	} else if f.first == fl {
		f.first = fl.next
	}
	fl.prev, fl.next = nil, nil // a call that was given up may keep it for a while
	if !fl.dropped {
		f.n--
		f.release(fl)
	}
	if fl.refresh {
		f.refreshing--
		switch {
		case fl.denied, spared && fl.upper: // nothing was asked, and of the latter nothing paid
		case !spared:
			f.refreshes[fl.why]++
		case fl.why == refreshSearch:
			f.guesses.tokens++
		default:
			f.bound.tokens++
		}
	}
	f.mu.Unlock()
	f.running.Done()
}

// stopAll ends all flights, and those that are begun from now on.
func (f *flights) stopAll() {
	f.mu.Lock()
	f.stopped = true
	var all []*flight
	for fl := f.first; fl != nil; fl = fl.next {
		all = append(all, fl)
	}
	f.mu.Unlock()
	for _, fl := range all {
		fl.stop(context.Canceled)
	}
}

// closeForNew lets nobody begin another flight; those under way can be joined.
func (f *flights) closeForNew() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

// A landing is what upstream had to say when a flight landed.
type landing uint8

const (
	silent   landing = iota // nothing, or not in time
	unusable                // what cannot be used
	usable                  // a reply, were it SERVFAIL
)

// land keeps the entry and gives it to those who wait; or where it is a failure,
// what the cache has of the name, be it expired. A second landing finds that its
// own have been told; an answer then goes to those who have asked again since, and
// a failure is dropped. What servers say that a reload has replaced meanwhile is
// not kept. Where round is not nil, what is to be sent is sent at its end.
func (s *Server) land(fl *flight, e *cache.Entry, how landing, round *upstream.Round) {
	f := &s.flights
	f.mu.Lock()
	now := s.now()
	t := told{Entry: e}
	if e.Class() == cache.Failure {
		if fl.landed {
			f.mu.Unlock()
			return
		}
		t = s.inPlace(fl, e, how, now)
		switch {
		case t.ttl > 0 && how == silent && !fl.again:
			s.askAgain(fl, t.Entry, now)
		case t.Entry == e && how != usable:
			f.late += clientsOf(fl.waiters)
		}
	} else if fl = s.keep(fl, e); fl == nil {
		f.mu.Unlock()
		return
	}
	waiters := fl.waiters
	fl.waiters, fl.landed = nil, true
	if f.byKey[string(fl.key)] == fl {
		delete(f.byKey, string(fl.key))
	}
	f.mu.Unlock()
	var out *outbox
	for i := range waiters {
		w := &waiters[i]
		if c, ok := w.peer.(packetPeer); ok {
			if out == nil {
				out = s.outbox(round)
			}
			out.put(c, &w.query, t, now)
		} else {
			w.peer.deliver(&w.query, t, now)
		}
	}
	if out == nil {
		f.waiting.Done()
		return
	}
	out.landed++ // when they have been sent
	if round == nil {
		out.Send()
	}
}

// keep puts what upstream says into the cache, before the flight is gone, so that
// nobody can miss both. It returns the flight whose clients are to be told, nil for
// none. flights.mu is held.
func (s *Server) keep(fl *flight, e *cache.Entry) *flight {
	current := s.current(fl)
	if fl.landed {
		// What upstream has said to a later question is newer.
		had := s.cache.Get(fl.key)
		if !current || had != nil && had.Class() != cache.Failure && had.Asked() > fl.began {
			return nil
		}
	}
	if current {
		s.cache.Put(e)
	}
	if !fl.landed {
		return fl
	}
	if e.Class() == cache.Uncached {
		return nil // it is for those who asked for it alone
	}
	return s.flights.byKey[string(fl.key)]
}

// inPlace is what those are told who wait for a flight that has failed, as e says,
// and notes the failure where the next who asks will look. flights.mu is held.
func (s *Server) inPlace(fl *flight, e *cache.Entry, how landing, now time.Duration) told {
	had := s.cache.Get(fl.key)
	rules := s.state.Load().stale(fl.route)
	fresh := had != nil && had.Fresh(now) && had.Class() != cache.Failure
	if fresh || rules.mayServe(had, now) {
		// Asked for again once upstream was known to answer, and others were answered
		// meanwhile: it is the name.
		if how != silent || fl.again && s.answeredSince(fl.route, fl.began) {
			had.Fail(now, true)
		} else {
			had.Fail(fl.began, false)
		}
		if fresh {
			return told{Entry: had}
		}
		return rules.stale(had)
	}
	if s.current(fl) {
		s.cache.Put(e)
	}
	return told{Entry: e}
}

// askAgain takes those out of a silent flight who have asked since upstream has
// answered somebody: what has expired may have been deleted, and the question that
// they wait for may have been lost before. They get one of their own, which ends
// when their time is over. flights.mu is held.
func (s *Server) askAgain(fl *flight, e *cache.Entry, now time.Duration) {
	f := &s.flights
	after := slices.IndexFunc(fl.waiters, func(w waiter) bool { return w.after })
	if after < 0 || f.closed || f.n-f.refreshing >= maxFlights || !s.current(fl) {
		return
	}
	st := s.state.Load()
	next := s.begin(st, fl.route, fl.key, e, now)
	next.waiters = slices.Clone(fl.waiters[after:])
	for i := range next.waiters {
		next.waiters[i].after = false
	}
	f.hold(next, next.waiters[0].peer.client())
	next.wait = next.waiters[0].since + st.stale(fl.route).ClientTimeout - now
	fl.waiters = fl.waiters[:after]
	go s.fly(next, nil) // without the lock
}

// current reports whether the names of a flight still go where it went.
func (s *Server) current(fl *flight) bool {
	name, _ := wire.SplitKey(fl.key)
	return s.state.Load().routes.find(name) == fl.route
}

package dnscache

import (
	"context"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/wire"
)

// What has expired is kept, and served where upstream does not answer (RFC
// 8767). Two promises hold each other in check: a client never waits long for
// an upstream that is not there, and an answer that upstream has deleted is not
// served once upstream answers again. So an expired answer is served
//
//   - when the client has waited Stale.ClientTimeout for upstream, or upstream has
//     failed before that;
//   - at once while upstream is known to be dead (upstream.Group.Dead), or to lead
//     back to us;
//   - at once for some time (recheck) after a refresh of it has failed, but only
//     as long as its upstream has answered nobody since the refresh began; or for
//     a second (recheckName), if the failure was about that very name.
//
// In every other case upstream is asked first, and whatever it says, were it that
// it has nothing that may be kept, takes the place of the expired answer.

const (
	// recheck is how long after a failed refresh an expired answer is served
	// without asking again, as RFC 8767 5 recommends.
	recheck = 30 * time.Second
	// recheckName is how long at the least, where the failure was about the name,
	// whoever else is answered: RFC 9520 3.2 wants such failures remembered. A
	// name that upstream cannot resolve would else be asked for with every query.
	recheckName = cache.FailureTTL
)

// A told is what a client is told: what an entry holds, fresh or stale.
type told struct {
	*cache.Entry
	ttl uint32 // seconds, of all records of a stale reply; 0 for a fresh one
}

func (t told) append(dst []byte, q *wire.Query, now time.Duration, limit int) []byte {
	if t.ttl > 0 {
		return t.AppendStale(dst, q, t.ttl, limit)
	}
	return t.AppendReply(dst, q, now, limit)
}

// mayServe reports whether e, expired or not, may be served at now.
func (s Stale) mayServe(e *cache.Entry, now time.Duration) bool {
	switch {
	case e == nil:
		return false
	case e.Class() == cache.Success, e.Class() == cache.Denial && s.Denial:
		return e.Expired(now) < s.For
	}
	return false
}

// stale tells what e holds as something that has expired.
func (s Stale) stale(e *cache.Entry) told { return told{e, uint32(s.AnswerTTL / time.Second)} }

// keep is how long the cache is to keep what has expired.
func (c Config) keep() [cache.Zones]cache.Keep {
	var k [cache.Zones]cache.Keep
	for i, z := range c.zones() {
		k[i].Success = z.Stale.For
		if z.Stale.Denial {
			k[i].Denial = z.Stale.For
		}
	}
	return k
}

// unanswered reports whether an expired entry that may be served is to be served
// without waiting for upstream. It does not allocate, but for the refresh that it
// begins once in recheck where upstream is dead.
func (s *Server) unanswered(st *state, rt *route, e *cache.Entry, now time.Duration) bool {
	why := s.hopeless(st, rt, e, now)
	if why == BecauseDead {
		// Of these questions upstream lets one through now and then; that is how
		// it is found to live.
		s.refresh(st, rt, e, now, refreshStale, 0)
	}
	return why != ""
}

// hopeless is why there is no point in waiting for upstream where there is something
// that has expired; empty where there is.
func (s *Server) hopeless(st *state, rt *route, e *cache.Entry, now time.Duration) Reason {
	switch {
	case rt.loop.closed.Load():
		return BecauseLoop
	case s.pausing(st, rt, e, now):
		return BecauseFailed
	case rt.group.Dead(s.start.Add(now)):
		return BecauseDead
	}
	return ""
}

// pausing reports whether a refresh of e has failed such a short time ago that it
// is not to be tried again.
func (s *Server) pausing(st *state, rt *route, e *cache.Entry, now time.Duration) bool {
	at, about, failed := e.Failed()
	switch {
	case !failed || now >= at+recheck:
		return false
	case about && now < at+recheckName:
		return true
	}
	// A reload has made new groups, which do not know whom the old ones answered.
	return at >= st.since && !s.answeredSince(rt, at)
}

// answeredSince reports whether upstream has answered anybody after a time.
func (s *Server) answeredSince(rt *route, at time.Duration) bool {
	last := rt.group.Answered()
	return !last.IsZero() && last.Sub(s.start) > at
}

// Why upstream is asked although no client waits, as indices of Refreshes.
const (
	refreshPrefetch = iota
	refreshReload
	refreshStale
	refreshSearch
)

// Refreshes are the reasons for which upstream is asked with no client waiting, in
// the order of Stats.Refreshes.
var Refreshes = [...]string{"prefetch", "reload", "stale", "search"}

// How many refreshes may be asked for with no client waiting: one for every
// refreshShare queries of clients and refreshIdle a second besides, of which up to
// refreshBurst are saved for when the names of a busy moment expire together;
// maxRefreshes at a time, which is beside maxFlights: they never take the place of
// a client's. What clients are expected to ask for next (search.go) has a bound of its
// own, but for maxRefreshes.
const (
	refreshShare = 10
	refreshIdle  = 10
	refreshBurst = 200
	maxRefreshes = 256
)

// A bucket of tokens is what bounds them.
type bucket struct {
	idle    float64 // tokens a second
	share   float64 // tokens for a query of a client's
	burst   float64 // tokens at the most
	tokens  float64
	at      time.Duration // when tokens was right
	queries uint64        // of clients until then
}

func newRefreshes() bucket {
	return bucket{idle: refreshIdle, share: 1. / refreshShare, burst: refreshBurst, tokens: refreshBurst}
}

// take takes a token; it is false where there is none.
func (b *bucket) take(now time.Duration, queries uint64) bool {
	b.tokens += (now-b.at).Seconds()*b.idle + float64(queries-b.queries)*b.share
	b.tokens = min(b.tokens, b.burst)
	b.at, b.queries = now, queries
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// refresh asks upstream for the name of e with nobody waiting, if that may be.
// unasked is what the entry that comes of it says of itself.
func (s *Server) refresh(st *state, rt *route, e *cache.Entry, now time.Duration, why int, unasked uint8) {
	f := &s.flights
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.byKey[string(e.Key())] != nil {
		return
	}
	if why == refreshStale {
		if s.pausing(st, rt, e, now) {
			return // another reader was faster
		}
		e.Fail(now, false) // until there is word: nobody else need come here
	}
	if f.mayBegin(&f.bound, now, s.queries()) {
		fl := s.beginForNobody(st, rt, e.Key(), e, now, why)
		fl.unasked = unasked
		go s.fly(fl, nil) // without the lock
	}
}

// mayBegin reports whether one more flight may be begun for nobody, after so many
// queries of clients, and counts those that may not. mu is held.
func (f *flights) mayBegin(bound *bucket, now time.Duration, queries uint64) bool {
	if f.refreshing < maxRefreshes && bound.take(now, queries) {
		return true
	}
	f.refused++
	return false
}

// beginForNobody is begin for a flight that no client waits for. flights.mu is held.
func (s *Server) beginForNobody(st *state, rt *route, key []byte, e *cache.Entry, now time.Duration, why int) *flight {
	s.flights.refreshing++
	fl := s.begin(st, rt, key, e, now)
	fl.refresh, fl.why = true, why
	return fl
}

// prefetch asks for the name of e before it expires.
func (s *Server) prefetch(st *state, e *cache.Entry, now time.Duration, why int, unasked uint8) {
	name, _ := wire.SplitKey(e.Key())
	rt := st.routes.find(name)
	if e.Class() == cache.Failure || rt.loop.closed.Load() || rt.group.Dead(s.start.Add(now)) {
		return
	}
	s.refresh(st, rt, e, now, why, unasked)
}

const (
	// reloadEvery is how often answers that are about to expire are looked for,
	// where Config.Reload wants them. A look at 30,000 of them takes a millisecond.
	reloadEvery = time.Second
	// reloadAhead is how long before they expire they are found: no later look
	// finds them, if it comes late.
	reloadAhead = 3 * reloadEvery / 2
)

// reloadEnding refreshes answers that nobody may have asked for again, until ctx
// ends.
func (s *Server) reloadEnding(ctx context.Context) {
	for pause(ctx, reloadEvery) {
		st := s.state.Load()
		if st.cfg.Reload == 0 {
			continue
		}
		now := s.now()
		for _, e := range s.cache.AppendEnding(nil, now, now+reloadAhead) {
			unasked := e.Unasked()
			if e.Hits() > 0 {
				unasked = 0
			}
			if int(unasked) < st.cfg.Reload && e.Begin() {
				s.prefetch(st, e, now, refreshReload, unasked+1)
			}
		}
	}
}

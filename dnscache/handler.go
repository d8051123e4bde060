package dnscache

import (
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/wire"
)

// counters are what one reader of queries counts. Only that reader and those
// who answer its clients write here, so that readers do not share cache lines.
type counters struct {
	queries   atomic.Uint64
	malformed atomic.Uint64
	hits      [len(ZoneKinds)]atomic.Uint64
	misses    [len(ZoneKinds)]atomic.Uint64
	stale     [len(ZoneKinds)]atomic.Uint64
	collapsed atomic.Uint64
	replies   [24]atomic.Uint64
	_         [64]byte
}

func (c *counters) replied(rcode int) {
	c.replies[min(rcode, len(c.replies)-1)].Add(1)
}

// An outcome says what became of a packet.
type outcome uint8

const (
	replied  outcome = iota // the reply is in the buffer
	dropped                 // there will be none
	deferred                // the client was not answered yet: join it to a flight
)

// A question is one packet being answered, and room to do it in. It is used
// again for the reader's next packet.
type question struct {
	query wire.Query
	key   []byte
	room  [wire.MaxKey]byte
}

// read parses a packet.
func (q *question) read(pkt []byte) wire.Verdict {
	verdict := wire.ParseQuery(pkt, &q.query)
	if verdict == wire.Answer {
		q.key = wire.AppendKey(q.room[:0], &q.query)
	}
	return verdict
}

// answer is the packet path. It parses pkt and appends the reply to out if it
// can be given without asking anybody: from a fresh entry, from an expired one
// while upstream does not answer, or an error. limit
// is the longest reply that the transport takes, 0 for the client's own.
//
// It does not allocate where out has room for limit bytes.
func (s *Server) answer(c *counters, q *question, pkt, out []byte, limit int, now time.Duration) ([]byte, outcome) {
	verdict := q.read(pkt)
	switch verdict {
	case wire.Answer:
	case wire.Drop:
		c.malformed.Add(1)
		return nil, dropped
	default:
		if verdict == wire.Forbidden && isCanary(&q.query) {
			c.queries.Add(1)
			c.replied(wire.NoError)
			if limit == 0 {
				limit = q.query.Limit()
			}
			return appendCanary(out, &q.query, limit), replied
		}
		if verdict == wire.Malformed {
			c.malformed.Add(1)
		} else {
			c.queries.Add(1)
		}
		c.replied(verdict.RCode())
		return wire.AppendError(out, &q.query, verdict.RCode(), wire.EDENone), replied
	}
	c.queries.Add(1)
	e := s.cache.Get(q.key)
	if limit == 0 {
		limit = q.query.Limit()
	}
	if e == nil || !e.Fresh(now) {
		return s.miss(c, q, e, out, limit, now)
	}
	st := s.state.Load()
	if p := &st.cfg.Prefetch; e.Hit(max(p.MinHits, 1)) >= p.MinHits && p.At > 0 && e.Ending(now, p.At) && e.Begin() {
		s.prefetch(st, e, now, refreshPrefetch, 0)
	}
	if guessed, onward := e.Wanted(); guessed || onward {
		s.wanted(st, e, guessed, onward, now)
	}
	c.hits[e.Zone()].Add(1)
	c.replied(e.RCode())
	return e.AppendReply(out, &q.query, now, limit), replied
}

// miss is the packet path of what is not fresh in the cache, which has e of it, or
// nil: mostly to be deferred.
func (s *Server) miss(c *counters, q *question, e *cache.Entry, out []byte, limit int, now time.Duration) ([]byte, outcome) {
	st := s.state.Load()
	name, _ := wire.SplitKey(q.key)
	rt := st.routes.find(name)
	if denial := s.denied(st, rt, q.key, now); denial != nil {
		s.search(st, rt, q.key, now)
		c.hits[rt.zone].Add(1)
		c.collapsed.Add(1)
		c.replied(denial.RCode())
		return denial.AppendReply(out, &q.query, now, limit), replied
	}
	c.misses[rt.zone].Add(1)
	if rules := st.stale(rt); rules.mayServe(e, now) && s.unanswered(st, rt, e, now) {
		return c.send(out, &q.query, rules.stale(e), now, limit), replied
	}
	looped := rt.loop.closed.Load()
	if isLoopProbe(q.key) {
		for _, rt := range st.routes.all {
			looped = rt.loop.met(q.key) || looped
		}
	}
	if looped {
		s.loops.Add(1)
		c.replied(wire.ServFail)
		return wire.AppendError(out, &q.query, wire.ServFail, wire.EDEOther), replied
	}
	return nil, deferred
}

// send makes the reply that t is to q in buf.
func (c *counters) send(buf []byte, q *wire.Query, t told, now time.Duration, limit int) []byte {
	if t.ttl > 0 {
		c.stale[t.Zone()].Add(1)
	}
	c.replied(t.RCode())
	return t.append(buf, q, now, limit)
}

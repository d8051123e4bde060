package dnscache

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// A name that is not in the cache costs ten times what one costs that is, and all
// queries of a socket wait in one line. So when queries come faster than they are
// answered, those who ask for many new names are told SERVFAIL until the line is
// gone: there is a limit, the same for every client, on how many may be asked
// upstream for it. It is lowered until queries no longer pile up, so what there is
// to share is shared evenly: who asks for less than the limit notices nothing, and
// who asks for what is cached is never refused. When the line is gone the limit is a
// quarter of what it was when there was none: so much was too much.
//
// That there is too much to do is told by what lies in the receive buffers: as
// with CoDel (RFC 8289 3.2), not how much comes at once, but how much does not go
// away. A burst of a few hundred lookups is gone within a window.
const (
	// window is over before a client has noticed that it waits.
	window = 20 * time.Millisecond
	// standing is a line that is too long where it is there at the end of two
	// windows, in bytes as the kernel counts them: 768 for a small query.
	standing = 64 << 10
	// leastShare is what a client may always ask, in a window: 100 names a second.
	leastShare = 2
	// leastFlood is how many names all clients must have asked for in a window for that
	// to be why there is a line: 5,000 a second. Of fewer no CPU is full, and where hits
	// alone are too many, refusing the few that are none helps nobody.
	leastFlood = 100
	// burstShares is how many windows' share a client may ask at once.
	burstShares = 16
	// growEvery is how often the limit is raised while there is no line, by a
	// sixteenth: each time it is too high again queries wait for some 50 ms. forgetAfter is how long nobody must have met it for it to go.
	growEvery   = 500 * time.Millisecond
	forgetAfter = time.Second
)

// shares bound what each client may have asked upstream. Its methods may be
// called at the same time. Clients are told apart by a hash: of a hundred, ten
// share theirs with another.
type shares struct {
	seed   maphash.Seed
	limit  atomic.Uint32       // of names, for each client in a window; 0 for none
	counts [1024]atomic.Uint32 // in this window; with a limit, less that for each window before
	shed   atomic.Uint64       // who was told SERVFAIL
	met    atomic.Int64        // when somebody was, last

	mu     sync.Mutex
	end    time.Duration // of the window
	grown  time.Duration // when the limit was last changed
	behind bool          // a line stands
	rest   uint32        // what the limit is to be when it is gone
}

func newShares() *shares { return &shares{seed: maphash.MakeSeed()} }

// admit reports whether a client may have one more name asked upstream at now.
func (s *shares) admit(client netip.Addr, now time.Duration) bool {
	count := &s.counts[s.slot(client)]
	if limit := s.limit.Load(); limit > 0 && count.Load() >= burstShares*limit {
		s.shed.Add(1)
		s.met.Store(int64(now))
		return false
	}
	count.Add(1)
	return true
}

// slot is where a client is counted.
func (s *shares) slot(client netip.Addr) int {
	return int(maphash.Comparable(s.seed, client) % uint64(len(s.counts)))
}

// tick is called by each reader of packets at the end of each of its windows, with
// whether its line stands; and by those of streams, who have none, at any time.
func (s *shares) tick(now time.Duration, behind bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behind = s.behind || behind
	if now < s.end {
		return
	}
	limit := s.limit.Load()
	switch {
	case s.behind:
		all := uint32(0)
		if limit == 0 { // what the busiest has asked
			for i := range s.counts {
				n := s.counts[i].Load()
				limit, all = max(limit, n), all+n
			}
			if all < leastFlood {
				break
			}
		}
		if s.rest == 0 {
			s.rest = max(limit/4, leastShare)
		}
		s.set(max(limit/4, leastShare), now)
	case limit == 0:
	case now-s.end >= forgetAfter: // nothing has come for so long
		s.set(0, now)
		s.rest = 0
	case s.rest > 0:
		s.set(max(limit, s.rest), now)
		s.rest = 0
	case now-time.Duration(s.met.Load()) >= forgetAfter:
		s.set(0, now)
	case now-s.grown >= growEvery:
		s.set(limit+max(limit/16, 1), now)
	}
	limit = s.limit.Load()
	windows := uint32(min((now-s.end)/window+1, burstShares)) // without a tick for some
	for i := range s.counts {
		n := s.counts[i].Load() // admit alone changes it meanwhile, and adds
		left := uint32(0)
		if limit > 0 {
			left = min(n, burstShares*limit)
			left -= min(left, windows*limit)
		}
		if n > left {
			s.counts[i].Add(-(n - left))
		}
	}
	s.behind, s.end = false, now+window
}

func (s *shares) set(limit uint32, now time.Duration) {
	s.limit.Store(limit)
	s.grown = now
}

// A line is what waits in the receive buffer of one reader.
type line struct {
	next time.Duration // when it is looked at again
	long bool          // it was, last time
}

// look looks at the line when it is time; bytes measures it.
func (l *line) look(s *shares, now time.Duration, bytes func() int) {
	if now < l.next {
		return
	}
	long := bytes() > standing
	s.tick(now, long && l.long && now-l.next < window)
	l.long, l.next = long, now+window
}

// refuse makes the reply to a query whose client has had its share. limit is as in
// answer.
func (s *Server) refuse(c *counters, q *question, out []byte, limit int, now time.Duration) []byte {
	if limit == 0 {
		limit = q.query.Limit()
	}
	name, _ := wire.SplitKey(q.key)
	if t, ok := s.expired(q.key, s.state.Load().routes.find(name), now); ok {
		return c.send(out, &q.query, t, now, limit)
	}
	c.replied(wire.ServFail)
	return wire.AppendError(out, &q.query, wire.ServFail, wire.EDENotReady) // as refusal, and nothing is allocated
}

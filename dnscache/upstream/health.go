package upstream

import (
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// How long a server that does not answer comes last.
const (
	firstBackoff = time.Second
	maxBackoff   = 10 * time.Second
)

// When a server is dead.
const (
	// deadAfter is how long nobody must have been answered. A kube-dns that has
	// just been moved to other pods is back sooner.
	deadAfter = 250 * time.Millisecond
	// deadNames is how many names it must have been silent about, and
	// deadErrors how often it could not be reached. One name, asked by as many
	// clients and for as many types as there are, may take its time while there is
	// nobody else to be answered; two may belong to one broken domain.
	deadNames  = 3
	deadErrors = 3
	// deadFor is how long what was seen is believed: longer than any pause
	// between two questions on a node with pods, and shorter than an outage
	// that somebody has noticed.
	deadFor = time.Minute
	// probeEvery is how often one question goes to a dead group, to see.
	probeEvery = 250 * time.Millisecond
	// probeAlone is how long the others are turned away for since
	// a question last failed. On a node so quiet that there was none for longer
	// they may as well all go: those that a client sends together, as A and AAAA,
	// are answered together when the server is back.
	probeAlone = time.Second
)

// ErrDead is returned by a group all of whose servers are dead, to all but the
// one question that is sent to see whether one is back.
var ErrDead = errors.New("no upstream server answers anybody")

// An epoch keeps times as nanoseconds since a moment shortly before the first of
// them, on the monotonic clock: an outage must not become longer or shorter because
// the wall clock is put right, as it is when a node boots. No time is 0, which
// stands for never.
type epoch struct{ start atomic.Pointer[time.Time] }

// early is how much earlier than the first time that is kept another one may be.
const early = time.Hour

func (e *epoch) since(t time.Time) int64 {
	start := e.start.Load()
	if start == nil {
		first := t.Add(-early)
		e.start.CompareAndSwap(nil, &first)
		start = e.start.Load()
	}
	return max(1, int64(t.Sub(*start)))
}

// time is the time that since made at of.
func (e *epoch) time(at int64) time.Time {
	if start := e.start.Load(); start != nil && at != 0 {
		return start.Add(time.Duration(at))
	}
	return time.Time{}
}

// latest stores at unless there is a later one: of two that are answered at once,
// the one that looked at the clock first may come here last.
func latest(a *atomic.Int64, at int64) {
	for was := a.Load(); was < at && !a.CompareAndSwap(was, at); was = a.Load() {
	}
}

// A health is what the replies of a server, and their absence, tell about it.
type health struct {
	epoch     epoch        // of all times here
	failures  atomic.Int32 // in a row
	answered  atomic.Int64 // when last
	downUntil atomic.Int64
	suspect   atomic.Bool // there is evidence below

	mu     sync.Mutex
	first  int64 // of the evidence since it last answered, when the first try was begun
	last   int64 // and when the last evidence came
	errors int
	names  []uint64 // up to deadNames hashes
}

// ok notes that the server answered.
func (h *health) ok(now time.Time) {
	h.replied(now)
	h.failures.Store(0)
	h.downUntil.Store(0)
	if h.suspect.Load() {
		h.suspect.Store(false)
	}
}

// replied notes that a reply came, whatever becomes of the question.
func (h *health) replied(now time.Time) { latest(&h.answered, h.epoch.since(now)) }

// failed notes that it did not. One lost packet is no outage: the second
// failure in a row puts the server last, and longer each time. Questions that
// fail while it is last anyway were under way together, and count as one.
func (h *health) failed(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.Down(now) {
		return
	}
	n := h.failures.Add(1)
	if n < 2 {
		return
	}
	backoff := min(firstBackoff<<min(n-2, 10), maxBackoff)
	h.downUntil.Store(h.epoch.since(now.Add(backoff)))
}

// silentSince reports whether the server has answered nobody since start.
func (h *health) silentSince(start time.Time) bool {
	return h.answered.Load() < h.epoch.since(start)
}

// Down reports whether the server comes last at now.
func (h *health) Down(now time.Time) bool {
	until := h.downUntil.Load()
	return until != 0 && h.epoch.since(now) < until
}

var nameSeed = maphash.MakeSeed()

// unanswered notes that a try for key, begun at begun, has failed: for want of a
// connection, or because a reply is overdue and nobody else has had one since.
func (h *health) unanswered(now, begun time.Time, key []byte, unreachable bool) {
	if !h.silentSince(begun) {
		return
	}
	name, _ := wire.SplitKey(key)
	hash := maphash.Bytes(nameSeed, name)
	at, from := h.epoch.since(now), h.epoch.since(begun)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first <= h.answered.Load() || at-h.last > int64(deadFor) {
		h.first, h.errors, h.names = from, 0, h.names[:0]
	}
	h.first = min(h.first, from)
	h.last = at
	h.suspect.Store(true)
	if unreachable {
		h.errors++
	}
	for _, n := range h.names {
		if n == hash {
			return
		}
	}
	if len(h.names) < deadNames {
		h.names = append(h.names, hash)
	}
}

// dead says besides when there was the first evidence, and the last.
func (h *health) dead(now time.Time) (dead bool, first, last time.Time) {
	if !h.suspect.Load() {
		return false, first, last // nearly always
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// Several names are several questions; one question has its tries at once.
	at, long := h.epoch.since(now), int64(deadAfter)
	failed := len(h.names) >= deadNames && at-h.first >= long || h.errors >= deadErrors && h.last-h.first >= long
	dead = failed && h.first > h.answered.Load() && at-h.last <= int64(deadFor)
	return dead, h.epoch.time(h.first), h.epoch.time(h.last)
}

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

// A health is what the replies of a server, and their absence, tell about it.
type health struct {
	failures  atomic.Int32 // in a row
	answered  atomic.Int64 // when last, in unix nanoseconds
	downUntil atomic.Int64 // unix nanoseconds
	suspect   atomic.Bool  // there is evidence below

	mu     sync.Mutex
	first  int64 // of the evidence since it last answered, when the first try was begun
	last   int64 // and when the last evidence came
	errors int
	names  []uint64 // up to deadNames hashes
}

// ok notes that the server answered.
func (h *health) ok(now time.Time) {
	h.answered.Store(now.UnixNano())
	h.failures.Store(0)
	h.downUntil.Store(0)
	if h.suspect.Load() {
		h.suspect.Store(false)
	}
}

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
	h.downUntil.Store(now.Add(backoff).UnixNano())
}

// silentSince reports whether the server has answered nobody since start.
func (h *health) silentSince(start time.Time) bool { return h.answered.Load() < start.UnixNano() }

// Down reports whether the server comes last at now.
func (h *health) Down(now time.Time) bool { return now.UnixNano() < h.downUntil.Load() }

var nameSeed = maphash.MakeSeed()

// unanswered notes that a try for key, begun at begun, has failed: for want of a
// connection, or because a reply is overdue and nobody else has had one since.
func (h *health) unanswered(now, begun time.Time, key []byte, unreachable bool) {
	if !h.silentSince(begun) {
		return
	}
	name, _ := wire.SplitKey(key)
	hash := maphash.Bytes(nameSeed, name)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first <= h.answered.Load() || now.UnixNano()-h.last > int64(deadFor) {
		h.first, h.errors, h.names = begun.UnixNano(), 0, h.names[:0]
	}
	h.first = min(h.first, begun.UnixNano())
	h.last = now.UnixNano()
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
func (h *health) dead(now time.Time) (dead bool, first, last int64) {
	if !h.suspect.Load() {
		return false, 0, 0 // nearly always
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// Several names are several questions; one question has its tries at once.
	at, long := now.UnixNano(), int64(deadAfter)
	failed := len(h.names) >= deadNames && at-h.first >= long || h.errors >= deadErrors && h.last-h.first >= long
	return failed && h.first > h.answered.Load() && at-h.last <= int64(deadFor), h.first, h.last
}

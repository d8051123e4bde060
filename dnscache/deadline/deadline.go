// Package deadline calls for what is due, with one timer for all of it.
package deadline

import (
	"sync"
	"time"
)

// A Queue calls for what is due, in the order of time. There is one timer for all
// deadlines: nearly every one is stopped before its time, and one that is further off
// than another costs no timer then. The zero value is ready for use. Its methods may
// be called at the same time.
type Queue struct {
	mu    sync.Mutex
	heap  []*Deadline // the nearest first; no child is nearer than its parent
	timer *time.Timer
	next  time.Time // when timer fires, sooner than any of heap or with the first; zero: not at all
}

// A Deadline is part of what it is for. It is in one queue at a time, and may be set
// again.
type Deadline struct {
	at    time.Time
	owner Owner
	i     int // in the heap, from 1 on
}

// An Owner is called for.
type Owner interface {
	// Due is called at the time of a deadline, unless that is stopped before, in
	// a goroutine that is not the owner's and with no lock held. It does not block.
	Due(x *Deadline)
}

// Set has owner called for after a while, and not when x was set to before.
func (q *Queue) Set(x *Deadline, owner Owner, after time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if x.i > 0 {
		q.remove(x)
	}
	x.at, x.owner = time.Now().Add(after), owner
	q.heap = append(q.heap, x)
	x.i = len(q.heap)
	q.up(x)
	q.wind()
}

// Stop has nobody called for x any more, if that is not under way.
func (q *Queue) Stop(x *Deadline) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if x.i > 0 {
		q.remove(x)
	}
}

// wind sets the timer for the nearest deadline. One that fires for a deadline that was
// stopped is wound again then. mu is held.
func (q *Queue) wind() {
	if len(q.heap) == 0 {
		return
	}
	at := q.heap[0].at
	switch {
	case q.timer == nil:
		q.timer = time.AfterFunc(time.Until(at), q.fire)
	case q.next.IsZero() || at.Before(q.next):
		q.timer.Reset(time.Until(at))
	default:
		return
	}
	q.next = at
}

// fire calls for all that is due.
func (q *Queue) fire() {
	q.mu.Lock()
	q.next = time.Time{}
	var due []*Deadline
	var owners []Owner // as x may be set again meanwhile
	for now := time.Now(); len(q.heap) > 0 && !q.heap[0].at.After(now); {
		x := q.heap[0]
		q.remove(x)
		due, owners = append(due, x), append(owners, x.owner)
	}
	q.wind()
	q.mu.Unlock()
	for i, x := range due {
		owners[i].Due(x)
	}
}

func (q *Queue) remove(x *Deadline) {
	last := q.heap[len(q.heap)-1]
	q.heap[len(q.heap)-1] = nil
	q.heap = q.heap[:len(q.heap)-1]
	if last != x {
		q.heap[x.i-1], last.i = last, x.i
		q.up(last)
		q.down(last)
	}
	x.i = 0
}

func (q *Queue) up(x *Deadline) {
	for x.i > 1 && x.at.Before(q.heap[x.i/2-1].at) {
		q.swap(x, q.heap[x.i/2-1])
	}
}

func (q *Queue) down(x *Deadline) {
	for 2*x.i <= len(q.heap) {
		child := q.heap[2*x.i-1]
		if 2*x.i < len(q.heap) && q.heap[2*x.i].at.Before(child.at) {
			child = q.heap[2*x.i]
		}
		if !child.at.Before(x.at) {
			return
		}
		q.swap(x, child)
	}
}

func (q *Queue) swap(a, b *Deadline) {
	a.i, b.i = b.i, a.i
	q.heap[a.i-1], q.heap[b.i-1] = a, b
}

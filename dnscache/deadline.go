package dnscache

import (
	"sync"
	"time"
)

// deadlines call for what is due, in the order of time. There is one timer for all of
// them: nearly every deadline is stopped before its time, and one that is further off
// than another costs no timer then. The zero value is ready for use.
type deadlines struct {
	mu    sync.Mutex
	heap  []*deadline // the nearest first; no child is nearer than its parent
	timer *time.Timer
	next  time.Time // when timer fires, sooner than any of heap or with the first; zero: not at all
}

// A deadline is part of what it is for. It is set once.
type deadline struct {
	at  time.Time
	due func() // called at that time, unless it is stopped before; it does not block
	i   int    // in the heap, from 1 on
}

// set has x.due called after a while.
func (d *deadlines) set(x *deadline, after time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	x.at = time.Now().Add(after)
	d.heap = append(d.heap, x)
	x.i = len(d.heap)
	d.up(x)
	d.wind()
}

// stop has x.due called no more, if it is not under way.
func (d *deadlines) stop(x *deadline) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if x.i > 0 {
		d.remove(x)
	}
}

// wind sets the timer for the nearest deadline. One that fires for a deadline that was
// stopped is wound again then. mu is held.
func (d *deadlines) wind() {
	if len(d.heap) == 0 {
		return
	}
	at := d.heap[0].at
	switch {
	case d.timer == nil:
		d.timer = time.AfterFunc(time.Until(at), d.fire)
	case d.next.IsZero() || at.Before(d.next):
		d.timer.Reset(time.Until(at))
	default:
		return
	}
	d.next = at
}

// fire calls for all that is due.
func (d *deadlines) fire() {
	d.mu.Lock()
	d.next = time.Time{}
	var due []*deadline
	for now := time.Now(); len(d.heap) > 0 && !d.heap[0].at.After(now); {
		x := d.heap[0]
		d.remove(x)
		due = append(due, x)
	}
	d.wind()
	d.mu.Unlock()
	for _, x := range due {
		x.due()
	}
}

func (d *deadlines) remove(x *deadline) {
	last := d.heap[len(d.heap)-1]
	d.heap[len(d.heap)-1] = nil
	d.heap = d.heap[:len(d.heap)-1]
	if last != x {
		d.heap[x.i-1], last.i = last, x.i
		d.up(last)
		d.down(last)

	}
	x.i = 0
}

func (d *deadlines) up(x *deadline) {
	for x.i > 1 && x.at.Before(d.heap[x.i/2-1].at) {
		d.swap(x, d.heap[x.i/2-1])
	}
}

func (d *deadlines) down(x *deadline) {
	for 2*x.i <= len(d.heap) {
		child := d.heap[2*x.i-1]
		if 2*x.i < len(d.heap) && d.heap[2*x.i].at.Before(child.at) {
			child = d.heap[2*x.i]
		}
		if !child.at.Before(x.at) {
			return
		}
		d.swap(x, child)
	}
}

func (d *deadlines) swap(a, b *deadline) {
	a.i, b.i = b.i, a.i
	d.heap[a.i-1], d.heap[b.i-1] = a, b
}

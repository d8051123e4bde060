package upstream

import (
	"sync"
	"sync/atomic"
	"time"
)

// When a try is made beside one that has not been answered.
const (
	// minDelay is what the scheduler of a busy node and the CPU quota of
	// a kube-dns pod (100 ms periods, of which it mostly gets most) cost now and
	// then: replies that take less are not worth a second query. It leaves nine
	// tenths of the 100 ms in which nearly all questions are to be answered.
	minDelay = 10 * time.Millisecond
	// maxDelay is less than the 200 ms after which Linux itself sends a lost TCP
	// segment again (TCP_RTO_MIN), and lets the last of five tries begin a tenth of a
	// second before the client is answered.
	maxDelay = 150 * time.Millisecond
	// startDelay serves until enough replies are known: more than a server in
	// the cluster needs, and with it three tries are made inside 100 ms.
	startDelay = 30 * time.Millisecond
	// percentile of the replies came sooner than the delay. One question in
	// twenty costs a second query then, half of what the budget has. Names that
	// kube-dns has to ask for make for a long tail; at the 99th percentile a
	// lost packet among them would cost half a second.
	percentile = 0.95
)

// A latency is how long one server's replies lately took: counts in buckets, each
// √2 as wide as the one before. They are halved when they are full, so that what
// was half a thousand replies ago counts half.
type latency struct {
	delay atomic.Int64 // learnt, nanoseconds; 0: unknown
	mean  atomic.Int64 // smoothed, nanoseconds; 0: there was no reply

	mu     sync.Mutex
	counts [latencyBuckets]uint16
	total  int
	fresh  int // replies since delay was worked out
}

const (
	latencyBuckets = 24
	firstBucket    = 500 * time.Microsecond // the last bound is 1.4 s: nobody waits longer
	latencyFull    = 512
	latencyFew     = 16 // of fewer replies than these no percentile is learnt
)

// add notes the time of one reply.
func (l *latency) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mean := l.mean.Load(); mean == 0 {
		l.mean.Store(int64(d))
	} else {
		l.mean.Store(mean + (int64(d)-mean)/smoothing)
	}
	i, bound := 0, float64(firstBucket)
	for i < latencyBuckets-1 && float64(d) > bound {
		i++
		bound *= root2
	}
	l.counts[i]++
	l.total++
	l.fresh++
	if l.total >= latencyFull {
		l.total = 0
		for i := range l.counts {
			l.counts[i] /= 2
			l.total += int(l.counts[i])
		}
	}
	if l.fresh < latencyFew {
		return
	}
	l.fresh = 0
	want, sum := percentile*float64(l.total), 0
	bound = float64(firstBucket)
	for i := range l.counts {
		if sum += int(l.counts[i]); float64(sum) >= want {
			break
		}
		bound *= root2
	}
	l.delay.Store(int64(min(max(time.Duration(bound), minDelay), maxDelay)))
}

// smoothing is 1/alpha of RFC 6298 2.
const smoothing = 8

// smoothed is how long replies lately took; 0 where there was none.
func (l *latency) smoothed() time.Duration { return time.Duration(l.mean.Load()) }

const root2 = 1.4142135623730951

// wait is how long a try is waited for before another one is made beside it.
func (l *latency) wait() time.Duration {
	if d := l.delay.Load(); d != 0 {
		return time.Duration(d)
	}
	return startDelay
}

// A budget bounds the tries that are made only because a reply was late. Every
// question earns a tenth of one. One that was answered before the try it was to
// make up for gives back two: itself, and one that was not answered.
//
// Of a server that answers all it is asked, but slowly, the first try comes back
// first, so nothing is given back, and it gets 10 % more than its clients ask,
// and budgetBurst at once. Where a share d of queries or replies is lost, a try
// costs 1 and brings 2(1-d): up to half it pays for itself, and 1+d+d²+d³+d⁴ < 2
// queries are sent for a question; beyond it at most 0.1/(2d-1) tries are
// made. So no server ever gets double of what it is asked.
type budget struct {
	spent atomic.Int64 // tenths of a try; 0 is a full purse
}

const (
	tenths = 10
	// budgetBurst is the tries that may be made at once when many questions are
	// under way at the moment a server stops to answer.
	budgetBurst = 64
)

func (b *budget) earn(n int64) {
	for {
		was := b.spent.Load()
		if was == 0 || b.spent.CompareAndSwap(was, max(was-n, 0)) {
			return
		}
	}
}

// spend takes one try out of the budget; it is false when there is none left.
func (b *budget) spend() bool {
	for {
		was := b.spent.Load()
		if was+tenths > budgetBurst*tenths {
			return false
		}
		if b.spent.CompareAndSwap(was, was+tenths) {
			return true
		}
	}
}

// A question and a try that was worth its price.
func (b *budget) question() { b.earn(1) }
func (b *budget) worth()    { b.earn(2 * tenths) }

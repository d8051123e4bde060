package bench

import (
	"math"
	"math/bits"
	"time"
)

// A histogram counts durations in buckets that are at most 1/128 as wide as
// what they count, so that a quantile is less than 0.8 % too high, whatever its
// size. It takes 60 kB, whatever it counts.
type histogram struct {
	counts [buckets]uint64
	n      uint64
}

// Each power of two nanoseconds has 2^subBits buckets; below the first of them
// each nanosecond has one.
const (
	subBits = 7
	sub     = 1 << subBits
	buckets = (63-subBits)*sub + sub // of all that an int64 can be
)

func (h *histogram) add(d time.Duration) {
	h.counts[bucket(d)]++
	h.n++
}

func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift*sub + int(v>>shift)
}

// top is the longest duration that is counted in a bucket.
func top(bucket int) time.Duration {
	shift := max(bucket/sub-1, 0)
	return time.Duration((uint64(bucket-shift*sub)+1)<<shift - 1)
}

// quantile is a duration that a share q of all were no longer than: the top of
// its bucket. It is 0 where none was counted.
func (h *histogram) quantile(q float64) time.Duration {
	rank := max(uint64(math.Ceil(q*float64(h.n))), 1)
	var seen uint64
	for i, n := range &h.counts {
		if seen += n; seen >= rank {
			return top(i)
		}
	}
	return 0
}

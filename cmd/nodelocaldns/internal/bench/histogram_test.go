package bench

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestABucketIsNoWiderThanItsErrorAllows(t *testing.T) {
	values := []time.Duration{-1, 0, 1, 127, 128, 129, 255, 256, 257, math.MaxInt64 - 1, math.MaxInt64}
	for shift := range 63 {
		values = append(values, 1<<shift-1, 1<<shift, 1<<shift+1)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		values = append(values, time.Duration(r.Int64()>>r.IntN(63)))
	}
	slices.Sort(values)
	last := 0
	for _, v := range values {
		b := bucket(v)
		if b < last || b >= buckets {
			t.Fatalf("%d is in bucket %d, a smaller one in %d, of %d", v, b, last, buckets)
		}
		last = b
		if over := top(b) - max(v, 0); over < 0 || over > max(v, 0)/sub {
			t.Errorf("%d is taken for %d", v, top(b))
		}
	}
}

func TestAQuantileIsOfThatMany(t *testing.T) {
	var h histogram
	if got := h.quantile(.5); got != 0 {
		t.Errorf("of nothing: got %s", got)
	}
	r := rand.New(rand.NewPCG(3, 4))
	var all []time.Duration
	for range 9999 {
		d := time.Duration(math.Exp(r.NormFloat64()*2) * float64(time.Millisecond))
		all = append(all, d)
		h.add(d)
	}
	slices.Sort(all)
	for q, rank := range map[float64]int{0: 1, .5: 5000, .9: 9000, .95: 9500, .99: 9900, .999: 9990, 1: 9999} {
		want := all[rank-1]
		if got := h.quantile(q); got < want || got > want+want/sub {
			t.Errorf("%g: got %s, want %s", q, got, want)
		}
	}
}

func TestPublicAddressesAreSomebodyElses(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")}
	for addr, want := range map[string]bool{
		"127.0.0.53":          false,
		"::1":                 false,
		"10.96.0.10":          false,
		"172.31.0.2":          false,
		"192.168.1.1":         false,
		"100.64.0.1":          false,
		"100.127.255.255":     false,
		"169.254.20.10":       false,
		"fe80::1%eth0":        false,
		"fd00:96::a":          false,
		"::ffff:10.0.0.1":     false,
		"198.51.100.7":        false,
		"::ffff:198.51.100.7": false,
		"2001:db8::7":         false,
		"198.51.100.8":        true,
		"8.8.8.8":             true,
		"::ffff:8.8.8.8":      true,
		"172.32.0.1":          true,
		"100.128.0.1":         true,
		"2001:4860:4860::88":  true,
		"0.0.0.0":             true,
		"224.0.0.251":         true,
	} {
		if got := Public(netip.MustParseAddr(addr), own); got != want {
			t.Errorf("%s: got %t, want %t", addr, got, want)
		}
	}
}

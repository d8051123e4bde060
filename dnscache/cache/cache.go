// Package cache keeps replies in wire form. Entries live in shards, each a
// map and two eviction lists a pool under one lock; the caps of the pools and
// the budget in bytes hold for all shards together.
//
// Entries that have expired may be kept for longer, to be served stale. Sweep
// puts them in lists of their own, which give way first.
package cache

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Zones is how many kinds of zone have caps of their own.
const Zones = 3

const (
	shards = 32
	// pools: success and denial of each kind of zone, and one for failures.
	pools       = 2*Zones + 1
	failurePool = pools - 1

	// maxFailures bounds the failures that are kept. They live for a second
	// (FailureTTL): a flood of broken names is not to push out answers.
	maxFailures = 4096
)

// A Limit bounds the entries of one zone kind.
type Limit struct {
	Success, Denial int
}

// A Keep is how long the entries of one zone kind are kept beyond their expiry.
type Keep struct {
	Success, Denial time.Duration
}

// A Cache keeps entries by key. All methods may be called at the same time.
type Cache struct {
	seed     maphash.Seed
	shards   [shards]shard
	counts   [pools]atomic.Int64
	stale    [pools]atomic.Int64 // of counts
	limits   [pools]atomic.Int64
	keep     [pools]atomic.Int64 // nanoseconds beyond expiry
	bytes    atomic.Int64
	maxBytes atomic.Int64
	evicted  atomic.Uint64
}

type shard struct {
	mu    sync.RWMutex
	m     map[uint64]*Entry
	pools [pools]list
	stale [pools]list // those that Sweep found expired
	_     [64]byte    // no two locks on one cache line
}

// New returns an empty cache.
func New(limits [Zones]Limit, maxBytes int64) *Cache {
	c := &Cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].m = make(map[uint64]*Entry)
	}
	c.SetLimits(limits, maxBytes)
	return c
}

// SetLimits changes the caps, and evicts what is over them.
func (c *Cache) SetLimits(limits [Zones]Limit, maxBytes int64) {
	for z, l := range limits {
		c.limits[2*z].Store(int64(l.Success))
		c.limits[2*z+1].Store(int64(l.Denial))
	}
	c.limits[failurePool].Store(maxFailures)
	c.maxBytes.Store(maxBytes)
	for pool := range pools {
		c.shrink(0, pool, nil)
	}
}

// SetKeep changes how long entries are kept beyond their expiry: not at all in a
// new cache. The next Sweep goes by it.
func (c *Cache) SetKeep(keep [Zones]Keep) {
	for z, k := range keep {
		c.keep[2*z].Store(int64(k.Success))
		c.keep[2*z+1].Store(int64(k.Denial))
	}
}

// Get returns the entry of a key, fresh or not, or nil. It does not allocate.
func (c *Cache) Get(key []byte) *Entry {
	e := c.Peek(key)
	if e != nil && e.marks.Load()&markUsed == 0 {
		e.marks.Or(markUsed)
	}
	return e
}

// Peek is Get for those who only look: the eviction does not take the entry for one
// in use.
func (c *Cache) Peek(key []byte) *Entry {
	h := maphash.Bytes(c.seed, key)
	s := &c.shards[h%shards]
	s.mu.RLock()
	e := s.m[h]
	s.mu.RUnlock()
	if e == nil || string(e.Key()) != string(key) {
		return nil
	}
	return e
}

// Put keeps an entry, in place of one with the same key, and evicts what is
// then over a cap. An Uncached entry is not kept, but takes the place of the
// one before: what upstream no longer says is no longer served.
func (c *Cache) Put(e *Entry) {
	e.hash = maphash.Bytes(c.seed, e.Key())
	at := int(e.hash % shards)
	s := &c.shards[at]
	pool := e.pool()
	s.mu.Lock()
	if old := s.m[e.hash]; old != nil {
		c.remove(s, old)
	}
	if e.Class() == Uncached || c.limits[pool].Load() <= 0 || e.cost() > c.maxBytes.Load() {
		s.mu.Unlock()
		return
	}
	s.m[e.hash] = e
	s.pools[pool].push(e)
	c.counts[pool].Add(1)
	c.bytes.Add(e.cost())
	s.mu.Unlock()
	c.shrink(at, pool, e)
}

// shrink evicts what is over the cap of a pool, but not keep, and then what is
// over the budget: stale entries first. Shards are tried from one on, so that the
// lists shrink evenly, and once each, so that the loops end whatever others put
// in meanwhile.
func (c *Cache) shrink(at, pool int, keep *Entry) {
	over := func() bool { return c.counts[pool].Load() > c.limits[pool].Load() }
	for i := 0; i < shards && over() && c.stale[pool].Load() > 0; {
		if s := &c.shards[(at+i)%shards]; !c.evict(s, &s.stale[pool], nil) {
			i++
		}
	}
	for i := 0; i < shards && over(); {
		if s := &c.shards[(at+i)%shards]; !c.evict(s, &s.pools[pool], keep) {
			i++
		}
	}
	over = func() bool { return c.bytes.Load() > c.maxBytes.Load() }
	for i := 0; i < shards*pools && over(); {
		pool := (pool + i) % pools
		if s := &c.shards[(at+i/pools)%shards]; c.stale[pool].Load() == 0 || !c.evict(s, &s.stale[pool], nil) {
			i++
		}
	}
	for i := 0; i < shards*pools && over(); {
		if s := &c.shards[(at+i/pools)%shards]; !c.evict(s, &s.pools[(pool+i)%pools], nil) {
			i++
		}
	}
}

func (e *Entry) pool() int {
	if e.Class() == Failure {
		return failurePool
	}
	return 2*int(e.Zone()) + int(e.Class())&1
}

// evict removes one entry of a list of s, other than keep: the oldest not asked
// for since the hand came by last (SIEVE, Zhang et al., NSDI 2024). It is false
// where there is none.
func (c *Cache) evict(s *shard, l *list, keep *Entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := l.victim(keep)
	if e == nil {
		return false
	}
	if !e.stale() {
		c.evicted.Add(1)
	}
	c.remove(s, e)
	return true
}

// remove takes e out of its shard, whose lock is held.
func (c *Cache) remove(s *shard, e *Entry) {
	delete(s.m, e.hash)
	pool := e.pool()
	if e.stale() {
		s.stale[pool].remove(e)
		c.stale[pool].Add(-1)
	} else {
		s.pools[pool].remove(e)
	}
	c.counts[pool].Add(-1)
	c.bytes.Add(-e.cost())
}

// Sweep removes the entries that are not to be kept any longer at now, says how
// many, and lets those that have expired give way before all others. It holds one
// shard's lock at a time.
func (c *Cache) Sweep(now time.Duration) int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for pool := range pools {
			keep := time.Duration(c.keep[pool].Load())
			for _, l := range [...]*list{&s.pools[pool], &s.stale[pool]} {
				for e := l.oldest; e != nil; {
					next := e.newer
					switch expired := e.Expired(now); {
					case expired >= keep:
						c.remove(s, e)
						n++
					case expired >= 0 && !e.stale():
						l.remove(e)
						e.marks.Or(markStale)
						s.stale[pool].push(e)
						c.stale[pool].Add(1)
					}
					e = next
				}
			}
		}
		s.mu.Unlock()
	}
	return n
}

// AppendEnding appends the answers that are fresh at from and not at to. It holds
// one shard's lock at a time, for reading.
func (c *Cache) AppendEnding(dst []*Entry, from, to time.Duration) []*Entry {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		for z := range Zones {
			for e := s.pools[2*z+int(Success)].oldest; e != nil; e = e.newer {
				if e.Fresh(from) && !e.Fresh(to) {
					dst = append(dst, e)
				}
			}
		}
		s.mu.RUnlock()
	}
	return dst
}

// Drop removes the entries of those keys for which gone is true. It holds one shard's
// lock at a time, gone's time included.
func (c *Cache) Drop(gone func(key []byte) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, e := range s.m {
			if gone(e.Key()) {
				c.remove(s, e)
			}
		}
		s.mu.Unlock()
	}
}

// Usage is how full a cache is.
type Usage struct {
	Success, Denial [Zones]int64 // entries by kind of zone
	Failures        int64
	Bytes, MaxBytes int64
	Evictions       uint64 // since New, of entries that were not known to have expired
}

// Usage returns how full the cache is. Its numbers are read one by one.
func (c *Cache) Usage() Usage {
	u := Usage{Bytes: c.bytes.Load(), MaxBytes: c.maxBytes.Load(), Evictions: c.evicted.Load(), Failures: c.counts[failurePool].Load()}
	for z := range Zones {
		u.Success[z] = c.counts[2*z].Load()
		u.Denial[z] = c.counts[2*z+1].Load()
	}
	return u
}

// A list is the eviction order of one pool in one shard, newest first, and
// SIEVE's hand.
type list struct {
	newest, oldest, hand *Entry
}

func (l *list) push(e *Entry) {
	e.older, e.newer = l.newest, nil
	if l.newest != nil {
		l.newest.newer = e
	} else {
		l.oldest = e
	}
	l.newest = e
}

func (l *list) remove(e *Entry) {
	if l.hand == e {
		l.hand = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		l.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		l.oldest = e.newer
	}
	e.newer, e.older = nil, nil
}

// victim walks the hand from the oldest towards the newest, forgiving each
// entry that was used, and returns the first that was not. It never returns
// keep, and nil only where nothing else is in the list.
func (l *list) victim(keep *Entry) *Entry {
	e := l.hand
	for range 2 {
		if e == nil {
			e = l.oldest
		}
		for ; e != nil; e = e.newer {
			if e != keep && e.marks.And(^markUsed)&markUsed == 0 {
				l.hand = e
				return e
			}
		}
	}
	// Every other one was used in the meantime, again and again.
	if e = l.oldest; e == keep && e != nil {
		e = e.newer
	}
	return e
}

package cache

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/wire"
)

const plenty = 1 << 30

// entry is the i-th entry of a class, with a body of so many bytes.
func entry(class Class, zone uint8, i, body int) *Entry {
	a := Admission{Class: class, TTL: time.Minute, body: make([]byte, body)}
	return NewEntry(testKey(i), a, zone, 0)
}

// testKey is the key of name i: of the length that names in a cluster have.
func testKey(i int) []byte {
	name, _ := wire.ParseName(fmt.Sprintf("service-%07d.namespace.svc.cluster.local", i))
	return append(name, 0, 1, 0)
}

func allZones(l Limit) [Zones]Limit { return [Zones]Limit{l, l, l} }

// checked compares the counters with what is there.
func checked(t *testing.T, c *Cache) Usage {
	t.Helper()
	var counts, stale [pools]int64
	var bytes int64
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		inLists := 0
		for p := range pools {
			for list, l := range []*list{&s.pools[p], &s.stale[p]} {
				for e := l.oldest; e != nil; e = e.newer {
					inLists++
					counts[p]++
					stale[p] += int64(list)
					bytes += e.cost()
					if s.m[e.hash] != e || e.pool() != p || e.stale() != (list == 1) {
						t.Fatalf("entry of pool %d, stale %v, in the list of pool %d, stale %v, or in no map", e.pool(), e.stale(), p, list == 1)
					}
				}
			}
		}
		if inLists != len(s.m) {
			t.Fatalf("shard %d: %d entries in lists, %d in the map", i, inLists, len(s.m))
		}
		s.mu.RUnlock()
	}
	u := c.Usage()
	if bytes != u.Bytes {
		t.Fatalf("%d bytes are there, %d are charged", bytes, u.Bytes)
	}
	for z := range Zones {
		if u.Success[z] != counts[2*z] || u.Denial[z] != counts[2*z+1] {
			t.Fatalf("counts %v, usage %+v", counts, u)
		}
	}
	for p := range pools {
		if n := c.stale[p].Load(); n != stale[p] {
			t.Fatalf("%d are stale in pool %d, %d are counted", stale[p], p, n)
		}
	}
	if u.Failures != counts[failurePool] {
		t.Fatalf("counts %v, usage %+v", counts, u)
	}
	return u
}

func TestEachKindOfEntryHasItsOwnCap(t *testing.T) {
	c := New([Zones]Limit{{100, 10}, {7, 1}, {33, 0}}, plenty)
	for i := range 1000 {
		for zone := range uint8(Zones) {
			c.Put(entry(Success, zone, 10*i+int(zone), 50))
			c.Put(entry(Denial, zone, 10*i+5+int(zone), 50))
		}
		c.Put(entry(Uncached, 0, 10*i+9, 50))
	}
	u := checked(t, c)
	if u.Success != [Zones]int64{100, 7, 33} || u.Denial != [Zones]int64{10, 1, 0} {
		t.Errorf("%+v", u)
	}
	if want := uint64(1000-100+1000-7+1000-33) + 1000 - 10 + 1000 - 1; u.Evictions != want {
		t.Errorf("%d evictions, want %d", u.Evictions, want)
	}
}

func TestFailuresDoNotPushOutAnswers(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	for i := range 100 {
		c.Put(entry(Success, 0, i, 50))
	}
	for i := range 2 * maxFailures {
		c.Put(NewFailure(testKey(1000+i), wire.ServFail, wire.EDENone, 0, 0))
	}
	if u := checked(t, c); u.Success[0] != 100 || u.Failures != maxFailures {
		t.Errorf("%+v", u)
	}
}

func TestTheLastOneInStays(t *testing.T) {
	c := New(allZones(Limit{1, 1}), plenty)
	for i := range 1000 {
		c.Put(entry(Success, 0, i, 50))
		if c.Get(testKey(i)) == nil {
			t.Fatalf("entry %d gave way to one before it", i)
		}
	}
}

func TestTheBudgetHolds(t *testing.T) {
	const budget = 1 << 20
	c := New(allZones(Limit{plenty, plenty}), budget)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		c.Put(entry(Class(i%2), uint8(i%3), i, r.IntN(2000)))
		if u := c.Usage(); u.Bytes > budget {
			t.Fatalf("%d bytes after %d entries", u.Bytes, i+1)
		}
	}
	if u := checked(t, c); u.Bytes < budget*9/10 {
		t.Errorf("only %d of %d bytes are used", u.Bytes, budget)
	}
	c.Put(entry(Success, 0, 1<<30, 60000))
	small := New(allZones(Limit{10, 10}), 1000)
	small.Put(entry(Success, 0, 1, 100))
	small.Put(entry(Success, 0, 2, 60000))
	if u := checked(t, small); u.Success[0] != 1 || small.Get(testKey(1)) == nil {
		t.Errorf("an entry larger than the budget: %+v", u)
	}
}

func TestNamesInUseStay(t *testing.T) {
	const limit, inUse = 1000, 500
	c := New(allZones(Limit{limit, limit}), plenty)
	for i := range limit {
		c.Put(entry(Success, 0, i, 50))
	}
	for i := range inUse {
		c.Get(testKey(i))
	}
	// A scan of names that nobody asks for twice, ten times the cache's size.
	missed := 0
	for i := range 10 * limit {
		for j := range 2 {
			k := (2*i + j) % inUse
			if c.Get(testKey(k)) == nil {
				missed++
				c.Put(entry(Success, 0, k, 50))
			}
		}
		c.Put(entry(Success, 0, limit+i, 50))
	}
	if asked := 2 * 10 * limit; missed > asked/100 {
		t.Errorf("%d of %d questions for names in use were misses", missed, asked)
	}
	checked(t, c)
}

func TestAReplacementIsOneEntry(t *testing.T) {
	c := New(allZones(Limit{10, 10}), plenty)
	c.Put(entry(Success, 0, 1, 50))
	c.Put(entry(Success, 0, 1, 500))
	if u := checked(t, c); u.Success[0] != 1 || u.Evictions != 0 || len(c.Get(testKey(1)).data) < 500 {
		t.Errorf("%+v", u)
	}
	c.Put(entry(Denial, 0, 1, 50))
	if u := checked(t, c); u.Success[0] != 0 || u.Denial[0] != 1 {
		t.Errorf("a denial in place of an answer: %+v", u)
	}
	c.Put(entry(Uncached, 0, 1, 50))
	if u := checked(t, c); u != (Usage{MaxBytes: plenty}) || c.Get(testKey(1)) != nil {
		t.Errorf("what upstream says no more is still there: %+v", u)
	}
}

func TestSweepTakesWhatExpired(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	for i := range 50 {
		c.Put(NewEntry(testKey(i), Admission{TTL: time.Duration(i+1) * time.Second}, 0, 0))
	}
	if n := c.Sweep(20 * time.Second); n != 20 {
		t.Errorf("%d swept, want 20", n)
	}
	if u := checked(t, c); u.Success[0] != 30 || u.Evictions != 0 {
		t.Errorf("%+v", u)
	}
	c.Drop(func([]byte) bool { return true })
	if u := checked(t, c); u.Success[0] != 0 || u.Bytes != 0 {
		t.Errorf("%+v", u)
	}
}

func allKept(d time.Duration) [Zones]Keep { return [Zones]Keep{{d, d}, {d, d}, {d, d}} }

func TestSweepLeavesWhatIsKeptBeyondItsExpiry(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	c.SetKeep([Zones]Keep{{time.Minute, 0}, {0, time.Hour}, {}})
	for zone := range uint8(Zones) {
		for i, class := range []Class{Success, Denial, Failure} {
			c.Put(NewEntry(testKey(10*int(zone)+i), Admission{Class: class, TTL: 10 * time.Second}, zone, 0))
		}
	}
	for _, tt := range []struct {
		now   time.Duration
		swept int
		want  Usage
	}{
		{10*time.Second - 1, 0, Usage{Success: [Zones]int64{1, 1, 1}, Denial: [Zones]int64{1, 1, 1}, Failures: 3}},
		{10 * time.Second, 7, Usage{Success: [Zones]int64{1, 0, 0}, Denial: [Zones]int64{0, 1, 0}}},
		{70*time.Second - 1, 0, Usage{Success: [Zones]int64{1, 0, 0}, Denial: [Zones]int64{0, 1, 0}}},
		{70 * time.Second, 1, Usage{Denial: [Zones]int64{0, 1, 0}}},
		{time.Hour + 10*time.Second, 1, Usage{}},
	} {
		if n := c.Sweep(tt.now); n != tt.swept {
			t.Errorf("%d swept at %v, want %d", n, tt.now, tt.swept)
		}
		u := checked(t, c)
		u.Bytes, u.MaxBytes = 0, 0
		if u != tt.want {
			t.Errorf("at %v: %+v, want %+v", tt.now, u, tt.want)
		}
	}
}

// aged is a cache with 100 answers that have expired, all of them asked for, and
// behind them, in the same pool, 100 fresh ones that nobody has asked for.
func aged(budget int64) *Cache {
	c := New(allZones(Limit{200, 200}), budget)
	c.SetKeep(allKept(time.Hour))
	for i := range 200 {
		ttl := 10 * time.Second
		if i >= 100 {
			ttl = time.Hour
		}
		c.Put(NewEntry(testKey(i), Admission{TTL: ttl}, 0, 0))
	}
	c.Sweep(time.Minute)
	for i := range 100 {
		c.Get(testKey(i))
	}
	return c
}

func left(c *Cache) (stale, fresh int) {
	for i := range 200 {
		switch had := c.Get(testKey(i)) != nil; {
		case had && i < 100:
			stale++
		case had:
			fresh++
		}
	}
	return stale, fresh
}

func TestWhatHasExpiredGivesWayFirst(t *testing.T) {
	c := aged(plenty)
	for i := range 100 {
		c.Put(NewEntry(testKey(1000+i), Admission{TTL: time.Hour}, 0, time.Minute))
		if u := c.Usage(); u.Evictions != 0 {
			t.Fatalf("%d evictions of what had not expired", u.Evictions)
		}
		if stale, fresh := left(c); stale != 99-i || fresh != 100 {
			t.Fatalf("%d expired and %d fresh ones are left after %d more", stale, fresh, i+1)
		}
	}
	checked(t, c)
	c.Put(NewEntry(testKey(2000), Admission{TTL: time.Hour}, 0, time.Minute))
	if u := checked(t, c); u.Success[0] != 200 {
		t.Errorf("%+v", u)
	}

	// Another pool's are in the way of the budget, too.
	c = aged(aged(plenty).Usage().Bytes)
	for i := range 50 {
		c.Put(NewEntry(testKey(1000+i), Admission{Class: Denial, TTL: time.Hour}, 2, time.Minute))
	}
	if stale, fresh := left(c); fresh != 100 || stale < 49 || stale > 51 {
		t.Errorf("%d expired and %d fresh ones are left", stale, fresh)
	}
	checked(t, c)
}

// Of those that have expired, those in use stay longest.
func TestWhatHasExpiredAndIsInUseStays(t *testing.T) {
	c := New(allZones(Limit{1000, 0}), plenty)
	c.SetKeep(allKept(time.Hour))
	for i := range 1000 {
		c.Put(NewEntry(testKey(i), Admission{TTL: time.Second}, 0, 0))
	}
	c.Sweep(time.Minute)
	for i := range 150 { // room is made in one shard: some five of its thirty
		for j := range 100 {
			c.Get(testKey(j))
		}
		c.Put(NewEntry(testKey(1000+i), Admission{TTL: time.Hour}, 0, time.Minute))
	}
	n := 0
	for j := range 100 {
		if c.Get(testKey(j)) != nil {
			n++
		}
	}
	if n != 100 {
		t.Errorf("%d of 100 that were in use are left", n)
	}
	checked(t, c)
}

func TestAReplyInPlaceOfOneThatHasExpiredIsFresh(t *testing.T) {
	c := New(allZones(Limit{10, 10}), plenty)
	c.SetKeep(allKept(time.Hour))
	c.Put(NewEntry(testKey(1), Admission{TTL: time.Second}, 0, 0))
	c.Sweep(time.Minute)
	c.Put(NewEntry(testKey(1), Admission{TTL: time.Second}, 0, time.Minute))
	if u := checked(t, c); u.Success[0] != 1 || u.Evictions != 0 || !c.Get(testKey(1)).Fresh(time.Minute) {
		t.Errorf("%+v", u)
	}
	c.Sweep(2 * time.Minute)
	c.Put(NewEntry(testKey(1), Admission{Class: Uncached}, 0, 2*time.Minute))
	if u := checked(t, c); u != (Usage{MaxBytes: plenty}) {
		t.Errorf("%+v", u)
	}
}

func TestAnswersThatAreAboutToExpireAreFound(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	for i := range 10 {
		c.Put(NewEntry(testKey(i), Admission{TTL: time.Duration(i+1) * time.Second}, uint8(i%Zones), 0))
		c.Put(NewEntry(testKey(10+i), Admission{Class: Denial, TTL: time.Duration(i+1) * time.Second}, 0, 0))
	}
	var got []string
	for _, e := range c.AppendEnding(nil, 4*time.Second, 6*time.Second) {
		got = append(got, fmt.Sprint(e.Expired(0)))
	}
	slices.Sort(got)
	if want := []string{"-5s", "-6s"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestAnEntryCountsItsHitsAsFarAsAnybodyCares(t *testing.T) {
	e := entry(Success, 0, 1, 0)
	var got []int
	for range 5 {
		got = append(got, e.Hit(3))
	}
	if want := []int{1, 2, 3, 3, 3}; !slices.Equal(got, want) || e.Hits() != 3 {
		t.Errorf("%v, then %d, want %v", got, e.Hits(), want)
	}
	if !e.Begin() || e.Begin() || e.Hits() != 3 {
		t.Error("a refresh is begun once, and is no hit")
	}
}

func TestAnEntryKnowsWhenItWasAskedFor(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{0: 0, tookUnit - 1: 0, time.Second: time.Second, 3 * time.Second: 3 * time.Second, time.Hour: (1<<16 - 1) * tookUnit} {
		if e := NewEntry(testKey(1), Admission{Took: took}, 0, time.Minute); e.Asked() != time.Minute-want {
			t.Errorf("%v: asked at %v", took, e.Asked())
		}
	}
}

func TestAnEntryIsOfItsKind(t *testing.T) {
	for _, class := range []Class{Success, Denial, Failure, Uncached} {
		for zone := range uint8(Zones) {
			for _, ad := range []bool{false, true} {
				e := NewEntry(testKey(1), Admission{Class: class, AD: ad, Source: 255, Took: tookUnit}, zone, 0)
				if e.Class() != class || e.Zone() != zone || e.AD() != ad || e.Source() != 255 || e.Took() != tookUnit {
					t.Errorf("%d, %d, %v: %d, %d, %v, %d, %v", class, zone, ad, e.Class(), e.Zone(), e.AD(), e.Source(), e.Took())
				}
			}
		}
	}
}

// Who only looks keeps nothing in the cache.
func TestALookIsNoUse(t *testing.T) {
	c := New(allZones(Limit{shards, 0}), plenty)
	c.Put(entry(Success, 0, 1, 0))
	e := c.Peek(testKey(1))
	if e == nil || e.marks.Load() != 0 || c.Peek(testKey(2)) != nil {
		t.Errorf("%v", e)
	}
	if c.Get(testKey(1)) != e || e.marks.Load() != markUsed {
		t.Errorf("%b after a use", e.marks.Load())
	}
}

// What an entry holds is shown whole and in order, and that changes no later reply.
func TestWhatAnEntryHoldsIsShownAsItIsStored(t *testing.T) {
	key, reply := replyText{question: "a. A", records: "answer a. 10 CNAME b.\nanswer b. 20 A 1.2.3.4\nanswer b. 20 A 1.2.3.5\nauthority b. 20 NS ns.b.\nadditional ns.b. 20 A 1.2.3.6"}.pack(t)
	a, err := Admit(key, reply, Caps{30, 30})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEntry(key, a, 0, time.Minute)
	shown := func(age time.Duration) string {
		m := new(dns.Msg)
		if err := m.Unpack(e.AppendStored([]byte("before"), time.Minute+age)[len("before"):]); err != nil {
			t.Fatal(err)
		}
		return m.String()
	}
	fresh := shown(0)
	for _, part := range []string{"NOERROR", ";a.\tIN\t A", "a.\t10\tIN\tCNAME\tb.\nb.\t20\tIN\tA\t1.2.3.4\nb.\t20\tIN\tA\t1.2.3.5\n", "b.\t20\tIN\tNS\tns.b.", "ns.b.\t20\tIN\tA\t1.2.3.6"} {
		if !strings.Contains(fresh, part) {
			t.Errorf("%q is not in\n%s", part, fresh)
		}
	}
	if again := shown(0); again != fresh || e.turn.Load() != 0 {
		t.Errorf("then\n%s", again)
	}
	for age, want := range map[time.Duration]string{15 * time.Second: "a.\t0\tIN\tCNAME\tb.\nb.\t5\tIN", time.Hour: "a.\t0\tIN\tCNAME\tb.\nb.\t0\tIN"} {
		if got := shown(age); !strings.Contains(got, want) {
			t.Errorf("after %v\n%s", age, got)
		}
	}
}

func TestTheEndOfALifeIsAShareOfIt(t *testing.T) {
	e := NewEntry(testKey(1), Admission{TTL: 20 * time.Second}, 0, time.Hour)
	for at, want := range map[time.Duration]bool{0: false, 18*time.Second - 1: false, 18 * time.Second: true, 19 * time.Second: true} {
		if got := e.Ending(time.Hour+at, 10); got != want {
			t.Errorf("after %v: %v, want %v", at, got, want)
		}
	}
}

func TestAnEntryKnowsWhenItsRefreshFailed(t *testing.T) {
	const stored = 90 * time.Second
	e := NewEntry(testKey(1), Admission{TTL: time.Second}, 0, stored)
	if _, _, ok := e.Failed(); ok {
		t.Error("none has")
	}
	if e.Fail(stored-1, true); e.failed.Load() != 0 {
		t.Error("what was asked before there was an entry is not its refresh")
	}
	for _, tt := range []struct {
		at, want time.Duration
		about    bool
	}{
		{0, 0, false},
		{0, 0, true},
		{1234*time.Millisecond + 567*time.Microsecond, 1234 * time.Millisecond, false},
		{14 * 24 * time.Hour, 14 * 24 * time.Hour, true},
		{100 * 24 * time.Hour, (1<<31 - 2) * time.Millisecond, true},
	} {
		e.Fail(stored+tt.at, tt.about)
		if at, about, ok := e.Failed(); at != stored+tt.want || about != tt.about || !ok {
			t.Errorf("%v, %v: %v, %v, %v", tt.at, tt.about, at-stored, about, ok)
		}
	}
}

func TestLowerCapsHoldAtOnce(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	for i := range 100 {
		c.Put(entry(Success, 0, i, 50))
		c.Put(entry(Denial, 1, 100+i, 50))
	}
	c.SetLimits([Zones]Limit{{10, 0}, {0, 0}, {0, 0}}, plenty)
	if u := checked(t, c); u.Success[0] != 10 || u.Denial[1] != 0 {
		t.Errorf("%+v", u)
	}
	c.SetLimits(allZones(Limit{100, 100}), c.Usage().Bytes/2)
	if u := checked(t, c); u.Success[0] != 5 {
		t.Errorf("%+v", u)
	}
}

// Keys are found by a hash. Another key with the same one is another key.
func TestTheHashIsNotTheKey(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	e := entry(Success, 0, 1, 50)
	c.Put(e)
	// The entry of name 2 under the hash of name 1.
	s := &c.shards[e.hash%shards]
	s.m[e.hash] = entry(Success, 0, 2, 50)
	if got := c.Get(testKey(1)); got != nil {
		t.Errorf("asked for %x, got %x", testKey(1), got.Key())
	}
}

func TestManyAtOnce(t *testing.T) {
	c := New(allZones(Limit{200, 50}), 200_000)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 0))
			var q wire.Query
			for i := range 3000 {
				k := r.IntN(1000)
				switch r.IntN(20) {
				case 0:
					c.Sweep(time.Duration(r.IntN(100)) * time.Second)
				case 1:
					if i%500 == 0 {
						c.Drop(func([]byte) bool { return true })
					}
				case 2:
					c.SetLimits(allZones(Limit{100 + r.IntN(100), r.IntN(50)}), 200_000)
				case 3:
					c.SetKeep(allKept(time.Duration(r.IntN(60)) * time.Second))
					c.AppendEnding(nil, 0, time.Hour)
				case 4, 5, 6, 7:
					c.Put(entry(Class(r.IntN(4)), uint8(r.IntN(Zones)), k, r.IntN(300)))
				default:
					if e := c.Get(testKey(k)); e != nil {
						q.Question = append(testKey(k)[:len(testKey(k))-3], 0, 1, 0, 1)
						e.AppendReply(nil, &q, 0, wire.MaxMessage)
						e.AppendStale(nil, &q, 30, wire.MaxMessage)
						e.Hit(3)
						e.Fail(time.Minute, e.Begin())
					}
				}
				c.Usage()
			}
		})
	}
	wg.Wait()
	c.SetLimits(allZones(Limit{200, 50}), 200_000)
	u := checked(t, c)
	for z := range Zones {
		if u.Success[z] > 200 || u.Denial[z] > 50 {
			t.Errorf("%+v", u)
		}
	}
	if u.Bytes > 200_000 {
		t.Errorf("%d bytes", u.Bytes)
	}
}

// What is charged for an entry is what it takes. The budget is the number that
// an administrator sets a memory limit by.
func TestBudgetIsHonest(t *testing.T) {
	if testing.Short() {
		t.Skip("measures the heap")
	}
	// An address in the cluster, a handful of them, a denial with its SOA, and
	// a large answer.
	// What the runtime may take for itself meanwhile: a thread has some kilobytes.
	const slack = 16 << 10
	for _, body := range []int{16, 80, 100, 1000} {
		for _, n := range []int{1000, 28000, 60000} {
			rounds := make([]int64, 3)
			if n > 1000 {
				rounds = rounds[:1] // what the runtime does meanwhile is lost in that
			}
			var charged int64
			for r := range rounds {
				before := heap()
				c := New(allZones(Limit{plenty, plenty}), plenty)
				for i := range n {
					a := Admission{TTL: time.Minute, body: make([]byte, body), ttls: make([]uint16, 1+body/16)}
					c.Put(NewEntry(testKey(i), a, 0, 0))
				}
				rounds[r], charged = heap()-before, c.Usage().Bytes
				runtime.KeepAlive(c)
			}
			slices.Sort(rounds)
			taken := rounds[len(rounds)/2]
			ratio := float64(taken) / float64(charged)
			t.Logf("%6d entries with %4d bytes of records: %5d bytes each, %5d charged, ratio %.2f", n, body, taken/int64(n), charged/int64(n), ratio)
			if taken > charged*105/100+slack || taken < charged*90/100-slack {
				t.Errorf("%d entries with %d bytes of records take %d bytes and are charged %d", n, body, taken, charged)
			}
		}
	}
}

func heap() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The TTLs of a reply are those that were stored less the whole seconds since.
func TestTTLsAgeByTheSecond(t *testing.T) {
	key, reply := replyText{question: "a. A", records: "answer a. 10 CNAME b.\nanswer b. 20 A 1.2.3.4"}.pack(t)
	a, err := Admit(key, reply, Caps{30, 30})
	if err != nil {
		t.Fatal(err)
	}
	const start = 5*time.Second + 300*time.Millisecond
	e := NewEntry(key, a, 0, start)
	q := wire.Query{Question: []byte{1, 'a', 0, 0, 1, 0, 1}}
	for _, tt := range []struct {
		age  time.Duration
		want [2]uint32
	}{
		{0, [2]uint32{10, 20}}, {999 * time.Millisecond, [2]uint32{10, 20}}, {time.Second, [2]uint32{9, 19}},
		{9*time.Second + 999*time.Millisecond, [2]uint32{1, 11}},
	} {
		r := e.AppendReply(nil, &q, start+tt.age, 512)
		first, _ := wire.NextRecord(r, wire.HeaderLen+len(q.Question))
		second, _ := wire.NextRecord(r, first.End)
		if got := [2]uint32{first.TTL, second.TTL}; got != tt.want || !e.Fresh(start+tt.age) {
			t.Errorf("after %v: %v, want %v", tt.age, got, tt.want)
		}
	}
	if e.Fresh(start + 10*time.Second) {
		t.Error("fresh when its TTL is over")
	}
}

// A reply that just fits is whole; one byte more and it is truncated.
func TestTheLimitIsExact(t *testing.T) {
	key, reply := replyText{question: "a. A", records: "answer a. 10 A 1.2.3.4"}.pack(t)
	a, err := Admit(key, reply, Caps{30, 30})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEntry(key, a, 0, 0)
	for _, edns := range []bool{false, true} {
		q := wire.Query{Question: []byte{1, 'a', 0, 0, 1, 0, 1}, HasOPT: edns}
		whole := len(e.AppendReply(nil, &q, 0, wire.MaxMessage))
		for _, before := range []int{0, 2} { // TCP's length in front does not count
			for limit, wantTC := range map[int]bool{whole: false, whole - 1: true} {
				r := e.AppendReply(make([]byte, before), &q, 0, limit)[before:]
				if tc := wire.Flags(r)&wire.FlagTC != 0; tc != wantTC || len(r) > limit {
					t.Errorf("limit %d of %d: truncated %v, %d bytes", limit, whole, tc, len(r))
				}
				if an := binary.BigEndian.Uint16(r[6:]); (an == 0) != wantTC {
					t.Errorf("truncated %v, with %d answers", wantTC, an)
				}
			}
		}
	}
}

// All TTLs of a stale reply are the same, and clients with EDNS are told why.
func TestAStaleReplyHasOneTTL(t *testing.T) {
	for _, tt := range []struct {
		reply replyText
		ede   uint16
	}{
		{replyText{question: "a. A", records: "answer a. 10 CNAME b.\nanswer b. 20 A 1.2.3.4"}, 3},
		{replyText{question: "a. A", records: "authority . 20 " + soa + "20"}, 3},
		{replyText{question: "a. A", rcode: dns.RcodeNameError, records: "authority . 20 " + soa + "20"}, 19},
	} {
		key, reply := tt.reply.pack(t)
		a, err := Admit(key, reply, Caps{30, 30})
		if err != nil {
			t.Fatal(err)
		}
		e := NewEntry(key, a, 0, 0)
		q := wire.Query{Question: []byte{1, 'a', 0, 0, 1, 0, 1}, HasOPT: true}
		whole := e.AppendStale(nil, &q, 7, 512)
		m := new(dns.Msg)
		if err := m.Unpack(whole); err != nil {
			t.Fatal(err)
		}
		for _, rr := range append(m.Answer, m.Ns...) {
			if rr.Header().Ttl != 7 {
				t.Errorf("%v", rr)
			}
		}
		if o := m.IsEdns0().Option; len(o) != 1 || o[0].(*dns.EDNS0_EDE).InfoCode != tt.ede {
			t.Errorf("%v", m)
		}
		if cut := e.AppendStale(nil, &q, 7, len(whole)-1); wire.Flags(cut)&wire.FlagTC == 0 || len(cut) >= len(whole) {
			t.Errorf("%d bytes in %d", len(cut), len(whole)-1)
		}
	}
}

// A truncated reply has as many answer records as fit: each is whole, as old
// as in a whole reply, and no reply could have had one more.
func TestATruncatedReplyHasWhatFits(t *testing.T) {
	records := "answer a. 30 CNAME b.example.\n"
	for i := range 40 {
		records += fmt.Sprintf("answer b.example. 20 A 10.0.0.%d\n", i)
	}
	key, reply := replyText{question: "a. A", records: records + "authority example. 30 NS ns.example."}.pack(t)
	a, err := Admit(key, reply, Caps{30, 30})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEntry(key, a, 0, 0)
	q := wire.Query{Question: []byte{1, 'a', 0, 0, 1, 0, 1}, HasOPT: true}
	parse := func(r []byte) *dns.Msg {
		m := new(dns.Msg)
		if err := m.Unpack(r); err != nil {
			t.Fatal(err)
		}
		return m
	}
	const age = 5 * time.Second
	whole := e.AppendReply(nil, &q, age, wire.MaxMessage)
	seen := map[string]bool{}
	for limit := len(whole) - 1; limit > 100; limit-- {
		r := e.AppendReply(nil, &q, age, limit)
		m := parse(r)
		last := 16 // an address behind a compressed name
		if len(m.Answer) == 41 {
			last = len(whole) // only the authority did not fit
		}
		if !m.Truncated || len(r) > limit || len(r)+last <= limit || len(m.Ns) > 0 || m.IsEdns0() == nil {
			t.Fatalf("limit %d: %d bytes\n%v", limit, len(r), m)
		}
		for i, rr := range m.Answer {
			want := uint32(15)
			if i == 0 {
				want = 25
			}
			if _, ok := rr.(*dns.CNAME); ok != (i == 0) || rr.Header().Ttl != want {
				t.Fatalf("limit %d: record %d is %v", limit, i, rr)
			}
			if a, ok := rr.(*dns.A); ok && i == 1 {
				seen[a.A.String()] = true
			}
		}
	}
	if len(seen) != 40 {
		t.Errorf("%d of 40 addresses came first", len(seen))
	}
}

// What the regular looks at all entries cost, none of which has anything to be done.
func BenchmarkLook(b *testing.B) {
	const entries = 3 * 9984 // as many answers as the default caps let in
	c := New(allZones(Limit{9984, 9984}), plenty)
	for i := range entries {
		c.Put(entry(Success, uint8(i%Zones), i, 60))
	}
	b.Run("sweep", func(b *testing.B) {
		for b.Loop() {
			c.Sweep(0)
		}
	})
	b.Run("ending", func(b *testing.B) {
		for b.Loop() {
			c.AppendEnding(nil, 0, time.Second)
		}
	})
}

// What a hit costs the cache: to find the entry among 10,000, and to make the reply.
func BenchmarkHit(b *testing.B) {
	const entries = 10_000
	c := New(allZones(Limit{2 * entries, 2 * entries}), plenty) // shards are not equally full
	for i := range entries {
		c.Put(entry(Success, 0, i, 60))
	}
	b.Run("get", func(b *testing.B) {
		var keys [entries][]byte
		for i := range entries {
			keys[i] = testKey(i)
		}
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			i++
			if c.Get(keys[i%entries]) == nil {
				b.Fatal("a miss")
			}
		}
	})
	b.Run("reply", func(b *testing.B) {
		key, reply := replyText{question: "web.ns.svc.cluster.local. A",
			records: "answer web.ns.svc.cluster.local. 30 A 10.0.0.1\nanswer web.ns.svc.cluster.local. 30 A 10.0.0.2"}.pack(b)
		a, err := Admit(key, reply, Caps{30, 5})
		if err != nil {
			b.Fatal(err)
		}
		e := NewEntry(key, a, 0, 0)
		name, _ := wire.SplitKey(key)
		q := wire.Query{Flags: wire.FlagRD, Type: wire.KeyType(key), Question: append(slices.Clone(name), 0, 1, 0, 1)}
		out := make([]byte, 0, wire.MaxUDP)
		b.ReportAllocs()
		for b.Loop() {
			_ = e.AppendReply(out, &q, time.Second, wire.MaxUDP)
		}
	})
}

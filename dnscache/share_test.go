package dnscache

import (
	"net/netip"
	"testing"
	"time"
)

// A crowd is clients, each of which asks for so many new names a second.
type crowd map[netip.Addr]int

// A counter is a resolver whose CPU is slow enough to be overloaded: a name that
// is asked upstream takes it 40 µs, one that is refused 8.
type counter struct {
	*shares
	now   time.Duration
	queue []netip.Addr
	line  line

	admitted, refused map[netip.Addr]int
	longest           time.Duration // that somebody waited
}

func newCounter() *counter {
	return &counter{shares: newShares(), now: time.Hour, admitted: map[netip.Addr]int{}, refused: map[netip.Addr]int{}}
}

// work has the clients ask for so long, in steps of a millisecond.
func (c *counter) work(clients crowd, d time.Duration) {
	c.longest = 0
	clear(c.admitted)
	clear(c.refused)
	var busy time.Duration // until when the CPU is
	for end := c.now + d; c.now < end; c.now += time.Millisecond {
		ms := int(c.now / time.Millisecond)
		for a, rate := range clients {
			for range (ms+1)*rate/1000 - ms*rate/1000 {
				c.queue = append(c.queue, a)
			}
		}
		for busy = max(busy, c.now); len(c.queue) > 0 && busy < c.now+time.Millisecond; c.queue = c.queue[1:] {
			c.line.look(c.shares, busy, func() int { return 768 * len(c.queue) })
			if a := c.queue[0]; c.admit(a, busy) {
				c.admitted[a]++
				busy += 40 * time.Microsecond
			} else {
				c.refused[a]++
				busy += 8 * time.Microsecond
			}
		}
		c.longest = max(c.longest, time.Duration(len(c.queue))*8*time.Microsecond)
	}
}

func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}) }

func TestOneWhoFloodsIsRefusedAndNobodyElse(t *testing.T) {
	c := newCounter()
	flooder := address(1)
	clients := crowd{}
	for i := range 10 {
		clients[address(2+i)] = 80
	}
	apart(t, c.shares, clients, flooder)
	c.work(clients, 5*time.Second)
	if len(c.refused) > 0 || c.limit.Load() != 0 {
		t.Fatalf("there is no flood, and refused are %v, the limit is %d", c.refused, c.limit.Load())
	}
	clients[flooder] = 50000
	c.work(clients, 500*time.Millisecond) // it takes a moment to be sure
	c.work(clients, 20*time.Second)
	refused, got := c.refused[flooder], c.admitted[flooder]
	delete(c.refused, flooder)
	if len(c.refused) > 0 {
		t.Errorf("refused, beside the flood: %v", c.refused)
	}
	if c.longest > 50*time.Millisecond {
		t.Errorf("somebody waited for %s", c.longest)
	}
	// The CPU has time for 25,000 in a second, and refuses 50,000 in 0.4 s.
	if got < 20*4000 || refused == 0 {
		t.Errorf("of the flood %d were admitted and %d refused: something is left over", got, refused)
	}
	delete(clients, flooder)
	c.work(clients, 1500*time.Millisecond)
	if len(c.refused) > 0 || c.limit.Load() != 0 {
		t.Errorf("a second after the flood refused are %v, and the limit is %d", c.refused, c.limit.Load())
	}
}

func TestWhatThereIsIsSharedEvenly(t *testing.T) {
	c := newCounter()
	clients := crowd{}
	for i := range 5 {
		clients[address(1+i)] = 10000 * (1 + i) // 150,000 together
	}
	modest := address(100)
	apart(t, c.shares, clients, modest)
	clients[modest] = 90
	c.work(clients, time.Second)
	c.work(clients, 20*time.Second)
	if c.refused[modest] > 0 {
		t.Errorf("%d of one that asks for little were refused", c.refused[modest])
	}
	least, most := 1<<30, 0
	for a := range clients {
		if a != modest {
			least, most = min(least, c.admitted[a]), max(most, c.admitted[a])
		}
	}
	if most > least*11/10 {
		t.Errorf("admitted were %v: the most is more than a tenth above the least", c.admitted)
	}
}

func TestABurstIsNoFlood(t *testing.T) {
	c := newCounter()
	for i := range 400 { // 16 ms of work
		c.queue = append(c.queue, address(i%2))
	}
	c.work(crowd{}, time.Second)
	if len(c.refused) > 0 {
		t.Errorf("refused are %v", c.refused)
	}
}

// A machine that stands still for a moment, as one whose CPUs others use, has a long
// line afterwards, and nobody has asked for too much.
func TestAMomentInWhichNothingIsReadIsSoonOver(t *testing.T) {
	c := newCounter()
	clients := crowd{address(1): 5000}
	c.work(clients, time.Second)
	for range 2000 {
		c.queue = append(c.queue, address(1))
	}
	c.work(clients, 3*time.Second)
	if n := c.refused[address(1)]; n > 3*5000/2 {
		t.Errorf("%d of %d were refused afterwards", n, 3*5000+2000)
	}
}

// When the flood is over, and with it all queries over UDP.
func TestALimitEndsWithoutPackets(t *testing.T) {
	s := newShares()
	apart(t, s, crowd{address(1): 0, address(2): 0})
	now := time.Hour
	flood := func() {
		for range 5 {
			for range leastFlood {
				s.admit(address(2), now)
			}
			s.tick(now, true)
			now += window
		}
	}
	flood()
	refused := 0
	for range 200 { // over TCP, 90 a second
		now += time.Second / 90
		s.tick(now, false)
		if !s.admit(address(1), now) {
			refused++
		}
	}
	if refused > 0 || s.limit.Load() != 0 {
		t.Errorf("%d were refused, and the limit is %d", refused, s.limit.Load())
	}
	// Nobody has asked for a second, and then somebody for as much as he may at once.
	flood()
	for range burstShares * leastShare {
		s.admit(address(1), now)
	}
	if s.admit(address(1), now) {
		t.Error("there is no limit")
	}
	now += time.Second
	s.met.Store(int64(now)) // by somebody else
	s.tick(now, false)
	for range burstShares * leastShare {
		if !s.admit(address(1), now) {
			t.Fatal("refused a second later")
		}
	}
	// When nothing has come for a second, the first may ask for as much as ever.
	flood()
	now += forgetAfter + window
	s.tick(now, false)
	if n := s.limit.Load(); n != 0 {
		t.Errorf("the limit is %d after a pause", n)
	}
}

// Hits alone may be too many. Those few who ask for something else are not why.
func TestALineOfHitsIsNoFlood(t *testing.T) {
	s := newShares()
	now := time.Hour
	for range 500 {
		for range leastFlood - 1 {
			if !s.admit(address(1), now) {
				t.Fatal("a name was refused")
			}
		}
		s.tick(now, true)
		now += window
	}
}

// apart has s count each client on its own.
func apart(t *testing.T, s *shares, clients crowd, more ...netip.Addr) {
	t.Helper()
	for try := 0; ; try++ {
		s.seed = newShares().seed
		seen := map[int]bool{}
		for a := range clients {
			seen[s.slot(a)] = true
		}
		for _, a := range more {
			seen[s.slot(a)] = true
		}
		if len(seen) == len(clients)+len(more) {
			return
		}
		if try == 1000 {
			t.Fatal("no seed tells the clients apart")
		}
	}
}

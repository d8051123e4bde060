package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/wire"
)

var here = Origin{1, 2, 3}

// known are replies of every shape that an entry can have.
var known = []replyText{
	{question: "web.example. A", records: "answer web.example. 20 A 1.2.3.4\nanswer web.example. 20 A 1.2.3.5\nanswer web.example. 20 A 1.2.3.6"},
	{question: "www.example. A", records: "answer www.example. 9 CNAME web.example.\nanswer web.example. 20 A 1.2.3.4"},
	{question: "_x._tcp.example. SRV", records: "answer _x._tcp.example. 20 SRV 0 0 53 web.example.\nadditional web.example. 20 A 1.2.3.5\nadditional web.example. 20 AAAA ::1"},
	{question: "none.example. A", rcode: dns.RcodeNameError, records: "authority example. 9 " + soa + "9"},
	{question: "web.example. TXT", records: "authority example. 25 " + soa + "25"},
	{question: "signed.example. A", records: "answer signed.example. 30 A 1.2.3.4", flags: func(m *dns.Msg) { m.AuthenticatedData = true }},
	{question: ". NS", records: "answer . 30 NS a.\nadditional a. 30 A 1.2.3.4"},
}

// filled is a cache with known replies, and failures, stored at a time.
func filled(t testing.TB, now time.Duration) *Cache {
	t.Helper()
	c := New(allZones(Limit{100, 100}), plenty)
	for i, r := range known {
		key, reply := r.pack(t)
		a, err := Admit(key, reply, Caps{30, 30})
		if err != nil {
			t.Fatal(err)
		}
		c.Put(NewEntry(key, a, uint8(i%Zones), now))
	}
	c.Put(NewFailure(testKey(1), wire.ServFail, 23, 0, now))
	return c
}

// replies are what a cache answers to questions for known names, in words, the
// first rotation of each.
func replies(t testing.TB, c *Cache, now time.Duration) string {
	t.Helper()
	var out strings.Builder
	for _, r := range known {
		key, _ := r.pack(t)
		e := c.Get(key)
		if e == nil || !e.Fresh(now) {
			fmt.Fprintf(&out, "%s: nothing\n", r.question)
			continue
		}
		pkt := wire.AppendUpstreamQuery(nil, 7, key, true)
		var q wire.Query
		if wire.ParseQuery(pkt, &q) != wire.Answer {
			t.Fatalf("%x is no query", pkt)
		}
		m := new(dns.Msg)
		if err := m.Unpack(e.AppendReply(nil, &q, now, wire.MaxMessage)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s: zone %d, class %d\n%s\n", r.question, e.Zone(), e.Class(), m)
	}
	return out.String()
}

func snapshot(t testing.TB, c *Cache, now, at time.Duration) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := c.Snapshot(&b, here, now, at); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestARestoredCacheAnswersAsIfItHadNeverStopped(t *testing.T) {
	const stored, stopped, down = 100 * time.Second, 103 * time.Second, 4 * time.Second
	c := filled(t, stored)
	var text bytes.Buffer
	if n, err := c.Snapshot(&text, here, stopped, 5000*time.Second); n != len(known) || err != nil {
		t.Fatalf("%d of %d written, %v", n, len(known), err)
	}

	next := New(allZones(Limit{100, 100}), plenty)
	n, err := next.Restore(&text, here, time.Second, 5000*time.Second+down)
	if n != len(known) || err != nil {
		t.Fatalf("%d of %d restored, %v", n, len(known), err)
	}
	checked(t, next)
	for later := range 40 {
		later := time.Duration(later) * time.Second
		want := replies(t, c, stopped+down+later)
		if got := replies(t, next, time.Second+later); got != want {
			t.Fatalf("%v after the start:\n%s\nwant\n%s", later, got, want)
		}
	}
}

func TestWhatExpiredWhileNobodyServedIsNotRestored(t *testing.T) {
	text := snapshot(t, filled(t, 0), 0, time.Hour)
	for _, test := range []struct {
		down time.Duration
		want int
	}{
		{0, 7}, {9*time.Second - 1, 7}, {9 * time.Second, 5}, {20 * time.Second, 3}, {25 * time.Second, 2}, {30 * time.Second, 0}, {time.Hour, 0},
	} {
		c := New(allZones(Limit{100, 100}), plenty)
		if n, err := c.Restore(bytes.NewReader(text), here, 0, time.Hour+test.down); n != test.want || err != nil {
			t.Errorf("after %v: %d restored, %v; want %d", test.down, n, err, test.want)
		}
	}
}

func TestASnapshotHasWhatIsKeptBeyondItsExpiry(t *testing.T) {
	c := filled(t, 0) // TTLs from 9 to 30 s; two denials, the one of 9 s in zone 0
	c.SetKeep([Zones]Keep{{time.Minute, time.Minute}, {time.Minute, 0}, {time.Minute, 0}})
	c.Sweep(35 * time.Second)
	signed, _ := known[5].pack(t)
	c.Get(signed).Fail(34*time.Second, true)
	var text bytes.Buffer
	if n, err := c.Snapshot(&text, here, 40*time.Second, time.Hour); n != 6 || err != nil {
		t.Fatalf("%d written, %v", n, err)
	}
	for _, test := range []struct {
		keep time.Duration
		down time.Duration
		want int
	}{
		{time.Minute, 0, 6}, {time.Minute, 29*time.Second - 1, 6}, {time.Minute, 29 * time.Second, 4},
		{time.Minute, time.Hour, 0}, {0, 0, 0}, {25 * time.Second, 0, 4},
	} {
		next := New(allZones(Limit{100, 100}), plenty)
		next.SetKeep(allKept(test.keep))
		if n, err := next.Restore(bytes.NewReader(text.Bytes()), here, time.Second, time.Hour+test.down); n != test.want || err != nil {
			t.Errorf("after %v, kept for %v: %d restored, %v; want %d", test.down, test.keep, n, err, test.want)
		}
		checked(t, next)
		e := next.Get(signed)
		if e == nil {
			continue
		}
		if got, want := e.Expired(time.Second), 10*time.Second+test.down; got != want {
			t.Errorf("after %v: expired for %v, want %v", test.down, got, want)
		}
		if _, _, failed := e.Failed(); failed {
			t.Error("it is known whose refresh has failed, but not who has been answered since")
		}
	}
}

func TestWhatIsFreshIsRestoredWhereThereIsNotRoomForAll(t *testing.T) {
	text := snapshot(t, aged(plenty), time.Minute, 0)
	next := New(allZones(Limit{110, 0}), plenty)
	next.SetKeep(allKept(time.Hour))
	if _, err := next.Restore(bytes.NewReader(text), here, 0, 0); err != nil {
		t.Fatal(err)
	}
	checked(t, next)
	if stale, fresh := left(next); stale != 10 || fresh != 100 {
		t.Errorf("%d expired and %d fresh ones are left", stale, fresh)
	}
}

func TestASnapshotKeepsHowOftenNobodyAsked(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	c.Put(NewEntry(testKey(1), Admission{TTL: time.Minute, Unasked: 3}, 0, 0))
	next := New(allZones(Limit{100, 100}), plenty)
	if _, err := next.Restore(bytes.NewReader(snapshot(t, c, 0, 0)), here, 0, 0); err != nil {
		t.Fatal(err)
	}
	if n := next.Get(testKey(1)).Unasked(); n != 3 {
		t.Errorf("%d, want 3", n)
	}
}

// Its numbers are those of the process that has ended.
func TestASnapshotDoesNotSayWhoHasReplied(t *testing.T) {
	c := New(allZones(Limit{100, 100}), plenty)
	c.Put(NewEntry(testKey(1), Admission{TTL: time.Minute, Source: 3, Took: time.Second}, 0, time.Hour))
	next := New(allZones(Limit{100, 100}), plenty)
	if _, err := next.Restore(bytes.NewReader(snapshot(t, c, time.Hour, 0)), here, 0, time.Second); err != nil {
		t.Fatal(err)
	}
	if e := next.Get(testKey(1)); e.Source() != 0 || e.Took() != 0 || e.Stored() != -time.Second {
		t.Errorf("%d took %v, stored at %v", e.Source(), e.Took(), e.Stored())
	}
}

func TestNoDamagedSnapshotIsTaken(t *testing.T) {
	whole := snapshot(t, filled(t, 0), time.Second, time.Hour)
	refused := func(what string, text []byte, from Origin, at time.Duration, want error) {
		t.Helper()
		c := New(allZones(Limit{100, 100}), plenty)
		n, err := c.Restore(bytes.NewReader(text), from, 0, at)
		if n != 0 || want == nil && err == nil || !errors.Is(err, want) && want != nil {
			t.Errorf("%s: %d restored, %v; want %v", what, n, err, want)
		}
		if u := c.Usage(); u.Bytes != 0 {
			t.Errorf("%s: left %+v", what, u)
		}
	}
	for n := range len(whole) {
		refused(fmt.Sprintf("cut to %d bytes", n), whole[:n], here, time.Hour, nil)
	}
	for i := range whole {
		for _, bit := range []byte{1, 0x80} {
			text := bytes.Clone(whole)
			text[i] ^= bit
			refused(fmt.Sprintf("byte %d flipped", i), text, here, time.Hour, nil)
		}
	}
	refused("longer", append(bytes.Clone(whole), 0), here, time.Hour, ErrDamaged)
	refused("nothing", nil, here, time.Hour, ErrCutShort)
	other := bytes.Clone(whole)
	other[len(snapshotMagic)-1]++
	refused("another version", other, here, time.Hour, ErrOtherVersion)
	refused("others'", whole, Origin{9}, time.Hour, ErrOtherOrigin)
	refused("from the future", whole, here, time.Hour-1, ErrOtherOrigin)
}

func TestASnapshotIsBoundedByTheCacheThatTakesIt(t *testing.T) {
	c := New(allZones(Limit{10000, 100}), plenty)
	for i := range 5000 {
		c.Put(entry(Success, 0, i, 0))
	}
	text := snapshot(t, c, 0, 0)
	if u := c.Usage(); int64(len(text)) > u.Bytes+int64(snapshotHeader+sha256.Size) {
		t.Fatalf("%d bytes for %+v", len(text), u)
	}
	small := New(allZones(Limit{10000, 100}), c.Usage().Bytes/10)
	if _, err := small.Restore(bytes.NewReader(text), here, 0, 0); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	fewer := New(allZones(Limit{1000, 100}), plenty)
	if _, err := fewer.Restore(bytes.NewReader(text), here, 0, 0); err != nil {
		t.Fatal(err)
	}
	if u := checked(t, fewer); u.Success[0] != 1000 {
		t.Fatalf("%+v", u)
	}
}

func TestASnapshotKeepsTheOrderOfEviction(t *testing.T) {
	c := New(allZones(Limit{1000, 0}), plenty)
	for i := range 1000 {
		a := Admission{Class: Success, TTL: time.Hour, body: make([]byte, 0)}
		c.Put(NewEntry(testKey(i), a, 0, time.Duration(i)*time.Second))
	}
	text := snapshot(t, c, 1000*time.Second, 0)
	next := New(allZones(Limit{500, 0}), plenty)
	if _, err := next.Restore(bytes.NewReader(text), here, 1000*time.Second, 0); err != nil {
		t.Fatal(err)
	}
	var kept []int
	for i := range 1000 {
		if next.Get(testKey(i)) != nil {
			kept = append(kept, i)
		}
	}
	// Shards evict each on their own, so the oldest half is gone but for some.
	if newer := len(kept) - slices.IndexFunc(kept, func(i int) bool { return i >= 500 }); newer < 400 {
		t.Fatalf("%d of the %d that were kept are of the newer half", newer, len(kept))
	}
}

func TestASnapshotMayBeTakenWhileTheCacheIsUsed(t *testing.T) {
	c := filled(t, 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 5000 {
			c.Put(entry(Success, 0, i%300, 0))
			c.Get(testKey(i % 300))
		}
	}()
	for range 50 {
		text := snapshot(t, c, 0, 0)
		next := New(allZones(Limit{1000, 100}), plenty)
		if _, err := next.Restore(bytes.NewReader(text), here, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	<-done
}

func TestAWriterThatFailsIsAnError(t *testing.T) {
	c := filled(t, 0)
	size := len(snapshot(t, c, 0, 0))
	for room := range size {
		if _, err := c.Snapshot(&full{room}, here, 0, 0); err == nil {
			t.Fatalf("%d bytes of %d were enough", room, size)
		}
	}
}

// full takes so many bytes.
type full struct{ room int }

func (f *full) Write(b []byte) (int, error) {
	if f.room -= len(b); f.room < 0 {
		return 0, errors.New("no space left")
	}
	return len(b), nil
}

// A snapshot that was made by somebody else with a right checksum breaks
// nothing either.
func FuzzRestore(f *testing.F) {
	whole := snapshot(f, filled(f, 0), time.Second, time.Hour)
	f.Add(whole[snapshotHeader : len(whole)-sha256.Size])
	f.Fuzz(func(t *testing.T, entries []byte) {
		for n := range uint32(9) {
			text := append(bytes.Clone(whole[:snapshotHeader-4]), 0, 0, 0, byte(n))
			text = append(text, entries...)
			sum := sha256.Sum256(text)
			c := New(allZones(Limit{100, 100}), plenty)
			if _, err := c.Restore(bytes.NewReader(append(text, sum[:]...)), here, 0, time.Hour); err != nil {
				continue
			}
			for i := range c.shards {
				for _, e := range c.shards[i].m {
					q := wire.Query{Question: append(bytes.Clone(e.Key()[:e.keyLen-3]), 0, 1, 0, 1), HasOPT: true}
					for _, size := range []int{512, 1232, wire.MaxMessage} {
						for range 3 {
							if reply := e.AppendReply(nil, &q, 5*time.Second, size); len(reply) > size && size > wire.HeaderLen+len(q.Question)+wire.OPTLen(e.ede) {
								t.Fatalf("%d bytes in %d", len(reply), size)
							}
							if reply := e.AppendStale(nil, &q, 30, size); len(reply) > size && size > wire.HeaderLen+len(q.Question)+wire.OPTLen(wire.EDEStale) {
								t.Fatalf("%d bytes in %d, stale", len(reply), size)
							}
						}
					}
				}
			}
		}
	})
}

// What a restart costs beside its process: 30,000 replies are as many as the
// default caps let in of answers.
func BenchmarkSnapshot(b *testing.B) {
	c := New(allZones(Limit{9984, 9984}), plenty)
	for i := range 3 * 9984 {
		c.Put(entry(Success, uint8(i%Zones), i, 60))
	}
	var text []byte
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			text = snapshot(b, c, 0, 0)
		}
		b.ReportMetric(float64(len(text)), "bytes")
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if _, err := New(allZones(Limit{9984, 9984}), plenty).Restore(bytes.NewReader(text), here, 0, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The cache is used while a snapshot is taken: something may be younger than that.
func TestASnapshotMayHoldWhatCameMeanwhile(t *testing.T) {
	c := filled(t, 2*time.Second)
	var b bytes.Buffer
	n, err := c.Snapshot(&b, Origin{}, time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	next := New(allZones(Limit{100, 100}), plenty)
	if got, err := next.Restore(&b, Origin{}, time.Second, 0); err != nil || got != n {
		t.Errorf("restored are %d of %d, %v", got, n, err)
	}
}

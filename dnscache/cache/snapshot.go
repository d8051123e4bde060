package cache

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"nodelocaldns/dnscache/wire"
)

// A snapshot is a header, the entries, and a SHA-256 of all that:
//
//	magic    8 bytes, the last of them the version of this format
//	origin  32 bytes, whose replies these are
//	taken    8 bytes, nanoseconds on the clock that outlives the process
//	count    4 bytes, how many entries follow, oldest first
//
// Integers are big endian. It is no file format for others: only the next
// process of this node reads it.
const (
	snapshotMagic  = "nldns\x00\x00\x03"
	snapshotHeader = len(snapshotMagic) + sha256.Size + 8 + 4
	// entryHeader is the part of an entry before its data: age in nanoseconds,
	// life in seconds, the lengths of data, key and body, three counts, three of
	// the rotation, flags, response code, class, zone, refreshes that nobody asked
	// for. That a refresh has failed is not in it: the next process knows nothing
	// of who has been answered since. Nor is the source, which is a number of the
	// process that wrote it.
	entryHeader = 8 + 4 + 4 + 2 + 2 + 6*2 + 5
)

// snapshotUsed is a flag of an entry in a snapshot, beside those of its kind.
const snapshotUsed = 1 << 7

// What makes a snapshot useless.
var (
	ErrCutShort     = errors.New("it is cut short")
	ErrTooLarge     = errors.New("it is larger than the cache")
	ErrDamaged      = errors.New("it is damaged")
	ErrOtherVersion = errors.New("it is of another version")
	ErrOtherOrigin  = errors.New("it holds the replies of other servers, or is from the future")
)

// An Origin says whose replies a snapshot holds: one of another origin is not
// taken back.
type Origin [sha256.Size]byte

// Snapshot writes the replies that are fresh at now or kept beyond that, and says
// how many. Failures are left out: they live for a second. at is the time on a clock that
// goes on while no process runs, and never backwards: CLOCK_BOOTTIME. The cache
// may be used meanwhile.
func (c *Cache) Snapshot(w io.Writer, from Origin, now, at time.Duration) (int, error) {
	var all []*Entry
	for pool := range failurePool {
		for i := range c.shards {
			s := &c.shards[i]
			s.mu.RLock()
			for _, l := range [...]*list{&s.pools[pool], &s.stale[pool]} {
				for e := l.oldest; e != nil; e = e.newer {
					if c.kept(e, now) {
						all = append(all, e)
					}
				}
			}
			s.mu.RUnlock()
		}
	}
	slices.SortStableFunc(all, func(a, b *Entry) int { return cmp.Compare(a.stored, b.stored) })
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	head := append([]byte(snapshotMagic), from[:]...)
	head = binary.BigEndian.AppendUint64(head, uint64(at))
	head = binary.BigEndian.AppendUint32(head, uint32(len(all)))
	_, _ = out.Write(head) // an error stays until Flush
	b := make([]byte, 0, entryHeader)
	for _, e := range all {
		_, _ = out.Write(e.appendHeader(b, now))
		_, _ = out.Write(e.data)
	}
	if err := out.Flush(); err != nil {
		return 0, err
	}
	if _, err := w.Write(sum.Sum(nil)); err != nil {
		return 0, err
	}
	return len(all), nil
}

// kept says whether an entry is fresh at now, or to be kept all the same.
func (c *Cache) kept(e *Entry, now time.Duration) bool {
	return e.Expired(now) < time.Duration(c.keep[e.pool()].Load())
}

func (e *Entry) appendHeader(b []byte, now time.Duration) []byte {
	flags := e.kind.flags()
	if e.marks.Load()&markUsed != 0 {
		flags |= snapshotUsed
	}
	// One that is younger was put in since now was read.
	b = binary.BigEndian.AppendUint64(b, uint64(max(int64(now)-e.stored, 0)))
	b = binary.BigEndian.AppendUint32(b, e.ttl)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.data)))
	for _, n := range [...]uint16{e.keyLen, e.bodyLen, e.counts[0], e.counts[1], e.counts[2], e.rotate.from, e.rotate.size, e.rotate.n} {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return append(b, flags, e.rcode, byte(e.Class()), e.Zone(), e.unasked)
}

// Restore puts the replies of a snapshot into the cache that are still fresh, or
// kept beyond that, and says how many: their TTLs have gone on counting by the
// clock of at, see Snapshot. It takes all of it or nothing. Read from r is at most what a full
// cache makes. The error says why nothing was taken; it is one of those above,
// or of r.
func (c *Cache) Restore(r io.Reader, from Origin, now, at time.Duration) (int, error) {
	// An entry takes less here than it is charged for in memory.
	most := c.maxBytes.Load() + int64(snapshotHeader+sha256.Size)
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	switch {
	case err != nil:
		return 0, err
	case int64(len(text)) > most:
		return 0, ErrTooLarge
	case len(text) < snapshotHeader+sha256.Size:
		return 0, ErrCutShort
	case string(text[:len(snapshotMagic)]) != snapshotMagic:
		return 0, ErrOtherVersion
	}
	text, sum := text[:len(text)-sha256.Size], text[len(text)-sha256.Size:]
	if want := sha256.Sum256(text); !bytes.Equal(sum, want[:]) {
		return 0, ErrDamaged
	}
	head, rest := text[len(snapshotMagic):snapshotHeader], text[snapshotHeader:]
	taken := time.Duration(binary.BigEndian.Uint64(head[sha256.Size:]))
	if Origin(head) != from || taken > at {
		return 0, ErrOtherOrigin
	}
	var all []*Entry
	for i := range binary.BigEndian.Uint32(head[sha256.Size+8:]) {
		var e *Entry
		if e, rest = readEntry(rest, now, at-taken); e == nil {
			return 0, fmt.Errorf("%w: entry %d", ErrDamaged, i)
		}
		all = append(all, e)
	}
	if len(rest) > 0 {
		return 0, fmt.Errorf("%w: more than its entries", ErrDamaged)
	}
	n := 0
	for _, fresh := range []bool{false, true} {
		for _, e := range all {
			if e.Fresh(now) == fresh && c.kept(e, now) {
				c.Put(e)
				n++
			}
		}
		c.Sweep(now) // where there is not room for all, what is stale goes
	}
	return n, nil
}

// readEntry reads an entry that was written so long ago, and returns what
// follows it; nil where there is none that could ever be replied from.
func readEntry(b []byte, now, ago time.Duration) (*Entry, []byte) {
	if len(b) < entryHeader {
		return nil, nil
	}
	short := func(at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
	age, life := time.Duration(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint32(b[8:])
	flags, size := b[entryHeader-5], binary.BigEndian.Uint32(b[12:])
	class, zone := Class(b[entryHeader-3]), b[entryHeader-2]
	if class != Success && class != Denial || zone >= Zones {
		return nil, nil
	}
	e := &Entry{
		stored: int64(now - ago - age), ttl: life,
		keyLen: short(16), bodyLen: short(18),
		counts: [3]uint16{short(20), short(22), short(24)},
		rotate: rotation{short(26), short(28), short(30)},
		ede:    wire.EDENone, rcode: b[entryHeader-4], kind: newKind(class, zone, flags&^snapshotUsed),
		unasked: b[entryHeader-1],
	}
	if b = b[entryHeader:]; uint64(len(b)) < uint64(size) {
		return nil, nil
	}
	e.data = bytes.Clone(b[:size])
	if flags&snapshotUsed != 0 {
		e.marks.Store(markUsed)
	}
	if age < 0 || age > maxAge || life == 0 || e.life() > maxLife || !e.sound() {
		return nil, nil
	}
	return e, b[size:]
}

// maxLife bounds what a TTL can be: caps are below 31 bits of seconds.
const maxLife = 1 << 31 * time.Second

// maxAge bounds how old an entry can be: it lives, and is then kept, for as long
// as that at the most. The sum is within the range of a time.Duration.
const maxAge = 2 * maxLife

// sound says that replies can be made from the entry without going beyond its
// data.
func (e *Entry) sound() bool {
	if e.keyLen < 4 || len(e.data) < int(e.keyLen)+int(e.bodyLen) {
		return false
	}
	body, ttls := e.body(), e.ttls()
	if len(ttls) != 2*(int(e.counts[0])+int(e.counts[1])+int(e.counts[2])) {
		return false
	}
	if r := e.rotate; r.n > 1 && int(r.from)+int(r.size)*int(r.n) > len(body) {
		return false
	}
	// Each record has four bytes of TTL, two of length and its data, behind
	// the record before.
	end := 0
	for ; len(ttls) > 0; ttls = ttls[2:] {
		at := int(binary.BigEndian.Uint16(ttls))
		if at < end || at+6 > len(body) {
			return false
		}
		if end = at + 6 + int(binary.BigEndian.Uint16(body[at+4:])); end > len(body) {
			return false
		}
	}
	return true
}

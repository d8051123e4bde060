package cache

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// An Entry is one reply in stored form: the records as they go on the wire,
// ready for any client's id and question. What it says never changes once it
// is built, so it may be used without a lock and after it left the cache.
type Entry struct {
	stored  int64 // nanoseconds on the cache's clock
	expires int64
	hash    uint64
	data    []byte // key, records, TTL offsets: one piece of memory
	keyLen  uint16
	bodyLen uint16
	counts  [3]uint16
	rotate  rotation
	ede     uint16
	rcode   uint8 // the lower eight bits are all that are in use (IANA)
	class   Class
	zone    uint8
	ad      bool

	turn atomic.Uint32 // rotation of the next reply
	used atomic.Bool   // asked for since the eviction hand last came by

	// Guarded by the shard's lock.
	newer, older *Entry
}

type rotation struct {
	from, size, n uint16
}

// entryOverhead is what an entry costs beside its data: the struct (96) and the
// map's slot, which is 24 to 48 as the map fills and grows; measured by
// TestBudgetIsHonest.
const entryOverhead = 136

// NewEntry makes the entry for an admitted reply. It copies what it keeps.
// zone is the caller's number for the kind of zone, below Zones.
func NewEntry(key []byte, a Admission, zone uint8, now time.Duration) *Entry {
	e := &Entry{
		stored: int64(now), expires: int64(now + a.TTL),
		keyLen: uint16(len(key)), bodyLen: uint16(len(a.body)), counts: a.counts,
		rotate: rotation{uint16(a.rotateFrom), uint16(a.rotateSize), uint16(a.rotateN)},
		ede:    wire.EDENone, rcode: uint8(a.RCode), class: a.Class, zone: zone, ad: a.AD,
		// Grow, unlike make, gives all of what the allocator rounds up to, so
		// that cost can charge for it.
		data: slices.Grow([]byte(nil), len(key)+len(a.body)+2*len(a.ttls)),
	}
	e.data = append(e.data, key...)
	e.data = append(e.data, a.body...)
	for _, off := range a.ttls {
		e.data = binary.BigEndian.AppendUint16(e.data, off)
	}
	return e
}

// NewFailure makes the entry for a question that could not be answered: no
// records, the response code, an Extended DNS Error (RFC 8914), kept for
// FailureTTL.
func NewFailure(key []byte, rcode int, ede uint16, zone uint8, now time.Duration) *Entry {
	e := NewEntry(key, Admission{Class: Failure, RCode: rcode, TTL: FailureTTL}, zone, now)
	e.ede = ede
	return e
}

// Class is the class of the entry.
func (e *Entry) Class() Class { return e.class }

// RCode is the response code of its replies.
func (e *Entry) RCode() int { return int(e.rcode) }

// Zone is the number given to NewEntry.
func (e *Entry) Zone() uint8 { return e.zone }

// Fresh reports whether the entry may still be served at now.
func (e *Entry) Fresh(now time.Duration) bool { return int64(now) < e.expires }

// Key is the key it was made for; it is not to be changed.
func (e *Entry) Key() []byte { return e.data[:e.keyLen] }

func (e *Entry) cost() int64 { return entryOverhead + int64(cap(e.data)) }

// AppendReply appends the reply to q. TTLs count down in whole seconds from
// when the entry was stored, and never reach 0 while it is fresh. Address sets
// begin with another record each time. A reply longer than limit is marked
// truncated and has the answer records that fit, as kube-dns replies have:
// musl before 1.2.4 knows no TCP and makes do with them. limit counts from
// where dst ended. q must ask for the key that the entry was made for.
//
// It does not allocate where dst has room for limit more bytes.
func (e *Entry) AppendReply(dst []byte, q *wire.Query, now time.Duration, limit int) []byte {
	room := limit - wire.HeaderLen - len(q.Question)
	opt := uint16(0)
	if q.HasOPT {
		room -= wire.OPTLen(e.ede)
		opt = 1
	}
	flags, counts, size := wire.ReplyFlags(q, int(e.rcode)), e.counts, int(e.bodyLen)
	switch {
	case size > room:
		flags |= wire.FlagTC
		counts = [3]uint16{}
		counts[answerSection], size = e.fitting(room)
	case e.ad && q.WantsAD():
		flags |= wire.FlagAD
	}
	dst = wire.AppendHeader(dst, q.ID, flags, 1, counts[0], counts[1], counts[2]+opt)
	dst = append(dst, q.Question...)
	at := len(dst)
	body := e.body()
	if r := e.rotate; r.n > 1 {
		set := body[r.from : int(r.from)+int(r.size)*int(r.n)]
		first := int(e.turn.Add(1)-1) % int(r.n) * int(r.size)
		for _, part := range [...][]byte{body[:r.from], set[first:], set[:first], body[int(r.from)+len(set):]} {
			dst = append(dst, part[:min(len(part), at+size-len(dst))]...)
		}
	} else {
		dst = append(dst, body[:size]...)
	}
	if age := (int64(now) - e.stored) / int64(time.Second); age > 0 {
		for ttls := e.ttls(); len(ttls) > 0; ttls = ttls[2:] {
			off := int(binary.BigEndian.Uint16(ttls))
			if off >= size {
				break
			}
			b := dst[at+off:]
			ttl := int64(binary.BigEndian.Uint32(b))
			binary.BigEndian.PutUint32(b, uint32(max(ttl-age, 0)))
		}
	}
	if q.HasOPT {
		dst = wire.AppendOPT(dst, int(e.rcode), q.DO, e.ede)
	}
	return dst
}

// body is the records.
func (e *Entry) body() []byte { return e.data[e.keyLen : int(e.keyLen)+int(e.bodyLen)] }

// ttls are the offsets of TTLs in the body, in order, two bytes each.
func (e *Entry) ttls() []byte { return e.data[int(e.keyLen)+int(e.bodyLen):] }

// fitting is how many of the answer records fit into room, and their size.
// Rotation exchanges records of one size, so it changes neither.
func (e *Entry) fitting(room int) (n uint16, size int) {
	body, ttls := e.body(), e.ttls()
	for ; n < e.counts[answerSection]; n++ {
		// Behind the TTL come two bytes of length and the data.
		length := int(binary.BigEndian.Uint16(ttls[2*int(n):])) + 4
		end := length + 2 + int(binary.BigEndian.Uint16(body[length:]))
		if end > room {
			break
		}
		size = end
	}
	return n, size
}

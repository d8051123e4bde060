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
	// What every reply reads comes first, on as few cache lines as may be.
	stored  int64         // nanoseconds on the cache's clock
	ttl     uint32        // seconds from stored to expiry
	marks   atomic.Uint32 // see markUsed
	data    []byte        // key, records, TTL offsets: one piece of memory
	keyLen  uint16
	bodyLen uint16
	counts  [3]uint16
	rotate  rotation
	ede     uint16
	took    uint16 // tookUnits from the question to its reply, rounded down
	rcode   uint8  // the lower eight bits are all that are in use (IANA)
	kind    kind
	unasked uint8
	source  uint8

	turn   atomic.Uint32 // rotation of the next reply
	failed atomic.Uint32 // see Fail
	hash   uint64

	// Guarded by the shard's lock.
	newer, older *Entry
}

// What Entry.marks holds.
const (
	markUsed   uint32 = 1 << iota // asked for since the eviction hand last came by
	markBegun                     // a refresh ahead of expiry was begun, or refused
	markStale                     // in its shard's list of stale entries; changes under the shard's lock
	markGuess                     // no client has asked for it yet
	markOnward                    // see Admission.Onward
	markHit                       // the lowest bit of how often it was hit since it was stored
)

// The flags of a kind.
const (
	flagAD    uint8 = 1 << iota // upstream says that it validated
	flagWhole                   // see Admission.MakeWhole
)

type rotation struct {
	from, size, n uint16
}

// A kind is an entry's class, its zone and its flags in one byte, so that all that an
// entry says of itself fits into what the allocator gives it.
type kind uint8

// Where they begin; class and zone have two bits each.
const (
	kindZone  = 2
	kindFlags = 4
)

func newKind(class Class, zone, flags uint8) kind {
	return kind(class) | kind(zone)<<kindZone | kind(flags)<<kindFlags
}

func (k kind) class() Class { return Class(k & 3) }
func (k kind) zone() uint8  { return uint8(k >> kindZone & 3) }
func (k kind) flags() uint8 { return uint8(k >> kindFlags) }

// tookUnit is the unit of Entry.took, which so holds up to four seconds.
const tookUnit = 64 * time.Microsecond

// entryOverhead is what an entry costs beside its data: the struct (96, a size
// that the allocator has; what is in it is packed for that) and the map's slot, which is 24 to 48 as the map fills and grows; measured by
// TestBudgetIsHonest.
const entryOverhead = 136

// NewEntry makes the entry for an admitted reply. It copies what it keeps.
// zone is the caller's number for the kind of zone, below Zones.
func NewEntry(key []byte, a Admission, zone uint8, now time.Duration) *Entry {
	var flags uint8
	if a.AD {
		flags |= flagAD
	}
	if a.whole {
		flags |= flagWhole
	}
	e := &Entry{
		stored: int64(now), ttl: uint32(a.TTL / time.Second),
		keyLen: uint16(len(key)), bodyLen: uint16(len(a.body)), counts: a.counts,
		rotate: rotation{uint16(a.rotateFrom), uint16(a.rotateSize), uint16(a.rotateN)},
		ede:    wire.EDENone, rcode: uint8(a.RCode), kind: newKind(a.Class, zone, flags),
		unasked: a.Unasked, source: a.Source, took: uint16(min(a.Took/tookUnit, 1<<16-1)),
		// Grow, unlike make, gives all of what the allocator rounds up to, so
		// that cost can charge for it.
		data: slices.Grow([]byte(nil), len(key)+len(a.body)+2*len(a.ttls)),
	}
	e.marks.Store(guessMarks(a.Guessed, a.Onward))
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
func (e *Entry) Class() Class { return e.kind.class() }

// RCode is the response code of its replies.
func (e *Entry) RCode() int { return int(e.rcode) }

// Zone is the number given to NewEntry.
func (e *Entry) Zone() uint8 { return e.kind.zone() }

// EDE is the Extended DNS Error of its replies while it is fresh, or wire.EDENone.
func (e *Entry) EDE() uint16 { return e.ede }

// AD reports whether upstream says that it has validated what the entry holds.
func (e *Entry) AD() bool { return e.kind.flags()&flagAD != 0 }

// Stored is when the entry was made. It is before the clock's zero in one that was
// restored from a snapshot.
func (e *Entry) Stored() time.Duration { return time.Duration(e.stored) }

// Source is who it came from: Admission.Source, or 0 in one that was restored.
func (e *Entry) Source() uint8 { return e.source }

// Took is how long upstream took for it, in whole tookUnits; 0 in one that was
// restored.
func (e *Entry) Took() time.Duration { return time.Duration(e.took) * tookUnit }

// Unasked is how many refreshes in a row, this entry the last of them, nobody
// asked for.
func (e *Entry) Unasked() uint8 { return e.unasked }

// Asked is when upstream was asked for what the entry holds, or up to a tookUnit
// later.
func (e *Entry) Asked() time.Duration { return e.Stored() - e.Took() }

// stale reports whether the entry is in its shard's list of stale ones.
func (e *Entry) stale() bool { return e.marks.Load()&markStale != 0 }

// Expired is for how long the entry has been stale at now; less than 0 while it
// is fresh.
func (e *Entry) Expired(now time.Duration) time.Duration {
	return now - time.Duration(e.stored) - e.life()
}

// Fresh reports whether the entry may still be served at now as what is so.
func (e *Entry) Fresh(now time.Duration) bool { return e.Expired(now) < 0 }

func (e *Entry) life() time.Duration { return time.Duration(e.ttl) * time.Second }

// Ending reports whether no more than percent of its life are left to an entry
// at now.
func (e *Entry) Ending(now time.Duration, percent int) bool {
	return -e.Expired(now)*100 <= e.life()*time.Duration(percent)
}

// Hit notes that a client was answered from the entry, and says how often that
// has happened since it was stored: up to enough, beyond which it does not
// count and writes nothing. enough is below 1<<27. Of hits at the same instant
// one at least is counted.
func (e *Entry) Hit(enough int) int {
	m := e.marks.Load()
	hits := int(m / markHit)
	if hits >= enough {
		return hits
	}
	e.marks.CompareAndSwap(m, m+markHit)
	return hits + 1
}

// Hits is how often Hit was called.
func (e *Entry) Hits() int { return int(e.marks.Load() / markHit) }

// Wanted says once what an Admission says of a guess: to who answers a client from it
// first.
func (e *Entry) Wanted() (guessed, onward bool) {
	const both = markGuess | markOnward
	if e.marks.Load()&both == 0 {
		return false, false
	}
	m := e.marks.And(^both)
	return m&markGuess != 0, m&markOnward != 0
}

func guessMarks(guessed, onward bool) (m uint32) {
	if guessed {
		m |= markGuess
	}
	if onward {
		m |= markOnward
	}
	return m
}

// Begun reports whether Begin was called.
func (e *Entry) Begun() bool { return e.marks.Load()&markBegun != 0 }

// Begin is true once: for who is to refresh the entry ahead of its expiry.
func (e *Entry) Begin() bool { return e.marks.Or(markBegun)&markBegun == 0 }

// Fail notes that a refresh of the entry has failed, at a time since when there
// has been no word of its name. about says that the failure was about this name:
// others may well be answered.
func (e *Entry) Fail(at time.Duration, about bool) {
	since := int64(at) - e.stored
	if since < 0 {
		return // what failed was asked before there was this entry
	}
	// Whole milliseconds: 31 bits are 24 days, and no entry lives for longer
	// than twice 168 h. It is rounded down: what was answered later is later.
	v := uint32(min(since/int64(time.Millisecond)+1, 1<<31-1)) << 1
	if about {
		v |= 1
	}
	e.failed.Store(v)
}

// Failed is what Fail noted last; ok is false where no refresh has failed.
func (e *Entry) Failed() (at time.Duration, about, ok bool) {
	v := e.failed.Load()
	return time.Duration(e.stored) + time.Duration(v>>1-1)*time.Millisecond, v&1 != 0, v != 0
}

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
	return e.append(dst, q, limit, e.ede, int64(now)-e.stored, 0)
}

// AppendStale is AppendReply for an entry that has expired (RFC 8767): all its
// TTLs are ttl seconds, and clients with EDNS are told that it is stale.
func (e *Entry) AppendStale(dst []byte, q *wire.Query, ttl uint32, limit int) []byte {
	return e.append(dst, q, limit, e.StaleEDE(), 0, ttl)
}

// StaleEDE is the Extended DNS Error of its replies when it has expired.
func (e *Entry) StaleEDE() uint16 {
	if e.rcode == wire.NXDomain {
		return wire.EDEStaleNXDomain
	}
	return wire.EDEStale
}

// append makes a reply with TTLs that are ttl, or where that is 0 the stored
// ones less age.
func (e *Entry) append(dst []byte, q *wire.Query, limit int, ede uint16, age int64, ttl uint32) []byte {
	room := limit - wire.HeaderLen - len(q.Question)
	opt := uint16(0)
	if q.HasOPT {
		room -= wire.OPTLen(ede)
		opt = 1
	}
	flags, counts, size := wire.ReplyFlags(q, int(e.rcode)), e.counts, int(e.bodyLen)
	switch {
	case size > room:
		flags |= wire.FlagTC
		counts = [3]uint16{}
		counts[answerSection], size = e.fitting(room)
	case e.AD() && q.WantsAD():
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
	e.setTTLs(dst[at:], age, ttl)
	if q.HasOPT {
		dst = wire.AppendOPT(dst, int(e.rcode), q.DO, ede)
	}
	return dst
}

// setTTLs has records, as many of the stored ones as fit, say ttl, or where that is 0
// what they were stored with less age.
func (e *Entry) setTTLs(records []byte, age int64, ttl uint32) {
	if age /= int64(time.Second); age <= 0 && ttl == 0 {
		return
	}
	for ttls := e.ttls(); len(ttls) > 0; ttls = ttls[2:] {
		off := int(binary.BigEndian.Uint16(ttls))
		if off >= len(records) {
			break
		}
		b := records[off:]
		if ttl > 0 {
			binary.BigEndian.PutUint32(b, ttl)
			continue
		}
		stored := int64(binary.BigEndian.Uint32(b))
		binary.BigEndian.PutUint32(b, uint32(max(stored-age, 0)))
	}
}

// AppendStored appends what the entry holds as a message, for those who look at it and
// reply to nobody: all its records in the order in which they were stored, which no
// reply changes by it. TTLs are those at now, 0 where they are over.
func (e *Entry) AppendStored(dst []byte, now time.Duration) []byte {
	name, _ := wire.SplitKey(e.Key())
	dst = wire.AppendHeader(dst, 0, wire.FlagQR|wire.FlagRA|uint16(e.rcode), 1, e.counts[0], e.counts[1], e.counts[2])
	dst = append(dst, name...)
	dst = binary.BigEndian.AppendUint16(dst, wire.KeyType(e.Key()))
	dst = binary.BigEndian.AppendUint16(dst, wire.ClassIN)
	at := len(dst)
	dst = append(dst, e.body()...)
	e.setTTLs(dst[at:], int64(now)-e.stored, 0)
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

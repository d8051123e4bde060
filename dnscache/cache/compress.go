package cache

import (
	"encoding/binary"

	"nodelocaldns/dnscache/wire"
)

// CoreDNS compresses no reply that fits without, and over TCP all do. Kept as
// they come, ten addresses of a headless service would fill the 512 bytes of a
// client without EDNS, where kube-dns itself puts twenty-nine over UDP. So
// owner names, and where aliases lead, become pointers to the question's name or
// one seen before, as far as they end alike: so a chain of a dozen aliases fits, too.

const (
	// maxTargets bounds the names that may be pointed at, and with it the work
	// for a reply of many names. Few replies have more: the question, and the
	// names of a chain.
	maxTargets = 8
	pointerLen = 2
	fixedLen   = 10        // of a record, between its name and its data
	maxPointer = 1<<14 - 1 // RFC 1035 4.1.4
	pointer    = 0xC000
)

// compress shortens the owner names of s, whose first record is at start, and the
// targets of its aliases, in place. They must be free to move.
func (s *recordSet) compress(msg []byte, start int) {
	c := compressor{msg: msg, to: start, targets: append(make([]int, 0, maxTargets), wire.HeaderLen)}
	for i, r := range s.recs {
		moved := wire.Record{Name: c.to, Type: r.Type, Class: r.Class, TTL: r.TTL}
		fixed := r.TTLOffset() - 4 // where type and class are
		c.name(r.Name, fixed)
		c.copy(fixed, r.Data)
		moved.Data = c.to
		if r.Type == wire.TypeCNAME {
			c.name(r.Data, r.End)
			binary.BigEndian.PutUint16(msg[moved.Data-2:], uint16(c.to-moved.Data))
		} else {
			c.copy(r.Data, r.End)
		}
		moved.End = c.to
		s.recs[i] = moved
	}
}

// A compressor writes records again, further to the front of the message that they
// are in.
type compressor struct {
	msg     []byte
	to      int
	targets []int // names that may be pointed at
}

func (c *compressor) copy(from, end int) { c.to += copy(c.msg[c.to:], c.msg[from:end]) }

// name writes the name that begins at from and ends before end: its first labels,
// and a pointer to where the rest stands already.
func (c *compressor) name(from, end int) {
	var buf [wire.MaxName + 1]byte
	name, ok := wire.AppendName(buf[:0], c.msg, from)
	at, rest := 0, from
	for ok && c.msg[rest] != 0 && c.msg[rest] < pointer>>8 {
		if at = find(c.msg, c.targets, name); at > 0 {
			break
		}
		n := 1 + int(c.msg[rest])
		rest, name = rest+n, name[n:]
	}
	if rest > from && c.to <= maxPointer && len(c.targets) < maxTargets {
		c.targets = append(c.targets, c.to)
	}
	if at == 0 {
		c.copy(from, end)
		return
	}
	c.copy(from, rest)
	binary.BigEndian.PutUint16(c.msg[c.to:], pointer|uint16(at))
	c.to += pointerLen
}

// free reports whether all records say the same when what lies between them and
// start gets shorter: no name in them ends in a pointer to there. Types whose data
// nobody here can read may hide one.
func (s *recordSet) free(msg []byte, start int) bool {
	for _, r := range s.recs {
		if !pointsBefore(msg, r.Name, start) {
			return false
		}
		switch r.Type {
		case wire.TypeA, wire.TypeAAAA, wire.TypeTXT:
			continue
		}
		at, n, _ := wire.DataNames(msg, r)
		if n == 0 {
			return false
		}
		for _, off := range at[:n] {
			if !pointsBefore(msg, off, start) {
				return false
			}
		}
	}
	return true
}

// sound reports whether every pointer in the names of s leads to where a label
// begins in a name before it, or to another pointer, and not into a TTL, an
// address or whatever else.
func (s *recordSet) sound(msg []byte, start int) bool {
	var labels [(maxPointer + 1) / 8]byte
	for at := wire.HeaderLen; at < start-4; at += 1 + int(msg[at]) {
		labels[at/8] |= 1 << (at % 8)
	}
	ok := true
	see := func(at int) {
		for ; ; at += 1 + int(msg[at]) {
			if at <= maxPointer {
				labels[at/8] |= 1 << (at % 8)
			}
			if msg[at] >= pointer>>8 {
				to := int(binary.BigEndian.Uint16(msg[at:]) &^ pointer)
				ok = ok && labels[to/8]&(1<<(to%8)) != 0
				return
			}
			if msg[at] == 0 {
				return
			}
		}
	}
	for _, r := range s.recs {
		see(r.Name)
		at, n, _ := wire.DataNames(msg, r)
		for _, off := range at[:n] {
			see(off)
		}
	}
	return ok
}

// rewrite leaves out the records of which drop is true, and returns a copy of msg
// with the others: in it no name points at another, so none at what is gone.
func (s *recordSet) rewrite(msg []byte, start int, drop []bool) ([]byte, error) {
	out := append(make([]byte, 0, 2*len(msg)), msg[:start]...)
	kept, counts, recs := s.recs[:0], [3]uint16{}, s.recs
	for section, n := range s.counts {
		for i, r := range recs[:n] {
			if drop[i] {
				continue
			}
			moved := wire.Record{Name: len(out), Type: r.Type, Class: r.Class, TTL: r.TTL}
			out, _ = wire.AppendSpelled(out, msg, r.Name)
			out = append(out, msg[r.Data-fixedLen:r.Data]...)
			moved.Data = len(out)
			from := r.Data
			at, names, _ := wire.DataNames(msg, r)
			for _, off := range at[:names] {
				out = append(out, msg[from:off]...)
				out, _ = wire.AppendSpelled(out, msg, off)
				from = wire.SkipName(msg, off)
			}
			out = append(out, msg[from:r.End]...)
			moved.End = len(out)
			if len(out) > wire.MaxMessage {
				return nil, ErrMalformed
			}
			binary.BigEndian.PutUint16(out[moved.Data-2:], uint16(moved.End-moved.Data))
			kept = append(kept, moved)
			counts[section]++
		}
		recs, drop = recs[n:], drop[n:]
	}
	s.recs, s.counts = kept, counts
	return out, nil
}

// pointsBefore reports whether the name at off, which is one, has no pointer
// or one to the question's name, which ends before start.
func pointsBefore(msg []byte, off, start int) bool {
	end := wire.SkipName(msg, off)
	if end-off < pointerLen {
		return true // the root
	}
	last := binary.BigEndian.Uint16(msg[end-pointerLen:])
	for msg[off] != 0 && msg[off] < pointer>>8 {
		off += 1 + int(msg[off])
	}
	if msg[off] == 0 {
		return true
	}
	for label := wire.HeaderLen; label < start-questionFixed; label += 1 + int(msg[label]) {
		if label == int(last&^pointer) {
			return true
		}
	}
	return false
}

const questionFixed = 4 // type and class, behind the question's name

// find is where a name stands in one of targets, whole or as its end; 0 if in none.
func find(msg []byte, targets []int, name []byte) int {
	var buf [wire.MaxName + 1]byte
	for _, at := range targets {
		full, _ := wire.AppendName(buf[:0], msg, at)
		// Labels that are spelled out there; behind them a pointer or the root.
		for at <= maxPointer && msg[at] != 0 && msg[at] < pointer>>8 {
			if string(full) == string(name) {
				return at
			}
			n := 1 + int(msg[at])
			at, full = at+n, full[n:]
		}
	}
	return 0
}

package cache

import (
	"encoding/binary"

	"nodelocaldns/dnscache/wire"
)

// CoreDNS compresses no reply that fits without, and over TCP all do. Kept as
// they come, ten addresses of a headless service would fill the 512 bytes of a
// client without EDNS, where kube-dns itself puts twenty-nine over UDP. So
// owner names that stand for the question's, or one seen before, become
// pointers to it.

const (
	// maxTargets bounds the names that may be pointed at, and with it the work
	// for a reply of many names. Few replies have more: the question, and the
	// names of a chain.
	maxTargets = 8
	pointerLen = 2
	maxPointer = 1<<14 - 1 // RFC 1035 4.1.4
	pointer    = 0xC000
)

// compress shortens the owner names of s, whose first record is at start, in
// place. It leaves a reply alone that has pointers into its records already:
// they would have to move.
func (s *recordSet) compress(msg []byte, start int) {
	for _, r := range s.recs {
		if !movable(msg, r, start) {
			return
		}
	}
	targets := append(make([]int, 0, maxTargets), wire.HeaderLen)
	to := start
	for i, r := range s.recs {
		moved := wire.Record{Name: to, Type: r.Type, Class: r.Class, TTL: r.TTL}
		fixed := r.TTLOffset() - 4 // where type and class are
		if at := find(msg, targets, r.Name); at > 0 && fixed-r.Name > pointerLen {
			binary.BigEndian.PutUint16(msg[to:], pointer|uint16(at))
			to += pointerLen
		} else {
			if at == 0 && to <= maxPointer && len(targets) < maxTargets {
				targets = append(targets, to)
			}
			to += copy(msg[to:], msg[r.Name:fixed])
		}
		moved.Data = to + r.Data - fixed
		to += copy(msg[to:], msg[fixed:r.End])
		moved.End = to
		if r.Type == wire.TypeCNAME && moved.Data <= maxPointer && len(targets) < maxTargets {
			targets = append(targets, moved.Data)
		}
		s.recs[i] = moved
	}
}

// movable reports whether a record says the same when what lies between it and
// start gets shorter: no name in it ends in a pointer to there. Types whose data nobody here can read may hide one.
func movable(msg []byte, r wire.Record, start int) bool {
	ok := pointsBefore(msg, r.Name, start)
	switch r.Type {
	case wire.TypeA, wire.TypeAAAA, wire.TypeTXT, wire.TypeSVCB, wire.TypeHTTPS, wire.TypeRRSIG:
	case wire.TypeNS, wire.TypeCNAME, wire.TypePTR, wire.TypeDNAME:
		ok = ok && pointsBefore(msg, r.Data, start)
	case wire.TypeMX:
		ok = ok && pointsBefore(msg, r.Data+2, start)
	case wire.TypeSRV:
		ok = ok && pointsBefore(msg, r.Data+6, start)
	case wire.TypeSOA:
		ok = ok && pointsBefore(msg, r.Data, start) && pointsBefore(msg, wire.SkipName(msg, r.Data), start)
	default:
		return false
	}
	return ok
}

// pointsBefore reports whether the name at off, which is one, has no pointer
// or one to before start.
func pointsBefore(msg []byte, off, start int) bool {
	end := wire.SkipName(msg, off)
	if end-off < pointerLen {
		return true // the root
	}
	last := binary.BigEndian.Uint16(msg[end-pointerLen:])
	for msg[off] != 0 && msg[off] < pointer>>8 {
		off += 1 + int(msg[off])
	}
	return msg[off] == 0 || int(last&^pointer) < start
}

// find is where the name at off stands in one of targets, whole or as its
// end; 0 if in none.
func find(msg []byte, targets []int, off int) int {
	var want, have [wire.MaxName + 1]byte
	name, ok := wire.AppendName(want[:0], msg, off)
	if !ok {
		return 0
	}
	for _, at := range targets {
		full, _ := wire.AppendName(have[:0], msg, at)
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

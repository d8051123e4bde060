package cache

import (
	"encoding/binary"

	"nodelocaldns/dnscache/wire"
)

// MakeWhole has the denial of a name spell out its SOA record, so that it can answer
// for all names below that one (RFC 8020): a name that ends in a pointer to the
// question says something else in a reply to another question. It changes nothing where
// there are other records, or upstream says that it validated: proofs (NSEC) are about
// the name that was asked for, and AD is not to be invented for others (RFC 6840 5.8).
// Nor where the SOA is not zone's, in wire form and lower case: that is the word of
// somebody who denies a type, or forwards, and not of who knows the services.
func (a *Admission) MakeWhole(zone []byte) {
	reply := a.reply
	if a.counts != [3]uint16{authoritySection: 1} || a.Class == Success || a.AD {
		return
	}
	soa, ok := wire.NextRecord(reply, a.start)
	if !ok || soa.Type != wire.TypeSOA || soa.End-soa.Data < minSOA {
		return
	}
	owner, _ := wire.AppendName(nil, reply, soa.Name)
	if string(owner) != string(zone) {
		return
	}
	ttl := len(owner) + 4
	body := append(owner, reply[soa.TTLOffset()-4:soa.Data]...)
	data := len(body)
	body, _ = wire.AppendName(body, reply, soa.Data)
	body, _ = wire.AppendName(body, reply, wire.SkipName(reply, soa.Data))
	body = append(body, reply[soa.End-5*4:soa.End]...)
	binary.BigEndian.PutUint16(body[data-2:], uint16(len(body)-data))
	a.body, a.ttls, a.whole = body, []uint16{uint16(ttl)}, true
}

// Whole reports whether the entry is a denial that answers for the names below its
// own, too (Admission.MakeWhole): AppendReply then may be called for their questions.
func (e *Entry) Whole() bool { return e.kind.flags()&flagWhole != 0 }

// Below makes the entry for a name below that of a Whole one, which expires when it
// does, and is not refreshed before. One that is not to be kept is Uncached. guessed and
// onward are as in an Admission.
func (e *Entry) Below(key []byte, keep, guessed, onward bool) *Entry {
	class := e.Class()
	if !keep {
		class = Uncached
	}
	b := &Entry{
		stored: e.stored, ttl: e.ttl, keyLen: uint16(len(key)), bodyLen: e.bodyLen, counts: e.counts, rotate: e.rotate,
		ede: e.ede, rcode: e.rcode, kind: newKind(class, e.Zone(), e.kind.flags()&^flagWhole), took: e.took, source: e.source,
	}
	b.marks.Store(markBegun | guessMarks(guessed, onward))
	b.data = append(append(b.data, key...), e.data[e.keyLen:]...)
	return b
}

package cache

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"nodelocaldns/dnscache/wire"
)

// A Class says what kind of reply an entry holds, and so how long it may be
// kept and whose room it takes.
type Class uint8

// The classes.
const (
	Success  Class = iota // NOERROR with an answer of the type asked for
	Denial                // NXDOMAIN or NODATA, with the SOA that says how long (RFC 2308 5)
	Failure               // SERVFAIL and its like (RFC 9520)
	Uncached              // given to those who asked, and to nobody else
)

// FailureTTL is how long a failure is kept: RFC 9520 3.2 asks for at least
// one second, and a kube-dns that comes back should not be kept waiting.
const FailureTTL = time.Second

// maxChain bounds the names that one reply may lead through. No resolver
// follows longer chains (unbound stops at 11, BIND at 16).
const maxChain = 20

// Caps are the longest times that replies are kept, in whole seconds. Zero
// keeps nothing.
type Caps struct {
	Success, Denial uint32
}

// An Admission is what Admit makes of a reply.
type Admission struct {
	Class Class
	RCode int
	AD    bool          // upstream says that it validated
	TTL   time.Duration // how long to keep it, in whole seconds; 0 unless it is to be kept

	// What the entry will say of itself; Admit leaves all of it zero.
	Unasked uint8
	Source  uint8         // the caller's number for who has replied; 0: not known
	Took    time.Duration // from the question to the reply
	Guessed bool          // no client has asked for it yet
	Onward  bool          // when one does, it can be told what the client asks for next

	whole bool // see MakeWhole

	reply      []byte   // as admitted: the reply's own memory, or where it had to be rewritten a copy
	start      int      // offset of the records in it
	body       []byte   // the records in it
	ttls       []uint16 // offsets of TTLs in body
	counts     [3]uint16
	rotateFrom int // offset in body of an address set, its record size and count
	rotateSize int
	rotateN    int
}

// What makes a reply unusable.
var (
	ErrMalformed = errors.New("malformed reply")
	ErrTruncated = errors.New("truncated reply")
	ErrLongChain = errors.New("reply with too many aliases")
)

// Admit decides what of a reply is kept, and for how long. It is a pure
// function of its arguments, but mostly works in place: it writes TTLs into reply,
// and the admission points into it.
//
// key is the question (wire.AppendKey) and reply a message that
// wire.CheckReply has found to answer it. These are the rules:
//
//   - An answer's records belong to the name asked for or to a name that its
//     CNAMEs (or a DNAME, RFC 6672) lead to. Authority records belong to a
//     zone above such a name, additional ones to a name that an answer or
//     authority record points at. What else upstream added is left out, as is
//     its OPT record (RFC 5452 6, RFC 6891 6.2.6). Records of another class
//     than IN are about no name at all.
//   - Signatures and proofs of denial are for those who asked with DO, or for
//     that very type (RFC 4035 3.2.1); other records stay, wherever they stand.
//   - Records whose data is not what their type says make the reply
//     malformed.
//   - Records of one set get the lowest TTL among them (RFC 2181 5.2), and none
//     above the cap, be its highest bit set (RFC 8767 4, where RFC 2181 8 had 0).
//   - An answer is kept for the lowest TTL in it.
//   - A denial is kept for the lowest of the SOA's TTL, its MINIMUM field and
//     the cap (RFC 2308 5); without SOA it is not kept.
//   - Any other response code is a failure: kept for FailureTTL, without its
//     records.
//   - Owner names become pointers where the reply has none of its own. Pointers
//     to what is no name are replaced by what they lead to: TTLs count down, and
//     addresses change places.
//   - The reply to a question without RD is not kept: it says what upstream
//     knew, not what is so.
func Admit(key, reply []byte, caps Caps) (Admission, error) {
	if len(reply) < wire.HeaderLen {
		return Admission{}, ErrMalformed
	}
	flags := wire.Flags(reply)
	a := Admission{RCode: wire.RCode(reply), AD: flags&wire.FlagAD != 0}
	if flags&wire.FlagTC != 0 {
		return a, ErrTruncated
	}
	name, recursive := wire.SplitKey(key)
	start := wire.HeaderLen + len(name) + 4
	if binary.BigEndian.Uint16(reply[4:]) == 0 {
		start = wire.HeaderLen
	}
	var set recordSet
	if err := set.read(reply, start); err != nil {
		return a, err
	}
	if set.extended != 0 {
		a.RCode = wire.ServFail // BADVERS, BADCOOKIE: between upstream and us
	}
	if a.RCode != wire.NoError && a.RCode != wire.NXDomain {
		a.Class, a.TTL, a.AD = Failure, FailureTTL, false
		return a, nil
	}
	drop, err := set.foreign(reply, name)
	if err != nil {
		return a, err
	}
	typ := wire.KeyType(key)
	for i, r := range set.recs {
		if drop[i] {
			continue
		}
		if !intact(reply, r) {
			return a, ErrMalformed
		}
		drop[i] = !wire.KeyDO(key) && isProof(r.Type) && r.Type != typ && typ != wire.TypeANY
	}
	if slices.Contains(drop, true) || !set.free(reply, start) && !set.sound(reply, start) {
		if reply, err = set.rewrite(reply, start, drop); err != nil {
			return a, err
		}
	}
	free := set.free(reply, start)
	a.Class = set.class(a.RCode, typ)
	limit := caps.Success
	if a.Class != Success {
		limit = caps.Denial
	}
	ttl := set.setTTLs(reply, limit, a.Class == Denial)
	if recursive && a.Class != Uncached {
		a.TTL = time.Duration(ttl) * time.Second
	}
	if a.TTL == 0 {
		a.Class = Uncached
	}
	if free {
		set.compress(reply, start)
	}
	a.reply, a.start, a.body = reply, start, reply[start:set.end(start)]
	a.counts = set.counts
	a.ttls = make([]uint16, 0, len(set.recs))
	for _, r := range set.recs {
		a.ttls = append(a.ttls, uint16(r.TTLOffset()-start))
	}
	if typ == wire.TypeA || typ == wire.TypeAAAA {
		a.findRotation(reply, start, set.recs[:set.counts[0]], typ)
	}
	return a, nil
}

// recordSet is the records of one reply, in order, and how many belong to
// each section.
type recordSet struct {
	recs     []wire.Record
	counts   [3]uint16
	extended int // high bits of the response code, from OPT
	room     [16]wire.Record
}

const (
	answerSection = iota
	authoritySection
	additionalSection
)

// read finds the records of all sections. It stops at OPT, and checks only
// that what is behind it are records.
func (s *recordSet) read(msg []byte, off int) error {
	s.recs = s.room[:0]
	opt := false
	for section := range s.counts {
		for range binary.BigEndian.Uint16(msg[6+2*section:]) {
			r, ok := wire.NextRecord(msg, off)
			if !ok {
				return ErrMalformed
			}
			off = r.End
			if r.Type == wire.TypeOPT {
				if opt || section != additionalSection {
					return ErrMalformed
				}
				opt, s.extended = true, int(r.TTL>>24)
			}
			if !opt {
				s.recs = append(s.recs, r)
				s.counts[section]++
			}
		}
	}
	return nil
}

// end is the offset behind the last record.
func (s *recordSet) end(start int) int {
	if len(s.recs) == 0 {
		return start
	}
	return s.recs[len(s.recs)-1].End
}

// section is the records of one section.
func (s *recordSet) section(n int) []wire.Record {
	from := 0
	for i := range n {
		from += int(s.counts[i])
	}
	return s.recs[from : from+int(s.counts[n])]
}

// foreign says of each record whether it is about something else than name.
func (s *recordSet) foreign(msg, name []byte) ([]bool, error) {
	foreign := make([]bool, len(s.recs))
	answers, extra := int(s.counts[answerSection]), len(s.recs)-int(s.counts[additionalSection])
	chain, err := s.follow(msg, name, foreign[:answers])
	if err != nil {
		return nil, err
	}
	var buf [wire.MaxName]byte
	var apex []byte // the zone that the authority section is about
	for _, r := range s.section(authoritySection) {
		owner, ok := wire.AppendName(buf[:0], msg, r.Name)
		if !ok {
			return nil, ErrMalformed
		}
		if (r.Type == wire.TypeSOA || r.Type == wire.TypeNS) && r.Class == wire.ClassIN && chain.below(owner) {
			apex = append(apex, owner...)
			break
		}
	}
	for i, r := range s.section(authoritySection) {
		owner, ok := wire.AppendName(buf[:0], msg, r.Name)
		if !ok {
			return nil, ErrMalformed
		}
		switch {
		case r.Class != wire.ClassIN:
		case chain.below(owner): // SOA, NS, DS of a zone above
			continue
		case r.Type != wire.TypeSOA && r.Type != wire.TypeNS && apex != nil && wire.IsSubdomain(owner, apex): // NSEC and its like
			continue
		}
		foreign[answers+i] = true
	}
	return foreign, s.foreignExtra(msg, foreign, extra)
}

// foreignExtra says of each additional record, from extra on, whether nothing that
// is not foreign points at it.
func (s *recordSet) foreignExtra(msg []byte, foreign []bool, extra int) error {
	if extra == len(s.recs) {
		return nil
	}
	var targets nameSet
	for i, r := range s.recs[:extra] {
		if !foreign[i] && !targets.addTarget(msg, r) {
			return ErrMalformed
		}
	}
	var buf [wire.MaxName]byte
	for i, r := range s.recs[extra:] {
		owner, ok := wire.AppendName(buf[:0], msg, r.Name)
		if !ok {
			return ErrMalformed
		}
		if foreign[extra+i] = r.Class != wire.ClassIN || !targets.has(owner); foreign[extra+i] {
			continue
		}
		// An alias of a service comes with what it leads to (RFC 9460 4.2).
		if isService(r.Type) || r.Type == wire.TypeCNAME {
			if !targets.addTarget(msg, r) {
				return ErrMalformed
			}
		}
	}
	return nil
}

// addTarget adds the host that the data of a record names, and that additional
// records may describe, if there is one; false where there should be.
func (s *nameSet) addTarget(msg []byte, r wire.Record) bool {
	at := r.Data
	switch r.Type {
	case wire.TypeNS, wire.TypeCNAME:
	case wire.TypeMX, wire.TypeSVCB, wire.TypeHTTPS:
		at += 2 // behind preference or priority
	case wire.TypeSRV:
		at += 6 // behind priority, weight and port
	default:
		return true
	}
	if isService(r.Type) && at < r.End && msg[at] == 0 {
		return s.add(msg, r.Name, r.Data) // the root stands for the owner (RFC 9460 2.5)
	}
	return s.add(msg, at, r.End)
}

func isService(typ uint16) bool { return typ == wire.TypeSVCB || typ == wire.TypeHTTPS }

// follow collects the names that the answer leads through, and says of each of its
// records whether it belongs to none of them. They may stand in any order.
func (s *recordSet) follow(msg, name []byte, foreign []bool) (*nameSet, error) {
	chain := &nameSet{}
	chain.addName(name)
	var aliases nameSet // owners of DNAMEs, whose signatures belong too
	for i := range foreign {
		foreign[i] = true
	}
	var buf [wire.MaxName]byte
	for again := true; again; {
		again = false
		for i, r := range s.section(answerSection) {
			if !foreign[i] || r.Class != wire.ClassIN {
				continue
			}
			owner, ok := wire.AppendName(buf[:0], msg, r.Name)
			if !ok {
				return nil, ErrMalformed
			}
			switch {
			case chain.has(owner):
				if r.Type == wire.TypeCNAME && !chain.add(msg, r.Data, r.End) {
					return nil, ErrMalformed
				}
			case r.Type == wire.TypeDNAME && chain.below(owner):
				aliases.addName(owner)
			case r.Type == wire.TypeRRSIG && aliases.has(owner):
			default:
				continue
			}
			if len(chain.names) > maxChain {
				return nil, ErrLongChain
			}
			foreign[i], again = false, true
		}
	}
	return chain, nil
}

// class says what a reply with rcode NOERROR or NXDOMAIN holds.
func (s *recordSet) class(rcode int, typ uint16) Class {
	if rcode == wire.NoError {
		for _, r := range s.section(answerSection) {
			if r.Type == typ || typ == wire.TypeANY {
				return Success
			}
		}
	}
	for _, r := range s.section(authoritySection) {
		if r.Type == wire.TypeSOA {
			return Denial
		}
	}
	return Uncached // a referral, or a denial that does not say for how long
}

// setTTLs writes the TTLs that clients are to see and returns the lowest. Those of
// one set need not stand together.
func (s *recordSet) setTTLs(msg []byte, limit uint32, denial bool) uint32 {
	const few = len(s.room)
	of, ttls := make([]int, 0, few), make([]uint32, 0, few) // the set of each record; the TTL of each set
	sets := map[string]int{}
	var room [wire.MaxName + 4]byte
	for i, r := range s.recs {
		if i > 0 && sameSet(msg, s.recs[i-1], r) {
			of = append(of, of[i-1])
		} else {
			key := appendSet(room[:0], msg, r)
			set, ok := sets[string(key)]
			if !ok {
				set = len(ttls)
				sets[string(key)] = set
				ttls = append(ttls, limit)
			}
			of = append(of, set)
		}
		set := of[i]
		ttls[set] = min(ttls[set], r.TTL)
		if denial && r.Type == wire.TypeSOA && r.End-r.Data >= minSOA {
			ttls[set] = min(ttls[set], binary.BigEndian.Uint32(msg[r.End-4:]))
		}
	}
	for i, r := range s.recs {
		binary.BigEndian.PutUint32(msg[r.TTLOffset():], ttls[of[i]])
	}
	return slices.Min(append(ttls, limit))
}

// intact reports whether a record's data is what its type says: addresses have
// their length, and names end where they should and do not point behind what is
// kept. Other data is the clients' to read.
func intact(msg []byte, r wire.Record) bool {
	switch r.Type {
	case wire.TypeA:
		return r.End-r.Data == 4
	case wire.TypeAAAA:
		return r.End-r.Data == 16
	}
	var buf [wire.MaxName + 1]byte
	at, n, ok := wire.DataNames(msg, r)
	for _, off := range at[:n] {
		if _, name := wire.AppendName(buf[:0], msg, off); !name {
			return false
		}
	}
	return ok
}

// isProof reports whether records of a type are there for those alone who check
// signatures.
func isProof(typ uint16) bool {
	return typ == wire.TypeRRSIG || typ == wire.TypeNSEC || typ == wire.TypeNSEC3
}

// minSOA is the shortest SOA data: two root names and five numbers, of which
// MINIMUM is the last (RFC 1035 3.3.13).
const minSOA = 2 + 5*4

// sameSet reports whether two neighbours are of one set, spelled (or compressed)
// alike; where they are not, appendSet tells.
func sameSet(msg []byte, a, b wire.Record) bool {
	return a.Type == b.Type && a.Type != wire.TypeRRSIG && string(msg[a.Name:a.TTLOffset()]) == string(msg[b.Name:b.TTLOffset()])
}

// appendSet appends what the records of one set have in common: the owner, which is
// a name, and the type. A signature belongs to the set that it covers (RFC 4034 3).
func appendSet(dst, msg []byte, r wire.Record) []byte {
	dst, _ = wire.AppendName(dst, msg, r.Name)
	dst = binary.BigEndian.AppendUint16(dst, r.Type)
	if r.Type == wire.TypeRRSIG && r.End-r.Data >= 2 {
		dst = append(dst, msg[r.Data:r.Data+2]...)
	}
	return dst
}

// findRotation finds the address set that replies start at a different
// record of each time. Only records of one size under one spelling of the
// owner are exchanged: every byte that a compression pointer may lead to
// stays the same wherever they stand.
func (a *Admission) findRotation(msg []byte, start int, answer []wire.Record, typ uint16) {
	for i, r := range answer {
		if r.Type != typ {
			continue
		}
		n := 1
		for _, next := range answer[i+1:] {
			if next.End-next.Name != r.End-r.Name || !sameSet(msg, r, next) {
				break
			}
			n++
		}
		if n > 1 {
			a.rotateFrom, a.rotateSize, a.rotateN = r.Name-start, r.End-r.Name, n
		}
		return
	}
}

// A nameSet is a handful of names in lower case.
type nameSet struct {
	names [][]byte
}

func (s *nameSet) addName(name []byte) {
	s.names = append(s.names, append([]byte(nil), name...))
}

// add adds the name at an offset of msg; false where none lies before end.
func (s *nameSet) add(msg []byte, off, end int) bool {
	if n := wire.SkipName(msg, off); n < 0 || n > end {
		return false
	}
	var buf [wire.MaxName]byte
	name, ok := wire.AppendName(buf[:0], msg, off)
	if ok && !s.has(name) {
		s.addName(name)
	}
	return ok
}

func (s *nameSet) has(name []byte) bool {
	for _, n := range s.names {
		if string(n) == string(name) {
			return true
		}
	}
	return false
}

// below reports whether one of the names is zone or lies below it.
func (s *nameSet) below(zone []byte) bool {
	for _, n := range s.names {
		if wire.IsSubdomain(n, zone) {
			return true
		}
	}
	return false
}

package wire

// dataLayout says where domain names lie in a record's data: behind skip bytes,
// names of them in a row, and behind those exactly rest bytes, or any number
// where rest is negative.
type dataLayout struct {
	skip, names, rest int
}

// dataLayouts has every type that RFC 3597 4 lets be compressed, and those later
// ones whose names other records' pointers may lead to: many a server compresses
// no name in them and points at it all the same. HIP, IPSECKEY and AMTRELAY, whose
// names are at the end of what has no fixed length, are not among them.
var dataLayouts = [...]dataLayout{
	TypeNS: {0, 1, 0}, typeMD: {0, 1, 0}, typeMF: {0, 1, 0}, TypeCNAME: {0, 1, 0}, typeMB: {0, 1, 0},
	typeMG: {0, 1, 0}, typeMR: {0, 1, 0}, TypePTR: {0, 1, 0}, typeNSAPPTR: {0, 1, 0}, TypeDNAME: {0, 1, 0},
	typeMINFO: {0, 2, 0}, typeRP: {0, 2, 0}, typeTALINK: {0, 2, 0},
	TypeSOA: {0, 2, 20}, // and five numbers (RFC 1035 3.3.13)
	TypeMX:  {2, 1, 0}, typeAFSDB: {2, 1, 0}, typeRT: {2, 1, 0}, typeKX: {2, 1, 0}, typeLP: {2, 1, 0},
	typePX:   {2, 2, 0},
	TypeSRV:  {6, 1, 0},
	TypeSVCB: {2, 1, -1}, TypeHTTPS: {2, 1, -1},
	typeSIG: {18, 1, -1}, TypeRRSIG: {18, 1, -1},
	typeNXT: {0, 1, -1}, TypeNSEC: {0, 1, -1},
}

// DataNames returns where in msg the names of a record's data are, and how many
// there are: none of a type that has none, or that is not known. ok is false where
// the data is not what its type says. A name that it finds lies inside the record,
// but what its pointer leads to is for [AppendName] to judge.
func DataNames(msg []byte, r Record) (at [2]int, n int, ok bool) {
	var l dataLayout
	if int(r.Type) < len(dataLayouts) {
		l = dataLayouts[r.Type]
	}
	off := r.Data
	if r.Type == typeNAPTR {
		l = dataLayout{4, 1, 0} // behind order and preference
		for range 3 {           // flags, services, regexp (RFC 3403 4.1)
			if off+l.skip >= r.End {
				return at, 0, false
			}
			l.skip += 1 + int(msg[off+l.skip])
		}
	}
	off += l.skip
	for ; n < l.names; n++ {
		at[n] = off
		if off = SkipName(msg, off); off < 0 || off > r.End {
			return at, 0, false
		}
	}
	return at, n, n == 0 || l.rest < 0 || off+l.rest == r.End
}

// Respell gives the names of a reply the letters that its question was meant to
// have: where one ends as sent does, letter for letter, it gets those of name, which
// is sent but for their case. The question has to be about sent. From a record on
// that cannot be read the reply is left alone.
func Respell(reply, sent, name []byte) {
	copy(reply[HeaderLen:], name)
	off := HeaderLen + len(name) + 4
	for off < len(reply) {
		r, ok := NextRecord(reply, off)
		if !ok {
			return
		}
		respellName(reply, r.Name, sent, name)
		at, n, _ := DataNames(reply, r)
		for _, off := range at[:n] {
			respellName(reply, off, sent, name)
		}
		off = r.End
	}
}

// respellName is Respell for the name at off, as far as it is spelled out there.
// What it may point at comes before it, and has been seen to.
func respellName(msg []byte, off int, sent, name []byte) {
	var buf [MaxName]byte
	full, ok := AppendName(buf[:0], msg, off)
	if !ok {
		return
	}
	end := off
	for msg[end] != 0 && msg[end] < compressionPointer {
		end += 1 + int(msg[end])
	}
	for off < end {
		from := len(name) - len(full)
		if from >= 0 && EqualFold(full, name[from:]) && string(msg[off:end]) == string(sent[from:from+end-off]) {
			copy(msg[off:end], name[from:])
			return
		}
		n := 1 + int(msg[off])
		off, full = off+n, full[n:]
	}
}

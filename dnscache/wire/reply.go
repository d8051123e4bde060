package wire

import (
	"bytes"
	"encoding/binary"
)

// A Record is one resource record inside a message, as offsets.
type Record struct {
	Name  int // offset of the owner name
	Data  int // offset of the data
	End   int // offset behind the record
	Type  uint16
	Class uint16
	TTL   uint32
}

// TTLOffset is where the record's TTL lies in the message.
func (r Record) TTLOffset() int { return r.Data - 6 }

// NextRecord reads the record at off. It is false where the record does not
// lie inside msg, or its owner name is not a name.
func NextRecord(msg []byte, off int) (Record, bool) {
	end := SkipName(msg, off)
	if end < 0 || end+recordFixedLen > len(msg) {
		return Record{}, false
	}
	b := msg[end : end+recordFixedLen]
	r := Record{
		Name:  off,
		Type:  binary.BigEndian.Uint16(b),
		Class: binary.BigEndian.Uint16(b[2:]),
		TTL:   binary.BigEndian.Uint32(b[4:]),
		Data:  end + recordFixedLen,
	}
	r.End = r.Data + int(binary.BigEndian.Uint16(b[8:]))
	return r, r.End <= len(msg)
}

// SkipName returns the offset behind the name at off, which may end in a
// compression pointer, or -1.
func SkipName(msg []byte, off int) int {
	start := off
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			return off + 1
		case n&compressionPointer == compressionPointer:
			if off+2 > len(msg) {
				return -1
			}
			if to := int(binary.BigEndian.Uint16(msg[off:])) & 0x3FFF; to >= start || to < HeaderLen {
				return -1
			}
			return off + 2
		case n > 63 || off+n+1-start > MaxName:
			return -1
		}
		off += n + 1
	}
	return -1
}

// maxPointers is more than a name of 127 labels has use for.
const maxPointers = 126

// AppendName appends the name at off, decompressed and in lower case. It is
// false where there is no valid name. Every pointer must lead further back
// than the one before (RFC 1035 4.1.4: "a prior occurrence"), so it ends, and
// there is one at most for each label.
func AppendName(dst, msg []byte, off int) ([]byte, bool) {
	begin := len(dst)
	dst, ok := AppendSpelled(dst, msg, off)
	for i, c := range dst[begin:] {
		dst[begin+i] = lower(c)
	}
	return dst, ok
}

// AppendSpelled is AppendName with the letters as they are.
func AppendSpelled(dst, msg []byte, off int) ([]byte, bool) {
	begin, limit, pointers := len(dst), off, 0
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			dst = append(dst, 0)
			return dst, len(dst)-begin <= MaxName
		case n&compressionPointer == compressionPointer:
			if pointers++; off+2 > len(msg) || pointers > maxPointers {
				return dst, false
			}
			off = int(binary.BigEndian.Uint16(msg[off:])) & 0x3FFF
			if off >= limit || off < HeaderLen {
				return dst, false
			}
			limit = off
			continue
		case n > 63 || off+n+1 > len(msg) || len(dst)-begin+n+1 > MaxName:
			return dst, false
		}
		dst = append(dst, msg[off:off+n+1]...)
		off += n + 1
	}
	return dst, false
}

// A ReplyFault is why a message is not a reply to a question.
type ReplyFault string

func (f ReplyFault) Error() string { return string(f) }

// What CheckReply finds.
const (
	NotAReply     ReplyFault = "not a reply"
	OtherID       ReplyFault = "reply with another id"
	OtherQuestion ReplyFault = "reply to another question"
)

// CheckReply says whether reply answers query (RFC 5452 3): a reply, with its
// id and its question, letters compared without case. An error reply may come
// without the question, as some servers send it when they could not read the
// query or would not try.
func CheckReply(query, reply []byte) error {
	if len(reply) < HeaderLen {
		return NotAReply
	}
	flags := binary.BigEndian.Uint16(reply[2:])
	if flags&FlagQR == 0 || flags&opcodeMask != 0 {
		return NotAReply
	}
	if !bytes.Equal(query[:2], reply[:2]) {
		return OtherID
	}
	qd := binary.BigEndian.Uint16(reply[4:])
	if qd == 0 {
		switch int(flags & rcodeMask) {
		case FormErr, ServFail, NotImp, Refused:
			return nil
		}
		return OtherQuestion
	}
	end := skipLabels(query, HeaderLen)
	if qd != 1 || end < 0 || end+4 > len(query) || end+4 > len(reply) {
		return OtherQuestion
	}
	if !EqualFold(query[HeaderLen:end], reply[HeaderLen:end]) || !bytes.Equal(query[end:end+4], reply[end:end+4]) {
		return OtherQuestion
	}
	return nil
}

// EqualFold compares two names in wire form without case (RFC 4343).
func EqualFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c-'A' < 26 {
		return c + 'a' - 'A'
	}
	return c
}

// IsSubdomain reports whether name is zone or lies below it. Both are in wire
// form and lower case.
func IsSubdomain(name, zone []byte) bool {
	for len(name) > len(zone) {
		name = name[1+int(name[0]):]
	}
	return bytes.Equal(name, zone)
}

// ParseName turns a domain name in text, without escapes, into wire form in
// lower case. The trailing dot is optional. It is false for a name that is no
// name.
func ParseName(s string) ([]byte, bool) {
	if n := len(s); n > 0 && s[n-1] == '.' {
		s = s[:n-1]
	}
	if s == "" {
		return []byte{0}, true
	}
	out := make([]byte, 1, len(s)+2)
	at := 0
	for i := range len(s) {
		if s[i] == '.' {
			if out[at] == 0 {
				return nil, false
			}
			at = len(out)
			out = append(out, 0)
			continue
		}
		if out[at]++; out[at] > 63 {
			return nil, false
		}
		out = append(out, lower(s[i]))
	}
	if out[at] == 0 || len(out)+1 > MaxName {
		return nil, false
	}
	return append(out, 0), true
}

// Flags are the header flags of a message of at least HeaderLen bytes.
func Flags(msg []byte) uint16 { return binary.BigEndian.Uint16(msg[2:]) }

// RCode is the response code in the header, without EDNS's high bits.
func RCode(msg []byte) int { return int(Flags(msg) & rcodeMask) }

// IsBadVers reports whether msg says that the version of EDNS is not known. Its
// response code has bits in the OPT record, and there is nothing else to it
// (RFC 6891 6.1.3).
func IsBadVers(msg []byte) bool {
	if RCode(msg) != BadVers&int(rcodeMask) || binary.BigEndian.Uint16(msg[6:]) != 0 {
		return false
	}
	off := HeaderLen
	if binary.BigEndian.Uint16(msg[4:]) == 1 {
		off = SkipName(msg, off) + 4
	}
	for off >= HeaderLen && off < len(msg) {
		r, ok := NextRecord(msg, off)
		if !ok {
			break
		}
		if r.Type == TypeOPT {
			return r.TTL>>24 == BadVers>>4
		}
		off = r.End
	}
	return false
}

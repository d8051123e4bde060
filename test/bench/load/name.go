package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
)

// A Set is names that are made from numbers: Count of them from First on.
type Set struct {
	Kind  NameKind `json:"kind"`
	First int      `json:"first"`
	Count int      `json:"count"`
}

// A NameKind is a kind of name.
type NameKind string

// The kinds.
const (
	// Pod names are those that kube-dns answers with the address they spell:
	// number 258 is 10-0-1-2.bench.pod.cluster.local. and has 10.0.1.2. There
	// are 1<<24.
	Pod NameKind = "pod"
	// None are names of services that are not.
	None NameKind = "none"
)

// question is the i-th one, round and round.
func (s Set) question(i int) question {
	return question{s.Kind == None, int32(s.First + i%s.Count)}
}

// A question is for the A records of a name. It is small, as there is room for two
// million.
type question struct {
	none   bool // else a pod's
	number int32
}

func (q question) String() string {
	b := q.appendWire(nil)
	var s []byte
	for b[0] != 0 {
		s = append(append(s, b[1:1+b[0]]...), '.')
		b = b[1+b[0]:]
	}
	return string(s) + " A"
}

const (
	podZone  = "\x05bench\x03pod\x07cluster\x05local\x00"
	noneZone = "\x05bench\x03svc\x07cluster\x05local\x00"
	header   = 12
	maxQuery = 512

	typeA       = 1
	typeAAAA    = 28
	classIN     = 1
	rcodeNXName = 3
)

// appendWire appends the question as it is on the wire.
func (q question) appendWire(b []byte) []byte {
	at := len(b)
	b = append(b, 0)
	zone := podZone
	if !q.none {
		b = append(b, "10-"...)
		b = strconv.AppendInt(b, int64(q.number>>16&0xff), 10)
		b = strconv.AppendInt(append(b, '-'), int64(q.number>>8&0xff), 10)
		b = strconv.AppendInt(append(b, '-'), int64(q.number&0xff), 10)
	} else {
		b = strconv.AppendInt(append(b, 'n'), int64(q.number), 10)
		zone = noneZone
	}
	b[at] = byte(len(b) - at - 1)
	return append(append(b, zone...), 0, typeA, 0, classIN)
}

// appendQuery appends a query as a stub sends it: recursion desired, no EDNS.
func appendQuery(b []byte, id uint16, q question) []byte {
	b = binary.BigEndian.AppendUint16(b, id)
	return q.appendWire(append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0))
}

// judge says what is wrong with the reply to a question, or nothing. It allocates
// only to say so.
func (q question) judge(reply []byte, anyAddress bool) string {
	var room [maxQuery]byte
	want := q.appendWire(room[:0])
	if len(reply) < header+len(want) || reply[2]&0x80 == 0 || !bytes.Equal(reply[header:header+len(want)], want) {
		return "the reply is to something else"
	}
	if reply[2]&0x02 != 0 {
		return "truncated"
	}
	rcode, answers := reply[3]&0x0f, binary.BigEndian.Uint16(reply[6:])
	if q.none {
		if rcode != rcodeNXName {
			return fmt.Sprintf("rcode %d, want %d", rcode, rcodeNXName)
		}
		return ""
	}
	if rcode != 0 || answers != 1 {
		return fmt.Sprintf("rcode %d and %d answers, want 0 and 1", rcode, answers)
	}
	if anyAddress {
		return ""
	}
	rr := reply[header+len(want):]
	for len(rr) > 0 && rr[0] != 0 && rr[0] < 0xc0 { // a name that is not compressed
		rr = rr[min(1+int(rr[0]), len(rr)):]
	}
	if len(rr) > 0 && rr[0] >= 0xc0 {
		rr = rr[1:]
	}
	const fixed = 1 + 10 // the last byte of the name; type, class, TTL and length
	address := []byte{10, byte(q.number >> 16), byte(q.number >> 8), byte(q.number)}
	if len(rr) < fixed+4 || !bytes.Equal(rr[1:5], []byte{0, typeA, 0, classIN}) || !bytes.Equal(rr[fixed:fixed+4], address) {
		return "another address"
	}
	return ""
}

package dnscache

import (
	"bytes"
	"encoding/binary"

	"nodelocaldns/dnscache/wire"
)

// The resolver itself answers one name, so that a client can ask whether a big
// reply reaches the place where it is: no name of others can tell that on every
// node. It is of class CHAOS, as the names are by which servers speak of
// themselves (RFC 4892), and is neither cached nor asked of anybody.
const (
	canaryName = "\x06canary\x0cnodelocaldns\x00" // in wire form

	// 16 of the longest strings that there are make 4,288 bytes: more than any
	// reply we give over UDP, and than two frames of an Ethernet carry.
	canaryRecords = 16
	canaryString  = 255
)

// canaryAnswer are the records, whose owner is the name in the question.
var canaryAnswer = func() []byte {
	var out []byte
	for range canaryRecords {
		out = append(out, 0xC0, wire.HeaderLen) // a pointer to the question (RFC 1035 4.1.4)
		out = binary.BigEndian.AppendUint16(out, wire.TypeTXT)
		out = binary.BigEndian.AppendUint16(out, wire.ClassCH)
		out = binary.BigEndian.AppendUint32(out, 0) // TTL
		out = binary.BigEndian.AppendUint16(out, 1+canaryString)
		out = append(out, canaryString)
		out = append(out, bytes.Repeat([]byte{'.'}, canaryString)...)
	}
	return out
}()

func isCanary(q *wire.Query) bool {
	return q.Class == wire.ClassCH && q.Type == wire.TypeTXT && bytes.EqualFold(q.Name(), []byte(canaryName))
}

// appendCanary appends the reply to q: all of the answer, or none of it and
// the mark that it is truncated where it is longer than limit.
func appendCanary(dst []byte, q *wire.Query, limit int) []byte {
	flags, records, opt := wire.ReplyFlags(q, wire.NoError), uint16(canaryRecords), uint16(0)
	length := wire.HeaderLen + len(q.Question) + len(canaryAnswer)
	if q.HasOPT {
		opt = 1
		length += wire.OPTLen(wire.EDENone)
	}
	answer := canaryAnswer
	if length > limit {
		flags |= wire.FlagTC
		records, answer = 0, nil
	}
	dst = wire.AppendHeader(dst, q.ID, flags, 1, records, 0, opt)
	dst = append(dst, q.Question...)
	dst = append(dst, answer...)
	if q.HasOPT {
		dst = wire.AppendOPT(dst, wire.NoError, q.DO, wire.EDENone)
	}
	return dst
}

// Package wire reads and patches DNS messages as bytes. It never allocates
// for a query: what it returns points into the packet it was given.
package wire

import "encoding/binary"

// HeaderLen is the size of a DNS header (RFC 1035 4.1.1).
const HeaderLen = 12

// MaxName is the longest domain name in wire form (RFC 1035 2.3.4).
const MaxName = 255

// MaxMessage is the longest DNS message: TCP's length field has 16 bits
// (RFC 1035 4.2.2).
const MaxMessage = 65535

// MinUDP is the reply size that every client takes (RFC 1035 4.2.1).
const MinUDP = 512

// MaxUDP is the largest reply we send over UDP, and the size we offer
// upstream: with it no reply is fragmented on any path of the IPv6 minimum
// MTU (RFC 9715, DNS flag day 2020).
const MaxUDP = 1232

// Header flag bits (RFC 1035 4.1.1, RFC 4035 3.2).
const (
	FlagQR uint16 = 1 << 15
	FlagAA uint16 = 1 << 10
	FlagTC uint16 = 1 << 9
	FlagRD uint16 = 1 << 8
	FlagRA uint16 = 1 << 7
	FlagAD uint16 = 1 << 5
	FlagCD uint16 = 1 << 4

	opcodeMask uint16 = 0xF << 11
	rcodeMask  uint16 = 0xF
)

// Response codes (IANA, DNS RCODEs). BadVers is an extended one: it needs an
// OPT record (RFC 6891 6.1.3).
const (
	NoError  = 0
	FormErr  = 1
	ServFail = 2
	NXDomain = 3
	NotImp   = 4
	Refused  = 5
	BadVers  = 16
)

// Record types and classes that the resolver looks at (IANA).
const (
	TypeA     uint16 = 1
	TypeNS    uint16 = 2
	TypeCNAME uint16 = 5
	TypeSOA   uint16 = 6
	TypePTR   uint16 = 12
	TypeMX    uint16 = 15
	TypeTXT   uint16 = 16
	TypeAAAA  uint16 = 28
	TypeSRV   uint16 = 33
	TypeDNAME uint16 = 39
	TypeOPT   uint16 = 41
	TypeRRSIG uint16 = 46
	TypeNSEC  uint16 = 47
	TypeNSEC3 uint16 = 50
	TypeSVCB  uint16 = 64
	TypeHTTPS uint16 = 65
	TypeTKEY  uint16 = 249
	TypeTSIG  uint16 = 250
	TypeIXFR  uint16 = 251
	TypeAXFR  uint16 = 252
	TypeANY   uint16 = 255

	typeMD      uint16 = 3
	typeMF      uint16 = 4
	typeMB      uint16 = 7
	typeMG      uint16 = 8
	typeMR      uint16 = 9
	typeMINFO   uint16 = 14
	typeRP      uint16 = 17
	typeAFSDB   uint16 = 18
	typeRT      uint16 = 21
	typeNSAPPTR uint16 = 23
	typeSIG     uint16 = 24
	typePX      uint16 = 26
	typeNXT     uint16 = 30
	typeNAPTR   uint16 = 35
	typeKX      uint16 = 36
	typeTALINK  uint16 = 58
	typeLP      uint16 = 107

	ClassIN uint16 = 1
	ClassCH uint16 = 3
)

// Extended DNS Errors that the resolver gives (RFC 8914, IANA).
const (
	EDENone          uint16 = 0xFFFF // not an error code: no EDE
	EDEOther         uint16 = 0
	EDEStale         uint16 = 3
	EDENotReady      uint16 = 14
	EDEStaleNXDomain uint16 = 19
	EDENoReachable   uint16 = 22
	EDENetworkError  uint16 = 23
)

// Sizes and marks inside messages.
const (
	optHeaderLen              = 11      // OPT without options (RFC 6891 6.1.2)
	optDO                     = 1 << 15 // in the TTL field (RFC 3225 3)
	optionHeaderLen           = 4
	edeOptionCode      uint16 = 15 // RFC 8914 2
	recordFixedLen            = 10 // type, class, TTL, length
	compressionPointer        = 0xC0
)

// A Query is a parsed question. Its slices point into the packet it was
// parsed from; Clone makes it independent.
type Query struct {
	ID      uint16
	Flags   uint16 // as received
	Type    uint16
	Class   uint16
	UDPSize uint16 // as offered in OPT, 0 without
	HasOPT  bool
	DO      bool

	// Question is the question in wire form, the name spelled as the client
	// spelled it.
	Question []byte
}

// Name is the question's name in wire form, as the client spelled it.
func (q *Query) Name() []byte { return q.Question[:len(q.Question)-4] }

// Clone returns a copy that does not point into the packet.
func (q *Query) Clone() Query {
	c := *q
	c.Question = append([]byte(nil), q.Question...)
	return c
}

// Limit is the largest reply that the client takes over UDP (RFC 6891 6.2.3).
func (q *Query) Limit() int {
	return min(max(int(q.UDPSize), MinUDP), MaxUDP)
}

// A Verdict says what is to be done with a packet.
type Verdict uint8

// The verdicts. Every one but Drop and Answer is an error reply.
const (
	Answer    Verdict = iota // a question to be answered
	Drop                     // no reply: not a query, or too short to have an id
	Malformed                // FORMERR
	Opcode                   // NOTIMP: not a standard query
	Forbidden                // REFUSED: not class IN, or a zone transfer
	Version                  // BADVERS: an EDNS version that nobody knows yet
)

// RCode is the response code that goes with v.
func (v Verdict) RCode() int {
	switch v {
	case Malformed:
		return FormErr
	case Opcode:
		return NotImp
	case Forbidden:
		return Refused
	case Version:
		return BadVers
	}
	return NoError
}

// ParseQuery reads a client's packet into q. Where the verdict is Drop,
// Malformed or Opcode, of q only ID and Flags are set and Question is nil.
//
// It is strict: one question, no answer or authority records, no compression
// in the question, at most one OPT and that one well formed, and nothing
// behind the last record. Additional records other than OPT are passed over.
func ParseQuery(pkt []byte, q *Query) Verdict {
	*q = Query{}
	if len(pkt) < HeaderLen {
		return Drop
	}
	q.ID = binary.BigEndian.Uint16(pkt)
	q.Flags = binary.BigEndian.Uint16(pkt[2:])
	if q.Flags&FlagQR != 0 {
		return Drop // answering replies would start a ping-pong
	}
	if q.Flags&opcodeMask != 0 {
		return Opcode
	}
	// ANCOUNT and NSCOUNT in one comparison.
	if binary.BigEndian.Uint16(pkt[4:]) != 1 || binary.BigEndian.Uint32(pkt[6:]) != 0 {
		return Malformed
	}
	end := skipLabels(pkt, HeaderLen)
	if end < 0 || end+4 > len(pkt) {
		return Malformed
	}
	typ := binary.BigEndian.Uint16(pkt[end:])
	class := binary.BigEndian.Uint16(pkt[end+2:])
	end += 4
	if typ == 0 || typ == TypeOPT {
		return Malformed
	}
	off := end
	var opt Record // at most one
	for range binary.BigEndian.Uint16(pkt[10:]) {
		r, ok := NextRecord(pkt, off)
		if !ok {
			return Malformed
		}
		if r.Type == TypeOPT {
			// A root owner is one byte long (RFC 6891 6.1.2).
			if opt.Type != 0 || r.Data-recordFixedLen-r.Name != 1 || !validOptions(pkt[r.Data:r.End]) {
				return Malformed
			}
			opt = r
		}
		off = r.End
	}
	if off != len(pkt) {
		return Malformed
	}
	q.Type, q.Class, q.Question = typ, class, pkt[HeaderLen:end]
	if opt.Type != 0 {
		q.HasOPT, q.UDPSize, q.DO = true, opt.Class, opt.TTL&optDO != 0
		if opt.TTL>>16&0xFF != 0 {
			return Version
		}
	}
	if class != ClassIN || typ == TypeAXFR || typ == TypeIXFR || typ == TypeTSIG || typ == TypeTKEY {
		return Forbidden
	}
	return Answer
}

// skipLabels returns the offset behind an uncompressed name, or -1.
func skipLabels(pkt []byte, off int) int {
	start := off
	for off < len(pkt) {
		n := int(pkt[off])
		if n == 0 {
			if off+1-start > MaxName {
				return -1
			}
			return off + 1
		}
		if n > 63 {
			return -1
		}
		off += n + 1
	}
	return -1
}

// validOptions reports whether EDNS options fill their record exactly.
func validOptions(b []byte) bool {
	for len(b) >= optionHeaderLen {
		n := optionHeaderLen + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}

// Key flags: what makes the same question a different one.
const (
	keyDO  = 1 << 0 // DNSSEC records wanted
	keyCD  = 1 << 1 // validation switched off
	keyRD0 = 1 << 2 // no recursion wanted
)

// MaxKey is the longest key.
const MaxKey = MaxName + 3

// AppendKey appends the identity of q to dst: the name in lower case (RFC
// 4343), the type, and the bits that change what upstream answers: DO, CD and
// the absence of RD.
func AppendKey(dst []byte, q *Query) []byte {
	dst = AppendFold(dst, q.Name())
	var f byte
	if q.DO {
		f |= keyDO
	}
	if q.Flags&FlagCD != 0 {
		f |= keyCD
	}
	if q.Flags&FlagRD == 0 {
		f |= keyRD0
	}
	return append(dst, byte(q.Type>>8), byte(q.Type), f)
}

// SplitKey is the name in a key, and whether the question asks for recursion.
func SplitKey(key []byte) (name []byte, recursive bool) {
	return key[:len(key)-3], key[len(key)-1]&keyRD0 == 0
}

// KeyDO reports whether a key asks for DNSSEC records.
func KeyDO(key []byte) bool { return key[len(key)-1]&keyDO != 0 }

// KeyType is the record type in a key.
func KeyType(key []byte) uint16 { return binary.BigEndian.Uint16(key[len(key)-3:]) }

// AppendSibling appends the key of another type of record with the same name and flags.
func AppendSibling(dst, key []byte, typ uint16) []byte {
	dst = append(dst, key...)
	binary.BigEndian.PutUint16(dst[len(dst)-3:], typ)
	return dst
}

// AppendFold appends a name in wire form to dst, its letters in lower case.
// Length octets are at most 63 and so never look like letters.
func AppendFold(dst, name []byte) []byte {
	for _, c := range name {
		if c-'A' < 26 {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// AppendUpstreamQuery appends the query that asks upstream for key: folded
// name, RD unless the client said otherwise, AD so that a validating upstream
// tells (RFC 6840 5.7), CD and DO as in the key, and, with edns, an OPT record
// of our own (RFC 6891 6.2.6: options are not forwarded).
func AppendUpstreamQuery(dst []byte, id uint16, key []byte, edns bool) []byte {
	name, typ, f := key[:len(key)-3], key[len(key)-3:len(key)-1], key[len(key)-1]
	flags := FlagRD | FlagAD
	if f&keyRD0 != 0 {
		flags &^= FlagRD
	}
	if f&keyCD != 0 {
		flags |= FlagCD
	}
	dst = binary.BigEndian.AppendUint16(dst, id)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = append(dst, 0, 1, 0, 0, 0, 0, 0, 0)
	if edns {
		dst[len(dst)-1] = 1
	}
	dst = append(dst, name...)
	dst = append(dst, typ...)
	dst = append(dst, 0, byte(ClassIN))
	if edns {
		dst = AppendOPT(dst, NoError, f&keyDO != 0, EDENone)
	}
	return dst
}

// OPTLen is the length of the OPT record that AppendOPT appends.
func OPTLen(ede uint16) int {
	if ede == EDENone {
		return optHeaderLen
	}
	return optHeaderLen + optionHeaderLen + 2 + len(edeText(ede))
}

// AppendOPT appends an OPT record: version 0, our size, the high bits of
// rcode, and an Extended DNS Error unless ede is EDENone.
func AppendOPT(dst []byte, rcode int, do bool, ede uint16) []byte {
	var f byte
	if do {
		f = optDO >> 8
	}
	dst = append(dst, 0, byte(TypeOPT>>8), byte(TypeOPT), MaxUDP>>8, MaxUDP&0xFF, byte(rcode>>4), 0, f, 0)
	if ede == EDENone {
		return append(dst, 0, 0)
	}
	text := edeText(ede)
	dst = binary.BigEndian.AppendUint16(dst, uint16(optionHeaderLen+2+len(text)))
	dst = binary.BigEndian.AppendUint16(dst, edeOptionCode)
	dst = binary.BigEndian.AppendUint16(dst, uint16(2+len(text)))
	dst = binary.BigEndian.AppendUint16(dst, ede)
	return append(dst, text...)
}

// edeText is the extra text that goes with an error of ours.
func edeText(ede uint16) string {
	switch ede {
	case EDEOther:
		return "nodelocaldns: forwarding loop"
	case EDENotReady:
		return "nodelocaldns: too many questions at once, about to stop, or kube-dns not known yet"
	case EDENoReachable:
		return "nodelocaldns: no upstream is known"
	case EDENetworkError:
		return "nodelocaldns: no upstream gave a usable reply in time"
	}
	return ""
}

// ReplyFlags are the header flags of a reply to q: QR and RA set, RD and CD as
// the client sent them, AA never, since nobody here is an authority.
func ReplyFlags(q *Query, rcode int) uint16 {
	return FlagQR | FlagRA | q.Flags&(FlagRD|FlagCD) | uint16(rcode)&rcodeMask
}

// WantsAD reports whether the client asked to be told about validation (RFC
// 6840 5.8).
func (q *Query) WantsAD() bool { return q.DO || q.Flags&FlagAD != 0 }

// AppendHeader appends a DNS header.
func AppendHeader(dst []byte, id, flags, qd, an, ns, ar uint16) []byte {
	dst = binary.BigEndian.AppendUint16(dst, id)
	dst = binary.BigEndian.AppendUint16(dst, flags)
	dst = binary.BigEndian.AppendUint16(dst, qd)
	dst = binary.BigEndian.AppendUint16(dst, an)
	dst = binary.BigEndian.AppendUint16(dst, ns)
	return binary.BigEndian.AppendUint16(dst, ar)
}

// AppendError appends a reply to q without records: the header, the question
// if it could be read, and an OPT record if the client sent one.
func AppendError(dst []byte, q *Query, rcode int, ede uint16) []byte {
	flags := ReplyFlags(q, rcode) | q.Flags&opcodeMask
	var qd, ar uint16
	if q.Question != nil {
		qd = 1
	}
	if q.HasOPT {
		ar = 1
	}
	dst = AppendHeader(dst, q.ID, flags, qd, 0, 0, ar)
	dst = append(dst, q.Question...)
	if q.HasOPT {
		dst = AppendOPT(dst, rcode, q.DO, ede)
	}
	return dst
}

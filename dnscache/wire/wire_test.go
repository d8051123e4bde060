package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/miekg/dns"

	. "nodelocaldns/dnscache/wire" //nolint:revive // the package under test, from outside
)

// header is a DNS header with the given flags and counts.
func header(flags, qd, an, ns, ar uint16) []byte {
	return AppendHeader(nil, 0x1234, flags, qd, an, ns, ar)
}

func name(labels ...string) []byte {
	var b []byte
	for _, l := range labels {
		b = append(append(b, byte(len(l))), l...)
	}
	return append(b, 0)
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func u16(v ...uint16) []byte {
	var b []byte
	for _, x := range v {
		b = binary.BigEndian.AppendUint16(b, x)
	}
	return b
}

var (
	exampleA = cat(name("www", "example"), u16(TypeA, ClassIN))
	long     = strings.Repeat("a", 63)
)

// opt is an OPT record.
func opt(owner []byte, version byte, options ...byte) []byte {
	return cat(owner, u16(TypeOPT, 1232), []byte{0, version, 0x80, 0}, u16(uint16(len(options))), options)
}

func TestEveryPacketHasItsVerdict(t *testing.T) {
	question := func(typ, class uint16) []byte {
		return cat(header(FlagRD, 1, 0, 0, 0), name("www", "example"), u16(typ, class))
	}
	for _, tt := range []struct {
		what string
		pkt  []byte
		want Verdict
	}{
		{"a question", question(TypeA, ClassIN), Answer},
		{"a question for the root", cat(header(0, 1, 0, 0, 0), name(), u16(TypeNS, ClassIN)), Answer},
		{"a question for a type nobody knows", question(65280, ClassIN), Answer},
		{"a question for ANY", question(TypeANY, ClassIN), Answer},
		{"the longest name", cat(header(0, 1, 0, 0, 0), name(long, long, long, long[:61]), u16(TypeA, ClassIN)), Answer},
		{"flags that are nobody's business", cat(header(FlagRD|FlagAA|FlagTC|FlagRA|1<<6|0xF, 1, 0, 0, 0), exampleA), Answer},
		{"an OPT record", cat(header(FlagRD, 1, 0, 0, 1), exampleA, opt(name(), 0)), Answer},
		{"an OPT record with options", cat(header(FlagRD, 1, 0, 0, 1), exampleA, opt(name(), 0, 0, 10, 0, 2, 1, 2, 0, 12, 0, 0)), Answer},
		{"another additional record", cat(header(FlagRD, 1, 0, 0, 2), exampleA, opt(name(), 0),
			name("k"), u16(TypeTSIG, 255, 0, 0, 0)), Answer},
		{"an additional record with a compressed owner", cat(header(FlagRD, 1, 0, 0, 1), exampleA, []byte{0xC0, 12}, u16(TypeA, ClassIN, 0, 0, 0)), Answer},

		{"a reply", cat(header(FlagQR, 1, 0, 0, 0), exampleA), Drop},
		{"a reply with another opcode", cat(header(FlagQR|5<<11, 1, 0, 0, 0), exampleA), Drop},
		{"nothing", nil, Drop},
		{"half a header", header(0, 1, 0, 0, 0)[:11], Drop},

		{"IQUERY", cat(header(1<<11, 1, 0, 0, 0), exampleA), Opcode},
		{"STATUS, a header alone", header(2<<11, 0, 0, 0, 0), Opcode},
		{"NOTIFY", cat(header(4<<11, 1, 0, 0, 0), exampleA), Opcode},
		{"UPDATE", cat(header(5<<11, 1, 0, 0, 0), exampleA), Opcode},
		{"opcode 15", cat(header(15<<11, 1, 0, 0, 0), exampleA), Opcode},

		{"no question", header(0, 0, 0, 0, 0), Malformed},
		{"two questions", cat(header(0, 2, 0, 0, 0), exampleA, exampleA), Malformed},
		{"an answer", cat(header(0, 1, 1, 0, 0), exampleA, name(), u16(TypeA, ClassIN, 0, 0, 0)), Malformed},
		{"an authority record", cat(header(0, 1, 0, 1, 0), exampleA, name(), u16(TypeA, ClassIN, 0, 0, 0)), Malformed},
		{"a header alone", header(0, 1, 0, 0, 0), Malformed},
		{"a name that ends with the packet", cat(header(0, 1, 0, 0, 0), exampleA[:8]), Malformed},
		{"a name without its root", cat(header(0, 1, 0, 0, 0), exampleA[:12]), Malformed},
		{"a type without a class", cat(header(0, 1, 0, 0, 0), exampleA[:len(exampleA)-2]), Malformed},
		{"a pointer in the question", cat(header(0, 1, 0, 0, 0), []byte{0xC0, 12}, u16(TypeA, ClassIN)), Malformed},
		{"a label of an unknown kind", cat(header(0, 1, 0, 0, 0), []byte{0x40, 1, 0}, u16(TypeA, ClassIN)), Malformed},
		{"a name too long", cat(header(0, 1, 0, 0, 0), name(long, long, long, long[:62]), u16(TypeA, ClassIN)), Malformed},
		{"type 0", question(0, ClassIN), Malformed},
		{"a question for OPT", question(TypeOPT, ClassIN), Malformed},
		{"bytes behind the question", cat(header(0, 1, 0, 0, 0), exampleA, []byte{0}), Malformed},
		{"bytes behind OPT", cat(header(0, 1, 0, 0, 1), exampleA, opt(name(), 0), []byte{0}), Malformed},
		{"an additional record that is not there", cat(header(0, 1, 0, 0, 1), exampleA), Malformed},
		{"half an OPT record", cat(header(0, 1, 0, 0, 1), exampleA, opt(name(), 0)[:9]), Malformed},
		{"two OPT records", cat(header(0, 1, 0, 0, 2), exampleA, opt(name(), 0), opt(name(), 0)), Malformed},
		{"OPT with an owner", cat(header(0, 1, 0, 0, 1), exampleA, opt(name("x"), 0)), Malformed},
		{"OPT with a compressed owner", cat(header(0, 1, 0, 0, 1), exampleA, opt([]byte{0xC0, 24}, 0)), Malformed},
		{"an option longer than OPT", cat(header(0, 1, 0, 0, 1), exampleA, opt(name(), 0, 0, 10, 0, 3, 1, 2)), Malformed},
		{"half an option", cat(header(0, 1, 0, 0, 1), exampleA, opt(name(), 0, 0, 10, 0)), Malformed},
		{"an owner that points at itself", cat(header(0, 1, 0, 0, 1), exampleA, []byte{0xC0, 29}, u16(TypeA, ClassIN, 0, 0, 0)), Malformed},

		{"class CHAOS", question(16, 3), Forbidden},
		{"class ANY", question(TypeA, 255), Forbidden},
		{"class 0", question(TypeA, 0), Forbidden},
		{"AXFR", question(TypeAXFR, ClassIN), Forbidden},
		{"IXFR", question(TypeIXFR, ClassIN), Forbidden},
		{"TKEY", question(TypeTKEY, ClassIN), Forbidden},
		{"TSIG", question(TypeTSIG, ClassIN), Forbidden},
		{"a later EDNS version", cat(header(0, 1, 0, 0, 1), exampleA, opt(name(), 1)), Version},
	} {
		t.Run(tt.what, func(t *testing.T) {
			var q Query
			if got := ParseQuery(tt.pkt, &q); got != tt.want {
				t.Fatalf("verdict %v, want %v", got, tt.want)
			}
			if bare := tt.want == Drop || tt.want == Malformed || tt.want == Opcode; bare != (q.Question == nil) {
				t.Errorf("verdict %v, and the question is %x", tt.want, q.Question)
			}
			if tt.want != Drop && q.ID != 0x1234 {
				t.Errorf("id %#x", q.ID)
			}
		})
	}
}

func TestErrorRepliesSayWhatWasWrong(t *testing.T) {
	for _, tt := range []struct {
		pkt     []byte
		rcode   int
		opcode  int
		hasEDNS bool
	}{
		{header(FlagRD, 2, 0, 0, 0), dns.RcodeFormatError, 0, false},
		{cat(header(5<<11|FlagRD, 1, 0, 0, 0), exampleA), dns.RcodeNotImplemented, dns.OpcodeUpdate, false},
		{cat(header(FlagRD, 1, 0, 0, 1), exampleA, opt(name(), 7)), dns.RcodeBadVers, 0, true},
		{cat(header(FlagRD, 1, 0, 0, 0), name("x"), u16(TypeAXFR, ClassIN)), dns.RcodeRefused, 0, false},
	} {
		var q Query
		v := ParseQuery(tt.pkt, &q)
		m := new(dns.Msg)
		if err := m.Unpack(AppendError(nil, &q, v.RCode(), EDENone)); err != nil {
			t.Fatal(err)
		}
		if m.Id != 0x1234 || !m.Response || m.Rcode != tt.rcode || m.Opcode != tt.opcode || (m.IsEdns0() != nil) != tt.hasEDNS {
			t.Errorf("reply to %x: %v", tt.pkt, m)
		}
		if m.IsEdns0() != nil && m.IsEdns0().Version() != 0 {
			t.Errorf("EDNS version %d", m.IsEdns0().Version())
		}
	}
}

func TestAnErrorIsExplainedToThoseWhoSpeakEDNS(t *testing.T) {
	for _, ede := range []uint16{EDEOther, EDENotReady, EDENoReachable, EDENetworkError} {
		for _, edns := range []bool{false, true} {
			pkt := cat(header(FlagRD, 1, 0, 0, 0), exampleA)
			if edns {
				pkt = cat(header(FlagRD, 1, 0, 0, 1), exampleA, opt(name(), 0))
			}
			var q Query
			ParseQuery(pkt, &q)
			reply := AppendError(nil, &q, ServFail, ede)
			m := new(dns.Msg)
			if err := m.Unpack(reply); err != nil {
				t.Fatal(err)
			}
			o := m.IsEdns0()
			if !edns {
				if o != nil {
					t.Errorf("OPT to a client without EDNS: %v", m)
				}
				continue
			}
			e, ok := o.Option[0].(*dns.EDNS0_EDE)
			if !ok || e.InfoCode != ede || !strings.HasPrefix(e.ExtraText, "nodelocaldns: ") || !o.Do() {
				t.Errorf("%v", m)
			}
			if want := HeaderLen + len(exampleA) + OPTLen(ede); len(reply) != want {
				t.Errorf("OPTLen(%d) is wrong: the reply has %d bytes, not %d", ede, len(reply), want)
			}
		}
	}
}

func TestTheClientsSizeIsWithinBounds(t *testing.T) {
	for size, want := range map[uint16]int{0: 512, 1: 512, 511: 512, 512: 512, 513: 513, 1231: 1231, 1232: 1232, 1233: 1232, 4096: 1232, 65535: 1232} {
		if got := (&Query{UDPSize: size}).Limit(); got != want {
			t.Errorf("%d offered: limit %d, want %d", size, got, want)
		}
	}
}

func TestUpstreamIsAskedWhatTheKeySays(t *testing.T) {
	for _, tt := range []struct {
		q    Query
		edns bool
		want dns.MsgHdr
		do   bool
	}{
		{Query{Flags: FlagRD}, true, dns.MsgHdr{RecursionDesired: true, AuthenticatedData: true}, false},
		{Query{Flags: FlagRD}, false, dns.MsgHdr{RecursionDesired: true, AuthenticatedData: true}, false},
		{Query{}, true, dns.MsgHdr{AuthenticatedData: true}, false},
		{Query{Flags: FlagRD | FlagCD, DO: true}, true, dns.MsgHdr{RecursionDesired: true, AuthenticatedData: true, CheckingDisabled: true}, true},
		{Query{Flags: FlagRD | FlagAD | FlagTC | FlagAA | FlagRA}, true, dns.MsgHdr{RecursionDesired: true, AuthenticatedData: true}, false},
	} {
		tt.q.Question, tt.q.Type, tt.q.Class = cat(name("WWW", "Example"), u16(TypeAAAA, ClassIN)), TypeAAAA, ClassIN
		m := new(dns.Msg)
		if err := m.Unpack(AppendUpstreamQuery(nil, 99, AppendKey(nil, &tt.q), tt.edns)); err != nil {
			t.Fatal(err)
		}
		tt.want.Id = 99
		if m.MsgHdr != tt.want || m.Question[0] != (dns.Question{Name: "www.example.", Qtype: TypeAAAA, Qclass: 1}) {
			t.Errorf("%+v: asked %v", tt.q, m)
		}
		if o := m.IsEdns0(); (o != nil) != tt.edns || o != nil && (o.Do() != tt.do || o.UDPSize() != MaxUDP || len(o.Option) > 0) {
			t.Errorf("%+v: asked %v", tt.q, m)
		}
	}
}

func TestOnlyTheReplyToAQueryIsItsReply(t *testing.T) {
	query := cat(header(FlagRD, 1, 0, 0, 1), exampleA, opt(name(), 0))
	other := func(at int, b ...byte) []byte {
		r := cat(header(FlagQR|FlagRD, 1, 0, 0, 0), exampleA)
		copy(r[at:], b)
		return r
	}
	bare := func(rcode uint16) []byte { return header(FlagQR|rcode, 0, 0, 0, 0) }
	for _, tt := range []struct {
		what  string
		reply []byte
		want  error
	}{
		{"the reply", other(0), nil},
		{"in other letters", cat(header(FlagQR, 1, 0, 0, 0), name("wWw", "EXAMPLE"), u16(TypeA, ClassIN)), nil},
		{"the query itself", query, NotAReply},
		{"nothing", nil, NotAReply},
		{"half a header", other(0)[:11], NotAReply},
		{"another opcode", other(2, 0x80|5<<3), NotAReply},
		{"another id", other(0, 0x12, 0x35), OtherID},
		{"another name", other(13, 'x'), OtherQuestion},
		{"a longer name", cat(header(FlagQR, 1, 0, 0, 0), name("www", "example", "com"), u16(TypeA, ClassIN)), OtherQuestion},
		{"another type", other(len(exampleA)+HeaderLen-3, 2), OtherQuestion},
		{"another class", other(len(exampleA)+HeaderLen-1, 3), OtherQuestion},
		{"two questions", other(4, 0, 2), OtherQuestion},
		{"a cut question", other(0)[:HeaderLen+len(exampleA)-1], OtherQuestion},
		{"FORMERR without a question", bare(FormErr), nil},
		{"SERVFAIL without a question", bare(ServFail), nil},
		{"NOTIMP without a question", bare(NotImp), nil},
		{"REFUSED without a question", bare(Refused), nil},
		{"NOERROR without a question", bare(NoError), OtherQuestion},
		{"NXDOMAIN without a question", bare(NXDomain), OtherQuestion},
	} {
		if got := CheckReply(query, tt.reply); got != tt.want { //nolint:errorlint // the very value
			t.Errorf("%s: %v, want %v", tt.what, got, tt.want)
		}
	}
}

func TestBadVersIsInTheOPTRecord(t *testing.T) {
	says := func(rcodeHigh byte) []byte {
		return cat(name(), u16(TypeOPT, 1232), []byte{rcodeHigh, 0, 0, 0}, u16(0))
	}
	question := cat(name("www", "example"), u16(TypeA, ClassIN))
	record := cat(question, u16(0, 30, 4), u16(0, 0))
	for _, tt := range []struct {
		what string
		msg  []byte
		want bool
	}{
		{"BADVERS", cat(header(FlagQR, 1, 0, 0, 1), question, says(1)), true},
		{"without the question", cat(header(FlagQR, 0, 0, 0, 1), says(1)), true},
		{"behind another record", cat(header(FlagQR, 1, 0, 0, 2), question, record, says(1)), true},
		{"an OPT record of success", cat(header(FlagQR, 1, 0, 0, 1), question, says(0)), false},
		{"another extended code", cat(header(FlagQR, 1, 0, 0, 1), question, says(2)), false},
		{"a code of its own in the header", cat(header(FlagQR|Refused, 1, 0, 0, 1), question, says(1)), false},
		{"an answer", cat(header(FlagQR, 1, 1, 0, 1), question, record, says(1)), false},
		{"no OPT record", cat(header(FlagQR, 1, 0, 0, 0), question), false},
		{"cut short", cat(header(FlagQR, 1, 0, 0, 1), question, says(1)[:8]), false},
		{"cut short in the question", cat(header(FlagQR, 1, 0, 0, 1), question[:5]), false},
		{"a header", header(FlagQR, 1, 0, 0, 1), false},
	} {
		if got := IsBadVers(tt.msg); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.what, got, tt.want)
		}
	}
}

func TestNamesInTextBecomeWireForm(t *testing.T) {
	for s, want := range map[string]string{
		"":                    "00",
		".":                   "00",
		"a":                   "016100",
		"Cluster.LOCAL":       "07636c7573746572056c6f63616c00",
		"cluster.local.":      "07636c7573746572056c6f63616c00",
		long + ".b":           "3f" + strings.Repeat("61", 63) + "016200",
		"..":                  "",
		".a":                  "",
		"a..b":                "",
		"a..":                 "",
		long + "a":            "",
		nameOf(255, "a") + "": hex.EncodeToString(name(long, long, long, long[:61])),
		nameOf(256, "a"):      "",
	} {
		got, ok := ParseName(s)
		if ok != (want != "") || ok && hex.EncodeToString(got) != want {
			t.Errorf("%q: %x, %v; want %s", s, got, ok, want)
		}
	}
}

// nameOf is a name of n bytes in wire form.
func nameOf(n int, letter string) string {
	l := strings.Repeat(letter, 63)
	return l + "." + l + "." + l + "." + strings.Repeat(letter, n-3*64-2)
}

func TestASubdomainEndsAtALabel(t *testing.T) {
	for _, tt := range []struct {
		name, zone string
		want       bool
	}{
		{"a.example", "example", true}, {"example", "example", true}, {"a.b.example", "example", true}, {"example", "", true},
		{"", "", true}, {"", "example", false}, {"example", "a.example", false}, {"aexample", "example", false}, {"a.examplf", "example", false},
	} {
		n, _ := ParseName(tt.name)
		z, _ := ParseName(tt.zone)
		if got := IsSubdomain(n, z); got != tt.want {
			t.Errorf("%q below %q: %v", tt.name, tt.zone, got)
		}
	}
}

func TestCompressedNamesLeadBackwards(t *testing.T) {
	msg := cat(header(0, 0, 0, 0, 0),
		name("Example"),                    // 12
		[]byte{3, 'w', 'W', 'w', 0xC0, 12}, // 21
		[]byte{0xC0, 21},                   // 27: a pointer to a pointer
		[]byte{0xC0, 29},                   // 29: to itself
		[]byte{0xC0, 33},                   // 31: forwards
		[]byte{0},                          // 33
		[]byte{1, 'a', 0xC0, 34},           // 34: a loop
		[]byte{0xC0, 4},                    // 38: into the header
		[]byte{0x80, 0},                    // 40: a label of an unknown kind
		[]byte{1, 'a', 0xC0, 38},           // 42: through a bad pointer
		bytes.Repeat([]byte{1, 'a'}, 130),  // 46: too long
		[]byte{0},
		[]byte{0xC0}, // 307: half a pointer
	)
	for off, want := range map[int]string{12: "076578616d706c6500", 21: "03777777076578616d706c6500", 27: "03777777076578616d706c6500", 33: "00",
		29: "", 31: "", 34: "", 38: "", 40: "", 42: "", 46: "", 307: "", 400: ""} {
		got, ok := AppendName(nil, msg, off)
		if ok != (want != "") || ok && hex.EncodeToString(got) != want {
			t.Errorf("at %d: %x, %v; want %q", off, got, ok, want)
		}
		if end := SkipName(msg, off); want != "" && end < 0 {
			t.Errorf("at %d: a name that cannot be skipped", off)
		}
	}
}

// Without a bound, 64 KiB of pointers to pointers take a CPU for a while.
func TestPointersToPointersEnd(t *testing.T) {
	for pointers, want := range map[int]bool{1: true, 126: true, 127: false, 5000: false} {
		msg := cat(header(0, 0, 0, 0, 0), name("a"))
		at := HeaderLen
		for range pointers {
			at, msg = len(msg), append(msg, 0xC0|byte(at>>8), byte(at))
		}
		if got, ok := AppendName(nil, msg, at); ok != want || ok && !bytes.Equal(got, name("a")) {
			t.Errorf("%d pointers: %x, %v", pointers, got, ok)
		}
	}
}

func TestKeysFoldLettersAndNothingElse(t *testing.T) {
	all := make([]byte, 0, 256)
	for c := range 256 {
		all = append(all, byte(c))
	}
	for i, c := range AppendFold(nil, all) {
		want := byte(i)
		if 'A' <= want && want <= 'Z' {
			want += 'a' - 'A'
		}
		if c != want {
			t.Errorf("%#x is folded to %#x", i, c)
		}
	}
	if !EqualFold([]byte("aBc-Z"), []byte("AbC-z")) || EqualFold([]byte("a"), []byte("ab")) || EqualFold([]byte("@["), []byte("`{")) {
		t.Error("EqualFold")
	}
}

func BenchmarkQuery(b *testing.B) {
	pkt := cat(header(FlagRD, 1, 0, 0, 1), name("kubernetes", "default", "svc", "cluster", "local"), u16(TypeA, ClassIN), opt(name(), 0))
	var q Query
	room := make([]byte, 0, MaxKey)
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if ParseQuery(pkt, &q) != Answer {
				b.Fatal("no question")
			}
		}
	})
	b.Run("key", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = AppendKey(room, &q)
		}
	})
}

package cache

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/dnstest"
	"nodelocaldns/dnscache/wire"
)

// What a server says is the same whether it compressed it or not, and takes no
// more room than the owner names of other answers need.
func TestRepliesThatCameLongAreKeptShort(t *testing.T) {
	var set strings.Builder
	for i := range 29 {
		fmt.Fprintf(&set, "answer Web.ns.svc.cluster.local. 20 A 10.0.0.%d\n", i)
	}
	for _, tt := range []struct {
		what string
		replyText
		size int // of the records
	}{
		{"an address set", replyText{question: "web.ns.svc.cluster.local. A", records: set.String()}, 29 * 16},
		{"a chain", replyText{question: "a.example. A", records: "answer a.example. 9 CNAME web.b.test.\nanswer web.b.test. 9 A 10.0.0.1\nanswer web.b.test. 9 A 10.0.0.2"}, 24 + 16 + 16},
		{"a chain back to front", replyText{question: "a.example. A", records: "answer web.b.test. 9 A 10.0.0.1\nanswer a.example. 9 CNAME web.b.test."}, 26 + 14},
		{"a long chain in one zone", replyText{question: "c.a.example. A", records: "answer c.a.example. 9 CNAME c0.a.example.\n" + links(12) + "answer c12.a.example. 9 A 10.0.0.1"}, 8*17 + 2*20 + 21 + 2*22 + 20},
		{"a denial", replyText{question: "x.ns.svc.cluster.local. A", rcode: 3, records: "authority cluster.local. 30 " + soa + "30"}, 12 + 46},
		{"targets outside the zone", replyText{question: "_x._tcp.a. SRV", records: "answer _x._tcp.a. 9 SRV 0 0 53 b.\nadditional b. 9 A 10.0.0.1\nadditional b. 9 AAAA ::1"}, 21 + 17 + 28},
		{"many names", replyText{question: "a. ANY", records: many("answer a. 9 CNAME n%d.\n", "answer n%[1]d. 9 TXT x\n")}, 18*17 + 7*14 + 11*17},
		{"a type that may hide names", replyText{question: "a.example. ANY", records: "answer a.example. 9 TYPE65280 \\# 11 0162076578616d706c6500\nanswer a.example. 9 A 10.0.0.1"}, 32 + 25},
		{"the host of an old type", replyText{question: "a.example. ANY", records: "answer a.example. 9 AFSDB 1 b.example.\nanswer a.example. 9 A 10.0.0.1"}, 25 + 16},
	} {
		t.Run(tt.what, func(t *testing.T) {
			_, short := tt.pack(t)
			tt.flags = func(m *dns.Msg) { m.Compress = false }
			key, long := tt.pack(t)
			admit := func(reply []byte) (Admission, string) {
				a, err := Admit(key, reply, Caps{30, 30})
				if err != nil {
					t.Fatal(err)
				}
				return a, served(t, key, a)
			}
			_, want := admit(short)
			a, got := admit(long)
			if !strings.EqualFold(got, want) {
				t.Errorf("said\n%swant\n%s", got, want)
			}
			if len(a.body) != tt.size {
				t.Errorf("%d bytes of records, want %d: %x", len(a.body), tt.size, a.body)
			}
		})
	}
}

// links are n aliases, each to the next.
func links(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "answer c%d.a.example. 9 CNAME c%d.a.example.\n", i, i+1)
	}
	return b.String()
}

func many(formats ...string) string {
	var b strings.Builder
	for i := range 18 {
		for _, f := range formats {
			fmt.Fprintf(&b, f, i+10)
		}
	}
	return b.String()
}

// A pointer among the records would lead elsewhere if they moved.
func TestRepliesWithPointersAreLeftAlone(t *testing.T) {
	key, reply := replyText{question: "a. MX", records: "answer a. 9 MX 1 x.mail.test.\nanswer a. 9 MX 2 y.mail.test."}.pack(t)
	want := len(reply) - wire.HeaderLen - 3 - 4
	a, err := Admit(key, reply, Caps{30, 30})
	if err != nil {
		t.Fatal(err)
	}
	if got := served(t, key, a); len(a.body) != want || !strings.Contains(got, "y.mail.test.") {
		t.Errorf("%d bytes, want %d:\n%s", len(a.body), want, got)
	}
}

// A pointer may lead to bytes that look like a name and are a TTL or an address. What
// it stands for stays the same when those change.
func TestPointersIntoWhatChangesAreResolved(t *testing.T) {
	record := func(owner []byte, typ uint16, ttl uint32, data ...byte) []byte {
		b := append(owner, byte(typ>>8), byte(typ), 0, 1)
		b = binary.BigEndian.AppendUint32(b, ttl)
		b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
		return append(b, data...)
	}
	const first = wire.HeaderLen + 3 + 4 // the first record: its owner is a pointer, and its TTL six bytes on
	for _, tt := range []struct {
		what    string
		records [][]byte
		want    string
	}{
		{"into a TTL", [][]byte{
			record([]byte{0xC0, 12}, wire.TypeA, 0x01610003, 10, 0, 0, 1),
			record([]byte{0xC0, first + 6}, wire.TypeA, 9, 10, 0, 0, 2),
		}, "answer a. 9 A 10.0.0.2\nanswer a. 9 A 10.0.0.1"},
		{"into an address that goes round", [][]byte{
			record([]byte{0xC0, 12}, wire.TypeA, 9, 1, 'a', 0, 1),
			record([]byte{0xC0, 12}, wire.TypeA, 9, 10, 0, 0, 2),
			record([]byte{0xC0, 12}, wire.TypeMX, 9, 0, 0, 0xC0, first+12),
		}, "answer a. 9 A 10.0.0.2\nanswer a. 9 A 1.97.0.1\nanswer a. 9 MX 0 a."},
		{"into a type that nobody knows", [][]byte{
			record([]byte{0xC0, 12}, 65280, 9, 1, 'b', 0),
			record([]byte{0xC0, 12}, wire.TypeCNAME, 9, 0xC0, first+12),
			record([]byte{0xC0, first + 12}, wire.TypeA, 9, 10, 0, 0, 2),
		}, "answer a. 9 TYPE65280 \\# 3 016200\nanswer a. 9 CNAME b.\nanswer b. 9 A 10.0.0.2"},
		{"into the class of the question, and from there into a TTL and on to the end of OPT's name", [][]byte{
			record([]byte{0xC0, 12}, wire.TypePTR, 9, 0xC0, first-1),
		}, `answer a. 9 PTR \192.\000\012\000\001\000\000\000\009\000\002\192\018.`},
	} {
		reply := wire.AppendHeader(nil, 0, wire.FlagQR, 1, uint16(len(tt.records)), 0, 1)
		reply = append(reply, 1, 'a', 0, 0, 1, 0, 1)
		for _, r := range tt.records {
			reply = append(reply, r...)
		}
		reply = wire.AppendOPT(reply, wire.NoError, false, wire.EDENone)
		key := keyOf(t, "a.", wire.TypeA)
		a, err := Admit(key, reply, Caps{30, 30})
		if err != nil {
			t.Fatal(err)
		}
		e := NewEntry(key, a, 0, 0)
		q := wire.Query{Question: []byte{1, 'a', 0, 0, 1, 0, 1}}
		e.AppendReply(nil, &q, 0, wire.MaxMessage)
		for at, ttl := range map[time.Duration]string{0: " 9 ", 2 * time.Second: " 7 "} {
			got, err := dnstest.Format(e.AppendReply(nil, &q, at, wire.MaxMessage))
			if err != nil {
				t.Fatal(err)
			}
			if _, got, _ := strings.Cut(got, "\n"); sortedLines(got) != sortedLines(strings.ReplaceAll(tt.want, " 9 ", ttl)) {
				t.Errorf("%s: served after %v\n%s\nwant\n%s", tt.what, at, got, tt.want)
			}
		}
	}
}

// sortedLines is a text whose lines may come in any order, as addresses do that go round.
func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

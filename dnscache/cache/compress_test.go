package cache

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

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
		{"a chain back to front", replyText{question: "a.example. A", records: "answer web.b.test. 9 A 10.0.0.1\nanswer a.example. 9 CNAME web.b.test."}, 26 + 24},
		{"a denial", replyText{question: "x.ns.svc.cluster.local. A", rcode: 3, records: "authority cluster.local. 30 " + soa + "30"}, 12 + 46},
		{"targets outside the zone", replyText{question: "_x._tcp.a. SRV", records: "answer _x._tcp.a. 9 SRV 0 0 53 b.\nadditional b. 9 A 10.0.0.1\nadditional b. 9 AAAA ::1"}, 21 + 17 + 28},
		{"many names", replyText{question: "a. ANY", records: many("answer a. 9 CNAME n%d.\n", "answer n%[1]d. 9 TXT x\n")}, 18*17 + 7*14 + 11*17},
		{"a type that may hide names", replyText{question: "a.example. ANY", records: "answer a.example. 9 AFSDB 1 b.example.\nanswer a.example. 9 A 10.0.0.1"}, 34 + 25},
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

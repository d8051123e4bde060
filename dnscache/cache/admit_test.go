package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/dnstest"
	"nodelocaldns/dnscache/wire"
)

// A reply under test: its question, its header and its records, as text.
type replyText struct {
	question string
	rcode    int
	flags    func(*dns.Msg)
	records  string
	do       bool // asked with DO
}

// pack makes the key and the packet of a reply.
func (r replyText) pack(t testing.TB) (key, reply []byte) {
	t.Helper()
	name, typ, _ := strings.Cut(r.question, " ")
	m := new(dns.Msg).SetQuestion(name, dns.StringToType[typ])
	m.Response, m.Rcode, m.Compress = true, r.rcode, true
	sections := map[string]*[]dns.RR{"answer": &m.Answer, "authority": &m.Ns, "additional": &m.Extra}
	for line := range strings.Lines(r.records) {
		section, text, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		rr, err := dnstest.ParseRecord(text)
		if err != nil {
			t.Fatal(err)
		}
		*sections[section] = append(*sections[section], rr)
	}
	if r.flags != nil {
		r.flags(m)
	}
	reply, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	key = keyOf(t, name, dns.StringToType[typ])
	if r.do {
		key[len(key)-1] |= 1 << 0
	}
	return key, reply
}

func keyOf(t testing.TB, name string, typ uint16) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, typ)
	pkt, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q wire.Query
	if v := wire.ParseQuery(pkt, &q); v != wire.Answer {
		t.Fatalf("%s: verdict %v", name, v)
	}
	return wire.AppendKey(nil, &q)
}

// served is what a client that asks for key is given.
func served(t testing.TB, key []byte, a Admission) string {
	t.Helper()
	name, _ := wire.SplitKey(key)
	q := wire.Query{Flags: wire.FlagRD, Type: wire.KeyType(key), Question: append([]byte(nil), name...)}
	q.Question = append(q.Question, byte(q.Type>>8), byte(q.Type), 0, 1)
	text, err := dnstest.Format(NewEntry(key, a, 0, 0).AppendReply(nil, &q, 0, wire.MaxMessage))
	if err != nil {
		t.Fatal(err)
	}
	_, records, _ := strings.Cut(text, "\n")
	return records
}

const soa = "SOA ns.example. host.example. 1 2 3 4 "

func TestAdmission(t *testing.T) {
	caps := Caps{Success: 30, Denial: 10}
	for _, tt := range []struct {
		what string
		replyText
		class Class
		ttl   time.Duration
		want  string // the records; "=" for all that came
		err   error
	}{
		{"an answer", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4"}, Success, 20 * time.Second, "=", nil},
		{"an answer above the cap", replyText{question: "a. A", records: "answer a. 31 A 1.2.3.4"}, Success, 30 * time.Second, "answer a. 30 A 1.2.3.4", nil},
		{"an answer for no time", replyText{question: "a. A", records: "answer a. 0 A 1.2.3.4"}, Uncached, 0, "=", nil},
		{"a TTL with its highest bit", replyText{question: "a. A", records: "answer a. 2147483648 A 1.2.3.4"}, Success, 30 * time.Second, "answer a. 30 A 1.2.3.4", nil},
		{"the highest TTL", replyText{question: "a. A", records: "answer a. 4294967295 A 1.2.3.4"}, Success, 30 * time.Second, "answer a. 30 A 1.2.3.4", nil},
		{"a set with unequal TTLs", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4\nanswer a. 9 A 1.2.3.5\nanswer a. 25 A 1.2.3.6"},
			Success, 9 * time.Second, "answer a. 9 A 1.2.3.4\nanswer a. 9 A 1.2.3.5\nanswer a. 9 A 1.2.3.6", nil},
		{"a set that does not stand together", replyText{question: "a. A", records: "answer b. 9 A 1.2.3.4\nanswer a. 20 CNAME b.\nanswer B. 25 A 1.2.3.5"},
			Success, 9 * time.Second, "answer b. 9 A 1.2.3.4\nanswer a. 20 CNAME b.\nanswer B. 9 A 1.2.3.5", nil},
		{"a set in two sections", replyText{question: "a. NS", records: "answer a. 20 NS b.\nauthority a. 9 NS b."}, Success, 9 * time.Second, "answer a. 9 NS b.\nauthority a. 9 NS b.", nil},
		{"signatures live as long as what they cover", replyText{do: true, question: "a. ANY", records: "answer a. 20 A 1.2.3.4\nanswer a. 9 TXT \"x\"\n" +
			"answer a. 20 RRSIG A 8 1 20 20300101000000 20200101000000 1 a. AAAA\nanswer a. 9 RRSIG TXT 8 1 20 20300101000000 20200101000000 1 a. AAAA"}, Success, 9 * time.Second, "=", nil},
		{"sets of a chain keep their TTLs", replyText{question: "a. A", records: "answer a. 20 CNAME b.\nanswer b. 9 A 1.2.3.4"}, Success, 9 * time.Second, "=", nil},
		{"a chain in any order", replyText{question: "a. A", records: "answer c. 9 A 1.2.3.4\nanswer b. 9 CNAME c.\nanswer a. 20 CNAME b."}, Success, 9 * time.Second, "=", nil},
		{"a chain in circles", replyText{question: "a. A", records: "answer a. 20 CNAME b.\nanswer b. 20 CNAME a."}, Uncached, 0, "answer a. 10 CNAME b.\nanswer b. 10 CNAME a.", nil},
		{"a chain of 20 names", replyText{question: "n0. A", records: chain(19)}, Success, 20 * time.Second, "=", nil},
		{"a chain of 21 names", replyText{question: "n0. A", records: chain(20)}, 0, 0, "", ErrLongChain},
		{"an alias asked for by its type", replyText{question: "a. CNAME", records: "answer a. 20 CNAME b."}, Success, 20 * time.Second, "=", nil},
		{"an alias alone", replyText{question: "a. A", records: "answer a. 5 CNAME b."}, Uncached, 0, "=", nil},
		{"an alias without data", replyText{question: "a. A", records: "answer a. 5 CNAME b.example.\nauthority example. 8 " + soa + "8"}, Denial, 5 * time.Second, "=", nil},
		{"ANY", replyText{question: "a. ANY", records: "answer a. 20 TXT \"x\""}, Success, 20 * time.Second, "=", nil},
		{"a DNAME", replyText{question: "x.a. A", records: "answer a. 20 DNAME b.\nanswer x.a. 20 CNAME x.b.\nanswer x.b. 20 A 1.2.3.4"}, Success, 20 * time.Second, "=", nil},
		{"a signed DNAME", replyText{do: true, question: "x.a. A", records: "answer a. 20 DNAME b.\nanswer a. 20 RRSIG DNAME 8 1 20 20300101000000 20200101000000 1 a. AAAA\n" +
			"answer x.a. 20 CNAME x.b.\nanswer x.b. 20 A 1.2.3.4"}, Success, 20 * time.Second, "=", nil},
		{"authority and additional records", replyText{question: "w.a. A", records: "answer w.a. 20 A 1.2.3.4\nauthority a. 15 NS ns.a.\nadditional ns.a. 12 A 1.2.3.5"}, Success, 12 * time.Second, "=", nil},
		{"hosts of an SRV", replyText{question: "_x._tcp.a. SRV", records: "answer _x._tcp.a. 20 SRV 0 0 53 b.\nadditional b. 20 A 1.2.3.5\nadditional b. 20 AAAA ::1"}, Success, 20 * time.Second, "=", nil},
		{"hosts of an MX", replyText{question: "a. MX", records: "answer a. 20 MX 0 b.\nadditional b. 20 A 1.2.3.5"}, Success, 20 * time.Second, "=", nil},
		{"hosts of an HTTPS", replyText{question: "a. HTTPS", records: "answer a. 20 HTTPS 1 b.\nadditional b. 20 A 1.2.3.5"}, Success, 20 * time.Second, "=", nil},

		{"hosts of an SVCB by the owner's name", replyText{question: "a. SVCB", records: "answer a. 20 SVCB 1 .\nadditional a. 20 A 1.2.3.5"}, Success, 20 * time.Second, "=", nil},
		{"what an alias of a service leads to", replyText{question: "a. HTTPS", records: "answer a. 20 HTTPS 0 b.\nadditional b. 20 HTTPS 1 c. alpn=h3\nadditional c. 20 CNAME d.\nadditional d. 20 AAAA ::1"}, Success, 20 * time.Second, "=", nil},

		{"signatures for who asked for none", replyText{question: "a. A", records: "answer a. 20 CNAME b.example.\nanswer a. 3 RRSIG CNAME 8 1 20 20300101000000 20200101000000 1 a. AAAA\n" +
			"answer b.example. 20 A 1.2.3.4\nanswer b.example. 4 RRSIG A 8 1 20 20300101000000 20200101000000 1 example. AAAA\nauthority example. 20 NS b.example.\nadditional b.example. 20 A 1.2.3.4"},
			Success, 20 * time.Second, "answer a. 20 CNAME b.example.\nanswer b.example. 20 A 1.2.3.4\nauthority example. 20 NS b.example.\nadditional b.example. 20 A 1.2.3.4", nil},
		{"proofs of a denial for who asked for none", replyText{question: "x.example. A", rcode: 3, records: "authority w.example. 3 NSEC z.example. A RRSIG NSEC\nauthority w.example. 3 RRSIG NSEC 8 1 9 20300101000000 20200101000000 1 example. AAAA\n" +
			"authority hash.example. 3 NSEC3 1 0 0 - 0123456789ABCDEFGHIJKLMNOPQRSTUV A\nauthority example. 9 " + soa + "9"}, Denial, 9 * time.Second, "authority example. 9 " + soa + "9", nil},
		{"signatures asked for by their type", replyText{question: "a. RRSIG", records: "answer a. 20 RRSIG A 8 1 20 20300101000000 20200101000000 1 a. AAAA\nauthority a. 20 NSEC b. A"},
			Success, 20 * time.Second, "answer a. 20 RRSIG A 8 1 20 20300101000000 20200101000000 1 a. AAAA", nil},
		{"a proof asked for by its type", replyText{question: "a. NSEC", records: "answer a. 20 NSEC b. A RRSIG NSEC"}, Success, 20 * time.Second, "=", nil},
		{"signatures among all types", replyText{question: "a. ANY", records: "answer a. 20 A 1.2.3.4\nanswer a. 20 RRSIG A 8 1 20 20300101000000 20200101000000 1 a. AAAA"}, Success, 20 * time.Second, "=", nil},
		{"keys and digests are data like any other", replyText{question: "a. DS", records: "answer a. 20 DS 1 8 2 00"}, Success, 20 * time.Second, "=", nil},

		{"an answer of another class", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4\nanswer a. 20 A 6.6.6.6", flags: func(m *dns.Msg) { m.Answer[1].Header().Class = dns.ClassCHAOS }}, Success, 20 * time.Second, "answer a. 20 A 1.2.3.4", nil},
		{"an authority of another class", replyText{question: "x.example. A", rcode: 3, records: "authority example. 9 " + soa + "9", flags: func(m *dns.Msg) { m.Ns[0].Header().Class = dns.ClassCHAOS }}, Uncached, 0, "", nil},
		{"an additional record of another class", replyText{question: "a. MX", records: "answer a. 20 MX 0 b.\nadditional b. 20 A 6.6.6.6", flags: func(m *dns.Msg) { m.Extra[0].Header().Class = dns.ClassCHAOS }}, Success, 20 * time.Second, "answer a. 20 MX 0 b.", nil},

		{"a foreign answer", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4\nanswer b. 20 A 6.6.6.6\nauthority a. 20 NS ns.a.\nauthority b. 20 NS ns.b.\nadditional ns.a. 20 A 1.1.1.1"}, Success, 20 * time.Second,
			"answer a. 20 A 1.2.3.4\nauthority a. 20 NS ns.a.\nadditional ns.a. 20 A 1.1.1.1", nil},
		{"foreign answers before and in between", replyText{question: "x.a. A", records: "answer x.b. 20 A 6.6.6.6\nanswer x.a. 20 CNAME y.a.\nanswer y.b. 20 A 6.6.6.6\nanswer y.a. 20 A 1.2.3.4"}, Success, 20 * time.Second,
			"answer x.a. 20 CNAME y.a.\nanswer y.a. 20 A 1.2.3.4", nil},
		{"only a foreign answer", replyText{question: "a. A", records: "answer b. 20 A 6.6.6.6"}, Uncached, 0, "", nil},
		{"a child's records", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4\nauthority x.a. 20 NS ns.a."}, Success, 20 * time.Second, "answer a. 20 A 1.2.3.4", nil},
		{"a foreign authority", replyText{question: "w.a. A", records: "answer w.a. 20 A 1.2.3.4\nauthority a. 20 NS ns.a.\nauthority b. 20 NS ns.b.\nadditional ns.a. 20 A 1.1.1.1"}, Success, 20 * time.Second,
			"answer w.a. 20 A 1.2.3.4\nauthority a. 20 NS ns.a.\nadditional ns.a. 20 A 1.1.1.1", nil},
		{"a denial behind a foreign authority", replyText{question: "x.example. A", rcode: 3, records: "authority b. 20 NS ns.b.\nauthority example. 9 " + soa + "9\nadditional ns.b. 20 A 6.6.6.6"}, Denial, 9 * time.Second, "authority example. 9 " + soa + "9", nil},
		{"a foreign additional", replyText{question: "a. MX", records: "answer a. 20 MX 0 b.\nadditional c. 20 A 6.6.6.6\nadditional b. 20 A 1.2.3.5"}, Success, 20 * time.Second, "answer a. 20 MX 0 b.\nadditional b. 20 A 1.2.3.5", nil},
		{"what a foreign record points at", replyText{question: "a. MX", records: "answer a. 20 MX 0 b.\nanswer c. 20 MX 0 d.\nadditional d. 20 A 6.6.6.6"}, Success, 20 * time.Second, "answer a. 20 MX 0 b.", nil},
		{"a foreign record's TTL does not count", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4\nanswer b. 0 A 6.6.6.6"}, Success, 20 * time.Second, "answer a. 20 A 1.2.3.4", nil},

		{"a denial by MINIMUM", replyText{question: "x.example. A", rcode: 3, records: "authority example. 9 " + soa + "4"}, Denial, 4 * time.Second, "authority example. 4 " + soa + "4", nil},
		{"a denial by the SOA's TTL", replyText{question: "x.example. A", rcode: 3, records: "authority example. 4 " + soa + "9"}, Denial, 4 * time.Second, "=", nil},
		{"a denial by the cap", replyText{question: "x.example. A", rcode: 3, records: "authority example. 99 " + soa + "99"}, Denial, 10 * time.Second, "authority example. 10 " + soa + "99", nil},
		{"a denial with a MINIMUM with its highest bit", replyText{question: "x.example. A", rcode: 3, records: "authority example. 9 " + soa + "2147483648"}, Denial, 9 * time.Second, "authority example. 9 " + soa + "2147483648", nil},
		{"no data", replyText{question: "example. AAAA", records: "authority example. 9 " + soa + "4"}, Denial, 4 * time.Second, "authority example. 4 " + soa + "4", nil},
		{"no data for DS, by the parent", replyText{question: "x.example. DS", records: "authority example. 9 " + soa + "9"}, Denial, 9 * time.Second, "=", nil},
		{"a denial behind an alias", replyText{question: "a. A", rcode: 3, records: "answer a. 7 CNAME x.example.\nauthority example. 9 " + soa + "9"}, Denial, 7 * time.Second, "=", nil},
		{"a signed denial", replyText{do: true, question: "x.example. A", rcode: 3, records: "authority example. 9 " + soa + "9\nauthority example. 9 RRSIG SOA 8 1 9 20300101000000 20200101000000 1 example. AAAA\n" +
			"authority hash.example. 9 NSEC3 1 0 0 - 0123456789ABCDEFGHIJKLMNOPQRSTUV A"}, Denial, 9 * time.Second, "=", nil},
		{"a denial without SOA", replyText{question: "x.example. A", rcode: 3}, Uncached, 0, "", nil},
		{"a signed denial, proof first", replyText{do: true, question: "x.example. A", rcode: 3, records: "authority hash.example. 9 NSEC3 1 0 0 - 0123456789ABCDEFGHIJKLMNOPQRSTUV A\n" +
			"authority example. 9 " + soa + "9"}, Denial, 9 * time.Second, "=", nil},
		{"a denial with another zone's SOA", replyText{question: "x.example. A", rcode: 3, records: "authority sample. 9 " + soa + "9"}, Uncached, 0, "", nil},
		{"a referral", replyText{question: "x.example. A", records: "authority example. 9 NS ns.example.\nadditional ns.example. 9 A 1.2.3.4"}, Uncached, 0, "=", nil},
		{"an SOA as an answer", replyText{question: "example. SOA", records: "answer example. 20 " + soa + "4"}, Success, 20 * time.Second, "=", nil},
		{"NXDOMAIN with an answer all the same", replyText{question: "example. A", rcode: 3, records: "answer example. 9 A 1.2.3.4"}, Uncached, 0, "=", nil},

		{"SERVFAIL", replyText{question: "a. A", rcode: 2, records: "answer a. 20 A 1.2.3.4"}, Failure, FailureTTL, "", nil},
		{"REFUSED", replyText{question: "a. A", rcode: 5}, Failure, FailureTTL, "", nil},
		{"BADVERS", replyText{question: "a. A", flags: func(m *dns.Msg) { m.SetEdns0(512, false); m.Rcode = dns.RcodeBadVers }}, Failure, FailureTTL, "", nil},
		{"truncated", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4", flags: func(m *dns.Msg) { m.Truncated = true }}, 0, 0, "", ErrTruncated},
		{"OPT is left out", replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4", flags: func(m *dns.Msg) { m.SetEdns0(512, true) }}, Success, 20 * time.Second, "=", nil},
		{"two OPT records", replyText{question: "a. A", flags: func(m *dns.Msg) { m.SetEdns0(512, true); m.SetEdns0(512, true) }}, 0, 0, "", ErrMalformed},
	} {
		t.Run(tt.what, func(t *testing.T) {
			key, reply := tt.pack(t)
			a, err := Admit(key, reply, caps)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			if a.Class != tt.class || a.TTL != tt.ttl {
				t.Errorf("class %d for %v, want %d for %v", a.Class, a.TTL, tt.class, tt.ttl)
			}
			want := tt.want
			if want == "=" {
				want = tt.records
			}
			if got := served(t, key, a); got != shown(t, want) {
				t.Errorf("served:\n%s\nwant:\n%s", got, shown(t, want))
			}
		})
	}
}

// shown is records as a reply of them is shown.
func shown(t *testing.T, records string) string {
	t.Helper()
	m := new(dns.Msg)
	sections := map[string]*[]dns.RR{"answer": &m.Answer, "authority": &m.Ns, "additional": &m.Extra}
	for line := range strings.Lines(records) {
		section, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		rr, err := dnstest.ParseRecord(text)
		if err != nil {
			t.Fatal(err)
		}
		*sections[section] = append(*sections[section], rr)
	}
	pkt, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	text, err := dnstest.Format(pkt)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = strings.Cut(text, "\n")
	return text
}

// chain is n aliases in a row and an address.
func chain(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "answer n%d. 20 CNAME n%d.\n", i, i+1)
	}
	fmt.Fprintf(&b, "answer n%d. 20 A 1.2.3.4\n", n)
	return b.String()
}

// A denial that answers for what is below its name, too, is made of what was admitted
// and not of what came.
func TestADenialIsWholeWithoutItsProof(t *testing.T) {
	key, reply := replyText{question: "x.example. A", rcode: 3, records: "authority example. 3600 RRSIG SOA 8 1 9 20300101000000 20200101000000 1 example. AAAA\nauthority example. 3600 " + soa + "4"}.pack(t)
	a, err := Admit(key, reply, Caps{30, 30})
	if err != nil {
		t.Fatal(err)
	}
	other := a
	other.MakeWhole([]byte("\x05local\x00"))
	if NewEntry(key, other, 0, 0).Whole() {
		t.Error("whole by the SOA of another zone")
	}
	a.MakeWhole([]byte("\x07example\x00"))
	e := NewEntry(key, a, 0, 0)
	if got, want := served(t, key, a), shown(t, "authority example. 4 "+soa+"4"); !e.Whole() || got != want {
		t.Errorf("whole: %v\n%s\nwant\n%s", e.Whole(), got, want)
	}
}

func TestAQuestionWithoutRecursionIsNotKept(t *testing.T) {
	key, reply := replyText{question: "a. A", records: "answer a. 20 A 1.2.3.4"}.pack(t)
	key[len(key)-1] |= 1 << 2
	if _, recursive := wire.SplitKey(key); recursive {
		t.Fatal("the key asks for recursion")
	}
	a, err := Admit(key, reply, Caps{30, 30})
	if err != nil || a.Class != Uncached || a.TTL != 0 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestADIsUpstreamsToGive(t *testing.T) {
	for rcode, want := range map[int]bool{0: true, 3: true, 2: false} {
		for _, ad := range []bool{false, true} {
			key, reply := replyText{question: "a. A", rcode: rcode, flags: func(m *dns.Msg) { m.AuthenticatedData = ad }}.pack(t)
			a, err := Admit(key, reply, Caps{30, 30})
			if err != nil || a.AD != (ad && want) {
				t.Errorf("rcode %d, ad %v: %+v, %v", rcode, ad, a, err)
			}
		}
	}
}

// Records that are not what they say must not reach a client: its parser may
// be older than this one.
func TestBrokenDataIsMalformed(t *testing.T) {
	ptr := func(off int) []byte { return []byte{0xC0 | byte(off>>8), byte(off)} }
	for _, tt := range []struct {
		what string
		typ  uint16
		data []byte
	}{
		{"a short address", wire.TypeA, []byte{1, 2, 3}},
		{"a long address", wire.TypeA, []byte{1, 2, 3, 4, 5}},
		{"a short IPv6 address", wire.TypeAAAA, make([]byte, 15)},
		{"an alias of nothing", wire.TypeCNAME, nil},
		{"bytes behind an alias", wire.TypeCNAME, []byte{0, 0}},
		{"an alias that points forwards", wire.TypeCNAME, ptr(0x3F00)},
		{"an alias that points at itself", wire.TypeCNAME, ptr(12 + 3 + 4 + 3 + 10)},
		{"a name server of nothing", wire.TypeNS, nil},
		{"a pointer of half a name", dns.TypePTR, []byte{3, 'a'}},
		{"a preference without a host", wire.TypeMX, []byte{0, 1}},
		{"half an SRV", wire.TypeSRV, []byte{0, 0, 0, 0, 0}},
		{"half a pair of mailboxes", dns.TypeMINFO, []byte{0}},
		{"a subtype without a host", dns.TypeAFSDB, []byte{0, 1}},
		{"a mapping of one name", dns.TypePX, []byte{0, 1, 0}},
		{"a NAPTR whose text ends behind it", dns.TypeNAPTR, []byte{0, 0, 0, 0, 0, 9, 0, 0}},
		{"a NAPTR without its name", dns.TypeNAPTR, []byte{0, 0, 0, 0, 0, 0, 0}},
		{"half a signature", wire.TypeRRSIG, make([]byte, 18)},
		{"a service without a name", wire.TypeSVCB, []byte{0, 1}},
		{"a proof that points forwards", wire.TypeNSEC, ptr(0x3F00)},
		{"an SOA without numbers", wire.TypeSOA, []byte{0, 0}},
		{"an SOA with a number too much", wire.TypeSOA, make([]byte, 2+24)},
	} {
		reply := wire.AppendHeader(nil, 0, wire.FlagQR, 1, 1, 0, 0)
		reply = append(reply, 1, 'a', 0, byte(tt.typ>>8), byte(tt.typ), 0, 1)
		reply = append(reply, 0xC0, 12, byte(tt.typ>>8), byte(tt.typ), 0, 1, 0, 0, 0, 9)
		reply = binary.BigEndian.AppendUint16(reply, uint16(len(tt.data)))
		reply = append(reply, tt.data...)
		if a, err := Admit(keyOf(t, "a.", tt.typ), reply, Caps{30, 30}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", tt.what, a, err)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	key, reply := replyText{question: "web.ns.svc.cluster.local. A",
		records: "answer web.ns.svc.cluster.local. 30 A 10.0.0.1\nanswer web.ns.svc.cluster.local. 30 A 10.0.0.2"}.pack(b)
	b.ReportAllocs()
	for b.Loop() {
		a, err := Admit(key, reply, Caps{30, 5})
		if err != nil {
			b.Fatal(err)
		}
		_ = NewEntry(key, a, 0, 0)
	}
}

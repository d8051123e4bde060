package load

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestAQueryIsThatOfAStub(t *testing.T) {
	for q, name := range map[question]string{{false, 258}: "10-0-1-2.bench.pod.cluster.local.", {true, 70000}: "n70000.bench.svc.cluster.local."} {
		want := new(dns.Msg).SetQuestion(name, dns.TypeA)
		want.Id = 0xabcd
		got := new(dns.Msg)
		if err := got.Unpack(appendQuery(nil, 0xabcd, q)); err != nil || got.String() != want.String() {
			t.Errorf("%v: %v, got %s", q, err, got)
		}
		if q.String() != name+" A" {
			t.Errorf("%q is for %s", q, name)
		}
	}
	got := new(dns.Msg)
	if err := got.Unpack(textQuery("web.shop.svc", typeAAAA)); err != nil || got.Question[0] != (dns.Question{Name: "web.shop.svc.", Qtype: dns.TypeAAAA, Qclass: dns.ClassINET}) {
		t.Errorf("%v, got %s", err, got)
	}
}

func TestAReplyIsJudged(t *testing.T) {
	q := question{false, 258}
	const name = "10-0-1-2.bench.pod.cluster.local."
	for _, tt := range []struct {
		what   string
		change func(*dns.Msg)
		any    bool
		want   string
	}{
		{what: "right"},
		{what: "right and compressed", change: func(m *dns.Msg) { m.Compress = true }},
		{what: "a query", change: func(m *dns.Msg) { m.Response = false }, want: "the reply is to something else"},
		{what: "another name", change: func(m *dns.Msg) { m.Question[0].Name = "10-0-1-3.bench.pod.cluster.local." }, want: "the reply is to something else"},
		{what: "truncated", change: func(m *dns.Msg) { m.Truncated = true }, want: "truncated"},
		{what: "SERVFAIL", change: func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, want: "rcode 2 and 1 answers, want 0 and 1"},
		{what: "no answer", change: func(m *dns.Msg) { m.Answer = nil }, want: "rcode 0 and 0 answers, want 0 and 1"},
		{what: "another address", change: func(m *dns.Msg) { m.Answer[0].(*dns.A).A[3] = 9 }, want: "another address"},
		{what: "any address", change: func(m *dns.Msg) { m.Answer[0].(*dns.A).A[3] = 9 }, any: true},
		{what: "no address", change: func(m *dns.Msg) { m.Answer = []dns.RR{&dns.NS{Hdr: m.Answer[0].(*dns.A).Hdr, Ns: "."}} }, want: "another address"},
	} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Response = true
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: []byte{10, 0, 1, 2}}}
		if tt.change != nil {
			tt.change(m)
			m.Answer = m.Answer[:len(m.Answer):len(m.Answer)]
		}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for n := range b { // of a part of it nothing is read that is not there
			_ = q.judge(b[:n], tt.any)
		}
		if got := q.judge(b, tt.any); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
	m := new(dns.Msg).SetQuestion("n3.bench.svc.cluster.local.", dns.TypeA)
	m.Response = true
	for rcode, want := range map[int]string{dns.RcodeNameError: "", dns.RcodeSuccess: "rcode 0, want 3"} {
		m.Rcode = rcode
		b, _ := m.Pack()
		if got := (question{true, 3}).judge(b, false); got != want {
			t.Errorf("a denial with rcode %d: %q, want %q", rcode, got, want)
		}
	}
}

func TestATableKnowsWhatWaits(t *testing.T) {
	var tab table
	q := func(i int) question { return question{number: int32(i)} }
	for i := range 6 {
		if id, earlier := tab.take(q(i), int64(100+i)); int(id) != i || earlier.at != 0 {
			t.Fatalf("query %d has id %d, in the place of %+v", i, id, earlier)
		}
	}
	if got := tab.done(2); got != (slot{102, q(2)}) || tab.done(2).at != 0 || tab.done(77).at != 0 || tab.open != 5 {
		t.Errorf("reply 2 is to %+v, %d wait", got, tab.open)
	}
	var late []slot
	for s := tab.expire(104); s.at != 0; s = tab.expire(104) {
		late = append(late, s)
	}
	if want := []slot{{100, q(0)}, {101, q(1)}, {103, q(3)}}; !cmp.Equal(want, late, cmp.AllowUnexported(slot{}, question{})) || tab.open != 2 {
		t.Errorf("late are %v, want %v; %d wait", late, want, tab.open)
	}
	for i := 6; i < 4+1<<16; i++ {
		id, _ := tab.take(q(i), 200)
		tab.done(id)
	}
	if id, earlier := tab.take(q(9), 300); id != 4 || earlier != (slot{104, q(4)}) || tab.open != 2 {
		t.Errorf("id %d is in the place of %+v, %d wait", id, earlier, tab.open)
	}
	if tab.expire(300) != (slot{105, q(5)}) || tab.expire(300).at != 0 || tab.expire(301) != (slot{300, q(9)}) || tab.open != 0 || tab.expire(1000).at != 0 {
		t.Errorf("%d wait", tab.open)
	}
}

func TestProcessorTimeIsThatOfAFamily(t *testing.T) {
	const stat = "12 (a (b) c) S 3 12 12 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7"
	got, err := parseStat(stat)
	if want := (process{3, 1270 * time.Millisecond}); err != nil || got != want {
		t.Errorf("%v, got %+v, want %+v", err, got, want)
	}
	for _, bad := range []string{"", "12 (a) S 3", "12 (a) S x 12 12 0 -1 4194560 1 2 3 4 100 20 3 4", "12 (a) S 3 12 12 0 -1 4194560 1 2 3 4 100 x 3 4"} {
		if p, err := parseStat(bad); err == nil {
			t.Errorf("%q is %+v", bad, p)
		}
	}
	all := map[int]process{1: {0, 1}, 2: {1, 10}, 3: {2, 100}, 4: {1, 1000}}
	family := familyOf(all, 2)
	slices.Sort(family)
	if !slices.Equal(family, []int{2, 3}) {
		t.Errorf("the family of 2 is %v", family)
	}
}

package differential

import (
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// bigQuestion is answered with 40 addresses: over UDP with some of them.
var bigQuestion = question{name: "q1.big.example.", typ: dns.TypeA, class: dns.ClassINET, rd: true, cd: true, ad: true, edns: true, size: 512, do: true}

// rightReply is a reply without a fault.
func rightReply(t *testing.T, q question) seen {
	t.Helper()
	up := truth(t, q)
	m := new(dns.Msg).SetReply(q.message())
	m.Rcode, m.Answer, m.Ns, m.RecursionAvailable, m.CheckingDisabled = up.Rcode, up.Answer, up.Ns, true, q.cd
	m.SetEdns0(1232, q.do)
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	s := read(p)
	if s.unread || len(s.answer) == 0 {
		t.Fatalf("%s: %v", q, s)
	}
	s.cut, s.partSize, s.part = true, 512, records{}
	for c, ttl := range s.answer {
		if s.part[c] = ttl; len(s.part) == 9 {
			break
		}
	}
	return s
}

func anyOf(r records) content {
	return slices.MinFunc(slices.Collect(maps.Keys(r)), func(a, b content) int { return strings.Compare(a.data, b.data) })
}

// changes are all that can be wrong with rightReply, where it is seen, and the fault
// that it is.
var changes = []struct {
	what   string
	change func(*seen)
	aspect aspect
	fault  string
}{
	{"no reply", func(s *seen) { s.silent = true }, inReply, "no reply"},
	{"what cannot be read", func(s *seen) { s.unread = true }, inReply, "cannot be read"},
	{"another code", func(s *seen) { s.rcode = dns.RcodeNameError }, inRCode, "NXDOMAIN and not NOERROR"},
	{"not truncated", func(s *seen) { s.cut = false }, inCut, ""},
	{"truncated over TCP", func(s *seen) { s.stillCut = true }, inCut, "truncated over TCP"},
	{"too long", func(s *seen) { s.partSize = 513 }, "", "513 bytes where 512"},
	{"a part of something else", func(s *seen) { s.part = records{{"q1.big.example.", "10.9.9.9", dns.TypeA}: 1} }, "", "no part of the whole"},
	{"another spelling", func(s *seen) { s.question = strings.ToUpper(s.question) }, inQuestion, "not as sent (RFC 1035"},
	{"AA", func(s *seen) { s.aa = true }, inAA, "AA"},
	{"no RA", func(s *seen) { s.ra = false }, inRA, "no RA"},
	{"no RD", func(s *seen) { s.rd = false }, inRD, "RD"},
	{"no CD", func(s *seen) { s.cd = false }, inCD, "CD"},
	{"AD", func(s *seen) { s.ad = true }, inAD, "AD is invented"},
	{"no OPT", func(s *seen) { s.opt, s.do = false, false }, inOPT, "OPT"},
	{"no DO", func(s *seen) { s.do = false }, inDO, "DO"},
	{"a record too few", func(s *seen) { delete(s.answer, anyOf(s.answer)); s.part = nil }, inAnswer, "not the records"},
	{"a record too many", func(s *seen) { s.answer[content{"q1.big.example.", "10.9.9.9", dns.TypeA}] = 1 }, inAnswer, "not the records"},
	{"a TTL above upstream's", func(s *seen) { s.answer[anyOf(s.answer)] = 9 }, inTTL, "above upstream's"},
	{"a TTL below the others'", func(s *seen) { s.answer[anyOf(s.answer)] = 0 }, inTTL, "several TTLs"},
	{"an SOA", func(s *seen) { s.soa = records{{"big.example.", "x", dns.TypeSOA}: 1} }, inSOA, "SOA"},
}

func TestWhatIsWrongIsSeen(t *testing.T) {
	up := truth(t, bigQuestion)
	right := rightReply(t, bigQuestion)
	if f := faults(bigQuestion, up, right); f != nil {
		t.Fatalf("faults of a right reply: %q", f)
	}
	for _, tt := range changes {
		wrong := rightReply(t, bigQuestion)
		wrong.part = maps.Clone(right.part)
		tt.change(&wrong)
		if f := strings.Join(faults(bigQuestion, up, wrong), "; "); (f == "") != (tt.fault == "") || !strings.Contains(f, tt.fault) {
			t.Errorf("%s: faults %q, want %q", tt.what, f, tt.fault)
		}
		var want []aspect
		if tt.aspect != "" {
			want = []aspect{tt.aspect}
		}
		if got := differences(right, wrong); !slices.Equal(got, want) {
			t.Errorf("%s: differences %q, want %q", tt.what, got, want)
		}
	}
}

// What upstream answers in the ordinary way has no class that explains a wrong reply
// of ours, or of theirs, but the few that no upstream is needed for.
func TestADifferenceInOrdinaryRepliesHasNoReason(t *testing.T) {
	for _, peer := range []string{unbound, coreDNS, untuned} {
		for _, tt := range changes {
			right, wrong := rightReply(t, bigQuestion), rightReply(t, bigQuestion)
			tt.change(&wrong)
			for _, as := range differences(right, wrong) {
				c := clash{peer: peer, question: bigQuestion, up: truth(t, bigQuestion), ours: wrong, theirs: right, aspect: as}
				if k := classify(c); k >= 0 {
					t.Errorf("%s: %s of ours is explained by %q", peer, tt.what, classes[k].name)
				}
			}
		}
	}
}

// The table in README.md has each class, and no other.
func TestREADMEHasTheClasses(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n### How it differs from unbound and CoreDNS\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var got, want []string
	for line := range strings.Lines(section) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | "); ok && !strings.HasPrefix(name, "difference") {
			got = append(got, name)
		}
	}
	for _, k := range classes {
		want = append(want, k.name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Errorf("README.md has\n%q, want\n%q", got, want)
	}
}

func TestASeedMakesItsQuestions(t *testing.T) {
	const n = 5000
	questions := generate(rand.New(rand.NewPCG(1, 0)), n)
	if again := generate(rand.New(rand.NewPCG(1, 0)), n); !slices.Equal(questions, again) {
		t.Error("the same seed, other questions")
	}
	if other := generate(rand.New(rand.NewPCG(2, 0)), n); slices.Equal(questions, other) {
		t.Error("another seed, the same questions")
	}
	left := maps.Clone(kindsByName)
	for _, q := range questions {
		a := ask(q.message(), true)
		if delete(left, a.kind); a.kind == "" && (q.cd || q.ad || q.edns || !q.rd) {
			t.Errorf("%s: a name that others ask for, asked in another way", q)
		}
		if _, err := q.packet(1); err != nil {
			t.Error(err)
		}
	}
	if len(left) > 0 {
		t.Errorf("kinds that nobody asked for: %v", slices.Collect(maps.Keys(left)))
	}
}

// Whoever asks, and whether he asks for the whole of a chain or for its links, is
// told the same: else the three would differ in what they were told.
func TestUpstreamSaysTheSameToAll(t *testing.T) {
	for _, q := range generate(rand.New(rand.NewPCG(1, 0)), 3000) {
		if q.class != dns.ClassINET {
			continue
		}
		for _, udp := range []bool{true, false} {
			first, err := replies(q.message(), udp)
			if err != nil {
				t.Fatalf("%s: %v", q, err)
			}
			if second, _ := replies(q.message(), udp); !reflect.DeepEqual(first, second) {
				t.Errorf("%s: not the same again", q)
			}
		}
		whole := contents(truth(t, q).Answer, 0)
		for link := range whole {
			if link.typ != dns.TypeCNAME || strings.HasSuffix(link.data, ".net.") || ask(q.message(), false).wantsAlias() {
				continue
			}
			part := q
			part.name = link.data
			for c, ttl := range contents(truth(t, part).Answer, 0) {
				if had, ok := whole[c]; ok && had != ttl {
					t.Errorf("%s: %v lives for %d, and for %d where %s is asked for", q, c, had, ttl, part.name)
				}
			}
		}
	}
}

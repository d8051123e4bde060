package load

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"nodelocaldns/test/kubedns"
)

func standIn(t *testing.T) (*kubedns.Server, netip.AddrPort) {
	t.Helper()
	s, err := kubedns.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, netip.MustParseAddrPort(s.Addr())
}

// truth is what the stand-in says about names.
func truth(t *testing.T, s *kubedns.Server, names ...string) []Name {
	t.Helper()
	var out []Name
	for _, n := range names {
		m, _, err := (&dns.Client{Net: "tcp"}).Exchange(new(dns.Msg).SetQuestion(n, dns.TypeA), s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Truth(m))
	}
	return out
}

func run(t *testing.T, p Plan) Result {
	t.Helper()
	r, err := Run(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// counts is a summary without what the machine has a part in.
func counts(r Result) Summary {
	s := r.Summary(nil)
	return Summary{Sent: s.Sent, Right: s.Right, Wrong: s.Wrong, Servfail: s.Servfail, Refused: s.Refused, Lost: s.Lost}
}

func TestEveryQueryIsRecordedAndJudged(t *testing.T) {
	s, addr := standIn(t)
	names := truth(t, s, "web.shop.svc.cluster.local.", "db.shop.svc.cluster.local.", "www.example.com.", "none.shop.svc.cluster.local.")
	names = append(names, Name{"kubernetes.default.svc.cluster.local.", "A", "NOERROR", []string{"kubernetes.default.svc.cluster.local. A 192.0.2.1"}})
	for _, proto := range []string{"udp", "tcp"} {
		r := run(t, Plan{Server: addr, Proto: proto, Rate: 2000, Count: 100, Sockets: 3, Fresh: 30, Names: names})
		if diff := cmp.Diff(Summary{Sent: 100, Right: 80, Wrong: 20}, counts(r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", proto, diff)
		}
		ports := map[uint16]bool{}
		last := time.Duration(-1)
		for i, q := range r.Records {
			ports[q.Port] = true
			if q.At <= last || q.Lag < 0 || q.Latency <= 0 || q.Tries != 1 || q.Name != names[i%5].Name+" A" {
				t.Errorf("%s: record %d is %+v", proto, i, q)
			}
			last = q.At
		}
		// A fresh socket may be given the port of one that is closed.
		if n := len(ports); n < 28 || n > 33 {
			t.Errorf("%s: asked from %d ports, want those of 3 kept sockets and 30 fresh ones", proto, n)
		}
	}
}

func TestEveryFailureHasItsName(t *testing.T) {
	s, addr := standIn(t)
	names := truth(t, s, "web.shop.svc.cluster.local.")
	for _, tt := range []struct {
		what    string
		b       kubedns.Behaviour
		timeout time.Duration // of what is lost; other queries have more than any machine takes
		want    Summary
	}{
		{"every fourth is dropped", kubedns.Behaviour{DropEvery: 4}, 3 * time.Second, Summary{Sent: 8, Right: 6, Lost: 2}},
		{"answers come late", kubedns.Behaviour{Delay: time.Minute}, 300 * time.Millisecond, Summary{Sent: 8, Lost: 8}},
		{"SERVFAIL", kubedns.Behaviour{Rcode: "SERVFAIL"}, time.Minute, Summary{Sent: 8, Servfail: 8}},
		{"REFUSED", kubedns.Behaviour{Rcode: "REFUSED"}, time.Minute, Summary{Sent: 8, Refused: 8}},
		{"NXDOMAIN", kubedns.Behaviour{Rcode: "NXDOMAIN"}, time.Minute, Summary{Sent: 8, Wrong: 8}},
	} {
		s.Reset()
		if err := s.Behave(tt.b); err != nil {
			t.Fatal(err)
		}
		r := run(t, Plan{Server: addr, Proto: "udp", Count: 8, Sockets: 2, Names: names, Timeout: tt.timeout})
		if diff := cmp.Diff(tt.want, counts(r)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.what, diff)
		}
	}
	s.Close()
	r := run(t, Plan{Server: addr, Proto: "udp", Count: 8, Sockets: 1, Fresh: 50, Names: names, Timeout: 300 * time.Millisecond})
	if got := counts(r); got.Refused == 0 || got.Refused+got.Lost != 8 { // the kernel sends only so many ICMP messages
		t.Errorf("a closed port: %+v", got)
	}
}

// A server that ends each connection at its third query, unanswered.
func TestOverTCPAQueryIsAskedAgainWhenItsConnectionBreaks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	name := Name{"a.example.", "A", "NOERROR", []string{"a.example. A 192.0.2.1"}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for range 2 {
					var size [2]byte
					if _, err := io.ReadFull(c, size[:]); err != nil {
						return
					}
					b := make([]byte, binary.BigEndian.Uint16(size[:]))
					q := new(dns.Msg)
					if _, err := io.ReadFull(c, b); err != nil || q.Unpack(b) != nil {
						return
					}
					m := new(dns.Msg).SetReply(q)
					rr, _ := dns.NewRR("a.example. 30 A 192.0.2.1")
					m.Answer = []dns.RR{rr}
					b, _ = m.Pack()
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
				}
				_, _ = c.Read(make([]byte, 1))
			}()
		}
	}()
	r := run(t, Plan{Server: l.Addr().(*net.TCPAddr).AddrPort(), Proto: "tcp", Count: 9, Sockets: 1, Names: []Name{name}})
	if diff := cmp.Diff(Summary{Sent: 9, Right: 9}, counts(r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s := r.Summary(nil); s.Retried == 0 {
		t.Errorf("no query was sent twice: %+v", s)
	}
}

func TestAContextThatEndsEndsTheLoad(t *testing.T) {
	s, addr := standIn(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := Run(ctx, Plan{Server: addr, Proto: "udp", Rate: 1, Count: 1000, Sockets: 1, Names: truth(t, s, "web.shop.svc.cluster.local.")})
	if err != nil || len(r.Records) > 1 {
		t.Errorf("%d were sent, error %v", len(r.Records), err)
	}
}

func TestASummaryCountsWhatIsKept(t *testing.T) {
	ms := time.Millisecond
	r := Result{Records: []Record{
		{Name: "a A", At: 0, Outcome: Right, Latency: 1 * ms, Tries: 1},
		{Name: "b A", At: 10 * ms, Lag: 2 * ms, Outcome: Lost, Latency: Timeout, Tries: 1},
		{Name: "a A", At: 20 * ms, Outcome: Servfail, Latency: 3 * ms, Tries: 2},
		{Name: "b A", At: 30 * ms, Outcome: Right, Latency: 9 * ms, Tries: 1},
	}}
	want := Summary{Sent: 4, Right: 2, Servfail: 1, Lost: 1, Retried: 1, Median: 3 * ms, P99: 9 * ms, P999: 9 * ms, Slowest: 9 * ms,
		Rate: 100, Lag: 2 * ms, Example: "b A sent after 10ms: lost "}
	if diff := cmp.Diff(want, r.Summary(nil), cmpopts.EquateApprox(0, 1e-6)); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	want = Summary{Sent: 1, Right: 1, Median: 9 * ms, P99: 9 * ms, P999: 9 * ms, Slowest: 9 * ms}
	if diff := cmp.Diff(want, r.Summary(func(q Record) bool { return q.At == 30*ms })); diff != "" {
		t.Errorf("one (-want +got):\n%s", diff)
	}
}

package load

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"nodelocaldns/test/kubedns"
)

func standIn(t *testing.T, b kubedns.Behaviour) (*kubedns.Server, netip.AddrPort) {
	t.Helper()
	s, err := kubedns.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Behave(b); err != nil {
		t.Fatal(err)
	}
	return s, netip.MustParseAddrPort(s.Addr())
}

// counts is what Run counted, without what the machine has a part in.
func counts(t *testing.T, p Plan) Result {
	t.Helper()
	r, err := Run(p)
	if err != nil {
		t.Fatal(err)
	}
	return Result{Sent: r.Sent, Right: r.Right, Wrong: r.Wrong, Lost: r.Lost, Strays: r.Strays, Example: r.Example}
}

func TestEveryQueryIsAskedOnceAndJudged(t *testing.T) {
	const soon, lost = 250 * time.Millisecond, 3 * time.Second // lost: on any machine
	pods, none := Set{Pod, 70_000, 100}, Set{None, 5, 10}
	fullUDP := Plan{Kind: UDP, Window: 40, Sockets: 3, Count: 200, Names: pods}
	atRate := Plan{Kind: UDP, Rate: 5000, Sockets: 3, Count: 200, Names: pods}
	fullTCP := Plan{Kind: TCP, Window: 10, Sockets: 3, Count: 200, Names: pods}
	all := Result{Sent: 200, Right: 200}
	for _, tt := range []struct {
		what   string
		plan   Plan
		change func(*Plan)
		behave kubedns.Behaviour
		want   Result
	}{
		{what: "UDP, full load", plan: fullUDP, want: all},
		{what: "UDP, fixed rate", plan: atRate, want: all},
		{what: "TCP", plan: fullTCP, want: all},
		{what: "names that are not", plan: fullUDP, change: func(p *Plan) { p.Names = none }, want: all},
		{what: "a denial", plan: fullUDP, change: func(p *Plan) { p.Names.Count = 1 }, behave: kubedns.Behaviour{Rcode: "NXDOMAIN"},
			want: Result{Sent: 200, Wrong: 200, Example: "10-1-17-112.bench.pod.cluster.local. A: rcode 3 and 0 answers, want 0 and 1"}},
		{what: "a denial that is none", plan: atRate, change: func(p *Plan) { p.Names = Set{None, 5, 1} }, behave: kubedns.Behaviour{Rcode: "SERVFAIL"},
			want: Result{Sent: 200, Wrong: 200, Example: "n5.bench.svc.cluster.local. A: rcode 2, want 3"}},
		{what: "every fourth is dropped at a rate", plan: atRate, change: func(p *Plan) { p.Timeout = lost }, behave: kubedns.Behaviour{DropEvery: 4},
			want: Result{Sent: 200, Right: 150, Lost: 50}},
		{what: "all are dropped at full load", plan: fullUDP, change: func(p *Plan) { p.Timeout, p.Count = soon, 100 }, behave: kubedns.Behaviour{DropEvery: 1},
			want: Result{Sent: 100, Lost: 100}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s, addr := standIn(t, tt.behave)
			p := tt.plan
			if tt.change != nil {
				tt.change(&p)
			}
			p.Server = addr
			got := counts(t, p)
			if tt.want.Example == "" {
				got.Example = "" // which one was lost is chance
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			c := s.Counts()
			if int(c.Total()) != tt.want.Sent || len(c.Names) != p.Names.Count || (p.Kind == TCP) != (c.TCP > 0) {
				t.Errorf("the server was asked %d times over UDP and %d over TCP for %d names", c.UDP, c.TCP, len(c.Names))
			}
		})
	}
}

func TestNamesThatAreAskedOnceTakeThePlaceOfOthers(t *testing.T) {
	s, addr := standIn(t, kubedns.Behaviour{})
	got := counts(t, Plan{Server: addr, Kind: UDP, Window: 4, Sockets: 2, Count: 100, Names: Set{Pod, 0, 5}, Once: Set{Pod, 1000, 1 << 20}, Every: 10})
	if diff := cmp.Diff(Result{Sent: 100, Right: 100}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	once, often := 0, 0
	for _, n := range s.Counts().Names {
		if n == 1 {
			once++
		} else {
			often++
		}
	}
	if once != 10 || often != 5 {
		t.Errorf("%d names were asked for once, %d often, want 10 and 5", once, often)
	}
}

func TestEveryClientHasAnAddress(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	asked := make(chan map[netip.Addr]int, 1)
	go func() {
		from := map[netip.Addr]int{}
		b := make([]byte, 512)
		for range 20 {
			n, a, err := c.ReadFrom(b)
			if err != nil {
				break
			}
			from[a.(*net.UDPAddr).AddrPort().Addr().Unmap()]++
			m := new(dns.Msg)
			if m.Unpack(b[:n]) == nil {
				m.SetRcode(m, dns.RcodeNameError)
				if reply, err := m.Pack(); err == nil {
					_, _ = c.WriteTo(reply, a)
				}
			}
		}
		asked <- from
	}()
	got := counts(t, Plan{Server: netip.MustParseAddrPort(c.LocalAddr().String()), Kind: UDP, Window: 4, Sockets: 2, Count: 20, Names: Set{None, 0, 5},
		Clients: 4, From: netip.MustParsePrefix("127.0.7.0/24"), Timeout: time.Minute})
	if diff := cmp.Diff(Result{Sent: 20, Right: 20}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	want := map[netip.Addr]int{}
	for _, a := range []string{"127.0.7.0", "127.0.7.1", "127.0.7.2", "127.0.7.3"} {
		want[netip.MustParseAddr(a)] = 5
	}
	if diff := cmp.Diff(want, <-asked, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestALookupAsksForEightNames(t *testing.T) {
	s, addr := standIn(t, kubedns.Behaviour{})
	p := Plan{Server: addr, Kind: Lookups, Host: "web.shop.svc.cluster.local", Window: 5, Sockets: 1, Time: 50 * time.Millisecond}
	got, err := Run(p)
	if err != nil {
		t.Fatal(err)
	}
	if got.Sent < 5 || got.Right != got.Sent || got.Wrong+got.Lost+got.Strays+got.Slow != 0 || got.Mean <= 0 || got.Max < got.Mean {
		t.Errorf("got %+v", got)
	}
	names := map[string]uint64{}
	for _, domain := range []string{"default.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
		for _, qtype := range []string{" A", " AAAA"} {
			names[strings.TrimSuffix("web.shop.svc.cluster.local."+domain, ".")+"."+qtype] = uint64(got.Sent)
		}
	}
	if diff := cmp.Diff(names, s.Counts().Names); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestALookupFailsAsGlibcSays(t *testing.T) {
	p := Plan{Kind: Lookups, Window: 2, Sockets: 1, Time: time.Millisecond}
	for _, tt := range []struct {
		what, host string
		behave     kubedns.Behaviour
		timeout    time.Duration
		want       Result
		queries    uint64
	}{
		{"a name that is not", "none.shop.svc.cluster.local", kubedns.Behaviour{}, time.Minute,
			Result{Sent: 2, Wrong: 2, Example: "none.shop.svc.cluster.local: rcode 3 and 0 answers"}, 16},
		{"SERVFAIL ends it", "web.shop.svc.cluster.local", kubedns.Behaviour{Rcode: "SERVFAIL"}, time.Minute,
			Result{Sent: 2, Wrong: 2, Example: "web.shop.svc.cluster.local.default.svc.cluster.local: rcode 2 and 0 answers"}, 4},
		{"silence is asked twice", "web.shop.svc.cluster.local", kubedns.Behaviour{DropEvery: 1}, 200 * time.Millisecond,
			Result{Sent: 2, Wrong: 2, Lost: 8}, 8},
	} {
		s, addr := standIn(t, tt.behave)
		p.Server, p.Host, p.Timeout = addr, tt.host, tt.timeout
		// A lookup may end before the plan does, and then there are more.
		got := counts(t, p)
		n := got.Sent / 2
		want := tt.want
		want.Sent, want.Wrong, want.Lost = got.Sent, got.Sent, want.Lost*n
		if diff := cmp.Diff(want, got); diff != "" || got.Sent < 2 || s.Counts().Total() != tt.queries*uint64(got.Sent)/2 {
			t.Errorf("%s: %d queries (-want +got):\n%s", tt.what, s.Counts().Total(), diff)
		}
	}
}

func TestAConnectionThatBreaksIsMadeAgain(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for { // two replies for each connection
			c, err := l.Accept()
			if err != nil {
				return
			}
			dc := &dns.Conn{Conn: c}
			for range 2 {
				m, err := dc.ReadMsg()
				if err != nil {
					break
				}
				_ = dc.WriteMsg(m.SetRcode(m, dns.RcodeNameError))
			}
			_ = c.Close()
		}
	}()
	r, err := Run(Plan{Server: netip.MustParseAddrPort(l.Addr().String()), Kind: TCP, Window: 3, Sockets: 1, Count: 10, Names: Set{None, 0, 10}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 10 || r.Right != 10 || r.Reconnects == 0 {
		t.Errorf("got %+v", r)
	}
}

func TestAPlanThatMakesNoSenseIsRefused(t *testing.T) {
	good := Plan{Server: netip.MustParseAddrPort("127.0.0.1:53"), Kind: UDP, Rate: 10, Sockets: 1, Count: 1, Names: Set{Pod, 0, 1}}
	for what, change := range map[string]func(*Plan){
		"no kind":                func(p *Plan) { p.Kind = "" },
		"IPv6":                   func(p *Plan) { p.Server = netip.MustParseAddrPort("[::1]:53") },
		"no socket":              func(p *Plan) { p.Sockets = 0 },
		"a rate and a window":    func(p *Plan) { p.Window = 1 },
		"a rate over TCP":        func(p *Plan) { p.Kind = TCP },
		"no end":                 func(p *Plan) { p.Count = 0 },
		"more clients than from": func(p *Plan) { p.Clients, p.From = 3, netip.MustParsePrefix("127.0.0.0/31") },
		"no names":               func(p *Plan) { p.Names = Set{} },
		"none for once":          func(p *Plan) { p.Every = 10 },
		"lookups of nothing":     func(p *Plan) { p.Kind, p.Rate, p.Window = Lookups, 0, 1 },
	} {
		p := good
		change(&p)
		if p.validate() == nil {
			t.Errorf("%s: %+v is a plan", what, p)
		}
	}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
}

func TestLatenciesAreSummedUp(t *testing.T) {
	r := run{counting: true, begin: time.Unix(0, 0)}
	for i := 1000; i > 0; i-- {
		r.replied(1, 1+int64(i), "", question{})
		r.lags = append(r.lags, time.Duration(i))
	}
	r.replied(1, 1+int64(5*time.Second), "", question{})
	r.replied(-1, 9, "", question{}) // sent before it is counted
	r.lose(slot{at: 1})
	r.lose(slot{at: -1})
	r.sum()
	want := Result{Right: 1001, Lost: 1, Slow: 1, Replies: 1002, Mean: (500*1001 + 5*time.Second) / 1001,
		P50: 501, P99: 991, P999: 1000, Max: 5 * time.Second, Lag: 991, Example: "10-0-0-0.bench.pod.cluster.local. A: no reply"}
	if diff := cmp.Diff(want, r.Result); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

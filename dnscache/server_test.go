package dnscache

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/upstream"
)

// testConfig is a resolver in front of the given servers.
func testConfig(clusterDNS ...netip.AddrPort) Config {
	z := Zone{Success: Limits{9984, 30 * time.Second}, Denial: Limits{9984, 5 * time.Second}}
	return Config{
		Listen:        []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:5353")},
		ClusterDomain: "cluster.local",
		ClusterDNS:    clusterDNS,
		Cluster:       z, Reverse: z, External: z,
		MaxBytes: 32 << 20,
	}
}

// serve runs a server on loopback sockets that it adopts, until the test ends,
// and returns it and its address.
func serve(t *testing.T, cfg Config) (*Server, netip.AddrPort) {
	t.Helper()
	c, l, at := sockets(t)
	cfg.Listen = []netip.AddrPort{at}
	s, err := New(cfg, Deps{Packets: []*net.UDPConn{c}, Streams: []*net.TCPListener{l}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	<-s.Ready()
	return s, at
}

// upstreamServer answers over UDP and TCP on a loopback port until the test
// ends.
func upstreamServer(t *testing.T, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	c, l, at := sockets(t)
	for _, srv := range []*dns.Server{{Listener: l, Handler: h}, {PacketConn: c, Handler: h}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	return at
}

func ask(t *testing.T, network string, server netip.AddrPort, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: patience}
	r, _, err := c.Exchange(q, server.String())
	if err != nil {
		t.Fatalf("%s over %s: %v", q.Question[0].Name, network, err)
	}
	return r
}

func TestAQueryIsAnsweredFromUpstreamOnceAndThenFromTheCache(t *testing.T) {
	asked := make(chan string, 100)
	up := upstreamServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked <- q.Question[0].Name
		m := new(dns.Msg).SetReply(q)
		rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A 10.0.0.1")
		m.Answer = append(m.Answer, rr)
		_ = w.WriteMsg(m)
	})
	s, at := serve(t, testConfig(up))
	q := new(dns.Msg).SetQuestion("Web.ns.svc.cluster.local.", dns.TypeA)
	for _, network := range []string{"udp", "tcp", "udp"} {
		r := ask(t, network, at, q)
		if len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 30 || r.Question[0].Name != q.Question[0].Name {
			t.Fatalf("over %s: %v", network, r)
		}
	}
	n := 0
	for len(asked) > 0 {
		if <-asked == "web.ns.svc.cluster.local." {
			n++
		}
	}
	if n != 1 {
		t.Errorf("upstream was asked %d times, want 1", n)
	}
	if st := s.Stats(); st.Cache[zoneCluster].Hits != 2 || st.Cache[zoneCluster].Misses != 1 {
		t.Errorf("stats: %+v", st)
	}
}

func TestNobodyAnsweringIsServfailInUnderASecond(t *testing.T) {
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	cfg := testConfig()
	cfg.Upstreams = Upstreams{Source: ServerList, Servers: upstream.Plain([]netip.AddrPort{netip.MustParseAddrPort(silent.LocalAddr().String())})}
	_, at := serve(t, cfg)
	q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	q.SetEdns0(1232, false)
	r := ask(t, "udp", at, q)
	if r.Rcode != dns.RcodeServerFailure {
		t.Fatalf("%v", r)
	}
	if o := r.IsEdns0(); o == nil || len(o.Option) != 1 || o.Option[0].(*dns.EDNS0_EDE).InfoCode != dns.ExtendedErrorCodeNetworkError {
		t.Errorf("no EDE: %v", r)
	}
}

package differential

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/test/netns"
)

// loopback are a UDP socket and a TCP listener on one port that is free.
func loopback() (*net.UDPConn, *net.TCPListener, error) {
	var errs []error
	for range 5 { // a port that is free for TCP may be taken for UDP
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, nil, err
		}
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: l.Addr().(*net.TCPAddr).Port})
		if err == nil {
			return c, l, nil
		}
		errs = append(errs, err, l.Close())
	}
	return nil, nil, errors.Join(errs...)
}

// startUpstream serves the script until the test ends.
func startUpstream(t *testing.T) netip.AddrPort {
	t.Helper()
	c, l, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: c, UDPSize: dns.DefaultMsgSize}, {Listener: l, MaxTCPQueries: -1}} {
		started := make(chan struct{})
		s.Handler = dns.HandlerFunc(answerQuery)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }() // ends with the test; the sockets are open already
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return netip.MustParseAddrPort(l.Addr().String())
}

// answerQuery follows the script.
func answerQuery(w dns.ResponseWriter, query *dns.Msg) {
	udp := w.LocalAddr().Network() == "udp"
	packets, err := replies(query, udp)
	if err != nil {
		panic(fmt.Sprintf("the script has no reply to %v: %v", query.Question, err))
	}
	for _, p := range packets {
		_, _ = w.Write(p) // who asked may be gone
	}
}

// replies are the packets that upstream answers a query with.
func replies(query *dns.Msg, udp bool) ([][]byte, error) {
	s, err := says(query, udp)
	if err != nil || s.silent {
		return nil, err
	}
	m := new(dns.Msg).SetReply(query)
	m.Rcode, m.Authoritative, m.AuthenticatedData, m.Truncated = s.Rcode, s.Authoritative, s.AuthenticatedData, s.Truncated
	m.RecursionAvailable, m.CheckingDisabled, m.Compress = !s.ra0, query.CheckingDisabled, true
	m.Answer, m.Ns, m.Extra = s.Answer, s.Ns, s.Extra
	if s.folded {
		m.Question[0].Name = strings.ToLower(m.Question[0].Name)
	}
	limit := dns.MaxMsgSize
	opt := query.IsEdns0()
	if udp {
		limit = dns.MinMsgSize
		if opt != nil {
			limit = max(limit, int(opt.UDPSize()))
		}
	}
	if opt != nil && !s.bare {
		m.SetEdns0(dns.DefaultMsgSize, opt.Do())
	}
	if !m.Truncated {
		m.Truncate(limit)
	}
	p, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if s.spoil != nil {
		p = s.spoil(p)
	}
	var out [][]byte
	if udp {
		for _, f := range s.spoofs {
			out = append(out, f(append([]byte(nil), p...)))
		}
	}
	return append(out, p), nil
}

// apart are the zones whose servers are others, at the same address.
func apart() []string {
	var out []string
	for _, k := range kinds {
		if k.apart {
			out = append(out, k.name+"."+zone)
		}
	}
	return out
}

// startOurs runs the resolver until the test ends: cluster names over TCP, as
// kube-dns is asked, and all others over UDP. Pods must not notice whether it is
// tuned: the search path is made cheaper, and letters are left as they are.
func startOurs(t *testing.T, up netip.AddrPort, tuned bool) (*dnscache.Server, netip.AddrPort) {
	t.Helper()
	c, l, err := loopback()
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	limits := dnscache.Limits{Entries: 40000, MaxTTL: ttlLimit * time.Second}
	z := dnscache.Zone{Success: limits, Denial: limits}
	other := z
	other.Transport, other.RandomizeCase = dnscache.TransportUDP, !tuned
	cfg := dnscache.Config{
		Listen: []netip.AddrPort{at}, ClusterDomain: "cluster.local", ClusterDNS: []netip.AddrPort{up},
		Upstreams: dnscache.Upstreams{Source: dnscache.ServerList, Servers: upstream.Plain([]netip.AddrPort{up})},
		Cluster:   z, Reverse: z, External: other, MaxBytes: 64 << 20,
		CollapseSearch: tuned,
	}
	for _, name := range apart() {
		cfg.StubDomains = append(cfg.StubDomains, dnscache.StubDomain{Zone: strings.TrimSuffix(name, "."), Servers: cfg.Upstreams.Servers})
	}
	s, err := dnscache.New(cfg, dnscache.Deps{Packets: []*net.UDPConn{c}, Streams: []*net.TCPListener{l}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	<-s.Ready()
	return s, at
}

// startUnbound runs unbound as a forwarder that does not validate.
func startUnbound(t *testing.T, program string, up netip.AddrPort) netip.AddrPort {
	t.Helper()
	return start(t, "start of service", func(at netip.AddrPort, dir string) *exec.Cmd {
		var b strings.Builder
		fmt.Fprintf(&b, `server:
	interface: %s
	port: %d
	access-control: 127.0.0.0/8 allow_snoop # queries without RD, too
	username: ""
	chroot: ""
	directory: %q
	pidfile: ""
	use-syslog: no
	verbosity: 1
	module-config: iterator
	qname-minimisation: no
	do-not-query-localhost: no
	do-ip6: no
	local-zone: 10.in-addr.arpa. nodefault
	local-zone: test. nodefault
	cache-max-ttl: %d
	cache-max-negative-ttl: %[4]d
	msg-cache-size: 64m
	rrset-cache-size: 64m
	incoming-num-tcp: 200
	outgoing-num-tcp: 200
	infra-cache-min-rtt: 2000 # an upstream that has to wait for a processor is not dead
remote-control:
	control-enable: no
`, at.Addr(), at.Port(), dir, ttlLimit)
		for _, name := range append([]string{"."}, apart()...) {
			fmt.Fprintf(&b, "forward-zone:\n\tname: %q\n\tforward-addr: %s@%d\n", name, up.Addr(), up.Port())
		}
		conf := filepath.Join(dir, "unbound.conf")
		writeFile(t, conf, b.String())
		return exec.Command(program, "-d", "-p", "-c", conf)
	})
}

// startCoreDNS runs CoreDNS as a forwarder with a cache.
func startCoreDNS(t *testing.T, program string, up netip.AddrPort) netip.AddrPort {
	t.Helper()
	return start(t, "CoreDNS-", func(at netip.AddrPort, dir string) *exec.Cmd {
		var b strings.Builder
		for _, name := range append([]string{"."}, apart()...) {
			fmt.Fprintf(&b, `%s:%d {
	bind %s
	errors
	cache %d {
		success 40000 %[4]d
		denial 40000 %[4]d
	}
	forward . %s {
		max_fails 0
	}
}
`, name, at.Port(), at.Addr(), ttlLimit, up)
		}
		conf := filepath.Join(dir, "Corefile")
		writeFile(t, conf, b.String())
		return exec.Command(program, "-conf", conf)
	})
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs a program until the test ends, and returns where it listens once it
// has said that it does.
func start(t *testing.T, ready string, command func(at netip.AddrPort, dir string) *exec.Cmd) netip.AddrPort {
	t.Helper()
	var said []string
	for range 5 { // somebody else may have taken the port meanwhile
		c, l, err := loopback()
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort(l.Addr().String())
		_, _ = c.Close(), l.Close()
		stop, out := launch(t, ready, command(at, t.TempDir()))
		if stop != nil {
			t.Cleanup(stop)
			return at
		}
		said = append(said, out)
	}
	t.Fatalf("it does not start:\n%s", strings.Join(said, ""))
	return netip.AddrPort{}
}

// launch starts a program, and returns what kills it once it has said that it is
// ready. One that ends before has no stop. said is what it has printed by then.
func launch(t *testing.T, ready string, cmd *exec.Cmd) (stop func(), said string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var out strings.Builder
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fmt.Fprintln(&out, lines.Text())
		if strings.Contains(lines.Text(), ready) {
			drained := make(chan struct{})
			go func() {
				_, _ = io.Copy(io.Discard, r)
				close(drained)
			}()
			return func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				<-drained
				_ = r.Close()
			}, out.String()
		}
	}
	_ = cmd.Wait()
	_ = r.Close()
	return nil, out.String()
}

// unboundProgram is where unbound is.
func unboundProgram(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"unbound", "/usr/sbin/unbound"} { // not every user has sbin in PATH
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	netns.Skip(t, "unbound is not installed: test/setup.sh test installs it")
	return ""
}

// coreDNSProgram builds the CoreDNS that test/tools/coredns pins, if the build
// cache has it not, and returns where it is.
func coreDNSProgram(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "-C", "../tools/coredns", "tool", "-n", "coredns")
	var why strings.Builder
	cmd.Stderr = &why
	out, err := cmd.Output()
	if err != nil {
		netns.Skip(t, fmt.Sprintf("building CoreDNS: %v\n%s", err, why.String()))
	}
	return strings.TrimSpace(string(out))
}

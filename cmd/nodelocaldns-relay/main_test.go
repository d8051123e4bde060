package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"nodelocaldns/cmd/internal/buildinfo"
	"nodelocaldns/cmd/internal/control"
	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
	"nodelocaldns/test/ports"
)

// asRelay is set for a process that is the relay: this binary again.
const asRelay = "NODELOCALDNS_TEST_RELAY"

func TestMain(m *testing.M) {
	if os.Getenv(asRelay) == "" {
		os.Exit(m.Run())
	}
	_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // which systemd knows before it starts us
	main()
}

// soon bounds what takes a moment; nothing waits for it that goes well.
const soon = 30 * time.Second

// A kubeDNS answers every name with 10.0.0.1, over UDP and TCP.
type kubeDNS struct {
	at    netip.AddrPort
	asked atomic.Int64
}

func startKubeDNS(t testing.TB) *kubeDNS {
	t.Helper()
	k := &kubeDNS{}
	packets, streams := ports.Listen(t)
	k.at = netip.MustParseAddrPort(packets.LocalAddr().String())
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		k.asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IPv4(10, 0, 0, 1)}}
		_ = w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: streams, Handler: handler}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return k
}

// A unit is what systemd has of a relay: its sockets, which outlive it, and the
// run directory.
type unit struct {
	t     testing.TB
	run   string
	at    string // of UDP and TCP
	files []*os.File
}

// newUnit makes sockets at an address of its own: two for UDP, as the socket unit
// does, one for TCP, and the control socket.
func newUnit(t testing.TB, tell facts.Facts) *unit {
	t.Helper()
	u := &unit{t: t, run: t.TempDir()}
	if err := facts.Write(fsys.Dir(u.run), tell); err != nil {
		t.Fatal(err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	keep := func(s any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		u.files = append(u.files, f)
		t.Cleanup(func() { _ = f.Close() })
		_ = s.(io.Closer).Close()
	}
	u.at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.53"), ports.Free(t).Port()).String()
	for range 2 {
		c, err := lc.ListenPacket(t.Context(), "udp4", u.at)
		keep(c, err)
	}
	l, err := lc.Listen(t.Context(), "tcp4", u.at)
	keep(l, err)
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(u.run, "control.sock"), Net: "unix"})
	if err == nil {
		ul.SetUnlinkOnClose(false)
	}
	keep(ul, err)
	return u
}

// A running relay is a process.
type running struct {
	*exec.Cmd
	t   testing.TB
	log bytes.Buffer
}

// start starts a relay on u's sockets and returns when it says that it is ready.
func (u *unit) start() *running {
	u.t.Helper()
	at := filepath.Join(u.t.TempDir(), "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		u.t.Fatal(err)
	}
	defer notify.Close()
	r := &running{Cmd: exec.Command("/proc/self/exe", "--run-dir", u.run), t: u.t}
	r.Env = append(os.Environ(), asRelay+"=1", "LISTEN_FDS="+strconv.Itoa(len(u.files)), "NOTIFY_SOCKET="+at, "GORACE=atexit_sleep_ms=0")
	r.ExtraFiles, r.Stderr = u.files, &r.log
	r.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.Start(); err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { _ = r.Process.Kill() }) // has ended where all went well
	_ = notify.SetReadDeadline(time.Now().Add(soon))
	buf := make([]byte, 4096)
	n, err := notify.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "READY=1\n") {
		_ = r.Process.Kill()
		_ = r.Wait()
		u.t.Fatalf("got %q, %v, want READY=1; the relay's log:\n%s", buf[:n], err, &r.log)
	}
	return r
}

// end sends SIGTERM and returns when the relay is gone.
func (r *running) end() {
	r.t.Helper()
	_ = r.Process.Signal(syscall.SIGTERM)
	if err := r.Wait(); err != nil {
		r.t.Errorf("after SIGTERM: %v\n%s", err, &r.log)
	}
}

func TestARelayAnswersFromTheSocketsItIsHanded(t *testing.T) {
	k := startKubeDNS(t)
	at := ports.Free(t).String()
	servers := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), k.at} // nobody listens at the first one
	u := newUnit(t, facts.Facts{Servers: servers, Source: "cluster.dns", Metrics: at})
	r := u.start()
	m := new(dns.Msg)
	m.SetQuestion("a.", dns.TypeA)
	for _, network := range []string{"udp", "tcp"} {
		got, _, err := (&dns.Client{Net: network, Timeout: soon}).Exchange(m, u.at)
		if err != nil || got.Rcode != dns.RcodeSuccess || len(got.Answer) != 1 {
			t.Errorf("%s: %v, %v", network, err, got)
		}
	}

	var reply control.Reply
	body := get(t, func() (net.Conn, error) { return net.Dial("unix", filepath.Join(u.run, "control.sock")) }, "/status", "application/json")
	if err := json.Unmarshal(body, &reply); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	want := control.Reply{Why: control.Why, Relay: control.Relay{
		PID: r.Process.Pid, Version: buildinfo.This(), Servers: servers, Source: "cluster.dns", Queries: 2,
	}}
	if diff := cmp.Diff(want, reply, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.IgnoreFields(control.Relay{}, "Since")); diff != "" || reply.Relay.Since.IsZero() {
		t.Errorf("status: since %s, -want +got:\n%s", reply.Relay.Since, diff)
	}

	text := get(t, func() (net.Conn, error) { return net.Dial("tcp", at) }, "/metrics", "text/plain; version=0.0.4; charset=utf-8")
	v := buildinfo.This()
	wantText := fmt.Sprintf(`# HELP nodelocaldns_build_info Always 1; the labels say what this binary is.
# TYPE nodelocaldns_build_info gauge
nodelocaldns_build_info{goversion=%q,revision=%q,version=%q} 1
# HELP nodelocaldns_relay_active Whether the relay answers in the resolver's place (1), without a cache.
# TYPE nodelocaldns_relay_active gauge
nodelocaldns_relay_active 1
# HELP nodelocaldns_relay_queries_total Well-formed queries that the relay received, by protocol.
# TYPE nodelocaldns_relay_queries_total counter
nodelocaldns_relay_queries_total{proto="tcp"} 1
nodelocaldns_relay_queries_total{proto="udp"} 1
# HELP nodelocaldns_relay_servfails_total Queries that the relay answered SERVFAIL because no kube-dns did.
# TYPE nodelocaldns_relay_servfails_total counter
nodelocaldns_relay_servfails_total 0
`, v.Go, v.Revision, v.Version)
	if diff := cmp.Diff(wantText, string(text)); diff != "" {
		t.Errorf("metrics: -want +got:\n%s", diff)
	}
	r.end()
	for _, want := range []string{`msg="relay: answering in the resolver's place" listen=` + u.at + " adopted=3", "msg=\"relay: stopped\" queries=2 servfails=0"} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("the log does not say %s:\n%s", want, &r.log)
		}
	}
}

// get asks for a page as an ordinary HTTP client does.
func get(t *testing.T, dial func() (net.Conn, error), path, kind string) []byte {
	t.Helper()
	c := &http.Client{Timeout: soon, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return dial() },
	}}
	resp, err := c.Get("http://relay" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != kind {
		t.Fatalf("%s: %s %v, %v", path, resp.Status, resp.Header, err)
	}
	return body
}

// As when the resolver is back, or a package brings another relay: one process
// takes over from another, after it or beside it, and nobody loses a query.
func TestNoQueryIsLostWhenOneTakesOverFromAnother(t *testing.T) {
	k := startKubeDNS(t)
	u := newUnit(t, facts.Facts{Servers: []netip.AddrPort{k.at}, Source: "cluster.dns"})
	r := u.start()
	l := u.load(4, 32)
	for n := range 6 {
		l.wait(2000)
		if n%2 == 0 { // beside it
			next := u.start()
			r.end()
			r = next
		} else { // after it, while queries wait in the sockets
			r.end()
			r = u.start()
		}
	}
	l.end()
	r.end()
	if sent, answered := l.sent.Load(), l.answered.Load(); answered != sent || sent < 12000 {
		t.Errorf("%d of %d queries were answered with the name's address", answered, sent)
	}
}

// A load is clients that each have so many queries under way, and send another one
// for each reply.
type load struct {
	t              testing.TB
	sent, answered atomic.Int64
	stop           atomic.Bool
	clients        sync.WaitGroup
	replies        chan struct{} // one for each that was answered while somebody waits
	broken         chan struct{} // closed when a client gave up
	once           sync.Once
}

func (u *unit) load(clients, underway int) *load {
	l := &load{t: u.t, replies: make(chan struct{}, 1000), broken: make(chan struct{})}
	for n := range clients {
		conn, err := net.Dial("udp", u.at)
		if err != nil {
			u.t.Fatal(err)
		}
		l.clients.Go(func() {
			defer conn.Close()
			if !l.client(conn, n, underway) {
				l.once.Do(func() { close(l.broken) })
			}
		})
	}
	return l
}

// client is false when it gave up.
func (l *load) client(conn net.Conn, n, underway int) bool {
	m := new(dns.Msg)
	m.SetQuestion(fmt.Sprintf("client%d.", n), dns.TypeA)
	query, err := m.Pack()
	if err != nil {
		l.t.Error(err)
		return false
	}
	open := map[uint16]bool{}
	send := func(id uint16) {
		query[0], query[1] = byte(id>>8), byte(id)
		l.sent.Add(1)
		open[id] = true
		_, _ = conn.Write(query)
	}
	for id := range underway {
		send(uint16(id))
	}
	buf := make([]byte, 512)
	for id := uint16(underway); len(open) > 0; {
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		size, err := conn.Read(buf)
		if err != nil {
			l.t.Errorf("client %d: %d queries without a reply: %v", n, len(open), err)
			return false
		}
		got := uint16(buf[0])<<8 | uint16(buf[1])
		if size < 12 || !open[got] {
			l.t.Errorf("client %d was told %x, which it did not ask for, or twice", n, buf[:size])
			return false
		}
		delete(open, got)
		if buf[3]&0xF == dns.RcodeSuccess && buf[7] == 1 {
			l.answered.Add(1)
			select {
			case l.replies <- struct{}{}:
			default: // nobody waits
			}
		}
		if !l.stop.Load() {
			send(id)
			id++
		}
	}
	return true
}

// wait returns when n more queries have been answered.
func (l *load) wait(n int) {
	l.t.Helper()
	for range n {
		select {
		case <-l.replies:
		case <-l.broken:
			l.t.FailNow()
		}
	}
}

// end lets the clients get their last replies.
func (l *load) end() {
	l.stop.Store(true)
	l.clients.Wait()
}

func TestWhatItSaysWithoutSockets(t *testing.T) {
	for _, tt := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"", exitUsage, "", "nodelocaldns-relay: error: no sockets were handed over\n" +
			"nodelocaldns-relay: hint: systemd starts it, with the sockets of nodelocaldns.socket: systemctl start nodelocaldns-relay\n"},
		{"--version", exitOK, "nodelocaldns-relay " + buildinfo.This().String() + "\n", ""},
		{"--help", exitOK, usage, ""},
		{"--bogus", exitUsage, "", "nodelocaldns-relay: error: flag provided but not defined: -bogus\nnodelocaldns-relay: hint: nodelocaldns-relay --help shows what it takes\n"},
		{"now", exitUsage, "", "nodelocaldns-relay: error: unknown argument \"now\"\nnodelocaldns-relay: hint: nodelocaldns-relay --help shows what it takes\n"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), strings.Fields(tt.args), &stdout, &stderr)
		if code != tt.code || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", tt.args, code, &stdout, &stderr)
		}
	}
}

func TestAFileThatIsNoSocketIsAnError(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asRelay+"=1", "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{null}
	out, _ := cmd.CombinedOutput()
	lines := bufio.NewScanner(bytes.NewReader(out))
	var last []string
	for lines.Scan() {
		last = append(last, lines.Text())
	}
	want := "nodelocaldns-relay: error: none of the files that were handed over is a socket for queries"
	if cmd.ProcessState.ExitCode() != exitError || len(last) != 3 || last[1] != want || !strings.Contains(last[0], "closing a handed over file") {
		t.Errorf("exit %d:\n%s", cmd.ProcessState.ExitCode(), out)
	}
}

// What a query costs: the relay's own CPU, as the kernel counts it, and how many
// fit into a second while clients and kube-dns share the machine with it.
func BenchmarkRelay(b *testing.B) {
	k := startKubeDNS(b)
	u := newUnit(b, facts.Facts{Servers: []netip.AddrPort{k.at}, Source: "cluster.dns"})
	r := u.start()
	b.ResetTimer()
	l := u.load(4, 32)
	l.wait(b.N)
	b.StopTimer()
	l.end()
	r.end()
	n := float64(l.answered.Load())
	b.ReportMetric(n/b.Elapsed().Seconds(), "queries/s")
	b.ReportMetric(float64((r.ProcessState.UserTime()+r.ProcessState.SystemTime()).Microseconds())/n, "relay-µs/query")
}

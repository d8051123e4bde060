package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/step"
)

// deadListener is a listener nobody connects to.
type deadListener struct{ closed chan struct{} }

func (l *deadListener) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *deadListener) Close() error              { close(l.closed); return nil }
func (l *deadListener) Addr() net.Addr            { return &net.TCPAddr{Port: 9253} }

func TestAnEndpointWaitsForItsAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var tries atomic.Int32
		e := &endpoint{
			name:    "metrics",
			handler: http.NotFoundHandler(),
			failed:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "failed"}),
			log:     slog.New(slog.NewTextHandler(&log, nil)),
			listen: func(addr string) (net.Listener, error) {
				if tries.Add(1) < 3 {
					return nil, syscall.EADDRINUSE
				}
				return &deadListener{make(chan struct{})}, nil
			},
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { e.run(ctx, ":9253"); close(done) }()
		synctest.Wait()
		if got := testutil.ToFloat64(e.failed); got != 1 || tries.Load() != 1 {
			t.Errorf("after %d tries the gauge is %v, want 1 after 1", tries.Load(), got)
		}
		time.Sleep(2*listenRetry - time.Second) // the bubble's clock: no time passes
		synctest.Wait()
		if got := testutil.ToFloat64(e.failed); got != 1 || tries.Load() != 2 {
			t.Errorf("after %d tries the gauge is %v, want 1 after 2", tries.Load(), got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := testutil.ToFloat64(e.failed); got != 0 || tries.Load() != 3 {
			t.Errorf("after %d tries the gauge is %v, want 0 after 3", tries.Load(), got)
		}
		stop()
		<-done
		if got := strings.Count(log.String(), "level=WARN"); got != 1 {
			t.Errorf("warned %d times, want once:\n%s", got, log.String())
		}
		if !strings.Contains(log.String(), "level=INFO msg=listening") {
			t.Errorf("the end of it is not in the log:\n%s", log.String())
		}
	})
}

// answering is a UDP socket of 127.0.0.1 that answers as the resolver does,
// after the first n questions.
func answering(t *testing.T, n int32) netip.AddrPort {
	var asked atomic.Int32
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if asked.Add(1) <= n {
			return
		}
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused))
	})}
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { _ = srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() { _ = srv.Shutdown() })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestAProbeTellsSilentFromAbsent(t *testing.T) {
	good := answering(t, 0)
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	mute := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	absent := netip.MustParseAddrPort("192.0.2.1:53") // of a range that is nobody's
	for _, tt := range []struct {
		name  string
		addrs []netip.AddrPort
		want  error
	}{
		{"all answer", []netip.AddrPort{good, good}, nil},
		{"one datagram is lost", []netip.AddrPort{answering(t, 1)}, nil},
		{"one is not on the node", []netip.AddrPort{good, absent}, errAbsent},
		{"one is silent", []netip.AddrPort{good, mute}, errSilent},
		{"one is silent, one is not on the node", []netip.AddrPort{absent, mute}, errSilent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := (&prober{tt.addrs}).ask(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestTheHolderOfAPortIsNamed(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		addr := map[bool]string{true: "[::1]:0", false: "127.0.0.1:0"}[strings.HasSuffix(network, "6")]
		var port netip.AddrPort
		if strings.HasPrefix(network, "tcp") {
			l, err := net.Listen(network, addr)
			if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
				continue // no IPv6 here
			} else if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			port = netip.MustParseAddrPort(l.Addr().String())
		} else {
			pc, err := net.ListenPacket(network, addr)
			if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			port = netip.MustParseAddrPort(pc.LocalAddr().String())
		}
		want := strings.TrimSpace(string(comm))
		if got := portHolders(port.Port()); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want+" (pid ") }) {
			t.Errorf("%s: got %q, want %s", network, got, want)
		}
	}
}

// Guard makes the address, and nothing waits for guard.
func TestOurOwnAddressIsListenedAtBeforeItIsThere(t *testing.T) {
	s := &serving{}
	s.config.Store(&loaded{Config: config.Config{Listen: config.Listen{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Port: 53}}})
	for addr, want := range map[string]error{"198.51.100.1:0": nil, "198.51.100.2:0": syscall.EADDRNOTAVAIL, ":0": nil} {
		l, err := s.listenTCP(addr)
		if err == nil {
			_ = l.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", addr, err, want)
		}
	}
}

// Of the keys that say where something listens, the hint names those of the
// socket that could not be made.
func TestATakenEndpointIsToldByItsKeys(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	second, err := listenTCP(l.Addr().String(), false)
	if err == nil {
		_ = second.Close()
	}
	if hint := hintOf(err); !strings.Contains(hint, "metrics.address") || strings.Contains(hint, "listen.port") {
		t.Errorf("%v, hint %q", err, hint)
	}
}

func TestTheControlSocketOfTheLivingIsRefusedAndOfTheDeadReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	l, err := listenControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, controlSocket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, want 0600 (%v)", info.Mode(), err)
	}
	var taken *takenError
	if _, err := listenControl(dir); !errors.As(err, &taken) {
		t.Errorf("a second one: got %v, want a takenError", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after kill -9
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := listenControl(dir)
	if err != nil {
		t.Fatalf("after the first one died: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, controlSocket)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("closing leaves the socket: %v", err)
	}
	// Something else in its place is no socket of ours to remove.
	if err := os.WriteFile(filepath.Join(dir, controlSocket), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenControl(dir); err == nil {
		l.Close()
		t.Error("a file that is no socket was taken over")
	}
}

// Every kind of finding, as plan and status judge it.
func TestFindingsAreJudged(t *testing.T) {
	satisfied := engine.Status{Name: "a/s"}
	pending := engine.Status{Name: "a/p", State: step.Pending, Why: "not there"}
	blocked := engine.Status{Name: "a/b", State: step.Blocked, Why: "taken", Hint: "free it"}
	optional := engine.Status{Name: "a/o", State: step.Blocked, Why: "too much", Hint: "want less", Optional: true}
	unseen := engine.Status{Name: "a/u", Unseen: true, Why: "needs root"}
	broken := engine.Status{Name: "a/e", Err: errors.New("it broke"), Why: "it broke"}
	leftover := engine.Status{Name: "a/l", Ours: true, Leftover: true}
	for _, tt := range []struct {
		name    string
		all     []engine.Status
		states  string
		changed bool
		said    string
	}{
		{"satisfied", []engine.Status{satisfied}, "satisfied", false, ""},
		{"pending", []engine.Status{satisfied, pending}, "satisfied pending", true, ""},
		{"blocked", []engine.Status{blocked, pending}, "blocked pending", true, "error: a/b: blocked: taken\nhint: free it\n"},
		{"blocked and optional", []engine.Status{optional}, "blocked", false, "warning: a/o: blocked: too much\nhint: want less\n"},
		{"unseen", []engine.Status{unseen}, "unseen", false, "error: a/u: not seen: needs root\nhint: run it as root to see everything\n"},
		{"broken", []engine.Status{broken}, "error", false, "error: a/e: check: it broke\n"},
		{"leftover", []engine.Status{leftover}, "leftover", false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			a := &app{term: term{stderr: &stderr}}
			p := planned(tt.all, nil)
			var states []string
			for _, s := range p.Steps {
				states = append(states, s.State)
			}
			if got := strings.Join(states, " "); got != tt.states || p.Changed != tt.changed {
				t.Errorf("got %s, changed %v; want %s, %v", got, p.Changed, tt.states, tt.changed)
			}
			a.exit(a.troubles(tt.all))
			if diff := cmp.Diff(tt.said, strings.ReplaceAll(stderr.String(), "nodelocaldns: ", "")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeepTakesNamesAndNounsOfWhatIsOurs(t *testing.T) {
	all := []engine.Status{{Name: "link/x", Ours: true}, {Name: "sysctl/a", Ours: true}, {Name: "sysctl/b"}, {Name: "sysctl/c", Ours: true}}
	for _, tt := range []struct {
		keep []string
		want []string
		err  string
	}{
		{nil, nil, ""},
		{[]string{"sysctl"}, []string{"sysctl/a", "sysctl/c"}, ""},
		{[]string{"link/x", "sysctl/c"}, []string{"link/x", "sysctl/c"}, ""},
		{[]string{"sysctl/b"}, nil, "no change sysctl/b to keep"},
		{[]string{"lin"}, nil, "no change lin to keep"},
	} {
		got, err := kept(tt.keep, all)
		if diff := cmp.Diff(tt.want, got); diff != "" || tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != tt.err) {
			t.Errorf("%v: got %v, %v; want %v, %q", tt.keep, got, err, tt.want, tt.err)
		}
	}
}

package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/wire"
	"nodelocaldns/test/ports"
)

// key is the key of a name's address.
func key(t testing.TB, name string) []byte {
	t.Helper()
	w, ok := wire.ParseName(name)
	if !ok {
		t.Fatalf("no name: %q", name)
	}
	q := wire.Query{Flags: wire.FlagRD, Question: append(w, 0, 1, 0, 1), Type: wire.TypeA, Class: wire.ClassIN}
	return wire.AppendKey(nil, &q)
}

func query(t testing.TB, name string) []byte {
	t.Helper()
	return wire.AppendUpstreamQuery(nil, 0, key(t, name), true)
}

// reply answers a query with one address.
func reply(t testing.TB, query []byte, addr string) []byte {
	t.Helper()
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg).SetReply(q)
	rr, err := dns.NewRR(q.Question[0].Name + " 30 IN A " + addr)
	if err != nil {
		t.Fatal(err)
	}
	m.Answer = append(m.Answer, rr)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func address(t testing.TB, reply []byte) string {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	if len(m.Answer) == 0 {
		return ""
	}
	return m.Answer[0].(*dns.A).A.String()
}

// tcpServer calls serve, with its number, for every connection made to it.
type tcpServer struct {
	at    netip.AddrPort
	conns atomic.Int64
}

func serveTCP(t *testing.T, serve func(n int64, c *net.TCPConn)) *tcpServer {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &tcpServer{at: netip.MustParseAddrPort(l.Addr().String())}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			n := s.conns.Add(1)
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				serve(n, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return s
}

// frame reads one message; nil at the end.
func frame(c io.Reader) []byte {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		return nil
	}
	return b
}

func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// answers serves a connection as it should be.
func answers(t *testing.T) func(int64, *net.TCPConn) {
	return func(_ int64, c *net.TCPConn) {
		for q := frame(c); q != nil; q = frame(c) {
			_, _ = c.Write(framed(reply(t, q, "192.0.2.1")))
		}
	}
}

// newTCP is an exchanger whose connections are gone at the end of the test. Where
// the machine is slow there are up to maxExtra more than the test has use for.
func newTCP(t *testing.T, s *tcpServer, now func() time.Time) *Pool {
	e := NewTCP(s.at, now)
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// leaves fails the test if goroutines or sockets are left behind.
func leaves(t *testing.T) {
	t.Helper()
	count := func() (goroutines, sockets int) {
		const dir = "/proc/self/fd/"
		d, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range d {
			if to, err := os.Readlink(dir + f.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				sockets++
			}
		}
		return runtime.NumGoroutine(), sockets
	}
	goroutines, sockets := count()
	t.Cleanup(func() {
		limit := time.After(time.Minute)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			g, s := count()
			if g <= goroutines && s <= sockets {
				return
			}
			select {
			case <-tick.C:
			case <-limit:
				t.Fatalf("%d goroutines and %d sockets, were %d and %d", g, s, goroutines, sockets)
			}
		}
	})
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	leaves(t)
	s := serveTCP(t, answers(t))
	e := newTCP(t, s, time.Now)
	for range 20 {
		r, err := e.Exchange(t.Context(), query(t, "www.example"), nil)
		if err != nil || address(t, r) != "192.0.2.1" {
			t.Fatalf("%x, %v", r, err)
		}
	}
	if n := s.conns.Load(); n > 1+maxExtra {
		t.Errorf("%d connections for questions in turn, want 1", n)
	}
}

func TestQuestionsAtOnceHaveConnectionsOfTheirOwn(t *testing.T) {
	leaves(t)
	const n = 20
	var all sync.WaitGroup
	all.Add(n)
	s := serveTCP(t, func(_ int64, c *net.TCPConn) {
		first := true
		for q := frame(c); q != nil; q = frame(c) {
			if first { // nobody is answered before everybody has asked
				all.Done()
				all.Wait()
				first = false
			}
			_, _ = c.Write(framed(reply(t, q, "192.0.2.1")))
		}
	})
	e := newTCP(t, s, time.Now)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := e.Exchange(t.Context(), query(t, "www.example"), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for range n {
		if _, err := e.Exchange(t.Context(), query(t, "www.example"), nil); err != nil {
			t.Error(err)
		}
	}
	if got := s.conns.Load(); got < n || got > n+maxExtra {
		t.Errorf("%d connections, want %d", got, n)
	}
}

func TestAConnectionClosedWhileIdleCostsNoQuestion(t *testing.T) {
	leaves(t)
	closed := make(chan struct{}, 100)
	s := serveTCP(t, func(_ int64, c *net.TCPConn) {
		if q := frame(c); q != nil {
			_, _ = c.Write(framed(reply(t, q, "192.0.2.1")))
		}
		_ = c.Close()
		closed <- struct{}{}
	})
	e := newTCP(t, s, time.Now)
	for range 20 {
		if _, err := e.Exchange(t.Context(), query(t, "www.example"), nil); err != nil {
			t.Fatal(err)
		}
		<-closed
	}
	if n := s.conns.Load(); n < 20 || n > 20+maxExtra {
		t.Errorf("%d connections, want 20", n)
	}
}

// Each of these costs the question, and the connection, but nothing after.
func TestBrokenRepliesOverTCP(t *testing.T) {
	for what, tt := range map[string]struct {
		serve func(q []byte, c *net.TCPConn)
		want  error
	}{
		"a reset in the middle": {func(q []byte, c *net.TCPConn) {
			_, _ = c.Write(framed(reply(t, q, "192.0.2.66"))[:20])
			_ = c.SetLinger(0)
		}, nil},
		"a frame that ends early":    {func(q []byte, c *net.TCPConn) { _, _ = c.Write(framed(reply(t, q, "192.0.2.66"))[:20]) }, io.ErrUnexpectedEOF},
		"half a length":              {func(_ []byte, c *net.TCPConn) { _, _ = c.Write([]byte{0}) }, io.ErrUnexpectedEOF},
		"the end instead of a reply": {func([]byte, *net.TCPConn) {}, errUnusedReply},
		"an empty frame":             {func(_ []byte, c *net.TCPConn) { _, _ = c.Write([]byte{0, 0}) }, wire.NotAReply},
		"the question itself":        {func(q []byte, c *net.TCPConn) { _, _ = c.Write(framed(q)) }, wire.NotAReply},
		"another id": {func(q []byte, c *net.TCPConn) {
			r := reply(t, q, "192.0.2.66")
			r[0]++
			_, _ = c.Write(framed(r))
		}, wire.OtherID},
		"another question": {func(q []byte, c *net.TCPConn) {
			other := query(t, "other.example")
			copy(other, q[:2])
			_, _ = c.Write(framed(reply(t, other, "192.0.2.66")))
		}, wire.OtherQuestion},
		"64 KiB of nothing": {func(_ []byte, c *net.TCPConn) { _, _ = c.Write(framed(make([]byte, 65535))) }, wire.OtherID},
	} {
		t.Run(what, func(t *testing.T) {
			leaves(t)
			s := serveTCP(t, func(n int64, c *net.TCPConn) {
				if n == 1 {
					if q := frame(c); q != nil {
						tt.serve(q, c)
					}
					return
				}
				answers(t)(n, c)
			})
			e := newTCP(t, s, time.Now)
			if r, err := e.Exchange(t.Context(), query(t, "www.example"), nil); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%x, %v; want %v", r, err, tt.want)
			}
			r, err := e.Exchange(t.Context(), query(t, "www.example"), nil)
			if err != nil || address(t, r) != "192.0.2.1" {
				t.Errorf("the next question: %x, %v", r, err)
			}
		})
	}
}

func TestWhatComesUnaskedIsNobodysReply(t *testing.T) {
	leaves(t)
	s := serveTCP(t, func(n int64, c *net.TCPConn) {
		for q := frame(c); q != nil; q = frame(c) {
			r := framed(reply(t, q, "192.0.2.1"))
			if n == 1 {
				r = append(r, r...)
			}
			_, _ = c.Write(r)
		}
	})
	e := newTCP(t, s, time.Now)
	for range 3 {
		if _, err := e.Exchange(t.Context(), query(t, "www.example"), nil); err != nil {
			t.Error(err)
		}
	}
	if n := s.conns.Load(); n < 2 || n > 2+maxExtra {
		t.Errorf("%d connections, want 2", n)
	}
}

// open is how many connections a pool has.
func open(p *Pool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

func TestAReplyThatNobodyWaitsForIsWaitedForAWhile(t *testing.T) {
	leaves(t)
	asked, gone := make(chan struct{}), make(chan struct{})
	s := serveTCP(t, func(_ int64, c *net.TCPConn) {
		frame(c)
		close(asked)
		frame(c) // until the connection is closed
		close(gone)
	})
	var now atomic.Int64
	e := newTCP(t, s, func() time.Time { return time.Unix(0, now.Load()) })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if r, err := e.Exchange(ctx, query(t, "www.example"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%x, %v", r, err)
	}
	now.Add(int64(owedLimit) - 1)
	e.tidy()
	if open(e) != 1 {
		t.Error("a connection that owes a reply is closed at once")
	}
	now.Add(1)
	e.tidy()
	<-gone
	if open(e) != 0 {
		t.Error("a connection that owes a reply is kept for good")
	}
}

func TestNoConnectionFromBeforeARenewalIsUsed(t *testing.T) {
	leaves(t)
	asked, release := make(chan struct{}), make(chan struct{})
	s := serveTCP(t, func(n int64, c *net.TCPConn) {
		for q := frame(c); q != nil; q = frame(c) {
			if n == 1 {
				close(asked)
				<-release // in use while the pool is renewed
			}
			_, _ = c.Write(framed(reply(t, q, "192.0.2.1")))
		}
	})
	e := newTCP(t, s, time.Now)
	ask := func() {
		if _, err := e.Exchange(t.Context(), query(t, "www.example"), nil); err != nil {
			t.Error(err)
		}
	}
	var first sync.WaitGroup
	first.Go(ask)
	<-asked
	ask() // on a second connection, idle afterwards
	e.Renew()
	close(release)
	first.Wait()
	ask()
	if n := s.conns.Load(); n < 3 {
		t.Errorf("%d connections, want a third one", n)
	}
}

func TestAClosedExchangerKeepsNothing(t *testing.T) {
	leaves(t)
	asked, release := make(chan struct{}, 2), make(chan struct{})
	s := serveTCP(t, func(_ int64, c *net.TCPConn) {
		for q := frame(c); q != nil; q = frame(c) {
			asked <- struct{}{}
			<-release
			_, _ = c.Write(framed(reply(t, q, "192.0.2.1")))
		}
	})
	e := NewTCP(s.at, time.Now)
	done := make(chan error)
	go func() {
		_, err := e.Exchange(t.Context(), query(t, "www.example"), nil)
		done <- err
	}()
	<-asked
	_ = e.Close() // a reload
	close(release)
	if err := <-done; err != nil {
		t.Errorf("a question under way: %v", err)
	}
	if open(e) != 0 {
		t.Error("its connection is kept")
	}
}

// udpServer calls serve for every datagram.
func udpServer(t *testing.T, serve func(c *net.UDPConn, from netip.AddrPort, q []byte)) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			serve(c, from, append([]byte(nil), buf[:n]...))
		}
	}()
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestOnlyTheReplyCountsOverUDP(t *testing.T) {
	leaves(t)
	stranger, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Close() }()
	at := udpServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		forged := reply(t, q, "192.0.2.66")
		otherID := append([]byte(nil), forged...)
		otherID[1]++
		other := query(t, "other.example")
		copy(other, q[:2])
		_, _ = stranger.WriteToUDPAddrPort(forged, from) // all right but its source
		for _, p := range [][]byte{{}, {1}, q, otherID, forged[:11], reply(t, other, "192.0.2.66"), reply(t, q, "192.0.2.1")} {
			_, _ = c.WriteToUDPAddrPort(p, from)
		}
	})
	for range 20 {
		r, err := (&UDP{Server: at}).Exchange(t.Context(), query(t, "www.example"), nil)
		if err != nil || address(t, r) != "192.0.2.1" {
			t.Fatalf("%x, %v", r, err)
		}
	}
}

func TestIDsAndPortsOverUDPDiffer(t *testing.T) {
	var mu sync.Mutex
	ids, ports := map[uint16]bool{}, map[uint16]bool{}
	at := udpServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		mu.Lock()
		defer mu.Unlock()
		ids[binary.BigEndian.Uint16(q)], ports[from.Port()] = true, true
		_, _ = c.WriteToUDPAddrPort(reply(t, q, "192.0.2.1"), from)
	})
	const n = 200
	q := query(t, "www.example")
	before := append([]byte(nil), q...)
	for range n {
		if _, err := (&UDP{Server: at}).Exchange(t.Context(), q, nil); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	// 200 draws of 65,536 and of some 28,000 ports: a handful are alike.
	if len(ids) < n*9/10 || len(ports) < n*9/10 {
		t.Errorf("%d questions with %d ids from %d ports", n, len(ids), len(ports))
	}
	if string(q) != string(before) {
		t.Error("the query was changed")
	}
}

func TestALongReplyIsTakenOverUDP(t *testing.T) {
	at := udpServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		_, _ = c.WriteToUDPAddrPort(append(reply(t, q, "192.0.2.1"), make([]byte, 3000)...), from)
	})
	r, err := (&UDP{Server: at}).Exchange(t.Context(), query(t, "www.example"), []byte("before"))
	if err != nil || string(r[:6]) != "before" || len(r) < 3000 {
		t.Errorf("%d bytes, %v", len(r), err)
	}
}

func TestUDPEndsWithTheContext(t *testing.T) {
	leaves(t)
	ctx, cancel := context.WithCancel(t.Context())
	at := udpServer(t, func(*net.UDPConn, netip.AddrPort, []byte) { cancel() })
	if _, err := (&UDP{Server: at}).Exchange(ctx, query(t, "www.example"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := (&UDP{Server: at}).Exchange(ctx, query(t, "www.example"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestAClosedPortIsAnErrorAtOnce(t *testing.T) {
	leaves(t)
	at := ports.Free(t)
	for _, e := range []Exchanger{&UDP{Server: at}, NewTCP(at, time.Now)} {
		if _, err := e.Exchange(t.Context(), query(t, "www.example"), nil); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%T: %v", e, err)
		}
	}
}

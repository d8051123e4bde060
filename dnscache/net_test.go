package dnscache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
	"nodelocaldns/test/ports"
)

// patience bounds what takes a moment; nothing waits for it that goes well.
const patience = time.Minute

// until waits for a condition that nobody tells of.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// files is how many files the process has open.
func files(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// sockets are a UDP socket and a TCP listener on one loopback port.
func sockets(t *testing.T) (*net.UDPConn, *net.TCPListener, netip.AddrPort) {
	t.Helper()
	c, l := ports.Listen(t)
	return c, l, netip.MustParseAddrPort(l.Addr().String())
}

// serveWith is serve with an upstream in a function. The returned stop ends
// the server as SIGTERM does, and waits.
func serveWith(t *testing.T, up upstream.Exchanger) (s *Server, at netip.AddrPort, end context.CancelFunc, ended <-chan error) {
	t.Helper()
	c, l, at := sockets(t)
	cfg := testConfig(kubeDNS)
	cfg.Listen = []netip.AddrPort{at}
	s, err := New(cfg, Deps{
		Packets: []*net.UDPConn{c}, Streams: []*net.TCPListener{l}, Log: slog.New(slog.DiscardHandler),
		Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return up },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	exited := make(chan struct{})
	go func() {
		done <- s.Serve(ctx)
		close(exited)
	}()
	t.Cleanup(func() {
		cancel()
		<-exited
	})
	<-s.Ready()
	return s, at, cancel, done
}

func dial(t *testing.T, network string, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial(network, at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// badPackets are packets that are no queries, or nearly none.
func badPackets(t *testing.T) [][]byte {
	t.Helper()
	good := packet(t, "web.ns.svc.cluster.local.", "A", "edns=1232")
	with := func(at int, b ...byte) []byte {
		p := bytes.Clone(good)
		copy(p[at:], b)
		return p
	}
	var out [][]byte
	for n := range wire.HeaderLen {
		out = append(out, good[:n])
	}
	for n := wire.HeaderLen; n < len(good); n++ {
		out = append(out, good[:n])
	}
	out = append(out,
		with(4, 0, 0), with(4, 0, 2), with(4, 0xFF, 0xFF), // QDCOUNT
		with(6, 0xFF, 0xFF), with(8, 0xFF, 0xFF), with(10, 0xFF, 0xFF),
		with(2, 0x80),                // QR
		with(12, 0xC0, 12),           // a pointer to itself
		with(12, 0xC0, 14, 0xC0, 12), // two that point at each other
		with(12, 0xC0, 4),
		with(12, 0x40), with(12, 0x80), with(12, 0xFF),
		append(bytes.Clone(good), 0),
		append(bytes.Clone(good), make([]byte, 5000)...),
	)
	for opcode := range 16 {
		out = append(out, with(2, byte(opcode)<<3))
	}
	return out
}

// garbage is random bytes, and good queries with a few bytes changed.
func garbage(t *testing.T, n int) [][]byte {
	t.Helper()
	r := rand.New(rand.NewPCG(4711, 0))
	good := packet(t, "web.ns.svc.cluster.local.", "A", "edns=1232")
	var out [][]byte
	for i := range n {
		p := make([]byte, r.IntN(600))
		if i%2 == 0 {
			p = bytes.Clone(good)
			for range 1 + r.IntN(4) {
				p[r.IntN(len(p))] = byte(r.Uint32())
			}
		} else {
			for i := range p {
				p[i] = byte(r.Uint32())
			}
		}
		out = append(out, p)
	}
	return out
}

func TestBadPacketsNeitherBreakNorLeak(t *testing.T) {
	s, at, _, _ := serveWith(t, addresses(1))
	ask(t, "udp", at, new(dns.Msg).SetQuestion("web.ns.svc.cluster.local.", dns.TypeA))
	ask(t, "tcp", at, new(dns.Msg).SetQuestion("web.ns.svc.cluster.local.", dns.TypeA))
	until(t, "the first client is gone", func() bool { return s.Stats().TCPClients == 0 })
	wantFiles, wantGoroutines := files(t), runtime.NumGoroutine()

	good := packet(t, "web.ns.svc.cluster.local.", "A")
	binary.BigEndian.PutUint16(good, 0xBEEF)
	all := append(badPackets(t), garbage(t, 10_000)...)

	t.Run("udp", func(t *testing.T) {
		c := dial(t, "udp", at)
		buf := make([]byte, 4096)
		for len(all) > 0 {
			n := min(len(all), 200)
			for _, p := range all[:n] {
				if _, err := c.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			all = all[n:]
			if _, err := c.Write(good); err != nil {
				t.Fatal(err)
			}
			for { // replies to bad packets have other ids, by far most of them
				n, err := c.Read(buf)
				if err != nil {
					t.Fatalf("no answer behind bad packets: %v", err)
				}
				if err := new(dns.Msg).Unpack(buf[:n]); err != nil {
					t.Fatalf("reply %x: %v", buf[:n], err)
				}
				if binary.BigEndian.Uint16(buf) == 0xBEEF {
					break
				}
			}
		}
		if drops := s.Stats().SocketDrops; drops != 0 {
			t.Errorf("%d packets were dropped: this test has not shown all it should", drops)
		}
		_ = c.Close()
	})
	t.Run("tcp", func(t *testing.T) {
		frame := func(p []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...) }
		streams := [][]byte{
			{}, {0}, {0, 0}, {0, 0, 0, 0}, {0, 1, 'x'}, {0, 12}, {0, 20, 1, 2, 3}, {0xFF, 0xFF}, {0xFF, 0xFF, 1, 2, 3},
			frame(make([]byte, 65535)), frame(bytes.Repeat([]byte{0xC0, 12}, 32767)),
			append(append([]byte{0xFF, 0xFF}, good...), make([]byte, 65535-len(good))...),
			append(frame(good), 0, 5), append(frame(good), frame(good)[:7]...),
		}
		for _, p := range append(badPackets(t), garbage(t, 500)...) {
			streams = append(streams, frame(p))
		}
		for _, stream := range streams {
			c := dial(t, "tcp", at).(*net.TCPConn)
			// The server may have closed already.
			_, _ = c.Write(stream)
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		ask(t, "tcp", at, new(dns.Msg).SetQuestion("web.ns.svc.cluster.local.", dns.TypeA))
	})
	until(t, "all clients are gone", func() bool { return s.Stats().TCPClients == 0 })
	until(t, "all waiting is over", func() bool { return s.Stats().Flights == 0 })
	until(t, "no file is left open", func() bool { return files(t) <= wantFiles })
	until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= wantGoroutines })
}

// stuck is an upstream that holds up questions for names below "slow." until
// it is released.
type stuck struct {
	asked chan string
	gate  chan struct{}
}

func newStuck() *stuck { return &stuck{make(chan string, 100), make(chan struct{})} }

func (u *stuck) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	if name := q.Question[0].Name; dns.IsSubDomain("slow.example.", name) {
		u.asked <- name
		select {
		case <-u.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return addresses(1).Exchange(ctx, query, buf)
}

func framed(p []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...) }

// next reads the next reply of a TCP connection.
func next(t *testing.T, c net.Conn) *dns.Msg {
	t.Helper()
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, p); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(p); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestASlowQuestionDoesNotHoldUpThoseBehindIt(t *testing.T) {
	up := newStuck()
	_, at, _, _ := serveWith(t, up)
	c := dial(t, "tcp", at)
	var all []byte
	for _, name := range []string{"a.slow.example.", "fast.example.", "b.slow.example.", "faster.example.", "fast.example."} {
		all = append(all, framed(packet(t, name, "A"))...)
	}
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for range 3 {
		got[next(t, c).Question[0].Name]++
	}
	if got["fast.example."] != 2 || got["faster.example."] != 1 {
		t.Errorf("answered before the slow ones: %v", got)
	}
	<-up.asked
	<-up.asked
	close(up.gate)
	for range 2 {
		got[next(t, c).Question[0].Name]++
	}
	if got["a.slow.example."] != 1 || got["b.slow.example."] != 1 {
		t.Errorf("answered: %v", got)
	}
}

func TestTheEndWaitsForWhatIsUnderWay(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			up := newStuck()
			s, at, end, ended := serveWith(t, up)
			c := dial(t, network, at)
			pkt := packet(t, "www.slow.example.", "A")
			if network == "tcp" {
				pkt = framed(pkt)
			}
			if _, err := c.Write(pkt); err != nil {
				t.Fatal(err)
			}
			<-up.asked
			end()
			until(t, "nobody reads queries any more", func() bool {
				return !running("(*packetSocket).serve") && !running("io.ReadFull", "(*client).serve")
			})
			until(t, "the server waits for what is under way", func() bool { return running("(*WaitGroup).Wait", "(*Server).Serve(") })
			close(up.gate)
			var m *dns.Msg
			if network == "tcp" {
				m = next(t, c)
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("behind the last reply: %v, want the end", err)
				}
			} else {
				buf := make([]byte, 1232)
				n, err := c.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				m = new(dns.Msg)
				if err := m.Unpack(buf[:n]); err != nil {
					t.Fatal(err)
				}
			}
			if len(m.Answer) != 1 {
				t.Errorf("%v", m)
			}
			if err := <-ended; err != nil {
				t.Errorf("Serve: %v", err)
			}
			if st := s.Stats(); st.TCPClients != 0 || st.Flights != 0 {
				t.Errorf("at the end: %+v", st)
			}
		})
	}
}

// running reports whether there is a goroutine in all of these functions.
func running(functions ...string) bool {
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		in := 0
		for _, f := range functions {
			if strings.Contains(stack, f) {
				in++
			}
		}
		if in == len(functions) {
			return true
		}
	}
	return false
}

// onPipe serves one client over a pipe, on a fake clock.
func onPipe(t *testing.T, s *Server) (client net.Conn, ended <-chan struct{}) {
	t.Helper()
	ours, theirs := net.Pipe()
	left := make(chan struct{})
	cl := newTestClient(s, ours)
	go func() {
		defer close(left)
		cl.serve(t.Context(), s)
	}()
	return theirs, left
}

// newTestClient is a client of an address of its own.
func newTestClient(s *Server, conn net.Conn) *client {
	n := s.clients.count()
	from := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
	cl := &client{conn: conn, from: from, counters: &s.streamC, pending: make(chan struct{}, maxPending)}
	s.clients.add(cl, s.now())
	return cl
}

func TestAnIdleClientIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := offline(t, addresses(1))
		c, ended := onPipe(t, s)
		start := time.Now()
		for range 3 { // each query gives it time anew
			time.Sleep(idleTimeout - time.Millisecond)
			if _, err := c.Write(framed(packet(t, "web.ns.svc.cluster.local.", "A"))); err != nil {
				t.Fatal(err)
			}
			next(t, c)
		}
		<-ended
		if d := time.Since(start); d != 4*idleTimeout-3*time.Millisecond {
			t.Errorf("closed after %v", d)
		}
		if n := s.clients.count(); n != 0 {
			t.Errorf("%d clients", n)
		}
	})
}

func TestAClientThatDribblesIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ended := onPipe(t, offline(t, addresses(1)))
		start := time.Now()
		left := make(chan struct{})
		go func() {
			defer close(left)
			for _, b := range framed(packet(t, "web.ns.svc.cluster.local.", "A")) {
				time.Sleep(time.Second)
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
			}
		}()
		<-ended
		if d := time.Since(start); d != idleTimeout {
			t.Errorf("closed after %v", d)
		}
		<-left
	})
}

func TestAClientThatDoesNotReadHoldsUpOnlyItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newStuck()
		s := offline(t, up)
		bad, badEnded := onPipe(t, s)
		good, goodEnded := onPipe(t, s)
		start := time.Now()
		// Both wait for one flight; only one of them takes the reply.
		for _, c := range []net.Conn{bad, good} {
			if _, err := c.Write(framed(packet(t, "www.slow.example.", "A"))); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		close(up.gate)
		if m := next(t, good); len(m.Answer) != 1 || time.Since(start) != 0 {
			t.Errorf("after %v: %v", time.Since(start), m)
		}
		<-badEnded
		if d := time.Since(start); d != writeTimeout {
			t.Errorf("the one that does not read was closed after %v", d)
		}
		if _, err := good.Write(framed(packet(t, "web.ns.svc.cluster.local.", "A"))); err != nil {
			t.Fatal(err)
		}
		next(t, good)
		_ = good.Close()
		<-goodEnded
		if n := s.clients.count(); n != 0 {
			t.Errorf("%d clients", n)
		}
	})
}

// A client may have so many questions waiting and no more: the next is not
// read before one is answered.
func TestAClientsQuestionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var asked atomic.Int64
		s := offline(t, exchangerFunc(func(q *dns.Msg) *dns.Msg {
			asked.Add(1)
			<-gate
			return addresses(1)(q)
		}))
		c, ended := onPipe(t, s)
		go func() {
			for i := range maxPending + 10 {
				name := string(rune('a'+i/26)) + string(rune('a'+i%26)) + ".example."
				if _, err := c.Write(framed(packet(t, name, "A"))); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		if n := asked.Load(); n != maxPending {
			t.Errorf("%d questions are under way, want %d", n, maxPending)
		}
		close(gate)
		for range maxPending + 10 {
			next(t, c)
		}
		_ = c.Close()
		<-ended
		s.flights.running.Wait()
	})
}

func TestClientsAreBounded(t *testing.T) {
	s := offline(t, addresses(1))
	var last *client
	for range maxClients {
		ours, theirs := net.Pipe()
		defer func() { _ = theirs.Close() }()
		last = newTestClient(s, ours)
	}
	now := time.Duration(last.last.Load())
	ours, theirs := net.Pipe()
	defer func() { _ = theirs.Close() }()
	next := func() *client { return &client{conn: ours, pending: make(chan struct{}, maxPending)} }
	if s.clients.add(next(), now) {
		t.Errorf("client %d was let in", maxClients+1)
	}
	s.clients.remove(last)
	if !s.clients.add(next(), now) {
		t.Error("there is room and nobody is let in")
	}
}

// One that keeps all connections open and asks nothing does not keep others
// out: the one idle for longest makes room. One that waits is not idle.
func TestAnIdleClientMakesRoom(t *testing.T) {
	s := offline(t, addresses(1))
	theirs := map[*client]net.Conn{}
	var oldest, waits *client
	for i := range maxClients {
		a, b := net.Pipe()
		defer func() { _ = b.Close() }()
		c := newTestClient(s, a)
		c.last.Store(int64(time.Minute))
		theirs[c] = b
		switch i {
		case 0:
			waits = c
			c.last.Store(0)
			c.pending <- struct{}{}
		case 1:
			oldest = c
			c.last.Store(int64(time.Second))
		}
	}
	a, b := net.Pipe()
	defer func() { _ = b.Close() }()
	if !s.clients.add(&client{conn: a}, time.Minute) {
		t.Fatal("nobody made room")
	}
	if _, err := theirs[oldest].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the one idle for longest: %v, want the end", err)
	}
	if _, ok := s.clients.open[waits]; !ok || s.clients.count() != maxClients {
		t.Errorf("one that waits was closed, or there are %d", s.clients.count())
	}
	if s.clients.add(&client{conn: a}, time.Minute) {
		t.Error("let in where all are busy")
	}
}

// burst is the packets of 200 lookups at once, A and AAAA each.
func burst(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c := dial(t, "udp", at)
	// The replies need as much room as the queries.
	newPacketSocket(c.(*net.UDPConn), false).growBuffer()
	for i := range 400 {
		pkt := packet(t, "web.ns.svc.cluster.local.", []string{"A", "AAAA"}[i%2])
		binary.BigEndian.PutUint16(pkt, uint16(i))
		if _, err := c.Write(pkt); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestABurstIsAnsweredToTheLastPacket(t *testing.T) {
	in, l, at := sockets(t)
	up := addresses(1)
	cfg := testConfig(kubeDNS)
	cfg.Listen = []netip.AddrPort{at}
	s, err := New(cfg, Deps{
		Packets: []*net.UDPConn{in}, Streams: []*net.TCPListener{l}, Log: slog.New(slog.DiscardHandler),
		Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return up },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.packets[0].growBuffer()
	if size := receiveBufferOf(t, in); size < 2*receiveBuffer {
		if os.Getenv("NODELOCALDNS_REQUIRE_ROOT") == "1" {
			t.Fatalf("the receive buffer has only %d bytes", size)
		}
		t.Skipf("the receive buffer has only %d bytes: needs CAP_NET_ADMIN", size)
	}
	// All of them are there before the first is read.
	c := burst(t, at)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	seen := map[uint16]bool{}
	buf := make([]byte, 1232)
	for len(seen) < 400 {
		if _, err := c.Read(buf); err != nil {
			t.Fatalf("after %d replies: %v", len(seen), err)
		}
		seen[binary.BigEndian.Uint16(buf)] = true
	}
	if st := s.Stats(); st.SocketDrops != 0 || st.Queries[UDP] != 400 {
		t.Errorf("%+v", st)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDroppedPacketsAreCounted(t *testing.T) {
	in, l, at := sockets(t)
	if err := in.SetReadBuffer(1); err != nil { // the kernel's least
		t.Fatal(err)
	}
	s, err := New(testConfig(kubeDNS), Deps{Packets: []*net.UDPConn{in}, Streams: []*net.TCPListener{l}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeSockets)
	if drops := s.packets[0].drops(); drops != 0 {
		t.Errorf("%d drops before the first packet", drops)
	}
	burst(t, at)
	drops := s.packets[0].drops()
	if drops == 0 || drops > 400 {
		t.Errorf("%d drops of 400 packets that nobody reads", drops)
	}
	close(s.ready)
	if got := s.Stats().SocketDrops; got != drops {
		t.Errorf("%d drops are shown, want %d", got, drops)
	}
}

func receiveBufferOf(t *testing.T, c *net.UDPConn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	if err := raw.Control(func(fd uintptr) { size, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) }); err != nil {
		t.Fatal(err)
	}
	return size
}

// Whoever reads the counters need not know how far Serve is.
func TestStatsCanBeReadFromTheBeginning(t *testing.T) {
	cfg := testConfig(kubeDNS)
	at := ports.Free(t)
	cfg.Listen = []netip.AddrPort{at}
	up := addresses(1)
	s, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler), Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return up }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	for ready := false; !ready; {
		s.Stats()
		select {
		case <-s.Ready():
			ready = true
		default:
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.Stats()
}

// Whoever asks while the last replies are waited for is answered too: at once
// from the cache, and with SERVFAIL where upstream would have to be asked. A
// query left in a socket that is closed would be five seconds of silence.
func TestNobodyIsLeftWithoutAReplyAtTheEnd(t *testing.T) {
	cfg := testConfig(kubeDNS)
	at := ports.Free(t)
	cfg.Listen = []netip.AddrPort{at}
	up := newStuck()
	s, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler), Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return up }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	select {
	case <-s.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	cached := new(dns.Msg).SetQuestion("web.ns.svc.cluster.local.", dns.TypeA)
	ask(t, "udp", at, cached)
	slow := dial(t, "udp", at)
	if _, err := slow.Write(packet(t, "www.slow.example.", "A")); err != nil {
		t.Fatal(err)
	}
	<-up.asked
	end()
	until(t, "the server waits for what is under way", func() bool { return running("(*WaitGroup).Wait", "(*Server).Serve(") })
	if m := ask(t, "udp", at, cached); len(m.Answer) != 1 {
		t.Errorf("from the cache: %v", m)
	}
	if m := ask(t, "udp", at, new(dns.Msg).SetQuestion("new.ns.svc.cluster.local.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("from upstream: %v", m)
	}
	close(up.gate)
	buf := make([]byte, 1232)
	if n, err := slow.Read(buf); err != nil || new(dns.Msg).Unpack(buf[:n]) != nil || wire.RCode(buf) != wire.NoError {
		t.Errorf("under way: %x, %v", buf[:n], err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The next process binds the addresses while this one still answers, and says
// that it is not alone.
func TestTheNextProcessCanTakeOver(t *testing.T) {
	cfg := testConfig(kubeDNS)
	at := ports.Free(t)
	cfg.Listen = []netip.AddrPort{at}
	up := addresses(1)
	start := func(log io.Writer) (context.CancelFunc, <-chan error) {
		s, err := New(cfg, Deps{Log: slog.New(slog.NewTextHandler(log, nil)), Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return up }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		select {
		case <-s.Ready():
		case err := <-done:
			t.Fatal(err)
		}
		return cancel, done
	}
	var first, second bytes.Buffer
	endFirst, firstEnded := start(&first)
	endSecond, secondEnded := start(&second)
	endFirst()
	if err := <-firstEnded; err != nil {
		t.Error(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		ask(t, network, at, new(dns.Msg).SetQuestion("web.ns.svc.cluster.local.", dns.TypeA))
	}
	endSecond()
	if err := <-secondEnded; err != nil {
		t.Error(err)
	}
	const shares = "another process of this user has the address too"
	if strings.Contains(first.String(), shares) || !strings.Contains(second.String(), shares) {
		t.Errorf("the first said:\n%sthe second:\n%s", &first, &second)
	}
}

// What systemd hands over need not be all: a socket unit of a package knows one
// address, and a configuration may name more.
func TestWhereNothingWasHandedOverItBindsItself(t *testing.T) {
	c, l, at := sockets(t)
	_ = l.Close() // over TCP none
	second := ports.Free(t)
	up := addresses(1)
	cfg := testConfig(kubeDNS)
	cfg.Listen = []netip.AddrPort{at, second}
	s, err := New(cfg, Deps{
		Packets: []*net.UDPConn{c}, Log: slog.New(slog.DiscardHandler),
		Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return up },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	handed := 0
	for _, p := range s.packets {
		if !p.own {
			handed++
		}
	}
	if handed != 1 || len(s.streams) != 2 {
		t.Errorf("%d of %d UDP sockets were handed over, and there are %d listeners", handed, len(s.packets), len(s.streams))
	}
	for _, a := range cfg.Listen {
		for _, network := range []string{"udp", "tcp"} {
			ask(t, network, a, new(dns.Msg).SetQuestion("web.ns.svc.cluster.local.", dns.TypeA))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeSaysWhereItCannotListen(t *testing.T) {
	_, l, at := sockets(t)
	defer func() { _ = l.Close() }()
	cfg := testConfig(kubeDNS)
	cfg.Listen = []netip.AddrPort{at}
	s, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("%v", err)
	}
}

func TestReloadKeepsTheListenAddresses(t *testing.T) {
	s := offline(t, addresses(1))
	cfg := testConfig(kubeDNS)
	cfg.Listen = append(cfg.Listen, netip.MustParseAddrPort("127.0.0.2:53"))
	if err := s.Reload(cfg); !errors.Is(err, ErrListenChanged) {
		t.Errorf("%v", err)
	}
	cfg = testConfig(kubeDNS)
	cfg.MaxBytes = 0
	if err := s.Reload(cfg); err == nil {
		t.Error("a configuration without memory was taken")
	}
	if got := s.state.Load().cfg.MaxBytes; got == 0 {
		t.Error("a bad configuration is in place")
	}
}

func TestValidate(t *testing.T) {
	server := netip.MustParseAddrPort("192.0.2.1:53")
	for what, change := range map[string]func(*Config){
		"nothing to listen on":     func(c *Config) { c.Listen = nil },
		"a wildcard":               func(c *Config) { c.Listen = []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:53")} },
		"an IPv6 wildcard":         func(c *Config) { c.Listen = []netip.AddrPort{netip.MustParseAddrPort("[::]:53")} },
		"no address":               func(c *Config) { c.Listen = []netip.AddrPort{{}} },
		"no cluster domain":        func(c *Config) { c.ClusterDomain = "" },
		"a trailing dot":           func(c *Config) { c.ClusterDomain = "cluster.local." },
		"an empty label":           func(c *Config) { c.ClusterDomain = "cluster..local" },
		"no kube-dns":              func(c *Config) { c.ClusterDNS = nil },
		"an empty list":            func(c *Config) { c.Upstreams = Upstreams{Source: ServerList} },
		"a stub without servers":   func(c *Config) { c.StubDomains = []StubDomain{{Zone: "example"}} },
		"a stub domain of nothing": func(c *Config) { c.StubDomains = []StubDomain{{Servers: upstream.Plain([]netip.AddrPort{server})}} },
		"no memory":                func(c *Config) { c.MaxBytes = 0 },
	} {
		cfg := testConfig(kubeDNS)
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		if err := cfg.Validate(); err == nil {
			t.Errorf("%s: allowed", what)
		}
		if _, err := New(cfg, Deps{}); err == nil {
			t.Errorf("%s: New takes it", what)
		}
	}
}

package dnscache

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// A gate is a clock that can be made to hold up whoever asks it.
type gate struct{ mu sync.RWMutex }

func (g *gate) now() time.Time {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return time.Now()
}

// Readers that hang are told from those that have nothing to do, and each socket
// by itself.
func TestASocketThatNobodyReadsIsSeen(t *testing.T) {
	c, l, at := sockets(t)
	g := &gate{}
	cfg := testConfig(kubeDNS)
	cfg.Listen = []netip.AddrPort{at}
	s, err := New(cfg, Deps{
		Packets: []*net.UDPConn{c}, Streams: []*net.TCPListener{l}, Log: slog.New(slog.DiscardHandler), Now: g.now,
		Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return addresses(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Sockets(); got != nil {
		t.Errorf("before it serves: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	<-s.Ready()
	state := func(udp, tcp SocketState) {
		t.Helper()
		udp.Proto, tcp.Proto = UDP, TCP
		want := []SocketState{udp, tcp}
		equal := func() bool { return cmp.Equal(want, s.Sockets(), cmpopts.IgnoreFields(SocketState{}, "Addr")) }
		until(t, cmp.Diff(want, s.Sockets(), cmpopts.IgnoreFields(SocketState{}, "Addr")), equal)
	}
	state(SocketState{}, SocketState{})
	for _, got := range s.Sockets() {
		if got.Addr != at {
			t.Errorf("%s at %s, want %s", got.Proto, got.Addr, at)
		}
	}
	ask := func(network string, pkt []byte) {
		t.Helper()
		if _, err := dial(t, network, at).Write(pkt); err != nil {
			t.Fatal(err)
		}
	}
	bad := []byte{0} // read like any other
	ask("udp", bad)
	ask("tcp", bad)
	state(SocketState{Read: 1}, SocketState{Read: 1})

	g.mu.Lock()
	ask("udp", bad) // its reader hangs with it
	state(SocketState{Read: 2}, SocketState{Read: 1})
	ask("udp", nil) // and does not see this one
	state(SocketState{Read: 2, Waiting: true}, SocketState{Read: 1})
	ask("tcp", bad)
	state(SocketState{Read: 2, Waiting: true}, SocketState{Read: 2})
	ask("tcp", bad)
	state(SocketState{Read: 2, Waiting: true}, SocketState{Read: 2, Waiting: true})
	g.mu.Unlock()
	state(SocketState{Read: 3}, SocketState{Read: 3})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whoever waits takes memory, and a process that has none left is killed: with all
// that it has read and not answered.
func TestThoseWhoWaitComeAfterThoseWhoDoNot(t *testing.T) {
	s := offline(t, addresses(1))
	hit, miss := packet(t, "hit.example.com.", "A"), packet(t, "miss.example.com.", "A")
	warm(t, s, hit)
	s.flights.closeForNew() // a miss is answered when it is joined
	conn, listener, at := sockets(t)
	defer listener.Close()
	defer conn.Close()
	client := dial(t, "udp", at)
	for _, pkt := range [][]byte{miss, hit, miss, hit} {
		if _, err := client.Write(pkt); err != nil {
			t.Fatal(err)
		}
	}
	r := &reader{packetSocket: newPacketSocket(conn, false), server: s, batch: newBatch()}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { r.read(fd) }); err != nil || r.err != nil {
		t.Fatal(err, r.err)
	}
	var got []string
	for range 4 {
		buf := make([]byte, wire.MaxUDP)
		n, err := client.Read(buf)
		m := new(dns.Msg)
		if err != nil || m.Unpack(buf[:n]) != nil {
			t.Fatalf("after %q: %v %x", got, err, buf[:n])
		}
		got = append(got, m.Question[0].Name+" "+dns.RcodeToString[m.Rcode])
	}
	if want := []string{"hit.example.com. NOERROR", "hit.example.com. NOERROR", "miss.example.com. SERVFAIL", "miss.example.com. SERVFAIL"}; !slices.Equal(got, want) {
		t.Errorf("replies %q, want %q", got, want)
	}
	if queries, misses := r.queries.Load(), r.misses[zoneExternal].Load(); queries != 4 || misses != 2 {
		t.Errorf("%d queries and %d misses were counted, want 4 and 2", queries, misses)
	}
}

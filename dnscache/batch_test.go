package dnscache

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"nodelocaldns/test/netns"
)

// Packets of both families come and go, more than one call takes, with those that
// get no reply among them; and each reply goes to whom it is for.
func TestABatchAnswersEverybody(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) {
			s, r, to := newReader(t, at)
			good := packet(t, "web.ns.svc.cluster.local.", "A")
			warm(t, s, good)
			var clients []net.Conn
			for i := range batchSize + 5 {
				c := dial(t, "udp", to)
				clients = append(clients, c)
				pkt := bytes.Clone(good)
				binary.BigEndian.PutUint16(pkt, uint16(i))
				if i%5 == 0 {
					pkt[2] |= 0x80 // a reply, to which there is none
				}
				if _, err := c.Write(pkt); err != nil {
					t.Fatal(err)
				}
			}
			if more := r.at(t); !more {
				t.Error("a full batch, and no more is to come")
			}
			if more := r.at(t); more {
				t.Error("there is more after the last")
			}
			for i, c := range clients {
				if i%5 == 0 {
					continue
				}
				_ = c.SetReadDeadline(time.Now().Add(patience))
				buf := make([]byte, 512)
				n, err := c.Read(buf)
				if err != nil || n < 12 || binary.BigEndian.Uint16(buf) != uint16(i) {
					t.Errorf("client %d: %x, %v", i, buf[:n], err)
				}
			}
			if got := r.packetSocket.read.Load(); got != batchSize+5 {
				t.Errorf("%d were read", got)
			}
		})
	}
}

// Who waits is told apart by address and port.
func TestASenderIsKnown(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		_, r, to := newReader(t, at)
		c := dial(t, "udp", to)
		if _, err := c.Write(packet(t, "new.ns.svc.cluster.local.", "A")); err != nil {
			t.Fatal(err)
		}
		raw, err := r.conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var senders []netip.AddrPort
		_ = raw.Control(func(fd uintptr) {
			n, _ := r.batch.receive(fd)
			for i := range n {
				senders = append(senders, r.batch.sender(i))
			}
		})
		if want := c.LocalAddr().(*net.UDPAddr).AddrPort(); !slices.Equal(senders, []netip.AddrPort{want}) {
			t.Fatalf("%s: senders are %v, want %v", at, senders, want)
		}
		// And is written to.
		r.write([]byte("later"), senders[0])
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 512)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "later" {
			t.Errorf("%s: %q, %v", at, buf[:n], err)
		}
	}
}

func TestABatchDoesNotAllocate(t *testing.T) {
	s, r, to := newReader(t, "127.0.0.1:0")
	pkt := packet(t, "web.ns.svc.cluster.local.", "A", "edns=1232")
	warm(t, s, pkt)
	c := dial(t, "udp", to)
	buf := make([]byte, 512)
	raw, err := r.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	read := r.once
	if allocs := testing.AllocsPerRun(100, func() {
		for range batchSize {
			_, _ = c.Write(pkt)
		}
		_ = raw.Read(read)
		for range batchSize {
			_, _ = c.Read(buf)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations, want 0", allocs)
	}
	if n := r.packetSocket.read.Load(); n != 101*batchSize {
		t.Errorf("%d packets were read, want %d", n, 101*batchSize)
	}
}

// newReader is a reader of a socket at a free port, whose server knows upstream.
func newReader(t *testing.T, at string) (*Server, *testReader, netip.AddrPort) {
	t.Helper()
	s := offline(t, addresses(1))
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Skip("this machine has no such loopback address: ", err)
	}
	t.Cleanup(func() { conn.Close() })
	p := newPacketSocket(conn.(*net.UDPConn), false)
	return s, &testReader{reader{packetSocket: p, server: s, batch: newBatch()}}, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

type testReader struct{ reader }

// write sends a datagram as to a client that has waited.
func (r *testReader) write(b []byte, to netip.AddrPort) {
	o := outboxes.Get().(*outbox)
	o.socket = r.packetSocket
	o.address(append(o.room(), b...), to)
	o.flush()
	outboxes.Put(o)
}

// once reads a batch, and never asks for another.
func (r *testReader) once(fd uintptr) bool {
	r.read(fd)
	return true
}

// at reads a batch, and returns what read does.
func (r *testReader) at(t *testing.T) (more bool) {
	t.Helper()
	raw, err := r.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { more = r.read(fd) })
	return more
}

// Replies to addresses where nobody is lie in the kernel for seconds.
func TestRepliesToNobodyKeepNobodyWaiting(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.Run(t, "ip", "link", "add", "rv0", "type", "veth", "peer", "name", "rv1")
	netns.Run(t, "ip", "addr", "add", "10.99.0.1/24", "dev", "rv0")
	netns.Run(t, "ip", "link", "set", "rv0", "up")
	netns.Run(t, "ip", "link", "set", "rv1", "up")
	_, r, to := newReader(t, "10.99.0.1:0")
	r.growBuffer()
	c := dial(t, "udp", to)
	reply := make([]byte, 200)
	for range 1000 {
		r.write(reply, netip.MustParseAddrPort("10.99.0.2:5000"))
		r.write(reply, netip.MustParseAddrPort("10.99.0.3:5000"))
	}
	r.write([]byte("here"), c.LocalAddr().(*net.UDPAddr).AddrPort())
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 512)
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "here" {
		t.Errorf("one that is there has got %q, %v", buf[:n], err)
	}
}

package dnscache

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

const (
	// maxQuery is the longest query read over UDP. A question is at most 271
	// bytes; the rest is room for the options of any client.
	maxQuery = 4096
	// receiveBuffer holds the packets of a burst until they are read. The
	// kernel's default of 208 KiB is full after some 280 small queries: 200
	// lookups at once, A and AAAA each, lose packets there, and each lost
	// packet is somebody's five seconds.
	receiveBuffer = 8 << 20
	// sendBuffer has room for replies to addresses that are not there: the kernel
	// keeps up to 208 KiB for each until it has given up looking for it, three
	// seconds, and one such address would fill the default of the same size.
	sendBuffer = 8 << 20
	// readErrorPause keeps a socket that fails at every read from using a CPU.
	readErrorPause = 10 * time.Millisecond
)

// A packetSocket is one UDP socket and the goroutine that reads it. Queries
// that can be answered at once are; the others wait in a flight, so that a
// slow upstream never holds up a hit.
type packetSocket struct {
	counters
	conn *net.UDPConn
	addr netip.AddrPort
	own  bool // nobody else holds it: what is left in it at the end is lost
	read atomic.Uint64
}

func newPacketSocket(c *net.UDPConn, own bool) *packetSocket {
	return &packetSocket{conn: c, addr: addrPort(c.LocalAddr()), own: own}
}

// serve reads until the socket's read deadline, which is set for the end alone.
func (p *packetSocket) serve(s *Server) {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return // it was closed
	}
	r := &reader{packetSocket: p, server: s, batch: newBatch()}
	for {
		err := raw.Read(r.read)
		if err == nil {
			err = r.err
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
			return
		}
		if !r.failing {
			s.log.Warn("reading queries: trying again", "address", p.conn.LocalAddr(), "error", err)
		}
		r.failing = true
		pause(s.work, readErrorPause)
	}
}

// A reader answers what comes to one packet socket.
type reader struct {
	*packetSocket
	server  *Server
	batch   *batch
	q       question
	later   [batchSize]int // packets of the batch that wait for upstream
	line    line
	failing bool

	together upstream.Together // what is asked for a batch
	err      error
}

// read answers a batch of what has come. It returns false where that was all: then it
// is called again when something has come since, so it need not look once more to
// see that there is nothing. Where there may be more it returns true, so that the
// deadline is looked at; and where the socket has an error, which it leaves in err.
func (r *reader) read(fd uintptr) bool {
	n, errno := r.batch.receive(fd)
	r.err = nil
	switch errno {
	case 0:
	case unix.EAGAIN:
		return false
	case unix.EINTR:
		return true
	default:
		r.err = errno
		return true
	}
	r.failing = false
	later := r.answer(n)
	r.batch.send(fd)
	for _, i := range later {
		r.join(i)
	}
	r.together.Send()
	return n == batchSize
}

// answer answers the packets of a batch and returns which of them are to wait. They
// are joined once the others have been sent: that takes memory, and where there is
// none left it must cost nobody else a reply.
func (r *reader) answer(n int) (later []int) {
	s, b := r.server, r.batch
	later = r.later[:0]
	r.packetSocket.read.Add(uint64(n))
	now := s.now()
	r.line.look(s.shares, now, r.waiting)
	for i := range n {
		reply, outcome := s.answer(&r.counters, &r.q, b.query(i), b.room(), 0, now)
		if outcome == deferred {
			if s.shares.admit(b.sender(i).Addr().Unmap(), now) {
				later = append(later, i)
			} else {
				reply, outcome = s.refuse(&r.counters, &r.q, b.room(), 0, now), replied
			}
		}
		if outcome == replied {
			b.reply(i, reply)
		}
	}
	return later
}

// join lets packet i of a batch wait, which answer has found to be a question.
func (r *reader) join(i int) {
	r.q.read(r.batch.query(i))
	r.server.joinTogether(r.q.key, &r.q.query, packetPeer{r.packetSocket, r.batch.sender(i)}, &r.together)
}

// A packetPeer is a UDP client that waits.
type packetPeer struct {
	socket *packetSocket
	addr   netip.AddrPort
}

func (c packetPeer) client() netip.Addr { return c.addr.Addr().Unmap() }

func (c packetPeer) deliver(q *wire.Query, t told, now time.Duration) {
	o := outboxes.Get().(*outbox)
	o.put(c, q, t, now)
	o.flush()
	outboxes.Put(o)
}

// growBuffer makes room for bursts: beyond net.core.rmem_max where the process
// may (CAP_NET_ADMIN), else up to it. It returns how much there is.
func (p *packetSocket) growBuffer() (size int) {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		room := func() int { // the kernel counts each byte twice (socket(7))
			n, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
			return n / 2
		}
		if n, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF); n/2 < sendBuffer &&
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		}
		// It may be large already, by systemd's ReceiveBuffer=.
		if room() < receiveBuffer && unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
		size = room()
	})
	return size
}

// growBuffers makes room on all sockets and says so where it is too little.
func (s *Server) growBuffers() {
	smallest := receiveBuffer
	for _, p := range s.packets {
		smallest = min(smallest, p.growBuffer())
	}
	if smallest < receiveBuffer {
		s.log.Warn("small receive buffer: bursts of queries may be dropped", "bytes", smallest, "wanted", receiveBuffer,
			"hint", "raise net.core.rmem_max, or grant CAP_NET_ADMIN")
	}
}

// drops is how many datagrams the kernel dropped at this socket, most of them
// because its receive buffer was full.
func (p *packetSocket) drops() uint64 {
	const skMemInfoDrops = 8
	return uint64(p.memory()[skMemInfoDrops])
}

// waiting is how many bytes the datagrams use that have not been read.
func (p *packetSocket) waiting() int {
	const skMemInfoRmemAlloc = 0
	return int(p.memory()[skMemInfoRmemAlloc])
}

// memory is what the kernel says of the socket's memory (sock_diag(7), SK_MEMINFO).
func (p *packetSocket) memory() (info [9]uint32) {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return info
	}
	size := uint32(unsafe.Sizeof(info))
	_ = raw.Control(func(fd uintptr) {
		_, _, _ = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return info
}

package dnscache

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// An outbox has the replies to clients of UDP who have waited, on their way out with one
// system call. It is one goroutine's.
type outbox struct {
	replies
	socket  *packetSocket // the first one's
	to      [batchSize]unix.RawSockaddrInet6
	flights *flights
	landed  int // flights whose replies are in it

	toSocket func(fd uintptr) // send
}

var outboxes = sync.Pool{New: func() any {
	o := new(outbox)
	o.layOut()
	o.toSocket = o.send
	return o
}}

// outbox is that of a round, or a new one where there is none; whoever asked for that
// calls its Send.
func (s *Server) outbox(round *upstream.Round) *outbox {
	if round != nil && round.Left != nil {
		return round.Left.(*outbox)
	}
	o := outboxes.Get().(*outbox)
	o.flights = &s.flights
	if round != nil {
		round.Left = o
	}
	return o
}

// put adds the reply to q that t is.
func (o *outbox) put(c packetPeer, q *wire.Query, t told, now time.Duration) {
	// Sockets of one address are one to the client.
	if o.socket != nil && o.socket != c.socket && o.socket.addr != c.socket.addr || o.n == batchSize {
		o.flush()
	}
	if o.socket == nil {
		o.socket = c.socket
	}
	o.address(c.socket.send(o.room(), q, t, now, q.Limit()), c.addr)
}

// address adds a reply that was made in room.
func (o *outbox) address(reply []byte, a netip.AddrPort) {
	to := &o.to[o.n]
	o.add(reply, (*byte)(unsafe.Pointer(to)), putSockaddr(to, a))
}

// flush sends what there is.
func (o *outbox) flush() {
	if raw, err := o.socket.conn.SyscallConn(); err == nil {
		_ = raw.Control(o.toSocket)
	}
	o.n, o.socket = 0, nil
}

// Send sends what there is, and gives the outbox back.
func (o *outbox) Send() {
	if o.n > 0 {
		o.flush()
	}
	f, landed := o.flights, o.landed
	o.flights, o.landed, o.socket = nil, 0, nil
	outboxes.Put(o)
	f.waiting.Add(-landed)
}

// putSockaddr puts an address as batch.sender tells it into the kernel's form, and
// returns its size.
func putSockaddr(to *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	if a.Addr().Is4() {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(to))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
		putPort(&v4.Port, a.Port())
		return unix.SizeofSockaddrInet4
	}
	zone, _ := strconv.ParseUint(a.Addr().Zone(), 10, 32)
	*to = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.Addr().As16(), Scope_id: uint32(zone)}
	putPort(&to.Port, a.Port())
	return unix.SizeofSockaddrInet6
}

// putPort stores a port as it is on the wire.
func putPort(to *uint16, p uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(to))[:], p)
}

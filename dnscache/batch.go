package dnscache

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodelocaldns/dnscache/wire"
)

// batchSize is how many packets are read and written with one system call each. At
// full load it divides the cost of the calls.
const batchSize = 32

// A batch is room for the packets of one system call, laid out once: recvmmsg(2)
// fills it, and replies go to whom their queries came from. It must not be moved.
type batch struct {
	in      [batchSize]mmsghdr
	from    [batchSize]unix.RawSockaddrInet6 // the longer of the two kinds
	queries [batchSize][maxQuery]byte
	vectors [batchSize]unix.Iovec
	replies
}

// replies are room for the packets of one sendmmsg(2), laid out once. It must not be
// moved.
type replies struct {
	out  [batchSize]mmsghdr
	data [batchSize][wire.MaxUDP]byte
	outs [batchSize]unix.Iovec
	n    int // that are to be sent
}

// mmsghdr is the kernel's struct (recvmmsg(2)).
type mmsghdr struct {
	header unix.Msghdr
	length uint32 // of what was received
}

func newBatch() *batch {
	b := new(batch)
	for i := range batchSize {
		in := &b.vectors[i]
		in.Base = &b.queries[i][0]
		in.SetLen(maxQuery)
		b.in[i].header.Iov = in
		b.in[i].header.SetIovlen(1)
		b.in[i].header.Name = (*byte)(unsafe.Pointer(&b.from[i]))
		// Its memory is had now: where there is none left, no query has been read.
		clear(b.queries[i][:])
		clear(b.data[i][:])
	}
	b.layOut()
	return b
}

func (r *replies) layOut() {
	for i := range batchSize {
		r.outs[i].Base = &r.data[i][0]
		r.out[i].header.Iov = &r.outs[i]
		r.out[i].header.SetIovlen(1)
	}
}

// receive reads what there is, without waiting, and returns how many packets that
// were, or 0 and why.
//
// It and send tell nobody that they are in a system call, as neither waits: that
// would cost more than a short one of them.
func (b *batch) receive(fd uintptr) (int, syscall.Errno) {
	for i := range b.in {
		b.in[i].header.Namelen = unix.SizeofSockaddrInet6
	}
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in)), batchSize, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// query is packet i of those received.
func (b *batch) query(i int) []byte { return b.queries[i][:b.in[i].length] }

// sender is who sent packet i.
func (b *batch) sender(i int) netip.AddrPort {
	name := &b.from[i]
	switch name.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port(&v4.Port))
	case unix.AF_INET6:
		a := netip.AddrFrom16(name.Addr)
		if name.Scope_id != 0 {
			a = a.WithZone(strconv.FormatUint(uint64(name.Scope_id), 10))
		}
		return netip.AddrPortFrom(a, port(&name.Port))
	}
	return netip.AddrPort{}
}

// port is a port as it is on the wire.
func port(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }

// reply adds a reply to packet i, which was made in room.
func (b *batch) reply(i int, reply []byte) {
	b.add(reply, b.in[i].header.Name, b.in[i].header.Namelen)
}

// room is for the next reply.
func (r *replies) room() []byte { return r.data[r.n][:0] }

// add adds a reply that was made in room. name is the kernel's form of whom it is for.
func (r *replies) add(reply []byte, name *byte, size uint32) {
	out := &r.out[r.n]
	out.header.Iov.SetLen(len(reply))
	out.header.Name, out.header.Namelen = name, size
	r.n++
}

// send sends the replies. What the kernel does not take is lost: a client that
// cannot be reached is none of our errors, and a send buffer is full only of
// replies to many addresses that are not there.
func (r *replies) send(fd uintptr) {
	for sent := 0; sent < r.n; {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&r.out[sent])), uintptr(r.n-sent), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			n = 1 // the first of them is the one that failed
		}
		sent += int(n)
	}
	r.n = 0
}

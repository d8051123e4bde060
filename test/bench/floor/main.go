// Floor is floor.c in Go: a name server that answers each query with its own id
// and question and one address, with batched system calls. What its queries cost
// is the floor for a program in Go.
//
// It waits as Go's servers do: a goroutine for each of a few sockets that share
// the address, woken by the runtime's poller, and system calls of which the
// scheduler is not told, as none of them waits.
//
// usage: floor ADDRESS:PORT
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize = 32
	querySize = 512
	header    = 12
)

// answer is a compressed name, A, IN, a TTL of 30 s and 192.0.2.1.
const answer = "\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x1e\x00\x04\xc0\x00\x02\x01"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: floor ADDRESS:PORT")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "floor: error:", err)
		os.Exit(1)
	}
}

func run(addr string) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return errors.Join(cerr, err)
	}}
	ended := make(chan error)
	for range min(runtime.GOMAXPROCS(0), 4) {
		conn, err := lc.ListenPacket(context.Background(), "udp4", addr)
		if err != nil {
			return err
		}
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		b := newBatch()
		go func() { ended <- raw.Read(b.serve) }()
	}
	return <-ended
}

// mmsghdr is the kernel's struct (recvmmsg(2)).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

type batch struct {
	in, out [batchSize]mmsghdr
	from    [batchSize]unix.RawSockaddrInet4
	queries [batchSize][querySize]byte
	replies [batchSize][querySize + len(answer)]byte
	vectors [2 * batchSize]unix.Iovec
}

func newBatch() *batch {
	b := new(batch)
	for i := range batchSize {
		in, out := &b.vectors[i], &b.vectors[batchSize+i]
		in.Base, out.Base = &b.queries[i][0], &b.replies[i][0]
		in.SetLen(querySize)
		b.in[i].header.Iov, b.out[i].header.Iov = in, out
		b.in[i].header.SetIovlen(1)
		b.out[i].header.SetIovlen(1)
		b.in[i].header.Name = (*byte)(unsafe.Pointer(&b.from[i]))
		b.out[i].header.Namelen = unix.SizeofSockaddrInet4
	}
	return b
}

// serve answers all that has come, and returns false: the poller then calls it
// when something has come since.
func (b *batch) serve(fd uintptr) bool {
	for {
		for i := range b.in {
			b.in[i].header.Namelen = unix.SizeofSockaddrInet4
		}
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in)), batchSize, unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 {
			return false
		}
		m := 0
		for i := range int(n) {
			if size := reply(b.queries[i][:b.in[i].length], b.replies[m][:]); size > 0 {
				b.out[m].header.Iov.SetLen(size)
				b.out[m].header.Name = b.in[i].header.Name
				m++
			}
		}
		for sent := 0; sent < m; {
			k, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[sent])), uintptr(m-sent), unix.MSG_DONTWAIT, 0, 0)
			if errno != 0 {
				k = 1 // the first of them is the one that failed
			}
			sent += int(k)
		}
		if n < batchSize {
			return false
		}
	}
}

// reply writes the reply to a query and returns its length; 0 for none.
func reply(query, to []byte) int {
	if len(query) < header || query[2]&0x80 != 0 {
		return 0
	}
	end := header
	for end < len(query) && query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5 // the root, type and class
	if end > len(query) {
		return 0
	}
	copy(to, query[:end])
	to[2], to[3] = 0x80|query[2]&0x01, 0x80 // QR, RD as asked, RA
	copy(to[4:], "\x00\x01\x00\x01\x00\x00\x00\x00")
	return end + copy(to[end:], answer)
}

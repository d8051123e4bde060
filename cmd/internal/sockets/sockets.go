// Package sockets tells apart the sockets that systemd opened for a process.
package sockets

import (
	"io"
	"net"
	"net/netip"
	"os"
)

// Adopt is f as a *net.UDPConn or *net.TCPListener and its address, or as a
// *net.UnixListener, which leaves its name in the file system when it is closed;
// nil for anything else. It is a copy: f is the caller's to close. What is behind
// both is systemd's too, so that what is in it when they are closed is there for
// the next process.
func Adopt(f *os.File) (io.Closer, netip.AddrPort) {
	if pc, err := net.FilePacketConn(f); err == nil {
		if udp, ok := pc.(*net.UDPConn); ok {
			return udp, unmapped(udp.LocalAddr().(*net.UDPAddr).AddrPort())
		}
		_ = pc.Close()
	}
	if l, err := net.FileListener(f); err == nil {
		switch l := l.(type) {
		case *net.TCPListener:
			return l, unmapped(l.Addr().(*net.TCPAddr).AddrPort())
		case *net.UnixListener:
			return l, netip.AddrPort{}
		}
		_ = l.Close()
	}
	return nil, netip.AddrPort{}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

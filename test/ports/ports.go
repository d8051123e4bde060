// Package ports hands out ports for tests that start servers.
//
// A port that the kernel chose may be taken over the other protocol, and one that
// was given back so that a server may have it may be given to the next socket of
// anybody on the machine that asks for none. With some hundred such ports in a run
// of all tests that happens every few dozen runs.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// The kernel gives ports from 32768 on to sockets that ask for none
// (ip_local_port_range, unless somebody has changed it): these it does not.
const first, last = 20000, 32767

// Take returns a port that is free over UDP and TCP at every address, and that
// no process in this network namespace gets from Take before release is called or
// this process ends.
func Take() (port uint16, release func(), err error) {
	const all = last - first + 1
	begin := rand.IntN(all)
	for i := range all {
		port := uint16(first + (begin+i)%all)
		// The kernel frees a name of this kind with the process that has it.
		lock, err := net.Listen("unix", fmt.Sprintf("@nodelocaldns-test-port-%d", port))
		if err == nil && free(port) {
			return port, func() { _ = lock.Close() }, nil
		}
		if err == nil {
			_ = lock.Close()
		} else if !errors.Is(err, syscall.EADDRINUSE) {
			return 0, nil, err
		}
	}
	return 0, nil, fmt.Errorf("no port from %d to %d is free", first, last)
}

func free(port uint16) bool {
	at := fmt.Sprintf(":%d", port)
	l, err := net.Listen("tcp", at)
	if err != nil {
		return false
	}
	defer l.Close()
	c, err := net.ListenPacket("udp", at)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// Free returns an address of 127.0.0.1 with a port of [Take] that is the test's
// until its end.
func Free(t testing.TB) netip.AddrPort {
	t.Helper()
	port, release, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

// Listen opens both sockets of [Free]. The caller closes them.
func Listen(t testing.TB) (*net.UDPConn, *net.TCPListener) {
	t.Helper()
	at := Free(t)
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		_ = l.Close()
		t.Fatal(err)
	}
	return c, l
}

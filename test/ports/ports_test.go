package ports

import (
	"net"
	"slices"
	"testing"
)

func TestNoPortIsHandedOutTwice(t *testing.T) {
	var all []uint16
	for range 300 {
		all = append(all, Free(t).Port())
	}
	slices.Sort(all)
	if n := len(slices.Compact(all)); n != 300 {
		t.Errorf("300 ports, %d different ones", n)
	}
}

func TestAPortIsFreeOverBothProtocols(t *testing.T) {
	c, l := Listen(t)
	defer c.Close()
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort().Port()
	if free(at) {
		t.Errorf("port %d is free, which has sockets", at)
	}
	_ = c.Close()
	if free(at) {
		t.Errorf("port %d is free, which has a listener", at)
	}
	_ = l.Close()
	if !free(at) {
		t.Errorf("port %d is not free, whose sockets are closed", at)
	}
}

package dnscache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPacketSockets bounds the UDP sockets on one address. Each costs a wake-up
// of its own at a low rate of queries; more than a few CPUs are not needed for
// one node's DNS.
const maxPacketSockets = 4

// listen binds the configured addresses that no socket was handed over for.
// IP_FREEBIND lets it bind before the
// address is there and keep it when it goes; SO_REUSEPORT lets several sockets
// share it, and the next process take over while this one still answers.
func (s *Server) listen(ctx context.Context) error {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
				return
			}
			level, option := unix.SOL_IP, unix.IP_FREEBIND
			if network == "udp6" || network == "tcp6" {
				level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
			}
			err = unix.SetsockoptInt(int(fd), level, option, 1)
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	var packets, streams []netip.AddrPort
	for _, p := range s.packets {
		packets = append(packets, p.addr)
	}
	for _, l := range s.streams {
		streams = append(streams, addrPort(l.Addr()))
	}
	for _, a := range s.state.Load().cfg.Listen {
		family := "4"
		if a.Addr().Is6() {
			family = "6"
		}
		if !slices.Contains(packets, a) {
			if shared(ctx, "udp"+family, a) {
				s.log.Warn("another process of this user has the address too, and gets a share of the queries", "address", a,
					"hint", "ss -lnpu shows who; right during a hand-over, wrong for longer")
			}
			for range min(runtime.GOMAXPROCS(0), maxPacketSockets) {
				c, err := lc.ListenPacket(ctx, "udp"+family, a.String())
				if err != nil {
					return fmt.Errorf("listening on %s: %w", a, err)
				}
				s.packets = append(s.packets, newPacketSocket(c.(*net.UDPConn), true))
			}
		}
		if !slices.Contains(streams, a) {
			l, err := lc.Listen(ctx, "tcp"+family, a.String())
			if err != nil {
				return fmt.Errorf("listening on %s: %w", a, err)
			}
			s.streams = append(s.streams, &streamSocket{TCPListener: l.(*net.TCPListener)})
		}
	}
	return nil
}

// addrPort is a socket's address as the configuration has it.
func addrPort(a net.Addr) netip.AddrPort {
	var at netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// shared reports whether somebody has the address already: then it cannot be
// bound without SO_REUSEPORT, and with it only by the same user.
func shared(ctx context.Context, network string, a netip.AddrPort) bool {
	var lc net.ListenConfig
	c, err := lc.ListenPacket(ctx, network, a.String())
	if err != nil {
		return errors.Is(err, syscall.EADDRINUSE)
	}
	_ = c.Close()
	return false
}

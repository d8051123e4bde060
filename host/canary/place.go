package canary

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A place is where questions are asked from.
type place interface {
	// dial connects to a server: over UDP at once, over TCP until ctx ends.
	dial(ctx context.Context, proto string, server netip.AddrPort) (net.Conn, error)
}

// node is the node itself.
type node struct{}

func (node) dial(ctx context.Context, proto string, server netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		if proto != "udp" {
			return nil
		}
		// Or the kernel keeps to itself what a router or a firewall says.
		return c.Control(func(fd uintptr) {
			if server.Addr().Is4() {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
			} else {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
			}
		})
	}}
	return d.DialContext(ctx, proto, server.String())
}

// A space is the network namespace of a pod.
type space struct {
	fd    int
	inode uint64
}

// errEnded says that the pod is not there any more.
var errEnded = errors.New("the process has ended")

// enter opens the network namespace of a process, once: whatever the number of
// the process is of later, this is where questions are asked from. The caller
// closes it, also after an error.
func enter(pid int) (space, error) {
	none := space{fd: -1}
	fd, err := open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return none, errEnded
	} else if err != nil {
		return none, err
	}
	s := space{fd: fd}
	var own, st unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/thread-self/ns/net", &own), unix.Fstat(fd, &st)); err != nil {
		return s, err
	}
	s.inode = st.Ino
	if st.Ino == own.Ino {
		return s, errEnded // and a process of the node has its number now
	}
	return s, s.do(func() {})
}

func open(name string) (int, error) {
	for {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func (s space) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
}

// dial makes the socket in the namespace, and that is all that is done there.
// For an address net makes it in the goroutine that calls it.
func (s space) dial(ctx context.Context, proto string, server netip.AddrPort) (c net.Conn, err error) {
	if entering := s.do(func() { c, err = node{}.dial(ctx, proto, server) }); entering != nil {
		return nil, fmt.Errorf("entering its network: %w", entering)
	}
	return c, err
}

// do calls f in the namespace, on a thread of its own that ends with it: no
// other goroutine ever runs there.
func (s space) do(f func()) (err error) {
	done := make(chan struct{})
	go func() {
		// Never to be unlocked: so the runtime ends the thread, and does not
		// start others from it.
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread cannot end, and what the process is taken for
			// in /proc/self is this one. It is held until another has done it.
			defer runtime.UnlockOSThread()
			err = s.do(f)
			close(done)
			return
		}
		defer close(done)
		if err = unix.Setns(s.fd, unix.CLONE_NEWNET); err == nil {
			f()
		}
	}()
	<-done
	return err
}

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// udp asks over UDP. One goroutine reads all sockets, and the sockets are the
// kernel's own: it tells when a packet came, and which query an ICMP error is
// about.
type udp struct {
	*recorder
	epoll int
	kept  []*socket
	ended chan struct{} // the reader has
	stop  chan struct{}

	smu   sync.Mutex // of the sockets; never taken with the recorder's held
	byFD  map[int]*socket
	brief []*socket // fresh ones, the oldest first
}

// receiveBuffer has room for some thousand small replies.
const receiveBuffer = 4 << 20

type socket struct {
	ids
	fd    int // -1 when closed
	port  uint16
	since time.Time
	fresh bool
}

func newUDP(r *recorder) (*udp, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	u := &udp{recorder: r, epoll: ep, ended: make(chan struct{}), stop: make(chan struct{}), byFD: map[int]*socket{}}
	go u.read()
	for range r.plan.Sockets {
		s, err := u.open(false)
		if err != nil {
			u.close()
			return nil, err
		}
		u.kept = append(u.kept, s)
	}
	return u, nil
}

// open makes a socket that is read from now on.
func (u *udp) open(fresh bool) (*socket, error) {
	family, remote := unix.AF_INET, unix.Sockaddr(nil)
	server := u.plan.Server
	if a := server.Addr(); a.Is4() {
		remote = &unix.SockaddrInet4{Port: int(server.Port()), Addr: a.As4()}
	} else {
		family, remote = unix.AF_INET6, &unix.SockaddrInet6{Port: int(server.Port()), Addr: a.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	s := &socket{ids: newIDs(), fd: fd, since: time.Now(), fresh: fresh}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1), unix.Connect(fd, remote))
	// What a server answers all at once after it stood still must not be lost
	// here. Without the right to it there is less room.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	if family == unix.AF_INET {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	} else {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	}
	if err == nil {
		var local unix.Sockaddr
		switch local, err = unix.Getsockname(fd); l := local.(type) {
		case *unix.SockaddrInet4:
			s.port = uint16(l.Port)
		case *unix.SockaddrInet6:
			s.port = uint16(l.Port)
		}
	}
	if err == nil {
		u.smu.Lock()
		u.byFD[fd] = s
		u.smu.Unlock()
		err = unix.EpollCtl(u.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	if err != nil {
		u.smu.Lock()
		u.shut(s)
		u.smu.Unlock()
		return nil, fmt.Errorf("making a socket for %s: %w", server, err)
	}
	return s, nil
}

// shut closes a socket. The caller holds smu.
func (u *udp) shut(s *socket) {
	if s.fd >= 0 {
		delete(u.byFD, s.fd)
		_ = unix.Close(s.fd) // and out of the epoll
		s.fd = -1
	}
}

func (u *udp) send(i int) {
	var s *socket
	if u.alone(i) {
		u.sweep()
		var err error
		if s, err = u.open(true); err != nil {
			u.finish(i, Refused, err)
			return
		}
	} else {
		s = u.kept[i%len(u.kept)]
	}
	u.smu.Lock()
	id, fd := s.take(i), s.fd
	if s.fresh {
		u.brief = append(u.brief, s)
	}
	u.smu.Unlock()
	u.mu.Lock()
	u.records[i].ID, u.records[i].Port, u.records[i].Tries = id, s.port, 1
	u.mu.Unlock()
	var err error
	for range 3 {
		// An error may be about an earlier query: this one was not sent then,
		// and the error is gone.
		if _, err = unix.Write(fd, u.query(i, id)); err == nil {
			return
		}
		if errors.Is(err, unix.EAGAIN) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 100)
		}
	}
	u.smu.Lock()
	delete(s.pending, id)
	u.smu.Unlock()
	u.finish(i, Refused, fmt.Errorf("sending: %w", err))
}

// sweep closes fresh sockets that will not have an answer any more.
func (u *udp) sweep() {
	u.smu.Lock()
	defer u.smu.Unlock()
	for len(u.brief) > 0 && (u.brief[0].fd < 0 || time.Since(u.brief[0].since) > u.plan.Timeout) {
		u.shut(u.brief[0])
		u.brief = u.brief[1:]
	}
}

func (u *udp) finish(i int, o Outcome, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.end(i, o, time.Since(u.begin)-u.records[i].At, err.Error())
}

func (u *udp) close() {
	close(u.stop)
	<-u.ended
	u.smu.Lock()
	defer u.smu.Unlock()
	for _, s := range u.byFD {
		u.shut(s)
	}
	_ = unix.Close(u.epoll)
}

// read reads all sockets until the end.
func (u *udp) read() {
	defer close(u.ended)
	events := make([]unix.EpollEvent, 256)
	packet, control := make([]byte, 4096), make([]byte, 512)
	for {
		select {
		case <-u.stop:
			return
		default:
		}
		n, err := unix.EpollWait(u.epoll, events, 20)
		if err != nil {
			continue // a signal
		}
		for _, e := range events[:n] {
			u.smu.Lock()
			s := u.byFD[int(e.Fd)]
			u.smu.Unlock()
			if s == nil {
				continue
			}
			if e.Events&unix.EPOLLERR != 0 {
				for u.receive(s, int(e.Fd), unix.MSG_ERRQUEUE, packet, control) {
				}
			}
			for u.receive(s, int(e.Fd), 0, packet, control) {
			}
		}
	}
}

// receive reads one packet, or one error, and says whether there was one.
func (u *udp) receive(s *socket, fd, flags int, packet, control []byte) bool {
	u.smu.Lock()
	if s.fd != fd { // closed, and the number may be another's by now
		u.smu.Unlock()
		return false
	}
	n, oobn, _, _, err := unix.Recvmsg(fd, packet, control, flags|unix.MSG_DONTWAIT)
	if err != nil {
		u.smu.Unlock()
		// Errors are read from their queue; here they are told once more.
		return !errors.Is(err, unix.EAGAIN) && flags == 0
	}
	at, icmp := parseControl(control[:oobn])
	i, waited := 0, false
	if n >= 2 {
		id := binary.BigEndian.Uint16(packet)
		i, waited = s.pending[id]
		delete(s.pending, id)
	}
	if s.fresh && len(s.pending) == 0 {
		u.shut(s)
	}
	u.smu.Unlock()
	outcome, note := Refused, ""
	switch {
	case !waited:
		if flags == 0 {
			u.mu.Lock()
			u.strays++
			u.mu.Unlock()
		}
		return true
	case flags == 0:
		outcome, note = u.name(i).judge(packet[:n])
	default:
		note = icmp.Error()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	latency := time.Since(u.begin) - u.records[i].At
	if !at.IsZero() {
		// Both times are the clock's on the wall.
		latency = at.Sub(u.begin.Round(0)) - u.records[i].At
	}
	u.end(i, outcome, latency, note)
	return true
}

// parseControl reads when a packet came (zero if that is not said) and, for one
// of the error queue, which error it is.
func parseControl(b []byte) (at time.Time, icmp unix.Errno) {
	messages, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return at, icmp
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16:
			at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case (m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR ||
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR) && len(m.Data) >= 4:
			icmp = unix.Errno(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return at, icmp
}

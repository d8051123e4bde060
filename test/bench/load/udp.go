package load

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize = 32
	maxReply  = 1500
	// receiveBuffer has room for all that a server may answer at once.
	receiveBuffer = 8 << 20
	// look is how often it is looked for what is lost.
	look = 100 * time.Millisecond
)

// system does a system call of which Go's scheduler is not told. That would cost
// more than most of them, and the thread has nobody to make room for.
func system(trap, a, b, c, d, e, f uintptr) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(trap, a, b, c, d, e, f)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// mmsghdr is the kernel's struct (recvmmsg(2)).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// A packets is room for the packets of one system call, with control messages:
// the time of those that come, the sender's address of those that go.
type packets struct {
	headers [batchSize]mmsghdr
	vectors [batchSize]unix.Iovec
	data    [batchSize][maxReply]byte
	control [batchSize][64]byte
}

func newPackets() *packets {
	p := new(packets)
	for i := range p.headers {
		p.vectors[i].Base = &p.data[i][0]
		p.vectors[i].SetLen(maxReply)
		p.headers[i].header.Iov = &p.vectors[i]
		p.headers[i].header.SetIovlen(1)
		p.headers[i].header.Control = &p.control[i][0]
	}
	return p
}

// receive reads what there is, without waiting.
func (p *packets) receive(fd int) (int, syscall.Errno) {
	for i := range p.headers {
		p.headers[i].header.SetControllen(len(p.control[i]))
	}
	return system(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.headers)), batchSize, unix.MSG_DONTWAIT, 0, 0)
}

// came is when packet i came, in Unix ns, as the kernel says (SO_TIMESTAMPNS); 0 if
// it does not.
func (p *packets) came(i int) int64 {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&p.control[i]))
	if p.headers[i].header.Controllen < unix.SizeofCmsghdr || h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_TIMESTAMPNS {
		return 0
	}
	ts := (*unix.Timespec)(unsafe.Pointer(&p.control[i][unix.CmsgLen(0)]))
	return ts.Nano()
}

// send writes the first n packets.
func (p *packets) send(fd, n int) syscall.Errno {
	for sent := 0; sent < n; {
		k, errno := system(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.headers[sent])), uintptr(n-sent), 0, 0, 0)
		switch errno {
		case 0:
			sent += k
		case unix.EINTR, unix.EAGAIN, unix.ECONNREFUSED: // the last is about an earlier packet
		default:
			return errno
		}
	}
	return 0
}

// A poller waits for sockets to have something to read.
type poller struct {
	fd     int
	events [256]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	// A thread's timers are 50 µs late by default, to be had together.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("asking for exact timers: %w", err)
	}
	return &poller{fd: fd}, nil
}

// add has socket number i watched.
func (p *poller) add(fd, i int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)})
}

// wait waits for at most d, and returns what is ready; its Fd is the number.
func (p *poller) wait(d time.Duration) []unix.EpollEvent {
	ts := unix.NsecToTimespec(int64(max(d, 0)))
	n, _ := system(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	return p.events[:n] // none if there was a signal
}

// udp is a run over UDP.
type udp struct {
	*run
	poller  *poller
	sockets []*udpSocket
	in, out *packets
	server  unix.RawSockaddrInet4
	late    time.Time // it was looked for what is lost
}

type udpSocket struct {
	table
	fd int
}

func (r *run) udp() error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer unix.Close(p.fd)
	u := &udp{run: r, poller: p, in: newPackets(), out: newPackets()}
	u.server = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: r.plan.Server.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&u.server.Port))[:], r.plan.Server.Port())
	for i := range u.out.headers {
		h := &u.out.headers[i].header
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&u.server)), unix.SizeofSockaddrInet4
	}
	for i := range r.plan.Sockets {
		fd, err := udpOpen()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := p.add(fd, i); err != nil {
			return err
		}
		u.sockets = append(u.sockets, &udpSocket{fd: fd})
	}
	r.start = time.Now()
	u.late = r.start
	if r.plan.Rate > 0 {
		return u.atRate()
	}
	return u.full()
}

// udpOpen makes a socket that nobody is connected to: it sends from every address
// that is routed to here, and has the replies to all of them.
func udpOpen() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("making a socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{})
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, fmt.Errorf("making a socket: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	return fd, nil
}

// atRate asks at times that are fixed beforehand.
func (u *udp) atRate() error {
	gap := time.Second / time.Duration(u.plan.Rate)
	for i := 0; ; {
		now := time.Now()
		if err := u.tick(now); err != nil {
			return err
		}
		if u.over {
			return u.drain()
		}
		due := u.start.Add(time.Duration(i) * gap)
		if ahead := due.Sub(now); ahead > 0 {
			u.read(u.poller.wait(ahead), nil)
			u.look(now, nil)
			continue
		}
		if u.counting {
			u.lags = append(u.lags, now.Sub(due))
		}
		if err := u.ask(u.sockets[i%len(u.sockets)], 1); err != nil {
			return err
		}
		i++
	}
}

// full keeps as many queries waiting as the plan says.
func (u *udp) full() error {
	if err := u.tick(u.start); err != nil {
		return err
	}
	for i, s := range u.sockets {
		n := u.plan.Window / len(u.sockets)
		if i < u.plan.Window%len(u.sockets) {
			n++
		}
		if err := u.ask(s, n); err != nil {
			return err
		}
	}
	var failed error
	again := func(s *udpSocket, n int) {
		if err := u.ask(s, n); err != nil {
			failed = err
		}
	}
	for {
		events := u.poller.wait(look)
		now := time.Now()
		if err := u.tick(now); err != nil {
			return err
		}
		u.read(events, again)
		u.look(now, again)
		if failed != nil {
			return failed
		}
		if u.over {
			return u.drain()
		}
	}
}

// drain reads the last replies.
func (u *udp) drain() error {
	for end := time.Now().Add(u.plan.Timeout + look); time.Now().Before(end); {
		waiting := 0
		for _, s := range u.sockets {
			waiting += s.open
		}
		if waiting == 0 {
			return nil
		}
		u.read(u.poller.wait(look), nil)
		u.look(time.Now(), nil)
	}
	return nil
}

// ask sends n queries by a socket, or fewer where the plan ends.
func (u *udp) ask(s *udpSocket, n int) error {
	for n > 0 && !u.over {
		k := min(n, batchSize)
		if u.plan.Count > 0 {
			if k = min(k, u.plan.Count-u.asked); k <= 0 {
				return nil
			}
		}
		n -= k
		now := time.Now().UnixNano()
		for i := range k {
			u.address(i)
			q := u.next()
			id, earlier := s.take(q, now)
			u.lose(earlier)
			u.out.vectors[i].SetLen(len(appendQuery(u.out.data[i][:0], id, q)))
			u.sent()
		}
		if errno := u.out.send(s.fd, k); errno != 0 {
			return fmt.Errorf("sending to %s: %w", u.plan.Server, errno)
		}
	}
	return nil
}

// address has packet i sent from the address whose turn it is.
func (u *udp) address(i int) {
	h := &u.out.headers[i].header
	if u.plan.Clients == 0 {
		h.SetControllen(0)
		return
	}
	from := u.plan.From.Addr().As4()
	n := binary.BigEndian.Uint32(from[:]) + uint32(u.asked%u.plan.Clients)
	c := (*unix.Cmsghdr)(unsafe.Pointer(&u.out.control[i]))
	c.Level, c.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	c.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&u.out.control[i][unix.CmsgLen(0)]))
	binary.BigEndian.PutUint32(info.Spec_dst[:], n)
	h.SetControllen(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
}

// read reads what is ready, and calls again, if it is not nil, with how many replies
// a socket had.
func (u *udp) read(events []unix.EpollEvent, again func(s *udpSocket, n int)) {
	for _, e := range events {
		s := u.sockets[e.Fd]
		for {
			n, errno := u.in.receive(s.fd)
			if errno != 0 {
				break // nothing there; or an ICMP error, and the query will be lost
			}
			now, had := time.Now().UnixNano(), 0
			for i := range n {
				if u.reply(s, u.in.data[i][:min(u.in.headers[i].length, maxReply)], u.in.came(i), now) {
					had++
				}
			}
			if again != nil && had > 0 {
				again(s, had)
			}
			if n < batchSize {
				break
			}
		}
	}
}

// reply notes a reply, and says whether somebody waited for it.
func (u *udp) reply(s *udpSocket, b []byte, came, now int64) bool {
	if len(b) < header {
		u.Strays++
		return false
	}
	query := s.done(binary.BigEndian.Uint16(b))
	if query.at == 0 {
		u.Strays++
		return false
	}
	if came == 0 {
		came = now
	}
	u.replied(query.at, came, query.q.judge(b, u.plan.AnyAddress), query.q)
	return true
}

// look gives up, now and then, what has waited for too long.
func (u *udp) look(now time.Time, again func(s *udpSocket, n int)) {
	if now.Sub(u.late) < look {
		return
	}
	u.late = now
	before := now.Add(-u.plan.Timeout).UnixNano()
	for _, s := range u.sockets {
		for q := s.expire(before); q.at != 0; q = s.expire(before) {
			u.lose(q)
			if again != nil {
				again(s, 1)
			}
		}
	}
}

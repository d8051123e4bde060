package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// streams is a run over TCP, at full load: each connection has its share of the
// queries waiting, pipelined.
type streams struct {
	*run
	poller *poller
	conns  []*stream
	server *unix.SockaddrInet4
}

type stream struct {
	table
	fd      int
	in      []byte // of which the first bytes are the beginning of a reply
	out     []byte // what is still to be written
	waiting []question
}

func (r *run) tcp() error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer unix.Close(p.fd)
	t := &streams{run: r, poller: p, server: &unix.SockaddrInet4{Port: int(r.plan.Server.Port()), Addr: r.plan.Server.Addr().As4()}}
	defer func() {
		for _, s := range t.conns {
			_ = unix.Close(s.fd)
		}
	}()
	for i := range r.plan.Sockets {
		s := &stream{fd: -1, in: make([]byte, 0, 1<<16)}
		if err := t.connect(s, i); err != nil {
			return err
		}
		t.conns = append(t.conns, s)
	}
	r.start = time.Now()
	if err := t.tick(r.start); err != nil {
		return err
	}
	for i, s := range t.conns {
		n := r.plan.Window / len(t.conns)
		if i < r.plan.Window%len(t.conns) {
			n++
		}
		t.ask(s, n)
		t.write(s)
	}
	return t.loop()
}

func (t *streams) loop() error {
	for {
		events := t.poller.wait(look)
		now := time.Now()
		if err := t.tick(now); err != nil {
			return err
		}
		for _, e := range events {
			s := t.conns[e.Fd]
			n, err := t.read(s)
			if err != nil {
				if err := t.reconnect(s, int(e.Fd)); err != nil {
					return err
				}
				continue
			}
			t.ask(s, n)
			t.write(s)
		}
		waiting := 0
		for _, s := range t.conns {
			for q := s.expire(now.Add(-t.plan.Timeout).UnixNano()); q.at != 0; q = s.expire(now.Add(-t.plan.Timeout).UnixNano()) {
				t.lose(q)
				t.ask(s, 1)
				t.write(s)
			}
			waiting += s.open
		}
		if t.over && waiting == 0 {
			return nil
		}
	}
}

// connect makes the connection with number i.
func (t *streams) connect(s *stream, i int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making a socket: %w", err)
	}
	err = unix.Connect(fd, t.server)
	if err == nil {
		err = errors.Join(unix.SetNonblock(fd, true), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), t.poller.add(fd, i))
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("connecting to %s: %w", t.plan.Server, err)
	}
	s.fd, s.in, s.out = fd, s.in[:0], s.out[:0]
	return nil
}

// reconnect makes a new connection in the place of one that broke, and asks there
// what was not answered.
func (t *streams) reconnect(s *stream, i int) error {
	_ = unix.Close(s.fd)
	s.waiting = s.waiting[:0]
	for id := range s.slots {
		if q := s.done(uint16(id)); q.at != 0 {
			s.waiting = append(s.waiting, q.q)
		}
	}
	if len(s.waiting) > 0 {
		t.Reconnects++
	}
	if err := t.connect(s, i); err != nil {
		return err
	}
	now := time.Now().UnixNano()
	for _, q := range s.waiting {
		t.put(s, q, now)
	}
	t.write(s)
	return nil
}

// ask adds n queries to what is to be written.
func (t *streams) ask(s *stream, n int) {
	now := time.Now().UnixNano()
	for range n {
		if t.over || t.plan.Count > 0 && t.asked >= t.plan.Count {
			return
		}
		t.put(s, t.next(), now)
		t.sent()
	}
}

func (t *streams) put(s *stream, q question, now int64) {
	id, earlier := s.take(q, now)
	t.lose(earlier)
	at := len(s.out)
	s.out = appendQuery(append(s.out, 0, 0), id, q)
	binary.BigEndian.PutUint16(s.out[at:], uint16(len(s.out)-at-2))
}

// write writes what there is to be written. A server that does not read is waited
// for: it has more than enough to answer.
func (t *streams) write(s *stream) {
	for len(s.out) > 0 {
		n, err := unix.Write(s.fd, s.out)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT | unix.POLLIN}}, int(look/time.Millisecond))
			return // what is left goes with what comes next
		case err != nil:
			s.out = s.out[:0]
			return // who reads it next sees that it broke
		default:
			s.out = s.out[:copy(s.out, s.out[n:])]
		}
	}
}

// read reads once and returns how many replies came.
func (t *streams) read(s *stream) (replies int, err error) {
	n, err := unix.Read(s.fd, s.in[len(s.in):cap(s.in)])
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return 0, nil
	case err != nil:
		return 0, err
	case n == 0:
		return 0, errors.New("the server ended the connection")
	}
	s.in = s.in[:len(s.in)+n]
	now, rest := time.Now().UnixNano(), s.in
	for len(rest) >= 2 {
		size := int(binary.BigEndian.Uint16(rest))
		if len(rest) < 2+size {
			break
		}
		reply := rest[2 : 2+size]
		rest = rest[2+size:]
		var q slot
		if size >= header {
			q = s.done(binary.BigEndian.Uint16(reply))
		}
		if q.at == 0 {
			t.Strays++
			continue
		}
		t.replied(q.at, now, q.q.judge(reply, t.plan.AnyAddress), q.q)
		replies++
	}
	s.in = s.in[:copy(s.in, rest)]
	return replies, nil
}

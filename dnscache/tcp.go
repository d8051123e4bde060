package dnscache

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// Limits of TCP clients (RFC 7766 6.1 and 6.2).
const (
	maxClients = 1024
	// maxEach bounds those of one address, so that a pod that opens connections
	// without end leaves the others room.
	maxEach = maxClients / 8
	// idleTimeout is how long a client may take for its next query, whole: a
	// few seconds for those who ask more, not for ever for those who do not.
	idleTimeout = 10 * time.Second
	// idleEnough is how long a client must have asked nothing to make room for
	// another one when there are maxClients: else a pod that keeps connections
	// open would have them all.
	idleEnough = time.Second
	// writeTimeout ends clients that do not read.
	writeTimeout = 2 * time.Second
	// maxPending bounds the questions of one client that wait for upstream.
	// Its next query is read when one of them is answered.
	maxPending = 64
)

// clients are the open TCP connections.
type clients struct {
	mu   sync.Mutex
	open map[*client]struct{}
	each map[netip.Addr]int // how many an address has
}

// A client is one TCP connection.
type client struct {
	conn     net.Conn
	from     netip.Addr
	counters *counters
	pending  chan struct{} // one token a question that waits
	last     atomic.Int64  // when it came or last asked, on the server's clock

	mu  sync.Mutex // held while writing
	out []byte
}

// A streamSocket is one TCP listener.
type streamSocket struct {
	*net.TCPListener
	accepted atomic.Uint64
}

// accept serves the clients of one listener until ctx ends.
func (s *Server) accept(ctx context.Context, l *streamSocket) {
	var open sync.WaitGroup
	defer open.Wait()
	failing := false
	for ctx.Err() == nil {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if ctx.Err() == nil { // too many files, or a client that left
				if !failing {
					s.log.Warn("accepting connections: trying again", "address", l.Addr(), "error", err)
				}
				failing = true
				pause(ctx, readErrorPause)
			}
			continue
		}
		failing = false
		l.accepted.Add(1)
		c := &client{conn: conn, from: conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), counters: &s.streamC, pending: make(chan struct{}, maxPending)}
		if !s.clients.add(c, s.now()) {
			_ = conn.Close()
			continue
		}
		open.Go(func() { c.serve(ctx, s) })
	}
}

// serve reads queries until the client leaves, breaks the protocol or is
// idle, or ctx ends. Questions that wait for upstream do not hold up those
// behind them; their replies go out as they come (RFC 7766 7).
func (c *client) serve(ctx context.Context, s *Server) {
	defer s.clients.remove(c)
	r := bufio.NewReader(c.conn)
	var in []byte
	var q question
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		if ctx.Err() != nil {
			break // SetReadDeadline may have undone the interruption
		}
		var size [2]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			break
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n < wire.HeaderLen {
			break
		}
		if cap(in) < n {
			in = make([]byte, n)
		}
		if _, err := io.ReadFull(r, in[:n]); err != nil {
			break
		}
		c.last.Store(int64(s.now()))
		if !c.query(s, &q, in[:n]) {
			break
		}
	}
	// Those that wait are answered before the connection is closed.
	for range maxPending {
		c.pending <- struct{}{}
	}
}

// query answers one query, now or later. It is false where the connection is
// to be closed.
func (c *client) query(s *Server, q *question, pkt []byte) bool {
	c.mu.Lock()
	out := append(c.out[:0], 0, 0)
	now := s.now()
	reply, outcome := s.answer(c.counters, q, pkt, out, wire.MaxMessage, now)
	if s.shares.limit.Load() > 0 {
		s.shares.tick(now, false) // packets may come no more
	}
	if outcome == deferred && !s.shares.admit(c.from, now) {
		reply, outcome = s.refuse(c.counters, q, out, wire.MaxMessage, now), replied
	}
	if outcome == replied {
		err := c.write(reply)
		c.mu.Unlock()
		return err == nil
	}
	c.mu.Unlock()
	if outcome == dropped {
		return false
	}
	c.pending <- struct{}{}
	s.join(q.key, &q.query, c)
	return true
}

func (c *client) client() netip.Addr { return c.from }

// deliver implements peer. A client that does not read holds up only itself.
func (c *client) deliver(q *wire.Query, t told, now time.Duration) {
	own := q.Clone()
	go func() {
		c.mu.Lock()
		msg := c.counters.send(append(c.out[:0], 0, 0), &own, t, now, wire.MaxMessage)
		if c.write(msg) != nil {
			_ = c.conn.Close() // the reader ends too
		}
		c.mu.Unlock()
		<-c.pending
	}()
}

// write sends a message that has two bytes of room for its length in front,
// in one segment where it fits (RFC 7766 8). c.mu is held.
func (c *client) write(msg []byte) error {
	binary.BigEndian.PutUint16(msg, uint16(len(msg)-2))
	if cap(msg) <= maxKeptBuffer {
		c.out = msg
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(msg)
	return err
}

// maxKeptBuffer is the largest reply buffer that a connection keeps.
const maxKeptBuffer = 4096

// add lets a client in, in place of an idle one where there are too many, of its
// address or at all. It is false where all of those are busy.
func (c *clients) add(cl *client, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.each[cl.from] >= maxEach:
		if !c.closeIdle(now, func(other *client) bool { return other.from == cl.from }) {
			return false
		}
	case len(c.open) >= maxClients:
		if !c.closeIdle(now, func(*client) bool { return true }) {
			return false
		}
	}
	if c.open == nil {
		c.open, c.each = map[*client]struct{}{}, map[netip.Addr]int{}
	}
	cl.last.Store(int64(now))
	c.open[cl] = struct{}{}
	c.each[cl.from]++
	return true
}

// closeIdle closes that client of those which has asked nothing for longest. c.mu is
// held.
func (c *clients) closeIdle(now time.Duration, those func(*client) bool) bool {
	var idle *client
	at := int64(now - idleEnough)
	for cl := range c.open {
		if last := cl.last.Load(); last <= at && len(cl.pending) == 0 && those(cl) {
			idle, at = cl, last
		}
	}
	if idle == nil {
		return false
	}
	c.forget(idle)
	_ = idle.conn.Close() // its reader ends
	return true
}

func (c *clients) remove(cl *client) {
	_ = cl.conn.Close()
	c.mu.Lock()
	c.forget(cl)
	c.mu.Unlock()
}

// forget takes a client from the counts, once. c.mu is held.
func (c *clients) forget(cl *client) {
	if _, ok := c.open[cl]; !ok {
		return
	}
	delete(c.open, cl)
	if c.each[cl.from]--; c.each[cl.from] == 0 {
		delete(c.each, cl.from)
	}
}

func (c *clients) count() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(len(c.open))
}

// interruptReads ends the readers; what waits for them is still answered.
func (c *clients) interruptReads() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for cl := range c.open {
		_ = cl.conn.SetReadDeadline(longAgo)
	}
}

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

	writing sync.Mutex // held while writing, before mu
	spare   []byte     // the buffer that out takes turns with

	mu       sync.Mutex
	out      []byte // replies that are to be written, each with its length in front
	waited   int    // of these, those to questions that waited
	later    []late // replies that are to be made when there is room
	flushing bool   // somebody is about to write them
}

// late is a reply to a question that waited.
type late struct {
	query wire.Query // its own copy
	told  told
	at    time.Duration
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
	r := bufio.NewReaderSize(c.conn, keptBuffer)
	var q question
	for {
		if !whole(r) {
			// All that has been asked is answered, with one write.
			if c.flush() != nil {
				break
			}
			_ = c.conn.SetReadDeadline(time.Now().Add(idleTimeout))
			if ctx.Err() != nil {
				break // SetReadDeadline may have undone the interruption
			}
		}
		pkt, err := readQuery(r)
		if err != nil {
			break
		}
		c.last.Store(int64(s.now()))
		if !c.query(s, &q, pkt) {
			break
		}
	}
	_ = c.flush()
	// Those that wait are answered before the connection is closed.
	for range maxPending {
		c.pending <- struct{}{}
	}
}

// whole reports whether the next query has been read to its end.
func whole(r *bufio.Reader) bool {
	if r.Buffered() < 2 {
		return false
	}
	size, _ := r.Peek(2) // it is there
	return r.Buffered() >= 2+int(binary.BigEndian.Uint16(size))
}

// errNoQuery ends a client that sends what is too short to be one.
var errNoQuery = errors.New("too short for a query")

// readQuery reads a query, which is r's until the next one is read, if it is no
// longer than most.
func readQuery(r *bufio.Reader) ([]byte, error) {
	size, err := r.Peek(2)
	if err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size))
	_, _ = r.Discard(2) // they are there
	switch {
	case n < wire.HeaderLen:
		return nil, errNoQuery
	case n > r.Size():
		pkt := make([]byte, n)
		_, err := io.ReadFull(r, pkt)
		return pkt, err
	}
	pkt, err := r.Peek(n)
	_, _ = r.Discard(len(pkt))
	return pkt, err
}

// query answers one query, now or later. It is false where the connection is
// to be closed.
func (c *client) query(s *Server, q *question, pkt []byte) bool {
	c.mu.Lock()
	at := len(c.out)
	out := append(c.out, 0, 0)
	now := s.now()
	reply, outcome := s.answer(c.counters, q, pkt, out, wire.MaxMessage, now)
	if s.shares.limit.Load() > 0 {
		s.shares.tick(now, false) // packets may come no more
	}
	if outcome == deferred && !s.shares.admit(c.from, now) {
		reply, outcome = s.refuse(c.counters, q, out, wire.MaxMessage, now), replied
	}
	if outcome == replied {
		c.queue(reply, at)
	}
	full := len(c.out) >= enoughReplies
	c.mu.Unlock()
	if full && c.flush() != nil {
		return false
	}
	switch outcome {
	case dropped:
		return false
	case deferred:
		select {
		case c.pending <- struct{}{}:
		default: // it waits for those before it, and must not keep replies to itself
			if c.flush() != nil {
				return false
			}
			c.pending <- struct{}{}
		}
		s.join(q.key, &q.query, c)
	}
	return true
}

func (c *client) client() netip.Addr { return c.from }

// deliver implements peer. A client that does not read holds up only itself.
func (c *client) deliver(q *wire.Query, t told, now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.later) == 0 && len(c.out) < enoughReplies {
		c.late(q, t, now)
	} else {
		c.later = append(c.later, late{q.Clone(), t, now})
	}
	if !c.flushing {
		c.flushing = true
		go func() { _ = c.flush() }()
	}
}

// late makes the reply to a question that waited. c.mu is held.
func (c *client) late(q *wire.Query, t told, now time.Duration) {
	at := len(c.out)
	c.queue(c.counters.send(append(c.out, 0, 0), q, t, now, wire.MaxMessage), at)
	c.waited++
}

// queue takes out with one more reply, which has two bytes for its length in front of
// it, at at. c.mu is held.
func (c *client) queue(out []byte, at int) {
	binary.BigEndian.PutUint16(out[at:], uint16(len(out)-at-2))
	c.out = out
}

// flush writes the replies there are: with one call, so that what fits goes in one
// segment (RFC 7766 8). The error of a client that does not read, or is gone, closes
// its connection, which ends the reader.
func (c *client) flush() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	for {
		if more, err := c.writeOut(); !more {
			return err
		}
	}
}

// writeOut is one write of flush. There is more where not all could be made at once:
// a client that does not read has little of what it is told in memory. writing is held.
func (c *client) writeOut() (more bool, err error) {
	c.mu.Lock()
	for len(c.later) > 0 && len(c.out) < enoughReplies {
		l := &c.later[0]
		c.late(&l.query, l.told, l.at)
		c.later = c.later[1:]
	}
	more = len(c.later) > 0
	if !more {
		c.later = nil
	}
	out, waited := c.out, c.waited
	c.out, c.waited, c.flushing = c.spare[:0], 0, more
	c.mu.Unlock()
	c.spare = nil
	if cap(out) <= keptBuffer {
		c.spare = out
	}
	if len(out) > 0 {
		if err = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err == nil {
			_, err = c.conn.Write(out)
		}
		if err != nil {
			_ = c.conn.Close()
		}
	}
	for range waited {
		<-c.pending
	}
	return more, err
}

const (
	// keptBuffer is the largest buffer that a connection keeps, of three: what it has
	// asked, what it is told, and what it is told meanwhile.
	keptBuffer = 4096
	// enoughReplies is how many bytes of replies are written, though there are more
	// queries that could be answered.
	enoughReplies = 16 << 10
)

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

package relay

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"nodelocaldns/dnscache/wire"
)

// Limits of TCP clients (RFC 7766 6.1 and 6.2).
const (
	maxClients = 256
	// idleTimeout is how long a client may take for its next query, whole.
	idleTimeout = 10 * time.Second
	// idleEnough is how long a client must have asked nothing to make room for
	// another one when there are maxClients.
	idleEnough = time.Second
	// writeTimeout ends clients that do not read. With Budget it bounds how long
	// the end takes.
	writeTimeout = time.Second
	// maxPending bounds the queries of one client that are under way. Its next
	// one is read when one of them is answered.
	maxPending = 16
	// maxStreamed bounds those of all clients, and with 64 KiB for a reply each
	// what they cost; those above get SERVFAIL at once.
	maxStreamed = 128
)

// clients are the open TCP connections.
type clients struct {
	mu       sync.Mutex
	open     map[*client]struct{}
	streamed int // queries under way
	ended    bool
}

// A client is one TCP connection.
type client struct {
	conn    net.Conn
	pending chan struct{} // one token a query under way
	last    time.Time     // when it came or last asked; guarded by clients.mu

	mu sync.Mutex // held while writing
}

// accept serves the clients of one listener until ctx ends.
func (r *Relay) accept(ctx context.Context, l Listener) {
	var open sync.WaitGroup
	defer open.Wait()
	failing := false
	for ctx.Err() == nil {
		conn, err := l.Accept()
		if err != nil {
			if over(err) {
				return
			}
			if !failing { // too many files, or a client that left
				r.deps.Log.Warn("accepting connections: trying again", "address", l.Addr(), "error", err)
			}
			failing = true
			r.pause()
			continue
		}
		failing = false
		c := &client{conn: conn, pending: make(chan struct{}, maxPending)}
		if !r.clients.add(c, time.Now()) {
			_ = conn.Close()
			continue
		}
		open.Go(func() { r.serveClient(ctx, c) })
	}
}

// serveClient reads queries until the client leaves, breaks the protocol or is
// idle, or ctx ends. Replies go out as they come (RFC 7766 7).
func (r *Relay) serveClient(ctx context.Context, c *client) {
	defer r.clients.remove(c)
	in := bufio.NewReaderSize(c.conn, 1024)
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		if ctx.Err() != nil {
			break // SetReadDeadline may have undone the interruption
		}
		msg, err := readMessage(in)
		if err != nil {
			break
		}
		r.clients.asked(c, time.Now())
		if !r.message(c, msg) {
			break
		}
	}
	// Those under way are answered before the connection is closed.
	for range maxPending {
		c.pending <- struct{}{}
	}
}

// readMessage reads a message with its length in front (RFC 1035 4.2.2).
func readMessage(in io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(in, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n < wire.HeaderLen || n > maxQuery {
		return nil, io.ErrUnexpectedEOF
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(in, msg)
	return msg, err
}

// message answers one query, now or later. It is false where the connection is
// to be closed.
func (r *Relay) message(c *client, msg []byte) bool {
	var q wire.Query
	switch verdict := wire.ParseQuery(msg, &q); verdict {
	case wire.Answer:
	case wire.Drop:
		return false
	default:
		return c.write(wire.AppendError(make([]byte, 2, wire.MinUDP), &q, verdict.RCode(), wire.EDENone))
	}
	r.queries[tcp].Add(1)
	c.pending <- struct{}{}
	if !r.clients.enter() {
		<-c.pending
		return c.write(r.appendServFail(make([]byte, 2, wire.MinUDP), msg, wire.EDENotReady))
	}
	go func() {
		defer func() { <-c.pending }()
		defer r.clients.leave()
		if !c.write(r.exchange(msg)) {
			_ = c.conn.Close() // the reader ends too
		}
	}()
	return true
}

// exchange asks kube-dns for msg, and makes up a reply where it has none. There
// are two bytes of room in front of it.
func (r *Relay) exchange(msg []byte) []byte {
	asked, began := r.servers.Load(), time.Now()
	room := func() []byte { return make([]byte, 2, wire.MinUDP) }
	if len(asked.all) == 0 {
		return r.appendServFail(room(), msg, wire.EDENoReachable)
	}
	r.mu.Lock()
	order, pass, probe := asked.pass(tcp, began)
	r.mu.Unlock()
	if !pass {
		r.health.silence(began, began, asked)
		return r.appendServFail(room(), msg, wire.EDENetworkError)
	}
	reply, from := r.race(asked, order, began, msg, room)
	if probe {
		r.mu.Lock()
		asked.over(tcp)
		r.mu.Unlock()
	}
	if reply == nil {
		r.health.silence(began, time.Now(), asked)
		return r.appendServFail(room(), msg, wire.EDENetworkError)
	}
	r.health.reply(time.Now(), from)
	copy(reply[2:], msg[:2])
	return append(reply[:2], fitting(msg, reply[2:], false)...)
}

// race asks one server after the other, the next one when the one before fails or
// makes us lose patience, and returns the first reply, or nil when the budget is
// spent or all have failed.
func (r *Relay) race(asked *servers, order order, began time.Time, msg []byte, room func() []byte) ([]byte, netip.AddrPort) {
	ctx, cancel := context.WithTimeout(r.work, Budget)
	defer cancel()
	type result struct {
		reply []byte
		at    int
	}
	tries := asked.tries()
	results := make(chan result, tries)
	started, waiting := 0, 0
	try := func() {
		at := order.at(started, len(asked.all))
		started++
		waiting++
		go func() {
			reply, err := asked.all[at].tcp.Exchange(ctx, msg, room())
			if err != nil {
				reply = nil
			}
			results <- result{reply, at}
		}()
	}
	try()
	impatient := time.NewTimer(patience)
	defer impatient.Stop()
	for waiting > 0 {
		select {
		case res := <-results:
			r.mu.Lock()
			if res.reply != nil {
				asked.answered(tcp, res.at, time.Now())
				r.mu.Unlock()
				return res.reply, asked.all[res.at].addr
			}
			asked.failed(tcp, res.at)
			r.mu.Unlock()
			waiting--
			if started < tries && ctx.Err() == nil {
				try()
			}
		case <-impatient.C:
			if started < tries {
				try()
			}
		}
	}
	r.unanswered(asked, order, started, began, msg, ctx.Err() != nil)
	return nil, netip.AddrPort{}
}

// unanswered remembers who did not answer the query msg, of those that it was
// passed on to. Connections to one that has died so would be silent for as long as
// they are kept: when it is back, they go to what is no more.
func (r *Relay) unanswered(asked *servers, order order, started int, began time.Time, msg []byte, silent bool) {
	now := time.Now()
	var died []*server
	r.mu.Lock()
	for i := range started {
		s := asked.all[order.at(i, len(asked.all))]
		st := &s.standings[tcp]
		lived := !st.dead
		if silent {
			st.silence(msg, began, now)
		} else {
			st.refusal(began, now)
		}
		if lived && st.dead {
			died = append(died, s)
		}
	}
	asked.gaveUp(tcp, began)
	r.mu.Unlock()
	for _, s := range died {
		if t, ok := s.tcp.(interface{ Renew() }); ok {
			t.Renew()
		}
	}
}

// write sends a reply with two bytes of room for its length in front, in one
// segment where it fits (RFC 7766 8), and says whether that went well. A client
// that does not read holds up only itself.
func (c *client) write(msg []byte) bool {
	binary.BigEndian.PutUint16(msg, uint16(len(msg)-2))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
		return false
	}
	_, err := c.conn.Write(msg)
	return err == nil
}

// add lets a client in, in place of an idle one where there are too many. It is
// false where all are busy, or at the end.
func (c *clients) add(cl *client, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || len(c.open) >= maxClients && !c.closeIdle(now) {
		return false
	}
	if c.open == nil {
		c.open = map[*client]struct{}{}
	}
	cl.last = now
	c.open[cl] = struct{}{}
	return true
}

// closeIdle closes the client that has asked nothing for longest. c.mu is held.
func (c *clients) closeIdle(now time.Time) bool {
	var idle *client
	for cl := range c.open {
		if now.Sub(cl.last) >= idleEnough && len(cl.pending) == 0 && (idle == nil || cl.last.Before(idle.last)) {
			idle = cl
		}
	}
	if idle == nil {
		return false
	}
	delete(c.open, idle)
	_ = idle.conn.Close() // its reader ends
	return true
}

func (c *clients) remove(cl *client) {
	_ = cl.conn.Close()
	c.mu.Lock()
	delete(c.open, cl)
	c.mu.Unlock()
}

func (c *clients) asked(cl *client, now time.Time) {
	c.mu.Lock()
	cl.last = now
	c.mu.Unlock()
}

// enter is false where too many queries are under way.
func (c *clients) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streamed >= maxStreamed {
		return false
	}
	c.streamed++
	return true
}

func (c *clients) leave() {
	c.mu.Lock()
	c.streamed--
	c.mu.Unlock()
}

// interruptReads ends the readers; what is under way is still answered.
func (c *clients) interruptReads() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for cl := range c.open {
		_ = cl.conn.SetReadDeadline(longAgo)
	}
}

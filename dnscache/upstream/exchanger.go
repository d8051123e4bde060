// Package upstream asks other servers.
package upstream

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"nodelocaldns/dnscache/wire"
)

// An Exchanger asks one question of somebody else.
//
// query is a message in wire form and is not changed; the exchanger puts an
// id of its own into what it sends. The reply is appended to buf and returned;
// it has been found to answer query (wire.CheckReply). Exchange returns when
// ctx ends. It may be called at the same time from many goroutines.
type Exchanger interface {
	Exchange(ctx context.Context, query, buf []byte) ([]byte, error)
}

// withID returns a copy of query with a fresh id, behind room for n bytes.
// The generator is ChaCha8 seeded by the kernel: ids cannot be guessed from
// those seen before (RFC 5452 9.2).
func withID(query []byte, n int) []byte {
	b := make([]byte, n+len(query))
	copy(b[n:], query)
	binary.BigEndian.PutUint16(b[n:], uint16(rand.Uint32()))
	return b
}

// deadline makes ctx's end the end of all waiting on conn. The returned stop
// must be called before conn is used for somebody else; it is false where ctx
// ended and conn cannot be used again.
func deadline(ctx context.Context, conn net.Conn) (stop func() bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }), nil
}

// UDP asks a server over UDP, each question from a socket of its own, so that
// the kernel picks a random port for it (RFC 5452 9.2) and drops what does not
// come from the server.
type UDP struct {
	Server netip.AddrPort
}

// Exchange implements [Exchanger]. A datagram that is no reply to query is
// passed over. The reply may be truncated.
func (u *UDP) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.Server))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop, err := deadline(ctx, conn)
	if err != nil {
		return nil, err
	}
	defer stop()
	msg := withID(query, 0)
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	from := len(buf)
	buf = append(buf, make([]byte, udpReplyRoom)...)
	for {
		n, err := conn.Read(buf[from:])
		if err != nil {
			return nil, orContext(ctx, err)
		}
		if wire.CheckReply(msg, buf[from:from+n]) == nil {
			return buf[:from+n], nil
		}
	}
}

// udpReplyRoom is more than a server may send us (wire.MaxUDP), for those that
// do not look at what we offer.
const udpReplyRoom = 4096

// orContext prefers the reason why ctx ended to the time-out it caused.
func orContext(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// Limits of the TCP connections to one server.
const (
	// maxConns bounds the connections to one server, and with one question in
	// flight on each, the questions. More wait for their turn. A name that
	// upstream cannot resolve holds up to three of them until its question
	// is given up.
	maxConns = 512
	// idleLimit is below the 8 s (miekg/dns) and 10 s (CoreDNS) after which
	// kube-dns closes an idle connection, so that we seldom meet a closed one.
	idleLimit = 5 * time.Second
	// ageLimit lets the replicas behind one ClusterIP share the load anew:
	// a connection stays with the replica that it was made to.
	ageLimit = 30 * time.Second
)

// TCP asks a server over a pool of TCP connections, one question at a time on
// each: a server built on miekg/dns, as CoreDNS is, answers the questions of
// one connection in turn, so a slow one would hold up those behind it.
//
// Make one with [NewTCP].
type TCP struct {
	server netip.AddrPort
	now    func() time.Time
	slots  chan struct{}
	reaper *time.Timer

	mu      sync.Mutex
	idle    []*conn // the one used last at the end
	renewed int     // connections of an earlier count are not used again
	closed  bool
}

type conn struct {
	net.Conn
	r        *bufio.Reader
	made     time.Time
	lastUsed time.Time
	renewed  int // the pool's count when it was made
}

// NewTCP returns an exchanger that asks server; now tells the time. It holds
// no connection before the first question.
func NewTCP(server netip.AddrPort, now func() time.Time) *TCP {
	return &TCP{server: server, now: now, slots: make(chan struct{}, maxConns)}
}

// Close closes the idle connections; those in use are closed when their
// question is answered.
func (t *TCP) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.Renew()
	return nil
}

// Renew makes sure that no connection made before is used for another
// question.
func (t *TCP) Renew() {
	t.mu.Lock()
	idle := t.idle
	t.idle = nil
	t.renewed++
	t.mu.Unlock()
	for _, c := range idle {
		_ = c.Close()
	}
}

// Exchange implements [Exchanger]. A connection that the server closed while
// it was idle costs a new one, not the question.
func (t *TCP) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	msg := withID(query, 2)
	binary.BigEndian.PutUint16(msg, uint16(len(query)))
	for c := t.pop(); c != nil; c = t.pop() {
		reply, err := t.ask(ctx, c, msg, buf)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errUnusedReply) {
			return reply, err
		}
	}
	t.mu.Lock()
	renewed := t.renewed
	t.mu.Unlock()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", t.server.String())
	if err != nil {
		return nil, err
	}
	return t.ask(ctx, &conn{Conn: nc, r: bufio.NewReader(nc), made: t.now(), renewed: renewed}, msg, buf)
}

// errUnusedReply marks an error that came before the first byte of a reply.
var errUnusedReply = errors.New("connection closed before the reply")

// ask sends msg, which has its length in front, on c and reads the reply. It
// takes c: back to the pool if all went well, closed if not.
func (t *TCP) ask(ctx context.Context, c *conn, msg, buf []byte) ([]byte, error) {
	stop, err := deadline(ctx, c)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	reply, err := c.roundTrip(msg, buf)
	if !stop() || err != nil {
		_ = c.Close()
		if err != nil {
			return nil, orContext(ctx, err)
		}
		return reply, nil
	}
	t.push(c)
	return reply, nil
}

func (c *conn) roundTrip(msg, buf []byte) ([]byte, error) {
	if _, err := c.Write(msg); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusedReply, err)
	}
	if _, err := c.r.Peek(1); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnusedReply, err)
	}
	var size [2]byte
	if _, err := io.ReadFull(c.r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	from := len(buf)
	buf = append(buf, make([]byte, n)...)
	if _, err := io.ReadFull(c.r, buf[from:]); err != nil {
		return nil, err
	}
	if err := wire.CheckReply(msg[2:], buf[from:]); err != nil {
		return nil, err
	}
	return buf, nil
}

// pop takes the connection used last that is worth using again.
func (t *TCP) pop() *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for n := len(t.idle); n > 0; n = len(t.idle) {
		c := t.idle[n-1]
		t.idle = t.idle[:n-1]
		if !c.spent(now) {
			return c
		}
		_ = c.Close()
	}
	return nil
}

func (c *conn) spent(now time.Time) bool {
	// What the server sent unasked is nobody's reply.
	return now.Sub(c.lastUsed) >= idleLimit || now.Sub(c.made) >= ageLimit || c.r.Buffered() > 0
}

func (t *TCP) push(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.lastUsed = t.now()
	if t.closed || c.renewed != t.renewed {
		_ = c.Close()
		return
	}
	t.idle = append(t.idle, c)
	if t.reaper == nil {
		t.reaper = time.AfterFunc(idleLimit, t.reap)
	}
}

// reap closes what has been idle for too long, and comes again while there is
// anything left to close.
func (t *TCP) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	kept := t.idle[:0]
	for _, c := range t.idle {
		if c.spent(now) {
			_ = c.Close()
			continue
		}
		kept = append(kept, c)
	}
	clear(t.idle[len(kept):])
	t.idle = kept
	t.reaper = nil
	if len(kept) > 0 {
		t.reaper = time.AfterFunc(idleLimit, t.reap)
	}
}

package upstream

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"nodelocaldns/dnscache/wire"
)

// A call is one query and the wait for its reply. Its pool's mu guards it.
type call struct {
	frame []byte    // the query as it goes out: its length, its id, the rest
	to    receiver  // is told how it went; nil: nobody waits for it
	sent  time.Time // or, while it waits for a connection, since when it does
	conn  *conn     // on which it is in flight; nil while it waits for one
	waits *list.Element
	again bool // a try beside another one, or after it
	lost  int  // how many connections it has lost
	over  bool // answered, or given up

	overtaken bool // a later query on its connection was answered before it
}

// A receiver is told how a call went.
type receiver interface {
	// replied is called once, unless the call was given up, with no lock held; it does
	// not block. The reply is the receiver's, to be changed too, until replied returns.
	// round is the one that brought it, nil where none did.
	replied(reply []byte, err error, round *Round)
}

// fail ends a call without a reply. The pool's mu is held.
func (c *call) fail(err error) {
	awaited := c.awaited()
	c.over = true
	if awaited {
		go c.to.replied(nil, err, nil) // who may use it again
	}
}

// awaited reports whether somebody waits for the reply.
func (c *call) awaited() bool { return !c.over && c.to != nil }

// A conn is one connection of a pool, whose mu guards all but what is read.
type conn struct {
	net.Conn
	raw     syscall.RawConn // nil where what is written is not what is sent, as over TLS
	pool    *Pool
	renewAt time.Time // a successor is made from then on,
	until   time.Time // and it is not used for another question from then on
	idleFor time.Duration

	pending  []*call // in flight, the oldest first
	out      []byte  // to be written
	spare    []byte  // the buffer that out takes turns with
	writing  bool    // somebody is at it
	replies  int
	lastUsed time.Time // when the last reply came, or it was made
	owing    time.Time // since when nobody waits for what is pending; zero: somebody does
	succeeds bool      // a successor is being made
	retired  bool      // to be closed when nothing is in flight
	closed   bool
}

// errUnusedReply marks an error that came before the first byte of a reply.
var errUnusedReply = errors.New("connection closed before the reply")

// errGivenUp ends the question that has waited longest for a reply when there
// is no room for another connection.
var errGivenUp = errors.New("given up for want of connections")

// spent reports whether c is not to be used for another question.
func (c *conn) spent(now time.Time) bool {
	return c.retired || now.Sub(c.lastUsed) >= c.idleFor || !now.Before(c.until)
}

// silent reports whether the oldest query on c is overdue, and nothing came since.
func (c *conn) silent(now time.Time) bool {
	return len(c.pending) > 0 && now.Sub(c.pending[0].sent) >= quiet && c.lastUsed.Before(c.pending[0].sent)
}

// push puts a call in flight on c. What it queued goes out with the next
// [conn.flush], which whoever gets true must call without the lock.
func (c *conn) push(q *call, now time.Time) (flush bool) {
	id := randomID()
	for slices.ContainsFunc(c.pending, func(p *call) bool { return p.id() == id }) {
		id = randomID()
	}
	binary.BigEndian.PutUint16(q.frame[2:], id)
	q.conn, q.sent = c, now
	c.pending = append(c.pending, q)
	if q.to != nil {
		c.owing = time.Time{}
	}
	c.out = append(c.out, q.frame...)
	flush = !c.writing
	c.writing = true
	return flush
}

func (c *call) id() uint16 { return binary.BigEndian.Uint16(c.frame[2:]) }

// send writes what is queued as far as the socket takes it at once, and leaves the rest
// to a goroutine.
func (c *conn) send() {
	if c.raw == nil {
		go c.flush()
		return
	}
	p := c.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(c.out) > 0 && !c.closed {
		b := c.out
		c.out = c.spare[:0]
		p.mu.Unlock()
		n := c.write(b)
		p.mu.Lock()
		if n < len(b) {
			c.out, c.spare = append(b[n:], c.out...), nil
			go c.flush()
			return
		}
		c.spare = b
	}
	c.writing = false
}

// write writes what the socket takes without waiting, and says how much that was. It
// tells nobody that it is in a system call, see batch.receive of package dnscache.
func (c *conn) write(b []byte) (n int) {
	_ = c.raw.Write(func(fd uintptr) bool {
		got, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			n = int(got)
		}
		return true // of an error the next write tells
	})
	return n
}

// flush writes what is queued, all that there is at once, until nothing is left.
// A server that does not read costs writeLimit at the most.
func (c *conn) flush() {
	p := c.pool
	p.mu.Lock()
	for len(c.out) > 0 && !c.closed {
		b := c.out
		c.out = c.spare[:0]
		p.mu.Unlock()
		err := c.SetWriteDeadline(time.Now().Add(writeLimit))
		if err == nil {
			_, err = c.Write(b)
		}
		p.mu.Lock()
		c.spare = b
		if err != nil {
			p.lose(c, fmt.Errorf("%w: %w", errUnusedReply, err), true)
		}
	}
	_ = c.SetWriteDeadline(time.Time{}) // or it would end what send writes
	c.writing = false
	p.mu.Unlock()
}

// read takes replies off c until it ends.
func (c *conn) read() {
	r := &replies{conn: c, inbox: inbox{buf: make([]byte, readBuffer)}}
	from := c.Read
	if c.raw != nil {
		from = c.receiver()
	}
	switch err := r.read(from); {
	case errors.Is(err, errNotOpen):
	case r.empty():
		c.pool.ended(c, fmt.Errorf("%w: %w", errUnusedReply, err), true)
	default:
		c.pool.ended(c, unexpected(err), false)
	}
}

// receiver returns what reads from the socket as Read does, and tells nobody of its system
// calls, as write.
func (c *conn) receiver() func(b []byte) (int, error) {
	var room []byte
	var n int
	var err error
	read := func(fd uintptr) bool {
		n, err = receive(fd, room)
		return !errors.Is(err, syscall.EAGAIN)
	}
	return func(b []byte) (int, error) {
		room = b
		if err := c.raw.Read(read); err != nil {
			return 0, err
		}
		return n, err
	}
}

// receive reads what there is without waiting.
func receive(fd uintptr, b []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == syscall.EINTR:
			continue
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.EOF
		}
		return int(n), nil
	}
}

// replies are what comes on a connection.
type replies struct {
	*conn
	inbox
	round Round
}

// errNotOpen ends the reading of a connection that is closed, and why has been told.
var errNotOpen = errors.New("connection not open")

// read gives replies to whom they are for, until from fails.
func (r *replies) read(from func([]byte) (int, error)) error {
	for {
		n, err := from(r.room())
		r.to += n // be there an error, too
		if n > 0 {
			open := r.give()
			r.round.end()
			if !open {
				return errNotOpen
			}
		}
		if err != nil {
			return err
		}
	}
}

// give gives the replies that have been read to whom they are for. It is false where
// the connection has been closed.
func (r *replies) give() bool {
	p := r.pool
	for {
		reply, whole := r.message()
		switch {
		case whole:
			if !p.got(r.conn, reply, &r.round) {
				return false
			}
		case r.empty():
			return true
		default:
			p.mu.Lock()
			unasked := len(r.pending) == 0
			if unasked {
				p.lose(r.conn, wire.OtherID, false)
			}
			p.mu.Unlock()
			return !unasked
		}
	}
}

// An inbox has what was read and not yet used, from and to.
type inbox struct {
	buf      []byte
	from, to int
}

// readBuffer has room for most replies, or several; there is one for every
// connection.
const readBuffer = 2048

func (b *inbox) empty() bool { return b.from == b.to }

// room is for what is read next: there is some. It is no more than what has been read
// of a message already, beyond readBuffer: a length that is announced costs nothing.
func (b *inbox) room() []byte {
	if b.from > 0 {
		b.from, b.to = 0, copy(b.buf, b.buf[b.from:b.to])
	}
	switch {
	case b.to == 0 && len(b.buf) > readBuffer:
		b.buf = make([]byte, readBuffer)
	case b.to == len(b.buf):
		b.buf = append(b.buf, make([]byte, len(b.buf))...)
	}
	return b.buf[b.to:]
}

// message takes the next message, which has its length in front (RFC 1035 4.2.2); false
// where it has not been read to its end. It is b's until the next call of room.
func (b *inbox) message() (msg []byte, whole bool) {
	rest := b.buf[b.from:b.to]
	if len(rest) < 2 {
		return nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(rest))
	if len(rest) < n {
		return nil, false
	}
	b.from += n
	return rest[2:n:n], true
}

// unexpected is err, where the end would be one in the middle.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// keepaliveCode is that of edns-tcp-keepalive (RFC 7828 3.1).
const keepaliveCode = 11

// bareOPT is the length of an OPT record without options: root, type, class,
// TTL, length.
const bareOPT = 1 + 2 + 2 + 4 + 2

// appendKeepalive asks the server how long it keeps an idle connection, if msg
// ends in an OPT record without options, as those of wire.AppendUpstreamQuery do.
func appendKeepalive(msg []byte) []byte {
	at := len(msg) - bareOPT
	if at < wire.HeaderLen || binary.BigEndian.Uint16(msg[10:]) != 1 ||
		msg[at] != 0 || binary.BigEndian.Uint16(msg[at+1:]) != wire.TypeOPT || binary.BigEndian.Uint16(msg[len(msg)-2:]) != 0 {
		return msg
	}
	msg[len(msg)-1] = 4 // the option's code and length; a client sends no time-out
	return append(msg, 0, keepaliveCode, 0, 0)
}

// keepalive is how long the server says in reply that it keeps an idle
// connection.
func keepalive(reply []byte) (idle time.Duration, ok bool) {
	off := wire.HeaderLen
	for range binary.BigEndian.Uint16(reply[4:]) {
		if off = wire.SkipName(reply, off); off < 0 {
			return 0, false
		}
		off += 4
	}
	records := int(binary.BigEndian.Uint16(reply[6:])) + int(binary.BigEndian.Uint16(reply[8:])) + int(binary.BigEndian.Uint16(reply[10:]))
	for range records {
		r, ok := wire.NextRecord(reply, off)
		if !ok {
			return 0, false
		}
		off = r.End
		if r.Type != wire.TypeOPT {
			continue
		}
		for b := reply[r.Data:r.End]; len(b) >= 4; {
			n := int(binary.BigEndian.Uint16(b[2:]))
			if 4+n > len(b) {
				return 0, false
			}
			if binary.BigEndian.Uint16(b) == keepaliveCode && n == 2 {
				return time.Duration(binary.BigEndian.Uint16(b[4:])) * 100 * time.Millisecond, true
			}
			b = b[4+n:]
		}
	}
	return 0, false
}

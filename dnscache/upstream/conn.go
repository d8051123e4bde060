package upstream

import (
	"bufio"
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
	replied(reply []byte, err error)
}

// fail ends a call without a reply. The pool's mu is held.
func (c *call) fail(err error) {
	awaited := c.awaited()
	c.over = true
	if awaited {
		go c.to.replied(nil, err) // who may use it again
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
	c.writing = false
	p.mu.Unlock()
}

// readBuffer has room for most replies, or several; there is one for every
// connection.
const readBuffer = 2048

// read takes replies off c until it ends.
func (c *conn) read() {
	p := c.pool
	r := bufio.NewReaderSize(c.Conn, readBuffer)
	for {
		if _, err := r.Peek(1); err != nil {
			p.ended(c, fmt.Errorf("%w: %w", errUnusedReply, err), true)
			return
		}
		p.mu.Lock()
		unasked := len(c.pending) == 0
		p.mu.Unlock()
		if unasked {
			p.ended(c, wire.OtherID, false)
			return
		}
		reply, kept, err := readFrame(r)
		if err != nil {
			p.ended(c, err, false)
			return
		}
		if !p.got(c, reply) {
			return
		}
		_, _ = r.Discard(kept) // they are there
	}
}

// frameStep bounds the memory that a server gets for a length that it has
// announced and not sent yet.
const frameStep = 4096

// readFrame reads one message with its length in front (RFC 1035 4.2.2): into memory of
// its own where it is long, else it is r's until so many bytes of it are discarded.
func readFrame(r *bufio.Reader) (msg []byte, kept int, err error) {
	size, err := r.Peek(2)
	if err != nil {
		return nil, 0, unexpected(err)
	}
	n := int(binary.BigEndian.Uint16(size))
	if 2+n <= r.Size() {
		msg, err := r.Peek(2 + n)
		if err != nil {
			return nil, 0, unexpected(err)
		}
		return msg[2:], 2 + n, nil
	}
	_, _ = r.Discard(2) // they are there
	b := make([]byte, min(n, frameStep))
	for at := 0; ; {
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, 0, unexpected(err)
		}
		if at = len(b); at == n {
			return b, 0, nil
		}
		b = append(b, make([]byte, min(n-at, at))...)
	}
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

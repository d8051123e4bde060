package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// An Outcome is what became of a lookup.
type Outcome uint8

// The outcomes, in the order in which they are told.
const (
	Answered   Outcome = iota // a record of one of the types at least
	Timeout                   // no server replied in time, at no attempt
	Servfail                  // the last reply was SERVFAIL
	Refused                   // it was REFUSED, or there is nobody at the server's port
	NXDomain                  // the name does not exist
	NoData                    // it exists, and has none of the types
	Other                     // any other reply, or the query could not be sent
	Unfinished                // it was cut off
	outcomes

	// unreachable is Refused where no server is there at all, which ends a
	// lookup at once.
	unreachable
)

// A question is a query whose identifier is still to be set. It is shared by
// all slots, and not written to.
type question struct {
	wire []byte
	end  int // of the question section
}

// A slot does one lookup after the other. All but interrupt is for one goroutine.
type slot struct {
	*Bench
	rand *rand.Rand
	turn int // of the host
	next int // with Rotate, the server to begin with
	in   []byte
	out  []byte
	sent []pending

	// Of the lookup under way.
	tally
	order Order // not less careful than Resolver.Order

	mu    sync.Mutex
	conns []*conn // by server; the last is for a truncated reply; nil: none is open
}

// pending is a query of the exchange under way.
type pending struct {
	id      uint16
	replied bool
	rcode   int
	answers uint16
}

// tally is what one lookup cost.
type tally struct {
	queries, lost, overTCP uint64
	trouble                error // the last, of those with the outcome Other
}

// run looks names up until end, and once in any case.
func (s *slot) run(ctx context.Context, end time.Time) {
	for begin := time.Now(); ctx.Err() == nil; s.turn++ {
		h := &s.hosts[s.turn%len(s.hosts)]
		s.tally, s.order = tally{}, s.cfg.Resolver.Order
		o := walk(len(h.questions), h.asIs, func(i int) Outcome { return s.ask(ctx, h.questions[i]) })
		now := time.Now()
		s.record(o, now.Sub(begin), s.tally)
		if !now.Before(end) {
			return
		}
		begin = now
	}
}

// ask asks one server after the other, as often as there are attempts, until one
// has a usable reply.
func (s *slot) ask(ctx context.Context, qs []question) Outcome {
	r := &s.cfg.Resolver
	first := 0
	if r.Rotate {
		first = s.next
		s.next++
	}
	result := unreachable
	for range r.Attempts {
		for i := range r.Servers {
			i = (i + first) % len(r.Servers)
			o, usable := s.exchange(ctx, s.network(), i, qs)
			if usable || o == Unfinished {
				return o
			}
			// glibc judges by what the last reply was, if there was one, else by
			// whether it had to wait.
			if rank(o) >= rank(result) {
				result = o
			}
		}
	}
	return result
}

func rank(o Outcome) int {
	switch o {
	case unreachable:
		return 0
	case Timeout:
		return 1
	}
	return 2
}

// inSize has room for the header and the question of any reply; what comes after
// them is not looked at.
const inSize = 1024

// exchange asks one server and waits for the replies to all of qs. A usable
// outcome is an end to asking servers; all others have the next one asked.
func (s *slot) exchange(ctx context.Context, network string, server int, qs []question) (o Outcome, usable bool) {
	r := &s.cfg.Resolver
	deadline := time.Now().Add(r.wait(server))
	for {
		kept := s.conns[s.place(network, server)] != nil
		err := s.try(ctx, network, server, qs, deadline)
		o, usable := judge(s.sent)
		switch {
		case ctx.Err() != nil:
			return Unfinished, false
		case errors.Is(err, errTruncated):
			s.overTCP++
			return s.exchange(ctx, "tcp", server, qs)
		case err == nil:
			if s.cfg.Fresh || network != s.network() {
				s.drop(network, server)
			}
			if o == Other {
				s.trouble = strange(s.sent)
			}
			return o, usable
		}
		s.drop(network, server)
		switch late := errors.Is(err, os.ErrDeadlineExceeded); {
		case kept && network == "tcp" && !late:
			continue // a server may close a connection that it has kept for long
		case late && usable && network == "udp":
			if s.order == Apart {
				return o, usable
			}
			// Some servers and firewalls do not bear two queries at once: glibc
			// asks anew, more and more carefully, and then makes do with what it has.
			s.order++
			deadline = time.Now().Add(r.wait(server))
			continue
		case late:
			return Timeout, false
		case errors.Is(err, syscall.ECONNREFUSED):
			return unreachable, false
		}
		s.trouble = err
		return Other, false
	}
}

var errTruncated = errors.New("truncated")

// try is exchange on one connection, or on one for each of qs. Without an error
// all replies are in sent; with one those that came.
func (s *slot) try(ctx context.Context, network string, server int, qs []question, deadline time.Time) error {
	s.sent = s.sent[:0]
	for len(s.sent) < len(qs) {
		now := qs[len(s.sent):]
		if s.order != Together {
			now = now[:1]
		}
		if s.order == Apart && len(s.sent) > 0 && network == "udp" {
			s.drop(network, server)
		}
		c, err := s.open(ctx, network, server, deadline)
		if err != nil {
			return err
		}
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
		// interrupt sets the deadline after ctx has ended: here, or from now on.
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.send(c, now); err != nil {
			return err
		}
		for left := len(now); left > 0; left-- {
			if err := s.await(c, qs); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
					s.lost += uint64(left)
				}
				return err
			}
		}
	}
	return nil
}

// await reads until there is a reply to one of qs.
func (s *slot) await(c *conn, qs []question) error {
	for {
		m, err := c.receive(s.in)
		if err != nil {
			return err
		}
		i := s.match(m, qs)
		if i < 0 {
			continue // to an earlier query, or from somebody else
		}
		p := &s.sent[i]
		bits := binary.BigEndian.Uint16(m[2:])
		p.replied, p.rcode, p.answers = true, int(bits&rcodeMask), binary.BigEndian.Uint16(m[6:])
		additional := binary.BigEndian.Uint16(m[10:])
		switch {
		case c.stream():
		case p.rcode == dns.RcodeSuccess && p.answers == 0 && bits&(authoritative|recursive) == 0 && additional == 0:
			p.rcode = lame
		case bits&truncated != 0 && !passedOver(p.rcode):
			return errTruncated
		}
		return nil
	}
}

// The header of a message, RFC 1035, section 4.1.1.
const (
	headerSize = 12

	response      = 1 << 15
	authoritative = 1 << 10
	truncated     = 1 << 9
	recursive     = 1 << 7
	rcodeMask     = 0xf

	// lame stands for the RCODE of an empty reply from a server that neither
	// knows the name nor asks others; glibc does not take it for no data.
	lame = rcodeMask + 1
)

// send sends all of qs at once, each with an identifier of its own.
func (s *slot) send(c *conn, qs []question) error {
	s.out = s.out[:0]
	for i, q := range qs {
		id := uint16(s.rand.Uint32())
		for slices.ContainsFunc(s.sent, func(p pending) bool { return p.id == id }) {
			id++
		}
		s.sent = append(s.sent, pending{id: id})
		if c.stream() {
			s.out = binary.BigEndian.AppendUint16(s.out, uint16(len(q.wire)))
		} else {
			s.out = s.out[:0]
		}
		s.out = binary.BigEndian.AppendUint16(s.out, id)
		s.out = append(s.out, q.wire[2:]...)
		s.queries++
		if c.stream() && i < len(qs)-1 {
			continue // all in one segment
		}
		if _, err := c.Write(s.out); err != nil {
			return err
		}
	}
	return nil
}

// match is which of qs m is the first reply to, or -1.
func (s *slot) match(m []byte, qs []question) int {
	if len(m) < headerSize || binary.BigEndian.Uint16(m[2:])&response == 0 || binary.BigEndian.Uint16(m[4:]) != 1 {
		return -1
	}
	id := binary.BigEndian.Uint16(m)
	for i, p := range s.sent {
		q := qs[i].wire[headerSize:qs[i].end]
		if p.id == id && !p.replied && len(m) >= qs[i].end && bytes.EqualFold(m[headerSize:qs[i].end], q) {
			return i
		}
	}
	return -1
}

// judge says what the replies to one name are, and whether any of them is
// usable.
func judge(all []pending) (o Outcome, usable bool) {
	for _, p := range all {
		if !p.replied {
			continue
		}
		if p.rcode == dns.RcodeSuccess && p.answers > 0 {
			return Answered, true
		}
		usable = usable || !passedOver(p.rcode)
	}
	o = NoData
	for _, p := range all {
		switch {
		case !p.replied, p.rcode == dns.RcodeSuccess, usable && passedOver(p.rcode):
		case p.rcode == dns.RcodeNameError:
			return NXDomain, usable
		case p.rcode == dns.RcodeServerFailure:
			o = Servfail
		case p.rcode == dns.RcodeRefused:
			o = Refused
		default:
			o = Other
		}
	}
	return o, usable
}

// passedOver says whether glibc takes a reply for that of a server that cannot
// answer, and asks the next one.
func passedOver(rcode int) bool {
	return rcode == dns.RcodeServerFailure || rcode == dns.RcodeNotImplemented || rcode == dns.RcodeRefused || rcode == lame
}

// strange is an error for the reply that made an outcome Other.
func strange(all []pending) error {
	for _, p := range all {
		switch p.rcode {
		case dns.RcodeSuccess, dns.RcodeNameError, dns.RcodeServerFailure, dns.RcodeRefused:
		case lame:
			return errors.New("an empty reply from a server that asks no others")
		default:
			return fmt.Errorf("the reply %s", dns.RcodeToString[p.rcode])
		}
	}
	return nil
}

// A conn is a socket connected to a server.
type conn struct {
	net.Conn
	r *bufio.Reader // of a stream; nil for datagrams
}

func (c *conn) stream() bool { return c.r != nil }

// receive is the next message, as much of it as buf has room for.
func (c *conn) receive(buf []byte) ([]byte, error) {
	if !c.stream() {
		n, err := c.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(c.r, buf[:2]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(buf))
	m := buf[:min(size, len(buf))]
	if _, err := io.ReadFull(c.r, m); err != nil {
		return nil, err
	}
	_, err := c.r.Discard(size - len(m))
	return m, err
}

// place is where the connection for a server is kept.
func (s *slot) place(network string, server int) int {
	if network != s.network() {
		return len(s.conns) - 1
	}
	return server
}

// open is the connection to a server, made if there is none.
func (s *slot) open(ctx context.Context, network string, server int, deadline time.Time) (*conn, error) {
	at := s.place(network, server)
	if c := s.conns[at]; c != nil {
		return c, nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	nc, err := s.cfg.Dial(ctx, network, s.cfg.Resolver.Servers[server])
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = os.ErrDeadlineExceeded
		}
		return nil, err
	}
	c := &conn{Conn: nc}
	if network == "tcp" {
		c.r = bufio.NewReaderSize(nc, inSize)
	}
	s.mu.Lock()
	s.conns[at] = c
	s.mu.Unlock()
	return c, nil
}

func (s *slot) drop(network string, server int) {
	at := s.place(network, server)
	s.mu.Lock()
	c := s.conns[at]
	s.conns[at] = nil
	s.mu.Unlock()
	if c != nil {
		_ = c.Close()
	}
}

// interrupt ends what the slot waits for. It is for any goroutine.
func (s *slot) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if c != nil {
			_ = c.SetDeadline(time.Unix(1, 0))
		}
	}
}

func (s *slot) close() {
	for _, c := range s.conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

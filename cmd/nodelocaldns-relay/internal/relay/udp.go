package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"nodelocaldns/dnscache/wire"
)

const (
	// maxQuery is the longest query that is read: a question is at most 271
	// bytes, the rest is room for the options of any client.
	maxQuery = 4096
	// maxReply is the longest reply that is passed on over UDP. Of a longer one
	// the client gets as much as makes it ask over TCP.
	maxReply = 4096
	// maxWaiting bounds the queries that wait for kube-dns over UDP. While it is
	// silent that many find place in a budget; those above get SERVFAIL at once,
	// which is what those that wait will get.
	maxWaiting = 1000

	// portsPerServer is how many source ports are shared at a time. Two would be
	// enough for RFC 5452; with sixteen a forger has to guess four bits more.
	portsPerServer = 16
	// portLife is how long a source port takes queries: long enough that the
	// connection table has few of them, short enough that a kube-dns pod that
	// went away costs few queries their first try.
	portLife = time.Second
)

// A waiter is a query of a UDP client that was passed on.
type waiter struct {
	msg     []byte // as the client sent it
	socket  PacketConn
	client  netip.AddrPort
	began   time.Time
	servers *servers
	order   order
	probe   bool

	// Guarded by Relay.mu.
	timer  *time.Timer // the second try, then the end of the budget
	tried  int
	second bool // the timer has fired once
	done   bool
	awaits []await // where a reply may come to
}

// An await is a query at one port.
type await struct {
	port    *port
	id      uint16
	at      int  // index of the server
	refused bool // no reply is to be expected; one that comes counts all the same
}

// waits says whether a reply to w is to be expected. Relay.mu is held.
func (w *waiter) waits() bool {
	return slices.ContainsFunc(w.awaits, func(a await) bool { return !a.refused })
}

// A port is one source port at which one server is asked.
type port struct {
	conn  net.Conn
	until time.Time // no queries from then on

	// Guarded by Relay.mu.
	waiters map[uint16]*waiter // by the id that the server was sent
	lost    bool
}

// readPackets reads queries until the socket's read deadline, which is set for
// the end alone.
func (r *Relay) readPackets(s PacketConn) {
	in, out := make([]byte, maxQuery), make([]byte, 0, wire.MinUDP)
	failing := false
	for {
		n, from, err := s.ReadFromUDPAddrPort(in)
		if err != nil {
			if over(err) {
				return
			}
			if !failing {
				r.deps.Log.Warn("reading queries: trying again", "address", s.LocalAddr(), "error", err)
			}
			failing = true
			r.pause()
			continue
		}
		failing = false
		if reply := r.packet(s, from, in[:n], out); reply != nil {
			// A client that cannot be reached any more is none of our errors.
			_, _ = s.WriteToUDPAddrPort(reply, from)
		}
	}
}

// packet passes pkt on, or returns what is to be said of it at once, in out's
// memory.
func (r *Relay) packet(s PacketConn, from netip.AddrPort, pkt, out []byte) []byte {
	var q wire.Query
	switch verdict := wire.ParseQuery(pkt, &q); verdict {
	case wire.Answer:
	case wire.Drop:
		return nil
	default:
		return wire.AppendError(out, &q, verdict.RCode(), wire.EDENone)
	}
	r.queries[udp].Add(1)
	asked, now := r.servers.Load(), time.Now()
	if len(asked.all) == 0 {
		return r.appendServFail(out, pkt, wire.EDENoReachable)
	}
	r.mu.Lock()
	if r.waiting >= maxWaiting {
		r.mu.Unlock()
		return r.appendServFail(out, pkt, wire.EDENotReady)
	}
	order, pass, probe := asked.pass(udp, now)
	if !pass {
		r.mu.Unlock()
		r.health.silence(now, now, asked)
		return r.appendServFail(out, pkt, wire.EDENetworkError)
	}
	w := &waiter{
		msg: bytes.Clone(pkt), socket: s, client: from, began: now,
		servers: asked, order: order, probe: probe,
	}
	r.waiting++
	r.inFlight.Add(1)
	w.timer = time.AfterFunc(patience, func() { r.overdue(w) })
	r.mu.Unlock()
	r.try(w)
	return nil
}

// overdue makes the second try, or ends the waiting.
func (r *Relay) overdue(w *waiter) {
	r.mu.Lock()
	switch {
	case w.done:
		r.mu.Unlock()
	case w.second:
		r.giveUp(w)
		r.mu.Unlock()
		r.fail(w)
	default:
		w.second = true
		w.timer.Reset(Budget - patience)
		for _, a := range w.awaits {
			w.servers.failed(udp, a.at)
		}
		r.mu.Unlock()
		r.try(w)
	}
}

// buffers are for queries with an id of ours.
var buffers = sync.Pool{New: func() any { return new([maxQuery]byte) }}

// try passes w on to its next server. Where none is left and no reply is to be
// expected, it ends the waiting. No lock is held.
func (r *Relay) try(w *waiter) {
	for {
		r.mu.Lock()
		if w.done {
			r.mu.Unlock()
			return
		}
		if w.tried >= w.servers.tries() {
			if w.waits() {
				r.mu.Unlock()
				return
			}
			r.giveUp(w)
			r.mu.Unlock()
			r.fail(w)
			return
		}
		at := w.order.at(w.tried, len(w.servers.all))
		s := w.servers.all[at]
		w.tried++
		random := r.deps.Random()
		p, slot := s.pick(w, random>>16)
		if p == nil {
			r.mu.Unlock()
			conn, err := r.deps.Dial(s.addr)
			r.mu.Lock()
			if err != nil {
				w.servers.failed(udp, at)
				s.standings[udp].refusal(w.began, time.Now())
				r.mu.Unlock()
				continue
			}
			p = r.open(s, slot, conn)
		}
		if w.done { // its time was up meanwhile
			r.mu.Unlock()
			return
		}
		id := p.admit(w, uint16(random), r.deps.Random)
		w.awaits = append(w.awaits, await{port: p, id: id, at: at})
		r.mu.Unlock()

		before, err := p.send(w.msg, id)
		if before {
			r.refused(p, w)
		}
		if err != nil {
			r.lose(p) // and w with it goes to its next server
		}
		return
	}
}

// send sends msg with another id. before says that a query was refused that was
// sent before: the kernel tells whoever comes next, and does not send that.
func (p *port) send(msg []byte, id uint16) (before bool, err error) {
	buf := buffers.Get().(*[maxQuery]byte)
	defer buffers.Put(buf)
	n := copy(buf[:], msg)
	binary.BigEndian.PutUint16(buf[:], id)
	_, err = p.conn.Write(buf[:n])
	if before = errors.Is(err, syscall.ECONNREFUSED); before {
		_, err = p.conn.Write(buf[:n])
	}
	return before, err
}

// pick chooses one of s's ports at random, and not one that w waits at. Where
// one has to be made for that, it is nil, and slot says in whose place.
func (s *server) pick(w *waiter, random uint32) (p *port, slot int) {
	slot = int(random % portsPerServer)
	for _, a := range w.awaits {
		if s.ports[slot] == a.port {
			slot = (slot + 1) % portsPerServer
		}
	}
	p = s.ports[slot]
	if p == nil || p.lost || !time.Now().Before(p.until) {
		return nil, slot
	}
	return p, slot
}

// open makes conn one of s's ports. r.mu is held.
func (r *Relay) open(s *server, slot int, conn net.Conn) *port {
	now := time.Now()
	p := &port{conn: conn, until: now.Add(portLife), waiters: map[uint16]*waiter{}}
	s.ports[slot] = p
	// Whoever comes last has got its SERVFAIL by then.
	_ = conn.SetReadDeadline(p.until.Add(Budget))
	r.ports.Add(1)
	go r.readReplies(s, p)
	return p
}

// admit gives w an id of its own at p: id, if nobody has that. Relay.mu is held.
func (p *port) admit(w *waiter, id uint16, random func() uint32) uint16 {
	for p.waiters[id] != nil {
		id = uint16(random())
	}
	p.waiters[id] = w
	return id
}

// readReplies reads what comes to p until its time is up.
func (r *Relay) readReplies(s *server, p *port) {
	defer r.ports.Done()
	defer p.conn.Close()
	stop := context.AfterFunc(r.work, func() { _ = p.conn.SetReadDeadline(longAgo) })
	defer stop()
	buf := make([]byte, maxReply+1)
	for {
		n, err := p.conn.Read(buf)
		switch {
		case err == nil:
			r.reply(s, p, buf[:n])
		case errors.Is(err, syscall.ECONNREFUSED):
			r.refused(p, nil)
		default:
			r.lose(p)
			return
		}
	}
}

// refused sends all who wait at p to their next server, but for one who has not
// been sent there yet. The kernel does not tell whose query it was that the server
// refused, and tells late: p is as good as before, and who waits there may be
// answered yet.
func (r *Relay) refused(p *port, but *waiter) {
	var all []*waiter
	r.mu.Lock()
	for _, w := range p.waiters {
		for i := range w.awaits {
			if a := &w.awaits[i]; a.port == p && !a.refused && w != but {
				a.refused = true
				w.servers.failed(udp, a.at)
				all = append(all, w)
			}
		}
	}
	r.mu.Unlock()
	for _, w := range all {
		r.try(w)
	}
}

// lose ends a port that cannot be used, or whose time is up.
func (r *Relay) lose(p *port) {
	r.mu.Lock()
	p.lost = true
	r.mu.Unlock()
	_ = p.conn.SetReadDeadline(longAgo) // its reader ends
	r.refused(p, nil)
}

// reply gives what came to p to who waits for it. What nobody waits for, and
// what answers another question, is dropped.
func (r *Relay) reply(s *server, p *port, reply []byte) {
	if len(reply) < wire.HeaderLen {
		return
	}
	r.mu.Lock()
	w := p.waiters[binary.BigEndian.Uint16(reply)]
	if w == nil {
		r.mu.Unlock()
		return
	}
	copy(reply, w.msg[:2])
	if wire.CheckReply(w.msg, reply) != nil {
		r.mu.Unlock()
		return
	}
	now := time.Now()
	for _, a := range w.awaits {
		if a.port == p {
			w.servers.answered(udp, a.at, now)
		}
	}
	r.finish(w)
	r.mu.Unlock()
	_, _ = w.socket.WriteToUDPAddrPort(fitting(w.msg, reply, len(reply) > maxReply), w.client)
	r.health.reply(now, s.addr)
	r.inFlight.Done()
}

// finish lets w wait no more: whoever calls it answers. r.mu is held.
func (r *Relay) finish(w *waiter) {
	w.done = true
	w.timer.Stop()
	for _, a := range w.awaits {
		delete(a.port.waiters, a.id)
	}
	if w.probe {
		w.servers.over(udp)
	}
	r.waiting--
}

// giveUp finishes a w that nobody answered, and remembers who did not. r.mu is
// held; whoever calls it calls fail next.
func (r *Relay) giveUp(w *waiter) {
	r.finish(w)
	now := time.Now()
	for _, a := range w.awaits {
		st := &w.servers.all[a.at].standings[udp]
		if a.refused {
			st.refusal(w.began, now)
		} else {
			st.silence(w.msg, w.began, now)
		}
	}
	w.servers.gaveUp(udp, w.began)
}

// fail answers a w that nobody answered.
func (r *Relay) fail(w *waiter) {
	_, _ = w.socket.WriteToUDPAddrPort(r.appendServFail(nil, w.msg, wire.EDENetworkError), w.client)
	r.health.silence(w.began, time.Now(), w.servers)
	r.inFlight.Done()
}

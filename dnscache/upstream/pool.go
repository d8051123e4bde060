package upstream

import (
	"container/list"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"nodelocaldns/dnscache/wire"
)

// Limits of the connections to one server.
const (
	// maxConns bounds the connections to one server, those being made among them,
	// and with one question in flight on each, the questions. More wait for
	// their turn, for which whoever has waited for a reply for longer than
	// giveUpAfter makes room: clients have heard SERVFAIL by then.
	maxConns    = 512
	giveUpAfter = 900 * time.Millisecond
	// maxInFlight bounds the questions on a connection to a server that replies
	// out of order. CoreDNS's and unbound's own bounds are above it, and with
	// it a connection that falls silent takes few with it.
	maxInFlight = 16
	// spread is how many connections a server that has something to do is
	// asked over in turn, so that the replicas behind one ClusterIP share what one
	// node asks; there is one more for every growAfter questions on each of them.
	spread    = 4
	growAfter = 32
	// idleLimit is below the 8 s (miekg/dns) and 10 s (CoreDNS) after which
	// kube-dns closes an idle connection, so that we seldom meet a closed one.
	idleLimit = 5 * time.Second
	// ageLimit lets the replicas behind one ClusterIP share the load anew:
	// a connection stays with the replica that it was made to. From 60 to 90 % of
	// it on, by chance so that nodes that were started together do not all come
	// back together, a connection is used only until its successor is there.
	ageLimit = 30 * time.Second
	// owedLimit is how long a reply that nobody waits for any more is waited for:
	// then the connection can be used again. It is longer than Linux takes to send
	// a lost segment for the second time.
	owedLimit = time.Second
	// maxTogether bounds the questions that share a connection to a server that replies in
	// turn, of those that came together, if there are more than spread of them: of so
	// many that one read brings, a write each costs more than all else. They share one
	// only if all are answered within quickReplies, as it looks, and not for hangsFor
	// after a reply was out for longer than hangsAfter, which is looked for once in
	// hangsEvery: who waits behind such a one must be asked for elsewhere, and a few
	// names that hang would use up what pays for that.
	maxTogether  = 8
	quickReplies = minDelay / 2
	hangsAfter   = 50 * time.Millisecond
	hangsFor     = time.Second
	hangsEvery   = 5 * time.Millisecond
	// quiet is how long a server that replies out of order may take to a question
	// before its connection is passed over.
	quiet = 100 * time.Millisecond
	// writeLimit is for servers that do not read.
	writeLimit = 500 * time.Millisecond
	// housekeeping is how often connections are looked at that nobody uses.
	housekeeping = time.Second
)

// How connections are made. One of two SYNs may go to an endpoint that is
// gone, and Linux sends the next one, to the same endpoint, after a second.
const (
	// dialLimit is for a connection that somebody waits for.
	dialLimit = time.Second
	// firstPace is how long the first connection is waited for before another one is
	// made beside it; later it is twice what the last one took, within minPace and
	// maxPace. That ends with a connection, or with maxExtra of them beside those
	// that are needed: 1 in 500 that all go to the wrong one of two endpoints.
	firstPace    = 25 * time.Millisecond
	firstTLSPace = 100 * time.Millisecond // three round trips and two signatures
	minPace      = 10 * time.Millisecond
	maxPace      = 250 * time.Millisecond
	maxExtra     = 8
	// spareLimit is for a connection that nobody waits for, in paces.
	spareLimit = 8
)

// When it is tried out whether a server replies out of order: see the package
// comment.
const (
	copyEvery      = 10 * time.Second // the first; twice as long after each reply in turn,
	copySeldom     = 10 * time.Minute // to this
	copyLate       = 20 * time.Millisecond
	outOfOrderFor  = 10 * time.Minute
	copyLooksEvery = 10 * time.Millisecond
)

// A Pool asks a server over TCP or TLS. It holds no connection before the first
// question. A question takes a connection that has nothing in flight, or waits
// for the first that has nothing any more, a new one that is made for it at once
// among them. A server that was seen to reply out of order is asked several
// questions at once on a connection.
//
// Make one with [NewTCP] or [NewTLS]. Its methods may be called at the same time.
type Pool struct {
	// Keepalive has the server asked how long it keeps an idle connection (RFC
	// 7828). Replies may then have that option. It is set before the first question.
	Keepalive bool

	dial func(ctx context.Context) (net.Conn, error)
	now  func() time.Time

	mu       sync.Mutex
	conns    []*conn   // all that are open
	idle     []*conn   // of these, with nothing in flight; the one used last at the end
	waiting  list.List // of *call
	dialling int
	making   context.Context // ends when nobody has use for a connection any more
	unmake   context.CancelFunc
	picks    int // questions since there was a connection more or less
	pace     time.Duration
	pacer    *time.Timer // makes another connection while somebody waits
	pacing   bool
	keeper   *time.Timer // housekeeping
	keeping  bool
	lastUsed time.Time     // when the last reply came
	took     time.Duration // for a reply, smoothed, but for what it waited behind others; 0: there was none
	hung     time.Time     // when a question was last seen to hang
	looked   time.Time     // when that was last looked for
	evicted  time.Time     // when connections were last looked through for room
	closed   bool

	outOfOrder time.Time // when a reply last came that others had overtaken
	nextCopy   time.Time
	copyPause  time.Duration
}

// NewTCP returns an exchanger that asks server over TCP; now tells the time.
func NewTCP(server netip.AddrPort, now func() time.Time) *Pool {
	address := server.String()
	return newPool(now, firstPace, func(ctx context.Context) (net.Conn, error) {
		// Connections do not live long enough for the kernel's keepalive.
		d := net.Dialer{KeepAlive: -1}
		return d.DialContext(ctx, "tcp", address)
	})
}

func newPool(now func() time.Time, pace time.Duration, dial func(context.Context) (net.Conn, error)) *Pool {
	return &Pool{now: now, dial: dial, pace: pace, copyPause: copyEvery}
}

// Exchange implements [Exchanger]. A connection that the server closed while
// it was idle costs a new one, not the question.
func (p *Pool) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w := waiter{buf: buf, done: make(chan error, 1)}
	q := &call{frame: append([]byte{0, 0}, query...), to: &w}
	p.start(q, nil)
	select {
	case err := <-w.done:
		return w.reply, err
	case <-ctx.Done():
		if p.giveUp(q) {
			return nil, context.Cause(ctx)
		}
		err := <-w.done
		return w.reply, err
	}
}

// A waiter waits for the reply to a call.
type waiter struct {
	buf, reply []byte
	done       chan error
}

func (w *waiter) replied(reply []byte, err error, _ *Round) {
	if err == nil {
		w.reply = append(w.buf, reply...)
	}
	w.done <- err
}

// start has q asked, whose frame has the query behind two bytes for its length, unless
// it was given up before. Where together is not nil it may go out only with its Send.
func (p *Pool) start(q *call, together *Together) {
	if p.Keepalive {
		q.frame = append(q.frame[:2], appendKeepalive(q.frame[2:])...)
	}
	binary.BigEndian.PutUint16(q.frame, uint16(len(q.frame)-2))
	p.mu.Lock()
	if q.over {
		p.mu.Unlock()
		return
	}
	now := p.now()
	c := p.share(together, now)
	if c == nil {
		c = p.submit(q)
	} else if !c.push(q, now) {
		c = nil
	}
	p.mu.Unlock()
	if c != nil {
		together.send(c)
	}
}

// share is the connection that a question shares with others that came together with
// it, nil for none. p.mu is held.
func (p *Pool) share(together *Together, now time.Time) (best *conn) {
	if together == nil || len(together.conns) < spread || p.took == 0 || p.hangs(now) {
		return nil
	}
	most := min(maxTogether, int(quickReplies/p.took)) // on one connection
	own := 0
	for _, c := range together.conns {
		if c.pool != p || c.closed {
			continue
		}
		own++
		if len(c.out) > 0 && len(c.pending) < most && (best == nil || len(c.pending) < len(best.pending)) {
			best = c
		}
	}
	if own < spread {
		return nil
	}
	return best
}

// hangs reports whether a question has hung lately. p.mu is held.
func (p *Pool) hangs(now time.Time) bool {
	if now.Sub(p.looked) >= hangsEvery {
		p.looked = now
		if slices.ContainsFunc(p.conns, func(c *conn) bool { return len(c.pending) > 0 && now.Sub(c.pending[0].sent) >= hangsAfter }) {
			p.hung = now
		}
	}
	return now.Sub(p.hung) < hangsFor
}

// submit puts q in flight, or has it wait. It returns a connection to be flushed,
// if any. p.mu is held.
func (p *Pool) submit(q *call) *conn {
	now := p.now()
	p.tryCopy(q, now)
	if c := p.pick(now, q.again); c != nil {
		if q.again && now.Sub(p.lastUsed) >= minDelay && p.dialling == 0 {
			p.make(nil, true)
		}
		if c.push(q, now) {
			return c
		}
		return nil
	}
	q.sent = now
	q.waits = p.waiting.PushBack(q)
	p.makeRoom(now)
	if p.dialling < p.needed(now) {
		p.make(nil, false)
	}
	p.keepPace()
	return nil
}

// needed is how many connections those that wait have use for. p.mu is held.
func (p *Pool) needed(now time.Time) int {
	if p.pipelines(now) {
		return (p.waiting.Len() + maxInFlight - 1) / maxInFlight
	}
	return p.waiting.Len()
}

// pick takes a connection that has room for a question: one of those with nothing
// in flight in turn, or, again, the one that was answered on last. p.mu is held.
func (p *Pool) pick(now time.Time, again bool) *conn {
	for len(p.idle) > 0 {
		i := max(0, len(p.idle)-spread)
		if again {
			i = len(p.idle) - 1
		}
		c := p.idle[i]
		p.idle = slices.Delete(p.idle, i, i+1)
		if c.spent(now) {
			p.drop(c)
			continue
		}
		p.picks++
		switch {
		case !now.Before(c.renewAt) && !c.succeeds:
			c.succeeds = p.make(c, true)
		case p.picks > growAfter*len(p.conns) && len(p.conns)+p.dialling < spread:
			p.make(nil, true)
		}
		return c
	}
	if !p.pipelines(now) {
		return nil
	}
	var best *conn
	for _, c := range p.conns {
		if len(c.pending) < maxInFlight && (best == nil || len(c.pending) < len(best.pending)) && !c.spent(now) && !c.silent(now) {
			best = c
		}
	}
	if best != nil && len(p.conns)+p.dialling < spread {
		p.make(nil, true)
	}
	return best
}

// pipelines reports whether the server was seen to reply out of order.
func (p *Pool) pipelines(now time.Time) bool {
	return now.Sub(p.outOfOrder) < outOfOrderFor
}

// tryCopy now and then sends a copy of q behind a query whose reply is late, to
// see which one is answered first. p.mu is held.
func (p *Pool) tryCopy(q *call, now time.Time) {
	if now.Before(p.nextCopy) || p.pipelines(now) {
		return
	}
	p.nextCopy = now.Add(copyLooksEvery)
	for _, c := range p.conns {
		if len(c.pending) == 1 && now.Sub(c.pending[0].sent) >= copyLate && !c.spent(now) {
			p.nextCopy = now.Add(p.copyPause)
			p.copyPause = min(2*p.copyPause, copySeldom)
			if c.push(&call{frame: slices.Clone(q.frame)}, now) {
				go c.flush()
			}
			return
		}
	}
}

// giveUp ends the wait for q; false if it has been answered.
func (p *Pool) giveUp(q *call) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.over {
		return false
	}
	q.over = true
	if q.conn == nil {
		if q.waits != nil { // else it has not been submitted
			p.waiting.Remove(q.waits)
			p.stopMaking()
		}
		return true
	}
	// The connection owes us a reply. It comes soon, as a rule.
	if c := q.conn; !slices.ContainsFunc(c.pending, (*call).awaited) {
		c.owing = p.now()
		if p.closed {
			p.drop(c)
		}
	}
	return true
}

// got gives reply to whom it is for; false where it is nobody's, and c closed.
func (p *Pool) got(c *conn, reply []byte, round *Round) bool {
	p.mu.Lock()
	if c.closed {
		p.mu.Unlock()
		return false
	}
	i := -1
	if len(reply) >= wire.HeaderLen {
		id := binary.BigEndian.Uint16(reply)
		i = slices.IndexFunc(c.pending, func(q *call) bool { return q.id() == id })
	}
	if i < 0 {
		fault := wire.OtherID
		if len(reply) < wire.HeaderLen {
			fault = wire.NotAReply
		}
		p.lose(c, fault, false)
		p.mu.Unlock()
		return false
	}
	q := c.pending[i]
	if err := wire.CheckReply(q.frame[2:], reply); err != nil {
		p.lose(c, err, false)
		p.mu.Unlock()
		return false
	}
	now := p.now()
	c.pending = slices.Delete(c.pending, i, i+1)
	c.replies++
	since := q.sent
	if c.lastUsed.After(since) {
		since = c.lastUsed
	}
	c.lastUsed, p.lastUsed = now, now
	if took := max(now.Sub(since), 1); p.took == 0 {
		p.took = took
	} else {
		p.took += (took - p.took) / smoothing
	}
	if q.overtaken {
		p.outOfOrder, p.copyPause = now, copyEvery
	}
	for _, older := range c.pending[:i] {
		older.overtaken = true // if it is answered at all
	}
	if p.Keepalive {
		if idle, ok := keepalive(reply); ok {
			// Its own clock runs from when it sent the reply. 0 asks to close at once.
			c.idleFor = min(idle*3/4, ageLimit)
		}
	}
	awaited := q.awaited()
	q.over = true
	if len(c.pending) > 0 && c.owing.IsZero() && !slices.ContainsFunc(c.pending, (*call).awaited) {
		c.owing = now
	}
	flush := p.release(c, now)
	open := !c.closed
	p.mu.Unlock()
	if flush {
		c.send()
	}
	if awaited {
		q.to.replied(reply, nil, round)
	}
	return open
}

// release gives c, which has room, to those that wait, or puts it with the idle.
// p.mu is held.
func (p *Pool) release(c *conn, now time.Time) (flush bool) {
	room := 1
	if p.pipelines(now) {
		room = maxInFlight
	}
	for len(c.pending) < room && p.waiting.Len() > 0 && !c.spent(now) {
		flush = c.push(p.waiting.Remove(p.waiting.Front()).(*call), now) || flush
		p.stopMaking()
	}
	if len(c.pending) > 0 {
		return flush
	}
	if p.closed || c.spent(now) {
		p.drop(c)
		return flush
	}
	c.owing = time.Time{}
	p.idle = append(p.idle, c)
	return flush
}

// ended notes that c can be read no more.
func (p *Pool) ended(c *conn, err error, unused bool) {
	p.mu.Lock()
	p.lose(c, err, unused)
	p.mu.Unlock()
}

// maxLost is how many connections that the server closes may cost a question
// nothing.
const maxLost = 2

// lose closes c because of err. Where no part of a reply was there, and the server
// had replied on c before, those that wait for one take another connection.
// p.mu is held.
func (p *Pool) lose(c *conn, err error, unused bool) {
	if c.closed {
		return
	}
	pending := c.pending
	c.pending = nil
	p.drop(c)
	for _, q := range pending {
		if !q.awaited() {
			continue
		}
		if !unused || c.replies == 0 || q.lost >= maxLost {
			q.fail(err)
			continue
		}
		q.lost++
		q.conn = nil
		if c := p.submit(q); c != nil {
			go c.flush() // whoever lost c is not to wait for another one's server
		}
	}
}

// drop closes c. p.mu is held.
func (p *Pool) drop(c *conn) {
	if c.closed {
		return
	}
	c.closed = true
	go func() { _ = c.Close() }() // which waits for the goroutine that reads, and others for mu
	if i := slices.Index(p.conns, c); i >= 0 {
		p.conns = slices.Delete(p.conns, i, i+1)
	}
	if i := slices.Index(p.idle, c); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	p.picks = 0
	for _, q := range c.pending {
		q.fail(errGivenUp)
	}
	c.pending = nil
	if p.dialling < p.needed(p.now()) {
		p.make(nil, false)
	}
}

// make has a connection made, unless there are too many. It is to succeed old, if
// that is one. spare says that nobody waits for it. p.mu is held.
func (p *Pool) make(old *conn, spare bool) bool {
	if len(p.conns)+p.dialling >= maxConns {
		return false
	}
	p.dialling++
	p.picks = 0
	limit := dialLimit
	if spare {
		limit = min(limit, spareLimit*max(p.pace, firstPace))
	}
	if p.making == nil || p.making.Err() != nil {
		p.making, p.unmake = context.WithCancel(context.Background())
	}
	go p.made(p.making, old, limit)
	return true
}

// made makes a connection, and gives it to whoever waits.
func (p *Pool) made(ctx context.Context, old *conn, limit time.Duration) {
	start := p.now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	nc, err := p.dial(ctx)
	cancel()
	p.mu.Lock()
	p.dialling--
	if old != nil {
		old.succeeds = false
	}
	if err != nil {
		// There is one on the way for each of those who wait, or more: the
		// last of them brings the news, or the first that took its full time.
		now := p.now()
		if e := p.waiting.Front(); e != nil && (p.needed(now) > p.dialling || now.Sub(e.Value.(*call).sent) >= dialLimit) {
			p.waiting.Remove(e).(*call).fail(err)
		}
		p.mu.Unlock()
		return
	}
	now := p.now()
	p.pace = min(max(2*now.Sub(start), minPace), maxPace)
	c := &conn{
		Conn: nc, pool: p, lastUsed: now, idleFor: idleLimit, until: now.Add(ageLimit),
		renewAt: now.Add(ageLimit*6/10 + rand.N(ageLimit*3/10)),
	}
	if tcp, ok := nc.(*net.TCPConn); ok {
		c.raw, _ = tcp.SyscallConn() // its one error is that there is no connection
	}
	p.conns = append(p.conns, c)
	p.keepHouse()
	if old != nil && !old.closed {
		if old.retired = true; len(old.pending) == 0 {
			p.drop(old)
		}
	}
	flush := p.release(c, now)
	closed := c.closed
	p.mu.Unlock()
	if closed {
		return
	}
	if flush {
		c.send()
	}
	c.read()
}

// keepPace sees to it that another connection is made while somebody waits.
// p.mu is held.
func (p *Pool) keepPace() {
	switch {
	case p.pacing:
	case p.pacer == nil:
		p.pacing, p.pacer = true, time.AfterFunc(p.pace, p.another)
	default:
		p.pacing = true
		p.pacer.Reset(p.pace)
	}
}

// another makes one more connection beside those that are being made.
func (p *Pool) another() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pacing = false
	if p.waiting.Len() == 0 {
		return
	}
	now := p.now()
	p.makeRoom(now)
	if p.dialling < p.needed(now)+maxExtra {
		p.make(nil, false)
	}
	p.keepPace()
}

// makeRoom closes connections that owe replies for too long, where there are too
// many. p.mu is held.
func (p *Pool) makeRoom(now time.Time) {
	if len(p.conns)+p.dialling < maxConns || now.Sub(p.evicted) < minPace {
		return
	}
	p.evicted = now
	p.dropIf(func(c *conn) bool {
		return len(c.pending) > 0 && (!c.owing.IsZero() || now.Sub(c.pending[0].sent) >= giveUpAfter)
	})
}

// dropIf closes the connections for which bad says so. p.mu is held.
func (p *Pool) dropIf(bad func(*conn) bool) {
	for _, c := range slices.Clone(p.conns) {
		if bad(c) {
			p.drop(c)
		}
	}
}

// keepHouse starts what closes connections that nobody uses. p.mu is held.
func (p *Pool) keepHouse() {
	switch {
	case p.keeping:
	case p.keeper == nil:
		p.keeping, p.keeper = true, time.AfterFunc(housekeeping, p.tidy)
	default:
		p.keeping = true
		p.keeper.Reset(housekeeping)
	}
}

// tidy closes connections that were idle, or owed a reply, for too long, and comes
// again while there are any.
func (p *Pool) tidy() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.dropIf(func(c *conn) bool {
		return len(c.pending) == 0 && c.spent(now) || !c.owing.IsZero() && now.Sub(c.owing) >= owedLimit
	})
	p.keeping = false
	if len(p.conns) > 0 {
		p.keepHouse()
	}
}

// Renew makes sure that no connection there is now is used for another question.
func (p *Pool) Renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.retired = true
	}
	p.dropIf(func(c *conn) bool { return len(c.pending) == 0 })
}

// repliedSince reports whether a reply has come since t, to whomever.
func (p *Pool) repliedSince(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastUsed.After(t)
}

// Close closes the connections that nobody waits on; the others are closed when
// their questions are answered. Questions that are asked later have a connection of their own.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.dropIf(func(c *conn) bool { return len(c.pending) == 0 || !c.owing.IsZero() })
	p.stopMaking()
	return nil
}

// stopMaking ends the making of connections if p is closed and nobody waits for
// one. p.mu is held.
func (p *Pool) stopMaking() {
	if p.closed && p.waiting.Len() == 0 && p.unmake != nil {
		p.unmake()
	}
}

var _ Exchanger = (*Pool)(nil)

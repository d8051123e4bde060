package upstream

import (
	"context"
	"errors"
	"sync"
	"time"

	"nodelocaldns/dnscache/deadline"
	"nodelocaldns/dnscache/wire"
)

// A Question is one that was asked of a group, and its tries. It has no goroutine:
// whoever brings a reply, or the time, takes it further. The zero value is for
// [Group.Start]; it is part of what it is asked for.
type Question struct {
	group   *Group
	key     []byte
	to      Asker
	servers []*Server
	free    bool // tries cost nothing: a dead group is probed on all its servers

	mu       sync.Mutex
	late     deadline.Deadline // of the next try
	first    try
	more     [tries - 1]*try
	started  int
	running  int
	failures int
	refusals int
	over     bool
	cause    error     // why it is over, for the tries that still run
	refusal  []byte    // a reply that says failure,
	by       *Counters // and whose that is
	err      error     // of the try that failed last

	ctx    context.Context // of the tries that need one, else nil
	cancel context.CancelCauseFunc
}

// A try is one of a question.
type try struct {
	call // of a pool; what is asked is its frame, behind the length

	question *Question
	server   *Server
	nth      int
	begun    time.Time
	beside   bool // made because the one before was late
	ended    bool
	noted    bool // what became of it has been

	bare     bool // without EDNS
	via      Exchanger
	counters *Counters
	asked    time.Time // over that
}

// Stop ends a question that is not over, or not begun: because of cause, if no server
// has given as much as a refusal.
func (q *Question) Stop(cause error) {
	q.mu.Lock()
	if q.over {
		q.mu.Unlock()
		return
	}
	q.over, q.cause = true, cause
	if q.group == nil {
		q.mu.Unlock()
		return
	}
	q.overdue(q.group.Now())
	err := cause
	if q.refusal != nil {
		err = nil
	}
	q.end(q.refusal, q.by, err, nil)
}

// end tells who asked, and ends what still runs. q.over and q.cause are set. q.mu is
// held; it is released.
func (q *Question) end(reply []byte, by *Counters, err error, round *Round) {
	var left []*try
	if q.running > 0 {
		for i := range q.started {
			if t := q.try(i); !t.ended {
				left = append(left, t)
			}
		}
	}
	cancel, cause := q.cancel, q.cause
	q.mu.Unlock()
	q.group.late.Stop(&q.late)
	if cancel != nil {
		cancel(cause)
	}
	for _, t := range left {
		t.giveUp(cause)
	}
	q.to.Answered(reply, by, err, round)
}

// try is the ith.
func (q *Question) try(i int) *try {
	if i == 0 {
		return &q.first
	}
	return q.more[i-1]
}

// wind sets when the next try is made beside the one begun last. q.mu is held.
func (q *Question) wind() {
	d := q.try(q.started - 1).server.latency.wait()
	if q.started >= quickTries {
		d = max(d, patience)
	}
	q.group.late.Set(&q.late, q, d)
}

// server is who is asked by try i.
func (q *Question) server(i int) *Server { return q.servers[i%len(q.servers)] }

// begin begins the next try, which is then to ask. q.mu is held.
func (q *Question) begin(beside bool) *try {
	t := &q.first
	if q.started > 0 {
		t = new(try)
		q.more[q.started-1] = t
	}
	t.question, t.server, t.nth, t.begun, t.beside = q, q.server(q.started), q.started, q.group.Now(), beside
	q.started++
	q.running++
	return t
}

// Due makes the next try beside those that are under way, if there is something left
// to pay it with. It implements deadline.Owner.
func (q *Question) Due(*deadline.Deadline) {
	q.mu.Lock()
	if q.over {
		q.mu.Unlock()
		return
	}
	q.overdue(q.group.Now())
	limit := quickTries
	if q.server(q.started).UDP != nil {
		limit = tries
	}
	var t *try
	if q.started < limit && (q.free || q.group.budget.spend()) {
		t = q.begin(true)
		q.wind()
	} else {
		q.group.late.Set(&q.late, q, patience)
	}
	q.mu.Unlock()
	if t != nil {
		t.ask(nil)
	}
}

// overdue notes what the silence so far tells about the servers. q.mu is held.
func (q *Question) overdue(now time.Time) {
	for i := range q.started {
		if t := q.try(i); !t.noted && now.Sub(t.begun) >= patience {
			if s := t.server; s.silentSince(t.begun) {
				s.unanswered(now, t.begun, q.key, false)
				s.renew()
			}
		}
	}
}

// done notes how a try went, and ends the question or makes the next try.
func (q *Question) done(t *try, reply []byte, by *Counters, err error, round *Round) {
	now, s := q.group.Now(), t.server
	q.mu.Lock()
	q.running--
	t.ended = true
	took := now.Sub(t.begun)
	switch {
	case err == nil:
		s.ok(now)
		if usable(reply) {
			q.group.ok(now)
		}
	case q.over:
		// It did not do well if it was silent towards everybody for longer than
		// patience, or for long enough that another server was asked and answered.
		answered := errors.Is(q.cause, errAnswered)
		if s.silentSince(t.begun) && (took >= patience || len(q.servers) > 1 && answered && took >= s.latency.wait()) {
			s.failed(now)
		}
		q.mu.Unlock()
		return
	default:
		s.failed(now)
		s.unanswered(now, t.begun, q.key, true)
	}
	t.noted = true
	if q.over {
		q.mu.Unlock()
		return
	}
	if err == nil && (usable(reply) || len(q.servers) == 1) {
		if t.beside {
			q.group.budget.worth()
		}
		q.over, q.cause = true, errAnswered
		q.end(reply, by, nil, round)
		return
	}
	q.failures++
	if err != nil {
		q.err = err
	} else {
		// Asking a server that refused once more changes nothing; one that
		// could not be reached is worth another connection.
		q.refusal, q.by = append([]byte(nil), reply...), by
		q.refusals++
	}
	switch {
	case q.failures < failures && q.refusals < len(q.servers) && q.started < tries:
		next := q.begin(false)
		q.wind()
		q.mu.Unlock()
		next.ask(nil)
	case q.running > 0:
		q.mu.Unlock()
	case q.refusal != nil:
		q.over = true
		q.end(q.refusal, q.by, nil, round)
	default:
		q.over = true
		q.end(nil, nil, q.err, round)
	}
}

// ask asks the server: over UDP if it has that, and over TCP if not, or if the
// reply is truncated or its question spelled differently (RandomCase). The third try
// of a question goes over TCP in any case: where every flow takes a path of its own, as
// to the endpoints of a ClusterIP, half of which are gone, a connection that has been
// answered on is worth more than a third guess. A server that does not know EDNS is
// asked without (RFC 6891 6.2.2 and 7).
func (t *try) ask(together *Together) {
	if s := t.server; s.UDP != nil && t.nth != overTCP {
		t.send(s.UDP, s.UDPCounters, together)
	} else {
		t.send(s.TCP, s.TCPCounters, together)
	}
}

// overTCP is the try that goes over TCP, counted from 0.
const overTCP = 2

// send asks over one protocol.
func (t *try) send(e Exchanger, c *Counters, together *Together) {
	q := t.question
	c.Queries.Add(1)
	if t.beside {
		c.Hedges.Add(1)
	}
	q.mu.Lock()
	t.counters, t.asked = c, q.group.Now()
	if q.over { // and who ended it has given up all that was under way
		cause := q.cause
		q.mu.Unlock()
		t.replied(nil, cause, nil)
		return
	}
	t.via = e
	t.call = call{frame: wire.AppendUpstreamQuery(t.room(), 0, q.key, !t.bare), to: t, again: t.nth > 0}
	p, pools := e.(*Pool)
	ctx := q.ctx
	if !pools && ctx == nil {
		ctx, q.cancel = context.WithCancelCause(context.Background())
		q.ctx = ctx
	}
	q.mu.Unlock()
	if pools {
		p.start(&t.call, together)
		return
	}
	query := t.frame[2:]
	go func() {
		reply, err := e.Exchange(ctx, query, nil)
		t.replied(reply, err, nil)
	}()
}

// room is for the frame of a query, behind two bytes for its length.
func (t *try) room() []byte {
	return make([]byte, 2, 2+wire.HeaderLen+len(t.question.key)+4+bareOPT+4)
}

// giveUp ends a try that still runs, if that is not ending by itself.
func (t *try) giveUp(cause error) {
	t.question.mu.Lock()
	p, pools := t.via.(*Pool)
	t.question.mu.Unlock()
	if pools && p.giveUp(&t.call) {
		t.replied(nil, cause, nil)
	}
}

// replied implements receiver.
func (t *try) replied(reply []byte, err error, round *Round) {
	q, s := t.question, t.server
	now := q.group.Now()
	overUDP := t.via == s.UDP
	if err != nil {
		if s.silentSince(t.asked) || !q.answered() {
			t.counters.Errors.Add(1)
			s.failedWith(err, now)
		}
		if overUDP && errors.Is(err, errOtherCase) {
			// Whoever that was: over a connection it is the server.
			t.send(s.TCP, s.TCPCounters, nil)
			return
		}
		q.done(t, nil, nil, err, round)
		return
	}
	took := now.Sub(t.asked)
	t.counters.answered(took)
	s.latency.add(took)
	switch truncated := wire.Flags(reply)&wire.FlagTC != 0; {
	case truncated && overUDP:
		// A server that truncates its reply answers. Were this not noted, those of
		// TCP alone would count, and where that does not get through a few large
		// replies would make the server dead for all other questions, too.
		s.replied(now)
		t.send(s.TCP, s.TCPCounters, nil)
	case truncated:
		q.done(t, nil, nil, errTruncated, round)
	case !t.bare && !knowsEDNS(reply):
		t.bare = true
		t.ask(nil)
	default:
		q.done(t, reply, t.counters, nil, round)
	}
}

// answered reports whether a question is over because it was answered.
func (q *Question) answered() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.cause == errAnswered //nolint:errorlint // it is set here alone
}

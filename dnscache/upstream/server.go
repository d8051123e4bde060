package upstream

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/wire"
)

// Latencies are the upper bounds of the buckets that a server's answered
// questions are counted in.
var Latencies = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond,
	2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, 500 * time.Millisecond, time.Second,
}

// Counters count what a server was asked over one protocol.
type Counters struct {
	Queries atomic.Uint64
	Hedges  atomic.Uint64 // of these, those asked because a reply was late
	Errors  atomic.Uint64 // without a usable reply
	Latency [len(Latencies) + 1]atomic.Uint64
	Sum     atomic.Int64 // nanoseconds, of the answered ones
}

func (c *Counters) answered(d time.Duration) {
	i := 0
	for i < len(Latencies) && d > Latencies[i] {
		i++
	}
	c.Latency[i].Add(1)
	c.Sum.Add(int64(d))
}

// A Server is one upstream server.
type Server struct {
	Addr Addr
	UDP  Exchanger // nil: TCP only
	TCP  Exchanger // or TLS

	UDPCounters, TCPCounters *Counters // UDPCounters may be nil where UDP is

	health
	latency latency
	trouble atomic.Pointer[trouble]
}

// A trouble is a try without a reply.
type trouble struct {
	err error
	at  time.Time
}

// A State is how a server does at one time, as far as its replies have told.
type State struct {
	Down     time.Duration // it comes last for so much longer; 0: it does not
	Dead     bool          // see [Server.Dead]
	Answered time.Time     // when it last replied to anybody; zero: not yet
	Latency  time.Duration // of its replies, smoothed (RFC 6298 2); 0: there was none
	Err      error         // of the last try without a reply, nil for none,
	Failed   time.Time     // and when that was
}

// State returns how the server does. It changes nothing.
func (s *Server) State(now time.Time) State {
	st := State{Dead: s.Dead(now), Answered: s.epoch.time(s.answered.Load()), Latency: s.latency.smoothed()}
	if until := s.downUntil.Load(); until != 0 {
		st.Down = time.Duration(max(0, until-s.epoch.since(now)))
	}
	if t := s.trouble.Load(); t != nil {
		st.Err, st.Failed = t.err, t.at
	}
	return st
}

// ask asks s for key: over UDP if it has that, and over TCP if not, or if the
// reply is truncated or its question spelled differently (RandomCase). It is the question's nth try, from 0 on; hedge says that it is
// made because a reply was late. The third try goes over TCP in any case: where
// every flow takes a path of its own, as to the endpoints of a ClusterIP, half of
// which are gone, a connection that has been answered on is worth more than a
// third guess. A server that does not know EDNS is asked without (RFC 6891 6.2.2
// and 7). by is what counts the protocol that the reply came over.
func (s *Server) ask(ctx context.Context, now func() time.Time, key []byte, nth int, hedge bool) (reply []byte, by *Counters, err error) {
	query := wire.AppendUpstreamQuery(make([]byte, 0, 512), 0, key, true)
	reply, by, err = s.transports(ctx, now, query, nth, hedge)
	if err == nil && !knowsEDNS(reply) {
		query = wire.AppendUpstreamQuery(query[:0], 0, key, false)
		return s.transports(ctx, now, query, nth, hedge)
	}
	return reply, by, err
}

// knowsEDNS reports whether whoever sent reply can tell what EDNS is, version 0 of
// it (RFC 6891 6.1.3).
func knowsEDNS(reply []byte) bool {
	switch wire.RCode(reply) {
	case wire.FormErr, wire.NotImp:
		return false
	}
	return !wire.IsBadVers(reply)
}

// overTCP is the try that goes over TCP, counted from 0.
const overTCP = 2

func (s *Server) transports(ctx context.Context, now func() time.Time, query []byte, nth int, hedge bool) ([]byte, *Counters, error) {
	if s.UDP != nil && nth != overTCP {
		reply, err := s.timed(ctx, now, s.UDP, query, s.UDPCounters, nth, hedge)
		switch {
		case errors.Is(err, errOtherCase):
			// Whoever that was: over a connection it is the server.
		case err != nil || wire.Flags(reply)&wire.FlagTC == 0:
			return reply, s.UDPCounters, err
		default:
			// A server that truncates its reply answers. Were this not noted, those of
			// TCP alone would count, and where that does not get through a few large
			// replies would make the server dead for all other questions, too.
			s.replied(now())
		}
	}
	reply, err := s.timed(ctx, now, s.TCP, query, s.TCPCounters, nth, hedge)
	if err == nil && wire.Flags(reply)&wire.FlagTC != 0 {
		return nil, nil, errTruncated
	}
	return reply, s.TCPCounters, err
}

// errTruncated says that a server cut a reply that had all the room there is.
var errTruncated = errors.New("reply truncated over TCP")

// errAnswered ends the tries that another one was quicker than.
var errAnswered = errors.New("another try was answered")

func (s *Server) timed(ctx context.Context, now func() time.Time, e Exchanger, query []byte, c *Counters, nth int, hedge bool) ([]byte, error) {
	c.Queries.Add(1)
	if hedge {
		c.Hedges.Add(1)
	}
	start := now()
	var reply []byte
	var err error
	if r, ok := e.(retrier); ok && nth > 0 {
		reply, err = r.exchangeAgain(ctx, query, nil)
	} else {
		reply, err = e.Exchange(ctx, query, nil)
	}
	if err != nil {
		if !errors.Is(context.Cause(ctx), errAnswered) || s.silentSince(start) {
			c.Errors.Add(1)
			s.failedWith(err, now())
		}
		return nil, err
	}
	took := now().Sub(start)
	c.answered(took)
	s.latency.add(took)
	return reply, nil
}

// ErrNoReply stands in a State for the end of a question that a server was silent
// about.
var ErrNoReply = errors.New("no reply in time")

// failedWith notes why a try had no reply. Who gave the question up for reasons of
// their own say nothing about the server.
func (s *Server) failedWith(err error, at time.Time) {
	switch {
	case errors.Is(err, context.Canceled):
		return
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errAnswered):
		err = ErrNoReply
	}
	s.trouble.Store(&trouble{err, at})
}

// A retrier is an exchanger that goes another way with a question that it was
// asked before in vain.
type retrier interface {
	exchangeAgain(ctx context.Context, query, buf []byte) ([]byte, error)
}

// Dead reports whether the server has answered nobody for deadAfter though it
// was asked: it could not be reached, or was silent about several names. That
// is the case for deadFor after the last question, unless it answers.
func (s *Server) Dead(now time.Time) bool {
	dead, _ := s.dead(now)
	return dead
}

// dead says besides when there was the last evidence.
func (s *Server) dead(now time.Time) (dead bool, last time.Time) {
	dead, first, last := s.health.dead(now)
	return dead && !s.repliedSince(first), last
}

// repliedSince reports whether a reply has come over TCP since t, be it too late
// for the question.
func (s *Server) repliedSince(t time.Time) bool {
	p, ok := s.TCP.(interface{ repliedSince(time.Time) bool })
	return ok && p.repliedSince(t)
}

// silentSince reports whether the server has answered nobody since start, not
// even those who had given up.
func (s *Server) silentSince(start time.Time) bool {
	return s.health.silentSince(start) && !s.repliedSince(start)
}

// renew gives up the connections to a server that answers nobody. The replica
// behind them may be gone without a word, as a kube-dns pod is when its node dies;
// the next try makes a new connection, which leads to another one.
func (s *Server) renew() {
	if t, ok := s.TCP.(interface{ Renew() }); ok {
		t.Renew()
	}
}

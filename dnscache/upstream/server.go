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

// knowsEDNS reports whether whoever sent reply can tell what EDNS is, version 0 of
// it (RFC 6891 6.1.3).
func knowsEDNS(reply []byte) bool {
	switch wire.RCode(reply) {
	case wire.FormErr, wire.NotImp:
		return false
	}
	return !wire.IsBadVers(reply)
}

// errTruncated says that a server cut a reply that had all the room there is.
var errTruncated = errors.New("reply truncated over TCP")

// errAnswered ends the tries that another one was quicker than.
var errAnswered = errors.New("another try was answered")

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

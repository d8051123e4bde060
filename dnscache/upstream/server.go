package upstream

import (
	"context"
	"errors"
	"net/netip"
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
	Addr netip.AddrPort
	UDP  Exchanger // nil: TCP only
	TCP  Exchanger

	UDPCounters, TCPCounters *Counters // UDPCounters may be nil where UDP is

	failures  atomic.Int32 // in a row
	answered  atomic.Int64 // when last, in unix nanoseconds
	downUntil atomic.Int64 // unix nanoseconds
}

// ask asks s for key: over UDP if it has that, and over TCP if not, or if the
// reply is truncated. A server that does not know EDNS is asked without (RFC
// 6891 6.2.2 and 7).
func (s *Server) ask(ctx context.Context, now func() time.Time, key []byte) ([]byte, error) {
	query := wire.AppendUpstreamQuery(make([]byte, 0, 512), 0, key, true)
	reply, err := s.transports(ctx, now, query)
	if err == nil {
		switch wire.RCode(reply) {
		case wire.FormErr, wire.NotImp:
			query = wire.AppendUpstreamQuery(query[:0], 0, key, false)
			return s.transports(ctx, now, query)
		}
	}
	return reply, err
}

func (s *Server) transports(ctx context.Context, now func() time.Time, query []byte) ([]byte, error) {
	if s.UDP != nil {
		reply, err := timed(ctx, now, s.UDP, query, s.UDPCounters)
		if err != nil || wire.Flags(reply)&wire.FlagTC == 0 {
			return reply, err
		}
	}
	reply, err := timed(ctx, now, s.TCP, query, s.TCPCounters)
	if err == nil && wire.Flags(reply)&wire.FlagTC != 0 {
		return nil, errTruncated
	}
	return reply, err
}

// errTruncated says that a server cut a reply that had all the room there is.
var errTruncated = errors.New("reply truncated over TCP")

func timed(ctx context.Context, now func() time.Time, e Exchanger, query []byte, c *Counters) ([]byte, error) {
	c.Queries.Add(1)
	start := now()
	reply, err := e.Exchange(ctx, query, nil)
	if err != nil {
		c.Errors.Add(1)
		return nil, err
	}
	c.answered(now().Sub(start))
	return reply, nil
}

// How long a server that does not answer comes last.
const (
	firstBackoff = time.Second
	maxBackoff   = 10 * time.Second
)

// ok notes that the server answered.
func (s *Server) ok(now time.Time) {
	s.answered.Store(now.UnixNano())
	s.failures.Store(0)
	s.downUntil.Store(0)
}

// failed notes that it did not. One lost packet is no outage: the second
// failure in a row puts the server last, and longer each time. Questions that
// fail while it is last anyway were under way together, and count as one.
func (s *Server) failed(now time.Time) {
	if s.Down(now) {
		return
	}
	n := s.failures.Add(1)
	if n < 2 {
		return
	}
	backoff := min(firstBackoff<<min(n-2, 10), maxBackoff)
	s.downUntil.Store(now.Add(backoff).UnixNano())
}

// silentSince reports whether the server has answered nobody since start.
func (s *Server) silentSince(start time.Time) bool { return s.answered.Load() < start.UnixNano() }

// renewIfSilentSince gives up the connections to a server that has answered
// nobody since start. The replica behind them may be gone without a word, as a
// kube-dns pod is when its node dies; the next try makes a new connection,
// which leads to another one.
func (s *Server) renewIfSilentSince(start time.Time) {
	if t, ok := s.TCP.(interface{ Renew() }); ok && s.silentSince(start) {
		t.Renew()
	}
}

// Down reports whether the server comes last at now.
func (s *Server) Down(now time.Time) bool { return now.UnixNano() < s.downUntil.Load() }

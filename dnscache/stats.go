package dnscache

import (
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/dnscache/upstream"
)

// Stats is a snapshot of the resolver's counters. Counters only grow while
// the process lives; gauges say so.
type Stats struct {
	Queries       [2]uint64                  // received and well-formed, by Proto
	Malformed     uint64                     // no well-formed query: dropped, or answered with FORMERR
	Replies       [24]uint64                 // sent, by RCODE; the last one counts all above 22
	Cache         [len(ZoneKinds)]CacheStats // in the order of ZoneKinds
	CacheBytes    int64                      // gauge: memory charged for all entries
	CacheMax      int64                      // gauge: the budget
	Evictions     uint64                     // entries that went to make room, not because of age
	FlightsJoined uint64                     // queries that waited for somebody else's upstream query
	Flights       int64                      // gauge: upstream questions under way
	Refreshes     [len(Refreshes)]uint64     // upstream questions that no client waited for, in the order of the variable
	Refused       uint64                     // such questions not asked because there were too many
	Guesses       uint64                     // names of search paths that were asked for, or denied with their service, before a client asked
	GuessesUsed   uint64                     // of these, how many a client has asked for after all
	Collapsed     uint64                     // queries answered by the denial of the service that their names lie below; they are hits, too
	Loops         uint64                     // our own queries that came back to us
	Timeouts      uint64                     // clients told SERVFAIL because no upstream gave a usable reply in time
	Shed          uint64                     // clients told SERVFAIL because too many questions were under way
	SocketDrops   uint64                     // datagrams the kernel dropped because a receive buffer was full
	TCPClients    int64                      // gauge: open client connections
	Upstreams     []UpstreamStats
}

// A SocketState is how far one of a [Server]'s sockets has been read.
type SocketState struct {
	Proto   Proto
	Addr    netip.AddrPort
	Read    uint64 // datagrams or connections taken from it; only grows
	Waiting bool   // there is one to be taken
}

// Sockets returns the state of every socket, in the same order each time; of none
// before Ready is closed. Where Waiting is true and Read stays as it is, nobody
// reads that socket: what the kernel puts into it, by the client's port, is lost.
// It asks the kernel once for each, and may be called from any goroutine.
func (s *Server) Sockets() []SocketState {
	select {
	case <-s.ready:
	default:
		return nil
	}
	var out []SocketState
	for _, p := range s.packets {
		// Read first: what comes in between is waiting, and has not been counted.
		read := p.read.Load()
		out = append(out, SocketState{UDP, addrPort(p.conn.LocalAddr()), read, readable(p.conn)})
	}
	for _, l := range s.streams {
		read := l.accepted.Load()
		out = append(out, SocketState{TCP, addrPort(l.Addr()), read, readable(l)})
	}
	return out
}

// readable says whether a read, or an accept, would return at once.
func readable(c syscall.Conn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) {
		n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	})
	return n > 0
}

// Proto indexes per-protocol counters.
type Proto int

// The protocols. Those of Stats.Queries are UDP and TCP; upstream servers may be
// asked over TLS, too.
const (
	UDP Proto = iota
	TCP
	TLS
)

func (p Proto) String() string { return [...]string{"udp", "tcp", "tls"}[p] }

// ZoneKinds are the kinds of zone, in the order of Stats.Cache.
var ZoneKinds = [...]string{"cluster", "reverse", "external"}

// CacheStats are the cache's counters for one kind of zone.
type CacheStats struct {
	Hits, Misses    uint64 // by whether there was a fresh reply
	Stale           uint64 // replies that had expired
	Success, Denial int64  // gauges: entries kept
}

// UpstreamStats are the counters of one upstream server over one protocol.
type UpstreamStats struct {
	Server  netip.AddrPort
	Proto   Proto
	Queries uint64
	Hedges  uint64 // of these, those asked because a reply was late
	Errors  uint64 // no usable reply: timeouts, resets, mismatched replies

	// Latency counts the answered queries by duration: Latency[i] holds those
	// no slower than LatencyBounds[i] and slower than the one before, the
	// last one those slower than every bound.
	Latency    [len(LatencyBounds) + 1]uint64
	LatencySum time.Duration

	Down bool // gauge: failed lately, so asked last
}

// LatencyBounds are the upper bounds of UpstreamStats.Latency.
var LatencyBounds = upstream.Latencies

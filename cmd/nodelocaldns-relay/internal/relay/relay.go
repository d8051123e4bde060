package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

const (
	// Budget is how long a client waits at the most, as with the resolver: with
	// SERVFAIL within a second it asks its next nameserver at once, where silence
	// costs it five.
	Budget = 900 * time.Millisecond
	// patience is how long the first try is waited for before the second one is
	// made beside it. Most names that kube-dns itself has to ask for take less.
	patience = 400 * time.Millisecond
	// readErrorPause keeps a socket that fails at every read from using a CPU.
	readErrorPause = 10 * time.Millisecond
)

// A PacketConn is what the relay needs of a *net.UDPConn that clients ask.
type PacketConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	SetReadDeadline(t time.Time) error
	LocalAddr() net.Addr
	Close() error
}

// A Listener is what the relay needs of a *net.TCPListener that clients ask.
type Listener interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// An Exchanger asks one server over TCP.
type Exchanger interface {
	upstream.Exchanger
	io.Closer
}

// Deps are what a relay needs of the world.
type Deps struct {
	Log *slog.Logger

	// Packets and Streams are where clients ask. The relay owns them from New on,
	// but not what is behind them: it closes them, and never shuts them down.
	Packets []PacketConn
	Streams []Listener

	// Dial makes a UDP socket at an unpredictable port that sends to server and
	// takes packets from nobody else. It does not block.
	Dial func(server netip.AddrPort) (net.Conn, error)
	// Exchanger makes the means to ask server over TCP.
	Exchanger func(server netip.AddrPort) Exchanger
	// Random is 32 bits that nobody can guess from those seen before. It may be
	// called at the same time from many goroutines.
	Random func() uint32
}

// Real are the Deps of the real network, without Log, Packets and Streams.
func Real() Deps {
	return Deps{
		// The kernel picks a random port for a socket that is connected without
		// one.
		Dial: func(server netip.AddrPort) (net.Conn, error) {
			return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
		},
		Exchanger: func(server netip.AddrPort) Exchanger { return upstream.NewTCP(server, time.Now) },
		Random:    rand.Uint32, // ChaCha8, seeded by the kernel
	}
}

// A Relay passes queries on. Make one with [New]. Its methods may be called at
// the same time.
type Relay struct {
	deps    Deps
	listen  []netip.AddrPort
	clients clients
	health  health

	servers atomic.Pointer[servers]
	asking  sync.Mutex // held while servers changes

	mu       sync.Mutex // guards waiters and ports; never held in a system call
	waiting  int
	inFlight sync.WaitGroup  // queries that were read and not answered
	work     context.Context // of what asks kube-dns: outlives Serve's by the last replies
	stop     context.CancelFunc
	ports    sync.WaitGroup // their readers

	queries   [2]atomic.Uint64 // by proto
	servfails atomic.Uint64
}

const (
	udp = iota
	tcp
)

// New returns a relay that knows no server yet: see [Relay.Ask].
func New(d Deps) *Relay {
	r := &Relay{deps: d, health: health{log: d.Log}}
	r.work, r.stop = context.WithCancel(context.Background())
	for _, p := range d.Packets {
		r.listen = append(r.listen, addrPort(p.LocalAddr()))
	}
	for _, l := range d.Streams {
		r.listen = append(r.listen, addrPort(l.Addr()))
	}
	slices.SortFunc(r.listen, netip.AddrPort.Compare)
	r.listen = slices.Compact(r.listen)
	r.servers.Store(&servers{})
	return r
}

// addrPort is a socket's address, as kube-dns's are written.
func addrPort(a net.Addr) netip.AddrPort {
	var at netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// Listen is where clients ask, sorted.
func (r *Relay) Listen() []netip.AddrPort { return slices.Clone(r.listen) }

// Ours says whether clients ask at a, at whatever port.
func (r *Relay) Ours(a netip.Addr) bool {
	return slices.ContainsFunc(r.listen, func(l netip.AddrPort) bool { return l.Addr() == a.Unmap() })
}

// Ask makes list the servers that are asked from now on, in order of preference.
// Addresses of ours, and those that are there already, are left out. With none,
// all queries get SERVFAIL at once. What was passed on before is still answered.
func (r *Relay) Ask(list []netip.AddrPort) {
	r.asking.Lock()
	defer r.asking.Unlock()
	old, next := r.servers.Load(), &servers{}
	for _, a := range list {
		if r.Ours(a.Addr()) || next.find(a) != nil {
			continue
		}
		s := old.find(a)
		if s == nil {
			s = &server{addr: a, tcp: r.deps.Exchanger(a)}
		}
		next.all = append(next.all, s)
	}
	if slices.Equal(old.all, next.all) {
		return
	}
	r.servers.Store(next)
	for _, s := range old.all {
		if next.find(s.addr) == nil {
			_ = s.tcp.Close()
		}
	}
}

// Serve answers queries until ctx ends. It then answers those that it has read,
// and closes its sockets. A relay serves once.
func (r *Relay) Serve(ctx context.Context) {
	context.AfterFunc(ctx, r.interruptReads)
	var packets, streams sync.WaitGroup
	for _, p := range r.deps.Packets {
		packets.Go(func() { r.readPackets(p) })
	}
	for _, l := range r.deps.Streams {
		streams.Go(func() { r.accept(ctx, l) })
	}
	packets.Wait()
	streams.Wait()
	r.inFlight.Wait() // each ends within its budget
	r.stop()
	r.ports.Wait()
	r.Ask(nil)
	for _, p := range r.deps.Packets {
		_ = p.Close()
	}
	for _, l := range r.deps.Streams {
		_ = l.Close()
	}
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// interruptReads ends all reading. Deadlines are not a property of the socket
// that the next process gets.
func (r *Relay) interruptReads() {
	for _, p := range r.deps.Packets {
		_ = p.SetReadDeadline(longAgo)
	}
	for _, l := range r.deps.Streams {
		_ = l.SetDeadline(longAgo)
	}
	r.clients.interruptReads()
}

// over says whether reading has ended for good.
func over(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)
}

// pause waits until the next try of what failed.
func (r *Relay) pause() {
	t := time.NewTimer(readErrorPause)
	defer t.Stop()
	select {
	case <-r.work.Done():
	case <-t.C:
	}
}

// Stats is what a relay has counted.
type Stats struct {
	UDP, TCP  uint64 // well-formed queries, by protocol
	ServFails uint64 // those that the relay answered SERVFAIL by itself
}

// Stats returns a snapshot of the counters.
func (r *Relay) Stats() Stats {
	return Stats{UDP: r.queries[udp].Load(), TCP: r.queries[tcp].Load(), ServFails: r.servfails.Load()}
}

// fitting is reply, to the query msg, as a client can take it: cut is true where
// it was longer than there was room, and only its beginning is there. A stub
// resolver drops a reply without its question, and then waits for another.
func fitting(msg, reply []byte, cut bool) []byte {
	if !cut && (reply[4] != 0 || reply[5] != 0) { // QDCOUNT
		return reply
	}
	var q wire.Query
	wire.ParseQuery(msg, &q)
	rcode := wire.RCode(reply)
	reply = wire.AppendError(reply[:0], &q, rcode, wire.EDENone)
	if cut {
		reply[2] |= byte(wire.FlagTC >> 8)
	}
	return reply
}

// appendServFail appends our own reply to the query msg, which is well formed.
func (r *Relay) appendServFail(dst, msg []byte, ede uint16) []byte {
	r.servfails.Add(1)
	var q wire.Query
	wire.ParseQuery(msg, &q)
	return wire.AppendError(dst, &q, wire.ServFail, ede)
}

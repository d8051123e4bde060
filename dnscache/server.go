package dnscache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// Deps are what the resolver needs of the world. Zero values mean the real
// thing.
type Deps struct {
	Log *slog.Logger

	// Packets and Streams are sockets that somebody else has bound, such as
	// systemd, at addresses of Config.Listen. The server owns them from New on.
	// Where an address has none for a protocol, the server binds its own.
	Packets []*net.UDPConn
	Streams []*net.TCPListener

	// ResolvConf are the files that name the node's resolvers, for
	// NodeResolvers; the first one with a nameserver that is neither loopback
	// nor ours counts.
	ResolvConf []string

	Now    func() time.Time
	Random io.Reader // unpredictable bytes

	Uptime func() time.Duration // CLOCK_BOOTTIME

	// Exchanger makes the means to ask a server over a protocol.
	Exchanger func(server netip.AddrPort, p Proto) upstream.Exchanger
}

// A Server is the resolver. Make one with [New].
type Server struct {
	log       *slog.Logger
	random    io.Reader
	wallClock func() time.Time
	start     time.Time
	uptime    func() time.Duration
	exchanger exchangers
	conf      []string

	packets []*packetSocket
	streams []*streamSocket
	streamC counters // of all TCP clients
	clients clients

	cache     *cache.Cache
	state     atomic.Pointer[state]
	flights   flights
	shares    *shares
	there     services
	upstreams upstreamCounters
	loops     atomic.Uint64

	ready     chan struct{}
	rerouted  chan struct{}   // names go elsewhere now
	suspected chan struct{}   // a question got no answer: there may be a loop
	work      context.Context // of upstream questions: outlives Serve's by the last replies
	stop      func()

	reload sync.Mutex // held while state changes
}

// state is what a reload replaces.
type state struct {
	cfg    Config
	node   []netip.AddrPort // resolvers of the node, as last read
	routes *routes
	search *searchPath   // nil where clients are left alone with theirs
	since  time.Duration // when routes were made
}

// stale is how expired replies of a route are served.
func (st *state) stale(rt *route) Stale {
	switch rt.zone {
	case zoneCluster:
		return st.cfg.Cluster.Stale
	case zoneReverse:
		return st.cfg.Reverse.Stale
	}
	return st.cfg.External.Stale
}

// New returns a server for cfg. It binds nothing yet.
func New(cfg Config, d Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		log: d.Log, random: d.Random, wallClock: d.Now, exchanger: d.Exchanger, conf: d.ResolvConf,
		uptime: d.Uptime,
		ready:  make(chan struct{}), rerouted: make(chan struct{}, 1), suspected: make(chan struct{}, 1),
		cache:   cache.New(cfg.cacheLimits(), cfg.MaxBytes),
		flights: flights{byKey: map[string]*flight{}, holders: holders{}, bound: newRefreshes(), guesses: newGuesses()},
		shares:  newShares(),
		there:   services{seed: maphash.MakeSeed()},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.wallClock == nil {
		s.wallClock = time.Now
	}
	if s.uptime == nil {
		s.uptime = sinceBoot
	}
	if s.random == nil {
		s.random = rand.Reader
	}
	if s.exchanger == nil {
		s.exchanger = network(s.wallClock)
	}
	s.start = s.wallClock()
	work, cancel := context.WithCancel(context.Background())
	s.work, s.stop = work, func() {
		cancel()
		s.flights.stopAll()
	}
	for _, c := range d.Packets {
		s.packets = append(s.packets, newPacketSocket(c, false))
	}
	for _, l := range d.Streams {
		s.streams = append(s.streams, &streamSocket{TCPListener: l})
	}
	var node []netip.AddrPort
	if cfg.Upstreams.Source == NodeResolvers {
		node = s.nodeResolvers(cfg.Listen)
	}
	s.cache.SetKeep(cfg.keep())
	s.warnOfOurselves(cfg)
	s.state.Store(s.newState(cfg, node, 0))
	return s, nil
}

func (s *Server) newState(cfg Config, node []netip.AddrPort, now time.Duration) *state {
	return &state{cfg, node, newRoutes(cfg, node, s.exchanger, &s.upstreams, s.wallClock, s.random), newSearchPath(cfg), now}
}

// now is the time on the server's clock: since it was made, never backwards.
func (s *Server) now() time.Duration { return s.wallClock().Sub(s.start) }

// Ready is closed once all sockets are bound or adopted: from then on no query
// is refused. Whether upstream can be reached is another matter.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Serve answers queries until ctx ends. It then answers those it has read,
// closes its sockets and returns nil. From sockets of its own it goes on
// reading until they are closed, and tells those it would have to ask upstream
// for to ask their next nameserver; what comes to sockets that were handed
// over is left in them, for the next process. It returns an error only where
// it could not begin. A server serves once.
func (s *Server) Serve(ctx context.Context) error {
	defer s.stop()
	defer s.closeSockets()
	if err := s.listen(ctx); err != nil {
		return err
	}
	s.growBuffers()
	close(s.ready)
	// SIGTERM must not cost the replies to what was read before it.
	reading, stopReading := context.WithCancel(ctx)
	defer stopReading()
	context.AfterFunc(reading, s.interruptReads)

	var packets, streams, helpers sync.WaitGroup
	for _, p := range s.packets {
		packets.Go(func() {
			p.serve(s)
			if p.own {
				_ = p.conn.Close() // what comes from now on is refused, not left lying
			}
		})
	}
	for _, l := range s.streams {
		streams.Go(func() { s.accept(reading, l) })
	}
	helpers.Go(func() { s.watchLoops(reading) })
	helpers.Go(func() { s.watchResolvConf(reading) })
	helpers.Go(func() { s.sweep(reading) })
	helpers.Go(func() { s.reloadEnding(reading) })
	<-ctx.Done()
	s.flights.closeForNew()
	streams.Wait()
	s.flights.waiting.Wait() // each ends within its budget
	s.interruptPackets(true, time.Now().Add(lastReads))
	packets.Wait()
	s.stop()
	s.flights.running.Wait()
	helpers.Wait()
	s.state.Load().routes.close()
	return nil
}

func (s *Server) closeSockets() {
	for _, p := range s.packets {
		_ = p.conn.Close()
	}
	for _, l := range s.streams {
		_ = l.Close()
	}
}

// lastReads is how long our own sockets are read after the last reply: what
// is in a buffer when it is closed would be somebody's five seconds.
const lastReads = 10 * time.Millisecond

// interruptReads ends all reading but that from packet sockets of our own.
// Deadlines stay: they are not a property of the socket that the next process
// gets.
func (s *Server) interruptReads() {
	s.interruptPackets(false, longAgo)
	for _, l := range s.streams {
		_ = l.SetDeadline(longAgo)
	}
	s.clients.interruptReads()
}

// interruptPackets ends the reading of our own packet sockets, or of those that
// were handed over.
func (s *Server) interruptPackets(own bool, at time.Time) {
	for _, p := range s.packets {
		if p.own == own {
			_ = p.conn.SetReadDeadline(at)
		}
	}
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// ErrListenChanged is returned by [Server.Reload] for a configuration with
// other listen addresses.
var ErrListenChanged = errors.New("listen addresses change with a restart only")

// Reload takes over another configuration without closing a socket. An error
// leaves everything as it was. Cached replies stay, unless names go to other
// servers now.
func (s *Server) Reload(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	s.reload.Lock()
	defer s.reload.Unlock()
	old := s.state.Load()
	if !slices.Equal(cfg.Listen, old.cfg.Listen) {
		return fmt.Errorf("%w: %v, was %v", ErrListenChanged, cfg.Listen, old.cfg.Listen)
	}
	node := old.node
	if cfg.Upstreams.Source == NodeResolvers {
		if now := s.nodeResolvers(cfg.Listen); len(now) > 0 {
			node = now
		}
	}
	s.cache.SetLimits(cfg.cacheLimits(), cfg.MaxBytes)
	s.cache.SetKeep(cfg.keep())
	s.warnOfOurselves(cfg)
	s.replace(cfg, node)
	return nil
}

// warnOfOurselves says which servers newRoutes leaves out.
func (s *Server) warnOfOurselves(cfg Config) {
	if ours := cfg.ourselves(); len(ours) > 0 {
		s.log.Warn("upstream servers are this resolver itself: left out", "servers", ours, "hint", "take our address out of cluster.dns, upstreams and stubDomains")
	}
}

// replace puts a new state in place of the old one. s.reload is held.
func (s *Server) replace(cfg Config, node []netip.AddrPort) {
	old := s.state.Load()
	st := s.newState(cfg, node, s.now())
	s.flights.mu.Lock() // between what lands by the old state and what by the new
	s.state.Store(st)
	s.flights.mu.Unlock()
	s.cache.Drop(func(key []byte) bool { // other servers may know better
		name, _ := wire.SplitKey(key)
		return !old.routes.find(name).sameServers(st.routes.find(name))
	})
	old.routes.close()
	signal(s.rerouted)
}

// nodeResolvers reads the node's resolvers.
func (s *Server) nodeResolvers(ours []netip.AddrPort) []netip.AddrPort {
	for _, name := range s.conf {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		servers, err := upstream.ParseResolvConf(f)
		_ = f.Close()
		if err != nil {
			s.log.Warn("reading the node's resolvers", "file", name, "error", err)
			continue
		}
		servers = slices.DeleteFunc(servers, func(a netip.AddrPort) bool {
			return slices.ContainsFunc(ours, func(l netip.AddrPort) bool { return l.Addr() == a.Addr() })
		})
		if len(servers) > 0 {
			return servers
		}
	}
	return nil
}

// How often things that change slowly are looked at.
const (
	resolvConfEvery = time.Second
	// sweepEvery is how long an entry may be taken for fresh by the eviction when
	// it is not. A sweep of 30,000 takes some two milliseconds.
	sweepEvery = 5 * time.Second
)

// watchResolvConf takes over the node's resolvers when they change. It looks
// once a second: the files are a few bytes in memory, and what replaces them
// (renames, symlinks, bind mounts) is more than inotify on a path can follow.
func (s *Server) watchResolvConf(ctx context.Context) {
	for pause(ctx, resolvConfEvery) {
		s.reload.Lock()
		st := s.state.Load()
		if st.cfg.Upstreams.Source == NodeResolvers {
			// A file that is being rewritten names nobody for a moment.
			if node := s.nodeResolvers(st.cfg.Listen); len(node) > 0 && !slices.Equal(node, st.node) {
				s.log.Info("the node's resolvers changed", "resolvers", node, "before", st.node)
				s.replace(st.cfg, node)
			}
		}
		s.reload.Unlock()
	}
}

// sweep gives back the memory of entries that are not to be kept any longer, and
// has those that are stale give way first.
func (s *Server) sweep(ctx context.Context) {
	for pause(ctx, sweepEvery) {
		s.cache.Sweep(s.now())
	}
}

// pause waits; it is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Stats returns a snapshot of the counters. They are read one by one while
// queries are answered, so sums may be off by those under way.
func (s *Server) Stats() Stats {
	u := s.cache.Usage()
	st := Stats{
		CacheBytes: u.Bytes, CacheMax: u.MaxBytes, Evictions: u.Evictions,
		Loops: s.loops.Load(), TCPClients: s.clients.count(),
	}
	for z := range ZoneKinds {
		st.Cache[z] = CacheStats{Success: u.Success[z], Denial: u.Denial[z]}
	}
	add := func(p Proto, c *counters) {
		st.Queries[p] += c.queries.Load()
		st.Malformed += c.malformed.Load()
		for z := range ZoneKinds {
			st.Cache[z].Hits += c.hits[z].Load()
			st.Cache[z].Misses += c.misses[z].Load()
			st.Cache[z].Stale += c.stale[z].Load()
		}
		st.Collapsed += c.collapsed.Load()
		for i := range c.replies {
			st.Replies[i] += c.replies[i].Load()
		}
	}
	select {
	case <-s.ready: // before, Serve may be binding its sockets
		for _, p := range s.packets {
			add(UDP, &p.counters)
			st.SocketDrops += p.drops()
		}
	default:
	}
	add(TCP, &s.streamC)
	s.flights.mu.Lock()
	st.FlightsJoined, st.Timeouts, st.Shed = s.flights.joined, s.flights.late, s.flights.shed+s.shares.shed.Load()
	st.Flights = int64(len(s.flights.byKey))
	st.Refreshes, st.Refused, st.Guesses, st.GuessesUsed = s.flights.refreshes, s.flights.refused, s.flights.guessed, s.flights.right
	s.flights.mu.Unlock()
	st.Upstreams = s.upstreams.stats(s.state.Load().routes, s.wallClock())
	return st
}

// queries is how many well-formed queries have been received.
func (s *Server) queries() uint64 {
	n := s.streamC.queries.Load()
	select {
	case <-s.ready:
		for _, p := range s.packets {
			n += p.queries.Load()
		}
	default:
	}
	return n
}

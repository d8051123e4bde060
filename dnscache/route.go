package dnscache

import (
	"io"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// The kinds of zone, as indices of ZoneKinds.
const (
	zoneCluster = iota
	zoneReverse
	zoneExternal
)

// A route says who answers the names below a zone, and what of it is kept.
type route struct {
	zone  uint8
	caps  cache.Caps
	group *upstream.Group
	await bool // its servers are not known yet
	loop  *loopProbe
}

// routes finds the route of a name: the longest suffix wins.
type routes struct {
	bySuffix map[string]*route // keys are names in wire form, lower case
	all      []*route          // each once, in a stable order
}

// find returns the route of a name in wire form, in lower case. It does not
// allocate.
func (r *routes) find(name []byte) *route {
	rt, _ := r.match(name)
	return rt
}

// match is find, and says which suffix of the name it went by.
func (r *routes) match(name []byte) (*route, []byte) {
	for {
		if found := r.bySuffix[string(name)]; found != nil {
			return found, name
		}
		if name[0] == 0 {
			return nil, nil // not reached: the root always has a route
		}
		name = name[1+int(name[0]):]
	}
}

// exchangers makes the means to ask a server. What it leaves to others is nil.
type exchangers func(server netip.AddrPort, p Proto) upstream.Exchanger

// network asks real servers. TLS is left to newRoutes, which know whom to believe.
func network(now func() time.Time) exchangers {
	return func(server netip.AddrPort, p Proto) upstream.Exchanger {
		switch p {
		case UDP:
			return &upstream.UDP{Server: server}
		case TCP:
			e := upstream.NewTCP(server, now)
			e.Keepalive = true
			return e
		}
		return nil
	}
}

// newRoutes builds the routes of a configuration whose node resolvers, where
// it wants any, are node. random is read from many goroutines, by upstream.RandomCase
// alone.
func newRoutes(cfg Config, node []netip.AddrPort, make exchangers, counters *upstreamCounters, now func() time.Time, random io.Reader) *routes {
	r := &routes{bySuffix: map[string]*route{}}
	tls := func(a upstream.Addr) upstream.Exchanger {
		if e := make(a.AddrPort, TLS); e != nil {
			return e
		}
		e := upstream.NewTLS(a, cfg.Roots, now)
		e.Keepalive = true
		return e
	}
	// Each route has connections of its own: names that hang hold up no other zone's.
	group := func(servers []upstream.Addr, z Zone) *upstream.Group {
		g := &upstream.Group{Now: now, Policy: z.Policy}
		for _, a := range servers {
			if slices.Contains(cfg.Listen, a.AddrPort) {
				continue // whoever wrote that down meant somebody behind us
			}
			s := &upstream.Server{Addr: a}
			if a.TLSName != "" {
				s.TCP, s.TCPCounters = tls(a), counters.of(a.AddrPort, TLS)
			} else {
				s.TCP, s.TCPCounters = make(a.AddrPort, TCP), counters.of(a.AddrPort, TCP)
				if z.Transport == TransportUDP || z.Transport == TransportAuto && !slices.Contains(cfg.ClusterDNS, a.AddrPort) {
					s.UDP, s.UDPCounters = make(a.AddrPort, UDP), counters.of(a.AddrPort, UDP)
					if z.RandomizeCase {
						s.UDP = &upstream.RandomCase{Exchanger: s.UDP, Random: random}
					}
				}
			}
			g.Servers = append(g.Servers, s)
		}
		return g
	}
	add := func(zone uint8, z Zone, servers []upstream.Addr, names ...string) {
		rt := &route{zone: zone, caps: z.caps(), group: group(servers, z)}
		rt.await = cfg.AwaitClusterDNS && len(servers) == 0 && (zone != zoneExternal || cfg.Upstreams.Source == KubeDNS)
		for i, name := range names {
			w, _ := wire.ParseName(name) // Config.Validate has seen that it is one
			r.bySuffix[string(w)] = rt
			if i == 0 {
				rt.loop = newLoopProbe(w)
			}
		}
		r.all = append(r.all, rt)
	}
	clusterDNS := upstream.Plain(cfg.ClusterDNS)
	var external []upstream.Addr
	switch cfg.Upstreams.Source {
	case KubeDNS:
		external = clusterDNS
	case NodeResolvers:
		external = upstream.Plain(node)
	case ServerList:
		external = cfg.Upstreams.Servers
	}
	if len(clusterDNS) == 0 && !cfg.AwaitClusterDNS {
		// The transport of those zones is about kube-dns; many a resolver of a
		// node has no TCP.
		clusterDNS = external
		cfg.Cluster.Transport, cfg.Reverse.Transport = cfg.External.Transport, cfg.External.Transport
	}
	add(zoneExternal, cfg.External, external, ".")
	add(zoneCluster, cfg.Cluster, clusterDNS, cfg.ClusterDomain)
	add(zoneReverse, cfg.Reverse, clusterDNS, "in-addr.arpa", "ip6.arpa")
	for _, s := range cfg.StubDomains {
		add(zoneExternal, cfg.External, s.Servers, s.Zone)
	}
	return r
}

// sameServers reports whether names are answered by the same servers on both routes.
func (rt *route) sameServers(other *route) bool {
	return rt.zone == other.zone && slices.EqualFunc(rt.group.Servers, other.group.Servers, func(a, b *upstream.Server) bool { return a.Addr == b.Addr })
}

func (r *routes) close() {
	for _, rt := range r.all {
		rt.group.Close()
	}
}

func (z Zone) caps() cache.Caps {
	return cache.Caps{Success: uint32(z.Success.MaxTTL / time.Second), Denial: uint32(z.Denial.MaxTTL / time.Second)}
}

// cacheLimits are the caps on the number of entries.
func (c Config) cacheLimits() [cache.Zones]cache.Limit {
	var l [cache.Zones]cache.Limit
	for i, z := range [...]Zone{zoneCluster: c.Cluster, zoneReverse: c.Reverse, zoneExternal: c.External} {
		l[i] = cache.Limit{Success: z.Success.Entries, Denial: z.Denial.Entries}
	}
	return l
}

// asked is what is counted of one server over one protocol. Counters outlive
// the routes that a reload replaces.
type asked struct {
	server netip.AddrPort
	proto  Proto
	*upstream.Counters
}

// An upstreamCounters registry holds the counters of every server ever asked.
type upstreamCounters struct {
	mu  sync.Mutex
	all []asked
}

// of returns the counters of a server: the same ones each time.
func (u *upstreamCounters) of(server netip.AddrPort, p Proto) *upstream.Counters {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, a := range u.all {
		if a.server == server && a.proto == p {
			return a.Counters
		}
	}
	c := &upstream.Counters{}
	u.all = append(u.all, asked{server, p, c})
	return c
}

// source is the number by which an entry remembers whose reply it holds: that of the
// counters by, from 1 on, in the order in which servers were first heard of. No reload
// changes it; the next process counts anew. 0 stands for nobody, and for those whom
// a byte has no number for.
func (u *upstreamCounters) source(by *upstream.Counters) uint8 {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.IndexFunc(u.all, func(a asked) bool { return a.Counters == by })
	if i >= math.MaxUint8 {
		return 0
	}
	return uint8(i + 1)
}

// named is who has a number; false where nobody has.
func (u *upstreamCounters) named(source uint8) (asked, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if source == 0 || int(source) > len(u.all) {
		return asked{}, false
	}
	return u.all[source-1], true
}

// stats returns the counters; those of r that failed lately are marked.
func (u *upstreamCounters) stats(r *routes, now time.Time) []UpstreamStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]UpstreamStats, len(u.all))
	for i, a := range u.all {
		st := &out[i]
		st.Server, st.Proto = a.server, a.proto
		st.Queries, st.Hedges, st.Errors, st.LatencySum = a.Queries.Load(), a.Hedges.Load(), a.Errors.Load(), time.Duration(a.Sum.Load())
		for b := range a.Latency {
			st.Latency[b] = a.Latency[b].Load()
		}
		st.Down = r.down(a.server, now)
	}
	return out
}

// down reports whether a server comes last on any route.
func (r *routes) down(server netip.AddrPort, now time.Time) bool {
	for _, rt := range r.all {
		for _, s := range rt.group.Servers {
			if s.Addr.AddrPort == server && s.Down(now) {
				return true
			}
		}
	}
	return false
}

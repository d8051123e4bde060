package dnscache

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// Config is everything the resolver needs to know, typed. It holds no text
// that still has to be parsed, except domain names.
type Config struct {
	// Listen are the addresses served, each over UDP and TCP. Never a
	// wildcard: the resolver answers only where it was asked to.
	Listen []netip.AddrPort

	// ClusterDomain is the domain of the cluster, such as "cluster.local",
	// lower case, without a trailing dot.
	ClusterDomain string

	// ClusterDNS are the kube-dns addresses, in order of preference. Empty is
	// allowed only where Upstreams is not KubeDNS, and cluster and reverse
	// names then go where all other names go; or with AwaitClusterDNS.
	ClusterDNS []netip.AddrPort

	// AwaitClusterDNS says that nobody knows ClusterDNS yet, and that a Reload
	// will bring it. Until then what kube-dns would be asked is answered
	// SERVFAIL at once, with EDE 14, Not Ready (RFC 8914 section 4.15): others
	// must not be asked for cluster names, they would deny them.
	AwaitClusterDNS bool

	// Upstreams says who answers the names that no other route takes.
	Upstreams Upstreams

	// StubDomains are answered by servers of their own.
	StubDomains []StubDomain

	// Roots are whose certificates servers asked over TLS must have; nil stands for
	// the system's.
	Roots *x509.CertPool

	// Cluster, Reverse and External are the caps of the three kinds of zone:
	// the cluster domain, in-addr.arpa and ip6.arpa, and everything else
	// (stub domains too).
	Cluster, Reverse, External Zone

	// Prefetch says which fresh replies are asked for again before they expire.
	Prefetch Prefetch

	// Reload is how often in a row an answer is asked for again before it expires
	// although nobody has asked for it since, up to 255 (reload-count of nscd(8));
	// 0 never.
	Reload int

	// CollapseSearch has the search path of pods cost less (search.go): what lies below
	// a service that upstream denies is denied as well, and the names that a client
	// asks for next are asked for already.
	CollapseSearch bool

	// MaxBytes bounds the memory of all cached replies together.
	MaxBytes int64
}

// UpstreamSource says where the upstreams of external names come from.
type UpstreamSource int

const (
	// KubeDNS sends external names to ClusterDNS too, so that both
	// nameservers of a pod give the same answers.
	KubeDNS UpstreamSource = iota
	// NodeResolvers sends them to the nameservers of the node's resolv.conf,
	// without loopback and without ourselves, re-read when the file changes.
	NodeResolvers
	// ServerList sends them to a fixed list.
	ServerList
)

// Upstreams says who answers external names.
type Upstreams struct {
	Source  UpstreamSource
	Servers []upstream.Addr // for ServerList only
}

// A StubDomain is a zone with servers of its own.
type StubDomain struct {
	Zone    string // lower case, without a trailing dot
	Servers []upstream.Addr
}

// Transport says how upstream servers are asked that are not asked over TLS.
type Transport int

const (
	// TransportAuto is TCP to kube-dns and UDP, then TCP when truncated, to
	// everybody else.
	TransportAuto Transport = iota
	// TransportTCP is TCP only.
	TransportTCP
	// TransportUDP is UDP, then TCP when truncated.
	TransportUDP
)

// Zone holds the caps of one kind of zone.
type Zone struct {
	Success, Denial Limits
	Transport       Transport
	Policy          upstream.Policy // of several servers, which one is asked first
	RandomizeCase   bool            // questions over UDP have their letters in random case (upstream.RandomCase)
	Stale           Stale
}

// zones are the three kinds of zone.
func (c Config) zones() [len(ZoneKinds)]Zone {
	return [...]Zone{zoneCluster: c.Cluster, zoneReverse: c.Reverse, zoneExternal: c.External}
}

// maxClientTimeout leaves time to answer before budget is over.
const maxClientTimeout = 800 * time.Millisecond

// Limits cap what is cached: success is a NOERROR reply with answers, denial
// is NXDOMAIN or NODATA. Entries 0 or MaxTTL 0 turns that kind of caching off.
type Limits struct {
	Entries int
	MaxTTL  time.Duration
}

// Stale says how replies that have expired are served where upstream does not
// answer (RFC 8767).
type Stale struct {
	For           time.Duration // so long after they have expired; 0 serves none
	AnswerTTL     time.Duration // of all their records, in whole seconds from 1 s on
	ClientTimeout time.Duration // how long a client waits for upstream first, at most 800 ms
	Denial        bool          // denials too, not answers alone
}

// A Prefetch says which replies are asked for again while they are fresh: those of
// whose life At percent are left or less, when a client asks for them that has been
// answered from them, or others have, MinHits times. Nobody waits for it.
type Prefetch struct {
	At      int // 0 for none
	MinHits int // up to 100
}

// ErrNoClusterDNS is returned by [Config.Validate] when external names are to
// be answered by kube-dns, no kube-dns address is known, and none is awaited.
var ErrNoClusterDNS = errors.New("no kube-dns address is known")

// Validate says what makes c unusable, or nil.
func (c Config) Validate() error {
	if len(c.Listen) == 0 {
		return errors.New("no listen address")
	}
	for _, a := range c.Listen {
		if !a.IsValid() || a.Addr().IsUnspecified() {
			return fmt.Errorf("listen address %s: a wildcard is not allowed", a)
		}
	}
	zones := []string{c.ClusterDomain}
	for _, s := range c.StubDomains {
		if len(s.Servers) == 0 {
			return fmt.Errorf("stub domain %s has no servers", s.Zone)
		}
		zones = append(zones, s.Zone)
	}
	for _, z := range zones {
		if _, ok := wire.ParseName(z); !ok || z == "" || strings.HasSuffix(z, ".") {
			return fmt.Errorf("%q is not a domain name without a trailing dot", z)
		}
	}
	if c.Upstreams.Source == KubeDNS && len(c.ClusterDNS) == 0 && !c.AwaitClusterDNS {
		return ErrNoClusterDNS
	}
	if c.Upstreams.Source == ServerList && len(c.Upstreams.Servers) == 0 {
		return errors.New("the list of upstreams is empty")
	}
	for i, z := range c.zones() {
		if s := z.Stale; s.For < 0 || s.For > 0 && (s.AnswerTTL < time.Second || s.ClientTimeout <= 0 || s.ClientTimeout > maxClientTimeout) {
			return fmt.Errorf("%s zone: stale replies of %s after %s, for %s", ZoneKinds[i], s.AnswerTTL, s.ClientTimeout, s.For)
		}
	}
	if p := c.Prefetch; p.At < 0 || p.At > 100 || p.MinHits < 0 || p.MinHits > 100 {
		return fmt.Errorf("prefetching at %d %% after %d hits", p.At, p.MinHits)
	}
	if c.Reload < 0 || c.Reload > 255 {
		return fmt.Errorf("reloading %d times", c.Reload)
	}
	if c.MaxBytes <= 0 {
		return errors.New("the cache has no memory")
	}
	return nil
}

// ourselves are those addresses of Listen that are given as upstream servers.
func (c Config) ourselves() []netip.AddrPort {
	all := slices.Concat(upstream.Plain(c.ClusterDNS), c.Upstreams.Servers)
	for _, stub := range c.StubDomains {
		all = append(all, stub.Servers...)
	}
	return slices.DeleteFunc(slices.Clone(c.Listen), func(a netip.AddrPort) bool {
		return !slices.ContainsFunc(all, func(s upstream.Addr) bool { return s.AddrPort == a })
	})
}

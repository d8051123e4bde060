// Package config reads the configuration file: text in, typed values out,
// once. After [Parse] nothing is left that still has to be understood.
package config

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"nodelocaldns/dnscache"
	"nodelocaldns/host"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/sysctl"
)

// Config is the whole configuration. A Config from [Parse] or [Default] is
// valid: every value is in its range and nothing contradicts anything else.
type Config struct {
	Listen    Listen
	Cluster   Cluster
	Upstreams dnscache.Upstreams
	// StubDomains are sorted by zone; zones are lower case, without a
	// trailing dot.
	StubDomains []dnscache.StubDomain
	TLS         TLS
	Zones       Zones
	Cache       Cache
	SearchPath  SearchPath
	Kubelet     Kubelet
	// Sysctls are in the order of the reference, whatever the file's order.
	Sysctls []sysctl.Param
	Notrack Notrack
	Metrics Endpoint
	Health  Endpoint
}

// Listen says where queries are answered, and what holds the addresses.
type Listen struct {
	Addresses []netip.Addr // unicast, never a wildcard, no duplicates, at least one
	Port      uint16       // over UDP and TCP
	Interface string       // of 1 to 15 bytes
	LinkType  link.Type
}

// Cluster says what the node's cluster looks like to a pod.
type Cluster struct {
	Domain string           // lower case, without a trailing dot
	Auto   bool             // the node is asked for the kube-dns addresses; DNS is empty then
	DNS    []netip.AddrPort // the kube-dns addresses; may be empty
}

// TLS says what servers asked over TLS must prove.
type TLS struct {
	CAFile string         // whose certificates they must have; empty: those the system trusts
	Roots  *x509.CertPool // what [TLS.Read] has read; nil: the system's
}

// Read reads CAFile under the name path. It has nothing to do without one.
func (t *TLS) Read(path string) error {
	if t.CAFile == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading tls.caFile: %w", err)
	}
	t.Roots = x509.NewCertPool()
	if !t.Roots.AppendCertsFromPEM(text) {
		return fmt.Errorf("reading tls.caFile: %s has no certificate in PEM", path)
	}
	return nil
}

// Zones are the caps of the three kinds of zone, and how they serve what has
// expired: as the Cache says, but where a zone says otherwise.
type Zones struct {
	Cluster, Reverse, External dnscache.Zone
}

// Cache says how much may be kept, and what becomes of replies as they expire.
type Cache struct {
	MaxBytes   int64          // one budget for all zones, a multiple of 1 KiB
	ServeStale dnscache.Stale // for the zones that say nothing else
	Prefetch   dnscache.Prefetch
	Reload     int  // how often an answer is refreshed without being asked for
	Persist    bool // the next process of the resolver's unit goes on with what this one has kept
}

// SearchPath says whether what pods ask for besides, as their search path has it, is made
// to cost less (dnscache.Config.CollapseSearch).
type SearchPath struct {
	Collapse bool
}

// Kubelet says whether the kubelet is made to name us first to pods, and how.
type Kubelet struct {
	Manage  bool
	Unit    string // the unit that runs it; empty: found
	Backend kubelet.Backend
	Drain   drain.Mode    // what the cluster sees of a restart
	Timeout time.Duration // for pods to be moved away, and for them to be Ready again; 1 s at least
	Settle  time.Duration // how long a restarted kubelet must look well, 1 s at least

	// Kubeconfig is the credential for the API server; empty: the kubelet's own.
	Kubeconfig string
}

// Notrack says whether DNS packets to our addresses are kept out of conntrack.
type Notrack struct {
	Enabled bool
	Backend notrack.Backend
}

// An Endpoint is where something is served over HTTP. Port 0 means nowhere;
// without an Addr it is every address of the node.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
}

// On reports whether anything is served.
func (e Endpoint) On() bool { return e.Port != 0 }

// String is e as the configuration spells it and as [net.Listen] takes it;
// empty if e is off.
func (e Endpoint) String() string {
	switch {
	case !e.On():
		return ""
	case !e.Addr.IsValid():
		return ":" + strconv.Itoa(int(e.Port))
	}
	return netip.AddrPortFrom(e.Addr, e.Port).String()
}

// sysctls are the keys that may be set, in the order they are applied, with
// their defaults: enough entries that a burst of lookups does not fill the
// table, four entries a bucket as the kernel's own ratio was for years, and
// finished connections out of it soon.
var sysctls = []sysctl.Param{
	{Key: "net.netfilter.nf_conntrack_max", Value: 1048576, Policy: sysctl.Floor},
	{Key: "net.netfilter.nf_conntrack_buckets", Value: 262144, Policy: sysctl.Floor},
	{Key: "net.netfilter.nf_conntrack_tcp_timeout_fin_wait", Value: 30, Policy: sysctl.Ceiling},
	{Key: "net.netfilter.nf_conntrack_tcp_timeout_time_wait", Value: 30, Policy: sysctl.Ceiling},
	{Key: "net.netfilter.nf_conntrack_tcp_timeout_close_wait", Value: 15, Policy: sysctl.Ceiling},
}

// Default is the configuration of an empty file. The reference file says the
// same with a comment a key; a test holds the two equal.
func Default() Config {
	// The four server blocks of the DaemonSet this resolver stands in for:
	// 9984 names, answers up to 30 s, denials of cluster names only 5 s,
	// because a Service that was just created must be found.
	limits := func(ttl time.Duration) dnscache.Limits {
		return dnscache.Limits{Entries: 9984, MaxTTL: ttl}
	}
	// An hour is longer than most outages. RFC 8767 5 has clients wait for 1.8 s,
	// but before a second is over they must have an answer here (README), and TTLs
	// of 30 s, as it says. An expired denial would hide a Service that was made.
	stale := dnscache.Stale{For: time.Hour, AnswerTTL: 30 * time.Second, ClientTimeout: 400 * time.Millisecond}
	return Config{
		Listen: Listen{
			Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10")},
			Port:      53,
			Interface: "nodelocaldns0",
			LinkType:  link.Auto,
		},
		Cluster:   Cluster{Domain: "cluster.local", Auto: true},
		Upstreams: dnscache.Upstreams{Source: dnscache.KubeDNS},
		Zones: Zones{
			Cluster:  dnscache.Zone{Success: limits(30 * time.Second), Denial: limits(5 * time.Second), Transport: dnscache.TransportTCP, Stale: stale},
			Reverse:  dnscache.Zone{Success: limits(30 * time.Second), Denial: limits(30 * time.Second), Transport: dnscache.TransportTCP, Stale: stale},
			External: dnscache.Zone{Success: limits(30 * time.Second), Denial: limits(30 * time.Second), Transport: dnscache.TransportAuto, Stale: stale},
		},
		Cache: Cache{
			MaxBytes: 32 << 20, ServeStale: stale,
			Prefetch: dnscache.Prefetch{At: 10, MinHits: 2}, Persist: true,
		},
		SearchPath: SearchPath{Collapse: true},
		Kubelet: Kubelet{
			Manage: true, Backend: kubelet.Auto,
			Drain: drain.Auto, Timeout: 5 * time.Minute, Settle: 30 * time.Second,
		},
		Sysctls: slices.Clone(sysctls),
		Notrack: Notrack{Enabled: true, Backend: notrack.Auto},
		Metrics: Endpoint{Port: 9253},
		Health:  Endpoint{Addr: netip.MustParseAddr("169.254.20.10"), Port: 8080},
	}
}

// Host is what the runtime plan is built from.
func (c Config) Host() host.Config {
	return host.Config{
		Interface: c.Listen.Interface,
		LinkType:  c.Listen.LinkType,
		Addresses: slices.Clone(c.Listen.Addresses),
		Port:      c.Listen.Port,
		Notrack:   c.Notrack.Enabled,
		Backend:   c.Notrack.Backend,
		Sysctls:   slices.Clone(c.Sysctls),
	}
}

// PodsCanAsk are the addresses that may be named to pods: a pod asks port 53,
// and its loopback is its own.
func (c Config) PodsCanAsk() []netip.Addr {
	if c.Listen.Port != 53 {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(c.Listen.Addresses), netip.Addr.IsLoopback)
}

// Durable is what the durable plan is built from. It leaves the kubelet alone
// where no pod could ask us. file is what --config was given as, empty for the
// default: the kubelet's unit calls us with the same.
func (c Config) Durable(file string) host.DurableConfig {
	addresses := c.PodsCanAsk()
	d := host.DurableConfig{
		Known:  kubelet.Want{Addresses: addresses, Unit: c.Kubelet.Unit, Backend: c.Kubelet.Backend},
		Settle: c.Kubelet.Settle,
	}
	if !c.Kubelet.Manage || len(addresses) == 0 {
		return d
	}
	want := kubelet.Want{Addresses: addresses, Unit: c.Kubelet.Unit, Backend: c.Kubelet.Backend, Config: file}
	for _, s := range c.Cluster.DNS {
		if a := s.Addr(); s.Port() == 53 && a.Zone() == "" && !a.IsLoopback() {
			want.Servers = append(want.Servers, a)
		}
	}
	d.Kubelet = &want
	return d
}

// Resolver is what the resolver is built from. found are the kube-dns addresses
// that the node was found to have, none as long as nobody knows; they count
// where cluster.dns is auto. Its Validate can still report
// [dnscache.ErrNoClusterDNS]: a file without kube-dns addresses is enough for
// the guard, and for the resolver where upstreams is not kube-dns.
func (c Config) Resolver(found []netip.Addr) dnscache.Config {
	servers := slices.Clone(c.Cluster.DNS)
	if c.Cluster.Auto {
		for _, a := range found {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return dnscache.Config{
		Listen:          c.sockets(),
		ClusterDomain:   c.Cluster.Domain,
		ClusterDNS:      servers,
		AwaitClusterDNS: c.Cluster.Auto && len(servers) == 0,
		Upstreams: dnscache.Upstreams{
			Source:  c.Upstreams.Source,
			Servers: slices.Clone(c.Upstreams.Servers),
		},
		StubDomains: slices.Clone(c.StubDomains),
		Roots:       c.TLS.Roots,
		Cluster:     c.Zones.Cluster,
		Reverse:     c.Zones.Reverse,
		External:    c.Zones.External,
		Prefetch:    c.Cache.Prefetch,
		Reload:      c.Cache.Reload,
		MaxBytes:    c.Cache.MaxBytes,

		CollapseSearch: c.SearchPath.Collapse,
	}
}

// sockets are the addresses and ports that c listens on.
func (c Config) sockets() []netip.AddrPort {
	var s []netip.AddrPort
	for _, a := range c.Listen.Addresses {
		s = append(s, netip.AddrPortFrom(a, c.Listen.Port))
	}
	return s
}

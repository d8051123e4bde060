package config

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"nodelocaldns/dnscache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/sysctl"
)

// Parse reads a configuration file. Keys that are absent have the value of
// [Default]. The error is [Problems] if the text is wrong, all of them at
// once, and the reader's error otherwise.
func Parse(r io.Reader) (Config, error) {
	c, _, err := parse(r, Default())
	return c, err
}

// parse reads a file over c, which holds the values of absent keys.
func parse(src io.Reader, c Config) (Config, *reader, error) {
	r := &reader{}
	root, err := document(src)
	if err != nil {
		return Config{}, r, err
	}
	if root != nil {
		r.root(root, &c)
	}
	if len(r.problems) > 0 {
		return Config{}, r, r.problems.sorted()
	}
	return c, r, nil
}

// to makes a field that is read on its own, by one of the readers of values.go.
func (r *reader) to(key string, read func(*reader, string, *yaml.Node)) field {
	return field{key, func(path string, n *yaml.Node) { read(r, path, n) }}
}

// of makes a field that is a mapping of fields.
func (r *reader) of(key string, fields ...field) field {
	return field{key, func(path string, n *yaml.Node) { r.mapping(path, n, fields...) }}
}

// root reads the whole file. Listen comes first: the lists of servers are
// checked against our own addresses.
func (r *reader) root(n *yaml.Node, c *Config) {
	var last *yaml.Node // the later one of metrics.address and health.address,
	var at string       // and its path
	r.mapping("", n,
		r.of("listen",
			field{"addresses", func(path string, n *yaml.Node) { r.addresses(path, n, &c.Listen.Addresses) }},
			r.to("port", whole(&c.Listen.Port, 1, 65535)),
			r.to("interface", scalar(&c.Listen.Interface, "a device name of 1 to 15 letters, digits, dots, dashes and underscores", device, "!!str")),
			r.to("linkType", oneOf(&c.Listen.LinkType, link.Auto, link.Dummy, link.Bridge, link.Lo)),
		),
		r.of("cluster",
			r.to("domain", scalar(&c.Cluster.Domain, "a domain name such as cluster.local", ParseDomain, "!!str")),
			field{"dns", func(path string, n *yaml.Node) {
				const allowed = "auto, or a list of kube-dns addresses"
				if s, ok := text(n, "!!str"); ok && s == wordAuto {
					c.Cluster.Auto, c.Cluster.DNS = true, nil
					return
				}
				c.Cluster.Auto, c.Cluster.DNS = false, nil
				for _, s := range r.servers(path, n, *c, allowed, "an address or address:port", plainServer) {
					c.Cluster.DNS = append(c.Cluster.DNS, s.AddrPort)
				}
			}},
		),
		field{"upstreams", func(path string, n *yaml.Node) { r.upstreams(path, n, c) }},
		field{"stubDomains", func(path string, n *yaml.Node) { r.stubDomains(path, n, c) }},
		r.of("tls", r.to("caFile", scalar(&c.TLS.CAFile, `an absolute file name, or "" for the system's`, absolute(""), "!!str"))),
		r.of("zones",
			r.zone("cluster", &c.Zones.Cluster),
			r.zone("reverse", &c.Zones.Reverse),
			r.zone("external", &c.Zones.External),
		),
		r.of("cache",
			// Below 1 MiB not even the warm names of one node fit; above
			// 16 GiB a typo is likelier than a wish.
			r.to("maxBytes", size(&c.Cache.MaxBytes, 1<<20, 16<<30)),
			r.of("serveStale", r.stale(&c.Cache.ServeStale)...),
			r.of("prefetch",
				r.to("at", percent(&c.Cache.Prefetch.At, 90)),
				r.to("minHits", whole(&c.Cache.Prefetch.MinHits, 1, 100)),
			),
			r.to("reload", whole(&c.Cache.Reload, 0, 100)),
			r.to("persist", boolean(&c.Cache.Persist)),
		),
		r.of("searchPath", r.to("collapse", boolean(&c.SearchPath.Collapse))),
		r.of("kubelet",
			r.to("manage", boolean(&c.Kubelet.Manage)),
			r.to("unit", scalar(&c.Kubelet.Unit, "auto, or a unit such as kubelet.service", service, "!!str")),
			r.to("backend", oneOf(&c.Kubelet.Backend, kubelet.Backends()...)),
			r.to("drain", oneOf(&c.Kubelet.Drain, drain.Auto, drain.Never, drain.Cordon, drain.Drain)),
			r.to("timeout", span(&c.Kubelet.Timeout, "30s", time.Second, 24*time.Hour)),
			r.to("settle", span(&c.Kubelet.Settle, "30s", time.Second, 10*time.Minute)),
			r.to("kubeconfig", scalar(&c.Kubelet.Kubeconfig, "auto, or an absolute file name", absolute(wordAuto), "!!str")),
		),
		field{"sysctls", func(path string, n *yaml.Node) { r.sysctls(path, n, &c.Sysctls) }},
		r.of("notrack",
			r.to("enabled", boolean(&c.Notrack.Enabled)),
			r.to("backend", oneOf(&c.Notrack.Backend, notrack.Auto, notrack.Legacy, notrack.NFT)),
		),
		r.of("metrics", field{"address", func(path string, n *yaml.Node) { endpoint(&c.Metrics)(r, path, n); last, at = n, path }}),
		r.of("health", field{"address", func(path string, n *yaml.Node) { endpoint(&c.Health)(r, path, n); last, at = n, path }}),
	)
	for _, z := range []*dnscache.Zone{&c.Zones.Cluster, &c.Zones.Reverse, &c.Zones.External} {
		z.Stale = c.Cache.ServeStale
	}
	for _, read := range r.later {
		read()
	}
	if last != nil && c.Metrics.On() && c.Metrics == c.Health {
		r.wrong(last, at, "different addresses for metrics and health")
	}
}

func (r *reader) addresses(path string, n *yaml.Node, dst *[]netip.Addr) {
	const allowed = "an IPv4 or IPv6 unicast address"
	var as []netip.Addr
	r.list(path, n, "a list of addresses", func(path string, n *yaml.Node) {
		var a netip.Addr
		scalar(&a, allowed, ParseListenAddr, "!!str")(r, path, n)
		switch {
		case !a.IsValid():
		case slices.Contains(as, a):
			r.wrong(n, path, "each address once")
		default:
			as = append(as, a)
		}
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.problem(n, path, "found an empty list, allowed: at least one address")
	}
	if len(as) > 0 {
		*dst = as
	}
}

// servers reads a list of servers to ask. Ourselves is not one of them: a
// query would go round until it times out.
func (r *reader) servers(path string, n *yaml.Node, c Config, what, allowed string, read func(string) (upstream.Addr, error)) []upstream.Addr {
	ours := c.sockets()
	var ss []upstream.Addr
	r.list(path, n, what, func(path string, n *yaml.Node) {
		var s upstream.Addr
		scalar(&s, allowed, read, "!!str")(r, path, n)
		switch {
		case !s.IsValid():
		case slices.Contains(ours, s.AddrPort):
			r.wrong(n, path, fmt.Sprintf("a server other than ourselves (%s is one of listen.addresses)", s.AddrPort))
		case slices.Contains(ss, s):
			r.wrong(n, path, "each server once")
		default:
			ss = append(ss, s)
		}
	})
	return ss
}

// anyServer is what ParseServer reads, in words.
const anyServer = "an address, address:port, or tls://address#name"

// The words of upstreams, as the configuration spells them.
const (
	wordKubeDNS = "kube-dns"
	wordNode    = "node"
)

func (r *reader) upstreams(path string, n *yaml.Node, c *Config) {
	const allowed = "kube-dns, node, or a list of addresses such as [192.0.2.1]"
	if n.Kind != yaml.SequenceNode {
		scalar(&c.Upstreams, allowed, func(s string) (dnscache.Upstreams, error) {
			switch s {
			case wordKubeDNS:
				return dnscache.Upstreams{Source: dnscache.KubeDNS}, nil
			case wordNode:
				return dnscache.Upstreams{Source: dnscache.NodeResolvers}, nil
			}
			return dnscache.Upstreams{}, errPlain
		}, "!!str")(r, path, n)
		return
	}
	if len(n.Content) == 0 {
		r.problem(n, path, "found an empty list, allowed: %s", allowed)
		return
	}
	c.Upstreams = dnscache.Upstreams{Source: dnscache.ServerList, Servers: r.servers(path, n, *c, allowed, anyServer, ParseServer)}
}

func (r *reader) stubDomains(path string, n *yaml.Node, c *Config) {
	const allowed = "a domain name below the root, with a list of servers"
	c.StubDomains = nil
	lines := map[string]int{}
	for _, e := range r.entries(path, n, "a mapping of zones to lists of servers") {
		k, v := e[0], e[1]
		path := dotted(path, k.Value)
		zone, err := ParseDomain(k.Value)
		switch {
		case err != nil:
			r.wrong(k, path, allowed)
			continue
		case zone == c.Cluster.Domain:
			r.wrong(k, path, "a zone other than cluster.domain, which cluster.dns answers")
			continue
		case lines[zone] != 0:
			r.wrong(k, path, fmt.Sprintf("each zone once, as on line %d", lines[zone]))
			continue
		}
		lines[zone] = k.Line
		servers := r.servers(path, v, *c, "a list of servers", anyServer, ParseServer)
		if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
			r.problem(v, path, "found an empty list, allowed: at least one server")
		}
		c.StubDomains = append(c.StubDomains, dnscache.StubDomain{Zone: zone, Servers: servers})
	}
	slices.SortFunc(c.StubDomains, func(a, b dnscache.StubDomain) int { return cmp.Compare(a.Zone, b.Zone) })
}

var transports = map[string]dnscache.Transport{
	"auto": dnscache.TransportAuto,
	"tcp":  dnscache.TransportTCP,
	"udp":  dnscache.TransportUDP,
}

var policies = map[string]upstream.Policy{
	"sequential":  upstream.Sequential,
	"random":      upstream.Random,
	"round-robin": upstream.RoundRobin,
}

// MaxEntries bounds the names of a kind of zone. It is more than 16 GiB of the
// smallest entries could hold; it catches a typo, the budget of bytes does the rest.
const MaxEntries = 100_000_000

// stale makes the fields that say how expired replies are served.
func (r *reader) stale(s *dnscache.Stale) []field {
	return []field{
		r.to("for", ttl(&s.For, 0, MaxTTL)),
		// Longer ones would outlive the outage in the pods' own caches.
		r.to("answerTTL", ttl(&s.AnswerTTL, time.Second, time.Hour)),
		// Below, an upstream that is only slow would seldom be waited for; above,
		// the client's own patience ends (dnscache.Stale).
		r.to("clientTimeout", span(&s.ClientTimeout, "400ms", 100*time.Millisecond, 800*time.Millisecond)),
		r.to("denial", boolean(&s.Denial)),
	}
}

func (r *reader) zone(key string, z *dnscache.Zone) field {
	limits := func(key string, l *dnscache.Limits) field {
		return r.of(key,
			r.to("entries", whole(&l.Entries, 0, MaxEntries)),
			r.to("maxTTL", ttl(&l.MaxTTL, 0, MaxTTL)),
		)
	}
	return r.of(key,
		limits("success", &z.Success),
		limits("denial", &z.Denial),
		r.to("transport", word(&z.Transport, "auto, tcp, udp", transports)),
		r.to("policy", word(&z.Policy, "sequential, random, round-robin", policies)),
		r.to("randomizeCase", boolean(&z.RandomizeCase)),
		field{"serveStale", func(path string, n *yaml.Node) {
			if s, ok := text(n, "!!str"); ok && s == wordAuto {
				return
			}
			if n.Kind != yaml.MappingNode {
				r.wrong(n, path, "auto, or a mapping of for, answerTTL, clientTimeout, denial")
				return
			}
			// The cache, whose values those are that are absent here, comes later.
			r.later = append(r.later, func() { r.mapping(path, n, r.stale(&z.Stale)...) })
		}},
	)
}

// The largest values the kernel takes: counts are C ints, and a timeout in
// seconds is stored in ticks, of which there are at most 1000 a second.
const (
	maxCount   = 1<<31 - 1
	maxSeconds = maxCount / 1000
)

// sysctls reads the parameters to hold. The mapping replaces the default as a
// whole: a key that is not there is not touched.
func (r *reader) sysctls(path string, n *yaml.Node, dst *[]sysctl.Param) {
	params := slices.Clone(sysctls)
	given := make([]bool, len(params))
	fields := make([]field, len(params))
	for i := range params {
		p := &params[i]
		var most uint64 = maxCount
		if strings.Contains(p.Key, "_timeout_") {
			most = maxSeconds
		}
		fields[i] = field{p.Key, func(path string, n *yaml.Node) {
			given[i] = true
			r.mapping(path, n,
				r.to("value", whole(&p.Value, 1, most)),
				r.to("policy", oneOf(&p.Policy, sysctl.Floor, sysctl.Ceiling, sysctl.Exact)),
			)
		}}
	}
	r.mapping(path, n, fields...)
	var ps []sysctl.Param
	for i, p := range params {
		if given[i] {
			ps = append(ps, p)
		}
	}
	*dst = ps
}

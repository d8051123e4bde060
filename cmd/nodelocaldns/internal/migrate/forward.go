package migrate

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/cmd/nodelocaldns/internal/corefile"
	"nodelocaldns/dnscache"
	"nodelocaldns/dnscache/upstream"
)

// options are those of a forward that have a counterpart.
type options struct {
	transport *corefile.Directive // force_tcp or prefer_udp
	policy    *corefile.Directive
	tlsName   string
}

// whom are the servers of a forward.
type whom struct {
	kubeDNS  bool // by a placeholder
	node     bool // by its resolv.conf
	kubeSays bool // upstreamNameservers of kube-dns, the node's where it has none
	list     []upstream.Addr
}

var transports = map[string]struct {
	word string
	is   dnscache.Transport
}{
	"force_tcp":  {"tcp", dnscache.TransportTCP},
	"prefer_udp": {"udp", dnscache.TransportUDP},
}

var policies = map[string]upstream.Policy{
	"random":      upstream.Random,
	"round_robin": upstream.RoundRobin,
	"sequential":  upstream.Sequential,
}

// quiet are the options of forward whose work is done here without being asked for.
var quiet = map[string]string{
	"max_fails":                        "who fails is asked after the others until a reply comes, and never left out for good",
	"max_connect_attempts":             "a query has tries at all servers within its time",
	"health_check":                     "the replies tell how a server does; none is asked just for that",
	"expire":                           "connections end when they are idle or old by themselves",
	"max_age":                          "connections end when they are idle or old by themselves",
	"max_idle_conns":                   "there are a few connections to a server, however many queries",
	"max_concurrent":                   "queries under way are bounded; what is above is told SERVFAIL at once, and the pod asks its next server",
	"read_timeout":                     "a client is answered before a second is over",
	"failfast_all_unhealthy_upstreams": "where all servers fail, what has expired is served at once, or SERVFAIL",
	"failover":                         "a server that fails or refuses is followed by the next",
}

// forward imports a forward of b.
func (im *importer) forward(b *block, d corefile.Directive) error {
	if len(d.Args) < 2 {
		return im.bad(d.Line, "", "forward: found %q, allowed: a zone and its servers, such as forward . 192.0.2.1", clip(d.String()))
	}
	from := "."
	if d.Args[0] != "." {
		var err error
		if from, err = config.ParseDomain(im.domainIn(d.Args[0])); err != nil {
			im.tell(d.Line, d.String(), Lost, "%s is no domain name", clip(d.Args[0]))
			return nil
		}
	}
	var zones []zone
	why := fmt.Sprintf("no name of this block is below %s", from)
	for _, z := range b.zones {
		switch {
		case within(z.name, from):
			zones = append(zones, z)
		case !within(from, z.name):
		case im.nearer(from, z.name) != "":
			why = fmt.Sprintf("the block of %s has these names", im.nearer(from, z.name))
		default:
			zones = append(zones, zone{name: from, kind: stub})
		}
	}
	if len(zones) == 0 {
		im.tell(d.Line, d.String(), Unneeded, "%s", why)
		return nil
	}
	o, err := im.options(b, d)
	if err != nil {
		return err
	}
	w := im.whom(d, o)
	var stubs []string
	for _, z := range zones {
		stubs = append(stubs, im.route(z, d, w)...)
	}
	if n := len(stubs); n > 0 {
		note := ""
		if n > 3 {
			stubs, note = stubs[:1], fmt.Sprintf(", and %d zones more", n-1)
		}
		im.tell(d.Line, d.String(), Taken, "stubDomains: {%s: [%s]}%s", strings.Join(stubs, ", "), spell(w.list), note)
	}
	if zones[0].kind != b.kind() { // a part of one
		b = &block{Block: b.Block, zones: zones}
	}
	im.manner(b, d, o, w)
	return nil
}

// nearer is the zone of a block that has the names of zone, and that is below the
// one called block; empty if there is none. CoreDNS goes by the longest.
func (im *importer) nearer(zone, block string) string {
	for _, b := range im.blocks {
		for _, z := range b.zones {
			if within(zone, z.name) && within(z.name, block) && z.name != block {
				return z.name
			}
		}
	}
	return ""
}

// within reports whether name is zone or below it.
func within(name, zone string) bool {
	return zone == "." || name == zone || strings.HasSuffix(name, "."+zone)
}

// options reads the options of a forward, and reports those that decide nothing
// here.
func (im *importer) options(b *block, d corefile.Directive) (options, error) {
	var o options
	one := func(opt corefile.Directive, allowed string) error {
		if len(opt.Args) != 1 {
			return im.bad(opt.Line, "", "forward: found %q, allowed: %s", clip(opt.String()), allowed)
		}
		return nil
	}
	for _, opt := range d.Block {
		switch opt.Name {
		case "force_tcp", "prefer_udp":
			if len(opt.Args) > 0 {
				return o, im.bad(opt.Line, "", "forward: found %q, allowed: %s", clip(opt.String()), opt.Name)
			}
			// Of both, CoreDNS goes by force_tcp.
			if o.transport == nil || opt.Name == "force_tcp" {
				o.transport = &opt
			}
		case "policy":
			if err := one(opt, "policy random, round_robin or sequential"); err != nil {
				return o, err
			}
			if _, ok := policies[opt.Args[0]]; !ok {
				return o, im.bad(opt.Line, "", "forward: found policy %q, allowed: random, round_robin, sequential", clip(opt.Args[0]))
			}
			o.policy = &opt
		case "tls_servername":
			if err := one(opt, "tls_servername NAME"); err != nil {
				return o, err
			}
			o.tlsName = opt.Args[0]
			if slices.ContainsFunc(d.Args[1:], overTLS) {
				im.tell(opt.Line, opt.String(), Taken, "the name behind the # of each server that is asked over TLS")
			} else {
				im.tell(opt.Line, opt.String(), Unneeded, "no server of this forward is asked over TLS")
			}
		case "tls":
			im.tls(opt)
		case "except":
			im.except(b, opt)
		case "import":
			im.unread(opt)
		default:
			if why, ok := quiet[opt.Name]; ok {
				im.tell(opt.Line, opt.String(), Unneeded, "%s", why)
			} else {
				im.tell(opt.Line, opt.String(), Lost, "this option of forward is not known here: see what CoreDNS does with it, and whether you need it")
			}
		}
	}
	return o, nil
}

func overTLS(server string) bool { return strings.HasPrefix(server, "tls://") }

// tls imports the option of that name: [CERT KEY] [CA].
func (im *importer) tls(opt corefile.Directive) {
	if n := len(opt.Args); n == 1 || n == 3 {
		ca := opt.Args[n-1]
		if !path.IsAbs(ca) {
			im.tell(opt.Line, opt.String(), Lost, "tls.caFile is an absolute file name")
		} else {
			im.take(opt.Line, opt.String(), "have that file on the node, below /etc",
				setting{key: "tls.caFile", value: path.Clean(ca), apply: func() { im.cfg.TLS.CAFile = path.Clean(ca) }})
		}
	} else if n == 0 {
		im.tell(opt.Line, opt.String(), Unneeded, "servers over TLS must have a certificate that the system trusts")
	}
	if len(opt.Args) >= 2 {
		im.tell(opt.Line, opt.String(), Lost, "a certificate of ours is shown to no server: ask one that wants none")
	}
}

// except imports the option of that name: zones that are not asked for there.
func (im *importer) except(b *block, opt corefile.Directive) {
	for _, name := range opt.Args {
		zone, err := config.ParseDomain(im.domainIn(name))
		elsewhere := false
		for _, o := range im.blocks {
			for _, z := range o.zones {
				elsewhere = elsewhere || o != b && z.kind != external && err == nil && within(zone, z.name)
			}
		}
		if elsewhere {
			im.tell(opt.Line, opt.String(), Unneeded, "%s has a block of its own", clip(name))
		} else {
			im.tell(opt.Line, opt.String(), Lost, "names below %s were refused; here they are asked like others: give them a server in stubDomains if they must not be", clip(name))
		}
	}
}

// whom reads the servers of a forward, and reports those that cannot be asked.
func (im *importer) whom(d corefile.Directive, o options) whom {
	var w whom
	var servers []string
	for _, s := range d.Args[1:] {
		switch {
		case s == holdCluster:
			w.kubeDNS = true
		case s == holdUpstream:
			w.kubeSays = true
		case s == holdVnet, path.IsAbs(s) && path.Base(s) == "resolv.conf":
			w.node = true
		case overTLS(s):
			servers = append(servers, tlsServer(s, o.tlsName))
		default:
			servers = append(servers, strings.TrimPrefix(s, "dns://"))
		}
	}
	list, unusable := im.parseServers(servers)
	for _, u := range unusable {
		im.tell(d.Line, d.String(), Lost, "%s", u)
	}
	w.list = list
	if len(list) > 0 && (w.kubeDNS || w.node || w.kubeSays) {
		im.tell(d.Line, d.String(), Lost, "%s stands beside a placeholder or a file: here it is one or the other", spell(list))
		w.list = nil
	}
	return w
}

// tlsServer is how the configuration spells tls://addr[:port][%name].
func tlsServer(s, name string) string {
	if at, own, ok := strings.Cut(s, "%"); ok {
		own, port, _ := strings.Cut(own, ":")
		if port != "" {
			at += ":" + port
		}
		return at + "#" + own
	}
	if name == "" { // the address must be in the certificate
		rest := strings.TrimPrefix(s, "tls://")
		name = rest
		if addr, err := config.ParseServer(rest); err == nil {
			name = addr.Addr().String()
		}
	}
	return s + "#" + name
}

// parseServers reads servers, and says of each other why it cannot be asked.
func (im *importer) parseServers(servers []string) (list []upstream.Addr, unusable []string) {
	for _, s := range servers {
		a, err := config.ParseServer(s)
		scheme, _, schemed := strings.Cut(s, "://")
		switch {
		case schemed && !overTLS(s):
			unusable = append(unusable, fmt.Sprintf("%s: nobody is asked by %s: name the server's address, or tls://address#name", clip(s), clip(scheme)))
		case err != nil:
			unusable = append(unusable, fmt.Sprintf("%s is not the address of a server that can be asked", clip(s)))
		case a.Port() == im.cfg.Listen.Port && slices.Contains(im.cfg.Listen.Addresses, a.Addr()):
			unusable = append(unusable, fmt.Sprintf("%s is ourselves: queries would go round", clip(s)))
		case !slices.Contains(list, a):
			list = append(list, a)
		}
	}
	return list, unusable
}

// route sends the names of z to w. It returns the stub domain that it has made, if
// it has.
func (im *importer) route(z zone, d corefile.Directive, w whom) []string {
	lose := func(format string, args ...any) { im.tell(d.Line, d.String(), Lost, format, args...) }
	plain := !slices.ContainsFunc(w.list, func(a upstream.Addr) bool { return a.TLSName != "" })
	if !w.kubeDNS && !w.node && !w.kubeSays && len(w.list) == 0 {
		if z.kind == stub {
			lose("%s has no server that can be asked, and goes the way of all other names", z.name)
		} else {
			_, name := z.kind.of(&im.cfg)
			lose("no server is left for %s: kube-dns is asked, as by default", name)
		}
		return nil
	}
	switch {
	case z.kind == cluster && (w.kubeDNS || len(w.list) > 0 && plain):
		im.clusterDNS(d, w)
	case z.kind == cluster:
		lose("the names of the cluster are asked of kube-dns (cluster.dns: auto), never over TLS or of the node's servers")
	case z.kind == reverse && im.asCluster(w):
		im.tell(d.Line, d.String(), Taken, "cluster.dns, which has reverse names too")
	case z.kind == external:
		im.upstreams(d, w)
	case len(w.list) > 0:
		if i := slices.IndexFunc(im.cfg.StubDomains, func(s dnscache.StubDomain) bool { return s.Zone == z.name }); i < 0 {
			im.addStub(z.name, w.list)
		} else if !slices.Equal(im.cfg.StubDomains[i].Servers, w.list) {
			lose("stubDomains has %s with other servers already", z.name)
			return nil
		}
		return []string{z.name}
	case w.kubeDNS && im.cfg.Upstreams.Source == dnscache.KubeDNS, (w.node || w.kubeSays && len(im.found.nameservers) == 0) && im.cfg.Upstreams.Source == dnscache.NodeResolvers:
		im.tell(d.Line, d.String(), Taken, "upstreams: other names are asked there, too")
	case w.kubeDNS:
		lose("stubDomains needs the address of kube-dns: {%s: [ADDRESS]}", z.name)
	default:
		lose("stubDomains needs the addresses of the node's servers: {%s: [ADDRESS]}", z.name)
	}
	return nil
}

// asCluster reports whether w is whom the cluster's names are asked of.
func (im *importer) asCluster(w whom) bool {
	if im.cfg.Cluster.Auto {
		return w.kubeDNS
	}
	return slices.Equal(w.list, upstream.Plain(im.cfg.Cluster.DNS))
}

func (im *importer) clusterDNS(d corefile.Directive, w whom) {
	s := setting{key: "cluster.dns", value: "auto", apply: func() {}}
	note := "kube-dns's own address, not kube-dns-upstream's"
	if !im.both {
		note += fmt.Sprintf("; say it where kubelets name %s alone to pods", im.cfg.Listen.Addresses[0])
	}
	if !w.kubeDNS {
		note = "pods have it second: take auto if it is no ClusterIP that stays, such as kube-dns-upstream's"
		s.value = "[" + spell(w.list) + "]"
		s.apply = func() {
			im.cfg.Cluster.Auto = false
			for _, a := range w.list {
				im.cfg.Cluster.DNS = append(im.cfg.Cluster.DNS, a.AddrPort)
			}
		}
	}
	im.take(d.Line, d.String(), note, s)
}

func (im *importer) upstreams(d corefile.Directive, w whom) {
	s, note := setting{key: "upstreams"}, ""
	set := func(value string, u dnscache.Upstreams) {
		s.value, s.apply = value, func() { im.cfg.Upstreams = u }
	}
	switch {
	case w.kubeDNS, len(w.list) > 0 && im.asCluster(w):
		set("kube-dns", dnscache.Upstreams{Source: dnscache.KubeDNS})
	case len(w.list) > 0:
		set("["+spell(w.list)+"]", dnscache.Upstreams{Source: dnscache.ServerList, Servers: w.list})
	case w.kubeSays && len(im.found.nameservers) > 0:
		im.tell(d.Line, d.String(), Taken, "upstreams, as upstreamNameservers of kube-dns says")
		return
	default:
		set("node", dnscache.Upstreams{Source: dnscache.NodeResolvers})
		if w.kubeSays && im.found.nothingOfKubeDNS() {
			note = "if kube-dns's ConfigMap has upstreamNameservers or stubDomains, import it along"
		}
	}
	im.take(d.Line, d.String(), note, s)
}

// manner imports how the servers of a forward are asked.
func (im *importer) manner(b *block, d corefile.Directive, o options, w whom) {
	plain := len(w.list) == 0 || slices.ContainsFunc(w.list, func(a upstream.Addr) bool { return a.TLSName == "" })
	switch {
	case o.transport == nil:
	case !plain:
		im.tell(o.transport.Line, o.transport.String(), Unneeded, "servers over TLS are asked so")
	case w.kubeSays && len(im.found.nameservers) > 0 && b.kind() == external:
		im.tell(o.transport.Line, o.transport.String(), Unneeded, "upstreamNameservers are asked over UDP, as node-cache does")
	default:
		t := transports[o.transport.Name]
		im.take(o.transport.Line, o.transport.String(), "", ofZone(im, b, "transport", t.is,
			func(z *dnscache.Zone) *dnscache.Transport { return &z.Transport },
			func(t dnscache.Transport) string {
				return map[dnscache.Transport]string{dnscache.TransportAuto: "auto", dnscache.TransportTCP: "tcp", dnscache.TransportUDP: "udp"}[t]
			}))
	}
	policy := func(line int, what, note string, p upstream.Policy) {
		im.take(line, what, note, ofZone(im, b, "policy", p,
			func(z *dnscache.Zone) *upstream.Policy { return &z.Policy }, upstream.Policy.String))
	}
	if o.policy != nil {
		policy(o.policy.Line, o.policy.String(), "", policies[o.policy.Args[0]])
	} else if len(w.list) > 1 && b.kind() != stub {
		policy(d.Line, d.String(), "as CoreDNS picks where no policy is said", upstream.Random)
	}
}

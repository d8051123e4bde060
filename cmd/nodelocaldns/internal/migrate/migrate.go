// Package migrate makes a configuration of what the node-local-dns DaemonSet
// runs on: the Corefile of its ConfigMap, and the ConfigMap of kube-dns. It says of
// each directive what has become of it. What the sources say nothing about is as
// [config.Default] has it.
//
// What directives mean is what CoreDNS 1.15 makes of them; what the placeholders
// in a Corefile stand for, node-cache 1.26 (kubernetes/dns, cmd/node-cache).
package migrate

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/cmd/nodelocaldns/internal/corefile"
	"nodelocaldns/dnscache"
	"nodelocaldns/dnscache/upstream"
)

// What node-cache, or who deploys it, puts in the place of these.
const (
	holdLocal    = "__PILLAR__LOCAL__DNS__"        // where pods ask, -localip
	holdServer   = "__PILLAR__DNS__SERVER__"       // kube-dns's address, held as well
	holdCluster  = "__PILLAR__CLUSTER__DNS__"      // kube-dns by an address that is not held
	holdUpstream = "__PILLAR__UPSTREAM__SERVERS__" // upstreamNameservers of kube-dns, else the node's
	holdDomain   = "__PILLAR__DNS__DOMAIN__"
	// The LocalDNS of AKS has the servers of the virtual network in its place.
	holdVnet = "Vnet_Dns_Servers"
)

// nodeCacheTTL is for how long node-cache keeps replies of the stub domains in
// kube-dns's ConfigMap (defaultTTL in cmd/node-cache/app/configmap.go).
const nodeCacheTTL = 30 * time.Second

// A kind of zone is one that has settings of its own, or a stub domain.
type kind int

const (
	cluster kind = iota // the order in which blocks have their say
	reverse
	external
	stub
)

// of are the settings of k in c, and what they are called. Stub domains have those of
// all other names.
func (k kind) of(c *config.Config) (*dnscache.Zone, string) {
	switch k {
	case cluster:
		return &c.Zones.Cluster, "zones.cluster"
	case reverse:
		return &c.Zones.Reverse, "zones.reverse"
	}
	return &c.Zones.External, "zones.external"
}

// A zone is one that a block serves.
type zone struct {
	name string // lower case, without a trailing dot; "." for the root
	port uint16
	kind kind
	key  corefile.Word
	held bool // it is the placeholder for the cluster's domain
}

// A block is a server block with those of its zones that are imported. They are of
// one kind, once the cluster's domain is known: see importer.split.
type block struct {
	corefile.Block
	zones []zone
	binds []corefile.Directive
}

func (b *block) kind() kind { return b.zones[0].kind }

// plugins are the directives of b of this name.
func (b *block) plugins(name string) []corefile.Directive {
	var ds []corefile.Directive
	for _, d := range b.Directives {
		if d.Name == name {
			ds = append(ds, d)
		}
	}
	return ds
}

// servers are whom b asks, as it spells them.
func (b *block) servers() []string {
	for _, d := range b.plugins("forward") {
		if len(d.Args) > 1 {
			return d.Args[1:]
		}
	}
	return nil
}

// An importer makes a configuration and a report.
type importer struct {
	cfg    config.Config
	report Report
	found  found
	said   map[string]saying // by the key of the configuration
	blocks []*block
	only   string // of the addresses of blocks, as it is spelled; empty: all
	both   bool   // kube-dns's own address is held as well, so that kubelets name it
}

// A saying is the value that a directive has given to a key.
type saying struct {
	value string
	line  int
}

// Import makes a configuration of sources: of one Corefile, bare or in a ConfigMap,
// of a ConfigMap of kube-dns, or of both. The configuration is valid. The error is
// an [*Error].
func Import(sources []Source) (config.Config, Report, error) {
	f, err := find(sources)
	if err != nil {
		return config.Config{}, nil, err
	}
	im := &importer{cfg: config.Default(), found: f, said: map[string]saying{}}
	if f.corefile != nil {
		if err := im.corefile(); err != nil {
			return config.Config{}, nil, err
		}
	}
	im.kubeDNS()
	if f.corefile != nil {
		im.unreversed()
	}
	for _, e := range f.others {
		im.report.add(Item{e.file, []int{e.line}, "data." + clip(e.key), Lost, "not read: what imports it, or is made of it, is not known"})
	}
	im.finish()
	im.report.sort()
	c, err := config.Parse(bytes.NewReader(im.cfg.YAML()))
	if err != nil { // FuzzImport has found no source that leads here
		return c, nil, &Error{sources[0].Name, "what it comes to is no valid configuration: " + err.Error(), ""}
	}
	return c, im.report, nil
}

// bad is an error of the Corefile's line.
func (im *importer) bad(line int, next, format string, args ...any) error {
	return &Error{im.found.corefile.at(line), fmt.Sprintf(format, args...), next}
}

// tell reports what has become of something in the Corefile.
func (im *importer) tell(line int, what string, v Verdict, format string, args ...any) {
	t := im.found.corefile
	i := Item{File: t.name, What: clip(what), Verdict: v, Text: fmt.Sprintf(format, args...)}
	if line > 0 {
		i.Lines = []int{t.offset + line}
	}
	im.report.add(i)
}

// A setting is a value for a key of the configuration.
type setting struct {
	key, value string // as they are spelled
	apply      func() // nil: it may only be as it is
	have       string // what it is where apply is nil
}

// take gives keys their values, or says why they have others. The first who says
// something has it.
func (im *importer) take(line int, what, note string, settings ...setting) {
	if note != "" {
		note = "; " + note
	}
	var taken []setting
	for _, s := range settings {
		before, ok := im.said[s.key]
		switch {
		case ok && before.value == s.value, s.apply == nil && s.have == s.value:
			taken = append(taken, s)
		case s.apply == nil:
			im.tell(line, what, Lost, "a stub domain has no setting of its own: %s is %s for it too", s.key, s.have)
		case ok:
			im.tell(line, what, Lost, "%s: %s here, but line %d has said %s: there is one for both", s.key, s.value, im.found.corefile.offset+before.line, before.value)
		default:
			s.apply()
			im.said[s.key] = saying{s.value, line}
			taken = append(taken, s)
		}
	}
	var text strings.Builder
	for i, s := range taken {
		text.WriteString(s.key)
		if i+1 == len(taken) || taken[i+1].value != s.value {
			text.WriteString(": " + s.value)
		}
		if i+1 < len(taken) {
			text.WriteString(", ")
		}
	}
	if len(taken) > 0 {
		im.tell(line, what, Taken, "%s%s", &text, note)
	}
}

// ofZone is the setting of the zones of b. field is where the value is, spell how it
// is written.
func ofZone[T comparable](im *importer, b *block, key string, value T, field func(*dnscache.Zone) *T, spell func(T) string) setting {
	z, name := b.kind().of(&im.cfg)
	s := setting{key: name + "." + key, value: spell(value), have: spell(*field(z))}
	if b.kind() != stub {
		s.apply = func() { *field(z) = value }
	}
	return s
}

// corefile imports the Corefile.
func (im *importer) corefile() error {
	f, err := parseCorefile(*im.found.corefile)
	if err != nil {
		return err
	}
	for _, d := range f.Imports {
		im.unread(d)
	}
	if len(f.Blocks) == 0 {
		return im.bad(1, hintSources, "found no server block")
	}
	if err := im.choose(f.Blocks); err != nil {
		return err
	}
	im.domain()
	im.split()
	if err := im.listen(); err != nil {
		return err
	}
	for _, b := range im.blocks {
		if err := im.block(b); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(im.blocks, func(b *block) bool { return b.kind() == external }) {
		im.tell(0, "no block for .", Lost, "other names were refused; here kube-dns is asked for them (upstreams: kube-dns)")
	}
	return nil
}

// split makes blocks of one kind of zone each, in the order of the kinds.
func (im *importer) split() {
	var blocks []*block
	for k := range stub + 1 {
		for _, b := range im.blocks {
			part := *b
			part.zones = slices.DeleteFunc(slices.Clone(b.zones), func(z zone) bool { return z.kind != k })
			if len(part.zones) > 0 {
				blocks = append(blocks, &part)
			}
		}
	}
	im.blocks = blocks
}

func (im *importer) unread(d corefile.Directive) {
	im.tell(d.Line, d.String(), Lost, "the file that it names was not read: put its text in its place, and import again")
}

// choose picks the blocks, and of their zones those, that one resolver can stand
// for: it listens on one port, and answers alike at all of its addresses.
func (im *importer) choose(blocks []corefile.Block) error {
	for _, cb := range blocks {
		b := &block{Block: cb}
		b.binds = b.plugins("bind")
		if v := b.plugins("view"); len(v) > 0 {
			im.tell(cb.Keys[0].Line, "block "+keys(cb), Lost, "it answered some clients only, by the view on line %d: all are answered alike here", im.found.corefile.offset+v[0].Line)
			continue
		}
		for _, k := range cb.Keys {
			zs, err := im.zones(k)
			if err != nil {
				return err
			}
			b.zones = append(b.zones, zs...)
		}
		if len(b.zones) > 0 {
			im.blocks = append(im.blocks, b)
		}
	}
	if err := im.port(); err != nil {
		return err
	}
	return im.listener()
}

func keys(b corefile.Block) string {
	var ks []string
	for _, k := range b.Keys {
		ks = append(ks, k.Text)
	}
	return strings.Join(ks, " ")
}

// zones are those that a key of a block stands for: several for a prefix that ends
// within a label of in-addr.arpa.
func (im *importer) zones(k corefile.Word) ([]zone, error) {
	name, port := k.Text, uint16(53)
	if scheme, rest, ok := strings.Cut(name, "://"); ok {
		if scheme != "dns" {
			im.tell(k.Line, "block "+k.Text, Lost, "%s is not served; pods ask over UDP and TCP", scheme)
			return nil, nil
		}
		name = rest
	}
	if host, digits, ok := cutPort(name); ok {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 {
			return nil, im.bad(k.Line, "", "zone %s: found port %q, allowed: a number from 1 to 65535", clip(k.Text), clip(digits))
		}
		name, port = host, uint16(n)
	}
	z := zone{name: name, port: port, key: k}
	switch prefix, err := netip.ParsePrefix(name); {
	case name == "." || name == "":
		z.name, z.kind = ".", external
		return []zone{z}, nil
	case err == nil:
		var zs []zone
		for _, name := range reverseZones(prefix) {
			z.name, z.kind = name, stub
			zs = append(zs, z)
		}
		return zs, nil
	default:
		z.held = name == holdDomain
		parsed, err := config.ParseDomain(im.domainIn(name))
		if err != nil || strings.Contains(parsed, "__pillar__") {
			return nil, im.bad(k.Line, "", "found %q as a zone, allowed: a domain name, such as cluster.local:53", clip(k.Text))
		}
		z.name = parsed
	}
	z.kind = stub
	if z.name == "in-addr.arpa" || z.name == "ip6.arpa" {
		z.kind = reverse
	}
	return []zone{z}, nil
}

// domainIn is s with the domain of the cluster in the place of its placeholder.
func (im *importer) domainIn(s string) string {
	return strings.Replace(s, holdDomain, im.cfg.Cluster.Domain, 1)
}

// cutPort takes the port off a zone. An IPv6 prefix has colons of its own, in front
// of its slash.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < strings.IndexByte(s, '/') || i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// reverseZones are the zones for the addresses of p: whole labels, of 8 bits in IPv4
// and 4 in IPv6.
func reverseZones(p netip.Prefix) []string {
	p = p.Masked()
	size, suffix := 8, "in-addr.arpa"
	if p.Addr().Is6() {
		size, suffix = 4, "ip6.arpa"
	}
	labels := (p.Bits() + size - 1) / size
	octets := p.Addr().AsSlice()
	label := func(i, more int) string {
		if size == 4 {
			return strconv.FormatInt(int64(octets[i/2]>>(4*(1-i%2))&0xf)+int64(more), 16)
		}
		return strconv.Itoa(int(octets[i]) + more)
	}
	var zs []string
	for more := range 1 << (labels*size - p.Bits()) {
		name := suffix
		for i := range labels {
			name = label(i, 0) + "." + name
		}
		if labels > 0 {
			_, rest, _ := strings.Cut(name, ".")
			name = label(labels-1, more) + "." + rest
		}
		zs = append(zs, name)
	}
	return zs
}

// port keeps the zones of one port: 53 where there is one.
func (im *importer) port() error {
	var ports []uint16
	for _, b := range im.blocks {
		for _, z := range b.zones {
			ports = append(ports, z.port)
		}
	}
	if len(ports) == 0 {
		return im.bad(1, hintSources, "found no block that answers pods over UDP and TCP")
	}
	port := ports[0]
	if slices.Contains(ports, 53) {
		port = 53
	}
	im.keep(func(b *block, z zone) bool {
		if z.port != port {
			im.tell(z.key.Line, "block "+z.key.Text, Lost, "there is one port, and it is %d; another process may answer at %d", port, z.port)
		}
		return z.port == port
	})
	if port != 53 {
		im.cfg.Listen.Port = port
		line := im.blocks[0].zones[0].key.Line
		im.tell(line, "port "+strconv.Itoa(int(port)), Taken, "listen.port: %d; the kubelet is left alone, for pods ask port 53", port)
	}
	return nil
}

// keep keeps the zones that want is true of, and the blocks that have one.
func (im *importer) keep(want func(*block, zone) bool) {
	var blocks []*block
	for _, b := range im.blocks {
		b.zones = slices.DeleteFunc(b.zones, func(z zone) bool { return !want(b, z) })
		if len(b.zones) > 0 {
			blocks = append(blocks, b)
		}
	}
	im.blocks = blocks
}

// listener decides between blocks that answer for the same zone at different
// addresses, as in the LocalDNS of AKS: one address for the node and for pods
// that ask it (dnsPolicy: Default), another for pods that ask kube-dns
// (ClusterFirst). The latter is the one whose other names go where those of the
// cluster go.
func (im *importer) listener() error {
	first := map[string]*block{}
	var again *block
	var at zone
	for _, b := range im.blocks {
		for _, z := range b.zones {
			o := first[z.name]
			if o == nil {
				first[z.name] = b
				continue
			}
			if o == b || slices.ContainsFunc(addresses(b), func(a string) bool { return slices.Contains(addresses(o), a) }) || len(addresses(b)) == 0 || len(addresses(o)) == 0 {
				return im.bad(z.key.Line, "CoreDNS does not start with this Corefile either", "found zone %s again, at the same address", z.name)
			}
			if again == nil {
				again, at = b, z
			}
		}
	}
	if again == nil {
		return nil
	}
	chosen := addresses(first[at.name])[0]
	for _, b := range im.blocks {
		for _, a := range addresses(b) {
			if im.likeKubeDNS(a) {
				chosen = a
			}
		}
	}
	im.keep(func(b *block, z zone) bool {
		here := slices.Contains(addresses(b), chosen)
		if !here {
			im.tell(z.key.Line, "block "+keys(b.Block), Lost, "it answers at %s alone, and zones there have other servers or settings than at %s, whose blocks are taken: a resolver answers alike everywhere", strings.Join(addresses(b), " "), chosen)
		}
		return here
	})
	im.only = chosen
	return nil
}

// addresses are where b answers, as it spells them.
func addresses(b *block) []string {
	var as []string
	for _, d := range b.binds {
		as = append(as, d.Args...)
	}
	return as
}

// likeKubeDNS reports whether other names go where those of a cluster go, at this
// address.
func (im *importer) likeKubeDNS(address string) bool {
	var root, inside []string
	for _, b := range im.blocks {
		if !slices.Contains(addresses(b), address) {
			continue
		}
		for _, z := range b.zones {
			switch {
			case z.kind == external:
				root = b.servers()
			case z.held || z.name == im.cfg.Cluster.Domain:
				inside = b.servers()
			}
		}
	}
	return len(root) > 0 && slices.Equal(root, inside)
}

// domain finds the domain of the cluster among the zones.
func (im *importer) domain() {
	var arpa []string
	for _, b := range im.blocks {
		if slices.ContainsFunc(b.zones, func(z zone) bool { return z.kind == reverse }) && arpa == nil {
			arpa = b.servers()
		}
	}
	for _, is := range []func(*block, zone) bool{
		func(_ *block, z zone) bool { return z.held },
		func(_ *block, z zone) bool { return z.name == im.cfg.Cluster.Domain },
		func(b *block, _ zone) bool { return slices.Contains(b.servers(), holdCluster) },
		func(b *block, _ zone) bool { return len(b.plugins("kubernetes")) > 0 },
		func(b *block, _ zone) bool { return len(arpa) > 0 && slices.Equal(b.servers(), arpa) },
	} {
		for _, b := range im.blocks {
			for i := range b.zones {
				z := &b.zones[i]
				if z.kind != stub || strings.HasSuffix(z.name, ".arpa") || !is(b, *z) {
					continue
				}
				z.kind = cluster
				im.cfg.Cluster.Domain = z.name
				note := ""
				if z.held {
					note = "; the Corefile does not say it: look at clusterDomain of a kubelet"
				}
				im.tell(z.key.Line, "zone "+z.name, Taken, "cluster.domain: %s%s", z.name, note)
				return
			}
		}
	}
	im.tell(0, "no block for the cluster's domain", Lost, "cluster.domain is %s here, and kube-dns is asked for its names", im.cfg.Cluster.Domain)
}

// listen takes over where pods ask.
func (im *importer) listen() error {
	usual := im.cfg.Listen.Addresses
	im.cfg.Listen.Addresses = nil
	for _, b := range im.blocks {
		for _, d := range b.binds {
			if err := im.bind(d); err != nil {
				return err
			}
		}
	}
	if len(im.cfg.Listen.Addresses) > 0 {
		return nil
	}
	im.cfg.Listen.Addresses = usual
	if !slices.ContainsFunc(im.blocks, func(b *block) bool { return len(b.binds) > 0 }) {
		im.tell(0, "no bind", Lost, "it answered at every address; here it is %s alone (listen.addresses)", im.cfg.Listen.Addresses[0])
	}
	return nil
}

func (im *importer) bind(d corefile.Directive) error {
	if len(d.Args) == 0 {
		return im.bad(d.Line, "", "bind: an address is missing")
	}
	what := d.String()
	isLocal := func(s string) bool {
		a, err := netip.ParseAddr(s)
		return s == holdLocal || err == nil && a.Is4() && a.IsLinkLocalUnicast()
	}
	local := slices.ContainsFunc(d.Args, isLocal)
	// Where kube-proxy works by iptables, node-cache holds kube-dns's own address,
	// too. It is the one that is not link-local; of others the first is where pods ask.
	second := false
	var families []bool // of what is taken and not link-local: is it IPv6
	var taken []string
	for _, s := range d.Args {
		a, err := config.ParseListenAddr(strings.Replace(s, holdLocal, config.Default().Listen.Addresses[0].String(), 1))
		switch {
		case im.only != "" && s != im.only:
			im.tell(d.Line, what, Lost, "%s is where the blocks answer that are left out", clip(s))
		case s == holdServer, local && err == nil && a.Is4() && !a.IsLinkLocalUnicast():
			second, im.both = true, true
			im.tell(d.Line, what, Unneeded, "%s stays kube-dns's own; pods that run ask there until they are replaced, new ones have it second", s)
		case err != nil:
			im.tell(d.Line, what, Lost, "%s: listen.addresses are addresses that pods can ask, each by itself, no device and no wildcard", clip(s))
		case !isLocal(s) && (second && a.Is6() || slices.Contains(families, a.Is6())):
			im.tell(d.Line, what, Lost, "it cannot be seen whether %s is kube-dns's own: add it to listen.addresses if it is not", s)
		default:
			if !isLocal(s) {
				families = append(families, a.Is6())
			}
			taken = append(taken, a.String())
			if !slices.Contains(im.cfg.Listen.Addresses, a) {
				im.cfg.Listen.Addresses = append(im.cfg.Listen.Addresses, a)
			}
		}
	}
	if len(taken) > 0 {
		note := ""
		if slices.Contains(d.Args, holdLocal) {
			note = "; the Corefile does not say it: look at -localip of the DaemonSet"
		}
		im.tell(d.Line, what, Taken, "listen.addresses: [%s]%s", strings.Join(taken, ", "), note)
	}
	for _, o := range d.Block {
		im.tell(o.Line, o.String(), Lost, "listen.addresses are those that are listed there")
	}
	return nil
}

// block imports all but bind of b.
func (im *importer) block(b *block) error {
	// Who is asked for a part of it may follow from who is asked for the rest.
	part := func(d corefile.Directive) bool { return d.Name == "forward" && len(d.Args) > 0 && d.Args[0] != "." }
	rest := slices.DeleteFunc(slices.Clone(b.Directives), part)
	for _, d := range append(rest, slices.DeleteFunc(slices.Clone(b.Directives), func(d corefile.Directive) bool { return !part(d) })...) {
		if err := im.directive(b, d); err != nil {
			return err
		}
	}
	line, what := b.zones[0].key.Line, "block "+keys(b.Block)
	switch {
	case len(b.plugins("forward")) == 0:
		im.tell(line, what, Lost, "it asked nobody; its names go the way of all others here")
	case len(b.plugins("cache")) == 0:
		none := dnscache.Limits{}
		im.take(line, what, "it had no cache", im.success(b, none), im.denial(b, none))
	}
	return nil
}

// kubeDNS imports the ConfigMap of kube-dns.
func (im *importer) kubeDNS() {
	f := im.found
	for _, spelled := range sorted(f.stubDomains) {
		item := Item{File: f.stubsAt.file, Lines: []int{f.stubsAt.line}, What: "stubDomains " + clip(spelled)}
		lose := func(format string, args ...any) {
			item.Verdict, item.Text = Lost, fmt.Sprintf(format, args...)
			im.report.add(item)
		}
		name, err := config.ParseDomain(spelled)
		if err != nil {
			lose("it is no domain name")
			continue
		}
		servers, unusable := im.parseServers(f.stubDomains[spelled])
		for _, s := range unusable {
			lose("%s", s)
		}
		switch {
		case name == im.cfg.Cluster.Domain:
			lose("it is the cluster's own domain, which cluster.dns answers")
		case im.hasStub(name):
			lose("the Corefile has a block for it, and that is taken")
		case len(servers) > 0:
			im.addStub(name, servers)
			item.Verdict, item.Text = Taken, fmt.Sprintf("stubDomains: {%s: [%s]}", name, spell(servers))
			im.report.add(item)
			if have := im.cfg.Zones.External.Success; f.corefile != nil && have.MaxTTL != nodeCacheTTL {
				lose("node-cache kept it for %s; a stub domain has no setting of its own: zones.external.success is %s for it too", nodeCacheTTL, spellLimits(have))
			}
		}
	}
	if len(f.nameservers) == 0 {
		return
	}
	item := Item{File: f.serversAt.file, Lines: []int{f.serversAt.line}, What: "upstreamNameservers " + clip(strings.Join(f.nameservers, " "))}
	if f.corefile != nil && !im.heldUpstream() {
		item.Verdict, item.Text = Unneeded, "the Corefile does not ask them: it names others for other names; kube-dns asks them for itself"
		im.report.add(item)
		return
	}
	servers, unusable := im.parseServers(f.nameservers)
	for _, s := range unusable {
		im.report.add(Item{item.File, item.Lines, item.What, Lost, s})
	}
	if len(servers) > 0 {
		im.cfg.Upstreams = dnscache.Upstreams{Source: dnscache.ServerList, Servers: servers}
		item.Verdict, item.Text = Taken, fmt.Sprintf("upstreams: [%s]", spell(servers))
		im.report.add(item)
	}
}

// unreversed reports the reverse zones that had no block, and so were served as
// other names are. Here they have zones.reverse, and kube-dns is asked.
func (im *importer) unreversed() {
	z := im.cfg.Zones
	served := func(name string) bool {
		return im.hasStub(name) || slices.ContainsFunc(im.blocks, func(b *block) bool {
			return slices.ContainsFunc(b.zones, func(z zone) bool { return z.name == name })
		})
	}
	alike := im.cfg.Upstreams.Source == dnscache.KubeDNS && z.Reverse.Success == z.External.Success && z.Reverse.Denial == z.External.Denial
	missing := slices.DeleteFunc([]string{"in-addr.arpa", "ip6.arpa"}, served)
	if len(missing) > 0 && served(".") && !alike {
		im.tell(0, "no block for "+strings.Join(missing, ", "), Lost, "reverse names went the way of all others; here kube-dns is asked for them, and zones.reverse has their TTLs: stubDomains sends them elsewhere")
	}
}

// heldUpstream reports whether the Corefile leaves to the ConfigMap of kube-dns who
// is asked for other names.
func (im *importer) heldUpstream() bool {
	return slices.ContainsFunc(im.blocks, func(b *block) bool {
		return b.kind() == external && slices.Contains(b.servers(), holdUpstream)
	})
}

func (im *importer) hasStub(name string) bool {
	return slices.ContainsFunc(im.cfg.StubDomains, func(d dnscache.StubDomain) bool { return d.Zone == name })
}

func (im *importer) addStub(name string, servers []upstream.Addr) {
	im.cfg.StubDomains = append(im.cfg.StubDomains, dnscache.StubDomain{Zone: name, Servers: servers})
	slices.SortFunc(im.cfg.StubDomains, func(a, b dnscache.StubDomain) int { return cmp.Compare(a.Zone, b.Zone) })
}

// finish settles what follows from the rest.
func (im *importer) finish() {
	c := &im.cfg
	if z := c.Zones; z.Cluster.Stale == z.Reverse.Stale && z.Reverse.Stale == z.External.Stale {
		c.Cache.ServeStale = z.Cluster.Stale
	}
	// The default is at the default address, which may not be on this node.
	if _, ok := im.said["health.address"]; !ok && !slices.Contains(c.Listen.Addresses, c.Health.Addr) {
		c.Health.Addr = c.Listen.Addresses[0]
		im.tell(0, "no health", Taken, "health.address: %q, as listen.addresses", c.Health)
	}
	if c.Health == c.Metrics {
		im.tell(im.said["health.address"].line, "health", Lost, "the metrics are served at %q: health.address is nowhere", c.Metrics)
		c.Health = config.Endpoint{}
	}
}

// spell is how the configuration spells servers.
func spell(servers []upstream.Addr) string {
	var ss []string
	for _, s := range servers {
		if s.TLSName == "" && s.Port() == 53 {
			ss = append(ss, s.Addr().String())
		} else {
			ss = append(ss, s.String())
		}
	}
	return strings.Join(ss, ", ")
}

package config

import (
	"cmp"
	_ "embed"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"nodelocaldns/dnscache"
)

// Reference is the file that says what [Default] says, with a comment a key.
//
//go:embed reference.yaml
var Reference []byte

// bare are the texts that YAML reads back as text without quotes. It is
// narrower than YAML: the rest is quoted, needed or not.
var bare = regexp.MustCompile(`^[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+$|^[a-z]{3,}[a-z-]*[0-9]$|^[0-9]+(\.[0-9]+){3}$`)

func quote(s string) string {
	if bare.MatchString(s) {
		return s
	}
	return strconv.Quote(s)
}

func quoteAll[T any](xs []T, format func(T) string) string {
	ss := make([]string, len(xs))
	for i, x := range xs {
		ss[i] = quote(format(x))
	}
	return "[" + strings.Join(ss, ", ") + "]"
}

// spelled is the word that stands for v among words.
func spelled[T comparable](words map[string]T, v T) string {
	for word, w := range words {
		if w == v {
			return word
		}
	}
	return ""
}

// YAML is c as a file that [Parse] reads back as c, every key given.
func (c Config) YAML() []byte {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	stale := func(indent string, s dnscache.Stale) {
		p("%sfor: %s", indent, s.For)
		p("%sanswerTTL: %s", indent, s.AnswerTTL)
		p("%sclientTimeout: %s", indent, s.ClientTimeout)
		p("%sdenial: %t", indent, s.Denial)
	}

	p("listen:")
	p("  addresses: %s", quoteAll(c.Listen.Addresses, netip.Addr.String))
	p("  port: %d", c.Listen.Port)
	p("  interface: %s", quote(c.Listen.Interface))
	p("  linkType: %s", c.Listen.LinkType)
	p("cluster:")
	p("  domain: %s", quote(c.Cluster.Domain))
	if c.Cluster.Auto {
		p("  dns: %s", wordAuto)
	} else {
		p("  dns: %s", quoteAll(c.Cluster.DNS, formatPlain))
	}
	switch c.Upstreams.Source {
	case dnscache.KubeDNS:
		p("upstreams: %s", wordKubeDNS)
	case dnscache.NodeResolvers:
		p("upstreams: %s", wordNode)
	case dnscache.ServerList:
		p("upstreams: %s", quoteAll(c.Upstreams.Servers, formatServer))
	}
	if len(c.StubDomains) == 0 {
		p("stubDomains: {}")
	} else {
		p("stubDomains:")
		for _, d := range c.StubDomains {
			p("  %s: %s", quote(d.Zone), quoteAll(d.Servers, formatServer))
		}
	}
	p("tls:")
	p("  caFile: %s", strconv.Quote(c.TLS.CAFile))
	p("zones:")
	for _, z := range []struct {
		name string
		dnscache.Zone
	}{{"cluster", c.Zones.Cluster}, {"reverse", c.Zones.Reverse}, {"external", c.Zones.External}} {
		p("  %s:", z.name)
		p("    success: {entries: %d, maxTTL: %s}", z.Success.Entries, z.Success.MaxTTL)
		p("    denial: {entries: %d, maxTTL: %s}", z.Denial.Entries, z.Denial.MaxTTL)
		p("    transport: %s", spelled(transports, z.Transport))
		p("    policy: %s", spelled(policies, z.Policy))
		p("    randomizeCase: %t", z.RandomizeCase)
		if z.Stale == c.Cache.ServeStale {
			p("    serveStale: %s", wordAuto)
		} else {
			p("    serveStale:")
			stale("      ", z.Stale)
		}
	}
	p("cache:")
	p("  maxBytes: %s", formatSize(c.Cache.MaxBytes))
	p("  serveStale:")
	stale("    ", c.Cache.ServeStale)
	p("  prefetch:")
	p("    at: %d%%", c.Cache.Prefetch.At)
	p("    minHits: %d", c.Cache.Prefetch.MinHits)
	p("  reload: %d", c.Cache.Reload)
	p("  persist: %t", c.Cache.Persist)
	p("searchPath:")
	p("  collapse: %t", c.SearchPath.Collapse)
	p("kubelet:")
	p("  manage: %t", c.Kubelet.Manage)
	p("  unit: %s", quote(cmp.Or(c.Kubelet.Unit, wordAuto)))
	p("  backend: %s", c.Kubelet.Backend)
	p("  drain: %s", c.Kubelet.Drain)
	p("  timeout: %s", c.Kubelet.Timeout)
	p("  settle: %s", c.Kubelet.Settle)
	p("  kubeconfig: %s", quote(cmp.Or(c.Kubelet.Kubeconfig, wordAuto)))
	if len(c.Sysctls) == 0 {
		p("sysctls: {}")
	} else {
		p("sysctls:")
		for _, s := range c.Sysctls {
			p("  %s: {value: %d, policy: %s}", s.Key, s.Value, s.Policy)
		}
	}
	p("notrack:")
	p("  enabled: %t", c.Notrack.Enabled)
	p("  backend: %s", c.Notrack.Backend)
	p("metrics:")
	p("  address: %s", strconv.Quote(c.Metrics.String()))
	p("health:")
	p("  address: %s", strconv.Quote(c.Health.String()))
	return []byte(b.String())
}

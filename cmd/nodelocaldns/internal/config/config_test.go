package config

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"nodelocaldns/dnscache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/host"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/sysctl"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// Read over nothing, not over the defaults: a key that the reference lacks
// would stay zero.
func TestTheReferenceSaysWhatTheCodeDoes(t *testing.T) {
	got, r, err := parse(bytes.NewReader(Reference), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, compare); diff != "" {
		t.Errorf("reference.yaml differs from Default() (-code +reference):\n%s", diff)
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(r.known)), slices.Sorted(slices.Values(r.given))); diff != "" {
		t.Errorf("keys the code knows, and keys of reference.yaml (-code +reference):\n%s", diff)
	}
}

func TestEveryKeyOfTheReferenceHasAComment(t *testing.T) {
	// The second and later of a row of alike keys need none.
	alike := []string{"success:", "denial:", "entries:", "maxTTL:", "transport:", "policy:", "randomizeCase:", "serveStale: auto", "net.netfilter."}
	for i, line := range strings.Split(string(Reference), "\n") {
		key := strings.TrimSpace(line)
		if key == "" || strings.Contains(line, "# ") || !strings.HasPrefix(line, " ") ||
			slices.ContainsFunc(alike, func(a string) bool { return strings.HasPrefix(key, a) }) {
			continue
		}
		t.Errorf("line %d has no comment: %s", i+1, line)
	}
}

func TestAnEmptyFileIsAllDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "--- # nothing\n...\n", "{}"} {
		got, err := Parse(strings.NewReader(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if diff := cmp.Diff(Default(), got, compare); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestShowIsReadBack(t *testing.T) {
	for _, text := range []string{"", everything} {
		c, err := Parse(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		got, r, err := parse(bytes.NewReader(c.YAML()), Config{})
		if err != nil {
			t.Fatalf("%v in\n%s", err, c.YAML())
		}
		if diff := cmp.Diff(c, got, compare); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(r.known)), slices.Sorted(slices.Values(r.given))); text == "" && diff != "" {
			t.Errorf("keys the code knows, and keys shown (-code +shown):\n%s", diff)
		}
	}
}

// everything sets each key to something that is not its default.
const everything = `
health: {address: ""}
metrics: {address: "[fd00::1]:9000"}
notrack: {enabled: false, backend: legacy}
sysctls:
  net.netfilter.nf_conntrack_tcp_timeout_close_wait: {value: 60, policy: exact}
  net.netfilter.nf_conntrack_max: {value: 2097152}
kubelet: {manage: false, unit: kubelet@1.service, backend: args-file, drain: cordon, timeout: 10m, settle: 1m30s, kubeconfig: /etc/kubernetes/our.conf}
cache: {maxBytes: 1536KiB, serveStale: {for: 2h, answerTTL: 7s, clientTimeout: 250ms, denial: true}, prefetch: {at: 25%, minHits: 3}, reload: 4, persist: false}
searchPath: {collapse: false}
zones:
  cluster: {success: {entries: 1, maxTTL: 2s}, denial: {entries: 3, maxTTL: 0}, transport: auto, policy: random, serveStale: {for: 3h, denial: false}}
  reverse: {success: {entries: 4, maxTTL: 1h30m}, denial: {entries: 0, maxTTL: 168h}, transport: udp, policy: round-robin, randomizeCase: true, serveStale: {for: 0s, answerTTL: 1s, clientTimeout: 800ms, denial: true}}
  external: {success: {entries: 5, maxTTL: 6s}, denial: {entries: 7, maxTTL: 8s}, transport: tcp}
stubDomains:
  Corp.Example.: [192.0.2.1, "192.0.2.2:5353", tls://192.0.2.5#DNS.Example.]
  "10.in-addr.arpa": ["[2001:db8::2]:54"]
  "0x10": [2001:db8::3]
upstreams: [192.0.2.3, "192.0.2.4:54", "fe80::1%eth0", tls://192.0.2.3:8853#192.0.2.3, "tls://[2001:db8::4]:853#dns.example", "tls://2001:db8::5#dns.example"]
tls: {caFile: /etc/ssl/our-ca.pem}
cluster: {domain: K8S.Local., dns: [10.96.0.10, fd00::a]}
listen: {addresses: [169.254.20.11, "fd00::20:11", 127.0.0.1], port: 5353, interface: nld1, linkType: bridge}
`

func TestEveryKeyIsRead(t *testing.T) {
	addr, ap := netip.MustParseAddr, netip.MustParseAddrPort
	limits := func(n int, d time.Duration) dnscache.Limits { return dnscache.Limits{Entries: n, MaxTTL: d} }
	got, err := Parse(strings.NewReader(everything))
	if err != nil {
		t.Fatal(err)
	}
	stale := dnscache.Stale{For: 2 * time.Hour, AnswerTTL: 7 * time.Second, ClientTimeout: 250 * time.Millisecond, Denial: true}
	ofCluster, ofReverse := stale, dnscache.Stale{AnswerTTL: time.Second, ClientTimeout: 800 * time.Millisecond, Denial: true}
	ofCluster.For, ofCluster.Denial = 3*time.Hour, false
	prefetch := dnscache.Prefetch{At: 25, MinHits: 3}
	zones := Zones{
		Cluster:  dnscache.Zone{Success: limits(1, 2*time.Second), Denial: limits(3, 0), Transport: dnscache.TransportAuto, Policy: upstream.Random, Stale: ofCluster},
		Reverse:  dnscache.Zone{Success: limits(4, 90*time.Minute), Denial: limits(0, 168*time.Hour), Transport: dnscache.TransportUDP, Policy: upstream.RoundRobin, RandomizeCase: true, Stale: ofReverse},
		External: dnscache.Zone{Success: limits(5, 6*time.Second), Denial: limits(7, 8*time.Second), Transport: dnscache.TransportTCP, Stale: stale},
	}
	upstreams := dnscache.Upstreams{
		Source: dnscache.ServerList,
		Servers: append(upstream.Plain([]netip.AddrPort{ap("192.0.2.3:53"), ap("192.0.2.4:54"), ap("[fe80::1%eth0]:53")}),
			upstream.Addr{AddrPort: ap("192.0.2.3:8853"), TLSName: "192.0.2.3"},
			upstream.Addr{AddrPort: ap("[2001:db8::4]:853"), TLSName: "dns.example"},
			upstream.Addr{AddrPort: ap("[2001:db8::5]:853"), TLSName: "dns.example"}),
	}
	stubs := []dnscache.StubDomain{
		{Zone: "0x10", Servers: upstream.Plain([]netip.AddrPort{ap("[2001:db8::3]:53")})},
		{Zone: "10.in-addr.arpa", Servers: upstream.Plain([]netip.AddrPort{ap("[2001:db8::2]:54")})},
		{Zone: "corp.example", Servers: append(upstream.Plain([]netip.AddrPort{ap("192.0.2.1:53"), ap("192.0.2.2:5353")}),
			upstream.Addr{AddrPort: ap("192.0.2.5:853"), TLSName: "dns.example"})},
	}
	sysctls := []sysctl.Param{
		{Key: "net.netfilter.nf_conntrack_max", Value: 2097152, Policy: sysctl.Floor},
		{Key: "net.netfilter.nf_conntrack_tcp_timeout_close_wait", Value: 60, Policy: sysctl.Exact},
	}
	want := Config{
		Listen: Listen{
			Addresses: []netip.Addr{addr("169.254.20.11"), addr("fd00::20:11"), addr("127.0.0.1")},
			Port:      5353, Interface: "nld1", LinkType: link.Bridge,
		},
		Cluster:     Cluster{Domain: "k8s.local", DNS: []netip.AddrPort{ap("10.96.0.10:53"), ap("[fd00::a]:53")}},
		Upstreams:   upstreams,
		StubDomains: stubs,
		TLS:         TLS{CAFile: "/etc/ssl/our-ca.pem"},
		Zones:       zones,
		Cache:       Cache{MaxBytes: 1536 << 10, ServeStale: stale, Prefetch: prefetch, Reload: 4},
		Kubelet: Kubelet{Manage: false, Unit: "kubelet@1.service", Backend: kubelet.ByArgsFile, Settle: 90 * time.Second,
			Drain: drain.Cordon, Timeout: 10 * time.Minute, Kubeconfig: "/etc/kubernetes/our.conf"},
		Sysctls: sysctls,
		Notrack: Notrack{Enabled: false, Backend: notrack.Legacy},
		Metrics: Endpoint{Addr: addr("fd00::1"), Port: 9000},
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}

	t.Run("the resolver gets its part", func(t *testing.T) {
		want := dnscache.Config{
			Listen:        []netip.AddrPort{ap("169.254.20.11:5353"), ap("[fd00::20:11]:5353"), ap("127.0.0.1:5353")},
			ClusterDomain: "k8s.local",
			ClusterDNS:    []netip.AddrPort{ap("10.96.0.10:53"), ap("[fd00::a]:53")},
			Upstreams:     upstreams, StubDomains: stubs,
			Cluster: zones.Cluster, Reverse: zones.Reverse, External: zones.External,
			Prefetch: prefetch, Reload: 4, MaxBytes: 1536 << 10,
		}
		if diff := cmp.Diff(want, got.Resolver(nil), compare); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("the host gets its part", func(t *testing.T) {
		want := host.Config{
			Interface: "nld1", LinkType: link.Bridge,
			Addresses: []netip.Addr{addr("169.254.20.11"), addr("fd00::20:11"), addr("127.0.0.1")},
			Port:      5353, Notrack: false, Backend: notrack.Legacy, Sysctls: sysctls,
		}
		if diff := cmp.Diff(want, got.Host(), compare); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// The kubelet is told of addresses that pods can ask, and of no other.
func TestTheDurablePlanNamesWhatPodsCanAsk(t *testing.T) {
	ours := netip.MustParseAddr("169.254.20.10")
	for _, tt := range []struct {
		text string
		want *kubelet.Want
	}{
		{"", &kubelet.Want{Addresses: []netip.Addr{ours}, Backend: kubelet.Auto, Config: "/x.yaml"}},
		{"kubelet: {unit: auto}", &kubelet.Want{Addresses: []netip.Addr{ours}, Backend: kubelet.Auto, Config: "/x.yaml"}},
		{"kubelet: {unit: hyperkube.service, backend: dropin}", &kubelet.Want{
			Addresses: []netip.Addr{ours}, Unit: "hyperkube.service", Backend: kubelet.ByDropIn, Config: "/x.yaml",
		}},
		{`cluster: {dns: [10.96.0.10, "10.96.0.11:5353", 127.0.0.1, "fe80::1%eth0", fd00::a]}`, &kubelet.Want{
			Addresses: []netip.Addr{ours}, Backend: kubelet.Auto, Config: "/x.yaml",
			Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a")},
		}},
		{"listen: {addresses: [127.0.0.1, 169.254.20.10]}", &kubelet.Want{Addresses: []netip.Addr{ours}, Backend: kubelet.Auto, Config: "/x.yaml"}},
		{"listen: {addresses: [127.0.0.1]}", nil},
		{"listen: {port: 5353}", nil},
		{"kubelet: {manage: false}", nil},
	} {
		c, err := Parse(strings.NewReader(tt.text))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, c.Durable("/x.yaml").Kubelet, compare); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.text, diff)
		}
	}
}

func TestKubeDNSIsFoundOrGiven(t *testing.T) {
	found := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	want := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}

	awaiting := Default().Resolver(nil)
	if err := awaiting.Validate(); err != nil || !awaiting.AwaitClusterDNS {
		t.Errorf("default, nothing found yet: awaits %t, %v", awaiting.AwaitClusterDNS, err)
	}
	if got := Default().Resolver(found); got.AwaitClusterDNS || !slices.Equal(got.ClusterDNS, want) {
		t.Errorf("default, found: awaits %t, asks %v", got.AwaitClusterDNS, got.ClusterDNS)
	}
	for text, ask := range map[string][]netip.AddrPort{
		"cluster: {dns: [192.0.2.1]}":           {netip.MustParseAddrPort("192.0.2.1:53")},
		"cluster: {dns: auto}":                  want,
		"{cluster: {dns: []}, upstreams: node}": nil,
	} {
		c, err := Parse(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Resolver(found); !slices.Equal(got.ClusterDNS, ask) || got.Validate() != nil {
			t.Errorf("%s: asks %v, want %v (%v)", text, got.ClusterDNS, ask, got.Validate())
		}
	}
	c, err := Parse(strings.NewReader("cluster: {dns: []}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Resolver(found).Validate(); !errors.Is(err, dnscache.ErrNoClusterDNS) {
		t.Errorf("an empty list: got %v, want %v", err, dnscache.ErrNoClusterDNS)
	}
}

// A zone that says nothing of expired replies goes by the cache, wherever the two
// stand in the file; one that says something by the cache in all else.
func TestZonesGoByTheCacheInWhatTheyDoNotSay(t *testing.T) {
	for _, tt := range []struct {
		text                       string
		cluster, reverse, external time.Duration
	}{
		{"", time.Hour, time.Hour, time.Hour},
		{"cache: {serveStale: {for: 2h}}", 2 * time.Hour, 2 * time.Hour, 2 * time.Hour},
		{"{zones: {cluster: {serveStale: {for: 0s}}}, cache: {serveStale: {for: 2h}}}", 0, 2 * time.Hour, 2 * time.Hour},
		{"{cache: {serveStale: {for: 0s}}, zones: {external: {serveStale: {for: 24h}}, reverse: {serveStale: auto}}}", 0, 0, 24 * time.Hour},
		{"{zones: {cluster: {serveStale: {denial: true}}}, cache: {serveStale: {for: 3h}}}", 3 * time.Hour, 3 * time.Hour, 3 * time.Hour},
	} {
		c, err := Parse(strings.NewReader(tt.text))
		if err != nil {
			t.Fatal(err)
		}
		z := c.Zones
		if z.Cluster.Stale.For != tt.cluster || z.Reverse.Stale.For != tt.reverse || z.External.Stale.For != tt.external {
			t.Errorf("%q: %v", tt.text, z)
		}
		if z.Cluster.Stale.AnswerTTL != 30*time.Second || z.Cluster.Stale.Denial != strings.Contains(tt.text, "denial") {
			t.Errorf("%q: %v", tt.text, z.Cluster.Stale)
		}
	}
}

// Mapping must copy: the halves of the program must not meet in a slice.
func TestTheHalvesShareNoMemory(t *testing.T) {
	c, d := Default(), Default()
	c.Host().Sysctls[0].Value = 7
	c.Host().Addresses[0] = netip.IPv6Loopback()
	c.Resolver(nil).Listen[0] = netip.AddrPort{}
	c.Durable("").Kubelet.Addresses[0] = netip.IPv6Loopback()
	if diff := cmp.Diff(d, c, compare); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRejected(t *testing.T) {
	many := strings.Repeat("x", 100)
	tests := []struct{ name, text, want string }{
		{"an unknown key", "listen:\n  prot: 53\n", `2: listen.prot: unknown key, allowed: addresses, port, interface, linkType`},
		{"an unknown key at the top", "lissten: {}\n", `1: lissten: unknown key, allowed: listen, cluster, upstreams, stubDomains, tls, zones, cache, searchPath, kubelet, sysctls, notrack, metrics, health`},
		{"a key that is long and strange", "\"" + many + "\\n\": 1\n", `1: "` + many[:48] + `…": unknown key, allowed: listen, cluster, upstreams, stubDomains, tls, zones, cache, searchPath, kubelet, sysctls, notrack, metrics, health`},
		{"a repeated key", "listen:\n  port: 53\n  port: 54\n", `3: listen.port: found this key again, allowed: once, as on line 2`},
		{"a list as a key", "? [a]\n: b\n", `1: found a list as a key, allowed: a mapping of listen, cluster, upstreams, stubDomains, tls, zones, cache, searchPath, kubelet, sysctls, notrack, metrics, health`},
		{"a merge key", "listen:\n  <<: {port: 53}\n", `2: listen."<<": unknown key, allowed: addresses, port, interface, linkType`},
		{"no value", "listen:\n", `1: listen: found nothing, allowed: a mapping of addresses, port, interface, linkType`},
		{"text for a mapping", "cache: 32MiB\n", `1: cache: found "32MiB", allowed: a mapping of maxBytes, serveStale, prefetch, reload, persist`},
		{"a list for the file", "- a\n", `1: found a list, allowed: a mapping of listen, cluster, upstreams, stubDomains, tls, zones, cache, searchPath, kubelet, sysctls, notrack, metrics, health`},

		{"port text", "listen: {port: domain}\n", `1: listen.port: found "domain", allowed: a whole number from 1 to 65535`},
		{"port 0", "listen: {port: 0}\n", `1: listen.port: found 0, allowed: a whole number from 1 to 65535`},
		{"port too large", "listen: {port: 65536}\n", `1: listen.port: found 65536, allowed: a whole number from 1 to 65535`},
		{"port negative", "listen: {port: -53}\n", `1: listen.port: found -53, allowed: a whole number from 1 to 65535`},
		{"port octal", "listen: {port: 065}\n", `1: listen.port: found 065, allowed: a whole number from 1 to 65535`},
		{"port hexadecimal", "listen: {port: 0x35}\n", `1: listen.port: found 0x35, allowed: a whole number from 1 to 65535`},
		{"port of a hundred digits", "listen: {port: 1" + strings.Repeat("0", 99) + "}\n", `1: listen.port: found 1` + strings.Repeat("0", 47) + `…, allowed: a whole number from 1 to 65535`},
		{"port with a fraction", "listen: {port: 53.0}\n", `1: listen.port: found 53.0, allowed: a whole number from 1 to 65535`},
		{"port quoted", "listen: {port: \"53\"}\n", `1: listen.port: found "53", allowed: a whole number from 1 to 65535`},

		{"no listen address", "listen: {addresses: []}\n", `1: listen.addresses: found an empty list, allowed: at least one address`},
		{"one address, not a list", "listen: {addresses: 169.254.20.10}\n", `1: listen.addresses: found "169.254.20.10", allowed: a list of addresses`},
		{"the IPv4 wildcard", "listen: {addresses: [0.0.0.0]}\n", `1: listen.addresses[0]: found "0.0.0.0", allowed: an IPv4 or IPv6 unicast address (not the wildcard)`},
		{"the IPv6 wildcard", "listen: {addresses: ['::']}\n", `1: listen.addresses[0]: found "::", allowed: an IPv4 or IPv6 unicast address (not the wildcard)`},
		{"IPv4 multicast", "listen: {addresses: [224.0.0.251]}\n", `1: listen.addresses[0]: found "224.0.0.251", allowed: an IPv4 or IPv6 unicast address (not a multicast address)`},
		{"IPv6 multicast", "listen: {addresses: ['ff02::fb']}\n", `1: listen.addresses[0]: found "ff02::fb", allowed: an IPv4 or IPv6 unicast address (not a multicast address)`},
		{"broadcast", "listen: {addresses: [255.255.255.255]}\n", `1: listen.addresses[0]: found "255.255.255.255", allowed: an IPv4 or IPv6 unicast address (not the broadcast address)`},
		{"fe80", "listen: {addresses: ['fe80::10']}\n", `1: listen.addresses[0]: found "fe80::10", allowed: an IPv4 or IPv6 unicast address (not one of fe80::/10, take a unique local one)`},
		{"IPv4 in IPv6", "listen: {addresses: ['::ffff:1.2.3.4']}\n", `1: listen.addresses[0]: found "::ffff:1.2.3.4", allowed: an IPv4 or IPv6 unicast address (write 1.2.3.4)`},
		{"a zone in an address", "listen: {addresses: ['fd00::1%eth0']}\n", `1: listen.addresses[0]: found "fd00::1%eth0", allowed: an IPv4 or IPv6 unicast address (without %eth0)`},
		{"a prefix", "listen: {addresses: [169.254.20.10/32]}\n", `1: listen.addresses[0]: found "169.254.20.10/32", allowed: an IPv4 or IPv6 unicast address`},
		{"a port in an address", "listen: {addresses: ['169.254.20.10:53']}\n", `1: listen.addresses[0]: found "169.254.20.10:53", allowed: an IPv4 or IPv6 unicast address`},
		{"an address twice", "listen:\n  addresses:\n  - fd00::1\n  - fd00:0::1\n", `4: listen.addresses[1]: found "fd00:0::1", allowed: each address once`},

		{"a long device name", "listen: {interface: sixteenbyteslong}\n", `1: listen.interface: found "sixteenbyteslong", allowed: a device name of 1 to 15 letters, digits, dots, dashes and underscores`},
		{"a slash in a device name", "listen: {interface: a/b}\n", `1: listen.interface: found "a/b", allowed: a device name of 1 to 15 letters, digits, dots, dashes and underscores`},
		{"a dot as a device name", "listen: {interface: ..}\n", `1: listen.interface: found "..", allowed: a device name of 1 to 15 letters, digits, dots, dashes and underscores`},
		{"the DaemonSet's device", "listen: {interface: nodelocaldns}\n", `1: listen.interface: found "nodelocaldns", allowed: a device name of 1 to 15 letters, digits, dots, dashes and underscores (not nodelocaldns: the node-local-dns DaemonSet deletes that one when it exits)`},
		{"lo as a device name", "listen: {interface: lo}\n", `1: listen.interface: found "lo", allowed: a device name of 1 to 15 letters, digits, dots, dashes and underscores (not lo: linkType: lo puts the addresses there)`},
		{"a link type", "listen: {linkType: veth}\n", `1: listen.linkType: found "veth", allowed: auto, dummy, bridge, lo`},

		{"the root as cluster domain", "cluster: {domain: .}\n", `1: cluster.domain: found ".", allowed: a domain name such as cluster.local`},
		{"an empty label", "cluster: {domain: a..b}\n", `1: cluster.domain: found "a..b", allowed: a domain name such as cluster.local`},
		{"a long label", "cluster: {domain: " + strings.Repeat("a", 64) + "}\n", `1: cluster.domain: found "` + strings.Repeat("a", 48) + `…", allowed: a domain name such as cluster.local`},
		{"a long name", "cluster: {domain: " + strings.Repeat("a.", 127) + "a}\n", `1: cluster.domain: found "` + strings.Repeat("a.", 24) + `…", allowed: a domain name such as cluster.local`},
		{"a blank in a name", "cluster: {domain: a b}\n", `1: cluster.domain: found "a b", allowed: a domain name such as cluster.local`},
		{"a word for kube-dns", "cluster: {dns: kube-dns}\n", `1: cluster.dns: found "kube-dns", allowed: auto, or a list of kube-dns addresses`},

		{"an upstream word", "upstreams: host\n", `1: upstreams: found "host", allowed: kube-dns, node, or a list of addresses such as [192.0.2.1]`},
		{"an upstream that is no list", "upstreams: 1.1.1.1\n", `1: upstreams: found "1.1.1.1", allowed: kube-dns, node, or a list of addresses such as [192.0.2.1]`},
		{"no upstream", "upstreams: []\n", `1: upstreams: found an empty list, allowed: kube-dns, node, or a list of addresses such as [192.0.2.1]`},
		{"an upstream's name", "upstreams: [dns.example]\n", `1: upstreams[0]: found "dns.example", allowed: an address, address:port, or tls://address#name`},
		{"an upstream's port 0", "upstreams: ['1.1.1.1:0']\n", `1: upstreams[0]: found "1.1.1.1:0", allowed: an address, address:port, or tls://address#name (not port 0)`},
		{"an upstream twice", "upstreams: [1.1.1.1, '1.1.1.1:53']\n", `1: upstreams[1]: found "1.1.1.1:53", allowed: each server once`},
		{"fe80 without an interface", "upstreams: ['fe80::1']\n", `1: upstreams[0]: found "fe80::1", allowed: an address, address:port, or tls://address#name (fe80::/10 needs an interface, as in fe80::1%eth0)`},
		{"ourselves as upstream, said first", "upstreams: [10.0.0.1]\nlisten: {addresses: [10.0.0.1]}\n", `1: upstreams[0]: found "10.0.0.1", allowed: a server other than ourselves (10.0.0.1:53 is one of listen.addresses)`},
		{"ourselves as kube-dns", "cluster: {dns: ['169.254.20.10:53']}\n", `1: cluster.dns[0]: found "169.254.20.10:53", allowed: a server other than ourselves (169.254.20.10:53 is one of listen.addresses)`},
		{"ourselves as stub server", "listen: {port: 5353}\nstubDomains: {a.b: ['169.254.20.10:5353']}\n", `2: stubDomains.a.b[0]: found "169.254.20.10:5353", allowed: a server other than ourselves (169.254.20.10:5353 is one of listen.addresses)`},

		{"a stub domain without servers", "stubDomains: {a.b: []}\n", `1: stubDomains.a.b: found an empty list, allowed: at least one server`},
		{"a stub domain with one server", "stubDomains: {a.b: 1.1.1.1}\n", `1: stubDomains.a.b: found "1.1.1.1", allowed: a list of servers`},
		{"a server by another scheme", "upstreams: ['https://192.0.2.1#dns.example']\n", `1: upstreams[0]: found "https://192.0.2.1#dns.example", allowed: an address, address:port, or tls://address#name (https:// is not known)`},
		{"TLS without a name", "upstreams:\n- 192.0.2.2\n- tls://192.0.2.1\n", `3: upstreams[1]: found "tls://192.0.2.1", allowed: an address, address:port, or tls://address#name (what its certificate is for is missing, as in tls://192.0.2.1#dns.example)`},
		{"TLS without an address", "stubDomains: {a.b: ['tls://dns.example#dns.example']}\n", `1: stubDomains.a.b[0]: found "tls://dns.example#dns.example", allowed: an address, address:port, or tls://address#name (an address is missing in front of the #)`},
		{"TLS with a strange name", "upstreams: ['tls://192.0.2.1#dns example']\n", `1: upstreams[0]: found "tls://192.0.2.1#dns example", allowed: an address, address:port, or tls://address#name (what is behind the # is no name that a certificate could be for)`},
		{"TLS to the wildcard", "upstreams: ['tls://0.0.0.0#dns.example']\n", `1: upstreams[0]: found "tls://0.0.0.0#dns.example", allowed: an address, address:port, or tls://address#name (not the wildcard)`},
		{"TLS twice", "upstreams: ['tls://192.0.2.1:853#dns.example', 'tls://192.0.2.1#DNS.example']\n", `1: upstreams[1]: found "tls://192.0.2.1#DNS.example", allowed: each server once`},
		{"TLS to kube-dns", "cluster: {dns: ['tls://192.0.2.1#dns.example']}\n", `1: cluster.dns[0]: found "tls://192.0.2.1#dns.example", allowed: an address or address:port (kube-dns is asked without TLS)`},
		{"certificates in a relative file", "tls: {caFile: ca.pem}\n", `1: tls.caFile: found "ca.pem", allowed: an absolute file name, or "" for the system's`},
		{"a case that is no yes or no", "zones: {external: {randomizeCase: random}}\n", `1: zones.external.randomizeCase: found "random", allowed: true or false`},
		{"an unknown policy", "zones: {external: {policy: fastest}}\n", `1: zones.external.policy: found "fastest", allowed: sequential, random, round-robin`},
		{"the root as stub domain", "stubDomains: {.: [1.1.1.1]}\n", `1: stubDomains..: found ".", allowed: a domain name below the root, with a list of servers`},
		{"the cluster domain as stub domain", "stubDomains: {Cluster.Local: [1.1.1.1]}\n", `1: stubDomains.Cluster.Local: found "Cluster.Local", allowed: a zone other than cluster.domain, which cluster.dns answers`},
		{"a stub domain in two spellings", "stubDomains:\n  a.b: [1.1.1.1]\n  A.b.: [1.1.1.1]\n", `3: stubDomains.A.b.: found "A.b.", allowed: each zone once, as on line 2`},

		{"entries below 0", "zones: {cluster: {success: {entries: -1}}}\n", `1: zones.cluster.success.entries: found -1, allowed: a whole number from 0 to 100000000`},
		{"a duration without a unit", "zones: {cluster: {denial: {maxTTL: 30}}}\n", `1: zones.cluster.denial.maxTTL: found 30, allowed: a duration of whole seconds such as 30s, from 0s to 168h`},
		{"a fraction of a second", "zones: {reverse: {denial: {maxTTL: 1500ms}}}\n", `1: zones.reverse.denial.maxTTL: found "1500ms", allowed: a duration of whole seconds such as 30s, from 0s to 168h`},
		{"a negative duration", "zones: {reverse: {denial: {maxTTL: -1s}}}\n", `1: zones.reverse.denial.maxTTL: found "-1s", allowed: a duration of whole seconds such as 30s, from 0s to 168h`},
		{"a long duration", "zones: {external: {success: {maxTTL: 169h}}}\n", `1: zones.external.success.maxTTL: found "169h", allowed: a duration of whole seconds such as 30s, from 0s to 168h`},
		{"a transport", "zones: {external: {transport: tls}}\n", `1: zones.external.transport: found "tls", allowed: auto, tcp, udp`},

		{"a size without a unit", "cache: {maxBytes: 33554432}\n", `1: cache.maxBytes: found 33554432, allowed: a size such as 32MiB, from 1MiB to 16GiB, in KiB, MiB or GiB`},
		{"a decimal unit", "cache: {maxBytes: 32MB}\n", `1: cache.maxBytes: found "32MB", allowed: a size such as 32MiB, from 1MiB to 16GiB, in KiB, MiB or GiB`},
		{"a size that overflows", "cache: {maxBytes: 9223372036854775807GiB}\n", `1: cache.maxBytes: found "9223372036854775807GiB", allowed: a size such as 32MiB, from 1MiB to 16GiB, in KiB, MiB or GiB`},
		{"a small size", "cache: {maxBytes: 1023KiB}\n", `1: cache.maxBytes: found "1023KiB", allowed: a size such as 32MiB, from 1MiB to 16GiB, in KiB, MiB or GiB`},
		{"a key whose feature does not exist", "cache: {minTTL: 1h}\n", `1: cache.minTTL: unknown key, allowed: maxBytes, serveStale, prefetch, reload, persist`},
		{"expired replies without a key", "cache: {serveStale: 1h}\n", `1: cache.serveStale: found "1h", allowed: a mapping of for, answerTTL, clientTimeout, denial`},
		{"expired replies for ever", "cache: {serveStale: {for: 169h}}\n", `1: cache.serveStale.for: found "169h", allowed: a duration of whole seconds such as 30s, from 0s to 168h`},
		{"expired replies without a TTL", "cache: {serveStale: {answerTTL: 0s}}\n", `1: cache.serveStale.answerTTL: found "0s", allowed: a duration of whole seconds such as 30s, from 1s to 1h`},
		{"a client that waits for too long", "cache: {serveStale: {clientTimeout: 1.8s}}\n", `1: cache.serveStale.clientTimeout: found "1.8s", allowed: a duration such as 400ms, from 100ms to 800ms`},
		{"expired replies of a zone in a word", "zones: {reverse: {serveStale: true}}\n", `1: zones.reverse.serveStale: found true, allowed: auto, or a mapping of for, answerTTL, clientTimeout, denial`},
		{"an unknown key of a zone's expired replies", "zones: {reverse: {serveStale: {until: 1h}}}\n", `1: zones.reverse.serveStale.until: unknown key, allowed: for, answerTTL, clientTimeout, denial`},
		{"prefetching without a unit", "cache: {prefetch: {at: 10}}\n", `1: cache.prefetch.at: found 10, allowed: a share such as 10%, from 0% to 90%`},
		{"prefetching all the time", "cache: {prefetch: {at: 100%}}\n", `1: cache.prefetch.at: found "100%", allowed: a share such as 10%, from 0% to 90%`},
		{"prefetching what nobody asks for", "cache: {prefetch: {minHits: 0}}\n", `1: cache.prefetch.minHits: found 0, allowed: a whole number from 1 to 100`},
		{"reloading for ever", "cache: {reload: unlimited}\n", `1: cache.reload: found "unlimited", allowed: a whole number from 0 to 100`},

		{"a sysctl of others", "sysctls: {net.ipv4.ip_forward: {value: 1}}\n", `1: sysctls.net.ipv4.ip_forward: unknown key, allowed: net.netfilter.nf_conntrack_max, net.netfilter.nf_conntrack_buckets, net.netfilter.nf_conntrack_tcp_timeout_fin_wait, net.netfilter.nf_conntrack_tcp_timeout_time_wait, net.netfilter.nf_conntrack_tcp_timeout_close_wait`},
		{"a sysctl's policy", "sysctls: {net.netfilter.nf_conntrack_max: {policy: min}}\n", `1: sysctls.net.netfilter.nf_conntrack_max.policy: found "min", allowed: floor, ceiling, exact`},
		{"a sysctl above what the kernel takes", "sysctls: {net.netfilter.nf_conntrack_max: {value: 2147483648}}\n", `1: sysctls.net.netfilter.nf_conntrack_max.value: found 2147483648, allowed: a whole number from 1 to 2147483647`},
		{"a timeout above what the kernel takes", "sysctls: {net.netfilter.nf_conntrack_tcp_timeout_fin_wait: {value: 2147484}}\n", `1: sysctls.net.netfilter.nf_conntrack_tcp_timeout_fin_wait.value: found 2147484, allowed: a whole number from 1 to 2147483`},

		{"a unit that is none", "kubelet: {unit: kubelet}\n", `1: kubelet.unit: found "kubelet", allowed: auto, or a unit such as kubelet.service`},
		{"a unit's path", "kubelet: {unit: /etc/systemd/system/kubelet.service}\n", `1: kubelet.unit: found "/etc/systemd/system/kubelet.service", allowed: auto, or a unit such as kubelet.service`},
		{"a kubelet's back-end", "kubelet: {backend: flag}\n", `1: kubelet.backend: found "flag", allowed: auto, env, dropin, config-dir, args-file, rewrite`},
		{"a way to drain", "kubelet: {drain: always}\n", `1: kubelet.drain: found "always", allowed: auto, never, cordon, drain`},
		{"a credential of no place", "kubelet: {kubeconfig: our.conf}\n", `1: kubelet.kubeconfig: found "our.conf", allowed: auto, or an absolute file name`},
		{"no time to settle", "kubelet: {settle: 0s}\n", `1: kubelet.settle: found "0s", allowed: a duration such as 30s, from 1s to 10m0s`},
		{"a key of the kubelet that does not exist", "kubelet: {evict: auto}\n", `1: kubelet.evict: unknown key, allowed: manage, unit, backend, drain, timeout, settle, kubeconfig`},

		{"yes", "notrack: {enabled: yes}\n", `1: notrack.enabled: found "yes", allowed: true or false`},
		{"a back-end", "notrack: {backend: ipvs}\n", `1: notrack.backend: found "ipvs", allowed: auto, legacy, nft`},

		{"a metrics port without a colon", "metrics: {address: '9253'}\n", `1: metrics.address: found "9253", allowed: address:port, ":port" for every address, or "" for nowhere`},
		{"metrics on port 0", "metrics: {address: ':0'}\n", `1: metrics.address: found ":0", allowed: address:port, ":port" for every address, or "" for nowhere`},
		{"a metrics host name", "metrics: {address: 'localhost:9253'}\n", `1: metrics.address: found "localhost:9253", allowed: address:port, ":port" for every address, or "" for nowhere`},
		{"health where metrics are", "health: {address: ':9253'}\n", `1: health.address: found ":9253", allowed: different addresses for metrics and health`},
		{"metrics where health is", "metrics: {address: '169.254.20.10:8080'}\n", `1: metrics.address: found "169.254.20.10:8080", allowed: different addresses for metrics and health`},

		{"not YAML", "listen: {port: 53\n", `1: not YAML: did not find expected ',' or '}'`},
		{"not YAML on its only line", "listen: port: 53", `1: not YAML: mapping values are not allowed in this context`},
		{"not YAML on a later line", "cache: {}\n\nlisten: port: 53\n", `3: not YAML: mapping values are not allowed in this context`},
		{"a tab", "listen:\n\tport: 53\n", `2: found a tab in the indentation, allowed: blanks`},
		{"a byte order mark", "\xef\xbb\xbflisten: {}\n", `1: found a byte order mark, allowed: UTF-8 without one`},
		{"UTF-16", "\xff\xfel\x00", `1: found UTF-16, allowed: UTF-8`},
		{"Latin-1", "# ok\n# \xe9\n", `2: found byte 0xe9, allowed: UTF-8`},
		{"a second document", "listen: {}\n---\ncache: {}\n", `2: found a second YAML document, allowed: one`},
		{"an anchor", "listen: &l {}\n", `1: found the anchor &l, allowed: the value itself`},
		{"an alias", "cluster: {dns: &d []}\nupstreams: *d\n", "1: found the anchor &d, allowed: the value itself\n2: found the alias *d, allowed: the value itself"},
		{"a tag", "listen: {port: !!int \"53\"}\n", `1: found the tag !!int, allowed: the value itself`},
		{"a file that is too long", strings.Repeat("#\n", 1<<19) + "#\n", `524289: found more than 1 MiB of configuration, allowed: up to 1 MiB`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(tt.text))
			var ps Problems
			if !errors.As(err, &ps) {
				t.Fatalf("got %v, want problems", err)
			}
			var got []string
			for _, p := range ps {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if strings.ContainsAny(strings.Join(got, ""), "\n\r\t\x00") {
				t.Errorf("a problem is not on one line: %q", got)
			}
		})
	}
}

func TestAllProblemsAreReportedByLine(t *testing.T) {
	_, err := Parse(strings.NewReader(`
health: {address: nowhere}
cache: {maxBytes: lots}
listen:
  port: 0
  adresses: []
`))
	want := `line 2: health.address: found "nowhere", allowed: address:port, ":port" for every address, or "" for nowhere; ` +
		`line 3: cache.maxBytes: found "lots", allowed: a size such as 32MiB, from 1MiB to 16GiB, in KiB, MiB or GiB; ` +
		`line 5: listen.port: found 0, allowed: a whole number from 1 to 65535; ` +
		`line 6: listen.adresses: unknown key, allowed: addresses, port, interface, linkType`
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnAliasBombIsNotExpanded(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 40; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	if _, err := Parse(strings.NewReader(b.String())); err == nil {
		t.Error("accepted")
	}
}

func TestAFileThatCannotBeReadIsNoProblemOfItsText(t *testing.T) {
	_, err := Parse(iotest.ErrReader(os.ErrPermission))
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("got %v, want %v", err, os.ErrPermission)
	}
}

// Every scalar of the reference, replaced by each of these, must be refused
// or change something: a key whose value does not matter is no key.
func TestNoValueIsIgnored(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Unmarshal(Reference, &doc); err != nil {
		t.Fatal(err)
	}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		for i, c := range n.Content {
			if c.Kind != yaml.ScalarNode || n.Kind == yaml.MappingNode && i%2 == 0 {
				walk(c)
				continue
			}
			was := *c
			c.Value, c.Tag, c.Style = "no such value", "!!str", 0
			text, err := yaml.Marshal(&doc)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Parse(bytes.NewReader(text)); err == nil {
				t.Errorf("line %d: nonsense is accepted for %q", c.Line, was.Value)
			}
			*c = was
		}
	}
	walk(&doc)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add(Reference)
	for _, s := range []string{"", "listen: {port: 0x35}", "sysctls: {}", "stubDomains: {'null': [1.1.1.1], y: ['::1'], 1e3: [1.1.1.1]}", "a: &a [*a]", "? {}\n: []", "--- |\n x", "metrics: {address: '[::]:1'}", "cluster: {domain: 'true'}", "listen: {interface: '.inf'}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(bytes.NewReader(text))
		if err != nil {
			var ps Problems
			if !errors.As(err, &ps) || len(ps) == 0 {
				t.Fatalf("got %v, want problems", err)
			}
			for _, p := range ps {
				if s := p.String(); p.Line < 1 || strings.ContainsAny(s, "\n\r") {
					t.Errorf("line %d: %q", p.Line, s)
				}
			}
			return
		}
		if err := c.Resolver(nil).Validate(); err != nil && !errors.Is(err, dnscache.ErrNoClusterDNS) {
			t.Errorf("accepted, but the resolver says: %v", err)
		}
		again, _, err := parse(bytes.NewReader(c.YAML()), Config{})
		if err != nil {
			t.Fatalf("what is shown is refused: %v\n%s", err, c.YAML())
		}
		if diff := cmp.Diff(c, again, compare); diff != "" {
			t.Errorf("what is shown is read back differently (-want +got):\n%s\n%s", diff, c.YAML())
		}
	})
}

func TestCertificatesAreReadFromTheirFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := Default()
	if err := c.TLS.Read(filepath.Join(dir, "absent")); err != nil || c.Resolver(nil).Roots != nil {
		t.Errorf("without a file: %v, %v", c.TLS.Roots, err)
	}
	c.TLS.CAFile = "/ca.pem"
	if err := c.TLS.Read(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	path := write("bad", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	if err := c.TLS.Read(path); err == nil || err.Error() != "reading tls.caFile: "+path+" has no certificate in PEM" {
		t.Errorf("a file without a certificate: %v", err)
	}
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	path = write("good", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	want := x509.NewCertPool()
	want.AddCert(server.Certificate())
	if err := c.TLS.Read(path); err != nil || !c.Resolver(nil).Roots.Equal(want) {
		t.Errorf("%v", err)
	}
}

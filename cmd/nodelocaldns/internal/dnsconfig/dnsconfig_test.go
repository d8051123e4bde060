package dnsconfig_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/cmd/nodelocaldns/internal/dnsconfig"
)

func addrs(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

// config is one that is valid, changed.
func config(change func(*dnsconfig.Config)) dnsconfig.Config {
	c := dnsconfig.Config{
		Ours: addrs("169.254.20.10"), KubeDNS: addrs("10.96.0.10"), Domain: "cluster.local",
		Options: dnsconfig.Options{Ndots: 5, Timeout: 2, Attempts: 2},
	}
	change(&c)
	return c
}

func TestWhatPodsCannotBeGivenIsAProblemOfOneValue(t *testing.T) {
	long := strings.Repeat("a", 63)
	type change = func(*dnsconfig.Config)
	for _, tt := range []struct {
		change
		namespace, want string
	}{
		{func(*dnsconfig.Config) {}, "shop", ""},
		{func(*dnsconfig.Config) {}, "", ""},
		{func(c *dnsconfig.Config) { c.Options = dnsconfig.Options{Ndots: 0, Timeout: 1, Attempts: 1} }, "shop", ""},
		{func(c *dnsconfig.Config) { c.Options = dnsconfig.Options{Ndots: 15, Timeout: 30, Attempts: 5} }, "shop", ""},
		{func(c *dnsconfig.Config) { c.Options.Ndots = -1 }, "shop", "ndots is -1, and must be from 0 to 15"},
		{func(c *dnsconfig.Config) { c.Options.Ndots = 16 }, "shop", "ndots is 16, and must be from 0 to 15"},
		{func(c *dnsconfig.Config) { c.Options.Timeout = 0 }, "shop", "timeout is 0, and must be from 1 to 30"},
		{func(c *dnsconfig.Config) { c.Options.Timeout = 31 }, "shop", "timeout is 31, and must be from 1 to 30"},
		{func(c *dnsconfig.Config) { c.Options.Attempts = 0 }, "shop", "attempts is 0, and must be from 1 to 5"},
		{func(c *dnsconfig.Config) { c.Options.Attempts = 6 }, "shop", "attempts is 6, and must be from 1 to 5"},
		{func(c *dnsconfig.Config) { c.KubeDNS = addrs("10.96.0.10", "fd00::a") }, "shop", ""},
		{func(c *dnsconfig.Config) { c.KubeDNS = addrs("10.96.0.10", "10.96.0.11", "10.96.0.12") }, "shop",
			"kube-dns makes 4 nameservers of a pod, which has 3 at most, 1 of them ours"},
		{func(c *dnsconfig.Config) { c.KubeDNS = addrs("127.0.0.1") }, "shop", "kube-dns is 127.0.0.1, which pods cannot ask"},
		{func(c *dnsconfig.Config) { c.KubeDNS = addrs("0.0.0.0") }, "shop", "kube-dns is 0.0.0.0, which pods cannot ask"},
		{func(c *dnsconfig.Config) { c.KubeDNS = addrs("fe80::1%eth0") }, "shop", "kube-dns is fe80::1%eth0, which pods cannot ask"},
		{func(c *dnsconfig.Config) { c.KubeDNS = addrs("169.254.20.10") }, "shop",
			"kube-dns is 169.254.20.10, which is an address of ours: without us nobody would answer"},
		{func(c *dnsconfig.Config) { c.KubeDNS = addrs("10.96.0.10", "10.96.0.10") }, "shop", "kube-dns is 10.96.0.10 twice"},
		{func(c *dnsconfig.Config) { c.Domain = "Cluster" }, "shop", `cluster-domain is "Cluster", which is no domain name in lower case`},
		{func(*dnsconfig.Config) {}, "a.b", `namespace is "a.b", which is no name of a namespace`},
		{func(c *dnsconfig.Config) { c.Search = []string{"corp.example.com", "-"} }, "shop", `search is "-", which is no domain name in lower case`},
		{func(c *dnsconfig.Config) { c.Search = strings.Fields(strings.Repeat("a ", 29)) }, "shop", ""},
		{func(c *dnsconfig.Config) { c.Search = strings.Fields(strings.Repeat("a ", 30)) }, "shop",
			"search makes a search path of 33 names, and pods have 32 at most"},
		{func(c *dnsconfig.Config) { c.Search = strings.Fields(strings.Repeat(long+"."+long+" ", 15)) }, "a", ""},
		{func(c *dnsconfig.Config) {
			c.Search = strings.Fields(strings.Repeat(long+"."+long+" ", 15) + strings.Repeat("b", 64))
		}, "a",
			`search is "` + strings.Repeat("b", 64) + `", which is no domain name in lower case`},
		{func(c *dnsconfig.Config) { c.Search = strings.Fields(strings.Repeat(long+"."+long+" ", 16)) }, "a",
			"search makes a search path of 2099 bytes, and pods have 2048 at most"},
		// A policy is for any namespace, and the longest name has 63 bytes.
		{func(c *dnsconfig.Config) {
			c.Search = strings.Fields(strings.Repeat(long+"."+long+" ", 15) + strings.Repeat("b", 63))
		}, "a", ""},
		{func(c *dnsconfig.Config) {
			c.Search = strings.Fields(strings.Repeat(long+"."+long+" ", 15) + strings.Repeat("b", 63))
		}, "",
			"search makes a search path of 2097 bytes, and pods have 2048 at most"},
	} {
		got := ""
		if err := config(tt.change).Validate(tt.namespace); err != nil {
			got = err.Error()
			if p := (*dnsconfig.Problem)(nil); !errors.As(err, &p) {
				t.Errorf("%v is no Problem", err)
			}
		}
		if got != tt.want {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}

// What Validate lets pass, with a pod's own searches that the policy keeps, the
// API server takes: pod searches of the most names or bytes there is room for.
func TestThePolicyLeavesRoomForTheLongestSearchPath(t *testing.T) {
	c := config(func(c *dnsconfig.Config) { c.Search = []string{"corp.example.com"} })
	ours := c.Spec(strings.Repeat("x", 63)).DNSConfig.Searches
	text := fmt.Sprint(c.Policy("v1"))
	want := fmt.Sprintf("<= %d && size(object.spec.?dnsConfig.?searches.orValue([]).join(\" \")) <= %d", 32-len(ours), 2048-len(strings.Join(ours, " ")+" "))
	if !strings.Contains(text, want) {
		t.Errorf("the policy has not %q:\n%s", want, text)
	}
}

func TestAPodAsksUsFirstAndThenKubeDNS(t *testing.T) {
	c := config(func(c *dnsconfig.Config) {
		c.Ours, c.KubeDNS = addrs("169.254.20.10", "fd00::20:10"), addrs("10.96.0.10")
		c.Search = []string{"corp.example.com"}
		c.Options = dnsconfig.Options{Ndots: 2, Timeout: 1, Attempts: 3, SingleRequestReopen: true, UseVC: true}
	})
	want := dnsconfig.Spec{DNSPolicy: "None", DNSConfig: dnsconfig.DNSConfig{
		Nameservers: addrs("169.254.20.10", "fd00::20:10", "10.96.0.10"),
		Searches:    []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example.com"},
		Options: []dnsconfig.Option{
			{Name: "ndots", Value: "2"}, {Name: "timeout", Value: "1"}, {Name: "attempts", Value: "3"},
			{Name: "single-request-reopen"}, {Name: "use-vc"},
		},
	}}
	if diff := cmp.Diff(want, c.Spec("shop"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

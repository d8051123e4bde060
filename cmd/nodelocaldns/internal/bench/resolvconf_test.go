package bench

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var compareAddrs = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func TestAResolvConfIsReadAsGlibcDoes(t *testing.T) {
	at := func(all ...string) (out []netip.AddrPort) {
		for _, a := range all {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(a), 53))
		}
		return out
	}
	five := 5 * time.Second
	for _, tt := range []struct {
		name, hostname, text string
		want                 Resolver
	}{
		{"of a pod", "web-0", "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 169.254.20.10\nnameserver 10.96.0.10\noptions ndots:5\n",
			Resolver{Servers: at("169.254.20.10", "10.96.0.10"), Search: []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Ndots: 5, Timeout: five, Attempts: 2}},
		{"of systemd-resolved", "node", "# text\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
			Resolver{Servers: at("127.0.0.53"), Search: []string{"."}, Ndots: 1, Timeout: five, Attempts: 2, EDNS: true}},
		{"empty", "node", "", Resolver{Servers: at("127.0.0.1"), Ndots: 1, Timeout: five, Attempts: 2}},
		{"without a search list", "node.example.com", "nameserver fe80::1%eth0\n",
			Resolver{Servers: at("fe80::1%eth0"), Search: []string{"example.com"}, Ndots: 1, Timeout: five, Attempts: 2}},
		{"the last of domain and search wins", "", "search a b\ndomain c d\nnameserver\t0.0.0.0\n",
			Resolver{Servers: at("127.0.0.1"), Search: []string{"c"}, Ndots: 1, Timeout: five, Attempts: 2}},
		{"all options", "", "options rotate use-vc single-request timeout:1\noptions attempts:4 ndots:0\nnameserver ::\n",
			Resolver{Servers: at("::1"), Ndots: 0, Timeout: time.Second, Attempts: 4, Order: InTurn, Rotate: true, TCP: true}},
		{"a port for each type", "", "options single-request-reopen single-request\n",
			Resolver{Servers: at("127.0.0.1"), Ndots: 1, Timeout: five, Attempts: 2, Order: Apart}},
		{"beyond the bounds", "", "options timeout:99 attempts:99 ndots:99\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
			Resolver{Servers: at("192.0.2.1", "192.0.2.2", "192.0.2.3"), Ndots: 15, Timeout: 30 * time.Second, Attempts: 5}},
		{"below the bounds", "", "options timeout:0 attempts:0 ndots:-1\n",
			Resolver{Servers: at("127.0.0.1"), Ndots: 1, Timeout: time.Second, Attempts: 1}},
		{"nonsense", "", " nameserver 192.0.2.1\nnameserver\nnameserver example\nnameservers 192.0.2.2\n;search a\noptions ndots:x attempts rotated\nsortlist 1.2.3.4\nnameserver ::ffff:192.0.2.9 text\n",
			Resolver{Servers: at("192.0.2.9"), Ndots: 1, Timeout: five, Attempts: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseResolvConf(strings.NewReader(tt.text), tt.hostname)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, compareAddrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := ParseResolvConf(strings.NewReader("search "+strings.Repeat("a", 1<<17)), ""); err == nil {
		t.Error("a line without an end is read")
	}
}

func TestLaterServersAreWaitedForAsLongAsGlibcDoes(t *testing.T) {
	for _, tt := range []struct {
		servers int
		timeout time.Duration
		want    []time.Duration
	}{
		{1, 5 * time.Second, []time.Duration{5 * time.Second}},
		{2, 5 * time.Second, []time.Duration{5 * time.Second, 5 * time.Second}},
		{3, 5 * time.Second, []time.Duration{5 * time.Second, 3 * time.Second, 6 * time.Second}},
		{3, time.Second, []time.Duration{time.Second, time.Second, time.Second}},
		{3, 300 * time.Millisecond, []time.Duration{300 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond}},
	} {
		r := Resolver{Servers: make([]netip.AddrPort, tt.servers), Timeout: tt.timeout}
		var got []time.Duration
		for i := range r.Servers {
			got = append(got, r.wait(i))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%d servers, %s (-want +got):\n%s", tt.servers, tt.timeout, diff)
		}
	}
}

package dnscache

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"nodelocaldns/dnscache/upstream"
)

// Who puts our address into a list of upstreams gets the others, and a word.
func TestWeDoNotAskOurselves(t *testing.T) {
	ours := netip.MustParseAddrPort("169.254.20.10:53")
	other := netip.MustParseAddrPort("192.0.2.1:53")
	cfg := testConfig(ours, kubeDNS)
	cfg.Listen = []netip.AddrPort{ours}
	cfg.Upstreams = Upstreams{Source: ServerList, Servers: upstream.Plain([]netip.AddrPort{ours, other})}
	cfg.StubDomains = []StubDomain{{Zone: "corp.example", Servers: upstream.Plain([]netip.AddrPort{other, ours})}}
	var log bytes.Buffer
	s, err := New(cfg, Deps{Log: slog.New(slog.NewTextHandler(&log, nil)), Exchanger: func(netip.AddrPort, Proto) upstream.Exchanger { return addresses(1) }})
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	for _, rt := range s.state.Load().routes.all {
		asked = append(asked, strings.Join(rt.servers(), " "))
	}
	if want := []string{other.String(), kubeDNS.String(), kubeDNS.String(), other.String()}; !slices.Equal(asked, want) {
		t.Errorf("asked are %q, want %q", asked, want)
	}
	if !strings.Contains(log.String(), "upstream servers are this resolver itself: left out") || !strings.Contains(log.String(), ours.String()) {
		t.Errorf("logged is %q", &log)
	}
}

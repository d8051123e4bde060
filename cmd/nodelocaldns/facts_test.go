package main

import (
	"net/netip"
	"strings"
	"testing"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host/facts"
)

func TestTheRelayIsToldWhatTheResolverGoesBy(t *testing.T) {
	unit := map[string]string{"usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --cluster-dns=10.96.0.10\n"}
	found := facts.Facts{
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Source:     "--cluster-dns in ExecStart of /usr/lib/systemd/system/kubelet.service",
		Metrics:    ":9253",
	}
	for _, tt := range []struct {
		config string
		want   facts.Facts
	}{
		{"", found},
		{"{kubelet: {manage: false}, metrics: {address: ''}}", facts.Facts{ClusterDNS: found.ClusterDNS, Source: found.Source}},
		{"{cluster: {dns: ['192.0.2.1:5353', fd00::a]}, metrics: {address: '127.0.0.1:9'}}", facts.Facts{
			Servers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:5353"), netip.MustParseAddrPort("[fd00::a]:53")},
			Source:  "cluster.dns",
			Metrics: "127.0.0.1:9",
		}},
		{"{cluster: {dns: []}, upstreams: node}", facts.Facts{Source: "cluster.dns", Metrics: ":9253"}},
	} {
		cfg, err := config.Parse(strings.NewReader(tt.config))
		if err != nil {
			t.Fatalf("%s: %v", tt.config, err)
		}
		got, err := findFacts(cfg, nodeWith(t, unit, new([]string)).node)(t.Context())
		if err != nil || !got.Equal(tt.want) {
			t.Errorf("%s: got %+v, %v, want %+v", tt.config, got, err, tt.want)
		}
	}
}

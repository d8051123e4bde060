package main

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host/facts"
	"nodelocaldns/host/kubelet"
)

// askAgain is how often the API server is asked for kube-dns, where nothing on
// the node itself tells. Guard looks more often, and commands look more than
// once.
const askAgain = time.Minute

// findFacts finds out what resolver and relay must be told: whom the node's pods
// ask besides us, whether or not we are to manage the kubelet, and where the
// configuration puts /metrics. Where cluster.dns is a list, the node is not asked:
// the resolver goes by that, and the relay is to do the same.
func findFacts(cfg config.Config, n kubelet.Node) func(ctx context.Context) (facts.Facts, error) {
	if !cfg.Cluster.Auto {
		told := facts.Facts{Servers: slices.Clone(cfg.Cluster.DNS), Source: sourceConfig, Metrics: cfg.Metrics.String()}
		return func(context.Context) (facts.Facts, error) { return told, nil }
	}
	want := kubelet.Want{
		Addresses: cfg.Listen.Addresses[:min(len(cfg.Listen.Addresses), kubelet.MaxServers-1)],
		Unit:      cfg.Kubelet.Unit,
		Backend:   cfg.Kubelet.Backend,
	}
	return func(ctx context.Context) (facts.Facts, error) {
		f, err := kubelet.Find(ctx, n, want)
		if len(f.Base) == 0 {
			return facts.Facts{}, err
		}
		// A kubelet that we keep away from tells all the same.
		return facts.Facts{ClusterDNS: slices.Clone(f.Base), Source: f.Where, Metrics: cfg.Metrics.String()}, nil
	}
}

// sourceConfig is what names kube-dns where the configuration does.
const sourceConfig = "cluster.dns"

// askSometimes is a Service that asks another one, for at most patience, and
// not again before every has passed: until then it repeats the answer.
func askSometimes(service kubelet.Service, patience, every time.Duration, now func() time.Time) kubelet.Service {
	var mu sync.Mutex
	var at time.Time
	var list []netip.Addr
	var err error
	return func(ctx context.Context, kubeconfig string) ([]netip.Addr, error) {
		mu.Lock()
		defer mu.Unlock()
		if at.IsZero() || now().Sub(at) >= every {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			list, err = service(ctx, kubeconfig)
			at = now()
		}
		return list, err
	}
}

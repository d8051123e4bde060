package pods

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"nodelocaldns/host/apiserver"
)

// A Spec is what the API server knows of the DNS settings of a pod.
type Spec struct {
	Namespace, Name string
	UID             string       // as [Pod] has it
	Nameservers     []netip.Addr // those of its own dnsConfig
}

// Explain fills into all what specs tell: names that were missing, and whether
// a pod names one of ours by its own dnsConfig. Pods that specs do not have
// stay as they are.
func Explain(all []Pod, specs []Spec, ours []netip.Addr) {
	for i := range all {
		p := &all[i]
		for _, s := range specs {
			if s.UID != p.UID {
				continue
			}
			if p.Name == "" {
				p.Namespace, p.Name = s.Namespace, s.Name
			}
			p.OwnDNS = slices.ContainsFunc(s.Nameservers, func(a netip.Addr) bool { return slices.Contains(ours, a) })
		}
	}
}

// askFor bounds Ask: a node has a few hundred pods, and the API server holds
// them in memory.
const askFor = 5 * time.Second

// Ask asks the API server for the pods of a node, with the credential in the
// file kubeconfig. An empty node is the one whose kubelet has that credential.
// It reads and never writes; its connections are closed before it returns.
func Ask(ctx context.Context, kubeconfig, node string) ([]Spec, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	api, err := apiserver.Open(kubeconfig)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	if node == "" {
		if node, err = api.NodeName(ctx); err != nil {
			return nil, err
		}
	}
	all, err := api.RecentPods(ctx, node)
	if err != nil {
		return nil, err
	}
	var specs []Spec
	for _, p := range all {
		specs = append(specs, spec(p))
	}
	return specs, nil
}

func spec(p apiserver.Pod) Spec {
	s := Spec{Namespace: p.Namespace, Name: p.Name, UID: p.UID}
	if p.ConfigHash != "" {
		s.UID = p.ConfigHash // of a static pod, what the kubelet goes by
	}
	for _, n := range p.Nameservers {
		if a, err := netip.ParseAddr(n); err == nil {
			s.Nameservers = append(s.Nameservers, a.Unmap().WithZone(""))
		}
	}
	return s
}

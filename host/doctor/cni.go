package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"nodelocaldns/host/notrack"
)

// cniDirs are where the container runtime finds the network's configuration:
// everybody's, that of k3s, that of microk8s.
var cniDirs = []string{
	"/etc/cni/net.d",
	"/var/lib/rancher/k3s/agent/etc/cni/net.d",
	"/var/snap/microk8s/current/args/cni-network",
}

// A network is a CNI that is known to us.
type network struct {
	name    string
	types   []string // of its plugins
	devices []string // names, or how they begin with a *
	// policies says that it holds pods to NetworkPolicies.
	policies bool
}

var networks = []network{
	{"Cilium", []string{"cilium-cni"}, []string{"cilium_host"}, true},
	{"Calico", []string{"calico"}, []string{"cali*", "vxlan.calico"}, true},
	{"AWS VPC CNI", []string{"aws-cni"}, nil, true},
	{"Azure CNI", []string{"azure-vnet"}, nil, false},
	{"Antrea", []string{"antrea"}, []string{"antrea-gw0"}, true},
	{"Weave Net", []string{"weave-net"}, []string{"weave"}, true},
	{"OVN-Kubernetes", []string{"ovn-k8s-cni-overlay"}, []string{"ovn-k8s-mp0"}, true},
	{"Kube-OVN", []string{"kube-ovn"}, []string{"ovn0"}, true},
	{"Flannel", []string{"flannel"}, []string{"flannel.1"}, false},
	{"bridge", []string{"bridge"}, nil, false},
	{"ptp", []string{"ptp"}, nil, false},
}

// cni says which network pods are in, and where it is known to be in the way
// of a link-local address of the node.
func (e *Env) cni(ctx context.Context) []Result {
	devices, err := e.deviceList()
	if err != nil {
		return unseen(err)
	}
	types, err := e.pluginTypes()
	denied := errors.Is(err, fs.ErrPermission)
	if err != nil && !denied {
		return unseen(err)
	}
	var have []network
	for _, n := range networks {
		if slices.ContainsFunc(n.types, func(t string) bool { return slices.Contains(types, t) }) ||
			slices.ContainsFunc(devices, func(d Device) bool { return matches(n.devices, d.Name) }) {
			have = append(have, n)
		}
	}
	var out []Result
	var names, policies []string
	for _, n := range have {
		names = append(names, n.name)
		if n.policies {
			policies = append(policies, n.name)
		}
		switch n.name {
		case "Cilium":
			out = append(out, e.cilium()...)
		case "Calico":
			out = append(out, e.calico()...)
		}
	}
	if slices.ContainsFunc(devices, func(d Device) bool { return strings.HasPrefix(d.Name, "vlan.eth.") }) {
		out = append(out, warning("nodelocaldns canary shows whether they do; POD_SECURITY_GROUP_ENFORCING_MODE=standard lets them",
			"pods with security groups of their own run here (vlan.eth.*): in strict mode they may not reach an address of the node")...)
	}
	all, _ := e.processList()
	if slices.ContainsFunc(all, func(p process) bool { return p.is("containerd-shim-kata-v2") }) {
		out = append(out, warning("nodelocaldns canary shows whether they do", "pods in virtual machines (Kata) run here: they may not reach a link-local address of the node")...)
	}
	if len(policies) > 0 {
		out = append(out, info(fmt.Sprintf("policies that limit egress to kube-dns by its pods need beside it: to ipBlock %s, UDP and TCP %d", blocks(e), e.Want.Port),
			"%s: pods may be held to NetworkPolicies, and our addresses are no pod's", strings.Join(policies, ", "))...)
	}
	switch {
	case len(names) > 0:
		return orOK(out, "%s", strings.Join(names, ", "))
	case denied:
		return append(out, info("", "not seen: needs root")...)
	case len(types) > 0:
		return orOK(out, "%s", strings.Join(types, ", "))
	}
	return out
}

func blocks(e *Env) string {
	var out []string
	for _, a := range e.Want.Addresses {
		out = append(out, fmt.Sprintf("%s/%d", a, a.BitLen()))
	}
	return strings.Join(out, ", ")
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// pluginTypes are the plugins of the configuration that the runtime takes: the
// first file, by name, of each directory.
func (e *Env) pluginTypes() ([]string, error) {
	var out []string
	for _, dir := range cniDirs {
		entries, err := e.Tree.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		for _, f := range entries {
			if !slices.Contains([]string{".conflist", ".conf", ".json"}, path.Ext(f.Name())) {
				continue
			}
			text, err := e.Tree.ReadFile(path.Join(dir, f.Name()))
			if err != nil {
				return nil, err
			}
			var conf any
			if json.Unmarshal(text, &conf) == nil {
				out = typesIn(conf, out)
			}
			break
		}
	}
	return out, nil
}

// typesIn are the values of all keys "type", those of a delegate too.
func typesIn(v any, out []string) []string {
	switch v := v.(type) {
	case map[string]any:
		if t, ok := v["type"].(string); ok && !slices.Contains(out, t) {
			out = append(out, t)
		}
		for _, k := range sorted(v) {
			out = typesIn(v[k], out)
		}
	case []any:
		for _, one := range v {
			out = typesIn(one, out)
		}
	}
	return out
}

func (e *Env) cilium() []Result {
	proxies, err := e.running("kube-proxy")
	if err == nil && len(proxies) == 0 {
		return info("nodelocaldns canary shows whether pods reach us; policies that limit egress need toEntities: [host] (cilium/cilium#18644)",
			"Cilium without kube-proxy: it translates service addresses itself, and takes ours for the node")
	}
	return info("policies that limit egress need toEntities: [host] (cilium/cilium#18644)", "Cilium takes our addresses for the node")
}

// calico looks for the rule that ends what pods send to their node. By its own
// default Felix drops that; kubeadm's manifests and the operator set ACCEPT.
func (e *Env) calico() []Result {
	r, err := e.ruleset()
	if err != nil {
		return nil // the checks of rules say so
	}
	for _, p := range r.places() {
		if p.table != "filter" || p.chain != "INPUT" {
			continue
		}
		for _, rule := range r.in(p) {
			if target(rule) == notrack.Chain {
				break // we are let through before Calico is asked
			}
			if target(rule) != "cali-INPUT" {
				continue
			}
			host := p
			host.chain = "cali-wl-to-host"
			for _, end := range r.in(host) {
				if slices.Contains(end, "Configured DefaultEndpointToHostAction") && (target(end) == "DROP" || target(end) == "REJECT") {
					return failure("set defaultEndpointToHostAction: Accept in the FelixConfiguration",
						"Calico drops what pods send to their node (defaultEndpointToHostAction), before our rules let it through")
				}
			}
		}
	}
	return nil
}

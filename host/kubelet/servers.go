package kubelet

import (
	"net/netip"
	"slices"
	"strings"
)

// MaxServers is how many nameservers the kubelet writes into a pod's
// resolv.conf: k8s.io/kubernetes/pkg/apis/core/validation.MaxDNSNameservers.
// With more it cuts the list and complains for each pod.
const MaxServers = 3

// nodeLocal are the addresses at which node-local caches are known to answer.
var nodeLocal = []netip.Addr{
	netip.AddrFrom4([4]byte{169, 254, 20, 10}), // the DaemonSet's default, and ours
	netip.AddrFrom4([4]byte{169, 254, 25, 10}), // kubespray's default
	netip.AddrFrom4([4]byte{169, 254, 10, 10}), // AKS LocalDNS, for the node
	netip.AddrFrom4([4]byte{169, 254, 10, 11}), // AKS LocalDNS, for pods
}

// parseServers keeps what the kubelet would: entries that are no address are
// dropped by it with a line in its log.
func parseServers(entries []string) []netip.Addr {
	var out []netip.Addr
	for _, e := range entries {
		if a, ok := parseServer(e); ok {
			out = append(out, a)
		}
	}
	return out
}

// parseServer accepts what the kubelet does: no zone, and leading zeros in an
// IPv4 address, which are decimal all the same.
func parseServer(text string) (netip.Addr, bool) {
	if !strings.Contains(text, ":") {
		octets := strings.Split(text, ".")
		for i, o := range octets {
			if trimmed := strings.TrimLeft(o, "0"); o != "" {
				if octets[i] = trimmed; trimmed == "" {
					octets[i] = "0"
				}
			}
		}
		text = strings.Join(octets, ".")
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// isNodeLocal says that the address means this node. That of a service is never
// link-local: no other node could route it.
func isNodeLocal(a netip.Addr) bool { return slices.Contains(nodeLocal, a) || a.IsLinkLocalUnicast() }

// Base is list without ours and without the addresses of other node-local
// caches, each once, in order: who answers when we do not.
func Base(list, ours []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if !slices.Contains(ours, a) && !isNodeLocal(a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Target is ours, then base, at most MaxServers. cut are those for which there
// was no room.
func Target(ours, base []netip.Addr) (target, cut []netip.Addr) {
	for _, a := range slices.Concat(ours, base) {
		switch {
		case slices.Contains(target, a):
		case len(target) < MaxServers:
			target = append(target, a)
		default:
			cut = append(cut, a)
		}
	}
	return target, cut
}

// join is the list as a flag carries it.
func join(list []netip.Addr) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = a.String()
	}
	return strings.Join(words, ",")
}

func named(list []netip.Addr) string {
	if len(list) == 0 {
		return "none"
	}
	return join(list)
}

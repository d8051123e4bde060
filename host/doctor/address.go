package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// metadata is where clouds tell a machine of itself. A prefix shorter than /32
// on a node-local device takes it away.
var metadata = netip.AddrFrom4([4]byte{169, 254, 169, 254})

// The devices of node-local caches that are not ours, as their rules name them.
const daemonSetDevice = "nodelocaldns"

// address looks for our addresses elsewhere: on another device, on the wire,
// or taken away by a rule of routing.
func (e *Env) address(context.Context) []Result {
	devices, err := e.deviceList()
	if err != nil {
		return unseen(err)
	}
	var out []Result
	var held, absent []string
	for _, a := range e.Want.Addresses {
		if a.IsLoopback() {
			continue
		}
		on := holding(devices, a)
		for _, d := range on {
			if d.Name != e.Want.Interface && d.Name != "lo" && d.Name != daemonSetDevice {
				out = append(out, warning(fmt.Sprintf("ip addr del %s dev %s, if nothing needs it there; else set other listen.addresses", a, d.Name),
					"%s is also on %s (%s)", a, d.Name, d.Kind)...)
			}
		}
		if len(on) == 0 {
			absent = append(absent, a.String())
			if dev := e.neighbour(a); dev != "" {
				out = append(out, warning("another machine has this address: set other listen.addresses, or take it from there",
					"somebody on the wire of %s answers to %s", dev, a)...)
			}
			continue
		}
		held = append(held, fmt.Sprintf("%s is on %s", a, on[0].Name))
		if r, err := e.Network.Route(a); err == nil && !r.Local {
			out = append(out, failure("ip rule; the table local must come first", "%s is on %s, and packets to it leave by %s all the same: a rule of routing comes before the table local", a, on[0].Name, r.Device)...)
		}
	}
	if r, err := e.Network.Route(metadata); err == nil {
		for _, d := range devices {
			if d.Name == r.Device && (d.Kind == "dummy" || d.Name == e.Want.Interface) {
				out = append(out, warning("give the addresses on "+d.Name+" as /32",
					"packets to %s, where clouds keep their metadata, go to %s", metadata, d.Name)...)
			}
		}
	}
	if len(absent) > 0 {
		held = append(held, strings.Join(absent, ", ")+" is on no device yet")
	}
	return orOK(out, "%s", strings.Join(held, ", "))
}

func holding(devices []Device, a netip.Addr) []Device {
	var out []Device
	for _, d := range devices {
		if slices.ContainsFunc(d.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			out = append(out, d)
		}
	}
	return out
}

// neighbour is the device on whose wire somebody has answered for a, as the
// kernel remembers in /proc/net/arp: address, type, flags, hardware address,
// mask, device. 0x2 says that the entry is complete.
func (e *Env) neighbour(a netip.Addr) string {
	text, err := e.Tree.ReadFile("/proc/net/arp")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) == 6 && w[0] == a.String() && w[2] == "0x2" {
			return w[5]
		}
	}
	return ""
}

// otherCaches looks for caches of others at a link-local address of the node.
func (e *Env) otherCaches(ctx context.Context) []Result {
	devices, err := e.deviceList()
	if err != nil {
		return unseen(err)
	}
	var out []Result
	caches, err := e.running("node-cache")
	if err != nil && len(caches) == 0 {
		caches = nil // whether its device is there tells as much
	}
	off := "keep it until we answer here; then keep its pod off this node (a nodeAffinity), and remove the DaemonSet when the last node is done"
	if f, _ := e.Kubelet(ctx); strings.HasPrefix(f.Program, "/home/kubernetes/bin/") {
		off = "GKE manages it: keep it and do without us, or turn the NodeLocal DNSCache add-on off"
	}
	device := slices.ContainsFunc(devices, func(d Device) bool { return d.Name == daemonSetDevice })
	switch {
	case len(caches) > 0:
		out = append(out, warning(off, "the DaemonSet node-local-dns runs here: %s%s", caches[0], e.portsOf(caches[0]))...)
	case device && err == nil:
		out = append(out, warning(removeHint, "the device %s of the DaemonSet node-local-dns is there, and no node-cache runs", daemonSetDevice)...)
	case device:
		out = append(out, info("", "the device %s of the DaemonSet node-local-dns is there", daemonSetDevice)...)
	}
	for _, known := range []struct {
		what, hint string
		addrs      []netip.Addr
	}{
		{"kubespray's node-local cache", "enable_nodelocaldns: false in kubespray, once pods no longer name it", []netip.Addr{netip.AddrFrom4([4]byte{169, 254, 25, 10})}},
		{"AKS LocalDNS", "az aks nodepool update --localdns-config, to turn it off; or keep it and do without us", localDNS},
	} {
		for _, a := range known.addrs {
			if on := holding(devices, a); len(on) > 0 && !slices.Contains(e.Want.Addresses, a) && on[0].Name != daemonSetDevice {
				out = append(out, warning(known.hint, "%s is here: %s is on %s", known.what, a, on[0].Name)...)
				break
			}
		}
	}
	if alone := e.alone(ctx); alone != nil {
		out = append(out, *alone)
	}
	return orOK(out, "none")
}

// nodeCachePorts are those of node-cache, as its manifest has them: DNS, health,
// metrics, and metrics of what goes wrong when it sets up rules and device.
var nodeCachePorts = []uint16{53, 8080, 9253, 9353}

// portsOf says which of node-cache's ports p listens on, behind a comma.
func (e *Env) portsOf(p process) string {
	var held []string
	for _, port := range nodeCachePorts {
		sockets, err := e.Sockets(port)
		if err == nil && slices.ContainsFunc(sockets, func(s Socket) bool { return e.holder(s) == p.String() }) {
			held = append(held, strconv.Itoa(int(port)))
		}
	}
	if len(held) == 0 {
		return ""
	}
	return ", on port " + strings.Join(held, ", ")
}

// localDNS are the addresses of AKS LocalDNS, for the node and for pods. Its
// nodes are made to have no other server.
var localDNS = []netip.Addr{netip.AddrFrom4([4]byte{169, 254, 10, 10}), netip.AddrFrom4([4]byte{169, 254, 10, 11})}

// alone is about pods that have no kube-dns to turn to.
func (e *Env) alone(ctx context.Context) *Result {
	f, err := e.Kubelet(ctx)
	other := func(a netip.Addr) bool {
		return !a.IsLinkLocalUnicast() && !slices.Contains(e.Want.Addresses, a) || slices.Contains(localDNS, a)
	}
	if len(f.Now) == 0 || slices.ContainsFunc(f.Now, other) {
		return nil
	}
	hint := "nodelocaldns apply puts kube-dns behind it"
	if err != nil {
		hint = "whoever answers there must stay; the check kubelet says why we cannot put kube-dns behind it"
	}
	return &Result{Warning, fmt.Sprintf("the kubelet names %s alone: when nobody answers there, pods have no DNS at all", named(f.Now)), hint}
}

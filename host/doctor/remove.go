package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// removeHint is what to do about all that the DaemonSet has left behind.
const removeHint = "nodelocaldns doctor --leftovers prints the commands that remove it, once no pod of the DaemonSet is to come back here"

// A Removal is how what a node-local-dns DaemonSet has left behind is removed.
type Removal struct {
	// Commands are for a shell, one a line, and do nothing else. Each deletes one
	// rule, or the device.
	Commands []string

	// Kept says what is left all the same, and why; empty where all can go.
	Kept string
}

// Running is the error of a removal while a node-cache runs: what would be removed
// is in use, and would be made again.
type Running struct{ process process }

// Error says who runs.
func (r *Running) Error() string {
	return fmt.Sprintf("%s of the DaemonSet node-local-dns runs here, and takes away itself what it has made", r.process)
}

// Hint says what to do first.
func (*Running) Hint() string {
	return "keep its pod off this node (a nodeAffinity), wait until it has gone, and ask again"
}

// Leftovers finds what a node-cache that was killed has left: its rules in every
// back-end, by their comment, any other that leaves packets to kube-dns untracked (it
// may have been made without one), and its device. It changes nothing. Where one
// runs, the error is a [*Running]. The device stays while it alone has an address that
// we are to answer at: pods may ask there.
func (e *Env) Leftovers(ctx context.Context) (Removal, error) {
	var out Removal
	caches, err := e.running("node-cache")
	switch {
	case err != nil:
		return out, err
	case len(caches) > 0:
		return out, &Running{caches[0]}
	}
	r, err := e.ruleset()
	if err != nil {
		return out, err
	}
	kubeDNS := e.KubeDNS(ctx)
	for _, rule := range r.where(func(r foreignRule) bool { return r.byNodeCache() || r.breaks(kubeDNS) }) {
		out.Commands = append(out.Commands, rule.command())
	}
	devices, err := e.deviceList()
	if err != nil {
		return out, err
	}
	for _, d := range devices {
		if d.Name != daemonSetDevice {
			continue
		}
		alone := slices.IndexFunc(e.Want.Addresses, func(a netip.Addr) bool {
			on := holding(devices, a)
			return len(on) == 1 && on[0].Name == d.Name
		})
		if alone >= 0 {
			out.Kept = fmt.Sprintf("the device %s alone has %s, which pods may name", d.Name, e.Want.Addresses[alone])
			continue
		}
		out.Commands = append(out.Commands, "ip link del "+d.Name)
	}
	return out, nil
}

// Package facts keeps what guard has found out about the node where those read
// it who may not look themselves: resolver and relay have no rights but their
// sockets.
package facts

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"nodelocaldns/host/fsys"
)

// file is in the run directory: what it says is to be found out anew after a
// reboot.
const file = "facts.json"

// Facts are what was found, and what the relay must know of the configuration,
// which it does not read. Fields may be added; a reader passes over those that
// it does not know.
type Facts struct {
	ClusterDNS []netip.Addr     `json:"cluster_dns"`       // kube-dns, as the node was found to have it: whom pods of this node ask after us; port 53
	Servers    []netip.AddrPort `json:"servers,omitempty"` // kube-dns, where the configuration names it: the node was not looked at then
	Source     string           `json:"source"`            // what told ClusterDNS or Servers, in words
	Metrics    string           `json:"metrics,omitempty"` // where the resolver serves /metrics, as net.Listen takes it; empty: nowhere
}

// KubeDNS is kube-dns with its ports, whoever named it.
func (f Facts) KubeDNS() []netip.AddrPort {
	if len(f.Servers) > 0 {
		return slices.Clone(f.Servers)
	}
	var all []netip.AddrPort
	for _, a := range f.ClusterDNS {
		all = append(all, netip.AddrPortFrom(a, 53))
	}
	return all
}

// Equal reports whether f and g say the same.
func (f Facts) Equal(g Facts) bool {
	return f.Source == g.Source && f.Metrics == g.Metrics && slices.Equal(f.ClusterDNS, g.ClusterDNS) && slices.Equal(f.Servers, g.Servers)
}

// Read returns the facts in the run directory. Where nobody has written any,
// the error wraps fs.ErrNotExist.
func Read(run fsys.Dir) (Facts, error) {
	text, err := run.ReadFile(file)
	if err != nil {
		return Facts{}, err
	}
	var f Facts
	if err := json.Unmarshal(text, &f); err != nil {
		return Facts{}, fmt.Errorf("reading %s: %w", run.Path(file), err)
	}
	return f, nil
}

// Write replaces the facts in the run directory, whole: a reader sees the old
// or the new ones.
func Write(run fsys.Dir, f Facts) error {
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return run.WriteAtomic(file, append(text, '\n'), 0o644)
}

// Remove takes them away. That there are none is no error.
func Remove(run fsys.Dir) error { return run.Remove(file) }

// Package facts keeps what guard has found out about the node where those read
// it who may not look themselves: the resolver has no rights but its sockets.
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

// Facts are what was found. Fields may be added; a reader passes over those
// that it does not know.
type Facts struct {
	ClusterDNS []netip.Addr `json:"cluster_dns"` // kube-dns: whom pods of this node ask after us; port 53
	Source     string       `json:"source"`      // what told ClusterDNS, in words
}

// Equal reports whether f and g say the same.
func (f Facts) Equal(g Facts) bool {
	return f.Source == g.Source && slices.Equal(f.ClusterDNS, g.ClusterDNS)
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

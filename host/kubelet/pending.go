package kubelet

import (
	"context"
	"fmt"
	"net/netip"
	"path"
)

// findPending is Facts.Pending. The command line of the running kubelet tells
// where it names servers; where a configuration file does, a kubelet has read
// it if it is the younger of the two. A file of ours that is gone, and was one
// of those, leaves no trace: there nothing is pending.
func (f *found) findPending(ctx context.Context) (string, error) {
	file := f.oursByFile()
	if file == "" {
		return f.byArgument(), nil
	}
	if f.node.Started == nil {
		return "", nil
	}
	info, err := f.node.Tree.Stat(file)
	if err != nil {
		return "", err
	}
	started, err := f.node.Started(ctx, f.Unit)
	if err != nil {
		return "", fmt.Errorf("asking when %s was started: %w", f.Unit, err)
	}
	if started.IsZero() || !started.Before(info.ModTime()) {
		return "", nil
	}
	return fmt.Sprintf("%s runs since before %s was written: its pods do not ask us yet", f.Unit, file), nil
}

// oursByFile is the configuration file that puts us first, or "".
func (f *found) oursByFile() string {
	if f.kind == isMicroK8s {
		if f.first(f.list) {
			return microK8sArgs
		}
		return ""
	}
	for _, name := range f.ours {
		if f.dir != "" && path.Dir(name) == path.Clean(f.dir) {
			return name
		}
	}
	return ""
}

// first says whether list puts us first.
func (f *found) first(list []netip.Addr) bool {
	return len(list) > 0 && list[0] == f.want.Addresses[0]
}

// inPlace says whether the files put us first, by our file or by another's.
func (f *found) inPlace() bool { return len(f.ours) > 0 || f.first(f.list) }

// byArgument is for a kubelet whose command line names the servers.
func (f *found) byArgument() string {
	if f.kind != isKubelet || f.PID == 0 {
		return ""
	}
	switch wanted, runs := f.inPlace(), f.first(f.Now); {
	case wanted && !runs:
		return fmt.Sprintf("the running kubelet (pid %d) has pods ask %s", f.PID, named(f.Now))
	case !wanted && runs:
		return fmt.Sprintf("the running kubelet (pid %d) has pods ask %s until its next start", f.PID, named(f.Now))
	}
	return ""
}

// Package kubedns finds out who kube-dns is, for a process without rights and
// without configuration: from what guard has written down, else from the command
// line of the running kubelet.
package kubedns

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"

	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
)

// A Finder looks for kube-dns. Its fields do not change once it is in use; it is
// used from one goroutine.
type Finder struct {
	Run  fsys.Dir // guard's
	Proc string   // the file system of processes, such as /proc

	// Ours says whether an address is one that we listen on: those are named to
	// pods, and kube-dns is none of them.
	Ours func(netip.Addr) bool
	Log  *slog.Logger

	last       Found
	unreadable string // why guard's facts could not be read when last tried
}

// Found is what a Finder has found.
type Found struct {
	Servers []netip.AddrPort // kube-dns, in order of preference; none: nobody tells
	Source  string           // what told, in words
	Metrics string           // where the resolver serves /metrics, as net.Listen takes it; empty: nowhere, or nobody tells
}

// Look looks once. What was known stays known while nobody tells: a file that is
// missing or broken says nothing about kube-dns.
func (f *Finder) Look() Found {
	told, err := facts.Read(f.Run)
	why := ""
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		why = err.Error()
	}
	if why != f.unreadable && why != "" {
		f.Log.Warn("reading what guard has found out: going by the kubelet", "error", why)
	}
	f.unreadable = why
	if err == nil {
		f.last.Metrics = told.Metrics
	}
	if servers := f.others(told.KubeDNS()); err == nil && len(servers) > 0 {
		f.last.Servers, f.last.Source = servers, told.Source
	} else if servers := f.others(kubeletServers(f.Proc)); len(servers) > 0 {
		f.last.Servers, f.last.Source = servers, "--cluster-dns of the running kubelet"
	}
	return f.last
}

// others are those of list that are not ours.
func (f *Finder) others(list []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(list, func(a netip.AddrPort) bool { return f.Ours(a.Addr()) })
}

// Equal reports whether f and g say the same.
func (f Found) Equal(g Found) bool {
	return f.Source == g.Source && f.Metrics == g.Metrics && slices.Equal(f.Servers, g.Servers)
}

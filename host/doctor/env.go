package doctor

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"sync"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/pods"
	"nodelocaldns/host/sysctl"
)

// A Want is what the configuration asks of the node.
type Want struct {
	Addresses []netip.Addr // where we answer
	Port      uint16
	Interface string // of ours
	LinkType  link.Type
	Notrack   bool
	Endpoints []Endpoint
	Sysctls   []sysctl.Param
	Kubelet   kubelet.Want // as the plan wants it, or would
	Manage    bool         // the kubelet is ours to tell
	KubeDNS   []netip.Addr // by configuration; usually none
}

// An Endpoint is where the resolver serves HTTP.
type Endpoint struct {
	Key  string         // of the configuration, such as health.address
	Addr netip.AddrPort // an invalid Addr is every address
}

// A Unit is a unit as systemd knows it.
type Unit struct {
	Name       string
	Load       string // loaded, not-found, masked, bad-setting, error
	Active     string // active, inactive, failed, …
	Sub        string
	File       string // enabled, disabled, static, masked, …; empty without a file
	NeedReload bool   // its files have changed since systemd read them
}

// Systemd is what is asked of the running systemd.
type Systemd interface {
	Version(ctx context.Context) (string, error)
	Unit(ctx context.Context, name string) (Unit, error)
	// Units are those with a file or in memory whose name matches the glob.
	Units(ctx context.Context, glob string) ([]Unit, error)
}

// A Device is a network device.
type Device struct {
	Name, Kind string // Kind as ip -d link has it: dummy, bridge, veth; "device" for hardware and lo
	Addrs      []netip.Prefix
}

// A Route is where the node sends packets.
type Route struct {
	Device string
	Local  bool // to itself
}

// Network is what is asked of the kernel's network.
type Network interface {
	Devices() ([]Device, error)
	Route(to netip.Addr) (Route, error)
}

// An Env is the node as the checks see it. Its fields are set before the
// checks run, and not after. It must not be copied once they do.
type Env struct {
	Want Want

	// Tree is the root of the running node, with /proc and /sys.
	Tree fsys.Tree

	Systemd Systemd // nil where systemd does not run
	Network Network
	Tables  notrack.Opener
	Node    kubelet.Node

	// Pods are those that run here; nil: nobody looks.
	Pods func(ctx context.Context) ([]pods.Pod, error)

	// Version is what a program prints for --version.
	Version func(ctx context.Context, program string) (string, error)

	// Self is the program that runs, for a comparison with the installed one.
	Self string

	processes memo[[]process]
	holders   memo[map[string]string]
	devices   memo[[]Device]
	facts     memo[kubelet.Facts]
	chains    memo[*ruleset]
	pods      memo[[]pods.Pod]
}

// A memo is a value that several checks need and the first one looks up.
type memo[T any] struct {
	once sync.Once
	v    T
	err  error
}

func (m *memo[T]) get(look func() (T, error)) (T, error) {
	m.once.Do(func() { m.v, m.err = look() })
	return m.v, m.err
}

// Checks are those of the node itself, in the order of the report.
func (e *Env) Checks() []Check {
	return []Check{
		{"kernel", e.kernel},
		{"systemd", e.systemd},
		{"kubernetes", e.kubernetes},
		{"program", e.program},
		{"units", e.units},
		{"link", e.link},
		{"address", e.address},
		{"port/dns", e.dnsPort},
		{"port/http", e.httpPorts},
		{"other-cache", e.otherCaches},
		{"rules/leftover", e.leftovers},
		{"rules/kube-dns", e.untrackedKubeDNS},
		{"rules/drop", e.drops},
		{"rules/backends", e.backends},
		{"firewall", e.firewall},
		{"cni", e.cni},
		{"kubelet", e.kubelet},
		{"kubelet/unit", e.kubeletUnit},
		{"pods", e.podsNaming},
		{"sysctl/kube-proxy", e.kubeProxy},
		{"sysctl/files", e.sysctlFiles},
		{"conntrack", e.conntrack},
		{"sockets", e.sockets},
	}
}

// proc is the path of a file below /proc, for system calls: thousands of them
// are read, and none leads through a link that matters.
func (e *Env) proc(name string) string { return e.Tree.Path("/proc/" + name) }

// sys is the value of a kernel parameter, or "" where there is none.
func (e *Env) sys(key string) string {
	text, err := os.ReadFile(e.proc("sys/" + strings.ReplaceAll(key, ".", "/")))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (e *Env) exists(name string) bool {
	_, err := e.Tree.Lstat(name)
	return err == nil
}

// Kubelet is what is known of the node's kubelet: as kubelet.Find, once.
func (e *Env) Kubelet(ctx context.Context) (kubelet.Facts, error) {
	return e.facts.get(func() (kubelet.Facts, error) {
		if len(e.Want.Kubelet.Addresses) == 0 {
			return kubelet.Facts{}, &kubelet.Refusal{Why: "no pod can ask what we listen on", Next: "set listen.addresses and port 53"}
		}
		return kubelet.Find(ctx, e.Node, e.Want.Kubelet)
	})
}

// KubeDNS are the addresses of kube-dns, as far as they are known.
func (e *Env) KubeDNS(ctx context.Context) []netip.Addr {
	if len(e.Want.KubeDNS) > 0 {
		return e.Want.KubeDNS
	}
	f, _ := e.Kubelet(ctx) // what was found before a refusal is true all the same
	return f.Base
}

func (e *Env) deviceList() ([]Device, error) { return e.devices.get(e.Network.Devices) }

// named are addresses for a person.
func named(list []netip.Addr) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}

// Package doctortest makes nodes for doctor from text files.
package doctortest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/host/doctor"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/sysctl"
)

// Load makes a node for doctor from a text file (txtar), with the configuration
// of an empty file. Its parts, all optional:
//
//	base            the name of another such file beside this one, whose parts come first
//	tree/NAME       a file of the node
//	links           NAME TARGET, symbolic links
//	layout          the name of a layout of a kubelet, in the directory layouts
//	processes       PID UNIT NETWORK ARGV…; UNIT and NETWORK may be -: no unit, the node's network
//	sockets         PROTO ADDRESS:PORT PID DROPS; PID may be -: nobody's that is seen
//	devices         NAME KIND PREFIX…
//	routes          ADDRESS DEVICE [local]
//	systemd         instead of the base's: its version; then NAME LOAD ACTIVE SUB FILE [reload]
//	version         what the kubelet prints for --version
//	iptables-nft, ip6tables-legacy, …  as iptables-save prints it
//
// Whatever would change the node panics.
func Load(t *testing.T, file, layouts string) *doctor.Env {
	t.Helper()
	n := &textNode{t: t, root: t.TempDir(), tables: map[string]savedTables{}, routes: map[netip.Addr]doctor.Route{}, sockets: map[string]string{}}
	n.link("proc/self/ns/net", "net:[1]")
	n.link("proc/self/ns/pid", "pid:[1]")
	n.load(file, layouts)
	for table, text := range n.sockets {
		n.file("proc/net/"+table, "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"+text)
	}
	ours := netip.AddrFrom4([4]byte{169, 254, 20, 10})
	tree := fsys.Tree(n.root)
	env := &doctor.Env{
		Want: doctor.Want{
			Addresses: []netip.Addr{ours},
			Port:      53,
			Interface: "nodelocaldns0",
			LinkType:  link.Auto,
			Notrack:   true,
			Endpoints: []doctor.Endpoint{
				{Key: "metrics.address", Addr: netip.AddrPortFrom(netip.Addr{}, 9253)},
				{Key: "health.address", Addr: netip.AddrPortFrom(ours, 8080)},
			},
			Sysctls: []sysctl.Param{
				{Key: sysctl.Max, Value: 1048576, Policy: sysctl.Floor},
				{Key: sysctl.CloseWait, Value: 15, Policy: sysctl.Ceiling},
			},
			Kubelet: kubelet.Want{Addresses: []netip.Addr{ours}},
			Manage:  true,
		},
		Tree:    tree,
		Network: n,
		Tables:  n.open,
		Node:    kubelet.Node{Tree: tree, Running: kubelet.Running(tree.Path("/proc"))},
		Version: func(context.Context, string) (string, error) { return n.version, nil },
		Self:    tree.Path(doctor.Installed),
	}
	if n.units != nil {
		env.Systemd = n
	}
	return env
}

// A textNode is a node that was read from text.
type textNode struct {
	t       *testing.T
	root    string
	devices []doctor.Device
	routes  map[netip.Addr]doctor.Route
	systemd string
	units   []doctor.Unit
	version string
	tables  map[string]savedTables // by program
	sockets map[string]string      // by table of /proc/net
	inode   int
}

func (n *textNode) load(file, layouts string) {
	n.t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, part := range a.Files {
		switch name := strings.TrimSpace(string(part.Data)) + ".txtar"; part.Name {
		case "base":
			n.load(filepath.Join(filepath.Dir(file), name), layouts)
		case "layout":
			n.layout(filepath.Join(layouts, name))
		default:
			n.part(part.Name, string(part.Data))
		}
	}
}

func (n *textNode) file(name, text string) {
	n.t.Helper()
	name = filepath.Join(n.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *textNode) link(name, target string) {
	n.t.Helper()
	name = filepath.Join(n.root, name)
	_ = os.Remove(name) // of the base
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(target, name)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *textNode) layout(file string) {
	n.t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range a.Files {
		if strings.HasPrefix(f.Name, "tree/") || f.Name == "links" {
			n.part(f.Name, string(f.Data))
		}
	}
}

func (n *textNode) part(name, text string) {
	n.t.Helper()
	if rest, ok := strings.CutPrefix(name, "tree/"); ok {
		n.file(rest, text)
		return
	}
	if strings.Contains(name, "tables-") {
		n.tables[name] = parseSaved(text)
		return
	}
	if name == "version" {
		n.version = text
		return
	}
	if name == "systemd" {
		n.units = nil // not that of the base
	}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) == 0 {
			continue
		}
		switch name {
		case "links":
			n.link(w[0], w[1])
		case "processes":
			n.process(w)
		case "sockets":
			n.socket(w)
		case "devices":
			d := doctor.Device{Name: w[0], Kind: w[1]}
			for _, p := range w[2:] {
				d.Addrs = append(d.Addrs, netip.MustParsePrefix(p))
			}
			n.devices = append(n.devices, d)
		case "routes":
			n.routes[netip.MustParseAddr(w[0])] = doctor.Route{Device: w[1], Local: slices.Contains(w, "local")}
		case "systemd":
			if n.units == nil {
				n.systemd, n.units = strings.TrimSpace(line), []doctor.Unit{}
				continue
			}
			n.units = append(n.units, doctor.Unit{Name: w[0], Load: w[1], Active: w[2], Sub: w[3], File: w[4], NeedReload: slices.Contains(w[5:], "reload")})
		}
	}
}

func (n *textNode) process(w []string) {
	dir := "proc/" + w[0]
	comm := filepath.Base(w[3])
	n.file(dir+"/comm", comm[:min(len(comm), 15)]+"\n")
	n.file(dir+"/cmdline", strings.Join(w[3:], "\x00")+"\x00")
	group := "/system.slice/" + w[1]
	if w[1] == "-" {
		group = "/"
	}
	n.file(dir+"/cgroup", "0::"+group+"\n")
	network := "net:[1]"
	if w[2] != "-" {
		network = w[2]
	}
	n.link(dir+"/ns/net", network)
	n.link(dir+"/ns/pid", "pid:[1]")
}

func (n *textNode) socket(w []string) {
	at := netip.MustParseAddrPort(w[1])
	n.inode++
	inode := strconv.Itoa(1000 + n.inode)
	table, zero, state := w[0], "00000000:0000", "07"
	if w[0] == "tcp" {
		state = "0A"
	}
	if at.Addr().Is6() {
		table, zero = table+"6", strings.Repeat("0", 32)+":0000"
	}
	raw := at.Addr().AsSlice()
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	n.sockets[table] += fmt.Sprintf("    0: %X:%04X %s %s 00000000:00000000 00:00000000 00000000     0        0 %s 2 0000000000000000 %s\n",
		raw, at.Port(), zero, state, inode, w[3])
	if w[2] != "-" {
		n.link(fmt.Sprintf("proc/%s/fd/%d", w[2], n.inode), "socket:["+inode+"]")
	}
}

// Devices is doctor.Network.
func (n *textNode) Devices() ([]doctor.Device, error) { return n.devices, nil }

// Route is doctor.Network.
func (n *textNode) Route(to netip.Addr) (doctor.Route, error) {
	r, ok := n.routes[to]
	if !ok {
		return doctor.Route{}, errors.New("network is unreachable")
	}
	return r, nil
}

// Version is doctor.Systemd.
func (n *textNode) Version(context.Context) (string, error) { return n.systemd, nil }

// Unit is doctor.Systemd.
func (n *textNode) Unit(_ context.Context, name string) (doctor.Unit, error) {
	for _, u := range n.units {
		if u.Name == name {
			return u, nil
		}
	}
	return doctor.Unit{Name: name, Load: "not-found", Active: "inactive", Sub: "dead"}, nil
}

// Units is doctor.Systemd.
func (n *textNode) Units(_ context.Context, glob string) ([]doctor.Unit, error) {
	var out []doctor.Unit
	for _, u := range n.units {
		if ok, err := filepath.Match(glob, u.Name); ok || err != nil {
			out = append(out, u)
		}
	}
	return out, nil
}

func (n *textNode) open(b notrack.Backend, v6 bool) (notrack.Tables, error) {
	name := "iptables-" + string(b)
	if v6 {
		name = "ip6tables-" + string(b)
	}
	saved, ok := n.tables[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, notrack.ErrMissing)
	}
	saved.backend = b
	return saved, nil
}

// savedTables are the rules that iptables-save printed.
type savedTables struct {
	notrack.Tables // nil: a write panics
	backend        notrack.Backend
	chains         map[string][]string // by table
	rules          map[string][]string // by table and chain
}

func parseSaved(text string) savedTables {
	s := savedTables{chains: map[string][]string{}, rules: map[string][]string{}}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			s.chains[table] = append(s.chains[table], name)
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[3:], " ")
			s.rules[table+" "+chain] = append(s.rules[table+" "+chain], rule)
		}
	}
	return s
}

func (s savedTables) Backend() notrack.Backend { return s.backend }

func (s savedTables) Chains(table string) ([]string, error) { return s.chains[table], nil }

func (s savedTables) Rules(table, chain string) ([]string, error) {
	if !slices.Contains(s.chains[table], chain) {
		return nil, fmt.Errorf("chain %s of %s: %w", chain, table, fs.ErrNotExist)
	}
	return s.rules[table+" "+chain], nil
}

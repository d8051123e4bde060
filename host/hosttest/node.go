// Package hosttest is a node for tests: links, rules and kernel parameters in
// memory, which print themselves, and whose writes can fail or lose power.
package hosttest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/sysctl"
)

// ErrFault is what a write returns that was told to fail.
var ErrFault = errors.New("injected fault")

// PowerCut is what a write panics with when the power goes.
type PowerCut struct{}

// A Fault is what happens at one write.
type Fault int

// The faults.
const (
	Fail      Fault = iota // it returns ErrFault and does nothing
	CutBefore              // the power goes before it lands
	CutAfter               // the power goes when it has landed
)

// A Node is a fake node. Its methods may be called concurrently; its fields are
// set before the first call, or under Lock.
type Node struct {
	sync.Mutex

	Kinds    []string          // the kinds of device this kernel has
	Programs []notrack.Backend // the iptables programs installed; the first is the host's own
	Params   map[string]string // sysctls by dotted key
	ReadOnly map[string]bool   // those that nobody may write

	links  map[string]*device
	tables map[string]*table   // by "iptables-nft raw"
	root   string              // of its files, if it has any
	units  map[string]*service // by name, once somebody asks for Systemd

	writes int
	at     int
	fault  Fault
}

type device struct {
	kind, alias string
	hw          net.HardwareAddr
	up          bool
	addrs       []netlink.Addr
}

type table struct {
	chains []string
	rules  map[string][]string
}

// New returns a node with lo, dummy and bridge devices, both iptables with nft
// as the host's own, and the conntrack sysctls as a kernel has them.
func New() *Node {
	n := &Node{
		Kinds:    []string{"dummy", "bridge"},
		Programs: []notrack.Backend{notrack.NFT, notrack.Legacy},
		Params: map[string]string{
			sysctl.Max:       "262144",
			sysctl.Buckets:   "65536",
			sysctl.Count:     "120",
			sysctl.CloseWait: "60",
			"net.netfilter.nf_conntrack_tcp_timeout_fin_wait":  "120",
			"net.netfilter.nf_conntrack_tcp_timeout_time_wait": "120",
		},
		ReadOnly: map[string]bool{sysctl.Count: true},
		links:    map[string]*device{},
		tables:   map[string]*table{},
	}
	n.links["lo"] = &device{kind: "device", up: true}
	for _, cidr := range []string{"127.0.0.1/8", "::1/128"} {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			panic(err)
		}
		n.links["lo"].addrs = append(n.links["lo"].addrs, *a)
	}
	return n
}

// Arm makes the write number at, counted from the next one as 1, meet the
// fault; 0 disarms.
func (n *Node) Arm(at int, f Fault) {
	n.Lock()
	defer n.Unlock()
	n.at, n.fault = 0, f
	if at > 0 {
		n.at = n.writes + at
	}
}

// Writes is how many writes were tried.
func (n *Node) Writes() int {
	n.Lock()
	defer n.Unlock()
	return n.writes
}

// write is the one way to change the node. do may refuse, as the kernel would;
// the caller holds the lock.
func (n *Node) write(what string, do func() error) error {
	n.writes++
	hit := n.writes == n.at
	if hit && n.fault == Fail {
		return fmt.Errorf("%s: %w", what, ErrFault)
	}
	if hit && n.fault == CutBefore {
		panic(PowerCut{})
	}
	if err := do(); err != nil {
		return err
	}
	if hit && n.fault == CutAfter {
		panic(PowerCut{})
	}
	return nil
}

// String is the whole node, in a stable order.
func (n *Node) String() string {
	n.Lock()
	defer n.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(n.links)) {
		d := n.links[name]
		fmt.Fprintf(&b, "%s %s", name, d.kind)
		if d.up {
			b.WriteString(" up")
		}
		if d.alias != "" {
			b.WriteString(" alias " + d.alias)
		}
		b.WriteByte('\n')
		for _, a := range d.addrs {
			fmt.Fprintf(&b, "  %s\n", strings.TrimSpace(a.IPNet.String()+" "+a.Label))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.tables)) {
		t := n.tables[name]
		for _, c := range slices.Sorted(slices.Values(t.chains)) {
			fmt.Fprintf(&b, "%s -N %s\n", name, c)
		}
		for _, c := range slices.Sorted(maps.Keys(t.rules)) {
			for _, r := range t.rules[c] {
				fmt.Fprintf(&b, "%s -A %s %s\n", name, c, r)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(n.Params)) {
		fmt.Fprintf(&b, "%s = %s\n", k, n.Params[k])
	}
	n.printFiles(&b)
	n.printUnits(&b)
	return b.String()
}

// Memory is the RAM of the node: 16 GiB.
func (n *Node) Memory() (uint64, error) { return 16 << 30, nil }

// Down sets a device down, as a stranger would: its IPv6 addresses go.
func (n *Node) Down(name string) {
	n.Lock()
	defer n.Unlock()
	d := n.links[name]
	d.up = false
	d.addrs = slices.DeleteFunc(d.addrs, func(a netlink.Addr) bool { return a.IP.To4() == nil })
}

// Netlink is the node's kernel as link needs it.
func (n *Node) Netlink() link.Netlink { return kernel{n} }

type kernel struct{ n *Node }

func (k kernel) LinkByName(name string) (netlink.Link, error) {
	k.n.Lock()
	defer k.n.Unlock()
	d, ok := k.n.links[name]
	if !ok {
		return nil, netlink.LinkNotFoundError{}
	}
	at := netlink.LinkAttrs{Name: name, Alias: d.alias, HardwareAddr: slices.Clone(d.hw)}
	if d.up {
		at.Flags |= net.FlagUp
	}
	return &netlink.GenericLink{LinkAttrs: at, LinkType: d.kind}, nil
}

func (k kernel) LinkAdd(l netlink.Link) error {
	k.n.Lock()
	defer k.n.Unlock()
	at := l.Attrs()
	return k.n.write("link add "+at.Name, func() error {
		if !slices.Contains(k.n.Kinds, l.Type()) {
			return unix.EOPNOTSUPP
		}
		if k.n.links[at.Name] != nil {
			return unix.EEXIST
		}
		k.n.links[at.Name] = &device{kind: l.Type(), hw: slices.Clone(at.HardwareAddr)}
		return nil
	})
}

func (k kernel) change(what string, l netlink.Link, do func(*device) error) error {
	k.n.Lock()
	defer k.n.Unlock()
	name := l.Attrs().Name
	return k.n.write(what+" "+name, func() error {
		d := k.n.links[name]
		if d == nil {
			return unix.ENODEV
		}
		return do(d)
	})
}

func (k kernel) LinkDel(l netlink.Link) error {
	return k.change("link del", l, func(*device) error {
		delete(k.n.links, l.Attrs().Name)
		return nil
	})
}

func (k kernel) LinkSetUp(l netlink.Link) error {
	return k.change("link up", l, func(d *device) error {
		d.up = true
		return nil
	})
}

func (k kernel) LinkSetAlias(l netlink.Link, alias string) error {
	return k.change("link alias", l, func(d *device) error {
		d.alias = alias
		return nil
	})
}

func (k kernel) AddrList(l netlink.Link, _ int) ([]netlink.Addr, error) {
	k.n.Lock()
	defer k.n.Unlock()
	d := k.n.links[l.Attrs().Name]
	if d == nil {
		return nil, unix.ENODEV
	}
	return slices.Clone(d.addrs), nil
}

func same(a *netlink.Addr) func(netlink.Addr) bool {
	return func(b netlink.Addr) bool { return a.IPNet.String() == b.IPNet.String() }
}

func (k kernel) AddrReplace(l netlink.Link, a *netlink.Addr) error {
	return k.change("addr add "+a.IPNet.String(), l, func(d *device) error {
		if !slices.ContainsFunc(d.addrs, same(a)) {
			d.addrs = append(d.addrs, *a)
		}
		return nil
	})
}

func (k kernel) AddrDel(l netlink.Link, a *netlink.Addr) error {
	return k.change("addr del "+a.IPNet.String(), l, func(d *device) error {
		if !slices.ContainsFunc(d.addrs, same(a)) {
			return unix.EADDRNOTAVAIL
		}
		d.addrs = slices.DeleteFunc(d.addrs, same(a))
		return nil
	})
}

// Tables is the node's notrack.Opener.
func (n *Node) Tables(b notrack.Backend, v6 bool) (notrack.Tables, error) {
	n.Lock()
	defer n.Unlock()
	if b == notrack.Auto && len(n.Programs) > 0 {
		b = n.Programs[0]
	}
	name := "iptables"
	if v6 {
		name = "ip6tables"
	}
	if !slices.Contains(n.Programs, b) {
		return nil, fmt.Errorf("%s: %w", name, notrack.ErrMissing)
	}
	return program{n: n, backend: b, name: name + "-" + string(b)}, nil
}

type program struct {
	n       *Node
	backend notrack.Backend
	name    string
}

var errNoChain = errors.New("no chain/target/match by that name")

var builtin = map[string][]string{
	"raw":    {"PREROUTING", "OUTPUT"},
	"filter": {"INPUT", "FORWARD", "OUTPUT"},
}

func (p program) Backend() notrack.Backend { return p.backend }

func (p program) table(name string) *table {
	if t := p.n.tables[p.name+" "+name]; t != nil {
		return t
	}
	return &table{}
}

func (p program) Chains(name string) ([]string, error) {
	p.n.Lock()
	defer p.n.Unlock()
	return append(slices.Clone(builtin[name]), p.table(name).chains...), nil
}

func (p program) Rules(name, chain string) ([]string, error) {
	p.n.Lock()
	defer p.n.Unlock()
	if !p.has(name, chain) {
		return nil, errNoChain
	}
	return slices.Clone(p.table(name).rules[chain]), nil
}

func (p program) has(name, chain string) bool {
	return slices.Contains(builtin[name], chain) || slices.Contains(p.table(name).chains, chain)
}

// change runs do on a table, which is made if need be, and on the rules of one
// of its chains.
func (p program) change(verb, name, chain string, do func(t *table) error) error {
	p.n.Lock()
	defer p.n.Unlock()
	return p.n.write(strings.Join([]string{p.name, "-t", name, verb, chain}, " "), func() error {
		t := p.n.tables[p.name+" "+name]
		if t == nil {
			t = &table{rules: map[string][]string{}}
			p.n.tables[p.name+" "+name] = t
		}
		if verb != "-N" && !p.has(name, chain) {
			return errNoChain
		}
		return do(t)
	})
}

func (p program) NewChain(name, chain string) error {
	return p.change("-N", name, chain, func(t *table) error {
		if p.has(name, chain) {
			return errors.New("chain already exists")
		}
		t.chains = append(t.chains, chain)
		return nil
	})
}

func (p program) ClearChain(name, chain string) error {
	return p.change("-F", name, chain, func(t *table) error {
		delete(t.rules, chain)
		return nil
	})
}

func (p program) DeleteChain(name, chain string) error {
	return p.change("-X", name, chain, func(t *table) error {
		for _, rules := range t.rules {
			if slices.ContainsFunc(rules, func(r string) bool { return strings.HasSuffix(r, "-j "+chain) }) {
				return errors.New("too many links")
			}
		}
		if len(t.rules[chain]) > 0 {
			return errors.New("directory not empty")
		}
		t.chains = slices.DeleteFunc(t.chains, func(c string) bool { return c == chain })
		return nil
	})
}

func (p program) Append(name, chain string, rule ...string) error {
	return p.change("-A", name, chain, func(t *table) error {
		t.rules[chain] = append(t.rules[chain], strings.Join(rule, " "))
		return nil
	})
}

func (p program) Insert(name, chain string, pos int, rule ...string) error {
	return p.change("-I", name, chain, func(t *table) error {
		if !p.has(name, rule[len(rule)-1]) && rule[len(rule)-1] == notrack.Chain {
			return errNoChain
		}
		t.rules[chain] = slices.Insert(t.rules[chain], pos-1, strings.Join(rule, " "))
		return nil
	})
}

func (p program) Delete(name, chain string, rule ...string) error {
	return p.change("-D", name, chain, func(t *table) error {
		i := slices.Index(t.rules[chain], strings.Join(rule, " "))
		if i < 0 {
			return errNoChain
		}
		if t.rules[chain] = slices.Delete(t.rules[chain], i, i+1); len(t.rules[chain]) == 0 {
			delete(t.rules, chain)
		}
		return nil
	})
}

// Values is the node's sysctls as the step needs them.
func (n *Node) Values() sysctl.Values { return values{n} }

type values struct{ n *Node }

func (v values) Get(key string) (string, error) {
	v.n.Lock()
	defer v.n.Unlock()
	text, ok := v.n.Params[key]
	if !ok {
		return "", &fs.PathError{Op: "open", Path: key, Err: fs.ErrNotExist}
	}
	return text, nil
}

func (v values) Set(key, value string) error {
	v.n.Lock()
	defer v.n.Unlock()
	return v.n.write("sysctl "+key, func() error {
		if _, ok := v.n.Params[key]; !ok {
			return &fs.PathError{Op: "open", Path: key, Err: fs.ErrNotExist}
		}
		if v.n.ReadOnly[key] {
			return &fs.PathError{Op: "open", Path: key, Err: fs.ErrPermission}
		}
		v.n.Params[key] = value
		return nil
	})
}

func (v values) ReadOnly(key string) (bool, error) {
	v.n.Lock()
	defer v.n.Unlock()
	return v.n.ReadOnly[key], nil
}

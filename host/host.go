package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/step"
	"nodelocaldns/host/sysctl"
)

// Config is what the runtime plan is built from, typed.
type Config struct {
	Interface string       // name of our device, at most 15 bytes
	LinkType  link.Type    // what kind of device holds the addresses
	Addresses []netip.Addr // each becomes a /32 or /128; loopback ones need nothing
	Port      uint16       // the DNS port the NOTRACK rules match
	Notrack   bool         // whether NOTRACK rules are wanted
	Backend   notrack.Backend
	Sysctls   []sysctl.Param // in the order they are applied
}

// The places of a node, for Deps. A unit that has systemd make RunDir must
// preserve it (RuntimeDirectoryPreserve=yes): the changes of the runtime plan
// outlive the process, and without the journal nobody knows that they are ours.
const (
	RunDir   = "/run/nodelocaldns"
	StateDir = "/var/lib/nodelocaldns"
)

// Names inside them.
const (
	journalFile = "journal.json" // of the runtime plan: in RunDir, gone with its effects
	lockFile    = "lock"         // in RunDir
	guardFile   = "guard.lock"   // in RunDir: held by guard as long as it runs
	offFile     = "off"          // in StateDir: survives a reboot
)

// Deps is everything outside the process that a Node touches.
type Deps struct {
	RunDir, StateDir string

	Log *slog.Logger
	Now func() time.Time

	Netlink link.Netlink
	Tables  notrack.Opener
	Values  sysctl.Values
	Memory  func() (uint64, error) // RAM of the node, in bytes

	// Watch tells of changes to links and addresses until ctx ends; guard
	// subscribes once a run. The channel may coalesce.
	Watch func(ctx context.Context) (<-chan struct{}, error)

	// LockWait is how long Apply, Rollback and a pass of guard wait for
	// another process to let go of the lock.
	LockWait time.Duration
}

// SystemDeps returns the Deps of the node this process runs on, in the network
// namespace of the calling thread. The netlink socket stays open for the life
// of the process.
func SystemDeps(log *slog.Logger) (Deps, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Deps{}, fmt.Errorf("opening netlink: %w", err)
	}
	values, err := sysctl.Open("/proc/sys")
	if err != nil {
		return Deps{}, err
	}
	return Deps{
		RunDir:   RunDir,
		StateDir: StateDir,
		Log:      log,
		Now:      time.Now,
		Netlink:  nl,
		Tables:   notrack.System,
		Values:   values,
		Memory:   memory,
		Watch:    func(ctx context.Context) (<-chan struct{}, error) { return link.Watch(ctx, log) },
		LockWait: 10 * time.Second,
	}, nil
}

func memory() (uint64, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, err
	}
	return uint64(si.Totalram) * uint64(si.Unit), nil
}

// A Node is this node and what we want of it. Its methods may be called from
// several goroutines and processes: those that write take the lock.
type Node struct {
	keeper
	cfg  Config
	deps Deps
}

// New returns the node with the runtime plan of cfg. It reads and writes
// nothing; the error is about cfg.
func New(cfg Config, d Deps) (*Node, error) {
	if cfg.Interface == "" || len(cfg.Interface) > unix.IFNAMSIZ-1 {
		return nil, fmt.Errorf("interface %q: a device name has 1 to %d bytes", cfg.Interface, unix.IFNAMSIZ-1)
	}
	for _, a := range cfg.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return nil, fmt.Errorf("address %s: not one that a device can hold", a)
		}
	}
	if cfg.Notrack && cfg.Port == 0 {
		return nil, errors.New("port 0: the rules need the port of the resolver")
	}
	n := &Node{cfg: cfg, deps: d}
	n.keeper = keeper{
		journal:  journal.New(fsys.Dir(d.RunDir), journalFile),
		state:    fsys.Dir(d.StateDir),
		lockAt:   filepath.Join(d.RunDir, lockFile),
		lockWait: d.LockWait,
		log:      d.Log,
		now:      d.Now,
		planOf:   n.plan,
		undoerOf: func(r engine.Record) (step.Step, error) { return n.undoer(r.Name), nil },
	}
	return n, nil
}

// Check is that of both plans, and names who is likely to have set a sysctl
// that is not as we left it.
func (n *Node) Check(ctx context.Context) ([]engine.Status, error) {
	all, err := n.keeper.Check(ctx)
	for i, st := range all {
		if owner := sysctl.Owner(strings.TrimPrefix(st.Name, "sysctl/")); owner != "" && st.Drift {
			all[i].Why += ", likely by " + owner
		}
	}
	return all, err
}

// plan is the runtime plan of the configuration, in order. Its items do not
// build on one another: rules without an address harm nobody, and an address
// without rules is slower and works. recs tell the steps what they may have
// left under an earlier configuration.
func (n *Node) plan(recs []engine.Record) ([]engine.Item, error) {
	var v4, v6, all []netip.Addr
	for _, a := range n.cfg.Addresses {
		a = a.Unmap()
		switch {
		case a.IsLoopback(): // the node has it, and conntrack is not in the way
			continue
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a)
		}
		all = append(all, a)
	}
	var plan []engine.Item
	if len(all) > 0 {
		held, err := link.HeldBy(saved(recs, "link/"+n.cfg.Interface))
		if err != nil {
			return nil, err
		}
		plan = append(plan, item(link.New(n.deps.Netlink, link.Config{
			Name: n.cfg.Interface, Type: n.cfg.LinkType, Addrs: all, Held: held,
		})))
	}
	for _, family := range []struct {
		v6    bool
		addrs []netip.Addr
	}{{false, v4}, {true, v6}} {
		if !n.cfg.Notrack || len(family.addrs) == 0 {
			continue
		}
		cfg := notrack.Config{V6: family.v6, Addrs: family.addrs, Port: n.cfg.Port, Backend: n.cfg.Backend}
		var err error
		if cfg.Held, err = notrack.HeldBy(saved(recs, notrack.New(nil, cfg).Name())); err != nil {
			return nil, err
		}
		plan = append(plan, item(notrack.New(n.deps.Tables, cfg)))
	}
	for _, p := range inOrder(n.cfg.Sysctls) {
		it := item(sysctl.New(n.deps.Values, n.deps.Memory, p))
		it.Optional = true
		plan = append(plan, it)
	}
	return plan, nil
}

// inOrder puts buckets before max, so that the table never has more entries
// than its buckets were meant for.
func inOrder(params []sysctl.Param) []sysctl.Param {
	out := slices.Clone(params)
	rank := func(p sysctl.Param) int {
		if p.Key == sysctl.Buckets {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(out, func(a, b sysctl.Param) int { return rank(a) - rank(b) })
	return out
}

func item(s step.Step) engine.Item {
	return engine.Item{Steps: []step.Step{s}, Independent: true}
}

func saved(recs []engine.Record, name string) step.Saved {
	for _, r := range recs {
		if r.Name == name {
			return r.Saved
		}
	}
	return step.Saved{}
}

// undoer is the step that undoes the record of that name, whatever the
// configuration now says, or nil if this version has none.
func (n *Node) undoer(name string) step.Step {
	noun, detail, _ := strings.Cut(name, "/")
	switch {
	case noun == "link" && detail != "":
		return link.New(n.deps.Netlink, link.Config{Name: detail})
	case name == "notrack/ipv4":
		return notrack.New(n.deps.Tables, notrack.Config{})
	case name == "notrack/ipv6":
		return notrack.New(n.deps.Tables, notrack.Config{V6: true})
	case noun == "sysctl" && detail != "":
		return sysctl.New(n.deps.Values, n.deps.Memory, sysctl.Param{Key: detail})
	}
	return nil
}

// pick is the part of the plan that names ask for; all of it for none.
func pick(plan []engine.Item, names []string) ([]engine.Item, error) {
	if len(names) == 0 {
		return plan, nil
	}
	var out []engine.Item
	var have []string
	hit := map[string]bool{}
	for _, it := range plan {
		full := it.Steps[0].Name()
		noun, _, _ := strings.Cut(full, "/")
		have = append(have, full)
		for _, want := range names {
			if want == full || want == noun {
				hit[want] = true
				if !slices.ContainsFunc(out, func(o engine.Item) bool { return o.Steps[0].Name() == full }) {
					out = append(out, it)
				}
			}
		}
	}
	for _, want := range names {
		if !hit[want] {
			return nil, &step.Error{
				Err:  fmt.Errorf("no step %s in the plan", want),
				Next: "the plan has " + strings.Join(have, ", "),
			}
		}
	}
	return out, nil
}

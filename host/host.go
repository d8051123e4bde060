package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	cfg     Config
	deps    Deps
	journal *journal.Journal
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
	return &Node{cfg: cfg, deps: d, journal: journal.New(fsys.Dir(d.RunDir), journalFile)}, nil
}

// Check looks at every step of the plan, in its order, and at the records that
// the plan does not cover. It never writes, takes no lock, and works without
// root as far as it can: what it could not see is marked Unseen. The error
// says that the journal could not be read; the findings are valid all the same
// and say nothing of what is ours.
func (n *Node) Check(ctx context.Context) ([]engine.Status, error) {
	recs, _ := n.journal.Open() // Status says so again
	plan, err := n.plan(recs)
	if err != nil {
		return nil, err
	}
	all, err := n.engine(plan).Status(ctx)
	for i, st := range all {
		if errors.Is(st.Err, engine.ErrUnknown) && n.undoer(st.Name) != nil {
			all[i].Err, all[i].Leftover = nil, true
			all[i].Why = "no longer in the configuration; rollback takes it back"
		}
		if owner := sysctl.Owner(strings.TrimPrefix(st.Name, "sysctl/")); owner != "" && st.Drift {
			all[i].Why += ", likely by " + owner
		}
	}
	return all, err
}

// Off says whether the off switch is set: a rollback was asked for, and guard
// must not repair what it took away.
func (n *Node) Off() (bool, error) {
	_, err := fsys.Dir(n.deps.StateDir).ReadFile(offFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Apply clears the off switch and brings the node to the plan, or to the named
// steps of it: a full name, or the noun before the slash. A step that fails
// does not keep the others from being tried; a sysctl that is blocked is
// logged and no error.
func (n *Node) Apply(ctx context.Context, steps ...string) error {
	lock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	recs, err := n.journal.Open()
	if err != nil {
		return err
	}
	plan, err := n.plan(recs)
	if err != nil {
		return err
	}
	if plan, err = pick(plan, steps); err != nil {
		return err
	}
	if err := fsys.Dir(n.deps.StateDir).Remove(offFile); err != nil {
		return err
	}
	return n.engine(plan).Apply(ctx)
}

// Rollback sets the off switch, waits for the lock, and undoes every open
// record, newest first, except the named ones. What it undoes goes by the
// journal and not by the configuration, which may have changed since.
func (n *Node) Rollback(ctx context.Context, keep ...string) error {
	off := fsys.Dir(n.deps.StateDir)
	text := fmt.Appendf(nil, "rollback at %s\n", n.deps.Now().UTC().Format(time.RFC3339))
	if err := off.WriteAtomic(offFile, text, 0o644); err != nil {
		return err
	}
	lock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	recs, err := n.journal.Open()
	if err != nil {
		return err
	}
	var plan []engine.Item
	for _, r := range recs {
		if s := n.undoer(r.Name); s != nil {
			plan = append(plan, engine.Item{Steps: []step.Step{s}})
		}
	}
	return n.engine(plan).Rollback(ctx, keep...)
}

func (n *Node) lock(ctx context.Context) (*journal.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, n.deps.LockWait)
	defer cancel()
	return journal.Acquire(ctx, filepath.Join(n.deps.RunDir, lockFile))
}

func (n *Node) engine(plan []engine.Item) *engine.Engine {
	return &engine.Engine{
		Journal: n.journal,
		Plan:    plan,
		Now:     n.deps.Now,
		Note:    func(name, what, why string) { n.deps.Log.Warn(what, "step", name, "why", why) },
	}
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

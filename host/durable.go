package host

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/host/cordon"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unit"
	"nodelocaldns/host/unitfile"
	"nodelocaldns/units"
)

// DurableConfig is what the durable plan is built from, typed.
type DurableConfig struct {
	// Units is how our own units are to be; nil has none of them installed.
	Units *units.Settings

	// Kubelet is what we want of the kubelet; nil leaves it alone.
	Kubelet *kubelet.Want

	// Known is by what a kubelet that names us is known where Kubelet is nil:
	// our addresses, and its unit if that is not to be found.
	Known kubelet.Want

	// Settle is how long a kubelet is watched that was restarted; zero is
	// kubelet.DefaultSettle.
	Settle time.Duration

	// Cordon is what the cluster has to do with a restart, but for Restart,
	// Settle, Left and Inside; nil: nothing.
	Cordon *cordon.Config
}

// want is what the kubelet is looked at with.
func (c DurableConfig) want() kubelet.Want {
	if c.Kubelet != nil {
		return *c.Kubelet
	}
	return c.Known
}

// grace is how long a restart may take to be seen to have worked: systemd's part
// of it is DefaultGrace, and the cluster has its own.
func (c DurableConfig) grace() time.Duration {
	grace := engine.DefaultGrace + c.Settle // which begins when the restart is done
	if c.Cordon != nil {
		grace += c.Cordon.Timeout
	}
	return grace
}

// DurableDeps is everything outside the process that a Durable touches.
type DurableDeps struct {
	// Root is the tree that is changed: "/" or "" for the running node. For
	// any other only files below it are, and nothing of the running system is
	// asked: then Node.Running and Node.Service should be nil.
	Root string

	StateDir string // below Root
	RunDir   string // below Root, for the lock

	Log *slog.Logger
	Now func() time.Time

	Node   kubelet.Node  // its Tree is that of Root
	Files  fsys.Files    // what the steps write with; nil: the files of Root
	State  journal.Files // where the journal and the off switch are; nil: StateDir
	Verify kubelet.Verifier

	// Units restarts the kubelet; nil: nothing is restarted, as where nothing
	// runs.
	Units   kubelet.Units
	Healthz kubelet.Healthz

	Systemd unit.Systemd // runs our own units; nil as Units
	Self    string       // the unit that this process runs in, if any

	LockWait time.Duration // as Deps.LockWait
}

// RootDeps returns the DurableDeps of a file tree, such as an image that is
// being built. Nothing runs there and nobody is asked but systemd-analyze.
func RootDeps(root string, log *slog.Logger) DurableDeps {
	tree := fsys.Tree(root)
	return DurableDeps{
		Root:     root,
		StateDir: StateDir,
		RunDir:   RunDir,
		Log:      log,
		Now:      time.Now,
		Node:     kubelet.Node{Tree: tree},
		Verify:   kubelet.Analyze{Tree: tree},
		LockWait: 10 * time.Second,
	}
}

// LiveDeps returns the DurableDeps of the node this process runs on. The
// running kubelet is looked at, the kube-dns service is asked for where nothing
// else tells, and the running systemd judges what is written and restarts the
// kubelet.
func LiveDeps(log *slog.Logger) DurableDeps {
	d := RootDeps("/", log)
	d.Node.Running = kubelet.Running("/proc")
	d.Node.Service = kubelet.AskService
	d.Node.Host = specifiers()
	if _, err := os.Stat("/run/systemd/system"); err == nil { // sd_booted(3)
		bus := kubelet.Bus{}
		d.Verify, d.Units, d.Node.Started = bus, bus, bus.Started
		d.Healthz = kubelet.AskHealthz
		d.Systemd = unit.Bus{}
		if group, err := os.ReadFile("/proc/self/cgroup"); err == nil {
			d.Self = unit.Self(string(group))
		}
	}
	return d
}

// specifiers is what units on this node may ask for beyond files. What cannot
// be found out stays unknown.
func specifiers() unitfile.Host {
	var h unitfile.Host
	h.Hostname, _ = os.Hostname()
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		h.BootID = strings.ReplaceAll(strings.TrimSpace(string(id)), "-", "")
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		h.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	h.Arch = map[string]string{"amd64": "x86-64", "arm64": "arm64"}[runtime.GOARCH]
	return h
}

// A Durable is the part of a node that outlasts a reboot, and what we want of
// it: its files. Apply and Rollback restart a kubelet that runs, in a window,
// and see that it stays; Boot restarts nothing. Its methods are those of a
// Node, and may be called as those are.
type Durable struct {
	keeper
	cfg   DurableConfig
	deps  DurableDeps
	files fsys.Files

	mu    sync.Mutex
	facts func() (kubelet.Facts, error) // found once since the last Check or write; nil: not yet
}

// NewDurable returns the node with the durable plan of cfg. It reads and writes
// nothing.
func NewDurable(cfg DurableConfig, d DurableDeps) *Durable {
	if d.Root == "" {
		d.Root = "/"
	}
	if d.State == nil {
		d.State = fsys.Dir(filepath.Join(d.Root, d.StateDir))
	}
	n := &Durable{cfg: cfg, deps: d, files: d.Files}
	if n.files == nil {
		n.files = fsys.DirFiles(d.Node.Tree)
	}
	n.keeper = keeper{
		journal:  journal.New(d.State, journalFile),
		state:    d.State,
		lockAt:   filepath.Join(d.Root, d.RunDir, lockFile),
		lockWait: d.LockWait,
		log:      d.Log,
		now:      d.Now,
		planOf:   n.plan,
		undoerOf: n.undoer,
		live:     n.live,
		grace:    cfg.grace(),
	}
	return n
}

// ErrOff is returned by Boot and Continue where the off switch is set.
var ErrOff = errors.New("a rollback was asked for")

// Boot is Apply for a node that starts: it obeys the off switch, and returns
// ErrOff, with nothing written; likewise ErrRefused after a Refuse, where it
// takes back what the kubelet refused and nobody has taken back. It restarts
// nothing, and so never waits for a kubelet that waits for it; see Pending.
func (n *Durable) Boot(ctx context.Context, steps ...string) error {
	defer n.forget()
	err := n.apply(ctx, func() error {
		if err := n.on(); err != nil || !concernsKubelet(steps) {
			return err
		}
		return n.Refused()
	}, nil, steps)
	if errors.Is(err, ErrRefused) {
		if berr := n.back(ctx, nil); berr != nil {
			return berr
		}
	}
	return err
}

// Apply is that of both plans. A kubelet that does not come back with its new
// files gets its old ones again, is restarted once more, and the error says
// why; it is refused from then on, as by Refuse, or the next boot would do what
// nobody is there to undo.
func (n *Durable) Apply(ctx context.Context, steps ...string) error {
	return n.change(ctx, func() error { return n.state.Remove(offFile) }, steps)
}

// Continue is that of both plans.
func (n *Durable) Continue(ctx context.Context, steps ...string) error {
	return n.change(ctx, n.on, steps)
}

func (n *Durable) change(ctx context.Context, off func() error, steps []string) error {
	defer n.forget()
	err := n.apply(ctx, func() error {
		if err := off(); err != nil || !concernsKubelet(steps) {
			return err
		}
		return n.state.Remove(refusedFile)
	}, n.keeper.live, steps)
	if errors.Is(err, engine.ErrUndone) {
		err = errors.Join(err, n.Refuse(err))
	}
	return err
}

// Resume brings a window to its end that an earlier run left open: back where a
// rollback was asked for, or where what was done in it is refused; else on, as
// Continue. Where none is open it does nothing.
func (n *Durable) Resume(ctx context.Context) error {
	defer n.forget()
	w, err := n.left()
	if w == nil || err != nil {
		return err
	}
	off, err := n.Off()
	if err != nil {
		return err
	}
	if off {
		keep, err := n.Kept()
		if err != nil {
			return err
		}
		return n.Rollback(ctx, append(keep, unit.StepName)...)
	}
	switch err := n.Refused(); {
	case errors.Is(err, ErrRefused):
		return n.back(ctx, n.keeper.live)
	case err != nil:
		return err
	}
	noun, _, _ := strings.Cut(kubelet.StepName, "/")
	return n.Continue(ctx, noun)
}

// left is the record of a window that is open, nil if there is none.
func (n *Durable) left() (*engine.Record, error) {
	recs, err := n.journal.Open()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(recs, func(r engine.Record) bool { return r.Name == kubelet.WindowName }); i >= 0 {
		return &recs[i], nil
	}
	return nil, nil
}

// Rollback is that of both plans. With kubelet.WindowName among keep, a kubelet
// that an earlier run could not bring back is left as it is.
func (n *Durable) Rollback(ctx context.Context, keep ...string) error {
	defer n.forget()
	return n.keeper.Rollback(ctx, keep...)
}

// Check is that of both plans.
func (n *Durable) Check(ctx context.Context) ([]engine.Status, error) {
	n.forget()
	all, err := n.keeper.Check(ctx)
	for i, st := range all {
		if st.Name == kubelet.WindowName {
			all[i].State, all[i].Err = step.Pending, nil
			all[i].Why = "left open by a run that was cut off, or whose kubelet did not come back: the next apply or rollback settles it"
		}
	}
	return all, err
}

// Facts are what there is to know of the kubelet, found once for all calls
// since the last Check, Apply, Boot or Rollback. The error is that of
// kubelet.Find; what had been found until there is returned all the same.
func (n *Durable) Facts(ctx context.Context) (kubelet.Facts, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.facts == nil {
		f, err := kubelet.Find(ctx, n.deps.Node, n.cfg.want())
		n.facts = func() (kubelet.Facts, error) { return f, err }
	}
	return n.facts()
}

// Names are whom the kubelet names to pods that start now, found anew; none
// where that is not known.
func (n *Durable) Names(ctx context.Context) []netip.Addr {
	n.forget()
	f, _ := n.Facts(ctx) // what was found before a refusal is true all the same
	return f.Now
}

func (n *Durable) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.facts = nil
}

// A Restart is what a running kubelet has not taken over of its files, as far
// as it concerns us.
type Restart struct {
	Unit string // that would have to be restarted
	Why  string
}

// Pending returns the restart that waits, or nil if there is none, or none can
// be told. It is found as Facts are.
func (n *Durable) Pending(ctx context.Context) *Restart {
	f, _ := n.Facts(ctx) // what was found before a refusal is true all the same
	if f.Pending == "" {
		return nil
	}
	return &Restart{Unit: f.Unit, Why: f.Pending}
}

// WouldRestart returns the restart that Apply would end with, as things are
// now, or nil if none, or none can be told. pending says that the kubelet's step
// is.
func (n *Durable) WouldRestart(ctx context.Context, pending bool) *Restart {
	if r := n.Pending(ctx); r != nil || !pending {
		return r
	}
	w, err := n.window(ctx, nil)
	if err != nil || w == nil {
		return nil
	}
	f, _ := n.Facts(ctx)
	return &Restart{Unit: f.Unit, Why: "it runs, and takes its files over when it starts"}
}

// plan is the durable plan of the configuration, in order. A step that
// disturbs pods gets its window from live.
func (n *Durable) plan(recs []engine.Record) ([]engine.Item, error) {
	var plan []engine.Item
	if n.cfg.Units != nil {
		files, err := units.Render(*n.cfg.Units)
		if err != nil {
			return nil, err
		}
		s, err := n.unit(files, recs)
		if err != nil {
			return nil, err
		}
		plan = append(plan, engine.Item{Steps: []step.Step{s}})
	}
	if n.cfg.Kubelet != nil {
		s, err := n.kubelet(*n.cfg.Kubelet, saved(recs, kubelet.StepName))
		if err != nil {
			return nil, err
		}
		plan = append(plan, engine.Item{Steps: []step.Step{s}})
	}
	return plan, nil
}

// undoer is the step that undoes a record, or nil if this version has none.
func (n *Durable) undoer(r engine.Record) (step.Step, error) {
	switch r.Name {
	case kubelet.StepName:
		return n.kubelet(kubelet.Want{}, r.Saved)
	case unit.StepName:
		return n.unit(nil, []engine.Record{r})
	}
	return nil, nil
}

func (n *Durable) unit(files []units.File, recs []engine.Record) (*unit.Step, error) {
	return unit.New(unit.Config{
		Tree: n.deps.Node.Tree, Files: n.files, Systemd: n.deps.Systemd, Units: files, Self: n.deps.Self, Held: saved(recs, unit.StepName),
		Unfinished: slices.ContainsFunc(recs, func(r engine.Record) bool { return r.Name == unit.StepName && !r.Done }),
	})
}

func (n *Durable) kubelet(want kubelet.Want, held step.Saved) (*kubelet.Step, error) {
	return kubelet.New(kubelet.Config{
		Node: n.deps.Node, Want: want, Files: n.files, Verify: n.deps.Verify, Held: held,
	})
}

// live is a fitter. Going back, the window is there also without a record of
// the step: what named us may have been taken away by hand.
func (n *Durable) live(ctx context.Context, recs []engine.Record, plan []engine.Item, back bool) ([]engine.Item, error) {
	at := slices.IndexFunc(plan, func(it engine.Item) bool { return it.Steps[0].Name() == kubelet.StepName })
	if at < 0 && !back {
		return plan, nil
	}
	w, err := n.window(ctx, recs)
	if err != nil || w == nil {
		return plan, err
	}
	if at < 0 {
		s, err := n.kubelet(kubelet.Want{}, step.Saved{})
		if err != nil {
			return nil, err
		}
		at, plan = len(plan), append(plan, engine.Item{Steps: []step.Step{s}})
	}
	if !back {
		w = &refusing{Window: w, refuse: n.Refuse}
	}
	plan[at].Window = w
	return plan, nil
}

// window is the one in which the kubelet takes over its files. It is nil if
// there is none to be restarted: a kubelet that does not run when we come, not
// even for the while that a crash loop leaves it, reads its files when somebody
// starts it. One that was found running by a run that was cut off is brought
// back, whatever has become of it since.
func (n *Durable) window(ctx context.Context, recs []engine.Record) (step.Window, error) {
	has := func(name string) bool {
		return slices.ContainsFunc(recs, func(r engine.Record) bool { return r.Name == name })
	}
	left := has(kubelet.WindowName)
	w := kubelet.NewWindow(kubelet.WindowConfig{
		Node: n.deps.Node, Want: n.cfg.want(), Units: n.deps.Units, Healthz: n.deps.Healthz,
		Settle: n.cfg.Settle, Log: n.deps.Log, Now: n.deps.Now,
		Left: left, Held: has(kubelet.StepName),
	})
	if left {
		return n.cordoned(w, recs), nil
	}
	if n.deps.Units == nil {
		return nil, nil
	}
	runs, err := w.Running(ctx)
	if err != nil || !runs {
		return nil, err
	}
	return n.cordoned(w, recs), nil
}

// cordoned puts the cluster round a restart.
func (n *Durable) cordoned(w step.Window, recs []engine.Record) step.Window {
	if n.cfg.Cordon == nil {
		return w
	}
	cfg := *n.cfg.Cordon
	cfg.Restart, cfg.Settle = w, n.cfg.Settle
	if i := slices.IndexFunc(recs, func(r engine.Record) bool { return r.Name == w.Name() }); i >= 0 {
		cfg.Left, cfg.Inside = true, recs[i].Stage == engine.Opened
	}
	return cordon.New(cfg)
}

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unitfile"
)

// DurableConfig is what the durable plan is built from, typed.
type DurableConfig struct {
	// Kubelet is what we want of the kubelet; nil leaves it alone.
	Kubelet *kubelet.Want
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
	Files  kubelet.Files // what the steps write with; nil: the files of Root
	State  journal.Files // where the journal and the off switch are; nil: StateDir
	Verify kubelet.Verifier

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
// else tells, and the running systemd judges what is written.
func LiveDeps(log *slog.Logger) DurableDeps {
	d := RootDeps("/", log)
	d.Node.Running = kubelet.Running("/proc")
	d.Node.Service = kubelet.AskService
	d.Node.Host = specifiers()
	if _, err := os.Stat("/run/systemd/system"); err == nil { // sd_booted(3)
		d.Verify = kubelet.Bus{}
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
// it: its files. Nothing here starts, stops or restarts anything. Its methods
// are those of a Node, and may be called as those are.
type Durable struct {
	cfg     DurableConfig
	deps    DurableDeps
	files   kubelet.Files
	state   journal.Files
	journal *journal.Journal
}

// NewDurable returns the node with the durable plan of cfg. It reads and writes
// nothing.
func NewDurable(cfg DurableConfig, d DurableDeps) *Durable {
	if d.Root == "" {
		d.Root = "/"
	}
	files := d.Files
	if files == nil {
		files = kubelet.DirFiles(d.Node.Tree)
	}
	n := &Durable{cfg: cfg, deps: d, files: files}
	if n.state = d.State; n.state == nil {
		n.state = fsys.Dir(filepath.Join(d.Root, d.StateDir))
	}
	n.journal = journal.New(n.state, journalFile)
	return n
}

// Check looks at every step of the plan, and at the records that the plan does
// not cover, as Node.Check does.
func (n *Durable) Check(ctx context.Context) ([]engine.Status, error) {
	recs, _ := n.journal.Open() // Status says so again
	plan, err := n.plan(recs)
	if err != nil {
		return nil, err
	}
	all, err := n.engine(plan).Status(ctx)
	for i, st := range all {
		if errors.Is(st.Err, engine.ErrUnknown) && st.Name == kubelet.StepName {
			all[i].Err, all[i].Leftover = nil, true
			all[i].Why = "no longer in the configuration; rollback takes it back"
		}
	}
	return all, err
}

// Off says whether the off switch is set, as Node.Off does.
func (n *Durable) Off() (bool, error) {
	_, err := n.state.ReadFile(offFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ErrOff is returned by Boot where the off switch is set.
var ErrOff = errors.New("a rollback was asked for")

// Apply clears the off switch and brings the files to the plan, or to the named
// steps of it, as Node.Apply does.
func (n *Durable) Apply(ctx context.Context, steps ...string) error {
	return n.apply(ctx, func() error { return n.state.Remove(offFile) }, steps)
}

// Boot is Apply for a node that starts: it obeys the off switch, and returns
// ErrOff, with nothing written.
func (n *Durable) Boot(ctx context.Context, steps ...string) error {
	return n.apply(ctx, func() error {
		off, err := n.Off()
		if off {
			return ErrOff
		}
		return err
	}, steps)
}

// apply calls off under the lock, before anything is written.
func (n *Durable) apply(ctx context.Context, off func() error, steps []string) error {
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
	if err := off(); err != nil {
		return err
	}
	return n.engine(plan).Apply(ctx)
}

// Rollback sets the off switch and undoes every open record except the named
// ones, as Node.Rollback does.
func (n *Durable) Rollback(ctx context.Context, keep ...string) error {
	text := fmt.Appendf(nil, "rollback at %s\n", n.deps.Now().UTC().Format(time.RFC3339))
	if err := n.state.WriteAtomic(offFile, text, 0o644); err != nil {
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
		if r.Name != kubelet.StepName {
			continue // the engine reports it by name
		}
		// What is undone goes by the record, and not by the configuration.
		s, err := n.kubelet(kubelet.Want{}, r.Saved)
		if err != nil {
			return err
		}
		plan = append(plan, engine.Item{Steps: []step.Step{s}})
	}
	return n.engine(plan).Rollback(ctx, keep...)
}

func (n *Durable) lock(ctx context.Context) (*journal.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, n.deps.LockWait)
	defer cancel()
	return journal.Acquire(ctx, filepath.Join(n.deps.Root, n.deps.RunDir, lockFile))
}

func (n *Durable) engine(plan []engine.Item) *engine.Engine {
	return &engine.Engine{
		Journal: n.journal,
		Plan:    plan,
		Now:     n.deps.Now,
		Note:    func(name, what, why string) { n.deps.Log.Warn(what, "step", name, "why", why) },
	}
}

// plan is the durable plan of the configuration.
func (n *Durable) plan(recs []engine.Record) ([]engine.Item, error) {
	if n.cfg.Kubelet == nil {
		return nil, nil
	}
	s, err := n.kubelet(*n.cfg.Kubelet, saved(recs, kubelet.StepName))
	if err != nil {
		return nil, err
	}
	return []engine.Item{{Steps: []step.Step{s}}}, nil
}

func (n *Durable) kubelet(want kubelet.Want, held step.Saved) (*kubelet.Step, error) {
	return kubelet.New(kubelet.Config{
		Node: n.deps.Node, Want: want, Files: n.files, Verify: n.deps.Verify, Held: held,
	})
}

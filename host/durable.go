package host

import (
	"context"
	"errors"
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
	Files  fsys.Files    // what the steps write with; nil: the files of Root
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
	keeper
	cfg   DurableConfig
	deps  DurableDeps
	files fsys.Files
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
	}
	return n
}

// ErrOff is returned by Boot where the off switch is set.
var ErrOff = errors.New("a rollback was asked for")

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

// undoer is the step that undoes a record, or nil if this version has none.
func (n *Durable) undoer(r engine.Record) (step.Step, error) {
	if r.Name != kubelet.StepName {
		return nil, nil
	}
	return n.kubelet(kubelet.Want{}, r.Saved)
}

func (n *Durable) kubelet(want kubelet.Want, held step.Saved) (*kubelet.Step, error) {
	return kubelet.New(kubelet.Config{
		Node: n.deps.Node, Want: want, Files: n.files, Verify: n.deps.Verify, Held: held,
	})
}

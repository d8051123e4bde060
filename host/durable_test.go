package host_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/step"
)

// disk is real files, whose writes can fail or lose power.
type disk struct {
	t      *testing.T
	root   string
	writes int
	at     int
	fault  fault
}

// A fault is what happens at one write.
type fault struct {
	name string
	err  error // it fails
	cut  bool  // the power goes
	done bool  // after it has landed
	torn bool  // when half of it has landed, where it is no rename
}

var faults = []fault{
	{name: "no space", err: syscall.ENOSPC},
	{name: "read-only", err: syscall.EROFS},
	{name: "cut before", cut: true},
	{name: "cut after", cut: true, done: true},
	{name: "torn", cut: true, torn: true},
}

func (d *disk) arm(at int, f fault) {
	d.at, d.fault = 0, f
	if at > 0 {
		d.at = d.writes + at
	}
}

// write does one write, half of which is torn.
func (d *disk) write(what string, do, torn func() error) error {
	d.writes++
	f := d.fault
	switch {
	case d.writes != d.at:
		return do()
	case f.err != nil:
		return &fs.PathError{Op: "write", Path: what, Err: f.err}
	case f.torn && torn != nil:
		if err := torn(); err != nil {
			d.t.Fatal(err)
		}
	case f.done:
		if err := do(); err != nil {
			return err
		}
	}
	panic(hosttest.PowerCut{})
}

// files are the node's own.
type files struct {
	*disk
	fsys.Files
}

func (f files) Mkdir(name string) error {
	return f.write("mkdir "+name, func() error { return f.Files.Mkdir(name) }, nil)
}

func (f files) Write(name string, c fsys.Content, like string) error {
	half := c
	half.Data = c.Data[:len(c.Data)/2]
	return f.write("write "+name, func() error { return f.Files.Write(name, c, like) },
		func() error { return f.Files.Write(name, half, like) })
}

func (f files) Symlink(target, name string) error {
	return f.write("link "+name, func() error { return f.Files.Symlink(target, name) }, nil)
}

func (f files) Rename(from, to string) error {
	return f.write("rename "+to, func() error { return f.Files.Rename(from, to) }, nil)
}

func (f files) Remove(name string) error {
	return f.write("remove "+name, func() error { return f.Files.Remove(name) }, nil)
}

// state is the journal's.
type state struct {
	*disk
	journal.Files
}

func (s state) WriteAtomic(name string, data []byte, perm fs.FileMode) error {
	return s.write("state "+name, func() error { return s.Files.WriteAtomic(name, data, perm) }, nil)
}

func (s state) Remove(name string) error {
	return s.write("forget "+name, func() error { return s.Files.Remove(name) }, nil)
}

// durable is another process on the same disk.
func (d *disk) durable(want kubelet.Want) *host.Durable {
	deps := host.RootDeps(d.root, slog.New(slog.DiscardHandler))
	deps.Verify = nil
	deps.Now = func() time.Time { return time.Unix(0, 0) }
	deps.Files = files{d, fsys.DirFiles(deps.Node.Tree)}
	deps.State = state{d, fsys.Dir(filepath.Join(d.root, deps.StateDir))}
	return host.NewDurable(host.DurableConfig{Kubelet: &want}, deps)
}

// run is one process, which may lose power, or fail at an injected fault.
func (d *disk) run(do func() error) {
	d.t.Helper()
	defer func() {
		if p := recover(); p != nil && p != any(hosttest.PowerCut{}) {
			panic(p)
		}
	}()
	if err := do(); err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EROFS) {
		d.t.Fatal(err)
	}
}

// String is all files but our own state, with their modes and owners.
func (d *disk) String() string {
	var out strings.Builder
	err := filepath.WalkDir(d.root, func(name string, e fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(name, d.root)
		if err != nil || strings.HasPrefix(rel, host.StateDir) || strings.HasPrefix(rel, host.RunDir) {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&out, "%s %d:%d %s", info.Mode(), st.Uid, st.Gid, rel)
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %q", data)
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return out.String()
}

func (d *disk) put(name, text string) {
	d.t.Helper()
	name = filepath.Join(d.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
		d.t.Fatal(err)
	}
}

const kubeletConfig = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.96.0.10]\n"

// A nodeKind is a node, and what we want of it first and then.
type nodeKind struct {
	name        string
	files       map[string]string
	first, then kubelet.Want
}

func want(address string, b kubelet.Backend) kubelet.Want {
	return kubelet.Want{Addresses: []netip.Addr{netip.MustParseAddr(address)}, Backend: b}
}

var nodeKinds = []nodeKind{
	{
		name: "env",
		files: map[string]string{
			"/usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml $EXTRA\n",
			"/k.yaml": kubeletConfig,
		},
		first: want("169.254.20.10", kubelet.Auto),
		then:  kubelet.Want{Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10")}, Config: "/etc/other.yaml"},
	},
	{
		name: "dropin, then env in a directory that was there",
		files: map[string]string{
			"/usr/lib/systemd/system/kubelet.service":         "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml $EXTRA\n",
			"/etc/systemd/system/kubelet.service.d/10-a.conf": "[Service]\nCPUWeight=50\n",
			"/k.yaml": kubeletConfig,
		},
		first: want("169.254.20.10", kubelet.ByDropIn),
		then:  want("169.254.20.10", kubelet.ByEnv),
	},
	{
		name: "config-dir, then dropin",
		files: map[string]string{
			"/usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml --config-dir=/k.d\n",
			"/k.yaml":        kubeletConfig,
			"/k.d/10-a.conf": kubeletConfig,
		},
		first: want("169.254.20.10", kubelet.ByConfigDir),
		then:  want("169.254.20.11", kubelet.ByDropIn),
	},
	{
		name: "args-file",
		files: map[string]string{
			"/etc/systemd/system/snap.microk8s.daemon-kubelite.service": "[Service]\nExecStart=/usr/bin/snap run microk8s.daemon-kubelite\n",
			"/var/snap/microk8s/current/args/kubelet":                   "--v=2\n--cluster-dns=10.96.0.10\n--node-labels=a=b",
		},
		first: want("169.254.20.10", kubelet.Auto),
		then:  want("169.254.20.11", kubelet.Auto),
	},
	{
		name: "rewrite",
		files: map[string]string{
			"/etc/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml --v=2\n",
			"/k.yaml":                             kubeletConfig,
		},
		first: want("169.254.20.10", kubelet.ByRewrite),
		then:  want("169.254.20.11", kubelet.ByRewrite),
	},
}

// memory is a new directory that is in memory where there is such a place: on
// a disk, thousands of cases would wait for fsync most of their time.
func memory(t *testing.T) string {
	t.Helper()
	dir := fmt.Sprintf("/dev/shm/nodelocaldns-test-%d-%d", os.Getpid(), disks.Add(1))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var disks atomic.Int64

func (k nodeKind) disk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t: t, root: memory(t)}
	for name, text := range k.files {
		d.put(name, text)
	}
	for _, dir := range []string{host.StateDir, host.RunDir} {
		if err := os.MkdirAll(filepath.Join(d.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// Each write of an apply, of a second one with another outcome, and of the
// rollback after that fails, is torn, or loses power before or after it: one
// more rollback leaves every file, mode, owner and directory as it was.
func TestRollbackRestoresEveryFileAfterAFaultAnywhere(t *testing.T) {
	for _, k := range nodeKinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			ref := k.disk(t)
			before := ref.String()
			count := func(do func() error) int {
				t.Helper()
				had := ref.writes
				if err := do(); err != nil {
					t.Fatal(err)
				}
				return ref.writes - had
			}
			first := count(func() error { return ref.durable(k.first).Apply(t.Context()) })
			if ref.String() == before {
				t.Fatal("apply changed nothing")
			}
			then := count(func() error { return ref.durable(k.then).Apply(t.Context()) })
			back := count(func() error { return ref.durable(k.then).Rollback(t.Context()) })
			if diff := cmp.Diff(before, ref.String()); diff != "" {
				t.Fatalf("without a fault (-before +after):\n%s", diff)
			}
			cases := 0
			for _, f := range faults {
				for a := range first + 1 {
					for b := range then + 1 {
						for c := range back + 1 {
							several := a*b+b*c+a*c > 0
							if several && (f.err != nil || (a+2*b+3*c)%13 != 0) {
								continue // each alone, and some power cuts in twos and threes
							}
							if cases++; cases%thin != 0 {
								continue
							}
							d := k.disk(t)
							d.arm(a, f)
							d.run(func() error { return d.durable(k.first).Apply(t.Context()) })
							d.arm(b, f)
							d.run(func() error { return d.durable(k.then).Apply(t.Context()) })
							if (a+b)%2 == 1 { // and once more, whole
								d.arm(0, f)
								d.run(func() error { return d.durable(k.then).Apply(t.Context()) })
							}
							d.arm(c, f)
							d.run(func() error { return d.durable(k.then).Rollback(t.Context()) })
							d.arm(0, f)
							at := fmt.Sprintf("%s at writes %d, %d and %d", f.name, a, b, c)
							if err := d.durable(k.then).Rollback(t.Context()); err != nil {
								t.Fatalf("%s: %v", at, err)
							}
							if diff := cmp.Diff(before, d.String()); diff != "" {
								t.Fatalf("%s (-before +after):\n%s", at, diff)
							}
							if _, err := os.Stat(filepath.Join(d.root, host.StateDir, "journal.json")); !errors.Is(err, fs.ErrNotExist) {
								t.Fatalf("%s: the journal is still there: %v", at, err)
							}
							if err := os.RemoveAll(d.root); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
			}
			t.Logf("%d cases over %d, %d and %d writes", cases, first, then, back)
		})
	}
}

func TestApplyConvergesOnFilesAfterAFaultAnywhere(t *testing.T) {
	for _, k := range nodeKinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			ref := k.disk(t)
			if err := ref.durable(k.first).Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := ref.String()
			for _, f := range faults {
				for at := range ref.writes + 1 {
					d := k.disk(t)
					d.arm(at, f)
					d.run(func() error { return d.durable(k.first).Apply(t.Context()) })
					d.arm(0, f)
					if err := d.durable(k.first).Apply(t.Context()); err != nil {
						t.Fatalf("%s at write %d: %v", f.name, at, err)
					}
					if diff := cmp.Diff(want, d.String()); diff != "" {
						t.Fatalf("%s at write %d (-want +got):\n%s", f.name, at, diff)
					}
				}
			}
		})
	}
}

func TestASecondApplyOfFilesWritesNothing(t *testing.T) {
	for _, k := range nodeKinds {
		t.Run(k.name, func(t *testing.T) {
			d := k.disk(t)
			if err := d.durable(k.first).Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := d.String()
			if err := d.durable(k.first).Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, d.String()); diff != "" {
				t.Errorf("(-first +second):\n%s", diff)
			}
		})
	}
}

func TestAFailedWriteLeavesTheFilesAsTheyWere(t *testing.T) {
	for _, k := range nodeKinds {
		t.Run(k.name, func(t *testing.T) {
			ref := k.disk(t)
			before := ref.String()
			if err := ref.durable(k.first).Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			after := ref.String()
			for _, f := range faults[:2] {
				for at := 1; at <= ref.writes; at++ {
					d := k.disk(t)
					d.arm(at, f)
					err := d.durable(k.first).Apply(t.Context())
					if !errors.Is(err, f.err) {
						t.Fatalf("%s at write %d: %v", f.name, at, err)
					}
					if got := d.String(); got != before && got != after {
						t.Errorf("%s at write %d (-before +after):\n%s", f.name, at, cmp.Diff(before, got))
					}
				}
			}
		})
	}
}

const ourFile = "/etc/systemd/system/kubelet.service.d/99-nodelocaldns.conf"

func TestAStrangersEditOfOurFileIsRefusedAndKept(t *testing.T) {
	k := nodeKinds[0]
	d := k.disk(t)
	if err := d.durable(k.first).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.put(ourFile, "[Service]\nCPUWeight=50\n")
	edited := d.String()

	err := d.durable(k.first).Rollback(t.Context())
	if err == nil || !strings.Contains(err.Error(), "99-nodelocaldns.conf changed since we wrote it") {
		t.Fatalf("rollback: %v", err)
	}
	if hint := hintOf(err); !strings.Contains(hint, "--keep=kubelet/cluster-dns") {
		t.Errorf("hint: %q", hint)
	}
	if d.String() != edited {
		t.Error("rollback touched the file")
	}
	all, err := d.durable(k.first).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if all[0].State != step.Blocked {
		t.Errorf("check: %s: %s, want blocked", all[0].State, all[0].Why)
	}
	if err := d.durable(k.first).Rollback(t.Context(), kubelet.StepName); err != nil {
		t.Errorf("rollback --keep: %v", err)
	}
}

func TestAStrangersChangeOfAFileWeChangedIsRefusedAndKept(t *testing.T) {
	for _, k := range nodeKinds[3:] {
		t.Run(k.name, func(t *testing.T) {
			d := k.disk(t)
			if err := d.durable(k.first).Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			for name := range k.files {
				if !strings.HasSuffix(name, ".yaml") {
					data, err := os.ReadFile(filepath.Join(d.root, name))
					if err != nil {
						t.Fatal(err)
					}
					d.put(name, string(data)+"\n# mine\n")
				}
			}
			edited := d.String()
			if err := d.durable(k.first).Rollback(t.Context()); err == nil || !strings.Contains(err.Error(), "changed since we wrote it") {
				t.Errorf("rollback: %v", err)
			}
			all, err := d.durable(k.then).Check(t.Context())
			if err != nil || all[0].State != step.Blocked {
				t.Errorf("check with another address: %+v, %v; want blocked", all[0], err)
			}
			if d.String() != edited {
				t.Error("somebody touched the file")
			}
		})
	}
}

// refuses is a systemd that does not take what it is given.
type refuses struct{ reloads int }

func (r *refuses) Reload(context.Context) error { r.reloads++; return nil }

func (r *refuses) Accepts(context.Context, string, string, []string) error {
	return errors.New("bad unit file setting")
}

func TestAFileThatSystemdDoesNotTakeIsRemovedAgain(t *testing.T) {
	for _, k := range []nodeKind{nodeKinds[0], nodeKinds[1], nodeKinds[4]} {
		t.Run(k.name, func(t *testing.T) {
			d := k.disk(t)
			before := d.String()
			deps := host.RootDeps(d.root, slog.New(slog.DiscardHandler))
			systemd := &refuses{}
			deps.Verify = systemd
			err := host.NewDurable(host.DurableConfig{Kubelet: &k.first}, deps).Apply(t.Context())
			if err == nil || !strings.Contains(err.Error(), "systemd does not take") {
				t.Fatalf("apply: %v", err)
			}
			if diff := cmp.Diff(before, d.String()); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
			if systemd.reloads != 2 {
				t.Errorf("systemd was reloaded %d times, want once with the file and once without", systemd.reloads)
			}
			if err := d.durable(k.first).Rollback(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckOfFilesWritesNothing(t *testing.T) {
	for _, k := range nodeKinds {
		d := k.disk(t)
		before := d.String()
		all, err := d.durable(k.first).Check(t.Context())
		if err != nil || len(all) != 1 || all[0].State != step.Pending || all[0].Diff == "" {
			t.Fatalf("%s: %+v, %v; want one pending step with a diff", k.name, all, err)
		}
		if d.writes != 0 || d.String() != before {
			t.Errorf("%s: check wrote", k.name)
		}
	}
}

func TestARecordOfTheKubeletOutlivesItsConfiguration(t *testing.T) {
	k := nodeKinds[0]
	d := k.disk(t)
	before := d.String()
	if err := d.durable(k.first).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	none := host.NewDurable(host.DurableConfig{}, host.RootDeps(d.root, slog.New(slog.DiscardHandler)))
	all, err := none.Check(t.Context())
	if err != nil || len(all) != 1 || !all[0].Leftover {
		t.Fatalf("check: %+v, %v; want one leftover", all, err)
	}
	if err := none.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, d.String()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	if off, err := none.Off(); !off || err != nil {
		t.Errorf("off: %t, %v; want it set", off, err)
	}
}

func TestSomethingElseInADirectoryOfOursKeepsIt(t *testing.T) {
	k := nodeKinds[0]
	d := k.disk(t)
	if err := d.durable(k.first).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.put("/etc/systemd/system/kubelet.service.d/10-mine.conf", "[Service]\nCPUWeight=50\n")
	if err := d.durable(k.first).Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.String(); !strings.Contains(got, "10-mine.conf") || strings.Contains(got, "nodelocaldns.conf") {
		t.Errorf("left:\n%s", got)
	}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

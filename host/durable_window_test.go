package host_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unitfile"
)

// live is a disk on which a kubelet runs: it reads its files when it is
// started, and not later. A restart is a write, which can fail or lose power.
type live struct {
	*disk
	want    kubelet.Want                 // that its unit calls us with at a start
	joined  bool                         // else it exits at each start, and waits for kubeadm join
	refuses func(asks []netip.Addr) bool // it exits when it is told to have pods ask these
	settle  time.Duration

	st     kubelet.UnitState
	unit   string
	argv   []string     // of the process
	asks   []netip.Addr // whom its pods ask
	starts int
	jobs   []string
}

// newLive is that kubelet, or one that does not run and is started again and
// again until the node joins.
func newLive(t *testing.T, k nodeKind, joined bool) *live {
	t.Helper()
	d := &live{disk: k.disk(t), want: k.first, joined: joined, settle: time.Millisecond}
	f, err := kubelet.Find(t.Context(), kubelet.Node{Tree: fsys.Tree(d.root)}, k.first)
	if err != nil {
		t.Fatal(err)
	}
	d.unit = f.Unit
	d.start()
	return d
}

// start is what systemd does to start the kubelet, ExecStartPre= of our
// drop-in among it.
func (d *live) start() {
	d.t.Helper()
	tree := fsys.Tree(d.root)
	env := filepath.Join(d.root, kubelet.EnvFile)
	_ = os.Remove(env)
	calls, _ := filepath.Glob(filepath.Join(d.root, "/etc/systemd/system/*.d/*-nodelocaldns.conf"))
	if len(calls) > 0 && !d.has("off") && !d.has("refused") {
		if text, _ := os.ReadFile(calls[0]); strings.Contains(string(text), "kubelet-env") {
			_, text, err := kubelet.Env(d.t.Context(), kubelet.Node{Tree: tree}, d.want)
			if err == nil && text != nil {
				err = os.WriteFile(env, text, 0o600)
			}
			if err != nil {
				d.t.Fatal(err)
			}
		}
	}
	f, err := kubelet.Find(d.t.Context(), kubelet.Node{Tree: tree}, d.want)
	if err != nil {
		d.t.Fatal(err)
	}
	d.asks, d.argv = f.Now, nil
	if d.unit == "kubelet.service" {
		u, err := unitfile.Load(tree, d.unit, unitfile.Host{})
		if err != nil {
			d.t.Fatal(err)
		}
		environment, err := u.Environment()
		if err != nil {
			d.t.Fatal(err)
		}
		commands, err := u.Commands("ExecStart")
		if err != nil {
			d.t.Fatal(err)
		}
		args, err := commands[0].Expand(environment)
		if err != nil {
			d.t.Fatal(err)
		}
		for _, a := range args {
			d.argv = append(d.argv, a.Text)
		}
	}
	d.starts++
	d.st = kubelet.UnitState{Load: "loaded", Active: "active", Sub: "running", MainPID: 100 + d.starts}
	if !d.joined || d.refuses != nil && d.refuses(d.asks) {
		d.exit()
	}
}

// has says whether our own state has a file of that name.
func (d *live) has(name string) bool {
	_, err := os.Stat(filepath.Join(d.root, host.StateDir, name))
	return !errors.Is(err, fs.ErrNotExist)
}

func (d *live) exit() {
	d.argv, d.asks = nil, nil
	d.st = kubelet.UnitState{Load: "loaded", Active: "activating", Sub: "auto-restart", ExitCode: 1, ExitStatus: 1}
}

func (d *live) State(context.Context, string) (kubelet.UnitState, error) { return d.st, nil }

func (d *live) Reload(context.Context) error { return nil }

func (d *live) Accepts(context.Context, string, string, []string) error { return nil }

func (d *live) ResetFailed(context.Context, string) error { return nil }

func (d *live) TryRestart(ctx context.Context, unit string) (string, error) {
	if d.st.Active != "active" {
		return "done", nil
	}
	return d.Restart(ctx, unit)
}

// Restart is torn when what ran is stopped and nothing is started yet.
func (d *live) Restart(_ context.Context, unit string) (string, error) {
	d.jobs = append(d.jobs, "restart "+unit)
	return "done", d.write("restart", func() error { d.start(); return nil }, func() error {
		d.exit()
		d.st.Active, d.st.Sub = "inactive", "dead"
		return nil
	})
}

func (d *live) node() kubelet.Node {
	tree := fsys.Tree(d.root)
	return kubelet.Node{
		Tree: tree,
		Running: func(string) (*kubelet.Process, error) {
			if d.argv == nil {
				return nil, nil
			}
			return &kubelet.Process{PID: d.st.MainPID, Argv: d.argv}, nil
		},
		// The clock here is not that of the files. What counts is whether they
		// have changed since.
		Started: func(ctx context.Context, _ string) (time.Time, error) {
			f, err := kubelet.Find(ctx, kubelet.Node{Tree: tree}, d.want)
			switch {
			case d.st.MainPID == 0 || err != nil:
				return time.Time{}, err
			case slices.Equal(f.Now, d.asks):
				return time.Now().AddDate(1000, 0, 0), nil
			}
			return time.Unix(1, 0), nil
		},
	}
}

// process is another process on the node.
func (d *live) process(want kubelet.Want) *host.Durable {
	return host.NewDurable(host.DurableConfig{Kubelet: &want, Settle: d.settle}, d.deps())
}

func (d *live) deps() host.DurableDeps {
	deps := host.RootDeps(d.root, slog.New(slog.DiscardHandler))
	deps.Node = d.node()
	deps.Files = files{d.disk, fsys.DirFiles(deps.Node.Tree)}
	deps.State = state{d.disk, fsys.Dir(filepath.Join(d.root, deps.StateDir))}
	deps.Verify, deps.Units = d, d
	deps.Healthz = func(context.Context, netip.AddrPort) error { return nil }
	return deps
}

// reboot is what a power cut is followed by, where it is not our process alone
// that was killed.
func (d *live) reboot() {
	d.t.Helper()
	if err := os.RemoveAll(filepath.Join(d.root, path.Dir(kubelet.EnvFile))); err != nil {
		d.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(d.root, host.RunDir), 0o755); err != nil {
		d.t.Fatal(err)
	}
	d.start()
}

func (d *live) String() string {
	return fmt.Sprintf("%s%s: %s (%s), pods ask %s\n", d.disk, d.unit, d.st.Active, d.st.Sub, d.asks)
}

// clean says what is left of our own.
func (d *live) clean() error {
	if _, err := os.Stat(filepath.Join(d.root, host.StateDir, "journal.json")); !errors.Is(err, fs.ErrNotExist) {
		text, _ := os.ReadFile(filepath.Join(d.root, host.StateDir, "journal.json"))
		return fmt.Errorf("the journal is still there: %s", text)
	}
	return nil
}

// try is one process that may lose power or fail. Errors are fine here: what
// counts is the node after the last run.
func (d *live) try(at int, f fault, reboot bool, do func() error) {
	d.t.Helper()
	d.arm(at, f)
	cut := func() (cut bool) {
		defer func() {
			if p := recover(); p != nil {
				if cut = true; p != any(hosttest.PowerCut{}) {
					panic(p)
				}
			}
		}()
		_ = do()
		return false
	}()
	d.arm(0, fault{})
	if cut && reboot {
		d.reboot()
	}
}

// A scene is how a kubelet meets our change.
type scene struct {
	name    string
	joined  bool
	refuses bool // to start with our address
	boot    bool // the first run writes files only
}

var scenes = []scene{
	{name: "it runs", joined: true},
	{name: "it runs, and the first run was at boot", joined: true, boot: true},
	{name: "it refuses our address", joined: true, refuses: true},
	{name: "it waits to be joined"},
}

func (s scene) live(t *testing.T, k nodeKind) *live {
	t.Helper()
	d := newLive(t, k, s.joined)
	if s.refuses {
		d.refuses = func(asks []netip.Addr) bool {
			return slices.ContainsFunc(asks, netip.Addr.IsLinkLocalUnicast)
		}
	}
	return d
}

func (s scene) first(t *testing.T, d *live, k nodeKind) error {
	t.Helper()
	if s.boot {
		return d.process(k.first).Boot(t.Context())
	}
	return d.process(k.first).Apply(t.Context())
}

// Each write and each restart of an apply, of a second one with another
// outcome, and of the rollback after that fails, is torn, or loses power before
// or after it, with or without a reboot: one more rollback leaves every file
// and the kubelet as they were, and one more apply both as it would have.
func TestAKubeletIsAsItWasOrAsWantedAfterAFaultAnywhere(t *testing.T) {
	for i, k := range nodeKinds[:4] {
		for j, s := range scenes {
			if i > 0 && j > 0 {
				continue // how a kubelet runs and by which file it is told do not meet
			}
			t.Run(k.name+", "+s.name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { s.everyFault(t, k) })
			})
		}
	}
}

// liveFaults are the faults that lead to states of their own: to lose power
// before a write is to have lost it after the one before. What fails and goes on
// is the matter of the files alone.
var liveFaults = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !f.done && !f.torn })

func (s scene) everyFault(t *testing.T, k nodeKind) {
	ref := s.live(t, k)
	before := ref.String()
	count := func(do func() error) int {
		t.Helper()
		had := ref.writes
		if err := do(); err != nil && !s.refuses {
			t.Fatal(err)
		}
		return ref.writes - had
	}
	first := count(func() error { return s.first(t, ref, k) })
	ref.want = k.then
	then := count(func() error { return ref.process(k.then).Apply(t.Context()) })
	after := ref.String()
	if (after == before) != s.refuses {
		t.Fatalf("apply left:\n%s", after)
	}
	back := count(func() error { return ref.process(k.then).Rollback(t.Context()) })
	if diff := cmp.Diff(before, ref.String()); diff != "" {
		t.Fatalf("without a fault (-before +after):\n%s", diff)
	}
	if !s.joined && len(ref.jobs) > 0 {
		t.Errorf("a kubelet that did not run: %q", ref.jobs)
	}
	cases := 0
	one := func(f fault, a, b, c int) {
		t.Helper()
		if cases++; cases%thin != 0 {
			return
		}
		d := s.live(t, k)
		reboot := cases%2 == 0
		d.try(a, f, reboot, func() error { return s.first(t, d, k) })
		d.want = k.then
		if b+c > 0 {
			d.try(b, f, reboot, func() error { return d.process(k.then).Apply(t.Context()) })
		}
		if c > 0 {
			d.try(c, f, reboot, func() error { return d.process(k.then).Rollback(t.Context()) })
		}
		at := fmt.Sprintf("%s at writes %d, %d and %d, reboot %t", f.name, a, b, c, reboot)
		s.converges(t, d, k, cases%3 == 0, at, before, after)
		if err := os.RemoveAll(d.root); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range liveFaults {
		for a := range first {
			one(f, a+1, 0, 0)
		}
		for b := range then {
			one(f, 0, b+1, 0)
		}
		for c := range back {
			one(f, 0, 0, c+1)
			one(f, c%(first+1), 2*c%(then+1), c+1) // and some in twos and threes
		}
	}
	t.Logf("%d cases over %d, %d and %d writes", cases, first, then, back)
}

// tornFile is what is left of a write that was torn.
var tornFile = regexp.MustCompile(`(?m)^.* /\S*/\.\S+\.nodelocaldns .*\n`)

// converges looks at what one more rollback leaves, or one more apply and the
// rollback of that.
func (s scene) converges(t *testing.T, d *live, k nodeKind, forward bool, at, before, after string) {
	t.Helper()
	if forward {
		if err := d.process(k.then).Apply(t.Context()); (err != nil) != s.refuses {
			t.Fatalf("%s: apply: %v", at, err)
		}
		// A write that was torn may have left half a file, which nobody reads
		// and the next rollback removes.
		got := tornFile.ReplaceAllString(d.String(), "")
		if diff := cmp.Diff(after, got); diff != "" {
			t.Fatalf("%s: apply (-want +got):\n%s", at, diff)
		}
	}
	if err := d.process(k.then).Rollback(t.Context()); err != nil {
		t.Fatalf("%s: rollback: %v", at, err)
	}
	if diff := cmp.Diff(before, d.String()); diff != "" {
		t.Fatalf("%s: rollback (-before +after):\n%s", at, diff)
	}
	if err := d.clean(); err != nil {
		t.Fatalf("%s: rollback: %v", at, err)
	}
	if !s.joined && len(d.jobs) > 0 {
		t.Fatalf("%s: a kubelet that did not run: %q", at, d.jobs)
	}
}

// in is a test of a kubelet on the node kind env, on a clock that jumps.
func in(t *testing.T, s scene, do func(t *testing.T, d *live, k nodeKind)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := s.live(t, nodeKinds[0])
		do(t, d, nodeKinds[0])
	})
}

func (d *live) restarts() int {
	n := len(d.jobs)
	d.jobs = nil
	return n
}

func TestAKubeletIsRestartedOnceForAChangeAndNotForNone(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		for _, tt := range []struct {
			name string
			do   func(n *host.Durable) error
			want int
		}{
			{"rollback of nothing", func(n *host.Durable) error { return n.Rollback(t.Context()) }, 0},
			{"apply", func(n *host.Durable) error { return n.Apply(t.Context()) }, 1},
			{"a second apply", func(n *host.Durable) error { return n.Apply(t.Context()) }, 0},
			{"rollback that keeps it", func(n *host.Durable) error { return n.Rollback(t.Context(), kubelet.StepName) }, 0},
			{"rollback", func(n *host.Durable) error { return n.Rollback(t.Context()) }, 1},
			{"a second rollback", func(n *host.Durable) error { return n.Rollback(t.Context()) }, 0},
		} {
			if err := tt.do(d.process(k.first)); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			if got := d.restarts(); got != tt.want {
				t.Errorf("%s: restarted %d times, want %d", tt.name, got, tt.want)
			}
		}
	})
}

func TestWhatIsWrittenAtBootWaitsForApply(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		n := d.process(k.first)
		if err := n.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := host.Restart{Unit: "kubelet.service", Why: "the running kubelet (pid 101) has pods ask 10.96.0.10"}
		if got := n.Pending(t.Context()); got == nil || *got != want || d.restarts() != 0 {
			t.Fatalf("after boot: %+v, %q; want %+v and no restart", got, d.jobs, want)
		}
		if err := n.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := n.Pending(t.Context()); got != nil || d.restarts() != 1 {
			t.Errorf("after apply: %+v", got)
		}
	})
}

func TestWhatWasTakenAwayByHandIsTakenOverByRollback(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		before := d.String()
		if err := d.process(k.first).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{host.StateDir, "/etc"} {
			if err := os.RemoveAll(filepath.Join(d.root, name)); err != nil {
				t.Fatal(err)
			}
		}
		n := d.process(k.first)
		want := host.Restart{Unit: "kubelet.service", Why: "the running kubelet (pid 102) has pods ask 169.254.20.10,10.96.0.10 until its next start"}
		if got := n.Pending(t.Context()); got == nil || *got != want {
			t.Errorf("pending: %+v, want %+v", got, want)
		}
		if err := n.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, d.String()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

// Nothing tells then whether it runs with what was in a configuration file.
func TestAKubeletIsRestartedWhereOurConfigurationFileWasTakenAwayByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := nodeKinds[2]
		d := scenes[0].live(t, k)
		before := d.String()
		if err := d.process(k.first).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(d.root, "/k.d/99-nodelocaldns.conf")); err != nil {
			t.Fatal(err)
		}
		if err := d.process(k.first).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, d.String()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

func TestAKubeletThatRefusesOurAddressIsAnErrorThatSaysWhatItDid(t *testing.T) {
	in(t, scenes[2], func(t *testing.T, d *live, k nodeKind) {
		before := d.String()
		err := d.process(k.first).Apply(t.Context())
		const want = "window/kubelet: undone: kubelet.service did not come back: it is activating (auto-restart), its main process exited with status 1"
		if err == nil || err.Error() != want {
			t.Errorf("err = %v\nwant  %s", err, want)
		}
		if got, want := hintOf(err), "journalctl -u kubelet.service -n 50 says why"; got != want {
			t.Errorf("hint = %s\nwant   %s", got, want)
		}
		if diff := cmp.Diff(before, d.String()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		if n := d.restarts(); n != 2 {
			t.Errorf("restarted %d times, want once with us and once without", n)
		}
	})
}

func TestAKubeletMayBeWatchedForAsLongAsTheConfigurationAllows(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		d.settle = 10 * time.Minute
		if err := d.process(k.first).Apply(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The unit for the boot is also started by the resolver, when that starts again.
func TestWhatAKubeletRefusedIsNotDoneByTheNextBoot(t *testing.T) {
	in(t, scenes[2], func(t *testing.T, d *live, k nodeKind) {
		before := d.String()
		if err := d.process(k.first).Apply(t.Context()); err == nil {
			t.Fatal("no error")
		}
		if err := d.process(k.first).Boot(t.Context()); !errors.Is(err, host.ErrRefused) || !strings.Contains(err.Error(), "did not come back") {
			t.Errorf("boot: %v", err)
		}
		if diff := cmp.Diff(before, d.String()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		d.refuses = nil
		for _, do := range []func(context.Context, ...string) error{d.process(k.first).Apply, d.process(k.first).Boot} {
			if err := do(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}

// The power goes at each write of an apply whose change the kubelet refuses, and
// comes again: our unit before the kubelet, the kubelet, and our unit after it.
func TestWhatAKubeletRefusedIsTakenBackAfterAPowerCutAndNotTriedAgain(t *testing.T) {
	for _, k := range nodeKinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := scenes[2]
				ref := s.live(t, k)
				before := ref.String()
				if err := ref.process(k.first).Apply(t.Context()); err == nil {
					t.Fatal("it came back")
				}
				seen := 0
				for at := range ref.writes {
					for _, f := range faults[2:4] {
						d := s.live(t, k)
						d.try(at+1, f, false, func() error { return d.process(k.first).Apply(t.Context()) })
						refused, open := d.has("refused"), d.has("journal.json")
						if err := os.RemoveAll(filepath.Join(d.root, host.RunDir)); err != nil {
							t.Fatal(err)
						}
						if err := os.MkdirAll(filepath.Join(d.root, host.RunDir), 0o755); err != nil {
							t.Fatal(err)
						}
						if !open && !refused {
							continue // nothing was begun
						}
						tries := 0
						d.refuses = func(asks []netip.Addr) bool {
							ours := slices.ContainsFunc(asks, netip.Addr.IsLinkLocalUnicast)
							if ours {
								tries++
							}
							return ours
						}
						why := fmt.Sprintf("%s at write %d, refused %t", f.name, at+1, refused)
						err := d.process(k.first).Boot(t.Context())
						if errors.Is(err, host.ErrRefused) != refused {
							t.Errorf("%s: boot: %v", why, err)
						}
						d.start()
						if err := d.process(k.first).Resume(t.Context()); (err == nil) != refused {
							t.Errorf("%s: resume: %v", why, err)
						}
						if refused {
							seen++
						}
						if refused != (tries == 0) {
							t.Errorf("%s: the kubelet was started %d times with what it refuses", why, tries)
						}
						if diff := cmp.Diff(before, d.String()); diff != "" {
							t.Errorf("%s (-before +after):\n%s", why, diff)
						}
						if err := d.clean(); err != nil || !d.has("refused") {
							t.Errorf("%s: %v, refused %t", why, err, d.has("refused"))
						}
					}
				}
				if seen < 4 {
					t.Errorf("the power went %d times when it was refused and not yet undone", seen)
				}
			})
		})
	}
}

// between is a state directory where something happens when the journal was read
// twice.
type between struct {
	journal.Files
	reads *int
	do    func()
}

func (b between) ReadFile(name string) ([]byte, error) {
	data, err := b.Files.ReadFile(name)
	if name == "journal.json" {
		if *b.reads++; *b.reads == 2 {
			b.do()
		}
	}
	return data, err
}

func TestWhatWasRefusedIsNotTakenBackFromWhoAppliedItSince(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		d.refuses = func([]netip.Addr) bool { return true }
		if err := d.process(k.first).Apply(t.Context()); err == nil || !d.has("refused") {
			t.Fatalf("%v, refused %t", err, d.has("refused"))
		}
		d.refuses = nil
		deps := d.deps()
		deps.State = between{deps.State, new(int), func() {
			if err := d.process(k.first).Apply(t.Context()); err != nil {
				t.Error(err)
			}
			d.restarts()
		}}
		n := host.NewDurable(host.DurableConfig{Kubelet: &k.first, Settle: d.settle}, deps)
		if err := n.Resume(t.Context()); err != nil || d.restarts() != 0 || !slices.ContainsFunc(d.asks, netip.Addr.IsLinkLocalUnicast) {
			t.Errorf("%v\n%s", err, d)
		}
	})
}

func TestResumeGoesOnOrBackAsItWasGoing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first func(n *host.Durable, ctx context.Context, steps ...string) error // is cut off at the restart
		ours  bool
	}{
		{"apply", (*host.Durable).Apply, true},
		{"rollback", (*host.Durable).Rollback, false},
	} {
		in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
			n := d.process(k.first)
			before := d.String()
			if err := n.Resume(t.Context()); err != nil || d.restarts() != 0 || d.String() != before {
				t.Fatalf("nothing was cut off: %v\n%s", err, d)
			}
			if !tt.ours {
				if err := n.Apply(t.Context()); err != nil {
					t.Fatal(err)
				}
				d.restarts()
			}
			d.refuses = func([]netip.Addr) bool { panic(hosttest.PowerCut{}) }
			d.try(0, fault{}, false, func() error { return tt.first(d.process(k.first), t.Context()) })
			d.refuses = nil
			if err := d.process(k.first).Resume(t.Context()); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			if got := slices.ContainsFunc(d.asks, netip.Addr.IsLinkLocalUnicast); got != tt.ours {
				t.Errorf("%s: pods ask %v", tt.name, d.asks)
			}
			all, err := d.process(k.first).Check(t.Context())
			if err != nil || slices.ContainsFunc(all, func(st engine.Status) bool { return st.Name == kubelet.WindowName }) {
				t.Errorf("%s: still open: %+v, %v", tt.name, all, err)
			}
		})
	}
}

func TestAKubeletThatCannotBeBroughtBackIsLeftForTheNextRun(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		before := d.String()
		d.refuses = func([]netip.Addr) bool { return true }
		err := d.process(k.first).Apply(t.Context())
		if err == nil || !strings.Contains(err.Error(), "window/kubelet: left open: kubelet.service did not come back") {
			t.Fatalf("apply: %v", err)
		}
		all, err := d.process(k.first).Check(t.Context())
		i := slices.IndexFunc(all, func(st engine.Status) bool { return st.Name == kubelet.WindowName })
		if err != nil || i < 0 || all[i].State != step.Pending || all[i].Err != nil || !all[i].Ours {
			t.Errorf("check: %+v, %v; want the window, pending", all, err)
		}
		if err := d.process(k.first).Rollback(t.Context()); err == nil || !strings.Contains(err.Error(), "left open") {
			t.Errorf("rollback: %v", err)
		}
		if err := d.process(k.first).Rollback(t.Context(), kubelet.WindowName); err != nil {
			t.Errorf("rollback that leaves it: %v", err)
		}
		d.refuses = nil
		if err := d.process(k.first).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, d.String()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		if err := d.clean(); err != nil {
			t.Error(err)
		}
	})
}

func TestAFullDiskRestartsNoKubeletForNothing(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, ref *live, k nodeKind) {
		before := ref.String()
		if err := ref.process(k.first).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		after := ref.String()
		for at := 1; at <= ref.writes; at++ {
			d := scenes[0].live(t, k)
			d.arm(at, faults[0])
			if err := d.process(k.first).Apply(t.Context()); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("at write %d: %v", at, err)
			}
			if got := d.String(); got != before || d.starts != 1 {
				if got != after || d.starts != 2 {
					t.Errorf("at write %d: started %d times (-before +after):\n%s", at, d.starts, cmp.Diff(before, got))
				}
			}
			d.arm(0, fault{})
			if err := d.process(k.first).Apply(t.Context()); err != nil || d.String() != after {
				t.Errorf("another apply after write %d: %v (-want +got):\n%s", at, err, cmp.Diff(after, d.String()))
			}
		}
	})
}

func TestAnEditThatIsRefusedRestartsNothing(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		if err := d.process(k.first).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.restarts()
		text, err := os.ReadFile(filepath.Join(d.root, ourFile))
		if err != nil {
			t.Fatal(err)
		}
		d.put(ourFile, string(text)+"CPUWeight=50\n")
		if err := d.process(k.first).Rollback(t.Context()); err == nil || !strings.Contains(err.Error(), "changed since we wrote it") {
			t.Errorf("rollback: %v", err)
		}
		if n := d.restarts(); n != 0 {
			t.Errorf("restarted %d times", n)
		}
	})
}

func TestATreeWhoseKubeletWasBeingRestartedIsRolledBackAsATree(t *testing.T) {
	in(t, scenes[2], func(t *testing.T, d *live, k nodeKind) {
		before := d.disk.String()
		d.refuses = func([]netip.Addr) bool { return true }
		if err := d.process(k.first).Apply(t.Context()); err == nil {
			t.Fatal("it came back")
		}
		d.restarts()
		if err := d.durable(k.first).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.clean(); err != nil || d.restarts() != 0 || d.disk.String() != before {
			t.Errorf("%v\n%s", err, d.disk)
		}
	})
}

func TestTheKubeletIsLookedAtOnceForAllWhoAsk(t *testing.T) {
	in(t, scenes[0], func(t *testing.T, d *live, k nodeKind) {
		deps := host.RootDeps(d.root, slog.New(slog.DiscardHandler))
		looked := 0
		deps.Node = d.node()
		running := deps.Node.Running
		deps.Node.Running = func(unit string) (*kubelet.Process, error) { looked++; return running(unit) }
		n := host.NewDurable(host.DurableConfig{Kubelet: &k.first}, deps)
		if _, err := n.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		had := looked
		for range 3 {
			f, err := n.Facts(t.Context())
			if err != nil || f.PID != 101 || n.Pending(t.Context()) != nil {
				t.Fatalf("%+v, %v", f, err)
			}
		}
		if looked != had+1 {
			t.Errorf("looked %d times, want once", looked-had)
		}
		if _, err := n.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		had = looked
		if _, err := n.Facts(t.Context()); err != nil || looked != had+1 {
			t.Errorf("after another check: looked %d times, %v; want once", looked-had, err)
		}
	})
}

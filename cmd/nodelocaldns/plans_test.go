package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/units"
)

// nodeWith is a node of some files, where argv runs as its kubelet; no argv,
// and none does.
func nodeWith(t *testing.T, files map[string]string, argv *[]string) *plans {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := host.RootDeps(root, slog.New(slog.DiscardHandler))
	d.Verify = nil
	d.Node.Running = func(string) (*kubelet.Process, error) {
		if len(*argv) == 0 {
			return nil, nil
		}
		return &kubelet.Process{PID: 4711, Argv: *argv}, nil
	}
	return &plans{durable: host.NewDurable(host.DurableConfig{Kubelet: &wanted}, d), node: d.Node}
}

// wanted is what those nodes are to become.
var wanted = kubelet.Want{Addresses: []netip.Addr{oursForTest}}

// nodeWithUnits is a node where our units are installed too, and nothing runs.
func nodeWithUnits(t *testing.T) *plans {
	t.Helper()
	p := nodeWith(t, map[string]string{
		"usr/bin/nodelocaldns":                   "",
		"usr/bin/nodelocaldns-relay":             "",
		"usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --cluster-dns=10.96.0.10\n",
	}, new([]string))
	root := p.node.Tree.String()
	for _, name := range []string{"usr/bin/nodelocaldns", "usr/bin/nodelocaldns-relay"} {
		if err := os.Chmod(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := host.RootDeps(root, slog.New(slog.DiscardHandler))
	d.Verify = nil
	p.durable = host.NewDurable(host.DurableConfig{Units: &units.Settings{}, Kubelet: &wanted}, d)
	return p
}

// running is systemd with a kubelet that runs, and reads its files when it is
// started.
type running struct {
	node    kubelet.Node
	refuses func(asks []netip.Addr) bool // it exits when it is told to have pods ask these
	argv    []string                     // of the process; nil: there is none
	starts  int
}

// runningNode is a node whose kubelet runs, on the clock of synctest.
func runningNode(t *testing.T) (*plans, *running) {
	t.Helper()
	p := nodeWith(t, map[string]string{
		"usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --cluster-dns=10.96.0.10\n",
	}, new([]string))
	r := &running{node: p.node}
	p.durable = r.process()
	r.start(t.Context())
	return p, r
}

// process is another process on the node.
func (r *running) process() *host.Durable {
	d := host.RootDeps(r.node.Tree.String(), slog.New(slog.DiscardHandler))
	d.Verify, d.Units = nil, r
	d.Healthz = func(context.Context, netip.AddrPort) error { return nil }
	d.Node.Running = func(string) (*kubelet.Process, error) {
		if r.argv == nil {
			return nil, nil
		}
		return &kubelet.Process{PID: 100 + r.starts, Argv: r.argv}, nil
	}
	return host.NewDurable(host.DurableConfig{Kubelet: &wanted}, d)
}

func (r *running) start(ctx context.Context) {
	r.starts++
	f, _ := kubelet.Find(ctx, kubelet.Node{Tree: r.node.Tree}, wanted)
	if r.argv = []string{"/usr/bin/kubelet", "--cluster-dns=" + named(f.Now)}; r.refuses != nil && r.refuses(f.Now) {
		r.argv = nil
	}
}

// String is what its pods ask.
func (r *running) String() string {
	if r.argv == nil {
		return "no kubelet"
	}
	return r.argv[1]
}

func (r *running) State(context.Context, string) (kubelet.UnitState, error) {
	if r.argv == nil {
		return kubelet.UnitState{Active: "activating", Sub: "auto-restart"}, nil
	}
	return kubelet.UnitState{Active: "active", Sub: "running", MainPID: 100 + r.starts}, nil
}

func (r *running) Reload(context.Context) error              { return nil }
func (r *running) ResetFailed(context.Context, string) error { return nil }

func (r *running) Restart(ctx context.Context, _ string) (string, error) {
	r.start(ctx)
	return "done", nil
}

func (r *running) TryRestart(ctx context.Context, unit string) (string, error) {
	return r.Restart(ctx, unit)
}

func (p *plans) pendingNow(t *testing.T) string {
	t.Helper()
	if _, err := p.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := p.restartPending(t.Context()); r != nil {
		return r.Why
	}
	return ""
}

func TestARestartIsPendingUntilTheKubeletHasReadItsFiles(t *testing.T) {
	const now = "the running kubelet (pid 4711) has pods ask 10.96.0.10"
	for _, tt := range []struct{ name, unit string }{
		{"env", "[Service]\nEnvironment=ARGS=--cluster-dns=10.96.0.10\nExecStart=/usr/bin/kubelet $ARGS\n"},
		{"dropin", "[Service]\nExecStart=/usr/bin/kubelet --cluster-dns=10.96.0.10\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			argv := []string{"/usr/bin/kubelet", "--cluster-dns=10.96.0.10"}
			p := nodeWith(t, map[string]string{"usr/lib/systemd/system/kubelet.service": tt.unit}, &argv)
			if got := p.pendingNow(t); got != "" {
				t.Errorf("before apply: %q, want nothing: no change of ours is there", got)
			}
			if err := p.Apply(t.Context(), nil, nil); err != nil {
				t.Fatal(err)
			}
			if got := p.pendingNow(t); got != now {
				t.Errorf("after apply: %q, want %q", got, now)
			}
			argv = []string{"/usr/bin/kubelet", "--cluster-dns=169.254.20.10,10.96.0.10"}
			if got := p.pendingNow(t); got != "" {
				t.Errorf("after its restart: %q, want nothing", got)
			}
			if _, err := p.Rollback(t.Context(), nil, nil, nil); err != nil {
				t.Fatal(err)
			}
			want := "the running kubelet (pid 4711) has pods ask 169.254.20.10,10.96.0.10 until its next start"
			if got := p.pendingNow(t); got != want {
				t.Errorf("after rollback: %q, want %q", got, want)
			}
			argv = []string{"/usr/bin/kubelet", "--cluster-dns=10.96.0.10"}
			if got := p.pendingNow(t); got != "" {
				t.Errorf("after rollback and restart: %q, want nothing", got)
			}
		})
	}
}

func TestNoRestartIsPendingWhereNoKubeletRuns(t *testing.T) {
	p := nodeWith(t, map[string]string{
		"usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --cluster-dns=10.96.0.10\n",
	}, new([]string))
	if err := p.Apply(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := p.pendingNow(t); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
}

// apply looks at the pods for seconds, without the lock.
func TestAnApplyThatARollbackOvertakesLeavesTheKubeletAlone(t *testing.T) {
	p := nodeWith(t, map[string]string{
		"usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --cluster-dns=10.96.0.10\n",
	}, new([]string))
	p.canary = func(ctx context.Context, _ bool) error {
		_, err := p.Rollback(ctx, nil, nil, nil)
		return err
	}
	all, err := p.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context(), nil, all); err == nil || err.Error() != "a rollback was asked for meanwhile" {
		t.Errorf("err = %v", err)
	}
	after, err := p.Check(t.Context())
	if st := statusOfStep(after, kubelet.StepName); err != nil || st.Ours {
		t.Errorf("the kubelet's file is ours: %+v, %v", st, err)
	}
	if off, err := p.Off(); !off || err != nil {
		t.Errorf("the off switch: %v, %v; want it set", off, err)
	}
	p.canary = nil
	if err := p.Apply(t.Context(), nil, after); err != nil {
		t.Errorf("the next apply: %v", err)
	}
}

// apply --step of something else clears the off switch of a rollback, and may be
// followed by a boot.
func TestAnApplyOfOtherStepsIsNoYesToTheKubelet(t *testing.T) {
	for _, tt := range []struct {
		name  string
		off   bool // a rollback was asked for before
		steps []string
		want  string // what the next boot says
	}{
		{"another step, after a rollback", true, []string{"unit"}, "the last apply refused to change the kubelet: it was not asked to"},
		{"the kubelet too, after a rollback", true, []string{"unit", "kubelet"}, ""},
		{"all, after a rollback", true, nil, ""},
		{"another step", false, []string{"unit"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := nodeWithUnits(t)
			if tt.off {
				if _, err := p.Rollback(t.Context(), nil, nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			all, err := p.Check(t.Context())
			if err == nil {
				err = p.Apply(t.Context(), tt.steps, all)
			}
			if off, oerr := p.Off(); err != nil || oerr != nil || off {
				t.Fatalf("%v, %v; off %t", err, oerr, off)
			}
			said := ""
			if err := p.durable.Boot(t.Context(), kubeletNoun); err != nil {
				said = err.Error()
			}
			if said != tt.want {
				t.Errorf("the next boot: %q, want %q", said, tt.want)
			}
			after, err := p.Check(t.Context())
			if st := statusOfStep(after, kubelet.StepName); err != nil || st.Ours != (tt.want == "") {
				t.Errorf("the kubelet's file: %+v, %v", st, err)
			}
			if err := p.Apply(t.Context(), nil, after); err != nil || p.durable.Refused() != nil {
				t.Errorf("the next apply of all: %v, %v", err, p.durable.Refused())
			}
		})
	}
}

func TestARollbackThatFailsSaysWhetherPodsAreStillSentToUs(t *testing.T) {
	everything := func([]netip.Addr) bool { return true }
	for _, tt := range []struct {
		name    string
		edit    bool // of our file, by somebody
		refuses func([]netip.Addr) bool
		want    string
	}{
		{"our file was edited", true, nil, "the rest is left in place: pods are still sent to us"},
		{"the kubelet is not back", false, everything, "the rest is left in place until that is mended; new pods are not sent to us"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, r := runningNode(t)
				if err := p.Apply(t.Context(), nil, nil); err != nil || r.String() != "--cluster-dns=169.254.20.10,10.96.0.10" {
					t.Fatalf("%v, %s", err, r)
				}
				if tt.edit {
					name := filepath.Join(p.node.Tree.String(), "etc/systemd/system/kubelet.service.d/99-nodelocaldns.conf")
					text, err := os.ReadFile(name)
					if err == nil {
						err = os.WriteFile(name, append(text, "CPUWeight=50\n"...), 0o644)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				r.refuses = tt.refuses
				_, err := p.Rollback(t.Context(), nil, []engine.Status{{Name: "link/x", Ours: true}}, nil)
				if lines := each(err); len(lines) != 2 || lines[1].Error() != tt.want {
					t.Errorf("%q\nwant one line, and %q", lines, tt.want)
				}
			})
		})
	}
}

// After a boot has written the kubelet's file beside a kubelet that ran, apply does
// nothing but restart it.
func TestARestartAloneIsAChange(t *testing.T) {
	pending := &host.Restart{}
	open := []engine.Status{{Name: kubelet.WindowName, Ours: true}}
	for _, tt := range []struct {
		name    string
		before  []engine.Status
		was, is *host.Restart
		want    *planStep
	}{
		{"it was not pending", nil, nil, nil, nil},
		{"it is pending still", nil, pending, pending, nil},
		{"it was done", nil, pending, nil, &planStep{kubelet.WindowName, stateApplied, "the kubelet has taken its files over", ""}},
		{"one was cut off", open, nil, nil, &planStep{kubelet.WindowName, stateApplied, "brought to its end", ""}},
	} {
		if diff := cmp.Diff(tt.want, restarted(tt.before, tt.was, tt.is)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestResumeBringsARestartToItsEndAndSaysWhatBecameOfIt(t *testing.T) {
	const apart, with = "--cluster-dns=10.96.0.10", "--cluster-dns=169.254.20.10,10.96.0.10"
	everything := func([]netip.Addr) bool { return true }
	cut := func([]netip.Addr) bool { panic("the power goes") }
	const row = "applied  window/kubelet  brought to its end\n"
	for _, tt := range []struct {
		name    string
		back    bool // a rollback is under way
		refuses func([]netip.Addr) bool
		want    string // what the pods ask in the end
		said    string
	}{
		{"nothing was cut off", false, nil, with, "nothing was applied\n"},
		{"an apply was", false, cut, with, row},
		{"a rollback was", true, cut, apart, row},
		{"the kubelet came back neither with us nor without", false, everything, apart,
			"nodelocaldns: warning: the last apply refused to change the kubelet: window/kubelet: undone: kubelet.service did not come back: it is activating (auto-restart); " +
				"window/kubelet: left open: kubelet.service did not come back: it is activating (auto-restart)\n" +
				"nodelocaldns: hint: nodelocaldns apply tries again\n" + row},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, r := runningNode(t)
				if tt.back {
					if err := p.Apply(t.Context(), nil, nil); err != nil {
						t.Fatal(err)
					}
				}
				r.refuses = tt.refuses
				func() {
					defer func() { _ = recover() }()
					if tt.back {
						_, _ = p.Rollback(t.Context(), nil, nil, nil)
					} else {
						_ = p.Apply(t.Context(), nil, nil)
					}
				}()
				r.refuses = nil
				p.durable = r.process()
				var said bytes.Buffer
				a := &app{term: term{stdout: &said, stderr: &said}}
				out := changeJSON{}
				restart, err := a.bringToEnd(t.Context(), p, &out)
				if code := a.exit(a.changed(out, stateApplied, restart, false, err)); code != exitOK || r.String() != tt.want {
					t.Errorf("exit code %d, %s, %v; want %s", code, r, err, tt.want)
				}
				if diff := cmp.Diff(tt.said, said.String()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				all, err := p.Check(t.Context())
				if err != nil || statusOfStep(all, kubelet.WindowName).Ours {
					t.Errorf("the window is open: %+v, %v", all, err)
				}
			})
		})
	}
}

// The resolver starts the unit for the boot, and pods may ask it as soon as its
// sockets are there.
func TestNoBootSendsPodsToUsBeforeTheyWereAskedFrom(t *testing.T) {
	p := nodeWithUnits(t)
	var boot error
	p.canary = func(ctx context.Context, _ bool) error {
		boot = p.durable.Boot(ctx, kubeletNoun)
		return nil
	}
	all, err := p.Check(t.Context())
	if err == nil {
		err = p.Apply(t.Context(), nil, all)
	}
	if err != nil {
		t.Fatal(err)
	}
	const want = "the last apply refused to change the kubelet: it was to ask from the pods first"
	if !errors.Is(boot, host.ErrRefused) || boot.Error() != want {
		t.Errorf("before: %v; want %s", boot, want)
	}
	if err := p.durable.Boot(t.Context(), kubeletNoun); err != nil {
		t.Errorf("after: %v", err)
	}
}

func TestNamesAreSplitByPlanOrRefused(t *testing.T) {
	all := []engine.Status{{Name: "link/x"}, {Name: "kubelet/cluster-dns"}, {Name: "old/y", Leftover: true}}
	for _, tt := range []struct {
		names            string
		runtime, durable string
		err, hint        string
	}{
		{"", "", "", "", ""},
		{"link", "link", "", "", ""},
		{"kubelet", "", "kubelet", "", ""},
		{"kubelet/cluster-dns link/x", "link/x", "kubelet/cluster-dns", "", ""},
		{"link kubele", "", "", "no step kubele in the plan", "the plan has link/x, kubelet/cluster-dns"},
		{"old", "", "", "no step old in the plan", "the plan has link/x, kubelet/cluster-dns"},
	} {
		runtime, durable, err := split(strings.Fields(tt.names), all)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if strings.Join(runtime, " ") != tt.runtime || strings.Join(durable, " ") != tt.durable || text != tt.err || err != nil && hintOf(err) != tt.hint {
			t.Errorf("%q: got %v, %v, %v (%s)", tt.names, runtime, durable, err, hintOf(err))
		}
	}
}

func TestTheStartOfAProcessIsKnown(t *testing.T) {
	before := time.Now().Add(-20 * time.Millisecond) // two of the hundredths that it counts in
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	after := time.Now().Add(20 * time.Millisecond)
	got, err := processStarted(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid)))
	if err != nil || got.Before(before) || got.After(after) {
		t.Errorf("got %v, %v; want between %v and %v", got, err, before, after)
	}
	if _, err := processStarted("/proc/none"); err == nil {
		t.Error("no error for a process that is none")
	}
}

// k3s is started anew, and what it started before lives on beside it.
func TestTheStartOfAUnitIsThatOfItsProgram(t *testing.T) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	own, err := processStarted("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	older := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	older[19] = "1" // a hundredth of a second after boot
	proc := t.TempDir()
	for pid, files := range map[string][3]string{
		"10": {"containerd-shim\n", "0::/system.slice/k3s.service\n", "10 (x) " + strings.Join(older, " ")},
		"11": {"k3s-server\n", "0::/system.slice/k3s.service\n", string(stat)},
		"12": {"k3s-server\n", "0::/system.slice/k3s.service/sub\n", "12 (x) " + strings.Join(older, " ")},
	} {
		for i, name := range []string{"comm", "cgroup", "stat"} {
			name = filepath.Join(proc, pid, name)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(files[i]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, ok := unitStarted(proc, "k3s.service", "k3s"); !ok || got.Sub(own).Abs() > time.Second {
		t.Errorf("got %v, %v; want %v, the start of k3s-server", got, ok, own)
	}
	if got, ok := unitStarted(proc, "k3s-agent.service", "k3s"); ok {
		t.Errorf("got %v for a unit that does not run", got)
	}
}

func TestTheAPIServerIsAskedOnceAMinuteAndNotForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		ask := askSometimes(func(ctx context.Context, _ string) ([]netip.Addr, error) {
			asked++
			<-ctx.Done() // it is down
			return nil, ctx.Err()
		}, time.Second, time.Minute, time.Now)
		begin := time.Now()
		for range 2 {
			if _, err := ask(t.Context(), "kubeconfig"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
			}
		}
		if took := time.Since(begin); asked != 1 || took != time.Second {
			t.Errorf("asked %d times, for %s; want once, for 1s", asked, took)
		}
		time.Sleep(time.Minute)
		if _, err := ask(t.Context(), "kubeconfig"); err == nil || asked != 2 {
			t.Errorf("after a minute: asked %d times, %v; want twice", asked, err)
		}
	})
}

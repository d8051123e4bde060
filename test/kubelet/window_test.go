package kubelet_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodelocaldns/host"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/test/judge"
	"nodelocaldns/units"
)

const (
	kubeletUnit = "kubelet.service"
	ourDropIn   = "/etc/systemd/system/kubelet.service.d/99-nodelocaldns.conf"
	refuseFile  = "/etc/refuse" // of the stand-in
	usualFlags  = "--cluster-dns=10.96.0.10"
	ourFlags    = "--cluster-dns=169.254.20.10,10.96.0.10"
)

// standIn makes the tree of a node with the stand-in as its kubelet, in a unit
// like that of kubeadm but for its patience, and a unit of ours that the kubelet
// wants and waits for.
func standIn(t *testing.T, root string) {
	t.Helper()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(root, "usr/bin/kubelet"), "nodelocaldns/test/kubelet/standin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the stand-in: %v\n%s", err, out)
	}
	dir := filepath.Join(root, "etc/systemd/system")
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, kubeletUnit), []byte("[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n"+
		"[Service]\nExecStart=/usr/bin/kubelet "+usualFlags+"\nRestart=always\nRestartSec=500ms\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, units.Guard), []byte("[Unit]\nDefaultDependencies=no\nBefore="+kubeletUnit+"\n"+
		"[Service]\nType=oneshot\nExecStart=/bin/true\n"), 0o644))
}

// A node is one that this test runs on, in a container.
type node struct {
	t     *testing.T
	units kubelet.Bus
}

func (n node) durable() *host.Durable {
	deps := host.LiveDeps(slog.New(slog.DiscardHandler))
	return host.NewDurable(host.DurableConfig{
		Kubelet: &kubelet.Want{Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10")}},
		Settle:  1500 * time.Millisecond,
	}, deps)
}

func (n node) apply() error    { n.t.Helper(); return n.durable().Apply(n.t.Context()) }
func (n node) rollback() error { n.t.Helper(); return n.durable().Rollback(n.t.Context()) }

func (n node) state() kubelet.UnitState {
	n.t.Helper()
	st, err := n.units.State(n.t.Context(), kubeletUnit)
	must(n.t, err)
	return st
}

// pid is that of the running kubelet, which must have been started with flags.
func (n node) pid(flags string) int {
	n.t.Helper()
	st := n.state()
	p, err := kubelet.Running("/proc")(kubeletUnit)
	must(n.t, err)
	if st.Active != "active" || p == nil || p.PID != st.MainPID || !slices.Equal(p.Argv, []string{"/usr/bin/kubelet", flags}) {
		n.t.Fatalf("the kubelet is %s, and runs as %+v; want it with %s", st, p, flags)
	}
	return st.MainPID
}

// until waits for the unit to be in a state of its own accord.
func (n node) until(what string, is func(kubelet.UnitState) bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !is(n.state()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.t.Fatalf("the kubelet is %s, want it %s", n.state(), what)
		}
	}
}

func (n node) systemctl(args ...string) {
	n.t.Helper()
	if out, err := exec.CommandContext(n.t.Context(), "systemctl", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("systemctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (n node) refuses(text string) {
	n.t.Helper()
	if text == "" {
		must(n.t, os.Remove(refuseFile))
		return
	}
	must(n.t, os.WriteFile(refuseFile, []byte(text), 0o644))
}

func (n node) ours(want bool) {
	n.t.Helper()
	_, err := os.Stat(ourDropIn)
	if _, derr := os.Stat(filepath.Dir(ourDropIn)); want && err != nil || !want && !errors.Is(derr, fs.ErrNotExist) {
		n.t.Fatalf("our file: %v; want it there: %t", err, want)
	}
}

func runs(st kubelet.UnitState) bool { return st.Active == "active" && st.MainPID != 0 }

func loops(st kubelet.UnitState) bool { return st.Sub == "auto-restart" }

// All of the window on a real systemd, which a fake may have wrong: how a unit
// looks between its lives, what a job says, what is counted as a restart.
func TestARealSystemdRestartsTheKubeletInItsWindow(t *testing.T) {
	if !judge.Inside(t, standIn, kubeletUnit) {
		return
	}
	n := node{t: t}
	n.until("running", runs)

	// It runs: it is restarted once, and once more for the way back.
	first := n.pid(usualFlags)
	must(t, n.apply())
	second := n.pid(ourFlags)
	must(t, n.apply())
	if again := n.pid(ourFlags); first == second || second != again {
		t.Errorf("main processes %d, %d, %d: want one restart, by the first apply", first, second, again)
	}
	// Nothing of ours is started with it: that would wait for the lock of who
	// restarts the kubelet, and the kubelet for it.
	began, err := exec.CommandContext(t.Context(), "systemctl", "show", "--value", "--property=InactiveExitTimestampMonotonic", units.Guard).Output()
	if err != nil || strings.TrimSpace(string(began)) != "0" {
		t.Errorf("what the kubelet wants was started %s µs after boot (%v)", began, err)
	}
	must(t, n.rollback())
	n.ours(false)
	n.pid(usualFlags)

	// It refuses our flag.
	n.refuses(ourFlags)
	err = n.apply()
	if err == nil || !strings.Contains(err.Error(), "window/kubelet: undone: kubelet.service did not come back: it is activating (auto-restart), its main process exited with status 1") {
		t.Errorf("apply with a kubelet that refuses: %v", err)
	}
	n.ours(false)
	n.pid(usualFlags)

	// It refuses everything, and then no longer: what was left open is mended.
	n.refuses("kubelet")
	if err := n.apply(); err == nil || !strings.Contains(err.Error(), "left open") {
		t.Errorf("apply with a kubelet that cannot be brought back: %v", err)
	}
	n.ours(false)
	n.refuses("")
	must(t, n.rollback())
	n.pid(usualFlags)

	// It waits to be joined: it is given its file, and nothing else.
	n.refuses("kubelet")
	n.systemctl("restart", kubeletUnit)
	n.until("in a crash loop", loops)
	must(t, n.apply())
	n.ours(true)
	n.until("in a crash loop", loops)
	n.refuses("")
	n.until("running", runs)
	n.pid(ourFlags)

	// Somebody has stopped it.
	n.systemctl("stop", kubeletUnit)
	must(t, n.rollback())
	n.ours(false)
	must(t, n.apply())
	if st := n.state(); st.Active != "inactive" {
		t.Errorf("a kubelet that was stopped is %s", st)
	}
	must(t, n.rollback())
}

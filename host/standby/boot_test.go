package standby

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/systemd"
	"nodelocaldns/test/judge"
	"nodelocaldns/units"
)

const (
	breaks  = "/etc/breaks"                // a resolver that finds this ends with the status that it says
	sham    = "/opt/program"               // this test program, as resolver and as relay
	service = "NODELOCALDNS_STANDBY_SERVE" // set for it
)

// shams makes the tree of a node where this test program is resolver and relay.
func shams(t *testing.T, root string) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{sham: string(self)}
	for name, text := range map[string]string{
		units.Socket: "[Socket]\nListenDatagram=127.0.0.1:53\nReusePort=yes\nService=" + units.Relay + "\n",
		units.Relay:  "StartLimitIntervalSec=0\n[Service]\nRestartSec=1\n",
		units.Resolver: "Wants=" + units.Socket + "\nOnFailure=" + units.Relay + "\nStartLimitIntervalSec=10\nStartLimitBurst=30\n" +
			"[Service]\nRestartSec=0\nRestartPreventExitStatus=1\n",
		// It stands for guard, which is ordered before the resolver, so that
		// systemd does not forget that one.
		"guard.service": "Before=" + units.Resolver + "\n[Service]\nExecStart=/bin/sleep infinity\n",
	} {
		if name == units.Relay || name == units.Resolver {
			text += "Type=notify\nSockets=" + units.Socket + "\nRestart=always\nEnvironment=" + service + "=" + name + " GORACE=atexit_sleep_ms=0\n" +
				"ExecStart=" + sham + " -test.run=^TestARealSystemdAlwaysHasSomebodyWhoAnswers$\n"
		}
		files["/etc/systemd/system/"+name] = "[Unit]\nDefaultDependencies=no\n" + text
	}
	for name, text := range files {
		file, mode := filepath.Join(root, name), fs.FileMode(0o644)
		if name == sham {
			mode = 0o755
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// serve is resolver and relay.
func serve(name string) {
	if text, err := os.ReadFile(breaks); err == nil && name == units.Resolver {
		status, _ := strconv.Atoi(string(text))
		os.Exit(status)
	}
	if os.Getenv("LISTEN_FDS") != "1" {
		os.Exit(5)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		os.Exit(4)
	}
	<-end
}

// All of it on a real systemd, which the simulated one may have wrong: how a
// unit looks between its lives, what counts as a restart and what forgets them,
// and what is told when.
func TestARealSystemdAlwaysHasSomebodyWhoAnswers(t *testing.T) {
	if name := os.Getenv(service); name != "" {
		serve(name)
		return
	}
	if !judge.Inside(t, shams, "guard.service", units.Socket, units.Resolver) {
		return
	}
	n := begin(t)
	n.until("the resolver serves alone", "active running", "inactive dead")
	stop := n.guard()

	// Ten restarts by hand, and a kill, are nothing to it.
	for range 10 {
		n.systemctl("restart", units.Resolver)
	}
	n.systemctl("kill", "--signal=KILL", units.Resolver)
	n.untilRestarts(1)
	n.until("the resolver serves alone", "active running", "inactive dead")
	if _, err := Read(n.dir); err == nil {
		t.Error("an outage, by restarts and a kill")
	}

	// It cannot start any more.
	if err := os.WriteFile(breaks, []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.systemctl("kill", "--signal=KILL", units.Resolver)
	began := time.Now()
	n.until("the relay serves alone", "inactive dead", "active running")
	// It begins anew so soon that how it ended is not always seen.
	if st, err := Read(n.dir); err != nil || st.Why != "exit-code 3" && st.Why != unseen || st.Tries != 0 || st.NextTry == nil {
		t.Errorf("the state is %+v, %v", st, err)
	} else {
		t.Logf("the resolver has failed for good after %v", st.Since.Sub(began))
	}
	if pid := n.property(units.Relay, "MainPID"); pid == "0" {
		t.Error("there is no relay")
	} else {
		// The try fails, and the relay does not notice.
		n.untilTries(1)
		n.until("the relay serves alone", "inactive dead", "active running")
		if now := n.property(units.Relay, "MainPID"); now != pid {
			t.Errorf("the relay was process %s, now %s", pid, now)
		}
	}

	// Mended, and started by hand: the next try would be in twenty seconds.
	if err := os.Remove(breaks); err != nil {
		t.Fatal(err)
	}
	n.systemctl("start", units.Resolver)
	n.until("the resolver serves alone", "active running", "inactive dead")
	if st, err := Read(n.dir); err == nil {
		t.Errorf("the state is still %+v", st)
	}

	// Started again by hand with what ends it at once, and for good.
	if err := os.WriteFile(breaks, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(n.ctx, "systemctl", "restart", units.Resolver).CombinedOutput(); err == nil {
		t.Errorf("it starts: %s", out)
	}
	n.until("the relay serves alone", "failed failed", "active running")
	n.wait("an outage", func(Snapshot) bool {
		st, err := Read(n.dir)
		return err == nil && st.Why == "exit-code 1"
	})
	if err := os.Remove(breaks); err != nil {
		t.Fatal(err)
	}
	n.systemctl("start", units.Resolver)
	n.until("the resolver serves alone", "active running", "inactive dead")

	// Stopped by hand, it stays so.
	n.systemctl("stop", units.Resolver)
	n.until("nobody serves", "inactive dead", "inactive dead")
	if out, err := exec.CommandContext(n.ctx, "bash", "-c", "echo >/dev/udp/127.0.0.1/53").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n.until("the relay serves alone", "inactive dead", "active running")
	n.systemctl("start", units.Resolver)
	n.until("the resolver serves alone", "active running", "inactive dead")
	stop()
}

// systemd closes the sockets when it gives up, and would again under the relay
// when it is made to forget that.
func TestARealSystemdKeepsTheSocketsAfterItHasGivenUp(t *testing.T) {
	if !judge.Inside(t, shams, "guard.service", units.Socket, units.Resolver) {
		return
	}
	n := begin(t)
	n.until("the resolver serves alone", "active running", "inactive dead")
	if err := os.WriteFile(breaks, []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.systemctl("kill", "--signal=KILL", units.Resolver)
	n.until("systemd gives up", "failed failed", "active running")
	if err := os.Remove(breaks); err != nil {
		t.Fatal(err)
	}
	pid := n.property(units.Relay, "MainPID")
	stop := n.guard()
	n.wait("it is tried", func(s Snapshot) bool { return s.Resolver.Up() })
	if got := n.property(units.Relay, "MainPID"); got != pid {
		t.Errorf("the relay was process %s, now %s", pid, got)
	}
	n.until("the resolver serves alone", "active running", "inactive dead")
	if got := n.property(units.Socket, "Result"); got != "success" {
		t.Errorf("the socket: %s", got)
	}
	if _, err := os.Lstat(n.units.Root + "/run/systemd/notify"); err != nil {
		t.Errorf("the resolver was started without a root: %v", err)
	}
	stop()
}

func begin(t *testing.T) *realNode {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	bus := new(systemd.Bus)
	t.Cleanup(func() {
		cancel()
		bus.Close()
	})
	n := &realNode{t: t, ctx: ctx, units: Units{bus, filepath.Join(t.TempDir(), "root")}, dir: fsys.Dir(t.TempDir())}
	n.changed = n.units.Changed(ctx)
	return n
}

// guard runs until the returned function is called.
func (n *realNode) guard() (stop func()) {
	ctx, cancel := context.WithCancel(n.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		Run(ctx, Deps{Systemd: n.units, Dir: n.dir, Wanted: func() (bool, error) { return true, nil }, Log: slog.New(slog.NewTextHandler(os.Stdout, nil)), Now: time.Now})
	}()
	return func() {
		cancel()
		<-done
	}
}

type realNode struct {
	t       *testing.T
	ctx     context.Context
	units   Units
	dir     fsys.Dir
	changed <-chan struct{}
}

func (n *realNode) systemctl(args ...string) {
	n.t.Helper()
	if out, err := exec.CommandContext(n.ctx, "systemctl", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("systemctl %v: %v\n%s", args, err, out)
	}
}

func (n *realNode) property(unit, name string) string {
	n.t.Helper()
	p, err := n.units.Bus.Properties(n.ctx, unit)
	if err != nil {
		n.t.Fatal(err)
	}
	return fmt.Sprint(p[name])
}

// wait waits until the units are so that done is true.
func (n *realNode) wait(what string, done func(Snapshot) bool) {
	n.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond) // nobody tells of files
	defer tick.Stop()
	for {
		s, err := n.units.Look(n.ctx)
		if err != nil {
			n.t.Fatal(err)
		}
		if done(s) {
			n.t.Logf("%s: the resolver is %s, the relay %s", time.Now().Format("15:04:05.000"), s.Resolver, s.Relay)
			return
		}
		select {
		case <-n.changed:
		case <-tick.C:
		case <-n.ctx.Done():
			n.t.Fatalf("waiting until %s: the resolver is %s, the relay %s", what, s.Resolver, s.Relay)
		}
	}
}

func (n *realNode) until(what, resolver, relay string) {
	n.t.Helper()
	n.wait(what, func(s Snapshot) bool {
		return s.Resolver.Active+" "+s.Resolver.Sub == resolver && s.Relay.Active+" "+s.Relay.Sub == relay
	})
}

func (n *realNode) untilRestarts(want uint32) {
	n.t.Helper()
	n.wait(fmt.Sprintf("it is restarted %d times", want), func(s Snapshot) bool { return s.Resolver.Restarts == want })
}

func (n *realNode) untilTries(want int) {
	n.t.Helper()
	n.wait(fmt.Sprintf("it is tried %d times", want), func(Snapshot) bool {
		st, err := Read(n.dir)
		return err == nil && st.Tries == want && st.NextTry != nil
	})
}

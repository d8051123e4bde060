package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/test/judge"
)

const (
	sleeper = "a-sleeper@1.service" // whose path on D-Bus is not its name
	failing = "failing.service"
	slow    = "slow.service"
	other   = "other.service"
)

func node(t *testing.T, root string) {
	t.Helper()
	for name, service := range map[string]string{
		sleeper: "ExecStart=/bin/sleep infinity",
		other:   "ExecStart=/bin/sleep infinity",
		failing: "Type=oneshot\nExecStart=/bin/sh -c 'exit 7'",
		slow:    "Type=notify\nExecStart=/bin/sleep infinity",
	} {
		file := filepath.Join(root, "etc/systemd/system", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("[Unit]\nDefaultDependencies=no\n[Service]\n"+service+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// All that a fake may have wrong: what a real systemd says over its own socket
// and over the bus, and what becomes of a connection when either of them is
// started again.
func TestARealSystemdIsAskedOverTheBusAndWithoutOne(t *testing.T) {
	if os.Geteuid() == 0 { // else there is another reason to skip it
		if _, err := exec.LookPath("dbus-daemon"); err != nil {
			judge.Skip(t, "needs dbus-daemon")
		}
	}
	if !judge.Inside(t, node) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	bus := new(Bus)
	defer bus.Close()
	l := &listener{t: t, ctx: ctx, bus: bus, changed: bus.Watch(ctx, sleeper, slow)}

	others := bus.Watch(ctx, failing)
	<-others // it has begun
	l.told("the watch has begun")
	l.over("its own socket")
	select {
	case <-others:
		t.Error("told of a unit that was not asked for")
	default:
	}
	l.jobs()
	l.run("systemctl", "daemon-reexec")
	l.told("systemd was started again")
	l.over("its own socket")

	// Somebody starts a bus: who has a connection keeps it.
	l.run("systemctl", "start", "--job-mode=ignore-dependencies", "dbus.socket", "dbus.service")
	l.over("its own socket")
	bus.Close()
	l.told("another connection was made")
	l.over("the bus")
	l.jobs()
	l.run("systemctl", "daemon-reexec")
	l.told("systemd was started again")
	l.over("the bus")
	l.run("systemctl", "restart", "--job-mode=ignore-dependencies", "dbus.service")
	l.told("the bus was started again")
	l.over("the bus")

	// A bus that hangs costs one question, and then it goes without.
	pid := strings.TrimSpace(l.run("systemctl", "show", "--value", "--property=MainPID", "dbus.service"))
	l.run("kill", "-STOP", pid)
	if _, err := bus.Properties(ctx, sleeper); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over a bus that hangs: %v", err)
	}
	l.told("the bus has hung")
	l.over("its own socket")
	l.run("kill", "-CONT", pid)
}

type listener struct {
	t       *testing.T
	ctx     context.Context
	bus     *Bus
	changed <-chan struct{}
}

// told waits until we are told of changes: of five in a row, each before
// systemd says that its job is done.
func (l *listener) told(after string) {
	l.t.Helper()
	for n := 0; n < 5; {
		select {
		case <-l.changed:
		default:
		}
		if _, err := l.bus.Job(l.ctx, Restart, sleeper, Fail); l.ctx.Err() != nil {
			l.t.Fatalf("nobody tells us of changes after %s: %v", after, err)
		}
		select {
		case <-l.changed:
			n++
		default:
			n = 0
		}
	}
}

func (l *listener) run(command ...string) string {
	l.t.Helper()
	out, err := exec.CommandContext(l.ctx, command[0], command[1:]...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// over fails if the next question is asked over something else.
func (l *listener) over(want string) {
	l.t.Helper()
	if _, err := l.bus.Properties(l.ctx, sleeper); err != nil {
		l.t.Fatal(err)
	}
	got := "its own socket"
	if l.bus.conn.bus {
		got = "the bus"
	}
	if got != want {
		l.t.Fatalf("asked over %s, want %s", got, want)
	}
}

func (l *listener) state(unit string) string {
	l.t.Helper()
	p, err := l.bus.Properties(l.ctx, unit)
	if err != nil {
		l.t.Fatal(err)
	}
	job, err := l.bus.JobType(l.ctx, p)
	if err != nil {
		l.t.Fatal(err)
	}
	// Asked in the other ways, systemd says the same.
	states, err := l.bus.States(l.ctx, other, unit)
	want := State{Load: Value[string](p, "LoadState"), Active: Value[string](p, "ActiveState"), Sub: Value[string](p, "SubState"), Job: job}
	if err != nil || len(states) != 2 || states[1] != want {
		l.t.Errorf("%s is %+v, %v; want %+v", unit, states, err, want)
	}
	some, err := l.bus.Some(l.ctx, unit, "Service", "Result", "ExecMainStatus")
	if diff := cmp.Diff(Properties{"Result": p["Result"], "ExecMainStatus": p["ExecMainStatus"]}, some); err != nil || diff != "" {
		l.t.Errorf("%s: %v, -want +got:\n%s", unit, err, diff)
	}
	return fmt.Sprintf("%s %s %s %s %d %q", want.Load, want.Active, want.Sub, Value[string](p, "Result"), Value[int32](p, "ExecMainStatus"), job)
}

// jobs does to units whatever can be done to them. What has ended and nobody
// refers to, systemd has forgotten when it is asked.
func (l *listener) jobs() {
	l.t.Helper()
	const gone = `loaded inactive dead success 0 ""`
	job := func(v Verb, unit, want, state string) {
		l.t.Helper()
		got, err := l.bus.Job(l.ctx, v, unit, Fail)
		if err != nil {
			got = err.Error()
		}
		if now := l.state(unit); !strings.Contains(got, want) || now != state {
			l.t.Errorf("%s %s: %s and then %s; want %s and %s", v, unit, got, now, want, state)
		}
	}
	job(Start, other, Done, `loaded active running success 0 ""`)
	job(Stop, other, Done, gone)
	job(TryRestart, other, Done, gone)
	job(Restart, other, Done, `loaded active running success 0 ""`)
	job(TryRestart, other, Done, `loaded active running success 0 ""`)
	job(Stop, other, Done, gone)
	job(Start, failing, "failed", `loaded failed failed exit-code 7 ""`)
	if err := l.bus.ResetFailed(l.ctx, failing); err != nil || l.state(failing) != gone {
		l.t.Errorf("reset: %v, %s", err, l.state(failing))
	}
	job(Start, "nobody.service", "nobody.service not found", `not-found inactive dead success 0 ""`)

	// One that nobody waits for, one that is waited for in vain, and one that
	// would cancel it.
	if err := l.bus.Queue(l.ctx, Start, slow, IgnoreRequirements); err != nil {
		l.t.Error(err)
	}
	for begun := false; !begun; { // systemd has queued it, and may not have begun
		states, err := l.bus.States(l.ctx, slow)
		if err != nil {
			l.t.Fatal(err)
		}
		begun = states[0].Active == "activating"
	}
	if got, want := l.state(slow), `loaded activating start success 0 "start"`; got != want {
		l.t.Errorf("queued: %s, want %s", got, want)
	}
	for patience := 50 * time.Millisecond; ; patience *= 2 { // on a busy machine it may not suffice to begin to wait
		short, cancel := context.WithTimeout(l.ctx, patience)
		_, err := l.bus.Job(short, Start, slow, Fail)
		cancel()
		if err != nil && strings.Contains(err.Error(), "waiting for the job of slow.service: context deadline exceeded") {
			break
		}
		if !errors.Is(err, context.DeadlineExceeded) || patience > 10*time.Second {
			l.t.Errorf("waiting in vain: %v", err)
			break
		}
	}
	job(Stop, slow, "destructive", `loaded activating start success 0 "start"`)
	got, err := l.bus.Job(l.ctx, Stop, slow, IgnoreRequirements)
	if err != nil || got != Done {
		l.t.Errorf("in its place: %s, %v", got, err)
	}
}

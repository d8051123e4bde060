package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/host/systemd"
)

// Bus is the Verifier and the Units of the running node: it asks its systemd
// over D-Bus. A connection is made for each question, so that a restart of the
// bus between two costs nothing. It needs root for all but State.
type Bus struct{}

// Reload is Verifier. It takes seconds where a node has thousands of units
// (kubernetes/kubernetes#120103): ctx should allow for that.
func (Bus) Reload(ctx context.Context) error {
	var bus systemd.Bus
	defer bus.Close()
	return bus.Reload(ctx)
}

// Accepts is Verifier.
func (Bus) Accepts(ctx context.Context, unit, file string, argv []string) error {
	var bus systemd.Bus
	defer bus.Close()
	p, err := bus.Properties(ctx, unit)
	if err != nil {
		return err
	}
	return accepts(p, file, argv)
}

// accepts judges the properties of a unit.
func accepts(p systemd.Properties, file string, argv []string) error {
	if state := systemd.Value[string](p, "LoadState"); state != "loaded" {
		return fmt.Errorf("its load state is %s", state)
	}
	if systemd.Value[bool](p, "NeedDaemonReload") {
		return errors.New("it is to be reloaded again: its files change while we look")
	}
	files, fragment := systemd.Value[[]string](p, "DropInPaths"), systemd.Value[string](p, "FragmentPath")
	if fragment != file && !slices.Contains(files, file) {
		return fmt.Errorf("it does not read the file, only %s", strings.Join(append([]string{fragment}, files...), ", "))
	}
	got, err := execStart(p["ExecStart"])
	if err != nil {
		return err
	}
	if !slices.Equal(got, argv) {
		return fmt.Errorf("it would start %q, and not %q", got, argv)
	}
	return nil
}

// execStart is the one argument vector in the property ExecStart, of the D-Bus
// type a(sasbttttuii).
func execStart(property any) ([]string, error) {
	commands, ok := property.([][]any)
	if !ok || len(commands) != 1 || len(commands[0]) < 2 {
		return nil, fmt.Errorf("it has not one command in ExecStart: %v", property)
	}
	argv, ok := commands[0][1].([]string)
	if !ok {
		return nil, fmt.Errorf("it has an ExecStart of another kind: %v", property)
	}
	return argv, nil
}

// State is Units.
func (Bus) State(ctx context.Context, unit string) (UnitState, error) {
	var bus systemd.Bus
	defer bus.Close()
	p, err := bus.Properties(ctx, unit)
	if err != nil {
		return UnitState{}, err
	}
	st := unitState(p)
	if st.MainPID != 0 {
		// A clock that was set since the start must not make a process younger
		// or older than a file, so the wall clock of the start is not used.
		age, err := sinceMonotonic(p["ExecMainStartTimestampMonotonic"])
		if err != nil {
			return UnitState{}, err
		}
		st.Started = time.Now().Add(-age)
	}
	st.Job, err = bus.JobType(ctx, p)
	return st, err
}

// Started is Node.Started.
func (b Bus) Started(ctx context.Context, unit string) (time.Time, error) {
	st, err := b.State(ctx, unit)
	return st.Started, err
}

// unitState reads the properties of a unit. One that this systemd does not
// have is the zero value.
func unitState(p systemd.Properties) UnitState {
	return UnitState{
		Load:       systemd.Value[string](p, "LoadState"),
		Active:     systemd.Value[string](p, "ActiveState"),
		Sub:        systemd.Value[string](p, "SubState"),
		NeedReload: systemd.Value[bool](p, "NeedDaemonReload"),
		Result:     systemd.Value[string](p, "Result"),
		MainPID:    int(systemd.Value[uint32](p, "MainPID")),
		ExitCode:   int(systemd.Value[int32](p, "ExecMainCode")),
		ExitStatus: int(systemd.Value[int32](p, "ExecMainStatus")),
		Restarts:   int(systemd.Value[uint32](p, "NRestarts")),
	}
}

// sinceMonotonic is how long ago a timestamp of systemd was, which counts
// microseconds of CLOCK_MONOTONIC.
func sinceMonotonic(property any) (time.Duration, error) {
	at, ok := property.(uint64)
	if !ok {
		return 0, fmt.Errorf("systemd does not tell when a process was started: %v", property)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, err
	}
	return time.Duration(now.Nano()) - time.Duration(at)*time.Microsecond, nil
}

// ResetFailed is Units.
func (Bus) ResetFailed(ctx context.Context, unit string) error {
	var bus systemd.Bus
	defer bus.Close()
	return bus.ResetFailed(ctx, unit)
}

// TryRestart is Units.
func (Bus) TryRestart(ctx context.Context, unit string) (string, error) {
	return job(ctx, systemd.TryRestart, unit)
}

// Restart is Units.
func (Bus) Restart(ctx context.Context, unit string) (string, error) {
	return job(ctx, systemd.Restart, unit)
}

// job queues a job and waits for its result. What the kubelet wants is not started
// with it: of ours, the unit that writes the kubelet's file would be, which waits for
// the lock of who restarts the kubelet, and the kubelet for it. A stop of a node that
// goes down is not cancelled for it, systemd sees to that.
func job(ctx context.Context, v systemd.Verb, unit string) (string, error) {
	var bus systemd.Bus
	defer bus.Close()
	return bus.Job(ctx, v, unit, systemd.IgnoreRequirements)
}

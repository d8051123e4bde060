package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

// Bus is the Verifier and the Units of the running node: it asks its systemd
// over D-Bus. A connection is made for each question, so that a restart of the
// bus between two costs nothing. It needs root for all but State.
type Bus struct{}

func (Bus) connect(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return conn, nil
}

// Reload is Verifier. It takes seconds where a node has thousands of units
// (kubernetes/kubernetes#120103): ctx should allow for that.
func (b Bus) Reload(ctx context.Context) error {
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.ReloadContext(ctx)
}

// Accepts is Verifier.
func (b Bus) Accepts(ctx context.Context, unit, file string, argv []string) error {
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	general, err := conn.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return fmt.Errorf("asking systemd for %s: %w", unit, err)
	}
	service, err := conn.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return fmt.Errorf("asking systemd for %s: %w", unit, err)
	}
	return accepts(general, service, file, argv)
}

// accepts judges the properties of a unit.
func accepts(general, service map[string]any, file string, argv []string) error {
	if state, _ := general["LoadState"].(string); state != "loaded" {
		return fmt.Errorf("its load state is %s", state)
	}
	if need, _ := general["NeedDaemonReload"].(bool); need {
		return errors.New("it is to be reloaded again: its files change while we look")
	}
	files, _ := general["DropInPaths"].([]string)
	fragment, _ := general["FragmentPath"].(string)
	if fragment != file && !slices.Contains(files, file) {
		return fmt.Errorf("it does not read the file, only %s", strings.Join(append([]string{fragment}, files...), ", "))
	}
	got, err := execStart(service["ExecStart"])
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
func (b Bus) State(ctx context.Context, unit string) (UnitState, error) {
	conn, err := b.connect(ctx)
	if err != nil {
		return UnitState{}, err
	}
	defer conn.Close()
	general, err := conn.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return UnitState{}, fmt.Errorf("asking systemd for %s: %w", unit, err)
	}
	service, err := conn.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return UnitState{}, fmt.Errorf("asking systemd for %s: %w", unit, err)
	}
	st := unitState(general, service)
	if st.MainPID != 0 {
		// A clock that was set since the start must not make a process younger
		// or older than a file, so the wall clock of the start is not used.
		age, err := sinceMonotonic(service["ExecMainStartTimestampMonotonic"])
		if err != nil {
			return UnitState{}, err
		}
		st.Started = time.Now().Add(-age)
	}
	jobs, err := conn.ListUnitsByNamesContext(ctx, []string{unit})
	if err != nil {
		return UnitState{}, fmt.Errorf("asking systemd for the jobs of %s: %w", unit, err)
	}
	if len(jobs) == 1 {
		st.Job = jobs[0].JobType
	}
	return st, nil
}

// Started is Node.Started.
func (b Bus) Started(ctx context.Context, unit string) (time.Time, error) {
	st, err := b.State(ctx, unit)
	return st.Started, err
}

// unitState reads the properties of a unit. One that this systemd does not
// have is the zero value.
func unitState(general, service map[string]any) UnitState {
	var st UnitState
	st.Load, _ = general["LoadState"].(string)
	st.Active, _ = general["ActiveState"].(string)
	st.Sub, _ = general["SubState"].(string)
	st.NeedReload, _ = general["NeedDaemonReload"].(bool)
	st.Result, _ = service["Result"].(string)
	pid, _ := service["MainPID"].(uint32)
	st.MainPID = int(pid)
	code, _ := service["ExecMainCode"].(int32)
	st.ExitCode = int(code)
	status, _ := service["ExecMainStatus"].(int32)
	st.ExitStatus = int(status)
	restarts, _ := service["NRestarts"].(uint32)
	st.Restarts = int(restarts)
	return st
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
func (b Bus) ResetFailed(ctx context.Context, unit string) error {
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.ResetFailedUnitContext(ctx, unit)
}

// TryRestart is Units.
func (b Bus) TryRestart(ctx context.Context, unit string) (string, error) {
	return b.job(ctx, unit, (*dbus.Conn).TryRestartUnitContext)
}

// Restart is Units.
func (b Bus) Restart(ctx context.Context, unit string) (string, error) {
	return b.job(ctx, unit, (*dbus.Conn).RestartUnitContext)
}

// job queues a job and waits for its result.
func (b Bus) job(ctx context.Context, unit string,
	queue func(c *dbus.Conn, ctx context.Context, unit, mode string, result chan<- string) (int, error),
) (string, error) {
	conn, err := b.connect(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// Buffered: the connection delivers the result while it holds the lock of
	// all its jobs, also when nobody waits any more.
	result := make(chan string, 1)
	// "fail" and not "replace": a stop that is queued, as when the node goes
	// down, is not to be cancelled.
	if _, err := queue(conn, ctx, unit, "fail", result); err != nil {
		return "", err
	}
	select {
	case r := <-result:
		return r, nil
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the job of %s: %w", unit, ctx.Err())
	}
}

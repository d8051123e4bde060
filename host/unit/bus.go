package unit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// Bus is the Systemd of the running node, asked over D-Bus. A connection is
// made for each question. Status needs no right where there is a system bus;
// all else needs root.
type Bus struct{}

// mode is how jobs are queued: what the unit wants is not started with it. The
// unit that runs before the kubelet would wait for the lock of who starts
// ours, and the kubelet, should it be restarted meanwhile, for that unit.
const mode = "ignore-requirements"

func connect(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.NewWithContext(ctx)
	if err == nil {
		return conn, nil
	}
	if os.Geteuid() != 0 { // who is root needs no bus
		err = fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	return nil, fmt.Errorf("connecting to systemd: %w", err)
}

// Reload is Systemd. It takes seconds where a node has thousands of units
// (kubernetes/kubernetes#120103): ctx should allow for that.
func (Bus) Reload(ctx context.Context) error {
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.ReloadContext(ctx)
}

// Status is Systemd.
func (Bus) Status(ctx context.Context, name string) (Status, error) {
	conn, err := connect(ctx)
	if err != nil {
		return Status{}, err
	}
	defer conn.Close()
	return status(ctx, conn, name)
}

func status(ctx context.Context, conn *dbus.Conn, name string) (Status, error) {
	general, err := conn.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return Status{}, fmt.Errorf("asking systemd for %s: %w", name, err)
	}
	var st Status
	st.Load, _ = general["LoadState"].(string)
	st.Active, _ = general["ActiveState"].(string)
	st.Stale, _ = general["NeedDaemonReload"].(bool)
	if st.Active == "failed" {
		kind := strings.TrimPrefix(path.Ext(name), ".")
		p, err := conn.GetUnitTypePropertyContext(ctx, name, strings.ToUpper(kind[:1])+kind[1:], "Result")
		if err == nil {
			st.Result, _ = p.Value.Value().(string)
		}
	}
	return st, nil
}

// Start is Systemd.
func (Bus) Start(ctx context.Context, name string) error {
	return job(ctx, name, (*dbus.Conn).StartUnitContext)
}

// Restart is Systemd.
func (Bus) Restart(ctx context.Context, name string) error {
	return job(ctx, name, (*dbus.Conn).RestartUnitContext)
}

// Stop is Systemd.
func (Bus) Stop(ctx context.Context, name string) error {
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	st, err := status(ctx, conn, name)
	conn.Close()
	if err != nil || st.Active == "inactive" || st.Active == "failed" {
		return err
	}
	return job(ctx, name, (*dbus.Conn).StopUnitContext)
}

// job queues a job and waits for its end.
func job(ctx context.Context, name string, queue func(*dbus.Conn, context.Context, string, string, chan<- string) (int, error)) error {
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// With room for the result: the connection stands still while nobody
	// takes it.
	done := make(chan string, 1)
	if _, err := queue(conn, ctx, name, mode, done); err != nil {
		return err
	}
	var result string
	select {
	case result = <-done:
	case <-ctx.Done():
		return fmt.Errorf("waiting for systemd: %w", ctx.Err())
	}
	if result == "done" {
		return nil
	}
	st, err := status(ctx, conn, name)
	if err != nil {
		return errors.Join(fmt.Errorf("systemd's job ended as %s", result), err)
	}
	return fmt.Errorf("systemd's job ended as %s, it is %s", result, st)
}

// ResetFailed is Systemd.
func (Bus) ResetFailed(ctx context.Context, name string) error {
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	// systemd keeps nothing of a unit that does not run, has not failed, and that
	// none of its other units names: it need not be gone.
	err = conn.ResetFailedUnitContext(ctx, name)
	var e godbus.Error
	if errors.As(err, &e) && e.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	return err
}

// Self is the unit that a process runs in, by the text of its /proc/PID/cgroup;
// empty for none.
func Self(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		// id:controllers:path, systemd's own being the one of cgroup v2 or
		// that named systemd (cgroups(7)).
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && (f[1] == "" || f[1] == "name=systemd") && strings.HasSuffix(f[2], ".service") {
			return path.Base(f[2])
		}
	}
	return ""
}

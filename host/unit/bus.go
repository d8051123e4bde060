package unit

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/godbus/dbus/v5"

	"nodelocaldns/host/systemd"
)

// Bus is the Systemd of the running node, asked over D-Bus. A connection is
// made for each question, so that a restart of the bus between two costs nothing.
// Status needs no right where there is a system bus; all else needs root.
type Bus struct{}

// Reload is Systemd. It takes seconds where a node has thousands of units
// (kubernetes/kubernetes#120103): ctx should allow for that.
func (Bus) Reload(ctx context.Context) error {
	var bus systemd.Bus
	defer bus.Close()
	return bus.Reload(ctx)
}

// Status is Systemd.
func (Bus) Status(ctx context.Context, name string) (Status, error) {
	var bus systemd.Bus
	defer bus.Close()
	return status(ctx, &bus, name)
}

func status(ctx context.Context, bus *systemd.Bus, name string) (Status, error) {
	p, err := bus.Properties(ctx, name)
	if err != nil {
		return Status{}, err
	}
	st := Status{
		Load:   systemd.Value[string](p, "LoadState"),
		Active: systemd.Value[string](p, "ActiveState"),
		Stale:  systemd.Value[bool](p, "NeedDaemonReload"),
	}
	if st.Active == "failed" {
		st.Result = systemd.Value[string](p, "Result")
	}
	return st, nil
}

// Start is Systemd.
func (Bus) Start(ctx context.Context, name string) error { return job(ctx, systemd.Start, name) }

// Restart is Systemd.
func (Bus) Restart(ctx context.Context, name string) error { return job(ctx, systemd.Restart, name) }

// Stop is Systemd.
func (b Bus) Stop(ctx context.Context, name string) error {
	st, err := b.Status(ctx, name)
	if err != nil || st.Active == "inactive" || st.Active == "failed" {
		return err
	}
	return job(ctx, systemd.Stop, name)
}

// job queues a job and waits for its end. What the unit wants is not started with
// it: the unit that runs before the kubelet would wait for the lock of who starts
// ours, and the kubelet, should it be restarted meanwhile, for that unit.
func job(ctx context.Context, v systemd.Verb, name string) error {
	var bus systemd.Bus
	defer bus.Close()
	result, err := bus.Job(ctx, v, name, systemd.IgnoreRequirements)
	if err != nil || result == systemd.Done {
		return err
	}
	st, err := status(ctx, &bus, name)
	if err != nil {
		return errors.Join(fmt.Errorf("systemd's job ended as %s", result), err)
	}
	return fmt.Errorf("systemd's job ended as %s, it is %s", result, st)
}

// ResetFailed is Systemd.
func (Bus) ResetFailed(ctx context.Context, name string) error {
	var bus systemd.Bus
	defer bus.Close()
	// systemd keeps nothing of a unit that does not run, has not failed, and that
	// none of its other units names: it need not be gone.
	err := bus.ResetFailed(ctx, name)
	if e := new(dbus.Error); errors.As(err, e) && e.Name == "org.freedesktop.systemd1.NoSuchUnit" {
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

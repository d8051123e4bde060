package standby

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/host/systemd"
	"nodelocaldns/units"
)

// Units are our units on the running node: a Systemd.
type Units struct{ Bus *systemd.Bus }

// Look is Systemd.
func (u Units) Look(ctx context.Context) (Snapshot, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{At: time.Duration(now.Nano())}
	for name, to := range map[string]*Unit{units.Resolver: &s.Resolver.Unit, units.Relay: &s.Relay, units.Socket: &s.Socket} {
		p, err := u.Bus.Properties(ctx, name)
		if err != nil {
			return Snapshot{}, err
		}
		*to = Unit{
			Load:   systemd.Value[string](p, "LoadState"),
			Active: systemd.Value[string](p, "ActiveState"),
			Sub:    systemd.Value[string](p, "SubState"),
			Job:    p.HasJob(),
		}
		if name != units.Resolver {
			continue
		}
		s.Resolver.Restarts = systemd.Value[uint32](p, "NRestarts")
		s.Resolver.Ready = time.Duration(systemd.Value[uint64](p, "ActiveEnterTimestampMonotonic")) * time.Microsecond
		s.Resolver.Result = systemd.Value[string](p, "Result")
		s.Resolver.Status = systemd.Value[int32](p, "ExecMainStatus")
	}
	return s, nil
}

// Do is Systemd. Jobs start nothing that the unit wants: the unit that runs
// before the kubelet would wait for the lock of who changes the node, and a
// kubelet that is being restarted for that unit. They take the place of others
// that are queued for the unit: the start of a resolver is one for as long as it
// does not get ready.
func (u Units) Do(ctx context.Context, a Action) error {
	queue := func(v systemd.Verb, name string) error {
		if v == systemd.Start {
			// It may have been started too often. If it is not loaded, nothing
			// is known of that.
			_ = u.Bus.ResetFailed(ctx, name)
		}
		return u.Bus.Queue(ctx, v, name, systemd.IgnoreRequirements)
	}
	switch a {
	case StartSocket:
		return queue(systemd.Start, units.Socket)
	case StartRelay:
		return queue(systemd.Start, units.Relay)
	case StopRelay:
		return queue(systemd.Stop, units.Relay)
	case StartResolver:
		return queue(systemd.Start, units.Resolver)
	case StopResolver:
		return queue(systemd.Stop, units.Resolver)
	}
	return fmt.Errorf("no such action: %s", a)
}

// Changed is Systemd.
func (u Units) Changed(ctx context.Context) <-chan struct{} {
	return u.Bus.Watch(ctx, units.Resolver, units.Relay, units.Socket)
}

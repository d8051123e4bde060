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

// Look is Systemd. It asks six times, and what changes meanwhile is told by
// Changed: so the next look sees it whole.
func (u Units) Look(ctx context.Context) (Snapshot, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{At: time.Duration(now.Nano())}
	states, err := u.Bus.States(ctx, units.Resolver, units.Relay, units.Socket)
	if err != nil {
		return Snapshot{}, err
	}
	for i, to := range []*Unit{&s.Resolver.Unit, &s.Relay, &s.Socket} {
		*to = Unit{Load: states[i].Load, Active: states[i].Active, Sub: states[i].Sub, Job: states[i].Job != ""}
	}
	general, err := u.Bus.Some(ctx, units.Resolver, "Unit", "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
	if err != nil {
		return Snapshot{}, err
	}
	service, err := u.Bus.Some(ctx, units.Resolver, "Service", "NRestarts", "Result", "ExecMainStatus")
	if err != nil {
		return Snapshot{}, err
	}
	s.Resolver.Begun = time.Duration(systemd.Value[uint64](general, "InactiveExitTimestampMonotonic")) * time.Microsecond
	s.Resolver.Ready = time.Duration(systemd.Value[uint64](general, "ActiveEnterTimestampMonotonic")) * time.Microsecond
	s.Resolver.Restarts = systemd.Value[uint32](service, "NRestarts")
	s.Resolver.Result = systemd.Value[string](service, "Result")
	s.Resolver.Status = systemd.Value[int32](service, "ExecMainStatus")
	return s, nil
}

// Do is Systemd. Jobs start nothing that the unit wants: the unit that runs
// before the kubelet would wait for the lock of who changes the node, and a
// kubelet that is being restarted for that unit. They take the place of others
// that are queued for the unit: the start of a resolver is one for as long as it
// does not get ready.
func (u Units) Do(ctx context.Context, a Action) error {
	queue := func(v systemd.Verb, name string) error {
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

package standby

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/host/systemd"
	"nodelocaldns/units"
)

// Units are our units on the running node: a Systemd.
type Units struct {
	Bus *systemd.Bus

	// Root is where the resolver has its root, as a rule units.Root. It is made
	// before the resolver is started; "" leaves that to systemd, which does it for
	// new sockets alone.
	Root string
}

// Look is Systemd.
func (u Units) Look(ctx context.Context) (Snapshot, error) { return look(ctx, u.Bus) }

// An asker is a systemd.Bus.
type asker interface {
	States(ctx context.Context, units ...string) ([]systemd.State, error)
	Some(ctx context.Context, unit, kind string, names ...string) (systemd.Properties, error)
}

// tries bounds how often a look is taken that the resolver has changed under.
// It takes a millisecond, and systemd some more for each change of a unit.
const tries = 10

// look asks for one thing after the other, and again if the resolver's unit has
// changed its state meanwhile: a restart by hand takes less than ten milliseconds,
// and who takes the moment when the next process began for that of the one that
// was asked to end takes its failure for the end that somebody wanted.
func look(ctx context.Context, b asker) (Snapshot, error) {
	const changed = "StateChangeTimestampMonotonic"
	before, err := b.Some(ctx, units.Resolver, "Unit", changed)
	for n := 0; err == nil && n < tries; n++ {
		var s Snapshot
		if s, err = lookOnce(ctx, b); err != nil {
			break
		}
		var after systemd.Properties
		if after, err = b.Some(ctx, units.Resolver, "Unit", changed); err == nil && after[changed] == before[changed] {
			return s, nil
		}
		before = after
	}
	if err == nil {
		err = fmt.Errorf("%s does not keep a state for long enough to look at it", units.Resolver)
	}
	return Snapshot{}, err
}

func lookOnce(ctx context.Context, b asker) (Snapshot, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{At: time.Duration(now.Nano())}
	states, err := b.States(ctx, units.Resolver, units.Relay, units.Socket)
	if err != nil {
		return Snapshot{}, err
	}
	for i, to := range []*Unit{&s.Resolver.Unit, &s.Relay, &s.Socket} {
		*to = Unit{Load: states[i].Load, Active: states[i].Active, Sub: states[i].Sub, Job: states[i].Job != ""}
	}
	general, err := b.Some(ctx, units.Resolver, "Unit", "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
	if err != nil {
		return Snapshot{}, err
	}
	service, err := b.Some(ctx, units.Resolver, "Service", "NRestarts", "Result", "ExecMainStatus")
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
		return errors.Join(makeRoot(ctx, u.Root), queue(systemd.Start, units.Resolver))
	case StopResolver:
		return queue(systemd.Stop, units.Resolver)
	}
	return fmt.Errorf("no such action: %s", a)
}

// makeRoot makes what is missing of the resolver's root. Who has removed it, or some
// of it, has the resolver fail with 226/NAMESPACE for as long as there are sockets.
func makeRoot(ctx context.Context, root string) error {
	if root == "" {
		return nil
	}
	if err := os.Mkdir(root, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the resolver's root: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, rootTimeout)
	defer cancel()
	for _, args := range units.RootCommands() {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("making the resolver's root: %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// rootTimeout is for four programs that make a link or two.
const rootTimeout = 5 * time.Second

// Changed is Systemd.
func (u Units) Changed(ctx context.Context) <-chan struct{} {
	return u.Bus.Watch(ctx, units.Resolver, units.Relay, units.Socket)
}

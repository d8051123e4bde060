package standby

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"nodelocaldns/host/fsys"
)

const (
	// pause is between two looks. The first change is acted on at once; a unit
	// that fails changes several times, and is started again many times a second. At
	// the thirtieth systemd closes the sockets (StartLimitBurst=).
	pause = 10 * time.Millisecond

	// mendEvery is how soon it is tried again to ask systemd, where that does
	// not answer.
	mendEvery = time.Second
)

// Systemd is what is needed of it. The calls end of themselves, after some
// seconds where systemd does not answer.
type Systemd interface {
	// Look is how the units are.
	Look(ctx context.Context) (Snapshot, error)

	// Do asks for an action. What comes of it, snapshots tell.
	Do(ctx context.Context, a Action) error

	// Changed tells that a unit may have changed, until ctx ends.
	Changed(ctx context.Context) <-chan struct{}
}

// Deps is everything outside this package that Run touches.
type Deps struct {
	Systemd Systemd
	Dir     fsys.Dir // the run directory, for the state

	// Wanted says whether anything is to be done, as it is not when a rollback
	// has taken back what there was.
	Wanted func() (bool, error)

	Log *slog.Logger
	Now func() time.Time
}

// Run keeps an answer to pods' queries until ctx ends: from the resolver, and
// where that cannot be, from the relay. It goes on where another Run was cut off,
// and leaves all as it is when it ends.
func Run(ctx context.Context, d Deps) {
	r := &runner{Deps: d}
	if st, err := Read(d.Dir); err == nil {
		r.state = &st
	} else if !errors.Is(err, fs.ErrNotExist) {
		d.Log.Warn("not known whether the resolver had failed", "error", err)
	}
	changed := d.Systemd.Changed(ctx)
	for ctx.Err() == nil {
		again := r.turn(ctx)
		wait(ctx, nil, pause)
		wait(ctx, changed, again-pause)
	}
}

// wait waits for that long, and not after a change or the end of ctx.
func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-t.C:
	}
}

type runner struct {
	Deps
	m     *Machine // nil: it has seen nothing yet
	state *State   // as in the file; nil for none
	said  string   // what is in the way, as it was logged

	absent time.Duration // when the units were first seen not to be there, 0 for not
}

// turn looks once and does what is to be done. It returns how long nothing more
// is, if nothing changes.
func (r *runner) turn(ctx context.Context) time.Duration {
	wanted, err := r.Wanted()
	if err != nil {
		r.say("not known whether the resolver is wanted", "error", err)
		return lookEvery
	}
	if !wanted {
		r.say("")
		r.m = &Machine{}
		r.keep(nil, "a rollback has taken it back")
		return lookEvery
	}
	s, err := r.Systemd.Look(ctx)
	if ctx.Err() != nil {
		return 0
	} else if err != nil {
		r.say("the resolver's unit is not seen", "error", err)
		return mendEvery
	}
	now := r.Now()
	switch {
	case r.m != nil:
	case r.state != nil:
		r.m = Resume(r.state.outage(now, s.At), s.At)
	default:
		r.m = &Machine{}
	}
	d := r.m.Next(s)
	switch {
	case d.Absent == "":
		r.absent = 0
		r.say("")
	case r.absent == 0: // it may be on its way, as guard is when all of it is started
		r.absent = max(s.At, 1)
	case s.At-r.absent >= lookEvery/2:
		r.say("nothing stands by for the resolver", "why", d.Absent)
	}
	switch o, ok := r.m.Outage(); {
	case ok:
		st := o.state(now, s.At)
		r.keep(&st, "")
	case d.Absent != "":
		r.keep(nil, d.Absent)
	case s.Resolver.Up():
		r.keep(nil, "it is back")
	default:
		r.keep(nil, "it was stopped")
	}
	for _, a := range d.Actions {
		r.Log.Debug("asking systemd to "+string(a), "resolver", s.Resolver.String(), "relay", s.Relay.String())
		if err := r.Systemd.Do(ctx, a); err != nil && ctx.Err() == nil {
			r.Log.Warn("cannot "+string(a), "error", err)
		}
	}
	if len(d.Actions) > 0 {
		return min(d.Again, mendEvery) // systemd may have done it before we listened
	}
	return d.Again
}

// keep brings the file and the log to the state; nil, and why, when there is no
// outage any more.
func (r *runner) keep(now *State, why string) {
	was := r.state
	if now == nil {
		if was == nil {
			return
		}
		if err := Remove(r.Dir); err != nil {
			r.Log.Warn("removing the state of an outage", "error", err)
			return // again
		}
		r.state = nil
		r.Log.Info("nobody stands in for the resolver any more", "why", why, "tries", was.Tries)
		return
	}
	r.state = now
	switch {
	case was == nil:
		r.Log.Warn("the resolver has failed: the relay takes its place", "why", now.Why, "hint", Hint)
	case was.Tries != now.Tries:
		r.Log.Info("trying the resolver again", "try", now.Tries)
	case was.NextTry == nil && now.NextTry != nil:
		r.Log.Warn("the resolver has failed again", "why", now.Why, "next", now.NextTry.Sub(r.Now()).Round(time.Second).String())
	case was.NextTry != nil && now.NextTry == nil:
		r.Log.Info("somebody tries the resolver again")
	default:
		return
	}
	if err := write(r.Dir, *now); err != nil {
		r.Log.Warn("writing the state of an outage", "error", err)
	}
}

// say logs what is in the way, once.
func (r *runner) say(what string, args ...any) {
	if what == r.said {
		return
	}
	if r.said = what; what != "" {
		r.Log.Warn(what, args...)
	}
}

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/step"
)

// A keeper is what the runtime and the durable plan have in common: a journal,
// the lock, the off switch, and how a plan is run with them.
type keeper struct {
	journal  *journal.Journal
	state    journal.Files // where the off switch is
	lockAt   string
	lockWait time.Duration
	log      *slog.Logger
	now      func() time.Time

	// planOf is the plan of the configuration. The records tell the steps what
	// they may have left under an earlier one.
	planOf func(recs []engine.Record) ([]engine.Item, error)

	// undoerOf is the step that undoes a record, whatever the configuration now
	// says, or nil if this version has none.
	undoerOf func(r engine.Record) (step.Step, error)

	// live is nil where no step disturbs pods.
	live fitter

	grace time.Duration // engine.Engine.Grace
}

// A fitter fits a plan to what runs on the node: steps that disturb pods get
// their window. back says that the plan is of what is to be undone.
type fitter func(ctx context.Context, recs []engine.Record, plan []engine.Item, back bool) ([]engine.Item, error)

// Check looks at every step of the plan, in its order, and at the records that
// the plan does not cover. It never writes, takes no lock, and works without
// root as far as it can: what it could not see is marked Unseen. The error
// says that the journal could not be read; the findings are valid all the same
// and say nothing of what is ours.
func (k *keeper) Check(ctx context.Context) ([]engine.Status, error) {
	recs, _ := k.journal.Open() // Status says so again
	plan, err := k.planOf(recs)
	if err != nil {
		return nil, err
	}
	all, err := k.engine(plan).Status(ctx)
	for i, st := range all {
		if !errors.Is(st.Err, engine.ErrUnknown) {
			continue
		}
		if s, uerr := k.undoerOf(engine.Record{Name: st.Name}); s != nil && uerr == nil {
			all[i].Err, all[i].Leftover = nil, true
			all[i].Why = "no longer in the configuration; rollback takes it back"
		}
	}
	return all, err
}

// Off says whether the off switch is set: a rollback was asked for, and what it
// took away must not be made again.
func (k *keeper) Off() (bool, error) {
	_, err := k.state.ReadFile(offFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// keepLine begins a line of the off switch that names a step which a rollback
// is to leave in place.
const keepLine = "keep "

// TurnOff sets the off switch, which both plans share. It outlives a reboot.
// keep are the steps that the rollback leaves in place, for whoever ends it.
func (k *keeper) TurnOff(keep ...string) error {
	text := fmt.Appendf(nil, "rollback at %s\n", k.now().UTC().Format(time.RFC3339))
	for _, name := range keep {
		text = fmt.Appendf(text, "%s%s\n", keepLine, name)
	}
	return k.state.WriteAtomic(offFile, text, 0o644)
}

// Kept are the steps that the rollback which was asked for leaves in place;
// none while the off switch is not set.
func (k *keeper) Kept() ([]string, error) {
	text, err := k.state.ReadFile(offFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var keep []string
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), keepLine); ok {
			keep = append(keep, name)
		}
	}
	return keep, nil
}

// Apply clears the off switch and brings the node to the plan, or to the named
// steps of it: a full name, or the noun before the slash. A step that others
// do not build on does not keep them from being tried when it fails; a sysctl
// that is blocked is logged and no error.
func (k *keeper) Apply(ctx context.Context, steps ...string) error {
	return k.apply(ctx, func() error { return k.state.Remove(offFile) }, k.live, steps)
}

// Continue is Apply for the rest of one that has begun and let go of the lock:
// if the off switch is set by now, a rollback came between, and it returns
// ErrOff with nothing written.
func (k *keeper) Continue(ctx context.Context, steps ...string) error {
	return k.apply(ctx, k.on, k.live, steps)
}

// on is an error if the off switch is set.
func (k *keeper) on() error {
	off, err := k.Off()
	if off {
		return ErrOff
	}
	return err
}

// apply calls off under the lock, before anything is written. live is
// keeper.live, or nil.
func (k *keeper) apply(ctx context.Context, off func() error, live fitter, steps []string) error {
	lock, err := k.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	recs, err := k.journal.Open()
	if err != nil {
		return err
	}
	plan, err := k.planOf(recs)
	if err != nil {
		return err
	}
	if plan, err = pick(plan, steps); err != nil {
		return err
	}
	if err := off(); err != nil {
		return err
	}
	if live != nil {
		if plan, err = live(ctx, recs, plan, false); err != nil {
			return err
		}
	}
	return k.engine(plan).Apply(ctx)
}

// Rollback sets the off switch if nobody has, waits for the lock, and undoes
// every open record, newest first, except the named ones. What it undoes goes by
// the journal and not by the configuration, which may have changed since.
func (k *keeper) Rollback(ctx context.Context, keep ...string) error {
	asked := keep
	turnOff := func() error {
		if off, err := k.Off(); off || err != nil {
			return err
		}
		return k.TurnOff(asked...)
	}
	if err := turnOff(); err != nil {
		return err
	}
	var err error
	if asked, err = k.Kept(); err != nil { // of whoever set the switch: that may be less
		return err
	}
	return k.rollback(ctx, turnOff, keep)
}

// ErrNotAsked says that nobody asked for a rollback, or an apply has come since.
var ErrNotAsked = errors.New("no rollback was asked for")

// finish is Rollback for one that was asked for earlier, and not taken back
// since.
func (k *keeper) finish(ctx context.Context, keep []string) error {
	return k.rollback(ctx, func() error {
		off, err := k.Off()
		if err == nil && !off {
			err = ErrNotAsked
		}
		return err
	}, keep)
}

// rollback calls off under the lock, before anything is undone: an apply that
// had the lock before may have cleared the switch.
func (k *keeper) rollback(ctx context.Context, off func() error, keep []string) error {
	lock, err := k.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := off(); err != nil {
		return err
	}
	recs, err := k.journal.Open()
	if err != nil {
		return err
	}
	var plan []engine.Item
	for _, r := range recs {
		s, err := k.undoerOf(r)
		if err != nil {
			return err
		}
		if s != nil { // else the engine reports the record by name
			plan = append(plan, engine.Item{Steps: []step.Step{s}})
		}
	}
	if k.live != nil {
		if plan, err = k.live(ctx, recs, plan, true); err != nil {
			return err
		}
	}
	return k.engine(plan).Rollback(ctx, keep...)
}

func (k *keeper) lock(ctx context.Context) (*journal.Lock, error) { return k.acquire(ctx, k.lockAt) }

func (k *keeper) acquire(ctx context.Context, at string) (*journal.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, k.lockWait)
	defer cancel()
	return journal.Acquire(ctx, at)
}

func (k *keeper) engine(plan []engine.Item) *engine.Engine {
	return &engine.Engine{
		Journal: k.journal,
		Plan:    plan,
		Now:     k.now,
		Grace:   k.grace,
		Note:    func(name, what, why string) { k.log.Warn(what, "step", name, "why", why) },
	}
}

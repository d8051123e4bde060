// Package engine runs plans: forward, backward, and after a crash. It knows
// order and journal, and never what a step does.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"nodelocaldns/host/step"
)

// Journal is the durable memory of the engine. Put and Drop return only after
// the change is on disk, and are all-or-nothing when the power goes.
type Journal interface {
	Put(Record) error        // insert, or replace the record of that name in place
	Drop(name string) error  // forget it: undone, or the window is closed
	Open() ([]Record, error) // oldest first
}

// A Record says that we may have changed something.
type Record struct {
	Name  string     `json:"name"`
	Done  bool       `json:"done"` // Apply was verified; false means interrupted
	Since time.Time  `json:"since"`
	Saved step.Saved `json:"saved"`
	Stage Stage      `json:"stage,omitempty"` // of a window
}

// A Stage is how far a window had come when its record was written.
type Stage string

// The stages. A window that is being opened has none: nothing was done in it.
const (
	Opened  Stage = "opened"  // what is in it may have begun
	Settled Stage = "settled" // all that is left to do is to close it
)

// An Item is a run of steps, inside a window or not.
type Item struct {
	Window step.Window // nil: the steps disturb nobody
	Steps  []step.Step

	// Independent says that no later item builds on this one: when it fails,
	// the rest of the plan is tried all the same and Apply returns the error
	// at its end. An item with a window is never independent.
	Independent bool

	// Optional says that the plan is whole without this item: a step of it
	// that is blocked is noted, skipped and no error.
	Optional bool
}

// An Engine applies and rolls back one plan. Its caller makes sure that no
// other engine works on the same journal; Status alone needs no such care.
type Engine struct {
	Journal Journal
	Plan    []Item

	// Now is the clock that dates records.
	Now func() time.Time

	// Note is told what is worth knowing and no error: what is "skipped" for
	// an optional step that is blocked, and "released" for a change that is
	// somebody else's by now. Nil is silent.
	Note func(name, what, why string)

	// Grace bounds each Undo, Settle and Close. They run to their end when the
	// caller's context is cancelled: stopping half way through taking a change
	// back is what the engine exists to prevent. Zero means DefaultGrace.
	Grace time.Duration
}

// DefaultGrace is the default of Engine.Grace: as long as a kubelet may take
// to come back before it is given up.
const DefaultGrace = 5 * time.Minute

// A BlockedError says why a step may not be applied.
type BlockedError struct {
	Why  string
	Next string
}

func (e *BlockedError) Error() string { return "blocked: " + e.Why }

// Hint says what to do next; it may be empty.
func (e *BlockedError) Hint() string { return e.Next }

// Apply brings the node to the plan. It stops at the first error of an item
// that is not Independent, and leaves the journal saying exactly how far it
// got. A failure inside a window takes the steps of that window back to the
// original state, as before we ever came.
func (e *Engine) Apply(ctx context.Context) error {
	var errs []error
	for _, it := range e.Plan {
		err := e.applyItem(ctx, it)
		if err != nil && (it.Window != nil || !it.Independent) {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (e *Engine) applyItem(ctx context.Context, it Item) error {
	do := func() error { return e.applyAll(ctx, it) }
	if it.Window == nil {
		return do()
	}
	busy := func() (bool, error) {
		need := false
		for _, s := range it.Steps {
			f, err := s.Check(ctx)
			if err == nil && f.State == step.Blocked {
				err = &BlockedError{Why: f.Why, Next: f.Hint}
			}
			if err != nil {
				return false, fmt.Errorf("%s: %w", s.Name(), err)
			}
			need = need || f.State == step.Pending
		}
		if need {
			return true, nil
		}
		if err := e.confirm(it.Steps); err != nil {
			return false, err
		}
		return e.due(ctx, it.Window)
	}
	back := func() error { return e.undoAll(ctx, it.Steps, nil) }
	return e.forward(ctx, it.Window, busy, do, back)
}

// confirm marks what is satisfied as done: a run without the window was cut
// off after Apply.
func (e *Engine) confirm(steps []step.Step) error {
	for _, s := range steps {
		if rec, ours, err := e.record(s.Name()); err != nil {
			return err
		} else if ours && !rec.Done {
			if err := e.done(rec); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *Engine) due(ctx context.Context, w step.Window) (bool, error) {
	due, err := w.Due(ctx)
	if err != nil {
		return false, fmt.Errorf("%s: %w", w.Name(), err)
	}
	return due, nil
}

// Rollback undoes every open record, newest item first, except those named by
// keep. It does not stop at an error: a node that cannot be restored whole is
// restored as far as it can be. It does not stop when ctx is cancelled either,
// except before it opens a window. A record without a step in the plan is
// reported by name: another version made it, and only that one can undo it.
//
// A window that keep names is left as it is, and its steps are undone outside
// of it: the way out where what it restarts cannot be brought back at all.
func (e *Engine) Rollback(ctx context.Context, keep ...string) error {
	var errs []error
	for _, it := range slices.Backward(e.Plan) {
		do := func() error { return e.undoAll(ctx, it.Steps, keep) }
		if it.Window == nil || slices.Contains(keep, it.Window.Name()) {
			errs = append(errs, do())
			continue
		}
		busy := func() (bool, error) {
			kept := 0
			for _, s := range it.Steps {
				if slices.Contains(keep, s.Name()) {
					kept++
					continue
				}
				if _, ok, err := e.record(s.Name()); ok || err != nil {
					return true, err
				}
			}
			if kept == len(it.Steps) {
				return false, nil
			}
			return e.due(ctx, it.Window)
		}
		errs = append(errs, e.backward(ctx, it.Window, busy, do))
	}
	return errors.Join(append(errs, e.strangers(keep))...)
}

// strangers reports records this plan has no step for.
func (e *Engine) strangers(keep []string) error {
	recs, err := e.Journal.Open()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range recs {
		if !e.known(r.Name) && !slices.Contains(keep, r.Name) {
			errs = append(errs, unknown(r.Name))
		}
	}
	return errors.Join(errs...)
}

// ErrUnknown says that a record has no step in the plan.
var ErrUnknown = errors.New("this version has no such step")

func unknown(name string) error {
	return &step.Error{
		Err:  fmt.Errorf("%s: %w", name, ErrUnknown),
		Next: "run rollback with the version that applied it",
	}
}

func (e *Engine) known(name string) bool {
	return slices.ContainsFunc(e.Plan, func(it Item) bool {
		return it.Window != nil && it.Window.Name() == name ||
			slices.ContainsFunc(it.Steps, func(s step.Step) bool { return s.Name() == name })
	})
}

// ErrUndone says that the steps of a window were taken back: they failed, or
// what the window restarts did not come back with them.
var ErrUndone = errors.New("undone")

// forward runs do inside w, and back if do or the settling after it fails: a
// kubelet that does not come back with our flag must come back without it.
//
// The window is journaled like a step. If the power goes after the work and
// before Close, the next run finds the record and still settles and closes,
// instead of leaving the node cordoned for ever.
func (e *Engine) forward(ctx context.Context, w step.Window, busy func() (bool, error), do, back func() error) error {
	opened, err := e.open(ctx, w, busy)
	if !opened {
		return err
	}
	err = do()
	if err == nil {
		err = e.settle(ctx, w)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %w", w.Name(), ErrUndone, errors.Join(err, back()))
		// A kubelet that does not come back with its old flags either is not
		// given pods again: the cordon stays, and its record, so that the next
		// run settles first.
		if serr := e.settle(ctx, w); serr != nil {
			return errors.Join(err, e.stuck(w, serr))
		}
	}
	return errors.Join(err, e.end(ctx, w))
}

// backward runs do inside w. The window settles even if a step could not be
// undone, because another one may have been. There is nothing to go back to
// when that fails: the cordon and its record stay.
func (e *Engine) backward(ctx context.Context, w step.Window, busy func() (bool, error), do func() error) error {
	opened, err := e.open(ctx, w, busy)
	if !opened {
		return err
	}
	err = do()
	if serr := e.settle(ctx, w); serr != nil {
		return errors.Join(err, e.stuck(w, serr))
	}
	return errors.Join(err, e.end(ctx, w))
}

// open journals and opens w if there is something to do in it or if it is due,
// or if an earlier run left it open. When opened is false nothing was done, and err
// says why if that is a failure.
//
// Where an earlier run could not close what had settled, that is done, and
// nothing is restarted for it. One that was cut off before anything was done in
// w is no reason to leave it open when it cannot be opened now.
func (e *Engine) open(ctx context.Context, w step.Window, busy func() (bool, error)) (opened bool, err error) {
	rec, left, err := e.record(w.Name())
	if err != nil {
		return false, err
	}
	if !left || rec.Stage == Settled {
		need, err := busy()
		switch {
		case err == nil && need:
		case left:
			return false, errors.Join(err, e.shut(ctx, w))
		default:
			return false, err // nothing to do, or nothing that may be done: nobody is disturbed
		}
	}
	if !left {
		rec = Record{Name: w.Name(), Since: e.Now()}
		if err := e.Journal.Put(rec); err != nil {
			return false, err
		}
	}
	if err := w.Open(ctx, rec.Since); err != nil {
		err = fmt.Errorf("%s: open: %w", w.Name(), err)
		if rec.Stage == Opened { // an earlier run was cut off inside: its work is not settled yet
			return false, err
		}
		return false, errors.Join(err, e.shut(ctx, w))
	}
	if err := e.reach(w, Opened); err != nil {
		return false, errors.Join(err, e.shut(ctx, w))
	}
	return true, nil
}

// reach notes how far w has come.
func (e *Engine) reach(w step.Window, s Stage) error {
	rec, _, err := e.record(w.Name())
	if err != nil || rec.Stage == s {
		return err
	}
	rec.Stage = s
	return e.Journal.Put(rec)
}

// end is shut for a window that has settled.
func (e *Engine) end(ctx context.Context, w step.Window) error {
	return errors.Join(e.reach(w, Settled), e.shut(ctx, w))
}

func (e *Engine) settle(ctx context.Context, w step.Window) error {
	ctx, cancel := e.own(ctx)
	defer cancel()
	return w.Settle(ctx)
}

// shut closes w and forgets it. A window that does not close keeps its record:
// the node is still cordoned.
func (e *Engine) shut(ctx context.Context, w step.Window) error {
	ctx, cancel := e.own(ctx)
	defer cancel()
	rec, _, err := e.record(w.Name())
	if err != nil {
		return err
	}
	if err := w.Close(ctx, rec.Since); err != nil {
		return fmt.Errorf("%s: close: %w", w.Name(), err)
	}
	return e.Journal.Drop(w.Name())
}

func (e *Engine) stuck(w step.Window, err error) error {
	next := "if the node was cordoned for this, it stays so; mend the kubelet, then run rollback again"
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) && hinted.Hint() != "" {
		next = hinted.Hint() + "; " + next
	}
	return &step.Error{Err: fmt.Errorf("%s: left open: %w", w.Name(), err), Next: next}
}

// own is a context that ends by itself, not with the caller's.
func (e *Engine) own(ctx context.Context) (context.Context, context.CancelFunc) {
	grace := e.Grace
	if grace == 0 {
		grace = DefaultGrace
	}
	return context.WithTimeout(context.WithoutCancel(ctx), grace)
}

func (e *Engine) applyAll(ctx context.Context, it Item) error {
	var errs []error
	for _, s := range it.Steps {
		err := e.apply(ctx, s)
		if err == nil {
			continue
		}
		var blocked *BlockedError
		if it.Optional && it.Window == nil && errors.As(err, &blocked) {
			e.note(s.Name(), "skipped", blocked.Why)
			continue
		}
		err = fmt.Errorf("%s: %w", s.Name(), err)
		if !it.Independent || it.Window != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (e *Engine) apply(ctx context.Context, s step.Step) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := s.Check(ctx)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	rec, ours, err := e.record(s.Name())
	if err != nil {
		return err
	}
	switch f.State {
	case step.Satisfied:
		if ours && !rec.Done {
			return e.done(rec) // the last run was cut off after Apply
		}
		return nil
	case step.Blocked:
		return &BlockedError{Why: f.Why, Next: f.Hint}
	}
	// The first Before wins: on a re-apply the node already carries our own
	// change, and saving that would turn Undo into a no-op.
	if !ours {
		rec = Record{Name: s.Name(), Since: e.Now(), Saved: step.Saved{Before: f.Before}}
	}
	// Keep the older After until this one is verified: a crash between here
	// and Apply leaves the older state on the node, and Undo must still
	// recognise it as ours.
	rec.Done = false
	rec.Saved.After = after(rec.Saved.After, f.After)
	if err := e.Journal.Put(rec); err != nil {
		return err
	}
	if err := s.Apply(ctx); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if f, err = s.Check(ctx); err != nil {
		return fmt.Errorf("verify: %w", err)
	} else if f.State != step.Satisfied {
		return fmt.Errorf("verify: still %s: %s", f.State, f.Why)
	}
	return e.done(rec)
}

// after appends next to the states we may have left, each once: a step that
// fails again on every pass must not grow its record without end.
func after(had []json.RawMessage, next json.RawMessage) []json.RawMessage {
	out := slices.DeleteFunc(slices.Clone(had), func(a json.RawMessage) bool { return string(a) == string(next) })
	return append(out, next)
}

func (e *Engine) done(rec Record) error {
	rec.Done = true
	if n := len(rec.Saved.After); n > 1 {
		rec.Saved.After = []json.RawMessage{rec.Saved.After[n-1]}
	}
	return e.Journal.Put(rec)
}

func (e *Engine) undoAll(ctx context.Context, steps []step.Step, keep []string) error {
	var errs []error
	for _, s := range slices.Backward(steps) {
		if slices.Contains(keep, s.Name()) {
			continue
		}
		rec, ours, err := e.record(s.Name())
		if err != nil {
			return err
		}
		if !ours {
			continue
		}
		if err := e.undo(ctx, s, rec.Saved); err != nil {
			errs = append(errs, fmt.Errorf("%s: undo: %w", s.Name(), err))
			continue
		}
		if err := e.Journal.Drop(s.Name()); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) undo(ctx context.Context, s step.Step, saved step.Saved) error {
	ctx, cancel := e.own(ctx)
	defer cancel()
	err := s.Undo(ctx, saved)
	var released *step.Released
	if errors.As(err, &released) {
		e.note(s.Name(), "released", released.Why)
		return nil
	}
	return err
}

func (e *Engine) note(name, what, why string) {
	if e.Note != nil {
		e.Note(name, what, why)
	}
}

func (e *Engine) record(name string) (Record, bool, error) {
	recs, err := e.Journal.Open()
	if err != nil {
		return Record{}, false, err
	}
	if i := slices.IndexFunc(recs, func(r Record) bool { return r.Name == name }); i >= 0 {
		return recs[i], true, nil
	}
	return Record{}, false, nil
}

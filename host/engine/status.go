package engine

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"nodelocaldns/host/step"
)

// A Status is one line of plan and status.
type Status struct {
	Name  string
	State step.State
	Why   string
	Hint  string
	Diff  string

	Ours     bool      // a record says that we may have changed it
	Done     bool      // that change was verified
	Since    time.Time // when that record was made; zero without one
	Drift    bool      // done, but the node is no longer as wanted: somebody else wrote
	Optional bool      // a blocked one is a note: the plan is whole without it
	Leftover bool      // ours, but in no plan of this configuration: rollback undoes it
	Unseen   bool      // could not be checked with the rights of this process; State says nothing

	// Err is why the check failed; State says nothing then. It is nil when
	// only rights were missing (Unseen).
	Err error
}

// Status checks every step of the plan and looks up its record; records of
// open windows and records without a step in the plan follow, oldest first.
// It writes nothing. The error is that of the journal alone: with one, the
// findings are still returned and say nothing of what is ours.
func (e *Engine) Status(ctx context.Context) ([]Status, error) {
	recs, err := e.Journal.Open()
	var out []Status
	for _, it := range e.Plan {
		for _, s := range it.Steps {
			st := Status{Name: s.Name(), Optional: it.Optional}
			f, cerr := s.Check(ctx)
			switch {
			case errors.Is(cerr, fs.ErrPermission):
				st.Unseen, st.Why = true, "needs root"
			case cerr != nil:
				st.Err, st.Why = cerr, cerr.Error()
			default:
				st.State, st.Why, st.Hint, st.Diff = f.State, f.Why, f.Hint, f.Diff
			}
			if i := slices.IndexFunc(recs, func(r Record) bool { return r.Name == st.Name }); i >= 0 {
				r := recs[i]
				st.Ours, st.Done, st.Since = true, r.Done, r.Since
				st.Drift = r.Done && cerr == nil && f.State != step.Satisfied
			}
			out = append(out, st)
		}
	}
	for _, r := range recs {
		st := Status{Name: r.Name, Ours: true, Done: r.Done, Since: r.Since}
		switch {
		case e.window(r.Name):
			st.State, st.Why = step.Pending, "left open: settled and closed by the next apply or rollback"
		case !e.known(r.Name):
			st.Err, st.Why = unknown(r.Name), ErrUnknown.Error()
		default:
			continue
		}
		out = append(out, st)
	}
	return out, err
}

func (e *Engine) window(name string) bool {
	return slices.ContainsFunc(e.Plan, func(it Item) bool { return it.Window != nil && it.Window.Name() == name })
}

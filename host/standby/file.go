package standby

import (
	"encoding/json"
	"fmt"
	"time"

	"nodelocaldns/host/fsys"
)

// file is in the run directory: a reboot ends an outage.
const file = "standby.json"

// Hint says where more is to be found about a failure of the resolver.
const Hint = "journalctl -u nodelocaldns says why"

// State is an outage as people are told of it, and as the next guard is.
type State struct {
	Since   time.Time  `json:"since"`
	Why     string     `json:"why"` // the last failure, as systemd calls it: exit-code 1, signal KILL, oom-kill, watchdog, …
	Tries   int        `json:"tries"`
	NextTry *time.Time `json:"next_try"` // null: one is under way
}

// Read returns the state in the run directory. Where the resolver has not failed,
// the error wraps fs.ErrNotExist.
func Read(run fsys.Dir) (State, error) {
	var st State
	text, err := run.ReadFile(file)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(text, &st); err != nil {
		return st, fmt.Errorf("reading %s: %w", run.Path(file), err)
	}
	return st, nil
}

// Remove takes it away. That there is none is no error.
func Remove(run fsys.Dir) error { return run.Remove(file) }

func write(run fsys.Dir, st State) error {
	text, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return run.WriteAtomic(file, append(text, '\n'), 0o644)
}

// state is an outage by the clock on the wall, which shows now at the moment at.
func (o Outage) state(now time.Time, at time.Duration) State {
	wall := func(d time.Duration) time.Time { return now.Add(d - at).Round(time.Millisecond).UTC() }
	st := State{Since: wall(o.Since), Why: o.Why, Tries: o.Tries}
	if !o.Trial {
		next := wall(o.Next)
		st.NextTry = &next
	}
	return st
}

// outage is the reverse of Outage.state.
func (st State) outage(now time.Time, at time.Duration) Outage {
	o := Outage{Since: at + st.Since.Sub(now), Why: st.Why, Tries: st.Tries, Trial: st.NextTry == nil}
	if !o.Trial {
		o.Next = at + st.NextTry.Sub(now)
	}
	return o
}

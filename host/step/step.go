// Package step defines the one contract that every change to the node follows.
package step

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// A Step is one reversible change to the node.
//
// All three methods are idempotent. Check never writes. Apply runs only when
// Check reported Pending, and only after the engine has made Finding.Before
// durable, so Undo always knows what the node looked like first.
//
// Undo runs in any process, also one that never applied anything. It restores
// what Saved.Before says, returns nil where there is nothing of ours left, and
// never takes away what somebody else made: it refuses with an error, or
// returns a *Released when the thing is simply not ours any more.
type Step interface {
	// Name is the journal key, "<noun>/<detail>". Never rename one: a node
	// upgraded in place still has to undo the old spelling.
	Name() string

	Check(ctx context.Context) (Finding, error)
	Apply(ctx context.Context) error
	Undo(ctx context.Context, s Saved) error
}

// A Window brackets steps that disturb pods. The same bracket is used going
// forward and going back, which a plain list of steps undone in reverse
// cannot express: both directions end with "restart, wait, uncordon".
//
// Open and Close change the cordon and its mark in one request, so that
// neither exists without the other.
//
// The methods run in any process: one that was cut off may have left the work
// of the steps done and the window open.
type Window interface {
	// Name is the journal key, "window/<detail>".
	Name() string

	// Due says whether what the steps left still waits for Settle: what runs
	// has not taken over what its files now say of us, because they were
	// written where nothing may be restarted, or undone by hand. It is asked
	// where no step has anything to do, and writes nothing.
	Due(ctx context.Context) (bool, error)

	// Open keeps pods away: cordon and drain. It does nothing where the cordon
	// is ours already. since is when the window was opened, as its record says:
	// the same for every process that goes on with it, and so its name where
	// others must know whose it is.
	Open(ctx context.Context, since time.Time) error

	// Settle has what runs take over what the steps left, and returns nil only
	// when that is seen to have worked. It also mends: it is called again when
	// the steps were undone because it failed, and then brings back what it
	// finds broken down.
	Settle(ctx context.Context) error

	// Close lets pods come again, if it was us who kept them away.
	Close(ctx context.Context, since time.Time) error
}

// A State is what Check thinks of the node.
type State int

// The states. The zero State is Satisfied.
const (
	Satisfied State = iota // the node is as wanted: nothing to do, nothing to undo
	Pending                // Apply would change the node
	Blocked                // Apply must not run; Finding.Why says what is in the way
)

// String is the word for plan, status, logs and JSON.
func (s State) String() string {
	switch s {
	case Satisfied:
		return "satisfied"
	case Pending:
		return "pending"
	case Blocked:
		return "blocked"
	}
	return fmt.Sprintf("state(%d)", int(s))
}

// MarshalText is String, so that JSON carries the word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Finding is the result of a Check.
type Finding struct {
	State  State
	Why    string          // one line for plan, status and doctor
	Hint   string          // what to do about it; set when Blocked
	Diff   string          // what Apply would change, lines of "- " and "+ "; set when Pending
	Before json.RawMessage // what is there now; set when Pending
	After  json.RawMessage // what Apply will leave; set when Pending
}

// Saved is what Undo gets. Only the step reads inside the messages.
type Saved struct {
	Before json.RawMessage   `json:"before"` // state found before our first Apply
	After  []json.RawMessage `json:"after"`  // every state we may have left, oldest first
}

// Released is what Undo returns when somebody else has since taken the thing
// over: it is left as it is, the record is dropped, and Why is reported. It is
// no failure.
type Released struct {
	Why string
}

func (r *Released) Error() string { return r.Why }

// An Error is an error that knows what to do next.
type Error struct {
	Err  error
	Next string // the hint, one line
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the error without its hint.
func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do next, for the line after the error.
func (e *Error) Hint() string { return e.Next }

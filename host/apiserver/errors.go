package apiserver

import (
	"errors"
	"fmt"
	"time"
)

// What a caller may want to tell apart, with [errors.Is].
var (
	// ErrUnreachable: nothing came back, or nothing of an API server that is well.
	ErrUnreachable = errors.New("no reply from the API server")
	// ErrUnauthorized: there is no credential, or it has run out.
	ErrUnauthorized = errors.New("the API server does not accept the credential")
	ErrForbidden    = errors.New("the API server does not allow it")
	ErrNotFound     = errors.New("the API server does not have it")
	// ErrGone is of a pod that is not there any more, or of another UID.
	ErrGone = errors.New("the pod is gone")
	// ErrNamespaceTerminating is of an eviction in a namespace that is being
	// deleted: the pod will be, too. It is an ErrForbidden as well.
	ErrNamespaceTerminating = errors.New("the namespace is being deleted")
)

// An Error is a request that failed.
type Error struct {
	Doing string // "asking 10.0.0.1:6443 for node n1"
	Err   error  // why
	Next  string // the hint; empty where there is none
	kinds []error
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Doing, e.Err) }

// Unwrap gives why it failed, and which of this package's errors that is.
func (e *Error) Unwrap() []error { return append([]error{e.Err}, e.kinds...) }

// Hint says what to do next, for the line after the error.
func (e *Error) Hint() string { return e.Next }

// A Conflict is a change that was not made: the object is not any more as the
// caller read it. Read it again and decide again.
type Conflict struct {
	Err error // the failed request
}

func (c *Conflict) Error() string { return c.Err.Error() }

// Unwrap gives the failed request.
func (c *Conflict) Unwrap() error { return c.Err }

// Blocked is an eviction that PodDisruptionBudgets do not allow now.
type Blocked struct {
	PDBs       []string      // their names, in the pod's namespace; empty where the API server did not tell
	Why        string        // what the API server says of it
	RetryAfter time.Duration // not to be asked again before; 0 where it does not say
	Err        error         // the failed request
}

func (b *Blocked) Error() string { return b.Why }

// Unwrap gives the failed request.
func (b *Blocked) Unwrap() error { return b.Err }

// Busy is a request that the API server did not look at because it has too
// many: nothing was changed.
type Busy struct {
	RetryAfter time.Duration // as it asks for; 0 where it does not say
	Err        error
}

func (b *Busy) Error() string { return b.Err.Error() }

// Unwrap gives the failed request.
func (b *Busy) Unwrap() error { return b.Err }

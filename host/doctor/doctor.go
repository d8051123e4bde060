// Package doctor looks at a node and says what is, or may become, a trouble
// for a DNS cache on it.
//
// A [Check] is a small value with a name and a function. It reads and never
// writes: no module is loaded, no table made, no packet sent to another
// machine. Everything outside the process comes from an [Env], so that a test
// builds a whole node from a text file. What a check cannot see without root it
// says, and goes on; what it only infers it says with "may".
//
// What it says is often posted in public: addresses of the cluster's DNS, names
// of units, devices and processes, but no name of the node or of a pod.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"
	"unicode"
)

// A Level is how much a result matters.
type Level int

// The levels. The zero Level is OK.
const (
	OK      Level = iota // as it should be
	Info                 // worth knowing, nothing to do
	Warning              // pods may be served worse, or not in every case
	Error                // it does not work, or will not
)

// String is the word for people and JSON.
func (l Level) String() string {
	switch l {
	case OK:
		return "ok"
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Error:
		return "error"
	}
	return fmt.Sprintf("level(%d)", int(l))
}

// MarshalText is String.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// A Result is one thing a check found.
type Result struct {
	Level Level
	Why   string // one line
	Hint  string // what to do, one line; set for Warning and Error
}

// A Check looks at one thing.
type Check struct {
	Name string

	// Run returns what it found. Nothing at all says that the check has no
	// meaning on this node. It should end soon after ctx does, and may be
	// called while other checks run.
	Run func(ctx context.Context) []Result
}

// A Finding is a result and the name of the check it came from.
type Finding struct {
	Check string
	Result
}

// Run runs all checks at once, each for at most limit, and returns what they
// found in their order. A check that does not end by then is reported as such,
// and left to itself: a read of a broken file system cannot be called off.
func Run(ctx context.Context, checks []Check, limit time.Duration) []Finding {
	found := make([][]Result, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { found[i] = bounded(ctx, c, limit) })
	}
	wg.Wait()
	var all []Finding
	for i, results := range found {
		for _, r := range results {
			r.Why, r.Hint = printable(r.Why), printable(r.Hint)
			all = append(all, Finding{checks[i].Name, r})
		}
	}
	return all
}

// printable is text for a terminal and on one line: anybody may choose the name
// of a process.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

func bounded(ctx context.Context, c Check, limit time.Duration) []Result {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan []Result, 1)
	go func() { done <- c.Run(ctx) }()
	select {
	case results := <-done:
		return results
	case <-ctx.Done():
	}
	// What it has to say of its own deadline is better than what we have.
	grace := time.NewTimer(limit / 20)
	defer grace.Stop()
	select {
	case results := <-done:
		return results
	case <-grace.C:
		return warning("something it asks does not answer, such as a file system or D-Bus: run doctor again, then look at the log of the kernel",
			"not seen: no end within %s", limit)
	}
}

// Hide replaces a name of the node, wherever it stands alone in what was found.
// A name that is a plain word, such as "node", is left: our own sentences have
// it too.
func Hide(all []Finding, name, by string) {
	if !strings.ContainsAny(name, "-.0123456789") {
		return
	}
	for i := range all {
		all[i].Why, all[i].Hint = hide(all[i].Why, name, by), hide(all[i].Hint, name, by)
	}
}

func hide(text, name, by string) string {
	part := func(c byte) bool {
		return c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
	}
	var b strings.Builder
	for at := 0; ; {
		i := strings.Index(text[at:], name)
		if i < 0 {
			return b.String() + text[at:]
		}
		from, to := at+i, at+i+len(name)
		b.WriteString(text[at:from])
		if from > 0 && part(text[from-1]) || to < len(text) && part(text[to]) {
			b.WriteString(name)
		} else {
			b.WriteString(by)
		}
		at = to
	}
}

func ok(format string, args ...any) []Result {
	return []Result{{OK, fmt.Sprintf(format, args...), ""}}
}

func info(hint, format string, args ...any) []Result {
	return []Result{{Info, fmt.Sprintf(format, args...), hint}}
}

func warning(hint, format string, args ...any) []Result {
	return []Result{{Warning, fmt.Sprintf(format, args...), hint}}
}

func failure(hint, format string, args ...any) []Result {
	return []Result{{Error, fmt.Sprintf(format, args...), hint}}
}

// unseen is the result of a check that could not look, because of err.
func unseen(err error) []Result {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return info("", "not seen: needs root")
	case errors.Is(err, context.DeadlineExceeded):
		return warning("run doctor again; systemctl status tells whether systemd answers", "not seen: no answer in time")
	}
	return warning("run doctor again, as root", "not seen: %v", err)
}

// orOK is results, or an OK that says why there are none.
func orOK(results []Result, format string, args ...any) []Result {
	if len(results) > 0 {
		return results
	}
	return ok(format, args...)
}

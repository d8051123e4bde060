package main

// The voice of nodelocaldns. The rules:
//
//   - Results go to standard output, everything else to standard error with a
//     "nodelocaldns:" prefix (log lines are key=value or JSON, without it).
//   - Lower case, no full stop, no "failed to"; errors are a path of gerunds.
//   - "error:" says what is wrong, one line for each thing that is;
//     "hint:" says what to do next; "warning:" goes on all the same.
//   - Usage errors are one error line and one hint line.
//   - --help is a result; so are tables, and they have no trailing blanks.
//   - Exit 0: as asked; 1: error; 2: usage; 3: plan or status found a
//     difference, config import something without a counterpart.
//
// Nothing else in this program prints.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The exit codes of every command.
const (
	exitOK     = 0
	exitError  = 1
	exitUsage  = 2
	exitDiffer = 3
)

// differ ends a command with an exit code and no message: what there is to
// say has been printed as a result.
type differ int

func (d differ) Error() string { return fmt.Sprintf("exit status %d", int(d)) }

// usageError is a command line that cannot be understood.
type usageError struct{ text, next string }

func (e *usageError) Error() string { return e.text }
func (e *usageError) Hint() string  { return e.next }

func usagef(hint, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), hint}
}

// hinted is an error with what to do next.
type hinted struct {
	error
	next string
}

func (e *hinted) Hint() string  { return e.next }
func (e *hinted) Unwrap() error { return e.error }

func withHint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// prefix begins every line that is no result.
const prefix = "nodelocaldns: "

// term is where a command speaks. It may be used by several goroutines.
type term struct {
	stdout, stderr io.Writer
	screen         *screen // that standard error is; nil: none with a live line
}

// newTerm is the term of a process whose $TERM is kind.
func newTerm(stdout, stderr io.Writer, kind string) term {
	s := newScreen(stderr, kind)
	return term{s.above(stdout), s.above(stderr), s}
}

func (t *term) say(kind, text string) {
	fmt.Fprintf(t.stderr, prefix+"%s: %s\n", kind, oneLine(text))
}

func (t *term) warn(text string) { t.say("warning", text) }
func (t *term) hint(text string) { t.say("hint", text) }

// note says what is going on, where that takes a while.
func (t *term) note(text string) { fmt.Fprintf(t.stderr, prefix+"%s\n", oneLine(text)) }

// live has what text returns below all else, on a line that is drawn anew in
// place, each second at least, until the next call; nil ends it, and nothing of
// it stays. It is false where there is no terminal for that. text is called
// from another goroutine, and must not speak.
func (t *term) live(text func() string) bool {
	if t.screen == nil {
		return false
	}
	t.screen.show(text)
	return true
}

// exit says what err has to say and returns the exit code for it.
func (t *term) exit(err error) int {
	var d differ
	var u *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &d):
		return int(d)
	}
	var hints []string
	for _, e := range each(err) {
		t.say("error", e.Error())
		if h := hintOf(e); h != "" && !slices.Contains(hints, h) {
			hints = append(hints, h)
		}
	}
	for _, h := range hints {
		t.hint(h)
	}
	if errors.As(err, &u) {
		return exitUsage
	}
	return exitError
}

// each takes joined errors apart. An error that wraps a join says something
// about all of its parts and stays whole.
func each(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var parts []string
	var es []error
	for _, e := range joined.Unwrap() {
		parts = append(parts, e.Error())
		es = append(es, each(e)...)
	}
	if strings.Join(parts, "\n") != err.Error() {
		return []error{err} // fmt.Errorf with several %w has a text of its own
	}
	return es
}

// hintOf is what to do about err: what err itself knows, or what is always
// true of its cause.
func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		return h.Hint()
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "this needs root (and CAP_NET_ADMIN where capabilities are restricted): try sudo"
	case errors.Is(err, syscall.EROFS):
		return "the file system is read-only here: see --run-dir and --state-dir"
	case errors.Is(err, context.Canceled):
		return "it was interrupted: run it again, it goes on where it stopped"
	}
	return ""
}

func oneLine(s string) string {
	return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "; ")
}

// print is a result.
func (t *term) print(format string, args ...any) {
	fmt.Fprintf(t.stdout, format, args...)
}

// json prints v as a result: indented, and one line a value when compact.
func (t *term) json(v any, compact bool) error {
	enc := json.NewEncoder(t.stdout)
	enc.SetEscapeHTML(false)
	if !compact {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(v)
}

// table prints rows in columns two blanks apart. The last cell of a row is
// text of any length; further lines of it stand below the column under.
func (t *term) table(rows [][]string, under int) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row[:len(row)-1] {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		indent := 0
		for i, cell := range row[:len(row)-1] {
			fmt.Fprintf(&line, "%-*s  ", widths[i], cell)
			if i < under {
				indent += widths[i] + 2
			}
		}
		first, rest, more := strings.Cut(strings.TrimRight(row[len(row)-1], "\n"), "\n")
		t.print("%s\n", strings.TrimRight(line.String()+first, " "))
		if !more {
			continue
		}
		for l := range strings.SplitSeq(rest, "\n") {
			t.print("%s\n", strings.TrimRight(strings.Repeat(" ", indent)+l, " "))
		}
	}
}

// logger is where events go: to standard error, as key=value or JSON.
func (t *term) logger(level slog.Level, format string) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(t.stderr, opts))
	}
	return slog.New(slog.NewTextHandler(t.stderr, opts))
}

// cause appends err to the attributes of an event: its text, and its hint if
// it has one.
func cause(err error, args ...any) []any {
	args = append(args, "error", oneLine(err.Error()))
	if h := hintOf(err); h != "" {
		args = append(args, "hint", h)
	}
	return args
}

// count is "1 step" or "2 steps".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// ago is a duration for a person: two units at most.
func ago(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < time.Minute:
		return d.String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// ibytes is a number of bytes for a person.
func ibytes(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/engine"
)

func TestAnErrorIsSaidWithWhatToDo(t *testing.T) {
	hint := func(text, next string) error { return withHint(errors.New(text), "%s", next) }
	for _, tt := range []struct {
		name string
		err  error
		code int
		want string
	}{
		{"nothing", nil, 0, ""},
		{"a difference says nothing", differ(3), 3, ""},
		{"an error alone", errors.New("it broke"), 1, "error: it broke\n"},
		{"an error on two lines", errors.New("a\nb"), 1, "error: a; b\n"},
		{"a hint", hint("it broke", "mend it"), 1, "error: it broke\nhint: mend it\n"},
		{"a hint further in", fmt.Errorf("looking: %w", hint("it broke", "mend it")), 1, "error: looking: it broke\nhint: mend it\n"},
		{"a hint of the engine", fmt.Errorf("link/a: %w", &engine.BlockedError{Why: "taken", Next: "free it"}), 1, "error: link/a: blocked: taken\nhint: free it\n"},
		{"two errors, one hint", errors.Join(hint("a", "x"), nil, hint("b", "x")), 1, "error: a\nerror: b\nhint: x\n"},
		{"errors joined twice", errors.Join(hint("a", "x"), errors.Join(hint("b", "y"), errors.New("c"))), 1, "error: a\nerror: b\nerror: c\nhint: x\nhint: y\n"},
		{"an error about two", fmt.Errorf("trying: %w (%w)", errors.New("a"), hint("b", "x")), 1, "error: trying: a (b)\nhint: x\n"},
		{"no right to", fmt.Errorf("writing x: %w", syscall.EPERM), 1, "error: writing x: operation not permitted\nhint: this needs root (and CAP_NET_ADMIN where capabilities are restricted): try sudo\n"},
		{"nowhere to write", fmt.Errorf("writing x: %w", syscall.EROFS), 1, "error: writing x: read-only file system\nhint: the file system is read-only here: see --run-dir and --state-dir\n"},
		{"interrupted", context.Canceled, 1, "error: context canceled\nhint: it was interrupted: run it again, it goes on where it stopped\n"},
		{"usage", usagef("ask", "what is %q", "x"), 2, "error: what is \"x\"\nhint: ask\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := (&term{stdout: &stdout, stderr: &stderr}).exit(tt.err)
			got := strings.ReplaceAll(stderr.String(), "nodelocaldns: ", "")
			if code != tt.code || got != tt.want || stdout.Len() != 0 {
				t.Errorf("got exit %d:\n%s%swant exit %d:\n%s", code, stdout.String(), got, tt.code, tt.want)
			}
			if strings.Count(stderr.String(), "nodelocaldns: ") != strings.Count(stderr.String(), "\n") {
				t.Errorf("a line has no prefix:\n%s", stderr.String())
			}
		})
	}
}

func TestTablesLineUp(t *testing.T) {
	var stdout bytes.Buffer
	(&term{stdout: &stdout}).table([][]string{
		{"pending", "a/b", "why\n- old\n+ new"},
		{"ok", "a/longer", ""},
	}, 1)
	want := `pending  a/b       why
         - old
         + new
ok       a/longer
`
	if diff := cmp.Diff(want, stdout.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNumbersForAPerson(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{ago(0), "0s"},
		{ago(59*time.Second + 600*time.Millisecond), "1m0s"},
		{ago(3*time.Minute + 4*time.Second), "3m4s"},
		{ago(2*time.Hour + 3*time.Minute + 59*time.Second), "2h3m"},
		{ago(49 * time.Hour), "2d1h"},
		{ibytes(0), "0 B"},
		{ibytes(1023), "1023 B"},
		{ibytes(1536), "1.5 KiB"},
		{ibytes(32 << 20), "32.0 MiB"},
		{ibytes(3 << 30), "3.0 GiB"},
		{percent(0, 0), "-"},
		{percent(971, 1000), "97.1 %"},
		{count(1, "step"), "1 step"},
		{count(0, "step"), "0 steps"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestLogsAreInTheAskedForFormatAndLevel(t *testing.T) {
	for format, want := range map[string]string{"text": `level=WARN msg="a b" n=1`, "json": `"level":"WARN","msg":"a b","n":1`} {
		var stderr bytes.Buffer
		log := (&term{stderr: &stderr}).logger(slog.LevelWarn, format)
		log.Info("unheard")
		log.Warn("a b", "n", 1)
		if got := stderr.String(); !strings.Contains(got, want) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: got %q, want one line with %q", format, got, want)
		}
	}
}

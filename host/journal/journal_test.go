package journal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/step"
)

func record(name, before string) engine.Record {
	return engine.Record{
		Name:  name,
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Saved: step.Saved{Before: json.RawMessage(before), After: []json.RawMessage{json.RawMessage(`{"x":1}`)}},
	}
}

func open(t *testing.T, j *journal.Journal) string {
	t.Helper()
	recs, err := j.Open()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range recs {
		var compact any
		if err := json.Unmarshal(r.Saved.Before, &compact); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s done=%v before=%v after=%d since=%s", r.Name, r.Done, compact, len(r.Saved.After), r.Since.Format(time.RFC3339)))
	}
	return strings.Join(out, "\n")
}

func TestRecordsKeepTheirOrderWhenOneIsReplaced(t *testing.T) {
	dir := fsys.Dir(t.TempDir())
	j := journal.New(dir, "journal.json")
	again := record("a/1", "1")
	again.Done = true
	for _, r := range []engine.Record{record("a/1", "1"), record("b/2", "2"), record("c/3", "3"), again} {
		if err := j.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Drop("b/2"); err != nil {
		t.Fatal(err)
	}
	want := "a/1 done=true before=1 after=1 since=2026-01-02T03:04:05Z\n" +
		"c/3 done=false before=3 after=1 since=2026-01-02T03:04:05Z"
	if diff := cmp.Diff(want, open(t, journal.New(dir, "journal.json"))); diff != "" {
		t.Errorf("another process reads (-want +got):\n%s", diff)
	}
}

func TestAnEmptyJournalLeavesNoFile(t *testing.T) {
	dir := fsys.Dir(t.TempDir())
	j := journal.New(dir, "journal.json")
	if err := j.Put(record("a/1", "1")); err != nil {
		t.Fatal(err)
	}
	if err := j.Drop("a/1"); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(string(dir)); err != nil || len(files) != 0 {
		t.Errorf("directory has %v, %v", files, err)
	}
	if err := j.Drop("a/1"); err != nil {
		t.Errorf("dropping what is not there: %v", err)
	}
}

func TestAMissingJournalIsEmpty(t *testing.T) {
	j := journal.New(fsys.Dir(filepath.Join(t.TempDir(), "none")), "journal.json")
	if recs, err := j.Open(); err != nil || len(recs) != 0 {
		t.Errorf("got %v, %v", recs, err)
	}
}

func TestAJournalThatCannotBeReadIsAnErrorThatNamesTheFile(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "",
		"cut off":         `{"version": 1, "records": [{"name": "link/x"`,
		"not an object":   `[]`,
		"unknown field":   `{"version": 1, "records": [{"name": "link/x", "boot": 3}]}`,
		"nameless record": `{"version": 1, "records": [{"done": true}]}`,
		"newer version":   `{"version": 2, "records": []}`,
		"no version":      `{"records": []}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := fsys.Dir(t.TempDir())
			if err := dir.WriteAtomic("journal.json", []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			j := journal.New(dir, "journal.json")
			_, err := j.Open()
			if err == nil || !strings.Contains(err.Error(), dir.Path("journal.json")) {
				t.Fatalf("err = %v, want one that names the file", err)
			}
			var hinted interface{ Hint() string }
			if !errors.As(err, &hinted) || hinted.Hint() == "" {
				t.Error("no hint")
			}
			if err := errors.Join(j.Put(record("a/1", "1")), j.Drop("a/1")); err == nil {
				t.Error("it is written to all the same")
			}
			if got, _ := dir.ReadFile("journal.json"); string(got) != text {
				t.Errorf("the file is now %q", got)
			}
		})
	}
}

// broken fails every write, before it does anything.
type broken struct{ fsys.Dir }

var errFull = errors.New("no space left on device")

func (broken) WriteAtomic(string, []byte, fs.FileMode) error { return errFull }
func (broken) Remove(string) error                           { return errFull }

func TestAWriteThatFailsIsReportedAndChangesNothing(t *testing.T) {
	dir := fsys.Dir(t.TempDir())
	j := journal.New(dir, "journal.json")
	if err := j.Put(record("a/1", "1")); err != nil {
		t.Fatal(err)
	}
	want := open(t, j)
	b := journal.New(broken{dir}, "journal.json")
	if err := b.Put(record("b/2", "2")); !errors.Is(err, errFull) {
		t.Errorf("put: %v", err)
	}
	if err := b.Drop("a/1"); !errors.Is(err, errFull) {
		t.Errorf("drop: %v", err)
	}
	if got := open(t, j); got != want {
		t.Errorf("journal is %q, want %q", got, want)
	}
}

func TestTheLockHasOneHolderWhoIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "lock")
	first, err := journal.Acquire(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = journal.Acquire(ctx, path)
	var held *journal.HeldError
	if !errors.As(err, &held) {
		t.Fatalf("err = %v", err)
	}
	if want := fmt.Sprintf("%s is held by process %d", path, os.Getpid()); err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, err := journal.Acquire(ctx, path)
	if err != nil {
		t.Fatalf("a lock that is free is not had: %v", err)
	}
	second.Release()
}

func TestAWaiterGetsTheLockWhenItIsReleased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := journal.Acquire(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		l, err := journal.Acquire(t.Context(), path)
		if err == nil {
			err = l.Release()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("two holders, %v", err)
	default:
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

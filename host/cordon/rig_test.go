package cordon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/cordon"
	"nodelocaldns/host/cordon/cordontest"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/step"
)

// rig is a node of a cluster with one file that its kubelet reads at its start.
// Whatever is done to the file, the kubelet, the cluster or the journal is a
// point, at which something can happen.
type rig struct {
	*cordontest.Cluster
	t       *testing.T
	mode    drain.Mode
	options drain.Options
	timeout time.Duration
	machine string
	limited bool
	noAPI   error             // why there is none
	rejects func(string) bool // with which file the kubelet does not come back

	recs       []engine.Record
	file, runs string
	starts     int
	log        strings.Builder

	points int
	at     int // something happens at this one, from 1; 0: nothing does
	what   func(request bool, do func()) error
}

type powerCut struct{}

// A fault is what can happen at a point. To the file, the kubelet and the
// journal only power cuts do.
type fault struct {
	name string
	do   func(r *rig, request bool, do func()) error
}

var errNoReply = fmt.Errorf("asking the API server: %w", apiserver.ErrUnreachable)

var faults = []fault{
	{"cut before", func(*rig, bool, func()) error { panic(powerCut{}) }},
	{"cut after", func(_ *rig, _ bool, do func()) error { do(); panic(powerCut{}) }},
	{"refused", func(_ *rig, request bool, do func()) error {
		if request {
			return errNoReply
		}
		do()
		return nil
	}},
	{"reply lost", func(_ *rig, request bool, do func()) error {
		if do(); request {
			return errNoReply
		}
		return nil
	}},
	{"busy", func(_ *rig, request bool, do func()) error {
		if request {
			return &apiserver.Busy{Err: errors.New("429 Too Many Requests")}
		}
		do()
		return nil
	}},
	{"gone from here on", func(r *rig, request bool, do func()) error { return r.gone(request, do) }},
	{"gone from here on, and this reply lost", func(r *rig, request bool, do func()) error {
		r.at, r.what = r.points+1, r.gone
		if do(); request {
			return errNoReply
		}
		return nil
	}},
}

// gone is an API server that is away, and stays so.
func (r *rig) gone(request bool, do func()) error {
	r.at, r.what = r.points+1, r.gone
	if request {
		return errNoReply
	}
	do()
	return nil
}

func newRig(t *testing.T, mode drain.Mode, kubelet string) *rig {
	r := &rig{
		Cluster: cordontest.New(kubelet), t: t, mode: mode, timeout: 5 * time.Minute, machine: "m1", limited: true,
		file: "old", runs: "old",
	}
	r.Request = func(_ string, do func()) error { return r.point(true, do) }
	for _, name := range []string{"web-1", "web-2"} {
		r.Pods = append(r.Pods, apiserver.Pod{
			Namespace: "shop", Name: name, UID: "uid-" + name, Ready: true, Owner: apiserver.Owner{Kind: "ReplicaSet", Name: "web"},
		})
	}
	return r
}

func (r *rig) point(request bool, do func()) error {
	if r.points++; r.points == r.at {
		return r.what(request, do)
	}
	do()
	return nil
}

// arm has something happen at a point of the next process.
func (r *rig) arm(at int, what func(request bool, do func()) error) {
	if r.at, r.what = 0, what; at > 0 {
		r.at = r.points + at
	}
}

// process is a new one. It may be cut off.
func (r *rig) process(ctx context.Context, do func(ctx context.Context, e *engine.Engine) error) (cut bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if cut, err = true, errors.New("cut off"); p != (powerCut{}) {
				panic(p)
			}
		}
	}()
	cfg := cordon.Config{
		Restart: restart{r, slices.ContainsFunc(r.recs, isWindow)}, Settle: settle,
		Connect: func(context.Context) (cordon.API, string, error) { return r.API(), "n1", r.noAPI },
		Mode:    r.mode, Options: r.options, Timeout: r.timeout, Machine: r.machine, Boot: "b1",
		Log: slog.New(slog.NewTextHandler(&r.log, nil)), Now: time.Now, Rand: func() float64 { return 0 },
	}
	cfg.Options.Timeout = r.timeout
	if r.limited {
		cfg.Limit = r.Limit()
	}
	if i := slices.IndexFunc(r.recs, isWindow); i >= 0 {
		cfg.Left, cfg.Inside = true, r.recs[i].Stage == engine.Opened
	}
	return false, do(ctx, &engine.Engine{
		Journal: r, Now: time.Now, Grace: 20 * time.Minute,
		Plan: []engine.Item{{Window: cordon.New(cfg), Steps: []step.Step{file{r}}}},
	})
}

func apply(ctx context.Context, e *engine.Engine) error    { return e.Apply(ctx) }
func rollback(ctx context.Context, e *engine.Engine) error { return e.Rollback(ctx) }

func (r *rig) apply() error {
	_, err := r.process(r.t.Context(), apply)
	return err
}

func (r *rig) rollback() error {
	_, err := r.process(r.t.Context(), rollback)
	return err
}

// String is all that there is to see.
func (r *rig) String() string {
	out := fmt.Sprintf("node: %s\nfile: %s, kubelet runs with %s\n", r.Cluster, r.file, r.runs)
	for _, rec := range r.recs {
		out += fmt.Sprintf("record: %s %s\n", rec.Name, rec.Stage)
	}
	return out
}

const (
	asBefore = "node: schedulable\nfile: old, kubelet runs with old\n"
	applied  = "node: schedulable\nfile: new, kubelet runs with new\nrecord: file \n"
)

func isWindow(rec engine.Record) bool { return rec.Name == "window" }

func (r *rig) Put(rec engine.Record) error {
	return r.point(false, func() {
		if i := slices.IndexFunc(r.recs, func(o engine.Record) bool { return o.Name == rec.Name }); i >= 0 {
			r.recs[i] = rec
			return
		}
		r.recs = append(r.recs, rec)
	})
}

func (r *rig) Drop(name string) error {
	return r.point(false, func() {
		r.recs = slices.DeleteFunc(r.recs, func(o engine.Record) bool { return o.Name == name })
	})
}

func (r *rig) Open() ([]engine.Record, error) { return slices.Clone(r.recs), nil }

// file is the step.
type file struct{ r *rig }

func (f file) Name() string { return "file" }

func (f file) Check(context.Context) (step.Finding, error) {
	if f.r.file == "new" {
		return step.Finding{State: step.Satisfied}, nil
	}
	return step.Finding{State: step.Pending, Before: json.RawMessage(`"old"`), After: json.RawMessage(`"new"`)}, nil
}

func (f file) Apply(context.Context) error {
	return f.r.point(false, func() { f.r.file = "new" })
}

func (f file) Undo(context.Context, step.Saved) error {
	return f.r.point(false, func() { f.r.file = "old" })
}

// restart is the kubelet's own window.
type restart struct {
	r    *rig
	left bool
}

const settle = 30 * time.Second

func (w restart) Name() string                           { return "window" }
func (w restart) Due(context.Context) (bool, error)      { return w.r.runs != w.r.file, nil }
func (w restart) Open(context.Context, time.Time) error  { return nil }
func (w restart) Close(context.Context, time.Time) error { return nil }

func (w restart) Settle(context.Context) error {
	if !w.left && w.r.runs == w.r.file {
		return nil
	}
	if err := w.r.point(false, func() { w.r.runs = w.r.file; w.r.starts++ }); err != nil {
		return err
	}
	if w.r.rejects != nil && w.r.rejects(w.r.file) {
		w.r.runs = "nothing"
		return errors.New("kubelet.service did not come back")
	}
	time.Sleep(settle) // on the clock of synctest
	return nil
}

// in is a test on a clock that jumps.
func in(t *testing.T, mode drain.Mode, kubelet string, do func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { do(t, newRig(t, mode, kubelet)) })
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func mustFail(t *testing.T, err error, want, hint string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(hintOf(err), hint) {
		t.Fatalf("err = %v\nhint: %s\nwant one with %q\nhint: %s", err, hintOf(err), want, hint)
	}
}

func equal(t *testing.T, what string, got fmt.Stringer, want string) {
	t.Helper()
	if got.String() != want {
		t.Errorf("%s:\n%swant:\n%s", what, got, want)
	}
}

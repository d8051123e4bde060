package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/step"
)

// node is a whole fake node: keys and values, printed in a stable order, and
// the kubelet that was started with one of them. Every write of a step, a
// window or the journal is counted, and the power can go at each.
type node struct {
	state   map[string]string
	running string // the value of d the kubelet was last started with
	recs    []engine.Record
	log     []string

	writes int
	dieAt  int  // the power goes at this write, counted from 1; 0 never
	landed bool // the write at dieAt is on disk when it goes
}

type powerCut struct{}

func (n *node) write(what string, do func()) {
	n.writes++
	if n.writes == n.dieAt && !n.landed {
		panic(powerCut{})
	}
	do()
	n.log = append(n.log, what)
	if n.writes == n.dieAt {
		panic(powerCut{})
	}
}

// run calls f and survives a power cut in it.
func run(f func() error) {
	defer func() {
		if p := recover(); p != nil && p != (powerCut{}) {
			panic(p)
		}
	}()
	_ = f() // an error is fine here: what counts is the node after the last run
}

func (n *node) String() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(n.state)) {
		fmt.Fprintf(&b, "%s=%s\n", k, n.state[k])
	}
	fmt.Fprintf(&b, "kubelet runs with d=%s\n", n.running)
	return b.String()
}

func (n *node) Put(r engine.Record) error {
	n.write("put "+r.Name, func() {
		if i := slices.IndexFunc(n.recs, func(x engine.Record) bool { return x.Name == r.Name }); i >= 0 {
			n.recs[i] = r
			return
		}
		n.recs = append(n.recs, r)
	})
	return nil
}

func (n *node) Drop(name string) error {
	n.write("drop "+name, func() {
		n.recs = slices.DeleteFunc(n.recs, func(x engine.Record) bool { return x.Name == name })
	})
	return nil
}

func (n *node) Open() ([]engine.Record, error) { return slices.Clone(n.recs), nil }

// changes is what was written to the node, without the journal.
func (n *node) changes() string {
	var out []string
	for _, l := range n.log {
		if !strings.HasPrefix(l, "put ") && !strings.HasPrefix(l, "drop ") {
			out = append(out, l)
		}
	}
	n.log = nil
	return strings.Join(out, " ")
}

// key is the step that sets one key.
type key struct {
	n          *node
	name, want string
	blocked    string
	fails      error           // what Apply returns after it wrote
	released   bool            // a stranger's value is released, not refused
	during     func()          // called while applying and undoing
	undoCtx    context.Context // of the last Undo
}

type value struct {
	Exists bool
	Value  string
}

func (k *key) now() json.RawMessage {
	v, ok := k.n.state[k.name]
	b, _ := json.Marshal(value{ok, v})
	return b
}

func (k *key) Name() string { return "key/" + k.name }

func (k *key) Check(context.Context) (step.Finding, error) {
	if k.blocked != "" {
		return step.Finding{State: step.Blocked, Why: k.blocked, Hint: "mend it"}, nil
	}
	if v, ok := k.n.state[k.name]; ok && v == k.want {
		return step.Finding{State: step.Satisfied}, nil
	}
	after, _ := json.Marshal(value{true, k.want})
	return step.Finding{State: step.Pending, Before: k.now(), After: after}, nil
}

func (k *key) Apply(context.Context) error {
	if k.during != nil {
		k.during()
	}
	k.n.write("apply:"+k.name, func() { k.n.state[k.name] = k.want })
	return k.fails
}

func (k *key) Undo(ctx context.Context, s step.Saved) error {
	k.undoCtx = ctx
	if err := ctx.Err(); err != nil {
		return err
	}
	now := string(k.now())
	if now == string(s.Before) {
		return nil
	}
	if !slices.ContainsFunc(s.After, func(a json.RawMessage) bool { return string(a) == now }) {
		if k.released {
			return fmt.Errorf("looking: %w", &step.Released{Why: k.name + " is somebody else's"})
		}
		return fmt.Errorf("%s changed since we wrote it", k.name)
	}
	var before value
	if err := json.Unmarshal(s.Before, &before); err != nil {
		return err
	}
	k.n.write("undo:"+k.name, func() {
		if before.Exists {
			k.n.state[k.name] = before.Value
		} else {
			delete(k.n.state, k.name)
		}
	})
	return nil
}

// window cordons, restarts the kubelet and uncordons. It marks the cordon, so
// that it never takes away somebody else's.
type window struct {
	n       *node
	pdb     bool     // the drain is refused
	rejects []string // values of d with which the kubelet does not come back
	during  func()
	since   []time.Time // of each Open and Close

	undecided error // what Due returns
}

func (w *window) Name() string { return "window/kubelet" }

func (w *window) Due(context.Context) (bool, error) {
	return w.n.running != w.n.state["d"], w.undecided
}

func (w *window) Open(ctx context.Context, since time.Time) error {
	w.since = append(w.since, since)
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.n.state["cordoned"] == "" {
		w.n.write("cordon", func() { w.n.state["cordoned"] = "by us" })
	}
	if w.pdb {
		return errors.New("drain: disruption budget")
	}
	return nil
}

func (w *window) Settle(ctx context.Context) error {
	if w.during != nil {
		w.during()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.n.write("restart", func() { w.n.running = w.n.state["d"] })
	if slices.Contains(w.rejects, w.n.running) {
		return errors.New("kubelet not Ready after 2m0s")
	}
	return nil
}

func (w *window) Close(ctx context.Context, since time.Time) error {
	w.since = append(w.since, since)
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.n.state["cordoned"] == "by us" {
		w.n.write("uncordon", func() { delete(w.n.state, "cordoned") })
	}
	return nil
}

// rig is a node with three steps that disturb nobody and one in the window.
type rig struct {
	*node
	*engine.Engine
	a, b, c, d *key
	w          *window
	notes      []string
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newRig() *rig {
	n := &node{state: map[string]string{"b": "1", "d": "old", "unrelated": "x"}, running: "old"}
	r := &rig{
		node: n,
		a:    &key{n: n, name: "a", want: "new"},
		b:    &key{n: n, name: "b", want: "new"},
		c:    &key{n: n, name: "c", want: "new"},
		d:    &key{n: n, name: "d", want: "new"},
		w:    &window{n: n},
	}
	r.Engine = &engine.Engine{
		Journal: n,
		Plan: []engine.Item{
			{Steps: []step.Step{r.a, r.b, r.c}},
			{Window: r.w, Steps: []step.Step{r.d}},
		},
		Now:  func() time.Time { return epoch },
		Note: func(name, what, why string) { r.notes = append(r.notes, name+": "+what+": "+why) },
	}
	return r
}

func (r *rig) windowOnly() *rig {
	r.Plan = r.Plan[1:]
	return r
}

func (r *rig) String() string { return r.node.String() }

func mustFail(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("err = %v\nwant one with %q", err, want)
	}
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

func noRecords(t *testing.T, r *rig) {
	t.Helper()
	if len(r.recs) != 0 {
		t.Errorf("journal has %v, want it empty", r.recs)
	}
}

func TestBackIsForwardReversedWithinTheSameWindow(t *testing.T) {
	r := newRig()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "apply", r.changes(), "apply:a apply:b apply:c cordon apply:d restart uncordon")
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(r.log) != 0 {
		t.Errorf("a second apply wrote %q", r.log)
	}
	if err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "rollback", r.changes(), "cordon undo:d restart uncordon undo:c undo:b undo:a")
	noRecords(t, r)
	if err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(r.log) != 0 {
		t.Errorf("a second rollback wrote %q", r.log)
	}
}

// The power goes at any write of an apply, of a second apply with another
// value, and of the rollback after that: one more rollback restores the node.
func TestRollbackRestoresTheNodeAfterPowerCutsAnywhere(t *testing.T) {
	ref := newRig()
	want := ref.String()
	if err := ref.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	total, cases := ref.writes, 0
	for first := range total + 1 {
		for second := range total + 1 {
			for third := range total + 1 {
				for landed := range 8 {
					cases++
					r := newRig()
					arm := func(at, bit int) {
						r.dieAt, r.landed = 0, landed&bit != 0
						if at > 0 {
							r.dieAt = r.writes + at
						}
					}
					arm(first, 1)
					run(func() error { return r.Apply(t.Context()) })
					r.d.want = "newer"
					arm(second, 2)
					run(func() error { return r.Apply(t.Context()) })
					arm(third, 4)
					run(func() error { return r.Rollback(t.Context()) })
					r.dieAt = 0
					if err := r.Rollback(t.Context()); err != nil {
						t.Fatalf("cuts at %d %d %d, landed %03b: %v", first, second, third, landed, err)
					}
					if got := r.String(); got != want {
						t.Fatalf("cuts at %d %d %d, landed %03b:\ngot:\n%swant:\n%s", first, second, third, landed, got, want)
					}
					if len(r.recs) != 0 {
						t.Fatalf("cuts at %d %d %d, landed %03b: journal has %v", first, second, third, landed, r.recs)
					}
				}
			}
		}
	}
	t.Logf("%d combinations over %d writes", cases, total)
}

// The same for a kubelet that does not come back with the second value: the
// power also goes while that is taken back.
func TestRollbackRestoresTheNodeAfterPowerCutsInAFailingApply(t *testing.T) {
	want := newRig().String()
	ref := newRig()
	ref.w.rejects = []string{"new"}
	run(func() error { return ref.Apply(t.Context()) })
	total := ref.writes
	for first := range total + 1 {
		for second := range total + 1 {
			for landed := range 4 {
				r := newRig()
				r.w.rejects = []string{"new"}
				r.dieAt, r.landed = first, landed&1 != 0
				run(func() error { return r.Apply(t.Context()) })
				r.dieAt, r.landed = 0, landed&2 != 0
				if second > 0 {
					r.dieAt = r.writes + second
				}
				run(func() error { return r.Rollback(t.Context()) })
				r.dieAt = 0
				if err := r.Rollback(t.Context()); err != nil {
					t.Fatalf("cuts at %d %d, landed %02b: %v", first, second, landed, err)
				}
				if got := r.String(); got != want || len(r.recs) != 0 {
					t.Fatalf("cuts at %d %d, landed %02b: journal %v\ngot:\n%swant:\n%s", first, second, landed, r.recs, got, want)
				}
			}
		}
	}
}

// filesOnly is a run that may restart nothing, as at boot: what it leaves waits
// for a window.
func (r *rig) filesOnly() *rig {
	r.Plan = []engine.Item{r.Plan[0], {Steps: []step.Step{r.d}}}
	return r
}

// The same after a run that was to write files only: one more rollback
// restores what runs too, and one more apply brings it up to date.
func TestWhatWasDoneWithoutTheWindowIsSettledAfterPowerCutsAnywhere(t *testing.T) {
	before := newRig().String()
	ref := newRig()
	if err := ref.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, total := ref.String(), ref.writes
	for _, tt := range []struct {
		name    string
		cut     func(*rig) error // after a run with files only
		last    func(*rig) error
		want    string
		records int
	}{
		{"apply, rollback", func(r *rig) error { return r.Apply(t.Context()) }, func(r *rig) error { return r.Rollback(t.Context()) }, before, 0},
		{"rollback, rollback", func(r *rig) error { return r.Rollback(t.Context()) }, func(r *rig) error { return r.Rollback(t.Context()) }, before, 0},
		{"apply, apply", func(r *rig) error { return r.Apply(t.Context()) }, func(r *rig) error { return r.Apply(t.Context()) }, after, 4},
		{"rollback, apply", func(r *rig) error { return r.Rollback(t.Context()) }, func(r *rig) error { return r.Apply(t.Context()) }, after, 4},
		{"files only again, rollback", func(r *rig) error { return r.filesOnly().Rollback(t.Context()) }, func(r *rig) error { return r.Rollback(t.Context()) }, before, 0},
	} {
		for first := range total + 1 {
			for second := range total + 1 {
				for landed := range 4 {
					r := newRig()
					plan := r.Plan
					r.dieAt, r.landed = first, landed&1 != 0
					run(func() error { return r.filesOnly().Apply(t.Context()) })
					r.Plan = plan
					r.dieAt, r.landed = 0, landed&2 != 0
					if second > 0 {
						r.dieAt = r.writes + second
					}
					run(func() error { return tt.cut(r) })
					r.Plan, r.dieAt = plan, 0
					at := fmt.Sprintf("%s: cuts at %d %d, landed %02b", tt.name, first, second, landed)
					if err := tt.last(r); err != nil {
						t.Fatalf("%s: %v", at, err)
					}
					if got := r.String(); got != tt.want {
						t.Fatalf("%s:\ngot:\n%swant:\n%s", at, got, tt.want)
					}
					done := slices.DeleteFunc(slices.Clone(r.recs), func(rec engine.Record) bool { return !rec.Done })
					if len(r.recs) != tt.records || len(done) != tt.records {
						t.Fatalf("%s: journal has %v, want %d records that are done", at, r.recs, tt.records)
					}
				}
			}
		}
	}
}

func TestAWindowThatIsDueIsOpenedThoughNoStepHasAnythingToDo(t *testing.T) {
	r := newRig()
	plan := r.Plan
	if err := r.filesOnly().Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Plan = plan
	r.changes()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "apply", r.changes(), "cordon restart uncordon")

	if err := r.filesOnly().Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Plan = plan
	r.changes()
	if err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "rollback", r.changes(), "cordon restart uncordon")
	if err := r.Rollback(t.Context()); err != nil || len(r.log) != 0 {
		t.Errorf("a second rollback: %v, wrote %q", err, r.log)
	}
}

func TestAWindowThatIsDueWithAKubeletThatDoesNotComeBackIsTakenBack(t *testing.T) {
	r := newRig().windowOnly()
	want := r.String()
	window := r.Plan[0].Window
	r.Plan[0].Window = nil
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.changes()
	r.Plan[0].Window, r.w.rejects = window, []string{"new"}
	mustFail(t, r.Apply(t.Context()), "window/kubelet: undone: kubelet not Ready")
	equal(t, "order", r.changes(), "cordon restart undo:d restart uncordon")
	equal(t, "node", r.String(), want)
	noRecords(t, r)
}

func TestARunWithoutTheWindowThatWasCutOffIsDoneWithoutAnotherRestart(t *testing.T) {
	r := newRig().windowOnly()
	window := r.Plan[0].Window
	r.Plan[0].Window = nil
	r.dieAt, r.landed = 2, true // after Apply: the record is not done yet
	run(func() error { return r.Apply(t.Context()) })
	r.Plan[0].Window, r.dieAt = window, 0
	r.running = "new" // it was started since
	r.changes()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "order", r.changes(), "")
	if len(r.recs) != 1 || !r.recs[0].Done {
		t.Errorf("journal has %v, want key/d, done", r.recs)
	}
}

func TestAWindowThatCannotTellWhetherItIsDueStaysShut(t *testing.T) {
	r := newRig().windowOnly()
	r.d.want = "old"
	r.w.undecided = errors.New("nobody can be asked")
	mustFail(t, r.Apply(t.Context()), "window/kubelet: nobody can be asked")
	mustFail(t, r.Rollback(t.Context()), "window/kubelet: nobody can be asked")
	if r.writes != 0 {
		t.Errorf("wrote %q", r.log)
	}
}

func TestRollbackDisturbsNobodyForStepsThatAreKept(t *testing.T) {
	r := newRig().windowOnly()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.changes()
	r.running = "older" // the window is due
	if err := r.Rollback(t.Context(), "key/d"); err != nil {
		t.Fatal(err)
	}
	equal(t, "order", r.changes(), "")
}

func TestAWindowThatIsKeptIsLeftAsItIs(t *testing.T) {
	r := newRig().windowOnly()
	r.w.rejects = []string{"new", "old"}
	mustFail(t, r.Apply(t.Context()), "left open")
	r.changes()
	if err := r.Rollback(t.Context(), "window/kubelet"); err != nil {
		t.Fatal(err)
	}
	equal(t, "order", r.changes(), "")
	if len(r.recs) != 1 || r.recs[0].Name != "window/kubelet" {
		t.Errorf("journal has %v, want the window", r.recs)
	}
}

func TestApplyConvergesAfterAPowerCutAnywhere(t *testing.T) {
	ref := newRig()
	if err := ref.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := ref.String()
	for at := 1; at <= ref.writes; at++ {
		for _, landed := range []bool{false, true} {
			r := newRig()
			r.dieAt, r.landed = at, landed
			run(func() error { return r.Apply(t.Context()) })
			r.dieAt = 0
			if err := r.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := r.String(); got != want {
				t.Fatalf("cut at %d, landed %v:\ngot:\n%swant:\n%s", at, landed, got, want)
			}
			for _, rec := range r.recs {
				if !rec.Done || rec.Name == r.w.Name() {
					t.Fatalf("cut at %d, landed %v: %s is left open", at, landed, rec.Name)
				}
			}
		}
	}
}

func TestWindowLeavesAForeignCordonInPlace(t *testing.T) {
	r := newRig()
	r.state["cordoned"] = "by an admin"
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "cordon", r.state["cordoned"], "by an admin")
}

func TestARefusedDrainUncordonsAndTouchesNothing(t *testing.T) {
	r := newRig().windowOnly()
	want := r.String()
	r.w.pdb = true
	mustFail(t, r.Apply(t.Context()), "window/kubelet: open: drain: disruption budget")
	equal(t, "node", r.String(), want)
	noRecords(t, r)
}

func TestAKubeletThatDoesNotComeBackIsRestoredAndUncordoned(t *testing.T) {
	r := newRig().windowOnly()
	want := r.String()
	r.w.rejects = []string{"new"}
	mustFail(t, r.Apply(t.Context()), "window/kubelet: undone: kubelet not Ready")
	equal(t, "order", r.changes(), "cordon apply:d restart undo:d restart uncordon")
	equal(t, "node", r.String(), want)
	noRecords(t, r)
}

func TestAFailedReapplyGoesBackToTheOriginalAndNotToTheLastValue(t *testing.T) {
	r := newRig().windowOnly()
	want := r.String()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.d.want, r.w.rejects = "newer", []string{"newer"}
	mustFail(t, r.Apply(t.Context()), "window/kubelet: undone")
	equal(t, "node", r.String(), want)
	noRecords(t, r)
}

func TestASecondFailedSettleKeepsTheCordonAndItsRecord(t *testing.T) {
	r := newRig().windowOnly()
	want := r.String()
	r.w.rejects = []string{"new", "old"}
	err := r.Apply(t.Context())
	mustFail(t, err, "window/kubelet: left open: kubelet not Ready")
	equal(t, "order", r.changes(), "cordon apply:d restart undo:d restart")
	equal(t, "cordon", r.state["cordoned"], "by us")
	if len(r.recs) != 1 || r.recs[0].Name != "window/kubelet" {
		t.Fatalf("journal has %v, want the window", r.recs)
	}
	var hinted interface{ Hint() string }
	if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "cordoned") {
		t.Errorf("no hint says that the node stays cordoned")
	}

	// The next run settles first, and only a kubelet that is back ends it.
	mustFail(t, r.Rollback(t.Context()), "left open")
	equal(t, "cordon after a rollback in vain", r.state["cordoned"], "by us")
	r.w.rejects = nil
	if err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "node", r.String(), want)
	noRecords(t, r)
}

// What was cut off while pods were moved away has changed nothing.
func TestADrainThatWasCutOffAndIsRefusedThenIsTakenBack(t *testing.T) {
	r := newRig().windowOnly()
	want := r.String()
	r.dieAt, r.landed = 2, true // the record, the cordon
	run(func() error { return r.Apply(t.Context()) })
	equal(t, "cordon", r.state["cordoned"], "by us")
	r.dieAt, r.w.pdb = 0, true
	mustFail(t, r.Apply(t.Context()), "window/kubelet: open: drain: disruption budget")
	equal(t, "node", r.String(), want)
	noRecords(t, r)
}

func TestADrainThatIsRefusedAfterWorkWasBegunStaysOpen(t *testing.T) {
	r := newRig().windowOnly()
	r.w.during = func() { panic(powerCut{}) }
	run(func() error { return r.Apply(t.Context()) })
	r.w.during, r.w.pdb = nil, true
	mustFail(t, r.Apply(t.Context()), "window/kubelet: open: drain: disruption budget")
	equal(t, "cordon", r.state["cordoned"], "by us")
	if len(r.recs) != 2 || r.recs[0].Stage != engine.Opened {
		t.Errorf("journal has %v, want the window, opened", r.recs)
	}
}

// unclosed is a window that does not close.
type unclosed struct{ *window }

func (unclosed) Close(context.Context, time.Time) error { return errors.New("no reply") }

func TestAWindowThatSettledAndDidNotCloseIsClosedWithoutAnotherRestart(t *testing.T) {
	r := newRig().windowOnly()
	r.Plan[0].Window = unclosed{r.w}
	mustFail(t, r.Apply(t.Context()), "window/kubelet: close: no reply")
	r.changes()
	r.Plan[0].Window = r.w
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "the next run", r.changes(), "uncordon")
	if len(r.recs) != 1 {
		t.Errorf("journal has %v, want no window", r.recs)
	}

	r.Plan[0].Window = unclosed{r.w}
	mustFail(t, r.Rollback(t.Context()), "window/kubelet: close: no reply")
	r.changes()
	r.Plan[0].Window = r.w
	r.d.want = "newer"
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "one that has something to do", r.changes(), "apply:d restart uncordon")
}

// A cordon is told by when its window was opened, whoever closes it.
func TestAWindowKeepsItsNameOverPowerCuts(t *testing.T) {
	ref := newRig()
	if err := ref.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= ref.writes; at++ {
		for _, landed := range []bool{false, true} {
			r := newRig()
			r.Now = func() time.Time { return epoch.Add(time.Duration(r.writes) * time.Hour) } // not the same twice
			r.dieAt, r.landed = at, landed
			run(func() error { return r.Apply(t.Context()) })
			r.dieAt = 0
			var left []time.Time
			for _, rec := range r.recs {
				if rec.Name == r.w.Name() {
					left = append(left, rec.Since)
				}
			}
			had := len(r.w.since)
			if err := r.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			now := r.w.since[had:]
			if len(left) > 0 && (len(now) == 0 || !now[0].Equal(left[0])) {
				t.Errorf("cut at %d, landed %t: opened again as %s, want %s", at, landed, now, left)
			}
			for i := 1; i < len(now); i += 2 {
				if !now[i].Equal(now[i-1]) {
					t.Errorf("cut at %d, landed %t: opened and closed as %s", at, landed, now)
				}
			}
		}
	}
}

func TestACancelledApplyStillTakesTheWindowBack(t *testing.T) {
	r := newRig().windowOnly()
	want := r.String()
	ctx, cancel := context.WithCancel(t.Context())
	r.d.during, r.d.fails = cancel, errors.New("interrupted")
	mustFail(t, r.Apply(ctx), "window/kubelet: undone: key/d: apply: interrupted")
	equal(t, "node", r.String(), want)
	noRecords(t, r)
	if _, bounded := r.d.undoCtx.Deadline(); !bounded {
		t.Error("undo runs without a deadline")
	}
}

func TestACancelledApplyStillSettlesWhatItDid(t *testing.T) {
	r := newRig().windowOnly()
	ctx, cancel := context.WithCancel(t.Context())
	r.w.during = cancel
	if err := r.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	equal(t, "order", r.changes(), "cordon apply:d restart uncordon")
}

func TestACancelledApplyBeginsNoFurtherStep(t *testing.T) {
	r := newRig()
	ctx, cancel := context.WithCancel(t.Context())
	r.a.during = cancel
	if err := r.Apply(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v", err)
	}
	equal(t, "order", r.changes(), "apply:a")
}

func TestACancelledRollbackIsFinished(t *testing.T) {
	r := newRig()
	r.Plan = r.Plan[:1]
	want := r.String()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	equal(t, "node", r.String(), want)
}

// hung is a step whose Undo never ends by itself.
type hung struct{ *key }

func (h hung) Undo(ctx context.Context, _ step.Saved) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAnUndoThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.Plan = []engine.Item{{Steps: []step.Step{r.a, hung{r.b}}}}
		if err := r.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		mustFail(t, r.Rollback(t.Context()), "key/b: undo: context deadline exceeded")
		if took := time.Since(began); took != engine.DefaultGrace {
			t.Errorf("took %v, want %v", took, engine.DefaultGrace)
		}
		if _, there := r.state["a"]; there {
			t.Error("the other step was not undone")
		}
	})
}

func TestABlockedStepDisturbsNobody(t *testing.T) {
	r := newRig().windowOnly()
	r.d.blocked = "the resolver does not answer"
	mustFail(t, r.Apply(t.Context()), "key/d: blocked: the resolver does not answer")
	if r.writes != 0 {
		t.Errorf("wrote %q", r.log)
	}
}

func TestABlockedOptionalStepIsNotedAndTheRestIsDone(t *testing.T) {
	r := newRig()
	r.a.blocked = "read-only here"
	r.Plan = []engine.Item{
		{Steps: []step.Step{r.a}, Optional: true},
		{Steps: []step.Step{r.b}},
	}
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "order", r.changes(), "apply:b")
	equal(t, "notes", strings.Join(r.notes, "\n"), "key/a: skipped: read-only here")
}

func TestAnIndependentItemThatFailsDoesNotStopTheRest(t *testing.T) {
	r := newRig()
	r.a.blocked, r.b.fails = "foreign device", errors.New("no such rule")
	for i, k := range []*key{r.a, r.b, r.c} {
		if i == 0 {
			r.Plan = nil
		}
		r.Plan = append(r.Plan, engine.Item{Steps: []step.Step{k}, Independent: true})
	}
	err := r.Apply(t.Context())
	mustFail(t, err, "key/a: blocked: foreign device")
	mustFail(t, err, "key/b: apply: no such rule")
	equal(t, "order", r.changes(), "apply:b apply:c")
}

func TestADependentStepIsNotTriedAfterAFailure(t *testing.T) {
	r := newRig()
	r.a.fails = errors.New("disk full")
	mustFail(t, r.Apply(t.Context()), "key/a: apply: disk full")
	equal(t, "order", r.changes(), "apply:a")
}

func TestUndoLeavesAStrangersEditAlone(t *testing.T) {
	r := newRig()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.state["c"] = "edited by hand"
	mustFail(t, r.Rollback(t.Context()), "key/c: undo: c changed since we wrote it")
	equal(t, "node", r.String(), "b=1\nc=edited by hand\nd=old\nunrelated=x\nkubelet runs with d=old\n")
	if len(r.recs) != 1 || r.recs[0].Name != "key/c" {
		t.Errorf("journal has %v, want key/c", r.recs)
	}
}

func TestAStepThatCannotBeUndoneStillSettlesItsWindow(t *testing.T) {
	r := newRig()
	r.Plan = []engine.Item{{Window: r.w, Steps: []step.Step{r.c, r.d}}}
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.changes()
	r.state["c"] = "edited by hand"
	r.w.rejects = []string{"old"}
	err := r.Rollback(t.Context())
	mustFail(t, err, "key/c: undo: c changed since we wrote it")
	mustFail(t, err, "window/kubelet: left open: kubelet not Ready")
	equal(t, "order", r.changes(), "cordon undo:d restart")
	r.w.rejects = nil
	mustFail(t, r.Rollback(t.Context()), "key/c: undo: c changed since we wrote it")
	equal(t, "order later", r.changes(), "restart uncordon")
}

func TestWhatSomebodyElseTookOverIsReleasedAndNoted(t *testing.T) {
	r := newRig()
	r.c.released = true
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.state["c"] = "set by kube-proxy"
	if err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "value", r.state["c"], "set by kube-proxy")
	equal(t, "notes", strings.Join(r.notes, "\n"), "key/c: released: c is somebody else's")
	noRecords(t, r)
}

func TestWhatWasSatisfiedBeforeUsIsNeverUndone(t *testing.T) {
	r := newRig()
	r.state["a"] = "new"
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "a", r.state["a"], "new")
}

func TestRollbackReportsRecordsOfAnotherVersion(t *testing.T) {
	r := newRig()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.windowOnly() // a version that knows nothing of a, b and c
	err := r.Rollback(t.Context())
	for _, name := range []string{"key/a", "key/b", "key/c"} {
		mustFail(t, err, name+": this version has no such step")
	}
	equal(t, "d", r.state["d"], "old")
}

func TestRollbackKeepsWhatItIsToldToKeep(t *testing.T) {
	r := newRig()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.changes()
	if err := r.Rollback(t.Context(), "key/d", "key/b"); err != nil {
		t.Fatal(err)
	}
	equal(t, "order", r.changes(), "undo:c undo:a")
	r.windowOnly()
	if err := r.Rollback(t.Context(), "key/d", "key/b"); err != nil {
		t.Errorf("a kept record is reported: %v", err)
	}
}

func TestARecordDoesNotGrowWhileAStepKeepsFailing(t *testing.T) {
	r := newRig()
	r.Plan = []engine.Item{{Steps: []step.Step{r.a}}}
	r.a.fails = errors.New("no luck")
	for range 5 {
		mustFail(t, r.Apply(t.Context()), "no luck")
		delete(r.state, "a")
	}
	if n := len(r.recs[0].Saved.After); n != 1 {
		t.Errorf("the record has %d states, want 1", n)
	}
}

func TestStatusSaysWhatIsOursAndWhatDrifted(t *testing.T) {
	r := newRig()
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.state["b"] = "somebody's"
	r.d.blocked = "not now"
	r.recs = append(r.recs, engine.Record{Name: "window/kubelet"}, engine.Record{Name: "unit/older", Done: true})
	r.Plan[0].Steps = append(r.Plan[0].Steps, &key{n: r.node, name: "unrelated", want: "x"})
	writes := r.writes
	all, err := r.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all {
		got = append(got, fmt.Sprintf("%s %s ours=%v done=%v drift=%v since=%v err=%v", s.Name, s.State, s.Ours, s.Done, s.Drift, s.Since.Equal(epoch), s.Err))
	}
	equal(t, "status", strings.Join(got, "\n"), strings.Join([]string{
		"key/a satisfied ours=true done=true drift=false since=true err=<nil>",
		"key/b pending ours=true done=true drift=true since=true err=<nil>",
		"key/c satisfied ours=true done=true drift=false since=true err=<nil>",
		"key/unrelated satisfied ours=false done=false drift=false since=false err=<nil>",
		"key/d blocked ours=true done=true drift=true since=true err=<nil>",
		"window/kubelet pending ours=true done=false drift=false since=false err=<nil>",
		"unit/older satisfied ours=true done=true drift=false since=false err=unit/older: this version has no such step",
	}, "\n"))
	if r.writes != writes {
		t.Error("status wrote")
	}
}

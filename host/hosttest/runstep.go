package hosttest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/step"
)

// Journal is a journal in memory that never fails.
type Journal struct {
	Records []engine.Record
}

// Put is engine.Journal.
func (j *Journal) Put(r engine.Record) error {
	if i := slices.IndexFunc(j.Records, func(x engine.Record) bool { return x.Name == r.Name }); i >= 0 {
		j.Records[i] = r
		return nil
	}
	j.Records = append(j.Records, r)
	return nil
}

// Drop is engine.Journal.
func (j *Journal) Drop(name string) error {
	j.Records = slices.DeleteFunc(j.Records, func(x engine.Record) bool { return x.Name == name })
	return nil
}

// Open is engine.Journal.
func (j *Journal) Open() ([]engine.Record, error) { return slices.Clone(j.Records), nil }

// Engine returns an engine for one step.
func (j *Journal) Engine(s step.Step) *engine.Engine {
	return &engine.Engine{
		Journal: j,
		Plan:    []engine.Item{{Steps: []step.Step{s}}},
		Now:     func() time.Time { return time.Unix(0, 0).UTC() },
	}
}

// RunStep shows what must hold for every step: check writes nothing, apply
// leaves the lines of want and no others that were not there, apply twice is
// apply once, apply then undo restores the node, and so does undo after any
// write of apply or undo failed or lost power. setup returns a new node each
// time, and build the step on it.
func RunStep(t *testing.T, setup func() *Node, build func(*Node) step.Step, want string) {
	t.Helper()

	t.Run("check writes nothing", func(t *testing.T) {
		n := setup()
		had := n.Writes()
		f, err := build(n).Check(t.Context())
		if err != nil || f.State != step.Pending || f.Diff == "" || f.Why == "" {
			t.Fatalf("check found %+v, %v; want pending, why and diff", f, err)
		}
		if n.Writes() != had {
			t.Errorf("check wrote %d times", n.Writes()-had)
		}
	})

	t.Run("apply twice is apply once", func(t *testing.T) {
		n, j := setup(), &Journal{}
		before := n.String()
		if err := j.Engine(build(n)).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, added(before, n.String())); diff != "" {
			t.Errorf("apply left (-want +got):\n%s", diff)
		}
		writes := n.Writes()
		if err := j.Engine(build(n)).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n.Writes() != writes {
			t.Errorf("the second apply wrote %d times", n.Writes()-writes)
		}
	})

	t.Run("apply then undo restores the node", func(t *testing.T) {
		n, j := setup(), &Journal{}
		before := n.String()
		if err := j.Engine(build(n)).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := j.Engine(build(n)).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, n.String()); diff != "" {
			t.Errorf("the node (-before +after):\n%s", diff)
		}
	})

	t.Run("a fault at any write is undone", func(t *testing.T) {
		n, j := setup(), &Journal{}
		had := n.Writes()
		if err := j.Engine(build(n)).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		total := n.Writes() - had
		if err := j.Engine(build(n)).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		back := n.Writes() - had - total
		for _, fault := range []Fault{Fail, CutBefore, CutAfter} {
			for at := range total + 1 {
				for at2 := range back + 1 {
					n, j := setup(), &Journal{}
					before := n.String()
					n.Arm(at, fault)
					faulty(t, func() error { return j.Engine(build(n)).Apply(t.Context()) })
					n.Arm(at2, fault)
					faulty(t, func() error { return j.Engine(build(n)).Rollback(t.Context()) })
					n.Arm(0, 0)
					if err := j.Engine(build(n)).Rollback(t.Context()); err != nil {
						t.Fatalf("fault %d at writes %d and %d: %v", fault, at, at2, err)
					}
					if diff := cmp.Diff(before, n.String()); diff != "" {
						t.Fatalf("fault %d at writes %d and %d (-before +after):\n%s", fault, at, at2, diff)
					}
				}
			}
		}
	})
}

// faulty runs f, which may end with an injected fault or a power cut, and with
// no other error.
func faulty(t *testing.T, f func() error) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil && p != (PowerCut{}) {
			panic(p)
		}
	}()
	if err := f(); err != nil && !errors.Is(err, ErrFault) {
		t.Fatal(err)
	}
}

// added is the lines of after that are not in before.
func added(before, after string) string {
	old := strings.Split(before, "\n")
	var out []string
	for _, line := range strings.Split(after, "\n") {
		if i := slices.Index(old, line); i >= 0 {
			old = slices.Delete(old, i, i+1)
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

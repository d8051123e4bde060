package standby

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/systemd"
)

// A restarting systemd restarts the resolver while it is asked: its first
// questions find the process that is asked to end, the others the next one, which
// has failed.
type restarting struct {
	questions int // until now
	after     int // how many find the first process
	forever   bool
}

func (r *restarting) next() bool {
	r.questions++
	return r.questions > r.after
}

func (r *restarting) States(_ context.Context, units ...string) ([]systemd.State, error) {
	out := make([]systemd.State, len(units))
	out[0] = systemd.State{Active: "deactivating", Job: "restart"}
	if r.next() {
		out[0] = systemd.State{Active: "failed"}
	}
	return out, nil
}

func (r *restarting) Some(_ context.Context, _, _ string, names ...string) (systemd.Properties, error) {
	p := systemd.Properties{}
	for _, n := range names {
		next := r.next()
		at, result := uint64(1e6), "success"
		if next {
			at, result = 2e6, "exit-code"
		}
		if n == "Result" {
			p[n] = result
		} else {
			p[n] = at
		}
		if r.forever && n == "StateChangeTimestampMonotonic" {
			p[n] = uint64(r.questions)
		}
	}
	return p, nil
}

func TestALookIsOfOneMoment(t *testing.T) {
	first := Resolver{Unit: Unit{Active: "deactivating", Job: true}, Begun: time.Second, Ready: time.Second, Result: "success"}
	second := Resolver{Unit: Unit{Active: "failed"}, Begun: 2 * time.Second, Ready: 2 * time.Second, Result: "exit-code"}
	seen := map[string]int{}
	for after := range 12 {
		s, err := look(t.Context(), &restarting{after: after})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, s.Resolver); diff == "" {
			seen["first"]++
		} else if diff := cmp.Diff(second, s.Resolver); diff == "" {
			seen["second"]++
		} else {
			t.Errorf("restarted after %d questions: %+v", after, s.Resolver)
		}
	}
	if seen["first"] == 0 || seen["second"] == 0 {
		t.Errorf("seen: %v, want both", seen)
	}
	if s, err := look(t.Context(), &restarting{forever: true}); err == nil {
		t.Errorf("%+v of a unit that changes for ever", s)
	}
}

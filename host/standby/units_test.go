package standby

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
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

// tree is what is in a directory, a link as systemd's tmpfiles.d has it.
func tree(t *testing.T, root string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if target, notLink := os.Readlink(file); notLink == nil {
			name += " -> " + target
		} else if info, ierr := e.Info(); ierr == nil {
			name += " " + info.Mode().String()
		}
		out = append(out, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTheResolversRootIsMadeAgain(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	want := []string{
		". drwxr-xr-x",
		"lib -> usr/lib",
		"run drwxr-xr-x",
		"run/NetworkManager -> /node/run/NetworkManager",
		"run/connman -> /node/run/connman",
		"run/netconfig -> /node/run/netconfig",
		"run/nodelocaldns -> /node/run/nodelocaldns",
		"run/resolvconf -> /node/run/resolvconf",
		"run/systemd drwxr-xr-x",
		"run/systemd/notify -> /node/run/systemd/notify",
		"run/systemd/resolve -> /node/run/systemd/resolve",
		"var drwxr-xr-x",
		"var/run -> ../run",
	}
	for _, gone := range []string{".", "nothing", "run", "run/systemd/notify", "lib", "var/run"} {
		if err := os.RemoveAll(filepath.Join(root, gone)); err != nil {
			t.Fatal(err)
		}
		if err := makeRoot(t.Context(), root); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, tree(t, root)); diff != "" {
			t.Errorf("after %s was removed (-want +got):\n%s", gone, diff)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeRoot(t.Context(), file); err == nil {
		t.Error("a file is taken for the root")
	}
	if err := makeRoot(t.Context(), ""); err != nil {
		t.Errorf("without one: %v", err)
	}
}

package host_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host"
	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/cordon"
	"nodelocaldns/host/cordon/cordontest"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/kubelet"
)

// member is a node with a kubelet that runs, in a cluster. A request to the API
// server is a write.
type member struct {
	*live
	cluster *cordontest.Cluster
	mode    drain.Mode
}

func newMember(t *testing.T, s scene, mode drain.Mode) *member {
	t.Helper()
	m := &member{live: s.live(t, nodeKinds[0]), cluster: cordontest.New("v1.34.4"), mode: mode}
	m.cluster.Pods = []apiserver.Pod{{
		Namespace: "shop", Name: "web-1", UID: "uid", Ready: true, Owner: apiserver.Owner{Kind: "ReplicaSet", Name: "web"},
	}}
	m.cluster.Request = func(what string, do func()) error {
		err := m.write("api "+what, func() error { do(); return nil }, nil)
		if err != nil {
			return fmt.Errorf("%s: %w: %w", what, apiserver.ErrUnreachable, err)
		}
		return nil
	}
	return m
}

// process is another process on the node.
func (m *member) process() *host.Durable {
	want := nodeKinds[0].first
	return host.NewDurable(host.DurableConfig{Kubelet: &want, Settle: m.settle, Cordon: &cordon.Config{
		Connect: func(context.Context) (cordon.API, string, error) { return m.cluster.API(), "n1", nil },
		Mode:    m.mode, Options: drain.Options{Timeout: time.Minute}, Timeout: time.Minute, Limit: m.cluster.Limit(),
		Machine: "m1", Boot: "b1", Log: slog.New(slog.DiscardHandler), Now: time.Now, Rand: func() float64 { return 0 },
	}}, m.deps())
}

func (m *member) String() string { return m.live.String() + m.cluster.String() + "\n" }

// unreachable is a request that fails before it lands, or a write that does.
var unreachable = fault{name: "refused", err: fs.ErrInvalid}

// Each write of an apply and of a rollback, each restart and each request to
// the API server loses power before or after it, with or without a reboot, or
// fails: one more apply or rollback leaves the files and the kubelet as they
// are to be, and the node schedulable, with no mark, counting against no limit;
// so does one that resumes.
func TestANodeIsSchedulableAgainAfterAFaultAnywhere(t *testing.T) {
	for _, s := range []scene{scenes[0], scenes[2]} {
		for _, mode := range []drain.Mode{drain.Auto, drain.Drain} {
			t.Run(fmt.Sprintf("%s, %s", s.name, mode), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { everyFaultOfAMember(t, s, mode) })
			})
		}
	}
}

func everyFaultOfAMember(t *testing.T, s scene, mode drain.Mode) {
	apply := func(m *member) error { return m.process().Apply(t.Context()) }
	rollback := func(m *member) error { return m.process().Rollback(t.Context()) }
	count := func(m *member, do func(*member) error) int {
		t.Helper()
		had := m.writes
		if err := do(m); err != nil && !s.refuses {
			t.Fatal(err)
		}
		return m.writes - had
	}
	ref := newMember(t, s, mode)
	before := ref.String()
	forth := count(ref, apply)
	after := ref.String()
	if (after == before) != s.refuses {
		t.Fatalf("apply left:\n%s", after)
	}
	back := count(ref, rollback)
	if diff := cmp.Diff(before, ref.String()); diff != "" {
		t.Fatalf("without a fault (-before +after):\n%s", diff)
	}

	cases := 0
	one := func(f fault, a, b int) {
		t.Helper()
		if cases++; cases%thin != 0 {
			return
		}
		m := newMember(t, s, mode)
		reboot := cases%2 == 0
		m.try(a, f, reboot, func() error { return apply(m) })
		if b > 0 {
			m.try(b, f, reboot, func() error { return rollback(m) })
		}
		at := fmt.Sprintf("%s at writes %d and %d, reboot %t", f.name, a, b, reboot)
		switch cases % 3 {
		case 0:
			if err := apply(m); (err != nil) != s.refuses {
				t.Fatalf("%s: apply: %v", at, err)
			}
			if diff := cmp.Diff(after, tornFile.ReplaceAllString(m.String(), "")); diff != "" {
				t.Fatalf("%s: apply (-want +got):\n%s", at, diff)
			}
		case 1:
			if err := m.process().Resume(t.Context()); err != nil && !s.refuses {
				t.Fatalf("%s: resume: %v", at, err)
			}
			all, err := m.process().Check(t.Context())
			if err != nil || m.cluster.String() != "schedulable" || slices.ContainsFunc(all, func(st engine.Status) bool { return st.Name == kubelet.WindowName }) {
				t.Fatalf("%s: resume left a node that is %s, and %+v, %v", at, m.cluster, all, err)
			}
		}
		if err := rollback(m); err != nil {
			t.Fatalf("%s: rollback: %v", at, err)
		}
		if diff := cmp.Diff(before, m.String()); diff != "" {
			t.Fatalf("%s: rollback (-before +after):\n%s", at, diff)
		}
		if err := m.clean(); err != nil {
			t.Fatalf("%s: rollback: %v", at, err)
		}
		if err := os.RemoveAll(m.root); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range append([]fault{unreachable}, liveFaults...) {
		for a := range forth {
			one(f, a+1, 0)
		}
		for b := range back {
			one(f, 0, b+1)
			one(f, 2*b%(forth+1), b+1)
		}
	}
	t.Logf("%d cases over %d and %d writes", cases, forth, back)
}

// The record of the window, not the process, knows what is ours.
func TestANodeThatWasCordonedByAnotherProcessIsUncordoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMember(t, scenes[0], drain.Auto)
		before := m.String()
		m.refuses = func([]netip.Addr) bool { return true }
		if err := m.process().Apply(t.Context()); err == nil {
			t.Fatal("it came back")
		}
		if got, want := m.cluster.String(), "cordoned by nodelocaldns, marked, counts against the limit"; got != want {
			t.Fatalf("left %s, want %s", got, want)
		}
		m.refuses = nil
		if err := m.process().Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, m.String()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

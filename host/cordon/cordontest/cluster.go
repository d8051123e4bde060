// Package cordontest is a cluster for tests, as far as one of its nodes may ask
// it: it prints its state, and its requests can fail before or after they land.
package cordontest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/cordon"
)

// A Cluster is an API server with one node, n1, its pods, and a limit of one
// node that is away at a time. Who changes State behind its back calls Touch.
type Cluster struct {
	State    apiserver.Node
	Pods     []apiserver.Pod
	Blocked  bool // a PodDisruptionBudget keeps every pod
	Held     bool // the limit, by us
	Events   []string
	Requests []string
	Silent   time.Time // nothing was heard of the kubelet since; zero: it renews its Lease every 10 s

	// Request is called for each, and does it with do. It is to fail before
	// that, or after it, to lose the reply. Nil does it.
	Request func(what string, do func()) error

	version int
}

// New returns a cluster whose node is as it should be, with a kubelet of that
// version. It last wrote its status four minutes ago.
func New(kubelet string) *Cluster {
	c := &Cluster{State: apiserver.Node{
		Name: "n1", UID: "uid", Ready: true, Heartbeat: time.Now().Add(-4 * time.Minute).Truncate(time.Second), KubeletVersion: kubelet,
		Annotations: map[string]string{},
	}}
	c.Touch()
	return c
}

// Touch gives the node a new version, as a heartbeat does.
func (c *Cluster) Touch() {
	c.version++
	c.State.ResourceVersion = fmt.Sprint(c.version)
}

// Cordon is what an administrator does with kubectl: if the node is cordoned
// already, that is nothing.
func (c *Cluster) Cordon() { c.unschedulable(true, "kubectl") }

// Uncordon is that of an administrator.
func (c *Cluster) Uncordon() { c.unschedulable(false, "kubectl") }

// Unmark is an administrator who removes our mark.
func (c *Cluster) Unmark() { c.annotate(cordon.Annotation, "") }

func (c *Cluster) unschedulable(to bool, by string) {
	if c.State.Unschedulable == to {
		return
	}
	c.State.Unschedulable, c.State.CordonedBy = to, ""
	if to {
		c.State.CordonedBy = by
	}
	c.Touch()
}

func (c *Cluster) annotate(key, value string) {
	if c.State.Annotations[key] == value {
		return
	}
	c.State.Annotations = maps.Clone(c.State.Annotations)
	if c.State.Annotations[key] = value; value == "" {
		delete(c.State.Annotations, key)
	}
	c.Touch()
}

// String is the node as an administrator sees it.
func (c *Cluster) String() string {
	var out strings.Builder
	out.WriteString("schedulable")
	if c.State.Unschedulable {
		out.Reset()
		fmt.Fprintf(&out, "cordoned by %s", c.State.CordonedBy)
	}
	if c.State.Annotations[cordon.Annotation] != "" {
		out.WriteString(", marked")
	}
	if c.Held {
		out.WriteString(", counts against the limit")
	}
	return out.String()
}

// API is the API server as the node may ask it.
func (c *Cluster) API() cordon.API { return api{c} }

// Limit is that of the node.
func (c *Cluster) Limit() cordon.Limit { return limit{c} }

type api struct{ c *Cluster }

func (c *Cluster) do(ctx context.Context, what string, do func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.Requests = append(c.Requests, what)
	if c.Request == nil {
		do()
		return nil
	}
	return c.Request(what, do)
}

func (a api) Node(ctx context.Context, _ string) (n apiserver.Node, err error) {
	err = a.c.do(ctx, "node", func() { n = a.c.State })
	if err != nil {
		n = apiserver.Node{}
	}
	return n, err
}

// change is a patch of the node as it was in n.
func (a api) change(ctx context.Context, what string, n apiserver.Node, do func()) (after apiserver.Node, err error) {
	var conflict error
	err = a.c.do(ctx, what, func() {
		if conflict = nil; n.ResourceVersion != a.c.State.ResourceVersion {
			conflict = &apiserver.Conflict{Err: fmt.Errorf("to %s: the object has been modified", what)}
			return
		}
		do()
		after = a.c.State
	})
	if err == nil {
		err = conflict
	}
	if err != nil {
		after = apiserver.Node{}
	}
	return after, err
}

func (a api) Cordon(ctx context.Context, n apiserver.Node, key, mark string) (apiserver.Node, error) {
	return a.change(ctx, "cordon", n, func() {
		a.c.unschedulable(true, apiserver.Manager)
		a.c.annotate(key, mark)
	})
}

func (a api) Uncordon(ctx context.Context, n apiserver.Node, key string) (apiserver.Node, error) {
	return a.change(ctx, "uncordon", n, func() {
		a.c.unschedulable(false, apiserver.Manager)
		a.c.annotate(key, "")
	})
}

func (a api) Unmark(ctx context.Context, n apiserver.Node, key string) (apiserver.Node, error) {
	return a.change(ctx, "unmark", n, func() { a.c.annotate(key, "") })
}

func (a api) Pods(ctx context.Context, _, _ string) (out []apiserver.Pod, err error) {
	err = a.c.do(ctx, "pods", func() { out = slices.Clone(a.c.Pods) })
	return out, err
}

func (a api) RecentPods(ctx context.Context, node string) ([]apiserver.Pod, error) {
	return a.Pods(ctx, node, "")
}

// Evict ends a pod at once.
func (a api) Evict(ctx context.Context, p apiserver.Pod, _ *time.Duration) error {
	err := a.c.do(ctx, "evict", func() {
		if !a.c.Blocked {
			a.c.Pods = slices.DeleteFunc(a.c.Pods, func(o apiserver.Pod) bool { return o.UID == p.UID })
		}
	})
	if err == nil && a.c.Blocked {
		err = &apiserver.Blocked{PDBs: []string{"web"}, Why: "it needs 3 healthy pods", Err: apiserver.ErrForbidden}
	}
	return err
}

func (a api) Renewed(ctx context.Context, _ string) (at time.Time, err error) {
	err = a.c.do(ctx, "lease", func() {
		if at = a.c.Silent; at.IsZero() {
			at = time.Now().Truncate(10 * time.Second)
		}
	})
	return at, err
}

func (a api) Event(ctx context.Context, _ apiserver.Node, e apiserver.Event) error {
	return a.c.do(ctx, "event", func() { a.c.Events = append(a.c.Events, e.Reason) })
}

func (a api) Close() {}

type limit struct{ c *Cluster }

func (l limit) Acquire(ctx context.Context) error {
	return l.c.do(ctx, "acquire", func() { l.c.Held = true })
}

func (l limit) Renew(ctx context.Context) error { return l.c.do(ctx, "renew", func() {}) }

func (l limit) Release(ctx context.Context) error {
	return l.c.do(ctx, "release", func() { l.c.Held = false })
}

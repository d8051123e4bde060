package apiserver

import (
	"context"
	"net/http"
	"time"
)

// A Lease says who holds something, and until when.
type Lease struct {
	Namespace, Name   string
	Holder            string        // empty: nobody
	Acquired, Renewed time.Time     // by its holder's clock, to the microsecond; zero where there is none
	Duration          time.Duration // after Renewed, in whole seconds; 0: not set
	ResourceVersion   string        // what a change of it is conditional on
}

// Renewed is when the kubelet of a node last renewed the Lease that tells the
// control plane that it lives: every 10 s, by its node's clock. It is an
// [ErrNotFound] in the first seconds of a new node, which may be ready already.
func (c *Client) Renewed(ctx context.Context, node string) (time.Time, error) {
	l, err := c.Lease(ctx, "kube-node-lease", node)
	return l.Renewed, err
}

// Lease reads a Lease.
func (c *Client) Lease(ctx context.Context, namespace, name string) (Lease, error) {
	return c.lease(ctx, "for lease "+namespace+"/"+name, http.MethodGet, leases(namespace)+"/"+name, nil)
}

// CreateLease creates l and returns it as it is then. It is a [Conflict] where
// there is one of that name.
func (c *Client) CreateLease(ctx context.Context, l Lease) (Lease, error) {
	l.ResourceVersion = ""
	return c.lease(ctx, "to create lease "+l.Namespace+"/"+l.Name, http.MethodPost, leases(l.Namespace), &l)
}

// UpdateLease makes a Lease say what l says, and returns it as it is then. It
// is a [Conflict] where it has changed since l was read.
func (c *Client) UpdateLease(ctx context.Context, l Lease) (Lease, error) {
	return c.lease(ctx, "to update lease "+l.Namespace+"/"+l.Name, http.MethodPut, leases(l.Namespace)+"/"+l.Name, &l)
}

func leases(namespace string) string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + namespace + "/leases"
}

func (c *Client) lease(ctx context.Context, what, method, path string, l *Lease) (Lease, error) {
	var got lease
	r := request{what: what, method: method, path: path, kind: "Lease", reply: &got}
	if l != nil {
		r.body = newLease(*l)
	}
	if err := c.do(ctx, r); err != nil {
		return Lease{}, err
	}
	return got.lease(), nil
}

// lease is the part of coordination.k8s.io/v1 Lease that is read, and written.
type lease struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Namespace       string `json:"namespace"`
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion,omitempty"`
	} `json:"metadata"`
	Spec struct {
		HolderIdentity       string `json:"holderIdentity,omitempty"`
		AcquireTime          string `json:"acquireTime,omitempty"`
		RenewTime            string `json:"renewTime,omitempty"`
		LeaseDurationSeconds int64  `json:"leaseDurationSeconds,omitempty"`
	} `json:"spec"`
}

// micro is the form of meta/v1 MicroTime; others are refused.
const micro = "2006-01-02T15:04:05.000000Z07:00"

func newLease(l Lease) lease {
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(micro)
	}
	out := lease{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
	out.Metadata.Namespace, out.Metadata.Name, out.Metadata.ResourceVersion = l.Namespace, l.Name, l.ResourceVersion
	out.Spec.HolderIdentity = l.Holder
	out.Spec.AcquireTime, out.Spec.RenewTime = at(l.Acquired), at(l.Renewed)
	out.Spec.LeaseDurationSeconds = int64(l.Duration / time.Second)
	return out
}

func (l *lease) lease() Lease {
	at := func(text string) time.Time {
		t, _ := time.Parse(time.RFC3339, text) // zero where there is none
		return t
	}
	return Lease{
		Namespace: l.Metadata.Namespace, Name: l.Metadata.Name, ResourceVersion: l.Metadata.ResourceVersion,
		Holder:   l.Spec.HolderIdentity,
		Acquired: at(l.Spec.AcquireTime), Renewed: at(l.Spec.RenewTime),
		Duration: time.Duration(l.Spec.LeaseDurationSeconds) * time.Second,
	}
}

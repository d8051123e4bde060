package apiserver

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Evict asks for a pod to be deleted, as its PodDisruptionBudgets allow. That
// it is nil says that the deletion has begun, or had before. A grace other than
// nil is in the place of the pod's own, in whole seconds; 0 kills it at once.
//
// It is a [Blocked] where the budgets do not allow it now; [ErrGone] where the
// pod is not on its node any more, or another one has its name; a [Busy] where
// the API server is; an [ErrNamespaceTerminating]. After a [Conflict] it may be
// asked again: the pod was changed at the same moment.
func (c *Client) Evict(ctx context.Context, p Pod, grace *time.Duration) error {
	options := object{"preconditions": object{"uid": p.UID}}
	if grace != nil {
		options["gracePeriodSeconds"] = int64((*grace + time.Second - 1) / time.Second)
	}
	err := c.do(ctx, request{
		what: "to evict pod " + p.String(), method: http.MethodPost,
		path: "/api/v1/namespaces/" + p.Namespace + "/pods/" + p.Name + "/eviction",
		body: object{
			"apiVersion": "policy/v1", "kind": "Eviction",
			"metadata":      object{"namespace": p.Namespace, "name": p.Name},
			"deleteOptions": options,
		},
	})
	var said *refusal
	if !errors.As(err, &said) {
		return err
	}
	var e *Error
	errors.As(err, &e)
	switch said.code {
	case http.StatusNotFound:
		// A path that the server does not have is not found either.
		if said.status.Details.Name == p.Name {
			e.kinds = append(e.kinds, ErrGone)
		}
	case http.StatusForbidden, http.StatusConflict:
		// A kubelet is forbidden a pod that has since begun anew on another
		// node; and of another UID, it is a conflict as if it had just changed.
		if gone, listed := c.gone(ctx, p); listed == nil && gone {
			e.kinds, e.Next = []error{ErrGone}, ""
			return e
		}
		for _, cause := range said.status.Details.Causes {
			if cause.Reason == "NamespaceTerminating" {
				e.kinds = append(e.kinds, ErrNamespaceTerminating)
				e.Next = ""
			}
		}
	case http.StatusTooManyRequests:
		if b := blocked(said); b != nil {
			b.Err = e
			return b
		}
	case http.StatusInternalServerError:
		// What there is no word for: the API server refuses a pod with two
		// budgets, today and tomorrow. Where it fails, it gives a reason.
		if said.status.Message != "" && said.status.Reason == "" {
			e.kinds = nil
			e.Next = "leave the pod one PodDisruptionBudget, or delete it yourself"
		}
	}
	return err
}

// blocked is what a refusal tells of budgets; nil where it is not about any.
func blocked(r *refusal) *Blocked {
	var b *Blocked
	for _, cause := range r.status.Details.Causes {
		if cause.Reason != "DisruptionBudget" {
			continue
		}
		if b == nil {
			b = &Blocked{Why: cause.Message, RetryAfter: r.after}
		}
		// "The disruption budget web needs 2 healthy pods and has 2 currently",
		// or "... is still being processed by the server.": Kubernetes 1.34 and
		// all before it, back to 1.8, name it nowhere else.
		if rest, ok := strings.CutPrefix(cause.Message, "The disruption budget "); ok {
			name, _, _ := strings.Cut(rest, " ")
			b.PDBs = append(b.PDBs, name)
		}
	}
	return b
}

// gone reports whether a pod is not on its node any more, in a way that is also
// allowed to a kubelet.
func (c *Client) gone(ctx context.Context, p Pod) (bool, error) {
	left, err := c.listPods(ctx, "for pod "+p.String(), "/api/v1/namespaces/"+p.Namespace+"/pods",
		url.Values{"fieldSelector": {"metadata.name=" + p.Name + ",spec.nodeName=" + p.Node}})
	return err == nil && (len(left) == 0 || left[0].UID != p.UID), err
}

package apiserver

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A Node is what is known of a node, at one ResourceVersion.
type Node struct {
	Name            string
	UID             string // of the object: a node that was deleted and made again has another
	ResourceVersion string // what a change of it is conditional on

	Labels, Annotations map[string]string

	Unschedulable bool // cordoned
	// CordonedBy is the field manager that set spec.unschedulable, such as
	// "kubectl" or our own [Manager], and CordonedAt when that manager last
	// changed a field. Empty where the node is not cordoned, and where nobody
	// is known to have done it. Who sets a field to what it is already does not
	// become its manager: a second cordon by somebody else cannot be seen.
	// Where several are, as with server-side apply, it is one of the others.
	CordonedBy string
	CordonedAt time.Time // to the second

	Ready     bool
	Heartbeat time.Time // when the kubelet last reported Ready or not; to the second

	KubeletVersion string // "v1.34.4"
	BootID         string // of the machine, as the kubelet last reported it
	ControlPlane   bool   // it has the role control-plane, or master as before Kubernetes 1.24
}

// Node reads a node.
func (c *Client) Node(ctx context.Context, name string) (Node, error) {
	var n node
	err := c.do(ctx, request{what: "for node " + name, method: http.MethodGet, path: nodes + name, kind: "Node", reply: &n})
	if err != nil {
		return Node{}, err
	}
	return n.node(), nil
}

const nodes = "/api/v1/nodes/"

// Cordon makes a node unschedulable and sets its annotation key to mark, in one
// request: neither is ever there without the other. It is a [Conflict] if the
// node has changed since n was read, which it does with every heartbeat. It
// returns the node as it is then.
func (c *Client) Cordon(ctx context.Context, n Node, key, mark string) (Node, error) {
	return c.patchNode(ctx, n, "to cordon", object{"annotations": object{key: mark}}, object{"unschedulable": true})
}

// Uncordon makes a node schedulable and removes its annotation key, as Cordon
// does the reverse.
func (c *Client) Uncordon(ctx context.Context, n Node, key string) (Node, error) {
	return c.patchNode(ctx, n, "to uncordon", object{"annotations": object{key: nil}}, object{"unschedulable": nil})
}

// Unmark removes the annotation key alone, on the same condition as Cordon.
func (c *Client) Unmark(ctx context.Context, n Node, key string) (Node, error) {
	return c.patchNode(ctx, n, "to remove our mark from", object{"annotations": object{key: nil}}, nil)
}

func (c *Client) patchNode(ctx context.Context, n Node, to string, metadata, spec object) (Node, error) {
	// A patch of an object of another version is refused.
	metadata["resourceVersion"] = n.ResourceVersion
	patch := object{"metadata": metadata}
	if spec != nil {
		patch["spec"] = spec
	}
	var after node
	err := c.do(ctx, request{
		what: to + " node " + n.Name, method: http.MethodPatch, path: nodes + n.Name,
		query: url.Values{"fieldManager": {Manager}}, patch: true, body: patch, kind: "Node", reply: &after,
	})
	if err != nil {
		return Node{}, err
	}
	return after.node(), nil
}

// node is the part of core/v1 Node that is read.
type node struct {
	Metadata struct {
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels"`
		Annotations     map[string]string `json:"annotations"`
		ManagedFields   []struct {
			Manager string    `json:"manager"`
			Time    time.Time `json:"time"`
			Fields  struct {
				Spec struct {
					Unschedulable *struct{} `json:"f:unschedulable"`
				} `json:"f:spec"`
			} `json:"fieldsV1"`
		} `json:"managedFields"`
	} `json:"metadata"`
	Spec struct {
		Unschedulable bool `json:"unschedulable"`
	} `json:"spec"`
	Status struct {
		Conditions []condition `json:"conditions"`
		NodeInfo   struct {
			BootID         string `json:"bootID"`
			KubeletVersion string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

// condition is that of a node or a pod.
type condition struct {
	Type      string    `json:"type"`
	Status    string    `json:"status"`
	Heartbeat time.Time `json:"lastHeartbeatTime"` // of nodes
}

func (n *node) node() Node {
	out := Node{
		Name: n.Metadata.Name, UID: n.Metadata.UID, ResourceVersion: n.Metadata.ResourceVersion,
		Labels: n.Metadata.Labels, Annotations: n.Metadata.Annotations,
		Unschedulable:  n.Spec.Unschedulable,
		KubeletVersion: n.Status.NodeInfo.KubeletVersion, BootID: n.Status.NodeInfo.BootID,
	}
	for label := range out.Labels {
		role, _ := strings.CutPrefix(label, "node-role.kubernetes.io/")
		out.ControlPlane = out.ControlPlane || role == "control-plane" || role == "master"
	}
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" {
			out.Ready, out.Heartbeat = c.Status == "True", c.Heartbeat
		}
	}
	for _, f := range n.Metadata.ManagedFields {
		// Who uncordons with kubectl is left as the manager of a false.
		if !out.Unschedulable || f.Fields.Spec.Unschedulable == nil {
			continue
		}
		if out.CordonedBy == "" || out.CordonedBy == Manager {
			out.CordonedBy, out.CordonedAt = f.Manager, f.Time
		}
	}
	return out
}

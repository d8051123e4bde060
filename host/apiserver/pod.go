package apiserver

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// A Pod is what is known of a pod.
type Pod struct {
	Namespace, Name string
	UID             string
	Node            string // it is bound to
	// ConfigHash is the kubelet's own UID of a static pod, which its mirror
	// object has as an annotation.
	ConfigHash string
	Labels     map[string]string

	Owner Owner // the zero Owner where no controller has made it

	Mirror      bool // stands for a static pod of the kubelet
	Terminating bool // deleted, and not gone yet
	Finished    bool // its phase is Succeeded or Failed: nothing of it runs
	Ready       bool // its condition Ready is True

	Grace    time.Duration // it may take to end: of its deletion once that began, else of its spec
	Priority int32

	EmptyDir bool // it has a volume emptyDir, whose content ends with it
	// ExtendedResources are the names of those that its containers have, such
	// as "nvidia.com/gpu", sorted.
	ExtendedResources []string
	NodeSelector      NodeSelector

	Nameservers []string // those of its own dnsConfig, as they are written there
}

// An Owner is the controller that a pod belongs to.
type Owner struct {
	Kind, Name string // "DaemonSet", "ReplicaSet", "StatefulSet", "Job", "Node" of a mirror pod
}

// A NodeSelector is what a pod requires of the labels of its node: all of
// Labels (spec.nodeSelector) and, where there are terms, at least one of Terms
// (spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution).
type NodeSelector struct {
	Labels map[string]string
	Terms  []Term
}

// A Term requires all of its requirements. One without any matches no node.
type Term struct {
	Expressions []Requirement `json:"matchExpressions"` // of the node's labels
	Fields      []Requirement `json:"matchFields"`      // of the node's fields; the only one is metadata.name
}

// A Requirement compares one label or field of a node.
type Requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"` // In, NotIn, Exists, DoesNotExist, Gt, Lt
	Values   []string `json:"values"`
}

// String is namespace and name, as users write it.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Pods lists the pods of a node that labelSelector ("app=web,tier!=db", empty:
// all) chooses, as they are now.
//
// It asks for all in one reply: an API server of Kubernetes 1.31 or newer has
// them in memory by node, but reads those of the whole cluster from etcd for
// a reply in pages. Older ones do so in any case. What is kept of each is far
// less than what comes, and never two are held as they come.
func (c *Client) Pods(ctx context.Context, node, labelSelector string) ([]Pod, error) {
	return c.pods(ctx, node, labelSelector, "")
}

// RecentPods lists the pods of a node as the API server had them at some time
// not long ago, which costs any version of it little.
func (c *Client) RecentPods(ctx context.Context, node string) ([]Pod, error) {
	return c.pods(ctx, node, "", "0")
}

func (c *Client) pods(ctx context.Context, node, labelSelector, resourceVersion string) ([]Pod, error) {
	query := url.Values{"fieldSelector": {"spec.nodeName=" + node}}
	if labelSelector != "" {
		query.Set("labelSelector", labelSelector)
	}
	if resourceVersion != "" {
		query.Set("resourceVersion", resourceVersion)
	}
	return c.listPods(ctx, "for the pods of node "+node, "/api/v1/pods", query)
}

func (c *Client) listPods(ctx context.Context, what, path string, query url.Values) ([]Pod, error) {
	var all []Pod
	err := c.do(ctx, request{
		what: what, method: http.MethodGet, path: path, query: query,
		list: func(d *json.Decoder) (err error) {
			all, err = decodePods(d)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// decodePods reads a list of pods, one at a time.
func decodePods(d *json.Decoder) ([]Pod, error) {
	if _, err := d.Token(); err != nil { // {
		return nil, err
	}
	var all []Pod
	var kind string
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch key {
		case "kind":
			err = d.Decode(&kind)
		case "items":
			all, err = decodeItems(d)
		default:
			err = d.Decode(new(json.RawMessage))
		}
		if err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil { // }
		return nil, err
	}
	return all, isKind(kind, "PodList")
}

func decodeItems(d *json.Decoder) ([]Pod, error) {
	open, err := d.Token()
	if err != nil || open == nil { // null where there are none
		return nil, err
	}
	var all []Pod
	for d.More() {
		var p pod
		if err := d.Decode(&p); err != nil {
			return nil, err
		}
		all = append(all, p.pod())
	}
	_, err = d.Token() // ]
	return all, err
}

// pod is the part of core/v1 Pod that is read.
type pod struct {
	Metadata struct {
		Namespace   string            `json:"namespace"`
		Name        string            `json:"name"`
		UID         string            `json:"uid"`
		Labels      map[string]string `json:"labels"`
		Annotations struct {
			Hash   string  `json:"kubernetes.io/config.hash"`
			Mirror *string `json:"kubernetes.io/config.mirror"`
		} `json:"annotations"`
		OwnerReferences []struct {
			Kind       string `json:"kind"`
			Name       string `json:"name"`
			Controller bool   `json:"controller"`
		} `json:"ownerReferences"`
		DeletionTimestamp          *time.Time `json:"deletionTimestamp"`
		DeletionGracePeriodSeconds int64      `json:"deletionGracePeriodSeconds"`
	} `json:"metadata"`
	Spec struct {
		NodeName                      string            `json:"nodeName"`
		NodeSelector                  map[string]string `json:"nodeSelector"`
		Priority                      int32             `json:"priority"`
		TerminationGracePeriodSeconds int64             `json:"terminationGracePeriodSeconds"`
		Affinity                      struct {
			NodeAffinity struct {
				Required struct {
					Terms []Term `json:"nodeSelectorTerms"`
				} `json:"requiredDuringSchedulingIgnoredDuringExecution"`
			} `json:"nodeAffinity"`
		} `json:"affinity"`
		Volumes []struct {
			EmptyDir *struct{} `json:"emptyDir"`
		} `json:"volumes"`
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
		DNSConfig      struct {
			Nameservers []string `json:"nameservers"`
		} `json:"dnsConfig"`
	} `json:"spec"`
	Status struct {
		Phase      string      `json:"phase"`
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

type container struct {
	Resources struct {
		// An extended resource is always in the limits, and requests are the same.
		Limits map[string]json.RawMessage `json:"limits"`
	} `json:"resources"`
}

func (p *pod) pod() Pod {
	out := Pod{
		Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, UID: p.Metadata.UID, Node: p.Spec.NodeName,
		ConfigHash: p.Metadata.Annotations.Hash, Labels: p.Metadata.Labels,
		Mirror:       p.Metadata.Annotations.Mirror != nil,
		Terminating:  p.Metadata.DeletionTimestamp != nil,
		Finished:     p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed",
		Grace:        time.Duration(p.Spec.TerminationGracePeriodSeconds) * time.Second,
		Priority:     p.Spec.Priority,
		NodeSelector: NodeSelector{p.Spec.NodeSelector, p.Spec.Affinity.NodeAffinity.Required.Terms},
		Nameservers:  p.Spec.DNSConfig.Nameservers,
	}
	for _, o := range p.Metadata.OwnerReferences {
		if o.Controller {
			out.Owner = Owner{o.Kind, o.Name}
		}
	}
	if out.Terminating {
		out.Grace = time.Duration(p.Metadata.DeletionGracePeriodSeconds) * time.Second
	}
	for _, c := range p.Status.Conditions {
		out.Ready = out.Ready || c.Type == "Ready" && c.Status == "True"
	}
	for _, v := range p.Spec.Volumes {
		out.EmptyDir = out.EmptyDir || v.EmptyDir != nil
	}
	names := map[string]bool{}
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for name, quantity := range c.Resources.Limits {
			if isExtended(name) && string(quantity) != `"0"` {
				names[name] = true
			}
		}
	}
	out.ExtendedResources = slices.Sorted(maps.Keys(names))
	return out
}

// isExtended reports whether a resource is an extended one, as the scheduler
// and the kubelet decide it (IsExtendedResourceName): those of Kubernetes have
// no domain or one of kubernetes.io.
func isExtended(name string) bool {
	return strings.Contains(name, "/") && !strings.Contains(name, "kubernetes.io/")
}

package drain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"nodelocaldns/host/apiserver"
)

// Harmed are the pods that a restart of the kubelet alone may kill, whatever
// is done about new ones: a kubelet that starts admits its pods anew, and fails
// those that would not be admitted today.
//
//   - Pods with extended resources: until the device plugin has registered
//     again there are no devices to give them (k/k#118559, #133382, #138446).
//   - Pods whose nodeSelector or required node affinity the node's labels no
//     longer meet: that is asked when a pod is scheduled and never again while
//     it runs, but for this (k/k#123980).
//
// Pods that have finished or are ending are left out: there is nothing to kill.
// So are those with resource claims: a claim is prepared when the pod's sandbox
// is made, and is not asked for at admission (kuberuntime_manager.go, SyncPod).
func Harmed(pods []apiserver.Pod, n apiserver.Node) []Verdict {
	var out []Verdict
	for _, p := range pods {
		var whys []string
		if len(p.ExtendedResources) > 0 {
			whys = append(whys, fmt.Sprintf("has %s, which a kubelet that starts may not have to give", strings.Join(p.ExtendedResources, ", ")))
		}
		if unmet := unmet(p.NodeSelector, n); unmet != "" {
			whys = append(whys, fmt.Sprintf("requires %s, which node %s no longer meets", unmet, n.Name))
		}
		if whys == nil || p.Finished || p.Terminating {
			continue
		}
		out = append(out, Verdict{
			Pod:   p,
			Why:   strings.Join(whys, " and "),
			Hints: []string{"--drain drain evicts such pods first"},
		})
	}
	return out
}

// unmet is what of s a node does not meet, as one would write it down; empty if
// it meets all.
func unmet(s apiserver.NodeSelector, n apiserver.Node) string {
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		if value, ok := n.Labels[key]; !ok || value != s.Labels[key] {
			return fmt.Sprintf("%s=%s of its nodes", key, s.Labels[key])
		}
	}
	if len(s.Terms) > 0 && !slices.ContainsFunc(s.Terms, func(t apiserver.Term) bool { return meets(n, t) }) {
		return "a node affinity"
	}
	return ""
}

// meets says whether a node meets all of a term, and a term without any
// requirements is met by none, as k8s.io/component-helpers/scheduling/corev1/nodeaffinity
// has it: scheduler and kubelet ask that.
func meets(n apiserver.Node, t apiserver.Term) bool {
	if len(t.Expressions) == 0 && len(t.Fields) == 0 {
		return false
	}
	for _, r := range t.Expressions {
		if !labelMeets(n.Labels, r) {
			return false
		}
	}
	for _, r := range t.Fields {
		if !nameMeets(n.Name, r) {
			return false
		}
	}
	return true
}

var operators = map[string]selection.Operator{
	"In":           selection.In,
	"NotIn":        selection.NotIn,
	"Exists":       selection.Exists,
	"DoesNotExist": selection.DoesNotExist,
	"Gt":           selection.GreaterThan,
	"Lt":           selection.LessThan,
}

// labelMeets compares a label. What Kubernetes cannot read is not met.
func labelMeets(of map[string]string, r apiserver.Requirement) bool {
	req, err := labels.NewRequirement(r.Key, operators[r.Operator], r.Values)
	return err == nil && req.Matches(labels.Set(of))
}

// nameMeets compares a field: there is only metadata.name, and it is one name
// that it is compared to.
func nameMeets(name string, r apiserver.Requirement) bool {
	if r.Key != "metadata.name" || len(r.Values) != 1 {
		return false
	}
	switch r.Operator {
	case "In":
		return name == r.Values[0]
	case "NotIn":
		return name != r.Values[0]
	}
	return false
}

package dnsconfig

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Label is what a namespace has whose pods are to ask us, with the value Enabled;
// a pod with the value Disabled is left as it is.
const (
	Label    = "node-local-dns-injection"
	Enabled  = "enabled"
	Disabled = "disabled"
)

// Versions are those of the API that a policy may be in, the newest first: v1
// is served by Kubernetes 1.36 and newer; v1beta1 by 1.34 and v1alpha1 by 1.32
// and newer, where somebody has turned the version and the feature gate
// MutatingAdmissionPolicy on.
func Versions() []string { return []string{"v1", "v1beta1", "v1alpha1"} }

// An Object is one of those that the policy takes.
type Object struct {
	APIVersion string   `json:"apiVersion" yaml:"apiVersion"`
	Kind       string   `json:"kind" yaml:"kind"`
	Metadata   metadata `json:"metadata" yaml:"metadata"`
	Spec       any      `json:"spec" yaml:"spec"`
}

type metadata struct {
	Name string `json:"name" yaml:"name"`
}

type policySpec struct {
	FailurePolicy      string           `json:"failurePolicy" yaml:"failurePolicy"`
	ReinvocationPolicy string           `json:"reinvocationPolicy" yaml:"reinvocationPolicy"`
	MatchConstraints   matchConstraints `json:"matchConstraints" yaml:"matchConstraints"`
	MatchConditions    []expression     `json:"matchConditions" yaml:"matchConditions"`
	Variables          []expression     `json:"variables" yaml:"variables"`
	Mutations          []mutation       `json:"mutations" yaml:"mutations"`
}

type matchConstraints struct {
	ResourceRules []resourceRule `json:"resourceRules,omitempty" yaml:"resourceRules,omitempty"`

	ObjectSelector    *selector `json:"objectSelector,omitempty" yaml:"objectSelector,omitempty"`
	NamespaceSelector *selector `json:"namespaceSelector,omitempty" yaml:"namespaceSelector,omitempty"`
}

type resourceRule struct {
	APIGroups   []string `json:"apiGroups" yaml:"apiGroups,flow"`
	APIVersions []string `json:"apiVersions" yaml:"apiVersions,flow"`
	Operations  []string `json:"operations" yaml:"operations,flow"`
	Resources   []string `json:"resources" yaml:"resources,flow"`
}

type selector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty" yaml:"matchLabels,omitempty"`
	MatchExpressions []requirement     `json:"matchExpressions,omitempty" yaml:"matchExpressions,omitempty"`
}

type requirement struct {
	Key      string   `json:"key" yaml:"key"`
	Operator string   `json:"operator" yaml:"operator"`
	Values   []string `json:"values" yaml:"values,flow"`
}

type expression struct {
	Name       string `json:"name" yaml:"name"`
	Expression string `json:"expression" yaml:"expression"`
}

type mutation struct {
	PatchType string    `json:"patchType" yaml:"patchType"`
	JSONPatch jsonPatch `json:"jsonPatch" yaml:"jsonPatch"`
}

type jsonPatch struct {
	Expression string `json:"expression" yaml:"expression"`
}

type bindingSpec struct {
	PolicyName     string           `json:"policyName" yaml:"policyName"`
	MatchResources matchConstraints `json:"matchResources" yaml:"matchResources"`
}

// The bounds of a search path of a pod's own that is kept: with the three of
// the cluster, and what Search has, none becomes too long for the API server,
// which would refuse the pod.
func (c Config) room() (names, chars int) {
	ours := c.searches(strings.Repeat("x", 63))
	return maxSearches - len(ours), maxSearchChars - len(strings.Join(ours, " ")) - 1
}

// Policy is a MutatingAdmissionPolicy and its binding, in one of Versions. c must
// be valid for any namespace.
//
// New pods of namespaces with the Label ask us that would ask the cluster's DNS
// (ClusterFirst, and not in the node's network). What such a pod's own dnsConfig
// has of searches and options is kept as the kubelet would: searches after the
// cluster's, options before ours. One that names servers has decided whom it
// asks, and is left as it is; so are the pods for which there is no room (the
// API server would refuse them), those of Windows, and the mirrors of static
// pods, which are made of a file.
//
// Without the policy a pod asks kube-dns, which is no reason to keep it from
// being made: failures are ignored. What it writes is a JSON patch: lists of
// dnsConfig are atomic, and an apply configuration must not have those.
func (c Config) Policy(version string) []Object {
	const name = "node-local-dns-injection"
	group := "admissionregistration.k8s.io/" + version
	names, chars := c.room()
	policy := policySpec{
		FailurePolicy:      "Ignore",
		ReinvocationPolicy: "Never", // what comes after us has the last word
		MatchConstraints: matchConstraints{
			ResourceRules:  []resourceRule{{[]string{""}, []string{"v1"}, []string{"CREATE"}, []string{"pods"}}},
			ObjectSelector: &selector{MatchExpressions: []requirement{{Label, "NotIn", []string{Disabled}}}},
		},
		MatchConditions: []expression{
			{"asks-the-cluster", `object.spec.?dnsPolicy.orValue("ClusterFirst") == "ClusterFirst" && !object.spec.?hostNetwork.orValue(false)`},
			{"names-no-servers", `size(object.spec.?dnsConfig.?nameservers.orValue([])) == 0`},
			{"has-room-for-searches", fmt.Sprintf(`size(object.spec.?dnsConfig.?searches.orValue([])) <= %d && size(object.spec.?dnsConfig.?searches.orValue([]).join(" ")) <= %d`, names, chars)},
			{"is-not-of-windows", `object.spec.?os.?name.orValue("linux") != "windows" && object.spec.?nodeSelector[?"kubernetes.io/os"].orValue("linux") != "windows"`},
			{"is-not-of-a-file", `!("kubernetes.io/config.mirror" in object.metadata.?annotations.orValue({}))`},
		},
		Variables: []expression{
			{"searches", `object.spec.?dnsConfig.?searches.orValue([])`},
			{"options", `object.spec.?dnsConfig.?options.orValue([])`},
		},
		Mutations: []mutation{{"JSONPatch", jsonPatch{c.patch()}}},
	}
	binding := bindingSpec{
		PolicyName:     name,
		MatchResources: matchConstraints{NamespaceSelector: &selector{MatchLabels: map[string]string{Label: Enabled}}},
	}
	return []Object{
		{group, "MutatingAdmissionPolicy", metadata{name}, policy},
		{group, "MutatingAdmissionPolicyBinding", metadata{name}, binding},
	}
}

// patch is the expression that makes what Spec is of a pod in any namespace, and
// of what that pod has itself. CEL has lists of one type: dyn makes them one.
func (c Config) patch() string {
	servers := quoted(c.servers(), func(a netip.Addr) string { return strconv.Quote(a.String()) })
	searches := quoted(c.searches(""), strconv.Quote)
	options := quoted(c.options(), func(o Option) string {
		if o.Value == "" {
			return fmt.Sprintf(`{"name": %q}`, o.Name)
		}
		return fmt.Sprintf(`{"name": %q, "value": %q}`, o.Name, o.Value)
	})
	return fmt.Sprintf(`[
  JSONPatch{op: "add", path: "/spec/dnsPolicy", value: "None"},
  JSONPatch{op: "add", path: "/spec/dnsConfig", value: {
    "nameservers": dyn([%s]),
    "searches": dyn([request.namespace + %s] + variables.searches),
    "options": dyn([%s].filter(o, !variables.options.exists(own, own.name == o.name)) + variables.options)
  }}
]`, servers, searches, options)
}

func quoted[T any](all []T, quote func(T) string) string {
	words := make([]string, len(all))
	for i, v := range all {
		words[i] = quote(v)
	}
	return strings.Join(words, ", ")
}

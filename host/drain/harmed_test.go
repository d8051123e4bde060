package drain_test

import (
	"fmt"
	"strings"
	"testing"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/drain"
)

func TestPodsThatARestartMayKillAreNamed(t *testing.T) {
	gpu := []string{"example.com/fpga", "nvidia.com/gpu"}
	elsewhere := apiserver.NodeSelector{Labels: map[string]string{"disk": "ssd"}}
	n := apiserver.Node{Name: "n1", Labels: map[string]string{"zone": "a", "disk": "hdd"}}
	pods := []apiserver.Pod{
		{Name: "plain"},
		{Name: "gpu", ExtendedResources: gpu[1:]},
		{Name: "gpus", ExtendedResources: gpu, Owner: apiserver.Owner{Kind: "DaemonSet", Name: "ds"}},
		{Name: "gpu-finished", ExtendedResources: gpu, Finished: true},
		{Name: "gpu-terminating", ExtendedResources: gpu, Terminating: true},
		{Name: "here", NodeSelector: apiserver.NodeSelector{Labels: map[string]string{"zone": "a", "disk": "hdd"}}},
		{Name: "elsewhere", NodeSelector: elsewhere},
		{Name: "elsewhere-static", NodeSelector: elsewhere, Mirror: true},
		{Name: "elsewhere-finished", NodeSelector: elsewhere, Finished: true},
		{Name: "elsewhere-gpu", NodeSelector: elsewhere, ExtendedResources: gpu[1:]},
		{Name: "unlabelled", NodeSelector: apiserver.NodeSelector{Labels: map[string]string{"new": ""}}},
		{Name: "affine", NodeSelector: apiserver.NodeSelector{Terms: []apiserver.Term{term(in("zone", "a", "b"))}}},
		{Name: "averse", NodeSelector: apiserver.NodeSelector{Terms: []apiserver.Term{term(notIn("zone", "a"))}}},
		{Name: "both", NodeSelector: apiserver.NodeSelector{
			Labels: map[string]string{"zone": "a"}, Terms: []apiserver.Term{term(in("disk", "ssd"))},
		}},
	}
	var got strings.Builder
	for _, v := range drain.Harmed(pods, n) {
		fmt.Fprintf(&got, "%s %s\n", v, v.Hints)
	}
	want := strings.ReplaceAll(`/gpu has nvidia.com/gpu, which a kubelet that starts may not have to give HINT
/gpus has example.com/fpga, nvidia.com/gpu, which a kubelet that starts may not have to give HINT
/elsewhere requires disk=ssd of its nodes, which node n1 no longer meets HINT
/elsewhere-static requires disk=ssd of its nodes, which node n1 no longer meets HINT
/elsewhere-gpu has nvidia.com/gpu, which a kubelet that starts may not have to give and requires disk=ssd of its nodes, which node n1 no longer meets HINT
/unlabelled requires new= of its nodes, which node n1 no longer meets HINT
/averse requires a node affinity, which node n1 no longer meets HINT
/both requires a node affinity, which node n1 no longer meets HINT
`, "HINT", "[--drain drain evicts such pods first]")
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &got, want)
	}
}

func req(key, operator string, values ...string) apiserver.Requirement {
	return apiserver.Requirement{Key: key, Operator: operator, Values: values}
}

func in(key string, values ...string) apiserver.Requirement    { return req(key, "In", values...) }
func notIn(key string, values ...string) apiserver.Requirement { return req(key, "NotIn", values...) }

func term(expressions ...apiserver.Requirement) apiserver.Term {
	return apiserver.Term{Expressions: expressions}
}

func field(r ...apiserver.Requirement) apiserver.Term { return apiserver.Term{Fields: r} }

// What nodeaffinity.GetRequiredNodeAffinity(pod).Match(node) of
// k8s.io/component-helpers v0.34.4 says of each.
func TestNodeAffinityMatchesAsTheKubeletMatchesIt(t *testing.T) {
	n := apiserver.Node{Name: "n1", Labels: map[string]string{"zone": "a", "cores": "8", "empty": "", "version": "1.2"}}
	for _, c := range []struct {
		name  string
		terms []apiserver.Term
		want  bool
	}{
		{"no terms", nil, true},

		{"In, one of them", []apiserver.Term{term(in("zone", "b", "a"))}, true},
		{"In, none of them", []apiserver.Term{term(in("zone", "b", "c"))}, false},
		{"In, without the label", []apiserver.Term{term(in("rack", "a"))}, false},
		{"In, the empty value", []apiserver.Term{term(in("empty", ""))}, true},
		{"In, the empty value without the label", []apiserver.Term{term(in("rack", ""))}, false},
		{"In nothing", []apiserver.Term{term(in("zone"))}, false},

		{"NotIn, one of them", []apiserver.Term{term(notIn("zone", "b", "a"))}, false},
		{"NotIn, none of them", []apiserver.Term{term(notIn("zone", "b", "c"))}, true},
		{"NotIn, without the label", []apiserver.Term{term(notIn("rack", "a"))}, true},
		{"NotIn nothing", []apiserver.Term{term(notIn("zone"))}, false},

		{"Exists", []apiserver.Term{term(req("empty", "Exists"))}, true},
		{"Exists, without the label", []apiserver.Term{term(req("rack", "Exists"))}, false},
		{"Exists with a value", []apiserver.Term{term(req("zone", "Exists", "a"))}, false},
		{"DoesNotExist", []apiserver.Term{term(req("empty", "DoesNotExist"))}, false},
		{"DoesNotExist, without the label", []apiserver.Term{term(req("rack", "DoesNotExist"))}, true},

		{"Gt less", []apiserver.Term{term(req("cores", "Gt", "7"))}, true},
		{"Gt the same", []apiserver.Term{term(req("cores", "Gt", "8"))}, false},
		{"Gt, compared as numbers", []apiserver.Term{term(req("cores", "Gt", "10"))}, false},
		{"Gt a negative number", []apiserver.Term{term(req("cores", "Gt", "-1"))}, false}, // not a value of a label
		{"Gt, without the label", []apiserver.Term{term(req("rack", "Gt", "0"))}, false},
		{"Gt, a label that is no number", []apiserver.Term{term(req("version", "Gt", "0"))}, false},
		{"Gt what is no number", []apiserver.Term{term(req("cores", "Gt", "few"))}, false},
		{"Gt two numbers", []apiserver.Term{term(req("cores", "Gt", "1", "2"))}, false},
		{"Lt more", []apiserver.Term{term(req("cores", "Lt", "10"))}, true},
		{"Lt the same", []apiserver.Term{term(req("cores", "Lt", "8"))}, false},
		{"Lt, without the label", []apiserver.Term{term(req("rack", "Lt", "9"))}, false},

		{"an operator that is none", []apiserver.Term{term(req("zone", "=", "a"))}, false},
		{"a key that is none", []apiserver.Term{term(notIn("a/b/c", "a"))}, false},

		{"all of a term", []apiserver.Term{term(in("zone", "a"), req("cores", "Gt", "4"))}, true},
		{"not all of a term", []apiserver.Term{term(in("zone", "a"), req("cores", "Gt", "9"))}, false},
		{"one of the terms", []apiserver.Term{term(in("zone", "b")), term(in("zone", "a"))}, true},
		{"none of the terms", []apiserver.Term{term(in("zone", "b")), term(in("zone", "c"))}, false},
		{"an empty term", []apiserver.Term{{}}, false},
		{"an empty term beside one that is met", []apiserver.Term{{}, term(in("zone", "a"))}, true},
		{"a term that cannot be read beside one that is met", []apiserver.Term{term(in("zone")), term(in("zone", "a"))}, true},
		{"part of a term cannot be read", []apiserver.Term{term(in("zone", "a"), in("cores"))}, false},

		{"the node's name", []apiserver.Term{field(in("metadata.name", "n1"))}, true},
		{"another node's name", []apiserver.Term{field(in("metadata.name", "n2"))}, false},
		{"not the node's name", []apiserver.Term{field(notIn("metadata.name", "n1"))}, false},
		{"not another node's name", []apiserver.Term{field(notIn("metadata.name", "n2"))}, true},
		{"two names", []apiserver.Term{field(in("metadata.name", "n1", "n2"))}, false},
		{"a name that exists", []apiserver.Term{field(req("metadata.name", "Exists"))}, false},
		{"name and label", []apiserver.Term{{
			Expressions: []apiserver.Requirement{in("zone", "a")}, Fields: []apiserver.Requirement{in("metadata.name", "n1")},
		}}, true},
		{"name and another label", []apiserver.Term{{
			Expressions: []apiserver.Requirement{in("zone", "b")}, Fields: []apiserver.Requirement{in("metadata.name", "n1")},
		}}, false},
	} {
		pod := apiserver.Pod{NodeSelector: apiserver.NodeSelector{Terms: c.terms}}
		if got := drain.Harmed([]apiserver.Pod{pod}, n) == nil; got != c.want {
			t.Errorf("%s: matches is %t", c.name, got)
		}
	}
}

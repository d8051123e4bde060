package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A wish is what the specification of a pod says that has to do with DNS.
type wish struct {
	name, namespace string
	labels          string // of the pod, in JSON
	spec            string // all but its node and its container, in JSON
}

func (w wish) manifest(n *Node) string {
	spec := w.spec
	if spec != "" {
		spec += ", "
	}
	return fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": %q, "namespace": %q, "labels": {%s}}, "spec": {%s
 "nodeName": %q, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0, "containers": [%s]}}`,
		w.name, w.namespace, w.labels, spec, n.Name, busybox)
}

const busybox = `{"name": "main", "image": "docker.io/library/busybox:local", "imagePullPolicy": "Never", "command": ["sleep", "86400"]}`

func TestNewPodsOfALabelledNamespaceAskUsWhateverTheirKubeletSays(t *testing.T) {
	t.Parallel()
	n := bootWith(t, "kubelet: {manage: false}\n")
	c := n.cluster
	nodelocaldns(t, n, 0, "apply")
	const chosen, other = "by-choice", "not-by-choice"
	manifest := `{"apiVersion": "v1", "kind": "List", "items": [
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "` + chosen + `", "labels": {"node-local-dns-injection": "enabled"}}},
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "` + other + `"}}]}`
	_, err := c.KubectlApply(t.Context(), manifest)
	must(t, err)
	policy, err := n.Output(t.Context(), "nodelocaldns", "dnsconfig", "--policy", "--api-version", "v1beta1", "--single-request-reopen")
	must(t, err)
	_, err = c.KubectlApply(t.Context(), policy)
	must(t, err)

	dry := func(w wish) string {
		t.Helper()
		out, err := c.kubectl(t.Context(), w.manifest(n), "create", "--dry-run=server", "--filename=-", "--output=jsonpath={.spec.dnsPolicy} {.spec.dnsConfig}")
		must(t, err)
		return strings.TrimSpace(out)
	}
	eventually(t, "the policy to be in force", func() error {
		if got := dry(wish{name: "first", namespace: chosen}); !strings.HasPrefix(got, "None ") {
			return errors.New(got)
		}
		return nil
	})

	// What pods have in their resolv.conf. The kubelet writes options in any order.
	sorted := func(text string) string {
		before, options, _ := strings.Cut(text, "\noptions ")
		words := strings.Fields(options)
		slices.Sort(words)
		return before + "\noptions " + strings.Join(words, " ")
	}
	resolvConf := func(namespace, searches, servers, options string) string {
		return fmt.Sprintf("search %s.svc.cluster.local svc.cluster.local cluster.local%s\nnameserver %s\noptions %s\n",
			namespace, searches, strings.ReplaceAll(servers, " ", "\nnameserver "), options)
	}
	ofNode := output(t, n, "cat", "/etc/resolv.conf")
	const ours = "ndots:5 timeout:2 attempts:2 single-request-reopen"
	var all []string
	pods := []struct {
		wish
		want string
	}{
		{wish{"plain", chosen, ``, ``}, resolvConf(chosen, "", both, ours)},
		{wish{"with-options", chosen, ``, `"dnsConfig": {"searches": ["corp.example.com"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}`},
			resolvConf(chosen, " corp.example.com", both, "timeout:2 attempts:2 single-request-reopen ndots:2 edns0")},
		{wish{"with-servers", chosen, ``, `"dnsConfig": {"nameservers": ["192.0.2.1"]}`}, resolvConf(chosen, "", KubeDNS+" 192.0.2.1", "ndots:5")},
		{wish{"opted-out", chosen, `"node-local-dns-injection": "disabled"`, ``}, resolvConf(chosen, "", KubeDNS, "ndots:5")},
		{wish{"of-the-node", chosen, ``, `"hostNetwork": true`}, ofNode},
		{wish{"of-the-node-with-cluster-dns", chosen, ``, `"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"`}, resolvConf(chosen, "", KubeDNS, "ndots:5")},
		{wish{"default", chosen, ``, `"dnsPolicy": "Default"`}, ofNode},
		{wish{"elsewhere", other, ``, ``}, resolvConf(other, "", KubeDNS, "ndots:5")},
	}
	for _, p := range pods {
		all = append(all, p.manifest(n))
	}
	// One that nobody makes by hand.
	all = append(all, fmt.Sprintf(`{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": %q}, "spec": {"template": {"spec": {
 "nodeName": %q, "restartPolicy": "Never", "automountServiceAccountToken": false, "containers": [%s]}}}}`, chosen, n.Name,
		strings.Replace(busybox, `["sleep", "86400"]`, `["cat", "/etc/resolv.conf"]`, 1)))
	_, err = c.KubectlApply(t.Context(), `{"apiVersion": "v1", "kind": "List", "items": [`+strings.Join(all, ",")+`]}`)
	must(t, err)
	for _, namespace := range []string{chosen, other} {
		kubectl(t, c, "--namespace="+namespace, "wait", "--for=condition=Ready", "--selector=!job-name", "--timeout="+startTimeout.String(), "pod")
	}
	for _, p := range pods {
		got := kubectl(t, c, "--namespace="+p.namespace, "exec", p.name, "--", "cat", "/etc/resolv.conf")
		if diff := cmp.Diff(sorted(p.want), sorted(got)); diff != "" {
			t.Errorf("resolv.conf of %s/%s (-want +got):\n%s", p.namespace, p.name, diff)
		}
	}
	kubectl(t, c, "--namespace="+chosen, "wait", "--for=condition=Complete", "--timeout="+startTimeout.String(), "job/job")
	if diff := cmp.Diff(sorted(pods[0].want), sorted(kubectl(t, c, "--namespace="+chosen, "logs", "job/job"))); diff != "" {
		t.Errorf("resolv.conf of the job's pod (-want +got):\n%s", diff)
	}
	out := kubectl(t, c, "--namespace="+chosen, "exec", "plain", "--", "nslookup", "kubernetes.default.svc.cluster.local")
	contains(t, "nslookup in a pod that was sent to us", out, local)

	// Those that the API server would refuse if we added something, and those
	// that no kubelet here would start.
	thirty := `"dnsConfig": {"searches": ["` + strings.Join(strings.Split(strings.Repeat("a.example ", 30)+"b.example", " "), `", "`) + `"]}`
	for _, w := range []wish{
		{"searches", chosen, ``, thirty},
		{"windows", chosen, ``, `"os": {"name": "windows"}`},
		{"windows-by-node", chosen, ``, `"nodeSelector": {"kubernetes.io/os": "windows"}`},
	} {
		if got := dry(w); !strings.HasPrefix(got, "ClusterFirst") {
			t.Errorf("pod %s is changed: %s", w.name, got)
		}
	}

	// Without the policy all is as it was, for new pods.
	kubectl(t, c, "delete", "mutatingadmissionpolicybindings.v1beta1.admissionregistration.k8s.io/node-local-dns-injection",
		"mutatingadmissionpolicies.v1beta1.admissionregistration.k8s.io/node-local-dns-injection")
	eventually(t, "the policy to be gone", func() error {
		if got := dry(wish{name: "last", namespace: chosen}); got != "ClusterFirst" {
			return errors.New(got)
		}
		return nil
	})
}

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/apiserver"
)

// asKubelet is the API server to the kubelet of n.
func asKubelet(t *testing.T, n *Node) *apiserver.Client {
	t.Helper()
	return asUser(t, filepath.Join(n.Root, "etc/kubernetes/kubelet.conf"))
}

func asUser(t *testing.T, kubeconfig string) *apiserver.Client {
	t.Helper()
	c, err := apiserver.Open(kubeconfig)
	must(t, err)
	t.Cleanup(c.Close)
	return c
}

// deployed applies a manifest in which NODE is the node's name.
func deployed(t *testing.T, n *Node, text string) {
	t.Helper()
	_, err := n.cluster.KubectlApply(t.Context(), strings.ReplaceAll(text, "NODE", n.Name))
	must(t, err)
}

// change changes the node of c as it is now. What its kubelet and the control
// plane change at the same moment is a conflict, and then it tries again.
func change(t *testing.T, c *apiserver.Client, name string, f func(apiserver.Node) (apiserver.Node, error)) apiserver.Node {
	t.Helper()
	var after apiserver.Node
	eventually(t, "no other to change node "+name, func() error {
		n, err := c.Node(t.Context(), name)
		must(t, err)
		after, err = f(n)
		var conflict *apiserver.Conflict
		if !errors.As(err, &conflict) {
			must(t, err)
		}
		return err
	})
	return after
}

func TestAKubeletCordonsItsNodeAndSeesWhoElseDoes(t *testing.T) {
	t.Parallel()
	n := boot(t)
	c := asKubelet(t, n)
	ctx := t.Context()

	name, err := c.NodeName(ctx)
	if name != n.Name || err != nil {
		t.Errorf("the credential is of node %q, %v", name, err)
	}
	before, err := c.Node(ctx, n.Name)
	must(t, err)
	if !before.Ready || time.Since(before.Heartbeat) > time.Minute || !strings.HasPrefix(before.KubeletVersion, "v1.34.") ||
		before.Labels["kubernetes.io/hostname"] != n.Name || before.Unschedulable || before.ControlPlane || before.CordonedBy != "" {
		t.Errorf("a node that has just booted: %+v", before)
	}
	if id := strings.TrimSpace(output(t, n, "cat", "/proc/sys/kernel/random/boot_id")); before.BootID != id {
		t.Errorf("boot ID %s, want %s", before.BootID, id)
	}
	if uid := kubectl(t, n.cluster, "get", "node", n.Name, "--output=jsonpath={.metadata.uid}"); before.UID != uid {
		t.Errorf("UID %s, want %s", before.UID, uid)
	}

	// What of a cordon is to be seen.
	type cordon struct {
		Cordoned bool
		By, Mark string
	}
	is := func(what string, node apiserver.Node, want cordon) {
		t.Helper()
		if diff := cmp.Diff(want, cordon{node.Unschedulable, node.CordonedBy, node.Annotations[mark]}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	now := func() apiserver.Node {
		t.Helper()
		node, err := c.Node(ctx, n.Name)
		must(t, err)
		return node
	}
	ours := func(n apiserver.Node) (apiserver.Node, error) { return c.Cordon(ctx, n, mark, "us") }
	open := func(n apiserver.Node) (apiserver.Node, error) { return c.Uncordon(ctx, n, mark) }
	unmark := func(n apiserver.Node) (apiserver.Node, error) { return c.Unmark(ctx, n, mark) }

	after := change(t, c, n.Name, ours)
	is("cordoned by us", after, cordon{true, "nodelocaldns", "us"})
	if time.Since(after.CordonedAt) > time.Minute {
		t.Errorf("cordoned at %s", after.CordonedAt)
	}
	var conflict *apiserver.Conflict
	if _, err := c.Uncordon(ctx, before, mark); !errors.As(err, &conflict) {
		t.Errorf("uncordoned as it was read before: %v", err)
	}
	is("after a conflict", now(), cordon{true, "nodelocaldns", "us"})

	kubectl(t, n.cluster, "cordon", n.Name)
	is("cordoned once more by an administrator, which cannot be seen", now(), cordon{true, "nodelocaldns", "us"})
	kubectl(t, n.cluster, "uncordon", n.Name)
	is("uncordoned by an administrator", now(), cordon{false, "", "us"})
	kubectl(t, n.cluster, "cordon", n.Name)
	is("and cordoned again", now(), cordon{true, "kubectl", "us"})
	is("their cordon without our mark", change(t, c, n.Name, unmark), cordon{true, "kubectl", ""})
	is("our mark on their cordon", change(t, c, n.Name, ours), cordon{true, "kubectl", "us"})
	kubectl(t, n.cluster, "annotate", "node", n.Name, mark+"-")
	is("our mark removed", now(), cordon{true, "kubectl", ""})
	is("uncordoned by us", change(t, c, n.Name, open), cordon{})
	is("cordoned by us once more", change(t, c, n.Name, ours), cordon{true, "nodelocaldns", "us"})
	kubectl(t, n.cluster, "drain", n.Name, "--ignore-daemonsets")
	is("and drained by an administrator", now(), cordon{true, "nodelocaldns", "us"})
	is("uncordoned by us once more", change(t, c, n.Name, open), cordon{})

	// A kubelet may have its node ready before it has a lease.
	eventually(t, "its lease", func() error {
		renewed, err := c.Renewed(ctx, n.Name)
		if since := time.Since(renewed); err == nil && (since < 0 || since > time.Minute) {
			t.Errorf("its lease was renewed %s ago", since)
		}
		if !errors.Is(err, apiserver.ErrNotFound) {
			must(t, err)
		}
		return err
	})
}

func TestEventsOfANodeAreShownByKubectlDescribe(t *testing.T) {
	t.Parallel()
	n := boot(t)
	c := asKubelet(t, n)
	node, err := c.Node(t.Context(), n.Name)
	must(t, err)
	must(t, c.Event(t.Context(), node, apiserver.Event{Reason: "Cordoned", Message: "For a restart of the kubelet", At: time.Now().Add(-time.Minute)}))
	must(t, c.Event(t.Context(), node, apiserver.Event{Warning: true, Reason: "Undone", Message: strings.Repeat("ä", 1000), At: time.Now()}))
	shown := kubectl(t, n.cluster, "describe", "node", n.Name)
	for _, want := range []string{`(?m)^  Normal +Cordoned +6\ds +nodelocaldns +For a restart of the kubelet$`, `(?m)^  Warning +Undone +\d+s +nodelocaldns +ä{512}$`} {
		if !regexp.MustCompile(want).MatchString(shown) {
			t.Errorf("kubectl describe node prints\n%s\nwant a line %s", shown[strings.Index(shown, "\nEvents:"):], want)
		}
	}
	if shown := kubectl(t, n.cluster, "events", "--for=node/"+n.Name); !strings.Contains(shown, "For a restart of the kubelet") {
		t.Errorf("kubectl events prints\n%s", shown)
	}
}

// A sleeper is a pod on NODE that is asked to end in vain, in 2 s.
const sleeper = `
apiVersion: v1
kind: Pod
metadata: {name: POD-NODE, labels: {app: POD-NODE}}
spec:
  nodeName: NODE
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 2
  containers: [{name: main, image: "docker.io/library/busybox:local", imagePullPolicy: Never, command: [sleep, "86400"]}]
---`

func TestAKubeletEvictsThePodsOfItsNode(t *testing.T) {
	t.Parallel()
	n := boot(t)
	c := asKubelet(t, n)
	ctx := t.Context()
	// pods are those of the node by their names there.
	pods := func(node, selector string) map[string]apiserver.Pod {
		t.Helper()
		all, err := c.Pods(ctx, node, selector)
		must(t, err)
		byName := map[string]apiserver.Pod{}
		for _, p := range all {
			byName[strings.TrimSuffix(p.Name, "-"+n.Name)] = p
		}
		return byName
	}
	sleepers := func(names ...string) {
		t.Helper()
		var manifest string
		for _, name := range names {
			manifest += strings.ReplaceAll(sleeper, "POD", name)
		}
		deployed(t, n, manifest)
		for _, name := range names {
			kubectl(t, n.cluster, "wait", "--for=condition=Ready", "--timeout=60s", "pod/"+name+"-"+n.Name)
		}
	}
	budget := func(name, pod string) {
		t.Helper()
		deployed(t, n, fmt.Sprintf(`{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: %s-NODE},
			spec: {minAvailable: 1, selector: {matchLabels: {app: %s-NODE}}}}`, name, pod))
		kubectl(t, n.cluster, "wait", "--for=jsonpath={.status.currentHealthy}=1", "--timeout=60s", "pdb/"+name+"-"+n.Name)
	}
	gone := func(name string) {
		t.Helper()
		eventually(t, name+" to be gone", func() error {
			if p, ok := pods(n.Name, "")[name]; ok {
				return fmt.Errorf("it is there: %+v", p)
			}
			return nil
		})
	}

	must(t, n.Put("/etc/kubernetes/manifests/static.yaml", []byte(`
apiVersion: v1
kind: Pod
metadata: {name: static}
spec: {hostNetwork: true, containers: [{name: main, image: "docker.io/library/busybox:local", imagePullPolicy: Never, command: [sleep, "86400"]}]}
`), 0o600))
	sleepers("guarded", "twice", "plain")
	deployed(t, n, `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: set-NODE}, spec: {replicas: 1, selector: {matchLabels: {app: set-NODE}}, template: {
		metadata: {labels: {app: set-NODE}}, spec: {
			nodeSelector: {kubernetes.io/hostname: NODE}, priority: 0, volumes: [{name: scratch, emptyDir: {}}],
			affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}},
			containers: [{name: main, image: "docker.io/library/busybox:local", imagePullPolicy: Never, command: [sleep, "86400"]}]}}}}`)
	kubectl(t, n.cluster, "wait", "--for=jsonpath={.status.readyReplicas}=1", "--timeout=60s", "replicaset/set-"+n.Name)
	budget("guarded", "guarded")
	eventually(t, "the mirror pod", func() error {
		if !pods(n.Name, "")["static"].Ready {
			return errors.New("it is not ready")
		}
		return nil
	})

	all := pods(n.Name, "")
	p := all["guarded"]
	if want := (apiserver.Pod{
		Namespace: "default", Name: "guarded-" + n.Name, UID: p.UID, Node: n.Name, Labels: map[string]string{"app": "guarded-" + n.Name},
		Ready: true, Grace: 2 * time.Second,
	}); !cmp.Equal(want, p) || p.UID == "" {
		t.Errorf("an unmanaged pod (-want +got):\n%s", cmp.Diff(want, p))
	}
	if p := all["static"]; !p.Mirror || p.ConfigHash == "" || p.Owner != (apiserver.Owner{Kind: "Node", Name: n.Name}) {
		t.Errorf("a mirror pod: %+v", p)
	}
	for name, p := range all {
		if !strings.HasPrefix(name, "set-") {
			continue
		}
		want := apiserver.NodeSelector{
			Labels: map[string]string{"kubernetes.io/hostname": n.Name},
			Terms:  []apiserver.Term{{Expressions: []apiserver.Requirement{{Key: "kubernetes.io/os", Operator: "In", Values: []string{"linux"}}}}},
		}
		if diff := cmp.Diff(want, p.NodeSelector); diff != "" || !p.EmptyDir || p.Owner != (apiserver.Owner{Kind: "ReplicaSet", Name: "set-" + n.Name}) {
			t.Errorf("a pod of a ReplicaSet: %+v\n%s", p, diff)
		}
	}
	if len(all) != 5 {
		t.Errorf("the node's pods are %v", all)
	}
	if chosen := pods(n.Name, "app in (plain-"+n.Name+",none)"); len(chosen) != 1 || chosen["plain"].UID != all["plain"].UID {
		t.Errorf("chosen by label: %v", chosen)
	}
	kubectl(t, n.cluster, "delete", "replicaset", "set-"+n.Name, "--cascade=foreground", "--wait=false")

	// A budget that allows none, then none at all.
	err := c.Evict(ctx, all["guarded"], nil)
	var blocked *apiserver.Blocked
	if !errors.As(err, &blocked) {
		t.Fatalf("evicting a pod whose budget allows none: %v", err)
	}
	name := "guarded-" + n.Name
	if diff := cmp.Diff([]string{name}, blocked.PDBs); diff != "" || blocked.Why != "The disruption budget "+name+" needs 1 healthy pods and has 1 currently" {
		t.Errorf("blocked by %v: %s", blocked.PDBs, blocked.Why)
	}
	kubectl(t, n.cluster, "delete", "pdb", name)
	must(t, c.Evict(ctx, all["guarded"], nil))
	must(t, c.Evict(ctx, all["guarded"], nil)) // it has begun
	if p, ok := pods(n.Name, "")["guarded"]; ok && (!p.Terminating || p.Grace != 2*time.Second) {
		t.Errorf("an evicted pod: %+v", p)
	}
	gone("guarded")
	if err := c.Evict(ctx, all["guarded"], nil); !errors.Is(err, apiserver.ErrGone) {
		t.Errorf("evicting a pod that is gone: %v", err)
	}

	// Two budgets are one too many.
	budget("one", "twice")
	budget("other", "twice")
	err = c.Evict(ctx, all["twice"], nil)
	var e *apiserver.Error
	if !errors.As(err, &e) || errors.As(err, &blocked) || errors.Is(err, apiserver.ErrUnreachable) || !strings.Contains(err.Error(), "more than one PodDisruptionBudget") {
		t.Errorf("evicting a pod with two budgets: %v", err)
	}

	// Another pod of the same name, here and elsewhere.
	kubectl(t, n.cluster, "delete", "pod", "plain-"+n.Name)
	sleepers("plain")
	if err := c.Evict(ctx, all["plain"], nil); !errors.Is(err, apiserver.ErrGone) {
		t.Errorf("evicting a pod when another has its name: %v", err)
	}
	if now := pods(n.Name, "")["plain"]; now.Terminating || now.UID == all["plain"].UID {
		t.Errorf("the other pod: %+v", now)
	}
	kubectl(t, n.cluster, "delete", "pod", "plain-"+n.Name)
	deployed(t, n, strings.Replace(strings.ReplaceAll(sleeper, "POD", "plain"), "nodeName: NODE", "nodeSelector: {nowhere: here}", 1))
	if err := c.Evict(ctx, all["plain"], nil); !errors.Is(err, apiserver.ErrGone) || errors.Is(err, apiserver.ErrForbidden) {
		t.Errorf("evicting a pod that is elsewhere by now: %v", err)
	}
	kubectl(t, n.cluster, "delete", "pod", "plain-"+n.Name)

	// At once.
	kubectl(t, n.cluster, "delete", "pdb", "one-"+n.Name, "other-"+n.Name)
	grace := time.Duration(0)
	must(t, c.Evict(ctx, all["twice"], &grace))
	gone("twice")

	// That is why mirror pods are nobody's to evict.
	must(t, c.Evict(ctx, all["static"], nil))
	eventually(t, "the mirror pod of the same static pod", func() error {
		p := pods(n.Name, "")["static"]
		if p.UID == all["static"].UID || !p.Ready || p.ConfigHash != all["static"].ConfigHash {
			return fmt.Errorf("there is %+v", p)
		}
		return nil
	})

	// A namespace that goes, and does not let its pod go.
	deployed(t, n, strings.ReplaceAll(`{apiVersion: v1, kind: Namespace, metadata: {name: going-NODE}}
---`+sleeper, "metadata: {name: POD-NODE,", "metadata: {name: last-NODE, namespace: going-NODE, finalizers: [nodelocaldns.io/test],"))
	eventually(t, "a pod in a namespace", func() error {
		if !pods(n.Name, "")["last"].Ready {
			return errors.New("it is not ready")
		}
		return nil
	})
	last := pods(n.Name, "")["last"]
	kubectl(t, n.cluster, "delete", "namespace", "going-"+n.Name, "--wait=false")
	eventually(t, "evictions to be refused in a namespace", func() error {
		err := c.Evict(ctx, last, nil)
		if errors.Is(err, apiserver.ErrNamespaceTerminating) && errors.Is(err, apiserver.ErrForbidden) {
			return nil
		}
		return fmt.Errorf("there was no such error: %w", errors.Join(err, errors.New("or none")))
	})
	kubectl(t, n.cluster, "--namespace=going-"+n.Name, "patch", "pod", last.Name, "--type=merge", `--patch={"metadata":{"finalizers":null}}`)
}

func TestWhatAKubeletMayNotIsForbidden(t *testing.T) {
	t.Parallel()
	n, other := boot(t), boot(t)
	c := asKubelet(t, n)
	ctx := t.Context()
	there := runPod(t, other, "there")
	theirs, err := asKubelet(t, other).Pods(ctx, other.Name, "app!=none")
	must(t, err)
	if len(theirs) != 1 || theirs[0].Name != there {
		t.Fatalf("the other node has %v", theirs)
	}
	for what, err := range map[string]error{
		"another node":           second(c.Node(ctx, other.Name)),
		"a node that is not":     second(c.Node(ctx, "none")),
		"the pods of another":    second(c.Pods(ctx, other.Name, "")),
		"all pods":               second(c.Pods(ctx, "", "")),
		"the lease of another":   second(c.Renewed(ctx, other.Name)),
		"a lease in kube-system": second(c.Lease(ctx, "kube-system", "nodelocaldns-window-0")),
		"to make one there":      second(c.CreateLease(ctx, apiserver.Lease{Namespace: "kube-system", Name: "nodelocaldns-window-0"})),
		"to cordon another":      second(c.Cordon(ctx, apiserver.Node{Name: other.Name, ResourceVersion: "1"}, mark, "us")),
		"to evict its pods":      c.Evict(ctx, theirs[0], nil),
	} {
		if !errors.Is(err, apiserver.ErrForbidden) || errors.Is(err, apiserver.ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
	addrs, err := c.ServiceIPs(ctx, "kube-system", "kube-dns")
	if len(addrs) != 1 || addrs[0] != KubeDNS || err != nil {
		t.Errorf("kube-dns: %v, %v", addrs, err)
	}
	if _, err := c.ServiceIPs(ctx, "kube-system", "none"); !errors.Is(err, apiserver.ErrNotFound) {
		t.Errorf("a service that is not there: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// An identity of its own, as one would have it for a limit in the cluster.
const identity = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: window-NODE, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: window-NODE}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: window-NODE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: window-NODE}
subjects: [{kind: ServiceAccount, name: window-NODE, namespace: kube-system}]
`

func TestAnIdentityOfItsOwnHoldsLeases(t *testing.T) {
	t.Parallel()
	n := boot(t)
	deployed(t, n, identity)
	ctx := t.Context()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		t.Helper()
		name = filepath.Join(dir, name)
		must(t, os.WriteFile(name, []byte(content), mode))
		return name
	}
	// Its token comes from a program, as on EKS.
	token := strings.TrimSpace(kubectl(t, n.cluster, "--namespace=kube-system", "create", "token", "window-"+n.Name))
	program := write("get-token", `#!/bin/sh
echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"`+token+`"}}'
`, 0o700)
	write("ca.crt", string(n.cluster.authority.pem), 0o600)
	c := asUser(t, write("window.conf", fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab, user: window}}]
clusters: [{name: lab, cluster: {server: %q, certificate-authority: ca.crt}}]
users: [{name: window, user: {exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: IfAvailable, command: %s}}}]
`, apiServer, program), 0o600))

	if _, err := c.NodeName(ctx); err == nil || !strings.HasSuffix(err.Error(), `it is the credential of "system:serviceaccount:kube-system:window-`+n.Name+`", not of a kubelet`) {
		t.Errorf("its node's name: %v", err)
	}
	node, err := c.Node(ctx, n.Name)
	must(t, err)
	must(t, c.Event(ctx, node, apiserver.Event{Reason: "Cordoned", At: time.Now()})) // it may not
	if events := kubectl(t, n.cluster, "get", "events", "--field-selector=reason=Cordoned,involvedObject.uid="+node.UID); events != "" {
		t.Errorf("recorded without the right to:\n%s", events)
	}

	at := time.Date(2026, 11, 22, 1, 51, 37, 1000, time.UTC)
	want := apiserver.Lease{Namespace: "kube-system", Name: "window-" + n.Name, Holder: n.Name, Acquired: at, Renewed: at, Duration: 10 * time.Minute}
	is := func(what string, l apiserver.Lease, err error) apiserver.Lease {
		t.Helper()
		must(t, err)
		want.ResourceVersion = l.ResourceVersion
		if diff := cmp.Diff(want, l); diff != "" || l.ResourceVersion == "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		return l
	}
	if _, err := c.Lease(ctx, want.Namespace, want.Name); !errors.Is(err, apiserver.ErrNotFound) {
		t.Errorf("a lease that nobody made: %v", err)
	}
	l, err := c.CreateLease(ctx, want)
	old := is("created", l, err)
	var conflict *apiserver.Conflict
	if _, err := c.CreateLease(ctx, want); !errors.As(err, &conflict) {
		t.Errorf("created twice: %v", err)
	}
	want.Renewed = at.Add(time.Minute)
	want.ResourceVersion = old.ResourceVersion
	l, err = c.UpdateLease(ctx, want)
	l = is("renewed", l, err)
	if _, err := c.UpdateLease(ctx, old); !errors.As(err, &conflict) {
		t.Errorf("renewed by who has read it before: %v", err)
	}
	want = apiserver.Lease{Namespace: want.Namespace, Name: want.Name, ResourceVersion: l.ResourceVersion}
	l, err = c.UpdateLease(ctx, want)
	is("released", l, err)
	l, err = c.Lease(ctx, want.Namespace, want.Name)
	is("read", l, err)
}

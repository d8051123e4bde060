package node

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// withIdentity gives a node a credential of the identity that the limit needs, in
// the cluster and with the rights of units/rbac.yaml.
func withIdentity(t *testing.T, n *Node) {
	t.Helper()
	c := n.cluster
	rbac, err := os.ReadFile(filepath.Join("..", "..", "units", "rbac.yaml"))
	must(t, err)
	_, err = c.KubectlApply(t.Context(), string(rbac))
	must(t, err)
	token := strings.TrimSpace(kubectl(t, c, "--namespace=kube-system", "create", "token", "nodelocaldns-window", "--duration=1h"))
	config, err := clientcmd.LoadFromFile(filepath.Join(n.Root, "etc/kubernetes/kubelet.conf"))
	must(t, err)
	for _, cluster := range config.Clusters {
		ca := cluster.CertificateAuthorityData
		if len(ca) == 0 {
			ca, err = os.ReadFile(filepath.Join(n.Root, cluster.CertificateAuthority))
			must(t, err)
		}
		must(t, n.Put("/etc/nodelocaldns/kubeconfig", fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
`, cluster.Server, base64.StdEncoding.EncodeToString(ca), token), 0o600))
	}
}

// cordonedAtOnce samples how many of the nodes are cordoned at the same time.
func cordonedAtOnce(t *testing.T, nodes ...*Node) (most func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	api, top := newAsker(t, nodes[0].cluster), 0
	ended := sampled(ctx, func() {
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Spec     struct{ Unschedulable bool }
			}
		}
		if err := api.get(ctx, "/api/v1/nodes", &list); err != nil && ctx.Err() == nil {
			t.Errorf("sampling the nodes: %v", err)
		}
		now := 0
		for _, i := range list.Items {
			if i.Spec.Unschedulable && slices.ContainsFunc(nodes, func(n *Node) bool { return n.Name == i.Metadata.Name }) {
				now++
			}
		}
		top = max(top, now)
	})
	return func() int {
		cancel()
		<-ended
		return top
	}
}

// holders are the nodes that hold a lease of the limit.
func holders(t *testing.T, c *Cluster) string {
	t.Helper()
	out := kubectl(t, c, "--namespace=kube-system", "get", "leases", `--output=jsonpath={range .items[*]}{.metadata.name} {.spec.holderIdentity}{"\n"}{end}`)
	var nodes []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); strings.HasPrefix(f[0], "nodelocaldns-window-") {
			nodes = append(nodes, f[1:]...)
		}
	}
	return strings.Join(nodes, " ")
}

func TestTwoNodesAreNeverAwayAtOnceAndNoneForEver(t *testing.T) {
	t.Parallel()
	const config = "kubelet: {settle: 3s, kubeconfig: /etc/nodelocaldns/kubeconfig}\n"
	one, other := bootWith(t, config), bootWith(t, config)
	withIdentity(t, one)
	withIdentity(t, other)

	most := cordonedAtOnce(t, one, other)
	first := begin(t, one, "apply", "--drain", "cordon", "--max-unavailable", "1")
	second := begin(t, other, "apply", "--drain", "cordon", "--max-unavailable", "1")
	first.ends(0)
	second.ends(0)
	if got := most(); got != 1 {
		t.Errorf("%d nodes were seen cordoned at once, want 1", got)
	}
	ends(t, "one", one, withUs)
	ends(t, "the other", other, withUs)
	if got := holders(t, one.cluster); got != "" {
		t.Errorf("a lease is held by %s, want nobody", got)
	}

	// One dies with it: the other is told of whom it waits for, until that one
	// has come to its end.
	dying := begin(t, one, append([]string{"rollback", "--drain=cordon", "--max-unavailable=1"}, theRest...)...)
	dying.says("restarting the kubelet")
	dying.kill()
	waits := append([]string{"rollback", "--drain=cordon", "--max-unavailable=1", "--timeout=" + (5 * time.Second).String()}, theRest...)
	said := begin(t, other, waits...).ends(1)
	contains(t, "rollback of the other", said, "waiting for --max-unavailable: node "+one.Name+" holds nodelocaldns-window-0",
		"none of 1 was free for 4.5s: node "+one.Name+" holds nodelocaldns-window-0")
	begin(t, one, append([]string{"rollback", "--drain=cordon", "--max-unavailable=1"}, theRest...)...).ends(0)
	begin(t, other, waits...).ends(0)
	ends(t, "one, after its rollback", one, asBeforeUs)
	ends(t, "the other, after its rollback", other, asBeforeUs)
	if got := holders(t, one.cluster); got != "" {
		t.Errorf("a lease is held by %s, want nobody", got)
	}

	// Killed at any write, they leave no lease either.
	node := func(t *testing.T, i int) *Node {
		t.Helper()
		if i < 2 {
			return []*Node{one, other}[i]
		}
		n := bootWith(t, config)
		withIdentity(t, n)
		return worn(t, n)
	}
	killedAtEach(t, 4, node, func(t *testing.T, n *Node, number int) (killed bool) {
		for _, tt := range []struct {
			args []string
			want outcome
		}{{cordonedApply, withUs}, {cordonedRollback, asBeforeUs}} {
			args := append(tt.args[:len(tt.args):len(tt.args)], "--max-unavailable=4")
			writes, was := killedAt(t, n, number, args...)
			begin(t, n, args...).ends(0)
			what := fmt.Sprintf("%s, killed at write %d, %s, and again", tt.args[0], number, writes[len(writes)-1])
			ends(t, what, n, tt.want)
			if slices.Contains(strings.Fields(holders(t, n.cluster)), n.Name) {
				t.Errorf("%s: it holds a lease", what)
			}
			killed = killed || was // rollback has fewer
		}
		return killed
	})
}

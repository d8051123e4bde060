package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A view is what the cluster sees of a node while its kubelet is restarted.
type view struct {
	Cordoned bool
	Flipped  bool // a pod was not Ready for a moment, if too short to be sampled
	Events   string
}

// From Kubernetes 1.35 on, a kubelet that was restarted takes over which pods are
// Ready (feature gate ChangeContainerStatusOnKubeletRestart): there is nothing to
// keep pods away for.
func TestARestartIsNotSeenByTheClusterFrom135On(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kubelet string
		install func(*Node) error
		want    view
		ready   int // of three pods
	}{
		{"v1.34.", func(*Node) error { return nil }, view{Cordoned: true, Flipped: true, Events: "Cordoned KubeletRestarted Uncordoned"}, 0},
		{"v1.35.", (*Node).Upgrade, view{Events: "KubeletRestarted"}, 3},
	} {
		t.Run(tt.kubelet, func(t *testing.T) {
			t.Parallel()
			n := boot(t, func(n *Node) {
				must(t, tt.install(n))
				install(t, n, quick)
			})
			c, app := n.cluster, "web-"+n.Name
			if v := kubectl(t, c, "get", "node", n.Name, "--output=jsonpath={.status.nodeInfo.kubeletVersion}"); !strings.HasPrefix(v, tt.kubelet) {
				t.Fatalf("the kubelet is %s, want %s", v, tt.kubelet)
			}
			deploy(t, c, app, 3, podSpec(on(n)))
			since := func() string {
				return kubectl(t, c, "get", "pods", "--selector=app="+app, `--output=jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].lastTransitionTime} {end}`)
			}
			settled(t, since())

			before, cordoned, ready := since(), cordonedAtOnce(t, n), sample(t, c, app)
			begin(t, n, "apply").ends(0)
			ready.atLeast(t, tt.ready)
			events := strings.Fields(kubectl(t, c, "get", "events", "--field-selector=source=nodelocaldns,involvedObject.name="+n.Name, "--output=jsonpath={.items[*].reason}"))
			slices.Sort(events)
			got := view{Cordoned: cordoned() > 0, Flipped: since() != before, Events: strings.Join(events, " ")}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("the cluster saw (-want +got):\n%s", diff)
			}
			ends(t, "a node whose kubelet is "+tt.kubelet, n, withUs)
		})
	}
}

// settled waits until pods have been Ready for longer than the kubelet takes a
// container for a new one, whose state it does not take over: 10 s
// (kubeletRestartGracePeriod in its pkg/kubelet/prober).
func settled(t *testing.T, since string) {
	t.Helper()
	for _, text := range strings.Fields(since) {
		ready, err := time.Parse(time.RFC3339, text)
		must(t, err)
		time.Sleep(time.Until(ready.Add(11 * time.Second)))
	}
}

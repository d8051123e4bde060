package drain_test

import (
	"fmt"
	"strings"
	"testing"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/drain"
)

func TestTheVersionDecidesUnlessTheUserDoes(t *testing.T) {
	var got strings.Builder
	for _, mode := range []string{"auto", "never", "cordon", "drain"} {
		m, err := drain.ParseMode(mode)
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{"v1.34.4", "v1.35.0"} {
			cordon, evict, why := drain.Decide(m, version)
			fmt.Fprintf(&got, "%-6s %s cordon=%-5t evict=%-5t %s\n", mode, version, cordon, evict, why)
		}
	}
	const want = `auto   v1.34.4 cordon=true  evict=false no new pods come meanwhile: pods are not ready for a moment when a kubelet v1.34.4 restarts
auto   v1.35.0 cordon=false evict=false pods stay ready while a kubelet v1.35.0 restarts
never  v1.34.4 cordon=false evict=false nothing is done to the pods, as --drain never says
never  v1.35.0 cordon=false evict=false nothing is done to the pods, as --drain never says
cordon v1.34.4 cordon=true  evict=false no new pods come meanwhile, as --drain cordon says
cordon v1.35.0 cordon=true  evict=false no new pods come meanwhile, as --drain cordon says
drain  v1.34.4 cordon=true  evict=true  the pods are evicted first, as --drain drain says
drain  v1.35.0 cordon=true  evict=true  the pods are evicted first, as --drain drain says
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &got, want)
	}
}

func TestVersionsAreReadAsVendorsWriteThem(t *testing.T) {
	for version, cordon := range map[string]bool{
		"v1.9.0": true, "v1.34.4+k3s1": true, "v1.34.9-eks-1a2b3c4": true, "v1.34.1-gke.1829001": true,
		"v1.35.1": false, "v1.35.0+rke2r1": false, "v1.35.3-eks-1a2b3c4": false, "v1.100.0": false, "v2.0.0": false,
		"": true, "unknown": true,
	} {
		if got, _, why := drain.Decide(drain.Auto, version); got != cordon {
			t.Errorf("%q: cordon is %t: %s", version, got, why)
		}
	}
}

func TestAModeThatIsNoneIsRefused(t *testing.T) {
	for _, text := range []string{"", "Drain", "evict"} {
		if m, err := drain.ParseMode(text); err == nil {
			t.Errorf("%q is %q", text, m)
		}
	}
}

func selector(t *testing.T, text string) drain.Selector {
	t.Helper()
	s, err := drain.ParseSelector(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var replicaSet = apiserver.Owner{Kind: "ReplicaSet", Name: "rs"}

// kinds has a pod of each kind that is told apart, named after it.
func kinds() []apiserver.Pod {
	daemonSet := apiserver.Owner{Kind: "DaemonSet", Name: "ds"}
	labels := map[string]string{"app": "web"}
	all := []apiserver.Pod{
		{Name: "managed", Owner: replicaSet, Labels: labels},
		{Name: "managed-terminating", Owner: replicaSet, Terminating: true},
		{Name: "stateful", Owner: apiserver.Owner{Kind: "StatefulSet", Name: "db"}},
		{Name: "daemon", Owner: daemonSet, EmptyDir: true, Labels: labels},
		{Name: "daemon-finished", Owner: daemonSet, Finished: true, EmptyDir: true},
		{Name: "daemon-terminating", Owner: daemonSet, Terminating: true},
		{Name: "static", Owner: apiserver.Owner{Kind: "Node", Name: "n1"}, Mirror: true, EmptyDir: true},
		{Name: "static-finished", Mirror: true, Finished: true},
		{Name: "emptydir", Owner: replicaSet, EmptyDir: true, Labels: labels},
		{Name: "emptydir-finished", Owner: replicaSet, EmptyDir: true, Finished: true},
		{Name: "emptydir-terminating", Owner: replicaSet, EmptyDir: true, Terminating: true},
		{Name: "unmanaged"},
		{Name: "unmanaged-emptydir", EmptyDir: true},
		{Name: "unmanaged-finished", Finished: true},
		{Name: "unmanaged-terminating", Terminating: true},
	}
	for i := range all {
		all[i].Namespace = "ns"
	}
	return all
}

func sorted(s drain.Sorting) string {
	var out strings.Builder
	for _, group := range []struct {
		name string
		of   []drain.Verdict
	}{{"evict", s.Evict}, {"stay", s.Stay}, {"block", s.Block}} {
		fmt.Fprintln(&out, group.name)
		for _, v := range group.of {
			fmt.Fprintf(&out, "  %s", v)
			if v.Hints != nil {
				fmt.Fprintf(&out, " (%s)", strings.Join(v.Hints, "; "))
			}
			fmt.Fprintln(&out)
		}
	}
	return out.String()
}

func TestPodsAreSortedAsKubectlDrainSortsThem(t *testing.T) {
	for _, c := range []struct {
		name string
		o    drain.Options
		want string
	}{
		{"by default", drain.Options{}, `evict
  ns/managed is evicted, and ReplicaSet rs makes another
  ns/managed-terminating is ending already
  ns/stateful is evicted, and StatefulSet db makes another
  ns/daemon-finished has finished
  ns/emptydir-finished has finished
  ns/emptydir-terminating is ending already
  ns/unmanaged-finished has finished
  ns/unmanaged-terminating is ending already
stay
  ns/daemon is of DaemonSet ds, which would start it here again
  ns/daemon-terminating is of DaemonSet ds, which would start it here again
  ns/static is static: a file on this node makes it
  ns/static-finished is static: a file on this node makes it
block
  ns/emptydir has a volume emptyDir, whose content would be lost (--delete-emptydir-data evicts pods with emptyDir volumes too)
  ns/unmanaged has no controller that would make it again (--force evicts pods without a controller too)
  ns/unmanaged-emptydir has a volume emptyDir, whose content would be lost and has no controller that would make it again (--delete-emptydir-data evicts pods with emptyDir volumes too; --force evicts pods without a controller too)
`},
		{"with both flags", drain.Options{DeleteEmptyDirData: true, Force: true}, `evict
  ns/managed is evicted, and ReplicaSet rs makes another
  ns/managed-terminating is ending already
  ns/stateful is evicted, and StatefulSet db makes another
  ns/daemon-finished has finished
  ns/emptydir is evicted, and ReplicaSet rs makes another
  ns/emptydir-finished has finished
  ns/emptydir-terminating is ending already
  ns/unmanaged is evicted, and nothing makes it again
  ns/unmanaged-emptydir is evicted, and nothing makes it again
  ns/unmanaged-finished has finished
  ns/unmanaged-terminating is ending already
stay
  ns/daemon is of DaemonSet ds, which would start it here again
  ns/daemon-terminating is of DaemonSet ds, which would start it here again
  ns/static is static: a file on this node makes it
  ns/static-finished is static: a file on this node makes it
block
`},
		{"each flag allows its own", drain.Options{Force: true, PodSelector: selector(t, "app notin (web), app")}, `evict
stay
  ns/managed is not one of those that --pod-selector selects
  ns/managed-terminating is not one of those that --pod-selector selects
  ns/stateful is not one of those that --pod-selector selects
  ns/daemon is not one of those that --pod-selector selects
  ns/daemon-finished is not one of those that --pod-selector selects
  ns/daemon-terminating is not one of those that --pod-selector selects
  ns/static is not one of those that --pod-selector selects
  ns/static-finished is not one of those that --pod-selector selects
  ns/emptydir is not one of those that --pod-selector selects
  ns/emptydir-finished is not one of those that --pod-selector selects
  ns/emptydir-terminating is not one of those that --pod-selector selects
  ns/unmanaged is not one of those that --pod-selector selects
  ns/unmanaged-emptydir is not one of those that --pod-selector selects
  ns/unmanaged-finished is not one of those that --pod-selector selects
  ns/unmanaged-terminating is not one of those that --pod-selector selects
block
`},
	} {
		if got := sorted(drain.Sort(kinds(), c.o)); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

// What is not selected is in nobody's way either.
func TestOnlySelectedPodsGoOrBlock(t *testing.T) {
	var got strings.Builder
	for _, o := range []drain.Options{
		{PodSelector: selector(t, "app=web")},
		{PodSelector: selector(t, "app=web"), DeleteEmptyDirData: true},
		{PodSelector: selector(t, "!app"), Force: true},
		{PodSelector: selector(t, "!app"), DeleteEmptyDirData: true},
		{PodSelector: selector(t, "")},
	} {
		s := drain.Sort(kinds(), o)
		var blocked []string
		for _, v := range s.Block {
			blocked = append(blocked, v.Pod.Name)
		}
		fmt.Fprintf(&got, "evicts %d, leaves %d, blocked by %q\n", len(s.Pods()), len(s.Stay), blocked)
	}
	const want = `evicts 1, leaves 13, blocked by ["emptydir"]
evicts 2, leaves 13, blocked by []
evicts 8, leaves 6, blocked by ["unmanaged-emptydir"]
evicts 7, leaves 6, blocked by ["unmanaged" "unmanaged-emptydir"]
evicts 8, leaves 4, blocked by ["emptydir" "unmanaged" "unmanaged-emptydir"]
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &got, want)
	}
}

func TestASelectorThatCannotBeReadIsRefused(t *testing.T) {
	if _, err := drain.ParseSelector("app in web"); err == nil || !strings.Contains(err.Error(), `reading the pod selector "app in web"`) {
		t.Error(err)
	}
}

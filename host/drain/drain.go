// Package drain says what becomes of a node's pods when its kubelet is
// restarted: who stays, who is evicted, who is in the way, and who would not
// survive the restart itself. It evicts through the Eviction API alone, so that
// no PodDisruptionBudget is passed over.
//
// It asks for no more than a kubelet's own credential may: the pods of its node
// as a list, and their eviction. What kubectl drain asks beside that, DaemonSets
// and single pods that are gone, a kubelet is refused; what it decides, and its
// defaults, are followed (k8s.io/kubectl/pkg/drain of Kubernetes 1.34).
package drain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/version"

	"nodelocaldns/host/apiserver"
)

// A Mode is what the user wants done to the pods before the kubelet restarts.
type Mode string

// The modes.
const (
	Auto   Mode = "auto"   // what the kubelet's version asks for
	Never  Mode = "never"  // nothing
	Cordon Mode = "cordon" // no new pods come meanwhile
	Drain  Mode = "drain"  // and those that are there are evicted
)

var modes = []Mode{Auto, Never, Cordon, Drain}

// ParseMode reads the value of --drain.
func ParseMode(text string) (Mode, error) {
	if m := Mode(text); slices.Contains(modes, m) {
		return m, nil
	}
	return "", fmt.Errorf("no way to drain is called %q: there are auto, never, cordon and drain", text)
}

// keepsReady is the first Kubernetes whose kubelet leaves pods ready when it
// restarts: its gate ChangeContainerStatusOnKubeletRestart is off by default.
// Before, pods with readiness or startup probes are not ready for a moment,
// k/k#100277.
var keepsReady = version.MajorMinor(1, 35)

// Decide says what is done to the pods of a node before its kubelet restarts,
// and why, as one line for logs. kubeletVersion is as the node reports it, such
// as "v1.34.4" or "v1.33.1-eks-1a2b3c4".
func Decide(mode Mode, kubeletVersion string) (cordon, evict bool, why string) {
	switch mode {
	case Never:
		return false, false, "nothing is done to the pods, as --drain never says"
	case Cordon:
		return true, false, "no new pods come meanwhile, as --drain cordon says"
	case Drain:
		return true, true, "the pods are evicted first, as --drain drain says"
	}
	v, err := version.ParseGeneric(kubeletVersion)
	switch {
	case err != nil:
		return true, false, fmt.Sprintf("no new pods come meanwhile: the kubelet's version %q does not tell whether pods stay ready", kubeletVersion)
	case v.AtLeast(keepsReady):
		return false, false, fmt.Sprintf("pods stay ready while a kubelet %s restarts", kubeletVersion)
	}
	return true, false, fmt.Sprintf("no new pods come meanwhile: pods are not ready for a moment when a kubelet %s restarts", kubeletVersion)
}

// Options are what the user allows, named and meant as the flags of kubectl
// drain. The zero Options allow the least.
type Options struct {
	Timeout            time.Duration  // for all evictions together; 0: for ever
	GracePeriod        *time.Duration // for each pod, in whole seconds; nil: its own, 0: at once
	DeleteEmptyDirData bool           // pods with a volume emptyDir may go, and its content with them
	Force              bool           // pods that nothing makes again may go
	PodSelector        Selector       // only these are evicted
}

// A Selector selects pods by their labels. The zero Selector selects all.
type Selector struct {
	labels labels.Selector
}

// ParseSelector reads a selector as kubectl does, such as "app=web,tier!=db".
// An empty one selects all.
func ParseSelector(text string) (Selector, error) {
	s, err := labels.Parse(text)
	if err != nil {
		return Selector{}, fmt.Errorf("reading the pod selector %q: %w", text, err)
	}
	return Selector{s}, nil
}

func (s Selector) selects(p apiserver.Pod) bool {
	return s.labels == nil || s.labels.Matches(labels.Set(p.Labels))
}

// A Verdict is what becomes of a pod.
type Verdict struct {
	Pod   apiserver.Pod
	Why   string   // goes on from the pod's name
	Hints []string // what to do about it and all like it, one for each reason; none where nothing need be done
}

// String is the pod as kubectl names it, and why.
func (v Verdict) String() string { return v.Pod.String() + " " + v.Why }

// A Sorting says what becomes of each pod of a node that is drained. Each pod is
// in one of the three.
type Sorting struct {
	Evict []Verdict // evicted or, where they are ending already, waited for
	Stay  []Verdict
	Block []Verdict // these would go, and the options do not allow it: nobody must be evicted
}

// Pods are those to be evicted.
func (s Sorting) Pods() []apiserver.Pod {
	var out []apiserver.Pod
	for _, v := range s.Evict {
		out = append(out, v.Pod)
	}
	return out
}

// Sort sorts the pods of a node, and keeps their order.
//
// A pod of a DaemonSet is told by its owner, and its owner is not asked for: a
// kubelet may not read it. So one whose DaemonSet was deleted without its pods
// stays, which kubectl drain --force deletes.
func Sort(pods []apiserver.Pod, o Options) Sorting {
	var s Sorting
	for _, p := range pods {
		why, hints := inTheWay(p, o)
		switch {
		case !o.PodSelector.selects(p):
			s.Stay = append(s.Stay, Verdict{Pod: p, Why: "is not one of those that --pod-selector selects"})
		case p.Mirror:
			s.Stay = append(s.Stay, Verdict{Pod: p, Why: "is static: a file on this node makes it"})
		case p.Owner.Kind == "DaemonSet" && !p.Finished:
			s.Stay = append(s.Stay, Verdict{Pod: p, Why: fmt.Sprintf("is of DaemonSet %s, which would start it here again", p.Owner.Name)})
		case p.Terminating:
			s.Evict = append(s.Evict, Verdict{Pod: p, Why: "is ending already"})
		case p.Finished:
			s.Evict = append(s.Evict, Verdict{Pod: p, Why: "has finished"})
		case why != "":
			s.Block = append(s.Block, Verdict{Pod: p, Why: why, Hints: hints})
		case p.Owner == apiserver.Owner{}:
			s.Evict = append(s.Evict, Verdict{Pod: p, Why: "is evicted, and nothing makes it again"})
		default:
			s.Evict = append(s.Evict, Verdict{Pod: p, Why: fmt.Sprintf("is evicted, and %s %s makes another", p.Owner.Kind, p.Owner.Name)})
		}
	}
	return s
}

// inTheWay is all that the options do not allow with p, so that nobody has to
// try twice.
func inTheWay(p apiserver.Pod, o Options) (why string, hints []string) {
	var whys []string
	if p.EmptyDir && !o.DeleteEmptyDirData {
		whys = append(whys, "has a volume emptyDir, whose content would be lost")
		hints = append(hints, "--delete-emptydir-data evicts pods with emptyDir volumes too")
	}
	if p.Owner == (apiserver.Owner{}) && !o.Force {
		whys = append(whys, "has no controller that would make it again")
		hints = append(hints, "--force evicts pods without a controller too")
	}
	return strings.Join(whys, " and "), hints
}

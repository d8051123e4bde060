// Package canary asks our addresses from where the pods of this node are, in
// their own network namespaces, before the kubelet is told to name us to pods:
// pods will be no worse off than they are. It writes nothing.
package canary

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"nodelocaldns/host/notrack"
	"nodelocaldns/host/pods"
)

// Bounds of a run.
const (
	Sample  = 50               // pods that are asked from, at most
	workers = 8                // of them at a time
	whole   = 10 * time.Second // for all of them together

	// patience is for one reply: the resolver answers SERVFAIL after 0.9 s
	// where it has no answer.
	patience = 1500 * time.Millisecond

	// Big is what a reply over UDP may have without being cut (DNS flag day
	// 2020), and what every path carries unfragmented: more is big.
	Big = 1232
)

// OwnBig is a name of class CH that the resolver itself has a big TXT answer
// for, if it does: nothing else on every node has one.
const OwnBig = "canary.nodelocaldns."

// Config is what is asked, and from where.
type Config struct {
	Pods    []pods.Pod
	Servers []netip.AddrPort // ours, each asked everything; at least one
	KubeDNS []netip.AddrPort // asked what ours does not answer, from the same place; none: not known

	// Cluster and External are names whose A record is asked for; one that
	// is empty is left out.
	Cluster, External string

	// Big is a name whose TXT record is asked for, because the reply has more
	// than [Big] bytes. Empty is [OwnBig].
	Big string

	Seed uint64 // of the sample, where there are more pods than that

	// Counted is how many packets to Servers the rules that leave them
	// untracked have seen so far. Nil, or an error: not known.
	Counted func() (notrack.Packets, error)

	Now      func() time.Time // for how long replies take; nil: time.Now
	Patience time.Duration    // for one reply; 0: 1.5 s, longer than the resolver ever takes
}

// A Kind is what a question is for.
type Kind string

// The kinds.
const (
	Cluster  Kind = "cluster"
	External Kind = "external"
	BigReply Kind = "big"
)

// A Failure is a question that was not answered as it should be.
type Failure struct {
	Pod    pods.Pod // without a UID: the node itself
	Server netip.AddrPort
	Kind   Kind
	Name   string
	Proto  string // udp or tcp
	What   What
	Detail string // in words, such as "no answer" or "SERVFAIL"
}

// From is the pod as kubectl names it, or the node.
func (f Failure) From() string {
	if f.Pod.UID == "" {
		return "the node"
	}
	return f.Pod.String()
}

// A What says how a question failed.
type What string

// How questions fail.
const (
	Silent      What = "silent"      // nothing came
	Refused     What = "refused"     // nobody listens there, or a firewall says so
	Unreachable What = "unreachable" // there is no way there, or a firewall says so
	Broken      What = "broken"      // the connection ended
	Bad         What = "bad"         // a reply that is no answer
)

// A Report is what came of it.
type Report struct {
	Running     int // pods there are
	HostNetwork int // of them in the network of the node: not asked from
	Unseen      int // of them without a process to enter by: not asked from
	Ended       int // of them while we asked
	Asked       int // from that many
	Late        int // of the sample, for whom no time was left

	Failed   int // of those asked
	Failures []Failure
	Warnings []Failure // what kube-dns does not answer either
	Notes    []string  // what was left out, and why

	Median, Slowest time.Duration // of all answers
	SlowestPod      pods.Pod

	Reason Reason
}

// OK reports whether pods will be no worse off.
func (r Report) OK() bool { return len(r.Failures) == 0 && r.Late == 0 }

// Run asks. It takes some three seconds on the node itself, at worst, and then
// ten at most from pods. The error says what kept it from asking at all; what
// became of the questions is in the Report.
//
// Each question is asked over UDP and TCP, first on the node itself: what
// kube-dns does not answer there is not asked of pods, and where ours does not
// answer there nothing else is. From a pod, a question that ours does not
// answer and kube-dns does is a failure; one that neither answers is a warning.
// That a name does not exist is an answer.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Patience == 0 {
		cfg.Patience = patience
	}
	r := &run{Config: cfg}
	r.report.Running = len(cfg.Pods)
	if r.fromNode(ctx) {
		before, known := r.count()
		if err := r.fromPods(ctx); err != nil {
			return r.report, err
		}
		after, still := r.count()
		r.seen = seen{notrack.Packets{UDP: after.UDP - before.UDP, TCP: after.TCP - before.TCP}, known && still}
	}
	if err := ctx.Err(); err != nil {
		return r.report, err
	}
	return r.finish(), nil
}

// A run is one canary.
type run struct {
	Config
	questions []question // for pods
	report    Report
	answers   []answer
	seen      seen
}

type answer struct {
	took time.Duration
	pod  pods.Pod
}

// seen is what our rules saw of the questions of pods.
type seen struct {
	packets notrack.Packets
	known   bool
}

func (r *run) count() (notrack.Packets, bool) {
	if r.Counted == nil {
		return notrack.Packets{}, false
	}
	n, err := r.Counted()
	return n, err == nil
}

// fromNode asks on the node itself, and decides what pods are asked. It says
// whether ours answers there.
func (r *run) fromNode(ctx context.Context) bool {
	all := r.askAll(ctx, node{}, questions(r.Config))
	for _, q := range questions(r.Config) {
		var failures []Failure
		size, worse := 0, false
		for _, x := range all {
			if x.q != q {
				continue
			}
			size = max(size, x.size)
			if x.failed {
				failures = append(failures, x.Failure)
				// Ours says so where it has no answer. If it says nothing,
				// kube-dns is no excuse.
				worse = worse || x.worse || x.What != Bad
			}
		}
		switch {
		case q.kind == BigReply && (len(failures) > 0 || size <= Big):
			// Pods are not worse off for it: kube-dns is not asked this either.
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("no reply over %d bytes was asked for: nothing on this node has one for %s", Big, q.name))
			continue
		case worse:
			r.report.Failures = failures
			return false
		case len(failures) > 0:
			r.report.Warnings = append(r.report.Warnings, failures...)
			if q.kind != Cluster {
				continue // asked from each pod, it would be waited for each time
			}
			q.any = true
		}
		r.questions = append(r.questions, q)
	}
	return true
}

// fromPods asks from the pods of the sample.
func (r *run) fromPods(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, whole)
	defer cancel()
	var from []pods.Pod
	for _, p := range r.Pods {
		switch {
		case p.HostNetwork:
			r.report.HostNetwork++
		case p.PID == 0:
			r.report.Unseen++
		default:
			from = append(from, p)
		}
	}
	var mu sync.Mutex // of r.report and r.answers, while workers run
	var wg sync.WaitGroup
	defer wg.Wait()
	turn := make(chan struct{}, workers)
	entered := map[uint64]bool{}
	for _, p := range sample(from, r.Seed) {
		turn <- struct{}{}
		at, err := enter(p.PID)
		late, again := ctx.Err() != nil, entered[at.inode]
		if err != nil || late || again {
			at.close()
			<-turn
			mu.Lock()
			switch {
			case errors.Is(err, errEnded):
				r.report.Ended++
			case late:
				r.report.Late++
			}
			mu.Unlock()
			if err != nil && !errors.Is(err, errEnded) {
				return fmt.Errorf("entering the network of %s: %w", p, err)
			}
			continue
		}
		entered[at.inode] = true
		wg.Go(func() {
			defer func() { at.close(); <-turn }()
			all := r.askAll(ctx, at, r.questions)
			mu.Lock()
			defer mu.Unlock()
			r.add(p, all, ctx.Err() != nil)
		})
	}
	return nil
}

// sample is all, or [Sample] of them. It may reorder all.
func sample(all []pods.Pod, seed uint64) []pods.Pod {
	if len(all) <= Sample {
		return all
	}
	random := rand.New(rand.NewPCG(seed, 0)) // #nosec G404 -- a sample is no secret
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:Sample]
}

// add takes up what came of the questions from one pod. Late says that time ran
// out meanwhile: what failed then says nothing.
func (r *run) add(p pods.Pod, all []result, late bool) {
	var failures, warnings []Failure
	for _, x := range all {
		x.Pod = p
		switch {
		case !x.failed:
			r.answers = append(r.answers, answer{x.took, p})
		case x.worse:
			failures = append(failures, x.Failure)
		default:
			warnings = append(warnings, x.Failure)
		}
	}
	if late && len(failures)+len(warnings) > 0 {
		r.report.Late++
		return
	}
	r.report.Asked++
	if len(failures) > 0 {
		r.report.Failed++
	}
	r.report.Failures = append(r.report.Failures, failures...)
	r.report.Warnings = append(r.report.Warnings, warnings...)
}

// finish puts the report in order and says what it comes from.
func (r *run) finish() Report {
	out := r.report
	slices.SortStableFunc(out.Failures, compareFailures)
	slices.SortStableFunc(out.Warnings, compareFailures)
	slices.SortFunc(r.answers, func(a, b answer) int { return cmp.Compare(a.took, b.took) })
	if n := len(r.answers); n > 0 {
		out.Median, out.Slowest, out.SlowestPod = r.answers[n/2].took, r.answers[n-1].took, r.answers[n-1].pod
	}
	out.Reason = why(out, r.seen)
	return out
}

func compareFailures(a, b Failure) int {
	return cmp.Compare(a.Pod.String(), b.Pod.String())
}

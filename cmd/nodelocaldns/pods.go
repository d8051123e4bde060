package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/pods"
)

// podJSON is a pod in status --json and rollback --json.
type podJSON struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	OwnDNS    bool   `json:"own_dns"` // its own dnsConfig names us, not the kubelet
}

// neighbours are the pods of this node, and which of them name us.
type neighbours struct {
	find func(ctx context.Context) ([]pods.Pod, error)
	ours func() []netip.Addr

	// kubelet are whom the kubelet that runs names to new pods.
	kubelet func(ctx context.Context) []netip.Addr

	// explain marks the pods whose own dnsConfig names one of ours, where
	// somebody can be asked.
	explain func(ctx context.Context, all []pods.Pod)
}

// newNeighbours looks at the running node.
func newNeighbours(d *host.Durable, ours func() []netip.Addr) *neighbours {
	return &neighbours{
		find:    new(pods.Finder).Running,
		ours:    ours,
		kubelet: d.Names,
		explain: func(ctx context.Context, all []pods.Pod) {
			f, _ := d.Facts(ctx) // what was found before a refusal is true all the same
			if f.Kubeconfig == "" {
				return
			}
			ctx, cancel := context.WithTimeout(ctx, askFor)
			defer cancel()
			if specs, err := pods.Ask(ctx, f.Kubeconfig, ""); err == nil {
				pods.Explain(all, specs, ours())
			}
		},
	}
}

// naming are the pods that name us. An error says that there may be more.
func (n *neighbours) naming(ctx context.Context) ([]pods.Pod, error) {
	if n == nil {
		return nil, nil
	}
	return n.namingAny(ctx, n.ours())
}

func (n *neighbours) namingAny(ctx context.Context, of []netip.Addr) ([]pods.Pod, error) {
	if len(of) == 0 {
		return nil, nil
	}
	all, err := n.find(ctx)
	return pods.Naming(all, of), err
}

// named says whether the kubelet goes on to name us to new pods: where its file
// was kept, or somebody has put us there by hand.
func (n *neighbours) named(ctx context.Context) bool {
	ours := n.ours()
	return slices.ContainsFunc(n.kubelet(ctx), func(a netip.Addr) bool { return slices.Contains(ours, a) })
}

// names are who names us, for guard: pods, and the kubelet to those to come.
func (n *neighbours) names(ctx context.Context) ([]string, error) {
	all, err := n.naming(ctx)
	names := podNames(all)
	if n.named(ctx) {
		names = append(names, "new pods, by the kubelet")
	}
	return names, err
}

func podNames(all []pods.Pod) []string {
	out := make([]string, len(all))
	for i, p := range all {
		out[i] = p.String()
	}
	return out
}

func podsJSON(all []pods.Pod) []podJSON {
	out := make([]podJSON, len(all))
	for i, p := range all {
		out[i] = podJSON{p.Namespace, p.Name, p.UID, p.OwnDNS}
	}
	return out
}

// podRows are lines about pods that name us.
func podRows(all []podJSON) [][]string {
	var rows [][]string
	for _, p := range all {
		name, why := "pod "+p.UID, "since it started: replace it to let go of us"
		if p.Name != "" {
			name = p.Namespace + "/" + p.Name
		}
		if p.OwnDNS {
			why = "by its own dnsConfig: change that, or it names us again"
		}
		rows = append(rows, []string{"  pod", name, "names us " + why})
	}
	return rows
}

// podsEvery is how often a rollback that waits looks at the pods.
const podsEvery = time.Second

// wait returns when no pod names us, with those that do when patience or ctx
// has ended first.
func (n *neighbours) wait(ctx context.Context, patience time.Duration, told func(left int)) ([]pods.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(podsEvery)
	defer tick.Stop()
	last := -1
	for {
		left, err := n.naming(context.WithoutCancel(ctx))
		if err != nil || len(left) == 0 {
			return left, err
		}
		if len(left) != last {
			last = len(left)
			told(last)
		}
		select {
		case <-ctx.Done():
			return left, nil
		case <-tick.C:
		}
	}
}

// errStillNamed is a rollback that would take from pods to come what they are
// sent to.
var errStillNamed = &hinted{
	errors.New("the kubelet goes on to name us to new pods: what answers them stays"),
	"rollback without --keep kubelet begins with the kubelet; if it names us by its own files, change those and restart it; --now does not wait for it",
}

// errPodsUnseen is a rollback that cannot find out whether pods name us.
func errPodsUnseen(err error) error {
	return withHint(fmt.Errorf("looking for pods that name us: %w", err),
		"what answers them stays until that can be told; nodelocaldns rollback --now does not ask")
}

// errPodsLeft is a rollback that was to wait, and has.
func errPodsLeft(left []pods.Pod, patience time.Duration) error {
	names := podNames(left)
	const most = 5
	if len(names) > most {
		names = append(slices.Clone(names[:most]), "…")
	}
	return withHint(fmt.Errorf("after %s %s still named us: %s", patience, count(len(left), "pod"), strings.Join(names, ", ")),
		"replace them; guard ends the rollback when the last is gone")
}

// canaryBefore is what must hold before the kubelet sends pods to us: the
// resolver answers on the node, and the pods that run can reach it. Where no
// kubelet is to be restarted there is time to mend that until one starts.
func (a *app) canaryBefore(ctx context.Context, cfg config.Config, runs bool) error {
	const goOn = "--skip-canary goes on all the same, and new pods that cannot reach us then wait five seconds for each name"
	if err := (&prober{addrs: cfg.Resolver(nil).Listen}).ask(ctx); err != nil && !runs {
		a.warn("the resolver does not answer: " + err.Error())
		a.hint("it must, before the kubelet starts again: nodelocaldns status says whether it runs")
	} else if err != nil {
		return withHint(fmt.Errorf("canary: the resolver does not answer: %w", err), "nodelocaldns status says whether it runs; %s", goOn)
	}
	if !runs {
		return nil
	}
	if cfg.Cluster.Auto {
		awaitKubeDNS(ctx, func(ctx context.Context) resolverStatus { return askControl(ctx, a.runDir) })
	}
	a.note("canary: asking from the pods that run")
	r, _, err := a.canary(ctx, cfg, probeNames{external: external})
	if err == nil {
		err = canaryError(r)
	}
	const most = 10
	for i, l := range canaryLines(r.Failures) {
		if i == most {
			a.note(fmt.Sprintf("canary: %d more fail", len(canaryLines(r.Failures))-most))
			break
		}
		a.note("canary: " + l.from + ": " + l.text)
	}
	if err != nil {
		return withHint(err, "%s; nodelocaldns canary says more; %s", cmp.Or(hintOf(err), "see what is in the way"), goOn)
	}
	return nil
}

const (
	// kubeDNSWithin is how long a canary waits until the resolver knows kube-dns.
	// Who has just been started, or the node with it, is told by guard within
	// seconds.
	kubeDNSWithin = 15 * time.Second

	// kubeDNSEvery is how often the resolver is asked meanwhile.
	kubeDNSEvery = 500 * time.Millisecond
)

// awaitKubeDNS waits for a while until the resolver that runs knows kube-dns.
func awaitKubeDNS(ctx context.Context, ask func(context.Context) resolverStatus) {
	ctx, cancel := context.WithTimeout(ctx, kubeDNSWithin)
	defer cancel()
	tick := time.NewTicker(kubeDNSEvery)
	defer tick.Stop()
	for {
		rs := ask(ctx)
		if !rs.Running || rs.Config == nil || len(rs.Config.ClusterDNS) > 0 {
			return // what is wrong else is said by the canary
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

var errNobodyDrains = errors.New("guard does not run: nobody ends this rollback when the last pod is gone")

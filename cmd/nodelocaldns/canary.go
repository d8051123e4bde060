package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host/canary"
	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/pods"
)

// A probeNames is what the canary asks for.
type probeNames struct {
	cluster  string // empty: the API server's name in cluster.domain
	external string // empty: nothing outside is asked for
	big      string // empty: canary.OwnBig
}

// external is a name that everybody who forwards has an answer for, and that
// does no harm to be asked for (RFC 2606). A cluster without a way out is told
// from a broken one by kube-dns, which has none either.
const external = "example.com"

// canaryJSON is the shape of canary --json.
type canaryJSON struct {
	OK       bool             `json:"ok"`      // pods will be no worse off
	Skipped  string           `json:"skipped"` // why nobody was asked; empty if somebody was
	Pods     canaryPods       `json:"pods"`
	Median   float64          `json:"median_seconds"`
	Slowest  float64          `json:"slowest_seconds"`
	Failures []canaryQuestion `json:"failures"`
	Warnings []canaryQuestion `json:"warnings"` // what kube-dns does not answer either
	Notes    []string         `json:"notes"`
	Cause    canary.Cause     `json:"cause"` // of the failures, most likely; empty if there are none
	Why      string           `json:"why"`
	Hint     string           `json:"hint"`
}

type canaryPods struct {
	Running     int `json:"running"`
	Asked       int `json:"asked"` // from that many
	Failed      int `json:"failed"`
	HostNetwork int `json:"host_network"` // in the node's network, not asked from
	Unseen      int `json:"unseen"`       // without a process to enter by, not asked from
	Ended       int `json:"ended"`        // while we asked
	Late        int `json:"late"`         // no time was left for them
}

type canaryQuestion struct {
	Pod    string         `json:"pod"` // NAMESPACE/NAME, or "pod UID"; empty: the node itself
	Server netip.AddrPort `json:"server"`
	Kind   canary.Kind    `json:"kind"`
	Name   string         `json:"name"`
	Proto  string         `json:"proto"`
	What   canary.What    `json:"what"`
	Detail string         `json:"detail"`
}

func (a *app) canaryCommand() *cobra.Command {
	var asJSON bool
	var names probeNames
	cmd := &cobra.Command{
		Use:   "canary",
		Short: "ask our addresses from where the pods of this node are",
		Long: fmt.Sprintf(`Ask our addresses from where the pods of this node are: in the network of each
pod that runs, of %d of them where there are more, over UDP and TCP, for names
inside and outside of the cluster. Nothing is changed. What kube-dns, asked from
the same pod, does not answer either is a warning.
Exit 0: pods will be no worse off; 1: some will, and most likely why.`, canary.Sample),
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			cfg, err := a.config()
			if err != nil {
				return err
			}
			r, skipped, err := a.canary(ctx, cfg, names)
			if err != nil {
				return err
			}
			if asJSON {
				err = a.json(canaryOf(r, skipped), false)
			} else {
				a.printCanary(r, skipped, cfg.PodsCanAsk())
			}
			return errors.Join(err, canaryError(r))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&names.cluster, "cluster", "", "`name` in the cluster to ask for (default kubernetes.default.svc. and cluster.domain)")
	cmd.Flags().StringVar(&names.external, "external", external, "`name` outside of the cluster to ask for, \"\" for none")
	cmd.Flags().StringVar(&names.big, "big", "", fmt.Sprintf("`name` of a TXT record whose reply has more than %d bytes (default the resolver's own)", canary.Big))
	for _, flag := range []string{"cluster", "external", "big"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return cmd
}

// canary asks from the pods that run. Where there is nobody to ask from, or
// nothing to ask, skipped says why and the Report is empty. It writes nothing.
func (a *app) canary(ctx context.Context, cfg config.Config, names probeNames) (r canary.Report, skipped string, err error) {
	ours := cfg.PodsCanAsk()
	if len(ours) == 0 {
		return r, "listen has no address with port 53 that pods reach", nil
	}
	all, err := new(pods.Finder).Running(ctx)
	switch {
	case ctx.Err() != nil:
		return r, "", ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return r, "", fmt.Errorf("looking for pods: %w", err)
	case err != nil && len(all) == 0:
		return r, "", fmt.Errorf("looking for pods: %w", err)
	case err != nil:
		a.warn("not all is known of the pods: " + err.Error())
	}
	if len(all) == 0 {
		return r, "no pod runs on this node", nil
	}
	want := canary.Config{
		Pods:     all,
		KubeDNS:  a.kubeDNS(ctx, cfg),
		Cluster:  names.cluster,
		External: names.external,
		Big:      names.big,
		Seed:     rand.Uint64(), // #nosec G404 -- a sample is no secret
	}
	for _, addr := range ours {
		want.Servers = append(want.Servers, netip.AddrPortFrom(addr, cfg.Listen.Port))
	}
	if want.Cluster == "" {
		want.Cluster = "kubernetes.default.svc." + cfg.Cluster.Domain
	}
	if cfg.Notrack.Enabled {
		want.Counted = func() (notrack.Packets, error) { return notrack.Counted(cfg.Notrack.Backend, ours) }
	}
	r, err = canary.Run(ctx, want)
	return r, "", err
}

// kubeDNS is whom pods ask besides us, as far as that is known: by the
// configuration, by what guard has found, or by the node itself.
func (a *app) kubeDNS(ctx context.Context, cfg config.Config) []netip.AddrPort {
	f, err := facts.Read(fsys.Dir(a.under(a.runDir)))
	if err != nil || len(f.ClusterDNS) == 0 {
		if d, derr := a.durableDeps(a.voice()); derr == nil {
			f, _ = findFacts(cfg, d.Node)(ctx) // without them there is less to compare with
		}
	}
	return cfg.Resolver(f.ClusterDNS).ClusterDNS
}

// canaryError is what keeps pods from being sent to us, nil if nothing does.
func canaryError(r canary.Report) error {
	if err := r.Err(); err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	return nil
}

func canaryOf(r canary.Report, skipped string) canaryJSON {
	return canaryJSON{
		OK:       r.OK(),
		Skipped:  skipped,
		Pods:     canaryPods{r.Running, r.Asked, r.Failed, r.HostNetwork, r.Unseen, r.Ended, r.Late},
		Median:   r.Median.Seconds(),
		Slowest:  r.Slowest.Seconds(),
		Failures: canaryQuestions(r.Failures),
		Warnings: canaryQuestions(r.Warnings),
		Notes:    append([]string{}, r.Notes...),
		Cause:    r.Reason.Cause,
		Why:      r.Reason.Text,
		Hint:     r.Reason.Hint,
	}
}

func canaryQuestions(all []canary.Failure) []canaryQuestion {
	out := []canaryQuestion{}
	for _, f := range all {
		q := canaryQuestion{Server: f.Server, Kind: f.Kind, Name: f.Name, Proto: f.Proto, What: f.What, Detail: f.Detail}
		if f.Pod.UID != "" {
			q.Pod = f.Pod.String()
		}
		out = append(out, q)
	}
	return out
}

func (a *app) printCanary(r canary.Report, skipped string, ours []netip.Addr) {
	if skipped != "" {
		a.print("skipped: %s\n", skipped)
		return
	}
	var rows [][]string
	for _, l := range canaryLines(r.Failures) {
		rows = append(rows, []string{"failed", l.from, l.text})
	}
	// What is outside of us may fail for all pods alike: that is one line.
	for _, l := range together(canaryLines(r.Warnings)) {
		rows = append(rows, []string{"warning", l.from, l.text})
	}
	a.table(rows, 2)
	for _, n := range r.Notes {
		a.print("%s\n", n)
	}
	var left []string
	for _, l := range []struct {
		n    int
		text string
	}{
		{r.HostNetwork, "in the node's network"},
		{r.Unseen, "without a process to enter by"},
		{r.Ended, "ended"},
		{r.Late, "for want of time"},
		{r.Running - r.Asked - r.HostNetwork - r.Unseen - r.Ended - r.Late, "left out of the sample, or in the network of another"},
	} {
		if l.n > 0 {
			left = append(left, fmt.Sprintf("%d %s", l.n, l.text))
		}
	}
	if len(left) > 0 && (r.Asked > 0 || len(r.Failures) == 0) {
		a.print("not asked from: %s\n", strings.Join(left, ", "))
	}
	servers := make([]string, len(ours))
	for i, s := range ours {
		servers[i] = s.String()
	}
	a.print("%s asked %s, %d failed%s\n", count(r.Asked, "pod"), strings.Join(servers, " and "), r.Failed, latency(r))
}

func latency(r canary.Report) string {
	if r.Slowest == 0 {
		return ""
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1e3) }
	return fmt.Sprintf("; replies took %s (median), %s at most (%s)", ms(r.Median), ms(r.Slowest), r.SlowestPod)
}

// A canaryLine is what one pod is told of.
type canaryLine struct{ from, text string }

// canaryLines are failures by pod: a name once with its protocols, if they
// failed alike.
func canaryLines(all []canary.Failure) []canaryLine {
	type part struct {
		name, detail string
		protos       []string
	}
	var out []canaryLine
	for i := 0; i < len(all); {
		from := all[i].From()
		var parts []part
		for ; i < len(all) && all[i].From() == from; i++ {
			f := all[i]
			name := strings.TrimSuffix(f.Name, ".") + " at " + f.Server.Addr().String()
			j := slices.IndexFunc(parts, func(p part) bool { return p.name == name && p.detail == f.Detail })
			if j < 0 {
				j = len(parts)
				parts = append(parts, part{name: name, detail: f.Detail})
			}
			parts[j].protos = append(parts[j].protos, f.Proto)
		}
		var lines []string
		for _, p := range parts {
			lines = append(lines, fmt.Sprintf("%s over %s: %s", p.name, strings.Join(p.protos, " and "), p.detail))
		}
		out = append(out, canaryLine{from, strings.Join(lines, "\n")})
	}
	return out
}

// together makes one line of those that say the same.
func together(all []canaryLine) []canaryLine {
	var out []canaryLine
	n := map[string]int{}
	for _, l := range all {
		if n[l.text]++; n[l.text] == 1 {
			out = append(out, l)
		}
	}
	for i, l := range out {
		if more := n[l.text] - 1; more > 0 {
			out[i].from = fmt.Sprintf("%s and %d more", l.from, more)
		}
	}
	return out
}

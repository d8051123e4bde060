package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/cordon"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/kubelet"
)

// A disturbance is what apply and rollback may do to the pods of this node for a
// restart of the kubelet. The flags are those of kubectl drain.
type disturbance struct {
	drain       string
	timeout     time.Duration
	grace       int
	emptyDir    bool
	force       bool
	podSelector string
	unavailable int

	// resume says that a restart is brought to its end that was cut off: nobody
	// is evicted for that. A boot has started all pods anew, and whether others
	// were to be evicted is not remembered.
	resume bool
}

// flags adds the flags to a command.
func (d *disturbance) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.drain, "drain", "", "`mode` of a restart of the kubelet: auto, never, cordon or drain (default kubelet.drain)")
	f.DurationVar(&d.timeout, "timeout", 0, "`duration` for pods to be evicted, for another's cordon to end, and for pods to be Ready again (default kubelet.timeout)")
	f.IntVar(&d.grace, "grace-period", -1, "`seconds` that each evicted pod has to end; negative: its own")
	f.BoolVar(&d.emptyDir, "delete-emptydir-data", false, "evict pods with emptyDir volumes too, with what is in those")
	f.BoolVar(&d.force, "force", false, "evict pods that nothing makes again too")
	f.StringVar(&d.podSelector, "pod-selector", "", "evict only pods with these `labels`")
	f.IntVar(&d.unavailable, "max-unavailable", 0, "wait while `n` other nodes of the cluster are away for this; needs kubelet.kubeconfig with the rights of units/rbac.yaml, and the same number everywhere (0: no limit)")
	_ = cmd.RegisterFlagCompletionFunc("drain", cobra.FixedCompletions([]string{"auto", "never", "cordon", "drain"}, cobra.ShellCompDirectiveNoFileComp))
}

// cordon is what the cluster has to do with a restart, by the flags and the
// configuration.
func (a *app) cordon(d *disturbance, cfg config.Config, log *slog.Logger, of func() *host.Durable) (*cordon.Config, error) {
	connect := connector(cfg, of)
	c := cordon.Config{
		Connect: func(ctx context.Context) (cordon.API, string, error) {
			api, node, err := connect(ctx)
			if err != nil {
				return nil, "", err // and no API that is nil inside
			}
			return api, node, nil
		},
		Mode:    cfg.Kubelet.Drain,
		Timeout: cfg.Kubelet.Timeout,
		Options: drain.Options{DeleteEmptyDirData: d.emptyDir, Force: d.force},
		Machine: firstLineOf("/etc/machine-id"),
		Boot:    firstLineOf("/proc/sys/kernel/random/boot_id"),
		Log:     log, Now: time.Now, Rand: rand.Float64, Progress: a.evicting(),
	}
	var err error
	if d.drain != "" {
		if c.Mode, err = drain.ParseMode(d.drain); err != nil {
			return nil, usagef("allowed: auto, never, cordon, drain", "--drain: %v", err)
		}
	}
	if d.resume && c.Mode == drain.Drain {
		c.Mode = drain.Cordon
	}
	switch {
	case d.timeout < 0:
		return nil, usagef("a duration such as 10m", "--timeout %s is negative", d.timeout)
	case d.timeout > 0:
		c.Timeout = d.timeout
	}
	c.Options.Timeout = c.Timeout
	if d.grace >= 0 {
		grace := time.Duration(d.grace) * time.Second
		c.Options.GracePeriod = &grace
	}
	if c.Options.PodSelector, err = drain.ParseSelector(d.podSelector); err != nil {
		return nil, usagef("labels such as app=web,tier!=db", "--pod-selector: %v", err)
	}
	switch {
	case d.unavailable < 0:
		return nil, usagef("a number of nodes, or 0 for no limit", "--max-unavailable %d is negative", d.unavailable)
	case d.unavailable > 0 && cfg.Kubelet.Kubeconfig == "":
		return nil, usagef("set kubelet.kubeconfig to a credential with the rights of units/rbac.yaml", "--max-unavailable needs more than the kubelet's own credential may")
	case d.unavailable > 0:
		c.Limit = a.limiter(d.unavailable, c.Timeout, connect)
	}
	return &c, nil
}

func firstLineOf(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return "" // a mark without it is not ours: then nothing is uncordoned
	}
	return strings.TrimSpace(firstLine(string(text)))
}

// connector connects to the API server with the configured credential, or that
// of the kubelet that runs, and says what this node is called there.
func connector(cfg config.Config, d func() *host.Durable) func(ctx context.Context) (*apiserver.Client, string, error) {
	return func(ctx context.Context) (*apiserver.Client, string, error) {
		f, _ := d().Facts(ctx) // what was found before a refusal is true all the same
		kubeconfig := cmp.Or(cfg.Kubelet.Kubeconfig, f.Kubeconfig)
		if kubeconfig == "" {
			return nil, "", errors.New("no credential of the kubelet is known")
		}
		c, err := apiserver.Open(kubeconfig)
		if err != nil {
			return nil, "", err
		}
		name, err := nodeName(ctx, c, f)
		if err != nil {
			c.Close()
			return nil, "", err
		}
		return c, name, nil
	}
}

// nodeName is what this node is called in its cluster: as a credential of its
// kubelet says, as the kubelet was told, or as the machine is called.
func nodeName(ctx context.Context, c *apiserver.Client, f kubelet.Facts) (string, error) {
	if name, err := c.NodeName(ctx); err == nil {
		return name, nil
	}
	if f.Kubeconfig != "" { // c is of another identity
		if own, err := apiserver.Open(f.Kubeconfig); err == nil {
			defer own.Close()
			if name, err := own.NodeName(ctx); err == nil {
				return name, nil
			}
		}
	}
	if f.NodeName != "" {
		return strings.ToLower(f.NodeName), nil
	}
	name, err := os.Hostname()
	return strings.ToLower(name), err
}

// evicting tells how the eviction of pods stands: on a line that is drawn anew,
// where there is a terminal for that, and that all are gone on one that stays;
// else on a line for each change. Who is left in the end is said by the error.
func (a *app) evicting() func(drain.Progress) {
	last := ""
	return func(p drain.Progress) {
		switch {
		case p.Over && len(p.Left) > 0:
			a.live(nil)
			return
		case p.Over:
			a.live(nil)
		case a.live(func() string { return evictingNow(p, time.Now()) }):
			return
		}
		parts := []string{leftOf(p)}
		const most = 3
		for i, l := range p.Left {
			if i == most {
				parts = append(parts, "…")
				break
			}
			parts = append(parts, l.String())
		}
		if p.Err != nil {
			parts = append(parts, p.Err.Error())
		}
		if text := "evicting: " + strings.Join(parts, "; "); text != last {
			last = text
			a.note(text)
		}
	}
}

func leftOf(p drain.Progress) string {
	if len(p.Left) == 0 {
		return count(p.Total, "pod") + " gone"
	}
	return fmt.Sprintf("%d of %s left", len(p.Left), count(p.Total, "pod"))
}

// evictingNow is for a line whose end may not be seen: what somebody can do
// something about comes first.
func evictingNow(p drain.Progress, now time.Time) string {
	text := "evicting: " + leftOf(p)
	if !p.Until.IsZero() {
		text += ", " + ago(max(0, p.Until.Sub(now))) + " to go"
	}
	parts := []string{text}
	if p.Err != nil {
		parts = append(parts, p.Err.Error())
	}
	for _, pdb := range p.PDBs() {
		ns, name, _ := strings.Cut(pdb, "/")
		var pods []string
		for _, l := range p.Left {
			if l.Pod.Namespace == ns && slices.Contains(l.PDBs(), name) {
				pods = append(pods, l.Pod.Name)
			}
		}
		parts = append(parts, fmt.Sprintf("PDB %s keeps %s", pdb, strings.Join(pods, ", ")))
	}
	var well []string
	for _, l := range p.Left {
		switch {
		case l.Err == nil:
			well = append(well, l.String())
		case len(l.PDBs()) == 0:
			parts = append(parts, l.String())
		}
	}
	return strings.Join(append(parts, well...), "; ")
}

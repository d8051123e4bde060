package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/pods"
)

// rollbackJSON is the shape of rollback --json.
type rollbackJSON struct {
	changeJSON
	Draining bool      `json:"draining"` // what answers pods stays, for those below
	Pods     []podJSON `json:"pods"`     // that name us
}

// gentle is how a rollback deals with pods that name us.
type gentle struct {
	wait time.Duration // how long it waits for them
	now  bool          // not at all
}

func (a *app) rollbackCommand() *cobra.Command {
	var keep []string
	var asJSON bool
	var g gentle
	var d disturbance
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "undo every change of ours, the kubelet's first, and keep guard from redoing it",
		Long: `Undo every change of ours. The off switch is set before the first one, so that
guard does not repair what is taken back, also after a reboot; apply clears it.

The kubelet comes first: it is restarted, and must look well without us. Pods
keep the nameservers that they started with, so the addresses, the rules and the
resolver stay until no pod of this node names them. If one does, they are listed,
"draining" is said, the exit code is 0, and guard takes the rest back when the
last is gone. --wait waits for that here; --now does not wait for pods at all:
each of their lookups then takes five seconds or fails.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if g.now && cmd.Flags().Changed("wait") {
				return usagef("--wait is for the pods, --now does without them", "--wait and --now contradict each other")
			}
			ctx, stop := stoppable(cmd.Context())
			defer stop()
			a.disturb = &d
			out := rollbackJSON{changeJSON: changeJSON{Steps: []planStep{}}, Pods: []podJSON{}}
			r, err := a.rollback(ctx, keep, g, &out)
			return a.rolledBack(out, r, asJSON, err)
		},
	}
	cmd.Flags().StringSliceVar(&keep, "keep", nil, "leave this change, or all of this noun, in place (`name`); may be repeated")
	d.flags(cmd)
	cmd.Flags().DurationVar(&g.wait, "wait", 0, "wait this long for the pods that name us (`duration`: 10m); 1 if some are left then")
	cmd.Flags().BoolVar(&g.now, "now", false, "take everything from the pods that name us, without waiting for them")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("keep", a.stepNames(func(st engine.Status) bool { return st.Ours }))
	return cmd
}

func (a *app) rollback(ctx context.Context, keep []string, g gentle, out *rollbackJSON) (*host.Restart, error) {
	cfg, err := a.config()
	if err != nil {
		// What is undone is what the journal says. A file that
		// somebody broke must not keep the node from being restored.
		a.warn("going by the journal alone: " + err.Error())
		cfg = config.Default()
	}
	p, err := a.plans(cfg, a.voice(), false)
	if err != nil {
		return nil, err
	}
	before, err := p.Check(ctx)
	if err != nil {
		return nil, err
	}
	names, err := kept(keep, before)
	if err != nil {
		return nil, err
	}
	left, err := p.Rollback(ctx, names, before, a.waiter(p, g))
	ctx = context.WithoutCancel(ctx)
	if len(left) > 0 {
		p.pods.explain(ctx, left)
		out.Draining, out.Pods = true, podsJSON(left)
		if err == nil {
			err = a.leftToGuard(p)
		}
	}
	after, cerr := p.Check(ctx)
	if st := statusOfStep(after, kubelet.StepName); cerr == nil && !st.Ours {
		// Nothing reads it any more, and nothing else would take it away.
		err = errors.Join(err, fsys.Dir(a.under(a.runDir)).Remove(path.Base(kubelet.EnvFile)))
	}
	for _, was := range before {
		is := statusOfStep(after, was.Name) // no longer there: nothing of ours is left
		s := planStep{Name: was.Name}
		switch {
		case !was.Ours:
			continue
		case !is.Ours:
			s.State, out.Changed = stateUndone, true
		case slices.Contains(names, was.Name):
			s.State, s.Why = stateKept, is.Why
		case out.Draining:
			s.State, s.Why = stateDraining, is.Why
		default:
			s.State, s.Why = stateLeft, is.Why
		}
		out.Steps = append(out.Steps, s)
	}
	r := p.restartPending(ctx)
	out.RestartPending = r != nil
	return r, errors.Join(hintKeep(err, after), cerr)
}

// waiter is how the rollback of p waits for pods.
func (a *app) waiter(p *plans, g gentle) waiter {
	return func(ctx context.Context) ([]pods.Pod, error) {
		left, err := p.pods.naming(ctx)
		if !g.now && p.pods.named(ctx) {
			return nil, errStillNamed
		}
		switch {
		case g.now:
			if len(left) > 0 {
				a.warn(fmt.Sprintf("%s still named us, and are on their own now: each lookup of theirs takes five seconds or fails, until they are replaced: %s",
					count(len(left), "pod"), strings.Join(podNames(left), ", ")))
			}
			return nil, nil
		case err != nil:
			return nil, errPodsUnseen(err)
		case len(left) == 0 || g.wait == 0:
			return left, nil
		}
		left, err = p.pods.wait(ctx, g.wait, func(n int) {
			a.note("draining: waiting for " + count(n, "pod"))
		})
		switch {
		case err != nil:
			return nil, errPodsUnseen(err)
		case len(left) > 0:
			return left, errPodsLeft(left, g.wait)
		}
		return nil, nil
	}
}

// leftToGuard makes sure that somebody ends this rollback.
func (a *app) leftToGuard(p *plans) error {
	runs, err := p.runtime.Guarded()
	if err != nil {
		return fmt.Errorf("looking for guard: %w", err)
	}
	if !runs {
		a.warn(errNobodyDrains.Error())
		a.hint("run nodelocaldns rollback again when the pods are gone, or nodelocaldns rollback --wait 1h now")
	}
	return nil
}

// rolledBack prints what was undone, and returns err for the exit code.
func (a *app) rolledBack(out rollbackJSON, r *host.Restart, asJSON bool, err error) error {
	if asJSON {
		out.Error = errorLines(err)
		return errors.Join(err, a.json(out, false))
	}
	err = a.changed(out.changeJSON, stateUndone, r, false, err)
	if out.Draining {
		a.print("draining: %s; the rest is taken back when the last of them is gone\n", nameUs(len(out.Pods)))
		a.table(podRows(out.Pods), 1)
	}
	return err
}

// nameUs is "1 pod names us" or "2 pods name us".
func nameUs(n int) string {
	if n == 1 {
		return "1 pod names us"
	}
	return count(n, "pod") + " name us"
}

// kept are the names of our changes that keep asks for, by name or noun. A
// name that is none of them is an error: it is a typing mistake, and what was
// to be kept would be undone.
func kept(keep []string, all []engine.Status) ([]string, error) {
	var names, ours []string
	for _, st := range all {
		if st.Ours {
			ours = append(ours, st.Name)
		}
	}
	for _, want := range keep {
		n := len(names)
		for _, have := range ours {
			if noun, _, _ := strings.Cut(have, "/"); want == have || want == noun {
				names = append(names, have)
			}
		}
		if len(names) > n {
			continue
		}
		if len(ours) == 0 {
			return nil, withHint(fmt.Errorf("no change %s to keep", want), "nothing on this node is ours")
		}
		return nil, withHint(fmt.Errorf("no change %s to keep", want), "ours are %s", strings.Join(ours, ", "))
	}
	return names, nil
}

// hintKeep says how to go on without what could not be undone, where the
// error knows nothing better.
func hintKeep(err error, after []engine.Status) error {
	if err == nil || hintOf(err) != "" {
		return err
	}
	var left []string
	for _, st := range after {
		if st.Ours {
			left = append(left, st.Name)
		}
	}
	if len(left) == 0 {
		return err
	}
	return &hinted{err, "rollback --keep " + strings.Join(left, ",") + " leaves the rest in place"}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
)

func (a *app) rollbackCommand() *cobra.Command {
	var keep []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "undo every change of ours, newest first, and keep guard from redoing it",
		Long: `Undo every change of ours, newest first: the files that outlast a reboot, then
the runtime plan. The off switch is set before the first one, so that guard
does not repair what is taken back; apply clears it.

No kubelet is restarted. One that runs with our address goes on to name it to
new pods until its next start, which is said.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			out := changeJSON{Steps: []planStep{}}
			r, err := a.rollback(ctx, keep, &out)
			return a.changed(out, stateUndone, r, asJSON, err)
		},
	}
	cmd.Flags().StringSliceVar(&keep, "keep", nil, "leave this change, or all of this noun, in place (`name`); may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("keep", a.stepNames(func(st engine.Status) bool { return st.Ours }))
	return cmd
}

func (a *app) rollback(ctx context.Context, keep []string, out *changeJSON) (*restart, error) {
	cfg, err := a.config()
	if err != nil {
		// What is undone is what the journal says. A file that
		// somebody broke must not keep the node from being restored.
		a.warn("going by the journal alone: " + err.Error())
		cfg = config.Default()
	}
	p, err := a.plans(cfg, a.logger(), false)
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
	pending := p.restartPending(ctx, before)
	err = p.Rollback(ctx, names, before)
	ctx = context.WithoutCancel(ctx)
	after, cerr := p.Check(ctx)
	if st := statusOfStep(after, kubelet.StepName); cerr == nil && !st.Ours {
		// Nothing reads it any more, and nothing else would take it away.
		err = errors.Join(err, fsys.Dir(a.under(a.runDir)).Remove(path.Base(kubelet.EnvFile)))
	}
	undone := false
	for _, was := range before {
		is := statusOfStep(after, was.Name) // no longer there: nothing of ours is left
		s := planStep{Name: was.Name}
		switch {
		case !was.Ours:
			continue
		case !is.Ours:
			s.State, out.Changed = stateUndone, true
			undone = undone || isDurable(was.Name)
		case slices.Contains(names, was.Name):
			s.State, s.Why = stateKept, is.Why
		default:
			s.State, s.Why = stateLeft, is.Why
		}
		out.Steps = append(out.Steps, s)
	}
	r := p.stillNamed(ctx, pending, undone)
	out.RestartPending = r != nil
	return r, errors.Join(hintKeep(err, after), cerr)
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

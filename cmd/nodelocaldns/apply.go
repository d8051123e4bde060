package main

import (
	"context"
	"errors"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/step"
)

// changeJSON is the shape of apply --json and rollback --json.
type changeJSON struct {
	Changed        bool       `json:"changed"`         // this run changed something
	RestartPending bool       `json:"restart_pending"` // a running kubelet has not read its files since
	Steps          []planStep `json:"steps"`
	Error          string     `json:"error,omitempty"` // a line for each thing that is wrong
}

// The words of changeJSON for the state of a step, besides those of plan.
const (
	stateApplied = "applied" // by this run
	stateUndone  = "undone"  // by this run
	stateKept    = "kept"    // --keep left it
	stateLeft    = "left"    // could not be undone; the error says why
)

func (a *app) applyCommand() *cobra.Command {
	var steps []string
	var boot, asJSON bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "change the node as plan says, verified; clears the off switch of a rollback",
		Long: `Change the node as plan says, verified; clears the off switch of a rollback.
The runtime plan comes first, then the files that outlast a reboot; if the
first fails, the second is not begun. No kubelet is restarted: where one runs
that does not name us first yet, that is said, and the exit code is 0.

--boot is for a unit that runs before the kubelet's. Only files are written,
and with the off switch set none: it stays set, and the exit code is 0. A
kubelet that is not understood is an error as always, so that the unit shows
as failed; the kubelet starts all the same, with its files as they were, as
long as no unit requires this one.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			out := changeJSON{Steps: []planStep{}}
			r, err := a.apply(ctx, steps, boot, &out)
			return a.changed(out, stateApplied, r, asJSON, err)
		},
	}
	cmd.Flags().StringSliceVar(&steps, "step", nil, "only this step, or all of this noun (`name`: kubelet, link, sysctl/net.…); may be repeated")
	cmd.Flags().BoolVar(&boot, "boot", false, "files only, and nothing while the off switch is set")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("step", a.stepNames(func(st engine.Status) bool { return !st.Leftover && st.Err == nil }))
	return cmd
}

func (a *app) apply(ctx context.Context, names []string, boot bool, out *changeJSON) (*restart, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	p, err := a.plans(cfg, a.logger(), boot)
	if err != nil {
		return nil, err
	}
	before, err := p.Check(ctx)
	if err != nil {
		return nil, err
	}
	if err = p.Apply(ctx, names, before); errors.Is(err, host.ErrOff) {
		a.warn("off: a rollback was asked for, so nothing is written at boot until the next apply")
		return nil, nil
	}
	ctx = context.WithoutCancel(ctx)
	after, cerr := p.Check(ctx)
	for _, st := range after {
		s := planStep{st.Name, stateOf(st), st.Why, strings.TrimRight(st.Diff, "\n")}
		if was := statusOfStep(before, st.Name); was.State == step.Pending && st.State == step.Satisfied && st.Ours {
			s.State, s.Diff = stateApplied, strings.TrimRight(was.Diff, "\n")
			out.Changed = true
			if isDurable(st.Name) && a.rootDir == "" && !boot && !askControl(ctx, a.runDir).Running {
				a.warn("the resolver does not run: pods that are sent to it wait for nothing")
				a.hint("start nodelocaldns serve before the kubelet starts again")
			}
		}
		out.Steps = append(out.Steps, s)
	}
	for _, n := range p.notes(ctx, after) {
		a.warn(n)
	}
	r := p.restartPending(ctx, after)
	out.RestartPending = r != nil
	return r, errors.Join(err, cerr)
}

// statusOfStep is the one of that name: the zero value, with the name alone,
// if there is none.
func statusOfStep(all []engine.Status, name string) engine.Status {
	for _, st := range all {
		if st.Name == name {
			return st
		}
	}
	return engine.Status{Name: name}
}

// changed prints what was changed, and returns err for the exit code.
func (a *app) changed(out changeJSON, verb string, r *restart, asJSON bool, err error) error {
	if asJSON {
		for i, e := range each(err) {
			if i > 0 {
				out.Error += "\n"
			}
			if e != nil {
				out.Error += oneLine(e.Error())
			}
		}
		if jerr := a.json(out, false); jerr != nil {
			return errors.Join(err, jerr)
		}
		return err
	}
	var rows [][]string
	for _, s := range out.Steps {
		if s.State != verb {
			continue
		}
		row := []string{verb, s.Name}
		if s.Why != "" {
			row = append(row, s.Why)
		}
		rows = append(rows, row)
	}
	a.table(rows, 1)
	if len(rows) == 0 {
		a.print("nothing was %s\n", verb)
	}
	if r != nil {
		a.print("%s\n", r)
		a.hint(r.hint())
	}
	return err
}

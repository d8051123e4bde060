package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"nodelocaldns/host"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/kubelet"
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
	stateApplied  = "applied"  // by this run
	stateUndone   = "undone"   // by this run
	stateKept     = "kept"     // --keep left it
	stateDraining = "draining" // stays until no pod names us
	stateLeft     = "left"     // could not be undone; the error says why
)

func (a *app) applyCommand() *cobra.Command {
	var steps []string
	var boot, resume, skipCanary, asJSON bool
	var d disturbance
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "change the node as plan says, verified; clears the off switch of a rollback",
		Long: `Change the node as plan says, verified; clears the off switch of a rollback.
The runtime plan comes first, then our units, and the kubelet last, when every
pod that runs has been seen to reach us (see canary). What fails keeps the rest
from being begun.

A kubelet that runs is restarted for it, and must look well for kubelet.settle
(30s); if it does not, it gets its files back, is restarted again, and the exit
code is 1. Containers go on running meanwhile. One that does not run is not
started. Where everything is as it should be already, nothing is restarted.

--boot is for a unit that runs before the kubelet's. Only files are written,
and with the off switch set none: it stays set, and the exit code is 0. A
kubelet that is not understood is an error as always, so that the unit shows
as failed; the kubelet starts all the same, with its files as they were, as
long as no unit requires this one.

--resume is for a unit that runs after the kubelet's. A restart of the kubelet
that was cut off is brought to its end, and the node uncordoned if it was
cordoned for that: on, or back where a rollback was asked for or the kubelet did
not come back with the change. It evicts nobody, also where the restart was to
begin with that; apply --drain drain brings it to its end with an eviction. Where
nothing was cut off it does nothing.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := stoppable(cmd.Context())
			defer stop()
			out := changeJSON{Steps: []planStep{}}
			a.disturb, d.resume = &d, resume
			switch {
			case boot && resume:
				return usagef("--boot is for before the kubelet's start, --resume for after it", "--boot and --resume contradict each other")
			case resume && len(steps) > 0:
				return usagef("--resume ends what was begun, whatever steps it was for", "--resume and --step contradict each other")
			case resume && d.drain == string(drain.Drain):
				return usagef("apply --drain drain, without --resume, evicts pods and brings what was cut off to its end too", "--resume evicts nobody, whatever --drain drain says")
			}
			do := func() (*host.Restart, error) { return a.apply(ctx, steps, boot, skipCanary, &out) }
			if resume {
				do = func() (*host.Restart, error) { return a.resume(ctx, &out) }
			}
			r, err := do()
			return a.changed(out, stateApplied, r, asJSON, err)
		},
	}
	cmd.Flags().StringSliceVar(&steps, "step", nil, "only this step, or all of this noun (`name`: kubelet, link, sysctl/net.…); may be repeated")
	cmd.Flags().BoolVar(&boot, "boot", false, "files only, and nothing while the off switch is set")
	cmd.Flags().BoolVar(&resume, "resume", false, "bring a restart of the kubelet to its end that was cut off, on or back as it was going, and evict nobody; else nothing")
	d.flags(cmd)
	cmd.Flags().BoolVar(&skipCanary, "skip-canary", false, "do not ask from the pods first; if they cannot reach us, new pods wait five seconds for each name")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("step", a.stepNames(func(st engine.Status) bool { return !st.Leftover && st.Err == nil }))
	return cmd
}

// stoppable is a context for a command that may have the node cordoned. It ends
// when the command is to stop, also because its terminal is gone (unless it was
// started with nohup), and what was begun is then brought to an end that may
// stay. That nobody reads what the command prints stops nothing.
func stoppable(ctx context.Context) (context.Context, context.CancelFunc) {
	signals := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // else the write to standard output kills
	return signal.NotifyContext(ctx, signals...)
}

func (a *app) apply(ctx context.Context, names []string, boot, skipCanary bool, out *changeJSON) (*host.Restart, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	p, err := a.plans(cfg, a.voice(), boot)
	if err != nil {
		return nil, err
	}
	if !skipCanary && !boot && a.rootDir == "" {
		p.canary = func(ctx context.Context, runs bool) error { return a.canaryBefore(ctx, cfg, runs) }
	}
	before, err := p.Check(ctx)
	if err != nil {
		return nil, err
	}
	pending := p.restartPending(ctx)
	switch err = p.Apply(ctx, names, before); {
	case errors.Is(err, host.ErrOff):
		a.warn("off: a rollback was asked for, so nothing is written at boot until the next apply")
		return nil, nil
	case errors.Is(err, host.ErrRefused):
		a.warn(err.Error())
		a.hint("nodelocaldns apply tries again")
		return nil, nil
	}
	ctx = context.WithoutCancel(ctx)
	after, cerr := p.Check(ctx)
	for _, st := range after {
		s := planStep{st.Name, stateOf(st), st.Why, strings.TrimRight(st.Diff, "\n")}
		if was := statusOfStep(before, st.Name); was.State == step.Pending && st.State == step.Satisfied && st.Ours {
			s.State, s.Diff = stateApplied, strings.TrimRight(was.Diff, "\n")
			out.Changed = true
		}
		out.Steps = append(out.Steps, s)
	}
	for _, n := range p.notes(ctx, after) {
		a.warn(n)
	}
	r := p.restartPending(ctx)
	out.RestartPending = r != nil
	if row := restarted(before, pending, r); row != nil && err == nil {
		out.Changed = true
		out.Steps = append(out.Steps, *row)
	}
	return r, errors.Join(err, cerr)
}

// restarted is the row for a restart of the kubelet where no file changed: those of
// a boot, or of an apply that was cut off, were right already. Nil if that was not
// so; was and is say whether a restart is pending.
func restarted(before []engine.Status, was, is *host.Restart) *planStep {
	switch {
	case statusOfStep(before, kubelet.WindowName).Ours:
		return &planStep{kubelet.WindowName, stateApplied, "brought to its end", ""}
	case was != nil && is == nil:
		return &planStep{kubelet.WindowName, stateApplied, "the kubelet has taken its files over", ""}
	}
	return nil
}

// resume is apply --resume.
func (a *app) resume(ctx context.Context, out *changeJSON) (*host.Restart, error) {
	if a.rootDir != "" {
		return nil, usagef("run it on the node itself", "--resume works on the running system, --root leaves that alone")
	}
	cfg, err := a.config()
	if err != nil {
		return nil, err
	}
	p, err := a.plans(cfg, a.voice(), false)
	if err != nil {
		return nil, err
	}
	return a.bringToEnd(ctx, p, out)
}

// bringToEnd brings a window to its end that a reboot or a crash left open, if
// there is one; see host.Durable.Resume.
func (a *app) bringToEnd(ctx context.Context, p *plans, out *changeJSON) (*host.Restart, error) {
	all, err := p.Check(ctx)
	if err != nil {
		return nil, err
	}
	if !statusOfStep(all, kubelet.WindowName).Ours {
		return nil, nil
	}
	err = p.durable.Resume(ctx)
	off, oerr := p.Off()
	if refused := p.durable.Refused(); err == nil && oerr == nil && !off && refused != nil {
		a.warn(refused.Error())
		a.hint("nodelocaldns apply tries again")
	}
	if err == nil {
		out.Changed = true
		out.Steps = append(out.Steps, planStep{kubelet.WindowName, stateApplied, "brought to its end", ""})
	}
	after, cerr := p.Check(context.WithoutCancel(ctx))
	for _, st := range after {
		out.Steps = append(out.Steps, planStep{st.Name, stateOf(st), st.Why, strings.TrimRight(st.Diff, "\n")})
	}
	r := p.restartPending(ctx)
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
func (a *app) changed(out changeJSON, verb string, r *host.Restart, asJSON bool, err error) error {
	if asJSON {
		out.Error = errorLines(err)
		return errors.Join(err, a.json(out, false))
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
		a.print("restart pending: %s\n", r.Why)
		a.hint("nodelocaldns apply restarts it, and looks after it")
	}
	return err
}

// errorLines is err as JSON has it: a line for each thing that is wrong.
func errorLines(err error) string {
	if err == nil {
		return ""
	}
	var lines []string
	for _, e := range each(err) {
		lines = append(lines, oneLine(e.Error()))
	}
	return strings.Join(lines, "\n")
}

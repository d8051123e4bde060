package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/step"
)

// planJSON is the shape of plan --json.
type planJSON struct {
	Changed bool       `json:"changed"` // apply would change something
	Steps   []planStep `json:"steps"`
}

type planStep struct {
	Name  string `json:"name"`
	State string `json:"state"` // as stateOf
	Why   string `json:"why"`
	Diff  string `json:"diff"`
}

func (a *app) planCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "check every step and print what apply would change; write nothing",
		Long: `Check every step and print what apply would change; write nothing.
First what ends with a reboot, then the files that outlast it; with --root,
those files alone.
Exit 0: nothing to do; 3: something is pending; 1: an error, or a step is
blocked or cannot be seen (a blocked sysctl is a warning).`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			p, err := a.plans(cfg, a.voice(), false)
			if err != nil {
				return err
			}
			all, jerr := p.Check(cmd.Context())
			if all == nil && jerr != nil {
				return jerr
			}
			off, oerr := p.Off()
			out := planned(all, p.durable.WouldRestart(cmd.Context(), statusOfStep(all, kubelet.StepName).State == step.Pending))
			if asJSON {
				if err := a.json(out, false); err != nil {
					return err
				}
			} else {
				a.printPlan(out, off)
			}
			for _, n := range p.notes(cmd.Context(), all) {
				a.warn(n)
			}
			if err := errors.Join(jerr, oerr, a.troubles(all)); err != nil {
				return err
			}
			if out.Changed {
				return differ(exitDiffer)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// planned is what plan says of all, and of the restart that apply would end
// with, if it would.
func planned(all []engine.Status, r *host.Restart) planJSON {
	out := planJSON{Steps: []planStep{}}
	for _, st := range all {
		state := stateOf(st)
		out.Changed = out.Changed || state == step.Pending.String()
		out.Steps = append(out.Steps, planStep{st.Name, state, st.Why, strings.TrimRight(st.Diff, "\n")})
	}
	if r != nil && !statusOfStep(all, kubelet.WindowName).Ours { // else it is among them
		out.Changed = true
		out.Steps = append(out.Steps, planStep{kubelet.WindowName, step.Pending.String(), r.Unit + " is restarted: " + r.Why, ""})
	}
	return out
}

// stateOf is one word for st: satisfied, pending or blocked as the step found
// it; error or unseen when it could not look; leftover when the record is of
// a step that the configuration no longer has.
func stateOf(st engine.Status) string {
	switch {
	case st.Err != nil:
		return "error"
	case st.Unseen:
		return "unseen"
	case st.Leftover:
		return "leftover"
	}
	return st.State.String()
}

func (a *app) printPlan(p planJSON, off bool) {
	var rows [][]string
	pending := 0
	for _, s := range p.Steps {
		if s.State == step.Pending.String() {
			pending++
		}
		rows = append(rows, []string{s.State, s.Name, strings.TrimRight(s.Why+"\n"+s.Diff, "\n")})
	}
	a.table(rows, 1)
	if off {
		a.print("off: a rollback was asked for, guard leaves the node alone until the next apply\n")
	}
	if pending == 0 {
		a.print("nothing to do; nothing was written\n")
		return
	}
	a.print("%s pending; nothing was written\n", count(pending, "step"))
}

// troubles is what keeps all from being told or done. A blocked optional step
// is a warning, with what to do about it, and no trouble.
func (a *app) troubles(all []engine.Status) error {
	var errs []error
	for _, st := range all {
		switch {
		case st.Err != nil:
			// A record of another version names itself; a check does not.
			if errors.Is(st.Err, engine.ErrUnknown) {
				errs = append(errs, st.Err)
			} else {
				errs = append(errs, fmt.Errorf("%s: check: %w", st.Name, st.Err))
			}
		case st.Unseen:
			errs = append(errs, withHint(fmt.Errorf("%s: not seen: %s", st.Name, st.Why), "run it as root to see everything"))
		case st.State != step.Blocked:
		case st.Optional:
			a.warn(fmt.Sprintf("%s: blocked: %s", st.Name, st.Why))
			if st.Hint != "" {
				a.hint(st.Hint)
			}
		default:
			errs = append(errs, fmt.Errorf("%s: %w", st.Name, &engine.BlockedError{Why: st.Why, Next: st.Hint}))
		}
	}
	return errors.Join(errs...)
}

// stepNames completes a flag that takes names of steps, or their nouns.
// Silence is better than an error in the middle of somebody's line.
func (a *app) stepNames(only func(engine.Status) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		cfg, err := a.config()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		p, err := a.plans(cfg, slog.New(slog.DiscardHandler), false)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, _ := p.Check(cmd.Context())
		var words []string
		for _, st := range all {
			if only(st) {
				words = append(words, st.Name+"\t"+oneLine(st.Why))
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

package main

import (
	"context"
	"errors"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/step"
)

func (a *app) applyCommand() *cobra.Command {
	var steps []string
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "change the node as plan says, verified; clears the off switch of a rollback",
		Args:  args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			cfg, err := a.config()
			if err != nil {
				return err
			}
			return a.change(cmd, cfg, func(ctx context.Context, node *host.Node) error {
				before, err := node.Check(ctx)
				if err != nil {
					return err
				}
				err = node.Apply(ctx, steps...)
				after, cerr := node.Check(context.WithoutCancel(ctx))
				a.printChanges("applied", before, after, func(was, is engine.Status) bool {
					return was.State == step.Pending && is.State == step.Satisfied && is.Ours
				})
				return errors.Join(err, cerr)
			})
		},
	}
	cmd.Flags().StringSliceVar(&steps, "step", nil, "only this step, or all of this noun (`name`: link, sysctl/net.…); may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("step", a.stepNames(func(st engine.Status) bool { return !st.Leftover && st.Err == nil }))
	return cmd
}

// change runs do, which changes the node, with the rights and the signals
// that takes.
func (a *app) change(cmd *cobra.Command, cfg config.Config, do func(context.Context, *host.Node) error) error {
	if err := privileged(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	node, err := a.node(cfg, a.logger())
	if err != nil {
		return err
	}
	return do(ctx, node)
}

// printChanges prints a line for each step that went from before to after as
// changed says.
func (a *app) printChanges(verb string, before, after []engine.Status, changed func(was, is engine.Status) bool) {
	var rows [][]string
	for _, was := range before {
		is := engine.Status{Name: was.Name} // no longer there: nothing of ours is left
		for _, st := range after {
			if st.Name == was.Name {
				is = st
			}
		}
		if changed(was, is) {
			row := []string{verb, was.Name}
			if is.Ours { // else the check says how it is wanted again
				row = append(row, is.Why)
			}
			rows = append(rows, row)
		}
	}
	a.table(rows, 1)
	if len(rows) == 0 {
		a.print("nothing was %s\n", verb)
	}
}

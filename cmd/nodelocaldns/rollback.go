package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/engine"
)

func (a *app) rollbackCommand() *cobra.Command {
	var keep []string
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "undo every change of ours, newest first, and keep guard from redoing it",
		Long: `Undo every change of ours, newest first. The off switch is set before the
first one, so that guard does not repair what is taken back; apply clears it.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			cfg, err := a.config()
			if err != nil {
				// What is undone is what the journal says. A file that
				// somebody broke must not keep the node from being restored.
				a.warn("going by the journal alone: " + err.Error())
				cfg = config.Default()
			}
			return a.change(cmd, cfg, func(ctx context.Context, node *host.Node) error {
				before, err := node.Check(ctx)
				if err != nil {
					return err
				}
				names, err := kept(keep, before)
				if err != nil {
					return err
				}
				err = node.Rollback(ctx, names...)
				after, cerr := node.Check(context.WithoutCancel(ctx))
				a.printChanges("undone", before, after, func(was, is engine.Status) bool { return was.Ours && !is.Ours })
				return errors.Join(hintKeep(err, after), cerr)
			})
		},
	}
	cmd.Flags().StringSliceVar(&keep, "keep", nil, "leave this change, or all of this noun, in place (`name`); may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("keep", a.stepNames(func(st engine.Status) bool { return st.Ours }))
	return cmd
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

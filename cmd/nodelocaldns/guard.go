package main

import (
	"context"

	"github.com/spf13/cobra"

	"nodelocaldns/host"
)

func (a *app) guardCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "apply the plan and repair what others change, in the foreground",
		Long: `Apply the plan and repair what others change, in the foreground. It takes
nothing away when it ends: pods keep the address as long as they live.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			cfg, err := a.config()
			if err != nil {
				return err
			}
			return a.change(cmd, cfg, func(ctx context.Context, node *host.Node) error {
				g := node.Guard()
				if once {
					return g.Once(ctx)
				}
				go func() {
					select {
					case <-ctx.Done():
					case <-g.Ready():
						notify("READY=1", "STATUS="+g.String())
					}
				}()
				err := g.Run(ctx)
				notify("STOPPING=1")
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "one pass, then exit; 1 if something could not be done")
	return cmd
}

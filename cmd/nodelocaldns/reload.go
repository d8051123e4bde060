package main

import (
	"fmt"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
)

// reloadCommand is for the resolver's unit: kill(1) is not there in the root that
// the resolver has.
func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "reload pid",
		Short:  "have a running serve read its configuration again",
		Hidden: true,
		Args:   args(1, "pid"),
		RunE: func(_ *cobra.Command, pids []string) error {
			pid, err := strconv.Atoi(pids[0])
			if err != nil || pid < 2 {
				return usagef("systemctl reload nodelocaldns", "no pid of a resolver: %q", pids[0])
			}
			if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
				return fmt.Errorf("sending SIGHUP to %d: %w", pid, err)
			}
			return nil
		},
	}
}

package main

import (
	"github.com/spf13/cobra"

	"nodelocaldns/cmd/internal/buildinfo"
)

// version is what this binary is.
type version = buildinfo.Version

func thisVersion() version { return buildinfo.This() }

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "print what this binary was built from",
		Args:  args(0),
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return a.json(thisVersion(), false)
			}
			a.print("nodelocaldns %s\n", thisVersion())
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

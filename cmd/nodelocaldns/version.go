package main

import (
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is what this binary is, as the Go tool recorded it.
type version struct {
	Version  string `json:"version"`  // of the module; "(devel)" where there is no tag
	Revision string `json:"revision"` // of the repository; "-dirty" with changes; empty if unknown
	Go       string `json:"go"`
}

func thisVersion() version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version{Version: "(devel)", Go: runtime.Version()}
	}
	return versionFrom(info)
}

func versionFrom(info *debug.BuildInfo) version {
	v := version{Version: info.Main.Version, Go: info.GoVersion}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && v.Revision != "" {
		v.Revision += "-dirty"
	}
	return v
}

func (v version) String() string {
	words := []string{v.Version}
	if v.Revision != "" {
		words = append(words, v.Revision)
	}
	return strings.Join(append(words, v.Go), " ")
}

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

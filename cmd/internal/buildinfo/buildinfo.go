// Package buildinfo says what a binary of this project was built from.
package buildinfo

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Version is what a binary is, as the Go tool recorded it.
type Version struct {
	Version  string `json:"version"`  // of the module; "(devel)" where there is no tag
	Revision string `json:"revision"` // of the repository; "-dirty" with changes; empty if unknown
	Go       string `json:"go"`
}

// This is the running binary's.
func This() Version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Version{Version: "(devel)", Go: runtime.Version()}
	}
	return From(info)
}

// From is what info says.
func From(info *debug.BuildInfo) Version {
	v := Version{Version: info.Main.Version, Go: info.GoVersion}
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

func (v Version) String() string {
	words := []string{v.Version}
	if v.Revision != "" {
		words = append(words, v.Revision)
	}
	return strings.Join(append(words, v.Go), " ")
}

package buildinfo_test

import (
	"runtime/debug"
	"testing"

	"nodelocaldns/cmd/internal/buildinfo"
)

func TestTheVersionIsTheBuildsOwn(t *testing.T) {
	info := func(v string, settings ...string) *debug.BuildInfo {
		b := &debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: v}}
		for i := 0; i < len(settings); i += 2 {
			b.Settings = append(b.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return b
	}
	for _, tt := range []struct {
		info *debug.BuildInfo
		want string
	}{
		{info("v1.2.3", "vcs.revision", "abc", "vcs.modified", "false"), "v1.2.3 abc go1.26.8"},
		{info("(devel)", "vcs.modified", "true", "vcs.revision", "abc"), "(devel) abc-dirty go1.26.8"},
		{info("", "vcs.modified", "true"), "(devel) go1.26.8"},
	} {
		if got := buildinfo.From(tt.info).String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

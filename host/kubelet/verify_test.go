package kubelet

import (
	"strings"
	"testing"

	"nodelocaldns/host/systemd"
)

func TestSystemdMustHaveReadOurFileAndStartWhatItSays(t *testing.T) {
	const file = "/etc/systemd/system/kubelet.service.d/99-nodelocaldns.conf"
	argv := []string{"/usr/bin/kubelet", "--cluster-dns=169.254.20.10,10.96.0.10", "$ARGS"}
	unit := func(state string, reload bool, dropIns ...string) systemd.Properties {
		return systemd.Properties{"LoadState": state, "NeedDaemonReload": reload, "DropInPaths": dropIns, "FragmentPath": "/usr/lib/systemd/system/kubelet.service"}
	}
	starts := func(p systemd.Properties, commands ...[]string) systemd.Properties {
		list := [][]any{}
		for _, c := range commands {
			list = append(list, []any{c[0], c, false, uint64(0)})
		}
		p["ExecStart"] = list
		return p
	}
	for _, tt := range []struct {
		name      string
		unit      systemd.Properties
		file, err string
	}{
		{"accepted", starts(unit("loaded", false, "/x.conf", file), argv), file, ""},
		{"accepted in the unit itself", starts(unit("loaded", false), argv), "/usr/lib/systemd/system/kubelet.service", ""},
		{"bad setting", starts(unit("bad-setting", false, file)), file, "load state is bad-setting"},
		{"to be reloaded", starts(unit("loaded", true, file), argv), file, "reloaded again"},
		{"not read", starts(unit("loaded", false, "/x.conf"), argv), file, "does not read the file, only /usr/lib/systemd/system/kubelet.service, /x.conf"},
		{"another command line", starts(unit("loaded", false, file), argv[:1]), file, `it would start ["/usr/bin/kubelet"]`},
		{"two commands", starts(unit("loaded", false, file), argv, argv), file, "not one command"},
		{"no properties", nil, file, "load state is"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := accepts(tt.unit, tt.file, argv)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("err = %v, want %q", err, tt.err)
			}
		})
	}
}

func TestWhatSystemdAnalyzeDumpsIsJudged(t *testing.T) {
	const file = "/r/etc/systemd/system/kubelet.service.d/99-nodelocaldns.conf"
	dump := "\t-> Unit kubelet.service:\n\t\tDropIn Path: " + file + "\n\t\t\tCommand Line: /usr/bin/kubelet --cluster-dns=169.254.20.10 \"\\$X\"\n"
	argv := []string{"/usr/bin/kubelet", "--cluster-dns=169.254.20.10", "$X"}
	for _, tt := range []struct{ name, out, err string }{
		{"accepted", dump, ""},
		{"lacking other units", "kubelet.service: Command /usr/bin/kubelet is not executable: No such file or directory\n" + dump, ""},
		{"bad setting", "Unit kubelet.service has a bad unit file setting.\n" + dump, "bad unit file setting"},
		{"a line it does not know", file + ":3: Unknown key name 'X' in section 'Service', ignoring.\n" + dump, "3: Unknown key"},
		{"not read", strings.Replace(dump, "99-nodelocaldns", "10-x", 1), "does not read the file"},
		{"not loaded", "Failed to load\n", "cannot read kubelet.service"},
		{"another list", strings.Replace(dump, "169.254.20.10", "169.254.20.100", 1), "not on the command line"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := judge([]byte(tt.out), "kubelet.service", file, argv)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("err = %v, want %q", err, tt.err)
			}
		})
	}
}

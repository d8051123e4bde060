package packaging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What dpkg and rpm call the scripts with (Debian Policy 6.5, rpm-scriptlets(7)),
// and what they do then: a systemctl and a nodelocaldns that tell what they were
// asked for stand in the place of the real ones.
func TestWhatTheScriptsDo(t *testing.T) {
	const (
		preset = "systemctl preset --quiet --preset-mode=enable-only nodelocaldns-guard.service nodelocaldns.socket " +
			"nodelocaldns.service nodelocaldns-kubelet.service nodelocaldns-resume.service\n"
		again = "systemctl daemon-reload\nnodelocaldns config check\n" +
			"systemctl try-restart nodelocaldns-guard.service\nsystemctl try-restart nodelocaldns.service\nsystemctl try-restart nodelocaldns-relay.service\n"
		others  = "nodelocaldns.socket nodelocaldns.service nodelocaldns-relay.service nodelocaldns-kubelet.service nodelocaldns-resume.service\n"
		disable = "systemctl --quiet --no-reload disable nodelocaldns-guard.service " + others
		stop    = "systemctl stop nodelocaldns-guard.service\nsystemctl stop " + others
		forget  = "systemctl daemon-reload\nsystemctl reset-failed nodelocaldns*\n"
		hints   = "nodelocaldns: hint: nodelocaldns rollback takes it back, then remove the package; while pods still ask here it says draining, " +
			"and nodelocaldns rollback --wait 1h waits for them\n" +
			"nodelocaldns: hint: NODELOCALDNS_REMOVE=force in the environment removes the package and leaves all that as it is\nexit code 1\n"
		durable = "/var/lib/nodelocaldns/journal.json"
		runtime = "/run/nodelocaldns/journal.json"
		booted  = "/run/systemd/system/"
	)
	// What a node has that was used and rolled back.
	state := []string{booted, "/run/nodelocaldns-root/", "/etc/nodelocaldns/config.yaml", "/etc/nodelocaldns/mine", "/run/nodelocaldns/lock", "/run/nodelocaldns-resolver", "/var/lib/nodelocaldns/off"}
	used := strings.Join(state[2:], "\n") + "\n"

	for _, tt := range []struct {
		name  string
		calls []string // each a script and its arguments; all do the same
		tree  []string
		env   []string
		want  string // what is called and said, and the files that are left
	}{
		{
			name:  "it is installed",
			calls: []string{"postinstall configure", "postinstall configure ", "postinstall 1"}, tree: state,
			want: preset + again + used,
		},
		{
			name:  "it is installed into an image",
			calls: []string{"postinstall configure", "postinstall 1"},
			want:  preset,
		},
		{
			name:  "it is upgraded",
			calls: []string{"postinstall configure 1.0", "postinstall 2", "postinstall 3"}, tree: state,
			want: again + used,
		},
		{
			name:  "it is upgraded, and the resolver's root is gone",
			calls: []string{"postinstall configure 1.0", "postinstall 2"}, tree: state[:1],
			want: strings.Replace(again, "nodelocaldns config", "systemctl try-restart nodelocaldns.socket\nnodelocaldns config", 1),
		},
		{
			name:  "it is upgraded in an image",
			calls: []string{"postinstall configure 1.0", "postinstall 2"},
		},
		{
			name:  "it is upgraded, and its configuration is of another version",
			calls: []string{"postinstall configure 1.0", "postinstall 2"}, tree: state, env: []string{"FAIL=config"},
			want: "systemctl daemon-reload\nnodelocaldns config check\n" +
				"nodelocaldns: warning: what runs is not started again: it would not come back with this configuration\n" +
				"nodelocaldns: hint: mend it, then: systemctl try-restart nodelocaldns-guard nodelocaldns nodelocaldns-relay\n" + used,
		},
		{
			name:  "it is upgraded, and nothing comes back",
			calls: []string{"postinstall configure 1.0", "postinstall 2"}, tree: state, env: []string{"FAIL=try-restart"},
			want: "systemctl daemon-reload\nnodelocaldns config check\n" +
				"systemctl try-restart nodelocaldns-guard.service\nnodelocaldns: warning: nodelocaldns-guard did not come back\nnodelocaldns: hint: journalctl -u nodelocaldns-guard says why\n" +
				"systemctl try-restart nodelocaldns.service\nnodelocaldns: warning: nodelocaldns did not come back\nnodelocaldns: hint: journalctl -u nodelocaldns says why\n" +
				"systemctl try-restart nodelocaldns-relay.service\nnodelocaldns: warning: nodelocaldns-relay did not come back\nnodelocaldns: hint: journalctl -u nodelocaldns-relay says why\n" + used,
		},
		{
			name: "an upgrade stops nothing, nor does anything that is broken off",
			calls: []string{
				"preremove upgrade 2.0", "preremove 1", "preremove deconfigure in-favour x 1", "preremove failed-upgrade 1.0",
				"postremove upgrade 2.0", "postremove 1", "postremove failed-upgrade 1.0", "postremove abort-install", "postremove abort-upgrade 1.0", "postremove disappear x 1",
				"postinstall abort-upgrade 2.0", "postinstall abort-remove", "postinstall abort-deconfigure in-favour x 1",
			}, tree: append([]string{durable, runtime}, state...),
			want: "/etc/nodelocaldns/config.yaml\n/etc/nodelocaldns/mine\n/run/nodelocaldns/journal.json\n/run/nodelocaldns/lock\n/run/nodelocaldns-resolver\n/var/lib/nodelocaldns/journal.json\n/var/lib/nodelocaldns/off\n",
		},
		{
			name:  "it is to be removed",
			calls: []string{"preremove remove", "preremove remove in-favour x 1", "preremove 0"}, tree: state,
			want: disable + stop + used,
		},
		{
			name:  "it is to be removed, and systemd has never heard of it",
			calls: []string{"preremove remove", "preremove 0"}, tree: state, env: []string{"FAIL=stop disable"},
			want: disable + stop + used,
		},
		{
			name:  "it is to be removed from an image",
			calls: []string{"preremove remove", "preremove 0"},
			want:  disable,
		},
		{
			name:  "it is to be removed while the kubelet names us",
			calls: []string{"preremove remove", "preremove remove in-favour x 1", "preremove 0"}, tree: []string{booted, durable, runtime},
			want: "nodelocaldns: error: not removed: this node is still changed, as /var/lib/nodelocaldns/journal.json records\n" + hints + runtime + "\n" + durable + "\n",
		},
		{
			name:  "it is to be removed while pods still ask here",
			calls: []string{"preremove remove", "preremove 0"}, tree: []string{booted, runtime},
			want: "nodelocaldns: error: not removed: this node is still changed, as /run/nodelocaldns/journal.json records\n" + hints + runtime + "\n",
		},
		{
			name:  "it is to be removed whatever there is",
			calls: []string{"preremove remove", "preremove 0"}, tree: []string{booted, durable, runtime}, env: []string{"NODELOCALDNS_REMOVE=force"},
			want: "nodelocaldns: warning: what /var/lib/nodelocaldns/journal.json records stays as it is on this node\n" +
				"nodelocaldns: warning: what /run/nodelocaldns/journal.json records stays as it is on this node\n" +
				disable + stop + runtime + "\n" + durable + "\n",
		},
		{
			name:  "it is removed",
			calls: []string{"postremove remove", "postremove 0"}, tree: state,
			want: forget + "/etc/nodelocaldns/config.yaml\n/etc/nodelocaldns/mine\n",
		},
		{
			name:  "it is removed from an image",
			calls: []string{"postremove remove", "postremove 0"}, tree: state[1:],
			want: "/etc/nodelocaldns/config.yaml\n/etc/nodelocaldns/mine\n",
		},
		{
			name:  "it is purged",
			calls: []string{"postremove purge"}, tree: state,
			want: forget,
		},
		{
			name:  "it was removed by force",
			calls: []string{"postremove remove", "postremove 0"}, tree: append([]string{durable}, state...), env: []string{"NODELOCALDNS_REMOVE=force"},
			want: forget + "nodelocaldns: warning: /var/lib/nodelocaldns stays: it records what is still changed on this node\n" +
				"/etc/nodelocaldns/config.yaml\n/etc/nodelocaldns/mine\n/var/lib/nodelocaldns/journal.json\n/var/lib/nodelocaldns/off\n",
		},
		{
			name:  "it was removed by force, and is purged later",
			calls: []string{"postremove purge"}, tree: append([]string{durable}, state...),
			want: forget + "nodelocaldns: warning: /var/lib/nodelocaldns stays: it records what is still changed on this node\n" +
				"/var/lib/nodelocaldns/journal.json\n/var/lib/nodelocaldns/off\n",
		},
		{
			name:  "it is purged by force",
			calls: []string{"postremove purge"}, tree: append([]string{durable, runtime}, state...), env: []string{"NODELOCALDNS_REMOVE=force"},
			want: forget,
		},
	} {
		for _, call := range tt.calls {
			t.Run(tt.name+"/"+call, func(t *testing.T) {
				script, args, _ := strings.Cut(call, " ")
				if diff := cmp.Diff(tt.want, doScript(t, script, strings.Split(args, " "), tt.tree, tt.env)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}

// doScript runs a script in a tree of these files, and directories whose names
// end in a slash. It returns what was called and said, an exit code that is not
// 0, and the files that are left.
func doScript(t *testing.T, name string, args, tree, env []string) string {
	t.Helper()
	text, err := os.ReadFile("../../units/package/" + name + ".sh")
	must(t, err)
	root, bin := t.TempDir(), t.TempDir()
	script := filepath.Join(bin, name)
	var moved []string
	for _, dir := range []string{"/etc/nodelocaldns", "/run/nodelocaldns", "/run/systemd", "/var/lib/nodelocaldns"} {
		moved = append(moved, dir, root+dir)
	}
	must(t, os.WriteFile(script, []byte(strings.NewReplacer(moved...).Replace(string(text))), 0o755))
	must(t, os.WriteFile(filepath.Join(bin, "systemctl"), []byte("#!/bin/sh\necho \"systemctl $*\"\nfor f in $FAIL; do case \" $* \" in *\" $f \"*) exit 5;; esac; done\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(bin, "nodelocaldns"), []byte("#!/bin/sh\necho \"nodelocaldns $*\"\n[ \"$FAIL\" != \"$1\" ]\n"), 0o755))
	for _, name := range tree {
		file := filepath.Join(root, name)
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(file, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, nil, 0o644))
	}

	cmd := exec.Command(script, args...)
	cmd.Env = append([]string{"PATH=" + bin + ":/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		out = fmt.Appendf(out, "exit code %d\n", exit.ExitCode())
	} else {
		must(t, err)
	}
	must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = fmt.Appendln(out, path)
		}
		return err
	}))
	for _, dir := range []string{"/etc/nodelocaldns", "/run/nodelocaldns", "/var/lib/nodelocaldns"} {
		// Empty directories are left by nobody.
		if err := os.Remove(filepath.Join(root, dir)); err == nil {
			out = fmt.Appendf(out, "%s is empty\n", dir)
		}
	}
	return strings.ReplaceAll(string(out), root, "")
}

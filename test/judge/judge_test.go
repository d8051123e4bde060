package judge_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nodelocaldns/test/judge"
)

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestReadTellsWhatSystemdMakesOfAUnit(t *testing.T) {
	root := tree(t, map[string]string{
		"etc/systemd/system/a.service":               "[Service]\nEnvironment=A=1 \"B=2 3\"\nEnvironmentFile=-/etc/x\nExecStart=/bin/true \"x y\" $A \\x01 \"\" '`'\n",
		"usr/lib/systemd/system/a.service.d/10.conf": "[Service]\nExecStartPre=-/bin/echo\n",
		"etc/systemd/system/bad.service":             "[Service]\nExecStart=/bin/true 'x\n",
		"etc/systemd/system/masked.service":          "",
		"etc/systemd/system/unreadable.service":      "[Service\n",
	})
	got := judge.Read(t, root, "a.service", "bad.service", "masked.service", "missing.service", "unreadable.service")
	a := got["a.service"]
	if a.State != "loaded" || a.Fragment != "/etc/systemd/system/a.service" ||
		!slices.Equal(a.DropIns, []string{"/usr/lib/systemd/system/a.service.d/10.conf"}) ||
		!slices.Equal(a.Environment, []string{"A=1", "B=2 3"}) || !slices.Equal(a.EnvironmentFiles, []string{"-/etc/x"}) ||
		len(a.Commands["ExecStart"]) != 1 || !slices.Equal(a.Commands["ExecStart"][0], []string{"/bin/true", "x y", "$A", "\x01", "", "`"}) ||
		len(a.Commands["ExecStartPre"]) != 1 {
		t.Errorf("a.service is read as\n%v", a)
	}
	for name, want := range map[string]string{"bad.service": "bad-setting", "masked.service": "masked", "missing.service": "not-found", "unreadable.service": "error"} {
		if got[name].State != want {
			t.Errorf("%s is %q, want %q", name, got[name].State, want)
		}
	}
}

func TestRunTellsWhatAProgramIsStartedWith(t *testing.T) {
	root := tree(t, map[string]string{
		"etc/systemd/system/a.service": "[Service]\nEnvironment=\"A=1 '2 3'\"\nEnvironmentFile=/etc/env\nExecStart=@/usr/bin/kubelet zero $A ${A} \"\" $B\nRestart=always\n",
		"etc/systemd/system/b.service": "[Service]\nEnvironmentFile=/etc/nothing\nExecStart=/usr/bin/kubelet\n",
		"etc/env":                      "B=x y\n",
	})
	got, log := judge.Run(t, root, []string{"/usr/bin/kubelet"}, []string{"a.service", "b.service"})
	want := []string{"zero", "1", "2 3", "1 '2 3'", "", "x", "y"}
	if !slices.Equal(got["a.service"].Args, want) || !slices.Contains(got["a.service"].Env, "B=x y") {
		t.Errorf("a.service was started with %q\n%s", got["a.service"], log)
	}
	if _, ok := got["b.service"]; ok {
		t.Errorf("b.service was started without its environment file\n%s", log)
	}
}

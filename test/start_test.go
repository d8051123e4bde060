package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/test/judge"
)

// layout makes the file tree of a node from the corpus of kubelets, with us
// installed where a package puts us.
func layout(t *testing.T, name string) string {
	t.Helper()
	a, err := txtar.ParseFile("kubelet/corpus/" + name + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, f := range a.Files {
		if name, ok := strings.CutPrefix(f.Name, "tree/"); ok {
			put(t, filepath.Join(root, name), f.Data, 0o644)
		}
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(root, "usr/bin/nodelocaldns"), program, 0o755)
	return root
}

func put(t *testing.T, name string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
}

// A real systemd starts the kubelet's unit as it is on the node, and our
// program in front of it; a program that writes down its arguments stands for
// the kubelet.
func TestTheKubeletStartsWithUsFirstOrAsItAlwaysDid(t *testing.T) {
	const (
		ours   = "--cluster-dns=169.254.20.10,10.96.0.10"
		plain  = "--config=/var/lib/kubelet/config.yaml"
		config = "/etc/nodelocaldns/config.yaml"
	)
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, root string) // what happened after apply
		want string                          // its --cluster-dns
	}{
		{"applied", func(*testing.T, string) {}, ours},
		{"kube-dns has moved since", func(t *testing.T, root string) {
			file := filepath.Join(root, "var/lib/kubelet/config.yaml")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			put(t, file, []byte(strings.Replace(string(text), "10.96.0.10", "10.97.0.10", 1)), 0o644)
		}, "--cluster-dns=169.254.20.10,10.97.0.10"},
		{"the configuration is broken", func(t *testing.T, root string) {
			put(t, filepath.Join(root, config), []byte("x: y\n"), 0o644)
		}, ""},
		{"our address is not there", func(t *testing.T, root string) {
			put(t, filepath.Join(root, config), []byte("listen: {addresses: [169.254.20.99]}\n"), 0o644)
		}, ""},
		{"our program is gone", func(t *testing.T, root string) {
			if err := os.Remove(filepath.Join(root, "usr/bin/nodelocaldns")); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"our program hangs, and is deaf to SIGTERM", func(t *testing.T, root string) {
			put(t, filepath.Join(root, "usr/bin/nodelocaldns"), []byte("#!/bin/sh\ntrap '' TERM\nexec sleep 60\n"), 0o755)
		}, ""},
		{"the off switch is set", func(t *testing.T, root string) {
			put(t, filepath.Join(root, "var/lib/nodelocaldns/off"), nil, 0o644)
		}, ""},
		{"the kubelet's arguments are in doubt", func(t *testing.T, root string) {
			put(t, filepath.Join(root, "etc/default/kubelet"), []byte("KUBELET_EXTRA_ARGS=--cluster-dns\n"), 0o644)
		}, "--cluster-dns"},
		{"a file of an earlier start is there", func(t *testing.T, root string) {
			put(t, filepath.Join(root, config), []byte("kubelet: {manage: false}\n"), 0o644)
			put(t, filepath.Join(root, "run/nodelocaldns/kubelet.env"), []byte("KUBELET_EXTRA_ARGS=--cluster-dns=192.0.2.1\n"), 0o600)
		}, ""},
		{"rolled back", func(t *testing.T, root string) { nodelocaldns(t, "--root", root, "rollback") }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := layout(t, "01-kubeadm-deb")
			if _, err := exec.LookPath("systemd-analyze"); err != nil {
				judge.Skip(t, "needs systemd")
			}
			nodelocaldns(t, "--root", root, "apply", "--step", "kubelet") // without our units, which would repair what is done here
			tt.do(t, root)
			starts, log := judge.Run(t, root, []string{"/usr/bin/kubelet"}, []string{"kubelet.service"})
			args := starts["kubelet.service"].Args
			var got []string
			for _, a := range args {
				if strings.HasPrefix(a, "--cluster-dns") {
					got = append(got, a)
				}
			}
			if strings.Join(got, " ") != tt.want || !slices.Contains(args, plain) {
				t.Errorf("the kubelet was started with %q, want %q among its arguments\n%s", args, tt.want, log)
			}
		})
	}
}

// At boot a unit may write the file just before the kubelet starts: systemd has
// to read it in time.
func TestAUnitBeforeTheKubeletPutsUsFirstAtThisVeryStart(t *testing.T) {
	for _, tt := range []struct{ layout, program, want string }{
		{"01-kubeadm-deb", "/usr/bin/kubelet", "--cluster-dns=169.254.20.10,10.96.0.10"},
		{"20-magnum", "/usr/local/bin/kubelet", "--cluster-dns=169.254.20.10,10.254.0.10"},
	} {
		t.Run(tt.layout, func(t *testing.T) {
			root := layout(t, tt.layout)
			put(t, filepath.Join(root, "etc/systemd/system/first.service"),
				[]byte("[Service]\nExecStart=/usr/bin/nodelocaldns apply --step kubelet --boot\nStandardError=journal+console\n"), 0o644)
			starts, log := judge.Run(t, root, []string{tt.program}, []string{"first.service", "kubelet.service"})
			if args := starts["kubelet.service"].Args; !slices.Contains(args, tt.want) {
				t.Errorf("the kubelet was started with %q, want %s among its arguments\n%s", args, tt.want, log)
			}
		})
	}
}

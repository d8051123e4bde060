package kubelet_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/unitfile"
)

// FuzzRender plans for a unit with any arguments and any environment file, and
// holds what comes of it to what must always be so: it is refused with a hint,
// or planned again the same with the file there, and makes the kubelet ask the
// target; and without the file all is as it was.
func FuzzRender(f *testing.F) {
	for _, seed := range [][2]string{
		{"--config=/k.yaml $ARGS", "ARGS=--v=2 --cluster-dns=10.0.0.1\n"},
		{"--config=/k.yaml \\\n  --cluster-dns=10.0.0.1 \\\n  --v=2", ""},
		{"--config /k.yaml --cluster_dns 10.0.0.1,10.0.0.2", ""},
		{"$DNS --config=/k.yaml \"$ARGS\"", "DNS=\"--cluster-dns='10.0.0.1' \\\"a b\\\"\"\nARGS='--x=\"y z\"'\n"},
		{"--config=/k.yaml --x=\"a b\" $$HOME ${ARGS} $ARGS", "ARGS=--a\\ b\n"},
		{"--config=/k.yaml --cluster-dns=10.0.0.1 $ARGS --v=2", "ARGS=--cluster-dns=10.0.0.2,10.0.0.3\n"},
		{"--config=/k.yaml $A $ARGS", "A=--cluster-dns=10.0.0.1 --x=`id` --y=\\$HOME\nARGS=\"--cluster-dns=10.0.0.2 --z=\\\\\"\n"},
		{"--x=%a $ARGS", "ARGS=--cluster-dns=10.0.0.2\n"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, args, env string) {
		root := t.TempDir()
		write(t, filepath.Join(root, "usr/lib/systemd/system/kubelet.service"),
			"[Service]\nEnvironmentFile=-/env\nExecStart=/usr/bin/kubelet "+args+"\n")
		write(t, filepath.Join(root, "env"), env)
		write(t, filepath.Join(root, "k.yaml"), "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.96.0.10]\n")
		node := kubelet.Node{Tree: fsys.Tree(root)}
		want := kubelet.Want{Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10")}}

		facts, change, err := kubelet.Plan(t.Context(), node, want)
		if err != nil {
			if r := new(kubelet.Refusal); !errors.As(err, &r) || r.Next == "" {
				t.Fatalf("refused without a hint: %v", err)
			}
			return
		}
		if change.Path == "" {
			return
		}
		before := command(t, root)
		file := filepath.Join(root, change.Path)
		write(t, file, string(change.Content))
		again, same, err := kubelet.Plan(t.Context(), node, want)
		if err != nil || same.Path != change.Path || string(same.Content) != string(change.Content) {
			t.Fatalf("with the file there: %v\nfirst %s\n%sagain %s\n%s", err, change.Path, change.Content, same.Path, same.Content)
		}
		if facts.Backend == kubelet.ByEnv && !facts.Later {
			_, text, err := kubelet.Env(t.Context(), node, want)
			if err != nil {
				t.Fatalf("at the kubelet's start: %v", err)
			}
			write(t, filepath.Join(root, kubelet.EnvFile), string(text))
			if again, err = kubelet.Find(t.Context(), node, want); err != nil {
				t.Fatal(err)
			}
			_, twice, err := kubelet.Env(t.Context(), node, want)
			if err != nil || string(twice) != string(text) {
				t.Errorf("at its next start: %v\nfirst\n%sthen\n%s", err, text, twice)
			}
		}
		if !facts.Later && !slices.Equal(again.Now, facts.Target) {
			t.Errorf("the kubelet would ask %v, want %v\n%s", again.Now, facts.Target, change.Content)
		}
		if err := os.RemoveAll(filepath.Join(root, "etc")); err != nil {
			t.Fatal(err)
		}
		if after := command(t, root); after != before {
			t.Errorf("the command line was\n%s\nand is\n%s", before, after)
		}
	})
}

// command is what the unit would start, or why that is not known.
func command(t *testing.T, root string) string {
	t.Helper()
	u, err := unitfile.Load(fsys.Tree(root), "kubelet.service", unitfile.Host{})
	if err != nil {
		t.Fatal(err)
	}
	commands, err := u.Commands("ExecStart")
	if err != nil {
		t.Fatal(err)
	}
	env, err := u.Environment()
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, c := range commands {
		args, err := c.Expand(env)
		if err != nil { // a specifier that no file tells
			words = append(words, err.Error())
		}
		for _, a := range args {
			words = append(words, a.Text)
		}
	}
	return strings.Join(words, "\n")
}

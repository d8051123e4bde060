package kubelet_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
)

// It dies for want of its configuration, and systemd starts it again: whoever
// looks in the moment that it lives must find what he finds between two lives.
func TestAKubeletThatWaitsToJoinDoesNotRun(t *testing.T) {
	root := t.TempDir()
	unit := filepath.Join(root, "usr/lib/systemd/system/kubelet.service")
	if err := os.MkdirAll(filepath.Dir(unit), 0o755); err != nil {
		t.Fatal(err)
	}
	const text = "[Service]\nEnvironment=CONFIG=--config=/var/lib/kubelet/config.yaml\nEnvironmentFile=-/etc/default/kubelet\n" +
		"ExecStart=/usr/bin/kubelet $CONFIG $KUBELET_EXTRA_ARGS\n"
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	n := kubelet.Node{Tree: fsys.Tree(root), Running: func(string) (*kubelet.Process, error) {
		return &kubelet.Process{PID: 7, Argv: []string{"/usr/bin/kubelet", "--config=/var/lib/kubelet/config.yaml"}}, nil
	}}
	f, err := kubelet.Find(t.Context(), n, kubelet.Want{Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10")}})
	if err != nil || !f.Later || f.PID != 0 {
		t.Errorf("later %t, pid %d, %v; want later, and none that runs", f.Later, f.PID, err)
	}
}

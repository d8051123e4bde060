package judge

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// insideKey is set for a test that runs in the container.
const insideKey = "JUDGE_INSIDE"

// Inside boots systemd as Run does, and has it run one test of the calling test
// program in there, as root and with that systemd to talk to: the one that calls
// Inside. There, Inside returns true, and the test goes on with what is to be
// seen inside; outside it returns false when that is over, and has failed the
// test if it failed. Without root the test is skipped, see Skip.
//
// setup makes the files below root that are laid over this machine's; it is
// called outside alone. The units are started when systemd is up.
func Inside(t *testing.T, setup func(t *testing.T, root string), units ...string) bool {
	t.Helper()
	if os.Getenv(insideKey) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		Skip(t, "needs root to boot systemd")
	}
	tree, out := t.TempDir(), t.TempDir()
	setup(t, tree)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	const dir, program = "run/systemd/system", "/opt/judge.test"
	write(t, filepath.Join(tree, program), self, 0o755)
	wants := ""
	for _, u := range units {
		wants += "Wants=" + u + "\n"
	}
	write(t, filepath.Join(tree, dir, "judge.target"), []byte("[Unit]\nDefaultDependencies=no\nWants=judge-end.service\n"+wants), 0o644)
	// ExecStopPost= is run however the test ends.
	write(t, filepath.Join(tree, dir, "judge-end.service"), fmt.Appendf(nil, "[Unit]\nDefaultDependencies=no\n"+
		"[Service]\nType=oneshot\nEnvironment=%s=1 HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin\nWorkingDirectory=/\n"+
		"ExecStart=%s -test.run=^%s$ -test.v -test.timeout=50s\nExecStopPost=/bin/sh -c 'kill -s RTMIN+14 1'\n"+
		"StandardOutput=append:/judge/out\nStandardError=inherit\n", insideKey, program, t.Name()), 0o644)
	log := boot(t, tree, out)
	said, err := os.ReadFile(filepath.Join(out, "out"))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if !bytes.HasSuffix(bytes.TrimSpace(said), []byte("\nPASS")) {
		t.Fatalf("inside:\n%s\nsystemd:\n%s", said, log)
	}
	t.Logf("inside:\n%s", said)
	return false
}

// Package netns runs a test in network and mount namespaces of its own, so
// that it may use the real kernel as root and leave nothing behind.
package netns

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is set, to the name of the test, for the process in the namespaces.
const inside = "NODELOCALDNS_TEST_INSIDE"

// Enter reports whether the test already runs in its own namespaces. If not,
// it runs the test binary again there for this test alone, passes its outcome
// and output on, and returns false: the caller then returns.
//
//	func TestX(t *testing.T) {
//		if !netns.Enter(t) {
//			return
//		}
//		…
//	}
//
// Inside, lo is up, /run is an empty tmpfs (the xtables lock and "ip netns"
// live there), and mounts do not reach the host. The process is killed when
// its parent dies. Where namespaces cannot be made, the test is skipped with
// the reason, see Skip.
//
// Call it first in a test, not in a subtest: these are then inside too.
func Enter(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		prepare(t)
		return true
	}
	if os.Geteuid() != 0 {
		Skip(t, "needs root to make namespaces")
		return false
	}
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	args := []string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.v", "-test.count=1"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	// The race detector would sleep for a second before the process ends.
	cmd.Env = append(os.Environ(), inside+"="+t.Name(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:    syscall.SIGKILL,
	}
	// Pdeathsig goes by the thread that started the process, not by the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil && bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		t.Skip(text(out))
	case err == nil:
		t.Log(text(out))
	case errors.Is(err, unix.EPERM):
		Skip(t, "needs the right to make namespaces: "+err.Error())
	case errors.As(err, &exit):
		t.Fatalf("in the namespace: %v\n%s", err, text(out))
	default:
		t.Fatal(err)
	}
	return false
}

// Skip skips the test with the reason, or fails it if
// NODELOCALDNS_REQUIRE_ROOT=1 says that nothing may be skipped.
func Skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("NODELOCALDNS_REQUIRE_ROOT") == "1" {
		t.Fatal(reason + ", and NODELOCALDNS_REQUIRE_ROOT=1 forbids skipping")
	}
	t.Skip(reason)
}

// Run runs a command and returns what it printed, for dumps. A command that
// fails ends the test with its output.
func Run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func prepare(t *testing.T) {
	t.Helper()
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		t.Fatalf("mounting /run: %v", err)
	}
	Run(t, "ip", "link", "set", "lo", "up")
}

func text(out []byte) string { return strings.TrimRight(string(out), "\n") }

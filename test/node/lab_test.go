package node

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// asHelper is set for the process that the tests of the lab kill.
const asHelper = "NODELOCALDNS_TEST_LAB_HELPER"

// TestLabHelper is what runs in that process' lab: it makes what a node makes,
// tells where, and goes on until it is killed or its standard input ends.
func TestLabHelper(t *testing.T) {
	if os.Getenv(asHelper) == "" {
		t.Skip("is for the tests of the lab")
	}
	dir := os.Getenv(inside)
	groups, err := makeGroups(filepath.Base(dir) + "/node/system.slice")
	must(t, err)
	must(t, overlay(filepath.Join(dir, "root"), filepath.Join(dir, "upper"), filepath.Join(dir, "work"), os.Getenv(Layers)))
	cmd := exec.Command("sh", "-c", `for d; do echo 0 >"$d/cgroup.procs"; done; echo; exec sleep 600`, "sh")
	cmd.Args = append(cmd.Args, groups...)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, _ = bufio.NewReader(out).ReadString('\n')
	fmt.Println("LAB", dir)
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// A lab is one in a process of its own.
type lab struct {
	cmd *exec.Cmd
	dir string
	end func()
}

func helper(t *testing.T) *lab {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestLabHelper$", "-test.v")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, inside+"=") }), asHelper+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for s := bufio.NewScanner(out); s.Scan(); {
		if d, ok := strings.CutPrefix(s.Text(), "LAB "); ok {
			return &lab{cmd, d, func() { in.Close() }}
		}
	}
	t.Fatal("the lab did not come up")
	return nil
}

// left is what can be seen of a lab.
func left(t *testing.T, dir string) (found []string) {
	t.Helper()
	roots, err := hierarchies()
	must(t, err)
	for i := range roots {
		roots[i] = filepath.Join(roots[i], filepath.Base(dir))
	}
	for _, name := range append(roots, dir) {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			found = append(found, name)
		}
	}
	return found
}

func TestALabThatEndsOrIsToldToEndLeavesNothing(t *testing.T) {
	cluster(t)
	t.Parallel()
	for _, how := range []syscall.Signal{0, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		l := helper(t)
		if len(left(t, l.dir)) < 2 {
			t.Fatal("there is no lab to be removed")
		}
		want := 0
		if how == 0 {
			l.end()
		} else {
			must(t, l.cmd.Process.Signal(how))
			want = 128 + int(how)
		}
		_ = l.cmd.Wait()
		if got := l.cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("signal %d: exit code %d, want %d", how, got, want)
		}
		if found := left(t, l.dir); len(found) > 0 {
			t.Errorf("signal %d left %q", how, found)
		}
	}
}

func TestALabThatWasKilledIsRemovedByTheNextAndALiveOneIsNot(t *testing.T) {
	cluster(t)
	t.Parallel()
	live, dead := helper(t), helper(t)
	must(t, dead.cmd.Process.Kill())
	_ = dead.cmd.Wait()
	if len(left(t, dead.dir)) == 0 {
		t.Fatal("nothing was left to be removed")
	}
	next := helper(t)
	if found := left(t, dead.dir); len(found) > 0 {
		t.Errorf("the next left %q", found)
	}
	if len(left(t, live.dir)) < 2 {
		t.Errorf("the next removed %s, which was alive", live.dir)
	}
	for _, l := range []*lab{live, next} {
		l.end()
		_ = l.cmd.Wait()
	}
}

package judge

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed boot.sh
var bootScript string

// bootTimeout bounds one boot; it takes about a second, and every unit a few
// milliseconds, but those with tests in them up to half a minute.
const bootTimeout = 3 * time.Minute

// A Start is what systemd started a unit's program with. A unit that did not
// start has none.
type Start struct {
	Args []string // argv[0] first
	Env  []string // NAME=value, sorted as systemd sorted it
}

// Run boots systemd as PID 1 of a container on this machine's files with the
// tree below root laid over them, and starts the units of those names one after
// the other. It returns how their ExecStart was started, and what systemd
// logged.
//
// programs are absolute names: in the tree each becomes a program that writes
// down its arguments and environment, and ends. The units are started as
// Type=oneshot, without Restart and dependencies, and with nothing else
// changed. Without root the test is skipped, see Skip.
func Run(t testing.TB, root string, programs, names []string) (map[string]Start, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root to boot systemd")
	}
	tree, out := t.TempDir(), t.TempDir()
	if err := os.CopyFS(tree, os.DirFS(root)); err != nil {
		t.Fatal(err)
	}
	probe := build(t)
	for _, p := range programs {
		write(t, filepath.Join(tree, p), probe, 0o755)
	}
	const dir = "run/systemd/system"
	var wants strings.Builder
	for i, name := range names {
		// One after the other, so that the last one is over when the end comes.
		after := ""
		if i > 0 {
			after = "After=" + names[i-1] + "\n"
		}
		write(t, filepath.Join(tree, dir, name+".d", "zzzz-judge.conf"), []byte("[Unit]\n"+after+
			"DefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\nRestart=no\nTimeoutStartSec=60\n"+
			"StandardOutput=truncate:/judge/"+name+"\n"), 0o644)
		fmt.Fprintf(&wants, "Wants=%s\nAfter=%s\n", name, name)
	}
	write(t, filepath.Join(tree, dir, "judge.target"), []byte("[Unit]\nDefaultDependencies=no\nWants=judge-end.service\n"), 0o644)
	write(t, filepath.Join(tree, dir, "judge-end.service"), []byte("[Unit]\nDefaultDependencies=no\n"+wants.String()+
		"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'kill -s RTMIN+14 1'\n"), 0o644)

	log := boot(t, tree, out)
	starts := map[string]Start{}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(out, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		size, rest, ok := bytes.Cut(data, []byte("\n"))
		n, err := strconv.Atoi(string(size))
		if !ok || err != nil || n > len(rest) {
			continue // it ended before it wrote
		}
		starts[name] = Start{Args: list(rest[:n]), Env: list(rest[n:])}
	}
	return starts, log
}

func list(data []byte) []string {
	if len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}

var probeBinary = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "judge")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-o", file, "nodelocaldns/test/judge/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the probe: %w\n%s", err, out)
	}
	return os.ReadFile(file)
})

func build(t testing.TB) []byte {
	t.Helper()
	data, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// boot runs the container until systemd powers it off, and returns its log.
func boot(t testing.TB, tree, out string) string {
	t.Helper()
	master, console := terminal(t)
	defer master.Close()
	inGroup, leave := group(t)
	defer leave()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net", "--cgroup",
		"bash", "-c", bootScript, "boot.sh", tree, t.TempDir(), out, console)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	inGroup(cmd)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("booting systemd: %v", err)
	}
	var log bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&log, master) // ends when master is closed
	}()
	err := cmd.Wait()
	master.Close()
	<-read
	// To power off, the kernel ends the container's init by this signal, and
	// unshare ends itself by it (pid_namespaces(7)). What systemd says of it may
	// come too late for the log.
	exit := new(exec.ExitError)
	if ctx.Err() != nil || !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
		t.Fatalf("booting systemd: %v\n%s%s", errors.Join(err, ctx.Err()), said.String(), log.String())
	}
	return strings.ReplaceAll(log.String(), "\r\n", "\n")
}

// terminal makes a terminal for the container's console: systemd logs to no
// plain file there.
func terminal(t testing.TB) (master *os.File, name string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("making a terminal: %v", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatalf("making a terminal: %v", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatalf("making a terminal: %v", err)
	}
	// Kept open here, so that reading goes on while systemd opens and closes it.
	name = "/dev/pts/" + strconv.Itoa(n)
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("making a terminal: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, name
}

// group makes a control group for the container, so that systemd in it, which
// takes the group it is in for the root, makes none beside those of others.
func group(t testing.TB) (enter func(*exec.Cmd), leave func()) {
	t.Helper()
	var dirs []string
	root := "/sys/fs/cgroup"
	name := fmt.Sprintf("nodelocaldns-judge-%d", os.Getpid())
	parents := []string{root}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		parents, _ = filepath.Glob(root + "/*")
	}
	for _, p := range parents {
		if info, err := os.Lstat(p); err != nil || !info.IsDir() {
			continue
		}
		if dir := filepath.Join(p, name); os.Mkdir(dir, 0o755) == nil {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		Skip(t, "needs the right to make control groups")
	}
	// cpuset wants to be told what its members may use.
	for _, d := range dirs {
		for _, key := range []string{"cpuset.cpus", "cpuset.mems"} {
			if data, err := os.ReadFile(filepath.Join(filepath.Dir(d), key)); err == nil {
				_ = os.WriteFile(filepath.Join(d, key), data, 0o644)
			}
		}
	}
	enter = func(cmd *exec.Cmd) {
		script := `for d in $JUDGE_GROUPS; do echo $$ >"$d/cgroup.procs"; done; exec "$@"`
		cmd.Args = append([]string{"bash", "-c", script, "bash"}, cmd.Args...)
		cmd.Path, _ = exec.LookPath("bash")
		cmd.Env = append(os.Environ(), "JUDGE_GROUPS="+strings.Join(dirs, " "))
	}
	leave = func() {
		for _, d := range dirs {
			var below []string
			_ = filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					below = append(below, p)
				}
				return nil
			})
			for i := range below {
				_ = os.Remove(below[len(below)-1-i])
			}
		}
	}
	return enter, leave
}

func write(t testing.TB, file string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

// Skip skips the test with the reason, or fails it if
// NODELOCALDNS_REQUIRE_ROOT=1 says that nothing may be skipped.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("NODELOCALDNS_REQUIRE_ROOT") == "1" {
		t.Fatal(reason + ", and NODELOCALDNS_REQUIRE_ROOT=1 forbids skipping")
	}
	t.Skip(reason)
}

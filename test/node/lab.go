// Package node boots a Kubernetes cluster on this machine for tests: etcd, API
// server, controller manager and scheduler, and as many nodes as a test wants,
// each with a systemd of its own, containerd and the kubelet. A stand-in for
// kube-dns answers at the address of the cluster's DNS service.
//
// All of it lives in a lab: namespaces for processes, mounts and network that
// end with the process that made them, control groups, and one directory.
// Nothing of it can be seen in the network of the machine, and two labs do not
// know of each other. As long as there is a lab, the machine allows more
// instances of inotify(7) than it does by default.
//
// build.sh makes what the nodes consist of; the variable [Layers] says where
// that is. Seen to work on Linux 6.18 with control groups of version 1 and
// systemd 252, on machines with and without systemd as PID 1.
package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Layers is the environment variable with the directory that build.sh printed.
// Without it there is no lab.
const Layers = "NODELOCALDNS_TEST_NODE"

// inside is set, to the lab's directory, for the process in the lab.
const inside = "NODELOCALDNS_TEST_LAB"

// removeTimeout bounds how long control groups of dead processes are waited for.
const removeTimeout = 10 * time.Second

// Main runs f in a new lab and returns what f returned. It does so by running
// this program again, with the same arguments: the first thing that a program
// or TestMain does is to call Main and to exit with its result. What f started
// is killed when it returns; when the program is killed; when it is told to
// end by SIGINT, SIGTERM or SIGHUP. What it leaves on the disk is removed then,
// or by the next Main if the program was killed by SIGKILL.
//
// Where Layers is not set, f runs as it is, and NewCluster fails.
func Main(f func() int) int {
	if os.Getenv(inside) != "" {
		if err := enter(); err != nil {
			return complain(fmt.Errorf("entering the lab: %w", err))
		}
		return f()
	}
	layers := os.Getenv(Layers)
	if layers == "" {
		return f()
	}
	if os.Geteuid() != 0 {
		return complain(errors.New("making a lab: needs root"))
	}
	all := filepath.Join(filepath.Dir(layers), "run")
	dir, err := newLab(all)
	if err != nil {
		return complain(fmt.Errorf("making a lab: %w", err))
	}
	code, err := keep(dir)
	if err := errors.Join(err, removeLab(dir), leave(all)); err != nil {
		return complain(err)
	}
	return code
}

// MainBuilt is Main for tests that need programs of ours: build builds them into a
// directory, once and outside of the lab, which has no network. The environment variable
// named env tells f, in the lab, where that is. Where Layers is not set, nothing is
// built.
func MainBuilt(env string, build func(dir string) error, f func() int) int {
	if os.Getenv(Layers) != "" && os.Getenv(env) == "" {
		dir, err := os.MkdirTemp("", "nodelocaldns-built")
		if err == nil {
			defer os.RemoveAll(dir)
			err = errors.Join(build(dir), os.Setenv(env, dir))
		}
		if err != nil {
			return complain(err)
		}
	}
	return Main(f)
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "node: error:", err)
	return 1
}

// newLab makes a lab's directory below dir and locks it, for as long as this
// process lives. It removes the labs of those that are dead.
func newLab(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	if _, err := lock(dir, 0); err != nil { // until the end: others wait for us to have ours locked
		return "", err
	}
	defer unlock(dir)
	labs, err := labsIn(dir)
	if err != nil {
		return "", err
	}
	for _, stale := range labs {
		if taken, err := lock(stale, unix.LOCK_NB); err != nil || !taken {
			continue
		}
		if err := removeLab(stale); err != nil {
			return "", err
		}
	}
	if err := allowInotify(dir); err != nil {
		return "", err
	}
	lab, err := os.MkdirTemp(dir, "lab")
	if err != nil {
		return "", err
	}
	_, err = lock(lab, unix.LOCK_NB)
	return lab, err
}

// labsIn are the directories of all labs, of the dead too.
func labsIn(dir string) ([]string, error) { return filepath.Glob(filepath.Join(dir, "lab*")) }

// leave gives back what the labs below dir have in common, if this was the last.
func leave(dir string) error {
	if _, err := lock(dir, 0); err != nil {
		return err
	}
	defer unlock(dir)
	labs, err := labsIn(dir)
	if err != nil || len(labs) > 0 {
		return err
	}
	return forbidInotify(dir)
}

// A node has about 16 instances of inotify(7). All nodes have them from the
// machine's root, who has 128 by default: enough for seven. wanted is for many.
const (
	inotify = "/proc/sys/fs/inotify/max_user_instances"
	wanted  = 1024
)

// allowInotify lets there be more instances, and keeps in dir how many there
// were allowed before. Where that is not to be changed, it is left at that.
func allowInotify(dir string) error {
	was, err := os.ReadFile(inotify)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(was))); err != nil || n >= wanted {
		return err
	}
	kept := filepath.Join(dir, filepath.Base(inotify))
	if err := os.WriteFile(kept, was, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(inotify, []byte(strconv.Itoa(wanted)), 0); errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return os.Remove(kept)
	} else if err != nil {
		return err
	}
	return nil
}

// forbidInotify is as before allowInotify.
func forbidInotify(dir string) error {
	kept := filepath.Join(dir, filepath.Base(inotify))
	was, err := os.ReadFile(kept)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(inotify, was, 0), os.Remove(kept))
}

// locks are the directories that this process has locked. They close when it
// ends, and their children do not have them.
var locks = map[string]*os.File{}

func lock(dir string, flags int) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|flags)
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("locking %s: %w", dir, err)
	}
	locks[dir] = f
	return true, nil
}

func unlock(dir string) {
	locks[dir].Close()
	delete(locks, dir)
}

// keep runs this program again in namespaces of its own until it ends or a
// signal says so, and returns its exit code.
func keep(dir string) (int, error) {
	signals := make(chan os.Signal, 1)
	// To the end of this process: a second Ctrl-C does not cut the removal short.
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	// Pdeathsig goes by the thread that started the process, not by the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("making the lab's namespaces: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case s := <-signals:
		// The kernel ends all other processes of a process namespace before
		// its first one counts as ended.
		_ = cmd.Process.Kill()
		<-ended
		return 128 + int(s.(syscall.Signal)), nil
	}
	if cmd.ProcessState.Exited() {
		return cmd.ProcessState.ExitCode(), nil
	}
	return 1, fmt.Errorf("the lab: %w", err)
}

// removeLab removes what is left of a lab whose processes have ended.
func removeLab(dir string) error {
	if err := removeGroups(filepath.Base(dir), removeTimeout); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a lab: %w", err)
	}
	return nil
}

// enter makes the namespaces that this process begins in a lab.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		// Without an address of its own a bridge has the lowest of its ports',
		// and when that one goes, all who had it in their tables are cut off.
		{"link", "add", bridge, "address", "02:00:00:00:00:01", "type", "bridge"},
		{"addr", "add", labAddr + "/24", "dev", bridge},
		{"addr", "add", KubeDNS + "/32", "dev", bridge},
		{"link", "set", bridge, "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %q: %w: %s", args, err, out)
	}
	return nil
}

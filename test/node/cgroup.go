package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the directories in which control groups are made: one where
// there is only version 2, else one for each mounted controller of version 1,
// and that of version 2 beside them.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		// Links are other names of controllers that are mounted together.
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return dirs, nil
}

// makeGroups makes the control group of a name, which may have a parent, in
// every hierarchy, and returns the directories. systemd in a container takes
// the group that it starts in for the root of all: without one of its own, two
// nodes would share their units' groups.
func makeGroups(name string) ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, root := range roots {
		dir := root
		for _, part := range strings.Split(name, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, fmt.Errorf("making a control group: %w", err)
			}
			inherit(parent, dir)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// inherit passes on what a new group does not have by itself: in version 1 the
// processors that members of cpuset may use, in version 2 the controllers.
// What cannot be passed on, the kubelet will tell of.
func inherit(parent, dir string) {
	for _, key := range []string{"cpuset.cpus", "cpuset.mems"} {
		if data, err := os.ReadFile(filepath.Join(parent, key)); err == nil {
			_ = os.WriteFile(filepath.Join(dir, key), data, 0)
		}
	}
	_ = os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0)
	if data, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers")); err == nil {
		for _, c := range strings.Fields(string(data)) {
			_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+c), 0)
		}
	}
}

// stopGroup stops the processes of a control group, and of all below it, that are in
// the process namespace of leader, but leader itself.
func stopGroup(name string, leader int) {
	namespace := func(pid int) string {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		return link
	}
	roots, err := hierarchies()
	if err != nil {
		return
	}
	theirs := namespace(leader)
	_ = filepath.WalkDir(filepath.Join(roots[0], name), func(file string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Base(file) != "cgroup.procs" {
			return nil // it has gone, and its processes with it
		}
		pids, _ := os.ReadFile(file)
		for _, word := range strings.Fields(string(pids)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 && pid != leader && namespace(pid) == theirs {
				_ = unix.Kill(pid, unix.SIGSTOP)
			}
		}
		return nil
	})
}

// removeGroups removes the control group of a name and all below it from every
// hierarchy. Its processes have been killed: those that are not gone yet are
// waited for.
func removeGroups(name string, timeout time.Duration) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	end := time.Now().Add(timeout)
	for _, root := range roots {
		for {
			err := removeTree(filepath.Join(root, name))
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
				return fmt.Errorf("removing a control group: %w", err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// removeTree removes directories, the deepest first. The files in a control
// group go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

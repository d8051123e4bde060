package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Running returns a Node.Running that looks through a proc file system, such
// as /proc: the kubelet of a unit is the process in the control group of that
// unit whose command line names a kubelet. Processes in other process
// namespaces are those of other nodes, in containers on this one.
//
// Without the rights to see others' namespaces none is found.
func Running(proc string) func(unit string) (*Process, error) {
	return func(unit string) (*Process, error) {
		own, err := os.Readlink(filepath.Join(proc, "self/ns/pid"))
		if err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(proc)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			p, err := kubeletProcess(filepath.Join(proc, e.Name()), unit, own)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // it ended while we looked
			} else if err != nil {
				return nil, fmt.Errorf("looking at process %d: %w", pid, err)
			}
			if p != nil {
				p.PID = pid
				return p, nil
			}
		}
		return nil, nil
	}
}

func kubeletProcess(dir, unit, namespace string) (*Process, error) {
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return nil, err
	}
	in := false
	for line := range strings.Lines(string(groups)) {
		in = in || strings.HasSuffix(strings.TrimSpace(line), "/"+unit)
	}
	if !in {
		return nil, nil
	}
	if ns, err := os.Readlink(filepath.Join(dir, "ns/pid")); err != nil || ns != namespace {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil, err
	}
	var argv []string
	for word := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte{0}), []byte{0}) {
		argv = append(argv, string(word))
	}
	// A wrapper is replaced by what it starts; a kubelet that is one with k3s
	// names none.
	if len(argv) == 0 || filepath.Base(argv[0]) != "kubelet" && !(len(argv) > 1 && filepath.Base(argv[0]) == "hyperkube" && argv[1] == "kubelet") {
		return nil, nil
	}
	return &Process{Argv: argv}, nil
}

package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A process is one that runs on the node.
type process struct {
	pid  int
	comm string   // its name, at most 15 bytes
	argv []string // empty for a thread of the kernel
}

func (p process) String() string { return fmt.Sprintf("%s (pid %d)", p.comm, p.pid) }

// is says whether the process runs the program name: by the first word of its
// command line, because comm is cut to 15 bytes.
func (p process) is(name string) bool {
	return p.comm == name || len(p.argv) > 0 && path.Base(p.argv[0]) == name
}

// has says whether word is one of its arguments.
func (p process) has(word string) bool { return len(p.argv) > 1 && slices.Contains(p.argv[1:], word) }

// processList is every process that could be read.
func (e *Env) processList() ([]process, error) {
	return e.processes.get(func() ([]process, error) {
		entries, err := os.ReadDir(e.proc(""))
		if err != nil {
			return nil, err
		}
		var all []process
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err != nil {
				continue
			}
			comm, err := os.ReadFile(e.proc(entry.Name() + "/comm"))
			if err != nil {
				continue // it ended while we looked
			}
			p := process{pid: pid, comm: strings.TrimSpace(string(comm))}
			if line, err := os.ReadFile(e.proc(entry.Name() + "/cmdline")); err == nil && len(line) > 0 {
				for word := range bytes.SplitSeq(bytes.TrimSuffix(line, []byte{0}), []byte{0}) {
					p.argv = append(p.argv, string(word))
				}
			}
			all = append(all, p)
		}
		slices.SortFunc(all, func(a, b process) int { return a.pid - b.pid })
		return all, nil
	})
}

// running are the processes of a program in the node's own network: what runs
// in the network of a pod, or of a node inside this one, is not of this node.
// The error wraps fs.ErrPermission where there are such processes and it cannot
// be seen which are.
func (e *Env) running(name string) ([]process, error) {
	return e.onNode(func(p process) bool { return p.is(name) })
}

// onNode is running for processes that are wanted for another reason.
func (e *Env) onNode(want func(process) bool) ([]process, error) {
	all, err := e.processList()
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink(e.proc("self/ns/net"))
	if err != nil {
		return nil, err
	}
	var out []process
	var denied error
	for _, p := range all {
		if !want(p) {
			continue
		}
		switch ns, err := os.Readlink(e.proc(strconv.Itoa(p.pid) + "/ns/net")); {
		case errors.Is(err, fs.ErrPermission):
			denied = err
		case err == nil && ns == own:
			out = append(out, p)
		}
	}
	if len(out) == 0 && denied != nil {
		return nil, denied
	}
	return out, nil
}

// Ours says whether a process of this program runs with the given command, such
// as serve or guard. Without root, one in the network of a pod counts too.
func (e *Env) Ours(command string) bool {
	all, err := e.onNode(func(p process) bool { return p.is("nodelocaldns") && p.has(command) })
	return len(all) > 0 || errors.Is(err, fs.ErrPermission)
}

// Package judge asks systemd itself how it reads units, so that tests compare
// with what counts. Nothing of it needs a systemd that runs this machine.
package judge

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A Reading is a unit as systemd read it.
type Reading struct {
	State            string // loaded, masked, not-found, bad-setting or error
	Fragment         string // a name inside the tree
	DropIns          []string
	Environment      []string // NAME=value
	EnvironmentFiles []string // with the prefix "-" where it is optional
	PassEnvironment  []string
	UnsetEnvironment []string
	Commands         map[string][][]string // ExecStart and so on → argv of each command
	Said             []string              // what it logged about the unit and its files
}

var version = sync.OnceValues(func() (int, error) {
	out, err := exec.Command("systemd-analyze", "--version").Output()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(regexp.MustCompile(`[0-9]+`).FindString(string(out)))
})

// Version is the version of the systemd that is asked.
func Version(t testing.TB) int {
	t.Helper()
	tool(t)
	n, err := version()
	if err != nil {
		t.Fatalf("asking systemd-analyze for its version: %v", err)
	}
	return n
}

// tool is systemd-analyze. Without it the test is skipped, see Skip.
func tool(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		Skip(t, "needs systemd-analyze of Debian's package systemd")
	}
	return path
}

// Read returns how systemd reads the units of those names in the file tree
// below root. All are read by one process, and a unit that is not in the
// result was never mentioned; an alias has the reading of what it stands for.
// It needs no rights.
//
// Absolute links are followed on this machine, except those of unit files and
// those to /dev/null: give root with them only if they lead to the same.
func Read(t testing.TB, root string, names ...string) map[string]Reading {
	t.Helper()
	if Version(t) < 250 {
		Skip(t, "needs systemd 250: older ones print arguments so that they cannot be told apart")
	}
	args := append([]string{"verify", "--root=" + root, "--man=no", "--"}, names...)
	cmd := exec.Command(tool(t), args...)
	// The directory matters: systemd tests relative links to drop-in
	// directories from where it runs, and PID 1 runs in /.
	cmd.Dir = "/"
	cmd.Env = []string{"SYSTEMD_LOG_TARGET=console", "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_COLOR=0", "LC_ALL=C.UTF-8", "PATH=" + os.Getenv("PATH")}
	var dump, log bytes.Buffer // apart: they are buffered differently
	cmd.Stdout, cmd.Stderr = &dump, &log
	err := cmd.Run()
	if _, failed := err.(*exec.ExitError); err != nil && !failed { //nolint:errorlint // Output never wraps it
		t.Fatalf("running systemd-analyze: %v", err)
	}
	if bytes.Contains(log.Bytes(), []byte("Assertion '")) {
		t.Fatalf("systemd-analyze failed:\n%s", &log)
	}
	return parse(root, log.String()+dump.String(), names)
}

var failed = regexp.MustCompile(`^(?:Unit )?(\S+?\.service)(?::)? (Failed to load configuration: .*|is masked\.|not found\.|has a bad unit file setting\.)$`)

// parse reads the log and the dumps of all units.
func parse(root, out string, names []string) map[string]Reading {
	readings, aliases := map[string]Reading{}, map[string]string{}
	wanted := map[string]bool{}
	for _, n := range names {
		wanted[n] = true
	}
	inside := func(file string) string {
		return "/" + strings.TrimLeft(strings.TrimPrefix(file, root), "/")
	}
	unit, key := "", ""
	for line := range strings.SplitSeq(out, "\n") {
		if m := failed.FindStringSubmatch(line); m != nil && wanted[m[1]] {
			r := readings[m[1]]
			switch {
			case strings.HasPrefix(m[2], "is masked"):
				r.State = "masked"
			case strings.HasPrefix(m[2], "not found"), strings.HasSuffix(m[2], "No such file or directory"):
				r.State = "not-found"
			case strings.HasPrefix(m[2], "has a bad"), strings.HasSuffix(m[2], "Exec format error"):
				r.State = "bad-setting"
			default:
				r.State = "error"
			}
			readings[m[1]] = r
		}
		line = strings.Replace(line, "\t\u2192 ", "\t-> ", 1) // since 254
		if name, ok := strings.CutPrefix(line, "\t-> Unit "); ok {
			unit, key = strings.TrimSuffix(name, ":"), ""
			readings[unit] = Reading{Commands: map[string][][]string{}, Said: readings[unit].Said}
			continue
		}
		if !strings.HasPrefix(line, "\t\t") {
			for n := range wanted {
				if strings.HasPrefix(line, n+": ") || strings.Contains(line, "/"+n+".d/") || strings.Contains(line, "/"+n+":") {
					r := readings[n]
					r.Said = append(r.Said, strings.ReplaceAll(line, root, ""))
					readings[n] = r
				}
			}
			unit = ""
			continue
		}
		if unit == "" {
			continue
		}
		r := readings[unit]
		name, value, _ := strings.Cut(strings.TrimLeft(line, "\t"), ": ")
		if exec, ok := strings.CutPrefix(name, "-> "); ok {
			key = strings.TrimSuffix(exec, ":")
		}
		switch name {
		case "Alias":
			aliases[value] = unit
		case "Unit Load State":
			r.State = value
		case "Fragment Path":
			r.Fragment = inside(value)
		case "DropIn Path":
			r.DropIns = append(r.DropIns, inside(value))
		case "Environment":
			r.Environment = append(r.Environment, value)
		case "EnvironmentFile":
			r.EnvironmentFiles = append(r.EnvironmentFiles, value)
		case "PassEnvironment":
			r.PassEnvironment = append(r.PassEnvironment, value)
		case "UnsetEnvironment":
			r.UnsetEnvironment = append(r.UnsetEnvironment, value)
		case "Command Line":
			r.Commands[key] = append(r.Commands[key], Words(value))
		}
		readings[unit] = r
	}
	for alias, name := range aliases {
		readings[alias] = readings[name]
	}
	return readings
}

// Words takes a command line apart as systemd prints it in dumps: words are
// separated by one space, and those that need it are in double quotes, with C
// escapes.
func Words(line string) []string {
	var words []string
	for i := 0; i < len(line); {
		var b []byte
		if line[i] != '"' {
			end := strings.IndexByte(line[i:], ' ')
			if end < 0 {
				end = len(line) - i
			}
			words = append(words, line[i:i+end])
			i += end + 1
			continue
		}
		for i++; i < len(line) && line[i] != '"'; i++ {
			if line[i] != '\\' {
				b = append(b, line[i])
				continue
			}
			i++
			if at := strings.IndexByte("abfnrtv", line[i]); at >= 0 {
				b = append(b, "\a\b\f\n\r\t\v"[at])
			} else if line[i] >= '0' && line[i] <= '3' {
				b = append(b, (line[i]-'0')<<6|(line[i+1]-'0')<<3|(line[i+2]-'0'))
				i += 2
			} else {
				b = append(b, line[i])
			}
		}
		words = append(words, string(b))
		i += 2
	}
	return words
}

// String is the reading in a form that diffs well.
func (r Reading) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "state %s\nfragment %s\n", r.State, r.Fragment)
	for _, d := range r.DropIns {
		fmt.Fprintf(&b, "drop-in %s\n", d)
	}
	for _, e := range r.Environment {
		fmt.Fprintf(&b, "environment %q\n", e)
	}
	for key, list := range r.Commands {
		for _, argv := range list {
			fmt.Fprintf(&b, "%s %q\n", key, argv)
		}
	}
	return b.String()
}

package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"nodelocaldns/host/fsys"
)

// Analyze is the Verifier for a tree: it has systemd-analyze read the unit
// there. No systemd needs to run, and nobody needs to be root.
type Analyze struct {
	Tree    fsys.Tree
	Program string // systemd-analyze; empty: found in PATH
}

// ErrNoAnalyze says that there is no systemd-analyze to ask.
var ErrNoAnalyze = errors.New("no systemd-analyze")

// Reload does nothing: each question reads the files again.
func (a Analyze) Reload(context.Context) error { return nil }

// Accepts is Verifier. A unit may be loaded and be refused later for what the
// tree lacks, such as other units or the kubelet itself: that is not about us.
func (a Analyze) Accepts(ctx context.Context, unit, file string, argv []string) error {
	name := a.Program
	if name == "" {
		name = "systemd-analyze"
	}
	program, err := exec.LookPath(name)
	if err != nil {
		return ErrNoAnalyze
	}
	root, err := filepath.Abs(a.Tree.String())
	if err != nil {
		return err
	}
	args := []string{"verify", "--man=no"}
	if root != "/" {
		args = append(args, "--root="+root)
	}
	cmd := exec.CommandContext(ctx, program, append(args, unit)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_LOG_TARGET=console", "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_COLORS=0", "LC_ALL=C")
	// Relative links are tested from where it runs, and PID 1 runs in /.
	cmd.Dir = "/"
	// Apart, or what it logs lands in the middle of the lines that it dumps.
	var dump, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &dump, &log
	err = cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return err
	}
	return judge(append(log.Bytes(), dump.Bytes()...), unit, filepath.Join(root, file), argv)
}

// judge reads what systemd-analyze has dumped.
func judge(out []byte, unit, file string, argv []string) error {
	var loaded, dropIn, refused bool
	var lines []string
	for line := range bytes.Lines(out) {
		text := strings.TrimSpace(string(line))
		switch {
		case text == "-> Unit "+unit+":":
			loaded = true
		case text == "DropIn Path: "+file, text == "Fragment Path: "+file:
			dropIn = true
		case strings.HasPrefix(text, "Command Line: "):
			lines = append(lines, strings.TrimPrefix(text, "Command Line: "))
		case strings.Contains(text, "has a bad unit file setting"):
			refused = true
		case strings.HasPrefix(text, file+":"):
			return errors.New(strings.TrimPrefix(text, file+":"))
		}
	}
	switch {
	case refused:
		return errors.New("it has a bad unit file setting")
	case !loaded:
		return fmt.Errorf("it cannot read %s", unit)
	case !dropIn:
		return errors.New("it does not read the file")
	}
	for _, word := range argv {
		if !strings.HasPrefix(word, "--"+clusterDNS+"=") {
			continue
		}
		for _, l := range lines {
			if strings.Contains(l+" ", " "+word+" ") {
				return nil
			}
		}
		return fmt.Errorf("%s is not on the command line it would start", word)
	}
	return nil
}

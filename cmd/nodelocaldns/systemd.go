package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"nodelocaldns/host/kubelet"
)

// booted says whether systemd is this machine's init, as sd_booted(3) does.
func booted() bool {
	info, err := os.Stat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// manager is the kubelet.Verifier of a running node: systemd-analyze reads the
// files, and the systemd that will start the kubelet must have read them too.
type manager struct{ files kubelet.Analyze }

// Reload makes systemd read its files again. No unit is restarted by that.
func (manager) Reload(ctx context.Context) error {
	_, err := systemctl(ctx, "daemon-reload")
	return err
}

// Accepts is kubelet.Verifier.
func (m manager) Accepts(ctx context.Context, unit, file string, argv []string) error {
	if err := m.files.Accepts(ctx, unit, file, argv); err != nil && !errors.Is(err, kubelet.ErrNoAnalyze) {
		return err
	}
	out, err := systemctl(ctx, "show", "--property=LoadState,NeedDaemonReload,FragmentPath,DropInPaths,ExecStart", "--", unit)
	if err != nil {
		return err
	}
	return accepted(out, file, argv)
}

// accepted reads what systemctl show says of a unit.
func accepted(out, file string, argv []string) error {
	has := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		has[key] += value + " "
	}
	var flag string
	for _, word := range argv {
		if strings.HasPrefix(word, "--cluster-dns=") {
			flag = word
		}
	}
	switch files := has["FragmentPath"] + has["DropInPaths"]; {
	case has["LoadState"] != "loaded ":
		return fmt.Errorf("it is %s", strings.TrimSpace(has["LoadState"]))
	case has["NeedDaemonReload"] != "no ":
		return errors.New("files of it have changed since they were read")
	case !strings.Contains(" "+files, " "+file+" "):
		return errors.New("it does not read the file")
	case flag != "" && !strings.Contains(has["ExecStart"], " "+flag+" "):
		return fmt.Errorf("%s is not on the command line it would start", flag)
	}
	return nil
}

func systemctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "LC_ALL=C")
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = errors.New(oneLine(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("systemctl %s: %w", args[0], err)
	}
	return string(out), nil
}

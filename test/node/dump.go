package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// A Dump is the state of a running node, as lines that each say all of one
// thing: a file, a rule, a device, an address, a route, a sysctl, a unit.
type Dump []string

// Diff says what is in one of two dumps alone, "-" for the first and "+" for
// the second; it is empty if they are equal.
func Diff(before, after Dump) string {
	var b strings.Builder
	for _, line := range missing(before, after) {
		b.WriteString("- " + line + "\n")
	}
	for _, line := range missing(after, before) {
		b.WriteString("+ " + line + "\n")
	}
	return b.String()
}

// missing are the lines of a that b has fewer of.
func missing(a, b Dump) []string {
	count := map[string]int{}
	for _, line := range b {
		count[line]++
	}
	var lines []string
	for _, line := range a {
		if count[line]--; count[line] < 0 {
			lines = append(lines, line)
		}
	}
	return lines
}

// Files and directories that change by themselves while pods come and go.
var churn = regexp.MustCompile(`^/(proc|sys|dev|run|tmp|var/log|var/tmp|var/cache|root/\.kube/cache` +
	`|var/lib/(containerd|cni|systemd/(random-seed|timesync|linger|timers|catalog|coredump)|kubelet/(pods|plugins|plugins_registry|pod-resources|device-plugins|checkpoints|pki|actuated_pods_state|allocated_pods_state|cpu_manager_state|dra_manager_state|memory_manager_state|\.lock)))($|/)`)

// Dump looks at the node. Left out are logs, what pods, the container runtime
// and the kubelet keep for themselves, times, counters, and the empty built-in
// tables that iptables leaves wherever it was asked to look.
func (n *Node) Dump(ctx context.Context) (Dump, error) {
	d, err := files(n.Root)
	if err != nil {
		return nil, fmt.Errorf("dumping node %s: %w", n.Name, err)
	}
	for _, look := range []struct {
		title   string
		leave   *regexp.Regexp
		command string
	}{
		{"file", nil, `find /run/systemd/system /run/systemd/system.control /run/systemd/transient /run/sysusers.d /run/nodelocaldns \
			-printf '%p %M %u:%g %l\n' 2>/dev/null || true`},
		{"device", veth, "ip -d -o link"},
		{"address", veth, "ip -o addr"},
		{"route", veth, "ip route show table all; ip -6 route show table all"},
		{"rule", nil, "ip rule; ip -6 rule"},
		{"sysctl", counters, "sysctl -a -r '^net\\.(netfilter\\.nf_|nf_)conntrack' 2>/dev/null; sysctl net.ipv4.ip_forward net.ipv4.conf.all.route_localnet"},
		{"unit file", nil, "systemctl list-unit-files --no-legend --plain"},
		{"unit", transient, "systemctl list-units --all --no-legend --plain | awk '{ print $1, $2, $3, $4 }'"},
		{"kubelet", nil, "systemctl show kubelet -p FragmentPath,DropInPaths,Environment,EnvironmentFiles,NeedDaemonReload; systemctl show kubelet -p ExecStart,ExecStartPre | sed 's/; start_time=.*//'; xargs -0n1 </proc/$(systemctl show kubelet -p MainPID --value)/cmdline"},
	} {
		out, err := n.Output(ctx, "sh", "-c", look.command)
		if err != nil {
			return nil, fmt.Errorf("dumping node %s: %w", n.Name, err)
		}
		for line := range strings.Lines(out) {
			line = strings.Join(strings.Fields(ofBoot.ReplaceAllString(line, "")), " ")
			if line != "" && (look.leave == nil || !look.leave.MatchString(line)) {
				d = append(d, look.title+" "+line)
			}
		}
	}
	for _, save := range []string{"iptables", "ip6tables"} {
		out, err := n.Output(ctx, save+"-save")
		if err != nil {
			return nil, fmt.Errorf("dumping node %s: %w", n.Name, err)
		}
		d = append(d, rules(save, out)...)
	}
	slices.Sort(d)
	return d, nil
}

var (
	veth      = regexp.MustCompile(`\b(veth[0-9a-f]+|cni0|if\d+)\b`) // ifN is one that went while we looked
	counters  = regexp.MustCompile(`^net\.netfilter\.nf_conntrack_count `)
	ofBoot    = regexp.MustCompile(`^\d+: |@if\d+|link-netnsid \d+ |\w+_timer +[\d.]+ `) // numbers that the kernel gives out
	transient = regexp.MustCompile(`^(run-|session-|user-|user@|kubepods|cri-containerd|var-lib-kubelet-pods|var-lib-containerd|sys-(devices|subsystem)-.*(veth|cni0)|systemd-tmpfiles-clean)`)
)

// rules are those of iptables-save, with the chains that are not built in.
func rules(title, save string) (lines []string) {
	table := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, "-"), strings.HasPrefix(line, ":") && strings.Contains(line, " - "):
			rule, _, _ := strings.Cut(line, " [") // counters of a chain
			lines = append(lines, title+" "+table+" "+rule)
		}
	}
	return lines
}

// files are all of a tree but churn: mode, owner, and what they hold.
func files(root string) (lines []string, err error) {
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked, as it may
		} else if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		if churn.MatchString(name) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var holds string
		switch info.Mode().Type() {
		case 0:
			holds, err = sum(path)
		case fs.ModeSymlink:
			holds, err = os.Readlink(path)
		}
		owner := info.Sys().(*syscall.Stat_t)
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("file %s %s %d:%d %s", name, info.Mode(), owner.Uid, owner.Gid, holds)))
		return err
	})
	return lines, err
}

func sum(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/sysctl"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// kubeProxy says which of our sysctls it sets at each of its starts
// (pkg/proxy/conntrack/sysctls.go), and both sides of the one that we do not
// fight over.
func (e *Env) kubeProxy(context.Context) []Result {
	if len(e.Want.Sysctls) == 0 {
		return nil
	}
	all, err := e.running("kube-proxy")
	if err != nil {
		return unseen(err)
	}
	if len(all) == 0 {
		return nil
	}
	c, err := e.proxyConntrack(all[0])
	if err != nil {
		return unseen(err)
	}
	var out []Result
	if c.perCore != 0 && e.wants(sysctl.Max) {
		out = append(out, info("guard raises it again within a minute; conntrack.maxPerCore: 0 in kube-proxy's configuration ends that",
			"kube-proxy sets nf_conntrack_max (%d a core) at each of its starts", c.perCore)...)
	}
	if c.closeWait != 0 && e.wants(sysctl.CloseWait) {
		out = append(out, info("long keeps half-closed connections behind SNAT alive (kubernetes/kubernetes#32551), short frees the table: decide with conntrack.tcpCloseWaitTimeout: 0s there, or without the key in sysctls here",
			"kube-proxy sets tcp_timeout_close_wait (%s) at each of its starts, and guard does not set it again", c.closeWait)...)
	}
	return orOK(out, "it leaves our sysctls alone")
}

func (e *Env) wants(key string) bool {
	return slices.ContainsFunc(e.Want.Sysctls, func(p sysctl.Param) bool { return p.Key == key })
}

// A proxyConntrack is what a kube-proxy does to conntrack. 0 leaves it alone.
type proxyConntrack struct {
	perCore   int
	closeWait time.Duration
}

// proxyConntrack reads it from the process's configuration file, else from its
// flags: with a file the flags do not count. The file is in its container.
func (e *Env) proxyConntrack(p process) (proxyConntrack, error) {
	c := proxyConntrack{perCore: 32768, closeWait: time.Hour} // its defaults
	if file := p.flag("config"); file != "" {
		root := fsys.Tree(e.proc(strconv.Itoa(p.pid) + "/root"))
		text, err := root.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return c, nil
		} else if err != nil {
			return c, err
		}
		var conf struct {
			Conntrack struct {
				MaxPerCore *int    `yaml:"maxPerCore"`
				CloseWait  *string `yaml:"tcpCloseWaitTimeout"`
			} `yaml:"conntrack"`
		}
		if err := yaml.Unmarshal(text, &conf); err != nil {
			return c, fmt.Errorf("reading the configuration of kube-proxy: %w", err)
		}
		if conf.Conntrack.MaxPerCore != nil {
			c.perCore = *conf.Conntrack.MaxPerCore
		}
		if conf.Conntrack.CloseWait != nil {
			if d, err := time.ParseDuration(*conf.Conntrack.CloseWait); err == nil {
				c.closeWait = d
			}
		}
		return c, nil
	}
	if n, err := strconv.Atoi(p.flag("conntrack-max-per-core")); err == nil {
		c.perCore = n
	}
	if d, err := time.ParseDuration(p.flag("conntrack-tcp-timeout-close-wait")); err == nil {
		c.closeWait = d
	}
	return c, nil
}

// flag is the value of the last --name on the command line, or "".
func (p process) flag(name string) string {
	got := ""
	for i, w := range p.argv {
		if v, ok := strings.CutPrefix(w, "--"+name+"="); ok {
			got = v
		} else if w == "--"+name && i+1 < len(p.argv) {
			got = p.argv[i+1]
		}
	}
	return got
}

// sysctlDirs are where systemd-sysctl and procps look, the strongest first
// (sysctl.d(5)): of two files with one name the first counts, and of two lines
// with one key that in the file whose name sorts last.
var sysctlDirs = []string{"/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"}

// sysctlFiles are those that set one of our keys to what we do not want.
func (e *Env) sysctlFiles(context.Context) []Result {
	if len(e.Want.Sysctls) == 0 {
		return nil
	}
	files := map[string]string{}
	for _, dir := range sysctlDirs {
		entries, err := e.Tree.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return unseen(err)
		}
		for _, f := range entries {
			if _, have := files[f.Name()]; !have && strings.HasSuffix(f.Name(), ".conf") {
				files[f.Name()] = path.Join(dir, f.Name())
			}
		}
	}
	var order []string
	for _, name := range sorted(files) {
		order = append(order, files[name])
	}
	order = append(order, "/etc/sysctl.conf") // procps reads it last
	type line struct{ file, value string }
	last := map[string]line{}
	for _, file := range order {
		text, err := e.Tree.ReadFile(file)
		if errors.Is(err, fs.ErrPermission) {
			return unseen(err)
		} else if err != nil {
			continue // missing, or a link to /dev/null that masks
		}
		for l := range strings.Lines(string(text)) {
			key, v, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(l), "-"), "=")
			if found && !strings.HasPrefix(key, "#") && !strings.HasPrefix(key, ";") {
				last[strings.ReplaceAll(strings.TrimSpace(key), "/", ".")] = line{file, strings.TrimSpace(v)}
			}
		}
	}
	var out []Result
	for _, p := range e.Want.Sysctls {
		l, set := last[p.Key]
		n, err := strconv.ParseUint(l.value, 10, 64)
		if !set || err != nil || p.Fits(n) {
			continue
		}
		again := "guard sets it again within a minute"
		if p.Key == sysctl.CloseWait {
			again = "guard does not set it again"
		}
		out = append(out, warning(fmt.Sprintf("take the line out there, or the key out of sysctls here; %s", again),
			"%s sets %s = %d at boot, where we want %s %d", l.file, p.Key, n, words[p.Policy], p.Value)...)
	}
	return orOK(out, "no file sets ours otherwise")
}

var words = map[sysctl.Policy]string{sysctl.Floor: "at least", sysctl.Ceiling: "at most", sysctl.Exact: "exactly"}

// nearlyFull is the share of the table, in percent, from which a burst may fill
// it.
const nearlyFull = 80

// conntrack is the table that people come to us for: when it is full, packets
// are dropped, and two DNS packets of one pod that are entered at once cost one
// of them.
func (e *Env) conntrack(context.Context) []Result {
	count, cerr := strconv.ParseUint(e.sys("net.netfilter.nf_conntrack_count"), 10, 64)
	most, merr := strconv.ParseUint(e.sys("net.netfilter.nf_conntrack_max"), 10, 64)
	if cerr != nil || merr != nil {
		return ok("not in use on this node")
	}
	share := uint64(0)
	if most > 0 {
		share = count * 100 / most
	}
	table := fmt.Sprintf("%d of %d entries (%d %%)", count, most, share)
	stat := e.conntrackStat()
	lost := stat["drop"] + stat["early_drop"]
	full := fmt.Sprintf("; since boot %d packets dropped, %d entries put out early, %d insertions failed", stat["drop"], stat["early_drop"], stat["insert_failed"])
	if stat == nil {
		full = ""
	}
	const bigger = "raise net.netfilter.nf_conntrack_max (sysctls in our configuration), and see who makes them: conntrack -L | awk '{print $1}' | sort | uniq -c"
	switch {
	case share >= nearlyFull:
		return warning(bigger, "%s%s: the table is nearly full", table, full)
	case lost > 0:
		return warning(bigger, "%s%s: the table was full, or something refused to be tracked", table, full)
	case stat["insert_failed"] > 0:
		return info("most are two packets at once for one new entry, as the A and AAAA queries of one lookup: one is lost, and the pod waits 5 s; what pods ask us is not tracked",
			"%s%s", table, full)
	}
	return ok("%s%s", table, full)
}

// conntrackStat are the sums over all CPUs of /proc/net/stat/nf_conntrack: a
// line of names, then one of hexadecimal numbers a CPU. Nil where there is none.
func (e *Env) conntrackStat() map[string]uint64 {
	text, err := e.Tree.ReadFile("/proc/net/stat/nf_conntrack")
	if err != nil {
		return nil
	}
	var names []string
	sums := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if names == nil {
			names = w
			continue
		}
		for i, name := range names[:min(len(names), len(w))] {
			n, _ := strconv.ParseUint(w[i], 16, 64)
			sums[name] += n
		}
	}
	return sums
}

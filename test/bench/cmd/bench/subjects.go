package main

import (
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	"nodelocaldns/test/bench/report"
)

// servers are the configurations. What they have in common: room for all names that
// are asked for, kube-dns as the only one they ask, over TCP where they can, and no
// log of queries. Their receive buffers are made large for them, see growBuffers.
//
//go:embed servers
var servers embed.FS

// A subject is a server that can be measured.
type subject struct {
	report.Subject
	program string
	pkg     string // of Debian
	config  string // of servers, if it has one
	// args are those it is run with, of which {{.Config}} and those of the
	// configuration are replaced.
	args []string
	// version are the arguments that make it tell its version.
	version []string
}

var subjects = []subject{
	{Subject: report.Subject{Name: report.Ours, Setup: "a socket for each of up to 4 CPUs"}, program: "nodelocaldns",
		config: "nodelocaldns.yaml", args: []string{"--config", "{{.Config}}", "--run-dir", "{{.Dir}}/run", "--state-dir", "{{.Dir}}/state", "serve"}, version: []string{"version"}},
	{Subject: report.Subject{Name: report.Unbound, Setup: "1 thread"}, program: "unbound", pkg: "unbound",
		config: "unbound.conf", args: []string{"-d", "-c", "{{.Config}}"}, version: []string{"-V"}},
	{Subject: report.Subject{Name: "dnsdist", Setup: "1 thread for UDP, 1 for TCP"}, program: "dnsdist", pkg: "dnsdist",
		config: "dnsdist.conf", args: []string{"--supervised", "--disable-syslog", "-C", "{{.Config}}"}, version: []string{"--version"}},
	{Subject: report.Subject{Name: "recursor", Setup: "1 thread; upstream over UDP", UDP: true}, program: "pdns_recursor", pkg: "pdns-recursor",
		config: "recursor.conf", args: []string{"--config-dir={{.Dir}}"}, version: []string{"--version"}},
	{Subject: report.Subject{Name: "knot", Setup: "1 thread"}, program: "kresd", pkg: "knot-resolver",
		config: "kresd.conf", args: []string{"--noninteractive", "-c", "{{.Config}}", "{{.Dir}}"}, version: []string{"-V"}},
	{Subject: report.Subject{Name: "dnsmasq", Setup: "1 thread; upstream over UDP", UDP: true}, program: "dnsmasq", pkg: "dnsmasq-base",
		config: "dnsmasq.conf", args: []string{"--keep-in-foreground", "--conf-file={{.Config}}"}, version: []string{"-v"}},
	{Subject: report.Subject{Name: report.CoreDNS, Setup: "threads as Go makes them; no metrics"}, program: "coredns",
		config: "Corefile", args: []string{"-conf", "{{.Config}}"}, version: []string{"-version"}},
	{Subject: report.Subject{Name: report.FloorC, Setup: "1 thread, 1 socket; one answer for all", Floor: true}, program: "floor-c",
		args: []string{"{{.Address}}", "{{.Port}}"}},
	{Subject: report.Subject{Name: report.FloorGo, Setup: "a socket for each of up to 4 CPUs; one answer for all", Floor: true}, program: "floor",
		args: []string{"{{.Address}}:{{.Port}}"}},
}

// values are what configurations and arguments are made with.
type values struct {
	Address, KubeDNS, Dir, Config string
	Port                          int
}

func expand(text string, v values) (string, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, v)
	return b.String(), err
}

// command writes the subject's configuration to a directory of its own, and returns
// how it is run.
func (s subject) command(dir string) ([]string, error) {
	v := values{Address: address, KubeDNS: kubeDNS, Port: port, Dir: dir}
	if s.config != "" {
		v.Config = filepath.Join(dir, s.config)
		text, err := servers.ReadFile("servers/" + s.config)
		if err != nil {
			return nil, err
		}
		config, err := expand(string(text), v)
		if err != nil {
			return nil, fmt.Errorf("making %s: %w", s.config, err)
		}
		if err := os.WriteFile(v.Config, []byte(config), 0o644); err != nil {
			return nil, err
		}
	}
	argv := []string{s.program}
	for _, a := range s.args {
		arg, err := expand(a, v)
		if err != nil {
			return nil, err
		}
		argv = append(argv, arg)
	}
	return argv, nil
}

// versionText is a version as programs tell it, after a space, a dash or nothing. That
// of Go is after its name.
var versionText = regexp.MustCompile(`(?:^|[ -])(v?\d+\.\d+[^\s,()]*|\(devel\))`)

// versionOf is the version that a program tells of itself; empty if it tells none.
func (s subject) versionOf() string {
	if s.version == nil {
		return ""
	}
	out, _ := exec.Command(s.program, s.version...).CombinedOutput() // some exit with 1
	return versionIn(string(out))
}

// versionIn is the first version in a text.
func versionIn(text string) string {
	m := versionText.FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	return m[1]
}

// The program node-cache plays that of the node-local-dns DaemonSet: CoreDNS with a
// device and rules that it makes, and takes away again when SIGTERM ends it. What
// they are, and in which order they come and go, is as in kubernetes/dns
// (cmd/node-cache/app/cache_app.go).
//
// usage: node-cache -localip ADDRESS,… -conf COREFILE [-root DIR]
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/coremain"

	_ "nodelocaldns/test/tools/coredns/plugins"
)

const device = "nodelocaldns"

var (
	localIP = flag.String("localip", "", "where to answer, with commas between")
	root    = flag.String("root", "/", "of the node, whose ip and iptables are run")
)

func main() {
	flag.Parse() // with those of CoreDNS
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "node-cache: error:", err)
		os.Exit(1)
	}
	caddy.OnProcessExit = append(caddy.OnProcessExit, func() {
		if err := tearDown(); err != nil {
			fmt.Fprintln(os.Stderr, "node-cache: error:", err)
		}
	})
	coremain.Run()
}

func addresses() []string { return strings.Split(*localIP, ",") }

// setUp makes what one that was killed before may have left there already.
func setUp() error {
	add := func(kind string) error {
		return run("ip", "link", "add", device, "address", "02:00:00:00:00:02", "type", kind) // the same each time
	}
	if run("ip", "link", "show", device) != nil && add("dummy") != nil { // not every kernel has them
		if err := add("bridge"); err != nil {
			return err
		}
	}
	var errs []error
	for _, a := range addresses() {
		errs = append(errs, run("ip", "addr", "replace", a+"/32", "dev", device))
	}
	for _, r := range rules() {
		if run("iptables", r.args("-C")...) != nil {
			errs = append(errs, run("iptables", r.args("-I")...))
		}
	}
	return errors.Join(errs...)
}

func tearDown() error {
	errs := []error{run("ip", "link", "del", device)}
	for _, r := range rules() {
		for run("iptables", r.args("-C")...) == nil {
			errs = append(errs, run("iptables", r.args("-D")...))
		}
	}
	return errors.Join(errs...)
}

// A rule is one of iptables.
type rule struct {
	table, chain string
	match        []string
	target       string
}

func (r rule) args(verb string) []string {
	comment := "NodeLocal DNS Cache: skip conntrack"
	if r.target == "ACCEPT" {
		comment = "NodeLocal DNS Cache: allow DNS traffic"
	}
	return append(append([]string{"-w", "5", "-t", r.table, verb, r.chain}, r.match...), "-m", "comment", "--comment", comment, "-j", r.target)
}

func rules() []rule {
	var all []rule
	for _, a := range addresses() {
		add := func(table, chain, proto, dir, port, target string) {
			all = append(all, rule{table, chain, []string{"-p", proto, "-" + dir, a, "--" + dir + "port", port}, target})
		}
		both := func(table, chain, dir, target string) {
			add(table, chain, "tcp", dir, "53", target)
			add(table, chain, "udp", dir, "53", target)
		}
		both("raw", "PREROUTING", "d", "NOTRACK")
		both("filter", "INPUT", "d", "ACCEPT")
		both("raw", "OUTPUT", "s", "NOTRACK")
		both("filter", "OUTPUT", "s", "ACCEPT")
		both("raw", "OUTPUT", "d", "NOTRACK")
		add("raw", "OUTPUT", "tcp", "d", "8080", "NOTRACK")
		add("raw", "OUTPUT", "tcp", "s", "8080", "NOTRACK")
	}
	return all
}

// run runs a program of the node.
func run(name string, args ...string) error {
	cmd := exec.Command("/usr/sbin/"+name, args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: *root}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

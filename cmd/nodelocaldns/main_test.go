package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"nodelocaldns/test/ports"
)

// The scripts run the real main, and small programs that stand round it.
func TestMain(m *testing.M) {
	program := func(f func(args []string) error) func() {
		return func() {
			if err := f(os.Args[1:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
	testscript.Main(m, map[string]func(){
		"nodelocaldns": main,
		"upstream":     program(upstreamMain),
		"ask":          program(askMain),
		"get":          program(getMain),
		"notified":     program(notifiedMain),
		"activate":     program(activateMain),
	})
}

var update = flag.Bool("update", false, "write what the scripts compare with; review each by eye")

// corpus is where the layouts of kubelets are, for the command layout.
var corpus string

func TestScript(t *testing.T) {
	var err error
	if corpus, err = filepath.Abs("../../test/kubelet/corpus"); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			// With the race detector a process waits a second before it
			// exits, for races that are just being reported; -race finds
			// them in the next of these many processes.
			env.Setenv("GORACE", "atexit_sleep_ms=0 exitcode=66")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "netns" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			able := os.Geteuid() == 0 && exec.Command("unshare", "--net", "true").Run() == nil
			if !able && os.Getenv("NODELOCALDNS_REQUIRE_ROOT") == "1" {
				return false, errors.New("root and network namespaces are required here")
			}
			return able, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":    codeCmd,
			"ports":   portsCmd,
			"await":   awaitCmd,
			"signal":  signalCmd,
			"replace": replaceCmd,
			"netns":   netnsCmd,
			"layout":  layoutCmd,
		},
	})
}

// code N PROGRAM ARGS… runs a program that must exit with N.
func codeCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program args…")
	}
	got := 0
	err := ts.Exec(args[1], args[2:]...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("%v exited with %d, want %s", args[1:], got, args[0])
	}
}

// ports NAME… sets each variable to a port that is the script's until its end,
// free over UDP and TCP.
func portsCmd(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		port, release, err := ports.Take()
		ts.Check(err)
		ts.Defer(release)
		ts.Setenv(name, strconv.Itoa(int(port)))
	}
}

// patience is how long a script waits for something that must happen.
const patience = 30 * time.Second

// await PROGRAM ARGS… runs a program until it succeeds.
func awaitCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: await program args…")
	}
	deadline := time.After(patience)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for ts.Exec(args[0], args[1:]...) != nil {
		select {
		case <-again.C:
		case <-deadline:
			ts.Fatalf("%v did not succeed within %s", args, patience)
		}
	}
}

// signal NAME WORD sends a signal to the background program in whose command
// line WORD stands.
func signalCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME word")
	}
	for _, cmd := range ts.BackgroundCmds() {
		if strings.Contains(strings.Join(cmd.Args, " "), args[1]) {
			ts.Check(cmd.Process.Signal(unix.SignalNum("SIG" + args[0])))
			return
		}
	}
	ts.Fatalf("no background program has %q in its command line", args[1])
}

// replace FILE [REGEXP TEXT]… rewrites a file, or stdout, in place: what
// differs from run to run gets a name.
func replaceCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args)%2 != 1 {
		ts.Fatalf("usage: replace file [regexp text]…")
	}
	text := ts.ReadFile(args[0])
	for i := 1; i < len(args); i += 2 {
		text = regexp.MustCompile("(?m)"+args[i]).ReplaceAllString(text, args[i+1])
	}
	if args[0] == "stdout" || args[0] == "stderr" {
		ts.Fatalf("copy %s to a file first", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
}

// netns makes a network namespace that ends with the script; $ON runs a
// program there.
func netnsCmd(ts *testscript.TestScript, _ bool, _ []string) {
	name := fmt.Sprintf("nldcmd-%d-%s", os.Getpid(), ts.Name())
	ts.Check(exec.Command("ip", "netns", "add", name).Run())
	ts.Defer(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	ts.Check(exec.Command("ip", "-n", name, "link", "set", "lo", "up").Run())
	ts.Setenv("NS", name)
}

// layout DIR NAME makes the file tree of a node from the corpus of kubelets, and
// gives it to a user without rights: $AS runs a program as that user, or as
// ourselves where we have no rights anyway.
func layoutCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: layout dir name")
	}
	dir := ts.MkAbs(args[0])
	a, err := txtar.ParseFile(filepath.Join(corpus, args[1]+".txtar"))
	ts.Check(err)
	for _, f := range a.Files {
		if name, ok := strings.CutPrefix(f.Name, "tree/"); ok {
			name = filepath.Join(dir, name)
			ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
			ts.Check(os.WriteFile(name, f.Data, 0o644))
		}
	}
	for _, f := range a.Files {
		for line := range strings.Lines(string(f.Data)) {
			if name, target, ok := strings.Cut(strings.TrimSpace(line), " "); ok && f.Name == "links" {
				name = filepath.Join(dir, name)
				ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
				ts.Check(os.Symlink(target, name))
			}
		}
	}
	// Every node has these, above our own, and our programs.
	ts.Check(os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "usr/bin/nodelocaldns"), nil, 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "usr/bin/nodelocaldns-relay"), nil, 0o755))
	ts.Check(os.MkdirAll(filepath.Join(dir, "run"), 0o755))
	ts.Check(os.MkdirAll(filepath.Join(dir, "var/lib"), 0o755))
	if os.Geteuid() != 0 {
		ts.Setenv("AS", "env")
		return
	}
	const nobody = 65534
	ts.Setenv("AS", fmt.Sprintf("setpriv --reuid=%d --regid=%[1]d --clear-groups --bounding-set=-all", nobody))
	ts.Check(filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(name, nobody, nobody))
	}))
	program, err := exec.LookPath("nodelocaldns")
	ts.Check(err)
	for _, name := range []string{dir, program} { // the way to both
		for d := filepath.Dir(name); d != filepath.Clean(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
			info, err := os.Stat(d)
			ts.Check(err)
			if info.Mode()&0o1 == 0 {
				ts.Check(os.Chmod(d, info.Mode().Perm()|0o11))
			}
		}
	}
}

// upstream ADDRESS:PORT is a DNS server: 192.0.2.55 for every name, except
// that those which begin with nx do not exist, and that it does with others
// what they begin with: servfail, refused, formerr, nothing (there is no address),
// or lame (the same from a server that is the wrong one). It prints each name it
// is asked for.
func upstreamMain(args []string) error {
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		fmt.Println(name)
		switch {
		case strings.HasPrefix(name, "nx"):
			m.Rcode = dns.RcodeNameError
		case strings.HasPrefix(name, "servfail"):
			m.Rcode = dns.RcodeServerFailure
		case strings.HasPrefix(name, "refused"):
			m.Rcode = dns.RcodeRefused
		case strings.HasPrefix(name, "formerr"):
			m.Rcode = dns.RcodeFormatError
		case strings.HasPrefix(name, "nothing"):
			m.RecursionAvailable = true
		case strings.HasPrefix(name, "lame"):
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30},
				A:   net.IPv4(192, 0, 2, 55),
			}}
		}
		_ = w.WriteMsg(m)
	})
	errs := make(chan error, 2)
	for _, network := range []string{"udp", "tcp"} {
		go func() { errs <- (&dns.Server{Addr: args[0], Net: network, Handler: h}).ListenAndServe() }()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
		return nil
	}
}

// ask [tcp] SERVER NAME prints the response code and the addresses.
func askMain(args []string) error {
	c := dns.Client{Timeout: 5 * time.Second}
	if args[0] == "tcp" {
		c.Net, args = "tcp", args[1:]
	}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(args[1], dns.TypeA), args[0])
	if err != nil {
		return err
	}
	fmt.Print(dns.RcodeToString[m.Rcode])
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			fmt.Print(" ", a.A)
		}
	}
	fmt.Println()
	return nil
}

// get URL prints the body; any status but 200 is a failure.
func getMain(args []string) error {
	resp, err := http.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// notified SOCKET is systemd's side of sd_notify: it prints each message on
// one line.
func notifiedMain(args []string) error {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: args[0], Net: "unixgram"})
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		fmt.Println(strings.ReplaceAll(string(buf[:n]), "\n", " "))
	}
}

// activate SOCKETS PROGRAM ARGS… becomes a program that was handed sockets, as
// systemd does it: of each of the ADDRESS:PORT in SOCKETS, which commas
// separate, a UDP and a TCP one, of tcp:ADDRESS:PORT the latter alone, and of
// unix:PATH a listening one.
func activateMain(args []string) error {
	var files []*os.File
	add := func(s interface{ File() (*os.File, error) }, err error) error {
		if err != nil {
			return err
		}
		f, err := s.File()
		files = append(files, f)
		return err
	}
	for at := range strings.SplitSeq(args[0], ",") {
		var err error
		if path, ok := strings.CutPrefix(at, "unix:"); ok {
			l, lerr := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			err = add(l, lerr)
		} else {
			addr := netip.MustParseAddrPort(strings.TrimPrefix(at, "tcp:"))
			if !strings.HasPrefix(at, "tcp:") {
				pc, lerr := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
				err = add(pc, lerr)
			}
			if err == nil {
				l, lerr := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
				err = add(l, lerr)
			}
		}
		if err != nil {
			return err
		}
	}
	for i, f := range files {
		if err := unix.Dup3(int(f.Fd()), 100+i, 0); err != nil { // out of the runtime's way
			return err
		}
	}
	for i := range files {
		if err := unix.Dup3(100+i, 3+i, 0); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	env := append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(files)), fmt.Sprintf("LISTEN_PID=%d", os.Getpid()))
	return unix.Exec(path, args[1:], env)
}

// runHere is run in this process, for what needs no process of its own.
func runHere(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsageErrorsAreOneErrorAndOneHint(t *testing.T) {
	for _, tt := range []struct{ args, err, hint string }{
		{"", "no command given", "nodelocaldns --help lists the commands"},
		{"bogus", `unknown command "bogus"`, "nodelocaldns --help lists the commands"},
		{"bogus --bogus", `unknown command "bogus"`, "nodelocaldns --help lists the commands"},
		{"srve", `unknown command "srve"`, "did you mean nodelocaldns serve?"},
		{"--bogus", "unknown flag: --bogus", "nodelocaldns --help lists its flags"},
		{"-x", "unknown shorthand flag: 'x' in -x", "nodelocaldns --help lists its flags"},
		{"serve --bogus", "unknown flag: --bogus", "nodelocaldns serve --help lists its flags"},
		{"serve now", `unknown argument "now"`, "nodelocaldns serve --help shows what it takes"},
		{"plan --json=maybe", `invalid argument "maybe" for "--json" flag: strconv.ParseBool: parsing "maybe": invalid syntax`, "nodelocaldns plan --help lists its flags"},
		{"plan --log-level=loud", `invalid argument "loud" for "--log-level" flag: allowed: debug, info, warn, error`, "nodelocaldns plan --help lists its flags"},
		{"plan --log-format=xml", `invalid argument "xml" for "--log-format" flag: allowed: text, json`, "nodelocaldns plan --help lists its flags"},
		{"plan --config", "flag needs an argument: --config", "nodelocaldns plan --help lists its flags"},
		{"apply --step", "flag needs an argument: --step", "nodelocaldns apply --help lists its flags"},
		{"config", "no command given for nodelocaldns config", "nodelocaldns config --help lists the commands"},
		{"config chek", `unknown command "chek"`, "did you mean nodelocaldns config check?"},
		{"config check a b", `unknown argument "b"`, "nodelocaldns config check --help shows what it takes"},
		{"config show a", `unknown argument "a"`, "nodelocaldns config show --help shows what it takes"},
		{"completion", "missing argument bash|zsh|fish", "nodelocaldns completion --help shows what it takes"},
		{"completion tcsh", `unknown shell "tcsh"`, "allowed: bash, zsh, fish"},
		{"help bogus", `unknown command "bogus"`, "nodelocaldns --help lists the commands"},
		{"bench", "no name given with --host", "such as --host kubernetes.default.svc.cluster.local"},
		{"bench --host a..b --server 127.0.0.1", `"a..b" is no name: it has an empty label`, "nodelocaldns bench --help shows what it takes"},
		{"bench --host 192.0.2.1 --server 127.0.0.1", "192.0.2.1 is an address, and nobody is asked for those", "nodelocaldns bench --help shows what it takes"},
		{"bench --host a --server 8.8.8.8", "8.8.8.8 is an address neither of this node nor of a private network", "with --yes it is asked all the same: is it yours?"},
		{"bench --host a --server dns.example", "--server dns.example is no address", "such as 169.254.20.10, 127.0.0.1:5353 or [fd00::a]:53"},
		{"bench --host a --server 127.0.0.1:0", "--server 127.0.0.1:0 is no address", "such as 169.254.20.10, 127.0.0.1:5353 or [fd00::a]:53"},
		{"bench --host a --server 127.0.0.1 --qtype A,ANY", `unknown type "ANY"`, "allowed: A, AAAA, CNAME, HTTPS, MX, NS, PTR, SOA, SRV, SVCB, TXT"},
		{"bench --host a --server 127.0.0.1 --search a,b", `unknown argument "a,b"`, "a search list is given as --search=a,b"},
		{"bench --host a --server 127.0.0.1 b", `unknown argument "b"`, "nodelocaldns bench --help shows what it takes"},
		{"bench --host a --server 127.0.0.1 -c 6000", "concurrency: 6000 is not between 1 and 5000", "nodelocaldns bench --help shows what it takes"},
		{"bench --host a -d 1d", `invalid argument "1d" for "-d, --duration" flag: want a number, or a duration such as 500ms or 30s`, "nodelocaldns bench --help lists its flags"},
		{"bench --host a -l 0", `invalid argument "0" for "-l, --limit" flag: want more than 0`, "nodelocaldns bench --help lists its flags"},
		{"bench --host a --ndots -1", `invalid argument "-1" for "--ndots" flag: want a number of 0 or more`, "nodelocaldns bench --help lists its flags"},
		{"--root /img bench --host a", "nodelocaldns bench works on the running system, --root leaves that alone", "run it without --root; config, dnsconfig, plan, apply, rollback, status and kubelet-env take --root"},
		{"--root /img serve", "nodelocaldns serve works on the running system, --root leaves that alone", "run it without --root; config, dnsconfig, plan, apply, rollback, status and kubelet-env take --root"},
		{"why", "missing argument name", "nodelocaldns why --help shows what it takes"},
		{"why a A AAAA", `unknown argument "AAAA"`, "nodelocaldns why --help shows what it takes"},
		{"--root /img why a", "nodelocaldns why works on the running system, --root leaves that alone", "run it without --root; config, dnsconfig, plan, apply, rollback, status and kubelet-env take --root"},
		{"--root /img guard", "nodelocaldns guard works on the running system, --root leaves that alone", "run it without --root; config, dnsconfig, plan, apply, rollback, status and kubelet-env take --root"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			code, stdout, stderr := runHere(t, "", strings.Fields(tt.args)...)
			want := "nodelocaldns: error: " + tt.err + "\nnodelocaldns: hint: " + tt.hint + "\n"
			if code != exitUsage || stdout != "" || stderr != want {
				t.Errorf("got exit %d, stdout %q, stderr:\n%swant exit %d, nothing, stderr:\n%s", code, stdout, stderr, exitUsage, want)
			}
		})
	}
}

// Every command has help, on standard output, that names its own flags.
func TestHelpIsAResult(t *testing.T) {
	commands := []string{"", "serve", "guard", "plan", "apply", "rollback", "status", "why", "canary", "bench", "kubelet-env", "config", "config default", "config check", "config show", "version", "completion"}
	for _, command := range commands {
		for _, args := range [][]string{append(strings.Fields(command), "--help"), append([]string{"help"}, strings.Fields(command)...)} {
			code, stdout, stderr := runHere(t, "", args...)
			if code != exitOK || stderr != "" || !strings.Contains(stdout, "usage: nodelocaldns "+command) || !strings.Contains(stdout, "--log-level") {
				t.Errorf("%v: exit %d, stderr %q, stdout:\n%s", args, code, stderr, stdout)
			}
		}
	}
}

func TestTheCommandsAreThoseOfHelp(t *testing.T) {
	_, stdout, _ := runHere(t, "", "--help")
	last := -1
	for _, name := range []string{"serve", "guard", "plan", "apply", "rollback", "status", "why", "canary", "bench", "kubelet-env", "config", "version", "completion"} {
		i := strings.Index(stdout, "\n  "+name+" ")
		if i <= last {
			t.Errorf("%s is not in its place in\n%s", name, stdout)
		}
		last = i
	}
}

func TestCompletionScriptsAreThoseOfTheirShells(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, stdout, stderr := runHere(t, "", "completion", shell)
		if code != exitOK || stderr != "" {
			t.Fatalf("%s: exit %d, %s", shell, code, stderr)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue // the text is made by the same code; only bash is everywhere
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(stdout)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not understand it: %v\n%s", shell, err, out)
		}
	}
}

func TestConfigPathsAreBelowRoot(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/nodelocaldns"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, defaultConfig)
	if err := os.WriteFile(file, []byte("listen: {port: 5454}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--root", root, "config", "show"}, {"--root", root, "--config", defaultConfig, "config", "show"}} {
		if code, stdout, stderr := runHere(t, "", args...); code != exitOK || !strings.Contains(stdout, "\n  port: 5454\n") {
			t.Errorf("%v: exit %d, %s%s", args, code, stdout, stderr)
		}
	}
}

// A resolver that does not see what an administrator has linked to must not go on as
// if nothing were configured.
func TestAConfigurationThatIsALinkToNowhereIsNotMissing(t *testing.T) {
	for _, tt := range []struct {
		link, to string
		code     int
		says     string
	}{
		{"etc/nodelocaldns/config.yaml", "../../srv/dns.yaml", exitOK, "port: 5454"},
		{"etc/nodelocaldns/config.yaml", "../../srv/other.yaml", exitError, "etc/nodelocaldns/config.yaml is a link to ../../srv/other.yaml"},
		{"etc/nodelocaldns", "../nowhere", exitError, "etc/nodelocaldns is a link to ../nowhere"},
		{"etc/nodelocaldns", "../srv", exitOK, "port: 53"}, // which has no such file
	} {
		root := t.TempDir()
		for _, dir := range []string{"srv", filepath.Dir(tt.link)} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(root, "srv/dns.yaml"), []byte("listen: {port: 5454}\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(tt.to, filepath.Join(root, tt.link)); err != nil {
			t.Fatal(err)
		}
		if code, stdout, stderr := runHere(t, "", "--root", root, "config", "show"); code != tt.code || !strings.Contains(stdout+stderr, tt.says) {
			t.Errorf("%s to %s: exit %d\n%s%s", tt.link, tt.to, code, stdout, stderr)
		}
	}
}

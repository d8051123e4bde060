package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the product promises in files and addresses.
const (
	local    = "169.254.20.10"
	program  = "/usr/bin/nodelocaldns"
	settings = "/etc/nodelocaldns/config.yaml"
	dropIn   = "/etc/systemd/system/kubelet.service.d/99-nodelocaldns.conf"
	both     = local + " " + KubeDNS
)

// quick is a configuration for tests that are not about how long a restarted
// kubelet is watched.
const quick = "kubelet: {settle: 3s}\n"

// built are the programs as they would be shipped, by their names in /usr/bin.
var built = sync.OnceValues(func() (map[string][]byte, error) {
	dir := filepath.Join(os.Getenv(inside), "bin")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", dir+"/", "nodelocaldns/cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building nodelocaldns: %w\n%s", err, out)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	programs := map[string][]byte{}
	for _, f := range files {
		if programs[f.Name()], err = os.ReadFile(filepath.Join(dir, f.Name())); err != nil {
			return nil, err
		}
	}
	return programs, nil
})

// install puts the programs on a node, and a configuration unless it is empty.
func install(t *testing.T, n *Node, config string) {
	t.Helper()
	programs, err := built()
	must(t, err)
	for name, data := range programs {
		must(t, n.Put(filepath.Join("/usr/bin", name), data, 0o755))
	}
	if config != "" {
		must(t, n.Put(settings, []byte(config), 0o644))
	}
}

// bootWith boots a node that has joined and has nodelocaldns installed.
func bootWith(t *testing.T, config string) *Node {
	t.Helper()
	return boot(t, func(n *Node) { install(t, n, config) })
}

// nodelocaldns runs it on the node and returns all that it printed. Another
// exit code than the wanted one ends the test.
func nodelocaldns(t *testing.T, n *Node, want int, args ...string) string {
	t.Helper()
	r, err := n.Exec(t.Context(), append([]string{"nodelocaldns"}, args...)...)
	must(t, err)
	if r.Code != want {
		t.Fatalf("nodelocaldns %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, want, r.Stdout, r.Stderr)
	}
	return r.Stdout + r.Stderr
}

// contains fails the test unless every word is in what was printed.
func contains(t *testing.T, what, printed string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(printed, w) {
			t.Errorf("%s does not say %q:\n%s", what, w, printed)
		}
	}
}

// started says which kubelet runs, and since when.
func started(t *testing.T, n *Node) string {
	t.Helper()
	return output(t, n, "systemctl", "show", "kubelet", "--property=MainPID,ExecMainStartTimestampMonotonic,NRestarts")
}

// arguments are those of the running kubelet; there are none between two of them.
func arguments(t *testing.T, n *Node) string {
	t.Helper()
	return output(t, n, "sh", "-c", `cat /proc/"$(systemctl show kubelet --property=MainPID --value)"/cmdline 2>/dev/null | tr '\0' ' '`)
}

// asks fails the test unless a new pod has these nameservers and resolves.
func asks(t *testing.T, n *Node, pod, want string) string {
	t.Helper()
	pod = runPod(t, n, pod)
	if got := nameservers(t, n, pod); got != want {
		t.Errorf("nameservers of new pod %s: %q, want %q", pod, got, want)
	}
	resolves(t, n, pod)
	return pod
}

// eventually tries f until it succeeds, for a minute at the most.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, Until(ctx, what, f))
}

// kept is what rollback may leave: where the journals were, the switch that
// keeps guard and the units from doing it all again, and until a reboot the
// locks.
var kept = regexp.MustCompile(`(?m)^\+ file (/var/lib/nodelocaldns( |/off )|/run/nodelocaldns( |/lock |/guard\.lock )).*\n`)

// asBefore fails the test unless the node is what it was before we came.
func asBefore(t *testing.T, what string, n *Node, before Dump) {
	t.Helper()
	if diff := kept.ReplaceAllString(Diff(before, dump(t, n)), ""); diff != "" {
		t.Errorf("%s (-before +after):\n%s", what, diff)
	}
}

// gone waits until guard has taken everything back.
func gone(t *testing.T, n *Node) {
	t.Helper()
	eventually(t, "guard to finish the rollback", func() error {
		r, err := n.Exec(t.Context(), "sh", "-c", `ip link show nodelocaldns0; ls /etc/systemd/system | grep nodelocaldns; systemctl is-active nodelocaldns-guard`)
		if err == nil && r.Stdout != "inactive\n" {
			err = errors.New(r.Stdout)
		}
		return err
	})
}

// The whole of it, with no configuration at all.
func TestApplyMakesNewPodsAskUsAndRollbackLeavesNoTrace(t *testing.T) {
	t.Parallel()
	n := bootWith(t, "")
	old := asks(t, n, "old", KubeDNS)
	before := dump(t, n)

	nodelocaldns(t, n, 3, "plan")
	nodelocaldns(t, n, 0, "apply")
	nodelocaldns(t, n, 0, "plan")
	must(t, n.Ready(t.Context()))

	pod := asks(t, n, "new", both)
	contains(t, "nslookup in a new pod", inPod(t, n, pod, "nslookup", "-type=a", "www.example.com"), local, "192.0.2.80")
	if got := nameservers(t, n, old); got != KubeDNS {
		t.Errorf("nameservers of a pod from before: %q, want %q", got, KubeDNS)
	}
	resolves(t, n, old)
	contains(t, "status", nodelocaldns(t, n, 0, "status"), "kubelet/cluster-dns", "unit/nodelocaldns")
	nodelocaldns(t, n, 0, "doctor")
	nodelocaldns(t, n, 0, "canary")

	kubelet, applied := started(t, n), dump(t, n)
	contains(t, "a second apply", nodelocaldns(t, n, 0, "apply"), "nothing was applied")
	if again := started(t, n); again != kubelet {
		t.Errorf("a second apply restarted the kubelet:\n%swas\n%s", again, kubelet)
	}
	same(t, "after a second apply", applied, dump(t, n))

	contains(t, "rollback", nodelocaldns(t, n, 0, "rollback"), "draining", pod)
	contains(t, "status while a pod names us", nodelocaldns(t, n, 0, "status"), "draining", pod)
	if !answers(t, n, pod, local) {
		t.Errorf("pod %s names %s and is not answered there after rollback", pod, local)
	}
	newer := asks(t, n, "newer", KubeDNS)
	must(t, n.cluster.DeletePod(t.Context(), pod))
	gone(t, n)
	must(t, n.cluster.DeletePod(t.Context(), newer))
	asBefore(t, "after rollback", n, before)
	resolves(t, n, old)
}

func TestAnAppliedNodeComesBackFromAReboot(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	before := dump(t, n)
	nodelocaldns(t, n, 0, "apply")
	output(t, n, "systemctl", "start", "nodelocaldns-kubelet") // as at a boot
	applied := dump(t, n)
	for _, again := range []func() error{
		func() error { return n.Reboot(t.Context()) },
		func() error { return errors.Join(n.Cut(), n.Boot(t.Context())) },
	} {
		must(t, again())
		must(t, n.Ready(t.Context()))
		eventually(t, "guard to be done", func() error {
			_, err := n.Output(t.Context(), "nodelocaldns", "plan")
			return err
		})
		same(t, "a node that was applied and started again", applied, dump(t, n))
		nodelocaldns(t, n, 0, "status")
	}
	pod := asks(t, n, "new", both)
	must(t, n.cluster.DeletePod(t.Context(), pod))
	nodelocaldns(t, n, 0, "rollback")
	gone(t, n)
	asBefore(t, "after rollback", n, before)

	must(t, n.Reboot(t.Context()))
	must(t, n.Ready(t.Context()))
	asBefore(t, "after rollback and a reboot", n, before)
	nodelocaldns(t, n, 3, "plan")
}

func TestTheKubeletStartsAsBeforeWhereWeFailIt(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	plain := arguments(t, n)
	nodelocaldns(t, n, 0, "apply")
	ours := arguments(t, n)
	if ours == plain {
		t.Fatal("apply left the arguments of the kubelet as they were")
	}
	restart := func() {
		t.Helper()
		output(t, n, "systemctl", "restart", "kubelet")
		must(t, n.Ready(t.Context()))
	}
	for _, fault := range []struct{ name, do string }{
		{"removed", "rm " + program},
		{"failing", "printf '#!/bin/sh\\nexit 1\\n' >" + program},
		{"hanging", "printf '#!/bin/sh\\nexec sleep 600\\n' >" + program},
		{"broken", "echo >" + program},
	} {
		output(t, n, "sh", "-ec", "cp -p "+program+" "+program+".kept; rm "+program+"; touch "+program+"; chmod 755 "+program+"; "+fault.do)
		restart()
		if got := arguments(t, n); got != plain {
			t.Errorf("program %s: the kubelet runs as\n%swant\n%s", fault.name, got, plain)
		}
		if late := startedAfter(t, n); late > 2500*time.Millisecond {
			t.Errorf("program %s: the kubelet started %s late, want 2 s at the most", fault.name, late)
		}
		pod := asks(t, n, fault.name, KubeDNS)
		must(t, n.cluster.DeletePod(t.Context(), pod))
		output(t, n, "mv", program+".kept", program)
	}
	restart()
	if got := arguments(t, n); got != ours {
		t.Errorf("program back: the kubelet runs as\n%swant\n%s", got, ours)
	}
	asks(t, n, "back", both)
}

// startedAfter is how long what runs before the kubelet has held it up.
func startedAfter(t *testing.T, n *Node) time.Duration {
	t.Helper()
	var at [2]int
	for i, property := range []string{"InactiveExitTimestampMonotonic", "ExecMainStartTimestampMonotonic"} {
		out := output(t, n, "systemctl", "show", "kubelet", "--value", "--property="+property)
		var err error
		at[i], err = strconv.Atoi(strings.TrimSpace(out))
		must(t, err)
	}
	return time.Duration(at[1]-at[0]) * time.Microsecond
}

func TestANodeThatJoinsLaterAsksUs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(*testing.T, *Node) // before the first boot
		before  func(*testing.T, *Node) // before it joins
	}{
		{
			"an image", func(t *testing.T, n *Node) {
				cmd := exec.CommandContext(t.Context(), filepath.Join(n.Root, program), "--root", n.Root, "apply")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("apply --root: %v\n%s", err, out)
				}
			}, func(*testing.T, *Node) {},
		},
		{
			"a node that runs", func(*testing.T, *Node) {},
			func(t *testing.T, n *Node) {
				eventually(t, "the kubelet to have found no cluster", func() error {
					_, err := n.Output(t.Context(), "sh", "-c", "test $(systemctl show kubelet --property=SubState --value) = auto-restart")
					return err
				})
				nodelocaldns(t, n, 0, "apply")
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := create(t)
			install(t, n, quick)
			tt.prepare(t, n)
			must(t, n.Boot(t.Context()))
			tt.before(t, n)
			must(t, n.Join(t.Context()))
			must(t, n.Ready(t.Context()))
			pod := runPod(t, n, "new")
			if got := nameservers(t, n, pod); got != both {
				t.Errorf("nameservers of a new pod: %q, want %q", got, both)
			}
			// Guard looks for kube-dns; until then a pod is sent on to its second
			// nameserver.
			eventually(t, "kube-dns to be known", func() error {
				if !answers(t, n, pod, local) {
					return errors.New("no answer at " + local)
				}
				return nil
			})
			nodelocaldns(t, n, 0, "apply")
			nodelocaldns(t, n, 0, "status")
		})
	}
}

// refuse makes a kubelet that will not start with our address among its
// arguments, and is as ever without.
func refuse(t *testing.T, n *Node) {
	t.Helper()
	output(t, n, "sh", "-ec", "mkdir /opt/kubelet; mv /usr/bin/kubelet /opt/kubelet/kubelet")
	must(t, n.Put("/usr/bin/kubelet", []byte(`#!/bin/sh
case "$*" in
*`+local+`*)
	echo "refused: $*" >&2
	exit 1
	;;
esac
exec /opt/kubelet/kubelet "$@"
`), 0o755))
	output(t, n, "systemctl", "restart", "kubelet")
	must(t, n.Ready(t.Context()))
}

func TestAKubeletThatRefusesIsUndone(t *testing.T) {
	t.Parallel()
	n := bootWith(t, "") // and so with the settle time of the default
	refuse(t, n)
	before, plain := dump(t, n), arguments(t, n)

	begun := time.Now()
	said := nodelocaldns(t, n, 1, "apply")
	// It is watched for 30 s, and undone within 30 s more.
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("apply took %s to undo what the kubelet refused, want a minute at the most", took)
	}
	contains(t, "apply", said, "error:", "hint:")
	must(t, n.Ready(t.Context()))
	if got := arguments(t, n); got != plain {
		t.Errorf("the kubelet runs as\n%swant\n%s", got, plain)
	}
	if _, err := os.Stat(filepath.Join(n.Root, dropIn)); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dropIn, err)
	}
	pod := asks(t, n, "new", KubeDNS)
	must(t, n.cluster.DeletePod(t.Context(), pod))
	nodelocaldns(t, n, 0, "rollback")
	gone(t, n)
	asBefore(t, "after rollback", n, before)
}

// What apply leaves one after the other, as it can be seen from outside.
var marks = []struct{ name, file string }{
	{"the first record", "/run/nodelocaldns/journal.json"},
	{"the first lasting record", "/var/lib/nodelocaldns/journal.json"},
	{"the units", "/etc/systemd/system/nodelocaldns.service"},
	{"the running resolver", "/run/nodelocaldns/control.sock"},
	{"the kubelet's file", dropIn},
	{"the restarted kubelet", "/run/nodelocaldns/kubelet.env"},
}

func TestApplyAndRollbackGoOnWhereTheNodeWentDown(t *testing.T) {
	t.Parallel()
	const each = 2 // a node is down as often
	for first := 0; first < len(marks); first += each {
		t.Run(marks[first].name, func(t *testing.T) {
			t.Parallel()
			n := bootWith(t, quick)
			before := dump(t, n)
			for i := first; i < first+each; i++ {
				goesDown(t, n, i, before)
			}
		})
	}
}

// goesDown has the node go down at a mark of apply, and taken back after it.
func goesDown(t *testing.T, n *Node, i int, before Dump) {
	t.Helper()
	applyUntil(t, n, marks[i].file)
	// Down it goes, by turns.
	if i%2 == 0 {
		must(t, errors.Join(n.Cut(), n.Boot(t.Context())))
	} else {
		must(t, n.Reboot(t.Context()))
	}
	must(t, n.Ready(t.Context()))
	// And on, by turns of another kind.
	if i%3 != 0 {
		nodelocaldns(t, n, 0, "apply")
		nodelocaldns(t, n, 0, "plan")
		contains(t, "the arguments of the kubelet", arguments(t, n), "--cluster-dns="+local+","+KubeDNS)
	}
	nodelocaldns(t, n, 0, "rollback")
	gone(t, n)
	must(t, n.Ready(t.Context()))
	asBefore(t, "down after "+marks[i].name+", and rolled back", n, before)
}

// applyUntil starts apply and returns as soon as it has made a file.
func applyUntil(t *testing.T, n *Node, file string) {
	t.Helper()
	cmd := n.Command(t.Context(), "nodelocaldns", "apply")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		// By way of its PID 1, whose /run is the node's.
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", n.leader, file)); err == nil {
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("apply went by without %s: %v\n%s", file, err, &said)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestRollbackWaitsForPodsAsItIsTold(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	before := dump(t, n)
	pod := "own-" + n.Name
	run := func() {
		t.Helper()
		must(t, n.cluster.RunPod(t.Context(), Pod{Name: pod, Node: n, Nameservers: []string{local, KubeDNS}}))
	}

	nodelocaldns(t, n, 0, "apply")
	run()
	contains(t, "rollback", nodelocaldns(t, n, 0, "rollback"), "draining", pod, "dnsConfig")
	contains(t, "status", nodelocaldns(t, n, 0, "status"), "draining", pod, "dnsConfig")
	if !answers(t, n, pod, local) {
		t.Error("a pod that names us by its own dnsConfig is not answered while the rollback drains")
	}

	// apply changes its mind, and nothing is lost.
	nodelocaldns(t, n, 0, "apply")
	nodelocaldns(t, n, 0, "plan")
	contains(t, "rollback --wait", nodelocaldns(t, n, 1, "rollback", "--wait", "2s"), "error:", pod)

	waited := make(chan error, 1)
	cmd := n.Command(t.Context(), "nodelocaldns", "rollback", "--wait", "60s")
	go func() {
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("rollback --wait: %w\n%s", err, out)
		}
		waited <- err
	}()
	must(t, n.cluster.DeletePod(t.Context(), pod))
	must(t, <-waited)
	asBefore(t, "after rollback --wait", n, before)

	nodelocaldns(t, n, 0, "apply")
	run()
	contains(t, "rollback --now", nodelocaldns(t, n, 0, "rollback", "--now"), pod)
	if answers(t, n, pod, local) {
		t.Errorf("%s still answers after rollback --now", local)
	}
	must(t, n.cluster.DeletePod(t.Context(), pod))
	asBefore(t, "after rollback --now", n, before)
}

func TestApplyRefusesWherePodsCannotReachUs(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	pod := runPod(t, n, "a")
	before, kubelet := dump(t, n), started(t, n)
	output(t, n, "iptables", "-t", "mangle", "-A", "PREROUTING", "-i", "cni0", "-d", local, "-j", "DROP")
	contains(t, "apply", nodelocaldns(t, n, 1, "apply"), "error:", "hint:", local)
	if again := started(t, n); again != kubelet {
		t.Errorf("apply restarted the kubelet although pods cannot reach us:\n%swas\n%s", again, kubelet)
	}
	contains(t, "canary", nodelocaldns(t, n, 1, "canary"), pod)

	contains(t, "apply --skip-canary", nodelocaldns(t, n, 0, "apply", "--skip-canary"), "kubelet/cluster-dns")
	output(t, n, "iptables", "-t", "mangle", "-D", "PREROUTING", "-i", "cni0", "-d", local, "-j", "DROP")
	contains(t, "canary", nodelocaldns(t, n, 0, "canary"), pod)
	nodelocaldns(t, n, 0, "rollback")
	gone(t, n)
	asBefore(t, "after rollback", n, before)
}

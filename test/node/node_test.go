package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m.Run)) }

// All tests share one control plane, and each has nodes of its own.
var shared = sync.OnceValues(func() (*Cluster, error) { return NewCluster(context.Background()) })

func cluster(t *testing.T) *Cluster {
	t.Helper()
	if os.Getenv(Layers) == "" {
		t.Skip(Layers + " is not set; make test-cluster does that")
	}
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// made is how many nodes were.
var made atomic.Int64

// boot makes a node that has joined, and boots it. Prepare may change it before.
func boot(t *testing.T, prepare ...func(*Node)) *Node {
	t.Helper()
	n := create(t)
	must(t, n.Join(t.Context()))
	for _, f := range prepare {
		f(n)
	}
	must(t, n.Boot(t.Context()))
	must(t, n.Ready(t.Context()))
	return n
}

// create makes a node that is off and has not joined. If the test fails, the
// node's journal tells why.
func create(t *testing.T) *Node {
	t.Helper()
	return createOf(t, Debian12)
}

func createOf(t *testing.T, release Release) *Node {
	t.Helper()
	n, err := cluster(t).NodeOf(release, fmt.Sprint("n", made.Add(1)))
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() && n.leader != 0 {
			r, _ := n.Exec(context.WithoutCancel(t.Context()), "sh", "-c", `journalctl="journalctl --boot --no-pager --no-hostname --output=short-precise"
				systemctl list-units --all --no-legend 'nodelocaldns*' kubelet
				$journalctl --lines=40 --unit='nodelocaldns*'; $journalctl --lines=40 --unit=kubelet | cut -c 1-300`)
			t.Log(r.Stdout)
		}
		must(t, n.Cut())
	})
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// output is what a command in the node printed. That it fails, fails the test.
func output(t *testing.T, n *Node, args ...string) string {
	t.Helper()
	out, err := n.Output(t.Context(), args...)
	must(t, err)
	return out
}

func dump(t *testing.T, n *Node) Dump {
	t.Helper()
	d, err := n.Dump(t.Context())
	must(t, err)
	return d
}

// same fails the test if the node is not as it was.
func same(t *testing.T, what string, before, after Dump) {
	t.Helper()
	if diff := Diff(before, after); diff != "" {
		t.Errorf("%s (-before +after):\n%s", what, diff)
	}
}

// inPod is what a command in a pod printed, and fails the test if it fails.
func inPod(t *testing.T, n *Node, pod string, args ...string) string {
	t.Helper()
	r, err := n.cluster.PodExec(t.Context(), pod, args...)
	must(t, err)
	if r.Code != 0 {
		t.Fatalf("pod %s: %s: exit code %d\n%s%s", pod, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

func runPod(t *testing.T, n *Node, name string) string {
	t.Helper()
	name = name + "-" + n.Name
	must(t, n.cluster.RunPod(t.Context(), Pod{Name: name, Node: n}))
	return name
}

// nameservers are those that a pod has.
func nameservers(t *testing.T, n *Node, pod string) string {
	t.Helper()
	var servers []string
	for line := range strings.Lines(inPod(t, n, pod, "cat", "/etc/resolv.conf")) {
		if s, ok := strings.CutPrefix(line, "nameserver "); ok {
			servers = append(servers, strings.TrimSpace(s))
		}
	}
	return strings.Join(servers, " ")
}

// resolves fails the test unless a pod finds a service's address on its search
// path.
func resolves(t *testing.T, n *Node, pod string) {
	t.Helper()
	if out := inPod(t, n, pod, "nslookup", "-type=a", "web.shop.svc.cluster.local"); !strings.Contains(out, "Address: 10.96.10.20") {
		t.Errorf("pod %s resolves web.shop.svc.cluster.local to\n%s", pod, out)
	}
}

// answers reports whether a pod is answered at an address.
func answers(t *testing.T, n *Node, pod, addr string) bool {
	t.Helper()
	r, err := n.cluster.PodExec(t.Context(), pod, "nslookup", "-timeout=1", "-retry=3", "-type=a", "web.shop.svc.cluster.local", addr)
	must(t, err)
	return r.Code == 0 && strings.Contains(r.Stdout, "Address: 10.96.10.20")
}

func TestNothingFailsOnANode(t *testing.T) {
	t.Parallel()
	n := boot(t)
	if out := output(t, n, "systemctl", "--failed", "--no-legend", "--plain"); out != "" {
		t.Errorf("failed units:\n%s%s", out, output(t, n, "journalctl", "--boot", "--no-pager", "--priority=warning", "--lines=30"))
	}
}

// Not beside others: they need kube-dns too.
func TestANodeRunsPodsThatAskKubeDNS(t *testing.T) {
	n := boot(t)
	pod := runPod(t, n, "a")
	if got := nameservers(t, n, pod); got != KubeDNS {
		t.Errorf("nameservers of a pod: %q, want %q", got, KubeDNS)
	}
	n.cluster.DNS().Reset()
	resolves(t, n, pod)
	if asked := n.cluster.DNS().Counts(); asked.Names["web.shop.svc.cluster.local. A"] != 1 {
		t.Errorf("kube-dns was asked %+v", asked)
	}
	n.cluster.StopDNS()
	if answers(t, n, pod, KubeDNS) {
		t.Error("kube-dns answers after it was stopped")
	}
	must(t, n.cluster.StartDNS())
	resolves(t, n, pod)
	must(t, n.cluster.DeletePod(t.Context(), pod))
}

func TestPodsReachThoseOfOtherNodes(t *testing.T) {
	t.Parallel()
	one, other := boot(t), boot(t)
	here, there := runPod(t, one, "a"), runPod(t, other, "a")
	addr, err := one.cluster.Kubectl(t.Context(), "get", "pod", there, "--output=jsonpath={.status.podIP}")
	must(t, err)
	inPod(t, one, here, "busybox", "ping", "-c", "1", "-W", "5", addr)
}

func TestADumpTellsWhatChangedAndNothingElse(t *testing.T) {
	t.Parallel()
	n := boot(t)
	before := dump(t, n)
	pod := runPod(t, n, "a")
	must(t, n.cluster.DeletePod(t.Context(), pod))
	output(t, n, "iptables", "-t", "raw", "-S")
	same(t, "a node where a pod came and went", before, dump(t, n))

	output(t, n, "sh", "-ec", `
		mkdir /etc/made
		echo 1 >/etc/made/file
		chmod 600 /etc/hostname
		rm /etc/kubernetes/pki/ca.crt
		ip link add made type bridge
		iptables -t raw -A OUTPUT -p udp -j NOTRACK
		sysctl -qw net.netfilter.nf_conntrack_max=7
		touch /run/systemd/system/made`)
	want := `- file /etc/hostname -rw-r--r-- 0:0
- file /etc/kubernetes/pki/ca.crt -rw-r--r-- 0:0
- sysctl net.netfilter.nf_conntrack_max = 262144
+ device made
+ file /etc/hostname -rw------- 0:0
+ file /etc/made drwxr-xr-x 0:0
+ file /etc/made/file -rw-r--r-- 0:0
+ file /run/systemd/system/made -rw-r--r-- root:root
+ iptables raw -A OUTPUT -p udp -j NOTRACK
+ sysctl net.netfilter.nf_conntrack_max = 7
`
	// Of files the sums, of devices all but the name are of no matter here.
	got := regexp.MustCompile(`(?m) [0-9a-f]{16}$|(^. device \w+):.*$`).ReplaceAllString(Diff(before, dump(t, n)), "$1")
	if got != want {
		t.Errorf("the dumps differ in\n%s\nwant\n%s", got, want)
	}
}

func TestANodeComesBackFromAReboot(t *testing.T) {
	t.Parallel()
	n := boot(t)
	before := dump(t, n)
	output(t, n, "touch", "/run/gone", "/etc/kept")
	must(t, n.Reboot(t.Context()))
	must(t, n.Ready(t.Context()))
	output(t, n, "sh", "-c", "rm /etc/kept && test ! -e /run/gone")
	same(t, "a rebooted node", before, dump(t, n))
}

func TestANodeComesBackFromAPowerCut(t *testing.T) {
	t.Parallel()
	n := boot(t)
	before := dump(t, n)
	cancelled(t, n)
	must(t, n.Cut())
	must(t, n.Boot(t.Context()))
	must(t, n.Ready(t.Context()))
	resolves(t, n, runPod(t, n, "a"))
	same(t, "a node after a power cut", before, dump(t, n))
}

// cancelled has commands on the node whose contexts end, one of them before it
// can have begun.
func cancelled(t *testing.T, n *Node) {
	t.Helper()
	for _, begun := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := n.Command(ctx, "sh", "-c", "echo; exec sleep 600")
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		if begun {
			_, err := out.Read(make([]byte, 1))
			must(t, err)
		}
		cancel()
		if err := cmd.Wait(); !errors.Is(err, context.Canceled) && cmd.ProcessState.Success() {
			t.Errorf("a command that was cancelled ended with %v", err)
		}
	}
}

func TestRootLogsInBySSHOnceItIsAllowedAndNothingRunsOfItBefore(t *testing.T) {
	t.Parallel()
	for _, release := range []Release{Debian12, Debian13} {
		t.Run(string(release), func(t *testing.T) {
			t.Parallel()
			n := createOf(t, release)
			must(t, n.Boot(t.Context()))
			want := "inactive\ninactive\nstatus: disabled\n"
			r, err := n.Exec(t.Context(), "sh", "-c", "systemctl is-active ssh cloud-init.target; cloud-init status")
			must(t, err)
			if r.Stdout != want {
				t.Errorf("before it is allowed: %q, want %q", r.Stdout, want)
			}
			must(t, n.AllowSSH(t.Context()))
			out, err := exec.CommandContext(t.Context(), "ssh", append(n.cluster.SSHOptions(), n.Addr, "hostname")...).CombinedOutput()
			if err != nil || string(out) != n.Name+"\n" {
				t.Errorf("hostname by ssh: %v: %q, want %q", err, out, n.Name+"\n")
			}
		})
	}
}

package promises

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/test/node"
	"nodelocaldns/test/promises/load"
)

// What the product promises in files and addresses.
const (
	local    = "169.254.20.10"
	program  = "/usr/bin/nodelocaldns"
	settings = "/etc/nodelocaldns/config.yaml"
	both     = local + " " + node.KubeDNS

	resolver = "nodelocaldns.service"
	relay    = "nodelocaldns-relay.service"
	guard    = "nodelocaldns-guard.service"
	socket   = "nodelocaldns.socket"
)

// config is that of all nodes. How long a restarted kubelet is watched has no
// part in these tests.
const config = "kubelet: {settle: 2s}\n"

// tools is where the programs that ask lie on a node.
const tools = "/opt/promises/"

// loopTime is how long a loop of kills goes on; NODELOCALDNS_PROMISES_TIME is
// another duration.
func loopTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("NODELOCALDNS_PROMISES_TIME")
	if text == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// quick is whether what is counted matters more than how long it takes, as
// NODELOCALDNS_PROMISES_QUICK says: all tests together take two thirds of the time,
// also on a busy machine, and their latencies say more about that.
func quick() bool { return os.Getenv("NODELOCALDNS_PROMISES_QUICK") != "" }

// beside has a quick test run beside others: one that asks little, and waits for
// most of its time.
func beside(t *testing.T) {
	t.Helper()
	if quick() {
		t.Parallel()
	}
}

func TestMain(m *testing.M) {
	os.Exit(node.Main(func() int {
		code := m.Run()
		if installedIn != "" {
			os.RemoveAll(installedIn)
		}
		if err := results.write(); err != nil {
			fmt.Fprintln(os.Stderr, "promises: error:", err)
			return 1
		}
		return code
	}))
}

// All tests share one control plane.
var shared = sync.OnceValues(func() (*node.Cluster, error) { return node.NewCluster(context.Background()) })

func cluster(t *testing.T) *node.Cluster {
	t.Helper()
	if os.Getenv(node.Layers) == "" {
		t.Skip(node.Layers + " is not set; make promises does that")
	}
	c, err := shared()
	must(t, err)
	return c
}

// programs builds what is installed on nodes: ours as they would be shipped,
// and those that ask. The key is the name on the node.
var programs = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "nodelocaldns-promises")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-buildvcs=false", "-o", dir + "/bin/", "nodelocaldns/cmd/..."},
		{"go", "build", "-trimpath", "-buildvcs=false", "-o", dir + "/tools/", "nodelocaldns/test/promises/cmd/..."},
		{"gcc", "-O2", "-o", dir + "/tools/lookup-glibc", "clients/getaddrinfo.c"},
		{"musl-gcc", "-static", "-O2", "-o", dir + "/tools/lookup-musl", "clients/getaddrinfo.c"},
		{"gcc", "-O2", "-o", dir + "/tools/lookup-ares", "clients/ares.c", "-l:libcares.a"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	all := map[string][]byte{}
	for from, to := range map[string]string{"bin": "/usr/bin/", "tools": tools} {
		files, err := os.ReadDir(filepath.Join(dir, from))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if all[to+f.Name()], err = os.ReadFile(filepath.Join(dir, from, f.Name())); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
})

// made is how many nodes were.
var made atomic.Int64

// A machine is a node with a pod on it.
type machine struct {
	*node.Node
	cluster *node.Cluster
	pod     string
	resolv  string // its resolv.conf
	laid    string // the name that it has in the pod's network namespace
	from    string // the addresses of the node and of its pods, for iptables
	names   []load.Name
}

// places are those of nodes that may run at once: more of them would wait for each
// other's boots.
var places = make(chan struct{}, 4)

// boot boots a node that has joined, with our programs on it and nothing of
// them active.
func boot(t *testing.T) *machine {
	t.Helper()
	places <- struct{}{}
	t.Cleanup(func() { <-places })
	m := install(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(m.journal())
		}
		must(t, m.Cut())
	})
	return m
}

func install(t *testing.T) *machine {
	t.Helper()
	c := cluster(t)
	all, err := programs()
	must(t, err)
	n, err := c.Node(fmt.Sprint("p", made.Add(1)))
	must(t, err)
	must(t, n.Join(t.Context()))
	for name, b := range all {
		must(t, n.Put(name, b, 0o755))
	}
	must(t, n.Put(settings, []byte(config), 0o644))
	must(t, n.Boot(t.Context()))
	must(t, n.Ready(t.Context()))
	return &machine{Node: n, cluster: c}
}

// apply boots a node with a pod that asks us.
func apply(t *testing.T) *machine {
	t.Helper()
	m := boot(t)
	m.apply(t)
	return m
}

// common is the machine of those tests that are not run beside others.
var common *machine

// alone is a machine with a pod that asks us, for a test beside which nothing
// else loads the processors. It is the same one for all of them, until one fails.
func alone(t *testing.T) *machine {
	t.Helper()
	if common == nil {
		m := install(t)
		m.apply(t)
		common = m
	}
	common.healthy(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(common.journal())
			must(t, common.Cut())
			common = nil
		}
	})
	return common
}

func (m *machine) apply(t *testing.T) {
	t.Helper()
	m.output(t, "nodelocaldns", "apply")
	must(t, m.Ready(t.Context()))
	if got := m.runPod(t); got != both {
		t.Fatalf("the pod's name servers are %s, want %s", got, both)
	}
	m.from = m.Addr + "," + strings.Fields(m.output(t, "ip", "-4", "-o", "address", "show", "dev", "cni0"))[3]
	m.names = truth(t)
	m.healthy(t)
}

// runPod runs the machine's pod, in the place of the one before, and returns its
// name servers.
func (m *machine) runPod(t *testing.T) string {
	t.Helper()
	if m.pod != "" {
		must(t, m.cluster.DeletePod(t.Context(), m.pod))
	}
	m.pod = "pod-" + m.Name
	must(t, m.cluster.RunPod(t.Context(), node.Pod{Name: m.pod, Node: m.Node}))
	r, err := m.cluster.PodExec(t.Context(), m.pod, "cat", "/etc/resolv.conf")
	must(t, err)
	m.resolv = r.Stdout
	var servers []string
	for line := range strings.Lines(r.Stdout) {
		if s, ok := strings.CutPrefix(line, "nameserver "); ok {
			servers = append(servers, strings.TrimSpace(s))
		}
	}
	return strings.Join(servers, " ")
}

// journal is what happened on a node, for one whose test failed.
func (m *machine) journal() string {
	r, err := m.Exec(context.Background(), "sh", "-c", `journalctl="journalctl --boot --no-pager --no-hostname --output=short-precise"
		systemctl list-units --all --no-legend 'nodelocaldns*' kubelet
		$journalctl --lines=80 --unit='nodelocaldns*' | cut -c 1-300; $journalctl --lines=5 --unit=kubelet | cut -c 1-300`)
	if err != nil {
		return err.Error()
	}
	return r.Stdout
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// output is what a command on the node printed. That it fails, fails the test.
func (m *machine) output(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.Output(t.Context(), args...)
	must(t, err)
	return out
}

// show is a property of a unit.
func (m *machine) show(t *testing.T, unit, property string) string {
	t.Helper()
	return strings.TrimSpace(m.output(t, "systemctl", "show", "--value", "--property="+property, unit))
}

// number is a property of a unit that is one.
func (m *machine) number(t *testing.T, unit, property string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(m.show(t, unit, property), 10, 64)
	must(t, err)
	return n
}

// eventually tries f until it succeeds, and returns how long that took. It
// fails the test after most.
func eventually(t *testing.T, what string, most time.Duration, f func() error) time.Duration {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	must(t, node.Until(ctx, what, f))
	return time.Since(begun)
}

// in waits until a unit is in one of these states, and returns how long that took.
func (m *machine) in(t *testing.T, unit string, most time.Duration, states ...string) time.Duration {
	t.Helper()
	return eventually(t, unit+" to be "+strings.Join(states, " or "), most, func() error {
		r, err := m.Exec(t.Context(), "systemctl", "is-active", unit)
		if err != nil {
			return err
		}
		for _, s := range states {
			if strings.TrimSpace(r.Stdout) == s {
				return nil
			}
		}
		return errors.New("it is " + r.Stdout)
	})
}

// healthy waits until the resolver and guard are at work, the relay is not, and
// every name resolves.
func (m *machine) healthy(t *testing.T) {
	t.Helper()
	m.in(t, guard, 20*time.Second, "active")
	m.in(t, resolver, 20*time.Second, "active")
	m.in(t, relay, 20*time.Second, "inactive", "failed")
	eventually(t, "all names to resolve", 20*time.Second, func() error {
		s := m.load(t, load.Plan{Rate: 200, Count: 3 * len(m.names), Sockets: 4}).wait().Summary(nil)
		if s.Failed() > 0 {
			return errors.New(s.Example)
		}
		return nil
	})
}

// truth is what kube-dns answers for names whose replies are small.
func truth(t *testing.T) []load.Name {
	t.Helper()
	var out []load.Name
	for _, q := range []struct {
		name string
		kind uint16
	}{
		{"kubernetes.default.svc.cluster.local.", dns.TypeA},
		{"web.shop.svc.cluster.local.", dns.TypeA},
		{"db.shop.svc.cluster.local.", dns.TypeA},
		{"dual.shop.svc.cluster.local.", dns.TypeA},
		{"dual.shop.svc.cluster.local.", dns.TypeAAAA},
		{"web.shop.svc.cluster.local.", dns.TypeAAAA}, // nothing of that type
		{"web.default.svc.cluster.local.", dns.TypeA}, // no such name
		{"_http._tcp.web.shop.svc.cluster.local.", dns.TypeSRV},
		{"20.10.96.10.in-addr.arpa.", dns.TypePTR},
		{"www.example.com.", dns.TypeA},
	} {
		reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(q.name, q.kind), node.KubeDNS+":53")
		must(t, err)
		out = append(out, load.Truth(reply))
	}
	return out
}

// inPod is a command in the network namespace of the machine's pod, with the
// pod's resolv.conf.
func (m *machine) inPod(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	// containerd makes one for each pod, and the machine has one pod.
	netns := strings.Fields(m.output(t, "ls", "/run/netns"))
	if len(netns) != 1 {
		t.Fatalf("the node's network namespaces are %q, want that of one pod", netns)
	}
	// ip lays what is there over the files of /etc.
	if resolv := "/etc/netns/" + netns[0] + "/resolv.conf"; m.laid != resolv {
		must(t, m.Put(resolv, []byte(m.resolv), 0o644))
		m.laid = resolv
	}
	return m.Command(t.Context(), append([]string{"ip", "netns", "exec", netns[0]}, args...)...)
}

// A run is a load that is being sent.
type run struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout bytes.Buffer
	stderr bytes.Buffer
}

// load begins to ask as the plan says, from the pod; what it does not say is our
// address, over UDP, for the machine's names. It ends when it has sent all, or
// is stopped.
func (m *machine) load(t *testing.T, p load.Plan) *run {
	t.Helper()
	if !p.Server.IsValid() {
		p.Server = netip.MustParseAddrPort(local + ":53")
	}
	if p.Proto == "" {
		p.Proto = "udp"
	}
	if p.Names == nil {
		p.Names = m.names
	}
	return ask(t, m.inPod(t, tools+"load"), p)
}

// ask begins a load; cmd runs the program for it.
func ask(t *testing.T, cmd *exec.Cmd, p load.Plan) *run {
	t.Helper()
	plan, err := json.Marshal(p)
	must(t, err)
	r := &run{t: t, cmd: cmd}
	in, err := r.cmd.StdinPipe()
	must(t, err)
	r.stdin = in
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	must(t, r.cmd.Start())
	_, err = in.Write(plan)
	must(t, err)
	return r
}

// stop ends the load early, and waits for it.
func (r *run) stop() load.Result {
	r.t.Helper()
	r.stdin.Close()
	return r.wait()
}

// wait waits until every query has its outcome.
func (r *run) wait() load.Result {
	r.t.Helper()
	if err := r.cmd.Wait(); err != nil {
		r.t.Fatalf("load: %v\n%s", err, &r.stderr)
	}
	var out load.Result
	must(r.t, json.Unmarshal(r.stdout.Bytes(), &out))
	return out
}

// kill sends a signal to the main process of a unit, as soon as there is one.
func (m *machine) kill(t *testing.T, unit, signal string) {
	t.Helper()
	eventually(t, unit+" to have a process", 10*time.Second, func() error {
		_, err := m.Output(t.Context(), "systemctl", "kill", "--kill-who=main", "--signal="+signal, unit)
		return err
	})
}

package node

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// mark is the annotation on a node that we have cordoned.
const mark = "nodelocaldns.io/cordoned-by"

// longest bounds a run of nodelocaldns, and whatever else is waited for here.
const longest = 3 * time.Minute

// An outcome is how a node is when all is over.
type outcome struct {
	Cordoned, Marked bool
	Open             bool   // the window is in the journal
	Asks             string // whom its kubelet names to pods; empty: whom its configuration says
}

var (
	asBeforeUs = outcome{}
	withUs     = outcome{Asks: local + "," + KubeDNS}
)

var clusterDNS = regexp.MustCompile(`--cluster-dns=(\S+)`)

func outcomeOf(t *testing.T, n *Node) outcome {
	t.Helper()
	var node struct {
		Metadata struct{ Annotations map[string]string }
		Spec     struct{ Unschedulable bool }
	}
	must(t, json.Unmarshal([]byte(kubectl(t, n.cluster, "get", "node", n.Name, "--output=json")), &node))
	o := outcome{Cordoned: node.Spec.Unschedulable}
	_, o.Marked = node.Metadata.Annotations[mark]
	journal, err := os.ReadFile(filepath.Join(n.Root, "var/lib/nodelocaldns/journal.json"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	o.Open = strings.Contains(string(journal), `"window/`)
	var lists []string
	for _, found := range clusterDNS.FindAllStringSubmatch(arguments(t, n), -1) {
		lists = append(lists, found[1])
	}
	o.Asks = strings.Join(lists, " ")
	return o
}

// ends fails the test unless the node is as wanted, and Ready.
func ends(t *testing.T, what string, n *Node, want outcome) {
	t.Helper()
	must(t, n.Ready(t.Context()))
	if diff := cmp.Diff(want, outcomeOf(t, n)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func kubectl(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), args...)
	must(t, err)
	return out
}

// A work is nodelocaldns at work on a node. It has three minutes.
type work struct {
	t     *testing.T
	what  string
	cmd   *exec.Cmd
	lines *bufio.Scanner
	said  strings.Builder
}

// begin starts nodelocaldns on the node.
func begin(t *testing.T, n *Node, args ...string) *work {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	t.Cleanup(cancel)
	cmd := n.Command(ctx, append([]string{"nodelocaldns"}, args...)...)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	return &work{t: t, what: "nodelocaldns " + strings.Join(args, " "), cmd: cmd, lines: bufio.NewScanner(out)}
}

// reads reads the next line of what it prints.
func (w *work) reads() (string, bool) {
	if !w.lines.Scan() {
		return "", false
	}
	w.said.WriteString(w.lines.Text() + "\n")
	return w.lines.Text(), true
}

// says returns when it has said something.
func (w *work) says(words string) {
	w.t.Helper()
	for {
		switch line, ok := w.reads(); {
		case !ok:
			_ = w.cmd.Wait()
			w.t.Fatalf("%s ended with code %d and never said %q:\n%s", w.what, w.cmd.ProcessState.ExitCode(), words, &w.said)
		case strings.Contains(line, words):
			return
		}
	}
}

// ends waits for its end and returns all that it said.
func (w *work) ends(want int) string {
	w.t.Helper()
	for more := true; more; {
		_, more = w.reads()
	}
	_ = w.cmd.Wait()
	if got := w.cmd.ProcessState.ExitCode(); got != want {
		w.t.Fatalf("%s: exit code %d, want %d\n%s", w.what, got, want, &w.said)
	}
	w.t.Logf("%s\n%s", w.what, &w.said)
	return w.said.String()
}

// kill ends it by SIGKILL, if it has not ended yet.
func (w *work) kill() {
	w.t.Helper()
	must(w.t, w.cmd.Cancel())
	w.gone()
}

// gone waits for its end, however that comes.
func (w *work) gone() {
	w.t.Helper()
	for more := true; more; {
		_, more = w.reads()
	}
	_ = w.cmd.Wait()
	w.t.Logf("%s, until it was killed\n%s", w.what, &w.said)
}

type object = map[string]any

// podSpec is one of busybox that sleeps and has a readiness probe, with more.
func podSpec(more object) object {
	spec := object{
		"automountServiceAccountToken":  false,
		"terminationGracePeriodSeconds": 1,
		"containers": []any{object{
			"name": "main", "image": "docker.io/library/busybox:local", "imagePullPolicy": "Never",
			"command":        []string{"sleep", "86400"},
			"readinessProbe": object{"exec": object{"command": []string{"ls", "/"}}, "periodSeconds": 2},
		}},
	}
	for key, value := range more {
		spec[key] = value
	}
	return spec
}

func on(n *Node) object { return object{"nodeSelector": object{"kubernetes.io/hostname": n.Name}} }

// kubectlApply makes an object in the default namespace.
func kubectlApply(t *testing.T, c *Cluster, o object) {
	t.Helper()
	manifest, err := json.Marshal(o)
	must(t, err)
	_, err = c.KubectlApply(t.Context(), string(manifest))
	must(t, err)
}

// deploy makes a Deployment, or a DaemonSet for no replicas, and returns when its
// pods are ready.
func deploy(t *testing.T, c *Cluster, name string, replicas int, spec object) {
	t.Helper()
	kind, labels := "DaemonSet", object{"app": name}
	o := object{
		"selector": object{"matchLabels": labels},
		"template": object{"metadata": object{"labels": labels}, "spec": spec},
	}
	if replicas > 0 {
		kind, o["replicas"] = "Deployment", replicas
	}
	kubectlApply(t, c, object{"apiVersion": "apps/v1", "kind": kind, "metadata": object{"name": name}, "spec": o})
	rolledOut(t, c, strings.ToLower(kind)+"/"+name)
}

func rolledOut(t *testing.T, c *Cluster, what string) {
	t.Helper()
	kubectl(t, c, "rollout", "status", what, "--timeout="+startTimeout.String())
}

// budget makes a PodDisruptionBudget for a Deployment of its name.
func budget(t *testing.T, c *Cluster, name string, maxUnavailable int) {
	t.Helper()
	kubectlApply(t, c, object{
		"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": object{"name": name},
		"spec": object{"maxUnavailable": maxUnavailable, "selector": object{"matchLabels": object{"app": name}}},
	})
	eventually(t, "the budget to be known", func() error {
		out, err := c.Kubectl(t.Context(), "get", "pdb", name, "--output=jsonpath={.status.observedGeneration} {.status.currentHealthy} {.status.expectedPods}")
		if f := strings.Fields(out); err == nil && (len(f) != 3 || f[0] != "1" || f[1] != f[2]) {
			err = fmt.Errorf("its status is %q", out)
		}
		return err
	})
}

// podsOf are the UIDs of the pods of a Deployment or DaemonSet, a line for each,
// with its node.
func podsOf(t *testing.T, c *Cluster, name string) string {
	t.Helper()
	return kubectl(t, c, "get", "pods", "--selector=app="+name, `--output=jsonpath={range .items[*]}{.metadata.uid} {.spec.nodeName}{"\n"}{end}`)
}

// theRest is what rollback is to leave in tests that are about the kubelet.
var theRest = []string{"--keep=unit,link,notrack,sysctl"}

// An asker asks the API server, as its administrator and without the cost of a
// process for each question.
type asker struct{ client *http.Client }

func newAsker(t *testing.T, c *Cluster) asker {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.admin)
	must(t, err)
	client, err := rest.HTTPClientFor(config)
	must(t, err)
	return asker{client}
}

// get reads a path of the API into v.
func (a asker) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, apiServer+path, nil)
	if err != nil {
		return err
	}
	reply, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	return json.NewDecoder(reply.Body).Decode(v)
}

// sampled calls f ten times a second until ctx ends. The channel closes then.
func sampled(ctx context.Context, f func()) (ended chan struct{}) {
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			f()
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return ended
}

// A sampler asks the API server ten times a second how many pods are ready.
type sampler struct {
	stop  func()
	ended chan struct{}

	fewest, asked int
	err           error
}

func sample(t *testing.T, c *Cluster, app string) *sampler {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	api := newAsker(t, c)
	s := &sampler{stop: cancel, fewest: 1 << 30}
	s.ended = sampled(ctx, func() {
		ready, err := readyPods(ctx, api, app)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			s.err = err
		default:
			s.fewest, s.asked = min(s.fewest, ready), s.asked+1
		}
	})
	return s
}

// readyPods counts those that are ready and not ending.
func readyPods(ctx context.Context, api asker, app string) (ready int, err error) {
	var list struct {
		Items []struct {
			Metadata struct{ DeletionTimestamp string }
			Status   struct {
				Conditions []struct{ Type, Status string }
			}
		}
	}
	if err := api.get(ctx, "/api/v1/namespaces/default/pods?labelSelector=app%3D"+app, &list); err != nil {
		return 0, err
	}
	for _, p := range list.Items {
		for _, c := range p.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" && p.Metadata.DeletionTimestamp == "" {
				ready++
			}
		}
	}
	return ready, nil
}

// atLeast ends the sampling, and fails the test if there were ever fewer.
func (s *sampler) atLeast(t *testing.T, want int) {
	t.Helper()
	s.stop()
	<-s.ended
	t.Logf("%d samples, the fewest ready pods: %d", s.asked, s.fewest)
	if s.err != nil {
		t.Errorf("sampling the pods: %v", s.err)
	}
	if s.asked < 20 || s.fewest < want {
		t.Errorf("in %d samples there were as few as %d ready pods, want %d", s.asked, s.fewest, want)
	}
}

// A client is a pod's that asks its own node, whether it is answered or not.
type client struct {
	stop  func()
	ended chan struct{}

	asked       atomic.Int64
	mu          sync.Mutex
	bad         []string // lost and wrong answers
	outstanding sync.WaitGroup
}

// perSecond is how often a client asks.
const perSecond = 200

// answerWithin is how long the resolver of a pod waits: resolv.conf(5), timeout.
const answerWithin = 5 * time.Second

var netNamespace = regexp.MustCompile(`net:\[\d+\]`)

// newClient starts one in the network namespace of a pod.
func newClient(t *testing.T, n *Node, pod string) *client {
	t.Helper()
	want := netNamespace.FindString(inPod(t, n, pod, "ls", "-l", "/proc/self/ns/net"))
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	must(t, err)
	var ns *os.File
	for _, name := range all {
		if is, err := os.Readlink(name); err == nil && is == want {
			if ns, err = os.Open(name); err == nil {
				break
			}
		}
	}
	if ns == nil {
		t.Fatalf("no process of pod %s is to be seen in its namespace %q", pod, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	c := &client{stop: cancel, ended: make(chan struct{})}
	inside := make(chan error)
	go func() {
		defer close(c.ended)
		defer ns.Close()
		runtime.LockOSThread() // and it ends with this goroutine: it is of the pod's from here on
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if inside <- err; err != nil {
			return
		}
		tick := time.NewTicker(time.Second / perSecond)
		defer tick.Stop()
		for i, begun := 0, time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for due := int(time.Since(begun) * perSecond / time.Second); i < due; i++ {
				c.ask(i)
			}
		}
	}()
	must(t, <-inside)
	return c
}

// ask asks once, and does not wait for the answer. Every tenth name is a new one,
// which kube-dns has to be asked for.
func (c *client) ask(i int) {
	c.asked.Add(1)
	name, want := "web.shop.svc.cluster.local.", "NOERROR 10.96.10.20"
	if i%10 == 0 {
		name, want = fmt.Sprintf("none-%d.shop.svc.cluster.local.", i), "NXDOMAIN"
	}
	query := new(dns.Msg).SetQuestion(name, dns.TypeA)
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local+":53")))
	if err != nil {
		c.complain(name, err.Error())
		return
	}
	c.outstanding.Go(func() {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(answerWithin))
		co := &dns.Conn{Conn: conn}
		if err := co.WriteMsg(query); err != nil {
			c.complain(name, err.Error())
			return
		}
		reply, err := co.ReadMsg()
		if err != nil {
			c.complain(name, err.Error())
			return
		}
		got := dns.RcodeToString[reply.Rcode]
		for _, rr := range reply.Answer {
			if a, ok := rr.(*dns.A); ok {
				got += " " + a.A.String()
			}
		}
		if reply.Id != query.Id || got != want {
			c.complain(name, got)
		}
	})
}

func (c *client) complain(name, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad = append(c.bad, name+": "+why)
}

// sawNoFailure ends the client, and fails the test if an answer was lost or wrong.
func (c *client) sawNoFailure(t *testing.T) {
	t.Helper()
	c.stop()
	<-c.ended
	c.outstanding.Wait()
	t.Logf("%d queries, %d lost or wrong", c.asked.Load(), len(c.bad))
	if c.asked.Load() < 500 || len(c.bad) > 0 {
		t.Errorf("of %d queries %d were lost or wrong: %q", c.asked.Load(), len(c.bad), c.bad[:min(5, len(c.bad))])
	}
}

func TestADrainedNodeIsNotMissed(t *testing.T) {
	t.Parallel()
	one, other := bootWith(t, quick), bootWith(t, quick)
	c, app := one.cluster, "web-"+one.Name
	nodelocaldns(t, other, 0, "apply")

	// All three are on the one, and may go to the other.
	kubectl(t, c, "label", "nodes", one.Name, other.Name, "lab="+app)
	kubectl(t, c, "cordon", other.Name)
	deploy(t, c, app, 3, podSpec(object{"nodeSelector": object{"lab": app}}))
	kubectl(t, c, "uncordon", other.Name)
	budget(t, c, app, 1)

	pod := newClient(t, other, asks(t, other, "client", both))
	ready := sample(t, c, app)
	said := begin(t, one, "apply", "--drain", "drain").ends(0)
	rolledOut(t, c, "deployment/"+app)
	ready.atLeast(t, 2)
	pod.sawNoFailure(t)

	contains(t, "apply --drain drain", said, "cordoned (node "+one.Name+")",
		"of 3 pods left; ", "is kept by PodDisruptionBudget "+app, "evicting: 3 pods gone",
		"restarting the kubelet", "uncordoned (node "+one.Name+")", "applied  kubelet/cluster-dns")
	ends(t, "a drained node", one, withUs)
	pods := podsOf(t, c, app)
	if strings.Count(pods, " "+other.Name+"\n") != 3 {
		t.Errorf("pods are\n%swant three on %s", pods, other.Name)
	}
	for _, name := range strings.Fields(kubectl(t, c, "get", "pods", "--selector=app="+app, "--output=jsonpath={.items[*].metadata.name}")) {
		if got := nameservers(t, other, name); got != both {
			t.Errorf("nameservers of pod %s: %q, want %q", name, got, both)
		}
	}
	asks(t, one, "new", both)

	events := kubectl(t, c, "describe", "node", one.Name)
	_, events, _ = strings.Cut(events, "\nEvents:\n")
	for _, reason := range []string{"Cordoned", "Evicting", "KubeletRestarted", "Uncordoned"} {
		if !regexp.MustCompile(`(?m)^ +Normal +` + reason + ` .* nodelocaldns `).MatchString(events) {
			t.Errorf("kubectl describe node shows no event %s:\n%s", reason, events)
		}
	}
}

// blocked makes a pod on the node that no budget lets go. delete is how to let go
// of it all the same: it is made again.
func blocked(t *testing.T, n *Node) (app string, remove func()) {
	t.Helper()
	app = "kept-" + n.Name
	deploy(t, n.cluster, app, 1, podSpec(on(n)))
	budget(t, n.cluster, app, 0)
	return app, func() { kubectl(t, n.cluster, "delete", "pod", "--selector=app="+app, "--wait=false") }
}

func TestADrainThatABudgetStopsChangesNothing(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	app, _ := blocked(t, n)
	kubelet, pods := started(t, n), podsOf(t, n.cluster, app)

	said := begin(t, n, "apply", "--drain", "drain", "--timeout", "5s").ends(1)
	contains(t, "apply", said, "error: ", "1 of 1 pod is left after 5s: default/"+app+"-", "is kept by PodDisruptionBudget "+app,
		"hint: kubectl -n default describe pdb "+app)
	ends(t, "after the timeout", n, asBeforeUs)
	if got := started(t, n); got != kubelet {
		t.Errorf("the kubelet is\n%swant\n%s", got, kubelet)
	}
	if got := podsOf(t, n.cluster, app); got != pods {
		t.Errorf("the pods are\n%swant\n%s", got, pods)
	}
	if _, err := os.Stat(filepath.Join(n.Root, dropIn)); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", dropIn, err)
	}
}

func TestACordonThatIsNotOursStays(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	c := n.cluster
	cordon := func() { t.Helper(); kubectl(t, c, "cordon", n.Name) }
	uncordon := func() { t.Helper(); kubectl(t, c, "uncordon", n.Name) }
	unmark := func() { t.Helper(); kubectl(t, c, "annotate", "node", n.Name, mark+"-") }

	cordon()
	kubelet := started(t, n)
	said := begin(t, n, "apply", "--drain", "drain", "--timeout", "3s").ends(1)
	contains(t, "apply", said, "waiting for somebody else's cordon to end (node "+n.Name+", cordon by kubectl",
		"error: window/kubelet: open: node "+n.Name+" is cordoned, and not by us (by kubectl, since ", "hint: uncordon it")
	ends(t, "a node that was cordoned", n, outcome{Cordoned: true})
	if got := started(t, n); got != kubelet {
		t.Errorf("the kubelet is\n%swant\n%s", got, kubelet)
	}
	if _, err := os.Stat(filepath.Join(n.Root, dropIn)); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", dropIn, err)
	}

	t.Log("it is uncordoned while it is waited for")
	w := begin(t, n, "apply", "--drain", "cordon")
	w.says("waiting for somebody else's cordon")
	uncordon()
	w.ends(0)
	ends(t, "a node that was uncordoned while we waited", n, withUs)

	_, remove := blocked(t, n)
	for _, tt := range []struct {
		name string
		do   func()
		want outcome
		said string
	}{
		{"uncordoned", uncordon, outcome{}, ""},
		{"uncordoned and cordoned", func() { uncordon(); cordon() }, outcome{Cordoned: true}, "the node stays cordoned: somebody else cordoned it meanwhile"},
		{"without our mark", unmark, outcome{Cordoned: true}, "the node stays cordoned: that is not, or no longer, ours"},
	} {
		// By turns, each from where the one before has ended.
		args, asks := append([]string{"rollback"}, theRest...), ""
		if outcomeOf(t, n).Asks == "" {
			args, asks = []string{"apply"}, withUs.Asks
		}
		w := begin(t, n, append(args, "--drain=drain")...)
		w.says("is kept by PodDisruptionBudget")
		if got := outcomeOf(t, n); !got.Cordoned || !got.Marked || !got.Open {
			t.Errorf("%s: before, the node is %+v", tt.name, got)
		}
		tt.do()
		remove()
		contains(t, tt.name, w.ends(0), tt.said)
		tt.want.Asks = asks
		ends(t, tt.name, n, tt.want)
		uncordon()
		rolledOut(t, c, "deployment/kept-"+n.Name)
	}
}

func TestADrainTellsPodsApart(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	c := n.cluster
	name := func(what string) string { return what + "-" + n.Name }
	deploy(t, c, name("daemon"), 0, podSpec(on(n)))
	scratch := on(n)
	scratch["volumes"] = []any{object{"name": "scratch", "emptyDir": object{}}}
	deploy(t, c, name("scratch"), 1, podSpec(scratch))
	deploy(t, c, name("plain"), 1, podSpec(on(n)))
	runPod(t, n, "single")
	static, err := json.Marshal(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": "static", "labels": object{"app": name("static")}}, "spec": podSpec(nil)})
	must(t, err)
	must(t, n.Put("/etc/kubernetes/manifests/static.yaml", static, 0o600))
	kubectl(t, c, "wait", "--for=create", "--timeout="+startTimeout.String(), "pod/static-"+n.Name)
	kubectl(t, c, "wait", "--for=condition=Ready", "--timeout="+startTimeout.String(), "pod/static-"+n.Name)

	before := map[string]string{}
	for _, app := range []string{"daemon", "static", "scratch", "plain"} {
		before[app] = podsOf(t, c, name(app))
	}
	kubelet := started(t, n)
	const (
		holds = " has a volume emptyDir, whose content would be lost"
		alone = " has no controller that would make it again"
	)
	for _, tt := range []struct {
		flags     []string
		want, not string
	}{
		{nil, holds, ""},
		{nil, alone, ""},
		{[]string{"--delete-emptydir-data"}, alone, holds},
		{[]string{"--force"}, holds, alone},
	} {
		said := nodelocaldns(t, n, 1, append([]string{"apply", "--drain", "drain"}, tt.flags...)...)
		contains(t, strings.Join(tt.flags, " "), said, "error: window/kubelet: open: not all pods may be evicted: ", tt.want, "hint: ")
		if tt.not != "" && strings.Contains(said, tt.not) {
			t.Errorf("%s complains of what was allowed:\n%s", tt.flags, said)
		}
	}
	ends(t, "a node whose pods may not be evicted", n, asBeforeUs)
	if got := started(t, n); got != kubelet {
		t.Errorf("the kubelet is\n%swant\n%s", got, kubelet)
	}

	// One that is ending takes its time, and is waited for. It is there as long as
	// pods are asked whether they reach us, on a busy machine too.
	ending := podSpec(object{"nodeName": n.Name, "terminationGracePeriodSeconds": 20})
	kubectlApply(t, c, object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name("ending")}, "spec": ending})
	kubectl(t, c, "wait", "--for=condition=Ready", "--timeout="+startTimeout.String(), "pod/"+name("ending"))
	kubectl(t, c, "delete", "pod", name("ending"), "--wait=false")
	said := begin(t, n, "apply", "--drain", "drain", "--delete-emptydir-data", "--force").ends(0)
	contains(t, "apply", said, "default/"+name("ending")+" is ending", "of 4 pods left", "evicting: 4 pods gone")
	ends(t, "a drained node", n, withUs)
	left := kubectl(t, c, "get", "pods", "--field-selector=spec.nodeName="+n.Name, "--output=name")
	for _, app := range []string{"single", "ending"} {
		if strings.Contains(left, name(app)) {
			t.Errorf("pod %s is there: %s", name(app), left)
		}
	}
	for _, app := range []string{"scratch", "plain"} {
		rolledOut(t, c, "deployment/"+name(app))
		if now := podsOf(t, c, name(app)); now == before[app] {
			t.Errorf("the pods of %s were not evicted:\n%s", app, now)
		}
	}
	for _, app := range []string{"daemon", "static"} {
		if now := podsOf(t, c, name(app)); now != before[app] {
			t.Errorf("the pods of %s (-before +after):\n%s", app, cmp.Diff(before[app], now))
		}
	}
}

// At each write, see TestAWindowThatIsKilledAtAnyWriteIsClosedByARollback.
func TestAWindowThatWasCutOffIsClosed(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	deploy(t, n.cluster, "web-"+n.Name, 1, podSpec(on(n)))
	apply, rollback, resume := []string{"apply"}, append([]string{"rollback"}, theRest...), []string{"apply", "--resume"}
	for _, tt := range []struct {
		do   []string // with --drain=drain
		says string   // then it is killed
		then []string
		want outcome
	}{
		{apply, "cordoned", resume, withUs},
		{rollback, "restarting the kubelet", apply, withUs},
		{rollback, "the kubelet is back", resume, asBeforeUs},
		{apply, "evicting: 1 of 1", rollback, asBeforeUs},
		{apply, "restarting the kubelet", resume, withUs},
	} {
		what := fmt.Sprintf("%s, killed after %s, then %s", strings.Join(tt.do, " "), tt.says, strings.Join(tt.then, " "))
		w := begin(t, n, append(tt.do, "--drain=drain")...)
		w.says(tt.says)
		w.kill()
		begin(t, n, tt.then...).ends(0)
		ends(t, what, n, tt.want)
		rolledOut(t, n.cluster, "deployment/web-"+n.Name)
	}

	for _, tt := range []struct {
		do   []string
		want outcome
	}{{rollback, asBeforeUs}, {apply, withUs}} {
		w := begin(t, n, append(tt.do, "--drain=drain")...)
		w.says("restarting the kubelet")
		must(t, n.Cut())
		w.gone()
		must(t, n.Boot(t.Context()))
		eventually(t, "the window to be closed", func() error {
			if got := outcomeOf(t, n); got != tt.want {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
		ends(t, "the power was cut in "+tt.do[0]+", and came again", n, tt.want)
		contains(t, "the journal of the unit", output(t, n, "journalctl", "--boot", "--no-pager", "--unit=nodelocaldns-resume"), "uncordoned")
	}
}

func TestAKubeletThatDoesNotComeBackIsUncordoned(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	deploy(t, n.cluster, "web-"+n.Name, 1, podSpec(on(n)))
	refuse(t, n)
	said := begin(t, n, "apply", "--drain", "drain").ends(1)
	contains(t, "apply", said, "error: window/kubelet: undone: kubelet.service did not come back: ", "hint: journalctl -u kubelet.service",
		"uncordoned (node "+n.Name+")")
	ends(t, "a node whose kubelet refuses", n, asBeforeUs)
	if _, err := os.Stat(filepath.Join(n.Root, dropIn)); !os.IsNotExist(err) {
		t.Errorf("%s is there: %v", dropIn, err)
	}
	rolledOut(t, n.cluster, "deployment/web-"+n.Name)
	contains(t, "kubectl describe node", kubectl(t, n.cluster, "describe", "node", n.Name), "KubeletNotBack")
}

// cutOff takes the API server from a node, and from nobody else, until the
// function that it returns is called.
func cutOff(t *testing.T, n *Node) (end func()) {
	t.Helper()
	rule := []string{"OUTPUT", "--destination", labAddr, "--protocol", "tcp", "--jump", "REJECT", "--reject-with", "tcp-reset"}
	output(t, n, append([]string{"iptables", "--insert"}, rule...)...)
	return func() { t.Helper(); output(t, n, append([]string{"iptables", "--delete"}, rule...)...) }
}

func TestANodeWithoutAnAPIServerIsNotCordoned(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	end := cutOff(t, n)
	said := begin(t, n, "apply", "--drain", "drain").ends(1)
	contains(t, "apply --drain drain", said, "error: window/kubelet: open: the node cannot be cordoned: ", "hint: --drain never ")
	said = begin(t, n, "apply").ends(0)
	contains(t, "apply", said, "no API server: the kubelet is restarted without a cordon", "the kubelet is back")
	end()
	ends(t, "a node that was restarted without an API server", n, withUs)
}

func TestANodeThatLosesTheAPIServerIsUncordonedWhenItIsBack(t *testing.T) {
	t.Parallel()
	n := bootWith(t, quick)
	w := begin(t, n, "apply", "--drain=cordon", "--timeout=5s")
	w.says("restarting the kubelet")
	end := cutOff(t, n)
	said := w.ends(1) // Close asks for a minute
	contains(t, "apply", said, "the API server does not answer: that the kubelet is well is known from the node alone",
		"error: window/kubelet: close: uncordoning the node: ", "hint: nodelocaldns apply --resume does it when the API server answers")
	end()
	ends(t, "a node that could not be uncordoned", n, outcome{Cordoned: true, Marked: true, Open: true, Asks: withUs.Asks})
	begin(t, n, "apply", "--resume").ends(0)
	ends(t, "a node that is uncordoned later", n, withUs)
}

// kill9 kills a process of the control plane and returns what starts it again.
func kill9(t *testing.T, c *Cluster, name string) (start func()) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range all {
		text, err := os.ReadFile(file)
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		if err != nil || filepath.Base(args[0]) != name {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		must(t, err)
		must(t, unix.Kill(pid, unix.SIGKILL))
		eventually(t, name+" to be gone", func() error {
			if err := unix.Kill(pid, 0); err == nil {
				return fmt.Errorf("process %d is there", pid)
			}
			return nil
		})
		again := sync.OnceFunc(func() { must(t, c.start(make(chan error, 1), name, args[1:]...)) })
		t.Cleanup(again) // for other tests, if this one ends here
		return func() {
			t.Helper()
			again()
			eventually(t, name+" to be ready", func() error {
				_, err := c.Kubectl(t.Context(), "get", "--raw", "/readyz")
				return err
			})
		}
	}
	t.Fatalf("no process %s", name)
	return nil
}

// Not beside others: they need the API server too.
func TestADrainOutlivesTheAPIServer(t *testing.T) {
	n := bootWith(t, quick)
	app, _ := blocked(t, n)
	w := begin(t, n, "apply", "--drain", "drain")
	w.says("is kept by PodDisruptionBudget")
	start := kill9(t, n.cluster, "kube-apiserver")
	w.says("connection refused")
	start()
	kubectl(t, n.cluster, "delete", "pdb", app)
	said := w.ends(0)
	contains(t, "apply", said, "evicting: 1 pod gone", "uncordoned")
	ends(t, "a node whose API server came back", n, withUs)
}

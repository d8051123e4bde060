package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/test/kubedns"
	"nodelocaldns/test/node"
	"nodelocaldns/test/promises/load"
)

// behind is kube-dns by the address of its service kube-dns-upstream, which
// node-cache does not hold.
const behind = "10.96.0.11"

// buildForMigration builds what plays node-cache, and what asks.
func buildForMigration(dir string) error {
	for _, args := range [][]string{
		{"-C", "../tools/coredns", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, "node-cache"), "./node-cache"},
		{"build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, "load"), "nodelocaldns/test/promises/cmd/load"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// daemonSet is that of the node-local-dns manifest where kube-proxy is in iptables
// mode: it holds kube-dns's own address too. Its program comes from the node, and is
// killed on one of them when its pod ends.
const daemonSet = `
apiVersion: v1
kind: ConfigMap
metadata: {name: node-local-dns, namespace: kube-system}
data:
  Corefile: |
    cluster.local:53 in-addr.arpa:53 ip6.arpa:53 .:53 {
        errors
        cache {
            success 9984 30
            denial 9984 5
        }
        reload
        loop
        bind 169.254.20.10 10.96.0.10
        forward . 10.96.0.11 {
            force_tcp
        }
        prometheus :9253
        health 169.254.20.10:8080
    }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node-local-dns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: node-local-dns}}
  template:
    metadata: {labels: {k8s-app: node-local-dns}}
    spec:
      hostNetwork: true
      dnsPolicy: Default
      automountServiceAccountToken: false
      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
        {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [told, killed]}]}]}}}
      containers:
      - name: node-cache
        image: docker.io/library/busybox:local
        imagePullPolicy: Never
        command: [sh, -c]
        args:
        - |
          set -- /host/usr/bin/node-cache -root /host -localip 169.254.20.10,10.96.0.10 -conf /etc/coredns/Corefile
          if test "$NODE" = told; then exec "$@"; fi
          "$@" & trap "kill -KILL $!" TERM; wait
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {host: 169.254.20.10, path: /health, port: 8080}, periodSeconds: 1}
        securityContext: {privileged: true}
        volumeMounts: [{name: host, mountPath: /host}, {name: config, mountPath: /etc/coredns}]
      volumes: [{name: host, hostPath: {path: /}}, {name: config, configMap: {name: node-local-dns}}]
`

// fresh is what names begin with that nobody has asked for before.
const fresh = "new-"

// asking is a client in the node's only pod, at a fixed rate.
type asking struct {
	cmd       *exec.Cmd
	in        io.Closer
	out, said bytes.Buffer
}

// ask begins to ask for names that are asked again and again, and, one of ten, for
// names that nobody has asked for before.
func (m machine) ask(t *testing.T) *asking {
	t.Helper()
	var warm []load.Name
	for _, name := range []string{"web.shop.svc.cluster.local.", "db.shop.svc.cluster.local.", "www.example.com."} {
		reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(name, dns.TypeA), node.KubeDNS+":53")
		must(t, err)
		warm = append(warm, load.Truth(reply))
	}
	p := load.Plan{Server: netip.MustParseAddrPort(local + ":53"), Proto: "udp", Rate: 500, Sockets: 64, Fresh: 5}
	p.Count = 240 * p.Rate
	for i := range 2000 { // what has been denied is forgotten before it is asked for again
		for n := range 9 {
			p.Names = append(p.Names, warm[(i+n)%len(warm)])
		}
		p.Names = append(p.Names, load.Name{Name: fmt.Sprintf("%s%d.example.com.", fresh, i), Type: "A", Rcode: "NXDOMAIN"})
	}
	plan, err := json.Marshal(p)
	must(t, err)
	a := &asking{cmd: m.Command(t.Context(), "sh", "-c", `exec ip netns exec "$(ls /run/netns)" /opt/load`)}
	a.cmd.Stdout, a.cmd.Stderr = &a.out, &a.said
	in, err := a.cmd.StdinPipe()
	must(t, err)
	must(t, a.cmd.Start())
	_, err = in.Write(plan)
	must(t, err)
	a.in = in
	return a
}

// end ends it, and returns what became of all queries.
func (a *asking) end(t *testing.T) load.Result {
	t.Helper()
	must(t, a.in.Close())
	if err := a.cmd.Wait(); err != nil {
		t.Fatalf("load: %v\n%s", err, &a.said)
	}
	var r load.Result
	must(t, json.Unmarshal(a.out.Bytes(), &r))
	return r
}

// A real DaemonSet, whose node-cache is played by CoreDNS with the same device and
// rules; it takes them away when it is told to end, and on one node is killed and
// leaves them. The pod asks all the time.
func TestMigrationThereAndBackLosesNoLookup(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	if out, err := exec.Command("ip", "addr", "add", behind+"/32", "dev", "br0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	upstream, err := kubedns.Listen(behind + ":53")
	must(t, err)
	t.Cleanup(upstream.Close)

	var nodes []machine
	for _, name := range []string{"told", "killed"} {
		m := boot(t, node.Debian12, name, func(m machine) {
			for program, dir := range map[string]string{"node-cache": "/usr/bin", "load": "/opt"} {
				data, err := os.ReadFile(filepath.Join(os.Getenv(built), program))
				must(t, err)
				must(t, m.Put(filepath.Join(dir, program), data, 0o755))
			}
		})
		must(t, m.AllowSSH(t.Context()))
		must(t, c.RunPod(t.Context(), node.Pod{Name: "asks-" + name, Node: m.Node}))
		nodes = append(nodes, m)
	}
	_, err = c.KubectlApply(t.Context(), daemonSet)
	must(t, err)
	ready := func() {
		t.Helper()
		must(t, node.Until(t.Context(), "the DaemonSet to be ready", func() error {
			out, err := c.Kubectl(t.Context(), "-n", "kube-system", "get", "daemonset", "node-local-dns", "-o", "jsonpath={.status.numberReady}")
			if err == nil && out != "2" {
				err = errors.New(out + " are")
			}
			return err
		}))
	}
	ready()
	before := dumps(t, nodes)
	clients := make([]*asking, len(nodes))
	for i, m := range nodes {
		clients[i] = m.ask(t)
	}
	time.Sleep(time.Second) // of asking node-cache alone

	ansible := newController(t, nodes, nil, map[string]any{
		"nodelocaldns_source": "file", "nodelocaldns_package": deb(), "nodelocaldns_soak": 0,
		"nodelocaldns_config": map[string]any{"kubelet": map[string]any{"settle": "3s"}},
	})
	given, err := json.Marshal(map[string]any{"kubectl": c.AdminKubectl(), "nodelocaldns_rings": []int{2}})
	must(t, err)
	migrate := func(want int, args ...string) string {
		return ansible.play(t, want, "migrate.yml", append([]string{"-e", string(given)}, args...)...)
	}
	label := func(to string) {
		t.Helper()
		_, err := c.Kubectl(t.Context(), "label", "node", nodes[0].Name, "cloud.google.com/gke-nodepool"+to)
		must(t, err)
	}
	label("=pool")
	if out := migrate(2); !strings.Contains(strings.Join(strings.Fields(out), " "), "GKE and AKS manage the node-local cache of their nodes themselves") {
		t.Errorf("a node of GKE: %s", out)
	}
	label("-")

	migrate(0)
	for _, m := range nodes {
		m.sh(t, 0, `! pidof node-cache && ! ip link show nodelocaldns && ! iptables-save | grep 'NodeLocal DNS Cache'`)
		m.sh(t, 0, "nodelocaldns plan && nodelocaldns status && nodelocaldns doctor")
	}
	if again := changed(migrate(0, "--check")); len(again) > 0 {
		t.Errorf("a second migration would change %v", again)
	}

	migrate(0, "-e", "direction=back", "-e", "nodelocaldns_remove=true")
	ready()
	time.Sleep(time.Second) // of asking node-cache alone
	for i, m := range nodes {
		r := clients[i].end(t)
		all := r.Summary(nil)
		t.Logf("%s: %+v", m.Name, all)
		// What node-cache has taken and not answered when it ends, nobody else can answer:
		// that is of one moment, as long as its line is.
		first, last := time.Duration(math.MaxInt64), time.Duration(0)
		for _, q := range r.Records {
			if q.Outcome == load.Lost {
				first, last = min(first, q.At), max(last, q.At)
			}
		}
		if all.Lost > 0 && last-first > time.Second || all.Wrong+all.Refused > 0 || all.Sent < 5000 {
			t.Errorf("%s: %d queries, of which %d lost from %v to %v, %d wrong, %d refused: %s", m.Name, all.Sent, all.Lost, first, last, all.Wrong, all.Refused, all.Example)
		}
		warm := r.Summary(func(q load.Record) bool { return !strings.HasPrefix(q.Name, fresh) })
		// New ones have nobody to answer them while node-cache holds the address of
		// kube-dns and does not listen: before it does, and after it was killed.
		if warm.Servfail > 0 {
			t.Errorf("%s: %d queries failed for names that we had: %s", m.Name, warm.Servfail, warm.Example)
		}
		if diff := differ(before[i], m.dump(t)); diff != "" {
			t.Errorf("%s: there and back (-before +after):\n%s", m.Name, diff)
		}
	}
}

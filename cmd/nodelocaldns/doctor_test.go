package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/dnscache"
	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/hosttest/doctortest"
	"nodelocaldns/host/pods"
	"nodelocaldns/host/step"
)

// examined is doctor on one of the nodes of host/doctor, where nothing of ours
// is there yet and kube-dns answers.
func examined(t *testing.T, node string) *examination {
	t.Helper()
	env := doctortest.Load(t, filepath.Join("../../host/doctor/testdata", node+".txtar"), "../../test/kubelet/corpus")
	cfg := config.Default()
	want := wantOf(cfg)
	want.Kubelet, env.Want = env.Want.Kubelet, want
	return &examination{
		env: env, file: "/etc/nodelocaldns/config.yaml", cfg: cfg, missing: true, hide: []string{"worker-1"},
		plan: func(context.Context) ([]engine.Status, error) {
			return []engine.Status{
				{Name: "link/nodelocaldns0", State: step.Pending, Why: "3 changes to hold 169.254.20.10/32"},
				{Name: "notrack/ipv4", State: step.Pending, Why: "6 changes"},
			}, nil
		},
		phase:   func() (host.Phase, error) { return host.NotAsked, nil },
		control: func(context.Context) resolverStatus { return resolverStatus{Why: "no resolver"} },
		probe:   func(context.Context) error { return nil },
		ask:     func(context.Context, string, netip.AddrPort, string) (int, error) { return dns.RcodeSuccess, nil },
	}
}

// well makes e one where all of ours is there, and answers.
func (e *examination) well() {
	since := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	e.plan = func(context.Context) ([]engine.Status, error) {
		return []engine.Status{
			{Name: "link/nodelocaldns0", Why: "169.254.20.10/32 on nodelocaldns0 (dummy)", Ours: true, Since: since},
			{Name: "notrack/ipv4", Why: "12 rules in iptables-nft", Ours: true, Since: since},
		}, nil
	}
	e.control = func(context.Context) resolverStatus {
		v, uptime := thisVersion(), int64(3600)
		return resolverStatus{
			Running: true, PID: 401, Version: &v, Since: &since, Uptime: &uptime,
			Config:    &configFacts{File: "/nonexistent/config.yaml", Loaded: since, ClusterDNS: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}},
			Queries:   &queryFacts{UDP: 1200, TCP: 34, Timeouts: 2},
			Upstreams: []upstreamStatus{{Server: netip.MustParseAddrPort("10.96.0.10:53"), Proto: "tcp", Queries: 120}},
		}
	}
	e.env.Pods = func(context.Context) ([]pods.Pod, error) {
		return []pods.Pod{{Name: "old", Nameservers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}, {Name: "new", Nameservers: e.cfg.Listen.Addresses}}, nil
	}
}

// ran is what doctor prints of e, and its exit code.
func ran(t *testing.T, e *examination, asJSON bool) (string, int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{term: term{stdout: &stdout, stderr: &stderr}}
	code := a.exit(a.doctor(t.Context(), e, asJSON))
	if stderr.Len() > 0 {
		t.Errorf("standard error: %s", &stderr)
	}
	return stdout.String(), code
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata/doctor", name)
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestDoctorFindsNothingWrongWithANodeThatIsWell(t *testing.T) {
	for node, well := range map[string]bool{"debian": false, "kubeadm": false, "applied": true} {
		t.Run(node, func(t *testing.T) {
			e := examined(t, node)
			if well {
				e.well()
			}
			out, code := ran(t, e, false)
			if code != exitOK || !strings.HasSuffix(out, "\n0 errors, 0 warnings; nothing was changed\n") {
				t.Errorf("exit code %d", code)
			}
			golden(t, node+".txt", out)
		})
	}
}

func TestDoctorAsJSON(t *testing.T) {
	e := examined(t, "kubelet-failed")
	out, code := ran(t, e, true)
	if code != exitError {
		t.Errorf("exit code %d, want %d", code, exitError)
	}
	golden(t, "failed.json", out)
	if out, code = ran(t, examined(t, "kubeadm"), true); code != exitOK || !strings.HasPrefix(out, "{\n  \"ok\": true,\n") {
		t.Errorf("a node that is well: exit code %d, %s", code, out)
	}
}

// lines are what doctor says of the named checks.
func lines(t *testing.T, e *examination, names ...string) string {
	t.Helper()
	out, _ := ran(t, e, true)
	var all struct {
		Checks []struct{ Name, Result, Why, Hint string }
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, c := range all.Checks {
		for _, name := range names {
			if c.Name == name {
				fmt.Fprintf(&b, "%s %s: %s (%s)\n", c.Result, c.Name, c.Why, c.Hint)
			}
		}
	}
	return b.String()
}

func TestDoctorOnWhatOnlyWeKnow(t *testing.T) {
	timeout := fmt.Errorf("read udp 192.0.2.7:4711->10.96.0.10:53: %w", os.ErrDeadlineExceeded)
	refused := fmt.Errorf("dial tcp 10.96.0.10:53: %w", syscall.ECONNREFUSED)
	answers := func(udp, tcp error, rcode int) func(*examination) {
		return func(e *examination) {
			e.ask = func(_ context.Context, network string, _ netip.AddrPort, name string) (int, error) {
				if name != "kubernetes.default.svc.cluster.local" {
					return 0, errors.New("asked for " + name)
				}
				if network == "udp" {
					return rcode, udp
				}
				return rcode, tcp
			}
		}
	}
	steps := func(all ...engine.Status) func(*examination) {
		return func(e *examination) {
			e.plan = func(context.Context) ([]engine.Status, error) { return all, nil }
		}
	}
	status := func(change func(*resolverStatus)) func(*examination) {
		return func(e *examination) {
			control := e.control
			e.control = func(ctx context.Context) resolverStatus {
				rs := control(ctx)
				change(&rs)
				return rs
			}
		}
	}
	for _, tt := range []struct {
		name, node string
		change     func(*examination)
		checks     string
		want       string
	}{
		{"a broken configuration", "kubeadm", func(e *examination) {
			e.missing = false
			_, e.cfgErr = parseConfig(strings.NewReader("metrics: 7\nhealth: 8\n"), "c.yaml")
		}, "config", `error config: c.yaml:1: metrics: found 7, allowed: a mapping of address (nodelocaldns config default prints every key with its default)
error config: c.yaml:2: health: found 8, allowed: a mapping of address (nodelocaldns config default prints every key with its default)
info config: what follows goes by the defaults ()
`},
		{"nobody to ask", "debian", func(e *examination) {
			e.missing, e.cfg.Cluster = false, config.Cluster{Domain: "cluster.local"}
		}, "config", "error config: /etc/nodelocaldns/config.yaml: upstreams is kube-dns and cluster.dns is empty (" + hintDNS + ")\n"},

		{"kube-dns silent", "kubeadm", answers(timeout, timeout, 0), "kube-dns",
			"error kube-dns: 10.96.0.10:53 answers this node neither over UDP nor over TCP: i/o timeout (kubectl -n kube-system get endpointslices -l k8s-app=kube-dns; is kube-proxy, or what stands in for it, well on this node?)\n"},
		{"kube-dns without TCP", "kubeadm", answers(nil, refused, 0), "kube-dns",
			"error kube-dns: 10.96.0.10:53 does not answer over TCP, by which it is asked: connection refused (let TCP port 53 through to kube-dns, or set zones.*.transport: udp)\n"},
		{"kube-dns without TCP, where it is asked over UDP", "kubeadm", func(e *examination) {
			answers(nil, refused, 0)(e)
			e.cfg.Zones.Cluster.Transport = dnscache.TransportUDP
		}, "kube-dns", "warning kube-dns: 10.96.0.10:53 does not answer over TCP: connection refused (let TCP port 53 through to kube-dns)\n"},
		{"kube-dns without UDP", "kubeadm", answers(timeout, nil, 0), "kube-dns",
			"warning kube-dns: 10.96.0.10:53 does not answer over UDP: i/o timeout (let UDP port 53 through to kube-dns: pods ask it so when we do not answer)\n"},
		{"another cluster domain", "kubeadm", answers(nil, nil, dns.RcodeNameError), "kube-dns",
			"warning kube-dns: 10.96.0.10:53 knows no kubernetes.default.svc.cluster.local: the cluster may have another domain (set cluster.domain to the kubelet's clusterDomain)\n"},
		{"kube-dns refuses", "kubeadm", answers(nil, nil, dns.RcodeRefused), "kube-dns",
			"warning kube-dns: 10.96.0.10:53 answers REFUSED for kubernetes.default.svc.cluster.local (kubectl -n kube-system get endpointslices -l k8s-app=kube-dns; is kube-proxy, or what stands in for it, well on this node?)\n"},

		{"steps in every trouble", "applied", steps(
			engine.Status{Name: "link/nodelocaldns0", State: step.Blocked, Why: "nodelocaldns0 is a veth device that is not ours", Hint: "another one"},
			engine.Status{Name: "notrack/ipv4", Err: fmt.Errorf("listing: %w", syscall.EIO)},
			engine.Status{Name: "notrack/ipv6", Unseen: true},
			engine.Status{Name: "sysctl/a", State: step.Blocked, Why: "too much memory", Hint: "less", Optional: true},
			engine.Status{Name: "sysctl/b", State: step.Pending, Why: "is 1, wanted 2", Ours: true, Drift: true},
		), "plan", `error plan: link/nodelocaldns0: blocked: nodelocaldns0 is a veth device that is not ours (another one)
error plan: notrack/ipv4: listing: input/output error ()
info plan: notrack/ipv6: not seen: needs root ()
warning plan: sysctl/a: blocked: too much memory (less)
warning plan: sysctl/b: somebody else changed it: is 1, wanted 2 (guard repairs it, if it runs; nodelocaldns apply does it now)
`},
		{"a journal that cannot be read", "kubeadm", func(e *examination) {
			e.plan = func(context.Context) ([]engine.Status, error) { return nil, errors.New("reading the journal: broken") }
		}, "plan guard", "warning plan: not all was seen: reading the journal: broken (run doctor again, as root)\n"},
		{"changes that nobody guards", "kubeadm", (*examination).well, "guard",
			"warning guard: it does not run: what others change of ours stays so (systemctl start nodelocaldns-guard, or nodelocaldns guard under another supervisor)\n"},

		{"a rollback not asked for", "kubeadm", nil, "rollback", ""},
		{"a rollback that is unfinished", "kubeadm", func(e *examination) { e.phase = func() (host.Phase, error) { return host.Unfinished, nil } }, "rollback",
			"warning rollback: a rollback was begun, and the kubelet has not got everything back (run nodelocaldns rollback again)\n"},
		{"a rollback that waits for pods", "applied", func(e *examination) { e.phase = func() (host.Phase, error) { return host.Draining, nil } }, "rollback",
			"info rollback: a rollback waits for pods that still name us: guard ends it when the last is gone (nodelocaldns status lists the pods; nodelocaldns apply calls the rollback off)\n"},
		{"a rollback that is done", "kubeadm", func(e *examination) { e.phase = func() (host.Phase, error) { return host.Finished, nil } }, "rollback",
			"info rollback: a rollback was asked for and is done: guard leaves the node alone (nodelocaldns apply begins anew)\n"},
		{"an off switch that cannot be read", "kubeadm", func(e *examination) { e.phase = func() (host.Phase, error) { return 0, fs.ErrPermission } }, "rollback",
			"info rollback: not seen: needs root ()\n"},

		{"no resolver, and pods that need it", "sockets", gone, "resolver",
			"error resolver: no resolver runs, and pods are sent to it (systemctl start nodelocaldns; journalctl -u nodelocaldns says why it ended)\n"},
		{"no resolver yet", "applied", gone, "resolver",
			"info resolver: no resolver runs: systemd has its sockets, and starts it with the first query ()\n"},
		{"a resolver that hangs", "applied", func(e *examination) {
			e.probe = func(context.Context) error { return fmt.Errorf("169.254.20.10:53: %w", errSilent) }
			e.control = func(context.Context) resolverStatus { return resolverStatus{Why: "not seen: needs root"} }
		}, "resolver", `error resolver: 169.254.20.10:53: no answer (journalctl -u nodelocaldns; systemctl restart nodelocaldns)
info resolver: not seen: needs root ()
`},
		{"a resolver with troubles of its own", "applied", status(func(rs *resolverStatus) {
			rs.Version = &version{Version: "v0.0.1", Go: "go1.0"}
			rs.Queries.Loops = 3
			rs.Upstreams[0].Down, rs.Upstreams[0].Errors = true, 7
			rs.Config.ClusterDNS = nil
			rs.Config.File = "/dev/null" // younger than 2026-01-02, or this machine's clock is off
		}), "resolver", `warning resolver: upstream 10.96.0.10:53 (tcp) failed lately: 7 of 120 questions without a reply (ask it yourself from this node: dig @10.96.0.10)
warning resolver: 3 of its own queries came back to it: an upstream forwards to us (what do the upstreams forward to? None of them may ask us)
warning resolver: it has not been told yet who kube-dns is (guard tells it: systemctl status nodelocaldns-guard; or set cluster.dns)
info resolver: /dev/null is newer than what the resolver goes by (nodelocaldns config check; systemctl reload nodelocaldns)
info resolver: the resolver that runs is another build: v0.0.1 go1.0 (systemctl restart nodelocaldns)
`},

		{"a resolver that does not tell", "applied", func(e *examination) {
			e.control = func(context.Context) resolverStatus { return resolverStatus{Why: "asking run/control.sock: timeout"} }
		}, "resolver", "warning resolver: it runs, and does not tell of itself: asking run/control.sock: timeout (journalctl -u nodelocaldns)\n"},
		{"a resolver that fails", "applied", func(e *examination) {
			e.ask = func(_ context.Context, network string, s netip.AddrPort, name string) (int, error) {
				switch {
				case !s.Addr().IsLinkLocalUnicast() || name != "kubernetes.default.svc.cluster.local":
					return dns.RcodeSuccess, nil
				case network == "tcp":
					return 0, refused
				}
				return dns.RcodeServerFailure, nil
			}
		}, "resolver", `error resolver: 169.254.20.10:53 answers SERVFAIL over UDP for kubernetes.default.svc.cluster.local (see the check kube-dns, and the upstreams in nodelocaldns status)
error resolver: 169.254.20.10:53 does not answer over TCP: connection refused (journalctl -u nodelocaldns)
`},
		{"a node that asks us itself", "kubeadm", nodeAsks("nameserver 169.254.20.10\nnameserver 192.0.2.1\n"), "resolv.conf",
			"warning resolv.conf: /etc/resolv.conf names 169.254.20.10: kube-dns pods on this node may forward to us what we forward to them (name the network's own servers there: pods need no such line, the kubelet names us to them)\n"},
		{"a node that names a stub alone", "kubeadm", nodeAsks("nameserver 127.0.0.53\n"), "resolv.conf",
			"info resolv.conf: this node names no server but itself: kube-dns pods that take that over have nobody to forward to (resolvConf in the kubelet's configuration may name another file)\n"},
		{"a stub alone, and no cluster", "debian", nodeAsks("nameserver 127.0.0.53\n"), "resolv.conf", "ok resolv.conf: it does not name us ()\n"},
		{"upstreams: node without a server", "debian", func(e *examination) {
			nodeAsks("nameserver 127.0.0.53\n")(e)
			e.cfg.Upstreams.Source = dnscache.NodeResolvers
		}, "resolv.conf", "error resolv.conf: upstreams is node, and this node names no server but itself (set upstreams to a list of servers, or to kube-dns)\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := examined(t, tt.node)
			if tt.node == "applied" || tt.node == "sockets" {
				e.well()
			}
			if tt.change != nil {
				tt.change(e)
			}
			if diff := cmp.Diff(tt.want, lines(t, e, strings.Fields(tt.checks)...)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// gone takes the resolver away. It is not to be asked: systemd would start it.
func gone(e *examination) {
	for name, text := range map[string]string{"cmdline": "/usr/bin/sleep\x00", "comm": "sleep\n"} {
		if err := os.WriteFile(e.env.Tree.Path("/proc/401/"+name), []byte(text), 0o644); err != nil {
			panic(err)
		}
	}
	e.probe = func(context.Context) error { panic("asked") }
	e.control = func(context.Context) resolverStatus { panic("asked") }
}

// nodeAsks gives the node an /etc/resolv.conf.
func nodeAsks(text string) func(*examination) {
	return func(e *examination) {
		if err := os.WriteFile(e.env.Tree.Path("/etc/resolv.conf"), []byte(text), 0o644); err != nil {
			panic(err)
		}
	}
}

func TestDoctorLeavesTheNameOfTheNodeOut(t *testing.T) {
	e := examined(t, "kubeadm")
	e.plan = func(context.Context) ([]engine.Status, error) {
		return nil, errors.New("asking https://worker-1:6443: refused")
	}
	if got := lines(t, e, "plan"); !strings.Contains(got, "https://NODE:6443") {
		t.Errorf("got %s", got)
	}
	if out, _ := ran(t, e, false); strings.Contains(out, "worker-1") || strings.Contains(out, "192.0.2.7") {
		t.Errorf("the node's name or address is in\n%s", out)
	}
}

// Package node holds the packages to what they promise, on booted nodes of a
// cluster: installed, enabled, upgraded, removed and purged as administrators do
// it.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/test/node"
	packaging "nodelocaldns/test/package"
	"nodelocaldns/test/promises/load"
)

// The versions that are packed: of the same programs.
const (
	older = "1.2.3"
	newer = "1.2.4"
)

const (
	local = "169.254.20.10"
	both  = local + " " + node.KubeDNS
)

// built is the environment variable with the directory of the packages, and of
// load.
const built = "NODELOCALDNS_TEST_PACKAGES"

func TestMain(m *testing.M) { os.Exit(node.MainBuilt(built, build, m.Run)) }

func build(dir string) error {
	for _, version := range []string{older, newer} {
		if err := packaging.Build("../../..", filepath.Join(dir, version), version); err != nil {
			return err
		}
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "nodelocaldns/test/promises/cmd/load")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building load: %w\n%s", err, out)
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// All tests share one control plane.
var shared = sync.OnceValues(func() (*node.Cluster, error) { return node.NewCluster(context.Background()) })

// A machine is a node with the packages in /root, and nothing of us installed.
type machine struct {
	*node.Node
	cluster *node.Cluster
}

func cluster(t *testing.T) *node.Cluster {
	t.Helper()
	if os.Getenv(node.Layers) == "" {
		t.Skip(node.Layers + " is not set; make test-cluster does that")
	}
	c, err := shared()
	must(t, err)
	return c
}

func boot(t *testing.T, name string) machine {
	t.Helper()
	return bootOf(t, node.Debian12, name)
}

// onEachRelease runs a test on a node of each release of Debian, all at once.
func onEachRelease(t *testing.T, name string, test func(*testing.T, machine)) {
	t.Parallel()
	for _, release := range []node.Release{node.Debian12, node.Debian13} {
		t.Run(string(release), func(t *testing.T) {
			t.Parallel()
			test(t, bootOf(t, release, name+"-"+string(release)))
		})
	}
}

func bootOf(t *testing.T, release node.Release, name string) machine {
	t.Helper()
	c := cluster(t)
	n, err := c.NodeOf(release, name)
	must(t, err)
	must(t, n.Join(t.Context()))
	for from, to := range map[string]string{
		older + "/" + packaging.Deb(older, runtime.GOARCH): "/root/older.deb",
		newer + "/" + packaging.Deb(newer, runtime.GOARCH): "/root/newer.deb",
		"load": "/opt/load",
	} {
		data, err := os.ReadFile(filepath.Join(os.Getenv(built), from))
		must(t, err)
		must(t, n.Put(to, data, 0o755))
	}
	must(t, n.Boot(t.Context()))
	must(t, n.Ready(t.Context()))
	m := machine{n, c}
	t.Cleanup(func() {
		if t.Failed() {
			m.sh(t, 0, "journalctl --boot --no-pager --no-hostname --lines=100 --unit='nodelocaldns*' | cut -c 1-300")
		}
		must(t, m.Cut())
	})
	return m
}

// sh runs a shell on the node and returns what it printed, to both outputs. Another
// exit code than the wanted one ends the test. With -test.v it is a transcript.
func (m machine) sh(t *testing.T, want int, script string) string {
	t.Helper()
	r, err := m.Exec(context.WithoutCancel(t.Context()), "sh", "-c", "exec 2>&1\n"+script)
	must(t, err)
	t.Logf("node# %s\n%s", script, r.Stdout)
	if r.Code != want {
		t.Fatalf("%s: exit code %d, want %d\n%s", script, r.Code, want, r.Stdout)
	}
	return r.Stdout
}

func (m machine) dump(t *testing.T) node.Dump {
	t.Helper()
	d, err := m.Dump(t.Context())
	must(t, err)
	return d
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

// kubelet says which one runs, and since when.
func (m machine) kubelet(t *testing.T) string {
	t.Helper()
	return m.sh(t, 0, "systemctl show kubelet --property=MainPID,ExecMainStartTimestampMonotonic,NRestarts")
}

// states are those of our units: whether enabled, and what runs.
func (m machine) states(t *testing.T) string {
	t.Helper()
	return m.sh(t, 0, `for u in nodelocaldns-guard.service nodelocaldns.socket nodelocaldns.service nodelocaldns-relay.service nodelocaldns-kubelet.service nodelocaldns-resume.service; do
	echo "$u" "$(systemctl is-enabled $u)" "$(systemctl is-active $u)"
done`)
}

const running = `nodelocaldns-guard.service enabled active
nodelocaldns.socket enabled active
nodelocaldns.service enabled active
nodelocaldns-relay.service static inactive
nodelocaldns-kubelet.service enabled active
nodelocaldns-resume.service enabled inactive
`

// started waits for guard and the kubelet's file, which the resolver does not.
func (m machine) started(t *testing.T) {
	t.Helper()
	m.eventually(t, "systemctl is-active nodelocaldns-guard && systemctl is-active nodelocaldns-kubelet")
}

// runPod runs a pod, and fails the test unless it has these name servers.
func (m machine) runPod(t *testing.T, name, want string) string {
	t.Helper()
	name += "-" + m.Name
	must(t, m.cluster.RunPod(t.Context(), node.Pod{Name: name, Node: m.Node}))
	r, err := m.cluster.PodExec(t.Context(), name, "grep", "^nameserver ", "/etc/resolv.conf")
	must(t, err)
	if got := strings.Join(strings.Fields(strings.ReplaceAll(r.Stdout, "nameserver ", "")), " "); got != want {
		t.Errorf("the name servers of pod %s: %q, want %q", name, got, want)
	}
	return name
}

// own is what dpkg and apt keep of their own work.
var own = regexp.MustCompile(`(?m)^[-+] file /var/lib/(dpkg/(status-old|available(-old)?|lock(-frontend)?|diversions-old|statoverride-old|triggers/(Lock|Unincorp))|apt/(extended_states|lists/lock|lists/auxfiles)) .*\n`)

func asBefore(t *testing.T, what string, before, after node.Dump) {
	t.Helper()
	if diff := own.ReplaceAllString(node.Diff(before, after), ""); diff != "" {
		t.Errorf("%s (-before +after):\n%s", what, diff)
	}
}

// load asks from a pod, which is the node's only one, until do has returned: for
// names, or for a Service. It returns what became of all queries.
func (m machine) load(t *testing.T, rate int, do func(), names ...load.Name) load.Summary {
	t.Helper()
	if names == nil {
		reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA), node.KubeDNS+":53")
		must(t, err)
		names = []load.Name{load.Truth(reply)}
	}
	plan, err := json.Marshal(load.Plan{
		Server: netip.MustParseAddrPort(local + ":53"), Proto: "udp", Rate: rate, Count: 120 * rate,
		Sockets: 64, Fresh: 5, Names: names,
	})
	must(t, err)
	cmd := m.Command(t.Context(), "sh", "-c", `exec ip netns exec "$(ls /run/netns)" /opt/load`)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = in.Write(plan)
	must(t, err)
	time.Sleep(time.Second) // of load before
	do()
	time.Sleep(time.Second) // and after
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("load: %v\n%s", err, &said)
	}
	var r load.Result
	must(t, json.Unmarshal(out.Bytes(), &r))
	return r.Summary(nil)
}

// eventually tries a command on the node until it succeeds.
func (m machine) eventually(t *testing.T, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, node.Until(ctx, script, func() error {
		r, err := m.Exec(t.Context(), "sh", "-c", script)
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stdout + r.Stderr)
		}
		return err
	}))
}

// processes are the programs that run for us, and by which file.
const processes = `for u in nodelocaldns-guard nodelocaldns; do readlink /proc/$(systemctl show --value --property=MainPID $u)/exe; done`

// The whole of it: what an administrator types, and what comes of it.
func TestAPackageIsInstalledEnabledUpgradedRemovedAndPurged(t *testing.T) {
	onEachRelease(t, "packaged", installedEnabledUpgradedRemovedAndPurged)
}

func installedEnabledUpgradedRemovedAndPurged(t *testing.T, m machine) {
	before, kubelet := m.dump(t), m.kubelet(t)

	m.sh(t, 0, "apt-get install -y /root/older.deb")
	if got := m.states(t); strings.Contains(got, " enabled ") || strings.Contains(got, " active") {
		t.Errorf("after installing it:\n%s", got)
	}
	for line := range strings.Lines(node.Diff(before, m.dump(t))) {
		if !regexp.MustCompile(`^\+ (file /(usr/(bin|lib|share)/|etc/nodelocaldns)|unit file nodelocaldns|unit )|^[-+] file /var/lib/(dpkg|apt)/`).MatchString(line) {
			t.Errorf("installing it did more to the node than its files: %s", line)
		}
	}

	m.sh(t, 0, "systemctl enable --now nodelocaldns")
	m.started(t)
	if got := m.states(t); got != running {
		t.Errorf("after enabling it:\n%s", got)
	}
	m.sh(t, 0, "nodelocaldns status")
	if again := m.kubelet(t); again != kubelet {
		t.Errorf("installing and enabling it restarted the kubelet:\n%swas\n%s", again, kubelet)
	}

	m.sh(t, 0, "nodelocaldns apply")
	must(t, m.Ready(t.Context()))
	contains(t, "status", m.sh(t, 0, "nodelocaldns status"), "of a package in /usr/lib/systemd/system")
	pod := m.runPod(t, "new", both)

	kubelet = m.kubelet(t)
	sockets := m.sh(t, 0, "systemctl show nodelocaldns.socket --property=InvocationID,ActiveEnterTimestampMonotonic")
	resolver := m.sh(t, 0, processes+"; systemctl show --value --property=MainPID nodelocaldns")
	s := m.load(t, 1000, func() { m.sh(t, 0, "apt-get install -y /root/newer.deb; nodelocaldns version") })
	t.Logf("upgrade at %.0f q/s: %d queries, %d lost, %d wrong, %d SERVFAIL, slowest %v", s.Rate, s.Sent, s.Lost, s.Wrong, s.Servfail, s.Slowest)
	if s.Right != s.Sent || s.Sent < 2000 {
		t.Errorf("of %d queries during an upgrade %d were answered rightly: %s", s.Sent, s.Right, s.Example)
	}
	if got := m.sh(t, 0, processes); got != "/usr/bin/nodelocaldns\n/usr/bin/nodelocaldns\n" {
		t.Errorf("after an upgrade these run:\n%s", got)
	}
	if m.sh(t, 0, processes+"; systemctl show --value --property=MainPID nodelocaldns") == resolver {
		t.Error("the resolver is the one from before the upgrade")
	}
	if again := m.sh(t, 0, "systemctl show nodelocaldns.socket --property=InvocationID,ActiveEnterTimestampMonotonic"); again != sockets {
		t.Errorf("an upgrade made other sockets:\n%swas\n%s", again, sockets)
	}
	if again := m.kubelet(t); again != kubelet {
		t.Errorf("an upgrade restarted the kubelet:\n%swas\n%s", again, kubelet)
	}
	if got := m.states(t); got != running {
		t.Errorf("after an upgrade:\n%s", got)
	}

	contains(t, "removing it while the kubelet names us", m.sh(t, 100, "apt-get remove -y nodelocaldns"),
		"error: not removed: this node is still changed, as /var/lib/nodelocaldns/journal.json records", "hint: nodelocaldns rollback")
	if got := m.states(t); got != running {
		t.Errorf("after a removal that was refused:\n%s", got)
	}
	m.sh(t, 0, "nodelocaldns rollback")
	contains(t, "removing it while a pod names us", m.sh(t, 1, "dpkg --remove nodelocaldns"),
		"error: not removed: this node is still changed, as /run/nodelocaldns/journal.json records")
	must(t, m.cluster.DeletePod(t.Context(), pod))
	m.eventually(t, "! ip link show nodelocaldns0 && [ ! -e /run/nodelocaldns/journal.json ]")
	if got := m.states(t); !strings.Contains(got, "nodelocaldns.service enabled active") {
		t.Errorf("a rollback disabled or stopped what an administrator had enabled:\n%s", got)
	}

	kubelet = m.kubelet(t)
	m.sh(t, 0, "apt-get purge -y nodelocaldns")
	if again := m.kubelet(t); again != kubelet {
		t.Errorf("a purge restarted the kubelet:\n%swas\n%s", again, kubelet)
	}
	m.sh(t, 0, "for f in /run/nodelocaldns*; do [ ! -e $f ] && [ ! -L $f ] || exit 1; done") // which is not compared
	asBefore(t, "after a purge", before, m.dump(t))
}

// With apply alone, which enables the units itself; and again after a removal,
// which is no purge.
func TestAPackageWorksAgainAfterARollbackAndARemoval(t *testing.T) {
	onEachRelease(t, "again", worksAgainAfterARollbackAndARemoval)
}

func worksAgainAfterARollbackAndARemoval(t *testing.T, m machine) {
	before := m.dump(t)
	m.sh(t, 0, "mkdir /etc/nodelocaldns && echo 'kubelet: {settle: 2s}' >/etc/nodelocaldns/config.yaml") // as cloud-init does
	m.sh(t, 0, "dpkg --force-confold --install /root/older.deb </dev/null")
	contains(t, "the configuration that was there before", m.sh(t, 0, "cat /etc/nodelocaldns/config.yaml"), "settle: 2s")

	m.sh(t, 0, "nodelocaldns apply")
	if got := m.states(t); !strings.Contains(got, "nodelocaldns.service enabled active") {
		t.Errorf("after apply:\n%s", got)
	}
	m.sh(t, 0, "nodelocaldns rollback")
	if got := m.states(t); strings.Contains(got, " enabled ") || strings.Contains(got, " active") {
		t.Errorf("after rollback:\n%s", got)
	}
	m.sh(t, 0, "dpkg --remove nodelocaldns")
	m.sh(t, 0, "test -e /etc/nodelocaldns/config.yaml && test ! -e /var/lib/nodelocaldns && test ! -e /run/nodelocaldns")

	m.sh(t, 0, "dpkg --install /root/newer.deb </dev/null && systemctl enable --now nodelocaldns")
	m.started(t)
	if got := m.states(t); got != running {
		t.Errorf("installed and enabled again:\n%s", got)
	}
	contains(t, "plan", m.sh(t, 3, "nodelocaldns plan"), "satisfied  link/", "window/kubelet")

	// Who empties /run takes the resolver's root, too, with which it starts.
	m.sh(t, 1, "rm -r /run/nodelocaldns-root && systemctl restart nodelocaldns")
	m.eventually(t, "systemctl is-active nodelocaldns && ! systemctl is-active nodelocaldns-relay")
	if got := m.states(t); got != running {
		t.Errorf("after the resolver's root was removed:\n%s", got)
	}

	// One that an administrator has stopped stays so.
	m.sh(t, 0, "systemctl stop nodelocaldns")
	m.sh(t, 0, "dpkg --install /root/older.deb")
	if got := m.states(t); !strings.Contains(got, "nodelocaldns.service enabled inactive") || !strings.Contains(got, "guard.service enabled active") {
		t.Errorf("an upgrade of one that was stopped:\n%s", got)
	}
	m.sh(t, 0, "systemctl start nodelocaldns")

	// A configuration that is broken costs what runs nothing.
	pids := m.sh(t, 0, "systemctl show --value --property=MainPID nodelocaldns-guard nodelocaldns")
	m.sh(t, 0, "echo 'no: such key' >>/etc/nodelocaldns/config.yaml")
	contains(t, "an upgrade with a broken configuration", m.sh(t, 0, "dpkg --install /root/newer.deb"), "config.yaml:2: ", "warning: what runs is not started again")
	if again := m.sh(t, 0, "systemctl show --value --property=MainPID nodelocaldns-guard nodelocaldns"); again != pids {
		t.Errorf("an upgrade with a broken configuration restarted what ran: %s was %s", again, pids)
	}

	// A program that is broken does not hide that the node is changed.
	m.sh(t, 0, "cp /bin/false /usr/bin/false.new && mv /usr/bin/nodelocaldns /root/nodelocaldns && mv /usr/bin/false.new /usr/bin/nodelocaldns")
	contains(t, "removing it with a broken program", m.sh(t, 1, "dpkg --purge nodelocaldns"), "error: not removed")
	m.sh(t, 0, "mv /root/nodelocaldns /usr/bin/nodelocaldns")

	m.sh(t, 0, "nodelocaldns rollback")
	m.eventually(t, "! ip link show nodelocaldns0 && [ ! -e /run/nodelocaldns/journal.json ]")
	m.sh(t, 0, "dpkg --purge nodelocaldns")
	asBefore(t, "after a purge", before, m.dump(t))
}

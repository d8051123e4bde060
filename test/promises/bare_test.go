package promises

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/test/kubedns"
	"nodelocaldns/test/node"
	"nodelocaldns/test/promises/load"
)

// A bareNode is a node without systemd and kubelet: network namespaces of two pods, of
// the node, on which serve runs, and of the two endpoints of kube-dns, between
// which its address leads each flow at random, as kube-proxy has it. What is done
// to the network is done in an endpoint's namespace.
type bareNode struct {
	name      string
	dir       string
	endpoints [2]*kubedns.Server
	pid       int // of serve
}

// The places of a bare node from which is asked.
const (
	onPod   = "pod"
	onOther = "other"
	onNode  = "node"
)

// bareNodes is how many have been made.
var bareNodes atomic.Int64

// newBareNode makes one, with this configuration of serve behind what all have.
func newBareNode(t *testing.T, config string) *bareNode {
	t.Helper()
	if os.Getenv(node.Layers) == "" {
		t.Skip(node.Layers + " is not set; make promises does that")
	}
	b := &bareNode{name: fmt.Sprintf("nld-bare-%d-%d", os.Getpid(), bareNodes.Add(1)), dir: t.TempDir()}
	t.Cleanup(func() {
		b.sh(t, `for p in pod other node dns0 dns1; do ip netns del $n-$p; done; rm -rf /etc/netns/$n-pod; rmdir /etc/netns 2>/dev/null || :`)
	})
	b.sh(t, `on() { ns=$1; shift; ip netns exec $n-$ns "$@"; }
		link() {
			ip link add eth0 netns $n-$1 type veth peer name veth-$1 netns $n-node
			on $1 ip addr add $2.2/24 dev eth0; on $1 ip link set eth0 up
			on node ip addr add $2.1/24 dev veth-$1; on node ip link set veth-$1 up
			on $1 ip route add default via $2.1
		}
		for p in pod other node dns0 dns1; do
			ip netns add $n-$p
			on $p sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
			on $p ip link set lo up
		done
		link pod 10.244.1; link other 10.244.2; link dns0 10.246.0; link dns1 10.246.1
		on node sysctl -qw net.ipv4.ip_forward=1
		on node ip addr add `+local+`/32 dev lo
		on node iptables -t raw -A PREROUTING -d `+local+` -j NOTRACK
		on node iptables -t raw -A OUTPUT -s `+local+` -j NOTRACK
		on node ip route add `+node.KubeDNS+`/32 via 10.246.0.2
		for chain in OUTPUT PREROUTING; do for proto in udp tcp; do
			dnat="on node iptables -t nat -A $chain -d `+node.KubeDNS+` -p $proto --dport 53"
			$dnat -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.246.0.2:53
			$dnat -j DNAT --to-destination 10.246.1.2:53
		done; done
		until mkdir -p /etc/netns/$n-pod; do :; done # another one may be removing the directory above
		printf '%s\n' "nameserver `+local+`" "nameserver `+node.KubeDNS+`" >/etc/netns/$n-pod/resolv.conf`)
	for i := range b.endpoints {
		b.within(t, fmt.Sprint("dns", i), func() {
			s, err := kubedns.Listen(fmt.Sprintf("10.246.%d.2:53", i))
			must(t, err)
			b.endpoints[i] = s
		})
		t.Cleanup(b.endpoints[i].Close)
	}
	b.serve(t, config)
	return b
}

// sh runs a script in which n is the node's name.
func (b *bareNode) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", "n="+b.name+"\n"+script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// within calls f in the network namespace of a place: the sockets that it makes
// stay there.
func (b *bareNode) within(t *testing.T, place string, f func()) {
	t.Helper()
	there, err := os.Open("/run/netns/" + b.name + "-" + place)
	must(t, err)
	defer there.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func (b *bareNode) command(place string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", b.name + "-" + place}, args...)...)
}

// installedIn is the directory below which the programs of bare nodes lie, named
// as on a node, once there is one. TestMain removes it.
var installedIn string

var installed = sync.OnceValues(func() (string, error) {
	all, err := programs()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "nodelocaldns-promises")
	installedIn = dir
	for name, b := range all {
		file := filepath.Join(dir, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, b, 0o755))
	}
	return dir, err
})

// installed is the file with a program.
func (b *bareNode) installed(t *testing.T, name string) string {
	t.Helper()
	dir, err := installed()
	must(t, err)
	return filepath.Join(dir, name)
}

func (b *bareNode) serve(t *testing.T, config string) {
	t.Helper()
	file := filepath.Join(b.dir, "config.yaml")
	must(t, os.WriteFile(file, []byte("cluster: {dns: ["+node.KubeDNS+"]}\n"+config), 0o644))
	cmd := b.command(onNode, b.installed(t, program), "--config", file, "--run-dir", filepath.Join(b.dir, "run"), "--state-dir", filepath.Join(b.dir, "state"), "serve")
	log, err := os.Create(filepath.Join(b.dir, "serve.log"))
	must(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started := make(chan error)
	ended := make(chan error, 1)
	go func() { // Pdeathsig goes by the thread
		runtime.LockOSThread()
		started <- cmd.Start()
		ended <- cmd.Wait()
	}()
	must(t, <-started)
	b.pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("serve:\n%.8000s", text)
		}
	})
	eventually(t, "serve to answer", 20*time.Second, func() error {
		s := b.load(t, onPod, load.Plan{Rate: 100, Count: 5, Sockets: 1, Names: []load.Name{{Name: "web.shop.svc.cluster.local.", Type: "A", Rcode: "NOERROR", Answer: []string{"web.shop.svc.cluster.local. A 10.96.10.20"}}}, Timeout: time.Second}).wait().Summary(nil)
		if s.Failed() > 0 {
			return errors.New(s.Example)
		}
		return nil
	})
}

// load begins to ask from a place as the plan says; what it does not say is our
// address, over UDP.
func (b *bareNode) load(t *testing.T, place string, p load.Plan) *run {
	t.Helper()
	if !p.Server.IsValid() {
		p.Server = netip.MustParseAddrPort(local + ":53")
	}
	if p.Proto == "" {
		p.Proto = "udp"
	}
	return ask(t, b.command(place, b.installed(t, tools+"load")), p)
}

// behave tells both endpoints.
func (b *bareNode) behave(t *testing.T, how kubedns.Behaviour) {
	t.Helper()
	for _, e := range b.endpoints {
		must(t, e.Behave(how))
	}
}

// reset has both endpoints count from here.
func (b *bareNode) reset() {
	for _, e := range b.endpoints {
		e.Reset()
	}
}

// asked is how often both endpoints were asked for each name and type.
func (b *bareNode) asked() map[string]uint64 {
	all := map[string]uint64{}
	for _, e := range b.endpoints {
		for name, n := range e.Counts().Names {
			all[name] += n
		}
	}
	return all
}

// lose has a share of the packets to and from an endpoint dropped.
func (b *bareNode) lose(t *testing.T, endpoint int, share float64) {
	t.Helper()
	b.sh(t, fmt.Sprintf(`for chain in INPUT OUTPUT; do ip netns exec $n-dns%d iptables -I $chain -m statistic --mode random --probability %g -j DROP; done`, endpoint, share))
}

// blackhole has an endpoint take everything and say nothing, as one does whose
// node has died.
func (b *bareNode) blackhole(t *testing.T, endpoint int) {
	t.Helper()
	b.sh(t, fmt.Sprintf(`ip netns exec $n-dns%d iptables -I INPUT -j DROP`, endpoint))
}

// refuse has kube-dns without endpoints, as kube-proxy does it.
func (b *bareNode) refuse(t *testing.T) {
	t.Helper()
	b.sh(t, `for i in 0 1; do
		ip netns exec $n-dns$i iptables -I INPUT -p udp -j REJECT --reject-with icmp-port-unreachable
		ip netns exec $n-dns$i iptables -I INPUT -p tcp -j REJECT --reject-with tcp-reset
	done`)
}

// undo takes back what was done to the network.
func (b *bareNode) undo(t *testing.T) {
	t.Helper()
	b.sh(t, `for i in 0 1; do ip netns exec $n-dns$i iptables -F; done`)
}

// memory is the resident memory of serve, in bytes.
func (b *bareNode) memory(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kb)[0], 10, 64)
			must(t, err)
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// flood begins to ask for random names from the other pod, at that rate if the
// machine can. The returned function waits for its end, and returns the rate that
// was reached.
func (b *bareNode) flood(t *testing.T, rate int, lasts time.Duration) (wait func() float64) {
	t.Helper()
	var out bytes.Buffer
	cmd := b.command(onOther, b.installed(t, tools+"flood"), local+":53", strconv.Itoa(rate), lasts.String())
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	return func() float64 {
		t.Helper()
		err := cmd.Wait()
		reached, parse := strconv.ParseFloat(strings.TrimSpace(out.String()), 64)
		if err := errors.Join(err, parse); err != nil {
			t.Fatalf("flood: %v\n%s", err, &out)
		}
		return reached
	}
}

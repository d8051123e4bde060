package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tree is what every node has over Debian's files.
//
//go:embed all:tree
var tree embed.FS

// A Node is a machine of the cluster. It is not safe for concurrent use, but
// different nodes are.
type Node struct {
	Name string
	// Addr is its address in the lab's network.
	Addr string
	// Root is its file tree, seen from the lab: without what a running node
	// mounts over it (/run, /proc, /dev, /tmp).
	Root string

	cluster *Cluster
	release Release
	pods    string // the range of its pods
	leader  int    // the pid of its PID 1, while it runs
	ended   chan error
}

// writeNodeFiles makes the layer that all nodes have in common.
func (c *Cluster) writeNodeFiles() error {
	files, err := fs.Sub(tree, "tree")
	if err != nil {
		return err
	}
	dir := filepath.Join(c.dir, "tree")
	if err := os.CopyFS(dir, files); err != nil {
		return err
	}
	for _, d := range []string{"etc/kubernetes/manifests", "etc/systemd/system/multi-user.target.wants", "etc/systemd/system/sysinit.target.wants", "var/lib/kubelet"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"multi-user.target.wants/kubelet.service":          "/lib/systemd/system/kubelet.service",
		"multi-user.target.wants/node-images.service":      "/etc/systemd/system/node-images.service",
		"multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
		"sysinit.target.wants/node-kernel.service":         "/etc/systemd/system/node-kernel.service",
	} {
		if err := os.Symlink(target, filepath.Join(dir, "etc/systemd/system", link)); err != nil {
			return err
		}
	}
	return nil
}

// A Release is what a node's tree is made of.
type Release string

// The releases that there are, with systemd 252 and 257.
const (
	Debian12 Release = "debian12"
	Debian13 Release = "debian13"
)

// Node is NodeOf with Debian 12.
func (c *Cluster) Node(name string) (*Node, error) { return c.NodeOf(Debian12, name) }

// NodeOf makes a node that has not joined the cluster, and does not start it. Its
// kubelet is installed and enabled, as kubeadm's package leaves it. At most 200
// are made.
func (c *Cluster) NodeOf(release Release, name string) (*Node, error) {
	c.mu.Lock()
	taken := c.nodes[name]
	c.nodes[name] = true
	number := len(c.nodes)
	c.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("making node %s: there is one", name)
	}
	dir := filepath.Join(c.dir, "nodes", name)
	n := &Node{
		Name:    name,
		Addr:    fmt.Sprintf("10.77.0.%d", 10+number),
		Root:    filepath.Join(dir, "root"),
		cluster: c,
		release: release,
		pods:    fmt.Sprintf("10.244.%d.0/24", number),
	}
	if err := n.make(dir); err != nil {
		return nil, fmt.Errorf("making node %s: %w", name, err)
	}
	return n, nil
}

func (n *Node) make(dir string) error {
	layer := func(name string) string { return filepath.Join(n.cluster.layers, name) }
	if err := overlay(n.Root, filepath.Join(dir, "upper"), filepath.Join(dir, "work"),
		filepath.Join(n.cluster.dir, "tree"), layer("images"), layer("kubelet"), layer("kubernetes/node"), layer(string(n.release))); err != nil {
		return err
	}
	// containerd lays overlays of its own, and they cannot lie on this one.
	if err := os.Mkdir(filepath.Join(dir, "containerd"), 0o711); err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	cni, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "lab",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": []any{[]any{map[string]any{"subnet": n.pods}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}, "", " ")
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"/etc/hostname":                           n.Name + "\n",
		"/etc/hosts":                              "127.0.0.1 localhost\n127.0.1.1 " + n.Name + "\n",
		"/etc/machine-id":                         fmt.Sprintf("%x\n", id),
		"/etc/resolv.conf":                        "nameserver " + KubeDNS + "\n",
		"/etc/cni/net.d/10-bridge.conflist":       string(cni),
		"/etc/systemd/network/05-host0.network":   "[Match]\nName=host0\n[Network]\nAddress=" + n.Addr + "/24\nGateway=" + labAddr + "\nLinkLocalAddressing=no\n",
		"/etc/sysctl.d/10-forward.conf":           "net.ipv4.ip_forward = 1\n",
		"/etc/systemd/journald.conf.d/state.conf": "[Journal]\nStorage=persistent\n", // a power cut does not take it along
	} {
		if err := n.Put(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return ip("route", "add", n.pods, "via", n.Addr, "dev", bridge, "onlink")
}

// Join does what "kubeadm join" does on a node, which may be off: it stops the
// kubelet, writes its own credential, its configuration and its flags, and
// starts it.
func (n *Node) Join(ctx context.Context) error {
	kubeconfig, err := n.cluster.authority.kubeconfig("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	systemctl := func(verb string) error {
		if n.leader == 0 {
			return nil
		}
		_, err := n.Output(ctx, "systemctl", verb, "kubelet")
		return err
	}
	if err := systemctl("stop"); err != nil {
		return err
	}
	if err := errors.Join(
		n.Put("/etc/kubernetes/pki/ca.crt", n.cluster.authority.pem, 0o644),
		n.Put("/etc/kubernetes/kubelet.conf", kubeconfig, 0o600),
		n.Put("/var/lib/kubelet/config.yaml", []byte(kubeletConfig), 0o644),
		n.Put("/var/lib/kubelet/kubeadm-flags.env", fmt.Appendf(nil, "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock --node-ip=%s --hostname-override=%s\"\n", n.Addr, n.Name), 0o644)); err != nil {
		return err
	}
	return systemctl("start")
}

// kubeletConfig is what kubeadm writes, and then what makes a container fit for
// a kubelet and a test quick.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
authorization:
  mode: Webhook
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
healthzBindAddress: 127.0.0.1
healthzPort: 10248
resolvConf: /etc/resolv.conf
staticPodPath: /etc/kubernetes/manifests

cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
# Of a disk that is the whole machine's.
evictionHard: {imagefs.available: "0%", nodefs.available: "0%", memory.available: "0%"}
imageGCHighThresholdPercent: 100
fileCheckFrequency: 2s
nodeStatusUpdateFrequency: 4s
`

// Upgrade installs the kubelet of the control plane's version, Kubernetes 1.35.
// Nodes are made with one of 1.34. Where one runs, it does so until it is
// restarted.
func (n *Node) Upgrade() error {
	data, err := os.ReadFile(filepath.Join(n.cluster.layers, "kubernetes/bin/kubelet"))
	if err != nil {
		return err
	}
	return n.Put("/usr/bin/kubelet", data, 0o755)
}

// JoinAdmin gives root on the node the cluster's kubeconfig for kubectl.
func (n *Node) JoinAdmin() error {
	data, err := os.ReadFile(n.cluster.admin)
	if err != nil {
		return err
	}
	return n.Put("/root/.kube/config", data, 0o600)
}

// Put writes a file of the node, which may be running, and the directories
// that it lacks. A program that runs is replaced, not written to.
func (n *Node) Put(name string, data []byte, mode fs.FileMode) error {
	name = filepath.Join(n.Root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	temporary := name + ".new"
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return err
	}
	return errors.Join(os.Chmod(temporary, mode), os.Rename(temporary, name))
}

// Boot starts the node and returns when its systemd has finished the start:
// the kubelet was started, which does not mean that it is ready.
func (n *Node) Boot(ctx context.Context) error {
	if n.leader != 0 {
		return fmt.Errorf("booting node %s: it runs", n.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := n.boot(ctx); err != nil {
		err = fmt.Errorf("booting node %s: %w\n%s", n.Name, err, tail(n.console()))
		return errors.Join(err, n.Cut())
	}
	return nil
}

// console is where systemd says what it starts.
func (n *Node) console() string { return filepath.Join(n.cluster.dir, n.Name+".log") }

func (n *Node) group() string { return filepath.Base(n.cluster.dir) + "/" + n.Name }

func (n *Node) boot(ctx context.Context) error {
	groups, err := makeGroups(n.group())
	if err != nil {
		return err
	}
	notify := &net.UnixAddr{Net: "unixgram", Name: "/run/" + n.Name + ".notify"}
	_ = os.Remove(notify.Name) // of the boot before
	messages, err := net.ListenUnixgram("unixgram", notify)
	if err != nil {
		return err
	}
	defer messages.Close()
	stop := context.AfterFunc(ctx, func() { messages.Close() })
	defer stop()
	log, err := os.OpenFile(n.console(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()

	const intoGroups = `while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs"; shift; done; shift; exec "$@"`
	args := append([]string{"-ec", intoGroups, "sh"}, groups...)
	args = append(args, "--", "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes",
		"--machine="+n.Name, "--directory="+n.Root, "--network-bridge="+bridge, "--resolv-conf=off", "--timezone=off",
		"--capability=all", "--system-call-filter=@keyring bpf",
		"--bind="+filepath.Join(filepath.Dir(n.Root), "containerd")+":/var/lib/containerd", "--boot")
	cmd := exec.Command("sh", args...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.Name)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.ended = make(chan error, 1)
	n.leader = cmd.Process.Pid // until that of PID 1 is known: it ends with its parent
	go func() {
		n.ended <- cmd.Wait()
		messages.Close() // whoever waits for a message waits in vain
	}()

	b := make([]byte, 4096)
	for {
		size, err := messages.Read(b)
		if err != nil {
			return errors.Join(errors.New("it ended before it was up"), ctx.Err())
		}
		ready := false
		for line := range strings.Lines(string(b[:size])) {
			line = strings.TrimSpace(line)
			if pid, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
				if n.leader, err = strconv.Atoi(pid); err != nil {
					return err
				}
			}
			ready = ready || line == "READY=1"
		}
		if ready {
			return nil
		}
	}
}

// Cut is a power cut: every process of the node is killed at once. On a node
// that is off it does nothing.
func (n *Node) Cut() error {
	if n.leader == 0 {
		return nil
	}
	// The kernel kills all others of a process namespace with its first one, but only
	// when that has closed its files: until then they run, and hear that systemd is gone,
	// which nobody hears of a power cut.
	stopGroup(n.group(), n.leader)
	if err := unix.Kill(n.leader, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cutting the power of node %s: %w", n.Name, err)
	}
	return n.off(context.Background())
}

// off waits until the last process is gone.
func (n *Node) off(ctx context.Context) error {
	for {
		select {
		case <-n.ended: // how it ended, its systemd may say
			n.leader = 0
			return removeGroups(n.group(), removeTimeout)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
			wake()
		}
	}
}

// wake lets go on every nsenter of ours that has stopped. It stops when the
// command that it has started does, and systemd stops whatever still runs when
// a node goes down: the node is off when nsenter has seen the command's end.
func wake() {
	children, err := exec.Command("ps", "--ppid", strconv.Itoa(os.Getpid()), "-o", "pid=,state=,comm=").Output()
	if err != nil {
		return // none
	}
	for line := range strings.Lines(string(children)) {
		f := strings.Fields(line)
		if pid, err := strconv.Atoi(f[0]); err == nil && f[1] == "T" && f[2] == "nsenter" {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
	}
}

// PowerOff shuts the node down as its systemd does. One that does not go down
// is an error, and its power is cut.
func (n *Node) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := n.Exec(ctx, "systemctl", "poweroff"); err != nil {
		return err
	}
	if err := n.off(ctx); err != nil {
		err = fmt.Errorf("powering off node %s: %w\n%s", n.Name, err, tail(n.console()))
		return errors.Join(err, n.Cut())
	}
	return nil
}

// Reboot shuts the node down as its systemd does, and boots it.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.PowerOff(ctx); err != nil {
		return err
	}
	return n.Boot(ctx)
}

// Ready waits until the kubelet says that it is healthy and the API server has
// the node as ready; for a while after a power cut it does so from before.
func (n *Node) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return Until(ctx, "node "+n.Name+" to be ready", func() error {
		r, err := n.Exec(ctx, "curl", "-fsS", "http://127.0.0.1:10248/healthz")
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stderr)
		}
		if err != nil {
			return err
		}
		_, err = n.cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout=1s", "node/"+n.Name)
		return err
	})
}

// Command is a command in the running node: in all namespaces of its PID 1,
// with an environment of its own. A context that ends kills it, and what it has
// started is the node's from then on.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(n.leader),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
		"/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"}, args...)...)
	// Ctrl-C is for the lab's keeper alone, which ends all of it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killChild(cmd.Process) }
	cmd.WaitDelay = removeTimeout // for those that the command leaves, and that have its standard output
	return cmd
}

// killChild kills what nsenter has started, and not nsenter, which is to see its
// end: a process of the node that nobody waits for keeps the node from going
// down. An nsenter that has not started anything yet is killed itself.
func killChild(nsenter *os.Process) error {
	// One that has stopped has its child, or will have none.
	if err := nsenter.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	for {
		err := unix.Waitid(unix.P_PID, nsenter.Pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nsenter.Pid, nsenter.Pid))
	if err != nil || len(children) == 0 {
		return nsenter.Kill()
	}
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nsenter.Signal(unix.SIGCONT)
}

// Exec runs a command in the running node, see Command.
func (n *Node) Exec(ctx context.Context, args ...string) (Result, error) {
	return run(n.Command(ctx, args...), "")
}

// Output runs a command in the running node and returns what it printed to its
// standard output. That the command fails is an error.
func (n *Node) Output(ctx context.Context, args ...string) (string, error) {
	r, err := n.Exec(ctx, args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s on node %s: exit code %d: %s", strings.Join(args, " "), n.Name, r.Code, bytes.TrimSpace([]byte(r.Stderr)))
	}
	return r.Stdout, err
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodelocaldns/test/bench/load"
	"nodelocaldns/test/kubedns"
)

// A node's layout, as make run makes it.
const (
	address = "169.254.20.10" // where pods ask
	port    = 53
	kubeDNS = "10.96.0.10"
	pod     = "10.244.1.5"
	// clients are routed to the pod, as those of other pods of the node would be.
	clients = "10.244.4.0/22"
	// patience is how long any one thing may take to come up.
	patience = 15 * time.Second
	// receiveBuffer is that of every server, as a burst that one of them loses and
	// another does not says more of their defaults than of them.
	receiveBuffer = 8 << 20
)

// inside is set, to a directory for its files, for the process that has namespaces of
// its own.
const inside = "NODELOCALDNS_BENCH_INSIDE"

// enter runs this program again in namespaces of its own for processes, mounts and
// network, and returns its exit code. All that it starts ends with it, however that
// ends, and nothing of it is seen in the network of the machine.
func enter() (code int, err error) {
	dir, err := os.MkdirTemp("", "nodelocaldns-bench-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL, // of the main thread, which main keeps
		Setpgid:    true,            // who is told to end is us, and we tell it
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	if err := cmd.Start(); errors.Is(err, unix.EPERM) {
		return 0, errors.New("making namespaces: needs root")
	} else if err != nil {
		return 0, err
	}
	go func() {
		for s := range told {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// A place is a network namespace.
type place struct{ ns *os.File }

// newPlace makes an empty one.
func newPlace() (place, error) {
	var p place
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		p.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return p, err
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	err := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else gets this thread
		err <- f()
	}()
	return <-err
}

// do runs f there: sockets and processes that it makes stay there.
func (p place) do(f func() error) error {
	if p.ns == nil { // the node, where we are
		return f()
	}
	return onThread(func() error {
		if err := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// run runs a command there.
func (p place) run(argv ...string) error {
	return p.do(func() error {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// A process is one that was started.
type process struct {
	*exec.Cmd
	log   string // the file with what it said
	ended chan struct{}
}

// start starts a command there. What it says goes to a file.
func (p place) start(log string, argv ...string) (*process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us alone
	if err := p.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("starting %s: %w", argv[0], err)
	}
	started := &process{cmd, log, make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended, nobody asks
		close(started.ended)
	}()
	return started, nil
}

// stop ends a process, by force if it must be.
func (p *process) stop() {
	_ = p.Process.Signal(unix.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(3 * time.Second):
	}
	_ = unix.Kill(-p.Process.Pid, unix.SIGKILL) // its children, too
	<-p.ended
}

// said is the end of what a process said.
func (p *process) said() string {
	text, _ := os.ReadFile(p.log)
	return strings.TrimSpace(string(text[max(0, len(text)-1000):]))
}

// A rig is a node with a pod, and a kube-dns beside it.
type rig struct {
	dir                string
	node, pod, kubedns place
	dns                *process
}

// newRig makes the node. Its rules for port 53 are those that guard sets.
func newRig(ctx context.Context, dir string) (*rig, error) {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"", "/", "", unix.MS_PRIVATE | unix.MS_REC},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV}, // the lock of iptables
	} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			return nil, fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	r := &rig{dir: dir}
	var err error
	if r.pod, err = newPlace(); err != nil {
		return nil, fmt.Errorf("making the pod: %w", err)
	}
	if r.kubedns, err = newPlace(); err != nil {
		return nil, fmt.Errorf("making kube-dns: %w", err)
	}
	for _, p := range []place{r.node, r.pod, r.kubedns} {
		if err := p.run("ip", "link", "set", "lo", "up"); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(r.cable(r.pod, pod+"/24", "veth-pod", "10.244.1.1"), r.cable(r.kubedns, kubeDNS+"/24", "veth-dns", "10.96.0.1")); err != nil {
		return nil, err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return nil, err
	}
	err = errors.Join(
		r.pod.run("ip", "route", "add", "local", clients, "dev", "lo"),
		r.node.run("ip", "route", "add", clients, "via", pod),
		// As on a real node, some rules need connection tracking.
		r.node.run("iptables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"),
		r.node.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.244.1.0/24", "!", "-d", "10.244.0.0/16", "-j", "MASQUERADE"),
	)
	if err != nil {
		return nil, err
	}
	if err := r.guard(ctx); err != nil {
		return nil, fmt.Errorf("having guard prepare the node: %w", err)
	}
	if r.dns, err = r.kubedns.start(filepath.Join(dir, "kube-dns.log"), "kubedns", "-listen", kubeDNS+":53", "-control", kubeDNS+":8053"); err != nil {
		return nil, err
	}
	// Nothing expires while it is measured.
	return r, r.behave(ctx, kubedns.Behaviour{TTL: 3600})
}

// cable lays one from the node to a place.
func (r *rig) cable(p place, cidr, device, gateway string) error {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: device})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(p.ns.Fd())
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("making %s: %w", device, err)
	}
	if err := errors.Join(
		p.run("ip", "addr", "add", cidr, "dev", "eth0"),
		p.run("ip", "link", "set", "eth0", "up"),
		r.node.run("ip", "addr", "add", gateway+"/24", "dev", device),
		r.node.run("ip", "link", "set", device, "up"),
		p.run("ip", "route", "add", "default", "via", gateway)); err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		// The kernel sees a carrier up to a second later, and only then adds the
		// routes that come with it.
		if l, err := netlink.LinkByName(device); err == nil && l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not up", device)
		}
	}
}

// guard has the product's guard put address and rules in place, and ends it: what it
// made stays.
func (r *rig) guard(ctx context.Context) error {
	dir := filepath.Join(r.dir, "guard")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	ours := subjects[0]
	argv, err := ours.command(dir)
	if err != nil {
		return err
	}
	argv = argv[:len(argv)-1] // what it is to do
	g, err := r.node.start(filepath.Join(dir, "log"), append(argv, "guard")...)
	if err != nil {
		return err
	}
	defer func() {
		_ = g.Process.Kill() // told to end, it would take its things with it
		<-g.ended
	}()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.CommandContext(ctx, argv[0], append(argv[1:], "plan")...).CombinedOutput()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("plan: %w: %s; guard said: %s", err, bytes.TrimSpace(out), g.said())
		}
	}
}

// behave tells kube-dns how to behave, and waits until it is up to hear it.
func (r *rig) behave(ctx context.Context, b kubedns.Behaviour) error {
	body, err := json.Marshal(b)
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if err = post(ctx, "behave", body); err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("telling kube-dns how to behave: %w; it said: %s", err, r.dns.said())
		}
	}
}

// post asks kube-dns to do something.
func post(ctx context.Context, what string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+kubeDNS+":8053/"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", what, resp.Status)
	}
	return nil
}

// serve starts a subject, with nothing in its cache, and returns how long it took
// until the pod had its first answer: every half millisecond it asks for one more.
func (r *rig) serve(ctx context.Context, s subject) (*process, time.Duration, error) {
	dir, err := os.MkdirTemp(r.dir, "server")
	if err != nil {
		return nil, 0, err
	}
	argv, err := s.command(dir)
	if err != nil {
		return nil, 0, err
	}
	var conn net.Conn
	err = r.pod.do(func() (err error) {
		conn, err = net.Dial("udp4", net.JoinHostPort(address, strconv.Itoa(port)))
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	begin := time.Now()
	p, err := r.node.start(filepath.Join(dir, "log"), argv...)
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := load.First(ctx, conn, s.Floor); err != nil {
		p.stop()
		return nil, 0, fmt.Errorf("no answer: %w; it said: %s", err, p.said())
	}
	took := time.Since(begin)
	if err := growBuffers(p.Process.Pid); err != nil {
		p.stop()
		return nil, 0, fmt.Errorf("making its receive buffers large: %w", err)
	}
	return p, took, nil
}

// growBuffers makes the receive buffers of a process's UDP sockets at the address
// large. Not all servers can be told to.
func growBuffers(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return err
	}
	grown := 0
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		n, err := strconv.Atoi(filepath.Base(link))
		if err != nil {
			return err
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue // it was closed meanwhile
		}
		kind, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		local, _ := unix.Getsockname(fd)
		if at, ok := local.(*unix.SockaddrInet4); ok && kind == unix.SOCK_DGRAM && at.Port == port {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
				_ = unix.Close(fd)
				return err
			}
			grown++
		}
		_ = unix.Close(fd)
	}
	if grown == 0 {
		return errors.New("it has none at port " + strconv.Itoa(port))
	}
	return nil
}

// load runs a plan in the pod.
func (r *rig) load(ctx context.Context, p load.Plan) (load.Result, error) {
	p.Server = netip.AddrPortFrom(netip.MustParseAddr(address), port)
	if p.Clients > 0 {
		p.From = netip.MustParsePrefix(clients)
	}
	in, err := json.Marshal(p)
	if err != nil {
		return load.Result{}, err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "load")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.pod.do(cmd.Start); err != nil {
		return load.Result{}, err
	}
	if err := cmd.Wait(); err != nil {
		return load.Result{}, fmt.Errorf("%w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	var result load.Result
	err = json.Unmarshal(out.Bytes(), &result)
	return result, err
}

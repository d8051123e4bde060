package main

// The only file that opens what is outside this process: netlink and the
// rest of the node, the API server, the sockets systemd hands over, systemd's
// notify socket, the ports of HTTP endpoints, other processes' entries in /proc.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"nodelocaldns/cmd/internal/sockets"
	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/dnscache"
	"nodelocaldns/host"
	"nodelocaldns/units"
)

// plans are the plans of cfg for this node, or for the tree below --root. boot
// leaves the runtime plan out.
func (a *app) plans(cfg config.Config, log *slog.Logger, boot bool) (*plans, error) {
	p := &plans{boot: boot}
	d, err := a.durableDeps(log)
	if err != nil {
		return nil, err
	}
	file, err := a.configForUnit()
	if err != nil {
		return nil, err
	}
	want := cfg.Durable(file)
	if a.hasUnits(d) {
		want.Units = &units.Settings{
			Listen:     cfg.Resolver(nil).Listen,
			CacheBytes: cfg.Cache.MaxBytes,
			Interface:  cfg.Listen.Interface,
			Kubelet:    cfg.Kubelet.Unit,
			Config:     file,
			Stamp:      stamp(cfg),
		}
	}
	if a.disturb != nil && a.rootDir == "" && !boot {
		if want.Cordon, err = a.cordon(a.disturb, cfg, log, func() *host.Durable { return p.durable }); err != nil {
			return nil, err
		}
	}
	p.node, p.durable = d.Node, host.NewDurable(want, d)
	if boot || a.rootDir != "" {
		return p, nil
	}
	deps, err := host.SystemDeps(log)
	if err != nil {
		return nil, err
	}
	deps.RunDir, deps.StateDir = a.runDir, a.stateDir
	if p.runtime, err = host.New(cfg.Host(), deps); err != nil {
		return nil, err
	}
	held := func() []netip.Addr {
		all, _ := p.runtime.Held() // a journal that cannot be read is said by whoever needs it
		return all
	}
	p.pods = newNeighbours(p.durable, func() []netip.Addr { return append(cfg.PodsCanAsk(), held()...) })
	p.leaving = slices.DeleteFunc(held(), func(a netip.Addr) bool { return slices.Contains(cfg.Listen.Addresses, a) })
	return p, nil
}

// stamp tells cfg from others, by what it says and not by how. That of the
// default is empty: a package's units are for it.
func stamp(cfg config.Config) string {
	text := cfg.YAML()
	if bytes.Equal(text, config.Default().YAML()) {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}

// hasUnits says whether our units have a place there: in an image, and on a node
// that systemd runs. They are of the one instance that a node has; others are
// told apart by their directories.
func (a *app) hasUnits(d host.DurableDeps) bool {
	return (a.rootDir != "" || d.Systemd != nil) && a.runDir == defaultRunDir && a.stateDir == defaultStateDir
}

// askFor is how long the API server may take to name kube-dns, which it is
// asked only where no file does.
const askFor = 2 * time.Second

func (a *app) durableDeps(log *slog.Logger) (host.DurableDeps, error) {
	if a.rootDir != "" {
		d := host.RootDeps(a.rootDir, log)
		d.RunDir, d.StateDir = a.runDir, a.stateDir
		return d, nil
	}
	d := host.LiveDeps(log)
	d.Node.Service = askSometimes(d.Node.Service, askFor, askAgain, time.Now)
	var err error
	if d.RunDir, err = filepath.Abs(a.runDir); err != nil {
		return d, err
	}
	d.StateDir, err = filepath.Abs(a.stateDir)
	return d, err
}

// configForUnit is the --config that a unit must call us with, empty for the
// default.
func (a *app) configForUnit() (string, error) {
	switch {
	case a.configPath == defaultConfig:
		return "", nil
	case a.rootDir != "":
		return path.Join("/", a.configPath), nil
	}
	return filepath.Abs(a.configPath)
}

// unitStarted is when the program of a unit was started, if it runs: in the
// file system proc, the oldest process in the unit's control group whose name
// begins as the program's. Others there, such as containers' shims, outlive a
// restart of k3s.
func unitStarted(proc, unit, program string) (time.Time, bool) {
	var first time.Time
	groups, _ := filepath.Glob(filepath.Join(proc, "[0-9]*/cgroup"))
	for _, name := range groups {
		dir := filepath.Dir(name)
		text, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(text), "/"+unit+"\n") {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || !strings.HasPrefix(string(comm), path.Base(program)) {
			continue
		}
		if at, err := processStarted(dir); err == nil && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first, !first.IsZero()
}

// processStarted is when the process of a directory below /proc was started,
// to a hundredth of a second.
func processStarted(dir string) (time.Time, error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return time.Time{}, err
	}
	// pid (name) state …: starttime is the 22nd, and a name may have anything
	// in it. It counts hundredths since boot (USER_HZ, proc(5)).
	w := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(w) < 20 {
		return time.Time{}, fmt.Errorf("reading %s/stat: too short", dir)
	}
	ticks, err := strconv.ParseInt(w[19], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading %s/stat: %w", dir, err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(time.Duration(ticks)*10*time.Millisecond - time.Duration(now.Nano())), nil
}

// privileged says whether this process may change the node at all: found out
// before anything is recorded or written.
func privileged() error {
	var caps [2]unix.CapUserData // version 3 of the interface has 64 bits in two words
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("reading our capabilities: %w", err)
	}
	if caps[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("changing the node: %w", syscall.EPERM)
	}
	return nil
}

// resolvConfs are where the node's own resolvers are named. systemd-resolved's
// list of real servers comes first: with it, /etc/resolv.conf names its stub.
var resolvConfs = []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"}

func newResolver(cfg dnscache.Config, log *slog.Logger, packets []*net.UDPConn, streams []*net.TCPListener) (resolver, error) {
	return dnscache.New(cfg, dnscache.Deps{Log: log, Packets: packets, Streams: streams, ResolvConf: resolvConfs})
}

// handedOver are sockets that systemd opened for us. It has them too: what is
// in them when we end is there for the next process.
type handedOver struct {
	packets []*net.UDPConn
	streams []*net.TCPListener
	control *net.UnixListener // nil: none
}

// adopt takes over the sockets systemd opened for us, if any. One that is not
// at an address of listen is closed: we answer only where we were asked to. So
// is a control socket elsewhere than in runDir, where nobody would ask.
func adopt(listen []netip.AddrPort, runDir string, log *slog.Logger) handedOver {
	var h handedOver
	control := filepath.Join(runDir, controlSocket)
	if abs, err := filepath.Abs(control); err == nil {
		control = abs
	}
	have := map[string]bool{}
	for _, f := range activation.Files(true) {
		conn, at := sockets.Adopt(f)
		_ = f.Close() // conn is a copy
		switch c := conn.(type) {
		case nil:
			log.Warn("closing a handed over file that is no UDP, listening TCP or control socket", "file", f.Name())
			continue
		case *net.UnixListener:
			if path := c.Addr().String(); path != control || h.control != nil {
				log.Warn("closing a handed over control socket that is not that of --run-dir", "path", path, "wanted", control)
				_ = c.Close()
				continue
			}
			h.control = c
			continue
		}
		if !slices.Contains(listen, at) {
			log.Warn("closing a handed over socket whose address is not in the configuration", "address", at)
			_ = conn.Close()
			continue
		}
		switch c := conn.(type) {
		case *net.UDPConn:
			h.packets = append(h.packets, c)
			have["udp "+at.String()] = true
		case *net.TCPListener:
			h.streams = append(h.streams, c)
			have["tcp "+at.String()] = true
		}
	}
	if len(have) > 0 {
		for _, at := range listen {
			for _, proto := range []string{"udp", "tcp"} {
				if !have[proto+" "+at.String()] {
					log.Info("no socket was handed over for a configured address: making one", "proto", proto, "address", at)
				}
			}
		}
	}
	return h
}

// notify tells systemd, if it started us and wants to know.
func notify(states ...string) {
	_, _ = daemon.SdNotify(false, strings.Join(states, "\n"))
}

// monotonic is what systemd wants beside RELOADING=1: when that began.
func monotonic() string { return strings.TrimSpace(daemon.SdNotifyMonotonicUsec()) }

// watchdogInterval is how often systemd wants to hear from us, 0 for never.
func watchdogInterval() time.Duration {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return every
}

// listenTCP listens where an HTTP endpoint is served; with free, whether the
// address is on the node or not.
func listenTCP(addr string, free bool) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		if !free {
			return nil
		}
		level, option := unix.SOL_IP, unix.IP_FREEBIND
		if network == "tcp6" {
			level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
		}
		var err error
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
		return errors.Join(cerr, err)
	}}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		if _, port, serr := net.SplitHostPort(addr); serr == nil {
			if n, perr := strconv.ParseUint(port, 10, 16); perr == nil {
				err = explainBind(err, uint16(n), "metrics.address or health.address")
			}
		}
	}
	return l, err
}

// portHolders are the processes that listen on port over UDP or TCP, such as
// "dnsmasq (pid 7)", as far as this process may look.
func portHolders(port uint16) []string {
	inodes := map[string]bool{}
	for _, table := range []string{"udp", "udp6", "tcp", "tcp6"} {
		f, err := os.Open("/proc/net/" + table)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			// sl local rem state queues timer retransmits uid timeout inode:
			// addresses in hexadecimal, 0A is LISTEN.
			w := strings.Fields(lines.Text())
			if len(w) < 10 || !strings.HasSuffix(w[1], fmt.Sprintf(":%04X", port)) || strings.HasPrefix(table, "tcp") && w[3] != "0A" {
				continue
			}
			inodes["socket:["+w[9]+"]"] = true
		}
		_ = f.Close()
	}
	if len(inodes) == 0 {
		return nil
	}
	var holders []string
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || !inodes[target] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		if who := fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid); !slices.Contains(holders, who) {
			holders = append(holders, who)
		}
	}
	return holders
}

package host_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"nodelocaldns/host"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/step"
	"nodelocaldns/host/sysctl"
	"nodelocaldns/test/netns"
)

// kernel is the real node of a network namespace.
type kernel struct {
	t   *testing.T
	cfg host.Config
}

func (k *kernel) deps() host.Deps {
	d, err := host.SystemDeps(slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		k.t.Fatal(err)
	}
	d.StateDir = "/run/state" // /run is of the namespace, /var/lib is not
	return d
}

func (k *kernel) node() *host.Node {
	k.t.Helper()
	n, err := host.New(k.cfg, k.deps())
	if err != nil {
		k.t.Fatal(err)
	}
	return n
}

func (k *kernel) apply() {
	k.t.Helper()
	if err := k.node().Apply(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernel) rollback() {
	k.t.Helper()
	if err := k.node().Rollback(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernel) mustBe(what, want string) {
	k.t.Helper()
	if diff := cmp.Diff(want, dump(k.t)); diff != "" {
		k.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

var (
	counters = regexp.MustCompile(`\[\d+:\d+\]`)
	index    = regexp.MustCompile(`(?m)^\d+: `)
)

// dump is all that the runtime plan may change: addresses, rules in both
// back-ends, sysctls. Built-in chains with policy ACCEPT are left out: both
// back-ends leave their tables behind.
func dump(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(index.ReplaceAllString(netns.Run(t, "ip", "addr"), ""))
	for _, save := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		table := ""
		for _, line := range strings.Split(netns.Run(t, save), "\n") {
			switch {
			case strings.HasPrefix(line, "*"):
				table = line
			case strings.HasPrefix(line, ":"), strings.HasPrefix(line, "-"):
				line = counters.ReplaceAllString(line, "[]")
				if !strings.HasSuffix(line, " ACCEPT []") {
					fmt.Fprintf(&b, "%s %s %s\n", save, table, line)
				}
			}
		}
	}
	for _, p := range config().Sysctls {
		b.WriteString(netns.Run(t, "sysctl", p.Key))
	}
	return b.String()
}

// backends runs the test on the real kernel once with each back-end, on a node
// that has rules, an address and a veth of others.
func backends(t *testing.T, test func(t *testing.T, k *kernel)) {
	t.Helper()
	if !netns.Enter(t) {
		return
	}
	netns.Run(t, "ip", "link", "add", "others0", "type", "veth", "peer", "name", "others1")
	netns.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "others0")
	for _, b := range []notrack.Backend{notrack.NFT, notrack.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			for _, args := range []string{
				"-t filter -N OTHERS",
				"-t filter -A INPUT -p tcp --dport 22 -j ACCEPT",
				"-t filter -A OUTPUT -m conntrack --ctstate INVALID -j DROP",
				"-t raw -A PREROUTING -i others0 -j ACCEPT",
			} {
				netns.Run(t, "iptables-"+string(b), strings.Fields(args)...)
			}
			defer func() {
				for _, args := range []string{"-t filter -F", "-t filter -X", "-t raw -F"} {
					netns.Run(t, "iptables-"+string(b), strings.Fields(args)...)
				}
			}()
			if err := os.RemoveAll("/run/state"); err != nil { // the off switch of the run before
				t.Fatal(err)
			}
			cfg := config()
			cfg.Backend = b
			test(t, &kernel{t: t, cfg: cfg})
		})
	}
}

func TestKernelApplyTwiceIsApplyOnceAndRollbackRestoresTheNode(t *testing.T) {
	backends(t, func(t *testing.T, k *kernel) {
		before := dump(t)
		all, err := k.node().Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range all {
			readonly := st.Name == "sysctl/"+sysctl.Max
			if st.Err != nil || st.Unseen || readonly != (st.State == step.Blocked) {
				t.Errorf("check: %+v", st)
			}
		}
		k.mustBe("after check", before)
		k.apply()
		once := dump(t)
		for _, want := range []string{
			"nodelocaldns0: <", "inet 169.254.20.10/32 scope global nodelocaldns0", "inet6 fd00::a/128 scope global nodad",
			"NODELOCALDNS -d 169.254.20.10/32 -p udp -m udp --dport 53", "NODELOCALDNS -s fd00::a/128 -p tcp -m tcp --sport 53",
			finWait + " = 30", sysctl.CloseWait + " = 15",
		} {
			if !strings.Contains(once, want) {
				t.Errorf("no %q in\n%s", want, once)
			}
		}
		k.apply()
		k.mustBe("after the second apply", once)
		all, err = k.node().Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range all {
			if st.State == step.Pending || st.Drift {
				t.Errorf("after apply: %+v", st)
			}
		}
		k.mustBe("after the second check", once)
		k.rollback()
		k.mustBe("after rollback", before)
	})
}

func TestKernelCheckMakesNoTable(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	for _, b := range []notrack.Backend{notrack.NFT, notrack.Legacy, notrack.Auto} {
		k := &kernel{t: t, cfg: config()}
		k.cfg.Backend = b
		if _, err := k.node().Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if rules := netns.Run(t, "nft", "list", "ruleset"); rules != "" {
		t.Errorf("nft has\n%s", rules)
	}
	for _, file := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		if names, err := os.ReadFile(file); len(names) != 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has %q, %v", file, names, err)
		}
	}
}

func TestKernelDriftIsRepaired(t *testing.T) {
	backends(t, func(t *testing.T, k *kernel) {
		before := dump(t)
		k.apply()
		want := dump(t)
		ipt, ip6t := "iptables-"+string(k.cfg.Backend), "ip6tables-"+string(k.cfg.Backend)
		jump := "-m comment --comment nodelocaldns -j NODELOCALDNS"
		for _, drift := range []string{
			ipt + " -t raw -D PREROUTING " + jump,
			ipt + " -t filter -D NODELOCALDNS 2",
			ipt + " -t filter -I NODELOCALDNS 1 -j DROP",
			ip6t + " -t raw -F OUTPUT",
			ipt + " -t raw -A OUTPUT " + jump,
			ipt + " -t filter -A INPUT -i others0 -j NODELOCALDNS",
			"ip addr del 169.254.20.10/32 dev nodelocaldns0",
			"ip link set nodelocaldns0 down",
			"ip link set nodelocaldns0 alias other",
			"ip link del nodelocaldns0",
			"sysctl -w " + finWait + "=100",
		} {
			args := strings.Fields(drift)
			netns.Run(t, args[0], args[1:]...)
			if dump(t) == want && !strings.Contains(drift, "alias") {
				t.Fatalf("%s changed nothing", drift)
			}
			drifted := 0
			all, err := k.node().Check(t.Context())
			for _, st := range all {
				if st.Drift {
					drifted++
				}
			}
			if err != nil || drifted != 1 {
				t.Errorf("%s: %d steps drifted, %v", drift, drifted, err)
			}
			if err := k.node().Guard(host.Duties{}).Once(t.Context()); err != nil {
				t.Fatalf("%s: %v", drift, err)
			}
			if diff := cmp.Diff(sorted(want), sorted(dump(t))); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", drift, diff)
			}
		}
		k.rollback()
		k.mustBe("after rollback", before)
	})
}

// sorted drops the order of lines: a jump that is put back is first again, and
// a device that is made again has its addresses in another order.
func sorted(s string) map[string]int {
	out := map[string]int{}
	for _, l := range strings.Split(s, "\n") {
		out[l]++
	}
	return out
}

func TestKernelRollbackWorksFromDriftToo(t *testing.T) {
	backends(t, func(t *testing.T, k *kernel) {
		before := dump(t)
		ipt := "iptables-" + string(k.cfg.Backend)
		for _, drift := range []string{
			ipt + " -t raw -F PREROUTING",
			ipt + " -t raw -A OUTPUT -m comment --comment nodelocaldns -j NODELOCALDNS",
			ipt + " -t filter -A INPUT -i others0 -j NODELOCALDNS",
			ipt + " -t filter -A NODELOCALDNS -j DROP",
			"ip link del nodelocaldns0",
			"ip addr flush dev nodelocaldns0",
		} {
			k.apply()
			args := strings.Fields(drift)
			netns.Run(t, args[0], args[1:]...)
			k.rollback()
			if strings.HasSuffix(drift, "-F PREROUTING") { // took another's rule along
				netns.Run(t, ipt, strings.Fields("-t raw -A PREROUTING -i others0 -j ACCEPT")...)
			}
			k.mustBe(drift, before)
		}
	})
}

func TestKernelEveryPlaceForTheAddresses(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	before := dump(t)
	for _, typ := range []link.Type{link.Auto, link.Bridge, link.Lo, link.Dummy} {
		k := &kernel{t: t, cfg: config()}
		k.cfg.LinkType, k.cfg.Notrack = typ, false
		err := k.node().Apply(t.Context())
		var hinted interface{ Hint() string }
		if typ == link.Dummy && errors.As(err, &hinted) && strings.Contains(err.Error(), "this kernel has no dummy devices") {
			t.Log(err) // auto then took a bridge
		} else if err != nil {
			t.Fatalf("%s: %v", typ, err)
		} else if !strings.Contains(dump(t), "inet 169.254.20.10/32") || !strings.Contains(dump(t), "inet6 fd00::a/128") {
			t.Errorf("%s:\n%s", typ, dump(t))
		}
		k.rollback()
		k.mustBe(string(typ), before)
	}
}

func TestKernelAnotherConfigurationConvergesAndIsRolledBack(t *testing.T) {
	backends(t, func(t *testing.T, k *kernel) {
		before := dump(t)
		k.apply()
		k.cfg.Addresses = []netip.Addr{netip.MustParseAddr("169.254.20.11")}
		k.cfg.LinkType = link.Lo
		k.cfg.Sysctls = nil
		k.apply()
		if s := dump(t); strings.Contains(s, "169.254.20.10") || !strings.Contains(s, "169.254.20.11/32 scope global lo:nodelocaldns") {
			t.Errorf("the node is\n%s", s)
		}
		k.cfg.Interface, k.cfg.Notrack = "other0", false
		k.rollback()
		k.mustBe("after rollback", before)
	})
}

func TestKernelAForeignDeviceIsLeftAlone(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.Run(t, "ip", "link", "add", "nodelocaldns0", "type", "bridge")
	netns.Run(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "nodelocaldns0")
	k := &kernel{t: t, cfg: config()}
	before := dump(t)
	err := k.node().Apply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "link/nodelocaldns0: blocked: nodelocaldns0 is a bridge device that is not ours") {
		t.Errorf("err = %v", err)
	}
	k.rollback()
	k.mustBe("after rollback", before)
}

func TestKernelAnAddressOnLoThatWasThereStays(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	netns.Run(t, "ip", "addr", "add", "169.254.20.10/32", "dev", "lo")
	netns.Run(t, "ip", "addr", "add", "fd00::a/128", "dev", "lo")
	k := &kernel{t: t, cfg: config()}
	k.cfg.LinkType = link.Lo
	k.cfg.Addresses = append(k.cfg.Addresses, netip.MustParseAddr("169.254.20.11"), netip.MustParseAddr("fd00::b"))
	before := dump(t)
	k.apply()
	if s := dump(t); !strings.Contains(s, "fd00::b/128") {
		t.Errorf("the node is\n%s", s)
	}
	k.rollback()
	k.mustBe("after rollback", before)
}

// until polls a condition of the kernel that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // below the 10 s of the next look
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within 8s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestKernelGuardRepairsTheLinkAtOnceAndYieldsToRollback(t *testing.T) {
	backends(t, func(t *testing.T, k *kernel) {
		before := dump(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		g, done := k.node().Guard(host.Duties{}), make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		<-g.Ready()
		want := sorted(dump(t))
		for _, drift := range []string{
			"ip addr del 169.254.20.10/32 dev nodelocaldns0",
			"ip link set nodelocaldns0 down",
			"ip link del nodelocaldns0",
		} {
			args := strings.Fields(drift)
			netns.Run(t, args[0], args[1:]...)
			until(t, drift, func() bool { return cmp.Equal(want, sorted(dump(t))) })
		}
		k.rollback()
		k.mustBe("after rollback beside a guard", before)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		k.mustBe("after the guard stopped", before)
	})
}

func TestKernelWatchTellsOfLinksAndAddresses(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := link.Watch(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{
		"ip link add x0 type bridge", "ip addr add 192.0.2.9/32 dev x0", "ip addr add fd00::9/128 dev x0 nodad", "ip link del x0",
	} {
		for len(events) > 0 {
			<-events
		}
		args := strings.Fields(change)
		netns.Run(t, args[0], args[1:]...)
		select {
		case <-events:
		case <-time.After(8 * time.Second):
			t.Fatalf("no event for %s", change)
		}
	}
}

// What follows kills a process with SIGKILL at each of its writes. The process
// is this test binary, run once more in the same namespace.
const killAt = "NODELOCALDNS_TEST_KILL_AT"

func TestKernelKilledChild(t *testing.T) {
	at, err := strconv.Atoi(os.Getenv(killAt))
	if err != nil {
		return // a part of TestKernelAKilledProcessIsRolledBack, and no test alone
	}
	k := &kernel{t: t, cfg: config()}
	k.cfg.Backend = notrack.Backend(os.Getenv(killAt + "_BACKEND"))
	d := k.deps()
	die := &killer{left: at}
	d.Netlink = mortalNetlink{d.Netlink, die}
	open := d.Tables
	d.Tables = func(b notrack.Backend, v6 bool) (notrack.Tables, error) {
		x, err := open(b, v6)
		return mortalTables{x, die}, err
	}
	n, err := host.New(k.cfg, d)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv(killAt+"_VERB") == "rollback" {
		err = n.Rollback(t.Context())
	} else {
		err = n.Guard(host.Duties{}).Once(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestKernelAKilledProcessIsRolledBack(t *testing.T) {
	backends(t, func(t *testing.T, k *kernel) {
		before := dump(t)
		// killed says whether the child was, and not done before.
		killed := func(verb string, at int) bool {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestKernelKilledChild$")
			cmd.Env = append(os.Environ(), killAt+"="+strconv.Itoa(at), killAt+"_VERB="+verb, killAt+"_BACKEND="+string(k.cfg.Backend))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
				return true
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", verb, err, out)
			}
			return false
		}
		every := 1
		if testing.Short() {
			every = 5
		}
		points := map[string]int{}
		for _, verb := range []string{"guard", "rollback"} {
			for at := 1; ; at += every {
				if verb == "rollback" {
					k.apply()
				}
				more := killed(verb, at)
				k.rollback()
				k.mustBe(fmt.Sprintf("%s killed after write %d", verb, at), before)
				if err := os.Remove("/run/state/off"); err != nil {
					t.Fatal(err)
				}
				if !more {
					break
				}
				points[verb] = at
			}
			if points[verb] < 10 { // at the very least
				t.Errorf("%s was killed at %d points only", verb, points[verb])
			}
		}
		t.Logf("killed at %v", points)
	})
}

// A killer ends this process when a number of writes have landed.
type killer struct{ left int }

func (k *killer) wrote(err error) error {
	if k.left--; k.left == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return err
}

type mortalNetlink struct {
	link.Netlink
	die *killer
}

func (m mortalNetlink) LinkAdd(l netlink.Link) error   { return m.die.wrote(m.Netlink.LinkAdd(l)) }
func (m mortalNetlink) LinkDel(l netlink.Link) error   { return m.die.wrote(m.Netlink.LinkDel(l)) }
func (m mortalNetlink) LinkSetUp(l netlink.Link) error { return m.die.wrote(m.Netlink.LinkSetUp(l)) }
func (m mortalNetlink) LinkSetAlias(l netlink.Link, alias string) error {
	return m.die.wrote(m.Netlink.LinkSetAlias(l, alias))
}
func (m mortalNetlink) AddrReplace(l netlink.Link, a *netlink.Addr) error {
	return m.die.wrote(m.Netlink.AddrReplace(l, a))
}
func (m mortalNetlink) AddrDel(l netlink.Link, a *netlink.Addr) error {
	return m.die.wrote(m.Netlink.AddrDel(l, a))
}

type mortalTables struct {
	notrack.Tables
	die *killer
}

func (m mortalTables) NewChain(t, c string) error    { return m.die.wrote(m.Tables.NewChain(t, c)) }
func (m mortalTables) ClearChain(t, c string) error  { return m.die.wrote(m.Tables.ClearChain(t, c)) }
func (m mortalTables) DeleteChain(t, c string) error { return m.die.wrote(m.Tables.DeleteChain(t, c)) }
func (m mortalTables) Append(t, c string, r ...string) error {
	return m.die.wrote(m.Tables.Append(t, c, r...))
}
func (m mortalTables) Insert(t, c string, pos int, r ...string) error {
	return m.die.wrote(m.Tables.Insert(t, c, pos, r...))
}
func (m mortalTables) Delete(t, c string, r ...string) error {
	return m.die.wrote(m.Tables.Delete(t, c, r...))
}

// nobody is the user that no file belongs to, as Debian and Red Hat number it.
const nobody = 65534

func TestKernelChecksWithoutRootWhatItCan(t *testing.T) {
	if os.Getenv(killAt) == "nobody" {
		k := &kernel{t: t, cfg: config()}
		all, err := k.node().Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range all {
			fmt.Printf("SEEN %s %s ours=%v unseen=%v %v\n", st.Name, st.State, st.Ours, st.Unseen, st.Err)
		}
		return
	}
	if !netns.Enter(t) {
		return
	}
	k := &kernel{t: t, cfg: config()}
	k.apply()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKernelChecksWithoutRootWhatItCan$", "-test.v")
	cmd.Env = append(os.Environ(), killAt+"=nobody")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"SEEN link/nodelocaldns0 satisfied ours=true unseen=false <nil>",
		"SEEN notrack/ipv4 satisfied ours=true unseen=true <nil>",
		"SEEN notrack/ipv6 satisfied ours=true unseen=true <nil>",
		"SEEN sysctl/" + finWait + " satisfied ours=true unseen=false <nil>",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	k.rollback()
	if _, err := os.Stat(filepath.Join(host.RunDir, "journal.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is left: %v", err)
	}
}

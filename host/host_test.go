package host_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/step"
	"nodelocaldns/host/sysctl"
)

const (
	finWait  = "net.netfilter.nf_conntrack_tcp_timeout_fin_wait"
	timeWait = "net.netfilter.nf_conntrack_tcp_timeout_time_wait"
)

func config() host.Config {
	return host.Config{
		Interface: "nodelocaldns0",
		LinkType:  link.Auto,
		Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("fd00::a")},
		Port:      53,
		Notrack:   true,
		Backend:   notrack.Auto,
		Sysctls: []sysctl.Param{
			{Key: sysctl.Max, Value: 1048576, Policy: sysctl.Floor},
			{Key: sysctl.Buckets, Value: 262144, Policy: sysctl.Floor},
			{Key: finWait, Value: 30, Policy: sysctl.Ceiling},
			{Key: timeWait, Value: 30, Policy: sysctl.Ceiling},
			{Key: sysctl.CloseWait, Value: 15, Policy: sysctl.Ceiling},
		},
	}
}

// rig is a fake node and what is asked of it. Each call of node is another
// process with the same files.
type rig struct {
	*hosttest.Node
	t      *testing.T
	dir    string
	cfg    host.Config
	events chan struct{}
	log    *logBuffer
	orig   string
}

// volatile is a directory in memory where there is one: thousands of journals
// are synced to it, and nothing of them has to last.
func volatile(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "nodelocaldns-test-") //nolint:usetesting // t.TempDir cannot be told where
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newRig(t *testing.T) *rig {
	r := &rig{Node: hosttest.New(), t: t, dir: volatile(t), cfg: config(), events: make(chan struct{}), log: &logBuffer{}}
	r.orig = r.String()
	return r
}

func (r *rig) deps() host.Deps {
	plain := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return host.Deps{
		RunDir:   filepath.Join(r.dir, "run"),
		StateDir: filepath.Join(r.dir, "state"),
		Log:      slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{ReplaceAttr: plain})),
		Now:      time.Now,
		Netlink:  r.Netlink(),
		Tables:   r.Tables,
		Values:   r.Values(),
		Memory:   r.Memory,
		Watch:    func(context.Context) (<-chan struct{}, error) { return r.events, nil },
		LockWait: time.Second,
	}
}

func (r *rig) node() *host.Node {
	r.t.Helper()
	n, err := host.New(r.cfg, r.deps())
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (r *rig) apply(steps ...string) {
	r.t.Helper()
	if err := r.node().Apply(r.t.Context(), steps...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) rollback(keep ...string) {
	r.t.Helper()
	if err := r.node().Rollback(r.t.Context(), keep...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) check() []engine.Status {
	r.t.Helper()
	all, err := r.node().Check(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

func (r *rig) mustBe(what, want string) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.String()); diff != "" {
		r.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// A logBuffer is written by the guard and read by the test.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// logged returns the log since the last call.
func (r *rig) logged() string {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	defer r.log.b.Reset()
	return r.log.b.String()
}

func TestApplyTwiceIsApplyOnceAndRollbackRestoresTheNode(t *testing.T) {
	r := newRig(t)
	for _, st := range r.check() {
		if st.State != step.Pending || st.Ours {
			t.Errorf("before apply: %+v", st)
		}
	}
	if _, err := os.Stat(filepath.Join(r.dir, "run")); !errors.Is(err, os.ErrNotExist) {
		t.Error("check wrote files")
	}
	r.apply()
	want, writes := r.String(), r.Writes()
	var names []string
	for _, st := range r.check() {
		names = append(names, st.Name)
		if st.State != step.Satisfied || !st.Ours || !st.Done || st.Since.IsZero() {
			t.Errorf("after apply: %+v", st)
		}
	}
	if diff := cmp.Diff([]string{
		"link/nodelocaldns0", "notrack/ipv4", "notrack/ipv6",
		"sysctl/" + sysctl.Buckets, "sysctl/" + sysctl.Max, "sysctl/" + finWait, "sysctl/" + timeWait, "sysctl/" + sysctl.CloseWait,
	}, names); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	r.apply()
	if r.Writes() != writes {
		t.Errorf("the second apply wrote %d times", r.Writes()-writes)
	}
	r.mustBe("after the second apply", want)
	r.rollback()
	r.mustBe("after rollback", r.orig)
	r.rollback()
	r.mustBe("after a second rollback", r.orig)
	if _, err := os.Stat(filepath.Join(r.dir, "run", "journal.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is left: %v", err)
	}
}

// The power goes at any write of the whole plan, of a re-apply with another
// configuration, and of the rollback: one more rollback, by a process that has
// the other configuration, restores the node.
func TestOneMoreRollbackRestoresTheNodeAfterAPowerCutAnywhere(t *testing.T) {
	cut := func(r *rig, at int, f hosttest.Fault, do func() error) {
		defer r.Arm(0, 0)
		defer func() {
			if p := recover(); p != nil && p != (hosttest.PowerCut{}) {
				panic(p)
			}
		}()
		r.Arm(at, f)
		_ = do()
	}
	other := config()
	other.Interface, other.LinkType = "dns0", link.Lo
	other.Addresses = []netip.Addr{netip.MustParseAddr("169.254.20.11")}
	other.Sysctls = []sysctl.Param{{Key: finWait, Value: 20, Policy: sysctl.Exact}}
	same := config()
	same.Addresses = other.Addresses
	same.LinkType = link.Bridge
	same.Sysctls = other.Sysctls
	for name, next := range map[string]host.Config{"all else": other, "the same names": same} {
		t.Run(name, func(t *testing.T) {
			ref := newRig(t)
			ref.apply()
			first := ref.Writes()
			ref.cfg = next
			ref.apply()
			second := ref.Writes() - first
			ref.rollback()
			third := ref.Writes() - first - second
			ref.mustBe("without any cut", ref.orig)
			for _, f := range []hosttest.Fault{hosttest.Fail, hosttest.CutBefore, hosttest.CutAfter} {
				for phase, writes := range []int{first, second, third} {
					for at := 1; at <= writes; at++ {
						r := newRig(t)
						arm := [3]int{}
						arm[phase] = at
						cut(r, arm[0], f, func() error { return r.node().Apply(t.Context()) })
						r.cfg = next
						cut(r, arm[1], f, func() error { return r.node().Apply(t.Context()) })
						cut(r, arm[2], f, func() error { return r.node().Rollback(t.Context()) })
						if err := r.node().Rollback(t.Context()); err != nil {
							t.Fatalf("fault %d at write %d of phase %d: %v", f, at, phase, err)
						}
						if diff := cmp.Diff(r.orig, r.String()); diff != "" {
							t.Fatalf("fault %d at write %d of phase %d (-before +after):\n%s", f, at, phase, diff)
						}
					}
				}
			}
			t.Logf("%d writes", first+second+third)
		})
	}
}

func TestRollbackUndoesWhatTheConfigurationNoLongerHas(t *testing.T) {
	r := newRig(t)
	r.apply()
	r.cfg = host.Config{Interface: "other0", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	all := r.check()
	if len(all) != 8 {
		t.Fatalf("%d steps, want the 8 of the old configuration", len(all))
	}
	for _, st := range all {
		if !st.Leftover || !st.Ours || st.Err != nil || !strings.Contains(st.Why, "rollback takes it back") {
			t.Errorf("status %+v, want a leftover", st)
		}
	}
	r.rollback()
	r.mustBe("after rollback", r.orig)
}

func TestRollbackKeepsWhatItIsToldTo(t *testing.T) {
	r := newRig(t)
	r.apply()
	r.rollback("link/nodelocaldns0")
	if s := r.String(); !strings.Contains(s, "169.254.20.10/32") || strings.Contains(s, "NOTRACK") {
		t.Errorf("the node is\n%s", s)
	}
	r.rollback()
	r.mustBe("after rollback", r.orig)
}

func TestRecordsOfAnotherVersionAreReportedByName(t *testing.T) {
	r := newRig(t)
	r.apply()
	path := filepath.Join(r.dir, "run", "journal.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`"notrack/ipv6"`), []byte(`"nft/inet"`), 1)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	err = r.node().Rollback(t.Context())
	if err == nil || !strings.Contains(err.Error(), "nft/inet: this version has no such step") {
		t.Errorf("err = %v", err)
	}
	if s := r.String(); strings.Contains(s, "169.254.20.10") {
		t.Errorf("the steps it does know were not undone:\n%s", s)
	}
}

func TestADamagedJournalStopsEverythingAndIsNamed(t *testing.T) {
	r := newRig(t)
	r.apply()
	want := r.String()
	path := filepath.Join(r.dir, "run", "journal.json")
	if err := os.WriteFile(path, []byte(`{"version": 1, "rec`), 0o644); err != nil {
		t.Fatal(err)
	}
	n := r.node()
	for _, run := range []struct {
		what string
		do   func() error
	}{
		{"check", func() error { _, err := n.Check(t.Context()); return err }},
		{"guard", func() error { return n.Guard(host.Duties{}).Once(t.Context()) }},
		{"apply", func() error { return n.Apply(t.Context()) }},
		{"rollback", func() error { return n.Rollback(t.Context()) }},
	} {
		if err := run.do(); err == nil || !strings.Contains(err.Error(), path+" is damaged") {
			t.Errorf("%s: %v", run.what, err)
		}
	}
	r.mustBe("the node", want)
}

func TestNamedStepsAreAppliedAlone(t *testing.T) {
	r := newRig(t)
	r.apply("link", "sysctl/"+finWait)
	got := r.String()
	for text, want := range map[string]bool{"169.254.20.10/32": true, finWait + " = 30": true, timeWait + " = 120": true, "NODELOCALDNS": false} {
		if strings.Contains(got, text) != want {
			t.Errorf("%q there is %v, want %v", text, !want, want)
		}
	}
	err := r.node().Apply(t.Context(), "links")
	var hinted interface{ Hint() string }
	if err == nil || err.Error() != "no step links in the plan" || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "link/nodelocaldns0") {
		t.Errorf("err = %v", err)
	}
}

func TestABlockedSysctlIsLoggedAndTheRestIsApplied(t *testing.T) {
	r := newRig(t)
	r.ReadOnly[sysctl.Max], r.ReadOnly[sysctl.Buckets] = true, true
	r.apply()
	if s := r.String(); !strings.Contains(s, finWait+" = 30") || !strings.Contains(s, "nf_conntrack_max = 262144") {
		t.Errorf("the node is\n%s", s)
	}
	if log := r.logged(); strings.Count(log, "msg=skipped step=sysctl/") != 2 || !strings.Contains(log, "read-only here") {
		t.Errorf("log:\n%s", log)
	}
}

func TestAFailedStepIsAnErrorAndTheRestIsApplied(t *testing.T) {
	r := newRig(t)
	if err := r.Netlink().LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "nodelocaldns0"}}); err != nil {
		t.Fatal(err)
	}
	r.Programs = nil
	err := r.node().Apply(t.Context())
	for _, want := range []string{
		"link/nodelocaldns0: blocked: nodelocaldns0 is a dummy device that is not ours",
		"notrack/ipv4: blocked: iptables: not installed",
		"notrack/ipv6: blocked: ip6tables: not installed",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("err = %v\nwant %s", err, want)
		}
	}
	if s := r.String(); !strings.Contains(s, timeWait+" = 30") {
		t.Errorf("the node is\n%s", s)
	}
}

func TestLoopbackAddressesNeedNothing(t *testing.T) {
	r := newRig(t)
	r.cfg.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("::1")}
	r.cfg.Sysctls = nil
	if all := r.check(); len(all) != 0 {
		t.Errorf("plan %+v, want none", all)
	}
	r.apply()
	r.mustBe("the node", r.orig)
}

func TestOneFamilyNeedsOneSetOfRules(t *testing.T) {
	r := newRig(t)
	r.cfg.Addresses = r.cfg.Addresses[:1]
	for _, st := range r.check() {
		if st.Name == "notrack/ipv6" {
			t.Error("notrack/ipv6 is planned without an IPv6 address")
		}
	}
}

func TestARunningEngineIsNamedByItsProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		lock, err := journal.Acquire(t.Context(), filepath.Join(r.dir, "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Release()
		var held *journal.HeldError
		if err := r.node().Apply(t.Context()); !errors.As(err, &held) || held.PID == "" {
			t.Errorf("err = %v", err)
		}
		r.mustBe("the node", r.orig)
	})
}

func TestAConfigThatCannotBeBuiltIsRefused(t *testing.T) {
	for want, change := range map[string]func(*host.Config){
		"device name":         func(c *host.Config) { c.Interface = "sixteen-bytes-xx" },
		"port 0":              func(c *host.Config) { c.Port = 0 },
		"not one that a devi": func(c *host.Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
	} {
		cfg := config()
		change(&cfg)
		if _, err := host.New(cfg, host.Deps{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("err = %v, want one with %q", err, want)
		}
	}
}

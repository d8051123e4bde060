package unit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unit"
	"nodelocaldns/test/judge"
	"nodelocaldns/units"
)

// inside says that this process runs in the container that
// TestOnABootedSystemd boots.
const inside = "NODELOCALDNS_UNIT_TEST_INSIDE"

// A real systemd runs the real program by our units: installed, answering,
// replaced, failing, and taken away again.
func TestOnABootedSystemd(t *testing.T) {
	switch os.Getenv(inside) {
	case "test":
		installAndRemove(t)
		removeFromInside(t)
		return
	case "guard":
		endAsGuard(t)
		return
	}
	if os.Geteuid() != 0 {
		judge.Skip(t, "needs root to boot systemd")
	}
	root := t.TempDir()
	put := func(name, text string, mode fs.FileMode) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "usr/bin"), "nodelocaldns/cmd/nodelocaldns", "nodelocaldns/cmd/nodelocaldns-relay")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	put("unit.test", string(program), 0o755)
	put("etc/nodelocaldns/config.yaml", "cluster: {dns: [192.0.2.1]}\nnotrack: {enabled: false}\nsysctls: {}\n", 0o644)
	put("etc/systemd/system/inside.service", "[Service]\nEnvironment="+inside+"=test\nWorkingDirectory=/tmp\n"+
		"ExecStart=/unit.test -test.run=^TestOnABootedSystemd$ -test.v\n", 0o644)
	put("etc/systemd/system/inside.service.d/zzzzz.conf", "[Service]\nTimeoutStartSec=150\nStandardOutput=file:/dev/console\nStandardError=inherit\n", 0o644)
	_, log := judge.Run(t, root, nil, []string{"inside.service"})
	if !strings.Contains(log, "--- PASS: TestOnABootedSystemd") {
		t.Errorf("inside:\n%s", log)
	}
}

func installAndRemove(t *testing.T) {
	rendered := func(cache int64) []units.File {
		files, err := units.Render(units.Settings{CacheBytes: cache})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	j := &hosttest.Journal{}
	newStep := func(cache int64) *unit.Step {
		c := unit.Config{Files: fsys.DirFiles("/"), Systemd: unit.Bus{}, Units: rendered(cache)}
		for _, r := range j.Records {
			c.Held = r.Saved
		}
		s, err := unit.New(c)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const small, large = 32 << 20, 64 << 20
	apply := func(cache int64) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return j.Engine(newStep(cache)).Apply(ctx)
	}
	state := func(name, property string) string {
		out, err := exec.Command("systemctl", "show", "--value", "--property="+property, name).Output()
		if err != nil {
			t.Fatalf("asking for %s of %s: %v", property, name, err)
		}
		return strings.TrimSpace(string(out))
	}

	before := snapshot(t)
	if err := apply(small); err != nil {
		t.Fatal(err)
	}
	f, err := newStep(small).Check(t.Context())
	if want := "installed from this program; guard, socket and resolver run"; err != nil || f.Why != want {
		t.Errorf("after apply: %+v, %v; want %s", f, err, want)
	}
	if got := state(units.Kubelet, "ActiveState"); got != "inactive" {
		t.Errorf("what is for the boot is %s", got)
	}
	for _, name := range units.Names {
		want := "enabled"
		if name == units.Relay { // started when it is needed
			want = "static"
		}
		if got := state(name, "UnitFileState"); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for name, want := range map[string]string{
		"/run/nodelocaldns":              "drwxr-xr-x root root",
		"/run/nodelocaldns/control.sock": "srw------- root root",
	} {
		out, err := exec.Command("stat", "--format=%A %U %G", name).Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s is %s, want %s (%v)", name, got, want, err)
		}
	}
	pid := state(units.Resolver, "MainPID")
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil || !strings.Contains(string(status), "\nCapEff:\t0000000000000400\n") || strings.Contains(string(status), "\nUid:\t0\t") {
		t.Errorf("the resolver may do more than bind ports (%v):\n%s", err, status)
	}
	for _, network := range []string{"udp", "tcp"} {
		r, _, err := (&dns.Client{Net: network}).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("www.example.", dns.TypeA), "169.254.20.10:53")
		if err != nil || r.Rcode != dns.RcodeServerFailure { // 192.0.2.1 is nobody's
			t.Errorf("over %s: %v, %v", network, r, err)
		}
	}

	// Who answers, when the resolver is stopped and after. Somebody always does.
	ctl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("systemctl", append([]string{"--job-mode=ignore-requirements"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	answers := func(when, want string) {
		t.Helper()
		lost := make(chan error, 40)
		for range cap(lost) {
			go func() { // from 40 ports: the kernel deals them out to the sockets
				c := dns.Client{Timeout: time.Minute}
				_, _, err := c.Exchange(new(dns.Msg).SetQuestion("www.example.", dns.TypeA), "169.254.20.10:53")
				lost <- err
			}()
		}
		var errs []error
		for range cap(lost) {
			errs = append(errs, <-lost)
		}
		if err := errors.Join(errs...); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		var runs []string
		for _, name := range []string{units.Socket, units.Resolver, units.Relay} {
			runs = append(runs, state(name, "ActiveState"))
		}
		if got := strings.Join(runs, " "); got != want {
			t.Errorf("%s, socket, resolver and relay are %s; want %s", when, got, want)
		}
	}
	ctl("stop", units.Guard) // which would have its say
	ctl("stop", units.Resolver)
	answers("resolver stopped", "active inactive active")
	ctl("stop", units.Relay)
	answers("relay stopped", "active inactive active")
	ctl("start", units.Resolver)
	answers("resolver started beside the relay", "active active active")
	ctl("stop", units.Relay)
	answers("relay stopped beside the resolver", "active active inactive")
	if out, err := exec.Command("systemctl", "restart", units.Socket).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	answers("sockets started again", "active active inactive")
	ctl("kill", "--signal=KILL", units.Resolver)
	answers("resolver killed", "active active inactive")
	ctl("start", units.Guard)
	pid = state(units.Resolver, "MainPID")

	socket := state(units.Socket, "ActiveEnterTimestampMonotonic")
	if err := apply(large); err != nil {
		t.Fatal(err)
	}
	if got := state(units.Resolver, "MainPID"); got == pid || !strings.Contains(state(units.Resolver, "Environment"), "GOMEMLIMIT=256MiB") {
		t.Errorf("with another cache the resolver is %s, was %s", got, pid)
	}
	if got := state(units.Socket, "ActiveEnterTimestampMonotonic"); got != socket {
		t.Error("the socket was restarted")
	}

	// A resolver that cannot start: given up, reported, started again by the next
	// apply once the reason is gone.
	const dropIn = "/etc/systemd/system/nodelocaldns.service.d"
	if err := errors.Join(os.Mkdir(dropIn, 0o755), os.WriteFile(dropIn+"/bad.conf", []byte("[Service]\nExecStart=\nExecStart=/bin/false\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("systemctl", "stop", units.Resolver).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const said = "unit/nodelocaldns: apply: starting nodelocaldns.service: systemd's job ended as failed, it is "
	if got := text(apply(large)); !strings.HasPrefix(got, said) || !strings.HasSuffix(got, "\njournalctl -u nodelocaldns.service says why") {
		t.Errorf("got %q, want %q and where to look", got, said)
	}
	answers("resolver cannot be started", "active failed active")
	if f, err = newStep(large).Check(t.Context()); err != nil || !strings.Contains(f.Why, "nodelocaldns.service is failed: ") {
		t.Errorf("given up: %+v, %v", f, err)
	}
	if err := os.RemoveAll(dropIn); err != nil {
		t.Fatal(err)
	}
	if err := apply(large); err != nil {
		t.Fatal(err)
	}

	if err := j.Engine(newStep(large)).Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("left (-before +after):\n%s", diff)
	}
	for _, name := range units.Names {
		if load, active := state(name, "LoadState"), state(name, "ActiveState"); load != "not-found" || active != "inactive" {
			t.Errorf("%s is %s and %s", name, load, active)
		}
	}
	if c, err := net.Dial("tcp", netip.MustParseAddrPort("169.254.20.10:53").String()); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

// record is where removeFromInside leaves the record for endAsGuard.
const record = "/run/record.json"

// Guard ends a rollback: it takes away the unit that it runs in, and ends.
func removeFromInside(t *testing.T) {
	files, err := units.Render(units.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		if f.Name == units.Guard {
			files[i].Content = []byte("[Service]\nEnvironment=" + inside + "=guard\nWorkingDirectory=/tmp\nRestart=on-failure\n" +
				"ExecStart=/unit.test -test.run=^TestOnABootedSystemd$\nStandardOutput=file:/dev/console\nStandardError=inherit\n")
		}
	}
	before := snapshot(t)
	j := &hosttest.Journal{}
	s, err := unit.New(unit.Config{Files: fsys.DirFiles("/"), Systemd: unit.Bus{}, Units: files})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Engine(s).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(j.Records[0].Saved)
	if err != nil {
		t.Fatal(err)
	}
	if err := fsys.Dir("/").WriteAtomic(record, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for {
		st, err := (unit.Bus{}).Status(t.Context(), units.Guard)
		if err != nil {
			t.Fatal(err)
		}
		if st.Active == "failed" {
			t.Fatalf("guard is %s", st)
		}
		if st.Active == "inactive" && st.Load == "not-found" {
			break
		}
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("guard left (-before +after):\n%s", diff)
	}
}

func endAsGuard(t *testing.T) {
	var saved step.Saved
	for {
		text, err := os.ReadFile(record)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err = errors.Join(err, json.Unmarshal(text, &saved)); err != nil {
			t.Fatal(err)
		}
		break
	}
	group, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	self := unit.Self(string(group))
	if self != units.Guard {
		t.Fatalf("it runs in %q:\n%s", self, group)
	}
	s, err := unit.New(unit.Config{Files: fsys.DirFiles("/"), Systemd: unit.Bus{}, Self: self})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Undo(ctx, saved); err != nil {
		t.Fatal(err)
	}
}

// snapshot is every file that an administrator may look at, with its mode and
// owner, and what holds users.
func snapshot(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, dir := range []string{"/etc", "/usr/lib/systemd", "/var/lib", "/var/tmp", "/run/systemd/system"} {
		err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
			if name == "/etc/netns" { // it is of the machine below, where other tests come and go
				return fs.SkipDir
			}
			info, err := os.Lstat(name)
			if err != nil {
				return err
			}
			uid, gid := fsys.Owner(info)
			fmt.Fprintf(&out, "%s %d:%d %s", info.Mode(), uid, gid, name)
			if info.Mode().IsRegular() {
				fmt.Fprintf(&out, " %d %s", info.Size(), info.ModTime())
			}
			out.WriteByte('\n')
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

package sysctl_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/step"
	"nodelocaldns/host/sysctl"
)

const finWait = "net.netfilter.nf_conntrack_tcp_timeout_fin_wait"

func build(p sysctl.Param) func(*hosttest.Node) step.Step {
	return func(n *hosttest.Node) step.Step { return sysctl.New(n.Values(), n.Memory, p) }
}

func TestStepSysctl(t *testing.T) {
	for _, p := range []struct {
		sysctl.Param
		want string
	}{
		{sysctl.Param{Key: sysctl.Max, Value: 1048576, Policy: sysctl.Floor}, sysctl.Max + " = 1048576"},
		{sysctl.Param{Key: sysctl.Max, Value: 131072, Policy: sysctl.Exact}, sysctl.Max + " = 131072"},
		{sysctl.Param{Key: sysctl.Buckets, Value: 262144, Policy: sysctl.Floor}, sysctl.Buckets + " = 262144"},
		{sysctl.Param{Key: sysctl.Buckets, Value: 70000, Policy: sysctl.Exact}, sysctl.Buckets + " = 70144"},
		{sysctl.Param{Key: finWait, Value: 30, Policy: sysctl.Ceiling}, finWait + " = 30"},
	} {
		t.Run(p.want, func(t *testing.T) { hosttest.RunStep(t, hosttest.New, build(p.Param), p.want) })
	}
}

func TestThePolicySaysWhichValuesAreAsWanted(t *testing.T) {
	for _, tt := range []struct {
		now    string
		policy sysctl.Policy
		want   step.State
	}{
		{"29", sysctl.Floor, step.Pending}, {"30", sysctl.Floor, step.Satisfied}, {"31", sysctl.Floor, step.Satisfied},
		{"29", sysctl.Ceiling, step.Satisfied}, {"30", sysctl.Ceiling, step.Satisfied}, {"31", sysctl.Ceiling, step.Pending},
		{"29", sysctl.Exact, step.Pending}, {"30", sysctl.Exact, step.Satisfied}, {"31", sysctl.Exact, step.Pending},
	} {
		n := hosttest.New()
		n.Params[finWait] = tt.now
		f, err := build(sysctl.Param{Key: finWait, Value: 30, Policy: tt.policy})(n).Check(t.Context())
		if err != nil || f.State != tt.want || f.Why == "" {
			t.Errorf("%s with %s 30: %+v, %v; want %s", tt.now, tt.policy, f, err, tt.want)
		}
	}
}

func TestAKeyThisKernelDoesNotHaveIsSkippedAndSaysSo(t *testing.T) {
	n := hosttest.New()
	f, err := build(sysctl.Param{Key: "net.netfilter.none", Value: 1, Policy: sysctl.Exact})(n).Check(t.Context())
	if err != nil || f.State != step.Satisfied || f.Why != "skipped: absent" {
		t.Errorf("check found %+v, %v", f, err)
	}
}

func TestAReadOnlyKeyIsBlockedWithAHintUnlessItFitsAlready(t *testing.T) {
	n := hosttest.New()
	n.ReadOnly[sysctl.Max] = true
	f, err := build(sysctl.Param{Key: sysctl.Max, Value: 1048576, Policy: sysctl.Floor})(n).Check(t.Context())
	if err != nil || f.State != step.Blocked || f.Hint == "" || !strings.Contains(f.Why, "read-only") {
		t.Errorf("check found %+v, %v", f, err)
	}
	f, err = build(sysctl.Param{Key: sysctl.Max, Value: 1, Policy: sysctl.Floor})(n).Check(t.Context())
	if err != nil || f.State != step.Satisfied {
		t.Errorf("check found %+v, %v", f, err)
	}
}

func TestATableThatTakesMoreThanATenthOfMemoryIsBlocked(t *testing.T) {
	const most = 4 << 30 / 10 / 384 // 4 GiB of RAM, 384 bytes an entry
	memory := func() (uint64, error) { return 4 << 30, nil }
	n := hosttest.New()
	for value, want := range map[uint64]step.State{most: step.Pending, most + 1: step.Blocked} {
		f, err := sysctl.New(n.Values(), memory, sysctl.Param{Key: sysctl.Max, Value: value, Policy: sysctl.Floor}).Check(t.Context())
		if err != nil || f.State != want {
			t.Errorf("%d entries: %+v, %v; want %s", value, f, err, want)
		}
		if want == step.Blocked && !strings.Contains(f.Hint, "at most 1118481 ") {
			t.Errorf("hint is %q", f.Hint)
		}
	}
	// Lowering costs nothing.
	f, err := sysctl.New(n.Values(), func() (uint64, error) { return 0, nil }, sysctl.Param{Key: sysctl.Max, Value: 4096, Policy: sysctl.Exact}).Check(t.Context())
	if err != nil || f.State != step.Pending {
		t.Errorf("lowering: %+v, %v", f, err)
	}
}

func TestAValueSomebodyElseHasSetSinceIsReleased(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	e := j.Engine(build(sysctl.Param{Key: sysctl.Max, Value: 1048576, Policy: sysctl.Floor})(n))
	var notes []string
	e.Note = func(name, what, why string) { notes = append(notes, name+": "+what+": "+why) }
	if err := e.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Params[sysctl.Max] = "131072"
	if err := e.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.Params[sysctl.Max] != "131072" || len(j.Records) != 0 {
		t.Errorf("value %s, journal %v", n.Params[sysctl.Max], j.Records)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "is 131072, which somebody else has set since") {
		t.Errorf("notes %q", notes)
	}
}

func TestASmallerMaxIsOnlySetWhileFewConnectionsAreTracked(t *testing.T) {
	const limit = 262144 / 100 * 80
	for count, want := range map[string]string{"209679": "262144", "209680": "1048576"} {
		n, j := hosttest.New(), &hosttest.Journal{}
		e := j.Engine(build(sysctl.Param{Key: sysctl.Max, Value: 1048576, Policy: sysctl.Floor})(n))
		if err := e.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.Params[sysctl.Count] = count
		err := e.Rollback(t.Context())
		if n.Params[sysctl.Max] != want {
			t.Errorf("with %s of %d entries: max is %s, want %s", count, limit, n.Params[sysctl.Max], want)
		}
		if refused := want == "1048576"; refused != (err != nil) || refused != (len(j.Records) == 1) {
			t.Errorf("with %s entries: err %v, journal %v", count, err, j.Records)
		}
		// Later there are fewer.
		n.Params[sysctl.Count] = "1"
		if err := e.Rollback(t.Context()); err != nil || n.Params[sysctl.Max] != "262144" {
			t.Errorf("later: max is %s, err %v", n.Params[sysctl.Max], err)
		}
	}
}

// tree makes a directory that looks like /proc/sys.
func tree(t *testing.T, values map[string]string) (string, sysctl.Values) {
	t.Helper()
	dir := t.TempDir()
	for key, value := range values {
		path := filepath.Join(dir, strings.ReplaceAll(key, ".", "/"))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v, err := sysctl.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, v
}

func TestOnFilesAbsentKeysAreNeverCreatedAndModesAreObeyed(t *testing.T) {
	dir, v := tree(t, map[string]string{finWait: "120", sysctl.Max: "262144"})
	memory := func() (uint64, error) { return 16 << 30, nil }
	if err := os.Chmod(filepath.Join(dir, "net/netfilter/nf_conntrack_max"), 0o444); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[sysctl.Param]step.State{
		{Key: finWait, Value: 30, Policy: sysctl.Ceiling}:             step.Pending,
		{Key: sysctl.Max, Value: 1048576, Policy: sysctl.Floor}:       step.Blocked,
		{Key: sysctl.CloseWait, Value: 15, Policy: sysctl.Ceiling}:    step.Satisfied,
		{Key: "net.netfilter.other", Value: 15, Policy: sysctl.Exact}: step.Satisfied,
	} {
		s := sysctl.New(v, memory, p)
		if f, err := s.Check(t.Context()); err != nil || f.State != want {
			t.Errorf("%s: %+v, %v; want %s", p.Key, f, err, want)
		}
	}
	j := &hosttest.Journal{}
	e := j.Engine(sysctl.New(v, memory, sysctl.Param{Key: finWait, Value: 30, Policy: sysctl.Ceiling}))
	if err := e.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := v.Get(finWait); now != "30" || err != nil {
		t.Errorf("value %q, %v", now, err)
	}
	if err := e.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := v.Get(finWait); now != "120" || err != nil {
		t.Errorf("value %q, %v", now, err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "net/netfilter"))
	if err != nil || len(entries) != 2 {
		t.Errorf("files %v, %v", entries, err)
	}
}

// deaf takes every write and does nothing.
type deaf struct{ sysctl.Values }

func (deaf) Set(string, string) error { return nil }

func TestAWriteWithoutEffectIsAnError(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	s := sysctl.New(deaf{n.Values()}, n.Memory, sysctl.Param{Key: finWait, Value: 30, Policy: sysctl.Exact})
	err := j.Engine(s).Apply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "set "+finWait+" to 30, but it is 120") {
		t.Errorf("err = %v", err)
	}
}

func TestAValueThatIsNoNumberIsAnError(t *testing.T) {
	n := hosttest.New()
	n.Params[finWait] = "a\tb"
	if _, err := build(sysctl.Param{Key: finWait, Value: 30, Policy: sysctl.Exact})(n).Check(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestUndoOfAKeyThatIsGoneIsReleased(t *testing.T) {
	n := hosttest.New()
	err := build(sysctl.Param{Key: "net.netfilter.gone"})(n).Undo(t.Context(), step.Saved{})
	var released *step.Released
	if !errors.As(err, &released) {
		t.Errorf("err = %v", err)
	}
}

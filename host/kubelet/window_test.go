package kubelet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
)

// machine is a node on which a kubelet is a unit, and what systemd is asked to
// do is printed. Its files are real, and a start reads them.
type machine struct {
	t      *testing.T
	root   string
	unit   string
	st     kubelet.UnitState
	argv   []string // of the kubelet that runs
	starts int
	did    []string
	said   bytes.Buffer // by the window

	// What goes wrong.
	ends    func(argv []string) bool               // it ends as soon as it was started so
	sick    func(asked int) bool                   // healthz fails
	result  string                                 // of the jobs; empty: done
	refused error                                  // no job is taken
	blind   bool                                   // no process is to be seen
	left    bool                                   // an earlier run left the window open
	idle    bool                                   // jobs do nothing
	happens func(looks int, st *kubelet.UnitState) // by itself
	looks   int
	asks    []string // where healthz was asked
}

const envUnit = "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml $EXTRA\n"

// newMachine is a kubelet that has run for a day.
func newMachine(t *testing.T, unit string) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir(), unit: "kubelet.service"}
	m.write("/usr/lib/systemd/system/kubelet.service", unit)
	m.write("/k.yaml", config("clusterDNS: [10.96.0.10]"))
	m.start()
	m.st.Started = time.Now().Add(-24 * time.Hour)
	return m
}

func (m *machine) remove(name string) {
	m.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.root, name)); err != nil {
		m.t.Fatal(err)
	}
}

func config(lines string) string {
	return "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n" + lines + "\n"
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	name = filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// dropIn is where our file is.
const dropIn = "/etc/systemd/system/kubelet.service.d/99-nodelocaldns.conf"

// start starts the kubelet as its unit says: with what kubelet-env finds, if
// our drop-in is there.
func (m *machine) start() {
	m.argv = []string{"/usr/bin/kubelet", "--config=/k.yaml"}
	if _, err := os.Stat(filepath.Join(m.root, dropIn)); err == nil {
		m.argv = append(m.argv, "--cluster-dns=169.254.20.10,10.96.0.10")
	}
	m.starts++
	m.st = kubelet.UnitState{Load: "loaded", Active: "active", Sub: "running", Result: "success", MainPID: 100 + m.starts, Started: time.Now()}
	if m.ends != nil && m.ends(m.argv) {
		m.end()
	}
}

// end is a kubelet that exits.
func (m *machine) end() {
	m.argv = nil
	m.st = kubelet.UnitState{Load: "loaded", Active: "activating", Sub: "auto-restart", Result: "exit-code", ExitCode: 1, ExitStatus: 1, Restarts: m.st.Restarts}
}

func (m *machine) State(_ context.Context, unit string) (kubelet.UnitState, error) {
	if unit != m.unit {
		return kubelet.UnitState{}, fmt.Errorf("no unit %s", unit)
	}
	m.looks++
	if m.happens != nil {
		m.happens(m.looks, &m.st)
	}
	return m.st, nil
}

func (m *machine) Reload(context.Context) error {
	m.did = append(m.did, "reload")
	m.st.NeedReload = false
	return nil
}

func (m *machine) ResetFailed(context.Context, string) error {
	m.did = append(m.did, "reset-failed")
	m.st.Restarts = 0
	return nil
}

func (m *machine) TryRestart(context.Context, string) (string, error) {
	return m.job("try-restart", m.st.Active == "active")
}

func (m *machine) Restart(context.Context, string) (string, error) {
	return m.job("restart", true)
}

func (m *machine) job(what string, does bool) (string, error) {
	m.did = append(m.did, what)
	switch {
	case m.refused != nil:
		return "", m.refused
	case m.result != "":
		return m.result, nil
	case does && !m.idle:
		m.looks = 0
		m.start()
	}
	return "done", nil
}

// changes is what systemd was asked to do since it was asked for last.
func (m *machine) changes() string {
	out := strings.Join(m.did, ", ")
	m.did = nil
	return out
}

func (m *machine) node() kubelet.Node {
	return kubelet.Node{
		Tree: fsys.Tree(m.root),
		Running: func(string) (*kubelet.Process, error) {
			if m.blind || m.argv == nil {
				return nil, nil
			}
			return &kubelet.Process{PID: m.st.MainPID, Argv: m.argv}, nil
		},
		Started: func(context.Context, string) (time.Time, error) { return m.st.Started, nil },
	}
}

func (m *machine) window() *kubelet.Window {
	return kubelet.NewWindow(kubelet.WindowConfig{
		Node:  m.node(),
		Want:  ours,
		Units: m,
		Healthz: func(_ context.Context, at netip.AddrPort) error {
			m.asks = append(m.asks, at.String())
			if m.sick != nil && m.sick(len(m.asks)) {
				return fmt.Errorf("nobody answers at %s", at)
			}
			return nil
		},
		Log: slog.New(slog.NewTextHandler(&m.said, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})),
		Now:  time.Now,
		Left: m.left,
	})
}

var ours = kubelet.Want{Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10")}}

// apply writes our file.
func (m *machine) apply() {
	m.t.Helper()
	s, err := kubelet.New(kubelet.Config{Node: m.node(), Want: ours, Files: fsys.DirFiles(fsys.Tree(m.root))})
	if err == nil {
		err = s.Apply(m.t.Context())
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) undo() { m.remove(filepath.Dir(dropIn)) }

// open opens a window and then changes the files.
func (m *machine) open() *kubelet.Window {
	m.t.Helper()
	w := m.window()
	if err := w.Open(m.t.Context(), time.Time{}); err != nil {
		m.t.Fatal(err)
	}
	m.said.Reset()
	m.apply()
	return w
}

func failsWith(t *testing.T, err error, want, hint string) {
	t.Helper()
	var h interface{ Hint() string }
	got := ""
	if errors.As(err, &h) {
		got = h.Hint()
	}
	if err == nil || err.Error() != want || got != hint {
		t.Errorf("err  = %v\nwant   %s\nhint = %s\nwant   %s", err, want, got, hint)
	}
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func TestSettleRestartsTheKubeletAndWatchesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, envUnit)
		w := m.open()
		m.st.NeedReload = true
		began := time.Now()
		if err := w.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		equal(t, "systemd was asked to", m.changes(), "reload, reset-failed, try-restart")
		equal(t, "it took", time.Since(began), kubelet.DefaultSettle)
		equal(t, "healthz was asked", len(m.asks), 1+31)
		equal(t, "it said", m.said.String(), ""+
			`level=INFO msg="restarting the kubelet, and watching that it stays" unit=kubelet.service for=30s`+"\n"+
			`level=INFO msg="the kubelet is back" unit=kubelet.service pid=102 "pods ask"=169.254.20.10,10.96.0.10`+"\n")
	})
}

func TestAKubeletThatDoesNotComeBackIsGivenUpAsSoonAsThatIsCertain(t *testing.T) {
	const journal = "journalctl -u kubelet.service -n 50 says why"
	for _, tt := range []struct {
		name      string
		wrong     func(m *machine)
		err, hint string
		took      time.Duration
	}{
		{
			name:  "it exits",
			wrong: func(m *machine) { m.ends = func([]string) bool { return true } },
			err:   "kubelet.service did not come back: it is activating (auto-restart), its main process exited with status 1, result exit-code",
			hint:  journal,
		},
		{
			name: "it exits after a while",
			wrong: func(m *machine) {
				m.happens = func(looks int, st *kubelet.UnitState) {
					if looks == 20 {
						m.end()
					}
				}
			},
			err:  "kubelet.service did not come back: it is activating (auto-restart), its main process exited with status 1, result exit-code",
			hint: journal,
			took: 19 * time.Second,
		},
		{
			name: "it is restarted faster than we look",
			wrong: func(m *machine) {
				m.happens = func(looks int, st *kubelet.UnitState) {
					if looks == 3 {
						m.start()
						st.Restarts = 4
					}
				}
			},
			err:  "kubelet.service did not come back: it is active (running), main process 103, started again 4 times",
			hint: journal,
			took: 2 * time.Second,
		},
		{
			name: "it is killed for good",
			wrong: func(m *machine) {
				m.happens = func(looks int, st *kubelet.UnitState) {
					if looks == 2 {
						*st = kubelet.UnitState{Active: "failed", Sub: "failed", Result: "oom-kill", ExitCode: 2, ExitStatus: 9}
					}
				}
			},
			err:  "kubelet.service did not come back: it is failed, its main process was ended by signal 9 (killed), result oom-kill",
			hint: journal,
			took: time.Second,
		},
		{
			name: "somebody stops it",
			wrong: func(m *machine) {
				m.happens = func(looks int, st *kubelet.UnitState) {
					if looks == 2 {
						*st = kubelet.UnitState{Active: "inactive", Sub: "dead", Result: "success", ExitCode: 1}
					}
				}
			},
			err:  "kubelet.service did not come back: it is inactive (dead), its main process exited with status 0",
			hint: journal,
			took: time.Second,
		},
		{
			name: "our address is not on its command line",
			wrong: func(m *machine) {
				m.ends = func([]string) bool { m.argv = []string{"/usr/bin/kubelet", "--config=/k.yaml"}; return false }
			},
			err:  "kubelet.service did not come back: the running kubelet (pid 102) has pods ask 10.96.0.10",
			hint: journal + ", and so does nodelocaldns kubelet-env",
		},
		{
			name:  "its healthz never answers",
			wrong: func(m *machine) { m.sick = func(int) bool { return true } },
			err:   "kubelet.service did not come back within 30s: it runs, and is not well: nobody answers at 127.0.0.1:10248",
			hint:  journal,
			took:  30 * time.Second,
		},
		{
			name:  "its healthz stops answering",
			wrong: func(m *machine) { m.sick = func(asked int) bool { return asked > 1+5 } },
			err:   "kubelet.service did not come back: it runs, and is not well: nobody answers at 127.0.0.1:10248",
			hint:  journal,
			took:  7 * time.Second,
		},
		{
			name:  "its healthz does not answer at the end",
			wrong: func(m *machine) { m.sick = func(asked int) bool { return asked > 1+30 } },
			err:   "kubelet.service did not come back within 30s: it runs, and is not well: nobody answers at 127.0.0.1:10248",
			hint:  journal,
			took:  30 * time.Second,
		},
		{
			name:  "no kubelet is seen in its unit",
			wrong: func(m *machine) { m.blind = true },
			err:   "kubelet.service did not come back within 30s: no kubelet is seen in it: it is active (running), main process 102",
			hint:  journal,
			took:  30 * time.Second,
		},
		{
			name: "it does not get ready",
			wrong: func(m *machine) {
				m.happens = func(_ int, st *kubelet.UnitState) {
					if m.starts == 2 {
						st.Active, st.Sub = "activating", "start"
					}
				}
			},
			err:  "kubelet.service did not come back within 30s: it is activating (start), main process 102",
			hint: journal,
			took: 30 * time.Second,
		},
		{
			name:  "it was not restarted",
			wrong: func(m *machine) { m.idle = true },
			err:   "kubelet.service did not come back: it was not restarted: it is active (running), main process 101 as before",
			hint:  journal,
		},
		{
			name:  "the job fails",
			wrong: func(m *machine) { m.result = "timeout" },
			err:   "restarting kubelet.service: the job is timeout: it is active (running), main process 101",
			hint:  journal,
		},
		{
			name: "a stop is queued, and stays so",
			wrong: func(m *machine) {
				m.st.Job, m.refused = "stop", errors.New("Transaction for kubelet.service/restart is destructive")
			},
			err:  "restarting kubelet.service, which is active (running) with a stop job queued, main process 101: Transaction for kubelet.service/restart is destructive",
			took: 11 * time.Second,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, envUnit)
				w := m.open()
				tt.wrong(m)
				began := time.Now()
				failsWith(t, w.Settle(t.Context()), tt.err, tt.hint)
				equal(t, "it took", time.Since(began), tt.took)
			})
		})
	}
}

func TestAHiccupIsNoReasonToGiveAKubeletUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		hiccup func(m *machine)
	}{
		{"healthz misses one and another", func(m *machine) { m.sick = func(asked int) bool { return asked%3 != 1 && asked < 20 } }},
		{"it is slow to answer", func(m *machine) { m.sick = func(asked int) bool { return asked > 1 && asked < 29 } }},
		{"somebody's job ends", func(m *machine) {
			m.st.Job = "restart"
			m.happens = func(looks int, st *kubelet.UnitState) {
				if looks > 5 {
					st.Job = ""
				}
			}
		}},
		{"it takes a while to get ready", func(m *machine) {
			m.happens = func(looks int, st *kubelet.UnitState) {
				if m.starts == 2 && looks < 10 {
					st.Active, st.Sub = "activating", "start"
				} else {
					st.Active, st.Sub = "active", "running"
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, envUnit)
				w := m.open()
				tt.hiccup(m)
				if err := w.Settle(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAKubeletThatRefusesOurFlagIsBroughtBackWithoutIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, envUnit)
		m.ends = func(argv []string) bool { return len(argv) > 2 }
		w := m.open()
		if err := w.Settle(t.Context()); err == nil {
			t.Fatal("it came back")
		}
		m.changes()
		m.undo()
		began := time.Now()
		if err := w.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		equal(t, "systemd was asked to", m.changes(), "reset-failed, restart")
		equal(t, "it took", time.Since(began), kubelet.DefaultSettle)
		equal(t, "it runs with", strings.Join(m.argv, " "), "/usr/bin/kubelet --config=/k.yaml")
	})
}

func TestAKubeletWhoseFilesAreAsTheyWereIsNotRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, envUnit)
		w := m.open()
		m.undo() // the step failed, and was taken back
		if err := w.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		equal(t, "systemd was asked to", m.changes(), "")
	})
}

func TestWhatWasNotToBeSeenOfAKubeletBeforeIsNotAskedOfItAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, envUnit)
		m.sick = func(int) bool { return true }
		m.blind = true
		w := m.open()
		equal(t, "healthz was asked", len(m.asks), 3)
		if err := w.Settle(t.Context()); err != nil {
			t.Error(err)
		}
		equal(t, "healthz was asked", len(m.asks), 3)
		equal(t, "systemd was asked to", m.changes(), "reset-failed, try-restart")
	})
}

func TestAKubeletThatWasLeftByACutOffRunMustBeSeenToBeWell(t *testing.T) {
	for _, wrong := range []func(m *machine){
		func(m *machine) { m.sick = func(int) bool { return true } },
		func(m *machine) { m.blind = true },
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(t, envUnit)
			m.left = true
			wrong(m)
			if err := m.open().Settle(t.Context()); err == nil {
				t.Error("it is taken for well")
			}
		})
	}
}

func TestAKubeletThatAnswersOnceBeforeIsAskedAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, envUnit)
		m.sick = func(asked int) bool { return asked != 3 }
		w := m.open()
		if err := w.Settle(t.Context()); err == nil {
			t.Error("it is well")
		}
	})
}

func TestAWindowThatWasLeftOpenBringsTheKubeletBackWhateverBecameOfIt(t *testing.T) {
	for _, tt := range []struct {
		name string
		st   kubelet.UnitState
		want string
	}{
		{"runs", kubelet.UnitState{Active: "active", Sub: "running", MainPID: 101}, "reload, reset-failed, try-restart"},
		{"failed", kubelet.UnitState{Active: "failed", Sub: "failed"}, "reload, reset-failed, restart"},
		{"starts again and again", kubelet.UnitState{Active: "activating", Sub: "auto-restart", Restarts: 7}, "reload, reset-failed, restart"},
		{"stopped half way through a restart", kubelet.UnitState{Active: "inactive", Sub: "dead"}, "reload, reset-failed, restart"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, envUnit)
				m.apply()
				m.start()
				m.st, m.left = tt.st, true
				w := m.window()
				if err := w.Open(t.Context(), time.Time{}); err != nil {
					t.Fatal(err)
				}
				if err := w.Settle(t.Context()); err != nil {
					t.Fatal(err)
				}
				equal(t, "systemd was asked to", m.changes(), tt.want)
			})
		})
	}
}

func TestAKubeletRunsIfItHasAMainProcessThatStays(t *testing.T) {
	for _, tt := range []struct {
		name string
		st   kubelet.UnitState
		then func(looks int, st *kubelet.UnitState)
		want bool
		took time.Duration
	}{
		{name: "for a day", st: kubelet.UnitState{Active: "active", MainPID: 101, Started: time.Unix(0, 0)}, want: true},
		{name: "stopped", st: kubelet.UnitState{Active: "inactive"}},
		{name: "failed", st: kubelet.UnitState{Active: "failed"}},
		{name: "waits to be started again", st: kubelet.UnitState{Active: "activating", Sub: "auto-restart"}},
		{name: "no main process", st: kubelet.UnitState{Active: "active", Sub: "exited"}},
		{
			name: "just started, and stays", want: true, took: 10 * time.Second,
			st: kubelet.UnitState{Active: "active", MainPID: 101},
		},
		{
			name: "just started, and fails", took: 3 * time.Second,
			st: kubelet.UnitState{Active: "active", MainPID: 101},
			then: func(looks int, st *kubelet.UnitState) {
				if looks == 4 {
					st.Active, st.Sub = "activating", "auto-restart"
				}
			},
		},
		{
			name: "in a crash loop too quick to be seen failing", took: 21 * time.Second,
			st:   kubelet.UnitState{Active: "active", MainPID: 101},
			then: func(_ int, st *kubelet.UnitState) { st.Started, st.MainPID = time.Now(), st.MainPID+1 },
		},
		{
			name: "is being restarted by somebody", want: true, took: 14 * time.Second,
			st: kubelet.UnitState{Active: "deactivating", Sub: "stop-sigterm", Job: "restart", MainPID: 101},
			then: func(looks int, st *kubelet.UnitState) {
				if looks == 5 {
					*st = kubelet.UnitState{Active: "active", MainPID: 102, Started: time.Now()}
				}
			},
		},
		{name: "does not get ready", took: 21 * time.Second, st: kubelet.UnitState{Active: "activating", Sub: "start", MainPID: 101}},
		{name: "a stop is queued that does not come", want: true, took: 21 * time.Second, st: kubelet.UnitState{Active: "active", Job: "stop", MainPID: 101, Started: time.Unix(0, 0)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, envUnit)
				began := time.Now()
				if m.st, m.happens = tt.st, tt.then; m.st.MainPID != 0 && m.st.Started.IsZero() {
					m.st.Started = began
				}
				got, err := m.window().Running(t.Context())
				if got != tt.want || err != nil {
					t.Errorf("running: %t, %v", got, err)
				}
				equal(t, "it took", time.Since(began), tt.took)
				equal(t, "systemd was asked to", m.changes(), "")
			})
		})
	}
}

func TestNoKubeletIsWaitedForLongerThanTheCallerHasPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, envUnit)
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		m.st.Job = "stop"
		_, err := m.window().Running(ctx)
		failsWith(t, err, "waiting for kubelet.service, which is active (running) with a stop job queued, main process 101: context deadline exceeded", "")
		ctx, cancel = context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		err = m.open().Settle(ctx)
		failsWith(t, err, "waiting for kubelet.service, which is active (running) with a stop job queued, main process 101: context deadline exceeded", "")
		m.st.Job = ""
		w := m.open()
		m.sick = func(int) bool { return true }
		ctx, cancel = context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		err = w.Settle(ctx)
		failsWith(t, err, "watching kubelet.service: it runs, and is not well: nobody answers at 127.0.0.1:10248: context deadline exceeded",
			"journalctl -u kubelet.service -n 50 says why")
	})
}

func TestTheWindowIsDueUntilTheKubeletHasTakenItsFilesOver(t *testing.T) {
	const others = "/usr/lib/systemd/system/"
	for _, tt := range []struct {
		name   string
		files  map[string]string
		argv   []string
		change func(m *machine)
		want   string // Facts.Pending
	}{
		{name: "nothing of ours"},
		{name: "our file, not read", change: func(m *machine) { m.apply() }, want: "the running kubelet (pid 101) has pods ask 10.96.0.10"},
		{name: "our file, read", change: func(m *machine) { m.apply(); m.start() }},
		{
			name:   "our file is gone, and was read",
			change: func(m *machine) { m.apply(); m.start(); m.undo() },
			want:   "the running kubelet (pid 102) has pods ask 169.254.20.10,10.96.0.10 until its next start",
		},
		{name: "nothing runs", change: func(m *machine) { m.apply(); m.argv = nil }},
		{
			name:  "somebody else's flag names us",
			files: map[string]string{others + "kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --cluster-dns=169.254.20.10,10.96.0.10\n"},
			argv:  []string{"/usr/bin/kubelet", "--cluster-dns=169.254.20.10,10.96.0.10"},
		},
		{
			name: "a configuration file of ours, older than the kubelet",
			files: map[string]string{
				others + "kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml --config-dir=/k.d\n",
				"/k.d/10-a.conf":           config("v: 1"),
			},
			argv:   []string{"/usr/bin/kubelet", "--config=/k.yaml", "--config-dir=/k.d"},
			change: func(m *machine) { m.apply(); m.st.Started = time.Now().Add(time.Hour) },
		},
		{
			name: "a configuration file of ours, younger than the kubelet",
			files: map[string]string{
				others + "kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config=/k.yaml --config-dir=/k.d\n",
				"/k.d/10-a.conf":           config("v: 1"),
			},
			argv:   []string{"/usr/bin/kubelet", "--config=/k.yaml", "--config-dir=/k.d"},
			change: func(m *machine) { m.apply() },
			want:   "kubelet.service runs since before /k.d/99-nodelocaldns.conf was written: its pods do not ask us yet",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, envUnit)
			for name, text := range tt.files {
				m.write(name, text)
			}
			if tt.argv != nil {
				m.argv = tt.argv
			}
			if tt.change != nil {
				tt.change(m)
			}
			due, err := m.window().Due(t.Context())
			f, ferr := kubelet.Find(t.Context(), m.node(), ours)
			if err != nil || ferr != nil || due != (tt.want != "") || f.Pending != tt.want {
				t.Errorf("due %t, %v; pending %q, %v; want %q", due, err, f.Pending, ferr, tt.want)
			}
		})
	}
}

package cordon_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/cordon"
	"nodelocaldns/host/drain"
)

const older, newer = "v1.34.4", "v1.35.0"

// ways are the modes that differ in what is asked of the cluster.
var ways = []struct {
	mode    drain.Mode
	kubelet string
}{{drain.Auto, older}, {drain.Auto, newer}, {drain.Never, older}, {drain.Drain, older}}

// everyPoint calls do with what happens at each point of an apply and of the
// rollback after it.
func everyPoint(t *testing.T, do func(t *testing.T, way int, back bool, at int)) {
	for i, way := range ways {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %s, back %t", way.mode, way.kubelet, back), func(t *testing.T) {
				n := 0
				in(t, way.mode, way.kubelet, func(t *testing.T, r *rig) {
					r.first(t, back)
					had := r.points
					if err := r.then(t.Context(), back); err != nil {
						t.Fatal(err)
					}
					n = r.points - had
				})
				for at := 1; at <= n; at++ {
					do(t, i, back, at)
				}
				t.Logf("%d points", n)
			})
		}
	}
}

// first makes what then is to go back from.
func (r *rig) first(t *testing.T, back bool) {
	t.Helper()
	if back {
		if err := r.apply(); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *rig) then(ctx context.Context, back bool) error {
	do := apply
	if back {
		do = rollback
	}
	_, err := r.process(ctx, do)
	return err
}

func TestTheNodeEndsSchedulableAfterAFaultAnywhere(t *testing.T) {
	everyPoint(t, func(t *testing.T, way int, back bool, at int) {
		for _, f := range faults {
			for _, end := range []func(*rig) (string, error){
				func(r *rig) (string, error) { return applied, r.apply() },
				func(r *rig) (string, error) { return asBefore, r.rollback() },
			} {
				in(t, ways[way].mode, ways[way].kubelet, func(t *testing.T, r *rig) {
					r.first(t, back)
					r.arm(at, func(request bool, do func()) error { return f.do(r, request, do) })
					err := r.then(t.Context(), back)
					if err == nil && r.at <= r.points { // neither cut off nor without an API server
						if got := r.String(); got != map[bool]string{false: applied, true: asBefore}[back] {
							t.Fatalf("%s at %d: no error, and\n%s", f.name, at, got)
						}
					}
					r.arm(0, nil)
					want, err := end(r)
					if err != nil || r.String() != want {
						t.Fatalf("%s at %d: %v\n%swant:\n%slog:\n%s", f.name, at, err, r, want, &r.log)
					}
				})
			}
		}
	})
}

// A window that is left open without an API server says how it is closed.
func TestAWindowIsLeftOpenAndSaidToBeWhereTheAPIServerIsGone(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.Request = func(what string, do func()) error {
			if r.State.Unschedulable {
				return errNoReply
			}
			do()
			return nil
		}
		mustFail(t, r.apply(), "asking the API server: no reply", "apply --resume")
		equal(t, "left", r, "node: cordoned by nodelocaldns, marked, counts against the limit\nfile: old, kubelet runs with old\nrecord: window \n")
		if r.starts != 0 {
			t.Errorf("the kubelet was restarted")
		}
	})
}

func TestWhatSettledIsClosedLaterWithoutAnotherRestart(t *testing.T) {
	in(t, drain.Cordon, older, func(t *testing.T, r *rig) {
		gone := true
		r.Request = func(_ string, do func()) error {
			if gone && r.starts > 0 {
				return errNoReply
			}
			do()
			return nil
		}
		mustFail(t, r.apply(), "window: close: uncordoning the node: asking the API server: no reply", "apply --resume")
		equal(t, "left", r, "node: cordoned by nodelocaldns, marked, counts against the limit\nfile: new, kubelet runs with new\nrecord: window settled\nrecord: file \n")
		mustFail(t, r.apply(), "window: close", "apply --resume")
		gone = false
		if err := r.apply(); err != nil || r.starts != 1 {
			t.Errorf("%v; restarted %d times", err, r.starts)
		}
		equal(t, "then", r, applied)
	})
}

func TestAStopSignalAnywhereLeavesNothingOpen(t *testing.T) {
	everyPoint(t, func(t *testing.T, way int, back bool, at int) {
		for _, landed := range []bool{false, true} {
			in(t, ways[way].mode, ways[way].kubelet, func(t *testing.T, r *rig) {
				r.first(t, back)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				r.arm(at, func(_ bool, do func()) error {
					if landed {
						do()
					}
					if stop(); !landed {
						do()
					}
					return nil
				})
				err := r.then(ctx, back)
				if got := r.String(); got != asBefore && got != applied {
					t.Errorf("at %d: %v\n%s", at, err, got)
				}
			})
		}
	})
}

const uncordoned = "somebody else has uncordoned the node"

// An administrator may do anything at any time: it stays as it was set.
// That the node takes pods in the middle of it is worth one line.
func TestWhatAnAdministratorSetsMeanwhileStays(t *testing.T) {
	everyPoint(t, func(t *testing.T, way int, back bool, at int) {
		for _, acts := range []string{"cordon", "uncordon", "uncordon cordon", "unmark", "heartbeat"} {
			in(t, ways[way].mode, ways[way].kubelet, func(t *testing.T, r *rig) {
				r.first(t, back)
				want, lines := "", 0
				r.arm(at, func(_ bool, do func()) error {
					was := r.Cluster.String()
					if acts == "uncordon" && r.State.Unschedulable {
						lines = 1
					}
					for _, act := range strings.Fields(acts) {
						map[string]func(){"cordon": r.Cordon, "uncordon": r.Uncordon, "unmark": r.Unmark, "heartbeat": r.Touch}[act]()
					}
					switch {
					case r.State.CordonedBy == "kubectl":
						want = "cordoned by kubectl"
					case acts == "unmark" && r.Cluster.String() != was:
						want = "cordoned by nodelocaldns"
					default:
						want = "schedulable"
					}
					do()
					return nil
				})
				err := r.then(t.Context(), back)
				if got := r.Cluster.String(); got != want || slices.ContainsFunc(r.recs, isWindow) {
					t.Fatalf("%s at %d: %v\n%swant the node: %s\nlog:\n%s", acts, at, err, r, want, &r.log)
				}
				if r.file != r.runs || (err == nil) != (back == (r.file == "old")) {
					t.Errorf("%s at %d: %v\n%s", acts, at, err, r)
				}
				if n := strings.Count(r.log.String(), uncordoned); n != lines {
					t.Errorf("%s at %d: said %d times, want %d, that somebody has uncordoned the node", acts, at, n, lines)
				}
			})
		}
	})
}

func TestAForeignCordonIsWaitedForAndThenNothingIsChanged(t *testing.T) {
	for _, mode := range []drain.Mode{drain.Auto, drain.Cordon, drain.Drain} {
		in(t, mode, older, func(t *testing.T, r *rig) {
			r.Cordon()
			begin := time.Now()
			mustFail(t, r.apply(), "node n1 is cordoned, and not by us (by kubectl): the kubelet is left as it is", "--drain never")
			if d := time.Since(begin); d != r.timeout {
				t.Errorf("waited for %s", d)
			}
			equal(t, "then", r, "node: cordoned by kubectl\nfile: old, kubelet runs with old\n")
			if len(r.Pods) != 2 || r.starts != 0 {
				t.Errorf("%d pods, %d restarts", len(r.Pods), r.starts)
			}

			begin = time.Now()
			r.Request = func(_ string, do func()) error {
				if time.Since(begin) >= time.Minute {
					r.Uncordon()
					begin = begin.AddDate(1, 0, 0)
				}
				do()
				return nil
			}
			if err := r.apply(); err != nil {
				t.Fatal(err)
			}
			equal(t, "when that ended", r, applied)
		})
	}
}

// A process that waits for another's cordon, and is killed, has begun nothing.
func TestOneThatWasCutOffWhileItWaitedWaitsAgain(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.Cordon()
		r.arm(8, func(bool, func()) error { panic(powerCut{}) })
		if cut, err := r.process(t.Context(), apply); !cut {
			t.Fatal(err)
		}
		r.arm(0, nil)
		mustFail(t, r.apply(), "cordoned, and not by us", "")
		equal(t, "then", r, "node: cordoned by kubectl\nfile: old, kubelet runs with old\n")
	})
}

// inside is a rig whose first process was cut off when the file was written.
func inside(t *testing.T, r *rig) {
	t.Helper()
	r.rejects = func(string) bool { panic(powerCut{}) }
	if cut, err := r.process(t.Context(), apply); !cut {
		t.Fatal(err)
	}
	r.rejects = nil
}

// Its work is brought to its end: nobody waits for a cordon to end that keeps
// pods away as well as ours.
func TestWhatWasCutOffInsideIsBroughtToItsEndUnderWhatWasSetSince(t *testing.T) {
	for _, tt := range []struct {
		name string
		act  func(r *rig)
		want string
	}{
		{"nothing", func(*rig) {}, "schedulable"},
		{"our mark was removed", func(r *rig) { r.Unmark() }, "cordoned by nodelocaldns"},
		{"uncordoned", func(r *rig) { r.Uncordon() }, "schedulable"},
		{"cordoned anew", func(r *rig) { r.Uncordon(); r.Cordon() }, "cordoned by kubectl"},
		{"cordoned anew, without our mark", func(r *rig) { r.Uncordon(); r.Cordon(); r.Unmark() }, "cordoned by kubectl"},
	} {
		in(t, drain.Auto, older, func(t *testing.T, r *rig) {
			inside(t, r)
			tt.act(r)
			begin := time.Now()
			if err := r.apply(); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			equal(t, tt.name, r, "node: "+tt.want+"\nfile: new, kubelet runs with new\nrecord: file \n")
			if d := time.Since(begin); d > settle+10*time.Second {
				t.Errorf("%s: it took %s", tt.name, d)
			}
			if said := strings.Contains(r.log.String(), "the node stays cordoned"); said != (tt.want != "schedulable") {
				t.Errorf("%s: log:\n%s", tt.name, &r.log)
			}
			if n := strings.Count(r.log.String(), uncordoned); n > 1 || (n == 1) != (tt.name == "uncordoned") {
				t.Errorf("%s: log:\n%s", tt.name, &r.log)
			}
		})
	}
}

func TestWhatWasCutOffInsideIsSettledWithoutAnAPIServerAndClosedLater(t *testing.T) {
	in(t, drain.Cordon, older, func(t *testing.T, r *rig) {
		inside(t, r)
		r.arm(1, r.gone)
		mustFail(t, r.apply(), "window: close: uncordoning the node: asking the API server: no reply", "apply --resume")
		equal(t, "left", r, "node: cordoned by nodelocaldns, marked, counts against the limit\nfile: new, kubelet runs with new\nrecord: window settled\nrecord: file \n")
		r.arm(0, nil)
		if err := r.apply(); err != nil {
			t.Fatal(err)
		}
		equal(t, "then", r, applied)
	})
}

func TestOneRequestThatFailsOnTheWayThereOrBackIsMadeAgain(t *testing.T) {
	for _, what := range []string{"node", "pods", "lease", "cordon", "renew", "uncordon", "release"} {
		for _, f := range faults[2:5] {
			in(t, drain.Auto, older, func(t *testing.T, r *rig) {
				failed := false
				r.Request = func(now string, do func()) error {
					if now != what || failed {
						do()
						return nil
					}
					failed = true
					return f.do(r, true, do)
				}
				if err := r.apply(); err != nil || !failed {
					t.Errorf("%s, %s: %v", what, f.name, err)
				}
				equal(t, what+", "+f.name, r, applied)
				if strings.Contains(r.log.String(), uncordoned) {
					t.Errorf("%s, %s: that was us", what, f.name)
				}
			})
		}
	}
}

func TestABudgetThatAllowsNoneLeavesEverythingAsBefore(t *testing.T) {
	in(t, drain.Drain, older, func(t *testing.T, r *rig) {
		r.Blocked = true
		mustFail(t, r.apply(), "shop/web-1 is kept by PodDisruptionBudget web", "kubectl -n shop describe pdb web")
		equal(t, "then", r, asBefore)

		r.arm(12, func(bool, func()) error { panic(powerCut{}) })
		if cut, err := r.process(t.Context(), apply); !cut {
			t.Fatal(err)
		}
		equal(t, "cut off", r, "node: cordoned by nodelocaldns, marked, counts against the limit\nfile: old, kubelet runs with old\nrecord: window \n")
		r.arm(0, nil)
		mustFail(t, r.apply(), "shop/web-1 is kept by PodDisruptionBudget web", "kubectl -n shop describe pdb web")
		equal(t, "then", r, asBefore)
		if r.starts != 0 {
			t.Errorf("the kubelet was restarted")
		}
	})
}

func TestAKubeletThatDoesNotComeBackIsUndoneAndUncordoned(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.rejects = func(file string) bool { return file == "new" }
		mustFail(t, r.apply(), "window: undone: kubelet.service did not come back", "")
		equal(t, "then", r, asBefore)
		if got, want := strings.Join(r.Events, " "), "Cordoned KubeletNotBack Undone Uncordoned"; got != want {
			t.Errorf("events: %s, want %s", got, want)
		}
	})
}

func TestAKubeletThatDoesNotComeBackEitherWayStaysCordoned(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.rejects = func(string) bool { return true }
		left := "node: cordoned by nodelocaldns, marked, counts against the limit\nfile: old, kubelet runs with nothing\nrecord: window opened\n"
		mustFail(t, r.apply(), "window: left open: kubelet.service did not come back", "mend the kubelet")
		equal(t, "then", r, left)
		mustFail(t, r.rollback(), "left open", "mend the kubelet")
		equal(t, "after a rollback in vain", r, left)
		r.rejects = nil
		if err := r.rollback(); err != nil {
			t.Fatal(err)
		}
		equal(t, "mended", r, asBefore)
	})
}

func TestPodsThatAreNotReadyAgainTakeTheChangeBack(t *testing.T) {
	for _, mode := range []drain.Mode{drain.Auto, drain.Never} {
		in(t, mode, older, func(t *testing.T, r *rig) {
			r.rejects = func(file string) bool {
				r.Pods[1].Ready = file == "old"
				return false
			}
			mustFail(t, r.apply(), "undone: within 5m0s after the restart: not Ready again: shop/web-2", "kubectl describe node n1")
			equal(t, "then", r, asBefore)
		})
	}
}

func TestPodsThatStayWhereOthersAreEvictedMustBeReadyAgain(t *testing.T) {
	in(t, drain.Drain, older, func(t *testing.T, r *rig) {
		r.Pods[1].Owner.Kind = "DaemonSet"
		r.rejects = func(file string) bool {
			r.Pods[0].Ready = file == "old"
			return false
		}
		mustFail(t, r.apply(), "not Ready again: shop/web-2", "")
		equal(t, "then", r, asBefore)
	})
}

// What the API server has heard before the restart is no sign of life: it is
// the old kubelet's, and a node stays Ready for most of a minute without any.
func TestAKubeletThatTheAPIServerDoesNotHearOfIsTakenBack(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.rejects = func(file string) bool {
			if r.Silent = time.Now(); file == "old" {
				r.Silent = time.Time{}
			}
			return false
		}
		mustFail(t, r.apply(), "the API server has not heard of the kubelet since its restart", "")
		equal(t, "then", r, asBefore)
	})
}

func TestNobodyWaitsForAKubeletThatWasNotRestarted(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.arm(8, func(bool, func()) error { return errors.New("no space left on device") })
		begin := time.Now()
		mustFail(t, r.apply(), "no space left", "")
		equal(t, "then", r, asBefore)
		if d := time.Since(begin); d > time.Second || r.starts != 0 {
			t.Errorf("it took %s and %d restarts", d, r.starts)
		}
	})
}

// An API server that hangs does not speak against the kubelet.
func TestAnAPIServerThatHangsWhileTheKubeletSettlesUndoesNothing(t *testing.T) {
	in(t, drain.Auto, newer, func(t *testing.T, r *rig) {
		r.Request = func(what string, do func()) error {
			if r.starts > 0 {
				time.Sleep(7 * time.Second)
				return errNoReply
			}
			do()
			return nil
		}
		r.limited = false
		if err := r.apply(); err != nil {
			t.Fatal(err)
		}
		equal(t, "then", r, applied)
		if !strings.Contains(r.log.String(), "the API server does not answer") {
			t.Errorf("log:\n%s", &r.log)
		}
	})
}

// The request was given up, and its server works on it all the same.
func TestACordonThatLandsAfterItWasGivenUpIsTakenBack(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.timeout = time.Second
		r.limited = false
		sent, land := time.Time{}, func() {}
		r.Request = func(what string, do func()) error {
			if !sent.IsZero() && time.Since(sent) >= 20*time.Second {
				land()
				sent = time.Time{}
			}
			if what == "cordon" {
				sent, land = time.Now(), do
				return errNoReply
			}
			do()
			return nil
		}
		mustFail(t, r.apply(), "no reply", "")
		if !sent.IsZero() {
			t.Error("the window was closed before that")
		}
		equal(t, "then", r, asBefore)
	})
}

func TestAPodThatARestartWouldKillBlocksEveryModeThatLeavesItThere(t *testing.T) {
	for _, tt := range []struct {
		mode  drain.Mode
		owner string
		only  string
		want  string
		hint  string
	}{
		{mode: drain.Auto, owner: "ReplicaSet", want: "shop/web-1 has nvidia.com/gpu", hint: "--drain drain evicts such pods first"},
		{mode: drain.Never, owner: "ReplicaSet", want: "shop/web-1 has nvidia.com/gpu", hint: "--drain drain evicts such pods first"},
		{mode: drain.Cordon, owner: "ReplicaSet", want: "shop/web-1 has nvidia.com/gpu", hint: "--drain drain evicts such pods first"},
		{mode: drain.Drain, owner: "ReplicaSet"},
		{mode: drain.Drain, owner: "DaemonSet"},
		{mode: drain.Drain, owner: "ReplicaSet", only: "app=db", want: "shop/web-1 has nvidia.com/gpu", hint: "without --pod-selector such pods are evicted first"},
	} {
		in(t, tt.mode, newer, func(t *testing.T, r *rig) {
			r.Pods[0].ExtendedResources, r.Pods[0].Owner.Kind = []string{"nvidia.com/gpu"}, tt.owner
			var err error
			if r.options.PodSelector, err = drain.ParseSelector(tt.only); err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if err := r.apply(); err != nil {
					t.Error(err)
				}
				return
			}
			mustFail(t, r.apply(), tt.want, tt.hint)
			equal(t, "then", r, asBefore)
			if slices.Contains(r.Requests, "cordon") || r.starts != 0 {
				t.Errorf("asked for %q", r.Requests)
			}
		})
	}
}

func TestAllThatIsInTheWayIsSaidWithWhatHelps(t *testing.T) {
	in(t, drain.Drain, newer, func(t *testing.T, r *rig) {
		r.Pods[0].EmptyDir = true
		r.Pods[1].Owner = apiserver.Owner{}
		for i := range 12 {
			r.Pods = append(r.Pods, apiserver.Pod{Namespace: "shop", Name: fmt.Sprintf("bare-%d", i), Labels: map[string]string{"app": "db"}})
		}
		err := r.apply()
		const want = "window: open: not all pods may be evicted: shop/web-1 has a volume emptyDir, whose content would be lost, "
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), ", and 4 more") {
			t.Errorf("err = %v", err)
		}
		if got, want := hintOf(err), "--delete-emptydir-data evicts pods with emptyDir volumes too; --force evicts pods without a controller too"; got != want {
			t.Errorf("hint: %s\nwant: %s", got, want)
		}

		r.options.PodSelector, _ = drain.ParseSelector("app=db")
		r.Pods = r.Pods[:3]
		r.Pods[0].ExtendedResources = []string{"nvidia.com/gpu"}
		err = r.apply()
		const both = "window: open: not all pods may be evicted: shop/bare-0 has no controller that would make it again; " +
			"a restart of the kubelet would kill pods that run here: shop/web-1 has nvidia.com/gpu, which a kubelet that starts may not have to give"
		if err == nil || err.Error() != both {
			t.Errorf("err = %v\nwant  %s", err, both)
		}
		if got, want := hintOf(err), "--force evicts pods without a controller too; without --pod-selector such pods are evicted first"; got != want {
			t.Errorf("hint: %s\nwant: %s", got, want)
		}
		equal(t, "then", r, asBefore)
	})
}

func TestWithoutAnAPIServerOnlyWhatNeedsNoneIsDone(t *testing.T) {
	for _, why := range []string{"no credential", "unreachable", "unauthorized", "no such node"} {
		for _, tt := range []struct {
			mode    drain.Mode
			limited bool
			want    string
		}{
			{drain.Auto, false, ""},
			{drain.Auto, true, "the node cannot be cordoned: "},
			{drain.Never, true, ""},
			{drain.Cordon, false, "the node cannot be cordoned: "},
			{drain.Drain, false, "the node cannot be cordoned: "},
		} {
			in(t, tt.mode, older, func(t *testing.T, r *rig) {
				r.limited = tt.limited
				r.Request = func(string, func()) error {
					switch why {
					case "unauthorized":
						return apiserver.ErrUnauthorized
					case "no such node":
						return apiserver.ErrNotFound
					}
					return errNoReply
				}
				if why == "no credential" {
					r.noAPI = errors.New("no credential of the kubelet is known")
				}
				switch err := r.apply(); {
				case tt.want != "":
					mustFail(t, err, tt.want, "--drain never")
					equal(t, "then", r, asBefore)
				case err != nil:
					t.Errorf("%s, %+v: %v", why, tt, err)
				default:
					equal(t, why, r, applied)
				}
			})
		}
	}
}

func TestAnAPIServerThatStartsAgainIsWaitedFor(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		begin := time.Now()
		r.Request = func(_ string, do func()) error {
			if time.Since(begin) < 25*time.Second {
				return errNoReply
			}
			do()
			return nil
		}
		if err := r.apply(); err != nil || r.Events[0] != "Cordoned" {
			t.Errorf("%v; events %q", err, r.Events)
		}
	})
}

// A kubelet on its own is in no cluster: one --drain never ends what was cut off.
func TestAWindowOfANodeWithoutAClusterCanBeClosed(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.noAPI, r.limited = errors.New("no credential of the kubelet is known"), false
		r.arm(4, func(bool, func()) error { panic(powerCut{}) })
		if cut, err := r.process(t.Context(), apply); !cut {
			t.Fatal(err)
		}
		r.arm(0, nil)
		mustFail(t, r.apply(), "no credential", "with --drain never")
		r.mode = drain.Never
		if err := r.apply(); err != nil {
			t.Fatal(err)
		}
		equal(t, "then", r, applied)
	})
}

func TestANodeThatLeftItsClusterIsNotWaitedFor(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.limited = false
		r.Request = func(_ string, do func()) error {
			if r.starts > 0 {
				return apiserver.ErrNotFound
			}
			do()
			return nil
		}
		if _, err := r.process(t.Context(), apply); err == nil {
			t.Fatal("it is Ready again")
		}
		if err := r.rollback(); err != nil {
			t.Errorf("%v\n%s", err, &r.log)
		}
		if slices.ContainsFunc(r.recs, isWindow) {
			t.Errorf("still open:\n%s", r)
		}
	})
}

// A bad change must not go through a cluster because its pods stay Ready.
func TestTheLimitIsHeldForEveryRestartButThatOfNever(t *testing.T) {
	for _, way := range ways {
		in(t, way.mode, way.kubelet, func(t *testing.T, r *rig) {
			held := false
			r.rejects = func(string) bool { held = r.Held; return false }
			if err := r.apply(); err != nil || held != (way.mode != drain.Never) {
				t.Errorf("%s %s: %v, held %t", way.mode, way.kubelet, err, held)
			}
			equal(t, "then", r, applied)
		})
	}
}

func TestAMachineWithoutAnIDCordonsNothing(t *testing.T) {
	in(t, drain.Auto, older, func(t *testing.T, r *rig) {
		r.machine = ""
		mustFail(t, r.apply(), "this machine has no ID", "systemd-machine-id-setup")
		equal(t, "then", r, asBefore)
		r.mode = drain.Never
		if err := r.apply(); err != nil {
			t.Error(err)
		}
	})
}

// Somebody else's mark on a node that is not cordoned is no cordon; on one that
// is, it is not ours, whatever is left of the text.
func TestOnlyTheMarkOfThisWindowIsOurs(t *testing.T) {
	now := time.Now()
	ours := cordon.Mark{Machine: "m1", Boot: "b1", Since: now}
	for _, tt := range []struct {
		name string
		mark string
		want bool
	}{
		{"this one", ours.String(), true},
		{"after a reboot", cordon.Mark{Machine: "m1", Boot: "b2", Since: now}.String(), true},
		{"another machine", cordon.Mark{Machine: "m2", Boot: "b1", Since: now}.String(), false},
		{"another window", cordon.Mark{Machine: "m1", Boot: "b1", Since: now.Add(1)}.String(), false},
		{"no time", "machine=m1 boot=b1 since=", false},
		{"no machine", cordon.Mark{Since: now}.String(), false},
		{"another's words", "weave.works/kured", false},
		{"none", "", false},
	} {
		if got := cordon.ParseMark(tt.mark).SameWindow(ours); got != tt.want {
			t.Errorf("%s: %q: %t", tt.name, tt.mark, got)
		}
	}
	if (cordon.Mark{}).SameWindow(cordon.Mark{}) {
		t.Error("nothing is a window")
	}
}

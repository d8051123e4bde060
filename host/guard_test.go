package host_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/sysctl"
)

// guarded runs the test in a bubble with a guard at work and its first pass
// done. stop ends the guard and returns what Run returned.
func guarded(t *testing.T, setup func(r *rig), test func(t *testing.T, r *rig, stop func() error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		if setup != nil {
			setup(r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		g, done := r.node().Guard(host.Duties{}), make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		select {
		case <-g.Ready():
		default:
			t.Fatal("not ready after the first pass")
		}
		stopped := false
		stop := func() error {
			stopped = true
			cancel()
			return <-done
		}
		test(t, r, stop)
		if !stopped {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	})
}

// event tells the guard of a netlink event and waits until it acted on it.
func (r *rig) event() {
	select {
	case r.events <- struct{}{}:
	case <-time.After(time.Hour):
		r.t.Fatal("nobody listens to events")
	}
	synctest.Wait()
}

func after(d time.Duration) {
	time.Sleep(d) // of the bubble's clock
	synctest.Wait()
}

func (r *rig) deleteDevice() {
	r.t.Helper()
	l, err := r.Netlink().LinkByName("nodelocaldns0")
	if err == nil {
		err = r.Netlink().LinkDel(l)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) flushRaw() {
	r.t.Helper()
	x, err := r.Tables(notrack.Auto, false)
	if err == nil {
		err = errors.Join(x.ClearChain("raw", "PREROUTING"), x.ClearChain("raw", "OUTPUT"))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) set(key, value string) {
	r.Lock()
	defer r.Unlock()
	r.Params[key] = value
}

func (r *rig) get(key string) string {
	r.Lock()
	defer r.Unlock()
	return r.Params[key]
}

func TestGuardAppliesThePlanAndLeavesItInPlaceWhenItStops(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, stop func() error) {
		for _, st := range r.check() {
			if !st.Done {
				t.Errorf("not applied: %+v", st)
			}
		}
		want := r.String()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		r.mustBe("after the guard stopped", want)
		r.rollback()
		r.mustBe("after rollback", r.orig)
	})
}

func TestGuardRepairsTheLinkAtOnce(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		want := r.String()
		began := time.Now()
		for range 3 {
			r.deleteDevice()
			r.event()
			r.mustBe("after the event", want)
		}
		// Only events in a row wait for one another.
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestGuardFindsALostLinkWithoutAnEvent(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		want := r.String()
		r.deleteDevice()
		after(10 * time.Second)
		r.mustBe("after 10 s", want)
	})
}

func TestGuardRepairsRulesWithinTenSeconds(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		want := r.String()
		r.flushRaw()
		broken := r.String()
		after(9 * time.Second)
		r.mustBe("after 9 s", broken)
		after(time.Second)
		r.mustBe("after 10 s", want)
	})
}

func TestGuardSetsASysctlAtMostOnceAMinute(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		for range 3 {
			r.set(sysctl.Max, "131072")
			after(59 * time.Second)
			if got := r.get(sysctl.Max); got != "131072" {
				t.Errorf("max is %s within the minute", got)
			}
			after(time.Second)
			if got := r.get(sysctl.Max); got != "1048576" {
				t.Errorf("max is %s after a minute", got)
			}
		}
	})
}

func TestGuardNeverFightsForCloseWait(t *testing.T) {
	setup := func(r *rig) {
		r.apply()
		r.set(sysctl.CloseWait, "3600")
		r.logged()
	}
	guarded(t, setup, func(t *testing.T, r *rig, _ func() error) {
		after(10 * time.Minute)
		if got := r.get(sysctl.CloseWait); got != "3600" {
			t.Errorf("close_wait is %s", got)
		}
		log := r.logged()
		if strings.Count(log, "\n") != 1 || !strings.Contains(log, "msg=drift step=sysctl/"+sysctl.CloseWait) || !strings.Contains(log, "likely=kube-proxy left=true") {
			t.Errorf("log:\n%s", log)
		}
		// Whoever asks for it by hand gets it.
		r.apply("sysctl/" + sysctl.CloseWait)
		if got := r.get(sysctl.CloseWait); got != "15" {
			t.Errorf("close_wait is %s after apply", got)
		}
	})
}

func TestDriftIsLoggedOnceWhenItBeginsAndOnceWhenItEnds(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		r.logged()
		for range 5 { // somebody deletes it again and again
			r.deleteDevice()
			r.event()
		}
		if diff := cmp.Diff(`level=WARN msg=drift step=link/nodelocaldns0 found="4 changes to hold 169.254.20.10/32, fd00::a/128" `+
			`repair="+ device nodelocaldns0 (dummy, else bridge, else lo), `+
			`+ nodelocaldns0 up, + 169.254.20.10/32 on nodelocaldns0, + fd00::a/128 on nodelocaldns0"`+"\n", r.logged()); diff != "" {
			t.Errorf("it began (-want +got):\n%s", diff)
		}
		after(time.Minute)
		if diff := cmp.Diff("level=INFO msg=\"drift ended\" step=link/nodelocaldns0\n", r.logged()); diff != "" {
			t.Errorf("it ended (-want +got):\n%s", diff)
		}
		r.set(sysctl.Max, "131072")
		after(2 * time.Minute)
		if diff := cmp.Diff("level=WARN msg=drift step=sysctl/"+sysctl.Max+` found="is 131072, wanted 1048576 (floor)" repair="- 131072, + 1048576" likely=kube-proxy`+"\n"+
			`level=INFO msg="drift ended" step=sysctl/`+sysctl.Max+"\n", r.logged()); diff != "" {
			t.Errorf("sysctl (-want +got):\n%s", diff)
		}
	})
}

func TestGuardDoesNotRepairWhatRollbackTakesAway(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		r.rollback() // while the guard runs
		r.event()
		after(10 * time.Minute)
		r.mustBe("long after rollback", r.orig)
		if log := r.logged(); strings.Count(log, "msg=off") != 1 {
			t.Errorf("log:\n%s", log)
		}
		r.apply()
		want := r.String()
		r.deleteDevice()
		r.event()
		r.mustBe("after apply and an event", want)
		if log := r.logged(); !strings.Contains(log, `msg="off ended"`) {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestGuardObeysTheOffSwitchWhenItStarts(t *testing.T) {
	setup := func(r *rig) { r.rollback() }
	guarded(t, setup, func(t *testing.T, r *rig, _ func() error) {
		after(10 * time.Minute)
		r.mustBe("the node", r.orig)
		if off, err := r.node().Off(); !off || err != nil {
			t.Errorf("off %v, %v", off, err)
		}
		if err := r.node().Guard(host.Duties{}).Once(t.Context()); err != nil {
			t.Error(err)
		}
		r.mustBe("after guard --once", r.orig)
	})
}

// A pass finds drift and waits for the lock. Meanwhile a rollback sets the off
// switch, and the pass is first to get the lock.
func TestAPassThatWaitedDoesNotRepairWhenTheSwitchIsOffByThen(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		lock, err := journal.Acquire(t.Context(), filepath.Join(r.dir, "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		r.deleteDevice()
		drifted := r.String()
		r.event() // the pass now waits
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var held *journal.HeldError
		if err := r.node().Rollback(ctx); !errors.As(err, &held) {
			t.Fatalf("err = %v", err)
		}
		if err := lock.Release(); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		r.mustBe("the node", drifted)
		r.rollback()
		r.mustBe("after rollback", r.orig)
	})
}

func TestAGuardThatIsOffLeavesTheLockToOthers(t *testing.T) {
	setup := func(r *rig) { r.rollback() }
	guarded(t, setup, func(t *testing.T, r *rig, _ func() error) {
		lock, err := journal.Acquire(t.Context(), filepath.Join(r.dir, "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Release()
		after(time.Hour)
		if log := r.logged(); log != `level=WARN msg=off step="off switch" why="a rollback was asked for" until="the next apply"`+"\n" {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestGuardDoesWhatItCanAndTheRestWhenItCan(t *testing.T) {
	setup := func(r *rig) {
		if err := r.Netlink().LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "nodelocaldns0"}}); err != nil {
			t.Fatal(err)
		}
		r.ReadOnly[sysctl.Max] = true
	}
	guarded(t, setup, func(t *testing.T, r *rig, _ func() error) {
		s := r.String()
		if !strings.Contains(s, "NOTRACK") || !strings.Contains(s, finWait+" = 30") || strings.Contains(s, "169.254.20.10/32\n") {
			t.Errorf("the node is\n%s", s)
		}
		after(5 * time.Minute)
		log := r.logged()
		if strings.Count(log, "msg=blocked") != 2 || !strings.Contains(log, "msg=blocked step=link/nodelocaldns0") || !strings.Contains(log, "msg=blocked step=sysctl/"+sysctl.Max) {
			t.Errorf("log:\n%s", log)
		}
		r.deleteDevice()
		r.event()
		if !strings.Contains(r.String(), "169.254.20.10/32\n") {
			t.Errorf("the node is\n%s", r)
		}
	})
}

func TestGuardOnceSaysWhatItCouldNotDo(t *testing.T) {
	r := newRig(t)
	r.ReadOnly[sysctl.Max] = true
	if err := r.node().Guard(host.Duties{}).Once(t.Context()); err != nil {
		t.Errorf("a read-only sysctl: %v", err)
	}
	r.Programs = nil
	err := r.node().Guard(host.Duties{}).Once(t.Context())
	if err == nil || !strings.Contains(err.Error(), "notrack/ipv4: blocked: iptables: not installed") {
		t.Errorf("err = %v", err)
	}
}

func TestAFaultInARepairIsTriedAgain(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, _ func() error) {
		want := r.String()
		r.deleteDevice()
		r.Arm(1, 0)
		r.event()
		if r.String() == want {
			t.Fatal("the fault did not happen")
		}
		if log := r.logged(); !strings.Contains(log, "injected fault") {
			t.Errorf("log:\n%s", log)
		}
		after(10 * time.Second)
		r.mustBe("after 10 s", want)
	})
}

func TestGuardWorksWithoutNetlinkEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		d := r.deps()
		d.Watch = func(context.Context) (<-chan struct{}, error) { return nil, errors.New("no netlink") }
		n, err := host.New(r.cfg, d)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.Guard(host.Duties{}).Run(ctx) }()
		synctest.Wait()
		want := r.String()
		r.deleteDevice()
		after(10 * time.Second)
		r.mustBe("after 10 s", want)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestThereIsOneGuard(t *testing.T) {
	guarded(t, nil, func(t *testing.T, r *rig, stop func() error) {
		n := r.node()
		if runs, err := n.Guarded(); !runs || err != nil {
			t.Errorf("while it runs: %t, %v", runs, err)
		}
		held := new(journal.HeldError)
		if err := n.Guard(host.Duties{}).Run(t.Context()); !errors.As(err, &held) {
			t.Errorf("a second one: got %v, want %T", err, held)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if runs, err := n.Guarded(); runs || err != nil {
			t.Errorf("after it stopped: %t, %v", runs, err)
		}
	})
}

// drained runs test with a guard that ends rollbacks; naming are the pods that
// name us, as the test goes on.
func drained(t *testing.T, naming *atomic.Pointer[[]string], test func(t *testing.T, r *rig, done <-chan error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		n := r.node()
		g := n.Guard(host.Duties{Gate: &host.Gate{
			Node:    n,
			Durable: r.durable(),
			Naming: func(context.Context) ([]string, error) {
				names := naming.Load()
				if names == nil {
					return nil, errors.New("proc is not mounted")
				}
				return *names, nil
			},
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		test(t, r, done)
		cancel()
		synctest.Wait()
	})
}

func names(all ...string) *atomic.Pointer[[]string] {
	var p atomic.Pointer[[]string]
	p.Store(&all)
	return &p
}

// durable is the durable half of the rig's node: nothing but its journal.
func (r *rig) durable() *host.Durable {
	d := host.RootDeps(r.dir, r.deps().Log)
	d.RunDir, d.StateDir, d.LockWait = "/run", "/state", time.Second
	return host.NewDurable(host.DurableConfig{}, d)
}

func TestGuardEndsARollbackWhenNoPodNamesUs(t *testing.T) {
	naming := names("default/web", "default/db")
	drained(t, naming, func(t *testing.T, r *rig, _ <-chan error) {
		applied := r.String()
		if err := r.durable().TurnOff(); err != nil {
			t.Fatal(err)
		}
		after(10 * time.Second)
		r.mustBe("while pods name us", applied)
		r.deleteDevice()
		r.flushRaw()
		after(10 * time.Second)
		r.mustBe("what pods need is repaired meanwhile", applied)

		naming.Store(nil) // it cannot be found out
		after(time.Minute)
		r.mustBe("while it cannot be told whether pods name us", applied)

		naming.Store(&[]string{})
		after(10 * time.Second)
		r.mustBe("when none does any more", r.orig)
		log := r.logged()
		for _, want := range []string{
			`msg="waiting for 2 pods" step=rollback pods="default/web, default/db"`,
			`msg=error step=pods error="looking for pods that name us: proc is not mounted"`,
			`msg="rollback finished: no pod names us any more"`,
		} {
			if strings.Count(log, want) != 1 {
				t.Errorf("want once %s in the log:\n%s", want, log)
			}
		}
		after(time.Minute)
		r.mustBe("ever after", r.orig)
	})
}

func TestGuardLeavesWhatTheRollbackIsToKeep(t *testing.T) {
	drained(t, names(), func(t *testing.T, r *rig, _ <-chan error) {
		if err := r.durable().TurnOff("link/nodelocaldns0"); err != nil {
			t.Fatal(err)
		}
		after(10 * time.Second)
		for _, st := range r.check() {
			if st.Ours != (st.Name == "link/nodelocaldns0") {
				t.Errorf("%s: ours %t", st.Name, st.Ours)
			}
		}
	})
}

func TestGuardDoesNotEndARollbackBeforeTheKubeletHasEverythingBack(t *testing.T) {
	drained(t, names(), func(t *testing.T, r *rig, _ <-chan error) {
		applied := r.String()
		j := journal.New(fsys.Dir(filepath.Join(r.dir, "state")), "journal.json")
		for _, name := range []string{"kubelet/cluster-dns", "window/kubelet"} {
			if err := j.Put(engine.Record{Name: name}); err != nil {
				t.Fatal(err)
			}
			if err := r.durable().TurnOff(); err != nil {
				t.Fatal(err)
			}
			after(time.Minute)
			r.mustBe("with an open record of "+name, applied)
			if err := j.Drop(name); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Guard sees that a rollback may end, and an apply is first to get the lock.
func TestARollbackThatAnApplyTookBackIsNotFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.apply()
		applied := r.String()
		d := r.durable()
		if err := d.TurnOff(); err != nil {
			t.Fatal(err)
		}
		lock, err := journal.Acquire(t.Context(), filepath.Join(r.dir, "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- (&host.Gate{Node: r.node(), Durable: d}).Finish(t.Context()) }()
		synctest.Wait()
		if err := errors.Join(os.Remove(filepath.Join(r.dir, "state", "off")), lock.Release()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, host.ErrNotAsked) {
			t.Errorf("err = %v", err)
		}
		r.mustBe("after the apply", applied)
		if off, err := d.Off(); off || err != nil {
			t.Errorf("the off switch: %v, %v; want it not set", off, err)
		}
	})
}

// The same with a rollback that has only just begun: the last word counts.
func TestARollbackThatWaitedSetsTheSwitchThatAnApplyCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.apply()
		lock, err := journal.Acquire(t.Context(), filepath.Join(r.dir, "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- r.node().Rollback(t.Context()) }()
		synctest.Wait()
		if err := errors.Join(os.Remove(filepath.Join(r.dir, "state", "off")), lock.Release(), <-done); err != nil {
			t.Fatal(err)
		}
		r.mustBe("after rollback", r.orig)
		if off, err := r.node().Off(); !off || err != nil {
			t.Errorf("the off switch: %v, %v; want it set", off, err)
		}
	})
}

func TestThePhaseOfARollbackFollowsFromTheJournals(t *testing.T) {
	for name, phase := range map[string]struct {
		recs []string
		want host.Phase
	}{
		"the units alone":   {[]string{"unit/nodelocaldns"}, host.Draining},
		"the kubelet too":   {[]string{"unit/nodelocaldns", "kubelet/cluster-dns"}, host.Unfinished},
		"a window was left": {[]string{"window/kubelet"}, host.Unfinished},
		"nothing":           {nil, host.Finished},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			d := &host.Gate{Node: r.node(), Durable: r.durable()}
			if got, err := d.Phase(); got != host.NotAsked || err != nil {
				t.Errorf("before: %s, %v", got, err)
			}
			j := journal.New(fsys.Dir(filepath.Join(r.dir, "state")), "journal.json")
			for _, rec := range phase.recs {
				if err := j.Put(engine.Record{Name: rec}); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Durable.TurnOff(); err != nil {
				t.Fatal(err)
			}
			if got, err := d.Phase(); got != phase.want || err != nil {
				t.Errorf("got %s, %v; want %s", got, err, phase.want)
			}
		})
	}
}

// A pass finds that something is gone which pods need, and waits for the lock.
// Meanwhile whoever took it away has ended that part of the rollback.
func TestAPassThatWaitedDoesNotRepairWhatWasTakenBackByThen(t *testing.T) {
	drained(t, names("default/web"), func(t *testing.T, r *rig, _ <-chan error) {
		if err := r.durable().TurnOff(); err != nil {
			t.Fatal(err)
		}
		lock, err := journal.Acquire(t.Context(), filepath.Join(r.dir, "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		r.deleteDevice()
		drifted := r.String()
		r.event() // the pass now waits
		if err := journal.New(fsys.Dir(filepath.Join(r.dir, "run")), "journal.json").Drop("link/nodelocaldns0"); err != nil {
			t.Fatal(err)
		}
		if err := lock.Release(); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		r.mustBe("the node", drifted)
	})
}

// A pass waits for a lock that is not let go of, as while a kubelet is restarted.
func TestWhoStandsByIsNotHeldUpByAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.apply()
		lock, err := journal.Acquire(t.Context(), filepath.Join(r.dir, "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Release()
		r.deleteDevice()
		d := r.deps()
		d.LockWait = 10 * time.Second
		n, err := host.New(r.cfg, d)
		if err != nil {
			t.Fatal(err)
		}
		var looks atomic.Int32
		g := n.Guard(host.Duties{Standby: func(ctx context.Context) {
			for ctx.Err() == nil {
				looks.Add(1)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
			looks.Store(-1)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		after(9500 * time.Millisecond)
		select {
		case <-g.Ready():
			t.Error("the first pass is over")
		default:
		}
		if n := looks.Load(); n != 10 {
			t.Errorf("%d looks in 9.5 s", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := looks.Load(); n != -1 {
			t.Errorf("guard has ended, and who stands by has not: %d looks", n)
		}
	})
}

// Pods are told of another kube-dns as soon as the kubelet that names it runs.
func TestAnotherKubeDNSIsKnownAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.apply()
		n, err := host.New(r.cfg, r.deps())
		if err != nil {
			t.Fatal(err)
		}
		var now atomic.Value // what the kubelet says
		now.Store("10.96.0.10")
		changed := make(chan struct{}, 1)
		g := n.Guard(host.Duties{
			Facts: func(context.Context) (facts.Facts, error) {
				return facts.Facts{ClusterDNS: []netip.Addr{netip.MustParseAddr(now.Load().(string))}}, nil
			},
			Changed: func(context.Context) <-chan struct{} { return changed },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		known := func(want string) {
			t.Helper()
			f, err := facts.Read(fsys.Dir(filepath.Join(r.dir, "run")))
			if err != nil || len(f.ClusterDNS) != 1 || f.ClusterDNS[0].String() != want {
				t.Errorf("known is %v, %v; want %s", f.ClusterDNS, err, want)
			}
		}
		after(3 * time.Second)
		known("10.96.0.10")

		now.Store("10.96.0.11") // it is there when systemd says so
		changed <- struct{}{}
		after(time.Millisecond)
		known("10.96.0.11")

		changed <- struct{}{} // and not yet
		after(time.Millisecond)
		now.Store("10.96.0.12")
		after(time.Second)
		known("10.96.0.12")

		now.Store("10.96.0.13") // nobody says so
		after(10 * time.Second)
		known("10.96.0.13")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

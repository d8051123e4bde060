package drain_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/drain"
)

// cluster is an API server with the pods of one node and the budgets of their
// namespaces. What it is asked for, and what it says, is printed with the time
// since its start.
type cluster struct {
	start   time.Time
	pods    []*running
	budgets map[string]*budget // by name
	log     strings.Builder
	evicted int

	old bool // recent pods are those of before there were any

	// What goes wrong, if not nil: the answer to a request, "list" or "evict"
	// and a pod's name.
	fault func(request string, at time.Duration) error
}

// running is a pod that the node has, until its end if that is set.
type running struct {
	apiserver.Pod
	budget string
	grace  time.Duration
	end    time.Time
}

// A budget allows so many disruptions, and one more again when a pod has been
// gone for as long as another takes to be ready.
type budget struct {
	allows int
	ready  time.Duration
	due    []time.Time
}

// newCluster is a node with pods that no budget keeps and that end in 2 s. The
// names of those that are ending have a "!".
func newCluster(names ...string) *cluster {
	c := &cluster{start: time.Now(), budgets: map[string]*budget{}}
	for _, name := range names {
		name, ending := strings.CutSuffix(name, "!")
		p := &running{grace: 2 * time.Second, Pod: apiserver.Pod{
			Namespace: "shop", Name: name, UID: "uid-" + name, Owner: apiserver.Owner{Kind: "ReplicaSet", Name: "rs"}, Terminating: ending,
		}}
		if ending {
			p.end = c.start.Add(10 * time.Second)
		}
		c.pods = append(c.pods, p)
	}
	return c
}

// keep has a budget for all pods.
func (c *cluster) keep(name string, b budget) *cluster {
	c.budgets[name] = &b
	for _, p := range c.pods {
		p.budget = name
	}
	return c
}

func (c *cluster) printf(format string, args ...any) {
	fmt.Fprintf(&c.log, "%5.1fs ", time.Since(c.start).Seconds())
	fmt.Fprintf(&c.log, format+"\n", args...)
}

// pass lets happen what is due.
func (c *cluster) pass() {
	var left []*running
	for _, p := range c.pods {
		if p.end.IsZero() || time.Now().Before(p.end) {
			left = append(left, p)
			continue
		}
		if b := c.budgets[p.budget]; b != nil {
			b.due = append(b.due, p.end.Add(b.ready))
		}
	}
	c.pods = left
	for _, b := range c.budgets {
		for len(b.due) > 0 && !time.Now().Before(b.due[0]) {
			b.allows++
			b.due = b.due[1:]
		}
	}
}

func (c *cluster) Pods(ctx context.Context, node, labelSelector string) ([]apiserver.Pod, error) {
	if labelSelector != "" {
		return nil, errors.New("all pods are asked for")
	}
	c.printf("list")
	return c.list(ctx, node)
}

func (c *cluster) RecentPods(ctx context.Context, node string) ([]apiserver.Pod, error) {
	if c.old {
		return nil, nil
	}
	return c.list(ctx, node)
}

func (c *cluster) list(ctx context.Context, node string) ([]apiserver.Pod, error) {
	if node != "n1" {
		return nil, apiserver.ErrForbidden
	}
	if err := c.fails(ctx, "list"); err != nil {
		return nil, err
	}
	var out []apiserver.Pod
	for _, p := range c.pods {
		out = append(out, p.Pod)
	}
	return out, nil
}

func (c *cluster) fails(ctx context.Context, request string) error {
	c.pass()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if c.fault == nil {
		return nil
	}
	return c.fault(request, time.Since(c.start))
}

func (c *cluster) Evict(ctx context.Context, p apiserver.Pod, grace *time.Duration) error {
	err := c.evict(ctx, p, grace)
	switch {
	case err != nil:
		c.printf("evict %s: %v", p.Name, err)
	case grace != nil:
		c.printf("evict %s within %s", p.Name, *grace)
	default:
		c.printf("evict %s", p.Name)
	}
	return err
}

func (c *cluster) evict(ctx context.Context, p apiserver.Pod, grace *time.Duration) error {
	if err := c.fails(ctx, "evict "+p.Name); err != nil {
		return err
	}
	for _, r := range c.pods {
		if r.UID != p.UID {
			continue
		}
		if b := c.budgets[r.budget]; b != nil {
			if b.allows == 0 {
				return &apiserver.Blocked{PDBs: []string{r.budget}, Why: "not now"}
			}
			b.allows--
		}
		if r.Terminating = true; grace != nil {
			r.grace = *grace
		}
		r.end = time.Now().Add(r.grace)
		c.evicted++
		return nil
	}
	return apiserver.ErrGone
}

// run evicts all pods of the node, in a bubble of synctest.
func (c *cluster) run(ctx context.Context, o drain.Options) {
	var all []apiserver.Pod
	for _, p := range c.pods {
		all = append(all, p.Pod)
	}
	over, said := false, ""
	e := drain.Evictor{
		API: c, Node: "n1", Options: o, Now: time.Now, Rand: func() float64 { return 0.25 },
		Progress: func(p drain.Progress) {
			if over {
				c.printf("  told something after it was over")
			}
			over = p.Over
			if until := p.Until; until.IsZero() != (o.Timeout == 0) || o.Timeout > 0 && !until.Equal(c.start.Add(o.Timeout)) {
				c.printf("  until %s", until)
			}
			var left strings.Builder
			for _, l := range p.Left {
				fmt.Fprintf(&left, "; %s", l)
			}
			if pdbs := p.PDBs(); pdbs != nil {
				fmt.Fprintf(&left, "; all kept by %q", pdbs)
			}
			if p.Err != nil {
				fmt.Fprintf(&left, "; %v", p.Err)
			}
			if text := fmt.Sprintf("  %d of %d left%s", len(p.Left), p.Total, &left); text != said {
				said = text
				c.printf("%s", text)
			}
		},
	}
	err := e.Evict(ctx, all)
	if !over {
		c.printf("  not told that it is over")
	}
	c.printf("ends with %v", err)
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		c.printf("hint: %s", h.Hint())
	}
}

func (c *cluster) want(t *testing.T, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); c.log.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &c.log, want)
	}
}

func TestAllGoAtOnceWhereNoBudgetKeepsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0", "web-1")
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s evict web-0
  0.0s evict web-1
  0.0s   2 of 2 left; shop/web-0 is ending; shop/web-1 is ending
  2.0s list
  2.0s   0 of 2 left
  2.0s ends with <nil>
`)
	})
}

func TestABudgetLetsOneGoWhenAnotherIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0", "web-1", "web-2").keep("web", budget{allows: 1, ready: 4 * time.Second})
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s evict web-0
  0.0s evict web-1: not now
  0.0s evict web-2: not now
  0.0s   3 of 3 left; shop/web-0 is ending; shop/web-1 is kept by PodDisruptionBudget web; shop/web-2 is kept by PodDisruptionBudget web; all kept by ["shop/web"]
  2.0s   2 of 3 left; shop/web-1 is kept by PodDisruptionBudget web; shop/web-2 is kept by PodDisruptionBudget web; all kept by ["shop/web"]
  6.0s evict web-1
  6.0s evict web-2: not now
  6.0s   2 of 3 left; shop/web-1 is ending; shop/web-2 is kept by PodDisruptionBudget web; all kept by ["shop/web"]
  8.0s   1 of 3 left; shop/web-2 is kept by PodDisruptionBudget web; all kept by ["shop/web"]
 12.0s evict web-2
 12.0s   1 of 3 left; shop/web-2 is ending
 14.0s list
 14.0s   0 of 3 left
 14.0s ends with <nil>
`)
	})
}

func TestABudgetThatAllowsNobodyIsNeverPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0", "web-1").keep("web", budget{})
		c.run(t.Context(), drain.Options{Timeout: 12500 * time.Millisecond})
		c.want(t, `
  0.0s evict web-0: not now
  0.0s evict web-1: not now
  0.0s   2 of 2 left; shop/web-0 is kept by PodDisruptionBudget web; shop/web-1 is kept by PodDisruptionBudget web; all kept by ["shop/web"]
  6.0s evict web-0: not now
  6.0s evict web-1: not now
 12.0s evict web-0: not now
 12.0s evict web-1: not now
 12.5s ends with evicting the pods of node n1: 2 of 2 pods are left after 12.5s: shop/web-0 is kept by PodDisruptionBudget web; shop/web-1 is kept by PodDisruptionBudget web
 12.5s hint: kubectl -n shop describe pdb web says what it waits for; more ready replicas or a longer --timeout help, and --drain cordon restarts the kubelet and evicts nobody
`)
		if c.evicted != 0 || len(c.pods) != 2 {
			t.Errorf("%d evicted, %d pods are left", c.evicted, len(c.pods))
		}
	})
}

func TestPodsThatAreEndingAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("old-0!", "old-1!")
		grace := time.Second
		c.run(t.Context(), drain.Options{GracePeriod: &grace})
		c.want(t, `
  0.0s   2 of 2 left; shop/old-0 is ending; shop/old-1 is ending
 10.0s list
 10.0s   0 of 2 left
 10.0s ends with <nil>
`)
	})
}

func TestAPodThatDoesNotEndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("old-0!")
		c.run(t.Context(), drain.Options{Timeout: 3500 * time.Millisecond})
		c.want(t, `
  0.0s   1 of 1 left; shop/old-0 is ending
  3.5s ends with evicting the pods of node n1: 1 of 1 pod is left after 3.5s: shop/old-0 is ending
  3.5s hint: kubectl -n shop describe pod old-0 says what it waits for; a longer --timeout may help, and so may a shorter --grace-period
`)
	})
}

func TestAnErrorNamesFivePodsAtTheMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a!", "b!", "c!", "d!", "e!", "f!", "g!")
		e := drain.Evictor{API: c, Node: "n1", Options: drain.Options{Timeout: 1500 * time.Millisecond}, Now: time.Now}
		var all []apiserver.Pod
		for _, p := range c.pods {
			all = append(all, p.Pod)
		}
		const want = "evicting the pods of node n1: 7 of 7 pods are left after 1.5s: shop/a is ending; " +
			"shop/b is ending; shop/c is ending; shop/d is ending; shop/e is ending and 2 more"
		if err := e.Evict(t.Context(), all); err == nil || err.Error() != want {
			t.Error(err)
		}
	})
}

func TestTheGracePeriodIsTheUsersIfThereIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0")
		grace := 0 * time.Second
		c.run(t.Context(), drain.Options{GracePeriod: &grace})
		c.want(t, `
  0.0s evict web-0 within 0s
  0.0s   1 of 1 left; shop/web-0 is ending
  1.0s list
  1.0s   0 of 1 left
  1.0s ends with <nil>
`)
	})
}

// A StatefulSet makes another pod of the same name, and while it is cordoned
// another node has it.
func TestAnotherPodOfTheSameNameIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("db-0")
		c.fault = func(string, time.Duration) error {
			c.pods[0].UID = "another"
			return nil
		}
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s list
  0.0s   0 of 1 left
  0.0s ends with <nil>
`)
	})
}

func TestNobodyIsGoneWhoMayBeHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0")
		c.old = true
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s list
  0.0s evict web-0
  0.0s   1 of 1 left; shop/web-0 is ending
  1.0s list
  2.0s list
  2.0s   0 of 1 left
  2.0s ends with <nil>
`)
	})
}

// One that was just started does not know yet what a kubelet may.
func TestAnAPIServerThatIsAwayIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0", "web-1").keep("web", budget{allows: 1, ready: time.Second})
		c.fault = func(request string, at time.Duration) error {
			switch {
			case at < 2*time.Second || at > 100*time.Second:
				return nil
			case at < 60*time.Second:
				return apiserver.ErrUnreachable
			case at < 80*time.Second && request == "list":
				return apiserver.ErrForbidden
			case at < 100*time.Second && request != "list":
				return apiserver.ErrForbidden
			}
			return nil
		}
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s evict web-0
  0.0s evict web-1: not now
  0.0s   2 of 2 left; shop/web-0 is ending; shop/web-1 is kept by PodDisruptionBudget web; all kept by ["shop/web"]
  2.0s   2 of 2 left; shop/web-0 is ending; shop/web-1 is kept by PodDisruptionBudget web; all kept by ["shop/web"]; no reply from the API server
 60.0s   2 of 2 left; shop/web-0 is ending; shop/web-1 is kept by PodDisruptionBudget web; all kept by ["shop/web"]; the API server does not allow it
 80.0s evict web-1: the API server does not allow it
 80.0s   1 of 2 left; shop/web-1: the API server does not allow it
 86.0s evict web-1: the API server does not allow it
 92.0s evict web-1: the API server does not allow it
 98.0s evict web-1: the API server does not allow it
104.0s evict web-1
104.0s   1 of 2 left; shop/web-1 is ending
106.0s list
106.0s   0 of 2 left
106.0s ends with <nil>
`)
	})
}

func TestAnAPIServerThatStaysAwayIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0")
		c.fault = func(request string, at time.Duration) error {
			if at > time.Second {
				return apiserver.ErrUnreachable
			}
			return nil
		}
		c.pods[0].grace = time.Hour
		c.run(t.Context(), drain.Options{Timeout: 59500 * time.Millisecond})
		c.want(t, `
  0.0s evict web-0
  0.0s   1 of 1 left; shop/web-0 is ending
  2.0s   1 of 1 left; shop/web-0 is ending; no reply from the API server
 59.5s ends with evicting the pods of node n1: 1 of 1 pod is left after 59.5s: no reply from the API server (when last seen: shop/web-0 is ending)
`)
	})
}

// refusing is a cluster that refuses one kind of request.
func refusing(request string) *cluster {
	c := newCluster("web-0", "web-1")
	c.fault = func(r string, _ time.Duration) error {
		if r == request {
			return apiserver.ErrForbidden
		}
		return nil
	}
	return c
}

func TestWhatIsRefusedForHalfAMinuteIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := refusing("evict web-1")
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s evict web-0
  0.0s evict web-1: the API server does not allow it
  0.0s   2 of 2 left; shop/web-0 is ending; shop/web-1: the API server does not allow it
  2.0s   1 of 2 left; shop/web-1: the API server does not allow it
  6.0s evict web-1: the API server does not allow it
 12.0s evict web-1: the API server does not allow it
 18.0s evict web-1: the API server does not allow it
 24.0s evict web-1: the API server does not allow it
 30.0s evict web-1: the API server does not allow it
 30.0s ends with evicting the pods of node n1: 1 of 2 pods is left: shop/web-1: the API server does not allow it
`)
	})
	synctest.Test(t, func(t *testing.T) {
		c := refusing("list")
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s   2 of 2 left; shop/web-0 is about to be evicted; shop/web-1 is about to be evicted; the API server does not allow it
 30.0s ends with evicting the pods of node n1: 2 of 2 pods are left: the API server does not allow it
`)
	})
}

// Refusals with an outage between them are not one.
func TestHalfAMinuteStartsAnewAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0")
		c.fault = func(request string, at time.Duration) error {
			switch {
			case request != "list" && at < 60*time.Second:
				return apiserver.ErrForbidden
			case at > 20*time.Second && at < 40*time.Second:
				return apiserver.ErrUnreachable
			}
			return nil
		}
		c.run(t.Context(), drain.Options{})
		if !strings.HasSuffix(c.log.String(), "ends with <nil>\n") {
			t.Error(c.log.String())
		}
	})
}

func TestABusyAPIServerIsAskedWhenItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0", "web-1")
		c.fault = func(request string, at time.Duration) error {
			if request != "list" && at < 20*time.Second {
				return &apiserver.Busy{RetryAfter: 15 * time.Second, Err: errors.New("too many requests")}
			}
			return nil
		}
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s evict web-0: too many requests
  0.0s   2 of 2 left; shop/web-0 is about to be evicted; shop/web-1 is about to be evicted; too many requests
  1.0s   2 of 2 left; shop/web-0 is about to be evicted; shop/web-1 is about to be evicted
 16.0s evict web-0: too many requests
 16.0s   2 of 2 left; shop/web-0 is about to be evicted; shop/web-1 is about to be evicted; too many requests
 17.0s   2 of 2 left; shop/web-0 is about to be evicted; shop/web-1 is about to be evicted
 32.0s evict web-0
 32.0s evict web-1
 32.0s   2 of 2 left; shop/web-0 is ending; shop/web-1 is ending
 34.0s list
 34.0s   0 of 2 left
 34.0s ends with <nil>
`)
	})
}

func TestABudgetIsAskedWhenItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0", "web-1")
		c.fault = func(request string, at time.Duration) error {
			if request == "evict web-1" && at < 10*time.Second {
				return &apiserver.Blocked{Why: "the budget is being looked at", RetryAfter: 10 * time.Second}
			}
			return nil
		}
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s evict web-0
  0.0s evict web-1: the budget is being looked at
  0.0s   2 of 2 left; shop/web-0 is ending; shop/web-1 is kept by a PodDisruptionBudget: the budget is being looked at
  2.0s   1 of 2 left; shop/web-1 is kept by a PodDisruptionBudget: the budget is being looked at
 11.0s evict web-1
 11.0s   1 of 2 left; shop/web-1 is ending
 13.0s list
 13.0s   0 of 2 left
 13.0s ends with <nil>
`)
	})
}

func TestAPodIsDeletedWithItsNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("web-0")
		c.fault = func(request string, at time.Duration) error {
			if at == time.Minute {
				c.pods[0].Terminating, c.pods[0].end = true, c.start.Add(70*time.Second)
			}
			if request != "list" {
				return fmt.Errorf("shop: %w: %w", apiserver.ErrNamespaceTerminating, apiserver.ErrForbidden)
			}
			return nil
		}
		c.run(t.Context(), drain.Options{})
		if !strings.HasSuffix(c.log.String(), "ends with <nil>\n") {
			t.Error(c.log.String())
		}
	})
}

func TestWhoStopsIsObeyedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := newCluster("web-0", "web-1", "web-2")
		c.fault = func(request string, _ time.Duration) error {
			if request == "evict web-1" {
				cancel()
				return ctx.Err()
			}
			return nil
		}
		c.run(ctx, drain.Options{Timeout: time.Minute})
		c.want(t, `
  0.0s evict web-0
  0.0s evict web-1: context canceled
  0.0s   3 of 3 left; shop/web-0 is ending; shop/web-1 is about to be evicted; shop/web-2 is about to be evicted
  0.0s ends with evicting the pods of node n1: 3 of 3 pods are left: context canceled
`)
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := newCluster("old!")
		time.AfterFunc(3500*time.Millisecond, cancel)
		c.run(ctx, drain.Options{})
		c.want(t, `
  0.0s   1 of 1 left; shop/old is ending
  3.5s ends with evicting the pods of node n1: 1 of 1 pod is left: context canceled
`)
	})
}

func TestNobodyIsAskedWhereNobodyIsToGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.fault = func(string, time.Duration) error { return apiserver.ErrUnreachable }
		c.run(t.Context(), drain.Options{})
		c.want(t, `
  0.0s   0 of 0 left; no reply from the API server
  0.0s ends with <nil>
`)
	})
}

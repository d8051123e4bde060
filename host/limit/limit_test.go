package limit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/limit"
)

const mark = "nodelocaldns.io/cordoned-by"

// store is what an API server keeps: Leases, which change only as they were
// read, and nodes.
type store struct {
	mu      sync.Mutex
	leases  map[string]apiserver.Lease
	nodes   map[string]apiserver.Node
	version int
}

func newStore(nodes ...string) *store {
	s := &store{leases: map[string]apiserver.Lease{}, nodes: map[string]apiserver.Node{}}
	for _, name := range nodes {
		s.nodes[name] = apiserver.Node{Name: name, Ready: true, Annotations: map[string]string{}}
	}
	return s
}

// String is the whole of it, without times and versions.
func (s *store) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.leases)) {
		fmt.Fprintf(&out, "%s %q\n", name, s.leases[name].Holder)
	}
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		n := s.nodes[name]
		fmt.Fprintf(&out, "%s ready=%t marked=%t\n", name, n.Ready, n.Annotations[mark] != "")
	}
	return out.String()
}

func (s *store) Lease(_ context.Context, namespace, name string) (apiserver.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.leases[name]
	if !ok || namespace != "kube-system" {
		return apiserver.Lease{}, apiserver.ErrNotFound
	}
	return l, nil
}

func (s *store) CreateLease(_ context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.leases[l.Name]; ok {
		return apiserver.Lease{}, &apiserver.Conflict{Err: errors.New("already exists")}
	}
	return s.put(l), nil
}

func (s *store) UpdateLease(_ context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, ok := s.leases[l.Name]
	switch {
	case !ok:
		return apiserver.Lease{}, apiserver.ErrNotFound
	case now.ResourceVersion != l.ResourceVersion:
		return apiserver.Lease{}, &apiserver.Conflict{Err: errors.New("the object has been modified")}
	}
	return s.put(l), nil
}

func (s *store) put(l apiserver.Lease) apiserver.Lease {
	s.version++
	l.ResourceVersion = fmt.Sprint(s.version)
	s.leases[l.Name] = l
	return l
}

func (s *store) Node(_ context.Context, name string) (apiserver.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.nodes[name]
	if !ok {
		return apiserver.Node{}, apiserver.ErrNotFound
	}
	n.Annotations = maps.Clone(n.Annotations)
	return n, nil
}

func (s *store) mark(name string, marked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.nodes[name].Annotations, mark); marked {
		s.nodes[name].Annotations[mark] = "us"
	}
}

// config is that of one node that wants a window.
func config(api limit.API, node string, most int, log *bytes.Buffer) limit.Config {
	start := time.Now()
	return limit.Config{
		API: api, Node: node, Max: most, Mark: mark, Now: time.Now, Rand: func() float64 { return 0 },
		Log: slog.New(slog.NewTextHandler(log, nil)),
		Waiting: func(w limit.Waiting) {
			fmt.Fprintf(log, "%s waits after %s: %s\n", node, time.Since(start), w)
		},
	}
}

func acquire(t *testing.T, cfg limit.Config) *limit.Held {
	t.Helper()
	h, err := limit.Acquire(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func release(t *testing.T, h *limit.Held) {
	t.Helper()
	if err := h.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAsManyNodesHaveAWindowAsAreAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newStore("a", "b", "c")
		a := acquire(t, config(s, "a", 2, &log))
		b := acquire(t, config(s, "b", 2, &log))
		time.AfterFunc(20*time.Minute, func() { release(t, a) })
		c := acquire(t, config(s, "c", 2, &log))
		log.WriteString(s.String())
		release(t, b)
		release(t, c)
		log.WriteString(s.String())
		const want = `c waits after 0s: node a holds nodelocaldns-window-0; node b holds nodelocaldns-window-1
nodelocaldns-window-0 "c"
nodelocaldns-window-1 "b"
a ready=true marked=false
b ready=true marked=false
c ready=true marked=false
nodelocaldns-window-0 ""
nodelocaldns-window-1 ""
a ready=true marked=false
b ready=true marked=false
c ready=true marked=false
`
		if log.String() != want {
			t.Errorf("got\n%s\nwant\n%s", &log, want)
		}
	})
}

// asked is a store that says when it was asked for what.
type asked struct {
	*store
	start time.Time
	log   strings.Builder
	busy  bool // somebody is faster at every change
}

func (a *asked) say(what, name string) {
	fmt.Fprintf(&a.log, "%s %s %s\n", time.Since(a.start).Round(time.Second), what, strings.TrimPrefix(name, "nodelocaldns-window-"))
}

func (a *asked) Lease(ctx context.Context, namespace, name string) (apiserver.Lease, error) {
	a.say("reads", name)
	return a.store.Lease(ctx, namespace, name)
}

func (a *asked) CreateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	a.say("creates", l.Name)
	if a.busy {
		return l, &apiserver.Conflict{Err: errors.New("already exists")}
	}
	return a.store.CreateLease(ctx, l)
}

func (a *asked) UpdateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	a.say("updates", l.Name)
	return a.store.UpdateLease(ctx, l)
}

func TestWhoWaitsLongAsksLessOfTheAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newStore("a", "b", "c", "d", "e")
		var held []*limit.Held
		for _, name := range []string{"a", "b", "c", "d"} {
			held = append(held, acquire(t, config(s, name, 4, &log)))
		}
		time.AfterFunc(32*time.Second, func() { release(t, held[1]) })
		a := &asked{store: s, start: time.Now()}
		cfg := config(a, "e", 4, &log)
		cfg.Rand = func() float64 { return 0.5 } // begins in the middle, and adds a fifth to each pause
		e := acquire(t, cfg)
		const want = `0s reads 0
0s reads 1
0s reads 2
0s reads 3
6s reads 2
6s reads 3
12s reads 0
12s reads 1
19s reads 2
19s reads 3
27s reads 0
27s reads 1
34s reads 2
34s reads 3
43s reads 0
43s reads 1
43s reads 0
43s reads 1
43s reads 2
43s reads 3
43s updates 1
`
		if a.log.String() != want {
			t.Errorf("got\n%swant\n%s", &a.log, want)
		}

		// An hour later it would be once a minute.
		for _, h := range append(held, e) {
			release(t, h)
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			defer release(t, acquire(t, config(s, name, 4, &log)))
		}
		a = &asked{store: s, start: time.Now()}
		cfg = config(a, "e", 4, &log)
		cfg.Timeout = time.Hour
		if _, err := limit.Acquire(t.Context(), cfg); err == nil {
			t.Error("a fifth has a window")
		}
		if got, want := strings.Count(a.log.String(), "reads"), 4+2*137; got != want {
			t.Errorf("%d reads in an hour, want %d", got, want)
		}
	})
}

func TestNodesThatComeTogetherDoNotAllTryTheSameLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := &asked{store: newStore("a"), start: time.Now()}
		cfg := config(a, "a", 4, &log)
		cfg.Rand = func() float64 { return 0.75 }
		release(t, acquire(t, cfg))
		b := &asked{store: newStore("b"), start: time.Now(), busy: true}
		cfg = config(b, "b", 5, &log)
		cfg.Timeout = time.Second
		if _, err := limit.Acquire(t.Context(), cfg); err == nil {
			t.Error("acquired although others were faster")
		}
		const want = `0s reads 0
0s reads 1
0s reads 2
0s reads 3
0s creates 3
0s updates 3

0s reads 0
0s reads 1
0s reads 2
0s reads 3
0s reads 4
0s creates 0
0s creates 1
0s creates 2
`
		if got := a.log.String() + "\n" + b.log.String(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

// A late is a store that makes the first change of a Lease a minute after it told
// that nobody answers.
type late struct {
	*store
	was bool
}

func (l *late) CreateLease(ctx context.Context, made apiserver.Lease) (apiserver.Lease, error) {
	if l.was {
		return l.store.CreateLease(ctx, made)
	}
	l.was = true
	for _, name := range []string{"c", "d"} { // meanwhile others have all there are
		_, _ = l.store.CreateLease(ctx, apiserver.Lease{Namespace: made.Namespace, Name: limit.Name(int(name[0] - 'b')), Holder: name, Renewed: time.Now().Add(time.Hour)})
	}
	_, _ = l.store.CreateLease(ctx, apiserver.Lease{Namespace: made.Namespace, Name: made.Name, Holder: "x", Renewed: time.Now().Add(time.Hour)})
	time.AfterFunc(time.Minute, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.put(made)
	})
	return made, apiserver.ErrUnreachable
}

func TestAChangeThatIsMadeLateIsTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		cfg := config(&late{store: newStore("a")}, "a", 3, &log)
		cfg.Timeout = 3 * time.Minute
		release(t, acquire(t, cfg))
	})
}

// gone is a store in which node a has a Lease and nobody renews it any more.
func gone(t *testing.T, log *bytes.Buffer) *store {
	t.Helper()
	s := newStore("a", "b")
	acquire(t, config(s, "a", 1, log)).Leave()
	return s
}

func TestALapsedLeaseCountsUntilItsNodeIsWell(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
		node  func(s *store)
		want  string
	}{
		{"before its time", 10*time.Minute - time.Second, func(*store) {},
			"node a holds nodelocaldns-window-0\nhint: try again when they are done, or wait longer with --timeout"},
		{"a node that is well", 10 * time.Minute, func(*store) {}, ""},
		{"a node that is cordoned by us", time.Hour, func(s *store) { s.mark("a", true) },
			"node a, which held nodelocaldns-window-0, is still cordoned by us\nhint: mend node a first; " +
				"if it is gone for good: kubectl -n kube-system delete lease nodelocaldns-window-0"},
		{"a node that is not ready", time.Hour, func(s *store) { s.nodes["a"] = apiserver.Node{Name: "a"} },
			"node a, which held nodelocaldns-window-0, is not Ready\nhint: mend node a first; " +
				"if it is gone for good: kubectl -n kube-system delete lease nodelocaldns-window-0"},
		{"a node that was deleted", time.Hour, func(s *store) { delete(s.nodes, "a") },
			"node a, which held nodelocaldns-window-0, is not in the cluster any more\nhint: mend node a first; " +
				"if it is gone for good: kubectl -n kube-system delete lease nodelocaldns-window-0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := gone(t, &log)
				time.Sleep(c.after)
				c.node(s)
				cfg := config(s, "b", 1, &log)
				cfg.Timeout = 500 * time.Millisecond
				h, err := limit.Acquire(t.Context(), cfg)
				if c.want == "" {
					if err != nil {
						t.Fatal(err)
					}
					release(t, h)
					return
				}
				var hint interface{ Hint() string }
				if !errors.As(err, &hint) {
					t.Fatalf("acquired, or %v", err)
				}
				got := err.Error() + "\nhint: " + hint.Hint()
				if want := "waiting for a window of the cluster: none of 1 was free for 500ms: " + c.want; got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			})
		})
	}
}

func TestWhoComesBackTakesItsOwnLeaseUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newStore("a", "b")
		b := acquire(t, config(s, "b", 2, &log))
		acquire(t, config(s, "a", 2, &log)).Leave()
		release(t, b)
		s.mark("a", true)
		time.Sleep(time.Hour)
		a := acquire(t, config(s, "a", 2, &log))
		const want = `nodelocaldns-window-0 ""
nodelocaldns-window-1 "a"
a ready=true marked=true
b ready=true marked=false
`
		if a.Name() != "nodelocaldns-window-1" || s.String() != want {
			t.Errorf("%s\n%s", a.Name(), s)
		}
		release(t, a)
	})
}

// faulty fails requests, before they are made or after.
type faulty struct {
	*store
	before, after func(request string) error
}

func (f *faulty) do(request string, ask func() (apiserver.Lease, error)) (apiserver.Lease, error) {
	if f.before != nil {
		if err := f.before(request); err != nil {
			return apiserver.Lease{}, err
		}
	}
	l, err := ask()
	if f.after != nil {
		if lost := f.after(request); lost != nil {
			return apiserver.Lease{}, lost
		}
	}
	return l, err
}

func (f *faulty) Lease(ctx context.Context, namespace, name string) (apiserver.Lease, error) {
	return f.do("get", func() (apiserver.Lease, error) { return f.store.Lease(ctx, namespace, name) })
}

func (f *faulty) CreateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	return f.do("create", func() (apiserver.Lease, error) { return f.store.CreateLease(ctx, l) })
}

func (f *faulty) UpdateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	return f.do("update", func() (apiserver.Lease, error) { return f.store.UpdateLease(ctx, l) })
}

func TestWhatMayNotBeAskedIsSaidAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := &faulty{store: newStore("a"), before: func(string) error { return apiserver.ErrForbidden }}
		_, err := limit.Acquire(t.Context(), config(f, "a", 1, &log))
		var hint interface{ Hint() string }
		if !errors.As(err, &hint) || hint.Hint() != "--max-unavailable needs an identity of its own: units/rbac.yaml has its rights" {
			t.Error(err)
		}
	})
}

func TestAnAPIServerThatIsAwayIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		start := time.Now()
		f := &faulty{store: newStore("a"), before: func(string) error {
			if time.Since(start) < time.Minute {
				return apiserver.ErrUnreachable
			}
			return nil
		}}
		release(t, acquire(t, config(f, "a", 1, &log)))
		if want := "a waits after 0s: no reply from the API server\n"; log.String() != want {
			t.Errorf("got\n%s\nwant\n%s", &log, want)
		}
		cfg := config(f, "a", 1, &log)
		cfg.Timeout, start = 10500*time.Millisecond, time.Now()
		_, err := limit.Acquire(t.Context(), cfg)
		if want := "waiting for a window of the cluster: none for 10.5s: no reply from the API server"; err == nil || err.Error() != want {
			t.Error(err)
		}
	})
}

// A node that has lost its Lease is told when it asks, and says so once it
// renews; it is not to give back what is another's.
func TestWhoIsFollowedIsTold(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"b", "lease kube-system/nodelocaldns-window-0 was taken from us and is held by node b"},
		{"", "lease kube-system/nodelocaldns-window-0 was taken from us"},
		{"deleted", "lease kube-system/nodelocaldns-window-0 was taken from us"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			s := newStore("a", "b")
			h := acquire(t, config(s, "a", 1, &log))
			l := s.leases[h.Name()]
			if l.Holder = c.name; c.name == "deleted" {
				delete(s.leases, h.Name())
			} else {
				s.put(l)
			}
			for range 2 {
				var lost *limit.Lost
				if err := h.Renew(t.Context()); !errors.As(err, &lost) || lost.Error() != c.want {
					t.Error(err)
				}
			}
			before := s.String()
			release(t, h)
			if s.String() != before {
				t.Errorf("got\n%s\nwant\n%s", s, before)
			}
		})
	}
}

func TestALeaseIsRenewedUntilItIsGivenBackOrLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		start := time.Now()
		var renewed []string
		f := &faulty{store: newStore("a")}
		f.after = func(request string) error {
			if request == "update" {
				renewed = append(renewed, time.Since(start).String())
			}
			return nil
		}
		f.before = func(string) error {
			if at := time.Since(start); at > 3*time.Minute && at < 5*time.Minute {
				return apiserver.ErrUnreachable
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		h, err := limit.Acquire(ctx, config(f, "a", 1, &log))
		if err != nil {
			t.Fatal(err)
		}
		cancel() // a run that is stopped undoes what it did in its window
		time.Sleep(7 * time.Minute)
		h.Leave()
		time.Sleep(time.Hour)
		if got := fmt.Sprint(renewed); got != "[2m0s 6m0s]" {
			t.Error(got)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "was not renewed") {
			t.Error(got)
		}
	})
}

// What a change has become whose reply did not arrive is found out, also by who
// stops.
func TestALeaseIsNotLeftBehindByWhoStopsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		f := &faulty{store: newStore("a")}
		f.after = func(request string) error {
			if request == "create" {
				cancel()
				return ctx.Err()
			}
			return nil
		}
		_, err := limit.Acquire(ctx, config(f, "a", 1, &log))
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		const want = "nodelocaldns-window-0 \"\"\na ready=true marked=false\n"
		if f.String() != want {
			t.Errorf("got\n%s\nwant\n%s", f, want)
		}
	})
}

func TestGivingBackThatFailsIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := &faulty{store: newStore("a")}
		h := acquire(t, config(f, "a", 1, &log))
		f.after = func(string) error { return apiserver.ErrUnreachable }
		const want = "giving lease kube-system/nodelocaldns-window-0 back: no reply from the API server"
		if err := h.Release(t.Context()); err == nil || err.Error() != want {
			t.Error(err)
		}
		f.after = nil // and had been done
		release(t, h)
	})
}

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/journal"
	"nodelocaldns/host/step"
	"nodelocaldns/host/sysctl"
	"nodelocaldns/host/unit"
)

const (
	// rulesEvery is how often guard looks at everything but the sysctls: a
	// reload of firewalld flushes our rules and tells nobody. It is a bound on
	// how long DNS may be tracked or refused after one.
	rulesEvery = 10 * time.Second

	// sysctlsEvery is how often guard looks at the sysctls, and so how often
	// it can write one that another program keeps setting.
	sysctlsEvery = time.Minute

	// factsAgain is a moment in which systemd has started a program, whose
	// command line is not its own before.
	factsAgain = 500 * time.Millisecond

	// eventPause follows a pass that a netlink event caused. The first event
	// is acted on at once; a node that starts a hundred pods makes thousands.
	eventPause = 200 * time.Millisecond
)

// Duties are what a guard does besides keeping the runtime plan true. The zero
// value is nothing.
type Duties struct {
	// Facts finds out what the resolver must know of the node. Guard keeps it
	// in the run directory, looking as often as at the rules. Nil: nobody asks.
	Facts func(ctx context.Context) (facts.Facts, error)

	// Changed tells, until ctx ends, when what Facts finds may be another: guard
	// looks at once, and again after factsAgain, when a program that is being
	// started has become what it will be. Nil: nothing tells.
	Changed func(ctx context.Context) <-chan struct{}

	// Gate ends a rollback when no pod names us any more. Until then guard
	// repairs what pods need, and applies nothing new. Nil: with the off switch
	// set, guard does nothing at all.
	Gate *Gate

	// Standby sees to it that somebody answers, until ctx ends: see package
	// standby. It runs beside the passes of Run, which may take long, and takes
	// no lock. Nil: nobody does.
	Standby func(ctx context.Context)
}

// A Guard keeps the runtime plan true. It takes nothing away when it stops:
// pods keep the address for as long as they live. Only the end of a rollback
// takes away.
//
// It holds the lock for one pass at a time, and only for a pass that writes.
// The off switch is looked at before each pass and again under the lock, so
// that nothing is repaired that a rollback took away meanwhile.
type Guard struct {
	n      *Node
	duties Duties
	ready  chan struct{}
	first  sync.Once

	// seen is the last condition logged of each step, and of the off switch
	// and the journal. Only the goroutine of Run or Once uses it.
	seen map[string]condition
}

// A condition is what is wrong with a step; nothing is when it is the zero
// value. It is logged when it begins, when it changes its kind, and when it
// ends. Only the kind counts: a text that names a pid or a count would make
// the same trouble a new line every time.
type condition struct {
	kind string
	args []any // for the line that says it began
}

// Guard returns a new guard of this node. Run or Once is called on it once.
func (n *Node) Guard(d Duties) *Guard {
	return &Guard{n: n, duties: d, ready: make(chan struct{}), seen: map[string]condition{}}
}

// Guarded says whether a guard runs on this node. It writes nothing where none
// has ever run.
func (n *Node) Guarded() (bool, error) {
	if _, err := os.Stat(n.guardAt()); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // one try
	lock, err := journal.Acquire(ctx, n.guardAt())
	if held := new(journal.HeldError); errors.As(err, &held) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	return false, lock.Release()
}

func (n *Node) guardAt() string { return filepath.Join(n.deps.RunDir, guardFile) }

// String names the guard.
func (g *Guard) String() string { return "guard of link/" + g.n.cfg.Interface }

// Ready is closed after the first pass, whether or not it could do everything:
// the node must come up if we are broken.
func (g *Guard) Ready() <-chan struct{} { return g.ready }

// Once runs one pass over the whole plan and returns what could not be done.
// With the off switch set it does nothing.
func (g *Guard) Once(ctx context.Context) error {
	g.keepFacts(ctx)
	err := g.pass(ctx, everything)
	g.first.Do(func() { close(g.ready) })
	return err
}

// Run applies the runtime plan, and repairs what others change until ctx ends;
// then it returns nil. What it cannot do is logged and tried again. It also
// returns nil when it has ended a rollback, and with it its own unit. While
// another guard runs, the error is a *journal.HeldError.
func (g *Guard) Run(ctx context.Context) error {
	alone, err := g.n.acquire(ctx, g.n.guardAt())
	if ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}
	defer alone.Release()
	defer g.standBy(ctx)()
	events, err := g.n.deps.Watch(ctx)
	if err != nil {
		g.n.deps.Log.Warn("no netlink events, looking every "+rulesEvery.String(), "error", err)
	}
	_ = g.Once(ctx) // logged
	if g.drained(ctx) {
		return nil
	}

	rules, sysctls := time.NewTicker(rulesEvery), time.NewTicker(sysctlsEvery)
	defer rules.Stop()
	defer sysctls.Stop()
	var changed <-chan struct{}
	if g.duties.Changed != nil {
		changed = g.duties.Changed(ctx)
	}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-rules.C:
			g.keepFacts(ctx)
			_ = g.pass(ctx, func(noun string) bool { return noun != "sysctl" })
			if g.drained(ctx) {
				return nil
			}
		case <-sysctls.C:
			_ = g.pass(ctx, func(noun string) bool { return noun == "sysctl" })
		case <-changed:
			g.keepFacts(ctx)
			again = time.After(factsAgain)
		case <-again:
			g.keepFacts(ctx)
		case <-events:
			_ = g.pass(ctx, func(noun string) bool { return noun == "link" })
			select {
			case <-ctx.Done():
			case <-time.After(eventPause):
			}
		}
	}
}

// standBy has that duty done until the returned function is called, which waits
// for its end.
func (g *Guard) standBy(ctx context.Context) (stop func()) {
	if g.duties.Standby == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.duties.Standby(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func everything(string) bool { return true }

// pass looks at the steps whose noun is wanted, and repairs those that need
// it. Looking takes no lock.
func (g *Guard) pass(ctx context.Context, wanted func(noun string) bool) error {
	m, err := g.mode()
	if m == idle || err != nil {
		return err
	}
	need, err := g.look(ctx, m, wanted)
	if len(need) == 0 || ctx.Err() != nil {
		return err
	}
	return errors.Join(err, g.repair(ctx, m, need))
}

// A mode is what a pass may do.
type mode int

const (
	idle  mode = iota // nothing: a rollback took away what there was
	hold              // repair what pods still need: a rollback waits for them
	guard             // all of the plan
)

// mode looks at the off switch. One that cannot be read stops the pass too:
// writing less is the safe side.
func (g *Guard) mode() (mode, error) {
	off, err := g.n.Off()
	p := Finished
	if off && err == nil && g.duties.Gate != nil {
		p, err = g.duties.Gate.Phase()
	}
	c := fault(err)
	if off && err == nil {
		c = condition{kind: "off", args: []any{"why", "a rollback was asked for", "until", "the next apply"}}
		if p < Finished {
			c = condition{kind: "off: rollback " + p.String(), args: c.args}
		}
	}
	g.report("off switch", c)
	switch {
	case err != nil:
		return idle, err
	case !off:
		return guard, nil
	case p < Finished:
		return hold, nil
	}
	return idle, nil
}

// drained ends a rollback if no pod names us any more. It is true when the unit
// that this guard runs as went with it.
func (g *Guard) drained(ctx context.Context) bool {
	gate := g.duties.Gate
	if gate == nil || ctx.Err() != nil {
		return false
	}
	if p, err := gate.Phase(); p != Draining || err != nil {
		return false // logged by the pass
	}
	names, err := gate.Naming(ctx)
	if err != nil {
		err = fmt.Errorf("looking for pods that name us: %w", err)
	}
	g.report("pods", fault(err))
	if err != nil || len(names) > 0 {
		g.report("rollback", waitsFor(names))
		return false
	}
	recs, err := gate.Durable.journal.Open()
	if err == nil {
		err = gate.Finish(ctx)
	}
	g.report("rollback", fault(err))
	if err != nil {
		return false
	}
	g.n.deps.Log.Info("rollback finished: no pod names us any more")
	return slices.ContainsFunc(recs, func(r engine.Record) bool { return r.Name == unit.StepName })
}

// waitsFor is the condition of a rollback that waits for pods. Its kind has
// their number, so that it is logged again when that changes.
func waitsFor(names []string) condition {
	if len(names) == 0 {
		return condition{}
	}
	return condition{kind: fmt.Sprintf("waiting for %d pods", len(names)), args: []any{"pods", strings.Join(names, ", ")}}
}

// keepFacts writes down what the resolver must know, if it has changed. What is
// known stays known while it cannot be found out.
func (g *Guard) keepFacts(ctx context.Context) {
	if g.duties.Facts == nil {
		return
	}
	if off, err := g.n.Off(); off || err != nil {
		return // what is left of us was told long ago
	}
	run := fsys.Dir(g.n.deps.RunDir)
	f, err := g.duties.Facts(ctx)
	if err != nil || ctx.Err() != nil {
		g.report("facts", fault(err))
		return
	}
	if had, err := facts.Read(run); err == nil && had.Equal(f) {
		g.report("facts", condition{})
		return
	}
	err = facts.Write(run, f)
	g.report("facts", fault(err))
	if err == nil {
		g.n.deps.Log.Info("kube-dns found", "servers", f.KubeDNS(), "source", f.Source)
	}
}

// look checks the wanted steps, logs what began or ended since the last look,
// and returns the names of those to write. The error is about all others that
// are not as they should be.
func (g *Guard) look(ctx context.Context, m mode, wanted func(noun string) bool) ([]string, error) {
	recs, err := g.n.journal.Open()
	g.report("journal", fault(err))
	if err != nil {
		return nil, err
	}
	plan, err := g.n.plan(recs)
	if err != nil {
		return nil, err
	}
	all, err := g.n.engine(slices.DeleteFunc(plan, func(it engine.Item) bool { return !wanted(noun(it)) })).Status(ctx)
	if err != nil || ctx.Err() != nil {
		return nil, err
	}
	var need []string
	var errs []error
	for _, st := range all {
		if errors.Is(st.Err, engine.ErrUnknown) {
			continue // left by another configuration: only rollback takes it back
		}
		if m == hold && (!st.Ours || st.Optional) {
			continue // pods need our addresses and rules, and no sysctl
		}
		write, err := g.judge(st)
		if write {
			need = append(need, st.Name)
		}
		errs = append(errs, err)
	}
	return need, errors.Join(errs...)
}

// judge says whether a step is to be written, and logs what is wrong with it.
func (g *Guard) judge(st engine.Status) (write bool, err error) {
	switch {
	case st.Err != nil || st.Unseen:
		err = st.Err
		if st.Unseen {
			err = errors.New(st.Why)
		}
		g.report(st.Name, fault(err))
		return false, fmt.Errorf("%s: check: %w", st.Name, err)
	case st.State == step.Blocked:
		g.report(st.Name, condition{kind: "blocked", args: []any{"why", st.Why, "hint", st.Hint}})
		if st.Optional {
			return false, nil
		}
		return false, fmt.Errorf("%s: %w", st.Name, &engine.BlockedError{Why: st.Why, Next: st.Hint})
	case st.State == step.Satisfied:
		g.report(st.Name, condition{})
		return st.Ours && !st.Done, nil
	case st.Drift:
		key, _ := strings.CutPrefix(st.Name, "sysctl/")
		args := []any{"found", st.Why, "repair", strings.ReplaceAll(st.Diff, "\n", ", ")}
		if owner := sysctl.Owner(key); owner != "" {
			args = append(args, "likely", owner)
		}
		if key == sysctl.CloseWait {
			// kube-proxy has its reasons for a long one, for connections that
			// are half closed behind SNAT (kubernetes/kubernetes#32551).
			g.report(st.Name, condition{kind: "drift", args: append(args, "left", true)})
			return false, nil
		}
		g.report(st.Name, condition{kind: "drift", args: args})
	}
	return true, nil
}

// repair writes the named steps, each on its own: one that fails does not keep
// the next from being tried.
func (g *Guard) repair(ctx context.Context, m mode, names []string) error {
	lock, err := g.n.lock(ctx)
	g.report("lock", fault(err))
	if err != nil {
		return err
	}
	defer lock.Release()
	// A rollback, or an apply with another outcome, may have come and gone
	// while we waited.
	if now, err := g.mode(); now != m || err != nil {
		return err
	}
	recs, err := g.n.journal.Open()
	if err != nil {
		return err
	}
	plan, err := g.n.plan(recs)
	if err != nil {
		return err
	}
	var errs []error
	for _, it := range plan {
		name := it.Steps[0].Name()
		if !slices.Contains(names, name) {
			continue
		}
		if m == hold && !slices.ContainsFunc(recs, func(r engine.Record) bool { return r.Name == name }) {
			continue // taken back while we waited for the lock
		}
		err := g.n.engine([]engine.Item{it}).Apply(ctx)
		if ctx.Err() != nil {
			break
		}
		switch drift := g.seen[name].kind != ""; {
		case err != nil:
			g.report(name, fault(err))
		case !drift: // else the next look says when it ended
			g.n.deps.Log.Info("applied", "step", name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// report logs the begin, the change of kind and the end of a condition.
func (g *Guard) report(what string, now condition) {
	was := g.seen[what]
	if was.kind == now.kind {
		return
	}
	g.seen[what] = now
	if now.kind == "" {
		g.n.deps.Log.Info(was.kind+" ended", "step", what)
		return
	}
	g.n.deps.Log.Warn(now.kind, append([]any{"step", what}, now.args...)...)
}

func fault(err error) condition {
	if err == nil {
		return condition{}
	}
	return condition{kind: "error", args: []any{"error", err}}
}

func noun(it engine.Item) string {
	n, _, _ := strings.Cut(it.Steps[0].Name(), "/")
	return n
}

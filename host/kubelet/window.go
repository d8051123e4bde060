package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"nodelocaldns/host/step"
)

// WindowName is the journal key of the window.
const WindowName = "window/kubelet"

const (
	// DefaultSettle is how long a restarted kubelet is watched: a restart
	// loop shows within a few RestartSec=, which is 10 s where kubeadm wrote
	// the unit, and the node controller posts NotReady after 50 s.
	DefaultSettle = 30 * time.Second

	// steadyAfter is how old the main process of a kubelet must be that is
	// taken for running. One that waits for kubeadm join is active too, for
	// the second or two that each of its lives lasts.
	steadyAfter = 10 * time.Second

	// lookEvery is the pace at which a unit is looked at.
	lookEvery = time.Second

	// blips is how many times in a row a kubelet that was well may be found
	// not to be: a node under load may miss one.
	blips = 3
)

// Units is what the window needs of systemd.
type Units interface {
	State(ctx context.Context, unit string) (UnitState, error)

	// Reload makes systemd read its files again.
	Reload(ctx context.Context) error

	// ResetFailed forgets that the unit failed, how often it was restarted by
	// itself, and how often it was started at all: manual restarts count
	// against StartLimitBurst= too.
	ResetFailed(ctx context.Context, unit string) error

	// TryRestart restarts a unit that is active and does nothing to others;
	// Restart starts those. Both return the result of the job when it is over:
	// "done" for a service of Type=simple says no more than that it was forked.
	// A job that conflicts with one that is queued is an error.
	TryRestart(ctx context.Context, unit string) (result string, err error)
	Restart(ctx context.Context, unit string) (result string, err error)
}

// A UnitState is how a service is, in systemd's words.
type UnitState struct {
	Load       string // LoadState
	Active     string // ActiveState
	Sub        string // SubState
	Result     string // why it ended, if it did
	Job        string // what is queued: start, stop, restart, …; empty: nothing
	NeedReload bool   // its files are not those that systemd has read
	MainPID    int    // 0: none
	Started    time.Time
	ExitCode   int // how the last main process ended: si_code of waitid(2), 0 if it did not
	ExitStatus int // with which status, or by which signal
	Restarts   int // how often systemd started it again by itself
}

// String is for errors: all that a person would ask systemctl for.
func (s UnitState) String() string {
	var out strings.Builder
	out.WriteString(s.Active)
	if s.Sub != "" && s.Sub != s.Active {
		fmt.Fprintf(&out, " (%s)", s.Sub)
	}
	if s.Job != "" {
		fmt.Fprintf(&out, " with a %s job queued", s.Job)
	}
	switch {
	case s.MainPID != 0:
		fmt.Fprintf(&out, ", main process %d", s.MainPID)
	case s.ExitCode == 1: // CLD_EXITED
		fmt.Fprintf(&out, ", its main process exited with status %d", s.ExitStatus)
	case s.ExitCode != 0: // CLD_KILLED, CLD_DUMPED
		fmt.Fprintf(&out, ", its main process was ended by signal %d (%s)", s.ExitStatus, syscall.Signal(s.ExitStatus))
	}
	if s.Result != "" && s.Result != "success" {
		fmt.Fprintf(&out, ", result %s", s.Result)
	}
	if s.Restarts > 0 {
		fmt.Fprintf(&out, ", started again %d times", s.Restarts)
	}
	return out.String()
}

// A WindowConfig is what a Window is made from.
type WindowConfig struct {
	Node Node

	// By the first of Addresses a kubelet is known that names us; none is the
	// default one. Unit and Backend are as for Find.
	Want Want

	Units   Units // nil: nothing runs here, as in a tree
	Healthz Healthz
	Settle  time.Duration // how long a kubelet is watched that was restarted; 0: DefaultSettle
	Log     *slog.Logger  // what is waited for, and what came of it
	Now     func() time.Time

	// Left says that the window was left open by an earlier run: nobody knows
	// what the kubelet has taken over since.
	Left bool

	// Held says that there is a record of our change: where it is not in the
	// files any more, nobody knows whether the kubelet runs with it.
	Held bool
}

// A Window is the bracket round a change of the kubelet's files: what runs is
// restarted, and seen to run with them. It is for a kubelet that runs, as
// Running says, or ran when the window was opened.
//
// Open and Close move no pod away for a restart; they are where that belongs,
// see step.Window.
type Window struct {
	cfg    WindowConfig
	came   *came
	unseen bool // the kubelet ran, and its process was not to be seen
	unwell bool // the kubelet ran, and did not answer for its health
}

// came is how things were when the window was opened.
type came struct {
	pid   int
	files string
}

var _ step.Window = (*Window)(nil)

// NewWindow returns the window. It asks nobody.
func NewWindow(cfg WindowConfig) *Window {
	if cfg.Settle == 0 {
		cfg.Settle = DefaultSettle
	}
	// Whom the API server names does not tell what runs.
	cfg.Node.Service = nil
	cfg.Want.Addresses = append(slices.Clone(cfg.Want.Addresses), nodeLocal[0])[:1]
	return &Window{cfg: cfg}
}

// Name is step.Window.
func (w *Window) Name() string { return WindowName }

// look finds what can be found of the kubelet. That we would keep away from it
// says nothing of what runs: refused is why, and less may have been found then.
func (w *Window) look(ctx context.Context) (f *found, refused *Refusal, err error) {
	f = &found{node: w.cfg.Node, want: w.cfg.Want, anywhere: true}
	if err = f.find(ctx); errors.As(err, &refused) {
		err = nil
	}
	return f, refused, err
}

// Running says whether there is a kubelet to be restarted: its unit is active
// with a main process, and that is no fresh one that may be about to fail. It
// waits for as long as it takes to tell. What somebody is starting or stopping
// and does not get done is not running.
func (w *Window) Running(ctx context.Context) (bool, error) {
	f, _, err := w.look(ctx)
	if err != nil || f.Unit == "" {
		return false, err
	}
	steady := min(steadyAfter, w.cfg.Settle)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	said := false
	for until := w.cfg.Now().Add(2 * steady); ; {
		st, err := w.cfg.Units.State(ctx, f.Unit)
		if err != nil {
			return false, err
		}
		now := w.cfg.Now()
		over := now.After(until)
		switch {
		case st.Active == "inactive", st.Active == "failed", st.Sub == "auto-restart":
			return false, nil
		case st.Active == "active" && st.MainPID == 0:
			return false, nil
		case st.Active == "active" && now.Sub(st.Started) >= steady && (st.Job == "" || over):
			return true, nil
		case over:
			return false, nil
		case !said:
			w.cfg.Log.Info("waiting to see whether the kubelet stays", "unit", f.Unit, "is", st)
			said = true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false, fmt.Errorf("waiting for %s, which is %s: %w", f.Unit, st, ctx.Err())
		}
	}
}

// Due is step.Window.
func (w *Window) Due(ctx context.Context) (bool, error) {
	f, _, err := w.look(ctx)
	return f.Pending != "", errors.Join(err, f.untold)
}

// Open is step.Window: no pod is moved away for a restart. What cannot be seen
// of the kubelet now, while it runs, is not asked of it later.
func (w *Window) Open(ctx context.Context, _ time.Time) error {
	if w.cfg.Units == nil {
		return nil
	}
	f, refused, err := w.look(ctx)
	if err != nil || f.Unit == "" {
		return err
	}
	st, err := w.cfg.Units.State(ctx, f.Unit)
	if err != nil {
		return err
	}
	if w.cfg.Left || st.Active != "active" {
		return nil
	}
	if f.untold == nil && f.Pending == "" && (f.inPlace() || !w.cfg.Held) {
		w.came = &came{st.MainPID, f.fileText()}
	}
	if w.unseen = f.kind == isKubelet && f.PID == 0; w.unseen && refused == nil {
		w.cfg.Log.Warn("no kubelet is seen in its unit: its arguments will not be looked at", "unit", f.Unit)
	}
	h := health{ask: w.cfg.Healthz}
	for at, err := f.healthz(); err == nil && !h.was && h.failed < blips; {
		if why, _ := h.check(ctx, at); why == "" {
			return nil
		}
	}
	w.unwell = true
	w.cfg.Log.Warn("the kubelet does not answer for its health before its restart: it will not be asked after it", "unit", f.Unit)
	return nil
}

// fileText is what the node's files say of us.
func (f *found) fileText() string {
	var out strings.Builder
	for _, name := range f.ours {
		data, _ := f.node.Tree.ReadFile(name)
		fmt.Fprintf(&out, "%s\n%s\n", name, data)
	}
	out.Write(f.text)
	out.WriteString(f.cmd.Setting.Raw)
	return out.String()
}

// Settle is step.Window. A kubelet that runs with the very files it was found
// with is left alone: nothing was changed.
func (w *Window) Settle(ctx context.Context) error {
	if w.cfg.Units == nil {
		return nil
	}
	f, _, err := w.look(ctx)
	if f.Unit == "" {
		return err // an error, or there is no kubelet any more
	}
	was, err := w.free(ctx, f.Unit)
	if err != nil {
		return err
	}
	if w.came != nil && was.Active == "active" && *w.came == (came{was.MainPID, f.fileText()}) {
		return nil
	}
	if err := w.restart(ctx, f.Unit, was); err != nil {
		return err
	}
	if f, err = w.watch(ctx, f.Unit, was.MainPID); err != nil {
		return &step.Error{Err: err, Next: hint(f)}
	}
	w.cfg.Log.Info("the kubelet is back", "unit", f.Unit, "pid", f.PID, "pods ask", named(f.Now))
	return nil
}

func hint(f *found) string {
	next := fmt.Sprintf("journalctl -u %s -n 50 says why", f.Unit)
	if f.Pending != "" && f.Backend == ByEnv && len(f.ours) > 0 {
		next += ", and so does nodelocaldns kubelet-env"
	}
	return next
}

// free is the state of the unit once nothing is queued for it; after a while
// it is that with what is still queued, and systemd decides what may be done.
func (w *Window) free(ctx context.Context, unit string) (UnitState, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for until := w.cfg.Now().Add(steadyAfter); ; {
		st, err := w.cfg.Units.State(ctx, unit)
		if err != nil || st.Job == "" || w.cfg.Now().After(until) {
			return st, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return st, fmt.Errorf("waiting for %s, which is %s: %w", unit, st, ctx.Err())
		}
	}
}

// restart restarts a kubelet that runs, and starts one that ran when we came.
func (w *Window) restart(ctx context.Context, unit string, was UnitState) error {
	restart := w.cfg.Units.TryRestart
	if was.Active != "active" {
		restart = w.cfg.Units.Restart
	}
	w.cfg.Log.Info("restarting the kubelet, and watching that it stays", "unit", unit, "for", w.cfg.Settle)
	// Of a drop-in in a directory that is younger than its last reload, systemd 252
	// says that there is no need.
	if was.NeedReload || w.cfg.Left {
		if err := w.cfg.Units.Reload(ctx); err != nil {
			return fmt.Errorf("reloading systemd: %w", err)
		}
	}
	if err := w.cfg.Units.ResetFailed(ctx, unit); err != nil {
		return fmt.Errorf("resetting %s: %w", unit, err)
	}
	result, err := restart(ctx, unit)
	if err != nil {
		return fmt.Errorf("restarting %s, which is %s: %w", unit, was, err)
	}
	if result == "done" {
		return nil
	}
	err = fmt.Errorf("restarting %s: the job is %s", unit, result)
	if st, serr := w.cfg.Units.State(ctx, unit); serr == nil {
		err = fmt.Errorf("%w: it is %s", err, st)
	}
	return &step.Error{Err: err, Next: fmt.Sprintf("journalctl -u %s -n 50 says why", unit)}
}

// watch looks at the restarted kubelet until it has run as it should for long
// enough, and returns what it found last. It gives up as soon as it is certain
// that it will not.
func (w *Window) watch(ctx context.Context, unit string, before int) (*found, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	h := health{ask: w.cfg.Healthz}
	for until := w.cfg.Now().Add(w.cfg.Settle); ; {
		f, why, certain := w.judge(ctx, unit, before, &h)
		over := !w.cfg.Now().Before(until)
		switch {
		case why == "" && over:
			return f, nil
		case certain:
			return f, fmt.Errorf("%s did not come back: %s", unit, why)
		case over:
			return f, fmt.Errorf("%s did not come back within %s: %s", unit, w.cfg.Settle, why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return f, fmt.Errorf("watching %s: %s: %w", unit, why, ctx.Err())
		}
	}
}

// judge looks once. why is what is wrong with the kubelet, empty if nothing
// is; certain says that waiting would not help.
func (w *Window) judge(ctx context.Context, unit string, before int, h *health) (f *found, why string, certain bool) {
	f = &found{Facts: Facts{Unit: unit}}
	st, err := w.cfg.Units.State(ctx, unit)
	switch {
	case err != nil:
		return f, err.Error(), false
	case st.Active == "failed", st.Active == "inactive", st.Sub == "auto-restart", st.Restarts > 0:
		return f, "it is " + st.String(), true
	case st.Active != "active" || st.MainPID == 0:
		return f, "it is " + st.String(), false
	case st.MainPID == before:
		return f, fmt.Sprintf("it was not restarted: it is %s as before", st), true
	}
	f, refused, err := w.look(ctx)
	if err == nil {
		err = f.untold
	}
	switch {
	case err != nil:
		return f, err.Error(), false
	case f.kind == isKubelet && f.PID == 0 && refused == nil && !w.unseen:
		return f, fmt.Sprintf("no kubelet is seen in it: it is %s", st), false
	case f.Pending != "":
		return f, f.Pending, true
	}
	if f.PID = st.MainPID; w.unwell {
		return f, "", false
	}
	at, err := f.healthz()
	if err != nil {
		return f, err.Error(), false
	}
	why, certain = h.check(ctx, at)
	return f, why, certain
}

// health remembers whether the kubelet was well.
type health struct {
	ask    Healthz
	was    bool
	failed int // in a row
}

func (h *health) check(ctx context.Context, at netip.AddrPort) (why string, certain bool) {
	if !at.IsValid() {
		return "", false
	}
	if err := h.ask(ctx, at); err != nil {
		h.failed++
		return fmt.Sprintf("it runs, and is not well: %v", err), h.was && h.failed >= blips
	}
	h.was, h.failed = true, 0
	return "", false
}

// Close is step.Window: nobody was kept away.
func (w *Window) Close(context.Context, time.Time) error { return nil }

// Package cordon keeps pods away from this node while its kubelet is restarted,
// moves them elsewhere first where that is asked for, and lets them come again.
package cordon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/drain"
	"nodelocaldns/host/step"
)

// API is what is asked of the API server; *apiserver.Client is one.
type API interface {
	drain.API

	Node(ctx context.Context, name string) (apiserver.Node, error)
	Cordon(ctx context.Context, n apiserver.Node, key, mark string) (apiserver.Node, error)
	Uncordon(ctx context.Context, n apiserver.Node, key string) (apiserver.Node, error)
	Unmark(ctx context.Context, n apiserver.Node, key string) (apiserver.Node, error)
	Renewed(ctx context.Context, node string) (time.Time, error)
	Event(ctx context.Context, n apiserver.Node, e apiserver.Event) error
	Close()
}

// A Limit bounds how many nodes of a cluster are away at once.
type Limit interface {
	// Acquire waits for a place for this node, until ctx ends. It is held, and
	// renewed, until Release, also if this node has it already.
	Acquire(ctx context.Context) error

	// Renew is an error if the place is somebody else's by now. It is asked
	// once the node is marked: then nobody else takes it.
	Renew(ctx context.Context) error

	// Release gives back what this node holds, from an earlier process too.
	// That it holds none is no error.
	Release(ctx context.Context) error
}

// A Config is what a Window is made from.
type Config struct {
	Restart step.Window   // restarts the kubelet, and sees that it stays
	Settle  time.Duration // for at least so long after the restart

	// Connect returns the API server and the name of this node there. An error
	// says why there is none to be had.
	Connect func(ctx context.Context) (API, string, error)

	Mode    drain.Mode
	Options drain.Options
	Timeout time.Duration // each: for somebody else's cordon to end, for the pods to be Ready again
	Limit   Limit         // nil: none

	Machine, Boot string // machine-id(5), and that of this boot

	// Left says that the window was left open by an earlier run, which may
	// have cordoned the node; Inside, that something may have been done in it
	// since, so that it must be brought to its end.
	Left, Inside bool

	Log      *slog.Logger
	Now      func() time.Time
	Rand     func() float64       // from 0 to 1, without 1
	Progress func(drain.Progress) // while pods are moved away; nil: nobody looks
}

// A Window is a restart of the kubelet with the cluster round it.
type Window struct {
	cfg Config

	api  API
	node string
	last apiserver.Node // as it was read last

	may    bool              // this run may have cordoned the node
	sent   string            // the version of the node that a cordon was for which nobody answered
	sure   bool              // the node was seen cordoned by us, and we have not uncordoned it
	told   bool              // that somebody else has
	limit  bool              // this run has asked for it
	failed bool              // a Settle has
	ready  map[string]string // the pods that were Ready when we came, by UID
}

var _ step.Window = (*Window)(nil)

// New returns the window. It asks nobody.
func New(cfg Config) *Window { return &Window{cfg: cfg} }

// Name is step.Window.
func (w *Window) Name() string { return w.cfg.Restart.Name() }

// Due is step.Window.
func (w *Window) Due(ctx context.Context) (bool, error) { return w.cfg.Restart.Due(ctx) }

const (
	// pollEvery is the pace at which the API server is asked again.
	pollEvery = 2 * time.Second

	// conflictEvery is that after a conflict: a node changes with a heartbeat
	// every few seconds at most, and what comes right after it succeeds.
	conflictEvery = 200 * time.Millisecond

	// lookWithin is for how long an API server that does not answer is asked
	// before the kubelet is restarted without it: as long as one takes to
	// start again.
	lookWithin = 30 * time.Second

	// closeWithin is for how long Close asks an API server that does not
	// answer. It is also how long one works on a request at most (its
	// --request-timeout is 60 s if nobody has set it): a cordon that was sent
	// longer ago, and is not there, will not come.
	closeWithin = time.Minute

	// eventWithin bounds what people are told besides.
	eventWithin = 5 * time.Second
)

// Open is step.Window. What is in the way is found before anything is changed;
// a node that somebody else has cordoned is waited for, and left as it is.
func (w *Window) Open(ctx context.Context, since time.Time) error {
	if err := w.keepAway(ctx, since); err != nil {
		return err
	}
	return w.cfg.Restart.Open(ctx, since)
}

func (w *Window) keepAway(ctx context.Context, since time.Time) error {
	var pods []apiserver.Pod
	look := func() (err error) {
		pods, err = w.look(ctx)
		return err
	}
	err := retry(ctx, lookWithin, look)
	if err != nil {
		return w.without(ctx, err)
	}
	cordon, evict, why := drain.Decide(w.cfg.Mode, w.last.KubeletVersion)
	w.cfg.Log.Debug("deciding what the cluster sees of the restart", "cordon", cordon, "evict", evict, "why", why)
	stay := pods
	var sorted drain.Sorting
	if evict {
		sorted = drain.Sort(pods, w.cfg.Options)
		stay = nil
		for _, v := range sorted.Stay {
			stay = append(stay, v.Pod)
		}
	}
	harmed := drain.Harmed(stay, w.last)
	if evict { // there is nothing that could be done about those of the node
		harmed = slices.DeleteFunc(harmed, func(v drain.Verdict) bool { return v.Pod.Mirror || v.Pod.Owner.Kind == "DaemonSet" })
		for i := range harmed {
			harmed[i].Hints = []string{"without --pod-selector such pods are evicted first"}
		}
	}
	if err := refuse(
		inTheWay{"not all pods may be evicted", sorted.Block},
		inTheWay{"a restart of the kubelet would kill pods that run here", harmed},
	); err != nil {
		return err
	}
	w.remember(stay)
	if cordon {
		if w.cfg.Machine == "" {
			return &step.Error{
				Err:  errors.New("the node cannot be cordoned: this machine has no ID, and nobody could tell whose cordon it is"),
				Next: "systemd-machine-id-setup makes /etc/machine-id",
			}
		}
		err = w.cordon(ctx, since)
	} else if w.cfg.Mode != drain.Never {
		err = w.acquire(ctx)
	}
	if leave := sorted.Pods(); err == nil && len(leave) > 0 {
		w.event(ctx, apiserver.Event{Reason: "Evicting", Message: fmt.Sprintf("pods moved away before the kubelet is restarted: %d", len(leave))})
		err = w.moveAway(ctx, leave)
	}
	return err
}

// look reads what decides, and sees that what is asked after the restart may
// be asked at all.
func (w *Window) look(ctx context.Context) ([]apiserver.Pod, error) {
	if err := w.connect(ctx); err != nil {
		return nil, &unknownError{err}
	}
	if err := w.read(ctx); err != nil {
		return nil, err
	}
	pods, err := w.api.Pods(ctx, w.node, "")
	if err != nil {
		return nil, err
	}
	if _, err = w.api.Renewed(ctx, w.node); errors.Is(err, apiserver.ErrNotFound) {
		err = nil // a heartbeat will do
	}
	return pods, err
}

// An unknownError is why there is nobody to ask.
type unknownError struct{ error }

func (e *unknownError) Unwrap() error { return e.error }

// without says that the API server is not to be had. That is an error only
// where it was asked for what needs it, and nothing has begun.
func (w *Window) without(ctx context.Context, err error) error {
	var unknown *unknownError
	never := w.cfg.Mode == drain.Never
	if ctx.Err() != nil || !never && !errors.As(err, &unknown) && !away(err) && !errors.Is(err, apiserver.ErrNotFound) {
		return err
	}
	if w.api != nil {
		w.api.Close()
		w.api = nil
	}
	switch {
	case w.cfg.Inside:
		w.cfg.Log.Warn("no API server: whether this node is cordoned is not known", "why", err)
		return nil
	case !never && (w.cfg.Mode != drain.Auto || w.cfg.Limit != nil):
		return &step.Error{
			Err:  fmt.Errorf("the node cannot be cordoned: %w", err),
			Next: "--drain never restarts the kubelet without that",
		}
	}
	w.cfg.Log.Warn("no API server: the kubelet is restarted without a cordon", "why", err)
	return nil
}

// passes says that nobody looked at a request: that says nothing of the next.
func passes(err error) bool {
	var busy *apiserver.Busy
	return errors.Is(err, apiserver.ErrUnreachable) || errors.As(err, &busy)
}

// retry does what may be done again, as long as nobody looks at it.
func retry(ctx context.Context, within time.Duration, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		if err := do(); !passes(err) || !pause(ctx, pollEvery) {
			return err
		}
	}
}

// away says that there is no API server to be had, for us.
func away(err error) bool { return passes(err) || errors.Is(err, apiserver.ErrUnauthorized) }

func (w *Window) connect(ctx context.Context) error {
	if w.api != nil {
		return nil
	}
	api, node, err := w.cfg.Connect(ctx)
	if err == nil {
		w.api, w.node = api, node
	}
	return err
}

// read reads the node.
func (w *Window) read(ctx context.Context) error {
	n, err := w.api.Node(ctx, w.node)
	if err == nil {
		w.last = n
		if w.sure && !n.Unschedulable {
			w.overruled()
		}
	}
	return err
}

// overruled says, once, that the window does not keep pods away any more.
func (w *Window) overruled() {
	if w.sure = false; w.told {
		return
	}
	w.told = true
	w.cfg.Log.Warn("somebody else has uncordoned the node during the restart: it is left so, and pods may come", "node", w.node)
}

// inTheWay are pods for which nothing is begun, and why.
type inTheWay struct {
	what string
	pods []drain.Verdict
}

// refuse is an error that names the pods that are in the way, and whose hint is
// what helps with each of them; nil where none are.
func refuse(all ...inTheWay) error {
	const most = 10
	var whats, hints []string
	for _, reason := range all {
		var names []string
		for _, v := range reason.pods {
			names = append(names, v.String())
			for _, h := range v.Hints {
				if !slices.Contains(hints, h) {
					hints = append(hints, h)
				}
			}
		}
		if n := len(names); n > most {
			names = append(names[:most], fmt.Sprintf("and %d more", n-most))
		}
		if names != nil {
			whats = append(whats, reason.what+": "+strings.Join(names, ", "))
		}
	}
	if whats == nil {
		return nil
	}
	return &step.Error{Err: errors.New(strings.Join(whats, "; ")), Next: strings.Join(hints, "; ")}
}

// remember keeps which pods are Ready, and will be here after the restart.
func (w *Window) remember(pods []apiserver.Pod) {
	w.ready = map[string]string{}
	for _, p := range pods {
		if p.Ready && !p.Terminating && !p.Finished {
			w.ready[p.UID] = p.String()
		}
	}
}

func (w *Window) mark(since time.Time) Mark {
	return Mark{Machine: w.cfg.Machine, Boot: w.cfg.Boot, Since: since}
}

// ours says that the node has the mark of this window.
func (w *Window) ours(since time.Time) bool {
	return ParseMark(w.last.Annotations[Annotation]).SameWindow(w.mark(since))
}

// cordon cordons the node, once nobody else has. It waits for an API server
// that goes away meanwhile: what was sent may have been done.
func (w *Window) cordon(ctx context.Context, since time.Time) error {
	within, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	why := fmt.Errorf("cordoning node %s: it changed each time", w.node)
	for said := false; ; {
		wait := pollEvery
		switch {
		case w.ours(since):
			w.may, w.sent = true, ""
			if w.sure = w.last.Unschedulable; !w.sure {
				w.overruled()
			}
			return w.hold(within)
		case w.last.Unschedulable && w.cfg.Inside:
			w.cfg.Log.Warn("the node is cordoned, and not, or no longer, by us", "node", w.node, "cordon", by(w.last))
			return nil
		case w.last.Unschedulable:
			why = &step.Error{
				Err:  fmt.Errorf("node %s is cordoned, and not by us (%s): the kubelet is left as it is", w.node, by(w.last)),
				Next: "uncordon it when it may take pods again, then try again; --drain never restarts the kubelet all the same",
			}
			if !said {
				w.cfg.Log.Info("waiting for somebody else's cordon to end", "node", w.node, "cordon", by(w.last))
				said = true
			}
		default:
			if err := w.acquire(within); err != nil {
				return err
			}
			err := w.send(ctx, since)
			var conflict *apiserver.Conflict
			switch {
			case err == nil:
				w.cfg.Log.Info("cordoned", "node", w.node)
				w.event(ctx, apiserver.Event{Reason: "Cordoned", Message: "the kubelet is about to be restarted"})
				return w.hold(within)
			case errors.As(err, &conflict):
				wait = conflictEvery
			case passes(err):
				why = err
			default:
				return err
			}
		}
		for again := true; again; {
			if !pause(within, wait) {
				if ctx.Err() != nil {
					return fmt.Errorf("cordoning node %s: %w", w.node, ctx.Err())
				}
				return why
			}
			err := w.read(within)
			if again = err != nil; again && within.Err() == nil {
				if why = err; !passes(err) {
					return err
				}
			}
			wait = pollEvery
		}
	}
}

// send asks for the cordon. It is not cancelled half way: then nobody knew what
// came of it.
func (w *Window) send(ctx context.Context, since time.Time) error {
	w.may = true
	n, err := w.api.Cordon(context.WithoutCancel(ctx), w.last, Annotation, w.mark(since).String())
	if err == nil {
		w.last, w.sent, w.sure = n, "", true
	} else if errors.Is(err, apiserver.ErrUnreachable) {
		w.sent = w.last.ResourceVersion
	}
	return err
}

// hold holds the limit for a node that is marked.
func (w *Window) hold(ctx context.Context) error {
	if err := w.acquire(ctx); err != nil || w.cfg.Limit == nil {
		return err
	}
	return retry(ctx, w.cfg.Timeout, func() error { return w.cfg.Limit.Renew(ctx) })
}

func (w *Window) acquire(ctx context.Context) error {
	if w.cfg.Limit == nil || w.limit {
		return nil
	}
	w.limit = true // also if the reply is lost
	return w.cfg.Limit.Acquire(ctx)
}

func by(n apiserver.Node) string {
	var parts []string
	if n.CordonedBy != "" {
		parts = append(parts, "by "+n.CordonedBy)
	}
	if !n.CordonedAt.IsZero() {
		parts = append(parts, "since "+n.CordonedAt.UTC().Format(time.RFC3339))
	}
	if m := n.Annotations[Annotation]; m != "" {
		parts = append(parts, "with the mark "+m)
	}
	if len(parts) == 0 {
		return "by whom is not known"
	}
	return strings.Join(parts, ", ")
}

func (w *Window) moveAway(ctx context.Context, pods []apiserver.Pod) error {
	progress := w.cfg.Progress
	if progress == nil {
		progress = func(drain.Progress) {}
	}
	return drain.Evictor{
		API: w.api, Node: w.node, Options: w.cfg.Options, Now: w.cfg.Now, Rand: w.cfg.Rand, Progress: progress,
	}.Evict(ctx, pods)
}

// Settle is step.Window: the kubelet is restarted and seen to stay, then the
// API server must see it, and the pods that were Ready must be so again. An API
// server that is not to be had says nothing of the kubelet.
func (w *Window) Settle(ctx context.Context) error {
	err := w.cfg.Restart.Settle(ctx)
	if err == nil {
		err = w.visible(ctx, w.cfg.Now().Add(-w.cfg.Settle))
	}
	e := apiserver.Event{Reason: "KubeletRestarted", Message: "the kubelet was restarted, and the node is Ready"}
	switch {
	case err != nil:
		e = apiserver.Event{Warning: true, Reason: "KubeletNotBack", Message: oneLine(err.Error())}
	case w.failed:
		e = apiserver.Event{Reason: "Undone", Message: "what the kubelet did not come back with was undone, and the node is Ready"}
	}
	w.failed = err != nil
	w.event(ctx, e)
	return err
}

// visible waits until the cluster sees a kubelet that was restarted, at begin
// or before.
func (w *Window) visible(ctx context.Context, begin time.Time) error {
	if w.api == nil {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	why, err := "", apiserver.ErrUnreachable // as long as nobody has answered
	for said := false; ; {
		// What ends with the time that it has says nothing: then it is as before.
		if now, nerr := w.unseen(within, begin); nerr == nil || within.Err() == nil {
			if why, err = now, nerr; why == "" && err == nil {
				return nil
			}
		}
		if !said {
			w.cfg.Log.Info("waiting for the cluster to see the kubelet again", "why", cmp.Or(why, fmt.Sprint(err)))
			said = true
		}
		if pause(within, pollEvery) {
			continue
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("waiting for the cluster to see the kubelet again: %w", ctx.Err())
		case away(err):
			w.cfg.Log.Warn("the API server does not answer: that the kubelet is well is known from the node alone", "why", err)
			return nil
		case err != nil:
			why = err.Error()
		}
		return &step.Error{
			Err:  fmt.Errorf("within %s after the restart: %s", w.cfg.Timeout, why),
			Next: "kubectl describe node " + w.node + " says more",
		}
	}
}

// unseen says what the cluster does not see yet of a kubelet that was restarted.
func (w *Window) unseen(ctx context.Context, begin time.Time) (string, error) {
	if err := w.read(ctx); err != nil {
		return "", err
	}
	if !w.last.Ready {
		return "the node is not Ready", nil
	}
	// What is to the second may be from before the restart in the same one.
	// Kubelets with nothing to report write a heartbeat every five minutes only.
	if !w.last.Heartbeat.After(begin) {
		renewed, err := w.api.Renewed(ctx, w.node)
		if err != nil && !errors.Is(err, apiserver.ErrNotFound) {
			return "", err
		}
		if !renewed.After(begin) {
			return "the API server has not heard of the kubelet since its restart", nil
		}
	}
	if len(w.ready) == 0 {
		return "", nil
	}
	pods, err := w.api.Pods(ctx, w.node, "")
	if err != nil {
		return "", err
	}
	var not []string
	for _, p := range pods {
		if name := w.ready[p.UID]; name != "" && !p.Ready && !p.Terminating && !p.Finished {
			not = append(not, name)
		}
	}
	if len(not) > 0 {
		slices.Sort(not)
		return "not Ready again: " + strings.Join(not, ", "), nil
	}
	return "", nil
}

// Close is step.Window: the node is uncordoned if its mark and the record of
// the window both say that the cordon is ours, and nobody else has cordoned it
// since. The mark goes in any case, if it is ours.
func (w *Window) Close(ctx context.Context, since time.Time) error {
	if w.may || w.cfg.Left {
		if err := w.letCome(ctx, since); err != nil {
			return err
		}
	}
	if w.limit || w.cfg.Left && w.cfg.Limit != nil {
		switch err := retry(ctx, closeWithin, func() error { return w.cfg.Limit.Release(ctx) }); {
		case err != nil && w.cfg.Mode == drain.Never:
			w.cfg.Log.Warn("this node counts against the limit until its lease runs out", "why", err)
		case err != nil:
			return &step.Error{Err: err, Next: "nodelocaldns apply --resume does it when the API server answers"}
		}
	}
	if w.api != nil {
		w.api.Close()
		w.api = nil
	}
	return w.cfg.Restart.Close(ctx, since)
}

func (w *Window) letCome(ctx context.Context, since time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, closeWithin)
	defer cancel()
	var why error
	for {
		err := w.letComeOnce(ctx, since)
		if err == nil {
			return nil
		}
		if why == nil || ctx.Err() == nil {
			why = err
		}
		var conflict *apiserver.Conflict
		var unknown *unknownError
		switch {
		case errors.Is(err, errMayCome), errors.As(err, &conflict), away(err),
			errors.Is(err, apiserver.ErrForbidden): // by one that was started just now
			if pause(ctx, pollEvery) {
				continue
			}
			if errors.Is(why, errMayCome) {
				return nil // no more
			}
		case errors.As(err, &unknown) && w.cfg.Mode == drain.Never:
			w.cfg.Log.Warn("whether this node is cordoned is not known: if it is, and should not be, use kubectl uncordon", "why", err)
			return nil
		}
		next := "nodelocaldns apply --resume does it when the API server answers"
		if errors.As(why, &unknown) {
			next += "; if this node is in no cluster any more, with --drain never it does without"
		}
		return &step.Error{Err: fmt.Errorf("uncordoning the node: %w", why), Next: next}
	}
}

// errMayCome is of a cordon that nobody answered, and that may yet be made: it
// is for the node as it is now.
var errMayCome = errors.New("a cordon of ours is under way")

func (w *Window) letComeOnce(ctx context.Context, since time.Time) error {
	if err := w.connect(ctx); err != nil {
		if away(err) {
			return err
		}
		return &unknownError{err}
	}
	err := w.read(ctx)
	n := w.last
	switch {
	case errors.Is(err, apiserver.ErrNotFound):
		w.cfg.Log.Warn("the node is not in the cluster any more", "node", w.node)
		return nil
	case err != nil:
		return err
	case !w.ours(since) && n.Unschedulable:
		w.cfg.Log.Warn("the node stays cordoned: that is not, or no longer, ours", "node", w.node, "cordon", by(n))
		return nil
	case !w.ours(since) && n.ResourceVersion == w.sent:
		return errMayCome
	case !w.ours(since):
		return nil
	case !n.Unschedulable:
		w.overruled()
		_, err = w.api.Unmark(ctx, n, Annotation)
		return err
	// Nobody is known where somebody has emptied the list of field managers.
	case n.CordonedBy != apiserver.Manager && n.CordonedBy != "":
		w.cfg.Log.Warn("the node stays cordoned: somebody else cordoned it meanwhile", "node", w.node, "cordon", by(n))
		_, err = w.api.Unmark(ctx, n, Annotation)
		return err
	}
	w.sure = false // whoever answers
	if w.last, err = w.api.Uncordon(ctx, n, Annotation); err != nil {
		return err
	}
	w.cfg.Log.Info("uncordoned", "node", w.node)
	w.event(ctx, apiserver.Event{Reason: "Uncordoned", Message: "the kubelet is back"})
	return nil
}

// event tells people what happened to the node. That it could not be told, in a
// moment, stops nothing.
func (w *Window) event(ctx context.Context, e apiserver.Event) {
	if w.api == nil || w.last.Name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventWithin)
	defer cancel()
	e.At = w.cfg.Now()
	if err := w.api.Event(ctx, w.last, e); err != nil {
		w.cfg.Log.Debug("writing an event", "reason", e.Reason, "error", err)
	}
}

func oneLine(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") }

// pause waits; it is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

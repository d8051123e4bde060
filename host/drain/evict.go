package drain

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/step"
)

const (
	// lookEvery is how often the pods are listed, as kubectl drain asks for a
	// pod that it waits for.
	lookEvery = time.Second

	// retryAfter is how long a pod is left alone whose eviction was asked for,
	// as kubectl drain does. Up to jitter is added at random: nodes that wait
	// for the same budget do not keep asking at the same moment.
	retryAfter = 5 * time.Second
	jitter     = 2 * time.Second

	// patience is how long the API server may refuse for other reasons than a
	// budget before that is believed. One that was just started refuses what it
	// allows a few seconds later, when it has read who may do what.
	patience = 30 * time.Second
)

// API is what Evict needs of the API server. Errors are those of
// [apiserver].
type API interface {
	// Pods are the pods of a node that a selector selects, empty: all.
	// RecentPods are all, as they were not long ago: that costs the API server
	// so little that it can be asked each second.
	Pods(ctx context.Context, node, labelSelector string) ([]apiserver.Pod, error)
	RecentPods(ctx context.Context, node string) ([]apiserver.Pod, error)

	// Evict asks for the eviction of the pod with p's UID, and no other of its
	// name: that may run elsewhere by now. With success it is ending.
	Evict(ctx context.Context, p apiserver.Pod, grace *time.Duration) error
}

// An Evictor evicts pods of one node.
type Evictor struct {
	API     API
	Node    string
	Options Options
	Now     func() time.Time
	Rand    func() float64 // from 0 to 1, without 1

	// Progress is told how things stand, at first, whenever that has changed,
	// and when it is over. It must not keep Evict waiting.
	Progress func(Progress)
}

// Progress is how an eviction stands.
type Progress struct {
	Total int
	Left  []Left    // in the order of the pods
	Err   error     // why that is not known better: the API server does not answer; nil: it does
	Until time.Time // when the timeout ends it; zero: nothing does
	Over  bool      // Evict returns, with an error if pods are left
}

// Left is a pod that has not gone yet.
type Left struct {
	Pod apiserver.Pod // as it was listed last
	// Err is why it was not evicted when that was last asked for:
	// [*apiserver.Blocked] where a budget does not allow it now. nil where it
	// is ending, or about to be asked for.
	Err error
}

// String is the pod and what keeps it, as in "shop/web-1 is kept by
// PodDisruptionBudget web".
func (l Left) String() string {
	var blocked *apiserver.Blocked
	switch pdbs := l.PDBs(); {
	case l.Err == nil && l.Pod.Terminating:
		return l.Pod.String() + " is ending"
	case l.Err == nil:
		return l.Pod.String() + " is about to be evicted"
	case pdbs != nil:
		return fmt.Sprintf("%s is kept by PodDisruptionBudget %s", l.Pod, strings.Join(pdbs, ", "))
	case errors.As(l.Err, &blocked):
		return fmt.Sprintf("%s is kept by a PodDisruptionBudget: %v", l.Pod, blocked)
	}
	return fmt.Sprintf("%s: %v", l.Pod, l.Err)
}

// PDBs are the names of the budgets that keep the pod now, in its namespace;
// none where none does, or the API server does not name them.
func (l Left) PDBs() []string {
	var blocked *apiserver.Blocked
	if errors.As(l.Err, &blocked) {
		return blocked.PDBs
	}
	return nil
}

// PDBs are the budgets that keep pods now, as NAMESPACE/NAME, sorted.
func (p Progress) PDBs() []string {
	var out []string
	for _, l := range p.Left {
		for _, name := range l.PDBs() {
			out = append(out, l.Pod.Namespace+"/"+name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Evict evicts pods and returns nil when all of them are gone from the node.
// Those that are ending already are waited for, with the time to end that they
// were given. It asks for all at once: which budget allows whom is the API
// server's business. Whom a budget keeps is asked for again, until the timeout;
// nobody is ever deleted past one.
//
// Whether a pod is gone is told by the list of pods and its UID: a kubelet may
// not read a pod that is not its node's any more.
//
// An API server that is away is waited for. When it refuses a pod for another
// reason than a budget, and again for half a minute, that is an error. However
// Evict ends, who was evicted stays evicted; when ctx ends, it stops at once.
func (e Evictor) Evict(ctx context.Context, pods []apiserver.Pod) error {
	if e.Options.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, e.Options.Timeout, errTimeout)
		defer cancel()
	}
	r := &round{Evictor: e, all: make([]*pod, len(pods))}
	for i, p := range pods {
		r.all[i] = &pod{Pod: p}
	}
	r.left = r.all
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		why := r.look(ctx)
		if ctx.Err() == nil && why == nil {
			why = r.ask(ctx)
		}
		now := r.progress(ctx)
		over := func(err error) error {
			now.Over = true
			r.tell(now)
			return err
		}
		switch {
		case len(r.left) == 0:
			return over(nil)
		case ctx.Err() != nil:
			return over(r.ended(ctx, now))
		case why != nil:
			return over(fmt.Errorf("%s: %w", r.unfinished(now), why))
		}
		r.tell(now)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return over(r.ended(ctx, now))
		}
	}
}

// errTimeout is why the context of an eviction ended: its own time.
var errTimeout = errors.New("the time is up")

// A round is an eviction that goes on.
type round struct {
	Evictor
	all    []*pod
	left   []*pod    // of all: those that were listed last
	away   error     // what the last request said if nobody answered it
	busy   time.Time // the API server is not to be asked for evictions before
	unseen refusal   // of the list of pods
	told   *Progress
}

type pod struct {
	apiserver.Pod
	err     error     // of its eviction
	due     time.Time // may be asked for again
	refused refusal
}

// A refusal is an answer that will not change, or will in a moment: since says
// for how long it has been given.
type refusal struct{ since time.Time }

// final says whether a refusal has been given for so long that it is believed.
func (r *refusal) final(now time.Time) bool {
	if r.since.IsZero() {
		r.since = now
	}
	return now.Sub(r.since) >= patience
}

// look sees who is left. The error is final.
func (r *round) look(ctx context.Context) error {
	listed, err := r.API.RecentPods(ctx, r.Node)
	if err == nil && len(r.here(listed)) == 0 {
		// That may be old, and is not what a kubelet is restarted on.
		listed, err = r.API.Pods(ctx, r.Node, "")
	}
	if ctx.Err() != nil {
		return nil
	}
	switch r.away = err; {
	case err == nil:
		r.unseen = refusal{}
	case passes(err):
		r.forgive()
		return nil
	case r.unseen.final(r.Now()):
		return err
	default:
		return nil
	}
	r.left = r.here(listed)
	return nil
}

// here are those of all that are listed, and as they are listed.
func (r *round) here(listed []apiserver.Pod) []*pod {
	var out []*pod
	for _, p := range r.all {
		if i := slices.IndexFunc(listed, func(l apiserver.Pod) bool { return l.UID == p.UID }); i >= 0 {
			p.Pod = listed[i]
			out = append(out, p)
		}
	}
	return out
}

// passes says that nobody looked at a request: that says nothing of the next.
func passes(err error) bool {
	var busy *apiserver.Busy
	return errors.Is(err, apiserver.ErrUnreachable) || errors.As(err, &busy)
}

// forgive forgets every refusal: who comes back refuses at first.
func (r *round) forgive() {
	r.unseen = refusal{}
	for _, p := range r.all {
		p.refused = refusal{}
	}
}

// ask asks for the evictions that are due. The error is final.
func (r *round) ask(ctx context.Context) error {
	if r.away != nil {
		return nil // nobody knows who is here
	}
	for _, p := range r.left {
		if p.Terminating {
			p.err = nil
			continue
		}
		now := r.Now()
		if now.Before(p.due) || now.Before(r.busy) {
			continue
		}
		err := r.API.Evict(ctx, p.Pod, r.Options.GracePeriod)
		if ctx.Err() != nil {
			return nil
		}
		pause := retryAfter
		var blocked *apiserver.Blocked
		switch {
		case passes(err):
			r.away = err
			r.forgive()
			var busy *apiserver.Busy
			if errors.As(err, &busy) {
				r.busy = now.Add(r.pause(max(pause, busy.RetryAfter)))
			}
			return nil
		case err == nil:
			p.Terminating, p.refused = true, refusal{} // unless the next list says otherwise
		case errors.Is(err, apiserver.ErrGone):
			err, p.refused = nil, refusal{} // the list was older than that
		case errors.As(err, &blocked):
			pause, p.refused = max(pause, blocked.RetryAfter), refusal{}
		case errors.Is(err, apiserver.ErrNamespaceTerminating):
			// It is deleted with its namespace.
		case p.refused.final(now):
			return fmt.Errorf("%s: %w", p, err)
		}
		p.err, p.due = err, now.Add(r.pause(pause))
	}
	return nil
}

func (r *round) pause(d time.Duration) time.Duration {
	return d + time.Duration(r.Rand()*float64(jitter))
}

func (r *round) progress(ctx context.Context) Progress {
	p := Progress{Total: len(r.all), Err: r.away}
	if r.Options.Timeout > 0 {
		p.Until, _ = ctx.Deadline()
	}
	for _, l := range r.left {
		p.Left = append(p.Left, Left{l.Pod, l.err})
	}
	return p
}

func (r *round) tell(now Progress) {
	if r.Progress != nil && (r.told == nil || !reflect.DeepEqual(*r.told, now)) {
		r.Progress(now)
		r.told = &now
	}
}

// mostNamed is how many pods an error names: all of a node would hide the rest
// of it.
const mostNamed = 5

// names are the pods that are left, for an error.
func (p Progress) names() string {
	var out strings.Builder
	for i, l := range p.Left {
		switch {
		case i == mostNamed:
			fmt.Fprintf(&out, " and %d more", len(p.Left)-mostNamed)
			return out.String()
		case i > 0:
			out.WriteString("; ")
		}
		out.WriteString(l.String())
	}
	return out.String()
}

// unfinished begins every error.
func (r *round) unfinished(now Progress) string {
	pods, are := "pods", "are"
	if now.Total == 1 {
		pods = "pod"
	}
	if len(now.Left) == 1 {
		are = "is"
	}
	return fmt.Sprintf("evicting the pods of node %s: %d of %d %s %s left", r.Node, len(now.Left), now.Total, pods, are)
}

// ended is the error for an eviction that ran out of time, or was stopped.
func (r *round) ended(ctx context.Context, now Progress) error {
	left := r.unfinished(now)
	switch {
	case !errors.Is(context.Cause(ctx), errTimeout):
		return fmt.Errorf("%s: %w", left, ctx.Err())
	case now.Err != nil:
		return fmt.Errorf("%s after %s: %w (when last seen: %s)", left, r.Options.Timeout, now.Err, now.names())
	}
	return &step.Error{Err: fmt.Errorf("%s after %s: %s", left, r.Options.Timeout, now.names()), Next: hint(now)}
}

// hint says what to look at first: budgets, because they wait for somebody.
func hint(p Progress) string {
	if pdbs := p.PDBs(); pdbs != nil {
		ns, pdb, _ := strings.Cut(pdbs[0], "/")
		return fmt.Sprintf("kubectl -n %s describe pdb %s says what it waits for; more ready replicas or a longer --timeout help, "+
			"and --drain cordon restarts the kubelet and evicts nobody", ns, pdb)
	}
	l := p.Left[0].Pod
	return fmt.Sprintf("kubectl -n %s describe pod %s says what it waits for; a longer --timeout may help, "+
		"and so may a shorter --grace-period", l.Namespace, l.Name)
}

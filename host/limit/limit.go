// Package limit keeps nodes of a cluster from being unavailable all at once:
// who restarts its kubelet holds one of a few Leases meanwhile.
//
// There are as many Leases as nodes may be unavailable, so all nodes must be
// given the same number. A node that is done gives its Lease back. One that
// died with it keeps it: when nothing was heard of the holder for TTL, the Lease
// is free again only if its node is Ready and has no mark of ours. Else what
// was done to that node may have broken it, and it goes on to count, so that a
// bad change ends at as many nodes as were allowed.
package limit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/step"
)

// Namespace is where the Leases are.
const Namespace = "kube-system"

// Name is that of the Lease with number i, counted from 0. The role in
// units/rbac.yaml names them one by one.
func Name(i int) string { return "nodelocaldns-window-" + strconv.Itoa(i) }

const (
	// TTL is for how long a Lease is held without being renewed. It is measured
	// from the holder's clock to that of who waits; nodes whose clocks are
	// minutes apart do not talk to an API server for long, for want of valid
	// certificates. Somebody who is stopped for longer, as by SIGSTOP, finds
	// out with Renew.
	TTL = 10 * time.Minute

	// renewEvery leaves four attempts within TTL.
	renewEvery = 2 * time.Minute

	// askEvery is how often who waits asks at first, and jitter the part of a
	// pause that is added to it at random at most: nodes that are told to begin
	// at the same moment do not keep asking at the same moment.
	askEvery = 5 * time.Second
	jitter   = 0.4

	// windowTakes is about how long a Lease is held: 30 s to see that the kubelet
	// stays, and what is before and after.
	windowTakes = 40 * time.Second

	// looks is at how many Leases who waits looks at a time.
	looks = 2

	// crowd is at how many Leases others may be faster before who asks takes
	// it that there are more nodes than Leases, and waits.
	crowd = 3
)

// pause is how long is waited for the next question by who has waited for so
// long. It grows with the root of that: who waits long is one of many, so that
// somebody soon sees what is given back, and all together ask less; and it stays
// small against what has been waited already. Of 1,000 nodes that began together,
// those left after an hour ask once a minute.
func (cfg Config) pause(waited time.Duration) time.Duration {
	p := float64(askEvery) * math.Sqrt(1+max(0, waited.Seconds())/windowTakes.Seconds())
	return time.Duration(p * (1 + jitter*cfg.Rand()))
}

// API is what the limit needs of the API server. Errors are those of
// [apiserver]; a change that is none because somebody else was first is a
// [*apiserver.Conflict].
type API interface {
	Lease(ctx context.Context, namespace, name string) (apiserver.Lease, error)
	CreateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error)
	UpdateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error)
	Node(ctx context.Context, name string) (apiserver.Node, error)
}

// A Config says what is to be held, and by whom.
type Config struct {
	API  API
	Node string // this node: the holder
	Max  int    // how many nodes may be unavailable, at least 1
	Mark string // the annotation of a node that is cordoned by us

	Timeout time.Duration // to wait for one to be free; 0: for ever
	Now     func() time.Time
	Rand    func() float64 // from 0 to 1, without 1
	Log     *slog.Logger   // of renewals that fail

	// Waiting is told whom Acquire waits for, if it does, and whenever that has
	// changed.
	Waiting func(Waiting)
}

// Waiting is why there is no Lease to be had now.
type Waiting struct {
	For []Other
	Err error // why that is not known: the API server does not answer; nil: it does
}

// An Other is a node that holds a Lease.
type Other struct {
	Lease string // its name
	Node  string // empty: one that was faster than we
	// Why it counts although nothing was heard of its holder for TTL, going on
	// from "node n1"; empty: something was.
	Why string
}

// String is a clause, such as "node n2 holds nodelocaldns-window-0".
func (o Other) String() string {
	switch {
	case o.Node == "":
		return fmt.Sprintf("another node has just taken %s", o.Lease)
	case o.Why == "":
		return fmt.Sprintf("node %s holds %s", o.Node, o.Lease)
	}
	return fmt.Sprintf("node %s, which held %s, %s", o.Node, o.Lease, o.Why)
}

// String is what is waited for, as one line.
func (w Waiting) String() string {
	if w.Err != nil {
		return w.Err.Error()
	}
	var names []string
	for _, o := range w.For {
		names = append(names, o.String())
	}
	return strings.Join(names, "; ")
}

// Held is a Lease that this node holds and renews.
type Held struct {
	cfg  Config
	name string
	stop context.CancelFunc
	done chan struct{} // closed when nothing renews it any more

	turn chan struct{}   // has something while somebody changes the Lease
	now  apiserver.Lease // as we have it; of another Holder: it is not ours any more
}

// A Lost is a Lease that was held and is not any more.
type Lost struct {
	Lease string
	To    string // the node that holds it; empty: nobody
}

func (l *Lost) Error() string {
	if l.To == "" {
		return fmt.Sprintf("lease %s/%s was taken from us", Namespace, l.Lease)
	}
	return fmt.Sprintf("lease %s/%s was taken from us and is held by node %s", Namespace, l.Lease, l.To)
}

// Acquire waits until one of the Leases can be had and returns it, held and
// being renewed until Release or Leave, whatever becomes of ctx. One that this
// node holds already, from a run that did not come to its end, is taken up.
//
// It is to be held before the node is cordoned; see Renew for what is to be
// done then.
func Acquire(ctx context.Context, cfg Config) (*Held, error) {
	if cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, cfg.Timeout, errTimeout)
		defer cancel()
	}
	said, start := "", cfg.Now()
	var now Waiting
	var unsure *unsureError
	search := search{next: cfg.any()}
	for {
		l, others, err := cfg.ask(ctx, &search)
		if err == nil {
			unsure = nil
		}
		errors.As(err, &unsure)
		switch {
		case err == nil && others == nil:
			return cfg.hold(ctx, l), nil
		case errors.Is(err, apiserver.ErrForbidden), errors.Is(err, apiserver.ErrUnauthorized):
			return nil, &step.Error{Err: fmt.Errorf("asking for a window of the cluster: %w", err),
				Next: "--max-unavailable needs an identity of its own: units/rbac.yaml has its rights"}
		case ctx.Err() == nil:
			now = Waiting{others, err}
			if cfg.Waiting == nil {
				break
			}
			if text := now.String(); text != said {
				cfg.Waiting(now)
				said = text
			}
		}
		pause := time.NewTimer(cfg.pause(cfg.Now().Sub(start)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			if unsure != nil {
				cfg.giveBack(ctx, unsure.lease)
			}
			return nil, cfg.ended(ctx, now)
		}
	}
}

// errTimeout is why the context of an Acquire ended: its own time.
var errTimeout = errors.New("the time is up")

// An unsureError is a change that may have been made: no reply to it came.
type unsureError struct {
	lease string
	error
}

func (e *unsureError) Unwrap() error { return e.error }

// giveBack gives a Lease back that may be ours, for who stops now. Where that
// fails it lapses.
func (cfg Config) giveBack(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askEvery)
	defer cancel()
	if l, err := cfg.API.Lease(ctx, Namespace, name); err == nil && l.Holder == cfg.Node {
		l.Holder = ""
		_, _ = cfg.API.UpdateLease(ctx, l)
	}
}

func (cfg Config) ended(ctx context.Context, now Waiting) error {
	const doing = "waiting for a window of the cluster"
	switch {
	case !errors.Is(context.Cause(ctx), errTimeout):
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	case now.Err != nil:
		return fmt.Errorf("%s: none for %s: %w", doing, cfg.Timeout, now.Err)
	}
	err := fmt.Errorf("%s: none of %d was free for %s: %s", doing, cfg.Max, cfg.Timeout, now)
	for _, o := range now.For {
		if o.Why != "" {
			return &step.Error{Err: err, Next: fmt.Sprintf("mend node %s first; if it is gone for good: kubectl -n %s delete lease %s", o.Node, Namespace, o.Lease)}
		}
	}
	return &step.Error{Err: err, Next: "try again when they are done, or wait longer with --timeout"}
}

// A search is what is known from one question of Acquire to the next.
type search struct {
	others []Other // who hold the Leases; nil: not all have been read since it might have been we
	next   int     // the Lease that is looked at next
}

// ask takes a Lease if one can be had. Else there is an error, or others are those
// that hold them.
//
// When all were read, the next questions are about one Lease each, in turn: who
// waits beside many would else ask for as many, and somebody looks at each soon.
func (cfg Config) ask(ctx context.Context, s *search) (taken apiserver.Lease, others []Other, err error) {
	for look := 0; s.others != nil && cfg.Max > looks; look++ {
		if look == looks {
			return taken, slices.Clone(s.others), nil
		}
		name := Name(s.next % cfg.Max)
		s.next++
		l, err := cfg.API.Lease(ctx, Namespace, name)
		if errors.Is(err, apiserver.ErrNotFound) || err == nil && l.Holder == cfg.Node {
			break // the latter is a change of ours that was made long after it was sent
		}
		var other *Other
		if err == nil {
			other, err = cfg.other(ctx, l)
		}
		switch i := slices.IndexFunc(s.others, func(o Other) bool { return o.Lease == name }); {
		case err != nil:
			return taken, nil, err
		case other == nil:
			s.others = nil
		case i < 0:
			s.others = append(s.others, *other)
		default:
			s.others[i] = *other
		}
	}
	s.others = nil
	taken, others, err = cfg.take(ctx)
	if err == nil {
		s.others = slices.Clone(others)
	}
	return taken, others, err
}

// any is the number of one of the Leases.
func (cfg Config) any() int { return int(cfg.Rand()*float64(cfg.Max)) % cfg.Max }

// take is ask by reading all.
//
// A Lease is taken only when all have been read: one may be ours, also from a
// change whose reply did not arrive, and nobody holds two. Those that can be had
// are tried from any on: nodes that come together do not all try the same.
func (cfg Config) take(ctx context.Context) (taken apiserver.Lease, others []Other, err error) {
	all := make([]apiserver.Lease, cfg.Max)
	for i := range all {
		l, err := cfg.API.Lease(ctx, Namespace, Name(i))
		switch {
		case errors.Is(err, apiserver.ErrNotFound):
			l = apiserver.Lease{Namespace: Namespace, Name: Name(i)}
		case err != nil:
			return taken, nil, err
		case l.Holder == cfg.Node:
			taken, err = cfg.write(ctx, l)
			return taken, nil, err
		}
		all[i] = l
	}
	faster := 0
	for i, from := 0, cfg.any(); i < len(all) && faster < crowd; i++ {
		l := all[(from+i)%len(all)]
		other, err := cfg.other(ctx, l)
		if err != nil {
			return taken, nil, err
		}
		if other != nil {
			others = append(others, *other)
			continue
		}
		taken, err = cfg.write(ctx, l)
		var conflict *apiserver.Conflict
		switch {
		case err == nil:
			return taken, nil, nil
		case !errors.As(err, &conflict):
			return taken, nil, &unsureError{l.Name, err}
		}
		others = append(others, Other{Lease: l.Name})
		faster++
	}
	return taken, others, nil
}

// write makes l ours. l must be as it was read.
func (cfg Config) write(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	now := cfg.Now()
	if l.Holder != cfg.Node {
		l.Acquired = now
	}
	l.Holder, l.Renewed, l.Duration = cfg.Node, now, TTL
	if l.ResourceVersion == "" {
		return cfg.API.CreateLease(ctx, l)
	}
	return cfg.API.UpdateLease(ctx, l)
}

// other says who holds l; nil if it can be had. A node that was deleted counts
// too: what replaces broken nodes by new ones must not lead the change on to
// the next.
func (cfg Config) other(ctx context.Context, l apiserver.Lease) (*Other, error) {
	if l.Holder == "" {
		return nil, nil
	}
	o := &Other{Lease: l.Name, Node: l.Holder}
	if cfg.Now().Before(l.Renewed.Add(cmp.Or(l.Duration, TTL))) {
		return o, nil
	}
	n, err := cfg.API.Node(ctx, l.Holder)
	_, marked := n.Annotations[cfg.Mark]
	switch {
	case errors.Is(err, apiserver.ErrNotFound):
		o.Why = "is not in the cluster any more"
	case err != nil:
		return nil, err
	case !n.Ready:
		o.Why = "is not Ready"
	case marked:
		o.Why = "is still cordoned by us"
	default:
		return nil, nil
	}
	return o, nil
}

// hold renews l from now on.
func (cfg Config) hold(ctx context.Context, l apiserver.Lease) *Held {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	h := &Held{cfg: cfg, name: l.Name, stop: stop, done: make(chan struct{}), turn: make(chan struct{}, 1), now: l}
	go func() {
		defer close(h.done)
		tick := time.NewTicker(renewEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if err := h.Renew(ctx); err != nil && ctx.Err() == nil {
				cfg.Log.Warn("the window of the cluster was not renewed", "lease", l.Name, "err", err)
			}
		}
	}()
	return h
}

// Name is that of the Lease.
func (h *Held) Name() string { return h.name }

// Renew renews the Lease now. With nil it is ours for TTL from here; a *Lost
// says that it is not ours any more, and what it was held for must not go on.
//
// It is to be called once the node is cordoned and marked, before anything that
// needs the limit: a holder that was stopped for TTL between Acquire and its
// mark would not know that somebody has followed it. Nobody follows it after:
// who takes a Lease over has read it before it looked for the mark, and what it
// then writes conflicts with this.
func (h *Held) Renew(ctx context.Context) error {
	return h.change(ctx, func(l *apiserver.Lease) { l.Renewed, l.Duration = h.cfg.Now(), TTL })
}

// change changes the Lease while it is ours.
func (h *Held) change(ctx context.Context, change func(*apiserver.Lease)) error {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if h.now.Holder != h.cfg.Node {
		return &Lost{h.name, h.now.Holder}
	}
	l := h.now
	change(&l)
	got, err := h.cfg.API.UpdateLease(ctx, l)
	var conflict *apiserver.Conflict
	if errors.As(err, &conflict) || errors.Is(err, apiserver.ErrNotFound) {
		// Somebody else's, or our own: of a change whose reply did not arrive.
		got, err = h.cfg.API.Lease(ctx, Namespace, h.name)
		switch {
		case errors.Is(err, apiserver.ErrNotFound):
			h.now.Holder = ""
			return &Lost{Lease: h.name}
		case err != nil:
			return err
		}
		if h.now = got; got.Holder != h.cfg.Node {
			return &Lost{h.name, got.Holder}
		}
		change(&got)
		got, err = h.cfg.API.UpdateLease(ctx, got)
	}
	if err == nil {
		h.now = got
	}
	return err
}

// Release gives the Lease back, and with nil somebody else may have it at once.
// After an error it is free when TTL is over and the node is Ready and has no
// mark. It is to be called after the mark is removed.
func (h *Held) Release(ctx context.Context) error {
	h.Leave()
	err := h.change(ctx, func(l *apiserver.Lease) { l.Holder = "" })
	var lost *Lost
	if err == nil || errors.As(err, &lost) {
		return nil // there is nothing of ours to give back
	}
	return fmt.Errorf("giving lease %s/%s back: %w", Namespace, h.name, err)
}

// Leave ends the renewals and leaves the Lease as it is, as the end of this
// process does: a node that stays cordoned goes on to count.
func (h *Held) Leave() {
	h.stop()
	<-h.done
}

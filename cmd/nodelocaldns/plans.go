package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/pods"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unit"
)

// plans are both plans of a node, as one: the runtime plan, then the durable
// one. What pods are sent to is there before they are, and goes after.
type plans struct {
	runtime *host.Node // nil: only files are looked at, as below --root
	durable *host.Durable
	boot    bool // the node starts: files only, and the off switch is obeyed

	node kubelet.Node
	pods *neighbours // nil where no pod is to be looked for

	leaving []netip.Addr // that the node has because of us, and the configuration no longer

	// canary says why pods must not be sent to us. It is called when everything
	// but the kubelet is as it should be, and before that is changed; runs says
	// that a kubelet will be restarted for it. Nil: nobody is asked.
	canary func(ctx context.Context, runs bool) error
}

// gate is the end of a rollback of both plans.
func (p *plans) gate() *host.Gate {
	return &host.Gate{Node: p.runtime, Durable: p.durable, Naming: p.pods.names}
}

// Check looks at every step, as host.Node.Check does.
func (p *plans) Check(ctx context.Context) ([]engine.Status, error) {
	var all []engine.Status
	var errs []error
	if p.runtime != nil {
		some, err := p.runtime.Check(ctx)
		if some == nil && err != nil {
			return nil, err
		}
		all, errs = append(all, some...), append(errs, err)
	}
	some, err := p.durable.Check(ctx)
	if some == nil && err != nil && all == nil {
		return nil, err
	}
	return append(all, some...), errors.Join(append(errs, err)...)
}

// Off is host.Durable.Off: both plans have one off switch.
func (p *plans) Off() (bool, error) { return p.durable.Off() }

// The nouns of the durable plan; all others are of the runtime plan.
var (
	kubeletNoun, _, _ = strings.Cut(kubelet.StepName, "/")
	unitNoun, _, _    = strings.Cut(unit.StepName, "/")
	windowNoun, _, _  = strings.Cut(kubelet.WindowName, "/")
)

// is says whether name is a step of that noun, or the noun.
func is(noun, name string) bool { return name == noun || strings.HasPrefix(name, noun+"/") }

// isDurable says of which plan a step, or the noun of one, is.
func isDurable(name string) bool {
	return is(kubeletNoun, name) || is(unitNoun, name) || is(windowNoun, name)
}

// split is names by plan. A name that is no step of all is an error, before
// anything is done.
func split(names []string, all []engine.Status) (runtime, durable []string, err error) {
	var have []string
	for _, st := range all {
		if !st.Leftover && !errors.Is(st.Err, engine.ErrUnknown) {
			have = append(have, st.Name)
		}
	}
	for _, want := range names {
		known := slices.ContainsFunc(have, func(name string) bool {
			noun, _, _ := strings.Cut(name, "/")
			return want == name || want == noun
		})
		switch {
		case !known && len(have) == 0:
			return nil, nil, withHint(fmt.Errorf("no step %s in the plan", want), "the plan is empty")
		case !known:
			return nil, nil, withHint(fmt.Errorf("no step %s in the plan", want), "the plan has %s", strings.Join(have, ", "))
		case isDurable(want):
			durable = append(durable, want)
		default:
			runtime = append(runtime, want)
		}
	}
	return runtime, durable, nil
}

// errOvertaken ends an apply that let go of the lock, to look at the pods.
var errOvertaken = errors.New("a rollback was asked for meanwhile")

// errNotAsked keeps the boot from what the canary has not allowed yet.
var errNotAsked = errors.New("it was to ask from the pods first")

// errLeftOut keeps the boot from what an apply of other steps has not asked for.
var errLeftOut = errors.New("it was not asked to")

// errStill says why pods are not sent to us.
var errStill = errors.New("left as it is: pods must not be sent where nobody answers")

// Apply brings the node to both plans, or to the named steps of them: first
// what answers pods, then the units that keep it so, and the kubelet last, once
// the pods that run could ask us. What fails keeps the rest from being begun.
func (p *plans) Apply(ctx context.Context, names []string, all []engine.Status) error {
	if p.boot {
		// Our own units are being started: by whom this is run, too.
		if !has(all, kubeletNoun) || len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool { return is(kubeletNoun, name) }) {
			return nil
		}
		return p.durable.Boot(ctx, kubeletNoun)
	}
	runtime, durable, err := split(names, all)
	if err != nil {
		return err
	}
	if err := blocked(all, names, durable); err != nil {
		return err
	}
	off, err := p.Off()
	if err != nil {
		return err
	}
	if off && len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool { return is(kubeletNoun, name) }) {
		// The switch is about to be cleared, and no boot may take that for a
		// yes to the kubelet.
		if err := p.durable.Refuse(errLeftOut); err != nil {
			return err
		}
	}
	apply := func(steps ...string) error { // the first of all clears the off switch
		if off {
			off = false
			return p.durable.Apply(ctx, steps...)
		}
		return overtaken(p.durable.Continue(ctx, steps...))
	}
	if p.runtime != nil && (len(names) == 0 || len(runtime) > 0) {
		if err := privileged(); err != nil {
			return err
		}
		if err := p.stillAsked(ctx); err != nil {
			return err
		}
		off = false
		if err := p.runtime.Apply(ctx, runtime...); err != nil {
			return p.still(err, all, names, durable)
		}
	}
	if len(names) > 0 && len(durable) == 0 {
		return nil
	}
	first := slices.DeleteFunc(slices.Clone(durable), func(name string) bool { return is(kubeletNoun, name) })
	last := slices.DeleteFunc(slices.Clone(durable), func(name string) bool { return !is(kubeletNoun, name) })
	if len(names) == 0 && has(all, unitNoun) {
		first = []string{unitNoun}
	}
	if len(names) == 0 && has(all, kubeletNoun) {
		last = []string{kubeletNoun}
	}
	ask := p.canary != nil && (len(names) == 0 || len(last) > 0) && p.touchesKubelet(ctx, all)
	if len(first) > 0 {
		if ask {
			// The unit for the boot is started with the resolver, which the
			// first query to its sockets may do; or the power may go.
			if err := p.durable.Refuse(errNotAsked); err != nil {
				return err
			}
		}
		if err := apply(first...); err != nil {
			return p.still(err, all, names, durable)
		}
		if p.runtime != nil && len(names) == 0 {
			// A guard of the configuration before may have repaired what was
			// applied, until it was restarted just now.
			if err := overtaken(p.runtime.Continue(ctx)); err != nil {
				return p.still(err, all, names, durable)
			}
		}
	}
	if len(names) > 0 && len(last) == 0 {
		return nil
	}
	if ask {
		if err := p.canary(ctx, p.durable.WouldRestart(ctx, true) != nil); err != nil {
			return p.still(errors.Join(err, p.durable.Refuse(err)), all, names, durable)
		}
	}
	return apply(last...)
}

// stillAsked is an error if a pod that runs names an address of ours which the
// configuration no longer has: it would be taken from it for life.
func (p *plans) stillAsked(ctx context.Context) error {
	if len(p.leaving) == 0 || p.pods == nil {
		return nil
	}
	hint := fmt.Sprintf("keep %s in listen.addresses, behind the new ones, until those pods are replaced; or nodelocaldns rollback --now first", named(p.leaving))
	asking, err := p.pods.namingAny(ctx, p.leaving)
	switch {
	case err != nil:
		return withHint(fmt.Errorf("looking for pods that name %s: %w", named(p.leaving), err), "%s", hint)
	case len(asking) > 0:
		return withHint(fmt.Errorf("%s is not in listen.addresses any more, and pods of this node still name it: %s",
			named(p.leaving), strings.Join(podNames(asking), ", ")), "%s", hint)
	}
	return nil
}

// overtaken says what ErrOff means to an apply that had cleared the switch.
func overtaken(err error) error {
	if errors.Is(err, host.ErrOff) {
		return withHint(errOvertaken, "nodelocaldns status says how far it is; nodelocaldns apply begins anew")
	}
	return err
}

// blocked says what keeps the durable plan, or the named steps of it, from being
// done: known before anything is written, so that nothing is begun.
func blocked(all []engine.Status, names, durable []string) error {
	var errs []error
	for _, st := range all {
		wanted := len(names) == 0 || slices.ContainsFunc(durable, func(name string) bool { n, _, _ := strings.Cut(name, "/"); return is(n, st.Name) })
		if !isDurable(st.Name) || !wanted || st.Err != nil || st.Unseen {
			continue // what cannot be looked at is said by whoever tries
		}
		if st.State == step.Blocked {
			errs = append(errs, fmt.Errorf("%s: %w", st.Name, &engine.BlockedError{Why: st.Why, Next: st.Hint}))
		}
	}
	return errors.Join(errs...)
}

// has says whether a step of that noun is in the plan.
func has(all []engine.Status, noun string) bool {
	return slices.ContainsFunc(all, func(st engine.Status) bool {
		return is(noun, st.Name) && !st.Leftover && !errors.Is(st.Err, engine.ErrUnknown)
	})
}

// touchesKubelet says whether what is left to do sends pods to us that are not
// sent to us now.
func (p *plans) touchesKubelet(ctx context.Context, all []engine.Status) bool {
	st := statusOfStep(all, kubelet.StepName)
	return has(all, kubeletNoun) && (st.State == step.Pending || p.restartPending(ctx) != nil)
}

// still adds to err that the kubelet is left as it is, where it was to change.
func (p *plans) still(err error, all []engine.Status, names, durable []string) error {
	wanted := len(names) == 0 || slices.ContainsFunc(durable, func(name string) bool { return is(kubeletNoun, name) })
	if st := statusOfStep(all, kubelet.StepName); wanted && st.State == step.Pending {
		err = errors.Join(err, fmt.Errorf("%s: %w", st.Name, errStill))
	}
	return err
}

// Rollback undoes both plans except the named steps. The kubelet is first, and
// if that fails all the rest stays: it would go on to send pods to an address
// that is gone. Then what answers pods, once none names us any more; wait says
// when that is, and gets the pods that are left. Without it nobody is
// waited for. It returns the pods for which the rest stays.
func (p *plans) Rollback(ctx context.Context, keep []string, all []engine.Status, wait waiter) ([]pods.Pod, error) {
	if p.runtime != nil {
		if err := privileged(); err != nil {
			return nil, err
		}
	}
	if err := p.durable.TurnOff(keep...); err != nil {
		return nil, err
	}
	if err := p.durable.Rollback(ctx, append([]string{unit.StepName}, keep...)...); err != nil {
		if slices.ContainsFunc(all, func(st engine.Status) bool { return st.Ours && !is(kubeletNoun, st.Name) }) {
			err = errors.Join(err, p.rest(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	if p.runtime == nil {
		return nil, p.durable.Rollback(ctx, keep...)
	}
	if wait != nil {
		if left, err := wait(ctx); err != nil || len(left) > 0 {
			return left, err
		}
	}
	return nil, p.gate().Finish(ctx)
}

// rest says what a rollback that failed at the kubelet, or at its restart, means
// for what answers pods.
func (p *plans) rest(ctx context.Context) error {
	all, err := p.durable.Check(ctx)
	if err != nil || statusOfStep(all, kubelet.StepName).Ours || p.restartPending(ctx) != nil {
		return errors.New("the rest is left in place: pods are still sent to us")
	}
	return errors.New("the rest is left in place until that is mended; new pods are not sent to us")
}

// A waiter waits for pods to let go of us, and returns those that have not.
type waiter func(ctx context.Context) ([]pods.Pod, error)

// notes are worth a warning: what was found at the kubelet and is no reason to
// stop.
func (p *plans) notes(ctx context.Context, all []engine.Status) []string {
	if !has(all, kubeletNoun) {
		return nil
	}
	f, _ := p.durable.Facts(ctx)
	return f.Notes
}

// restartPending says what a running kubelet has not taken over of its files
// yet, ours or without ours; nil where nothing is, and where that is not known.
func (p *plans) restartPending(ctx context.Context) *host.Restart { return p.durable.Pending(ctx) }

// named is the list as a flag has it.
func named(list []netip.Addr) string {
	if len(list) == 0 {
		return "whom the node asks"
	}
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = a.String()
	}
	return strings.Join(words, ",")
}

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
	"nodelocaldns/host/step"
)

// plans are both plans of a node, as one: the runtime plan, then the durable
// one. What pods are sent to is there before they are, and goes after.
type plans struct {
	runtime *host.Node // nil: only files are looked at, as below --root
	durable *host.Durable
	boot    bool // the node starts: files only, and the off switch is obeyed

	node kubelet.Node
	ask  kubelet.Want // what the durable plan wants of the kubelet, or would
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

// isDurable says of which plan a step, or the noun of one, is.
func isDurable(name string) bool {
	noun, _, _ := strings.Cut(kubelet.StepName, "/")
	return name == kubelet.StepName || name == noun
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

// errStill says why pods are not sent to us.
var errStill = errors.New("left as it is: pods must not be sent where nobody answers")

// Apply brings the node to both plans, or to the named steps of them. If the
// runtime plan fails, the durable one is not begun.
func (p *plans) Apply(ctx context.Context, names []string, all []engine.Status) error {
	runtime, durable, err := split(names, all)
	if err != nil {
		return err
	}
	if p.runtime != nil && (len(names) == 0 || len(runtime) > 0) {
		if err := privileged(); err != nil {
			return err
		}
		if err := p.runtime.Apply(ctx, runtime...); err != nil {
			for _, st := range all {
				if isDurable(st.Name) && st.State == step.Pending && (len(names) == 0 || len(durable) > 0) {
					err = errors.Join(err, fmt.Errorf("%s: %w", st.Name, errStill))
				}
			}
			return err
		}
	}
	switch {
	case len(names) > 0 && len(durable) == 0:
		return nil
	case p.boot:
		return p.durable.Boot(ctx, durable...)
	}
	return p.durable.Apply(ctx, durable...)
}

// Rollback undoes both plans except the named steps, the durable one first. If
// that fails, the runtime plan stays: the kubelet would go on to send pods to
// an address that is gone.
func (p *plans) Rollback(ctx context.Context, keep []string, all []engine.Status) error {
	if p.runtime != nil {
		if err := privileged(); err != nil {
			return err
		}
	}
	var runtime, durable []string
	for _, name := range keep {
		if isDurable(name) {
			durable = append(durable, name)
		} else {
			runtime = append(runtime, name)
		}
	}
	if err := p.durable.Rollback(ctx, durable...); err != nil {
		if p.runtime != nil && slices.ContainsFunc(all, func(st engine.Status) bool { return st.Ours && !isDurable(st.Name) }) {
			err = errors.Join(err, errors.New("the rest is left in place: pods are still sent to us"))
		}
		return err
	}
	if p.runtime == nil {
		return nil
	}
	return p.runtime.Rollback(ctx, runtime...)
}

// notes are worth a warning: what was found at the kubelet and is no reason to
// stop.
func (p *plans) notes(ctx context.Context, all []engine.Status) []string {
	if !slices.ContainsFunc(all, func(st engine.Status) bool { return isDurable(st.Name) && !st.Leftover }) {
		return nil
	}
	f, _ := kubelet.Find(ctx, p.node, p.ask)
	return f.Notes
}

// A restart is what a running kubelet has not taken over yet.
type restart struct {
	unit string
	why  string
}

func (r *restart) String() string { return "restart pending: " + r.why }

// hint is how to get it over with.
func (r *restart) hint() string {
	return "read in the README what a restart of the kubelet means, then: systemctl restart " + r.unit
}

// restartPending says whether our change to the kubelet's files is there and
// the kubelet that runs has not read it; nil if so, and where none is seen to
// run.
func (p *plans) restartPending(ctx context.Context, all []engine.Status) *restart {
	i := slices.IndexFunc(all, func(st engine.Status) bool { return isDurable(st.Name) })
	if i < 0 || p.node.Running == nil || !all[i].Ours || all[i].State != step.Satisfied {
		return nil
	}
	f, c, err := kubelet.Plan(ctx, p.node, p.ask)
	if err != nil {
		return nil
	}
	if !byArgument(f.Backend) {
		// Its command line says nothing of its files.
		written := all[i].Since
		if info, err := p.node.Tree.Stat(c.Path); c.Path != "" && err == nil {
			written = info.ModTime()
		}
		if since, ok := unitStarted("/proc", f.Unit, f.Program); ok && since.Before(written) {
			return &restart{f.Unit, fmt.Sprintf("%s runs since before the file was written: its pods do not ask us yet", f.Unit)}
		}
		return nil
	}
	if f.PID == 0 || len(f.Now) > 0 && f.Now[0] == p.ask.Addresses[0] {
		return nil
	}
	return &restart{f.Unit, fmt.Sprintf("the running kubelet (pid %d) has pods ask %s", f.PID, named(f.Now))}
}

// stillNamed says whether a kubelet that runs goes on to send pods to us after
// our change to its files was undone.
func (p *plans) stillNamed(ctx context.Context, before *restart, undone bool) *restart {
	if p.node.Running == nil || len(p.ask.Addresses) == 0 {
		return nil
	}
	f, _ := kubelet.Find(ctx, p.node, p.ask) // what was found before a refusal is true all the same
	if !byArgument(f.Backend) {
		if _, ok := unitStarted("/proc", f.Unit, f.Program); ok && undone && before == nil {
			return &restart{f.Unit, fmt.Sprintf("%s runs with our address until its next start", f.Unit)}
		}
		return nil
	}
	if f.PID == 0 || len(f.Now) == 0 || f.Now[0] != p.ask.Addresses[0] || f.Already || !undone {
		return nil
	}
	return &restart{f.Unit, fmt.Sprintf("the running kubelet (pid %d) has pods ask %s until its next start", f.PID, named(f.Now))}
}

// byArgument says that whom pods ask is on the kubelet's command line.
func byArgument(b kubelet.Backend) bool {
	return b != kubelet.ByConfigDir && b != kubelet.ByArgsFile
}

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

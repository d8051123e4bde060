package notrack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"nodelocaldns/host/step"
)

// Chain is the name of our chains, one in raw and one in filter. Only we
// create, fill and delete them.
const Chain = "NODELOCALDNS"

// comment marks our rules. node-cache deletes every rule that has its own text
// when it stops, so ours must be another one.
const comment = "nodelocaldns"

// hooks are the built-in chains that jump to ours. Requests come in by
// PREROUTING and INPUT from pods and leave by OUTPUT from the node itself,
// replies leave by OUTPUT: a firewall that lets only tracked packets out would
// drop them without the rules for the reply direction. For the same reason the
// packets are let through before they are left untracked, and on the way back
// tracked again before that ends.
var hooks = []struct {
	table, target string
	from          []string
}{
	{table: "filter", target: "ACCEPT", from: []string{"INPUT", "OUTPUT"}},
	{table: "raw", target: "NOTRACK", from: []string{"PREROUTING", "OUTPUT"}},
}

// Config is what is wanted.
type Config struct {
	V6      bool         // notrack/ipv6 and ip6tables, else notrack/ipv4
	Addrs   []netip.Addr // of that family, none of them loopback
	Port    uint16
	Backend Backend
	Held    []Backend // where our record says we may have rules, from HeldBy
}

// Rules is the step notrack/ipv4 or notrack/ipv6.
type Rules struct {
	open Opener
	cfg  Config
}

// New returns the step. It keeps cfg's slices.
func New(open Opener, cfg Config) *Rules { return &Rules{open: open, cfg: cfg} }

// Name is the journal key.
func (r *Rules) Name() string {
	if r.cfg.V6 {
		return "notrack/ipv6"
	}
	return "notrack/ipv4"
}

// left is what the record says: the back-ends that may hold rules of ours.
type left struct {
	Backends []Backend `json:"backends"`
}

// HeldBy reads from the record of the step which back-ends may hold our rules,
// so that a host that changed its back-end gets rid of those in the old one.
func HeldBy(s step.Saved) ([]Backend, error) {
	var all []Backend
	for _, raw := range s.After {
		var l left
		if err := json.Unmarshal(raw, &l); err != nil {
			return nil, fmt.Errorf("reading the record: %w", err)
		}
		for _, b := range l.Backends {
			if !slices.Contains(all, b) {
				all = append(all, b)
			}
		}
	}
	return all, nil
}

// A change is one write, or a few that belong together, and how plan shows it.
type change struct {
	diff string
	do   func() error
}

// Check compares the rules with what is wanted. What counts is that each jump
// is there, once, and never its position: others fight for the first place.
func (r *Rules) Check(context.Context) (step.Finding, error) {
	t, err := r.open(r.cfg.Backend, r.cfg.V6)
	if errors.Is(err, ErrMissing) {
		return step.Finding{
			State: step.Blocked,
			Why:   err.Error(),
			Hint:  "install iptables, or set notrack.enabled: false in the configuration",
		}, nil
	} else if err != nil {
		return step.Finding{}, err
	}
	before, changes, err := r.changes(t)
	if err != nil {
		return step.Finding{}, err
	}
	if len(changes) == 0 {
		n := 0
		for _, h := range hooks {
			n += len(r.rules(h.target)) + len(h.from)
		}
		return step.Finding{State: step.Satisfied, Why: fmt.Sprintf("%d rules in iptables-%s", n, t.Backend())}, nil
	}
	diff := make([]string, len(changes))
	for i, c := range changes {
		diff[i] = c.diff
	}
	f := step.Finding{
		State: step.Pending,
		Why:   fmt.Sprintf("%d changes to rules in iptables-%s", len(changes), t.Backend()),
		Diff:  strings.Join(diff, "\n"),
	}
	if f.Before, err = json.Marshal(left{Backends: before}); err != nil {
		return step.Finding{}, err
	}
	after := before
	if !slices.Contains(after, t.Backend()) {
		after = append(slices.Clone(after), t.Backend())
	}
	f.After, err = json.Marshal(left{Backends: after})
	return f, err
}

// Apply makes the rules as wanted: a chain is full before anything jumps to
// it, and the new back-end has its rules before the old one loses them.
func (r *Rules) Apply(context.Context) error {
	t, err := r.open(r.cfg.Backend, r.cfg.V6)
	if err != nil {
		return err
	}
	_, changes, err := r.changes(t)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if err := c.do(); err != nil {
			return fmt.Errorf("%s: %w", c.diff, err)
		}
	}
	return nil
}

// Undo removes every jump to our chains, however many there are, and then the
// chains, from each back-end that may have them.
func (r *Rules) Undo(_ context.Context, s step.Saved) error {
	held, err := HeldBy(s)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range held {
		t, err := r.open(b, r.cfg.V6)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		changes, err := r.removal(t)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, c := range changes {
			if err := c.do(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c.diff, err))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// changes is what has to be written, in order, and where there are chains of
// ours already.
func (r *Rules) changes(t Tables) (had []Backend, out []change, err error) {
	for _, h := range hooks {
		chains, err := t.Chains(h.table)
		if err != nil {
			return nil, nil, err
		}
		exists := slices.Contains(chains, Chain)
		if exists && !slices.Contains(had, t.Backend()) {
			had = append(had, t.Backend())
		}
		fill, err := r.fill(t, h.table, h.target, exists)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, fill...)
		for _, from := range h.from {
			jump, err := r.jump(t, h.table, from, slices.Contains(chains, from) && exists)
			if err != nil {
				return nil, nil, err
			}
			out = append(out, jump...)
		}
	}
	for _, b := range r.cfg.Held {
		if b == t.Backend() {
			continue
		}
		old, err := r.open(b, r.cfg.V6)
		if errors.Is(err, ErrMissing) {
			had = append(had, b) // Undo says so
			continue
		} else if err != nil {
			return nil, nil, err
		}
		gone, err := r.removal(old)
		if err != nil {
			return nil, nil, err
		}
		if len(gone) > 0 {
			had = append(had, b)
		}
		out = append(out, gone...)
	}
	return had, out, nil
}

// fill makes our chain of one table hold our rules and nothing else. A chain
// that differs is filled anew as a whole: its order does not matter, but a
// stranger's rule in it does.
func (r *Rules) fill(t Tables, table, target string, exists bool) ([]change, error) {
	want := r.rules(target)
	var have []string
	if exists {
		var err error
		if have, err = t.Rules(table, Chain); err != nil {
			return nil, err
		}
		if same(have, want) {
			return nil, nil
		}
	}
	diff := fmt.Sprintf("+ %s: %d rules in %s", table, len(want), Chain)
	if len(have) > 0 {
		diff = fmt.Sprintf("+ %s: %d rules in %s instead of %d others", table, len(want), Chain, len(have))
	}
	return []change{{diff: diff, do: func() error {
		write := t.NewChain
		if exists {
			write = t.ClearChain
		}
		if err := write(table, Chain); err != nil {
			return err
		}
		for _, rule := range want {
			if err := t.Append(table, Chain, rule...); err != nil {
				return err
			}
		}
		return nil
	}}}, nil
}

// jump makes the built-in chain from jump to ours exactly once.
func (r *Rules) jump(t Tables, table, from string, look bool) ([]change, error) {
	want := []string{"-m", "comment", "--comment", comment, "-j", Chain}
	var out []change
	found := false
	if look {
		jumps, err := jumps(t, table, from)
		if err != nil {
			return nil, err
		}
		for _, j := range jumps {
			if !found && slices.Equal(canon(j), canon(want)) {
				found = true
				continue
			}
			out = append(out, removeJump(t, table, from, j))
		}
	}
	if !found {
		out = slices.Insert(out, 0, change{
			diff: fmt.Sprintf("+ %s: jump from %s to %s", table, from, Chain),
			do:   func() error { return t.Insert(table, from, 1, want...) },
		})
	}
	return out, nil
}

// removal takes everything of ours out of one back-end: jumps, then chains.
func (r *Rules) removal(t Tables) ([]change, error) {
	var out []change
	for _, h := range slices.Backward(hooks) {
		chains, err := t.Chains(h.table)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(chains, Chain) {
			continue // nothing can jump to a chain that is not there
		}
		for _, from := range h.from {
			if !slices.Contains(chains, from) {
				continue
			}
			js, err := jumps(t, h.table, from)
			if err != nil {
				return nil, err
			}
			for _, j := range js {
				out = append(out, removeJump(t, h.table, from, j))
			}
		}
		out = append(out, change{
			diff: fmt.Sprintf("- %s: chain %s in iptables-%s", h.table, Chain, t.Backend()),
			do: func() error {
				if err := t.ClearChain(h.table, Chain); err != nil {
					return err
				}
				return t.DeleteChain(h.table, Chain)
			},
		})
	}
	return out, nil
}

func removeJump(t Tables, table, from string, rule []string) change {
	return change{
		diff: fmt.Sprintf("- %s: jump from %s to %s", table, from, Chain),
		do:   func() error { return t.Delete(table, from, rule...) },
	}
}

// jumps lists the rules of a chain that lead to ours, each in words.
func jumps(t Tables, table, from string) ([][]string, error) {
	lines, err := t.Rules(table, from)
	if err != nil {
		return nil, err
	}
	var out [][]string
	for _, line := range lines {
		w := Words(line)
		if n := len(w); n >= 2 && (w[n-2] == "-j" || w[n-2] == "-g") && w[n-1] == Chain {
			out = append(out, w)
		}
	}
	return out, nil
}

// rules are those of our chain: both directions, both protocols. The chain is
// shared by the hooks of its table; a rule that never matches in one of them
// costs one comparison there.
func (r *Rules) rules(target string) [][]string {
	port := strconv.Itoa(int(r.cfg.Port))
	var out [][]string
	for _, a := range r.cfg.Addrs {
		p := netip.PrefixFrom(a, a.BitLen()).String()
		for _, proto := range []string{"udp", "tcp"} {
			out = append(out,
				[]string{"-d", p, "-p", proto, "--dport", port, "-m", "comment", "--comment", comment, "-j", target},
				[]string{"-s", p, "-p", proto, "--sport", port, "-m", "comment", "--comment", comment, "-j", target})
		}
	}
	return out
}

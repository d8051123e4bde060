package sysctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"nodelocaldns/host/step"
)

// The keys that are treated in a way of their own.
const (
	Max       = "net.netfilter.nf_conntrack_max"
	Buckets   = "net.netfilter.nf_conntrack_buckets"
	Count     = "net.netfilter.nf_conntrack_count"
	CloseWait = "net.netfilter.nf_conntrack_tcp_timeout_close_wait"
)

const (
	// entryBytes is what one conntrack entry costs: the slab object of 256
	// bytes and the 128 that the kernel allocates at once for its extensions
	// (NF_CT_EXT_PREALLOC in net/netfilter/nf_conntrack_extend.c).
	entryBytes = 256 + 128

	// memoryShare is the share of RAM that a full conntrack table may take:
	// one part in so many.
	memoryShare = 10

	// lowered is the share of a smaller nf_conntrack_max, in percent, that may
	// be in use when it is set: from there to a full table, which drops
	// packets, there must be room.
	lowered = 80
)

// A Setting is the step sysctl/<key>.
type Setting struct {
	values Values
	memory func() (uint64, error)
	param  Param
}

// New returns the step that sets p. memory is the node's RAM in bytes; it is
// asked only before nf_conntrack_max is raised.
func New(values Values, memory func() (uint64, error), p Param) *Setting {
	return &Setting{values: values, memory: memory, param: p}
}

// Name is the journal key.
func (s *Setting) Name() string { return "sysctl/" + s.param.Key }

// state is Before and After in the record: the text of the value.
type state struct {
	Value string `json:"value"`
}

// Check compares the value with what is wanted. A key that does not exist is
// satisfied: kernels differ in which they have. One that nobody may write, or
// that would cost more memory than the node can bear, is blocked.
func (s *Setting) Check(context.Context) (step.Finding, error) {
	key := s.param.Key
	text, err := s.values.Get(key)
	if errors.Is(err, fs.ErrNotExist) {
		return step.Finding{State: step.Satisfied, Why: "skipped: absent"}, nil
	} else if err != nil {
		return step.Finding{}, err
	}
	now, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return step.Finding{}, fmt.Errorf("%s is %q, which is not a number", key, text)
	}
	want := s.want()
	if p := (Param{Value: want, Policy: s.param.Policy}); p.Fits(now) {
		return step.Finding{State: step.Satisfied, Why: s.fitting(now)}, nil
	}
	ro, err := s.values.ReadOnly(key)
	if err != nil {
		return step.Finding{}, err
	}
	if ro {
		return step.Finding{
			State: step.Blocked,
			Why:   fmt.Sprintf("is %d, wanted %d, but it is read-only here", now, want),
			Hint:  "conntrack sizes are set in the node's own network namespace, and /proc/sys must be writable",
		}, nil
	}
	if key == Max && want > now {
		if f, err := s.tooBig(want); err != nil || f.State == step.Blocked {
			return f, err
		}
	}
	before, err := json.Marshal(state{Value: text})
	if err != nil {
		return step.Finding{}, err
	}
	after, err := json.Marshal(state{Value: strconv.FormatUint(want, 10)})
	return step.Finding{
		State:  step.Pending,
		Why:    fmt.Sprintf("is %d, wanted %d (%s)", now, want, s.param.Policy),
		Diff:   fmt.Sprintf("- %d\n+ %d", now, want),
		Before: before,
		After:  after,
	}, err
}

// Apply sets the value.
func (s *Setting) Apply(context.Context) error {
	return s.set(strconv.FormatUint(s.want(), 10))
}

// Undo sets the value found before our first Apply, if the present one is
// still ours. One that somebody else has set since is theirs.
func (s *Setting) Undo(_ context.Context, saved step.Saved) error {
	text, err := s.values.Get(s.param.Key)
	if errors.Is(err, fs.ErrNotExist) {
		return &step.Released{Why: s.param.Key + " does not exist any more"}
	} else if err != nil {
		return err
	}
	var before state
	if err := json.Unmarshal(saved.Before, &before); err != nil {
		return fmt.Errorf("reading the record: %w", err)
	}
	if text == before.Value {
		return nil
	}
	ours := false
	for _, raw := range saved.After {
		var after state
		if err := json.Unmarshal(raw, &after); err != nil {
			return fmt.Errorf("reading the record: %w", err)
		}
		ours = ours || after.Value == text
	}
	if !ours {
		return &step.Released{Why: fmt.Sprintf("%s is %s, which somebody else has set since", s.param.Key, text)}
	}
	if err := s.room(text, before.Value); err != nil {
		return err
	}
	return s.set(before.Value)
}

// set writes the value and reads it back: some writes that have no effect
// report none either.
func (s *Setting) set(value string) error {
	key := s.param.Key
	if err := s.values.Set(key, value); err != nil {
		return fmt.Errorf("setting %s: %w", key, err)
	}
	now, err := s.values.Get(key)
	if err != nil {
		return fmt.Errorf("reading %s back: %w", key, err)
	}
	if now != value {
		return fmt.Errorf("set %s to %s, but it is %s", key, value, now)
	}
	return nil
}

// room refuses to lower nf_conntrack_max to a value that is nearly in use.
func (s *Setting) room(now, before string) error {
	if s.param.Key != Max {
		return nil
	}
	n, err := strconv.ParseUint(now, 10, 64)
	if err != nil {
		return fmt.Errorf("%s is %q, which is not a number", Max, now)
	}
	old, err := strconv.ParseUint(before, 10, 64)
	if err != nil {
		return fmt.Errorf("the record says %s was %q, which is not a number", Max, before)
	}
	if old >= n {
		return nil
	}
	text, err := s.values.Get(Count)
	if err != nil {
		return fmt.Errorf("reading %s: %w", Count, err)
	}
	count, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return fmt.Errorf("%s is %q, which is not a number", Count, text)
	}
	if limit := old / 100 * lowered; count >= limit {
		return &step.Error{
			Err:  fmt.Errorf("%d connections are tracked, which is not below %d %% of the %d to go back to", count, lowered, old),
			Next: "run rollback again when there are fewer: sysctl " + Count,
		}
	}
	return nil
}

// want is the value to set. The kernel rounds the number of buckets up to
// whole pages of eight-byte heads, and reads back the rounded one.
func (s *Setting) want() uint64 {
	if s.param.Key != Buckets {
		return s.param.Value
	}
	page := uint64(os.Getpagesize() / 8)
	return (s.param.Value + page - 1) / page * page
}

func (s *Setting) fitting(now uint64) string {
	switch s.param.Policy {
	case Floor:
		return fmt.Sprintf("%d, at least %d", now, s.want())
	case Ceiling:
		return fmt.Sprintf("%d, at most %d", now, s.want())
	}
	return strconv.FormatUint(now, 10)
}

// tooBig is blocked if a full table of want entries would take too much of the
// node's memory.
func (s *Setting) tooBig(want uint64) (step.Finding, error) {
	ram, err := s.memory()
	if err != nil {
		return step.Finding{}, fmt.Errorf("asking for the size of memory: %w", err)
	}
	most := ram / memoryShare / entryBytes
	if want <= most {
		return step.Finding{}, nil
	}
	return step.Finding{
		State: step.Blocked,
		Why: fmt.Sprintf("%d entries would take %d MiB, more than a tenth of this node's %d MiB",
			want, want*entryBytes>>20, ram>>20),
		Hint: fmt.Sprintf("set %s to at most %d in the configuration", Max, most),
	}, nil
}

// Owner names who else is known to write key, or "". kube-proxy sets these
// when it starts (pkg/proxy/conntrack/sysctls.go).
func Owner(key string) string {
	if slices.Contains([]string{Max, Buckets, CloseWait, "net.netfilter.nf_conntrack_tcp_timeout_established"}, key) {
		return "kube-proxy"
	}
	return ""
}

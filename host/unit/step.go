// Package unit installs, enables and starts our own units, and takes that
// back.
package unit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/step"
	"nodelocaldns/units"
)

// StepName is the journal key of the step.
const StepName = "unit/nodelocaldns"

// A Status is what systemd says of a unit.
type Status struct {
	Load   string // loaded, not-found, masked, bad-setting, error
	Active string // active, reloading, inactive, failed, activating, deactivating
	Result string // why it failed, such as exit-code
	Stale  bool   // its files are newer than what systemd has read
}

// running says that the unit is up and not just on its way.
func (s Status) running() bool { return s.Active == "active" || s.Active == "reloading" }

// Systemd is what the step needs of systemd. Units are given by name.
type Systemd interface {
	// Reload makes it read its files again.
	Reload(ctx context.Context) error

	// Status is what it knows of a unit. One that it cannot find is no error.
	Status(ctx context.Context, name string) (Status, error)

	// Start, Restart and Stop return when the job is done; an error is that
	// the unit is not as it was asked to be. They do not start what the unit
	// wants, and Stop of one that is not there does nothing.
	Start(ctx context.Context, name string) error
	Restart(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error

	// ResetFailed forgets that the unit failed, and how often it was started.
	// For one that is not there it does nothing.
	ResetFailed(ctx context.Context, name string) error
}

// A Config is what a Step is made from.
type Config struct {
	Tree    fsys.Tree
	Files   fsys.Files
	Systemd Systemd // nil: nothing runs there, so that files and links are all there is

	// Units are our units, and what belongs to them, as this version writes them
	// for the configuration; none where only Undo is called.
	Units []units.File

	// Self is the unit that this process runs in, if any. It is never stopped
	// or restarted: who waits for their own end waits for ever.
	Self string

	// Held is what the record of the step says, the zero value without one.
	Held step.Saved

	// Unfinished says that the record is of an apply that was not seen to have
	// worked: it may have been cut off.
	Unfinished bool
}

// A Step is our units: installed from this program where nobody has brought
// them, enabled, and, but for those that run once at boot and the relay, started.
// Files that keep others from our interface, and load modules at boot, come with
// them, each where nobody has brought it and somebody reads it. Files that somebody
// else has brought are never written: where the configuration wants a unit of theirs
// otherwise, a drop-in of ours says so, below /etc because the sockets of a boot are
// made before anything of ours runs that could write below /run.
//
// When it replaces a file, the resolver and guard are restarted, which costs no
// query: they wait in the sockets. The sockets are only made anew where their
// addresses change, which may cost some: of a unit that is active systemd opens no
// more, and what the resolver has to bind itself dies with it, and what waits there.
type Step struct {
	cfg  Config
	held held

	// restarted says that this process has restarted what runs by an older
	// file.
	restarted bool
}

// New returns the step. The error is about Config.Held.
func New(cfg Config) (*Step, error) {
	h, err := parseSaved(cfg.Held)
	if err != nil {
		return nil, err
	}
	h.unfinished = cfg.Unfinished
	return &Step{cfg: cfg, held: h}, nil
}

// Name is step.Step.
func (s *Step) Name() string { return StepName }

// A before is what was there. There is no more to say of files than that none of
// ours was there: what was there is not touched.
type before struct {
	Ran []string `json:"ran,omitempty"` // units that somebody else has brought
}

// An after is what we may have left.
type after struct {
	Files   map[string]string `json:"files,omitempty"`  // name → sha256
	Listen  string            `json:"listen,omitempty"` // where the sockets are
	Links   map[string]string `json:"links,omitempty"`  // name → target
	Dirs    []string          `json:"dirs,omitempty"`
	Started []string          `json:"started,omitempty"` // units that did not run
}

// held is the record.
type held struct {
	open       bool
	unfinished bool
	ran        []string // before us
	after      []after
}

func parseSaved(s step.Saved) (held, error) {
	var h held
	if s.Before == nil {
		return h, nil
	}
	h.open = true
	var b before
	if err := json.Unmarshal(s.Before, &b); err != nil {
		return h, fmt.Errorf("reading the record of %s: %w", StepName, err)
	}
	h.ran = b.Ran
	for _, text := range s.After {
		var a after
		if err := json.Unmarshal(text, &a); err != nil {
			return h, fmt.Errorf("reading the record of %s: %w", StepName, err)
		}
		h.after = append(h.after, a)
	}
	return h, nil
}

// wrote says whether a file with this content may be ours, and whether any by
// that name may.
func (h held) wrote(name string, data []byte) (this, any bool) {
	for _, a := range h.after {
		want, ok := a.Files[name]
		this, any = this || ok && want == sum(data), any || ok
	}
	return this, any
}

// linked says whether we may have made the link.
func (h held) linked(name, target string) bool {
	return slices.ContainsFunc(h.after, func(a after) bool { return target != "" && a.Links[name] == target })
}

// unsure says that what is told of each state that we may have left is not always
// the same: the run that changed it was cut off, and what runs may run by the older
// one. With before, what was there before us may run too, of which there is nothing
// to be told.
func (h held) unsure(before bool, told func(after) string) bool {
	var all []string
	for _, a := range h.after {
		all = append(all, told(a))
	}
	if before && h.unfinished && len(all) == 1 { // our first
		all = append(all, "")
	}
	slices.Sort(all)
	return len(slices.Compact(all)) > 1
}

// all is everything we may have left.
func (h held) all() (files, dirs []string, links map[string][]string, started []string) {
	links = map[string][]string{}
	for _, a := range h.after {
		files = append(files, slices.Collect(maps.Keys(a.Files))...)
		dirs = append(dirs, a.Dirs...)
		started = append(started, a.Started...)
		for name, target := range a.Links {
			links[name] = append(links[name], target)
		}
	}
	unique := func(list []string) []string { // in order: a directory before those in it
		slices.Sort(list)
		return slices.Compact(list)
	}
	return unique(files), unique(dirs), links, unique(started)
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

const keepHint = "nodelocaldns rollback --keep=" + StepName + " leaves it as it is"

// Check is step.Step.
func (s *Step) Check(ctx context.Context) (step.Finding, error) {
	p, err := s.plan(ctx)
	var r *refusal
	if errors.As(err, &r) {
		return step.Finding{State: step.Blocked, Why: r.why, Hint: r.hint}, nil
	} else if err != nil {
		return step.Finding{}, err
	}
	if len(p.why) == 0 {
		return step.Finding{Why: p.whence() + s.running()}, nil
	}
	out := step.Finding{State: step.Pending, Why: strings.Join(p.why, "; "), Diff: p.diff()}
	if out.Before, err = json.Marshal(p.before); err != nil {
		return out, err
	}
	out.After, err = json.Marshal(p.after)
	return out, err
}

func (s *Step) running() string {
	if s.cfg.Systemd == nil {
		return ", enabled"
	}
	return "; guard, socket and resolver run"
}

// A refusal is a reason why nothing may be done. It is not an error of Check.
type refusal struct{ why, hint string }

func (r *refusal) Error() string { return r.why }

// Hint says what to do next.
func (r *refusal) Hint() string { return r.hint }

func refuse(hint, format string, args ...any) error {
	return &refusal{fmt.Sprintf(format, args...), hint}
}

// Apply is step.Step. If a file cannot be written, those that were not there
// before are gone again when it returns. If a unit does not start, all stays:
// the next Apply tries again.
func (s *Step) Apply(ctx context.Context) error {
	p, err := s.plan(ctx)
	if err != nil {
		return err
	}
	s.held.after = append(s.held.after, p.after) // as the record has it by now
	if err := s.write(p); err != nil {
		return err
	}
	sd := s.cfg.Systemd
	if sd == nil {
		return nil
	}
	if p.reload {
		if err := sd.Reload(ctx); err != nil {
			return fmt.Errorf("reloading systemd: %w", err)
		}
	}
	start, restart := p.start, p.restart
	switch {
	case p.anew:
		restart = append(slices.Clone(restart), units.Resolver)
	case slices.Contains(start, units.Socket):
		start = append(slices.Clone(start), units.Resolver)
	}
	for _, name := range units.Names {
		switch {
		case name == units.Socket && p.anew:
			if err := s.renew(ctx); err != nil {
				return err
			}
		case slices.Contains(start, name):
			if name == units.Socket {
				// systemd makes no sockets where somebody has made their own already.
				if err := s.stop(ctx, answering); err != nil {
					return err
				}
			}
			// It may have failed so often that systemd starts it no more.
			if err := sd.ResetFailed(ctx, name); err != nil {
				return fmt.Errorf("starting %s: %w", name, err)
			}
			if err := sd.Start(ctx, name); err != nil {
				return failed("starting", name, err)
			}
		case slices.Contains(restart, name):
			if err := sd.Restart(ctx, name); err != nil {
				return failed("restarting", name, err)
			}
		}
	}
	s.restarted = true
	return nil
}

// failed adds where systemd says more of a unit that is not as it should be.
func failed(doing, name string, err error) error {
	return &step.Error{Err: fmt.Errorf("%s %s: %w", doing, name, err), Next: "journalctl -u " + name + " says why"}
}

// write makes directories, files and links.
func (s *Step) write(p plan) error {
	var made []string
	back := func(name string, err error) error {
		for _, m := range slices.Backward(made) {
			err = errors.Join(err, s.removeOne(m))
		}
		return writing(name, err)
	}
	for _, dir := range p.dirs {
		if err := s.cfg.Files.Mkdir(dir); err != nil {
			return back(dir, err)
		}
		made = append(made, dir)
	}
	for _, f := range p.files {
		c := fsys.Content{Data: f.now, Mode: 0o644, UID: os.Getuid(), GID: os.Getgid()}
		if err := fsys.Replace(s.cfg.Files, f.name, c, ""); err != nil {
			return back(f.name, err)
		}
		if f.was == nil {
			made = append(made, f.name)
		}
	}
	for _, l := range p.links {
		if err := s.cfg.Files.Symlink(l.target, l.name); err != nil {
			return back(l.name, err)
		}
		made = append(made, l.name)
	}
	for _, name := range p.remove {
		if err := errors.Join(s.removeOne(fsys.Temporary(name)), s.removeOne(name)); err != nil {
			return err
		}
	}
	return nil
}

// writing adds what can be done about an error.
func writing(name string, err error) error {
	err = fmt.Errorf("writing %s: %w", name, err)
	switch {
	case errors.Is(err, syscall.EROFS):
		return &step.Error{Err: err, Next: "it is read-only here: install the units when the image is built, with apply --root, or from a package"}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &step.Error{Err: err, Next: "make room there, then apply again"}
	}
	return err
}

// removeOne removes what we made; a directory only if nobody has put anything
// into it.
func (s *Step) removeOne(name string) error {
	err := s.cfg.Files.Remove(name)
	if err == nil || errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return fmt.Errorf("removing %s: %w", name, err)
}

// Undo is step.Step. A file that somebody has edited keeps all of it as it is.
func (s *Step) Undo(ctx context.Context, saved step.Saved) error {
	h, err := parseSaved(saved)
	if err != nil || !h.open {
		return err
	}
	files, dirs, links, stop := h.all()
	for _, name := range files {
		if err := s.intact(h, name); err != nil {
			return err
		}
	}
	// First what would start them again if the power went now.
	for _, name := range slices.Sorted(maps.Keys(links)) {
		stop = append(stop, path.Base(name))
		if target, err := s.cfg.Tree.Readlink(name); err != nil || !slices.Contains(links[name], target) {
			continue // gone, or not ours
		}
		if err := s.removeOne(name); err != nil {
			return err
		}
	}
	for _, name := range files {
		stop = append(stop, path.Base(name))
	}
	if slices.Contains(stop, units.Socket) {
		stop = append(stop, units.Relay) // nobody but its sockets and guard has started it
	}
	if err := s.stop(ctx, stop); err != nil {
		return err
	}
	for _, name := range files {
		if err := errors.Join(s.removeOne(fsys.Temporary(name)), s.removeOne(name)); err != nil {
			return err
		}
	}
	for _, name := range slices.Backward(dirs) {
		if err := s.removeOne(name); err != nil {
			return err
		}
	}
	if err := s.forget(ctx, stop); err != nil {
		return err
	}
	return s.unfit(ctx, h, files, stop)
}

// unfit has what ran before us run as it did, by what somebody else has brought and
// no drop-in of ours, if it has not been stopped.
func (s *Step) unfit(ctx context.Context, h held, files, stopped []string) error {
	sd := s.cfg.Systemd
	if sd == nil {
		return nil
	}
	sockets := slices.Contains(files, dropInOf(units.Socket)) && slices.Contains(h.ran, units.Socket) && !slices.Contains(stopped, units.Socket)
	if sockets {
		if err := s.renew(ctx); err != nil {
			return err
		}
	}
	for _, name := range []string{units.Resolver, units.Relay, units.Guard} {
		if !slices.Contains(h.ran, name) || slices.Contains(stopped, name) || name == s.cfg.Self {
			continue
		}
		st, err := sd.Status(ctx, name)
		if err != nil {
			return err
		}
		if st.running() && slices.Contains(files, dropInOf(name)) || sockets && name == units.Resolver {
			if err := sd.Restart(ctx, name); err != nil {
				return failed("restarting", name, err)
			}
		}
	}
	return nil
}

// renew makes the sockets of a socket unit that is active anew. The resolver is to be
// restarted, or started, then.
//
// Who answers has the old ones as long as they run, and answers from them; systemd
// makes the new ones beside them, where queries wait for the next process. Of 1,000 a
// second a few are lost, those that come when the old process has stopped reading. It
// cannot where the resolver has bound one of the addresses itself, nor beside the
// relay: then whoever answers ends first, and for the time without any socket,
// some 60 to 100 ms, queries are lost.
func (s *Step) renew(ctx context.Context) error {
	sd := s.cfg.Systemd
	if sd.Restart(ctx, units.Socket) == nil {
		return nil
	}
	if err := s.stop(ctx, answering); err != nil {
		return err
	}
	if err := sd.ResetFailed(ctx, units.Socket); err != nil {
		return fmt.Errorf("starting %s: %w", units.Socket, err)
	}
	if err := sd.Start(ctx, units.Socket); err != nil {
		return failed("starting", units.Socket, err)
	}
	return nil
}

// answering are those who answer queries, and who starts them for one.
var answering = []string{units.Socket, units.Resolver, units.Relay}

// intact is an error if the file is there and not as we wrote it.
func (s *Step) intact(h held, name string) error {
	changed := &step.Error{Err: fmt.Errorf("%s changed since we wrote it", name), Next: keepHint}
	info, err := s.cfg.Tree.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return changed
	}
	data, err := s.cfg.Tree.ReadFile(name)
	if err != nil {
		return err
	}
	if this, _ := h.wrote(name, data); !this {
		return changed
	}
	return nil
}

// stopOrder is that in which units stop: the socket first, which would start the
// relay for the next query; guard last.
var stopOrder = []string{units.Socket, units.Resolver, units.Relay, units.Kubelet, units.Resume, units.Guard}

func (s *Step) stop(ctx context.Context, names []string) error {
	if s.cfg.Systemd == nil {
		return nil
	}
	for _, name := range stopOrder {
		if name == s.cfg.Self || !slices.Contains(names, name) {
			continue
		}
		if err := s.cfg.Systemd.Stop(ctx, name); err != nil {
			return failed("stopping", name, err)
		}
	}
	return nil
}

// forget has systemd see that the files are gone, and that those units failed
// once.
func (s *Step) forget(ctx context.Context, names []string) error {
	if s.cfg.Systemd == nil {
		return nil
	}
	if err := s.cfg.Systemd.Reload(ctx); err != nil {
		return fmt.Errorf("reloading systemd: %w", err)
	}
	for _, name := range stopOrder {
		if !slices.Contains(names, name) {
			continue
		}
		if err := s.cfg.Systemd.ResetFailed(ctx, name); err != nil {
			return fmt.Errorf("resetting %s: %w", name, err)
		}
	}
	return nil
}

// equal is bytes.Equal for a file that may not be there.
func equal(had, want []byte) bool { return had != nil && bytes.Equal(had, want) }

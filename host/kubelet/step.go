package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/step"
)

// StepName is the journal key of the step.
const StepName = "kubelet/cluster-dns"

// A Verifier asks systemd itself what it makes of a unit.
type Verifier interface {
	// Reload makes systemd read its files again.
	Reload(ctx context.Context) error

	// Accepts returns nil if systemd loads the unit, has read the drop-in
	// file, and would start argv, before it replaces variables. It is called
	// after Reload.
	Accepts(ctx context.Context, unit, file string, argv []string) error
}

// A Config is what a Step is made from.
type Config struct {
	Node   Node
	Want   Want
	Files  fsys.Files
	Verify Verifier // nil: nobody is asked, as where there is no systemd

	// Held is what the record of the step says, the zero value without one.
	Held step.Saved
}

// A Step is the file that makes the kubelet ask us first. It restarts nothing:
// the file counts from the next start of the kubelet.
type Step struct {
	cfg  Config
	tree fsys.Tree
	held held
}

// New returns the step. The error is about Config.Held.
func New(cfg Config) (*Step, error) {
	h, err := parseSaved(cfg.Held)
	if err != nil {
		return nil, err
	}
	return &Step{cfg: cfg, tree: cfg.Node.Tree, held: h}, nil
}

// Name is step.Step.
func (s *Step) Name() string { return StepName }

// A before is what stood where our file goes.
type before struct {
	Path string        `json:"path"`
	File *fsys.Content `json:"file"`           // null: nothing
	Dirs []string      `json:"dirs,omitempty"` // directories above it that did not exist, outermost first
}

// An after is what we may have left.
type after struct {
	Path   string   `json:"path"`
	Sum    string   `json:"sha256"` // of the content
	Theirs bool     `json:"theirs,omitempty"`
	Dirs   []string `json:"dirs,omitempty"` // that we made, for this file or an earlier one
}

type held struct {
	open   bool
	before before
	after  []after
}

func parseSaved(s step.Saved) (held, error) {
	var h held
	if s.Before == nil {
		return h, nil
	}
	h.open = true
	if err := json.Unmarshal(s.Before, &h.before); err != nil {
		return h, fmt.Errorf("reading the record of %s: %w", StepName, err)
	}
	for _, text := range s.After {
		var a after
		if err := json.Unmarshal(text, &a); err != nil {
			return h, fmt.Errorf("reading the record of %s: %w", StepName, err)
		}
		h.after = append(h.after, a)
	}
	return h, nil
}

func (h held) dirs() []string {
	all := slices.Clone(h.before.Dirs)
	for _, a := range h.after {
		all = append(all, a.Dirs...)
	}
	slices.Sort(all) // a directory before those in it
	return slices.Compact(all)
}

func (h held) theirs() string {
	if h.before.File != nil {
		return h.before.Path
	}
	return ""
}

const keepHint = "nodelocaldns rollback --keep=" + StepName + " leaves it as it is"

// Check is step.Step.
func (s *Step) Check(ctx context.Context) (step.Finding, error) {
	f, c, err := Plan(ctx, s.cfg.Node, s.cfg.Want)
	if r := new(Refusal); errors.As(err, &r) {
		return step.Finding{State: step.Blocked, Why: r.Why, Hint: r.Next}, nil
	} else if err != nil {
		return step.Finding{}, err
	}
	if theirs := s.held.theirs(); theirs != "" && theirs != c.Path && c.Path != "" {
		return blocked("run nodelocaldns rollback, then apply", "%s still has our change, and now %s is to have it", theirs, c.Path), nil
	}
	if c.Path == "" {
		return step.Finding{Why: fmt.Sprintf("pods ask %s already (%s)", named(f.Now), f.NowFrom)}, nil
	}
	now, err := s.look(c.Path)
	if err != nil {
		return step.Finding{}, err
	}
	finding := step.Finding{Why: why(f, c, false)}
	if now.blocked != "" {
		return blocked(now.hint, "%s", now.blocked), nil
	}
	stale, err := s.stale(f, c)
	if err != nil {
		return step.Finding{}, err
	}
	if now.file != nil && slices.Equal(now.file.Data, c.Content) && len(stale) == 0 {
		finding.Why = why(f, c, true)
		return finding, nil
	}
	was := before{Path: c.Path, Dirs: now.dirs}
	switch mine, intact := ourFile(now.data()); {
	case c.Theirs:
		if s.held.open && !s.knows(now.data(), c.Path) {
			return blocked(keepHint+"; then apply again", "%s changed since we changed it", c.Path), nil
		}
		was.File = now.file
	case now.file == nil:
	case !mine:
		return blocked("move it away: the name is ours", "%s is not ours", c.Path), nil
	case !intact:
		return blocked("put the edit into a file of its own and delete this one; "+keepHint, "%s changed since we wrote it", c.Path), nil
	}
	finding.State = step.Pending
	finding.Diff = diff(f, c, now.data())
	if finding.Before, err = json.Marshal(was); err != nil {
		return step.Finding{}, err
	}
	dirs := append(s.held.dirs(), now.dirs...)
	slices.Sort(dirs)
	finding.After, err = json.Marshal(after{Path: c.Path, Sum: sum(c.Content), Theirs: c.Theirs, Dirs: slices.Compact(dirs)})
	return finding, err
}

func blocked(hint, format string, args ...any) step.Finding {
	return step.Finding{State: step.Blocked, Why: fmt.Sprintf(format, args...), Hint: hint}
}

// why is the one line for plan and status. there says that the file is.
func why(f Facts, c Change, there bool) string {
	switch {
	case f.Later:
		return c.Path + ": the list is found when the kubelet first starts"
	case there && slices.Equal(f.Now, f.Target):
		return fmt.Sprintf("%s: pods ask %s (%s: %s)", c.Path, join(f.Target), f.Unit, f.Backend)
	}
	return fmt.Sprintf("%s: pods will ask %s from the next start of the kubelet (%s: %s)", c.Path, join(f.Target), f.Unit, f.Backend)
}

// diff is for plan: whom pods ask, and the file line by line.
func diff(f Facts, c Change, had []byte) string {
	var out strings.Builder
	if !f.Later {
		now, from := join(f.Now), f.NowFrom
		if len(f.Now) == 0 {
			now, from = "those of the node", "no cluster DNS"
		}
		fmt.Fprintf(&out, "- %s  %s\n+ %s  %s\n", now, from, join(f.Target), f.Backend)
	}
	old, now := lines(had, c.Theirs), lines(c.Content, c.Theirs)
	for _, l := range old {
		if !slices.Contains(now, l) {
			out.WriteString("- " + l + "\n")
		}
	}
	for _, l := range now {
		if !slices.Contains(old, l) {
			out.WriteString("+ " + l + "\n")
		}
	}
	return out.String()
}

// lines are the lines of a file; comments only where the file is not ours.
func lines(data []byte, comments bool) []string {
	var out []string
	for l := range strings.Lines(string(data)) {
		if l = strings.TrimRight(l, "\r\n"); l != "" && (comments || !strings.HasPrefix(l, "#")) {
			out = append(out, l)
		}
	}
	return out
}

// knows says whether the content is what was before us, or what we left.
func (s *Step) knows(data []byte, name string) bool {
	if s.held.before.Path == name && s.held.before.File != nil && slices.Equal(data, s.held.before.File.Data) {
		return true
	}
	return slices.ContainsFunc(s.held.after, func(a after) bool { return a.Path == name && a.Sum == sum(data) })
}

// A seen is what stands at a name.
type seen struct {
	file    *fsys.Content // nil: nothing
	dirs    []string      // directories above it that are missing, outermost first
	blocked string        // why nothing can be written there
	hint    string
}

func (s seen) data() []byte {
	if s.file == nil {
		return nil
	}
	return s.file.Data
}

func (s *Step) look(name string) (seen, error) {
	var out seen
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		info, err := s.tree.Stat(dir)
		if err == nil && !info.IsDir() || errors.Is(err, syscall.ENOTDIR) {
			return seen{blocked: dir + " is no directory", hint: "move it away"}, nil
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return seen{}, err
		}
		if _, err := s.tree.Lstat(dir); err == nil {
			return seen{blocked: dir + " is a link that leads nowhere", hint: "make what it points to, or remove it"}, nil
		}
		out.dirs = append(out.dirs, dir)
	}
	slices.Reverse(out.dirs)
	info, err := s.tree.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return out, nil
	case err != nil:
		return seen{}, err
	case info.Mode().Type() == fs.ModeSymlink:
		target, _ := s.tree.Readlink(name)
		out.blocked, out.hint = fmt.Sprintf("%s is a link to %s", name, target), "remove it: the name is ours"
		if target == "/dev/null" {
			out.blocked, out.hint = fmt.Sprintf("%s is masked by a link to /dev/null", name), "somebody does not want us here; remove the link if that is over"
		}
		return out, nil
	case !info.Mode().IsRegular():
		out.blocked, out.hint = name+" is no regular file", "move it away: the name is ours"
		return out, nil
	case info.Size() == 0 && strings.HasSuffix(name, fileName):
		out.blocked, out.hint = fmt.Sprintf("%s is masked: it is empty", name), "somebody does not want us here; remove it if that is over"
		return out, nil
	}
	data, err := s.tree.ReadFile(name)
	if err != nil {
		return seen{}, err
	}
	out.file = &fsys.Content{Data: data, Mode: info.Mode().Perm()}
	out.file.UID, out.file.GID = fsys.Owner(info)
	return out, nil
}

// stale are files of ours by names that are not to be used any more.
func (s *Step) stale(f Facts, c Change) ([]string, error) {
	dirs := []string{path.Join("/etc/systemd/system", f.Unit+".d"), path.Dir(c.Path)}
	for _, a := range s.held.after {
		if !a.Theirs {
			dirs = append(dirs, path.Dir(a.Path))
		}
	}
	slices.Sort(dirs)
	var out []string
	for _, dir := range slices.Compact(dirs) {
		for _, name := range fileNames {
			name = path.Join(dir, name)
			if name == c.Path {
				continue
			}
			info, err := s.tree.Lstat(name)
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			data, err := s.tree.ReadFile(name)
			if err != nil {
				return nil, err
			}
			if mine, intact := ourFile(data); mine && intact {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

// Apply is step.Step. If systemd does not take the file, or any write fails,
// what it found is there again when it returns.
func (s *Step) Apply(ctx context.Context) error {
	f, c, err := Plan(ctx, s.cfg.Node, s.cfg.Want)
	if err != nil {
		return err
	}
	if c.Path == "" {
		return nil
	}
	was, err := s.look(c.Path)
	if err != nil {
		return err
	}
	if was.blocked != "" {
		return &step.Error{Err: errors.New(was.blocked), Next: was.hint}
	}
	want := fsys.Content{Data: c.Content, Mode: 0o644, UID: os.Getuid(), GID: os.Getgid()}
	like := ""
	if c.Theirs && was.file != nil {
		want.Mode, want.UID, want.GID, like = was.file.Mode, was.file.UID, was.file.GID, c.Path
	}
	for _, dir := range was.dirs {
		if err := s.cfg.Files.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return writing(dir, errors.Join(err, s.removeDirs(was.dirs)))
		}
	}
	if err := fsys.Replace(s.cfg.Files, c.Path, want, like); err != nil {
		return writing(c.Path, errors.Join(err, s.removeDirs(was.dirs)))
	}
	if err := s.verify(ctx, f, c); err != nil {
		// The caller's context may be why; taking back must not stop with it.
		return errors.Join(err, s.takeBack(context.WithoutCancel(ctx), c.Path, was))
	}
	stale, err := s.stale(f, c)
	if err != nil {
		return err
	}
	for _, name := range stale {
		if err := s.cfg.Files.Remove(name); err != nil {
			return fmt.Errorf("removing %s: %w", name, err)
		}
	}
	if len(stale) > 0 {
		return s.verify(ctx, f, c)
	}
	return nil
}

// writing adds what can be done about an error.
func writing(name string, err error) error {
	err = fmt.Errorf("writing %s: %w", name, err)
	switch {
	case errors.Is(err, syscall.EROFS):
		return &step.Error{Err: err, Next: "it is read-only here: write the file when the image is built, with apply --root"}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &step.Error{Err: err, Next: "make room there; nothing was changed"}
	}
	return err
}

// verify asks systemd, if it reads the file at all.
func (s *Step) verify(ctx context.Context, f Facts, c Change) error {
	if s.cfg.Verify == nil || c.Argv == nil {
		return nil
	}
	if err := s.cfg.Verify.Reload(ctx); err != nil {
		return fmt.Errorf("reloading systemd: %w", err)
	}
	err := s.cfg.Verify.Accepts(ctx, f.Unit, c.Path, c.Argv)
	if errors.Is(err, ErrNoAnalyze) {
		return &step.Error{
			Err:  fmt.Errorf("verifying %s: %w", c.Path, err),
			Next: "install systemd where this runs: no file stays that systemd has not read",
		}
	}
	if err != nil {
		return &step.Error{
			Err:  fmt.Errorf("systemd does not take %s: %w", c.Path, err),
			Next: "the file is as it was before; set kubelet.backend to another one, or report the unit: systemctl cat " + f.Unit,
		}
	}
	return nil
}

// takeBack puts back what was at name.
func (s *Step) takeBack(ctx context.Context, name string, was seen) error {
	var err error
	if was.file != nil {
		err = fsys.Replace(s.cfg.Files, name, *was.file, name)
	} else if err = s.cfg.Files.Remove(name); err == nil {
		err = s.removeDirs(was.dirs)
	}
	if err != nil {
		return fmt.Errorf("taking back %s: %w", name, err)
	}
	return s.reload(ctx)
}

func (s *Step) reload(ctx context.Context) error {
	if s.cfg.Verify == nil {
		return nil
	}
	if err := s.cfg.Verify.Reload(ctx); err != nil {
		return fmt.Errorf("reloading systemd: %w", err)
	}
	return nil
}

// removeDirs removes directories that we made, innermost first, unless
// somebody has put something there.
func (s *Step) removeDirs(dirs []string) error {
	for _, dir := range slices.Backward(dirs) {
		err := s.cfg.Files.Remove(dir)
		if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("removing %s: %w", dir, err)
		}
	}
	return nil
}

// Undo is step.Step.
func (s *Step) Undo(ctx context.Context, saved step.Saved) error {
	h, err := parseSaved(saved)
	if err != nil || !h.open {
		return err
	}
	paths := []string{h.before.Path}
	for _, a := range h.after {
		paths = append(paths, a.Path)
	}
	slices.Sort(paths)
	var errs []error
	for _, name := range slices.Compact(paths) {
		errs = append(errs, s.undoFile(h, name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := s.removeDirs(h.dirs()); err != nil {
		return err
	}
	return s.reload(ctx)
}

func (s *Step) undoFile(h held, name string) error {
	if err := s.cfg.Files.Remove(fsys.Temporary(name)); err != nil {
		return fmt.Errorf("removing %s: %w", fsys.Temporary(name), err)
	}
	now, err := s.look(name)
	if err != nil {
		return err
	}
	was := h.before.File
	if name != h.before.Path {
		was = nil
	}
	ours := func(a after) bool { return a.Path == name && now.file != nil && a.Sum == sum(now.file.Data) }
	mine, intact := ourFile(now.data())
	changed := &step.Error{Err: fmt.Errorf("%s changed since we wrote it", name), Next: keepHint}
	switch {
	case now.file == nil && now.blocked == "" && was == nil:
		return nil
	case was != nil && now.file != nil && slices.Equal(now.file.Data, was.Data):
		return nil
	case now.blocked != "":
		return changed
	case now.file == nil: // theirs, and gone: the package was removed, say
		return &step.Released{Why: name + " is gone, and our change in it"}
	case !slices.ContainsFunc(h.after, ours) && (was != nil || !mine || !intact):
		return changed
	case was == nil:
		if err := s.cfg.Files.Remove(name); err != nil {
			return fmt.Errorf("removing %s: %w", name, err)
		}
		return nil
	}
	if err := fsys.Replace(s.cfg.Files, name, *was, name); err != nil {
		return writing(name, err)
	}
	return nil
}

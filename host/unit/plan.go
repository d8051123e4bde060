package unit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"nodelocaldns/units"
)

// etc is where the administrator's units are, those that we install, and the
// links that enable units.
const etc = "/etc/" + units.UnitDir

// elsewhere are the directories for the files of packages, and for those that
// end with a reboot, in systemd's order (systemd.unit(5), table 1; systemd.network(5),
// modules-load.d(5), NetworkManager.conf(5)). Where /lib is not /usr/lib, Debian's
// packages have their units in it.
var elsewhere = []string{"/run", "/usr/local/lib", "/usr/lib", "/lib"}

// dropInOf is our drop-in for a unit.
func dropInOf(name string) string { return path.Join(etc, name+".d", units.DropInName) }

// A file is one that is to be written.
type file struct {
	name string
	was  []byte // nil: nothing
	now  []byte
}

// A link is one that is to be made.
type link struct{ name, target string }

// A plan is what is to be done, and why.
type plan struct {
	dirs    []string // to be made, outermost first
	files   []file
	links   []link
	remove  []string // files of ours
	reload  bool
	start   []string
	restart []string
	anew    bool // the sockets

	states map[string]Status

	why     []string // one reason each; nothing is to be done without one
	brought string   // the directory of the files, where they are not ours
	fitted  bool     // by drop-ins of ours
	shadows bool     // they are ours, and a package has brought some too
	before  before
	after   after
}

func (p *plan) because(format string, args ...any) {
	p.why = append(p.why, fmt.Sprintf(format, args...))
}

// whence says who has brought the units.
func (p *plan) whence() string {
	by := ""
	if p.fitted {
		by = ", with drop-ins of ours for the configuration"
	}
	switch {
	case p.brought == etc:
		return "somebody's own in " + etc + by
	case p.brought != "":
		return "of a package in " + p.brought + by
	case p.shadows:
		return "installed from this program, over those of a package"
	}
	return "installed from this program"
}

// plan finds out what is to be done. The error may be a *refusal.
func (s *Step) plan(ctx context.Context) (plan, error) {
	p := plan{after: after{Files: map[string]string{}, Links: map[string]string{}}}
	for _, name := range []string{units.Program, units.RelayProgram} {
		if err := s.program(name); err != nil {
			return p, err
		}
	}
	found, err := s.find()
	if err != nil {
		return p, err
	}
	if err := s.planFiles(&p, found); err != nil {
		return p, err
	}
	if err := s.planLinks(&p, found); err != nil {
		return p, err
	}
	if err := s.planDropIns(&p, found); err != nil {
		return p, err
	}
	_, dirs, _, started := s.held.all()
	p.after.Dirs, p.after.Started = append(dirs, p.dirs...), started
	if s.cfg.Systemd != nil {
		if err := s.planStates(ctx, &p, found); err != nil {
			return p, err
		}
	}
	for _, list := range []*[]string{&p.after.Dirs, &p.after.Started} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return p, nil
}

// program refuses where a program that the units start is missing: a program
// that copies itself there could not be taken back while units of a package
// want it.
func (s *Step) program(name string) error {
	hint := "install both programs: install -m 755 nodelocaldns nodelocaldns-relay " + s.cfg.Tree.Path(path.Dir(name)) + "/"
	info, err := s.cfg.Tree.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return refuse(hint, "%s is not there, and our units start it", name)
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return refuse(hint, "%s is no program that can be started", name)
	}
	return nil
}

// A found is what is there of one file.
type found struct {
	units.File
	name string // where we put it
	at   string // the file that is read, "" for none
	data []byte // of a file that is ours
	ours bool   // we wrote it

	packaged string // a file elsewhere, which need not be the one that counts

	says []byte // of a unit that somebody else has brought
	drop file   // ours for it: what is there of ours, and what is to be
}

// theirs says that somebody else has brought the file.
func (u found) theirs() bool { return u.at != "" && !u.ours }

// label is the file in words: units have their names to themselves.
func (u found) label() string {
	if u.Unit() {
		return u.Name
	}
	return u.name
}

func (s *Step) find() ([]found, error) {
	var out []found
	var brought, missing []string
	for _, f := range s.cfg.Units {
		if of, err := s.ofUse(f); err != nil || !of {
			if err != nil {
				return nil, err
			}
			continue
		}
		u, err := s.findFile(f)
		if err == nil && f.Unit() {
			err = s.findDropIn(&u)
		}
		if err != nil {
			return nil, err
		}
		switch {
		case !f.Unit():
		case u.at == "":
			missing = append(missing, f.Name)
		case u.packaged != "" && !u.ours:
			brought = append(brought, u.packaged)
		}
		out = append(out, u)
	}
	if len(brought) > 0 && len(missing) > 0 {
		return nil, refuse("install the package again, whole", "somebody has brought %s but not %s", brought[0], strings.Join(missing, ", "))
	}
	return out, nil
}

// ofUse says whether anybody would read the file, and it is for us to bring it.
func (s *Step) ofUse(f units.File) (bool, error) {
	if f.Packaged || f.Readers == nil {
		return !f.Packaged, nil
	}
	for _, name := range f.Readers {
		_, err := s.cfg.Tree.Stat(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err == nil, err
		}
	}
	return false, nil
}

// findFile finds out what is there by the name of a file of ours. What is not a
// unit need not be ours to be right: who has a file of that name, or masks it, has
// decided.
func (s *Step) findFile(f units.File) (found, error) {
	name := path.Join("/etc", f.Dir, f.Name)
	u := found{File: f, name: name}
	kind, err := s.kindOf(name)
	if err != nil {
		return u, err
	}
	for _, dir := range elsewhere {
		at := path.Join(dir, f.Dir, f.Name)
		k, err := s.kindOf(at)
		switch {
		case err != nil:
			return u, err
		case k == isMask && kind == isNothing && u.packaged == "" && f.Unit():
			return u, masked(at)
		case k == isFile || k == isLink || k == isMask && !f.Unit():
			if u.packaged == "" {
				u.packaged = at
			}
		}
	}
	switch kind {
	case isNothing:
		u.at = u.packaged
		return u, nil
	case isMask:
		if f.Unit() {
			return u, masked(name)
		}
		u.at, u.packaged = name, name
		return u, nil
	case isLink: // systemctl link, or a system whose /etc is made of links
		u.at, u.packaged = name, name
		return u, nil
	case isOther:
		return u, refuse("move it away: the name is ours", "%s is no regular file", name)
	}
	data, err := s.cfg.Tree.ReadFile(name)
	if err != nil {
		return u, err
	}
	u.at = name
	this, any := s.held.wrote(name, data)
	switch {
	case this:
		u.ours, u.data = true, data
	case any && f.Unit():
		return u, refuse("put the edit into a drop-in (systemctl edit "+f.Name+") and delete the file; "+keepHint, "%s changed since we wrote it", name)
	case any:
		return u, refuse("delete it; "+keepHint, "%s changed since we wrote it", name)
	case u.packaged != "", equal(data, f.Content), !f.Unit(): // somebody's own, in place of the package's or as we would have it
		u.packaged = name
	default:
		return u, refuse("move it away: the name is ours; what is to differ goes into a drop-in (systemctl edit "+f.Name+")", "%s is not ours", name)
	}
	return u, nil
}

// findDropIn finds out what is there by the name of our drop-in for a unit, and
// what is to be. Who has a file of that name has decided.
func (s *Step) findDropIn(u *found) error {
	u.drop.name = dropInOf(u.Name)
	if u.theirs() {
		text, err := s.cfg.Tree.ReadFile(u.at)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a link that leads nowhere
			return err
		}
		u.says, u.drop.now = text, u.DropIn(text)
	}
	switch kind, err := s.kindOf(u.drop.name); {
	case err != nil || kind == isNothing:
		return err
	case kind != isFile:
		u.drop.now = nil
		return nil
	}
	data, err := s.cfg.Tree.ReadFile(u.drop.name)
	if err != nil {
		return err
	}
	switch this, any := s.held.wrote(u.drop.name, data); {
	case this:
		u.drop.was = data
	case any:
		return refuse("put the edit into a drop-in of another name (systemctl edit "+u.Name+") and delete the file; "+keepHint, "%s changed since we wrote it", u.drop.name)
	default:
		u.drop.now = nil
	}
	return nil
}

func masked(name string) error {
	return refuse("somebody does not want it to run; systemctl unmask "+path.Base(name)+" if that is over", "%s masks our unit", name)
}

// The kinds of what stands at the name of a unit.
type kind int

const (
	isNothing kind = iota
	isFile
	isLink
	isMask // an empty file, or a link to /dev/null
	isOther
)

func (s *Step) kindOf(name string) (kind, error) {
	info, err := s.cfg.Tree.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return isNothing, nil
	case err != nil:
		return isNothing, err
	case info.Mode().Type() == fs.ModeSymlink:
		if target, err := s.cfg.Tree.Readlink(name); err != nil || target == "/dev/null" {
			return isMask, err
		}
		return isLink, nil
	case !info.Mode().IsRegular():
		return isOther, nil
	case info.Size() == 0:
		return isMask, nil
	}
	return isFile, nil
}

// planFiles plans the files, and says whose they are.
func (s *Step) planFiles(p *plan, all []found) error {
	var fresh, changed []string
	for _, u := range all {
		if u.at != "" && !u.ours {
			if u.Unit() {
				p.brought = path.Dir(u.at)
			}
			continue
		}
		p.shadows = p.shadows || u.packaged != "" && u.Unit()
		p.after.Files[u.name] = sum(u.Content)
		switch {
		case u.data == nil:
			fresh = append(fresh, u.label())
		case !equal(u.data, u.Content):
			changed = append(changed, u.label())
		default:
			continue
		}
		p.files = append(p.files, file{u.name, u.data, u.Content})
		if err := s.needDir(p, path.Dir(u.name)); err != nil {
			return err
		}
	}
	switch {
	case len(fresh) == len(all) && len(all) > 0:
		p.because("not installed")
	case len(fresh) > 0:
		p.because("%s: not installed", strings.Join(fresh, ", "))
	}
	if len(changed) > 0 {
		p.because("%s: written by another version, or for another configuration", strings.Join(changed, ", "))
	}
	return nil
}

// planDropIns plans our drop-ins. Their directories stay until Undo, where one is
// no longer needed.
func (s *Step) planDropIns(p *plan, all []found) error {
	var other []string
	for _, u := range all {
		d := u.drop
		if u.Name == units.Socket && u.Unit() && (!u.theirs() || d.now != nil) {
			p.after.Listen = u.listens(u.Content, d.now)
		}
		if d.now != nil {
			p.fitted = true
			p.after.Files[d.name] = sum(d.now)
		}
		switch {
		case bytes.Equal(d.was, d.now):
			continue
		case d.now == nil:
			p.remove = append(p.remove, d.name)
		default:
			p.files = append(p.files, d)
			if err := s.needDir(p, path.Dir(d.name)); err != nil {
				return err
			}
		}
		other = append(other, u.Name)
	}
	if len(other) > 0 {
		p.because("%s: not as the configuration has it", strings.Join(other, ", "))
	}
	return nil
}

// listens is where a socket unit listens, with the content that it has where it
// is ours.
func (u found) listens(content, dropIn []byte) string {
	if u.theirs() {
		content = u.says
	}
	return units.Listens(content, dropIn)
}

// planLinks plans the links that enable the units.
func (s *Step) planLinks(p *plan, all []found) error {
	var missing []string
	for _, u := range all {
		if u.WantedBy == "" {
			continue
		}
		dir := path.Join(etc, u.WantedBy+".wants")
		name := path.Join(dir, u.Name)
		enabled := false
		for _, d := range append([]string{"/etc"}, elsewhere...) {
			at := path.Join(d, u.Dir, u.WantedBy+".wants", u.Name)
			k, err := s.kindOf(at)
			if err != nil {
				return err
			}
			if k == isMask && d == "/etc" {
				return refuse("somebody does not want it to start at boot; remove the link if that is over", "%s is a link to /dev/null", at)
			}
			enabled = enabled || k != isNothing
		}
		if target, err := s.cfg.Tree.Readlink(name); err == nil && s.held.linked(name, target) {
			p.after.Links[name] = target
		}
		if enabled {
			continue
		}
		target := u.at
		if target == "" {
			target = u.name
		}
		if err := s.needDir(p, dir); err != nil {
			return err
		}
		p.after.Links[name] = target
		p.links = append(p.links, link{name, target})
		missing = append(missing, u.Name)
	}
	if len(missing) > 0 && len(p.files) < len(all) {
		p.because("%s: not enabled", strings.Join(missing, ", "))
	}
	return nil
}

// needDir plans a directory and those above it, where they are missing.
func (s *Step) needDir(p *plan, dir string) error {
	var missing []string
	for ; !slices.Contains(p.dirs, dir); dir = path.Dir(dir) {
		info, err := s.cfg.Tree.Stat(dir)
		if err == nil && !info.IsDir() || errors.Is(err, syscall.ENOTDIR) {
			return refuse("move it away", "%s is no directory", dir)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, err := s.cfg.Tree.Lstat(dir); err == nil {
			return refuse("make what it points to, or remove it", "%s is a link that leads nowhere", dir)
		}
		missing = append(missing, dir)
	}
	slices.Reverse(missing)
	p.dirs = append(p.dirs, missing...)
	return nil
}

// planStates plans what systemd is to be asked for.
func (s *Step) planStates(ctx context.Context, p *plan, all []found) error {
	p.states = map[string]Status{}
	p.reload = len(p.links) > 0
	for _, u := range all {
		written := slices.ContainsFunc(p.files, func(f file) bool { return f.name == u.name }) || !bytes.Equal(u.drop.was, u.drop.now)
		if !u.Unit() {
			// Nobody has to read it now. systemd-networkd may manage our interface
			// already, and leaves it alone until it is reloaded (seen with 252), which
			// would bring into force what else is edited; then it reads this.
			continue
		}
		p.reload = p.reload || written
		st, err := s.cfg.Systemd.Status(ctx, u.Name)
		if err != nil {
			return err
		}
		p.states[u.Name] = st
		if u.theirs() && st.running() {
			p.before.Ran = append(p.before.Ran, u.Name)
		}
		if !written && (st.Stale || st.Load == "not-found") {
			p.reload = true
			p.because("systemd has not read %s yet", u.at)
		}
		if u.Name == units.Kubelet || u.Name == units.Resume {
			continue // they are for the boot
		}
		unsure := func(told func(after) string) bool { return !s.restarted && s.held.unsure(u.theirs(), told) }
		older := written || unsure(func(a after) string { return a.Files[u.name] + a.Files[u.drop.name] })
		if u.Name == units.Socket && st.running() && (u.ours || u.theirs()) {
			p.anew = u.listens(u.data, u.drop.was) != u.listens(u.Content, u.drop.now) || unsure(func(a after) string { return a.Listen })
			switch {
			case p.anew:
				p.because("the sockets are made anew, for other addresses: for up to a tenth of a second queries may be lost")
			case written && u.data != nil:
				p.because("the sockets stay as they are until the node starts again")
			}
		}
		switch {
		case u.Name == units.Relay && !st.running():
			// For when the resolver is not there: its sockets and guard start it.
		case !st.running():
			p.start = append(p.start, u.Name)
			if !slices.Contains(s.held.ran, u.Name) { // else it stands still because of us
				p.after.Started = append(p.after.Started, u.Name)
			}
			if !written {
				p.because("%s is %s", u.Name, st)
			}
		case older && u.Name != units.Socket && u.Name != s.cfg.Self:
			p.restart = append(p.restart, u.Name)
			if !written {
				p.because("%s may run by an older file", u.Name)
			}
		}
	}
	return nil
}

// String is the state in words.
func (s Status) String() string {
	if s.Active == "failed" && s.Result != "" {
		return "failed: " + s.Result
	}
	return s.Active
}

// diff is for plan: files by name, and by line where they change, links, and
// what starts.
func (p *plan) diff() string {
	var out strings.Builder
	for _, f := range p.files {
		if f.was == nil && path.Base(f.name) != units.DropInName {
			out.WriteString("+ " + f.name + "\n")
			continue
		}
		old, now := strings.Split(string(f.was), "\n"), strings.Split(string(f.now), "\n")
		label := strings.TrimPrefix(f.name, etc+"/")
		for _, l := range old {
			if !slices.Contains(now, l) {
				fmt.Fprintf(&out, "- %s: %s\n", label, l)
			}
		}
		for _, l := range now {
			if l != "" && !slices.Contains(old, l) {
				fmt.Fprintf(&out, "+ %s: %s\n", label, l)
			}
		}
	}
	for _, name := range p.remove {
		out.WriteString("- " + name + "\n")
	}
	for _, l := range p.links {
		fmt.Fprintf(&out, "+ %s -> %s\n", l.name, l.target)
	}
	for _, name := range slices.Sorted(maps.Keys(p.states)) {
		switch st := p.states[name]; {
		case slices.Contains(p.start, name):
			fmt.Fprintf(&out, "- %s %s\n+ %s active\n", name, st, name)
		case slices.Contains(p.restart, name), p.anew && (name == units.Socket || name == units.Resolver):
			fmt.Fprintf(&out, "+ %s restarted\n", name)
		}
	}
	if out.Len() == 0 && p.reload {
		out.WriteString("+ systemd reads its files again\n")
	}
	return out.String()
}

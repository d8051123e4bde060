// Package unitfile reads a service unit with all its drop-ins as systemd does,
// from the files of a node, without asking a running systemd.
//
// It follows systemd 252 and what 247 to 257 have in common; where they
// differ, the field or error concerned says so. What cannot be known from
// files is an error, never a guess.
//
// Two things of systemd are left out. Values of settings other than commands
// and environment are not checked, so it is not seen where a User or a
// WorkingDirectory that systemd cannot read ends a file early. And where a unit
// has several aliases that each have a drop-in of the same name, systemd takes
// any; here it is the first by name.
package unitfile

import (
	"errors"
	"fmt"

	"nodelocaldns/host/fsys"
)

// ErrNotFound says that no directory of the search path has a file of the
// unit.
var ErrNotFound = errors.New("unit not found")

// ErrMasked says that the unit's first file is empty or a link to /dev/null:
// systemd refuses to start it, whatever other files there are.
var ErrMasked = errors.New("unit is masked")

// A Host is what specifiers need of a node and its files do not tell. An empty
// field is unknown: a command that needs it is an error. All of it stays
// unknown for an image that has not booted yet.
type Host struct {
	Systemd  int    // version, such as 252; matters where versions differ
	Hostname string // %H and %l; /etc/hostname is not asked, what set it at boot may have known better
	BootID   string // %b, 32 hexadecimal digits
	Kernel   string // %v, as uname -r prints it
	Arch     string // %a, as systemd spells it: x86-64, arm64
}

// A Unit is a unit as systemd would load it. It is not changed once loaded and
// may be used concurrently.
type Unit struct {
	Name     string    // as asked for
	ID       string    // the name of the fragment, which differs for an alias
	Fragment string    // the file, a name inside the tree
	DropIns  []string  // names inside the tree, in the order in which systemd applies them
	Settings []Setting // all of them, in that order; resets are settings with an empty Value
	Problems []Problem // what systemd warns of while it loads the unit, and what it ignores

	files    files
	host     Host
	names    []string // all names, Name and ID too
	commands map[string][]Command
	refused  *BadSetting // why systemd does not load it
}

// A Setting is one assignment.
type Setting struct {
	File    string // a name inside the tree
	Line    int    // where the assignment begins, from 1
	Section string
	Key     string
	Value   string // continuation lines joined, comments dropped, not unquoted

	// Raw is the value as it stands in the file: from its first byte to its
	// last, with everything between, line ends and comments too. It begins at
	// the byte Offset of the file.
	Raw    string
	Offset int
	at     []int // for each byte of Value its offset in Raw
}

// A Problem is something systemd logs and goes on without.
type Problem struct {
	File string
	Line int
	Text string
}

func (p Problem) String() string { return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text) }

// A BadSetting is why systemd loads the unit as "bad-setting" and never starts
// it, or why what it would run cannot be told.
type BadSetting struct {
	File string
	Line int // 0 if it is about what is missing from the whole unit
	Text string
}

func (e *BadSetting) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Text)
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
}

// Load reads the unit name and its drop-ins from the tree. name is a full unit
// name such as kubelet.service, an alias or an instance of a template. The
// error wraps ErrNotFound or ErrMasked if that is what it is.
//
// A unit that systemd would refuse still loads: Commands says why it would.
func Load(tree fsys.Tree, name string, host Host) (*Unit, error) {
	return load(files{tree: tree}, name, host)
}

// Without is the unit as it would be if file, a name inside the tree, were not
// there. A file that it hid is then seen.
func (u *Unit) Without(file string) (*Unit, error) {
	return load(u.files.without(file), u.Name, u.host)
}

// With is the unit as it would be if file, a name inside the tree, had that
// content.
func (u *Unit) With(file string, content []byte) (*Unit, error) {
	return load(u.files.with(file, content), u.Name, u.host)
}

// Get returns the last setting of a key that takes one value, such as
// Type in Service, and whether it is set at all. An empty assignment counts as
// not set.
func (u *Unit) Get(section, key string) (Setting, bool) {
	all := u.Values(section, key)
	if len(all) == 0 {
		return Setting{}, false
	}
	return all[len(all)-1], true
}

// Values returns the settings of a list key which count, in order: those after
// the last reset.
func (u *Unit) Values(section, key string) []Setting {
	var list []Setting
	for _, s := range u.Settings {
		if s.Section != section || s.Key != key {
			continue
		}
		if s.Value == "" {
			list = nil
			continue
		}
		list = append(list, s)
	}
	return list
}

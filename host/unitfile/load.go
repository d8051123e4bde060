package unitfile

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// searchPath is where systemd's system manager looks for units, most
// important first (systemd.unit(5), table 1; "systemd-analyze unit-paths").
// /lib is before /usr/lib because only Debian and Ubuntu ever kept them apart,
// and there it was; elsewhere both are the same directory. Systemd 255 and
// newer do not run where they are not.
var searchPath = []string{
	"/etc/systemd/system.control",
	"/run/systemd/system.control",
	"/run/systemd/transient",
	"/run/systemd/generator.early",
	"/etc/systemd/system",
	"/etc/systemd/system.attached",
	"/run/systemd/system",
	"/run/systemd/system.attached",
	"/run/systemd/generator",
	"/usr/local/lib/systemd/system",
	"/lib/systemd/system",
	"/usr/lib/systemd/system",
	"/run/systemd/generator.late",
}

// serviceSections are what a service's files may have.
var serviceSections = []string{"Unit", "Service", "Install"}

// maxAliases is how many names may lead to one another
// (FOLLOW_MAX in systemd's unit_ids_map_get).
const maxAliases = 8

func load(f files, name string, host Host) (*Unit, error) {
	asked, ok := parseName(name)
	if !ok || asked.kind != "service" || asked.isTemplate() {
		return nil, fmt.Errorf("%q is no name of a service", name)
	}
	m, err := f.mapNames(host)
	if err != nil {
		return nil, err
	}
	u := &Unit{Name: name, ID: name, files: f, host: host, commands: map[string][]Command{}}
	if u.Fragment, err = m.fragment(asked); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if u.Fragment == "" {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if id, ok := parseName(path.Base(u.Fragment)); ok {
		if id.isTemplate() {
			id.instance = asked.instance
		}
		u.ID = id.String()
	}
	u.names = m.names(u.ID, name)

	data, err := f.readFile(u.Fragment)
	switch {
	case f.isNull(u.Fragment) || err == nil && len(data) == 0:
		return nil, fmt.Errorf("%s: %w by %s", name, ErrMasked, u.Fragment)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w: %s is a link to nothing", name, ErrNotFound, u.Fragment)
	case err != nil:
		return nil, err
	}
	u.refused = u.apply(u.Fragment, data)

	dropIns, err := u.findDropIns(m)
	if err != nil {
		return nil, err
	}
	for _, file := range dropIns {
		u.DropIns = append(u.DropIns, file)
		data, err := f.readFile(file)
		if errors.Is(err, fs.ErrNotExist) || f.isNull(file) {
			continue // masked, or a link to nothing: it only hides others
		} else if err != nil {
			if info, serr := f.tree.Stat(file); serr == nil && info.IsDir() {
				u.warn(Problem{File: file, Text: "is a directory and ignored"})
				continue
			}
			return nil, err
		}
		if bad := u.apply(file, data); bad != nil {
			u.warn(Problem{File: file, Line: bad.Line, Text: bad.Text + "; systemd ignores the rest of the file"})
		}
	}
	if u.refused == nil {
		u.refused = u.verify()
	}
	return u, nil
}

func (u *Unit) warn(p Problem) { u.Problems = append(u.Problems, p) }

// apply reads one file and takes over its settings. What it returns ends the
// file.
func (u *Unit) apply(file string, data []byte) *BadSetting {
	return parseFile(file, data, serviceSections, func(s Setting) *BadSetting {
		u.Settings = append(u.Settings, s)
		if s.Section == "Service" && slices.Contains(commandKeys, s.Key) {
			return u.addCommands(s)
		}
		return nil
	}, u.warn)
}

// verify is what systemd checks once all files are read (service_verify in its
// src/core/service.c), as far as it can concern commands.
func (u *Unit) verify() *BadSetting {
	whole := func(format string, args ...any) *BadSetting {
		return &BadSetting{File: u.Fragment, Text: fmt.Sprintf(format, args...)}
	}
	start := u.commands["ExecStart"]
	kind := u.serviceType()
	idle := u.last("Unit", "SuccessAction", nil) == "" || u.last("Unit", "SuccessAction", nil) == "none"
	switch {
	case len(start) == 0 && len(u.commands["ExecStop"]) == 0 && idle:
		return whole("no ExecStart")
	case len(start) == 0 && kind != "oneshot":
		return whole("no ExecStart, which only Type=oneshot may go without")
	case len(start) == 0 && idle && !isYes(u.last("Service", "RemainAfterExit", isBool)):
		return whole("no ExecStart, and RemainAfterExit is not set")
	case len(start) > 1 && kind != "oneshot":
		s := start[1].Setting
		return &BadSetting{File: s.File, Line: s.Line,
			Text: fmt.Sprintf("second ExecStart, after %s:%d, which only Type=oneshot may have", start[0].Setting.File, start[0].Setting.Line)}
	case kind == "dbus" && u.last("Service", "BusName", nil) == "":
		return whole("Type=dbus without BusName")
	case kind != "oneshot":
		return nil
	}
	if r := u.last("Service", "Restart", isRestart); r == "always" || r == "on-success" {
		return whole("Restart=%s, which systemd does not allow with Type=oneshot", r)
	}
	if u.host.Systemd < 254 && len(u.Values("Service", "RestartForceExitStatus")) > 0 {
		return whole("RestartForceExitStatus, which systemd before 254 does not allow with Type=oneshot")
	}
	return nil
}

// serviceType is Type=, or what systemd takes where it is not set.
func (u *Unit) serviceType() string {
	kind := u.last("Service", "Type", isType)
	switch {
	case kind != "":
		return kind
	case u.last("Service", "BusName", nil) != "":
		return "dbus"
	case len(u.commands["ExecStart"]) > 0:
		return "simple"
	}
	return "oneshot"
}

// last is the value of a key that takes one: of those systemd can read the
// last one counts, and an empty one is none of them.
func (u *Unit) last(section, key string, valid func(string) bool) string {
	value := ""
	for _, s := range u.Settings {
		if s.Section == section && s.Key == key && s.Value != "" && (valid == nil || valid(s.Value)) {
			value = s.Value
		}
	}
	return value
}

func isType(value string) bool {
	return slices.Contains([]string{"simple", "exec", "forking", "oneshot", "dbus", "notify", "notify-reload", "idle"}, value)
}

func isRestart(value string) bool {
	return slices.Contains([]string{"no", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog", "always"}, value)
}

func isYes(value string) bool {
	return slices.Contains([]string{"1", "yes", "y", "true", "t", "on"}, strings.ToLower(value))
}

func isBool(value string) bool {
	return isYes(value) || slices.Contains([]string{"0", "no", "n", "false", "f", "off"}, strings.ToLower(value))
}

// A nameMap says which file each unit name of the search path means.
type nameMap struct {
	files files
	dirs  []string          // directories of the search path that are there, without links
	to    map[string]string // name → file, or for an alias another name
}

// mapNames reads the search path.
func (f files) mapNames(host Host) (*nameMap, error) {
	if _, err := f.tree.Stat("/"); err != nil {
		return nil, fmt.Errorf("reading the tree %s: %w", f.tree, err)
	}
	m := &nameMap{files: f, to: map[string]string{}}
	for _, dir := range searchPath {
		if dir == "/lib/systemd/system" && host.Systemd >= 255 {
			continue
		}
		dir, ok := f.dir(dir)
		if ok && !slices.Contains(m.dirs, dir) {
			m.dirs = append(m.dirs, dir)
		}
	}
	for _, dir := range m.dirs {
		names, err := f.readDir(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			n, ok := parseName(name)
			if !ok || n.kind != "service" || m.to[name] != "" {
				continue
			}
			if to, ok := m.target(dir, name); ok {
				m.to[name] = to
			}
		}
	}
	return m, nil
}

// target is what the entry of a directory means: the file itself, or the name
// it is an alias of.
func (m *nameMap) target(dir, name string) (string, bool) {
	file := path.Join(dir, name)
	link, isLink, regular := m.files.entry(file)
	switch {
	case regular:
		return file, true
	case !isLink:
		return "", false
	}
	if !path.IsAbs(link) {
		link = path.Join(dir, link)
	}
	// Links in the middle are followed, the last one is not: it may be an
	// alias of an alias.
	to := m.files.real(link)
	inside := slices.ContainsFunc(m.dirs, func(d string) bool { return strings.HasPrefix(to, d+"/") })
	if !inside {
		return file, true
	}
	alias, ok := parseName(path.Base(to))
	n, _ := parseName(name)
	switch {
	case !ok || alias == n || alias.kind != n.kind:
		return "", false // systemd ignores such a link
	case alias.at != n.at, alias.isInstance() && alias.instance != n.instance:
		return "", false
	}
	return alias.String(), true
}

// resolve follows aliases to a file.
func (m *nameMap) resolve(name string) string {
	for range maxAliases {
		to := m.to[name]
		if to == "" || path.IsAbs(to) {
			return to
		}
		if n, _ := parseName(to); m.to[to] == "" && n.isInstance() {
			to = n.template().String()
		}
		name = to
	}
	return ""
}

// fragment is the file of a name, "" if there is none.
func (m *nameMap) fragment(n unitName) (string, error) {
	if file := m.resolve(n.String()); file != "" || !n.isInstance() {
		return file, nil
	}
	return m.resolve(n.template().String()), nil
}

// names are all names of the unit id, itself first, then sorted.
func (m *nameMap) names(id, asked string) []string {
	n, _ := parseName(id)
	file, _ := m.fragment(n)
	var others []string
	for name := range m.to {
		alias, _ := parseName(name)
		if m.resolve(name) != file {
			continue
		}
		if alias.isTemplate() {
			alias.instance = n.instance
			// An instance that is linked elsewhere is no alias.
			if to, _ := m.fragment(alias); to != file {
				continue
			}
		} else if alias.isInstance() && alias.instance != n.instance {
			continue
		}
		others = append(others, alias.String())
	}
	others = append(others, asked)
	slices.Sort(others)
	others = slices.DeleteFunc(slices.Compact(others), func(s string) bool { return s == id })
	return append([]string{id}, others...)
}

// findDropIns returns the drop-ins of the unit in the order in which they
// count. Of two of the same name the first found is taken: more important
// directories come first, and in each the more special names.
func (u *Unit) findDropIns(m *nameMap) ([]string, error) {
	var dirs []string
	add := func(name string) error {
		for _, dir := range m.dirs {
			for _, d := range dropInDirs(name) {
				found, err := u.dropInDir(path.Join(dir, d))
				if err != nil {
					return err
				}
				if found != "" && !slices.Contains(dirs, found) {
					dirs = append(dirs, found)
				}
			}
		}
		return nil
	}
	for _, name := range u.names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	if err := add("service"); err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, dir := range dirs {
		names, err := u.files.readDir(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") || !strings.HasSuffix(name, ".conf") {
				continue
			}
			if _, ok := found[name]; !ok {
				found[name] = path.Join(dir, name)
			}
		}
	}
	files := make([]string, 0, len(found))
	for _, file := range found {
		files = append(files, file)
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	return files, nil
}

// dropInDirs are the names of the directories for drop-ins of a unit, the most
// special first.
func dropInDirs(name string) []string {
	n, ok := parseName(name)
	if !ok {
		return []string{name + ".d"} // service.d
	}
	var dirs []string
	for ok {
		dirs = append(dirs, n.String()+".d")
		if n.isInstance() {
			dirs = append(dirs, dropInDirs(n.template().String())...)
		}
		n, ok = n.shorter()
	}
	return dirs
}

// dropInDir is the directory without links, "" if it is none.
func (u *Unit) dropInDir(name string) (string, error) {
	dir, ok := u.files.dir(name)
	if !ok {
		return "", nil
	}
	link, isLink, _ := u.files.entry(name)
	if isLink && !path.IsAbs(link) {
		names, err := u.files.readDir(dir)
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, ".conf") }) && u.refused == nil {
			// Later releases of 252 and all since test the link's text from
			// the directory that PID 1 is in.
			u.refused = &BadSetting{File: name, Text: "relative link to a directory, which some versions of systemd follow and others do not"}
		}
	}
	return dir, nil
}

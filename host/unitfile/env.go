package unitfile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// An Env is the environment of a unit's commands, as far as its files make it.
type Env struct {
	vars    map[string]Var
	unknown map[string]string // variables that something else sets: what
}

// A Var is one variable and where it comes from.
type Var struct {
	Name, Value string
	Key         string // Environment, EnvironmentFile or DefaultEnvironment
	File        string // a name inside the tree: the unit's file, or the environment file
	Line        int
}

// Vars returns all variables, sorted by name.
func (e Env) Vars() []Var {
	var list []Var
	for _, name := range slices.Sorted(maps.Keys(e.vars)) {
		list = append(list, e.vars[name])
	}
	return list
}

// Get returns the variable and whether it is set. ok is false too for one
// whose value is not known: see Unknown.
func (e Env) Get(name string) (v Var, ok bool) {
	v, ok = e.vars[name]
	return v, ok
}

// With is the environment with one more variable, which replaces the one of
// that name.
func (e Env) With(v Var) Env {
	vars, unknown := maps.Clone(e.vars), maps.Clone(e.unknown)
	if vars == nil {
		vars = map[string]Var{}
	}
	vars[v.Name] = v
	delete(unknown, v.Name)
	return Env{vars: vars, unknown: unknown}
}

// Unknown says who sets the variable to what files do not tell, or "" if
// nobody does.
func (e Env) Unknown(name string) string { return e.unknown[name] }

// set takes over a variable, whose value is known from now on.
func (e *Env) set(v Var) {
	e.vars[v.Name] = v
	delete(e.unknown, v.Name)
}

// runtimeVars are set by systemd itself (systemd.exec(5), "environment
// variables in spawned processes"); the unit's own settings come before.
var runtimeVars = []string{
	"PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_ADDRESS", "LC_COLLATE", "LC_CTYPE", "LC_IDENTIFICATION", "LC_MEASUREMENT",
	"LC_MESSAGES", "LC_MONETARY", "LC_NAME", "LC_NUMERIC", "LC_PAPER", "LC_TELEPHONE", "LC_TIME",
	"USER", "LOGNAME", "HOME", "SHELL", "INVOCATION_ID", "XDG_RUNTIME_DIR",
	"RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY", "CONFIGURATION_DIRECTORY",
	"CREDENTIALS_DIRECTORY", "MAINPID", "MANAGERPID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID",
	"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "SYSTEMD_EXEC_PID", "TERM", "LOG_NAMESPACE", "JOURNAL_STREAM",
	"SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS", "MONITOR_SERVICE_RESULT", "MONITOR_EXIT_CODE", "MONITOR_EXIT_STATUS",
	"MONITOR_INVOCATION_ID", "MONITOR_UNIT", "PIDFILE", "REMOTE_ADDR", "REMOTE_PORT", "TRIGGER_UNIT", "TRIGGER_PATH",
	"TRIGGER_TIMER_REALTIME_USEC", "TRIGGER_TIMER_MONOTONIC_USEC", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
	"FDSTORE", "SYSTEMD_NSS_DYNAMIC_BYPASS", "container",
}

// Environment returns what files put into the environment of the unit's
// commands: DefaultEnvironment of the manager, over that Environment, over
// that each EnvironmentFile as it is now, without UnsetEnvironment. Variables
// that systemd or PassEnvironment set are not known, see Env.Unknown; those of
// "systemctl set-environment" and of the kernel's command line are not seen
// at all.
//
// An EnvironmentFile that cannot be read is an *EnvFileError if the unit could
// not start because of it. A unit that systemd refuses is a *BadSetting.
func (u *Unit) Environment() (Env, error) {
	if u.refused != nil {
		return Env{}, u.refused
	}
	env := Env{vars: map[string]Var{}, unknown: map[string]string{}}
	for _, name := range runtimeVars {
		env.unknown[name] = "systemd"
	}
	for _, s := range u.Values("Service", "PassEnvironment") {
		for _, name := range u.words(s, 0) {
			if validName(name) {
				env.unknown[name] = fmt.Sprintf("PassEnvironment in %s:%d", s.File, s.Line)
			}
		}
	}
	if err := u.defaults(&env); err != nil {
		return Env{}, err
	}
	for _, s := range u.Values("Service", "Environment") {
		if err := u.assignments(s, &env); err != nil {
			return Env{}, err
		}
	}
	files, err := u.EnvFiles()
	if err != nil {
		return Env{}, err
	}
	for _, f := range files {
		vars, err := f.read(u)
		if err != nil {
			return Env{}, err
		}
		for _, v := range vars {
			env.set(v)
		}
	}
	for _, s := range u.Values("Service", "UnsetEnvironment") {
		for _, word := range u.words(s, cEscapes) {
			name, value, exact := strings.Cut(word, "=")
			if v, ok := env.vars[name]; exact && (!ok || v.Value != value) {
				continue
			}
			delete(env.vars, name)
			delete(env.unknown, name)
		}
	}
	return env, nil
}

// words are the words of a list setting; what follows a bad quote is ignored.
func (u *Unit) words(s Setting, m mode) []string {
	var list []string
	for i := 0; ; {
		w, ok, err := firstWord(s.Value, i, m)
		if !ok || err != nil {
			return list
		}
		if word, err := u.specifiers(w.text, s.File); err == nil {
			list = append(list, word)
		}
		i = w.next
	}
}

// assignments takes over the variables of one Environment setting. What
// systemd cannot read it ignores.
func (u *Unit) assignments(s Setting, env *Env) error {
	for i := 0; ; {
		w, ok, err := firstWord(s.Value, i, cEscapes)
		if !ok || err != nil {
			return nil
		}
		i = w.next
		word, err := u.resolve(w.text, s.File)
		if err != nil {
			continue
		}
		name, value, ok := strings.Cut(word.Text, "=")
		switch {
		case word.Unknown != "" && strings.Contains(name, "%"):
			return &BadSetting{File: s.File, Line: s.Line, Text: fmt.Sprintf("%s: %s is not known from files", s.Key, word.Unknown)}
		case !ok || !validName(name) || !validUTF8([]byte(value)):
		case word.Unknown != "":
			delete(env.vars, name)
			env.unknown[name] = fmt.Sprintf("%s in %s:%d", word.Unknown, s.File, s.Line)
		default:
			env.set(Var{Name: name, Value: value, Key: s.Key, File: s.File, Line: s.Line})
		}
	}
}

// managerDirs hold system.conf.d, most important first.
var managerDirs = []string{"/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/lib/systemd", "/usr/lib/systemd"}

// defaults takes over DefaultEnvironment of systemd-system.conf(5), which every
// service gets.
func (u *Unit) defaults(env *Env) error {
	files := map[string]string{}
	for _, dir := range slices.Backward(managerDirs) {
		d, ok := u.files.dir(path.Join(dir, "system.conf.d"))
		if !ok {
			continue
		}
		names, err := u.files.readDir(d)
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".conf") && !strings.HasPrefix(name, ".") {
				files[name] = path.Join(d, name)
			}
		}
	}
	list := []string{"/etc/systemd/system.conf"}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, files[name])
	}
	var settings []Setting
	for _, file := range list {
		data, err := u.files.readFile(file)
		if err != nil {
			continue // systemd too goes on without it
		}
		_ = parseFile(file, data, []string{"Manager"}, func(s Setting) *BadSetting {
			if s.Key != "DefaultEnvironment" {
				return nil
			}
			if s.Value == "" {
				settings = nil
				return nil
			}
			settings = append(settings, s)
			return nil
		}, func(Problem) {})
	}
	for _, s := range settings {
		if err := u.assignments(s, env); err != nil {
			return err
		}
	}
	return nil
}

// validName reports whether the name may be that of a variable.
func validName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if c != '_' && !(c|0x20 >= 'a' && c|0x20 <= 'z') && !(i > 0 && c >= '0' && c <= '9') {
			return false
		}
	}
	return name != ""
}

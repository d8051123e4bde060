package unitfile

// An Env is the environment of a unit's commands, as far as its files make it.
type Env struct {
	vars    []Var
	unknown map[string]string // variables that something else sets: why their value is not known
}

// A Var is one variable and where it comes from.
type Var struct {
	Name, Value string
	Key         string // Environment or EnvironmentFile
	File        string // a name inside the tree: the unit's file, or the environment file
	Line        int
}

// Vars returns all variables, sorted by name.
func (e Env) Vars() []Var { return e.vars }

// Get returns the variable and whether it is set. ok is false too for one
// whose value is not known: see Unknown.
func (e Env) Get(name string) (v Var, ok bool) { return Var{}, false }

// Unknown says why the value of the variable cannot be known from files, or
// "" if it can.
func (e Env) Unknown(name string) string { return e.unknown[name] }

// Environment returns what the unit's files put into the environment of its
// commands: Environment, over that each EnvironmentFile that is there now, and
// UnsetEnvironment. A missing EnvironmentFile without the prefix "-" is an
// *EnvFileError, because the unit could not start.
func (u *Unit) Environment() (Env, error) { return Env{}, nil }

// An EnvFile is one EnvironmentFile setting.
type EnvFile struct {
	Setting  Setting
	Pattern  string   // specifiers replaced; may have the wildcards of glob(7)
	Optional bool     // prefix "-"
	Files    []string // what there is now, in the order in which it is read
}

// EnvFiles returns the EnvironmentFile settings that count, in order.
func (u *Unit) EnvFiles() ([]EnvFile, error) { return nil, nil }

// An EnvFileError is an environment file because of which the unit cannot
// start.
type EnvFileError struct {
	Setting Setting
	File    string
	Err     error
}

func (e *EnvFileError) Error() string { return e.File + ": " + e.Err.Error() }

func (e *EnvFileError) Unwrap() error { return e.Err }

// ParseEnvFile reads an environment file as systemd does for EnvironmentFile:
// later assignments win, names that are no variable names are left out.
func ParseEnvFile(name string, data []byte) ([]Var, error) { return nil, nil }

package unitfile

// A Command is one command line of a unit.
type Command struct {
	Prefix  string  // of the characters -@:+!| those that stand before the program
	Path    string  // the program, absolute, or a bare name where it is looked for when it starts (see Lookup)
	Program Word    // where Path stands
	Argv    []Word  // argv[0] too: Program again, or what follows it after the prefix @
	Setting Setting // the assignment it is in; several commands may be in one, separated by ;
	Start   int     // the range of the command, prefix included, in Setting.Raw
	End     int
}

// A Word is one argument as systemd has it after unquoting, unescaping and
// specifiers, and before $ is replaced.
type Word struct {
	Text       string
	Start, End int // its range in Setting.Raw, quotes included
}

// Raw is the source text of the command: a part of Setting.Raw.
func (c Command) Raw() string { return c.Setting.Raw[c.Start:c.End] }

// Commands returns the command lines of a key such as ExecStart, in the order
// in which they run. The error is a *BadSetting if systemd refuses the unit,
// for this key or another, or if a specifier cannot be known.
func (u *Unit) Commands(key string) ([]Command, error) { return nil, nil }

// Lookup returns the file that a bare program name means, in the directories
// that systemd searches. An absolute path is returned as it is.
func (u *Unit) Lookup(program string) (string, error) { return program, nil }

// Expand returns the arguments as the program gets them: argv[0] first, each
// $NAME and ${NAME} replaced. The error names a variable whose value is not
// known from files.
func (c Command) Expand(env Env) ([]string, error) { return nil, nil }

// Edit returns Raw with the words for which drop returns true removed (indices
// and words are those of Argv) and, if insert is not empty, insert as a new
// word right after Program, byte for byte otherwise. insert is source text,
// quoted as it needs to be. The result is parsed again, and it is an error if
// its words are not the words asked for.
func (c Command) Edit(drop func(i int, w Word) bool, insert string) (string, error) { return "", nil }

package unitfile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// commandKeys are the settings of [Service] that hold command lines.
var commandKeys = []string{
	"ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost",
	"ExecReload", "ExecStop", "ExecStopPost",
}

// A Command is one command line of a unit.
type Command struct {
	Prefix  string  // of the characters -@:+!| those that stand before the program
	Path    string  // the program: an absolute path, or a bare name (see Lookup)
	Program Word    // where Path stands, prefix included
	Argv    []Word  // argv[0] too: Program again, or what follows it after the prefix @
	Setting Setting // the assignment it is in; several commands may be in one, separated by ;
	Start   int     // the range of the command in Setting.Raw
	End     int
}

// A Word is one argument as systemd has it after unquoting, unescaping and
// specifiers, and before $ is replaced.
type Word struct {
	Text       string
	Start, End int    // its range in Setting.Raw, quotes included
	Unknown    string // which specifier is not known from files; Text then has it as it is written
}

// Variable is the name of the variable that the whole word stands for: NAME,
// true for $NAME. Such a word becomes as many arguments as the value has
// words, even none.
func (w Word) Variable() (name string, ok bool) {
	if len(w.Text) < 2 || w.Text[0] != '$' || w.Text[1] == '{' || w.Text[1] == '$' {
		return "", false
	}
	return w.Text[1:], true
}

// Raw is the source text of the command: a part of Setting.Raw.
func (c Command) Raw() string { return c.Setting.Raw[c.Start:c.End] }

// literal reports whether $ stands for itself in the arguments.
func (c Command) literal() bool { return strings.Contains(c.Prefix, ":") }

// Commands returns the command lines of a key such as ExecStart, in the order
// in which they run. The error is a *BadSetting if systemd refuses the unit,
// for this key or another, or if a program is a variable, which systemd does
// not replace there, or has a specifier that is not known.
func (u *Unit) Commands(key string) ([]Command, error) {
	if u.refused != nil {
		return nil, u.refused
	}
	for _, c := range u.commands[key] {
		bad := ""
		if c.Program.Unknown != "" {
			bad = "program: " + c.Program.Unknown + " is not known from files"
		} else if strings.HasPrefix(c.Path, "$") {
			bad = fmt.Sprintf("program is the variable %s, which systemd does not replace there", c.Path)
		}
		if bad != "" {
			return nil, &BadSetting{File: c.Setting.File, Line: c.Setting.Line, Text: bad}
		}
	}
	return slices.Clone(u.commands[key]), nil
}

// addCommands takes over an assignment to one of commandKeys. What it returns
// ends the file, with what was added before staying added.
func (u *Unit) addCommands(s Setting) *BadSetting {
	if s.Value == "" {
		delete(u.commands, s.Key)
		return nil
	}
	for i := 0; ; {
		c, next, err := u.parseCommand(s, i)
		var ignored *ignoredError
		switch {
		case errors.As(err, &ignored):
			u.warn(Problem{File: s.File, Line: s.Line, Text: fmt.Sprintf("%s: %s; ignored", s.Key, ignored.text)})
			return nil
		case err != nil:
			return &BadSetting{File: s.File, Line: s.Line, Text: fmt.Sprintf("%s: %s", s.Key, err)}
		case c != nil:
			u.commands[s.Key] = append(u.commands[s.Key], *c)
		}
		if next < 0 {
			return nil
		}
		i = next
	}
}

// An ignoredError is why the rest of an assignment counts for nothing, and
// systemd goes on with the next line.
type ignoredError struct{ text string }

func (e *ignoredError) Error() string { return e.text }

// parseCommand reads the command that begins at byte i of the value. next is
// where another one begins, -1 if there is none. A nil command without an
// error is none at all.
func (u *Unit) parseCommand(s Setting, i int) (_ *Command, next int, err error) {
	text := s.Value
	w, ok, err := firstWordOr(text, i)
	if err != nil {
		return nil, -1, &ignoredError{err.Error()}
	}
	if !ok {
		return nil, -1, nil
	}
	u.warnOdd(s, w)
	if w.text == ";" {
		return nil, w.next, nil
	}

	c := &Command{Setting: s}
	rest := w.text
	for rest != "" && u.isPrefix(c.Prefix, rest[0]) {
		c.Prefix += rest[:1]
		rest = rest[1:]
	}
	// What is wrong with a command whose failure does not matter makes
	// systemd ignore the assignment instead of refusing the unit.
	wrong := func(format string, args ...any) (*Command, int, error) {
		err := fmt.Errorf(format, args...)
		if strings.Contains(c.Prefix, "-") {
			err = &ignoredError{err.Error()}
		}
		return nil, -1, err
	}
	if c.Program, err = u.resolve(rest, s.File); err != nil {
		return wrong("%w", err)
	}
	program := c.Program.Text
	if c.Program.Unknown == "" {
		switch {
		case program == "":
			return wrong("no program")
		case !safe(program):
			return wrong("program %q has special characters", program)
		case strings.HasSuffix(program, "/"),
			u.host.Systemd >= 254 && (strings.HasSuffix(program, "/.") || strings.HasSuffix(program, "/..")):
			return wrong("program %s is a directory", program)
		case !validProgram(program):
			return wrong("program %s is neither a name nor an absolute path", program)
		}
	}
	c.Path = program
	if strings.HasPrefix(program, "/") {
		c.Path = removeDots(program)
	}
	c.Start, c.End = s.raw(w.start, w.end)
	c.Program.Start, c.Program.End = c.Start, c.End
	if !strings.Contains(c.Prefix, "@") {
		c.Argv = append(c.Argv, c.Program)
	}

	next = -1
	for i = w.next; i < len(text); i = w.next {
		if text[i] == ';' && (i+1 == len(text) || strings.IndexByte(blank, text[i+1]) >= 0) {
			// The separator, which is no word only where it stands bare.
			for i++; i < len(text) && strings.IndexByte(blank, text[i]) >= 0; i++ {
			}
			next = i
			break
		}
		var word Word
		if strings.HasPrefix(text[i:], `\;`) && (i+2 == len(text) || strings.IndexByte(blank, text[i+2]) >= 0) {
			w = span{start: i, end: i + 2, next: i + 2}
			for w.next < len(text) && strings.IndexByte(blank, text[w.next]) >= 0 {
				w.next++
			}
			word.Text = ";"
		} else {
			w, ok, err = firstWordOr(text, i)
			if err != nil {
				return wrong("%w", err)
			}
			if !ok {
				break
			}
			u.warnOdd(s, w)
			if word, err = u.resolve(w.text, s.File); err != nil {
				return wrong("%w", err)
			}
		}
		word.Start, word.End = s.raw(w.start, w.end)
		c.Argv = append(c.Argv, word)
		c.End = word.End
	}
	if len(c.Argv) == 0 {
		return wrong("no argv[0] after @")
	}
	return c, next, nil
}

// resolve replaces the specifiers of a word. The error is systemd's.
func (u *Unit) resolve(text, file string) (Word, error) {
	resolved, err := u.specifiers(text, file)
	var unknown *unknownError
	if errors.As(err, &unknown) {
		return Word{Text: text, Unknown: unknown.what}, nil
	}
	return Word{Text: resolved}, err
}

func (u *Unit) warnOdd(s Setting, w span) {
	if w.odd {
		u.warn(Problem{File: s.File, Line: s.Line, Text: fmt.Sprintf("%s: unknown escape sequence in %q is kept", s.Key, w.text)})
	}
}

// raw is the range in Raw of a range of Value that is not empty.
func (s Setting) raw(start, end int) (int, int) { return s.at[start], s.at[end-1] + 1 }

// isPrefix reports whether c goes on the prefix of a command. Each may stand
// once, and of +, ! and !! only one.
func (u *Unit) isPrefix(prefix string, c byte) bool {
	has := func(s string) bool { return strings.Contains(prefix, s) }
	switch c {
	case '-', '@', ':':
		return !has(string(c))
	case '+':
		return !has("+") && !has("!")
	case '!':
		return !has("+") && strings.Count(prefix, "!") < 2
	case '|':
		return u.host.Systemd >= 258 && !has("|")
	}
	return false
}

// validProgram is systemd's path_is_valid or filename_is_valid.
func validProgram(program string) bool {
	if !strings.HasPrefix(program, "/") {
		return !strings.Contains(program, "/") && program != "." && program != ".." && len(program) < 256
	}
	for element := range strings.SplitSeq(program, "/") {
		if len(element) > 255 {
			return false
		}
	}
	return len(program) < 4096
}

// removeDots drops the elements "." of an absolute path. The elements ".."
// stay, because only the kernel knows what they mean.
func removeDots(name string) string {
	var kept []string
	for element := range strings.SplitSeq(name, "/") {
		if element != "" && element != "." {
			kept = append(kept, element)
		}
	}
	return "/" + strings.Join(kept, "/")
}

// systemPath is where systemd looks for a program that has no path
// (DEFAULT_PATH in its src/basic/path-util.h, with the directories of a
// system that keeps /bin apart).
var systemPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Lookup returns the file, a name inside the tree, that a bare program name
// means, or the path itself where it is one.
func (u *Unit) Lookup(program string) (string, error) {
	if strings.HasPrefix(program, "/") {
		return program, nil
	}
	dirs := systemPath
	if set := u.Values("Service", "ExecSearchPath"); len(set) > 0 && u.host.Systemd != 0 && u.host.Systemd < 250 {
		return "", fmt.Errorf("%s is looked for in ExecSearchPath, which systemd %d does not know", program, u.host.Systemd)
	} else if len(set) > 0 {
		dirs = nil
		for _, s := range set {
			dirs = append(dirs, strings.Split(s.Value, ":")...)
		}
	}
	for _, dir := range dirs {
		file := path.Join(dir, program)
		info, err := u.files.tree.Stat(file)
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("no program %s in %s", program, strings.Join(dirs, ", "))
}

// An Arg is one argument as the program gets it.
type Arg struct {
	Text string
	Word int    // the word of Argv it comes from
	Var  string // the variable that the whole word stands for, see Word.Variable

	// Unknown says what of it files do not tell, "" if they tell all. Text is
	// then as it is written from there on: only Text[:Known] is sure.
	Unknown string
	Known   int
}

// Expand returns the arguments as the program gets them: argv[0] first, each
// $NAME and ${NAME} replaced. The error says what is not known from files.
func (c Command) Expand(env Env) ([]Arg, error) {
	args, err := c.ExpandKnown(env)
	if err != nil {
		return nil, err
	}
	for _, a := range args {
		if a.Unknown != "" {
			return nil, fmt.Errorf("argument %s: %s is not known from files", a.Text, a.Unknown)
		}
	}
	return args, nil
}

// ExpandKnown is Expand for who does not need all arguments: what is not known
// is said in each, see Arg.Unknown. It is still an error if it is not known
// how many there are.
func (c Command) ExpandKnown(env Env) ([]Arg, error) {
	var args []Arg
	for i, w := range c.Argv {
		if name, ok := w.Variable(); ok && !c.literal() && w.Unknown == "" {
			if by := env.unknown[name]; by != "" {
				return nil, fmt.Errorf("$%s, set by %s, is not known from files", name, by)
			}
			for _, text := range splitWords(env.vars[name].Value) {
				args = append(args, Arg{Text: text, Word: i, Var: name, Known: len(text)})
			}
			continue
		}
		a := Arg{Text: w.Text, Word: i, Unknown: w.Unknown, Known: len(w.Text)}
		switch {
		case w.Unknown != "":
			a.Known = strings.IndexByte(w.Text, '%')
			if dollar := strings.IndexByte(w.Text, '$'); dollar >= 0 && !c.literal() {
				a.Known = min(a.Known, dollar)
			}
		case c.literal():
		case w.Text == "$":
			continue // the variable without a name is never set
		default:
			a.Text, a.Known, a.Unknown = expandBraces(w.Text, env)
		}
		args = append(args, a)
	}
	return args, nil
}

// expandBraces replaces ${NAME} and $$ in a word. A ${ without } and a ${NAME:
// stand for themselves. From the first variable on that is not known, text is
// returned as it is.
func expandBraces(text string, env Env) (expanded string, known int, unknown string) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] != '$' || i+1 == len(text):
			b.WriteByte(text[i])
		case text[i+1] == '$':
			b.WriteByte('$')
			i++
		case text[i+1] == '{':
			end := strings.IndexAny(text[i+2:], ":}")
			if end < 0 {
				b.WriteString(text[i:])
				return b.String(), b.Len(), ""
			}
			name := text[i+2 : i+2+end]
			if text[i+2+end] == ':' {
				b.WriteString("${" + name + ":")
			} else if by := env.unknown[name]; by != "" {
				known = b.Len()
				b.WriteString(text[i:])
				return b.String(), known, fmt.Sprintf("$%s, set by %s,", name, by)
			} else {
				b.WriteString(env.vars[name].Value)
			}
			i += 2 + end
		default:
			// The $ stands for itself, and so does what follows.
			b.WriteString(text[i : i+2])
			i++
		}
	}
	return b.String(), b.Len(), ""
}

// Edit returns Raw without the words for which drop says so (i and w are of
// Argv; Program is never dropped), each with what is between it and the word
// before, and, unless insert is empty, with insert as a new word right after
// Program; byte for byte otherwise. insert is source text, quoted and escaped
// as it needs to be. drop may be nil. Unlike Raw the result can be followed by
// a line end whatever it ends in.
//
// The result is read again, and it is an error if its words are not those
// asked for.
func (c Command) Edit(drop func(i int, w Word) bool, insert string) (string, error) {
	raw := c.Setting.Raw
	var b strings.Builder
	put := func(gap, source string) {
		b.WriteString(gap)
		b.WriteString(source)
	}
	put("", raw[c.Start:c.Program.End])
	want := []string{b.String()}
	if insert != "" {
		put(" ", insert)
		want = append(want, insert)
	}
	at := c.Program.End
	for i, w := range c.Argv {
		if w == c.Program {
			continue
		}
		if drop == nil || !drop(i, w) {
			put(raw[at:w.Start], raw[w.Start:w.End])
			want = append(want, raw[w.Start:w.End])
		}
		at = w.End
	}
	// A backslash at the end is an argument if a blank follows in the file,
	// which Raw leaves out; at the end of a line it would be something else.
	if endsInBackslash([]byte(b.String())) {
		put("", " ")
	}
	if got := sourceWords(b.String()); insert == ";" || !slices.Equal(got, want) {
		return "", fmt.Errorf("editing %q: the words would be %q", c.Raw(), got)
	}
	return b.String(), nil
}

// sourceWords are the words of a command line as they stand in the text.
func sourceWords(raw string) []string {
	var words []string
	text := []byte("[Service]\nExecStart=" + raw + "\n")
	_ = parseFile("", text, serviceSections, func(s Setting) *BadSetting {
		for i := 0; ; {
			w, ok, err := firstWordOr(s.Value, i)
			if !ok || err != nil {
				return nil
			}
			start, end := s.raw(w.start, w.end)
			words = append(words, s.Raw[start:end])
			i = w.next
		}
	}, func(Problem) {})
	return words
}

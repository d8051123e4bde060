package unitfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// An EnvFile is one EnvironmentFile setting.
type EnvFile struct {
	Setting  Setting
	Pattern  string   // specifiers replaced; may have the wildcards of glob(7)
	Optional bool     // prefix "-"
	Files    []string // those there are now, in the order in which they are read
}

// An EnvFileError is an environment file because of which the unit cannot
// start.
type EnvFileError struct {
	Setting Setting
	File    string // a name inside the tree
	Err     error
}

func (e *EnvFileError) Error() string {
	return fmt.Sprintf("%s:%d: EnvironmentFile %s: %v", e.Setting.File, e.Setting.Line, e.File, e.Err)
}

func (e *EnvFileError) Unwrap() error { return e.Err }

// EnvFiles returns the EnvironmentFile settings that count, in order. The
// error is a *BadSetting if a specifier is not known.
func (u *Unit) EnvFiles() ([]EnvFile, error) {
	var list []EnvFile
	for _, s := range u.Values("Service", "EnvironmentFile") {
		value, err := u.specifiers(s.Value, s.File)
		var unknown *unknownError
		if errors.As(err, &unknown) {
			return nil, &BadSetting{File: s.File, Line: s.Line, Text: "EnvironmentFile: " + err.Error()}
		} else if err != nil {
			continue // systemd ignores it, as it does the next two
		}
		f := EnvFile{Setting: s}
		f.Pattern, f.Optional = strings.CutPrefix(value, "-")
		if !strings.HasPrefix(f.Pattern, "/") || slices.Contains(strings.Split(f.Pattern, "/"), "..") {
			continue
		}
		f.Pattern = removeDots(f.Pattern)
		if len(f.Pattern) >= 4096 {
			continue
		}
		if f.Files, err = u.files.glob(f.Pattern); err != nil {
			return nil, &BadSetting{File: s.File, Line: s.Line, Text: "EnvironmentFile: " + err.Error()}
		}
		list = append(list, f)
	}
	return list, nil
}

func (f EnvFile) read(u *Unit) ([]Var, error) {
	if len(f.Files) == 0 && !f.Optional {
		return nil, &EnvFileError{Setting: f.Setting, File: f.Pattern, Err: fs.ErrNotExist}
	}
	var list []Var
	for _, file := range f.Files {
		data, err := u.files.readFile(file)
		var vars []Var
		if err == nil {
			vars, err = ParseEnvFile(file, data, u.host)
		}
		var unknown *unknownError
		switch {
		case errors.As(err, &unknown), err != nil && !f.Optional:
			return nil, &EnvFileError{Setting: f.Setting, File: file, Err: err}
		case err == nil:
			list = append(list, vars...)
		}
	}
	return list, nil
}

// ParseEnvFile reads an environment file as systemd does for EnvironmentFile.
// file is for the result. Of a name that is set twice the later value counts;
// what is no name of a variable, such as "export A", is left out.
//
// The error says why systemd reads none of it. host.Systemd matters for a
// comment that ends in a backslash: before 254 the next line belongs to it.
func ParseEnvFile(file string, data []byte, host Host) ([]Var, error) {
	if strings.IndexByte(string(data), 0) >= 0 {
		return nil, errors.New("has a NUL byte")
	}
	vars, err := parseEnvFile(data, host.Systemd < 254)
	if host.Systemd == 0 {
		newer, nerr := parseEnvFile(data, false)
		if !slices.Equal(vars, newer) || (err == nil) != (nerr == nil) {
			return nil, &unknownError{what: "what follows a comment that ends in a backslash"}
		}
	}
	if err != nil {
		return nil, err
	}
	var list []Var
	for _, v := range vars {
		if !validName(v.Name) {
			continue
		}
		v.Key, v.File = "EnvironmentFile", file
		list = slices.DeleteFunc(list, func(old Var) bool { return old.Name == v.Name })
		list = append(list, v)
	}
	return list, nil
}

// parseEnvFile reads all assignments: NAME=value to the end of the line. A
// value may begin with quoted parts; outside quotes a backslash stands for the
// byte after it, and before a line end for nothing. joined says that a line
// after a comment which ends in a backslash belongs to the comment.
func parseEnvFile(data []byte, joined bool) (vars []Var, err error) {
	r := &envReader{data: data, line: 1}
	for r.more() {
		c := r.next()
		if isBlank(c) {
			continue
		}
		if c == '#' || c == ';' {
			r.comment(joined)
			continue
		}
		v := Var{Line: r.line}
		name, ok := r.name(c)
		if !ok {
			continue
		}
		value := r.value()
		if !validUTF8(name) || !validUTF8(value) {
			return nil, fmt.Errorf("line %d is not UTF-8", v.Line)
		}
		v.Name, v.Value = string(name), string(value)
		vars = append(vars, v)
	}
	return vars, nil
}

// An envReader reads an environment file byte by byte.
type envReader struct {
	data []byte // what is left
	line int    // of its first byte
}

func (r *envReader) more() bool { return len(r.data) > 0 }

func (r *envReader) next() byte {
	c := r.data[0]
	r.data = r.data[1:]
	if c == '\n' || c == '\r' && (len(r.data) == 0 || r.data[0] != '\n') {
		r.line++
	}
	return c
}

func (r *envReader) comment(joined bool) {
	for r.more() {
		c := r.next()
		if c == '\\' && r.more() && (joined || !isNewline(r.data[0])) {
			r.next()
		} else if isNewline(c) {
			return
		}
	}
}

// name reads up to "=". A line without it is none.
func (r *envReader) name(first byte) ([]byte, bool) {
	name := []byte{first}
	for r.more() {
		switch c := r.next(); {
		case isNewline(c):
			return nil, false
		case c == '=':
			return trimRight(name), true
		default:
			name = append(name, c)
		}
	}
	return nil, false
}

// value reads up to and with the line end.
func (r *envReader) value() []byte {
	var value []byte
	for r.more() {
		switch c := r.data[0]; {
		case isNewline(c):
			r.next()
			return value
		case isBlank(c): // between quoted parts it does not count
			r.next()
		case c == '\'':
			value = r.singleQuoted(value)
		case c == '"':
			value = r.doubleQuoted(value)
		default:
			return r.plain(value)
		}
	}
	return value
}

func (r *envReader) singleQuoted(value []byte) []byte {
	for r.next(); r.more(); {
		c := r.next()
		if c == '\'' {
			break
		}
		value = append(value, c)
	}
	return value
}

func (r *envReader) doubleQuoted(value []byte) []byte {
	for r.next(); r.more(); {
		c := r.next()
		switch {
		case c == '"':
			return value
		case c != '\\':
			value = append(value, c)
			continue
		case !r.more():
			return value
		}
		switch c := r.next(); c {
		case '"', '\\', '`', '$':
			value = append(value, c)
		case '\n':
		default:
			value = append(value, '\\', c)
		}
	}
	return value
}

// plain reads the rest of a value, in which quotes stand for themselves.
// Blanks at its end are dropped, but not those before an escaped byte.
func (r *envReader) plain(value []byte) []byte {
	keep := len(value)
	for r.more() {
		c := r.next()
		switch {
		case isNewline(c):
			return append(value[:keep], trimRight(value[keep:])...)
		case c != '\\':
			value = append(value, c)
			continue
		case !r.more():
			return value
		}
		if c := r.next(); !isNewline(c) {
			value = append(value, c)
		}
		keep = len(value)
	}
	return append(value[:keep], trimRight(value[keep:])...)
}

func isNewline(c byte) bool { return c == '\n' || c == '\r' }

func isBlank(c byte) bool { return strings.IndexByte(blank, c) >= 0 }

func trimRight(b []byte) []byte { return bytes.TrimRight(b, blank) }

// glob returns the names that match a pattern, as glob(3) does.
func (f files) glob(pattern string) ([]string, error) {
	found := []string{"/"}
	for element := range strings.SplitSeq(strings.Trim(pattern, "/"), "/") {
		var next []string
		wild := strings.ContainsAny(element, "*?[\\")
		for _, dir := range found {
			if !wild {
				next = append(next, path.Join(dir, element))
				continue
			}
			if strings.Contains(element, "[[:") || strings.Contains(element, "[.") || strings.Contains(element, "[=") {
				return nil, &unknownError{what: "what matches " + pattern}
			}
			d, ok := f.dir(dir)
			if !ok {
				continue
			}
			names, err := f.readDir(d)
			if err != nil {
				continue
			}
			for _, name := range names {
				if strings.HasPrefix(name, ".") && !strings.HasPrefix(element, ".") {
					continue
				}
				ok, err := path.Match(strings.ReplaceAll(element, "[!", "[^"), name)
				if err != nil {
					return nil, &unknownError{what: "what matches " + pattern}
				}
				if ok {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		found = next
	}
	var there []string
	for _, name := range found {
		if f.exists(name) {
			there = append(there, name)
		}
	}
	return there, nil
}

// exists reports whether there is such a name, be it a link to nothing.
func (f files) exists(name string) bool {
	if content, ok := f.changed[f.real(name)]; ok {
		return content != nil
	}
	_, err := f.tree.Lstat(name)
	return err == nil
}

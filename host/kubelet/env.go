package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"nodelocaldns/host/unitfile"
	"nodelocaldns/units"
)

// The keys of other drop-ins after which ours must come: they could reset what
// it adds.
var envKeys = []string{"ExecStart", "ExecStartPre", "EnvironmentFile", "UnsetEnvironment"}

// envFits says why the back-end env cannot be used.
func (f *found) envFits() error {
	last := f.last()
	if last == "" {
		return fmt.Errorf("ExecStart does not end in a variable whose words it splits")
	}
	vars := []string{last}
	for _, w := range f.cmd.Argv[f.word+1:] {
		name, _, _ := strings.Cut(strings.ReplaceAll(w.Text, "_", "-"), "=")
		if name == "--"+clusterDNS {
			return fmt.Errorf("ExecStart itself has --cluster-dns, to which ours would only append")
		}
	}
	for _, fl := range f.dns {
		for _, at := range []int{fl.first, fl.last} {
			if f.args[at].Var == "" {
				return fmt.Errorf("--cluster-dns is in ExecStart, or in a variable whose words it does not split")
			}
			if f.args[at].Word != f.args[fl.first].Word {
				return fmt.Errorf("--cluster-dns and its value are in two variables")
			}
			vars = append(vars, f.args[at].Var)
		}
	}
	for _, name := range vars {
		if !isName(name) {
			return fmt.Errorf("$%s is no name that an environment file can have", name)
		}
		if n := f.uses(name); n != 1 {
			return fmt.Errorf("$%s is used %d times by %s: it cannot be changed for the kubelet alone", name, n, f.Unit)
		}
	}
	return nil
}

// uses counts how often the commands of the unit use a variable.
func (f *found) uses(name string) int {
	n := 0
	for _, s := range f.unit.Settings {
		if s.Section != "Service" || !strings.HasPrefix(s.Key, "Exec") {
			continue
		}
		if s.Key == "ExecStart" && (s.File != f.cmd.Setting.File || s.Line != f.cmd.Setting.Line) {
			continue // reset
		}
		n += strings.Count(s.Value, "${"+name+"}")
		for _, after := range strings.Split(s.Value, "$"+name)[1:] {
			if after == "" || !isName("_"+after[:1]) {
				n++ // not the beginning of a longer name
			}
		}
	}
	return n
}

// isName says whether s can be the name of a variable.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// envDropIn is the drop-in of the back-end env. Nothing of the node's command
// line is in it, so it is the same for every node and never out of date.
func (f *found) envDropIn() (Change, error) {
	name, err := f.dropInPath(envKeys...)
	if err != nil {
		return Change{}, err
	}
	call := units.Program + " kubelet-env"
	if f.want.Config != "" {
		if strings.ContainsAny(f.want.Config, "\"'\\$%; \t\n") {
			return Change{}, refuse("give it a plain name", "the name of our configuration file cannot be put into a unit: %q", f.want.Config)
		}
		call = units.Program + " --config " + f.want.Config + " kubelet-env"
	}
	body := startsUs + fmt.Sprintf(`[Service]
# At each start of the kubelet: without our program, or when it is slow or in
# doubt, there is no such file, and the kubelet starts as it always did.
ExecStartPre=-/usr/bin/rm -f %s
ExecStartPre=-/usr/bin/timeout -k 1 2 %s
EnvironmentFile=-%s
`, EnvFile, call, EnvFile)
	c := Change{
		Path:    name,
		Content: withHeader(ByEnv, "our address first in the kubelet's cluster DNS", "", []byte(body)),
		Argv:    texts(f.cmd.Argv),
	}
	if f.Later {
		return c, nil
	}
	text, err := f.render()
	if err != nil {
		return Change{}, err
	}
	return c, f.provenEnv(c, text)
}

// Env returns the environment file that makes the kubelet, which is about to
// start, ask us first: the variables of its unit that carry --cluster-dns
// today, without it, and the last one of ExecStart, with the whole list. Where
// anything is in doubt it is an error, and the kubelet must start without the
// file. n.Running should be nil: the kubelet that is about to start is not the
// one that ran.
//
// The content is nil, with no error, if the kubelet asks us first without it.
func Env(ctx context.Context, n Node, w Want) (Facts, []byte, error) {
	w.Backend = ByEnv
	f, err := find(ctx, n, w)
	if err == nil && f.Later {
		err = notKnown(fmt.Errorf("%s has no arguments yet", f.Unit))
	}
	// Our drop-in is there, and that alone makes nobody ask us.
	if err != nil || slices.Equal(f.Target, f.list) {
		return f.Facts, nil, err
	}
	text, err := f.render()
	if err != nil {
		return f.Facts, nil, err
	}
	c, err := f.envDropIn()
	if err != nil {
		return f.Facts, nil, err
	}
	return f.Facts, text, f.provenEnv(c, text)
}

// render is the environment file.
func (f *found) render() ([]byte, error) {
	last := f.last()
	var names []string
	for _, fl := range f.dns {
		if name := f.args[fl.first].Var; name != last && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# nodelocaldns %d: made for one start of %s; changes are lost\n", version, f.Unit)
	for _, name := range append(names, last) {
		if why := f.env.Unknown(name); why != "" {
			return nil, notKnown(fmt.Errorf("$%s: %s", name, why))
		}
		v, _ := f.env.Get(name)
		value, err := f.cut(v.Value, name)
		if err != nil {
			return nil, err
		}
		if name == last {
			value = strings.TrimRight("--"+clusterDNS+"="+join(f.Target)+" "+value, " \t\n")
		}
		if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
			return nil, refuse("mend it", "the value of %s in %s is no text", name, v.File)
		}
		fmt.Fprintf(&out, "%s=\"%s\"\n", name, envQuote.Replace(value))
	}
	return out.Bytes(), nil
}

// envQuote is for text between double quotes in an environment file, where
// systemd takes a backslash away before these and before no other byte.
var envQuote = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`)

// cut is the value of a variable without --cluster-dns and its value, byte for
// byte otherwise.
func (f *found) cut(value, name string) (string, error) {
	words := splitValue(value)
	var mine []unitfile.Arg
	first := -1
	for i, a := range f.args {
		if a.Var == name {
			if first < 0 {
				first = i
			}
			mine = append(mine, a)
		}
	}
	same := len(words) == len(mine)
	for i := range mine {
		same = same && words[i].text == mine[i].Text
	}
	if !same {
		return "", refuse("write it without unusual quoting", "the words of $%s are in doubt", name)
	}
	var out strings.Builder
	at := 0
	for _, fl := range f.dns {
		if f.args[fl.first].Var != name {
			continue
		}
		out.WriteString(strings.TrimRight(value[at:words[fl.first-first].start], " \t\n\r"))
		at = words[fl.last-first].end
	}
	out.WriteString(value[at:])
	return strings.TrimLeft(out.String(), " \t\n\r"), nil
}

// A span is a word of a variable's value and its place.
type span struct {
	text       string
	start, end int
}

// splitValue splits the value of a $VAR into arguments as systemd does: blanks
// separate, quotes hold together, also in the middle of a word, and a
// backslash stands for the byte after it. What is not closed is closed at the
// end.
func splitValue(value string) []span {
	var out []span
	for i := 0; i < len(value); {
		if strings.IndexByte(" \t\n\r", value[i]) >= 0 {
			i++
			continue
		}
		w := span{start: i}
		var text []byte
		quote := byte(0)
		for ; i < len(value); i++ {
			c := value[i]
			if c == '\\' {
				if i++; i < len(value) {
					text = append(text, value[i])
				}
				continue
			}
			switch {
			case quote != 0 && c == quote:
				quote = 0
				continue
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
				continue
			case quote == 0 && strings.IndexByte(" \t\n\r", c) >= 0:
			default:
				text = append(text, c)
				continue
			}
			break
		}
		i = min(i, len(value))
		w.text, w.end = string(text), i
		out = append(out, w)
	}
	return out
}

// provenEnv reads the unit as it will be with our drop-in and the environment
// file. It is an error if that would not start the same kubelet with the same
// arguments and our list.
func (f *found) provenEnv(c Change, text []byte) error {
	after := &found{node: f.node, want: f.want, cmd: f.cmd, word: f.word, whole: true}
	unit, err := f.unit.With(c.Path, c.Content)
	if err == nil {
		unit, err = unit.With(EnvFile, text)
	}
	if err != nil {
		return fmt.Errorf("reading %s with %s: %w", f.Unit, c.Path, err)
	}
	wrong := func(format string, args ...any) error {
		return refuse("set kubelet.backend to another one, or report the unit: systemctl cat "+f.Unit,
			"with %s, %s", c.Path, fmt.Sprintf(format, args...))
	}
	commands, err := unit.Commands("ExecStart")
	if err != nil || len(commands) != 1 || !slices.Equal(texts(commands[0].Argv), texts(f.cmd.Argv)) {
		return wrong("%s would have another ExecStart: %v", f.Unit, err)
	}
	after.unit = unit
	if err := after.expand(); err != nil {
		return wrong("its arguments are not known: %v", err)
	}
	if !slices.Equal(others(f.words()), others(after.words())) {
		return wrong("the kubelet would get other arguments than now")
	}
	if err := after.names(f.Target); err != nil {
		return wrong("%v", err)
	}
	return nil
}

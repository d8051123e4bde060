package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"nodelocaldns/host/unitfile"
)

// A Change is the one file that makes the kubelet ask us first. Path is a name
// inside the tree.
type Change struct {
	Path    string
	Content []byte

	// Theirs says that the file is somebody else's and is changed in place:
	// undo puts its bytes back. Otherwise it is ours and undo deletes it.
	Theirs bool

	// Argv is ExecStart as systemd must have it once the file counts, before
	// it replaces variables; nil where systemd does not read the file.
	Argv []string
}

// Plan is Find, and the file that follows from it. The Change is the zero
// value if there is nothing to do, or if the error says why nothing may be
// done. It is a function of the node's files: planning again, with the file
// there, plans the same file.
func Plan(ctx context.Context, n Node, w Want) (Facts, Change, error) {
	f, err := find(ctx, n, w)
	if err != nil || f.Already {
		return f.Facts, Change{}, err
	}
	var c Change
	switch f.Backend {
	case ByEnv:
		c, err = f.envDropIn()
	case ByDropIn:
		c, err = f.dropIn()
	case ByConfigDir:
		c, err = f.configFile()
	case ByArgsFile:
		c = Change{Path: microK8sArgs, Content: renderArgs(f.text, join(f.Target)), Theirs: true}
	case ByRewrite:
		c, err = f.rewrite()
	default:
		err = fmt.Errorf("there is no back-end %q", f.Backend)
	}
	if err != nil {
		return f.Facts, Change{}, err
	}
	return f.Facts, c, nil
}

// choose picks the back-end for a kubelet that is a unit of its own.
func (f *found) choose() error {
	fits := map[Backend]error{ByEnv: f.envFits(), ByConfigDir: f.configDirFits()}
	switch b := f.want.Backend; b {
	case Auto:
		f.Backend = ByDropIn
		for _, b := range []Backend{ByEnv, ByConfigDir} {
			if fits[b] == nil {
				f.Backend = b
				return nil
			}
		}
		return nil
	case ByEnv, ByConfigDir:
		if fits[b] != nil {
			return refuse("set kubelet.backend: auto", "back-end %s does not fit: %v", b, fits[b])
		}
		fallthrough
	case ByDropIn, ByRewrite:
		f.Backend = b
		return nil
	default:
		return refuse("set kubelet.backend: auto", "back-end %s does not fit %s", b, f.Unit)
	}
}

func (f *found) configDirFits() error {
	switch {
	case f.args == nil && len(f.cmd.Argv) > f.word+1:
		return fmt.Errorf("its arguments are not known")
	case f.dir == "":
		return fmt.Errorf("the kubelet has no --config-dir")
	case len(f.dns) > 0:
		return fmt.Errorf("the kubelet has --cluster-dns (%s), which beats every configuration file", f.Where)
	}
	return nil
}

// configFile is our file in the kubelet's --config-dir, by a name that is
// merged after every other that has a list.
func (f *found) configFile() (Change, error) {
	names, err := configFiles(f.node.Tree, f.dir)
	if err != nil {
		return Change{}, err
	}
	var others []string
	for _, name := range names {
		if f.isMine(name) {
			continue
		}
		m, err := readObject(f.node.Tree, name)
		if err != nil {
			return Change{}, err
		}
		if _, ok := m["clusterDNS"]; ok {
			// The directory is walked level by level: the first one decides.
			first, _, _ := strings.Cut(strings.TrimPrefix(name, strings.TrimSuffix(f.dir, "/")+"/"), "/")
			others = append(others, first)
		}
	}
	name, ok := nameAfter(others)
	if !ok {
		return Change{}, refuse("rename it", "no file of ours would be merged after %s", path.Join(f.dir, slices.Max(others)))
	}
	var body bytes.Buffer
	fmt.Fprintf(&body, "apiVersion: %s\nkind: %s\nclusterDNS:\n", configAPI, configKind)
	for _, a := range f.Target {
		fmt.Fprintf(&body, "- %q\n", a)
	}
	return Change{
		Path:    path.Join(f.dir, name),
		Content: withHeader(ByConfigDir, "our address first in the kubelet's cluster DNS", join(f.Base), body.Bytes()),
	}, nil
}

// literal says which words of ExecStart are --cluster-dns and can be taken out
// of it: those that are not among the words of a $VAR. inside are the servers
// that the others name.
func (f *found) literal() (words map[int]bool, inside []netip.Addr) {
	words = map[int]bool{}
	for _, fl := range f.dns {
		from, to := f.args[fl.first], f.args[fl.last]
		if from.Var != "" || to.Var != "" {
			entries, _, _ := serversOf([]flag{fl})
			inside = append(inside, parseServers(entries)...)
			continue
		}
		words[from.Word], words[to.Word] = true, true
	}
	return words, inside
}

// edited is the command line of the kubelet with one --cluster-dns right behind its word and
// no other in the text of ExecStart, byte for byte otherwise.
func (f *found) edited() (string, error) {
	if f.args == nil && len(f.cmd.Argv) > f.word+1 {
		return "", refuse("start the kubelet once, then run this again", "the arguments of %s are not known", f.Unit)
	}
	drop, inside := f.literal()
	value := f.Target
	if n := len(value) - len(inside); n > 0 && slices.Equal(value[n:], inside) {
		value = value[:n] // the flags in variables come later and append these to ours
	}
	// A comma needs no quotes in ExecStart, and an address has no other
	// special character.
	flag := "--" + clusterDNS + "=" + join(value)

	raw := f.cmd.Setting.Raw
	var out strings.Builder
	at := f.cmd.Start
	for i, w := range f.cmd.Argv {
		if drop[i] {
			out.WriteString(strings.TrimRight(raw[at:w.Start], " \t"))
			at = w.End
		}
		if i == f.word {
			out.WriteString(raw[at:w.End] + " " + flag)
			at = w.End
		}
	}
	out.WriteString(raw[at:f.cmd.End])
	return out.String(), nil
}

// dropIn is a drop-in that restates ExecStart with our flag in it.
func (f *found) dropIn() (Change, error) {
	if f.Source == FromRunning && len(f.dns) > 0 && !slices.Equal(f.list, f.Now) {
		return Change{}, refuse("restart the kubelet first, or put its files right",
			"the running kubelet asks %s, its files say %s", named(f.Now), named(f.list))
	}
	text, err := f.edited()
	if err != nil {
		return Change{}, err
	}
	name, err := f.dropInPath("ExecStart")
	if err != nil {
		return Change{}, err
	}
	from := f.cmd.Raw() + "\x00" + join(f.Base)
	body := startsUs + "[Service]\nExecStart=\nExecStart=" + text + "\n"
	c := Change{
		Path:    name,
		Content: withHeader(ByDropIn, "our address first in the kubelet's cluster DNS", from, []byte(body)),
	}
	return f.proven(c)
}

// rewrite changes the file that holds ExecStart.
func (f *found) rewrite() (Change, error) {
	if f.Source == FromRunning && len(f.dns) > 0 && !slices.Equal(f.list, f.Now) {
		return Change{}, refuse("restart the kubelet first, or put its files right",
			"the running kubelet asks %s, its files say %s", named(f.Now), named(f.list))
	}
	name := f.cmd.Setting.File
	data, err := f.node.Tree.ReadFile(name)
	if err != nil {
		return Change{}, err
	}
	text, err := f.edited()
	if err != nil {
		return Change{}, err
	}
	if n := bytes.Count(data, []byte(f.cmd.Raw())); n != 1 {
		return Change{}, refuse("set kubelet.backend: auto", "the command line stands %d times in %s", n, name)
	}
	c := Change{Path: name, Content: bytes.Replace(data, []byte(f.cmd.Raw()), []byte(text), 1), Theirs: true}
	if !strings.HasPrefix(name, "/etc/") {
		f.note("%s belongs to a package: its next upgrade takes our change away", name)
	}
	return f.proven(c)
}

// dropInPath is where our drop-in goes: behind every other that has one of the
// keys.
func (f *found) dropInPath(keys ...string) (string, error) {
	var others []string
	for _, s := range f.unit.Settings {
		if s.File != f.unit.Fragment && s.Section == "Service" && slices.Contains(keys, s.Key) {
			others = append(others, path.Base(s.File))
		}
	}
	name, ok := nameAfter(others)
	if !ok {
		return "", refuse("rename it", "no drop-in of ours would count after %s", slices.Max(others))
	}
	return path.Join(f.dropInDir(), name), nil
}

// proven reads the unit as it will be with the change, and says what systemd
// must have as ExecStart then. It is an error if that would not start the same
// kubelet with the same arguments and our list.
func (f *found) proven(c Change) (Change, error) {
	after := &found{node: f.node, want: f.want, Facts: Facts{Unit: f.Unit}, whole: true}
	var err error
	if after.unit, err = f.unit.With(c.Path, c.Content); err != nil {
		return Change{}, fmt.Errorf("reading %s with %s: %w", f.Unit, c.Path, err)
	}
	wrong := func(format string, args ...any) error {
		return refuse("set kubelet.backend to another one, or report the unit: systemctl cat "+f.Unit,
			"with %s, %s", c.Path, fmt.Sprintf(format, args...))
	}
	commands, err := after.unit.Commands("ExecStart")
	if err != nil || len(commands) != 1 {
		return Change{}, wrong("%s would have %d commands: %v", f.Unit, len(commands), err)
	}
	after.cmd = commands[0]
	for _, w := range after.cmd.Argv {
		c.Argv = append(c.Argv, w.Text)
	}
	after.word = f.word
	if err := after.expand(); err != nil {
		return Change{}, wrong("its arguments are not known: %v", err)
	}
	same := f.cmd.Path == after.cmd.Path && f.cmd.Prefix == after.cmd.Prefix &&
		slices.Equal(texts(f.cmd.Argv[:f.word+1]), texts(after.cmd.Argv[:f.word+1]))
	if !same || !slices.Equal(others(f.words()), others(after.words())) {
		return Change{}, wrong("the kubelet would get other arguments than now")
	}
	if err := after.names(f.Target); err != nil {
		return Change{}, wrong("%v", err)
	}
	return c, nil
}

// names says whether the arguments of f make the kubelet ask target.
func (f *found) names(target []netip.Addr) error {
	all, err := flags(f.words())
	if err != nil {
		return err
	}
	list, _, err := serversOf(all)
	if err != nil {
		return err
	}
	if got := parseServers(list); !slices.Equal(got, target) {
		return fmt.Errorf("the kubelet would ask %s", named(got))
	}
	return nil
}

func texts(words []unitfile.Word) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w.Text
	}
	return out
}

// others are the arguments without --cluster-dns.
func others(words []string) []string {
	all, _ := flags(words)
	drop := map[int]bool{}
	for _, fl := range all {
		if fl.name == clusterDNS {
			drop[fl.first], drop[fl.last] = true, true
		}
	}
	var out []string
	for i, w := range words {
		if !drop[i] {
			out = append(out, w)
		}
	}
	return out
}

package unitfile

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/fsys"
	"nodelocaldns/test/judge"
)

const (
	etc = "/etc/systemd/system/"
	run = "/run/systemd/system/"
	usr = "/usr/lib/systemd/system/"
)

// A tree is a file tree: name → content; a content "-> x" is a link to x, and
// a name that ends in "/" a directory.
type tree map[string]string

func (files tree) write(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, file)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(file, 0o755)
		} else {
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// A view is what both we and systemd can say of a unit.
type view struct {
	State       string // loaded, masked, not-found, refused
	Fragment    string
	DropIns     []string
	Environment map[string]string
	EnvFiles    []string
	Pass, Unset []string
	Commands    map[string][][]string
}

// ours is how we read the unit, and the unit.
func ours(t testing.TB, root, name string) (view, *Unit) {
	t.Helper()
	u, err := Load(fsys.Tree(root), name, Host{Systemd: judge.Version(t)})
	switch {
	case errors.Is(err, ErrNotFound):
		return view{State: "not-found"}, nil
	case errors.Is(err, ErrMasked):
		return view{State: "masked"}, nil
	case err != nil:
		t.Fatalf("loading %s: %v", name, err)
	case u.refused != nil:
		return view{State: "refused"}, u
	}
	v := view{
		State: "loaded", Fragment: u.Fragment, DropIns: u.DropIns,
		Environment: map[string]string{}, Commands: map[string][][]string{},
	}
	env := Env{vars: map[string]Var{}, unknown: map[string]string{}}
	for _, s := range u.Values("Service", "Environment") {
		if err := u.assignments(s, &env); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range env.Vars() {
		v.Environment[e.Name] = e.Value
	}
	files, err := u.EnvFiles()
	if err != nil {
		return view{State: "not known: " + err.Error()}, u
	}
	for _, f := range files {
		dash := ""
		if f.Optional {
			dash = "-"
		}
		v.EnvFiles = append(v.EnvFiles, dash+f.Pattern)
	}
	for _, s := range u.Values("Service", "PassEnvironment") {
		for _, w := range u.words(s, 0) {
			if validName(w) && !slices.Contains(v.Pass, w) {
				v.Pass = append(v.Pass, w)
			}
		}
	}
	for _, s := range u.Values("Service", "UnsetEnvironment") {
		for _, w := range u.words(s, cEscapes) {
			name, value, _ := strings.Cut(w, "=")
			if validName(name) && validUTF8([]byte(value)) && !slices.Contains(v.Unset, w) {
				v.Unset = append(v.Unset, w)
			}
		}
	}
	for _, key := range commandKeys {
		for _, c := range u.commands[key] {
			var argv []string
			for _, w := range c.Argv {
				argv = append(argv, w.Text)
			}
			v.Commands[key] = append(v.Commands[key], argv)
		}
	}
	return v, u
}

// theirs is how systemd reads it.
func theirs(r judge.Reading) view {
	v := view{State: r.State}
	switch r.State {
	case "loaded":
	case "bad-setting", "error":
		v.State = "refused"
		return v
	default:
		return v
	}
	v.Fragment, v.DropIns, v.Commands, v.EnvFiles = r.Fragment, r.DropIns, r.Commands, r.EnvironmentFiles
	v.Pass, v.Unset = r.PassEnvironment, r.UnsetEnvironment
	v.Environment = map[string]string{}
	for _, e := range r.Environment {
		name, value, _ := strings.Cut(e, "=")
		v.Environment[name] = value
	}
	return v
}

// agree compares both on each unit, and returns ours.
func agree(t *testing.T, files tree, names ...string) map[string]*Unit {
	t.Helper()
	root := files.write(t)
	readings := judge.Read(t, root, names...)
	units := map[string]*Unit{}
	for _, name := range names {
		got, u := ours(t, root, name)
		want := theirs(readings[name])
		// systemd names the directory as in its search path, we without links.
		if dir, err := fsys.Tree(root).Resolve(filepath.Dir(want.Fragment)); err == nil && want.Fragment != "" {
			want.Fragment = filepath.Join(dir, filepath.Base(want.Fragment))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s is read otherwise (-systemd +ours):\n%s\n%s", name, diff, strings.Join(readings[name].Said, "\n"))
		}
		units[name] = u
	}
	return units
}

// lineCases are unit files, and what the case is about.
var lineCases = map[string]string{
	"plain":                                   "[Service]\nExecStart=/bin/kubelet a b\n",
	"continued lines":                         "[Service]\nExecStart=/bin/kubelet \\\n\t--a \\\n  --b\n",
	"comment in a continued line":             "[Service]\nExecStart=/bin/kubelet \\\n# --no\n  ; --no \\\n --a\n",
	"comment that ends in a backslash":        "[Service]\n# no \\\nExecStart=/bin/kubelet\n",
	"blank line ends a continued line":        "[Service]\nExecStart=/bin/kubelet \\\n\n --a\n",
	"blanks only end a continued line":        "[Service]\nExecStart=/bin/kubelet \\\n   \n --a=b\n",
	"backslash and space is no continuation":  "[Service]\nExecStart=/bin/kubelet a \\ \n --b\n",
	"backslash at the end of the file":        "[Service]\nExecStart=/bin/kubelet a \\",
	"backslash and line end at the end":       "[Service]\nExecStart=/bin/kubelet a \\\n",
	"two backslashes do not continue":         "[Service]\nExecStart=/bin/kubelet a\\\\\n --b\n",
	"three backslashes do":                    "[Service]\nExecStart=/bin/kubelet a\\\\\\\n --b\n",
	"continued section header":                "[Serv\\\nice]\nExecStart=/bin/kubelet\n",
	"continued key":                           "[Service]\nExec\\\nStart=/bin/kubelet\n",
	"no line end at the end":                  "[Service]\nExecStart=/bin/kubelet",
	"CRLF":                                    "[Service]\r\nExecStart=/bin/kubelet \\\r\n --a\r\n",
	"CR alone":                                "[Service]\rExecStart=/bin/kubelet \\\r --a\r",
	"LF CR":                                   "[Service]\n\rExecStart=/bin/kubelet \\\n\r --a\n\r",
	"CR CR LF":                                "[Service]\r\r\nExecStart=/bin/kubelet \\\r\r\n --a\n",
	"NUL as line end":                         "[Service]\x00ExecStart=/bin/kubelet \\\x00 --a\x00\n",
	"LF NUL":                                  "[Service]\n\x00ExecStart=/bin/kubelet \\\n\x00\x00 --a\n",
	"byte order mark":                         "\ufeff[Service]\nExecStart=/bin/kubelet\n",
	"byte order mark on a later line":         "[Service]\n\ufeffExecStart=/bin/kubelet\n",
	"two byte order marks":                    "\ufeff[Service]\n\ufeffExecStart=/bin/kubelet\nExecStop=/bin/true\n",
	"comment after a byte order mark":         "\ufeff# x\n[Service]\nExecStart=/bin/kubelet\n",
	"blanks round key and value":              "  [Service]  \n  ExecStart  =  /bin/kubelet  a  \n",
	"lower-case section":                      "[service]\nExecStart=/bin/no\n[Service]\nExecStart=/bin/kubelet\n",
	"lower-case key":                          "[Service]\nexecstart=/bin/no\nExecStart=/bin/kubelet\n",
	"assignment before any section":           "ExecStart=/bin/no\n[Service]\nExecStart=/bin/kubelet\n",
	"section of somebody":                     "[X-Foo]\nExecStart=/bin/no\n[Service]\nExecStart=/bin/kubelet\n",
	"command in another section":              "[Unit]\nExecStart=/bin/no\n[Service]\nExecStart=/bin/kubelet\n[Install]\nExecStart=/bin/no\n",
	"section twice":                           "[Service]\nExecStart=/bin/kubelet\n[Unit]\n[Service]\nExecStop=/bin/true\n",
	"line without =":                          "[Service]\nfoo\nExecStart=/bin/kubelet\n",
	"line without key":                        "[Service]\n=foo\nExecStart=/bin/kubelet\n",
	"section header without ]":                "[Service]\nExecStart=/bin/kubelet\n[Unit\n",
	"section header with more behind":         "[Service]\nExecStart=/bin/kubelet\n[Unit] x\n",
	"section header with a quote":             "[Service]\nExecStart=/bin/kubelet\n[Un\"it]\n",
	"empty section header":                    "[Service]\nExecStart=/bin/kubelet\n[]\nExecStop=/bin/true\n",
	"nothing but [":                           "[Service]\nExecStart=/bin/kubelet\n[\n",
	"not UTF-8":                               "[Service]\nExecStart=/bin/kubelet\nExecStop=/bin/true \xff\n",
	"not UTF-8 in a comment":                  "[Service]\n# \xff\nExecStart=/bin/kubelet\n",
	"noncharacter":                            "[Service]\nExecStart=/bin/kubelet \uffff\n",
	"UTF-8":                                   "[Service]\nExecStart=/bin/kubelet é\u20ac\U0001f600\n",
	"reset":                                   "[Service]\nExecStart=/bin/no\nExecStart=\nExecStart=/bin/kubelet\n",
	"reset with blanks":                       "[Service]\nExecStart=/bin/no\nExecStart=  \nExecStart=/bin/kubelet\n",
	"reset only":                              "[Service]\nExecStart=/bin/no\nExecStart=\n",
	"two commands":                            "[Service]\nExecStart=/bin/no\nExecStart=/bin/kubelet\n",
	"two commands of a oneshot":               "[Service]\nType=oneshot\nExecStart=/bin/a\nExecStart=/bin/b\n",
	"oneshot by type given later":             "[Service]\nExecStart=/bin/a\nExecStart=/bin/b\nType=oneshot\n",
	"unknown type":                            "[Service]\nType=oneshot\nType=once\nExecStart=/bin/a\nExecStart=/bin/b\n",
	"empty type":                              "[Service]\nType=oneshot\nType=\nExecStart=/bin/a\nExecStart=/bin/b\n",
	"oneshot with Restart=always":             "[Service]\nType=oneshot\nRestart=always\nExecStart=/bin/a\n",
	"oneshot with Restart=on-failure":         "[Service]\nType=oneshot\nRestart=on-failure\nExecStart=/bin/a\n",
	"oneshot with RestartForceExitStatus":     "[Service]\nType=oneshot\nRestartForceExitStatus=SIGPIPE\nExecStart=/bin/a\n",
	"no command":                              "[Service]\nType=simple\n",
	"no section":                              "# nothing\n",
	"only ExecStop":                           "[Service]\nExecStop=/bin/true\n",
	"only ExecStop, RemainAfterExit":          "[Service]\nExecStop=/bin/true\nRemainAfterExit=yes\n",
	"only ExecStop, oneshot, RemainAfterExit": "[Service]\nType=oneshot\nExecStop=/bin/true\nRemainAfterExit=on\n",
	"only SuccessAction":                      "[Unit]\nSuccessAction=reboot\n",
	"dbus without name":                       "[Service]\nType=dbus\nExecStart=/bin/a\n",
	"dbus by its name":                        "[Service]\nBusName=org.example.A\nExecStart=/bin/a\nExecStart=/bin/b\n",
	"notify-reload":                           "[Service]\nType=notify-reload\nExecStart=/bin/a\n",
	"line of 4000 bytes":                      "[Service]\nExecStart=/bin/kubelet " + strings.Repeat("--abcdefghi ", 333) + "z\n",
	"continued to 20000 bytes":                "[Service]\nExecStart=/bin/kubelet" + strings.Repeat(" \\\n    --abcdefghi", 1500) + "\n",
	"line as long as may be":                  "[Service]\nExecStart=/bin/kubelet " + strings.Repeat("a", 1<<20-23-1) + "\n",
	"line one byte too long":                  "[Service]\nExecStart=/bin/kubelet " + strings.Repeat("a", 1<<20-23) + "\n",
	"continued line too long":                 "[Service]\nExecStart=/bin/kubelet " + strings.Repeat("a", 1<<19) + "\\\n" + strings.Repeat("a", 1<<19) + "\n",
	"too long in a comment":                   "[Service]\nExecStart=/bin/kubelet\n#" + strings.Repeat("a", 1<<20),
}

func TestLinesAreReadAsSystemdReadsThem(t *testing.T) {
	files := tree{}
	var names []string
	about := map[string]string{}
	for i, what := range slices.Sorted(maps.Keys(lineCases)) {
		name := "line" + string(rune('a'+i/26)) + string(rune('a'+i%26)) + ".service"
		files[etc+name] = lineCases[what]
		about[name] = what
		names = append(names, name)
	}
	root := files.write(t)
	readings := judge.Read(t, root, names...)
	for _, name := range names {
		t.Run(about[name], func(t *testing.T) {
			got, _ := ours(t, root, name)
			if diff := cmp.Diff(theirs(readings[name]), got); diff != "" {
				t.Errorf("read otherwise (-systemd +ours):\n%.2000s\n%.2000s", diff, strings.Join(readings[name].Said, "\n"))
			}
		})
	}
}

// commandCases are values of ExecStart; there is an ExecStop in each unit, so
// that an ignored command shows.
var commandCases = []string{
	`/bin/kubelet a  b	c`,
	`/bin/kubelet "a b" 'c d'`,
	`/bin/kubelet --x="y z" a'b'c "a"'b'`,
	`/bin/kubelet "" ''`,
	`/bin/kubelet "a'b" 'a"b'`,
	`/bin/kubelet a\ b "a\"b" 'a\'b'`,
	`/bin/kubelet \x20 \x41\x42 \101 \s\t\n\a\b\f\r\v\\ \"\'`,
	`/bin/kubelet \u00e9 \U0001f600 \u20ac \ud800 \uffff \ufdd0`,
	`/bin/kubelet \U0000d800 \U00110000 \Uffffffff`,
	`/bin/kubelet \xff\xfe \377 \400 \8 \18 \1`,
	`/bin/kubelet \x00 a`,
	`/bin/kubelet \000 \u0000 \xg0 \x1`,
	`/bin/kubelet \q \$ \% a\`,
	`/bin/kubelet "\q \z`,
	`/bin/kubelet "a\`,
	`/bin/kubelet 'a`,
	`/bin/kubelet a"`,
	`-/bin/kubelet 'a`,
	`"/bin/kubelet a`,
	`"/bin/kube"let a`,
	`"/bin/kubelet with space" a`,
	`/bin/kubelet ; /bin/b x`,
	`/bin/kubelet;/bin/b`,
	`/bin/kubelet ;/bin/b`,
	`/bin/kubelet a; b`,
	`/bin/kubelet ";" ';' \; \;a a\; "\;" \\;`,
	`/bin/kubelet ;`,
	`/bin/kubelet ; ;`,
	`; /bin/kubelet`,
	`";" /bin/kubelet`,
	`/bin/kubelet \;`,
	`/bin/kubelet \;	b`,
	`/bin/kubelet # a`,
	`/bin/kubelet a = b`,
	`-/bin/kubelet`, `@/bin/kubelet zero one`, `:/bin/kubelet $A`, `+/bin/kubelet`, `!/bin/kubelet`, `!!/bin/kubelet`,
	`-@:+/bin/kubelet zero`, `+:@-/bin/kubelet zero`, `--/bin/kubelet`, `++/bin/kubelet`, `+!/bin/kubelet`,
	`!!!/bin/kubelet`, `!:!/bin/kubelet`, `!+/bin/kubelet`, `@@/bin/kubelet x`, `|/bin/kubelet x`, `"-/bin/kubelet" x`,
	`\x2d/bin/kubelet x`,
	`@/bin/kubelet`, `-@/bin/kubelet`, `-`, `@`, `""`, `-""`, `- /bin/kubelet`, `-@`,
	`kubelet a`, `./kubelet`, `bin/kubelet`, `-bin/kubelet`, `.`, `..`, `/`, `/bin/`, `-/bin/`, `/bin/.`,
	`/bin//kubelet`, `//bin/./kubelet`, `/bin/../bin/kubelet`,
	`$KUBELET a`, `${BIN}/kubelet`, `/usr/${BIN}/kubelet`, `-${BIN}/kubelet`,
	`/bin/kube'let`, `/bin/ku\tbelet`, `/bin/ku\\belet`, `/bin/ku\"belet`, `/bin/ku\x7fbelet`, `/bin/kubélet`,
	`/bin/` + strings.Repeat("a", 255), `/bin/` + strings.Repeat("a", 256), strings.Repeat("a", 255), strings.Repeat("a", 256),
	`/bin` + strings.Repeat("/abcdefg", 511), `/bin` + strings.Repeat("/abcdefg", 512),
	`/bin/kubelet %% %n %N %p %i %j %t %S %C %L %E %T %V %u %U %g %G %h`,
	`/bin/kubelet %n%%n % %- %. %= 100%`,
	`/bin/kubelet %P %I %J`,
	`/bin/kubelet %F`, `-/bin/kubelet %F`, `/bin/kubelet %1`, `/bin/kubelet a%`,
	`/bin/%p x`, `/bin/%F x`, `%F`, `-%F x`, `/bin/kubelet \x25n %%%`,
	`/bin/kubelet "%n %p" '%n'`,
	`/bin/kubelet $A ${B} $$C a$D "$E" "${F} x" ${} ${ $`,
	`/bin/sh -c 'exec kubelet "$0"' a`,
	`/bin/kubelet {}[]()<>|&!*?~` + "`",
}

func TestCommandsAreReadAsSystemdReadsThem(t *testing.T) {
	files := tree{}
	var names []string
	for i, value := range commandCases {
		name := "a-b-" + string(rune('a'+i/26)) + string(rune('a'+i%26)) + ".service"
		files[etc+name] = "[Service]\nExecStart=" + value + "\nExecStop=/bin/true\nType=oneshot\nRemainAfterExit=yes\n"
		names = append(names, name)
	}
	root := files.write(t)
	readings := judge.Read(t, root, names...)
	for i, name := range names {
		t.Run(commandCases[i][:min(len(commandCases[i]), 60)], func(t *testing.T) {
			got, _ := ours(t, root, name)
			if diff := cmp.Diff(theirs(readings[name]), got); diff != "" {
				t.Errorf("read otherwise (-systemd +ours):\n%.2000s\n%.2000s", diff, strings.Join(readings[name].Said, "\n"))
			}
		})
	}
}

func chmod(t testing.TB, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Chmod(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

package unitfile

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/fsys"
	"nodelocaldns/test/judge"
)

// batch is how many variants of one input are asked of systemd at once: the
// answer costs as much for one as for many.
const batch = 48

// fuzzing reports whether new inputs are looked for. Else a few seeds do: the
// others are tried one by one in tables.
func fuzzing() bool { return flag.Lookup("test.fuzz").Value.String() != "" }

// variants makes many inputs of one: itself, and itself with pieces swapped,
// dropped, doubled and cut, each differently.
func variants(data []byte, seed uint64) [][]byte {
	list := [][]byte{data}
	next := func(n int) int { // an own generator, so that an input fails again
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		return int(seed % uint64(n))
	}
	seed |= 1
	pieces := []string{
		"\n", "\\\n", "\\", " ", "\t", "\"", "'", "\r\n", "#", ";", " ; ", "=", "[", "]", "[Service]\n", "[Unit]\n", "ExecStart=", "ExecStart=/bin/a ",
		"ExecStop=/bin/b ", "\nExecStart=\n", "Environment=", "Environment=A=1 ", "EnvironmentFile=/a", "PassEnvironment=A ", "UnsetEnvironment=A B=1 ", "Type=oneshot\n", "%", "%%", "%n", "%p", "$A", "${A}",
		"-", "@", ":", "+", "!", "/", "/bin/x", "\\x41", "\\u00e9", "\\101", "\\s", "\\;", "\x00", "\ufeff", "é", "\xff", "A=", "a", "# c\n", "\n\n", "..", "X-",
	}
	for len(list) < batch {
		b := slices.Clone(data)
		for range 1 + next(4) {
			at := next(len(b) + 1)
			switch next(4) {
			case 0:
				b = slices.Insert(b, at, []byte(pieces[next(len(pieces))])...)
			case 1:
				b = slices.Delete(b, at, min(len(b), at+1+next(8)))
			case 2:
				end := min(len(b), at+next(20))
				b = slices.Insert(b, next(len(b)+1), slices.Clone(b[at:end])...)
			case 3:
				piece := pieces[next(len(pieces))]
				b = slices.Replace(b, at, min(len(b), at+len(piece)), []byte(piece)...)
			}
		}
		list = append(list, b)
	}
	return list
}

// FuzzUnitsAgreeWithSystemd gives systemd and us the same unit files.
func FuzzUnitsAgreeWithSystemd(f *testing.F) {
	var seeds []string
	for _, what := range slices.Sorted(maps.Keys(lineCases)) {
		if text := lineCases[what]; len(text) < 5000 {
			seeds = append(seeds, text)
		}
	}
	for _, value := range commandCases {
		seeds = append(seeds, "[Service]\nExecStart="+value+"\nExecStop=/bin/true\n")
	}
	for _, unit := range envCases {
		seeds = append(seeds, "[Service]\n"+unit+"\n")
	}
	for i, seed := range seeds {
		if fuzzing() || i%20 == 0 {
			f.Add([]byte(seed), uint64(i))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		if len(data) > 20000 {
			return
		}
		files := tree{}
		var names []string
		for i, text := range variants(data, seed) {
			if undecided(text) {
				continue
			}
			name := fmt.Sprintf("a-b%d.service", i)
			if strings.HasPrefix(string(text), "-> ") {
				continue
			}
			// As a drop-in, so that systemd shows what it took before it gave up.
			files[etc+name] = "[Service]\nExecStart=/bin/base\n"
			files[etc+name+".d/x.conf"] = string(text)
			names = append(names, name)
		}
		root := files.write(t)
		readings := judge.Read(t, root, names...)
		for _, name := range names {
			got, _ := ours(t, root, name)
			if strings.HasPrefix(got.State, "not known: ") {
				continue
			}
			if diff := cmp.Diff(theirs(readings[name]), got); diff != "" {
				t.Errorf("%q\nis read otherwise (-systemd +ours):\n%.3000s\n%.3000s", files[etc+name+".d/x.conf"], diff, strings.Join(readings[name].Said, "\n"))
			}
		}
	})
}

// undecided reports whether the text has something on which the dump of
// systemd cannot be compared: settings of which we know nothing, values over
// several lines, what the machine it runs on knows.
func undecided(text []byte) bool {
	for _, part := range []string{
		"\\n", "\\x0a", "\\x0A", "\\012", "\\u000a", "\\u000A", "\\U0000000a", "\\U0000000A", // line ends in what is printed
		"SuccessAction", "RemainAfterExit", "BusName", "ExitType", "PAMName", "User", "Group", "WorkingDirectory",
		"Context", "Profile", "Label", "DefaultEnvironment", "USBF", "RestartForce",
	} {
		if bytes.Contains(text, []byte(part)) {
			return true
		}
	}
	for i, c := range text {
		if c == '%' && i+1 < len(text) && strings.IndexByte("abBHlmovwWcrRsfdDyYqAM", text[i+1]) >= 0 {
			return true
		}
	}
	return false
}

// FuzzStartsAgreeWithSystemd starts programs with the same environment files
// and arguments. It boots a systemd for each input, so it is slow.
func FuzzStartsAgreeWithSystemd(f *testing.F) {
	for i, content := range envFiles {
		if !fuzzing() && i%20 != 0 {
			continue
		}
		f.Add([]byte(content), []byte(" $A ${B}x \"$A\" $$ ${A"), uint64(i))
	}
	f.Fuzz(func(t *testing.T, env, args []byte, seed uint64) {
		if len(env)+len(args) > 10000 {
			return
		}
		root, names := startTree(t, env, args, seed)
		if len(names) == 0 {
			return
		}
		starts, log := judge.Run(t, root, []string{"/usr/bin/kubelet"}, names)
		host := Host{Systemd: judge.Version(t)}
		for _, name := range names {
			u, err := Load(fsys.Tree(root), name, host)
			if err != nil {
				t.Fatal(err)
			}
			want, started := starts[name]
			environment, err := u.Environment()
			if (err == nil) != started {
				t.Fatalf("%s: systemd started it: %v; our error: %v\n%s", name, started, err, log)
			}
			if !started {
				continue
			}
			list, err := u.Commands("ExecStart")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := list[0].Expand(environment); err != nil {
				continue // one of those that systemd sets
			}
			if diff := cmp.Diff(want.Args, expand(t, u)); diff != "" {
				t.Errorf("%s %q: arguments (-systemd +ours):\n%s", name, u.Settings[1].Value, diff)
			}
			for _, v := range environment.Vars() {
				if !slices.Contains(want.Env, v.Name+"="+v.Value) {
					content, _ := fsys.Tree(root).ReadFile(v.File)
					t.Errorf("%s: systemd does not set %s=%q from %q, but %q", name, v.Name, v.Value, content, want.Env)
				}
			}
		}
	})
}

func startTree(t *testing.T, env, args []byte, seed uint64) (root string, names []string) {
	files := tree{"/usr/bin/kubelet": ""}
	for i, content := range variants(env, seed) {
		file := fmt.Sprintf("/etc/env%d", i)
		// In one line, with its one command.
		line := bytes.Map(func(r rune) rune {
			if r < ' ' {
				return ' '
			}
			return r
		}, variants(args, seed+uint64(i))[i])
		if strings.HasPrefix(string(content), "-> ") || undecided(line) || len(content) > 20000 {
			continue
		}
		name := fmt.Sprintf("f%d.service", i)
		unit := "[Service]\nEnvironmentFile=" + file + "\nExecStart=/usr/bin/kubelet " + string(line) + "\n"
		probe := tree{etc + name: unit}
		u, err := Load(fsys.Tree(probe.write(t)), name, Host{})
		if err != nil {
			continue
		}
		list, err := u.Commands("ExecStart")
		if err != nil || len(list) != 1 {
			continue
		}
		files[file], files[etc+name] = string(content), unit
		names = append(names, name)
	}
	return files.write(t), names
}

// FuzzEdit holds that dropping and inserting words leaves the others alone,
// and that an edit of nothing is none.
func FuzzEdit(f *testing.F) {
	for _, value := range commandCases {
		f.Add(value, uint64(5))
	}
	f.Add("/bin/kubelet \\\n  --a \\\n# c\n\t--cluster-dns=1 #x \\\n ; d\n --b", uint64(2))
	f.Fuzz(func(t *testing.T, value string, bits uint64) {
		u := &Unit{Name: "a.service", ID: "a.service", commands: map[string][]Command{}, names: []string{"a.service"}}
		if bad := u.apply("f", []byte("[Service]\nExecStart="+value)); bad != nil || len(u.Settings) == 0 {
			return
		}
		for _, c := range u.commands["ExecStart"] {
			if strings.Contains(c.Raw(), `\ `) || strings.Contains(c.Raw(), "\\\t") {
				continue // a word that is a backslash and a blank cannot be the last
			}
			if got, err := c.Edit(nil, ""); err != nil || strings.TrimSuffix(got, " ") != c.Raw() {
				t.Fatalf("%q not edited is %q, %v", c.Raw(), got, err)
			}
			dropped := func(i int, _ Word) bool { return bits>>(i%64)&1 == 1 }
			got, err := c.Edit(dropped, "--new=%%\\x20'a b'")
			if err != nil {
				t.Fatalf("%q: %v", c.Raw(), err)
			}
			var want []string
			for i, w := range c.Argv {
				if w == c.Program || !dropped(i, w) {
					want = append(want, w.Text)
				}
				if w == c.Program {
					want = append(want, "--new=% a b")
				}
			}
			if strings.Contains(c.Prefix, "@") {
				want = append([]string{"--new=% a b"}, want...)
			}
			again := &Unit{Name: "a.service", ID: "a.service", commands: map[string][]Command{}, names: []string{"a.service"}}
			if bad := again.apply("g", []byte("[Service]\nExecStart="+got+"\nExecStop=/bin/x")); bad != nil {
				t.Fatalf("%q edited is %q: %v", c.Raw(), got, bad)
			}
			list := again.commands["ExecStart"]
			if len(list) != 1 || len(again.commands["ExecStop"]) != 1 {
				t.Fatalf("%q edited is %q, which has %d commands", c.Raw(), got, len(list))
			}
			var texts []string
			for _, w := range list[0].Argv {
				texts = append(texts, w.Text)
			}
			if !slices.Equal(texts, want) || list[0].Prefix != c.Prefix || list[0].Path != c.Path {
				t.Fatalf("%q edited is %q:\n%q, want\n%q", c.Raw(), got, texts, want)
			}
			// Once more changes nothing.
			if twice, err := list[0].Edit(nil, ""); err != nil || twice != got {
				t.Fatalf("%q again is %q, %v", got, twice, err)
			}
		}
	})
}

// FuzzParseEnvFile holds that whatever is in a file, each variable has a name
// and a line that is there, and that files written plainly are read back.
func FuzzParseEnvFile(f *testing.F) {
	for _, content := range envFiles {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, version := range []int{0, 252, 257} {
			vars, err := ParseEnvFile("/f", data, Host{Systemd: version})
			if err != nil {
				continue
			}
			lines := 1 + bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r"))
			var plain bytes.Buffer
			for _, v := range vars {
				if !validName(v.Name) || v.Line < 1 || v.Line > lines || !validUTF8([]byte(v.Value)) {
					t.Fatalf("%+v of %q", v, data)
				}
				fmt.Fprintf(&plain, "%s=\"%s\"\n", v.Name, strings.NewReplacer("\\", "\\\\", "\"", "\\\"", "$", "\\$", "`", "\\`").Replace(v.Value))
			}
			again, err := ParseEnvFile("/f", plain.Bytes(), Host{Systemd: version})
			if err != nil || len(again) != len(vars) {
				t.Fatalf("%q is read back as %+v, %v", plain.String(), again, err)
			}
			for i := range again {
				if again[i].Name != vars[i].Name || again[i].Value != vars[i].Value {
					t.Fatalf("%+v is read back as %+v", vars[i], again[i])
				}
			}
		}
	})
}

// FuzzSplitWords holds that words quoted are the words again.
func FuzzSplitWords(f *testing.F) {
	for _, value := range commandCases {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words := splitWords(text)
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(w)+`"`)
		}
		if again := splitWords(strings.Join(quoted, " ")); !slices.Equal(again, words) {
			t.Fatalf("%q is read back as %q", words, again)
		}
	})
}

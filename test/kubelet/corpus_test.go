// Package kubelet_test holds what is read and rendered for the kubelets of
// this world to golden files, and asks systemd about each.
package kubelet_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/host"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/unitfile"
	"nodelocaldns/test/judge"
)

var update = flag.Bool("update", false, "write what is found into the golden files; review each by eye")

// A layout is one golden file: a node's file tree, what else the node says,
// and what must come of it.
//
//	tree/…    the files
//	want      backend NAME, address ADDR: what we ask for, if it is not the
//	          default; host NAME: what the node is called
//	running   the arguments of the running kubelet, one a line
//	service   the addresses of the kube-dns service
//	links     NAME TARGET: symbolic links
//	bytes     crlf|bom|chomp NAME, mode OCTAL NAME: what this format cannot hold
//	after     apply [ADDR], edit NAME, read-only: what happened before the plan
//	result/…  the facts, then the files as they become, or the refusal
type layout struct {
	archive *txtar.Archive
	root    string
	want    kubelet.Want
	host    unitfile.Host
	running *kubelet.Process
	service []netip.Addr
	after   []string
}

func (l *layout) section(name string) []string {
	for _, f := range l.archive.Files {
		if f.Name == name {
			return strings.Split(strings.TrimRight(string(f.Data), "\n"), "\n")
		}
	}
	return nil
}

func read(t *testing.T, file string) *layout {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	l := &layout{archive: a, root: t.TempDir()}
	for _, f := range a.Files {
		if name, ok := strings.CutPrefix(f.Name, "tree/"); ok {
			must(t, os.MkdirAll(filepath.Dir(l.path(name)), 0o755))
			must(t, os.WriteFile(l.path(name), f.Data, 0o644))
		}
	}
	for _, line := range l.section("links") {
		name, target, _ := strings.Cut(line, " ")
		must(t, os.MkdirAll(filepath.Dir(l.path(name)), 0o755))
		must(t, os.Symlink(target, l.path(name)))
	}
	for _, line := range l.section("bytes") {
		w := strings.Fields(line)
		name := l.path(w[len(w)-1])
		data, err := os.ReadFile(name)
		must(t, err)
		switch w[0] {
		case "crlf":
			data = bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
		case "bom":
			data = append([]byte("\xef\xbb\xbf"), data...)
		case "chomp":
			data = bytes.TrimSuffix(data, []byte("\n"))
		case "mode":
			mode, err := strconv.ParseUint(w[1], 8, 32)
			must(t, err)
			must(t, os.Chmod(name, fs.FileMode(mode)))
			continue
		default:
			t.Fatalf("no such change of bytes: %s", line)
		}
		must(t, os.WriteFile(name, data, 0o644))
	}
	for _, line := range l.section("want") {
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "backend":
			l.want.Backend = kubelet.Backend(value)
		case "address":
			l.want.Addresses = append(l.want.Addresses, netip.MustParseAddr(value))
		case "host":
			l.host.Hostname = value
		default:
			t.Fatalf("no such want: %s", line)
		}
	}
	if l.want.Addresses == nil {
		l.want.Addresses = []netip.Addr{netip.MustParseAddr("169.254.20.10")}
	}
	if argv := l.section("running"); argv != nil {
		l.running = &kubelet.Process{PID: 4711, Argv: argv}
	}
	for _, a := range l.section("service") {
		l.service = append(l.service, netip.MustParseAddr(a))
	}
	l.after = l.section("after")
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *layout) path(name string) string { return filepath.Join(l.root, name) }

func (l *layout) node() kubelet.Node {
	n := kubelet.Node{Tree: fsys.Tree(l.root), Host: l.host}
	if l.running != nil {
		n.Running = func(string) (*kubelet.Process, error) { return l.running, nil }
	}
	if l.service != nil {
		n.Service = func(context.Context, string) ([]netip.Addr, error) { return l.service, nil }
	}
	return n
}

func (l *layout) durable(want kubelet.Want, files fsys.Files) *host.Durable {
	d := host.RootDeps(l.root, slog.New(slog.DiscardHandler))
	d.Node, d.Files = l.node(), files
	if l.linkedDir() || l.host != (unitfile.Host{}) {
		d.Verify = nil // systemd-analyze would look outside the tree
	}
	return host.NewDurable(host.DurableConfig{Kubelet: &want}, d)
}

// linkedDir says that the directory of drop-ins is a link.
func (l *layout) linkedDir() bool {
	return slices.ContainsFunc(l.section("links"), func(line string) bool { return strings.Contains(line, ".d ") })
}

// dump is the whole tree without our own state: names, kinds, modes, owners
// and content.
func (l *layout) dump(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	must(t, filepath.WalkDir(l.root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := "/" + strings.TrimPrefix(strings.TrimPrefix(name, l.root), "/")
		if strings.HasPrefix(rel, host.StateDir) || strings.HasPrefix(rel, host.RunDir) {
			return nil
		}
		if own := []string{"/run", "/var", "/var/lib"}; e.IsDir() && slices.Contains(own, rel) {
			return nil // above them
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %s", info.Mode(), rel)
		switch {
		case e.IsDir():
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			out.WriteString(" -> " + target)
		default:
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, " %q", data)
		}
		out.WriteByte('\n')
		return nil
	}))
	return out.String()
}

// result is what the golden file holds of a plan.
func result(f kubelet.Facts, c kubelet.Change, err error) []txtar.File {
	var out strings.Builder
	line := func(key string, value any) {
		if text := fmt.Sprint(value); text != "" && text != "0" && text != "false" {
			fmt.Fprintf(&out, "%s: %s\n", key, text)
		}
	}
	line("unit", f.Unit)
	line("program", f.Program)
	line("pid", f.PID)
	line("kubeconfig", f.Kubeconfig)
	line("now", list(f.Now))
	line("now from", f.NowFrom)
	line("base", list(f.Base))
	line("source", f.Source)
	line("where", f.Where)
	line("target", list(f.Target))
	line("cut", list(f.Cut))
	line("backend", f.Backend)
	line("already", f.Already)
	line("later", f.Later)
	for _, n := range f.Notes {
		line("note", n)
	}
	files := []txtar.File{{Name: "result/facts", Data: []byte(out.String())}}
	if err != nil {
		text := "error: " + err.Error() + "\n"
		var h interface{ Hint() string }
		if errors.As(err, &h) {
			text += "hint: " + h.Hint() + "\n"
		}
		return append(files, txtar.File{Name: "result/refusal", Data: []byte(text)})
	}
	if c.Path != "" {
		name := "result" + c.Path
		if c.Theirs {
			name = "result/theirs" + c.Path
		}
		data := c.Content
		if len(data) > 0 && data[len(data)-1] != '\n' {
			data = append(slices.Clone(data), '\n')
		}
		files = append(files, txtar.File{Name: name, Data: data})
	}
	return files
}

func list(all []netip.Addr) string {
	words := make([]string, len(all))
	for i, a := range all {
		words[i] = a.String()
	}
	return strings.Join(words, " ")
}

func TestEveryLayoutIsUnderstoodOrRefused(t *testing.T) {
	names, err := filepath.Glob("corpus/*.txtar")
	must(t, err)
	if len(names) < 60 {
		t.Fatalf("%d layouts, want at least the sixty that are known", len(names))
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			t.Parallel()
			l := read(t, name)
			before := l.dump(t)
			l.prepare(t)

			facts, change, err := kubelet.Plan(t.Context(), l.node(), l.want)
			got := result(facts, change, err)
			if refused := new(kubelet.Refusal); err != nil && !errors.As(err, &refused) {
				t.Errorf("plan: %v; want a refusal with a hint", err)
			}
			finding := l.check(t)
			got = append(got, txtar.File{Name: "result/plan", Data: []byte(finding)})
			if facts.Backend == kubelet.ByEnv && err == nil && change.Path != "" {
				got = append(got, l.start(t, facts)...)
			}
			if slices.Contains(l.after, "read-only") {
				got = append(got, l.readOnly(t, before))
			}
			l.golden(t, name, got)
			if err != nil || change.Path == "" || !strings.HasPrefix(finding, "pending") {
				return
			}
			l.judged(t, before, facts, change)
		})
	}
}

// prepare does what happened before.
func (l *layout) prepare(t *testing.T) {
	t.Helper()
	for _, line := range l.after {
		verb, arg, _ := strings.Cut(line, " ")
		switch verb {
		case "apply":
			want := l.want
			if arg != "" {
				want.Addresses = []netip.Addr{netip.MustParseAddr(arg)}
			}
			must(t, l.durable(want, nil).Apply(t.Context()))
		case "edit":
			f, err := os.OpenFile(l.path(arg), os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteString("CPUWeight=50\n")
			must(t, errors.Join(err, f.Close()))
		case "read-only":
		default:
			t.Fatalf("no such event: %s", line)
		}
	}
}

// check is the one line that plan has for the step.
func (l *layout) check(t *testing.T) string {
	t.Helper()
	all, err := l.durable(l.want, nil).Check(t.Context())
	must(t, err)
	st := all[0]
	must(t, st.Err)
	text := fmt.Sprintf("%s: %s\n", st.State, st.Why)
	if st.Hint != "" {
		text += "hint: " + st.Hint + "\n"
	}
	return text + st.Diff
}

// start is what the kubelet's next start makes of it.
func (l *layout) start(t *testing.T, f kubelet.Facts) []txtar.File {
	t.Helper()
	n := l.node()
	n.Running = nil
	_, text, err := kubelet.Env(t.Context(), n, l.want)
	if err != nil {
		if refused := new(kubelet.Refusal); !f.Later && f.Source != kubelet.FromRunning || !errors.As(err, &refused) {
			t.Errorf("at the kubelet's start: %v", err)
		}
		return []txtar.File{{Name: "result/no-kubelet.env", Data: []byte(err.Error() + "\n")}}
	}
	return []txtar.File{{Name: "result" + kubelet.EnvFile, Data: text}}
}

// readOnly applies to a tree where nothing can be written.
func (l *layout) readOnly(t *testing.T, before string) txtar.File {
	t.Helper()
	err := l.durable(l.want, fails{fsys.DirFiles(fsys.Tree(l.root)), syscall.EROFS}).Apply(t.Context())
	var h interface{ Hint() string }
	if !errors.As(err, &h) {
		t.Fatalf("apply: %v; want an error with a hint", err)
	}
	if diff := cmp.Diff(before, l.dump(t)); diff != "" {
		t.Errorf("the tree (-before +after):\n%s", diff)
	}
	must(t, l.durable(l.want, nil).Rollback(t.Context()))
	return txtar.File{Name: "result/apply", Data: []byte("error: " + err.Error() + "\nhint: " + h.Hint() + "\n")}
}

// fails are files of which none can be made.
type fails struct {
	fsys.Files
	err error
}

func (f fails) Mkdir(name string) error {
	return &fs.PathError{Op: "mkdir", Path: name, Err: f.err}
}

func (f fails) Write(name string, _ fsys.Content, _ string) error {
	return &fs.PathError{Op: "open", Path: name, Err: f.err}
}

// judged applies the plan for real and takes it back, with systemd as the
// judge of what it is before, with it and after.
func (l *layout) judged(t *testing.T, before string, f kubelet.Facts, c kubelet.Change) {
	t.Helper()
	was := l.reading(t, f.Unit)
	node := l.durable(l.want, nil)
	must(t, node.Apply(t.Context()))
	if text := l.check(t); !strings.HasPrefix(text, "satisfied") {
		t.Errorf("after apply: %s", text)
	}
	facts, again, err := kubelet.Plan(t.Context(), l.node(), l.want)
	must(t, err)
	if diff := cmp.Diff(c, again); diff != "" && !(c.Theirs && facts.Already) {
		t.Errorf("planned again with the file there (-first +again):\n%s", diff)
	}
	if c.Argv != nil {
		is := l.reading(t, f.Unit)
		if got := is.Commands["ExecStart"]; is.State != "" && (len(got) != 1 || !slices.Equal(got[0], c.Argv)) {
			t.Errorf("systemd reads %q\nwe wrote %q", got, c.Argv)
		}
		if f.Backend == kubelet.ByEnv && is.State != "" {
			files := is.EnvironmentFiles
			if len(files) == 0 || !strings.Contains(files[len(files)-1], kubelet.EnvFile) {
				t.Errorf("systemd reads the environment files %q, want ours last", files)
			}
			if diff := cmp.Diff(was.Commands["ExecStart"], is.Commands["ExecStart"]); diff != "" {
				t.Errorf("the command line (-before +with us):\n%s", diff)
			}
		}
	}
	if !f.Later {
		l.asked(t, f)
	}

	must(t, l.durable(kubelet.Want{}, nil).Rollback(t.Context()))
	if diff := cmp.Diff(was, l.reading(t, f.Unit)); diff != "" && f.Backend != kubelet.ByConfigDir && len(l.after) == 0 {
		t.Errorf("what systemd reads (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(before, l.dump(t)); diff != "" {
		t.Errorf("the tree (-before +after):\n%s", diff)
	}
}

// asked holds the files against the target: a kubelet that started now would
// ask it.
func (l *layout) asked(t *testing.T, f kubelet.Facts) {
	t.Helper()
	n := l.node()
	n.Running = nil
	if f.Backend == kubelet.ByEnv {
		_, text, err := kubelet.Env(t.Context(), n, l.want)
		if err != nil {
			t.Errorf("with the drop-in there: %v", err)
			return
		}
		must(t, os.MkdirAll(filepath.Dir(l.path(kubelet.EnvFile)), 0o755))
		must(t, os.WriteFile(l.path(kubelet.EnvFile), text, 0o644))
		defer os.Remove(l.path(kubelet.EnvFile))
	}
	got, err := kubelet.Find(t.Context(), n, l.want)
	must(t, err)
	if l.running == nil && !slices.Equal(got.Now, f.Target) {
		t.Errorf("the kubelet would ask %s, want %s", list(got.Now), list(f.Target))
	}
}

// reading is what systemd makes of the unit, held against what we make of it.
func (l *layout) reading(t *testing.T, unit string) judge.Reading {
	t.Helper()
	r := judge.Read(t, l.root, unit)[unit]
	if l.linkedDir() {
		return judge.Reading{} // it follows links to directories outside the tree
	}
	if l.host != (unitfile.Host{}) {
		return judge.Reading{} // it knows this machine's name
	}
	u, err := unitfile.Load(fsys.Tree(l.root), unit, l.host)
	must(t, err)
	commands, err := u.Commands("ExecStart")
	must(t, err)
	var argv [][]string
	for _, c := range commands {
		var words []string
		for _, w := range c.Argv {
			if w.Unknown != "" {
				return judge.Reading{} // it knows this machine
			}
			words = append(words, w.Text)
		}
		argv = append(argv, words)
	}
	if diff := cmp.Diff(r.Commands["ExecStart"], argv); diff != "" && r.State == "loaded" {
		t.Errorf("ExecStart (-systemd +ours):\n%s", diff)
	}
	if r.State != "loaded" {
		t.Errorf("systemd says %s", r)
	}
	r.Said = nil
	return r
}

func (l *layout) golden(t *testing.T, name string, got []txtar.File) {
	t.Helper()
	var kept []txtar.File
	var want []txtar.File
	for _, f := range l.archive.Files {
		if strings.HasPrefix(f.Name, "result/") {
			want = append(want, f)
		} else {
			kept = append(kept, f)
		}
	}
	if *update {
		a := &txtar.Archive{Comment: l.archive.Comment, Files: append(kept, got...)}
		must(t, os.WriteFile(name, txtar.Format(a), 0o644))
		return
	}
	text := func(files []txtar.File) string { return string(txtar.Format(&txtar.Archive{Files: files})) }
	if diff := cmp.Diff(text(want), text(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s\nif this is right, run go test ./test/kubelet -update and review", path.Base(name), diff)
	}
}

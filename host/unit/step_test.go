package unit_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unit"
	"nodelocaldns/units"
)

// version is our units as some version of the program writes them.
func version(text string) []units.File {
	var out []units.File
	for _, name := range units.Names {
		wants := "multi-user.target"
		switch name {
		case units.Socket:
			wants = "sockets.target"
		case units.Relay:
			wants = ""
		}
		out = append(out, units.File{Dir: units.UnitDir, Name: name, Content: []byte("# " + text + " " + name + "\n"), WantedBy: wants})
	}
	return append(out,
		units.File{Dir: "systemd/network", Name: "10-our.network", Content: []byte("# " + text + " network\n"), Readers: []string{"/opt/networkd", networkd}},
		units.File{Dir: "modules-load.d", Name: "our.conf", Content: []byte("# " + text + " modules\n")},
		units.File{Dir: "sysusers.d", Name: "our.conf", Content: []byte("# " + text + " user\n"), Packaged: true})
}

// networkd reads one of them.
const networkd = "/usr/lib/systemd/systemd-networkd"

// A node is a file tree with systemd over it.
type node struct {
	*hosttest.Node
	root  string
	files fsys.Files
	j     *hosttest.Journal

	systemd unit.Systemd // nil: it does not run
	self    string
}

// newNode makes a node whose tree has the programs and the given files: name →
// content, "-> target" for a link, and a directory where the name ends in "/".
func newNode(t testing.TB, tree map[string]string) *node {
	t.Helper()
	n := &node{Node: hosttest.New(), root: hosttest.TempDir(t), j: &hosttest.Journal{}}
	for _, name := range []string{units.Program, units.RelayProgram} {
		n.put(t, name, "program")
		if err := os.Chmod(filepath.Join(n.root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range tree {
		n.put(t, name, content)
	}
	n.files = n.Node.Files(n.root)
	n.systemd = n.Node.Systemd(nil)
	return n
}

func (n *node) put(t testing.TB, name, content string) {
	t.Helper()
	file := filepath.Join(n.root, name)
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if target, ok := strings.CutPrefix(content, "-> "); ok && err == nil {
		err = os.Symlink(target, file)
	} else if strings.HasSuffix(name, "/") && err == nil {
		err = os.MkdirAll(file, 0o755)
	} else if err == nil {
		err = os.WriteFile(file, []byte(content), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// step is what another process would make of the node.
func (n *node) step(t testing.TB, files []units.File) *unit.Step {
	t.Helper()
	c := unit.Config{Tree: fsys.Tree(n.root), Files: n.files, Systemd: n.systemd, Units: files, Self: n.self}
	for _, r := range n.j.Records {
		c.Held, c.Unfinished = r.Saved, !r.Done
	}
	s, err := unit.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *node) apply(t testing.TB, files []units.File) error {
	t.Helper()
	return n.j.Engine(n.step(t, files)).Apply(t.Context())
}

func (n *node) rollback(t testing.TB) error {
	t.Helper()
	return n.j.Engine(n.step(t, nil)).Rollback(t.Context())
}

// check is the finding in words.
func (n *node) check(t testing.TB, files []units.File) string {
	t.Helper()
	f, err := n.step(t, files).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(fmt.Sprintf("%s: %s\n%s%s", f.State, f.Why, f.Diff, f.Hint), "\n")
}

// beyond is the lines of the node that were not there before.
func (n *node) beyond(before string) string {
	var out strings.Builder
	for line := range strings.Lines(n.String()) {
		if !strings.Contains("\n"+before, "\n"+line) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// packaged is what a package has brought below a directory.
func packaged(dir string) map[string]string {
	out := map[string]string{}
	for _, f := range version("a package's") {
		out[filepath.Join(dir, f.Dir, f.Name)] = string(f.Content)
	}
	return out
}

// onlyUnits is the tree without what is no unit.
func onlyUnits(tree map[string]string) map[string]string {
	maps.DeleteFunc(tree, func(name, _ string) bool { return path.Base(path.Dir(name)) != "system" })
	return tree
}

func with(tree map[string]string, more ...string) map[string]string {
	for i := 0; i < len(more); i += 2 {
		tree[more[i]] = more[i+1]
	}
	return tree
}

// What holds for every step, on nodes of several kinds. One file of each sort is
// enough: every two writes may fail together.
func TestStepUnit(t *testing.T) {
	some := slices.DeleteFunc(version("a"), func(f units.File) bool {
		return f.Unit() && !slices.Contains([]string{units.Socket, units.Resolver, units.Relay}, f.Name)
	})
	const running = `nodelocaldns.service: active
nodelocaldns.socket: active
`
	const files = `-rw-r--r-- /etc/systemd/system/nodelocaldns-relay.service "# a nodelocaldns-relay.service\n"
-rw-r--r-- /etc/systemd/system/nodelocaldns.service "# a nodelocaldns.service\n"
-rw-r--r-- /etc/systemd/system/nodelocaldns.socket "# a nodelocaldns.socket\n"
`
	const wants = `Lrwxrwxrwx /etc/systemd/system/multi-user.target.wants/nodelocaldns.service -> /etc/systemd/system/nodelocaldns.service
`
	const socket = `drwxr-xr-x /etc/systemd/system/sockets.target.wants
Lrwxrwxrwx /etc/systemd/system/sockets.target.wants/nodelocaldns.socket -> /etc/systemd/system/nodelocaldns.socket
`
	const modules = `drwxr-xr-x /etc/modules-load.d
-rw-r--r-- /etc/modules-load.d/our.conf "# a modules\n"
`
	const network = `drwxr-xr-x /etc/systemd/network
-rw-r--r-- /etc/systemd/network/10-our.network "# a network\n"
`
	for _, tt := range []struct {
		name  string
		tree  map[string]string
		image bool // nothing runs there
		want  string
	}{
		{"an image without /etc/systemd", map[string]string{"/etc/": ""}, true, modules + `drwxr-xr-x /etc/systemd
drwxr-xr-x /etc/systemd/system
drwxr-xr-x /etc/systemd/system/multi-user.target.wants
` + wants + files + socket},
		{"a node that runs, with networkd", map[string]string{"/etc/systemd/system/multi-user.target.wants/other.service": "-> /x", networkd: "program"}, false,
			modules + network + wants + files + socket + running},
		{"a package has brought them and enabled one", with(packaged("/usr/lib"),
			"/usr/lib/systemd/system/sockets.target.wants/nodelocaldns.socket", "-> ../nodelocaldns.socket",
			"/etc/systemd/system/multi-user.target.wants/", "",
		), false, `Lrwxrwxrwx /etc/systemd/system/multi-user.target.wants/nodelocaldns.service -> /usr/lib/systemd/system/nodelocaldns.service
` + running},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var at *node
			setup := func() *hosttest.Node {
				if at != nil {
					_ = os.RemoveAll(at.root)
				}
				if at = newNode(t, tt.tree); tt.image {
					at.systemd = nil
				}
				return at.Node
			}
			hosttest.RunStep(t, setup, func(*hosttest.Node) step.Step { return at.step(t, some) }, strings.TrimSuffix(tt.want, "\n"))
		})
	}
}

func TestALinkForADirectoryIsFollowedAndStays(t *testing.T) {
	n := newNode(t, map[string]string{"/data/units/": "", "/etc/systemd/system": "-> ../../data/units"})
	before := n.String()
	if err := n.apply(t, version("a")); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(n.String(), "\n-rw-r--r-- /data/units/nodelocaldns.service ") {
		t.Errorf("the node:\n%s", n)
	}
	if err := n.rollback(t); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("the node (-before +after):\n%s", diff)
	}
}

// A newer program, or another configuration: the files are replaced, and what
// runs by the older ones is restarted, but for the sockets; also where the
// first try was cut off anywhere.
func TestChangedUnitsAreReplacedAndRestarted(t *testing.T) {
	ref := newNode(t, nil)
	before := ref.String()
	if err := ref.apply(t, version("a")); err != nil {
		t.Fatal(err)
	}
	const found = `pending: nodelocaldns-guard.service, nodelocaldns.socket, nodelocaldns.service, nodelocaldns-relay.service, nodelocaldns-kubelet.service, nodelocaldns-resume.service, /etc/modules-load.d/our.conf: written by another version, or for another configuration; the sockets stay as they are until the node starts again
- nodelocaldns-guard.service: # a nodelocaldns-guard.service
+ nodelocaldns-guard.service: # b nodelocaldns-guard.service
- nodelocaldns.socket: # a nodelocaldns.socket
+ nodelocaldns.socket: # b nodelocaldns.socket
- nodelocaldns.service: # a nodelocaldns.service
+ nodelocaldns.service: # b nodelocaldns.service
- nodelocaldns-relay.service: # a nodelocaldns-relay.service
+ nodelocaldns-relay.service: # b nodelocaldns-relay.service
- nodelocaldns-kubelet.service: # a nodelocaldns-kubelet.service
+ nodelocaldns-kubelet.service: # b nodelocaldns-kubelet.service
- nodelocaldns-resume.service: # a nodelocaldns-resume.service
+ nodelocaldns-resume.service: # b nodelocaldns-resume.service
- /etc/modules-load.d/our.conf: # a modules
+ /etc/modules-load.d/our.conf: # b modules
+ nodelocaldns-guard.service restarted
+ nodelocaldns.service restarted`
	if diff := cmp.Diff(found, ref.check(t, version("b"))); diff != "" {
		t.Errorf("check (-want +got):\n%s", diff)
	}
	writes := ref.Writes()
	if err := ref.apply(t, version("b")); err != nil {
		t.Fatal(err)
	}
	writes = ref.Writes() - writes
	want := strings.ReplaceAll(ref.String(), ref.root, "")
	if !strings.Contains(want, "nodelocaldns.service: active\nnodelocaldns.socket: active, by an older file\n") {
		t.Errorf("the node:\n%s", want)
	}
	for at := 1; at <= writes; at++ {
		for _, fault := range []hosttest.Fault{hosttest.Fail, hosttest.CutBefore, hosttest.CutAfter} {
			n := newNode(t, nil)
			if err := n.apply(t, version("a")); err != nil {
				t.Fatal(err)
			}
			n.Arm(at, fault)
			func() {
				defer func() {
					if p := recover(); p != nil && p != (hosttest.PowerCut{}) {
						panic(p)
					}
				}()
				if err := n.apply(t, version("b")); err != nil && !errors.Is(err, hosttest.ErrFault) {
					t.Fatal(err)
				}
			}()
			n.Arm(0, 0)
			if err := n.apply(t, version("b")); err != nil {
				t.Fatalf("fault %d at write %d: %v", fault, at, err)
			}
			if diff := cmp.Diff(want, n.String()); diff != "" {
				t.Fatalf("fault %d at write %d, and once more (-want +got):\n%s", fault, at, diff)
			}
			if got := n.check(t, version("b")); got != "satisfied: installed from this program; guard, socket and resolver run" {
				t.Errorf("fault %d at write %d: then %s", fault, at, got)
			}
			if err := n.rollback(t); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, n.String()); diff != "" {
				t.Fatalf("fault %d at write %d, rolled back (-before +after):\n%s", fault, at, diff)
			}
		}
	}
}

// What is found on nodes of all kinds, after an apply of ours or without one.
func TestFindings(t *testing.T) {
	const etc, usr = "/etc/systemd/system/", "/usr/lib/systemd/system/"
	for _, tt := range []struct {
		name    string
		tree    map[string]string
		applied bool
		do      func(t *testing.T, n *node)
		want    string
	}{
		{name: "nothing is there", want: `pending: not installed
+ /etc/systemd/system/nodelocaldns-guard.service
+ /etc/systemd/system/nodelocaldns.socket
+ /etc/systemd/system/nodelocaldns.service
+ /etc/systemd/system/nodelocaldns-relay.service
+ /etc/systemd/system/nodelocaldns-kubelet.service
+ /etc/systemd/system/nodelocaldns-resume.service
+ /etc/modules-load.d/our.conf
+ /etc/systemd/system/multi-user.target.wants/nodelocaldns-guard.service -> /etc/systemd/system/nodelocaldns-guard.service
+ /etc/systemd/system/sockets.target.wants/nodelocaldns.socket -> /etc/systemd/system/nodelocaldns.socket
+ /etc/systemd/system/multi-user.target.wants/nodelocaldns.service -> /etc/systemd/system/nodelocaldns.service
+ /etc/systemd/system/multi-user.target.wants/nodelocaldns-kubelet.service -> /etc/systemd/system/nodelocaldns-kubelet.service
+ /etc/systemd/system/multi-user.target.wants/nodelocaldns-resume.service -> /etc/systemd/system/nodelocaldns-resume.service
- nodelocaldns-guard.service inactive
+ nodelocaldns-guard.service active
- nodelocaldns.service inactive
+ nodelocaldns.service active
- nodelocaldns.socket inactive
+ nodelocaldns.socket active`},
		{name: "applied", applied: true, want: "satisfied: installed from this program; guard, socket and resolver run"},
		{
			name: "applied to an image", do: func(t *testing.T, n *node) {
				if n.systemd = nil; n.apply(t, version("a")) != nil {
					t.Fatal("apply failed")
				}
			}, want: "satisfied: installed from this program, enabled",
		},
		{
			name: "the resolver has failed", applied: true, do: func(t *testing.T, n *node) {
				n.systemd = n.Node.Systemd(map[string]string{units.Resolver: "exit-code"})
				if n.systemd.Restart(t.Context(), units.Resolver) == nil {
					t.Fatal("it did not fail")
				}
			},
			want: "pending: nodelocaldns.service is failed: exit-code\n- nodelocaldns.service failed: exit-code\n+ nodelocaldns.service active",
		},
		{
			name: "guard was stopped", applied: true, do: func(t *testing.T, n *node) {
				if err := n.systemd.Stop(t.Context(), units.Guard); err != nil {
					t.Fatal(err)
				}
			},
			want: "pending: nodelocaldns-guard.service is inactive\n- nodelocaldns-guard.service inactive\n+ nodelocaldns-guard.service active",
		},
		{
			name: "a unit was disabled", applied: true, do: func(t *testing.T, n *node) { n.remove(t, etc+"multi-user.target.wants/nodelocaldns.service") },
			want: "pending: nodelocaldns.service: not enabled\n+ /etc/systemd/system/multi-user.target.wants/nodelocaldns.service -> /etc/systemd/system/nodelocaldns.service",
		},
		{
			name: "a unit was deleted", applied: true, do: func(t *testing.T, n *node) { n.remove(t, etc+"nodelocaldns.socket") },
			want: "pending: nodelocaldns.socket: not installed\n+ /etc/systemd/system/nodelocaldns.socket",
		},
		{
			name: "a unit of the package was replaced, and systemd has not read it", tree: packaged("/usr/lib"), applied: true,
			do:   func(t *testing.T, n *node) { n.put(t, usr+"nodelocaldns.service", "# newer") },
			want: "pending: systemd has not read /usr/lib/systemd/system/nodelocaldns.service yet\n+ systemd reads its files again",
		},
		{name: "a package has brought them", tree: packaged("/lib"), applied: true,
			want: "satisfied: of a package in /lib/systemd/system; guard, socket and resolver run"},
		{
			name: "a package has brought them later", applied: true,
			do: func(t *testing.T, n *node) {
				for name, content := range packaged("/usr/lib") {
					n.put(t, name, content)
				}
			},
			want: "satisfied: installed from this program, over those of a package; guard, socket and resolver run",
		},
		{
			name: "a person has their own in place of the package's", applied: true, tree: with(packaged("/usr/lib"), etc+"nodelocaldns.service", "# mine"),
			want: "satisfied: of a package in /usr/lib/systemd/system; guard, socket and resolver run",
		},
		{
			name: "somebody has a unit of that name", tree: map[string]string{etc + "nodelocaldns.service": "# mine"},
			want: "blocked: /etc/systemd/system/nodelocaldns.service is not ours\n" +
				"move it away: the name is ours; what is to differ goes into a drop-in (systemctl edit nodelocaldns.service)",
		},
		{
			name: "somebody has edited a unit", applied: true, do: func(t *testing.T, n *node) { n.put(t, etc+"nodelocaldns.service", "# mine") },
			want: "blocked: /etc/systemd/system/nodelocaldns.service changed since we wrote it\n" +
				"put the edit into a drop-in (systemctl edit nodelocaldns.service) and delete the file; nodelocaldns rollback --keep=unit/nodelocaldns leaves it as it is",
		},
		{
			name: "masked", tree: map[string]string{etc + "nodelocaldns-guard.service": "-> /dev/null"},
			want: "blocked: /etc/systemd/system/nodelocaldns-guard.service masks our unit\n" +
				"somebody does not want it to run; systemctl unmask nodelocaldns-guard.service if that is over",
		},
		{
			name: "masked by an empty file", tree: map[string]string{etc + "nodelocaldns.socket": ""},
			want: "blocked: /etc/systemd/system/nodelocaldns.socket masks our unit\n" +
				"somebody does not want it to run; systemctl unmask nodelocaldns.socket if that is over",
		},
		{
			name: "a package's, masked until the next boot", tree: with(packaged("/usr/lib"), "/run/systemd/system/nodelocaldns.service", "-> /dev/null"),
			want: "blocked: /run/systemd/system/nodelocaldns.service masks our unit\n" +
				"somebody does not want it to run; systemctl unmask nodelocaldns.service if that is over",
		},
		{
			name: "not to be started at boot", tree: with(packaged("/usr/lib"), etc+"sockets.target.wants/nodelocaldns.socket", "-> /dev/null"),
			want: "blocked: /etc/systemd/system/sockets.target.wants/nodelocaldns.socket is a link to /dev/null\n" +
				"somebody does not want it to start at boot; remove the link if that is over",
		},
		{
			name: "a package without what is no unit", tree: onlyUnits(packaged("/usr/lib")),
			do: func(t *testing.T, n *node) {
				for _, name := range []string{units.Guard, units.Socket, units.Resolver} {
					if err := n.systemd.Start(t.Context(), name); err != nil {
						t.Fatal(err)
					}
				}
				for _, f := range version("") {
					if f.WantedBy != "" {
						n.put(t, etc+f.WantedBy+".wants/"+f.Name, "-> "+usr+f.Name)
					}
				}
			},
			want: "pending: /etc/modules-load.d/our.conf: not installed\n+ /etc/modules-load.d/our.conf",
		},
		{
			name: "networkd came later", applied: true, do: func(t *testing.T, n *node) { n.put(t, networkd, "program") },
			want: "pending: /etc/systemd/network/10-our.network: not installed\n+ /etc/systemd/network/10-our.network",
		},
		{
			name: "somebody has other modules loaded", applied: true, tree: map[string]string{"/etc/modules-load.d/our.conf": "# mine"},
			want: "satisfied: installed from this program; guard, socket and resolver run",
		},
		{
			name: "somebody wants none of them loaded", applied: true, tree: map[string]string{"/etc/modules-load.d/our.conf": "-> /dev/null"},
			want: "satisfied: installed from this program; guard, socket and resolver run",
		},
		{
			name: "somebody has edited what is no unit", applied: true, do: func(t *testing.T, n *node) { n.put(t, "/etc/modules-load.d/our.conf", "# mine") },
			want: "blocked: /etc/modules-load.d/our.conf changed since we wrote it\n" +
				"delete it; nodelocaldns rollback --keep=unit/nodelocaldns leaves it as it is",
		},
		{
			name: "half of a package", tree: map[string]string{usr + "nodelocaldns.service": "# x", usr + "nodelocaldns.socket": "# x"},
			want: "blocked: somebody has brought /usr/lib/systemd/system/nodelocaldns.socket but not nodelocaldns-guard.service, nodelocaldns-relay.service, nodelocaldns-kubelet.service, nodelocaldns-resume.service\n" +
				"install the package again, whole",
		},
		{
			name: "no program", do: func(t *testing.T, n *node) { n.remove(t, units.Program) },
			want: "blocked: /usr/bin/nodelocaldns is not there, and our units start it\ninstall both programs: install -m 755 nodelocaldns nodelocaldns-relay ROOT/usr/bin/",
		},
		{
			name: "no relay", do: func(t *testing.T, n *node) { n.remove(t, units.RelayProgram) },
			want: "blocked: /usr/bin/nodelocaldns-relay is not there, and our units start it\ninstall both programs: install -m 755 nodelocaldns nodelocaldns-relay ROOT/usr/bin/",
		},
		{
			name: "no program that runs", do: func(t *testing.T, n *node) {
				if err := os.Chmod(filepath.Join(n.root, units.Program), 0o644); err != nil {
					t.Fatal(err)
				}
			},
			want: "blocked: /usr/bin/nodelocaldns is no program that can be started\ninstall both programs: install -m 755 nodelocaldns nodelocaldns-relay ROOT/usr/bin/",
		},
		{
			name: "a file in place of a directory", tree: map[string]string{"/etc/systemd": "x"},
			want: "blocked: /etc/systemd/system is no directory\nmove it away",
		},
		{
			name: "a directory that is a link to nothing", tree: map[string]string{"/etc/systemd/system": "-> /none"},
			want: "blocked: /etc/systemd/system is a link that leads nowhere\nmake what it points to, or remove it",
		},
		{
			name: "a directory in place of a unit", tree: map[string]string{etc + "nodelocaldns.socket/": ""},
			want: "blocked: /etc/systemd/system/nodelocaldns.socket is no regular file\nmove it away: the name is ours",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.tree)
			if tt.applied {
				if err := n.apply(t, version("a")); err != nil {
					t.Fatal(err)
				}
			}
			if tt.do != nil {
				tt.do(t, n)
			}
			if diff := cmp.Diff(tt.want, strings.ReplaceAll(n.check(t, version("a")), n.root, "ROOT")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !strings.HasPrefix(tt.want, "pending") {
				return
			}
			// What is pending is done by the next apply, and all of it undone.
			n.systemd = n.Node.Systemd(nil)
			if err := n.apply(t, version("a")); err != nil {
				t.Fatal(err)
			}
			if got := n.check(t, version("a")); !strings.HasPrefix(got, "satisfied: ") {
				t.Errorf("after the next apply: %s", got)
			}
		})
	}
}

func (n *node) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(n.root, name)); err != nil {
		t.Fatal(err)
	}
}

// Rollback takes away what we made and nothing else.
func TestRollbackLeavesWhatIsNotOurs(t *testing.T) {
	const etc = "/etc/systemd/system/"
	for _, tt := range []struct {
		name string
		tree map[string]string
		do   func(t *testing.T, n *node)
		err  string
		left string // beyond what was there before apply
	}{
		{
			name: "an edited unit, and then all of them", do: func(t *testing.T, n *node) { n.put(t, etc+"nodelocaldns.service", "# mine") },
			err: "unit/nodelocaldns: undo: /etc/systemd/system/nodelocaldns.service changed since we wrote it\n" +
				"nodelocaldns rollback --keep=unit/nodelocaldns leaves it as it is",
			left: "all",
		},
		{
			name: "a masked unit", do: func(t *testing.T, n *node) {
				n.remove(t, etc+"nodelocaldns.socket")
				n.put(t, etc+"nodelocaldns.socket", "-> /dev/null")
			},
			err: "unit/nodelocaldns: undo: /etc/systemd/system/nodelocaldns.socket changed since we wrote it\n" +
				"nodelocaldns rollback --keep=unit/nodelocaldns leaves it as it is",
			left: "all",
		},
		{
			name: "an edited file that is no unit, and then all of them", do: func(t *testing.T, n *node) { n.put(t, "/etc/modules-load.d/our.conf", "# mine") },
			err: "unit/nodelocaldns: undo: /etc/modules-load.d/our.conf changed since we wrote it\n" +
				"nodelocaldns rollback --keep=unit/nodelocaldns leaves it as it is",
			left: "all",
		},
		{
			name: "what somebody has put beside a file of ours", do: func(t *testing.T, n *node) { n.put(t, "/etc/modules-load.d/theirs.conf", "# mine") },
			left: "drwxr-xr-x /etc/modules-load.d\n-rw-r--r-- /etc/modules-load.d/theirs.conf \"# mine\"\n",
		},
		{
			name: "a link to something else, and its directory", do: func(t *testing.T, n *node) {
				n.remove(t, etc+"sockets.target.wants/nodelocaldns.socket")
				n.put(t, etc+"sockets.target.wants/nodelocaldns.socket", "-> /mine")
			},
			left: `drwxr-xr-x /etc/systemd/system/sockets.target.wants
Lrwxrwxrwx /etc/systemd/system/sockets.target.wants/nodelocaldns.socket -> /mine
`,
		},
		{
			name: "a drop-in", do: func(t *testing.T, n *node) { n.put(t, etc+"nodelocaldns.service.d/mine.conf", "# mine") },
			left: `drwxr-xr-x /etc/systemd/system/nodelocaldns.service.d
-rw-r--r-- /etc/systemd/system/nodelocaldns.service.d/mine.conf "# mine"
`,
		},
		{
			name: "units that somebody has deleted", do: func(t *testing.T, n *node) {
				n.remove(t, etc+"nodelocaldns.service")
				n.remove(t, etc+"multi-user.target.wants/nodelocaldns.service")
			},
		},
		{
			name: "the unit that it runs in", do: func(_ *testing.T, n *node) { n.self = units.Guard },
			left: "nodelocaldns-guard.service: active, by an older file\n",
		},
		{name: "a package's units, which ran before us", tree: packaged("/usr/lib"), do: func(*testing.T, *node) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, with(map[string]string{"/etc/systemd/system/": ""}, slices.Concat(pairs(tt.tree)...)...))
			if tt.tree != nil {
				if err := n.systemd.Start(t.Context(), units.Guard); err != nil {
					t.Fatal(err)
				}
			}
			before := n.String()
			if err := n.apply(t, version("a")); err != nil {
				t.Fatal(err)
			}
			tt.do(t, n)
			applied := n.beyond(before)
			err := n.rollback(t)
			if got := text(err); got != tt.err {
				t.Errorf("got %q, want %q", got, tt.err)
			}
			want := tt.left
			if want == "all" {
				want = applied
			}
			if diff := cmp.Diff(want, n.beyond(before)); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
			if open := len(n.j.Records); open != 0 && tt.err == "" || open != 1 && tt.err != "" {
				t.Errorf("%d records are open", open)
			}
		})
	}
}

func pairs(tree map[string]string) (out [][]string) {
	for name, content := range tree {
		out = append(out, []string{name, content})
	}
	return out
}

// text is an error and its hint.
func text(err error) string {
	if err == nil {
		return ""
	}
	out := err.Error()
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		out += "\n" + h.Hint()
	}
	return out
}

// refusing is a file system that fails at one call.
type refusing struct {
	fsys.Files
	left int
	err  error
}

func (r *refusing) fail() error {
	if r.left--; r.left == 0 {
		return r.err
	}
	return nil
}

func (r *refusing) Mkdir(name string) error {
	if err := r.fail(); err != nil {
		return err
	}
	return r.Files.Mkdir(name)
}

func (r *refusing) Write(name string, c fsys.Content, like string) error {
	if err := r.fail(); err != nil {
		return err
	}
	return r.Files.Write(name, c, like)
}

func (r *refusing) Symlink(target, name string) error {
	if err := r.fail(); err != nil {
		return err
	}
	return r.Files.Symlink(target, name)
}

func TestAnApplyThatCannotWriteLeavesNothing(t *testing.T) {
	for _, tt := range []struct {
		err  error
		hint string
	}{
		{syscall.EROFS, "it is read-only here: install the units when the image is built, with apply --root, or from a package"},
		{syscall.ENOSPC, "make room there, then apply again"},
	} {
		for at := 1; ; at++ {
			n := newNode(t, map[string]string{"/etc/systemd/system/multi-user.target.wants/": ""})
			before := n.String()
			r := &refusing{n.files, at, tt.err}
			n.files = r
			err := n.apply(t, version("a"))
			if r.left > 0 { // it was not called so often
				if err != nil || at < 8 {
					t.Errorf("%d writes, %v", at-1, err)
				}
				break
			}
			if !errors.Is(err, tt.err) || !strings.HasSuffix(text(err), "\n"+tt.hint) {
				t.Errorf("at write %d: %s", at, text(err))
			}
			if diff := cmp.Diff(before, n.String()); diff != "" {
				t.Errorf("%v at write %d (-before +after):\n%s", tt.err, at, diff)
			}
		}
	}
}

func TestAUnitThatDoesNotStartIsReportedAndTriedAgain(t *testing.T) {
	n := newNode(t, nil)
	before := n.String()
	n.systemd = n.Node.Systemd(map[string]string{units.Socket: "resources"})
	const want = "unit/nodelocaldns: apply: starting nodelocaldns.socket: it is failed: resources\njournalctl -u nodelocaldns.socket says why"
	if got := text(n.apply(t, version("a"))); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := n.beyond(before); !strings.HasSuffix(got, "nodelocaldns-guard.service: active\nnodelocaldns.socket: failed resources\n") {
		t.Errorf("left:\n%s", got)
	}
	n.systemd = n.Node.Systemd(nil)
	if err := n.apply(t, version("a")); err != nil {
		t.Fatal(err)
	}
	if err := n.rollback(t); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("the node (-before +after):\n%s", diff)
	}
}

// systemd makes no sockets where one who runs has made their own.
func TestWhoeverAnswersWithoutTheSocketIsStoppedFirst(t *testing.T) {
	for _, name := range []string{units.Resolver, units.Relay} {
		n := newNode(t, packaged("/usr/lib"))
		if err := n.systemd.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if err := n.apply(t, version("a")); err != nil {
			t.Fatal(err)
		}
		if got := n.check(t, version("a")); got != "satisfied: of a package in /usr/lib/systemd/system; guard, socket and resolver run" {
			t.Error(got)
		}
		if got := n.String(); strings.Contains(got, "nodelocaldns-relay.service: ") {
			t.Errorf("the relay runs:\n%s", got)
		}
	}
}

// A relay that answers goes on, by the newer file, and ends with its sockets.
func TestARelayThatRunsIsRestartedForANewerFileAndStoppedByUndo(t *testing.T) {
	for _, tree := range []map[string]string{nil, packaged("/usr/lib")} {
		n := newNode(t, tree)
		before := n.String()
		if err := n.apply(t, version("a")); err != nil {
			t.Fatal(err)
		}
		if err := n.systemd.Start(t.Context(), units.Relay); err != nil {
			t.Fatal(err)
		}
		if err := n.apply(t, version("b")); err != nil {
			t.Fatal(err)
		}
		if got := n.String(); !strings.Contains(got, "\nnodelocaldns-relay.service: active\n") {
			t.Errorf("after the next version:\n%s", got)
		}
		if err := n.rollback(t); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, n.String()); diff != "" {
			t.Errorf("the node (-before +after):\n%s", diff)
		}
	}
}

func TestTheUnitOfAProcessIsFound(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/nodelocaldns-guard.service\n":                                                   "nodelocaldns-guard.service",
		"12:cpu,cpuacct:/x.service\n1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n": "a.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":                                                   "",
		"0::/\n": "",
		"":       "",
	} {
		if got := unit.Self(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

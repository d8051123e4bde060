package fsys_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"nodelocaldns/host/fsys"
	"nodelocaldns/test/netns"
)

// plant makes files, and links where the content begins with "-> ".
func plant(t *testing.T, files map[string]string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, file)
		} else {
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

var treeFiles = map[string]string{
	"file": "file", "dir/file": "dir/file", "dir/sub/file": "dir/sub/file",
	"rel": "-> dir/file", "abs": "-> /dir/file", "up": "-> dir/../file", "out": "-> ../../../../file", "absout": "-> /../../dir/file",
	"dirlink": "-> dir", "absdir": "-> /dir", "dir/up": "-> ../file", "dir/abs": "-> /file", "dir/sub/top": "-> ../../../..",
	"loop": "-> loop", "ring1": "-> ring2", "ring2": "-> ring1", "gone": "-> nothing", "slash": "-> dir/", "fileslash": "-> file/",
	"root": "-> /", "dot": "-> .", "deep": "-> dirlink/sub/../up", "middle/link": "-> /absdir", "real": "-> /etc/hostname",
}

var treeNames = []string{
	"", "/", ".", "..", "/..", "file", "/file", "//file", "./file", "../file", "file/", "file/x", "file/..", "dir", "dir/", "dir/file",
	"rel", "abs", "up", "out", "absout", "dirlink/file", "absdir/file", "dirlink/../file", "absdir/../file", "dir/up", "dir/abs",
	"dir/sub/top/file", "loop", "loop/x", "ring1", "gone", "gone/x", "slash", "slash/file", "fileslash", "root/file", "root/root/dir/file",
	"dot/dot/file", "deep", "middle/link/file", "middle/link/../file", "nothing", "nothing/", "nothing/x", "nothing/..", "dir/nothing/../file", "real",
}

// In a directory that is the root of a process the kernel itself is the judge.
func TestNamesResolveAsForAProcessWithThatRoot(t *testing.T) {
	if os.Getenv("NODELOCALDNS_TEST_CHROOT") != "" {
		for _, name := range treeNames {
			fmt.Printf("%q %s\n", name, describe("/"+name, os.ReadFile, os.Stat, os.Lstat, os.Readlink))
		}
		return
	}
	root := plant(t, treeFiles)
	if os.Geteuid() != 0 {
		netns.Skip(t, "needs root to change the root of a process")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNamesResolveAsForAProcessWithThatRoot$")
	cmd.Env = append(os.Environ(), "NODELOCALDNS_TEST_CHROOT=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	out, err := chrootable(t, root, cmd).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tree := fsys.Tree(root)
	for _, name := range treeNames {
		want := fmt.Sprintf("%q %s", name, describe(name, tree.ReadFile, tree.Stat, tree.Lstat, tree.Readlink))
		if !slices.Contains(strings.Split(string(out), "\n"), want) {
			t.Errorf("we see\n%s\nand the kernel\n%s", want, grep(string(out), fmt.Sprintf("%q ", name)))
		}
	}
}

// chrootable puts the test binary where the process finds it in its root.
func chrootable(t *testing.T, root string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	put := func(file, source string) {
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, file), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	put("self", self)
	cmd.Path = "/self"
	// With the race detector it needs libraries; else ldd fails.
	out, _ := exec.Command("ldd", self).Output()
	for _, field := range strings.Fields(string(out)) {
		if strings.HasPrefix(field, "/") {
			put(field, field)
		}
	}
	return cmd
}

func grep(text, prefix string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, prefix) {
			return line
		}
	}
	return text
}

func describe(name string, read func(string) ([]byte, error), stat, lstat func(string) (fs.FileInfo, error), readlink func(string) (string, error)) string {
	kind := func(info fs.FileInfo, err error) string {
		if err != nil {
			return errno(err)
		}
		return info.Mode().Type().String()
	}
	data, err := read(name)
	content := string(data)
	if err != nil {
		content = errno(err)
	}
	link, err := readlink(name)
	if err != nil {
		link = errno(err)
	}
	return fmt.Sprintf("content %q, %s, itself %s, link %q", content, kind(stat(name)), kind(lstat(name)), link)
}

func errno(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return err.Error()
}

func TestResolveTellsTheNameWithoutLinks(t *testing.T) {
	tree := fsys.Tree(plant(t, treeFiles))
	for name, want := range map[string]string{
		"abs": "/dir/file", "out": "/file", "absdir/../file": "/file", "deep": "/file", "middle/link/file": "/dir/file", "/": "/", "../..": "/",
		"root/dirlink/sub": "/dir/sub", "loop": "", "gone": "", "nothing": "", "file/x": "",
	} {
		got, err := tree.Resolve(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
		var pe *fs.PathError
		if err != nil && (!errors.As(err, &pe) || !strings.HasPrefix(pe.Path, "/") || strings.Contains(err.Error(), string(tree))) {
			t.Errorf("the error tells another name: %v", err)
		}
	}
}

func TestReadDirTellsWhatIsThere(t *testing.T) {
	tree := fsys.Tree(plant(t, treeFiles))
	list, err := tree.ReadDir("absdir")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name()+" "+e.Type().String())
	}
	if want := []string{"abs L---------", "file ----------", "sub d---------", "up L---------"}; !slices.Equal(names, want) {
		t.Errorf("entries are %q, want %q", names, want)
	}
	for name, want := range map[string]error{"file": syscall.ENOTDIR, "nothing": fs.ErrNotExist, "loop": syscall.ELOOP} {
		if _, err := tree.ReadDir(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

func TestWhatIsNoRegularFileIsNotRead(t *testing.T) {
	root := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Tree(root).ReadFile("pipe"); err == nil {
		t.Error("a pipe was read")
	}
}

func TestTheRootItselfMayBeALink(t *testing.T) {
	root := plant(t, treeFiles)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"abs", "dirlink/../rel", "dir/sub/top/dir/file"} {
		if data, err := fsys.Tree(link).ReadFile(name); err != nil || string(data) != "dir/file" {
			t.Errorf("%s is %q, %v", name, data, err)
		}
	}
	if got := fsys.Tree("").Path("etc"); got != "/etc" {
		t.Errorf("the zero Tree has etc at %s", got)
	}
}

package packaging

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/test/judge"
)

const version = "1.2.3"

var update = flag.Bool("update", false, "write what the packages are compared with; review it by eye")

// built is the directory with the packages that all tests look at.
var built string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "nodelocaldns-package")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built = filepath.Join(dir, "packages")
		if err := Build("../..", built, version); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tool runs a program that is a judge of packages, and returns what it printed to
// its standard output. That it is missing skips the test; that it fails, fails it.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		judge.Skip(t, "needs "+name+", of Debian's package of that name")
	}
	out, err := exec.Command(name, args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, exit.Stderr)
	}
	must(t, err)
	return string(out)
}

func deb(arch string) string { return filepath.Join(built, Deb(version, arch)) }
func rpm(arch string) string { return filepath.Join(built, RPM(version, arch)) }

// A file is one of a package for dpkg.
type file struct {
	*tar.Header
	data []byte
}

// files are those of a package for dpkg, by name.
func files(t *testing.T, arch string) map[string]file {
	t.Helper()
	return filesIn(t, deb(arch))
}

func filesIn(t *testing.T, deb string) map[string]file {
	t.Helper()
	all := map[string]file{}
	r := tar.NewReader(strings.NewReader(tool(t, "dpkg-deb", "--fsys-tarfile", deb)))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		data, err := io.ReadAll(r)
		must(t, err)
		all[strings.TrimSuffix(strings.TrimPrefix(h.Name, "."), "/")] = file{h, data}
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(name, []byte(got), 0o644))
	}
	want, err := os.ReadFile(name)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestADebSaysWhatItIsAndHasWhatItShould(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		size := regexp.MustCompile(`(?m)^(Installed-Size): \d+`)
		got := size.ReplaceAllString(tool(t, "dpkg-deb", "--field", deb(arch)), "$1: N")
		if want := "\nArchitecture: " + arch + "\n"; !strings.Contains(got, want) {
			t.Errorf("%s: no line %q in\n%s", arch, want, got)
		}
		got = strings.Replace(got, "\nArchitecture: "+arch+"\n", "\nArchitecture: ARCH\n", 1)
		got += "conffiles: " + tool(t, "dpkg-deb", "--info", deb(arch), "conffiles")
		var lines []string
		for name, f := range files(t, arch) {
			lines = append(lines, fmt.Sprintf("%s %s/%s %s\n", f.FileInfo().Mode(), f.Uname, f.Gname, name))
			if at := f.ModTime.UTC().Format("2006-01-02 15:04:05"); at != "2026-01-02 03:04:05" {
				t.Errorf("%s: %s is of %s", arch, name, at)
			}
		}
		slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[strings.Index(a, "/"):], b[strings.Index(b, "/"):]) })
		golden(t, "deb.txt", got+strings.Join(lines, ""))
	}
}

func TestAnRPMSaysWhatItIsAndHasWhatItShould(t *testing.T) {
	const format = `Name: %{NAME}
Version: %{VERSION}
Release: %{RELEASE}
Summary: %{SUMMARY}
License: %{LICENSE}
Group: %{GROUP}
Build host: %{BUILDHOST}
Build time: %{BUILDTIME}
Description:
%{DESCRIPTION}
[Requires: %{REQUIRENEVRS}
][Recommends: %{RECOMMENDNEVRS}
][Provides: %{PROVIDENEVRS}
][Obsoletes: %{OBSOLETENEVRS}
][Conflicts: %{CONFLICTNEVRS}
]Scripts: %{PREINPROG} %{POSTINPROG} %{PREUNPROG} %{POSTUNPROG} %{PRETRANSPROG} %{POSTTRANSPROG} %{VERIFYSCRIPTPROG}
[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES} %{FILEFLAGS:fflags}
]`
	for _, arch := range []string{"amd64", "arm64"} {
		got := tool(t, "rpm", "--query", "--package", "--queryformat", "%{ARCH} %{OS}", rpm(arch))
		if want := map[string]string{"amd64": "x86_64 linux", "arm64": "aarch64 linux"}[arch]; got != want {
			t.Errorf("it is for %s, want %s", got, want)
		}
		got = tool(t, "rpm", "--query", "--package", "--queryformat", format, rpm(arch))
		golden(t, "rpm.txt", regexp.MustCompile(` +\n`).ReplaceAllString(got, "\n"))
	}
}

// The same bytes in both, but for what only one of them has.
func TestDebAndRPMHaveTheSameFilesAndScripts(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		inDeb := map[string]string{}
		for name, f := range files(t, arch) {
			if f.Typeflag == tar.TypeReg {
				inDeb[strings.Replace(name, "vendor-completions", "site-functions", 1)] = fmt.Sprintf("%x", sha256.Sum256(f.data))
			}
		}
		inRPM := map[string]string{}
		for line := range strings.Lines(tool(t, "rpm", "--query", "--package", "--queryformat", `[%{FILENAMES} %{FILEDIGESTS}
]`, rpm(arch))) {
			if name, sum, _ := strings.Cut(strings.TrimSpace(line), " "); sum != "" {
				inRPM[name] = sum
			}
		}
		var diff []string
		for line := range strings.Lines(cmp.Diff(inDeb, inRPM)) {
			if line[0] == '-' || line[0] == '+' {
				diff = append(diff, regexp.MustCompile(`^(.).*"(/[^"]*)".*\n`).ReplaceAllString(line, "$1 $2"))
			}
		}
		slices.Sort(diff)
		want := []string{
			"+ /usr/share/licenses/nodelocaldns/LICENSE",
			"- /usr/share/doc/nodelocaldns/changelog.gz",
			"- /usr/share/doc/nodelocaldns/copyright",
			"- /usr/share/lintian/overrides/nodelocaldns",
		}
		if diff := cmp.Diff(want, diff); diff != "" {
			t.Errorf("%s: only in one of deb and rpm (-want +got):\n%s", arch, diff)
		}

		for _, s := range []struct{ file, deb, rpm string }{
			{"postinstall.sh", "postinst", "POSTIN"},
			{"preremove.sh", "prerm", "PREUN"},
			{"postremove.sh", "postrm", "POSTUN"},
		} {
			want, err := os.ReadFile("../../units/package/" + s.file)
			must(t, err)
			if got := tool(t, "dpkg-deb", "--info", deb(arch), s.deb); got != string(want) {
				t.Errorf("%s: %s is not %s:\n%s", arch, s.deb, s.file, got)
			}
			if got := tool(t, "rpm", "--query", "--package", "--queryformat", "%{"+s.rpm+"}", rpm(arch)); got != string(want) {
				t.Errorf("%s: %s is not %s:\n%s", arch, s.rpm, s.file, got)
			}
		}
	}
}

// What is for systemd and its kin, but a user: nothing of ours is in /etc/passwd.
func TestAPackageHasTheUnitsAsTheyAreInTheTree(t *testing.T) {
	got, want := map[string]string{}, map[string]string{}
	for name, f := range files(t, "amd64") {
		if strings.HasPrefix(name, "/usr/lib/") && f.Typeflag == tar.TypeReg {
			got[name] = string(f.data)
		}
	}
	read := func(name, at string) {
		data, err := os.ReadFile(name)
		must(t, err)
		want[path.Join("/usr/lib", at)] = string(data)
	}
	units, err := filepath.Glob("../../units/*.s*[et]")
	must(t, err)
	for _, name := range units {
		read(name, "systemd/system/"+filepath.Base(name))
	}
	lib := os.DirFS("../../units/lib")
	must(t, fs.WalkDir(lib, ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && path.Dir(name) != "sysusers.d" {
			read("../../units/lib/"+name, name)
		}
		return err
	}))
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 10 {
		t.Errorf("below /usr/lib (-tree +package):\n%s", diff)
	}
}

func TestTheProgramsAreForTheirMachineAndNeedNoLibrary(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		all := files(t, arch)
		for _, name := range []string{"/usr/bin/nodelocaldns", "/usr/bin/nodelocaldns-relay"} {
			f, err := elf.NewFile(bytes.NewReader(all[name].data))
			if err != nil {
				t.Errorf("%s %s: %v", arch, name, err)
				continue
			}
			if f.Machine != machine {
				t.Errorf("%s %s is for %s", arch, name, f.Machine)
			}
			for _, p := range f.Progs {
				if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
					t.Errorf("%s %s is linked dynamically", arch, name)
				}
			}
		}
	}
}

func TestThePagesOfTheManualRender(t *testing.T) {
	dir := t.TempDir()
	var pages []string
	for name, f := range files(t, "amd64") {
		if !strings.HasPrefix(name, "/usr/share/man/") || f.Typeflag != tar.TypeReg {
			continue
		}
		z, err := gzip.NewReader(bytes.NewReader(f.data))
		must(t, err)
		text, err := io.ReadAll(z)
		must(t, err)
		page := filepath.Join(dir, strings.TrimSuffix(filepath.Base(name), ".gz"))
		must(t, os.WriteFile(page, text, 0o644))
		pages = append(pages, page)
	}
	if len(pages) < 15 {
		t.Fatalf("the pages are %q", pages)
	}
	tool(t, "mandoc", append([]string{"-T", "lint", "-W", "warning"}, pages...)...) // which fails for any finding
	for _, page := range pages {
		name, section, _ := strings.Cut(filepath.Base(page), ".")
		if section == "yaml.5" {
			name += ".yaml"
		}
		if text := tool(t, "mandoc", "-T", "utf8", page); !strings.Contains(text, name) || !strings.Contains(text, "2026-01-02") {
			t.Errorf("%s renders as\n%s", page, text)
		}
	}
}

// What is packed works: the program runs, its completions load, and with the
// configuration as it is packed all is as without one.
func TestWhatIsPackedWorks(t *testing.T) {
	all := files(t, runtime.GOARCH)
	root := t.TempDir()
	for name, f := range all {
		name = filepath.Join(root, name)
		if f.Typeflag == tar.TypeDir {
			must(t, os.MkdirAll(name, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, f.data, f.FileInfo().Mode()))
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	program := filepath.Join(root, "usr/bin/nodelocaldns")
	if diff := cmp.Diff(run(program, "--root", t.TempDir(), "config", "show"), run(program, "--root", root, "config", "show")); diff != "" {
		t.Errorf("the packed configuration changes (-without +with):\n%s", diff)
	}
	for line := range strings.Lines(string(all["/etc/nodelocaldns/config.yaml"].data)) {
		if line[0] != '#' {
			t.Errorf("the packed configuration says %q, and no later version's default would count", line)
		}
	}
	if got := run("bash", "-c", `. "$0"; complete -p nodelocaldns`, filepath.Join(root, "usr/share/bash-completion/completions/nodelocaldns")); !strings.Contains(got, "__start_nodelocaldns") {
		t.Errorf("bash completes with %q", got)
	}
	if got := run(filepath.Join(root, "usr/bin/nodelocaldns-relay"), "--version"); !strings.HasPrefix(got, "nodelocaldns-relay ") {
		t.Errorf("the relay is %q", got)
	}
}

// On another machine, so to say: of another user, in another place, at another
// time.
func TestThePackagesOfACommitAreTheSameBytesEverywhere(t *testing.T) {
	again := filepath.Join(t.TempDir(), "again")
	tree := filepath.Join(t.TempDir(), "tree")
	must(t, os.Symlink(mustAbs(t, "../.."), tree))
	must(t, Build(tree, again, version, "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8", "TMPDIR="+t.TempDir(), "GOAMD64=v2", "HOSTNAME=other"))
	for _, name := range packages(t, built) {
		want, err := os.ReadFile(filepath.Join(built, name))
		must(t, err)
		got, err := os.ReadFile(filepath.Join(again, name))
		must(t, err)
		if bytes.Equal(got, want) {
			continue
		}
		t.Errorf("%s differs", name)
		if strings.HasSuffix(name, ".deb") {
			had, have := filesIn(t, filepath.Join(built, name)), filesIn(t, filepath.Join(again, name))
			for name, f := range had {
				if !bytes.Equal(f.data, have[name].data) {
					t.Errorf("in it, %s", name)
				}
			}
		}
	}
}

func packages(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range all {
		names = append(names, e.Name())
	}
	if len(names) != 4 {
		t.Fatalf("the packages are %q", names)
	}
	return names
}

func mustAbs(t *testing.T, name string) string {
	t.Helper()
	name, err := filepath.Abs(name)
	must(t, err)
	return name
}

func TestLintianAndRPMLintHaveNothingToSay(t *testing.T) {
	// rpmlint unpacks with cpio, and nfpm's names begin with a slash: as root, that
	// would install them.
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		judge.Skip(t, "needs cpio, which Debian's package rpmlint brings")
	}
	bin := t.TempDir()
	must(t, os.WriteFile(filepath.Join(bin, "cpio"), []byte("#!/bin/sh\nexec "+cpio+" --no-absolute-filenames \"$@\"\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, arch := range []string{"amd64", "arm64"} {
		args := []string{"--display-info", "--fail-on=none", "--allow-root", deb(arch)}
		if got := tool(t, "lintian", args...); got != "" {
			t.Errorf("lintian says of %s:\n%s", arch, got)
		}
		got := tool(t, "rpmlint", "--config", "../../units/package/rpmlint.toml", rpm(arch))
		if !strings.Contains(got, "\n 1 packages and 0 specfiles checked; 0 errors, 0 warnings, 0 badness;") {
			t.Errorf("rpmlint says of %s:\n%s", arch, got)
		}
	}
}

package cloudinit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// command is the one of bootcmd that user-data has.
func command(t *testing.T, userData []byte) []string {
	t.Helper()
	var document struct {
		Bootcmd [][]string `yaml:"bootcmd"`
	}
	if err := yaml.Unmarshal(userData, &document); err != nil {
		t.Fatalf("%v\n%s", err, userData)
	}
	if len(document.Bootcmd) != 1 {
		t.Fatalf("bootcmd has %d commands, want one\n%s", len(document.Bootcmd), userData)
	}
	return document.Bootcmd[0]
}

// A node is where the command runs. Programs that would change this machine are fakes
// that say how they were called.
type fakeNode struct {
	bin, log string
}

// newNode has these programs besides those that every image has.
func newNode(t *testing.T, programs map[string]string) fakeNode {
	t.Helper()
	dir := t.TempDir()
	n := fakeNode{filepath.Join(dir, "bin"), filepath.Join(dir, "log")}
	if err := os.Mkdir(n.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "timeout", "mkdir", "cat", "base64", "gzip", "mktemp", "rm", "sha256sum", "cp"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(n.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	say := `echo "${0##*/} $*" >>` + n.log + "\n"
	all := map[string]string{
		"cloud-init-per": `test "$1 $2" = "instance nodelocaldns"` + "\nshift 2\n" + `exec "$@"`,
		"nodelocaldns":   say, "systemctl": say, "sleep": say,
	}
	for name, text := range programs {
		all[name] = say + text
	}
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(n.bin, name), []byte("#!/bin/sh -e\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// run runs the command of user-data, and returns what the fakes have said.
func (n fakeNode) run(t *testing.T, userData []byte) (log string, err error) {
	t.Helper()
	args := command(t, userData)
	cmd := exec.CommandContext(t.Context(), filepath.Join(n.bin, args[0]), args[1:]...)
	cmd.Env = []string{"PATH=" + n.bin, "TMPDIR=" + filepath.Dir(n.log)}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	said, readErr := os.ReadFile(n.log)
	if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
		t.Fatal(readErr)
	}
	return string(said), err
}

// started is what is left to do where the programs are there.
const started = `nodelocaldns --root / apply
systemctl daemon-reload
systemctl start --no-block nodelocaldns.service
`

func TestAConfigurationArrivesAsItIs(t *testing.T) {
	noise := make([]byte, MaxBytes)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(noise)
	for _, tt := range []struct {
		name, text string
		want       string // where it is not the text
		packed     bool
	}{
		{name: "none at all"},
		{name: "plain", text: "listen:\n  port: 53\n"},
		{name: "blank lines and blanks", text: "\n  # a\n\n\tb  \n\n"},
		{name: "what a shell would see something in", text: "a: $HOME `id` \\ 'x' \"y\" %s\n"},
		{name: "letters of the world", text: "# größer als 名前 🙂\n"},
		{name: "no last line end", text: "a: b", want: "a: b\n"},
		{name: "the line that ends a file", text: "a: |\nEND\nb\n", packed: true},
		{name: "that line at the beginning", text: "END\n: b\n", packed: true},
		{name: "a line end of YAML's own", text: "# a\u0085b\u2028c\n", packed: true},
		{name: "line ends of another system", text: "a: b\r\n", packed: true},
		{name: "larger than what there is room for", text: strings.Repeat("# "+hex.EncodeToString(noise[:32])+"\n", 300), packed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, nil)
			file := filepath.Join(t.TempDir(), "etc/it's/config.yaml")
			text, err := UserData(Source{}, &File{file, []byte(tt.text)})
			if err != nil {
				t.Fatal(err)
			}
			if got := bytes.Contains(text, []byte("base64 -d")); got != tt.packed {
				t.Errorf("packed: %v, want %v\n%s", got, tt.packed, text)
			}
			log, err := n.run(t, text)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if want := cmp.Or(tt.want, tt.text); string(got) != want {
				t.Errorf("%q arrives, want %q", got, want)
			}
			if diff := gocmp.Diff(started, log); diff != "" {
				t.Errorf("what was run (-want +got):\n%s", diff)
			}
		})
	}
	_, err := UserData(Source{}, &File{"/etc/x", noise})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("what is too large when packed, too: %v, want %v", err, ErrTooLarge)
	}
}

func sumOf(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

func downloads(t *testing.T, pairs ...string) []Download {
	t.Helper()
	var out []Download
	for i := 0; i < len(pairs); i += 2 {
		d, err := ParseDownload(pairs[i], pairs[i+1])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

func TestAPackageIsFetchedAndCheckedBeforeItIsInstalled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to write below /run")
	}
	const (
		curl   = `while [ "$1" != -o ]; do shift; done; printf 'package of %s' "$3" >"$2"`
		wget   = `while [ "$1" != -O ]; do shift; done; printf 'package of %s' "$3" >"$2"`
		python = `printf 'package of %s' "$3" >"$4"`
		deb    = "http://h/nodelocaldns_1.2.3_amd64.deb"
		arm    = "https://h/nodelocaldns_1.2.3_arm64.deb?key=a/b&c=it's"
		rpm86  = "https://h/nodelocaldns-1.2.3-1.x86_64.rpm"
		rpm    = "https://h/nodelocaldns-1.2.3-1.aarch64.rpm"
	)
	install := `shift $(($# - 1)); echo "$(cat "$1")" >>` // the last argument is the package
	for _, tt := range []struct {
		name     string
		programs map[string]string
		from     []string // URL and sum
		want     []string // of what is run, the beginnings
		err      string
	}{
		{
			name: "curl", programs: map[string]string{"curl": curl, "wget": "exit 1"},
			from: []string{deb, sumOf("package of " + deb)},
			want: []string{"curl -fsSL ", "dpkg --install /run/", "package of " + deb, "nodelocaldns --root / apply"},
		},
		{
			name: "wget", programs: map[string]string{"wget": wget},
			from: []string{deb, strings.ToUpper(sumOf("package of " + deb))},
			want: []string{"wget -q ", "dpkg --install /run/", "package of " + deb, "nodelocaldns --root / apply"},
		},
		{
			name: "python", programs: map[string]string{"python3": python},
			from: []string{arm, sumOf("package of " + arm)},
			want: []string{"python3 -c ", "dpkg --install /run/", "package of " + arm, "nodelocaldns --root / apply"},
		},
		{
			name: "a node of the second architecture", programs: map[string]string{"curl": curl, "uname": "echo aarch64"},
			from: []string{rpm86, sumOf(""), arm, sumOf("package of " + arm)},
			want: []string{"uname -m", "curl -fsSL ", "dpkg --install /run/", "package of " + arm, "nodelocaldns --root / apply"},
		},
		{
			name: "a package for rpm", programs: map[string]string{"curl": curl},
			from: []string{rpm, sumOf("package of " + rpm)},
			want: []string{"curl -fsSL ", "rpm --upgrade --replacepkgs /run/", "package of " + rpm, "nodelocaldns --root / apply"},
		},
		{
			name: "a node of a third", programs: map[string]string{"curl": curl, "uname": "echo riscv64"},
			from: []string{deb, sumOf(""), rpm, sumOf("")},
			want: []string{"uname -m", "uname -m"},
			err:  "no package for riscv64",
		},
		{
			name: "something else", programs: map[string]string{"curl": curl},
			from: []string{deb, sumOf("another")},
			want: []string{"curl -fsSL "},
			err:  "FAILED",
		},
		{
			name: "a network that is late", programs: map[string]string{"curl": `test -e "$TMPDIR/late" || { : >"$TMPDIR/late"; exit 7; }` + "\n" + curl},
			from: []string{deb, sumOf("package of " + deb)},
			want: []string{"curl -fsSL ", "sleep 3", "curl -fsSL ", "dpkg --install /run/", "package of " + deb, "nodelocaldns --root / apply"},
		},
		{
			name: "nothing", programs: map[string]string{"curl": "exit 22"},
			from: []string{deb, sumOf("")},
			want: append(slices.Repeat([]string{"curl -fsSL ", "sleep 3"}, 9), "curl -fsSL "),
			err:  "exit status 1",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			programs := map[string]string{"dpkg": "", "rpm": ""}
			for name, text := range tt.programs {
				programs[name] = text
			}
			n := newNode(t, programs)
			for _, name := range []string{"dpkg", "rpm"} {
				text := "#!/bin/sh -e\n" + `echo "${0##*/} $*" >>` + n.log + "\n" + install + n.log + "\n"
				if err := os.WriteFile(filepath.Join(n.bin, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			text, err := UserData(Source{Downloads: downloads(t, tt.from...)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			before, _ := filepath.Glob("/run/nodelocaldns.*")
			log, err := n.run(t, text)
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if tt.err == "" {
				log = strings.TrimSuffix(log, strings.TrimPrefix(started, "nodelocaldns --root / apply\n"))
			}
			lines := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
			ok := len(lines) == len(tt.want)
			for i := range tt.want {
				ok = ok && strings.HasPrefix(lines[i], tt.want[i])
			}
			if !ok {
				t.Errorf("run was %q, want what begins as %q", lines, tt.want)
			}
			if after, _ := filepath.Glob("/run/nodelocaldns.*"); len(after) > len(before) {
				t.Errorf("left behind: %v", after)
			}
		})
	}
}

func TestAPackageOfARepository(t *testing.T) {
	for _, tt := range []struct {
		pack, has string
		want      string
	}{
		{"nodelocaldns", "apt-get", "apt-get -q update\napt-get -q -y install nodelocaldns\n"},
		{"nodelocaldns=1:2.0~rc1-3", "apt-get", "apt-get -q update\napt-get -q -y install nodelocaldns=1:2.0~rc1-3\n"},
		{"nodelocaldns=1.2.3", "dnf", "dnf -y install nodelocaldns-1.2.3\n"},
		{"nodelocaldns", "yum", "yum -y install nodelocaldns\n"},
	} {
		n := newNode(t, map[string]string{tt.has: ""})
		p, err := ParsePackage(tt.pack)
		if err != nil {
			t.Fatal(err)
		}
		file := File{filepath.Join(t.TempDir(), "sources.list.d/example.sources"), []byte("Types: deb\n")}
		text, err := UserData(Source{Package: p, Repository: &file}, nil)
		if err != nil {
			t.Fatal(err)
		}
		log, err := n.run(t, text)
		if err != nil {
			t.Error(err)
		}
		if diff := gocmp.Diff(tt.want+started, log); diff != "" {
			t.Errorf("%s with %s (-want +got):\n%s", tt.pack, tt.has, diff)
		}
		if got, _ := os.ReadFile(file.Name); !bytes.Equal(got, file.Text) {
			t.Errorf("the repository is %q, want %q", got, file.Text)
		}
	}
}

func TestARepositoryGoesWhereItIsRead(t *testing.T) {
	for name, want := range map[string]string{
		"./a/example.sources": "/etc/apt/sources.list.d/example.sources",
		"example.list":        "/etc/apt/sources.list.d/example.list",
		"/tmp/example.repo":   "/etc/yum.repos.d/example.repo",
	} {
		if f, err := RepositoryFile(name, nil); err != nil || f.Name != want {
			t.Errorf("%s: %v, %v, want %s", name, f, err, want)
		}
	}
}

func TestWhatMakesNoSenseIsRefused(t *testing.T) {
	sum := sumOf("")
	parse := func(url, sum string) func() error {
		return func() error { _, err := ParseDownload(url, sum); return err }
	}
	pack := func(name string) func() error {
		return func() error { _, err := ParsePackage(name); return err }
	}
	data := func(s Source) func() error {
		return func() error { _, err := UserData(s, nil); return err }
	}
	some := &Package{name: "a"}
	for want, do := range map[string]func() error{
		`"ftp://h/a.deb" is no URL of http or https`:                                                     parse("ftp://h/a.deb", sum),
		`"/a.deb" is no URL of http or https`:                                                            parse("/a.deb", sum),
		`"https://h/%" is no URL of http or https`:                                                       parse("https://h/%", sum),
		`https://h/a.tgz?.deb is no package: its name ends neither in .deb nor in .rpm`:                  parse("https://h/a.tgz?.deb", sum),
		`https://h/a%2Edeb is no package: its name ends neither in .deb nor in .rpm`:                     parse("https://h/a%2Edeb", sum),
		`https://h/a.deb#v1: no server is asked for what follows #: leave it out`:                        parse("https://h/a.deb#v1", sum),
		`"abc" is no SHA-256 sum: 64 hexadecimal digits`:                                                 parse("https://h/a.deb", "abc"),
		`"` + sum[1:] + `g" is no SHA-256 sum: 64 hexadecimal digits`:                                    parse("https://h/a.deb", sum[1:]+"g"),
		`"a b" is no package: NAME or NAME=VERSION`:                                                      pack("a b"),
		`"-y" is no package: NAME or NAME=VERSION`:                                                       pack("-y"),
		`"a=" is no package: NAME or NAME=VERSION`:                                                       pack("a="),
		`"" is no package: NAME or NAME=VERSION`:                                                         pack(""),
		`a package comes from a repository or from a URL, not from both`:                                 data(Source{Package: some, Downloads: downloads(t, "https://h/a.deb", sum)}),
		`a repository is for a package of it`:                                                            data(Source{Repository: &File{Name: "/a"}}),
		`https://h/b_amd64.deb is the second package for x86_64`:                                         data(Source{Downloads: downloads(t, "https://h/a.x86_64.rpm", sum, "https://h/b_amd64.deb", sum)}),
		`a is no repository: its name ends neither in .sources or .list, for apt, nor in .repo, for dnf`: func() error { _, err := RepositoryFile("a", nil); return err },
		`https://h/a.deb does not say for which architecture it is: names of packages end as in _amd64.deb or .x86_64.rpm`: data(Source{
			Downloads: downloads(t, "https://h/a.deb", sum, "https://h/b_amd64.deb", sum),
		}),
	} {
		if err := do(); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

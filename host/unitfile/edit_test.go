package unitfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nodelocaldns/host/fsys"
)

// one is the only ExecStart of a unit with that text.
func one(t testing.TB, text string) (*Unit, Command) {
	t.Helper()
	u, err := Load(fsys.Tree(tree{etc + "kubelet.service": text}.write(t)), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := u.Commands("ExecStart")
	if err != nil {
		t.Fatal(err)
	}
	return u, list[0]
}

func isDNS(_ int, w Word) bool { return strings.HasPrefix(w.Text, "--cluster-dns=") }

func TestEditKeepsEverythingElseByteForByte(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{"/bin/kubelet", "/bin/kubelet NEW"},
		{"/bin/kubelet  --a", "/bin/kubelet NEW  --a"},
		{"/bin/kubelet --cluster-dns=1 --a", "/bin/kubelet NEW --a"},
		{"/bin/kubelet --a --cluster-dns=1", "/bin/kubelet NEW --a"},
		{"/bin/kubelet \\\n  --a \\\n\t--cluster-dns=1 \\\n  --b", "/bin/kubelet NEW \\\n  --a \\\n  --b"},
		{"/bin/kubelet \\\r\n  --cluster-dns=1 \\\r\n  --b", "/bin/kubelet NEW \\\r\n  --b"},
		{"/bin/kubelet \\\n# c\n  --a \\\n ; d\n  --b", "/bin/kubelet NEW \\\n# c\n  --a \\\n ; d\n  --b"},
		{"/bin/kubelet \\\n  --cluster-dns=1 #x \\\n --b", "/bin/kubelet NEW #x \\\n --b"},
		{`/bin/kubelet '--cluster-dns=1' "--cluster"-dns=2 \x2d-cluster-dns=3 "a b"'c' \x20 %% $$ "${X}" é`, `/bin/kubelet NEW "a b"'c' \x20 %% $$ "${X}" é`},
		{"-@/bin/kubelet zero --cluster-dns=1 a", "-@/bin/kubelet NEW zero a"},
		{"/bin/kubelet \\; a", "/bin/kubelet NEW \\; a"},
		{"/bin/kubelet \"a \\\n b\"", "/bin/kubelet NEW \"a \\\n b\""},
		{"/bin/kubelet a\\\n", "/bin/kubelet NEW a"},
		{"/bin/kubelet a \\ ", "/bin/kubelet NEW a \\ "},
	} {
		_, cmd := one(t, "[Service]\nExecStart="+c.value+"\n")
		if got, err := cmd.Edit(isDNS, "NEW"); err != nil || got != c.want {
			t.Errorf("%q edited is\n%q, want\n%q, %v", c.value, got, c.want, err)
		}
		if got, err := cmd.Edit(nil, ""); err != nil || strings.TrimSuffix(got, " ") != cmd.Raw() {
			t.Errorf("%q not edited is %q, %v", c.value, got, err)
		}
	}
}

func TestEditRefusesWhatIsNotOneWord(t *testing.T) {
	_, cmd := one(t, "[Service]\nExecStart=/bin/kubelet --a\n")
	for _, insert := range []string{"a b", "'a", ";", "a\nb", "a \\ b", "a\\", "#\n", " "} {
		if got, err := cmd.Edit(nil, insert); err == nil {
			t.Errorf("%q was inserted: %q", insert, got)
		}
	}
}

func TestRawIsTheTextOfTheFile(t *testing.T) {
	text := "# x\n[Service]\nExecStop=/bin/a\n  ExecStart =  /bin/kubelet \\\n   # c\n\t'a b' \\\n  ; d\n --c  \n[Install]\n"
	u, cmd := one(t, text)
	raw := "/bin/kubelet \\\n   # c\n\t'a b' \\\n  ; d\n --c"
	s := cmd.Setting
	if s.Raw != raw || text[s.Offset:s.Offset+len(s.Raw)] != raw || s.Line != 4 || cmd.Raw() != raw {
		t.Errorf("raw is %q at %d, line %d", s.Raw, s.Offset, s.Line)
	}
	var words []string
	for _, w := range cmd.Argv {
		words = append(words, raw[w.Start:w.End])
	}
	if want := []string{"/bin/kubelet", "'a b'", "--c"}; !slices.Equal(words, want) {
		t.Errorf("words are %q, want %q", words, want)
	}
	if len(u.Settings) != 2 || u.Settings[0].Key != "ExecStop" || u.Settings[0].Line != 3 {
		t.Errorf("settings are %+v", u.Settings)
	}
}

func TestCommandsOfOneLineHaveTheirOwnRanges(t *testing.T) {
	u, err := Load(fsys.Tree(tree{etc + "kubelet.service": "[Service]\nType=oneshot\nExecStart=/bin/a 'x ; y' ; -/bin/b z ; /bin/c\n"}.write(t)), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := u.Commands("ExecStart")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range list {
		got = append(got, c.Raw())
	}
	if want := []string{"/bin/a 'x ; y'", "-/bin/b z", "/bin/c"}; !slices.Equal(got, want) {
		t.Errorf("commands are %q, want %q", got, want)
	}
}

func TestLookupFindsWhatSystemdWouldRun(t *testing.T) {
	root := tree{
		etc + "kubelet.service": "[Service]\nExecStart=kubelet\n", "/usr/bin/kubelet": "x", "/usr/sbin/kubelet/": "",
		"/usr/local/bin/kubelet": "not executable", "/opt/kubelet": "x", "/usr/bin/sh": "x",
	}.write(t)
	chmod(t, root, "/usr/bin/kubelet", "/opt/kubelet")
	u, err := Load(fsys.Tree(root), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{"kubelet": "/usr/bin/kubelet", "/x/y": "/x/y", "sh": "", "nothing": ""} {
		if got, err := u.Lookup(program); got != want || (err == nil) != (want != "") {
			t.Errorf("%s is %q, %v, want %q", program, got, err, want)
		}
	}
	if u, err = u.With(etc+"kubelet.service.d/1.conf", []byte("[Service]\nExecSearchPath=/nothing:/opt\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := u.Lookup("kubelet"); got != "/opt/kubelet" {
		t.Errorf("with ExecSearchPath it is %q, %v", got, err)
	}
}

func TestThePipePrefixIsOneSince258(t *testing.T) {
	root := tree{etc + "kubelet.service": "[Service]\nExecStart=|-/bin/kubelet\n"}.write(t)
	u, err := Load(fsys.Tree(root), "kubelet.service", Host{Systemd: 258})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := u.Commands("ExecStart"); err != nil || list[0].Prefix != "|-" || list[0].Path != "/bin/kubelet" {
		t.Errorf("commands are %+v, %v", list, err)
	}
	if u, err = Load(fsys.Tree(root), "kubelet.service", Host{Systemd: 257}); err != nil {
		t.Fatal(err)
	}
	var bad *BadSetting
	if _, err := u.Commands("ExecStart"); !errors.As(err, &bad) {
		t.Errorf("before 258: %v", err)
	}
}

func TestValuesAreThoseAfterTheLastReset(t *testing.T) {
	u, _ := one(t, "[Service]\nA=1\nA=2\nA=\nA=3\nA=4\n[Unit]\nA=5\n[Service]\nB=1\nB=\nExecStart=/bin/a\n")
	if got := fmt.Sprintf("%d %s %d %d", len(u.Values("Service", "A")), u.Values("Service", "A")[0].Value, len(u.Values("Unit", "A")), len(u.Values("Service", "B"))); got != "2 3 1 0" {
		t.Errorf("values are %s", got)
	}
	if s, ok := u.Get("Service", "A"); !ok || s.Value != "4" || s.Line != 6 {
		t.Errorf("the last is %+v, %v", s, ok)
	}
	if _, ok := u.Get("Service", "B"); ok {
		t.Error("what is reset counts as set")
	}
}

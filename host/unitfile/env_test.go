package unitfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/fsys"
	"nodelocaldns/test/judge"
)

// envFiles are environment files; each is tried with a program that tells its
// environment.
var envFiles = []string{
	"A=1\nB=2\n",
	"A=1",
	"A=a b  c  \n",
	"A=  a b\n",
	" A = 1 \n",
	"A=\"a b\"\nB='c d'\n",
	"A=\"a\" \"b\"\n",
	"A='a'b c'd'\n",
	"A=a \"b\" 'c'\n",
	"A=\"a\\\nb\"\nB=1\n",
	"A=\"--a=b \\\n --c=d \\\n --e\"\n",
	"A='a\\\nb'\nB=1\n",
	"A=a\\\nb\nB=1\n",
	"A=a \\\n b \nB=1\n",
	"A=a \\\n \nB=1\n",
	"A=a\\ \nB=a \\",
	"A=\"a \\",
	"A=\"a\nb\"\nB=c\n",
	"A='a\nb'\n",
	"A=\"a\\\"b\\\\c\\$d\\`e\\nf\\'g\"\n",
	"A='a\\'b\n",
	"A=a\\nb\\\\c\\\"d\\$e\n",
	"A=\"a",
	"A='a",
	"A=\"a\"  ",
	"A=\"a\" # no\n",
	"A=a # b ; c\n",
	"# A=1\n; B=2\n  # C=3\nD=4\n",
	"#\n;\nA=1\n",
	"export A=1\nB=2\n",
	"A=1\nA=2\nB=1\nA=3\n",
	"A\nB=1\n",
	"=1\nB=1\n",
	"=A=1\nB=1\n",
	"A==1\nB= =2\n",
	"A=\nB=\"\"\nC=''\nD=1\n",
	"1A=1\nA1=2\na-b=3\na.b=4\nÄ=5\n_=6\nB=7\n",
	"A=$B ${B} $$ %n %% `x`\nB=1\n",
	"A=1\r\nB=\"2\"\r\nC=3 4 \r\n",
	"A=1\rB=2\r",
	"A=a\\\r\nb\r\nB=1\r\n",
	"A=\"a\\\r\nb\"\r\nB=1\r\n",
	"\ufeffA=1\nB=2\n",
	"A=é\u20ac\nB=1\n",
	"A=\xff\nB=1\n",
	"B=1\nA=\uffff\n",
	"\xff=1\nB=1\n",
	"A=1\x00\nB=2\n",
	"A=\t1\t2\t\n",
	"A=\"\t1\n\"\n",
	"# x \\ y\nA=1\n",
	"# x \\\nA=1\nB=2\n",
	"# x \\\\\nA=1\nB=2\n",
	"# x \\\r\nA=1\nB=2\n",
	"# x \\",
	"A=\\x20\\101\n",
	"A=a\\",
	"A=a\\\n",
	"A=   \nB=1\n",
	"A=a'b\nB=c\"d\n",
	"KUBELET_ARGS=\"--bootstrap-kubeconfig=/x \\\n--config=/y \\\n\"\n",
	"A=" + strings.Repeat("--abcdefghi ", 1000) + "z\n",
	"PATH=/x\nHOME=/y\nLANG=xx\nINVOCATION_ID=1\nNOTIFY_SOCKET=2\n",
	"",
	"\n\n",
}

// envCases are unit settings and the arguments they should make.
var envCases = []string{
	"Environment=A=1\nExecStart=/usr/bin/kubelet $A ${A} $A$A x$A x${A}y ${A}${A} $A.b",
	"Environment=\"A=1 2  3\"\nExecStart=/usr/bin/kubelet $A ${A} x$A x${A} \"$A\" '${A}' \"$A x\"",
	"Environment=A=\nExecStart=/usr/bin/kubelet $A ${A} x${A} \"$A\" \"${A}\" end",
	"ExecStart=/usr/bin/kubelet $A ${A} x$A x${A} ${} $ $$ $$A $${A} ${A ${A:-x} ${A:x}y ${A}} $$$A $-A end",
	"Environment=\"A='1 2' \\\"3 4\\\" 5\\\\ 6 7'8'9\"\nExecStart=/usr/bin/kubelet $A end",
	"Environment=\"A=a\\\\\\\\b \\\\x41 c\\\\\"\nExecStart=/usr/bin/kubelet $A end",
	"Environment=\"A='open\"\nExecStart=/usr/bin/kubelet $A end",
	"Environment=\"A=\\\"\\\" '' x\"\nExecStart=/usr/bin/kubelet $A end",
	"Environment=\"A=a\\tb\\nc\\rd\"\nExecStart=/usr/bin/kubelet $A ${A} end",
	"Environment=\"A= \\t \"\nExecStart=/usr/bin/kubelet $A ${A} end",
	"Environment=A=1 A=2\nEnvironment=A=3 B=4\nExecStart=/usr/bin/kubelet $A $B",
	"Environment=A=1\nEnvironment=\nEnvironment=B=2\nExecStart=/usr/bin/kubelet $A $B",
	"Environment='A=$B' B=1 \"C=${B}\"\nExecStart=/usr/bin/kubelet $A ${A} $C ${C}",
	"Environment=A=%n \"B=%% %p\" C=%F D=%H1 E=100%\nExecStart=/usr/bin/kubelet ${A} ${B} ${C} ${E}",
	"Environment=A=a'b c'd \"B\"=1 'C=x'y D\nExecStart=/usr/bin/kubelet ${A} ${B} ${C} ${D}",
	"Environment=A=1 \"B=2\nEnvironment=C=3\nExecStart=/usr/bin/kubelet ${A} ${B} ${C}",
	"Environment=A=1 B=\\q C=3\nExecStart=/usr/bin/kubelet ${A} ${B} ${C}",
	"Environment=A=\\x31\\s2 B=\\xff\nExecStart=/usr/bin/kubelet ${A} ${B}",
	"Environment=1A=1 A-B=2 =3 A=4\nExecStart=/usr/bin/kubelet ${1A} ${A-B} $1A $A-B ${A} $A",
	"Environment=A=env\nEnvironmentFile=/etc/a\nExecStart=/usr/bin/kubelet $A $B $C",
	"EnvironmentFile=/etc/a\nEnvironment=A=env\nEnvironmentFile=/etc/b\nExecStart=/usr/bin/kubelet $A $B $C",
	"EnvironmentFile=/etc/b\nEnvironmentFile=/etc/a\nExecStart=/usr/bin/kubelet $A $B $C",
	"EnvironmentFile=/etc/missing\nExecStart=/usr/bin/kubelet",
	"EnvironmentFile=-/etc/missing\nEnvironmentFile=-/etc/a\nExecStart=/usr/bin/kubelet $A",
	"EnvironmentFile=/etc/a\nEnvironmentFile=\nEnvironmentFile=/etc/b\nExecStart=/usr/bin/kubelet $A $B $C",
	"EnvironmentFile=/etc/env.d/*.env\nExecStart=/usr/bin/kubelet $A $O",
	"EnvironmentFile=/etc/env.d/[!a].env\nExecStart=/usr/bin/kubelet $A $O",
	"EnvironmentFile=/etc/env.?/b.env\nExecStart=/usr/bin/kubelet $A $O",
	"EnvironmentFile=/etc/env.d/*.none\nExecStart=/usr/bin/kubelet",
	"EnvironmentFile=-/etc/env.d/*.none\nExecStart=/usr/bin/kubelet",
	"EnvironmentFile=/etc/env.d\nExecStart=/usr/bin/kubelet",
	"EnvironmentFile=-/etc/env.d\nEnvironmentFile=/etc/a\nExecStart=/usr/bin/kubelet $A",
	"EnvironmentFile=/etc/broken\nExecStart=/usr/bin/kubelet",
	"EnvironmentFile=-/etc/broken\nEnvironment=A=env\nExecStart=/usr/bin/kubelet $A $B",
	"EnvironmentFile=/etc/link\nExecStart=/usr/bin/kubelet $A",
	"EnvironmentFile=/etc/dangling\nExecStart=/usr/bin/kubelet $A",
	"EnvironmentFile=/etc/env.d/sp\\ ace\nExecStart=/usr/bin/kubelet $A",
	"EnvironmentFile=/etc/env.d/sp ace\nExecStart=/usr/bin/kubelet $A",
	"EnvironmentFile=rel\nEnvironmentFile=/etc/../etc/a\nExecStart=/usr/bin/kubelet $A",
	"Environment=A=1 B=2 C=3\nEnvironmentFile=/etc/b\nUnsetEnvironment=A B=2 C=4\nExecStart=/usr/bin/kubelet $A ${B} $C",
	"Environment=A=1 B=2\nUnsetEnvironment=A\nUnsetEnvironment=\nUnsetEnvironment=\"B=2\"\nExecStart=/usr/bin/kubelet $A ${B}",
	"UnsetEnvironment=PATH HOME LANG SYSTEMD_EXEC_PID INVOCATION_ID\nExecStart=/usr/bin/kubelet ${PATH}",
	"Environment=A=1\nExecStart=:/usr/bin/kubelet $A ${A} $$A",
	"Environment=A=1\nExecStart=@/usr/bin/kubelet $A ${A} $$A",
	"Environment=\"A=1 2\"\nExecStart=@/usr/bin/kubelet $A x",
	"Environment=DEFAULT=unit\nExecStart=/usr/bin/kubelet $DEFAULT $OTHER",
	"ExecStart=kubelet a",
	"ExecStart=/usr/bin//./kubelet a",
	"Environment=PATH=/x HOME=/h LANG=C USER=u\nExecStart=/usr/bin/kubelet $PATH $HOME $LANG $USER",
}

func TestProgramsGetWhatSystemdGivesThem(t *testing.T) {
	files := tree{
		"/etc/a": "A=a\nB=a\n", "/etc/b": "B=b\nC=b c\n", "/etc/broken": "A=1\nB=\xff\n",
		"/etc/env.d/a.env": "A=a\nO=a\n", "/etc/env.d/b.env": "A=b\nO=b\n", "/etc/env.d/.c.env": "A=hidden\n", "/etc/env.d/c": "A=c\n", "/etc/env.d/sp ace": "A=space\n",
		"/etc/link": "-> /etc/a", "/etc/dangling": "-> /etc/nothing",
		"/etc/systemd/system.conf":                     "[Manager]\nDefaultEnvironment=DEFAULT=main OTHER=main\n",
		"/usr/lib/systemd/system.conf.d/10-x.conf":     "[Manager]\nDefaultEnvironment=OTHER=usr\n",
		"/etc/systemd/system.conf.d/05-x.conf":         "[Manager]\nDefaultEnvironment=OTHER=etc MORE=etc\n",
		"/etc/systemd/system/kubelet.service.d/x.conf": "",
		"/usr/bin/kubelet":                             "here the judge puts its program\n",
	}
	var names []string
	about := map[string]string{}
	add := func(unit, what string) {
		name := fmt.Sprintf("t%03d.service", len(names))
		files[etc+name] = unit
		about[name] = what
		names = append(names, name)
	}
	for i, content := range envFiles {
		file := fmt.Sprintf("/etc/file%d", i)
		files[file] = content
		add("[Service]\nEnvironmentFile="+file+"\nExecStart=/usr/bin/kubelet $A ${A} $B\n", content)
	}
	for _, unit := range envCases {
		add("[Service]\n"+unit+"\n", unit)
	}
	root := files.write(t)
	starts, log := judge.Run(t, root, []string{"/usr/bin/kubelet"}, names)
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	host := Host{Systemd: judge.Version(t), Hostname: hostname}
	for _, name := range names {
		t.Run(fmt.Sprintf("%.60q", about[name]), func(t *testing.T) {
			u, err := Load(fsys.Tree(root), name, host)
			if err != nil {
				t.Fatal(err)
			}
			want, started := starts[name]
			env, err := u.Environment()
			if (err == nil) != started {
				t.Fatalf("systemd started it: %v; our error: %v", started, err)
			}
			if !started {
				var file *EnvFileError
				if !errors.As(err, &file) {
					t.Errorf("the error is no EnvFileError: %v", err)
				}
				return
			}
			if diff := cmp.Diff(want.Args, expand(t, u)); diff != "" {
				t.Errorf("arguments (-systemd +ours):\n%s", diff)
			}
			their := map[string]string{}
			for _, e := range want.Env {
				name, value, _ := strings.Cut(e, "=")
				their[name] = value
				if _, ok := env.Get(name); !ok && env.Unknown(name) == "" {
					t.Errorf("systemd sets %s and we know nothing of it", e)
				}
			}
			for _, v := range env.Vars() {
				if value, ok := their[v.Name]; !ok || value != v.Value {
					t.Errorf("%s is %q, for systemd %q, %v", v.Name, v.Value, value, ok)
				}
			}
		})
	}
	if t.Failed() {
		t.Logf("%.5000s", log)
	}
}

func TestVariablesTellWhereTheyComeFrom(t *testing.T) {
	u, err := Load(fsys.Tree(tree{
		etc + "kubelet.service": "[Service]\nEnvironment=A=1\n\nEnvironment=B=1 \\\n  C=1\nEnvironmentFile=/etc/env\nPassEnvironment=HTTP_PROXY B\nExecStart=/bin/kubelet\n",
		"/etc/env":              "# x\nD=\"a\\\nb\"\n\nB=2\n",
	}.write(t)), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	env, err := u.Environment()
	if err != nil {
		t.Fatal(err)
	}
	unit := etc + "kubelet.service"
	want := []Var{
		{"A", "1", "Environment", unit, 2},
		{"B", "2", "EnvironmentFile", "/etc/env", 5},
		{"C", "1", "Environment", unit, 4},
		{"D", "ab", "EnvironmentFile", "/etc/env", 2},
	}
	if diff := cmp.Diff(want, env.Vars()); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
	if by := env.Unknown("HTTP_PROXY"); by != "PassEnvironment in "+unit+":7" {
		t.Errorf("HTTP_PROXY is set by %q", by)
	}
	if env.Unknown("B") != "" || env.Unknown("A") != "" || env.Unknown("Z") != "" {
		t.Error("what is known is said to be unknown")
	}
}

func TestWhatOnlyTheRunningSystemKnowsIsAnErrorNotAGuess(t *testing.T) {
	for settings, want := range map[string]string{
		"ExecStart=/bin/kubelet $HOME":                               "$HOME, set by systemd, is not known from files",
		"ExecStart=/bin/kubelet x${INVOCATION_ID}":                   "argument x${INVOCATION_ID}: $INVOCATION_ID, set by systemd, is not known from files",
		"PassEnvironment=X\nExecStart=/bin/kubelet $X":               "$X, set by PassEnvironment in " + etc + "kubelet.service:2, is not known from files",
		"PassEnvironment=X\nExecStart=:/bin/kubelet $X $HOME":        "",
		"PassEnvironment=X\nEnvironment=X=1\nExecStart=/bin/a $X":    "",
		"PassEnvironment=X\nUnsetEnvironment=X\nExecStart=/bin/a $X": "",
		"PassEnvironment=X\nPassEnvironment=\nExecStart=/bin/a $X":   "",
		"UnsetEnvironment=HOME\nExecStart=/bin/a $HOME":              "",
		"Environment=A=%b\nExecStart=/bin/a $A":                      "$A, set by %b in " + etc + "kubelet.service:2, is not known from files",
		"Environment=A=%b\nExecStart=/bin/a":                         "",
		"Environment=A=%b\nEnvironment=A=1\nExecStart=/bin/a $A":     "",
		"Environment=A=1\nEnvironment=A=%b\nExecStart=/bin/a ${A}":   "argument ${A}: $A, set by %b in " + etc + "kubelet.service:3, is not known from files",
		"Environment=A%b=1\nExecStart=/bin/a":                        etc + "kubelet.service:2: Environment: %b is not known from files",
		"ExecStart=/bin/a --hostname-override=%H":                    "argument --hostname-override=%H: %H is not known from files",
		"EnvironmentFile=-/etc/%H\nExecStart=/bin/a":                 etc + "kubelet.service:2: EnvironmentFile: %H is not known from files",
		"EnvironmentFile=-/etc/[[:alpha:]]\nExecStart=/bin/a":        etc + "kubelet.service:2: EnvironmentFile: what matches /etc/[[:alpha:]] is not known from files",
		"EnvironmentFile=-/etc/comment\nExecStart=/bin/a":            etc + "kubelet.service:2: EnvironmentFile /etc/comment: what follows a comment that ends in a backslash is not known from files",
		"EnvironmentFile=-/etc/harmless\nExecStart=/bin/a $A":        "",
		"EnvironmentFile=/etc/nothing\nExecStart=/bin/a":             etc + "kubelet.service:2: EnvironmentFile /etc/nothing: file does not exist",
	} {
		u, err := Load(fsys.Tree(tree{
			etc + "kubelet.service": "[Service]\n" + settings + "\n",
			"/etc/comment":          "# x \\\nA=1\n",
			"/etc/harmless":         "# x \\\n# y\nA=1\n",
		}.write(t)), "kubelet.service", Host{})
		if err != nil {
			t.Fatal(err)
		}
		list, err := u.Commands("ExecStart")
		if err != nil {
			t.Fatal(err)
		}
		env, err := u.Environment()
		if err == nil {
			_, err = list[0].Expand(env)
		}
		if got := fmt.Sprint(err); got != want && (want != "" || err != nil) {
			t.Errorf("%q: the error is\n%v, want\n%s", settings, err, want)
		}
	}
}

func TestAMissingEnvironmentFileIsToldApart(t *testing.T) {
	u, err := Load(fsys.Tree(tree{etc + "kubelet.service": "[Service]\nEnvironmentFile=/x\nExecStart=/bin/a\n"}.write(t)), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Environment(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the error is %v", err)
	}
	with, err := u.With("/x", []byte("A=1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if env, err := with.Environment(); err != nil || len(env.Vars()) != 1 {
		t.Errorf("with the file: %v, %v", env.Vars(), err)
	}
}

func TestWithAVariableOthersStay(t *testing.T) {
	env := Env{}.With(Var{Name: "A", Value: "1"}).With(Var{Name: "B", Value: "2"})
	more := env.With(Var{Name: "A", Value: "3"})
	var got []string
	for _, v := range slices.Concat(env.Vars(), more.Vars()) {
		got = append(got, v.Name+v.Value)
	}
	if want := []string{"A1", "B2", "A3", "B2"}; !slices.Equal(got, want) {
		t.Errorf("variables are %q, want %q", got, want)
	}
}

func TestSpecifiersAreReadFromTheTreeOrGiven(t *testing.T) {
	files := tree{
		etc + "kubelet.service": "[Service]\nExecStart=/bin/kubelet %m %o %w %W %B %H %l %b %v %a\n",
		"/etc/machine-id":       "0123456789abcdef0123456789abcdef\n",
		"/usr/lib/os-release":   "ID=debian\nVERSION_ID=\"12\"\n",
		"/etc/os-release":       "-> ../usr/lib/os-release",
	}
	u, err := Load(fsys.Tree(files.write(t)), "kubelet.service", Host{Hostname: "n1.example", BootID: "b", Kernel: "6.1", Arch: "x86-64"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/bin/kubelet", "0123456789abcdef0123456789abcdef", "debian", "12", "", "", "n1.example", "n1", "b", "6.1", "x86-64"}
	if got := expand(t, u); !slices.Equal(got, want) {
		t.Errorf("arguments are %q, want %q", got, want)
	}
	for _, id := range []string{"uninitialized\n", "", "xyz", strings.Repeat("0", 32)} {
		files["/etc/machine-id"] = id
		u, err := Load(fsys.Tree(files.write(t)), "kubelet.service", Host{})
		if err != nil {
			t.Fatal(err)
		}
		if list, err := u.Commands("ExecStart"); err != nil || list[0].Argv[1].Unknown != "%m" {
			t.Errorf("machine id %q is taken for one", id)
		}
	}
}

func TestWhatIsKnownOfAnArgumentIsTold(t *testing.T) {
	u, err := Load(fsys.Tree(tree{
		etc + "kubelet.service": "[Service]\nEnvironment=A=1\nExecStart=/bin/kubelet --a=%H --b=${A}${HOME}/$$ %b $A --c=$$${A}\n",
	}.write(t)), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := u.Commands("ExecStart")
	if err != nil {
		t.Fatal(err)
	}
	env, err := u.Environment()
	if err != nil {
		t.Fatal(err)
	}
	got, err := list[0].ExpandKnown(env)
	if err != nil {
		t.Fatal(err)
	}
	want := []Arg{
		{Text: "/bin/kubelet", Word: 0, Known: 12},
		{Text: "--a=%H", Word: 1, Unknown: "%H", Known: 4},
		{Text: "--b=1${HOME}/$$", Word: 2, Unknown: "$HOME, set by systemd,", Known: 5},
		{Text: "%b", Word: 3, Unknown: "%b", Known: 0},
		{Text: "1", Word: 4, Var: "A", Known: 1},
		{Text: "--c=$1", Word: 5, Known: 6},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

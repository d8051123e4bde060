package unitfile

import (
	"errors"
	"io/fs"
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
	start = "[Service]\nExecStart=/bin/kubelet\n"
	drop  = "[Service]\nEnvironment="
)

// loadCases are trees; the units are those that every case asks for unless it
// says which.
var loadCases = map[string]struct {
	files tree
	units []string
}{
	"etc before run before usr": {files: tree{
		etc + "kubelet.service": start, run + "kubelet.service": "[Service]\nExecStart=/bin/run\n", usr + "kubelet.service": "[Service]\nExecStart=/bin/usr\n",
	}},
	"run before usr": {files: tree{run + "kubelet.service": start, usr + "kubelet.service": "[Service]\nExecStart=/bin/usr\n"}},
	"local before usr": {files: tree{
		"/usr/local/lib/systemd/system/kubelet.service": start, usr + "kubelet.service": "[Service]\nExecStart=/bin/usr\n",
	}},
	"control before etc": {files: tree{
		"/etc/systemd/system.control/kubelet.service": start, etc + "kubelet.service": "[Service]\nExecStart=/bin/etc\n",
		"/run/systemd/system.control/kubelet.service.d/50-x.conf": drop + "A=run\n",
		"/etc/systemd/system.control/kubelet.service.d/50-x.conf": drop + "A=etc\n",
		etc + "kubelet.service.d/50-x.conf":                       drop + "A=no\n",
	}},
	"attached": {files: tree{
		"/etc/systemd/system.attached/kubelet.service": start, run + "kubelet.service": "[Service]\nExecStart=/bin/run\n",
	}},
	"lib apart from usr/lib": {files: tree{
		"/lib/systemd/system/kubelet.service": start, usr + "kubelet.service": "[Service]\nExecStart=/bin/usr\n",
		"/lib/systemd/system/kubelet.service.d/a.conf": drop + "A=lib\n", usr + "kubelet.service.d/a.conf": drop + "A=usr\n",
	}},
	"override keeps the drop-ins of usr": {files: tree{
		etc + "kubelet.service": start, usr + "kubelet.service": "[Service]\nExecStart=/bin/usr\n",
		usr + "kubelet.service.d/10-kubeadm.conf": drop + "A=1\nExecStart=\nExecStart=/bin/kubelet $A\n",
	}},
	"drop-ins by name over all directories": {files: tree{
		usr + "kubelet.service":             start,
		etc + "kubelet.service.d/10-a.conf": drop + "O=etc10\n",
		usr + "kubelet.service.d/9-a.conf":  drop + "O=usr9\n",
		run + "kubelet.service.d/99.conf":   drop + "O=run99\n",
		usr + "kubelet.service.d/Z.conf":    drop + "O=Z\n",
		etc + "kubelet.service.d/a.conf":    drop + "O=a\n",
		usr + "kubelet.service.d/zz.conf":   drop + "O=zz\n",
		run + "kubelet.service.d/z.conf":    drop + "O=z\n",
		usr + "kubelet.service.d/é.conf":    drop + "O=e\n",
	}},
	"vendor after ours": {files: tree{
		usr + "kubelet.service": start, usr + "kubelet.service.d/90-vendor.conf": "[Service]\nExecStart=\nExecStart=/bin/vendor\n",
		etc + "kubelet.service.d/10-ours.conf": "[Service]\nExecStart=\nExecStart=/bin/ours\n",
	}},
	"same drop-in in three directories": {files: tree{
		usr + "kubelet.service": start, usr + "kubelet.service.d/10.conf": drop + "A=usr\n",
		run + "kubelet.service.d/10.conf": drop + "A=run\n", etc + "kubelet.service.d/10.conf": drop + "A=etc\n",
	}},
	"masked drop-in": {files: tree{
		usr + "kubelet.service": start, usr + "kubelet.service.d/10.conf": drop + "A=usr\n", etc + "kubelet.service.d/10.conf": "-> /dev/null",
	}},
	"empty drop-in": {files: tree{
		usr + "kubelet.service": start, usr + "kubelet.service.d/10.conf": drop + "A=usr\n", etc + "kubelet.service.d/10.conf": "",
	}},
	"drop-in is a link to nothing": {files: tree{
		usr + "kubelet.service": start, usr + "kubelet.service.d/10.conf": drop + "A=usr\n", etc + "kubelet.service.d/10.conf": "-> nothing",
	}},
	"drop-in is a link": {files: tree{
		usr + "kubelet.service": start, etc + "kubelet.service.d/10.conf": "-> ../../../../opt/x", "/opt/x": drop + "A=1\n",
	}},
	"drop-in is a directory": {files: tree{
		usr + "kubelet.service": start, etc + "kubelet.service.d/10.conf/": "", usr + "kubelet.service.d/10.conf": drop + "A=usr\n", etc + "kubelet.service.d/20.conf": drop + "B=1\n",
	}},
	"names that are no drop-ins": {files: tree{
		usr + "kubelet.service":                   start,
		etc + "kubelet.service.d/.10.conf":        drop + "A=hidden\n",
		etc + "kubelet.service.d/10.conf~":        drop + "A=backup\n",
		etc + "kubelet.service.d/10.conf.rpmsave": drop + "A=rpm\n",
		etc + "kubelet.service.d/10":              drop + "A=none\n",
		etc + "kubelet.service.d/10.CONF":         drop + "A=upper\n",
		etc + "kubelet.service.d/.conf":           drop + "A=dot\n",
		etc + "kubelet.service.d/x.dpkg-new":      drop + "A=dpkg\n",
		etc + "kubelet.service.d/sub/a.conf":      drop + "A=sub\n",
	}},
	"drop-ins for all services": {files: tree{
		usr + "kubelet.service": start, etc + "service.d/10.conf": drop + "A=all B=all\n", etc + "service.d/50.conf": drop + "C=all\n",
		usr + "kubelet.service.d/10.conf": drop + "A=one\n", usr + "kubelet.service.d/40.conf": drop + "C=one\n",
	}},
	"drop-ins by prefix": {units: []string{"a-b-c.service"}, files: tree{
		usr + "a-b-c.service": start, usr + "a-b-c.service.d/1.conf": drop + "A=abc\n", etc + "a-b-.service.d/1.conf": drop + "A=ab\n",
		etc + "a-.service.d/1.conf": drop + "A=a\n", etc + "a-.service.d/2.conf": drop + "B=a\n", usr + "a-b-.service.d/2.conf": drop + "B=ab\n",
		etc + "a-b-c-.service.d/3.conf": drop + "C=no\n", etc + "a.service.d/4.conf": drop + "D=no\n", etc + "-.service.d/5.conf": drop + "E=no\n",
	}},
	"prefix that ends in a dash": {units: []string{"a-b-.service", "-a.service", "a--b.service"}, files: tree{
		usr + "a-b-.service": start, usr + "-a.service": start, usr + "a--b.service": start,
		etc + "a-.service.d/1.conf": drop + "A=a\n", etc + "a--.service.d/2.conf": drop + "B=a\n", etc + "-.service.d/5.conf": drop + "E=no\n",
	}},
	"snap": {units: []string{"snap.microk8s.daemon-kubelite.service"}, files: tree{
		etc + "snap.microk8s.daemon-kubelite.service": start, etc + "snap.microk8s.daemon-.service.d/1.conf": drop + "A=1\n",
	}},
	"instance": {units: []string{"kubelet@a-b.service", "kubelet@c.service"}, files: tree{
		usr + "kubelet@.service": "[Service]\nExecStart=/bin/kubelet %i %I %n %p %j\n", etc + "kubelet@.service.d/1.conf": drop + "A=template-%i\n",
		etc + "kubelet@a-b.service.d/1.conf": drop + "A=instance\n", etc + "kubelet@a-b.service.d/2.conf": drop + "B=instance\n",
		etc + "kubelet@c.service": "[Service]\nExecStart=/bin/c\n",
	}},
	"instance with a prefix": {units: []string{"a-b@x.service"}, files: tree{
		usr + "a-b@.service": start, etc + "a-@.service.d/1.conf": drop + "A=template\n", usr + "a-@x.service.d/2.conf": drop + "B=instance\n",
	}},
	"alias": {units: []string{"k3s.service", "kubelet.service"}, files: tree{
		etc + "k3s.service": start, etc + "kubelet.service": "-> k3s.service",
		etc + "k3s.service.d/1.conf": drop + "A=k3s\n", etc + "kubelet.service.d/2.conf": drop + "B=alias\n", usr + "kubelet.service.d/1.conf": drop + "A=alias\n",
	}},
	"alias to another directory": {units: []string{"kubelet.service", "k3s.service"}, files: tree{
		usr + "k3s.service": start, etc + "kubelet.service": "-> ../../../usr/lib/systemd/system/k3s.service",
	}},
	"alias of an alias": {units: []string{"a.service"}, files: tree{
		usr + "c.service": start, etc + "a.service": "-> b.service", etc + "b.service": "-> ../../../usr/lib/systemd/system/c.service", etc + "b.service.d/x.conf": drop + "A=1\n",
	}},
	"alias to a more important file": {units: []string{"a.service"}, files: tree{
		usr + "b.service": "[Service]\nExecStart=/bin/usr\n", etc + "b.service": start, usr + "a.service": "-> b.service",
	}},
	"alias to nothing":        {units: []string{"a.service"}, files: tree{etc + "a.service": "-> b.service", usr + "a.service": start}},
	"alias to itself":         {units: []string{"kubelet.service"}, files: tree{etc + "kubelet.service": "-> ../../../usr/lib/systemd/system/kubelet.service", usr + "kubelet.service": start}},
	"aliases in a ring":       {units: []string{"a.service"}, files: tree{etc + "a.service": "-> b.service", etc + "b.service": "-> a.service"}},
	"alias of another type":   {units: []string{"a.service"}, files: tree{etc + "a.service": "-> a.target", etc + "a.target": "[Unit]\n", usr + "a.service": start}},
	"alias to an instance":    {units: []string{"a@x.service"}, files: tree{etc + "a@x.service": "-> b@.service", etc + "b@.service": "[Service]\nExecStart=/bin/kubelet %i\n", usr + "b@x.service.d/1.conf": drop + "A=%n\n"}},
	"template alias":          {units: []string{"a@x.service"}, files: tree{etc + "a@.service": "-> b@.service", etc + "b@.service": start, usr + "b@x.service.d/1.conf": drop + "A=b\n", usr + "a@x.service.d/2.conf": drop + "B=a\n"}},
	"linked file":             {files: tree{etc + "kubelet.service": "-> ../../../opt/other.service", "/opt/other.service": start, etc + "kubelet.service.d/1.conf": drop + "A=1\n", etc + "other.service.d/1.conf": drop + "A=no\n"}},
	"linked file is gone":     {files: tree{etc + "kubelet.service": "-> ../../../opt/kubelet.service", usr + "kubelet.service": start}},
	"masked":                  {files: tree{etc + "kubelet.service": "-> /dev/null", usr + "kubelet.service": start}},
	"masked by nothing in it": {files: tree{etc + "kubelet.service": "", usr + "kubelet.service": start}},
	"masked at runtime only":  {files: tree{run + "kubelet.service": "-> /dev/null", etc + "kubelet.service": start}},
	"not there":               {files: tree{etc + "other.service": start}},
	"only drop-ins":           {files: tree{etc + "kubelet.service.d/1.conf": start}},
	"unit is a directory":     {files: tree{etc + "kubelet.service/": "", usr + "kubelet.service": start}},
	"bad fragment":            {files: tree{etc + "kubelet.service": "[Service]\nExecStart=/bin/kubelet 'a\n", usr + "kubelet.service.d/1.conf": start}},
	"bad fragment, reset by a drop-in": {files: tree{
		etc + "kubelet.service": "[Service]\nExecStart=/bin/kubelet 'a\n", usr + "kubelet.service.d/1.conf": "[Service]\nExecStart=\nExecStart=/bin/kubelet\n",
	}},
	"bad drop-in ends there": {files: tree{
		etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": "[Service]\nEnvironment=A=1\nExecStop=/bin/a 'b\nEnvironment=B=1\n", etc + "kubelet.service.d/2.conf": drop + "C=1\n",
	}},
	"bad drop-in after a reset": {files: tree{
		etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": "[Service]\nExecStart=\nExecStart=/bin/a 'b\n",
	}},
	"drop-in with a bad header": {files: tree{
		etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": drop + "A=1\n[Service\n" + drop + "B=1\n",
	}},
	"drop-in not UTF-8": {files: tree{
		etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": drop + "A=1\nEnvironment=B=\xff\nEnvironment=C=1\n",
	}},
	"second command of a line is bad": {files: tree{
		etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": "[Service]\nExecStop=/bin/a ; bin/b\nEnvironment=B=1\n",
	}},
	"reset in a drop-in": {files: tree{
		etc + "kubelet.service": start + "Environment=A=1\nEnvironmentFile=/a\n", etc + "kubelet.service.d/1.conf": "[Service]\nEnvironment=\nEnvironment=B=1\nEnvironmentFile=\nEnvironmentFile=-/b\n",
	}},
	"two commands over two files": {files: tree{etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": start}},
	"only a reset":                {files: tree{etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": "[Service]\nExecStart=\n"}},
	"unit directory is a link": {files: tree{
		"/usr/lib/systemd/system": "-> ../../../opt/units", "/opt/units/kubelet.service": start, "/opt/units/kubelet.service.d/1.conf": drop + "A=1\n",
	}},
	"passed and unset variables": {files: tree{
		etc + "kubelet.service": start + "PassEnvironment=A \"B\" C'D' %p 1x a\\x41 A\nPassEnvironment=E \"F\nUnsetEnvironment=A B=1 \"C=x y\" \\x44 =x 1 A\nUnsetEnvironment=%n=1 %p\n",
	}},
	"passed and unset variables, reset": {files: tree{
		etc + "kubelet.service": start + "PassEnvironment=A\nPassEnvironment=\nPassEnvironment=B\nUnsetEnvironment=A\nUnsetEnvironment=\nUnsetEnvironment=B\n",
	}},
	"environment files with specifiers": {units: []string{"a-b.service"}, files: tree{
		etc + "a-b.service": start + "EnvironmentFile=-/etc/%p/%n.env\nEnvironmentFile=/a//b/./c/\nEnvironmentFile=rel\nEnvironmentFile=-\nEnvironmentFile=/a/../b\nEnvironmentFile=/a b\nEnvironmentFile=\"/q\"\nEnvironmentFile=/%F\nEnvironmentFile=--/x\nEnvironmentFile=/*.env\nEnvironmentFile=- /x\n",
	}},
}

func TestUnitsAreFoundAsSystemdFindsThem(t *testing.T) {
	for what, c := range loadCases {
		t.Run(what, func(t *testing.T) {
			if c.units == nil {
				c.units = []string{"kubelet.service"}
			}
			agree(t, c.files, c.units...)
		})
	}
}

func TestARelativeLinkToADropInDirectoryIsRefused(t *testing.T) {
	u, err := Load(fsys.Tree(tree{
		usr + "kubelet.service":   start,
		etc + "kubelet.service.d": "-> ../../../opt/d", "/opt/d/1.conf": drop + "A=1\n",
	}.write(t)), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	var bad *BadSetting
	if _, err := u.Commands("ExecStart"); !errors.As(err, &bad) || bad.File != etc+"kubelet.service.d" {
		t.Errorf("the error is %v", err)
	}
}

// Absolute links are for a systemd that has the tree as its root.
func TestAbsoluteLinksAreFollowedInsideTheTree(t *testing.T) {
	files := tree{
		"/opt/units/kubelet.service":      "[Service]\nEnvironment=A=fragment\nEnvironment=B=fragment\nExecStart=/usr/bin/kubelet $A $B\n",
		etc + "kubelet.service":           "-> /opt/units/kubelet.service",
		"/opt/drop/10.conf":               drop + "A=linked\n",
		etc + "kubelet.service.d":         "-> /opt/drop",
		usr + "kubelet.service.d/20.conf": "-> /opt/20",
		"/opt/20":                         "-> /opt/real20",
		"/opt/real20":                     drop + "B=linked\n",
	}
	root := files.write(t)
	u, err := Load(fsys.Tree(root), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/opt/drop/10.conf", usr + "kubelet.service.d/20.conf"}; !slices.Equal(u.DropIns, want) {
		t.Errorf("drop-ins are %q, want %q", u.DropIns, want)
	}
	want := expand(t, u)
	starts, log := judge.Run(t, root, []string{"/usr/bin/kubelet"}, []string{"kubelet.service"})
	if diff := cmp.Diff(starts["kubelet.service"].Args, want); diff != "" {
		t.Errorf("started otherwise (-systemd +ours):\n%s\n%s", diff, log)
	}
}

func TestMaskedWithoutADevNullInTheTree(t *testing.T) {
	root := tree{etc + "kubelet.service": "-> /dev/null", usr + "kubelet.service": start}.write(t)
	if _, err := Load(fsys.Tree(root), "kubelet.service", Host{}); !errors.Is(err, ErrMasked) {
		t.Errorf("the error is %v", err)
	}
}

func TestNamesThatAreNoServicesAreRefused(t *testing.T) {
	for _, name := range []string{"", "kubelet", "kubelet.target", "a@.service", "../kubelet.service", "a b.service", ".service", "@a.service"} {
		if _, err := Load(fsys.Tree(t.TempDir()), name, Host{}); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("loading %q: %v", name, err)
		}
	}
}

func TestATreeThatIsMissingIsAnError(t *testing.T) {
	_, err := Load(fsys.Tree(filepath.Join(t.TempDir(), "nothing")), "kubelet.service", Host{})
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotFound) {
		t.Errorf("the error is %v", err)
	}
}

func TestADirectoryThatIsGoneHasNothingInIt(t *testing.T) {
	f := files{tree: fsys.Tree(tree{"/run/systemd/generator/kubelet.service": start, "/run/systemd/file": ""}.write(t))}
	for name, want := range map[string][]string{
		"/run/systemd/generator": {"kubelet.service"},
		// Removed between the look for it and the reading.
		"/run/systemd/generator.late":                   nil,
		"/run/systemd/generator.late/kubelet.service.d": nil,
	} {
		if names, err := f.readDir(name); err != nil || !slices.Equal(names, want) {
			t.Errorf("%s: %q, %v, want %q", name, names, err, want)
		}
	}
	if names, err := f.readDir("/run/systemd/file"); err == nil {
		t.Errorf("a file as a directory: %q", names)
	}
}

func TestWithoutADropInWhatItHidIsSeenAgain(t *testing.T) {
	root := tree{
		usr + "kubelet.service": start, usr + "kubelet.service.d/99-x.conf": drop + "A=usr\n",
		etc + "kubelet.service.d/99-x.conf": "[Service]\nExecStart=\nExecStart=/bin/ours\n",
		"/etc/alias":                        "-> systemd/system",
	}.write(t)
	u, err := Load(fsys.Tree(root), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{etc + "kubelet.service.d/99-x.conf", "/etc/alias/kubelet.service.d/99-x.conf"} {
		without, err := u.Without(name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := without.Commands("ExecStart")
		if err != nil || len(c) != 1 || c[0].Path != "/bin/kubelet" || !slices.Equal(without.DropIns, []string{usr + "kubelet.service.d/99-x.conf"}) {
			t.Errorf("without %s: %v, drop-ins %q, %v", name, c, without.DropIns, err)
		}
	}
	if err := os.Remove(filepath.Join(root, etc, "kubelet.service.d/99-x.conf")); err != nil {
		t.Fatal(err)
	}
	again, err := u.Without("/nothing")
	if err != nil || len(again.DropIns) != 1 || !strings.HasPrefix(again.DropIns[0], usr) {
		t.Errorf("without a file that is not there: %v, %v", again, err)
	}
}

func TestWithAFileIsAsIfItWereThere(t *testing.T) {
	root := tree{usr + "kubelet.service": start, usr + "kubelet.service.d/10.conf": drop + "A=1\n"}.write(t)
	u, err := Load(fsys.Tree(root), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	// The directory does not exist yet.
	ours := etc + "kubelet.service.d/99-nodelocaldns.conf"
	content := "[Service]\nExecStart=\nExecStart=/bin/kubelet --cluster-dns=x\n"
	with, err := u.With(ours, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	c, err := with.Commands("ExecStart")
	if err != nil || len(c) != 1 || len(c[0].Argv) != 2 || c[0].Setting.File != ours || len(with.DropIns) != 2 {
		t.Errorf("commands %v, drop-ins %q, %v", c, with.DropIns, err)
	}
	back, err := with.Without(ours)
	if err != nil || !slices.Equal(back.DropIns, u.DropIns) {
		t.Errorf("and without: %q, %v", back.DropIns, err)
	}
	if c, _ := u.Commands("ExecStart"); len(c[0].Argv) != 1 {
		t.Errorf("the unit itself was changed: %v", c)
	}
	file := filepath.Join(root, ours)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	real, err := Load(fsys.Tree(root), "kubelet.service", Host{})
	if err != nil || !slices.Equal(real.DropIns, with.DropIns) {
		t.Errorf("really there: %q, with %q, %v", real.DropIns, with.DropIns, err)
	}
}

func TestWhatSystemdWarnsOfIsTold(t *testing.T) {
	u, err := Load(fsys.Tree(tree{
		etc + "kubelet.service":          "A=1\n[service]\nB=1\n[Service]\nfoo\nExecStart=/bin/kubelet \\q\n",
		etc + "kubelet.service.d/1.conf": "[Service]\nExecStop=/bin/a 'b\n",
	}.write(t)), "kubelet.service", Host{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range u.Problems {
		got = append(got, p.String())
	}
	want := []string{
		etc + "kubelet.service:1: assignment outside of a section is ignored",
		etc + "kubelet.service:2: unknown section [service] is ignored",
		etc + "kubelet.service:5: line without key and = is ignored",
		etc + `kubelet.service:6: ExecStart: unknown escape sequence in "\\q" is kept`,
		etc + "kubelet.service.d/1.conf:2: ExecStop: unbalanced quote; systemd ignores the rest of the file",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestBadSettingsAreToldWithFileAndLine(t *testing.T) {
	for _, c := range []struct {
		files tree
		want  string
	}{
		{tree{etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": "\n" + start}, etc + "kubelet.service.d/1.conf:3: second ExecStart, after " + etc + "kubelet.service:2, which only Type=oneshot may have"},
		{tree{etc + "kubelet.service": "[Service]\nExecStart=/bin/a 'b\n"}, etc + "kubelet.service:2: ExecStart: unbalanced quote"},
		{tree{etc + "kubelet.service": start, etc + "kubelet.service.d/1.conf": "[Service]\nExecStart=\n"}, etc + "kubelet.service: no ExecStart"},
		{tree{etc + "kubelet.service": "[Service]\nExecStart=$BIN a\n"}, etc + "kubelet.service:2: program is the variable $BIN, which systemd does not replace there"},
		{tree{etc + "kubelet.service": "[Service]\nExecStart=${BIN}/kubelet a\n"}, etc + "kubelet.service:2: ExecStart: program ${BIN}/kubelet is neither a name nor an absolute path"},
		{tree{etc + "kubelet.service": "[Service]\nExecStart=/bin/%b/kubelet \\\n --a\n"}, etc + "kubelet.service:2: program: %b is not known from files"},
		{tree{etc + "kubelet.service": "[Service]\nExecStart=/bin/kubelet %F\n"}, etc + "kubelet.service:2: ExecStart: %F: unknown specifier"},
		{tree{etc + "kubelet.service": "[Service]\nExecStart=/bin/kubelet\n[x\n"}, etc + "kubelet.service:3: section header without ]"},
		{tree{etc + "kubelet.service": "[Service]\nExecStart=/bin/%n\n", etc + "alias.service": "-> kubelet.service"}, etc + "kubelet.service:2: program: %n of a unit with several names is not known from files"},
	} {
		u, err := Load(fsys.Tree(c.files.write(t)), "kubelet.service", Host{})
		if err != nil {
			t.Error(err)
			continue
		}
		var bad *BadSetting
		if _, err := u.Commands("ExecStart"); !errors.As(err, &bad) || err.Error() != c.want {
			t.Errorf("the error is\n%v, want\n%s", err, c.want)
		}
	}
}

// expand is the one ExecStart of a unit with everything replaced.
func expand(t *testing.T, u *Unit) []string {
	t.Helper()
	list, err := u.Commands("ExecStart")
	if err != nil {
		t.Fatal(err)
	}
	env, err := u.Environment()
	if err != nil {
		t.Fatal(err)
	}
	args, err := list[0].Expand(env)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, a := range args {
		texts = append(texts, a.Text)
	}
	return texts
}

package units

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestADropInSaysWhatTheConfigurationDoesAndTheUnitDoesNot(t *testing.T) {
	read := func(name string) string {
		for _, f := range render(t, Settings{}) {
			if f.Name == name {
				return string(f.Content)
			}
		}
		t.Fatal(name)
		return ""
	}
	others := Settings{Listen: addresses("169.254.20.10:53", "[fd00::a]:53"), CacheBytes: 256 << 20, Kubelet: "our-kubelet.service", Config: "/etc/dns.yaml", Stamp: "0123abcd"}
	const header = "# For what the configuration says; nodelocaldns apply keeps it so.\n"
	replace := func(name, old, now string) string {
		text := read(name)
		if !strings.Contains(text, old) {
			t.Fatalf("%s does not say %s", name, old)
		}
		return strings.Replace(text, old, now, 1)
	}
	for _, tt := range []struct {
		name string
		s    Settings
		unit string
		says string // "": what a package installs
		want string
	}{
		{"nothing by default", Settings{}, Socket, "", ""},
		{"nor what is the default", Settings{Listen: addresses("169.254.20.10:53"), CacheBytes: 32 << 20, Kubelet: "kubelet.service"}, Resolver, "", ""},
		{"another configuration, which is read at the start alone", Settings{Stamp: "0123abcd"}, Guard, "", header + `
[Service]
# Started for the configuration 0123abcd.
`},
		{"other addresses, and nothing of the units'", others, Socket, "", header + `
[Socket]
ListenStream=
ListenDatagram=169.254.20.10:53
ListenDatagram=[fd00::a]:53
ListenDatagram=169.254.20.10:53
ListenDatagram=[fd00::a]:53
ListenStream=169.254.20.10:53
ListenStream=[fd00::a]:53
ListenStream=/run/nodelocaldns/control.sock
`},
		{"more memory, and another configuration", others, Resolver, "", header + `
[Service]
# Started for the configuration 0123abcd.
ExecStart=
ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml serve
Environment=GOMEMLIMIT=640MiB
MemoryMax=896M
`},
		{"a configuration that the resolver does not see", Settings{Config: "/opt/dns.yaml"}, Resolver, "", header + `
[Service]
ExecStart=
ExecStart=/usr/bin/nodelocaldns --config /opt/dns.yaml serve
BindReadOnlyPaths=-/opt
`},
		{"another kubelet, which is one more", others, Kubelet, "", header + `
[Unit]
Before=our-kubelet.service

[Service]
ExecStart=
ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml apply --step kubelet --boot
`},
		{"not what depends on nothing", others, Relay, "", ""},
		{"not what the unit says already", Settings{CacheBytes: 256 << 20}, Resolver, replace(Resolver, "MemoryMax=256M\n", "MemoryMax=896M\n"), header + `
[Service]
Environment=GOMEMLIMIT=640MiB
`},
		{"not what somebody has decided and the configuration has not", Settings{Listen: addresses("[fd00::a]:53")}, Resolver,
			replace(Resolver, "ExecStart=/usr/bin/nodelocaldns", "ExecStart=/usr/bin/nice /usr/bin/nodelocaldns"), ""},
		{"over what somebody has decided, where the configuration has too", Settings{CacheBytes: 64 << 20}, Resolver, replace(Resolver, "MemoryMax=256M\n", "MemoryMax=1G\n"), header + `
[Service]
Environment=GOMEMLIMIT=256MiB
MemoryMax=320M
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			says := tt.says
			if says == "" {
				says = read(tt.unit)
			}
			for _, f := range render(t, tt.s) {
				if f.Name != tt.unit {
					continue
				}
				got := f.DropIn([]byte(says))
				if string(got) != tt.want {
					t.Errorf("got:\n%swant:\n%s", got, tt.want)
				}
				if again := f.DropIn(f.Content); again != nil {
					t.Errorf("for the unit that says all of it:\n%s", again)
				}
			}
		})
	}
}

func TestTheLastFileThatSaysSoSaysWhereASocketListens(t *testing.T) {
	unit, dropIn := []byte("[Socket]\nListenStream=a\nListenDatagram=b\n"), []byte("[Socket]\nListenStream=\nListenStream=c\n")
	for _, tt := range []struct {
		files [][]byte
		want  string
	}{
		{nil, ""},
		{[][]byte{unit}, "ListenStream=a\nListenDatagram=b\n"},
		{[][]byte{unit, nil}, "ListenStream=a\nListenDatagram=b\n"},
		{[][]byte{unit, dropIn}, "ListenStream=c\n"},
		{[][]byte{unit, []byte("[Socket]\nBacklog=1\n")}, "ListenStream=a\nListenDatagram=b\n"},
	} {
		if got := Listens(tt.files...); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.files, got, tt.want)
		}
	}
}

// systemd itself has nothing to say about them, and says what they do to a unit.
func TestSystemdTakesTheDropIns(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	put := func(name, text string) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		// The program need not be installed here.
		text = strings.NewReplacer("ExecStart="+RelayProgram, "ExecStart=/bin/true", "ExecStart="+Program, "ExecStart=/bin/true", "ExecReload="+Program, "ExecReload=/bin/true").Replace(text)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dropIns := 0
	for _, f := range render(t, Settings{Listen: addresses("[fd00::a]:5353"), CacheBytes: 256 << 20, Kubelet: "x.service", Config: "/opt/dns.yaml"}) {
		if !f.Unit() {
			continue
		}
		put(f.Name, string(f.Plain))
		args = append(args, filepath.Join(dir, f.Name))
		if text := f.DropIn(f.Plain); text != nil {
			put(filepath.Join(f.Name+".d", DropInName), string(text))
			dropIns++
		}
	}
	out, err := exec.Command(analyze, args...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "nodelocaldns") || dropIns != 5 {
		t.Errorf("%d drop-ins: %v\n%s", dropIns, err, out)
	}
}

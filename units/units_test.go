package units

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func render(t *testing.T, s Settings) []File {
	t.Helper()
	files, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func addresses(list ...string) (out []netip.AddrPort) {
	for _, a := range list {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// What a package installs and what is rendered for a default configuration
// are the same.
func TestTheFilesAreThoseOfADefaultConfiguration(t *testing.T) {
	for _, s := range []Settings{{}, {Listen: addresses("169.254.20.10:53"), CacheBytes: 32 << 20, Kubelet: "k3s.service", Interface: "nodelocaldns0"}} {
		for _, f := range render(t, s) {
			name := f.Name
			if !f.Unit() {
				name = filepath.Join("lib", f.Dir, f.Name)
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if string(f.Content) != string(want) {
				t.Errorf("%s for %+v:\n%s", f.Name, s, f.Content)
			}
		}
	}
}

func TestWhatTheConfigurationSaysIsInTheUnits(t *testing.T) {
	plain := render(t, Settings{})
	var got strings.Builder
	for i, f := range render(t, Settings{
		Listen:     addresses("169.254.20.10:53", "[fd00::a]:53"),
		CacheBytes: 96 << 20,
		Interface:  "dns0",
		Kubelet:    "our-kubelet.service",
		Config:     "/etc/dns.yaml",
		Stamp:      "0123abcd",
	}) {
		if f.Unit() {
			got.WriteString(f.Name + ", started by " + f.WantedBy + "\n")
		} else {
			fmt.Fprintf(&got, "%s/%s, packaged %t, read by %s\n", f.Dir, f.Name, f.Packaged, f.Readers)
		}
		had, now := strings.SplitAfter(string(plain[i].Content), "\n"), strings.SplitAfter(string(f.Content), "\n")
		for _, line := range had {
			if !slices.Contains(now, line) {
				got.WriteString("- " + line)
			}
		}
		for _, line := range now {
			if !slices.Contains(had, line) {
				got.WriteString("+ " + line)
			}
		}
	}
	const want = `nodelocaldns-guard.service, started by multi-user.target
- ExecStart=/usr/bin/nodelocaldns guard
+ Before=our-kubelet.service
+ # Started for the configuration 0123abcd.
+ ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml guard
nodelocaldns.socket, started by sockets.target
+ ListenDatagram=[fd00::a]:53
+ ListenDatagram=[fd00::a]:53
+ ListenStream=[fd00::a]:53
nodelocaldns.service, started by multi-user.target
- ExecStart=/usr/bin/nodelocaldns serve
- Environment=GOMEMLIMIT=192MiB
- MemoryMax=256M
+ # Started for the configuration 0123abcd.
+ ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml serve
+ Environment=GOMEMLIMIT=320MiB
+ MemoryMax=416M
nodelocaldns-relay.service, started by 
nodelocaldns-kubelet.service, started by multi-user.target
- ExecStart=/usr/bin/nodelocaldns apply --step kubelet --boot
+ Before=our-kubelet.service
+ ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml apply --step kubelet --boot
nodelocaldns-resume.service, started by multi-user.target
- ExecStart=/usr/bin/nodelocaldns apply --resume
+ After=our-kubelet.service
+ ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml apply --resume
systemd/network/10-nodelocaldns.network, packaged false, read by [/usr/lib/systemd/systemd-networkd /lib/systemd/systemd-networkd]
- Name=nodelocaldns0
+ Name=dns0
NetworkManager/conf.d/nodelocaldns.conf, packaged false, read by [/usr/sbin/NetworkManager /usr/bin/NetworkManager]
- match-device=interface-name:nodelocaldns0
+ match-device=interface-name:dns0
modules-load.d/nodelocaldns.conf, packaged false, read by []
sysusers.d/nodelocaldns.conf, packaged true, read by []
systemd/system-preset/90-nodelocaldns.preset, packaged true, read by []
`
	if got.String() != want {
		t.Errorf("what differs is\n%swant\n%s", &got, want)
	}
}

// The resolver has a root of its own, with little in it.
func TestTheResolverSeesItsConfigurationWhereverThatIs(t *testing.T) {
	for config, want := range map[string]string{
		"":                              "",
		"/etc/dns.yaml":                 "",
		"/run/dns/dns.yaml":             "BindReadOnlyPaths=-/run/dns\n",
		"/var/lib/rancher/etc/dns.yaml": "BindReadOnlyPaths=-/var/lib/rancher/etc\n",
		"/opt/a:b/dns.yaml":             "BindReadOnlyPaths=-/opt/a\\:b\n",
		"/dns.yaml":                     "BindReadOnlyPaths=-/dns.yaml\n",
	} {
		for _, f := range render(t, Settings{Config: config}) {
			if f.Name != Resolver {
				continue
			}
			var got string
			for line := range strings.Lines(string(f.Content)) {
				if strings.HasPrefix(line, "BindReadOnlyPaths=") && !strings.Contains(string(f.Plain), line) {
					got += line
				}
			}
			if got != want {
				t.Errorf("for %q it sees also %q, want %q", config, got, want)
			}
			if in := string(f.DropIn(f.Plain)); !strings.HasSuffix(in, "serve\n"+want) && config != "" {
				t.Errorf("the drop-in for %q:\n%s", config, in)
			}
		}
	}
}

func TestANameThatSystemdWouldReadOtherwiseIsRefused(t *testing.T) {
	for _, s := range []Settings{{Config: "/etc/a b"}, {Config: "/run/%i"}, {Config: "/var/$x"}, {Kubelet: "a\nb"}, {Interface: "dns*"}} {
		if _, err := Render(s); err == nil {
			t.Errorf("%+v: no error", s)
		}
	}
}

// tool is a program of systemd.
func tool(t *testing.T, name string) string {
	t.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("NODELOCALDNS_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs " + name + " of Debian's package systemd")
	}
	return file
}

// What systemd itself makes of how little the units can do; 10 is everything.
func TestTheUnitsAreExposedToLittle(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	for _, test := range []struct {
		unit    string
		tenths  int
		because string
	}{
		{Resolver, 31, "it must be back at once, and systemd hides things mount by mount"},
		{Relay, 27, "it must be back at once, in the root of the node"},
		{Guard, 32, "it changes the node"},
		{Kubelet, 30, "it changes the kubelet's files"},
		{Resume, 30, "it changes the kubelet's files"},
	} {
		out, err := exec.Command(analyze, "security", "--offline=yes", "--no-pager", fmt.Sprintf("--threshold=%d", test.tenths), test.unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s is to be exposed to at most %d tenths (%s): %v\n%s", test.unit, test.tenths, test.because, err, out)
		}
	}
}

// systemd itself has nothing to say about them.
func TestSystemdTakesTheUnits(t *testing.T) {
	analyze := tool(t, "systemd-analyze")
	for _, s := range []Settings{{}, {Listen: addresses("[fd00::a]:5353"), Kubelet: "x.service", Config: "/etc/dns.yaml", Stamp: "0123abcd"}} {
		dir := t.TempDir()
		args := []string{"verify", "--man=no"}
		for _, f := range render(t, s) {
			if !f.Unit() {
				continue
			}
			// The program need not be installed here.
			text := strings.NewReplacer("ExecStart="+RelayProgram, "ExecStart=/bin/true", "ExecStart="+Program, "ExecStart=/bin/true", "ExecReload="+Program, "ExecReload=/bin/true").Replace(string(f.Content))
			name := filepath.Join(dir, f.Name)
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			args = append(args, name)
		}
		out, err := exec.Command(analyze, args...).CombinedOutput()
		var ours []string
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "nodelocaldns") {
				ours = append(ours, line)
			}
		}
		if err != nil || ours != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// What a package brings besides units is taken by those who read it.
func TestSystemdTakesWhatAPackageBrings(t *testing.T) {
	sysusers, systemctl := tool(t, "systemd-sysusers"), tool(t, "systemctl")
	root := t.TempDir()
	for _, f := range render(t, Settings{}) {
		name := filepath.Join(root, "usr/lib", f.Dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f.Content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // it gives what it writes to root
		if out, err := exec.Command(sysusers, "--root="+root).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if users, err := os.ReadFile(filepath.Join(root, "etc/passwd")); err != nil || !strings.Contains(string(users), "DNS of this node's pods") {
			t.Errorf("the users are %q, %v", users, err)
		}
	}
	for _, f := range render(t, Settings{}) {
		if f.WantedBy == "" {
			continue
		}
		if out, err := exec.Command(systemctl, "--root="+root, "preset", f.Name).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("preset %s: %v\n%s", f.Name, err, out)
		}
		if out, _ := exec.Command(systemctl, "--root="+root, "is-enabled", f.Name).CombinedOutput(); string(out) != "disabled\n" {
			t.Errorf("%s is then %s", f.Name, out)
		}
	}
	// One is enabled, and brings the others.
	if out, err := exec.Command(systemctl, "--root="+root, "enable", Resolver).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	var got strings.Builder
	for _, f := range render(t, Settings{}) {
		if f.Unit() {
			out, _ := exec.Command(systemctl, "--root="+root, "is-enabled", f.Name).CombinedOutput()
			got.WriteString(f.Name + " " + string(out))
		}
	}
	const want = `nodelocaldns-guard.service enabled
nodelocaldns.socket enabled
nodelocaldns.service enabled
nodelocaldns-relay.service static
nodelocaldns-kubelet.service enabled
nodelocaldns-resume.service enabled
`
	if got.String() != want {
		t.Errorf("enabled:\n%swant\n%s", &got, want)
	}
}

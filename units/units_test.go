package units

import (
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
	for _, s := range []Settings{{}, {Listen: addresses("169.254.20.10:53"), CacheBytes: 32 << 20, Kubelet: "k3s.service"}} {
		for _, f := range render(t, s) {
			want, err := os.ReadFile(f.Name)
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
		CacheBytes: 64 << 20,
		Kubelet:    "our-kubelet.service",
		Config:     "/etc/dns.yaml",
		Stamp:      "0123abcd",
	}) {
		got.WriteString(f.Name + ", started by " + f.WantedBy + "\n")
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
+ Environment=GOMEMLIMIT=256MiB
+ MemoryMax=320M
nodelocaldns-relay.service, started by 
nodelocaldns-kubelet.service, started by multi-user.target
- ExecStart=/usr/bin/nodelocaldns apply --step kubelet --boot
+ Before=our-kubelet.service
+ ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml apply --step kubelet --boot
nodelocaldns-resume.service, started by multi-user.target
- ExecStart=/usr/bin/nodelocaldns apply --resume
+ After=our-kubelet.service
+ ExecStart=/usr/bin/nodelocaldns --config /etc/dns.yaml apply --resume
`
	if got.String() != want {
		t.Errorf("what differs is\n%swant\n%s", &got, want)
	}
}

func TestANameThatSystemdWouldReadOtherwiseIsRefused(t *testing.T) {
	for _, s := range []Settings{{Config: "/etc/a b"}, {Config: "/run/%i"}, {Config: "/var/$x"}, {Kubelet: "a\nb"}} {
		if _, err := Render(s); err == nil {
			t.Errorf("%+v: no error", s)
		}
	}
}

// systemd itself has nothing to say about them.
func TestSystemdTakesTheUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("NODELOCALDNS_REQUIRE_ROOT") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs systemd-analyze of Debian's package systemd")
	}
	for _, s := range []Settings{{}, {Listen: addresses("[fd00::a]:5353"), Kubelet: "x.service", Config: "/etc/dns.yaml", Stamp: "0123abcd"}} {
		dir := t.TempDir()
		args := []string{"verify", "--man=no"}
		for _, f := range render(t, s) {
			// The program need not be installed here.
			text := strings.NewReplacer("ExecStart="+RelayProgram, "ExecStart=/bin/true", "ExecStart="+Program, "ExecStart=/bin/true").Replace(string(f.Content))
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

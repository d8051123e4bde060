package unit_test

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodelocaldns/test/judge"
	"nodelocaldns/units"
)

const (
	dns0     = "nodelocaldns0"
	dns0Addr = "169.254.20.10/32"
	catchAll = "/etc/systemd/network/99-all.network"
)

// A real systemd-networkd that has a file for all interfaces takes our address away
// when it is reloaded, and with ours it does not.
func TestNetworkdLetsGoOfOurInterface(t *testing.T) {
	const networkd, bus = "systemd-networkd.service", "dbus.service"
	if os.Geteuid() == 0 { // else there is another reason to skip it
		for _, name := range []string{"dbus-daemon", "networkctl"} {
			if _, err := exec.LookPath(name); err != nil {
				judge.Skip(t, "needs "+name)
			}
		}
	}
	setup := func(t *testing.T, root string) {
		put := func(name, text string) {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		put(catchAll, "[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\n")
		for _, name := range []string{networkd, "systemd-networkd.socket", bus, "dbus.socket"} {
			put("run/systemd/system/"+name+".d/alone.conf", "[Unit]\nDefaultDependencies=no\n")
		}
		put("run/systemd/netif/links/none", "") // the directory
	}
	if !judge.Inside(t, setup, bus) {
		return
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	until := func(what string, is func() bool) {
		t.Helper()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for limit := time.After(time.Minute); !is(); {
			select {
			case <-tick.C:
			case <-limit:
				t.Fatalf("waited in vain: %s\n%s", what, run("ip", "address", "show", "dev", dns0))
			}
		}
	}
	has := func() bool { return strings.Contains(run("ip", "address", "show", "dev", dns0), dns0Addr) }
	admin := func(state string) func() bool {
		index := strings.TrimSpace(run("cat", "/sys/class/net/"+dns0+"/ifindex"))
		return func() bool {
			text, err := os.ReadFile("/run/systemd/netif/links/" + index)
			return err == nil && strings.Contains(string(text), "ADMIN_STATE="+state+"\n")
		}
	}
	reload := func() {
		t.Helper()
		later := time.Now().Add(time.Minute)
		if err := os.Chtimes(catchAll, later, later); err != nil {
			t.Fatal(err)
		}
		run("networkctl", "reload")
	}
	run("systemctl", "--job-mode=ignore-dependencies", "start", networkd)
	run("ip", "link", "add", dns0, "type", "bridge")
	run("ip", "address", "add", dns0Addr, "dev", dns0)
	run("ip", "link", "set", dns0, "up")
	until("networkd manages it", admin("configured"))
	if !has() {
		t.Error("networkd takes the address away before it is reloaded")
	}
	reload()
	until("networkd takes the address away", func() bool { return !has() })

	run("ip", "address", "add", dns0Addr, "dev", dns0)
	files, err := units.Render(units.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Dir == "systemd/network" {
			if err := os.WriteFile(path.Join("/etc", f.Dir, f.Name), f.Content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	run("networkctl", "reload")
	until("networkd lets go of it", admin("unmanaged"))
	if !has() {
		t.Error("networkd has taken the address with it")
	}
	run("systemctl", "--job-mode=ignore-dependencies", "restart", networkd)
	until("networkd has started again", admin("unmanaged"))
	if !has() {
		t.Error("networkd has taken the address away at its start")
	}
}

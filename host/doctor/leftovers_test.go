package doctor_test

import (
	"errors"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/doctor"
	"nodelocaldns/host/hosttest/doctortest"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/test/netns"
)

func TestCommandsRemoveWhatADeadNodeCacheHasLeft(t *testing.T) {
	const comment = `-m comment --comment 'NodeLocal DNS Cache: skip conntrack' -j CT --notrack`
	for _, c := range []struct {
		node string
		want doctor.Removal
		err  string
	}{
		{node: "kubeadm"},
		{node: "daemonset-elsewhere"},
		{node: "daemonset", err: "node-cache (pid 970) of the DaemonSet node-local-dns runs here, and takes away itself what it has made; keep its pod off this node (a nodeAffinity), wait until it has gone, and ask again"},
		{node: "daemonset-killed", want: doctor.Removal{
			Commands: []string{
				"iptables-nft -w 5 -t raw -D OUTPUT -s 169.254.20.10/32 -p tcp -m tcp --sport 53 " + comment,
				"iptables-nft -w 5 -t raw -D PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 " + comment,
			},
			Kept: "the device nodelocaldns alone has 169.254.20.10, which pods may name",
		}},
		{node: "daemonset-uncommented", want: doctor.Removal{Commands: []string{
			"iptables-legacy -w 5 -t raw -D OUTPUT -s 10.96.0.10/32 -p udp -m udp --sport 53 -j CT --notrack",
			"iptables-nft -w 5 -t raw -D PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j NOTRACK",
		}}},
		{node: "daemonset-left", want: doctor.Removal{Commands: []string{
			"iptables-legacy -w 5 -t filter -D INPUT -d 10.96.0.10/32 -p udp -m udp --dport 53 -m comment --comment 'NodeLocal DNS Cache: allow DNS traffic' -j ACCEPT",
			"ip6tables-nft -w 5 -t raw -D OUTPUT -s fd00::20:10/128 -p tcp -m tcp --sport 8080 " + comment,
			"iptables-nft -w 5 -t raw -D PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 " + comment,
			"iptables-nft -w 5 -t raw -D PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 " + comment,
			"ip link del nodelocaldns",
		}}},
	} {
		got, err := doctortest.Load(t, filepath.Join("testdata", c.node+".txtar"), layouts).Leftovers(t.Context())
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", c.node, diff)
		}
		var running *doctor.Running
		text := ""
		if errors.As(err, &running) {
			text = running.Error() + "; " + running.Hint()
		} else if err != nil {
			text = err.Error()
		}
		if text != c.err {
			t.Errorf("%s: error %q, want %q", c.node, text, c.err)
		}
	}
}

// nodeCacheRules are those that node-cache makes for an address, in its order
// (kubernetes/dns, cmd/node-cache/app/cache_app.go).
func nodeCacheRules(addr string) [][]string {
	var all [][]string
	for _, r := range []struct{ place, match, target string }{
		{"raw PREROUTING", "-d ADDR --dport 53", "NOTRACK"},
		{"filter INPUT", "-d ADDR --dport 53", "ACCEPT"},
		{"raw OUTPUT", "-s ADDR --sport 53", "NOTRACK"},
		{"filter OUTPUT", "-s ADDR --sport 53", "ACCEPT"},
		{"raw OUTPUT", "-d ADDR --dport 53", "NOTRACK"},
		{"raw OUTPUT", "-d ADDR --dport 8080", "NOTRACK"},
		{"raw OUTPUT", "-s ADDR --sport 8080", "NOTRACK"},
	} {
		table, chain, _ := strings.Cut(r.place, " ")
		comment := "NodeLocal DNS Cache: skip conntrack"
		if r.target == "ACCEPT" {
			comment = "NodeLocal DNS Cache: allow DNS traffic"
		}
		for _, proto := range []string{"tcp", "udp"} {
			if proto == "udp" && strings.HasSuffix(r.match, "8080") {
				continue // health is asked over TCP
			}
			rule := append([]string{"-t", table, "-I", chain, "-p", proto}, strings.Fields(strings.ReplaceAll(r.match, "ADDR", addr))...)
			all = append(all, append(rule, "-m", "comment", "--comment", comment, "-j", r.target))
		}
	}
	return all
}

// The shell and both real iptables: after the commands the tables are as before,
// what others had put there included.
func TestTheCommandsLeaveTheTablesAsTheyWereBefore(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	counters := regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]`) // and the time
	dump := func() string {
		return counters.ReplaceAllString(netns.Run(t, "sh", "-c", "iptables-nft-save; iptables-legacy-save; ip -o -4 addr"), "")
	}
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		for _, table := range []string{"raw", "filter"} {
			netns.Run(t, program, "-t", table, "-A", "OUTPUT", "-d", "169.254.20.10", "-m", "comment", "--comment", "somebody else's", "-j", "ACCEPT")
		}
	}
	netns.Run(t, "ip", "link", "add", "nodelocaldns0", "type", "bridge")
	netns.Run(t, "ip", "addr", "add", "169.254.20.10/32", "dev", "nodelocaldns0")
	before := dump()

	netns.Run(t, "ip", "link", "add", "nodelocaldns", "type", "bridge")
	for _, addr := range []string{"169.254.20.10", "10.96.0.10"} {
		netns.Run(t, "ip", "addr", "add", addr+"/32", "dev", "nodelocaldns")
		for _, program := range []string{"iptables-nft", "iptables-legacy"} {
			for _, rule := range nodeCacheRules(addr) {
				netns.Run(t, program, rule...)
			}
		}
	}
	e, err := doctor.System(doctor.Want{Addresses: []netip.Addr{netip.MustParseAddr("169.254.20.10")}, Port: 53, Interface: "nodelocaldns0"}, kubelet.Node{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := e.Leftovers(t.Context())
	if err != nil || r.Kept != "" || len(r.Commands) != 2*2*12+1 {
		t.Fatalf("%d commands, kept %q, %v:\n%s", len(r.Commands), r.Kept, err, strings.Join(r.Commands, "\n"))
	}
	sh := exec.Command("sh", "-ex")
	sh.Stdin = strings.NewReader(strings.Join(r.Commands, "\n"))
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if diff := cmp.Diff(before, dump()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"nodelocaldns/test/node"
	"nodelocaldns/test/promises/load"
)

// Two addresses of the resolver, one after the other.
const (
	six      = "fd00:53::a"
	otherSix = "fd00:53::b"
)

// configure writes the configuration with another address.
func (m machine) configure(t *testing.T, address string) {
	t.Helper()
	m.sh(t, 0, "mkdir -p /etc/nodelocaldns && cat >/etc/nodelocaldns/config.yaml <<'end'\n"+
		"listen: {addresses: [169.254.20.10, '"+address+"']}\ncache: {maxBytes: 256MiB}\nkubelet: {settle: 2s}\nend")
}

// ask asks the resolver from the node, at the address, over UDP and TCP, and fails
// the test unless all is answered rightly.
func (m machine) ask(t *testing.T, address string) {
	t.Helper()
	reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA), node.KubeDNS+":53")
	must(t, err)
	for _, proto := range []string{"udp", "tcp"} {
		plan, err := json.Marshal(load.Plan{
			Server: netip.AddrPortFrom(netip.MustParseAddr(address), 53), Proto: proto, Rate: 200, Count: 100, Sockets: 16, Fresh: 20, Names: []load.Name{load.Truth(reply)},
		})
		must(t, err)
		r, err := m.Exec(t.Context(), "sh", "-c", "{ cat <<'end'\n"+string(plan)+"\nend\nsleep 2; } | /opt/load") // which ends with its input
		must(t, err)
		var got load.Result
		if err := json.Unmarshal([]byte(r.Stdout), &got); err != nil {
			t.Fatalf("%v: %s%s", err, r.Stdout, r.Stderr)
		}
		if s := got.Summary(nil); s.Right != 100 {
			t.Errorf("of 100 queries to %s over %s %d were answered rightly: %s", address, proto, s.Right, s.Example)
		}
	}
}

// fitted is what systemd has made of the configuration: where its sockets are, and
// what the resolver has been started with.
func (m machine) fitted(t *testing.T) string {
	t.Helper()
	return m.sh(t, 0, `systemctl show --value --property=Listen nodelocaldns.socket
ss --no-header --udp --tcp --listening --numeric --processes 'sport = :53' | grep '"systemd",pid=1,' | awk '{print "held", $1, $5}' | sort
systemctl show --property=MemoryMax nodelocaldns.service
pid=$(systemctl show --value --property=MainPID nodelocaldns.service)
tr '\0' '\n' </proc/$pid/environ | grep -E '^(GOMEMLIMIT|LISTEN_FDS)='`)
}

// fitted is what that is with so many bytes of memory, and with another address.
func fitted(limit string, most int64, six string) string {
	one := func(at string) (listen, held string) {
		datagram := at + " (Datagram)\n"
		return datagram + datagram, "held udp " + at + "\nheld udp " + at + "\n"
	}
	four, heldFour := one(local + ":53")
	streams, heldStreams, sockets := local+":53 (Stream)\n", "held tcp "+local+":53\n", 4
	if six != "" {
		more, heldSix := one("[" + six + "]:53")
		lines := strings.SplitAfter(four+more, "\n")
		four = lines[0] + lines[2] + lines[1] + lines[3] // by line of the unit
		heldFour += heldSix
		streams += "[" + six + "]:53 (Stream)\n"
		heldStreams += "held tcp [" + six + "]:53\n"
		sockets = 7
	}
	return fmt.Sprintf("%s%s/run/nodelocaldns/control.sock (Stream)\n%s%sMemoryMax=%d\nLISTEN_FDS=%d\nGOMEMLIMIT=%s\n", four, streams, heldStreams, heldFour, most, sockets, limit)
}

// A package's units are for the default configuration: apply fits them to another
// one, and rollback leaves nothing of that.
func TestAPackagesUnitsAreFittedToTheConfiguration(t *testing.T) {
	t.Parallel()
	m := boot(t, "fitted")
	before := m.dump(t)
	m.configure(t, six)
	m.sh(t, 0, "dpkg --force-confold --install /root/older.deb </dev/null")
	m.sh(t, 0, "systemctl enable --now nodelocaldns")
	m.started(t)
	plain := fitted("192MiB", 256<<20, "")
	if got := m.fitted(t); got != plain {
		t.Errorf("before apply systemd has\n%s\nwant\n%s", got, plain)
	}
	m.eventually(t, "nodelocaldns status | grep -q 'kube-dns  10.96.0.10:53'")
	m.ask(t, six) // which the resolver has bound itself

	contains(t, "plan", m.sh(t, 3, "nodelocaldns plan"),
		"the sockets are made anew, for other addresses",
		"nodelocaldns.socket.d/05-nodelocaldns.conf: ListenDatagram=["+six+"]:53",
		"nodelocaldns.service.d/05-nodelocaldns.conf: MemoryMax=896M")
	m.sh(t, 0, "nodelocaldns apply")
	must(t, m.Ready(t.Context()))
	large := fitted("640MiB", 896<<20, six)
	if got := m.fitted(t); got != large {
		t.Errorf("after apply systemd has\n%s\nwant\n%s", got, large)
	}
	m.ask(t, local)
	m.ask(t, six)
	contains(t, "status", m.sh(t, 0, "nodelocaldns status"), "with drop-ins of ours for the configuration")
	m.sh(t, 0, "nodelocaldns plan")

	// Another address, while pods ask at the first one.
	pod := m.runPod(t, "fitted", local+" "+six+" "+node.KubeDNS)
	m.configure(t, otherSix)
	s := m.load(t, 1000, func() { m.sh(t, 0, "nodelocaldns apply --step unit") })
	t.Logf("sockets made anew at %.0f q/s: %d queries, %d lost, %d refused, %d wrong, %d SERVFAIL, slowest %v", s.Rate, s.Sent, s.Lost, s.Refused, s.Wrong, s.Servfail, s.Slowest)
	if s.Wrong+s.Servfail > 0 || s.Lost+s.Refused > 200 {
		t.Errorf("of %d queries while sockets were made anew %d were lost and %d refused: %s", s.Sent, s.Lost, s.Refused, s.Example)
	}
	if got, want := m.fitted(t), strings.ReplaceAll(large, six, otherSix); got != want {
		t.Errorf("after another apply systemd has\n%s\nwant\n%s", got, want)
	}

	m.eventually(t, "ip -o address show dev nodelocaldns0 | grep -q "+otherSix) // guard goes by it too

	must(t, m.cluster.DeletePod(t.Context(), pod))
	m.sh(t, 0, "nodelocaldns rollback")
	m.eventually(t, "! ip link show nodelocaldns0 && ! grep -s unit/nodelocaldns /var/lib/nodelocaldns/journal.json") // once the pod is seen to be gone
	if got := m.fitted(t); got != plain {
		t.Errorf("after rollback systemd has\n%s\nwant\n%s", got, plain)
	}
	m.sh(t, 1, "test -e /etc/systemd/system/nodelocaldns.socket.d || test -e /etc/systemd/system/nodelocaldns.service.d")
	m.sh(t, 0, "dpkg --purge nodelocaldns")
	asBefore(t, "after a purge", before, m.dump(t))
}

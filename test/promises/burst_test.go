package promises

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodelocaldns/test/promises/load"
)

// 200 lookups of both kinds of addresses, at a moment when the resolver has no
// processor: it is stopped until all have been sent. Each may have a socket of its
// own, as with glibc; one channel of c-ares sends all from one, and then they all
// wait in the same socket of ours.
func TestFourHundredQueriesAtOnceFit(t *testing.T) {
	m := alone(t)
	burst := func(from int) (load.Summary, int) {
		t.Helper()
		before := m.drops(t, 53)
		m.kill(t, resolver, "STOP")
		l := m.load(t, load.Plan{Count: 400, Sockets: from, Timeout: time.Second})
		time.Sleep(300 * time.Millisecond)
		m.kill(t, resolver, "CONT")
		return l.wait().Summary(nil), m.drops(t, 53) - before
	}
	many, dropped := burst(200)
	one, droppedOne := burst(1)
	none(t, "dropped, 200 sockets", dropped, many)
	none(t, "not answered rightly, 200 sockets", many.Failed(), many)
	none(t, "dropped, one socket", droppedOne, one)
	none(t, "not answered rightly, one socket", one.Failed(), one)

	// The same on a socket that systemd made as it makes them, and nobody reads.
	must(t, m.Put("/etc/systemd/system/unread.socket", []byte("[Socket]\nListenDatagram="+local+":5353\n"), 0o644))
	must(t, m.Put("/etc/systemd/system/unread.service", []byte("[Service]\nExecStart=/bin/sleep infinity\n"), 0o644))
	m.output(t, "systemctl", "start", "unread.socket")
	m.load(t, load.Plan{Server: netip.MustParseAddrPort(local + ":5353"), Count: 400, Sockets: 1, Timeout: time.Second}).wait()
	unread := m.drops(t, 5353)
	if unread == 0 {
		t.Error("a socket with the kernel's own buffer has dropped none: nothing can be seen here")
	}
	report(t, 40, "400 queries at once from one pod, from 200 sockets and from one, resolver stopped meanwhile", "0 dropped", []load.Summary{many, one},
		"%d and %d dropped; %d by a socket with the kernel's default buffer", dropped, droppedOne, unread)
}

// drops counts the packets that found the UDP sockets at a port of our address full.
func (m *machine) drops(t *testing.T, port int) int {
	t.Helper()
	sum, sockets := 0, 0
	for line := range strings.Lines(m.output(t, "cat", "/proc/net/udp")) {
		f := strings.Fields(line)
		if f[1] != fmt.Sprintf("0A14FEA9:%04X", port) { // 169.254.20.10 in the order of little-endian machines
			continue
		}
		n, err := strconv.Atoi(f[len(f)-1])
		must(t, err)
		sum += n
		sockets++
	}
	if sockets == 0 {
		t.Fatal("there is no UDP socket at " + local)
	}
	return sum
}

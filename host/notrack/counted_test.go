package notrack

import (
	"net/netip"
	"strings"
	"testing"
)

// As iptables 1.8 prints them, of both back-ends.
const countedRules = `-N NODELOCALDNS
-A NODELOCALDNS -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment nodelocaldns -c 4 260 -j CT --notrack
-A NODELOCALDNS -s 169.254.20.10/32 -p udp -m udp --sport 53 -m comment --comment nodelocaldns -c 1000 90000 -j CT --notrack
-A NODELOCALDNS -d 169.254.20.10/32 -p tcp -m tcp --dport 53 -m comment --comment "nodelocaldns -c" -c 30 1800 -j NOTRACK
-A NODELOCALDNS -d 169.254.20.11/32 -p udp -m udp --dport 53 -c 500 1800 -j NOTRACK
-A NODELOCALDNS -d 169.254.20.10/32 -c`

func TestOnlyRequestsToOurAddressesAreCounted(t *testing.T) {
	var n Packets
	n.add([]netip.Addr{netip.MustParseAddr("169.254.20.10")}, strings.Split(countedRules, "\n"))
	if want := (Packets{UDP: 4, TCP: 30}); n != want {
		t.Errorf("counted %+v, want %+v", n, want)
	}
}

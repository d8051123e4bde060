package notrack

import (
	"net/netip"
	"slices"
	"strconv"
)

// Packets are how many there were over each protocol.
type Packets struct{ UDP, TCP uint64 }

// Counted is how many packets to addrs our rules on this node have left
// untracked so far: requests, not replies. Where there are no rules of ours,
// there are none. It lists rules and writes nothing.
func Counted(b Backend, addrs []netip.Addr) (Packets, error) {
	var n Packets
	for _, v6 := range []bool{false, true} {
		var to []netip.Addr
		for _, a := range addrs {
			if a.Is6() == v6 {
				to = append(to, a)
			}
		}
		if len(to) == 0 {
			continue
		}
		p, err := system(b, v6)
		if err != nil {
			return n, err
		}
		chains, err := p.Chains("raw")
		if err != nil {
			return n, err
		} else if !slices.Contains(chains, Chain) {
			continue
		}
		lines, err := p.ipt.ListWithCounters("raw", Chain)
		if err != nil {
			return n, classify(err)
		}
		n.add(to, lines)
	}
	return n, nil
}

// add counts what the rules for packets to addrs have seen, in lines as iptables
// -v -S prints them: "-d 192.0.2.1/32 -p udp … -c PACKETS BYTES …".
func (n *Packets) add(addrs []netip.Addr, lines []string) {
	for _, line := range lines {
		w := Words(line)
		after := func(flag string) string {
			if i := slices.Index(w, flag); i >= 0 && i+1 < len(w) {
				return w[i+1]
			}
			return ""
		}
		to, err := netip.ParsePrefix(after("-d"))
		if err != nil || !slices.Contains(addrs, to.Addr()) {
			continue
		}
		packets, err := strconv.ParseUint(after("-c"), 10, 64)
		if err != nil {
			continue
		}
		switch after("-p") {
		case "udp":
			n.UDP += packets
		case "tcp":
			n.TCP += packets
		}
	}
}

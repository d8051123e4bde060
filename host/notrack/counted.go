package notrack

import (
	"net/netip"
	"slices"
	"strconv"
)

// Counted is how many packets to addrs our rules on this node have left
// untracked so far. Where there are none of ours, it is 0. It lists rules and
// writes nothing.
func Counted(b Backend, addrs []netip.Addr) (uint64, error) {
	var n uint64
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
			return 0, err
		}
		chains, err := p.Chains("raw")
		if err != nil {
			return 0, err
		} else if !slices.Contains(chains, Chain) {
			continue
		}
		lines, err := p.ipt.ListWithCounters("raw", Chain)
		if err != nil {
			return 0, classify(err)
		}
		n += countTo(to, lines)
	}
	return n, nil
}

// countTo adds up what the rules for packets to addrs have counted, in lines
// as iptables -v -S prints them: "-d 192.0.2.1/32 … -c PACKETS BYTES …".
func countTo(addrs []netip.Addr, lines []string) uint64 {
	var n uint64
	for _, line := range lines {
		w := Words(line)
		d, c := slices.Index(w, "-d"), slices.Index(w, "-c")
		if d < 0 || c < 0 || d+1 >= len(w) || c+1 >= len(w) {
			continue
		}
		to, err := netip.ParsePrefix(w[d+1])
		if err != nil || !slices.Contains(addrs, to.Addr()) {
			continue
		}
		if packets, err := strconv.ParseUint(w[c+1], 10, 64); err == nil {
			n += packets
		}
	}
	return n
}

package upstream

import (
	"bufio"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// dnsPort is where nameservers of a resolv.conf listen.
const dnsPort = 53

// ParseResolvConf returns the nameservers of a resolv.conf(5), in order and
// once each, without loopback addresses: those are a stub resolver on this
// machine that may well ask us. Lines that say something else, or nothing that
// makes sense, are passed over as libc does.
func ParseResolvConf(r io.Reader) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || a.IsUnspecified() {
			continue
		}
		a = a.Unmap()
		s := netip.AddrPortFrom(a, dnsPort)
		if !a.IsLoopback() && !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	return servers, sc.Err()
}

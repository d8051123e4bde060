package bench

import (
	"net/netip"
	"slices"
)

// cgnat is the shared address space of RFC 6598, which clouds give to nodes and
// pods, too.
var cgnat = netip.MustParsePrefix("100.64.0.0/10")

// Public says whether addr may be somebody else's server: it is neither loopback
// nor link-local nor of a private network (RFC 1918, RFC 4193, RFC 6598) nor own,
// an address of this node.
func Public(addr netip.Addr, own []netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return !(addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsPrivate() || cgnat.Contains(addr) || slices.Contains(own, addr))
}

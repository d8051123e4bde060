// Package host changes this node and changes it back.
package host

import (
	"net/netip"

	"nodelocaldns/host/link"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/sysctl"
)

// Config is what the runtime plan is built from, typed.
type Config struct {
	Interface string       // name of our device, at most 15 bytes
	LinkType  link.Type    // what kind of device holds the addresses
	Addresses []netip.Addr // each becomes a /32 or /128
	Port      uint16       // the DNS port the NOTRACK rules match
	Notrack   bool         // whether NOTRACK rules are wanted
	Backend   notrack.Backend
	Sysctls   []sysctl.Param // in the order they are applied
}

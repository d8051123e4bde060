// Package link holds the node's link-local addresses on a device of ours.
package link

// Type is the kind of device that holds the addresses.
type Type string

// The kinds of device, as the configuration spells them.
const (
	Auto   Type = "auto"   // dummy, else a bridge without ports, else addresses on lo
	Dummy  Type = "dummy"  // a dummy device
	Bridge Type = "bridge" // a bridge without ports
	Lo     Type = "lo"     // addresses on lo, no device of our own
)

// Package notrack keeps DNS packets to our addresses out of conntrack.
package notrack

// Backend says which iptables program writes the rules.
type Backend string

// The back-ends, as the configuration spells them.
const (
	Auto   Backend = "auto"   // the one the host uses
	Legacy Backend = "legacy" // iptables-legacy
	NFT    Backend = "nft"    // iptables-nft
)

// Package sysctl sets kernel parameters and sets them back.
package sysctl

// Policy says which values of a parameter are as wanted.
type Policy string

// The policies, as the configuration spells them.
const (
	Floor   Policy = "floor"   // raise, never lower
	Ceiling Policy = "ceiling" // lower, never raise
	Exact   Policy = "exact"   // set whatever it was
)

// A Param is one wanted kernel parameter.
type Param struct {
	Key    string // dotted, such as net.netfilter.nf_conntrack_max
	Value  uint64
	Policy Policy
}

// Fits says whether the value now is as wanted.
func (p Param) Fits(now uint64) bool {
	switch p.Policy {
	case Floor:
		return now >= p.Value
	case Ceiling:
		return now <= p.Value
	}
	return now == p.Value
}

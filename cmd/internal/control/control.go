// Package control is what resolver and relay, the program that stands in for it,
// must say alike: at the control socket, and to those who scrape.
package control

import (
	"net/netip"
	"time"

	"nodelocaldns/cmd/internal/buildinfo"
)

// Reply is the relay's answer to GET /status. It reads as a resolver's that does
// not run: who does not know of relays says that much.
type Reply struct {
	Running bool   `json:"running"` // the resolver: never
	Why     string `json:"why"`
	Relay   Relay  `json:"relay"`
}

// Relay is what a relay says about itself.
type Relay struct {
	PID       int               `json:"pid"`
	Version   buildinfo.Version `json:"version"`
	Since     time.Time         `json:"since"`
	Servers   []netip.AddrPort  `json:"servers"` // kube-dns; empty: not known, so that all queries get SERVFAIL
	Source    string            `json:"source"`  // what told Servers, in words
	Queries   uint64            `json:"queries"`
	ServFails uint64            `json:"servfails"` // queries that it answered SERVFAIL by itself
}

// Why is the relay's word for why the resolver does not answer.
const Why = "the relay answers in its place"

// Active is the gauge that both export, so that it is never absent: 1 where the
// relay serves it, 0 where the resolver does.
const (
	Active     = "nodelocaldns_relay_active"
	ActiveHelp = "Whether the relay answers in the resolver's place (1), without a cache."
)

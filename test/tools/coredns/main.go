// The program coredns is CoreDNS with the plugins that a node-local cache may
// have.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "nodelocaldns/test/tools/coredns/plugins"
)

func main() { coremain.Run() }

// The program coredns is CoreDNS with the plugins of a forwarder that caches, and
// no others.
package main

import (
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"

	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }

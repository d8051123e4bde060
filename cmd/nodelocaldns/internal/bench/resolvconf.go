package bench

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A Resolver is how names are looked up: what resolv.conf(5) sets.
type Resolver struct {
	Servers  []netip.AddrPort
	Search   []string      // domains; "." is the root
	Ndots    int           // as many dots in a name have it asked for as it is before the search
	Timeout  time.Duration // how long the first server is waited for
	Attempts int           // how often all servers are gone through
	Order    Order         // of the types of one name
	Rotate   bool          // each question begins with the next server
	EDNS     bool          // queries have an OPT record
	TCP      bool          // queries go over TCP
}

// An Order is when the types of one name are asked for.
type Order uint8

// The orders. From one to the next glibc goes by itself, for a lookup, where a
// server has replied to one of two queries alone.
const (
	Together Order = iota
	InTurn         // each after the reply to the one before: single-request
	Apart          // and from another port: single-request-reopen
)

// The limits of resolv.conf(5), as glibc has them in resolv.h.
const (
	MaxServers  = 3                // MAXNS
	MaxNdots    = 15               // RES_MAXNDOTS
	MaxTimeout  = 30 * time.Second // RES_MAXRETRANS
	MaxAttempts = 5                // RES_MAXRETRY
)

// DNSPort is where the servers of a resolv.conf listen.
const DNSPort = 53

// Defaults is the Resolver of an empty resolv.conf, without servers and search.
func Defaults() Resolver {
	return Resolver{Ndots: 1, Timeout: 5 * time.Second, Attempts: 2}
}

// ParseResolvConf reads a resolv.conf as glibc does: what makes no sense, and
// what has no part in asking, is passed over; without a server it is the one of
// this machine, and without a search list the domain of hostname.
func ParseResolvConf(r io.Reader, hostname string) (Resolver, error) {
	conf := Defaults()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		// A keyword begins its line, and a blank ends it.
		end := strings.IndexAny(line, " \t")
		if end < 0 {
			continue
		}
		values := strings.Fields(line[end:])
		if len(values) == 0 {
			continue
		}
		switch line[:end] {
		case "nameserver":
			addr, err := netip.ParseAddr(values[0])
			if err != nil || len(conf.Servers) == MaxServers {
				continue
			}
			switch addr { // the kernel takes these for this machine
			case netip.IPv4Unspecified():
				addr = loopback
			case netip.IPv6Unspecified():
				addr = netip.IPv6Loopback()
			}
			conf.Servers = append(conf.Servers, netip.AddrPortFrom(addr.Unmap(), DNSPort))
		case "domain":
			conf.Search = values[:1]
		case "search":
			conf.Search = values
		case "options":
			for _, o := range values {
				conf.option(o)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return Resolver{}, fmt.Errorf("reading lines: %w", err)
	}
	if len(conf.Servers) == 0 {
		conf.Servers = []netip.AddrPort{netip.AddrPortFrom(loopback, DNSPort)}
	}
	if _, domain, _ := strings.Cut(hostname, "."); conf.Search == nil && domain != "" {
		conf.Search = []string{domain}
	}
	return conf, nil
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (r *Resolver) option(o string) {
	key, value, _ := strings.Cut(o, ":")
	n, err := strconv.Atoi(value)
	number := err == nil && n >= 0
	switch {
	case key == "ndots" && number:
		r.Ndots = min(n, MaxNdots)
	case key == "timeout" && number:
		r.Timeout = min(max(time.Duration(n)*time.Second, time.Second), MaxTimeout)
	case key == "attempts" && number:
		r.Attempts = min(max(n, 1), MaxAttempts)
	case o == "single-request":
		r.Order = max(r.Order, InTurn)
	case o == "single-request-reopen":
		r.Order = Apart
	case o == "rotate":
		r.Rotate = true
	case o == "edns0":
		r.EDNS = true
	case o == "use-vc":
		r.TCP = true
	}
}

// wait is how long the server of that index is waited for. With more than one,
// glibc waits longer for a later one (res_send.c: retrans << ns, over their
// number).
func (r *Resolver) wait(server int) time.Duration {
	if server == 0 {
		return r.Timeout
	}
	d := r.Timeout << server / time.Duration(len(r.Servers))
	if r.Timeout%time.Second == 0 { // glibc counts in whole seconds, one at least
		d = max(d.Truncate(time.Second), time.Second)
	}
	return d
}

package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dnsPort looks at who listens where we answer.
func (e *Env) dnsPort(context.Context) []Result {
	sockets, err := e.Sockets(e.Want.Port)
	if err != nil {
		return unseen(err)
	}
	var out []Result
	var mine []string
	for _, a := range e.Want.Addresses {
		serving := ""
		var others []Socket
		for _, s := range sockets {
			if !s.takes(a) {
				continue
			}
			if h := e.holder(s); ours(h) && !s.Wildcard() {
				serving = h
			} else {
				others = append(others, s)
			}
		}
		if serving != "" {
			mine = append(mine, fmt.Sprintf("%s listens on %s", serving, netip.AddrPortFrom(a, e.Want.Port)))
		}
		out = append(out, e.inTheWay(others, a, serving != "")...)
	}
	if len(mine) > 0 {
		return orOK(out, "%s", strings.Join(mine, ", "))
	}
	return orOK(out, "nobody else listens on port %d of %s", e.Want.Port, named(e.Want.Addresses))
}

// inTheWay is about sockets of others that take what is sent to a.
func (e *Env) inTheWay(sockets []Socket, a netip.Addr, serving bool) []Result {
	var out []Result
	held := e.byHolder(sockets)
	for _, who := range sorted(held) {
		where := describe(held[who])
		switch {
		case who == "" && serving:
		case who == "":
			out = append(out, info("run doctor as root to see who it is", "somebody listens on %s", where)...)
		case serving:
			out = append(out, warning("have it listen on its own addresses alone: which of the two gets a query is left to the kernel, and after a restart we may not get the port",
				"%s listens on %s, as we do", who, where)...)
		case strings.HasPrefix(who, "node-cache ") || strings.HasPrefix(who, "coredns "):
			out = append(out, warning("both can listen at once if both sockets were made by root; take the other cache off this node when we answer",
				"%s listens on %s", who, where)...)
		case a.Is4() && !slices.ContainsFunc(held[who], func(s Socket) bool { return s.Local.Addr().Is4() }):
			out = append(out, warning("have it listen on its own addresses alone, or on IPv6 only",
				"%s listens on %s, which may take IPv4 too: then the resolver cannot have port %d of %s", who, where, e.Want.Port, a)...)
		default:
			out = append(out, failure("have it listen on its own addresses alone (dnsmasq: bind-interfaces, named: listen-on, unbound: interface), or stop it",
				"%s listens on %s: the resolver cannot have port %d of %s", who, where, e.Want.Port, a)...)
		}
	}
	return out
}

// byHolder are the sockets of each process, of "" where it was not seen.
func (e *Env) byHolder(sockets []Socket) map[string][]Socket {
	all := map[string][]Socket{}
	for _, s := range sockets {
		who := e.holder(s)
		all[who] = append(all[who], s)
	}
	return all
}

// describe is where sockets are, for a person.
func describe(sockets []Socket) string {
	var out []string
	for _, s := range sockets {
		if at := strings.ToUpper(s.Proto) + " " + s.Local.String(); !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return strings.Join(out, ", ")
}

// httpPorts looks at who has the ports of metrics and health. The resolver
// answers without them.
func (e *Env) httpPorts(context.Context) []Result {
	var out []Result
	var free []string
	for _, want := range e.Want.Endpoints {
		addr := want.Addr.Addr()
		if !addr.IsValid() {
			addr = netip.IPv6Unspecified()
		}
		all, err := e.Sockets(want.Addr.Port())
		if err != nil {
			return unseen(err)
		}
		var others []Socket
		for _, s := range all {
			if s.Proto == "tcp" && s.takes(addr) && !ours(e.holder(s)) {
				others = append(others, s)
			}
		}
		held := e.byHolder(others)
		if len(held) == 0 {
			free = append(free, fmt.Sprintf("%d (%s)", want.Addr.Port(), want.Key))
		}
		for _, who := range sorted(held) {
			if who == "" {
				out = append(out, info("run doctor as root to see who it is", "somebody listens on %s, which is %s", describe(held[who]), want.Key)...)
				continue
			}
			out = append(out, warning("set another "+want.Key+", or let us have the port; DNS is answered all the same",
				"%s listens on %s: %s is not served", who, describe(held[who]), want.Key)...)
		}
	}
	if len(e.Want.Endpoints) == 0 {
		return nil
	}
	return orOK(out, "no other listens on %s", strings.Join(free, " and "))
}

// receiveBuffer is what the resolver asks for: 200 lookups at once overflow the
// kernel's default of 208 KiB, and each datagram that is dropped is a pod that
// waits for five seconds.
const receiveBuffer = 8 << 20

// sockets looks at the receive buffers of the resolver.
func (e *Env) sockets(ctx context.Context) []Result {
	all, err := e.Sockets(e.Want.Port)
	if err != nil {
		return unseen(err)
	}
	var drops uint64
	n := 0
	for _, s := range all {
		if s.Proto == "udp" && slices.Contains(e.Want.Addresses, s.Local.Addr()) {
			drops, n = drops+s.Drops, n+1
		}
	}
	if n == 0 {
		return nil
	}
	var out []Result
	if drops > 0 {
		out = warning("nodelocaldns status shows the load; is the CPU of this node used up, or net.core.rmem_max below 8388608?",
			"%d queries were dropped because a socket was full: each is a pod that waits for seconds", drops)
	}
	if most := e.sys("net.core.rmem_max"); e.smallBuffer(ctx, most) {
		out = append(out, warning("net.core.rmem_max=8388608, or start it by its socket unit, or give it CAP_NET_ADMIN",
			"the receive buffer of the resolver may be small: net.core.rmem_max is %s", most)...)
	}
	return orOK(out, "%s, nothing was dropped", plural(n, "UDP socket"))
}

// Held says whether systemd holds the sockets of the resolver: it has made them
// with the buffer that was asked for, and starts the resolver with the first
// query.
func (e *Env) Held(ctx context.Context) bool {
	if e.Systemd == nil {
		return false
	}
	u, err := e.Systemd.Unit(ctx, "nodelocaldns.socket")
	return err == nil && u.Active == "active"
}

// smallBuffer says whether the resolver could not have the buffer it asks for:
// it made its sockets itself, without the right to exceed what the node allows.
func (e *Env) smallBuffer(ctx context.Context, most string) bool {
	if n, err := strconv.ParseUint(most, 10, 64); err != nil || n >= receiveBuffer {
		return false
	}
	if e.Held(ctx) {
		return false
	}
	all, _ := e.processList()
	for _, p := range all {
		if !p.is("nodelocaldns") || !p.has("serve") {
			continue
		}
		status, err := e.Tree.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			caps, found := strings.CutPrefix(line, "CapEff:")
			set, err := strconv.ParseUint(strings.TrimSpace(caps), 16, 64)
			if found && err == nil && set&(1<<unix.CAP_NET_ADMIN) == 0 {
				return true
			}
		}
	}
	return false
}

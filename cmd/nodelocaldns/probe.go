package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// What a probe can find wrong with one of our addresses.
var (
	errAbsent = errors.New("not on this node")
	errSilent = errors.New("no answer")
)

// probeTry bounds one question of a probe. It never leaves the node, so only
// a hung process or a full receive buffer takes longer.
const probeTry = 300 * time.Millisecond

// probeTries is how often a probe asks before it calls an address silent: one
// datagram lost to a full buffer is no hang.
const probeTries = 3

// A prober asks the resolver through its own UDP sockets. It is safe for
// concurrent use.
type prober struct {
	addrs []netip.AddrPort
}

func (p *prober) String() string {
	return addressWords(p.addrs)
}

// ask returns nil when every address answers. Otherwise the error says which
// does not, and is errSilent if at least one is on the node and does not
// answer, else errAbsent.
func (p *prober) ask(ctx context.Context) error {
	var absent error
	for _, a := range p.addrs {
		switch err := askSelf(ctx, a); {
		case errors.Is(err, errAbsent):
			absent = err
		case err != nil:
			return err
		}
	}
	return absent
}

// touch asks every address once over UDP and once over TCP, so that there is
// something to read in a socket of each. It takes no longer than probeTry, and
// nothing comes of the answers.
func (p *prober) touch(ctx context.Context) {
	var all sync.WaitGroup
	for _, a := range p.addrs {
		all.Go(func() { _ = askOnce(ctx, "udp", a) })
		all.Go(func() { _ = askOnce(ctx, "tcp", a) })
	}
	all.Wait()
}

func askSelf(ctx context.Context, addr netip.AddrPort) error {
	var err error
	for range probeTries {
		if err = askOnce(ctx, "udp", addr); err == nil {
			return nil
		}
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("%s: %w", addr.Addr(), errAbsent)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("%s: %w (%w)", addr, errSilent, err)
}

// askOnce asks addr for a name of class CH, which the resolver refuses by
// itself: no upstream and no cache has a part in it.
func askOnce(ctx context.Context, network string, addr netip.AddrPort) error {
	q := new(dns.Msg)
	q.SetQuestion("id.server.", dns.TypeTXT)
	q.Question[0].Qclass = dns.ClassCHAOS
	// From the address to itself: nothing of it is routed, and where the address is
	// not on the node the kernel says so instead of sending the question to somebody
	// else.
	d := &net.Dialer{Timeout: probeTry, LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr.Addr(), 0))}
	if network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr.Addr(), 0))
	}
	c := dns.Client{Net: network, Timeout: probeTry, Dialer: d}
	_, _, err := c.ExchangeContext(ctx, q, addr.String())
	return err
}

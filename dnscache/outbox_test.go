package dnscache

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// More clients than one call sends to, of two sockets, wait for one name and another
// one, whose replies upstream sends at once: all of them are told, when the round is over.
func TestClientsOfOneRoundAreToldAtItsEnd(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(at, func(t *testing.T) {
			s, one, to := newReader(t, at)
			_, two, other := newReader(t, at)
			var clients []net.Conn
			var flights []*flight
			for i := range 2 {
				pkt := packet(t, fmt.Sprintf("web%d.ns.svc.cluster.local.", i), "A")
				var q question
				q.read(pkt)
				s.flights.mu.Lock()
				fl := s.begin(s.state.Load(), s.state.Load().routes.find(q.query.Name()), q.key, nil, s.now())
				flights = append(flights, fl)
				for n := range batchSize {
					r, to := one, to
					if n%4 == 0 {
						r, to = two, other
					}
					c := dial(t, "udp", to)
					clients = append(clients, c)
					query := q.query.Clone()
					query.ID = uint16(len(clients))
					addr := c.LocalAddr().(*net.UDPAddr).AddrPort()
					fl.waiters = append(fl.waiters, waiter{query: query, peer: packetPeer{r.packetSocket, addr}})
				}
				s.flights.mu.Unlock()
			}
			var round upstream.Round
			for _, fl := range flights {
				s.land(fl, cache.NewFailure(fl.key, wire.ServFail, wire.EDENetworkError, fl.route.zone, s.now()), usable, &round)
			}
			left := round.Left.(*outbox)
			if left.landed != len(flights) || left.n == 0 {
				t.Errorf("%d flights wait for the end of the round, with %d replies", left.landed, left.n)
			}
			left.Send()
			s.flights.waiting.Wait()
			for i, c := range clients {
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
				buf := make([]byte, 512)
				n, err := c.Read(buf)
				if err != nil || n < wire.HeaderLen || binary.BigEndian.Uint16(buf) != uint16(i+1) {
					t.Fatalf("client %d: %x, %v", i, buf[:n], err)
				}
			}
			for _, fl := range flights {
				s.flights.ended(fl, false)
			}
		})
	}
}

func TestAnAddressIsPutAsTheKernelHasIt(t *testing.T) {
	b := newBatch()
	for _, a := range []string{"192.0.2.1:53", "[2001:db8::1]:65535", "[fe80::1%3]:1"} {
		want := netip.MustParseAddrPort(a)
		putSockaddr(&b.from[0], want)
		if got := b.sender(0); got != want {
			t.Errorf("%v; want %v", got, want)
		}
	}
}

package upstream

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"nodelocaldns/dnscache/wire"
)

// UDP asks a server over UDP, each question from a socket of its own, so that
// the kernel picks a random port for it (RFC 5452 9.2) and drops what does not
// come from the server. A port unreachable that comes back is an error at once.
type UDP struct {
	Server netip.AddrPort
}

// udpReplyRoom is more than a server may send us (wire.MaxUDP), for those that
// do not look at what we offer.
const udpReplyRoom = 4096

var udpBuffers = sync.Pool{New: func() any { return new([udpReplyRoom]byte) }}

// Exchange implements [Exchanger]. A datagram that is no reply to query is
// passed over. The reply may be truncated.
func (u *UDP) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.Server))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	msg := make([]byte, len(query))
	copy(msg, query)
	binary.BigEndian.PutUint16(msg, randomID())
	if _, err := conn.Write(msg); err != nil {
		return nil, orContext(ctx, err)
	}
	room := udpBuffers.Get().(*[udpReplyRoom]byte)
	defer udpBuffers.Put(room)
	for {
		n, err := conn.Read(room[:])
		if err != nil {
			return nil, orContext(ctx, err)
		}
		if wire.CheckReply(msg, room[:n]) == nil {
			return append(buf, room[:n]...), nil
		}
	}
}

// randomID comes from ChaCha8 seeded by the kernel: ids cannot be guessed from
// those seen before (RFC 5452 9.2).
func randomID() uint16 { return uint16(rand.Uint32()) }

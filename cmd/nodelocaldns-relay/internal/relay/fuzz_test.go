package relay

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/wire"
)

// A wireTap is a server that answers each query with the same bytes, behind the
// query's id, and the client that is told.
type wireTap struct {
	asked chan []byte
	reply []byte
	told  chan []byte
}

func (w *wireTap) dial(netip.AddrPort) (net.Conn, error) {
	return &tapped{w, make(chan []byte, 1), make(chan struct{})}, nil
}

type tapped struct {
	*wireTap
	replies chan []byte
	over    chan struct{}
}

func (c *tapped) Write(b []byte) (int, error) {
	c.asked <- bytes.Clone(b)
	if c.reply != nil {
		reply := bytes.Clone(c.reply)
		copy(reply, b[:2])
		c.replies <- reply
	} else {
		close(c.over)
	}
	return len(b), nil
}

func (c *tapped) Read(b []byte) (int, error) {
	select {
	case r := <-c.replies:
		defer close(c.over)
		return copy(b, r), nil
	case <-c.over:
		return 0, os.ErrDeadlineExceeded
	}
}

func (c *tapped) Close() error                     { return nil }
func (c *tapped) LocalAddr() net.Addr              { return nil }
func (c *tapped) RemoteAddr() net.Addr             { return nil }
func (c *tapped) SetDeadline(time.Time) error      { return nil }
func (c *tapped) SetReadDeadline(time.Time) error  { return nil }
func (c *tapped) SetWriteDeadline(time.Time) error { return nil }

func (w *wireTap) ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error) {
	return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
}

func (w *wireTap) WriteToUDPAddrPort(b []byte, _ netip.AddrPort) (int, error) {
	w.told <- bytes.Clone(b)
	return len(b), nil
}
func (w *wireTap) SetReadDeadline(time.Time) error { return nil }
func (w *wireTap) LocalAddr() net.Addr             { return net.UDPAddrFromAddrPort(ourAddr) }
func (w *wireTap) Close() error                    { return nil }

// Whatever a client sends and whatever is sent back to it: the server is sent the
// client's bytes but for the id, and the client hears at most once, a message with
// its id and, where it asked one, its question.
func FuzzConversation(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("a.b.", dns.TypeA)
	plain, _ := q.Pack()
	q.SetEdns0(1232, true)
	edns, _ := q.Pack()
	a := new(dns.Msg)
	a.SetReply(q)
	good, _ := a.Pack()
	for _, query := range [][]byte{nil, plain, edns, plain[:len(plain)-1], good} {
		for _, reply := range [][]byte{nil, good, plain, good[:wire.HeaderLen], bytes.Repeat(good, 300), {0, 0, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0}} {
			f.Add(query, reply)
		}
	}
	f.Fuzz(func(t *testing.T, query, reply []byte) {
		if len(query) > maxQuery {
			return
		}
		w := &wireTap{asked: make(chan []byte, 4), told: make(chan []byte, 4), reply: reply}
		if len(reply) < 2 {
			w.reply = nil
		}
		r := New(Deps{
			Log: slog.New(slog.DiscardHandler), Packets: []PacketConn{w},
			Dial: w.dial, Exchanger: func(netip.AddrPort) Exchanger { return noTCP{} }, Random: rand.Uint32,
		})
		r.Ask([]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")})
		sent := bytes.Clone(query)
		told := r.packet(w, addressOf(1), query, nil)
		if !bytes.Equal(query, sent) {
			t.Fatal("the packet was changed")
		}
		r.inFlight.Wait()
		r.stop()
		r.ports.Wait()
		close(w.asked)
		close(w.told)
		for asked := range w.asked {
			if !bytes.Equal(asked[2:], query[2:]) {
				t.Fatalf("asked %x for %x", asked, query)
			}
		}
		heard := 0
		for b := range w.told {
			told = b
			heard++
		}
		if heard > 1 {
			t.Fatalf("told %d times", heard)
		}
		if told == nil {
			return
		}
		var p wire.Query
		verdict := wire.ParseQuery(query, &p)
		if len(told) < wire.HeaderLen || binary.BigEndian.Uint16(told) != p.ID || wire.Flags(told)&wire.FlagQR == 0 {
			t.Fatalf("told %x for %x", told, query)
		}
		if verdict == wire.Answer && (told[5] != 1 || wire.CheckReply(query, told) != nil) {
			t.Fatalf("told %x for %x, which it does not answer", told, query)
		}
	})
}

// noTCP is for a relay that nobody asks over TCP.
type noTCP struct{ Exchanger }

func (noTCP) Close() error { return nil }

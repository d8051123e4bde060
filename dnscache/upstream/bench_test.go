package upstream

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// benchReply answers a query with its own question and one address.
func benchReply(dst, q []byte) []byte {
	dst = append(dst, q[0], q[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0)
	end := 12
	for q[end] != 0 {
		end += int(q[end]) + 1
	}
	dst = append(dst, q[12:end+5]...)
	return append(dst, 0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1)
}

func BenchmarkExchangeOverTCP(b *testing.B) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				for q := frame(c); q != nil; q = frame(c) {
					_, _ = c.Write(framed(benchReply(nil, q)))
				}
			}()
		}
	}()
	e := NewTCP(netip.MustParseAddrPort(l.Addr().String()), time.Now)
	defer func() { _ = e.Close() }()
	q := query(b, "www.example")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Exchange(b.Context(), q, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExchangeOverUDP(b *testing.B) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	go func() {
		buf, out := make([]byte, 4096), make([]byte, 0, 4096)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(benchReply(out[:0], buf[:n]), from)
		}
	}()
	e := &UDP{Server: netip.MustParseAddrPort(c.LocalAddr().String())}
	q := query(b, "www.example")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Exchange(b.Context(), q, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAQuestionOfAGroupOverTCP(b *testing.B) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				for q := frame(c); q != nil; q = frame(c) {
					_, _ = c.Write(framed(benchReply(nil, q)))
				}
			}()
		}
	}()
	at := netip.MustParseAddrPort(l.Addr().String())
	g := &Group{Now: time.Now, Servers: []*Server{{Addr: Addr{AddrPort: at}, TCP: NewTCP(at, time.Now), TCPCounters: &Counters{}}}}
	defer g.Close()
	k := key(b, "www.example")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Exchange(b.Context(), k); err != nil {
			b.Fatal(err)
		}
	}
}

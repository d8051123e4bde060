package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/dnscache/wire"
)

// Each does to its first question, or to the connection before, what no server
// should. The question may fail; it neither gets a wrong answer nor waits for ever,
// the next one is answered, and nothing is left of it.
var hostile = map[string]func(c net.Conn){
	"silence after accept": func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
	"the end after accept": func(net.Conn) {},
	"unasked data":         func(c net.Conn) { _, _ = c.Write(framed(make([]byte, 40))); _, _ = io.Copy(io.Discard, c) },
	"unasked data in the middle of a question": func(c net.Conn) {
		var b [5]byte
		_, _ = io.ReadFull(c, b[:])
		_, _ = c.Write(framed(make([]byte, 40)))
		_, _ = io.Copy(io.Discard, c)
	},
	"another id": after(func(c net.Conn, q []byte) {
		q[0]++
		_, _ = c.Write(framed(benchReply(nil, q)))
		_, _ = io.Copy(io.Discard, c)
	}),
	"another question": after(func(c net.Conn, q []byte) {
		q[wire.HeaderLen+1]++
		_, _ = c.Write(framed(benchReply(nil, q)))
		_, _ = io.Copy(io.Discard, c)
	}),
	"the question itself": after(func(c net.Conn, q []byte) { _, _ = c.Write(framed(q)); _, _ = io.Copy(io.Discard, c) }),
	"an empty frame":      after(func(c net.Conn, _ []byte) { _, _ = c.Write([]byte{0, 0}); _, _ = io.Copy(io.Discard, c) }),
	"the end of it all":   after(func(net.Conn, []byte) {}),
	"half a length":       after(func(c net.Conn, _ []byte) { _, _ = c.Write([]byte{0}) }),
	"a frame that ends":   after(func(c net.Conn, q []byte) { _, _ = c.Write(framed(benchReply(nil, q))[:20]) }),
	"a frame that stops": after(func(c net.Conn, q []byte) {
		_, _ = c.Write(framed(benchReply(nil, q))[:20])
		_, _ = io.Copy(io.Discard, c)
	}),
	"a length too large": after(func(c net.Conn, q []byte) {
		_, _ = c.Write(append([]byte{0xFF, 0xFF}, benchReply(nil, q)...))
		_, _ = io.Copy(io.Discard, c)
	}),
	"a length too small": after(func(c net.Conn, q []byte) {
		_, _ = c.Write(append([]byte{0, 20}, benchReply(nil, q)...))
		_, _ = io.Copy(io.Discard, c)
	}),
	"64 KiB of nothing": after(func(c net.Conn, _ []byte) { _, _ = c.Write(framed(make([]byte, 65535))); _, _ = io.Copy(io.Discard, c) }),
	"a megabyte at random": after(func(c net.Conn, _ []byte) {
		_, _ = c.Write(bytes.Repeat([]byte{0xC0, 0x0C, 0}, 1<<20/3))
		_, _ = io.Copy(io.Discard, c)
	}),
	"records that lie": after(func(c net.Conn, q []byte) {
		r := benchReply(nil, q)
		binary.BigEndian.PutUint16(r[10:], 0xFFFF)
		_, _ = c.Write(framed(append(r, 0, 0, 41, 0xFF, 0xFF, 0, 0, 0, 0, 0xFF, 0xFF, 0, keepaliveCode)))
		_, _ = io.Copy(io.Discard, c)
	}),
	"replies twice": after(func(c net.Conn, q []byte) {
		r := framed(benchReply(nil, q))
		_, _ = c.Write(append(r, r...))
		_, _ = io.Copy(io.Discard, c)
	}),
	"replies one byte at a time": after(func(c net.Conn, q []byte) {
		for _, b := range framed(benchReply(nil, q)) {
			time.Sleep(time.Millisecond)
			_, _ = c.Write([]byte{b})
		}
		_, _ = io.Copy(io.Discard, c)
	}),
	"replies so slowly that nobody waits": after(func(c net.Conn, q []byte) {
		for _, b := range framed(benchReply(nil, q)) {
			time.Sleep(200 * time.Millisecond)
			if _, err := c.Write([]byte{b}); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, c)
	}),
	"does not read": func(c net.Conn) { time.Sleep(10 * time.Second) },
}

// after has the first question read before f comes.
func after(f func(c net.Conn, q []byte)) func(net.Conn) {
	return func(c net.Conn) {
		if q := frame(c); q != nil {
			f(c, q)
		}
	}
}

func TestAHostileServer(t *testing.T) {
	for what, does := range hostile {
		for _, keepalive := range []bool{false, true} {
			t.Run(what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					conns := 0
					good := newNetwork(t, steady(time.Millisecond))
					p := newPool(time.Now, firstPace, func(ctx context.Context) (net.Conn, error) {
						if conns++; conns > 1 {
							return good.dial(ctx)
						}
						ours, theirs := net.Pipe()
						go func() {
							defer func() { _ = theirs.Close() }()
							does(theirs)
						}()
						return ours, nil
					})
					p.Keepalive = keepalive
					g := over(nil, p)
					for i := range 3 {
						start := time.Now()
						ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
						r, err := g.Exchange(ctx, key(t, "www.example"))
						cancel()
						// What is in a reply's records is for others to judge.
						if err != nil || !bytes.HasPrefix(r[2:], benchReply(nil, query(t, "www.example"))[2:10]) {
							t.Errorf("question %d: %x, %v", i, r, err)
						}
						if took := time.Since(start); took > 100*time.Millisecond {
							t.Errorf("question %d took %v", i, took)
						}
					}
					time.Sleep(ageLimit)
					synctest.Wait()
					if open(p) != 0 || !p.rests() {
						t.Errorf("%d connections are left", open(p))
					}
					good.end(p)
				})
			})
		}
	}
}

// As above, and all the time: the question fails, in its time, with an error.
func TestAServerThatIsAlwaysHostile(t *testing.T) {
	for what, does := range hostile {
		switch what {
		case "replies twice", "replies one byte at a time", "records that lie", "a length too small":
			continue // the first of them is a reply
		}
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(time.Now, firstPace, func(context.Context) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go func() {
						defer func() { _ = theirs.Close() }()
						does(theirs)
					}()
					return ours, nil
				})
				g := over(nil, p)
				for range 3 {
					start := time.Now()
					if err := question(t, g, "www.example"); err == nil || time.Since(start) > 900*time.Millisecond {
						t.Errorf("%v after %v", err, time.Since(start))
					}
				}
				_ = p.Close()
				time.Sleep(ageLimit)
				synctest.Wait()
				if open(p) != 0 || !p.rests() {
					t.Errorf("%d connections are left", open(p))
				}
			})
		})
	}
}

// The network breaks, for real, in the middle of replies.
func TestAResetInTheMiddleCostsNoQuestion(t *testing.T) {
	leaves(t)
	s := serveTCP(t, func(n int64, c *net.TCPConn) {
		for q := frame(c); q != nil; q = frame(c) {
			r := framed(benchReply(nil, q))
			if n%2 == 1 {
				_, _ = c.Write(r[:20])
				_ = c.SetLinger(0)
				return
			}
			_, _ = c.Write(r)
			if n%4 == 0 {
				_ = c.SetLinger(0)
				return
			}
		}
	})
	p := newTCP(t, s, time.Now)
	g := over(nil, p)
	for range 100 {
		r, err := g.Exchange(t.Context(), key(t, "www.example"))
		if err != nil || address(t, r) != "192.0.2.1" {
			t.Fatalf("%x, %v", r, err)
		}
	}
}

// Over UDP a wrong reply is passed over for the right one that may come.
func TestAHostileServerOverUDP(t *testing.T) {
	leaves(t)
	for what, does := range map[string]func(c *net.UDPConn, from netip.AddrPort, q []byte){
		"another id":       func(c *net.UDPConn, from netip.AddrPort, q []byte) { q[0]++; send(c, from, benchReply(nil, q)) },
		"another question": func(c *net.UDPConn, from netip.AddrPort, q []byte) { q[13]++; send(c, from, benchReply(nil, q)) },
		"rubbish":          func(c *net.UDPConn, from netip.AddrPort, _ []byte) { send(c, from, bytes.Repeat([]byte{0xC0}, 4000)) },
		"nothing":          func(*net.UDPConn, netip.AddrPort, []byte) {},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		at := udpServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
			does(c, from, q)
			cancel()
		})
		if r, err := (&UDP{Server: at}).Exchange(ctx, query(t, "www.example"), nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %x, %v", what, r, err)
		}
	}
}

func send(c *net.UDPConn, to netip.AddrPort, b []byte) { _, _ = c.WriteToUDPAddrPort(b, to) }

// Whatever a server sends: no reply comes out that does not answer the question, no
// goroutine stays, and the pool goes on.
func FuzzReadReply(f *testing.F) {
	good := benchReply(nil, query(f, "www.example"))
	f.Add(framed(good), false)
	f.Add(append(framed(good), framed(good)...), true)
	f.Add([]byte{0, 0}, false)
	f.Add([]byte{0xFF, 0xFF, 1, 2, 3}, true)
	f.Add(append([]byte{0, byte(len(good) + 17)}, append(append([]byte{}, good...), 0, 0, 41, 4, 0xD0, 0, 0, 0, 0, 0, 6, 0, keepaliveCode, 0, 2, 0, 20)...), true)
	f.Fuzz(func(t *testing.T, stream []byte, keepalive bool) {
		synctest.Test(t, func(t *testing.T) {
			p := newPool(time.Now, firstPace, func(context.Context) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer func() { _ = theirs.Close() }()
					q := frame(theirs)
					if q == nil {
						return
					}
					b := bytes.Clone(stream)
					if len(b) >= 4 { // an id that fits, so that more is looked at
						copy(b[2:], q[:2])
					}
					_, _ = theirs.Write(b)
				}()
				return ours, nil
			})
			p.Keepalive = keepalive
			q := query(t, "www.example")
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			r, err := p.Exchange(ctx, q, nil)
			cancel()
			if err == nil {
				copy(q, r[:2])
				if err := wire.CheckReply(q, r); err != nil {
					t.Errorf("%x is %v", r, err)
				}
			}
			_ = p.Close()
			time.Sleep(ageLimit)
			synctest.Wait()
			if open(p) != 0 || !p.rests() {
				t.Error("something is left")
			}
		})
	})
}

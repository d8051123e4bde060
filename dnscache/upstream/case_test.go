package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/wire"
)

// exchange is an exchanger in a function.
type exchange func(query []byte) ([]byte, error)

func (f exchange) Exchange(_ context.Context, query, buf []byte) ([]byte, error) {
	r, err := f(query)
	return append(buf, r...), err
}

// asked is the name in a query, as it is spelled.
func asked(t *testing.T, query []byte) string {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(query); err != nil {
		t.Fatal(err)
	}
	return m.Question[0].Name
}

func TestEachLetterIsUpperOrLowerCaseByChance(t *testing.T) {
	for bits, want := range map[byte]string{0: "www.example-1.", 0xFF: "WWW.EXAMPLE-1.", 0x55: "wWw.eXaMpLe-1."} {
		var got string
		r := &RandomCase{exchange(func(q []byte) ([]byte, error) { got = asked(t, q); return nil, io.EOF }), bytes.NewReader(bytes.Repeat([]byte{bits}, 40))}
		q := query(t, "www.example-1")
		before := bytes.Clone(q)
		if _, err := r.Exchange(t.Context(), q, nil); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if got != want || !bytes.Equal(q, before) {
			t.Errorf("bits %x: asked for %s, want %s; the query is %x, was %x", bits, got, want, q, before)
		}
	}
}

func TestWithoutChanceNobodyIsAsked(t *testing.T) {
	r := &RandomCase{exchange(func([]byte) ([]byte, error) { t.Error("asked"); return nil, nil }), strings.NewReader("")}
	if _, err := r.Exchange(t.Context(), query(t, "www.example"), nil); err == nil {
		t.Error("no error")
	}
}

// What comes back is what it would be without it, over a real socket, and behind what
// is in the buffer.
func TestRandomCaseIsNotSeenOutside(t *testing.T) {
	leaves(t)
	names := make(chan string, 40)
	at := udpServer(t, func(c *net.UDPConn, from netip.AddrPort, q []byte) {
		names <- asked(t, q)
		send(c, from, reply(t, q, "192.0.2.1"))
	})
	plain := &UDP{Server: at}
	for range 20 {
		want, err := plain.Exchange(t.Context(), query(t, "www.shop.example"), []byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := (&RandomCase{plain, rand.Reader}).Exchange(t.Context(), query(t, "www.shop.example"), []byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		copy(got[6:8], want[6:8]) // the id
		if !bytes.Equal(got, want) {
			t.Fatalf("%q\nwant\n%q", got, want)
		}
	}
	spelled := map[string]bool{}
	for range 40 {
		spelled[<-names] = true
	}
	if len(spelled) < 10 { // of 2^14, and the plain one
		t.Errorf("20 questions are spelled in %d ways", len(spelled))
	}
}

// A server that does not spell the question as it was asked is asked over TCP, where
// nobody else can answer.
func TestWhoChangesTheLettersIsAskedOverTCP(t *testing.T) {
	for what, answer := range map[string]func(q []byte) []byte{
		"in lower case": func(q []byte) []byte { return reply(t, bytes.ToLower(q), "203.0.113.66") },
		"one letter off": func(q []byte) []byte {
			q = bytes.Clone(q)
			q[wire.HeaderLen+1] ^= 0x20
			return reply(t, q, "203.0.113.66")
		},
		"a failure without the question": func(q []byte) []byte {
			return wire.AppendHeader(nil, uint16(q[0])<<8|uint16(q[1]), wire.FlagQR|wire.ServFail, 0, 0, 0, 0)
		},
	} {
		var overTCP []string
		udp := exchange(func(q []byte) ([]byte, error) {
			r := answer(q)
			return r, wire.CheckReply(q, r) // it is one, but for the letters
		})
		tcp := exchange(func(q []byte) ([]byte, error) {
			overTCP = append(overTCP, asked(t, q))
			return reply(t, q, "192.0.2.1"), nil
		})
		g := over(&RandomCase{udp, bytes.NewReader(bytes.Repeat([]byte{0xAB}, 40))}, tcp)
		r, err := g.Exchange(t.Context(), key(t, "www.example"))
		if err != nil || address(t, r) != "192.0.2.1" || strings.Join(overTCP, " ") != "www.example." {
			t.Errorf("%s: %x, %v, over TCP %q", what, r, err, overTCP)
		}
		if e := g.Servers[0].UDPCounters.Errors.Load(); e != 1 {
			t.Errorf("%s: %d errors over UDP", what, e)
		}
	}
}

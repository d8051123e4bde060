package dnscache

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/wire"
)

// A reader's question is the next packet's as soon as deliver has returned, and
// over TCP the reply may be written later than that.
func TestAReplyOverTCPIsToTheQuestionThatWasAsked(t *testing.T) {
	conn, ours := net.Pipe()
	defer conn.Close()
	c := &client{conn: ours, counters: new(counters), pending: make(chan struct{}, maxPending)}
	pack := func(id uint16, name string) []byte {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Id = id
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	in := pack(1, "first.example.")
	var q wire.Query
	if v := wire.ParseQuery(in, &q); v != wire.Answer {
		t.Fatalf("the query is %v", v)
	}
	e := cache.NewFailure(wire.AppendKey(nil, &q), wire.ServFail, wire.EDENotReady, zoneExternal, 0)

	c.writing.Lock() // another reply is being written
	c.pending <- struct{}{}
	c.deliver(&q, told{Entry: e}, 0)
	copy(in, pack(2, "later.example."))
	wire.ParseQuery(in, &q)
	c.writing.Unlock()

	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatal(err)
	}
	if m.Id != 1 || len(m.Question) != 1 || m.Question[0].Name != "first.example." {
		t.Errorf("the reply is\n%s\nwant one to the first query", m)
	}
}

// A pod that opens connections without end has an eighth of them.
func TestTheClientsOfOneAddressAreBounded(t *testing.T) {
	s := offline(t, addresses(1))
	conn, theirs := net.Pipe()
	defer theirs.Close()
	add := func(from byte, at time.Duration) *client {
		c := &client{conn: conn, from: address(int(from)), pending: make(chan struct{}, maxPending)}
		if !s.clients.add(c, at) {
			return nil
		}
		return c
	}
	other := add(2, 0)
	var first *client
	for i := range maxEach {
		c := add(1, time.Second)
		if c == nil {
			t.Fatalf("client %d of an address was not let in", i+1)
		}
		if first == nil {
			first = c
		}
	}
	if add(1, time.Second) != nil {
		t.Errorf("client %d of an address was let in where all are busy", maxEach+1)
	}
	if add(3, time.Second) == nil {
		t.Error("another address was not let in")
	}
	first.last.Store(int64(time.Second / 2))
	if add(1, 2*time.Second) == nil {
		t.Error("none of its own made room")
	}
	if _, ok := s.clients.open[first]; ok {
		t.Error("the one idle for longest is still there")
	}
	if _, ok := s.clients.open[other]; !ok {
		t.Error("another address's made room")
	}
	s.clients.remove(first) // as its reader does
	if n := s.clients.each[address(1)]; n != maxEach {
		t.Errorf("%d of the address are counted, want %d", n, maxEach)
	}
}

// What a client has asked for at once it is told at once (RFC 7766 6.2.1.1), whatever
// comes behind it.
func TestRepliesToWhatWasAskedAtOnceGoOutTogether(t *testing.T) {
	long := new(dns.Msg).SetQuestion("web.ns.svc.cluster.local.", dns.TypeA)
	long.SetEdns0(1232, false).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 2*keptBuffer)}}
	padded, err := long.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what   string
		behind []byte
		ends   bool
	}{
		{"nothing behind it", nil, false},
		{"half a query behind it", framed(packet(t, "web.ns.svc.cluster.local.", "A"))[:9], false},
		{"what is no query behind it", []byte{0, 2, 'n', 'o'}, true},
		{"a query that has an answer already behind it", framed(append([]byte{0, 0, 0x80}, make([]byte, 20)...)), true},
		{"a query longer than the buffer behind it", framed(padded), false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := offline(t, addresses(1))
				hit := packet(t, "web.ns.svc.cluster.local.", "A")
				warm(t, s, hit)
				c, ended := onPipe(t, s)
				const queries = 10
				go func() { _, _ = c.Write(append(bytes.Repeat(framed(hit), queries), tt.behind...)) }()
				buf := make([]byte, 64<<10)
				n, err := c.Read(buf) // what one write has written
				got := 0
				for b := buf[:n]; len(b) > 0; got++ {
					b = b[2+int(binary.BigEndian.Uint16(b)):]
				}
				if got != queries || err != nil {
					t.Errorf("%d replies in the first write, %v; want %d", got, err, queries)
				}
				if len(tt.behind) > keptBuffer {
					if m := next(t, c); len(m.Answer) != 1 {
						t.Errorf("the long query got\n%s", m)
					}
				}
				if !tt.ends {
					_ = c.Close()
				}
				<-ended
			})
		})
	}
}

// A client that does not read has little of what it is told in memory, and is told all of
// it when it does.
func TestRepliesToWhoDoesNotReadAreMadeWhenItDoes(t *testing.T) {
	s := offline(t, exchangerFunc(func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		for i := range 200 {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 30}, Txt: []string{fmt.Sprint(i), strings.Repeat("x", 250)}})
		}
		return m
	}))
	pkt := packet(t, "big.example.", "TXT")
	warm(t, s, pkt)
	var q question
	q.read(pkt)
	ours, theirs := net.Pipe()
	c := newTestClient(s, ours)
	const replies = maxPending
	for range replies {
		c.pending <- struct{}{}
		c.deliver(&q.query, told{Entry: s.cache.Get(q.key)}, s.now())
	}
	c.mu.Lock()
	if n := cap(c.out); n > 2*wire.MaxMessage {
		t.Errorf("%d bytes of replies are in memory", n)
	}
	c.mu.Unlock()
	for i := range replies {
		if m := next(t, theirs); len(m.Answer) != 200 {
			t.Fatalf("reply %d has %d answers", i, len(m.Answer))
		}
	}
	until(t, "nothing to be waiting", func() bool { return len(c.pending) == 0 })
	s.clients.remove(c)
}

package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"

	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// flight is how long everything takes that takes no time to speak of.
const flight = time.Millisecond

// A network has name servers that reply as they are told, and writes down what
// they are asked: when, from which port, over what, whom, and what.
type network struct {
	// reply is what a server does about a query, such as "udp 192.0.2.1 a. AAAA",
	// which it has had nth times before.
	reply func(query string, nth int) []reply
	// refuse is an error of connecting to an address; nil: there is none.
	refuse func(address string) error

	begin time.Time
	mu    sync.Mutex
	log   []string
	asked map[string]int
	ports int
}

// A reply is sent that long after its query. Without a message the connection
// is closed.
type reply struct {
	after time.Duration
	msg   func(q *dns.Msg) *dns.Msg
}

func rcode(code int) []reply {
	return []reply{{0, func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetRcode(q, code)
		m.RecursionAvailable = true
		return m
	}}}
}

func address() []reply { return addressAfter(0) }

func addressAfter(d time.Duration) []reply {
	return []reply{{d, withAddress}}
}

func withAddress(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 55)}}
	return m
}

func (n *network) dial(_ context.Context, proto string, server netip.AddrPort) (net.Conn, error) {
	time.Sleep(flight)
	address := server.Addr().String()
	if n.refuse != nil {
		if err := n.refuse(address); err != nil {
			return nil, err
		}
	}
	here, there := net.Pipe()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports++
	go n.serve(there, proto == "tcp", proto+" "+address, n.ports)
	return here, nil
}

func (n *network) serve(c net.Conn, stream bool, who string, port int) {
	out, gone := make(chan []byte, 100), make(chan struct{})
	defer close(gone)
	defer c.Close()
	go func() {
		for {
			select {
			case m := <-out:
				if stream {
					m = append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
				}
				_, _ = c.Write(m)
			case <-gone:
				return
			}
		}
	}()
	r := bufio.NewReader(c)
	for {
		b := make([]byte, 1500)
		var size int
		var err error
		if stream {
			if _, err = io.ReadFull(r, b[:2]); err == nil {
				size, err = io.ReadFull(r, b[:binary.BigEndian.Uint16(b)])
			}
		} else {
			size, err = c.Read(b)
		}
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if err := q.Unpack(b[:size]); err != nil {
			panic(err)
		}
		what := fmt.Sprintf("%s %s %s", who, q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype])
		if o := q.IsEdns0(); o != nil {
			what += fmt.Sprintf(" %d", o.UDPSize())
		}
		n.mu.Lock()
		n.log = append(n.log, fmt.Sprintf("%s %d %s", time.Since(n.begin).Truncate(100*time.Millisecond), port, what))
		nth := n.asked[what]
		n.asked[what]++
		n.mu.Unlock()
		for _, re := range n.reply(what, nth) {
			if re.msg == nil {
				time.AfterFunc(re.after+flight, func() { c.Close() })
				continue
			}
			m, err := re.msg(q.Copy()).Pack()
			if err != nil {
				panic(err)
			}
			time.AfterFunc(re.after+flight, func() { out <- m })
		}
	}
}

// one is a load of a single lookup of the name a, below no search path.
func one(servers ...string) Config {
	cfg := Config{
		Hosts: []string{"a"}, Types: []uint16{dns.TypeA, dns.TypeAAAA}, Resolver: Defaults(),
		Concurrency: 1, Duration: 1, Limit: 4 * time.Second,
	}
	for _, s := range servers {
		cfg.Resolver.Servers = append(cfg.Resolver.Servers, netip.AddrPortFrom(netip.MustParseAddr(s), 53))
	}
	return cfg
}

// run is what cfg comes to on n, in a bubble of its own; after is what else is
// done meanwhile.
func (n *network) run(t *testing.T, cfg Config, meanwhile func(b *Bench, stop func())) (r Report, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n.begin, n.asked = time.Now(), map[string]int{}
		cfg.Dial = n.dial
		b, nerr := New(cfg)
		if nerr != nil {
			t.Fatal(nerr)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		if meanwhile != nil {
			go meanwhile(b, stop)
		}
		err = b.Run(ctx)
		r = b.Report()
	})
	return r, err
}

// told is a report of few lookups in a line.
func told(r Report) string {
	text := fmt.Sprintf("%d lookups, failed %s; %d over, %d queries, %d lost", r.Lookups, r.kinds(), r.Over, r.Queries, r.Lost)
	if r.OverTCP > 0 {
		text += fmt.Sprintf(", %d over TCP", r.OverTCP)
	}
	if r.Unfinished > 0 {
		text += fmt.Sprintf(", %d unfinished", r.Unfinished)
	}
	if r.Interrupted {
		text += ", interrupted"
	}
	return text + ", at most " + span(r.Latency.Max).Truncate(100*time.Millisecond).String()
}

func TestALookupAsksAsGlibcDoes(t *testing.T) {
	search := func(c Config, ndots int, domains ...string) Config {
		c.Resolver.Search, c.Resolver.Ndots = domains, ndots
		return c
	}
	with := func(c Config, change func(*Config)) Config {
		change(&c)
		return c
	}
	tcp := func(c *Config) { c.Resolver.TCP = true }
	for _, tt := range []struct {
		name   string
		cfg    Config
		reply  func(query string, nth int) []reply
		refuse func(address string) error
		log    string
		want   string
	}{
		{"both types at once", one("192.0.2.1"),
			func(string, int) []reply { return address() }, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 0s"},
		{"an address of one type is enough", one("192.0.2.1"),
			func(q string, _ int) []reply {
				if strings.HasSuffix(q, "AAAA") {
					return rcode(dns.RcodeSuccess)
				}
				return address()
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 0s"},
		{"a lost reply costs five seconds, and both are asked for from a new port", one("192.0.2.1"),
			func(q string, n int) []reply {
				if strings.HasSuffix(q, "AAAA") && n == 0 {
					return nil
				}
				return address()
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA
5s 2 udp 192.0.2.1 a. A
5s 2 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 0; 1 over, 4 queries, 1 lost, at most 5s"},
		{"a server that bears no two queries is asked one after the other, and each from a port of its own", one("192.0.2.1", "192.0.2.2"),
			func(q string, n int) []reply {
				if strings.HasSuffix(q, "AAAA") && n < 2 {
					return nil
				}
				return address()
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA
5s 2 udp 192.0.2.1 a. A
5s 2 udp 192.0.2.1 a. AAAA
10s 3 udp 192.0.2.1 a. A
10s 4 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 0; 1 over, 6 queries, 2 lost, at most 10s"},
		{"one type does if the other's reply never comes, and the next name is asked for as carefully", search(one("192.0.2.1"), 5, "example"),
			func(q string, n int) []reply {
				switch {
				case strings.HasSuffix(q, "AAAA"):
					return nil
				case strings.Contains(q, "a.example."):
					return rcode(dns.RcodeNameError)
				}
				return address()
			}, nil,
			`0s 1 udp 192.0.2.1 a.example. A
0s 1 udp 192.0.2.1 a.example. AAAA
5s 2 udp 192.0.2.1 a.example. A
5s 2 udp 192.0.2.1 a.example. AAAA
10s 3 udp 192.0.2.1 a.example. A
10s 4 udp 192.0.2.1 a.example. AAAA
15s 5 udp 192.0.2.1 a. A
15s 6 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 0; 1 over, 8 queries, 4 lost, at most 20s"},
		{"the next lookup knows nothing of that", with(one("192.0.2.1"), func(c *Config) { c.Duration = 6500 * time.Millisecond }),
			func(q string, n int) []reply {
				if strings.HasSuffix(q, "AAAA") && n == 0 {
					return nil
				}
				return addressAfter(500 * time.Millisecond)
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA
5s 2 udp 192.0.2.1 a. A
5.5s 2 udp 192.0.2.1 a. AAAA
6s 2 udp 192.0.2.1 a. A
6s 2 udp 192.0.2.1 a. AAAA`,
			"2 lookups, failed 0; 1 over, 6 queries, 1 lost, at most 6s"},
		{"types in turn", with(one("192.0.2.1"), func(c *Config) { c.Resolver.Order = InTurn }),
			func(string, int) []reply { return addressAfter(time.Second) }, nil,
			`0s 1 udp 192.0.2.1 a. A
1s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 2s"},
		{"an empty reply from a server that asks no others is none", one("192.0.2.1", "192.0.2.2"),
			func(q string, _ int) []reply {
				if strings.Contains(q, "192.0.2.1") {
					return []reply{{0, func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetReply(q) }}}
				}
				return rcode(dns.RcodeSuccess)
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA
0s 2 udp 192.0.2.2 a. A
0s 2 udp 192.0.2.2 a. AAAA`,
			"1 lookups, failed 1: 1 no data; 0 over, 4 queries, 0 lost, at most 0s"},
		{"such replies alone", with(one("192.0.2.1"), func(c *Config) { c.Resolver.Attempts = 1 }),
			func(q string, _ int) []reply {
				return []reply{{0, func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetReply(q) }}}
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 1: 1 other (such as an empty reply from a server that asks no others); 0 over, 2 queries, 0 lost, at most 0s"},
		{"silence", one("192.0.2.1"),
			func(string, int) []reply { return nil }, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA
5s 2 udp 192.0.2.1 a. A
5s 2 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 1: 1 timeout; 1 over, 4 queries, 4 lost, at most 10s"},
		{"a silent server is passed over", one("192.0.2.1", "192.0.2.2"),
			func(q string, _ int) []reply {
				if strings.Contains(q, "192.0.2.1") {
					return nil
				}
				return address()
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA
5s 2 udp 192.0.2.2 a. A
5s 2 udp 192.0.2.2 a. AAAA`,
			"1 lookups, failed 0; 1 over, 4 queries, 2 lost, at most 5s"},
		{"one that cannot is passed over at once", one("192.0.2.1", "192.0.2.2", "192.0.2.3"),
			func(q string, _ int) []reply {
				switch {
				case strings.Contains(q, "192.0.2.1"):
					return rcode(dns.RcodeServerFailure)
				case strings.Contains(q, "192.0.2.2"):
					return rcode(dns.RcodeRefused)
				}
				return address()
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA
0s 2 udp 192.0.2.2 a. A
0s 2 udp 192.0.2.2 a. AAAA
0s 3 udp 192.0.2.3 a. A
0s 3 udp 192.0.2.3 a. AAAA`,
			"1 lookups, failed 0; 0 over, 6 queries, 0 lost, at most 0s"},
		{"SERVFAIL of all, twice", with(one("192.0.2.1"), func(c *Config) { c.Types = c.Types[:1] }),
			func(string, int) []reply { return rcode(dns.RcodeServerFailure) }, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. A`,
			"1 lookups, failed 1: 1 SERVFAIL; 0 over, 2 queries, 0 lost, at most 0s"},
		{"a reply counts for more than silence after it", with(one("192.0.2.1", "192.0.2.2"), func(c *Config) { c.Types, c.Resolver.Attempts = c.Types[:1], 1 }),
			func(q string, _ int) []reply {
				if strings.Contains(q, "192.0.2.1") {
					return rcode(dns.RcodeRefused)
				}
				return nil
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 2 udp 192.0.2.2 a. A`,
			"1 lookups, failed 1: 1 refused; 1 over, 2 queries, 1 lost, at most 5s"},
		{"the good one of two replies is taken", one("192.0.2.1"),
			func(q string, _ int) []reply {
				if strings.HasSuffix(q, "AAAA") {
					return rcode(dns.RcodeServerFailure)
				}
				return rcode(dns.RcodeSuccess)
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 1: 1 no data; 0 over, 2 queries, 0 lost, at most 0s"},
		{"neither type", one("192.0.2.1"),
			func(string, int) []reply { return rcode(dns.RcodeSuccess) }, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 1: 1 no data; 0 over, 2 queries, 0 lost, at most 0s"},
		{"a reply that nobody expects", one("192.0.2.1"),
			func(string, int) []reply { return rcode(dns.RcodeFormatError) }, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 1: 1 other (such as the reply FORMERR); 0 over, 2 queries, 0 lost, at most 0s"},
		{"the search path", search(one("192.0.2.1"), 5, "x.example", "example"),
			func(q string, _ int) []reply {
				if strings.Contains(q, "x.example") {
					return rcode(dns.RcodeNameError)
				}
				return address()
			}, nil,
			`0s 1 udp 192.0.2.1 a.x.example. A
0s 1 udp 192.0.2.1 a.x.example. AAAA
0s 1 udp 192.0.2.1 a.example. A
0s 1 udp 192.0.2.1 a.example. AAAA`,
			"1 lookups, failed 0; 0 over, 4 queries, 0 lost, at most 0s"},
		{"silence ends the search path", with(search(one("192.0.2.1"), 5, "x.example", "example"), func(c *Config) { c.Types, c.Resolver.Attempts = c.Types[:1], 1 }),
			func(string, int) []reply { return nil }, nil,
			`0s 1 udp 192.0.2.1 a.x.example. A
5s 2 udp 192.0.2.1 a. A`,
			"1 lookups, failed 1: 1 timeout; 1 over, 2 queries, 2 lost, at most 10s"},
		{"replies that are not to the query are nobody's", with(one("192.0.2.1"), func(c *Config) { c.Types = c.Types[:1] }),
			func(string, int) []reply {
				odd := func(change func(m *dns.Msg)) reply {
					return reply{0, func(q *dns.Msg) *dns.Msg {
						m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
						change(m)
						return m
					}}
				}
				return []reply{
					odd(func(m *dns.Msg) { m.Id++ }),
					odd(func(m *dns.Msg) { m.Response = false }),
					odd(func(m *dns.Msg) { m.Question = nil }),
					odd(func(m *dns.Msg) { m.Question[0].Name = "b." }),
					odd(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }),
					odd(func(m *dns.Msg) { m.Question[0].Name = "abc." }),
					{2 * time.Second, func(q *dns.Msg) *dns.Msg {
						m := withAddress(q)
						m.Question[0].Name = "A."
						return m
					}},
				}
			}, nil,
			`0s 1 udp 192.0.2.1 a. A`,
			"1 lookups, failed 0; 0 over, 1 queries, 0 lost, at most 2s"},
		{"one reply twice does for one type", one("192.0.2.1"),
			func(q string, _ int) []reply {
				if strings.HasSuffix(q, "AAAA") {
					return addressAfter(time.Second)
				}
				return append(rcode(dns.RcodeSuccess), rcode(dns.RcodeSuccess)...)
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. AAAA`,
			"1 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 1s"},
		{"a late reply is not that to the next attempt", with(one("192.0.2.1"), func(c *Config) { c.Types = c.Types[:1] }),
			func(_ string, n int) []reply { return addressAfter(6 * time.Second) }, nil,
			`0s 1 udp 192.0.2.1 a. A
5s 2 udp 192.0.2.1 a. A`,
			"1 lookups, failed 1: 1 timeout; 1 over, 2 queries, 2 lost, at most 10s"},
		{"nobody is there", with(search(one("192.0.2.1"), 5, "example"), tcp),
			nil, func(string) error { return fmt.Errorf("dial: %w", syscall.ECONNREFUSED) }, "",
			"1 lookups, failed 1: 1 refused; 0 over, 0 queries, 0 lost, at most 0s"},
		{"nobody is there at the first", with(one("192.0.2.1", "192.0.2.2"), tcp),
			func(string, int) []reply { return address() },
			func(address string) error {
				if address == "192.0.2.1" {
					return syscall.ECONNREFUSED
				}
				return nil
			},
			`0s 1 tcp 192.0.2.2 a. A
0s 1 tcp 192.0.2.2 a. AAAA`,
			"1 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 0s"},
		{"no way to the first", one("192.0.2.1", "192.0.2.2"),
			func(string, int) []reply { return address() },
			func(address string) error {
				if address == "192.0.2.1" {
					return syscall.ENETUNREACH
				}
				return nil
			},
			`0s 1 udp 192.0.2.2 a. A
0s 1 udp 192.0.2.2 a. AAAA`,
			"1 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 0s"},
		{"no way there", with(one("192.0.2.1"), tcp),
			nil, func(string) error { return fmt.Errorf("dial: %w", syscall.ENETUNREACH) }, "",
			"1 lookups, failed 1: 1 other (such as dial: network is unreachable); 0 over, 0 queries, 0 lost, at most 0s"},
		{"a connection is kept, and made anew if the server has closed it", with(one("192.0.2.1"), func(c *Config) {
			c.Types, c.Duration, c.Resolver.TCP, c.Resolver.Attempts = c.Types[:1], 2*time.Second, true, 1
		}),
			func(_ string, n int) []reply {
				switch n {
				case 0:
					return append(addressAfter(time.Second), reply{after: 1500 * time.Millisecond})
				case 1:
					return nil
				}
				return addressAfter(time.Second)
			}, nil,
			`0s 1 tcp 192.0.2.1 a. A
1s 1 tcp 192.0.2.1 a. A
1.5s 2 tcp 192.0.2.1 a. A`,
			"2 lookups, failed 0; 0 over, 3 queries, 0 lost, at most 1.5s"},
		{"of a big reply over TCP the rest is not the next", with(one("192.0.2.1"), func(c *Config) {
			c.Types, c.Duration, c.Resolver.TCP = c.Types[:1], 2*time.Second, true
		}),
			func(string, int) []reply {
				return []reply{{time.Second, func(q *dns.Msg) *dns.Msg {
					m := withAddress(q)
					for m.Len() <= 4*inSize {
						m.Answer = append(m.Answer, m.Answer...)
					}
					return m
				}}}
			}, nil,
			`0s 1 tcp 192.0.2.1 a. A
1s 1 tcp 192.0.2.1 a. A`,
			"2 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 1s"},
		{"a new connection that is closed is none", with(one("192.0.2.1"), func(c *Config) {
			c.Types, c.Resolver.TCP, c.Resolver.Attempts = c.Types[:1], true, 1
		}),
			func(string, int) []reply { return []reply{{}} }, nil,
			`0s 1 tcp 192.0.2.1 a. A`,
			"1 lookups, failed 1: 1 other (such as EOF); 0 over, 1 queries, 0 lost, at most 0s"},
		{"a truncated reply is asked for over TCP, on a connection of its own", with(one("192.0.2.1"), func(c *Config) { c.Types, c.Duration = c.Types[:1], 5*flight }),
			func(q string, _ int) []reply {
				if strings.HasPrefix(q, "tcp") {
					return address()
				}
				return []reply{{0, func(q *dns.Msg) *dns.Msg {
					m := withAddress(q)
					m.Truncated = true
					return m
				}}}
			}, nil,
			`0s 1 udp 192.0.2.1 a. A
0s 2 tcp 192.0.2.1 a. A
0s 1 udp 192.0.2.1 a. A
0s 3 tcp 192.0.2.1 a. A`,
			"2 lookups, failed 0; 0 over, 4 queries, 0 lost, 2 over TCP, at most 0s"},
		{"a port for each question", with(one("192.0.2.1"), func(c *Config) {
			c.Types, c.Fresh, c.Duration = c.Types[:1], true, 2*time.Second
		}),
			func(string, int) []reply { return addressAfter(time.Second) }, nil,
			`0s 1 udp 192.0.2.1 a. A
1s 2 udp 192.0.2.1 a. A`,
			"2 lookups, failed 0; 0 over, 2 queries, 0 lost, at most 1s"},
		{"servers and names in turn", with(one("192.0.2.1", "192.0.2.2"), func(c *Config) {
			c.Hosts, c.Types, c.Duration, c.Resolver.Rotate, c.Resolver.EDNS = []string{"a", "b", "c"}, c.Types[:1], 3*time.Second, true, true
		}),
			func(string, int) []reply { return addressAfter(time.Second) }, nil,
			`0s 1 udp 192.0.2.1 a. A 1200
1s 2 udp 192.0.2.2 b. A 1200
2s 1 udp 192.0.2.1 c. A 1200`,
			"3 lookups, failed 0; 0 over, 3 queries, 0 lost, at most 1s"},
		{"servers in turn within a lookup", with(search(one("192.0.2.1", "192.0.2.2"), 5, "example"), func(c *Config) {
			c.Types, c.Resolver.Rotate = c.Types[:1], true
		}),
			func(string, int) []reply { return rcode(dns.RcodeNameError) }, nil,
			`0s 1 udp 192.0.2.1 a.example. A
0s 2 udp 192.0.2.2 a. A`,
			"1 lookups, failed 1: 1 NXDOMAIN; 0 over, 2 queries, 0 lost, at most 0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := &network{reply: tt.reply, refuse: tt.refuse}
			r, err := n.run(t, tt.cfg, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.log, strings.Join(n.log, "\n")); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			if got := told(r); got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

// Those at work when the time is over are waited for: to leave them out would be
// to leave out the slowest.
func TestTheLastLookupsAreWaitedFor(t *testing.T) {
	cfg := one("192.0.2.1")
	cfg.Concurrency, cfg.Duration, cfg.Types = 3, 10*time.Second, cfg.Types[:1]
	n := &network{reply: func(_ string, nth int) []reply {
		if nth >= 3 {
			return nil
		}
		return addressAfter(4*time.Second - 2*flight)
	}}
	var progress []string
	r, err := n.run(t, cfg, func(b *Bench, _ func()) {
		for _, wait := range []time.Duration{flight, 6 * time.Second, 5 * time.Second} {
			time.Sleep(wait)
			progress = append(progress, b.Progress())
		}
	})
	if got, want := told(r), "6 lookups, failed 3: 3 timeout; 3 over, 9 queries, 6 lost, at most 10s"; err != nil || got != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
	want := []string{
		"0s/10s: 0 lookups, 0/s, 0 failed, 0 over 4s, max 0 us",
		"6s/10s: 3 lookups, 1/s, 0 failed, 0 over 4s, max 4.00 s",
		"11s, ending: 3 lookups, 0/s, 0 failed, 0 over 4s, max 4.00 s",
	}
	if diff := cmp.Diff(want, progress); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}

func TestAnInterruptCutsLookupsOffAndKeepsTheFigures(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after time.Duration
		cfg   func(*Config)
		want  string
	}{
		{"waiting for a reply", 2 * time.Second, func(*Config) {}, "2 lookups, failed 0; 0 over, 4 queries, 0 lost, 2 unfinished, interrupted, at most 1s"},
		{"of one that is over the limit by then", 6 * time.Second, func(*Config) {}, "2 lookups, failed 0; 2 over, 4 queries, 0 lost, 2 unfinished, interrupted, at most 1s"},
		{"over TCP", 2 * time.Second, func(c *Config) { c.Resolver.TCP = true }, "2 lookups, failed 0; 0 over, 4 queries, 0 lost, 2 unfinished, interrupted, at most 1s"},
		{"before anything", 0, func(*Config) {}, "0 lookups, failed 0; 0 over, 0 queries, 0 lost, interrupted, at most 0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := one("192.0.2.1")
			cfg.Concurrency, cfg.Duration, cfg.Types = 2, time.Minute, cfg.Types[:1]
			cfg.Resolver.Timeout = 20 * time.Second
			tt.cfg(&cfg)
			n := &network{reply: func(_ string, nth int) []reply {
				if nth >= 2 {
					return nil
				}
				return addressAfter(time.Second)
			}}
			r, err := n.run(t, cfg, func(_ *Bench, stop func()) {
				time.Sleep(tt.after)
				stop()
			})
			if got := told(r); err != nil || got != tt.want {
				t.Errorf("%v\n got %s\nwant %s", err, got, tt.want)
			}
		})
	}
}

func TestNothingIsAskedIfThereIsASocketTooFew(t *testing.T) {
	cfg := one("192.0.2.1")
	cfg.Concurrency = 3
	left := 2
	n := &network{refuse: func(string) error {
		if left--; left < 0 {
			return syscall.EMFILE
		}
		return nil
	}}
	_, err := n.run(t, cfg, nil)
	if err == nil || err.Error() != "making socket 3 of 3: too many open files" || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
	if len(n.log) > 0 {
		t.Errorf("asked:\n%s", strings.Join(n.log, "\n"))
	}
}

func TestALoadHasBounds(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"hosts: 0 is not between 1 and 10000":                               func(c *Config) { c.Hosts = nil },
		"hosts: 10001 is not between 1 and 10000":                           func(c *Config) { c.Hosts = make([]string, 10001) },
		"qtypes: 0 is not between 1 and 8":                                  func(c *Config) { c.Types = nil },
		"servers: 0 is not between 1 and 3":                                 func(c *Config) { c.Resolver.Servers = nil },
		"concurrency: 0 is not between 1 and 5000":                          func(c *Config) { c.Concurrency = 0 },
		"concurrency: 5001 is not between 1 and 5000":                       func(c *Config) { c.Concurrency = 5001 },
		"attempts: 6 is not between 1 and 5":                                func(c *Config) { c.Resolver.Attempts = 6 },
		"ndots: 16 is not between 0 and 15":                                 func(c *Config) { c.Resolver.Ndots = 16 },
		"duration: 1h0m0.000000001s is not above 0 and at most 1h0m0s":      func(c *Config) { c.Duration = time.Hour + 1 },
		"limit: 0s is not above 0 and at most 1h0m0s":                       func(c *Config) { c.Limit = 0 },
		"timeout: 31s is not above 0 and at most 30s":                       func(c *Config) { c.Resolver.Timeout = 31 * time.Second },
		`"a b" is no name: it has a ' '`:                                    func(c *Config) { c.Hosts = []string{"a", "a b"} },
		`with the search path: "a.b..c." is no name: it has an empty label`: func(c *Config) { c.Resolver.Search = []string{"b..c"} },
	} {
		cfg := one("192.0.2.1")
		change(&cfg)
		if _, err := New(cfg); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := New(one("192.0.2.1")); err != nil {
		t.Error(err)
	}
}

// sink is a connection that keeps what is written to it.
type sink struct {
	net.Conn
	all [][]byte
}

func (s *sink) Write(b []byte) (int, error) {
	s.all = append(s.all, bytes.Clone(b))
	return len(b), nil
}

// ones is no randomness at all.
type ones struct{}

func (ones) Uint64() uint64 { return math.MaxUint64 }

func TestOnlyAWholeReplyIsOne(t *testing.T) {
	q, err := newQuestion("a.", dns.TypeA, false)
	if err != nil {
		t.Fatal(err)
	}
	s, c := &slot{rand: rand.New(ones{})}, new(sink)
	if err := s.send(&conn{Conn: c}, []question{q, q}); err != nil {
		t.Fatal(err)
	}
	for i, m := range c.all {
		m[2] |= response >> 8
		for n := range m {
			if got := s.match(m[:n:n], []question{q, q}); got != -1 {
				t.Errorf("%d bytes of %d: got %d", n, len(m), got)
			}
		}
		// The second has an identifier of its own, whatever chance says.
		if got := s.match(m, []question{q, q}); got != i {
			t.Errorf("query %d: got %d", i, got)
		}
	}
}

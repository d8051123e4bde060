package dnscache

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/dnstest"
	"nodelocaldns/dnscache/wire"
)

// packed is an upstream that answers in bytes.
type packed func(query *dns.Msg) []byte

func (f packed) Exchange(_ context.Context, query, buf []byte) ([]byte, error) {
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	return append(buf, f(q)...), nil
}

// data is a record's data without compression.
func data(t *testing.T, rr dns.RR) []byte {
	t.Helper()
	rr = dns.Copy(rr)
	rr.Header().Name = "."
	buf := make([]byte, wire.MaxMessage)
	n, err := dns.PackRR(rr, buf, 0, nil, false)
	if err != nil {
		t.Fatalf("%v: %v", rr, err)
	}
	return buf[11:n]
}

// Whatever the type of a record, known to us or not: what upstream says is what clients
// get, the first and those after it, behind an alias or not, compressed or not.
func TestEveryTypeComesThroughWhole(t *testing.T) {
	rrs, err := dnstest.Records("pool.Types.example.", 30)
	if err != nil {
		t.Fatal(err)
	}
	for i, rr := range rrs {
		typ := rr.Header().Rrtype
		for _, name := range []string{"pool.Types.example.", "WWW.example."} {
			for _, compress := range []bool{false, true} {
				if name == "WWW.example." && typ == dns.TypeCNAME {
					continue // the alias itself is what was asked for
				}
				t.Run(fmt.Sprintf("%s of %s, compressed %v", dns.Type(typ), name, compress), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						s := offline(t, packed(func(q *dns.Msg) []byte {
							m := new(dns.Msg).SetReply(q)
							if name == "WWW.example." {
								m.Answer = append(m.Answer, record(t, "www.example. 30 CNAME pool.Types.example."))
							}
							// Names may lead to those in the data before them.
							m.Answer = append(m.Answer, rr, rrs[(i+1)%len(rrs)])
							m.Ns = append(m.Ns, record(t, "types.example. 30 NS ns.pool.Types.example."))
							m.Extra = append(m.Extra, record(t, "ns.pool.Types.example. 30 A 192.0.2.53"))
							m.Compress = compress
							b, err := m.Pack()
							if err != nil {
								t.Error(err)
							}
							return b
						}))
						a, err := dnstest.ParseAsk([]string{name, dns.Type(typ).String()})
						if err != nil {
							t.Fatal(err)
						}
						for age := range 3 {
							got := new(dns.Msg)
							if err := got.Unpack(reply(t, s, a.Packet)); err != nil {
								t.Fatal(err)
							}
							var found []dns.RR
							for _, r := range got.Answer {
								if r.Header().Rrtype == typ {
									found = append(found, r)
								}
							}
							if len(found) != 1 || !bytes.Equal(data(t, found[0]), data(t, rr)) {
								t.Fatalf("after %d s: %v\nwant %v", age, got, rr)
							}
							if h := found[0].Header(); h.Name != rr.Header().Name || h.Ttl != uint32(30-age) {
								t.Errorf("after %d s: %v", age, h)
							}
							time.Sleep(time.Second)
						}
						if c := s.Stats().Cache[zoneExternal]; c.Hits != 2 || c.Misses != 1 {
							t.Errorf("%+v", c)
						}
					})
				})
			}
		}
	}
}

func record(t *testing.T, text string) dns.RR {
	t.Helper()
	rr, err := dnstest.ParseRecord(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

// reply is what a client gets that asks over TCP.
func reply(t *testing.T, s *Server, query []byte) []byte {
	t.Helper()
	var q question
	out, outcome := s.answer(&s.streamC, &q, query, nil, wire.MaxMessage, s.now())
	if outcome == replied {
		return out
	}
	got := make(chan []byte, 1)
	s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: query, limit: wire.MaxMessage, got: got})
	return <-got
}

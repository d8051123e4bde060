package dnscache

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// asking is an exchanger that is only named.
type asking string

func (asking) Exchange(context.Context, []byte, []byte) ([]byte, error) { return nil, io.EOF }

func TestWhoIsAskedForWhatAndHow(t *testing.T) {
	cfg := testConfig(netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("10.96.0.11:53"))
	cfg.Cluster.Transport, cfg.Cluster.Policy = TransportTCP, upstream.RoundRobin
	cfg.Reverse.Transport = TransportUDP
	cfg.External.Policy = upstream.Random
	secure := upstream.Addr{AddrPort: netip.MustParseAddrPort("192.0.2.2:853"), TLSName: "dns.example"}
	cfg.Upstreams = Upstreams{Source: ServerList, Servers: []upstream.Addr{{AddrPort: netip.MustParseAddrPort("192.0.2.1:53")}, secure}}
	cfg.StubDomains = []StubDomain{{Zone: "corp.example", Servers: []upstream.Addr{secure, {AddrPort: netip.MustParseAddrPort("10.96.0.10:53")}}}}
	r := newRoutes(cfg, nil, func(server netip.AddrPort, p Proto) upstream.Exchanger {
		return asking(fmt.Sprintf("%s over %s", server, p))
	}, &upstreamCounters{}, time.Now, nil)
	var b strings.Builder
	for _, rt := range r.all {
		fmt.Fprintf(&b, "%s: policy %d\n", ZoneKinds[rt.zone], rt.group.Policy)
		for _, s := range rt.group.Servers {
			fmt.Fprintf(&b, "\t%s: %v", s.Addr, s.TCP)
			if s.UDP != nil {
				fmt.Fprintf(&b, ", first %v", s.UDP)
			}
			b.WriteString("\n")
		}
	}
	const want = `external: policy 1
	192.0.2.1:53: 192.0.2.1:53 over tcp, first 192.0.2.1:53 over udp
	tls://192.0.2.2:853#dns.example: 192.0.2.2:853 over tls
cluster: policy 2
	10.96.0.10:53: 10.96.0.10:53 over tcp
	10.96.0.11:53: 10.96.0.11:53 over tcp
reverse: policy 0
	10.96.0.10:53: 10.96.0.10:53 over tcp, first 10.96.0.10:53 over udp
	10.96.0.11:53: 10.96.0.11:53 over tcp, first 10.96.0.11:53 over udp
external: policy 1
	tls://192.0.2.2:853#dns.example: 192.0.2.2:853 over tls
	10.96.0.10:53: 10.96.0.10:53 over tcp
`
	if diff := gocmp.Diff(strings.Split(want, "\n"), strings.Split(b.String(), "\n")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Names of one zone that hang must not take another one's connections.
func TestNoTwoRoutesShareAConnection(t *testing.T) {
	cfg := testConfig(kubeDNS)
	cfg.StubDomains = []StubDomain{{Zone: "corp.example", Servers: upstream.Plain([]netip.AddrPort{kubeDNS})}}
	r := newRoutes(cfg, nil, network(time.Now), &upstreamCounters{}, time.Now, nil)
	seen := map[upstream.Exchanger]bool{}
	for _, rt := range r.all {
		for _, s := range rt.group.Servers {
			if seen[s.TCP] {
				t.Errorf("%s shares the connections of another zone", ZoneKinds[rt.zone])
			}
			seen[s.TCP] = true
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d pools, want 4", len(seen))
	}
}

// The whole way, from a client's packet to a server that is asked over TLS.
func TestAnAnswerThatCameOverTLS(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"dns.example"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go answerOne(nc)
		}
	}()
	cfg := testConfig(kubeDNS)
	cfg.Roots = x509.NewCertPool()
	cfg.Roots.AddCert(c)
	cfg.Upstreams = Upstreams{Source: ServerList, Servers: []upstream.Addr{{AddrPort: netip.MustParseAddrPort(l.Addr().String()), TLSName: "dns.example"}}}
	s, at := serve(t, cfg)
	client := dial(t, "udp", at)
	if _, err := client.Write(packet(t, "www.example.", "A")); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, wire.MaxUDP)
	n, err := client.Read(reply)
	if err != nil || wire.RCode(reply[:n]) != wire.NXDomain {
		t.Errorf("%x, %v", reply[:n], err)
	}
	for _, u := range s.Stats().Upstreams {
		if u.Server.Addr().IsLoopback() && (u.Proto != TLS || u.Queries == 0 || u.Errors != 0) {
			t.Errorf("%s over %s: %d queries, %d errors", u.Server, u.Proto, u.Queries, u.Errors)
		}
	}
}

// answerOne says NXDOMAIN to one question.
func answerOne(c net.Conn) {
	defer func() { _ = c.Close() }()
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	q := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, q); err != nil {
		return
	}
	var parsed wire.Query
	wire.ParseQuery(q, &parsed)
	r := wire.AppendError(nil, &parsed, wire.NXDomain, wire.EDENone)
	_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(r))), r...))
}

package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// An authority gives certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{t, c, k}
}

// issue makes a certificate for a name and an address.
func (a *authority) issue(name string, at netip.Addr) tls.Certificate {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{at.AsSlice()},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, k.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// A tlsServer answers all questions. It counts them, and knows its connections.
type tlsServer struct {
	at netip.AddrPort

	mu      sync.Mutex
	states  []tls.ConnectionState
	replies int
}

// serveTLS serves with cert; a connection is closed after its nth reply, if n is not 0.
func serveTLS(t *testing.T, cert tls.Certificate, version uint16, n int) *tlsServer {
	s := &tlsServer{}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, MaxVersion: version}
	s.at = serveTCP(t, func(_ int64, nc *net.TCPConn) {
		c := tls.Server(nc, cfg)
		if c.Handshake() != nil {
			return
		}
		s.mu.Lock()
		s.states = append(s.states, c.ConnectionState())
		s.mu.Unlock()
		for i := 1; ; i++ {
			q := frame(c)
			if q == nil {
				return
			}
			s.mu.Lock()
			s.replies++
			s.mu.Unlock()
			_, _ = c.Write(framed(benchReply(nil, q)))
			if i == n {
				_ = c.Close()
				return
			}
		}
	}).at
	return s
}

func newTLS(t *testing.T, server Addr, roots *x509.CertPool) *Pool {
	p := NewTLS(server, roots, time.Now)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestQuestionsOverTLS(t *testing.T) {
	leaves(t)
	ca := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s := serveTLS(t, ca.issue("dns.example", netip.MustParseAddr("127.0.0.1")), version, 0)
		for _, name := range []string{"dns.example", "127.0.0.1"} {
			p := newTLS(t, Addr{s.at, name}, ca.pool())
			for range 10 {
				r, err := p.Exchange(t.Context(), query(t, "www.example"), nil)
				if err != nil || address(t, r) != "192.0.2.1" {
					t.Fatalf("%s: %x, %v", name, r, err)
				}
			}
		}
		s.mu.Lock()
		if len(s.states) < 2 || s.states[0].Version != version || s.states[0].ServerName != "dns.example" {
			t.Errorf("%d connections, of version %x", len(s.states), s.states[0].Version)
		}
		s.mu.Unlock()
	}
}

func TestAServerMustProveItsName(t *testing.T) {
	leaves(t)
	ca := newAuthority(t)
	s := serveTLS(t, ca.issue("dns.example", netip.MustParseAddr("192.0.2.1")), tls.VersionTLS13, 0)
	var wrongName x509.HostnameError
	var unknown x509.UnknownAuthorityError
	for _, tt := range []struct {
		what  string
		name  string
		roots *x509.CertPool
		want  any
	}{
		{"another name", "other.example", ca.pool(), &wrongName},
		{"another address", "127.0.0.1", ca.pool(), &wrongName},
		{"another authority", "dns.example", newAuthority(t).pool(), &unknown},
		{"the system's authorities", "dns.example", nil, &unknown},
	} {
		p := newTLS(t, Addr{s.at, tt.name}, tt.roots)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if r, err := p.Exchange(ctx, query(t, "www.example"), nil); !errors.As(err, tt.want) {
			t.Errorf("%s: %x, %v", tt.what, r, err)
		}
		cancel()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.replies != 0 {
		t.Error("a question was told to whom it was not meant for")
	}
}

func TestAServerWithoutTLSIsAnError(t *testing.T) {
	leaves(t)
	s := serveTCP(t, func(_ int64, c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 100))
		_, _ = c.Write(framed(make([]byte, 40)))
		_, _ = io.Copy(io.Discard, c)
	})
	p := newTLS(t, Addr{s.at, "dns.example"}, newAuthority(t).pool())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var header tls.RecordHeaderError
	if r, err := p.Exchange(ctx, query(t, "www.example"), nil); !errors.As(err, &header) {
		t.Errorf("%x, %v", r, err)
	}
}

// A server that closes every connection after one reply, idle or not.
func TestSessionsAreResumed(t *testing.T) {
	leaves(t)
	ca := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s := serveTLS(t, ca.issue("dns.example", netip.MustParseAddr("127.0.0.1")), version, 1)
		g := over(nil, newTLS(t, Addr{s.at, "dns.example"}, ca.pool()))
		for range 10 {
			if _, err := g.Exchange(t.Context(), key(t, "www.example")); err != nil {
				t.Fatal(err)
			}
		}
		s.mu.Lock()
		resumed := 0
		for _, st := range s.states {
			if st.DidResume {
				resumed++
			}
		}
		if len(s.states) < 10 || s.states[0].DidResume || resumed < 5 {
			t.Errorf("version %x: %d of %d connections resumed a session", version, resumed, len(s.states))
		}
		s.mu.Unlock()
	}
}

func TestAddrAsText(t *testing.T) {
	at := netip.MustParseAddrPort("[2001:db8::1]:853")
	for want, a := range map[string]Addr{
		"[2001:db8::1]:853":                   {AddrPort: at},
		"tls://[2001:db8::1]:853#dns.example": {at, "dns.example"},
	} {
		if a.String() != want {
			t.Errorf("%s, want %s", a, want)
		}
	}
}

package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"time"
)

// An Addr is where a server is, and, where it is asked over TLS only (RFC
// 7858), who it must prove to be.
type Addr struct {
	netip.AddrPort
	TLSName string // the name in its certificate, or an IP address; empty: no TLS
}

// String is a as the configuration spells it, the port always given.
func (a Addr) String() string {
	if a.TLSName == "" {
		return a.AddrPort.String()
	}
	return "tls://" + a.AddrPort.String() + "#" + a.TLSName
}

// Plain are servers that are asked without TLS.
func Plain(servers []netip.AddrPort) []Addr {
	out := make([]Addr, len(servers))
	for i, s := range servers {
		out[i].AddrPort = s
	}
	return out
}

// NewTLS returns an exchanger that asks server over TLS, which must have a
// certificate for its TLSName from one of roots; nil stands for the system's.
// Sessions are resumed, so that a new connection costs no certificate.
func NewTLS(server Addr, roots *x509.CertPool, now func() time.Time) *Pool {
	cfg := &tls.Config{
		ServerName:         server.TLSName,
		RootCAs:            roots,
		MinVersion:         tls.VersionTLS12,                // RFC 9325 3.1.1
		ClientSessionCache: tls.NewLRUClientSessionCache(1), // there is one name
		Time:               now,
	}
	address := server.AddrPort.String()
	return newPool(now, firstTLSPace, func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{NetDialer: &net.Dialer{KeepAlive: -1}, Config: cfg}
		return d.DialContext(ctx, "tcp", address)
	})
}

package relay

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// onLoopback is a relay on real sockets that asks servers, and where clients ask
// it over UDP and TCP.
func onLoopback(t *testing.T, servers ...net.Addr) (udpAddr, tcpAddr string) {
	t.Helper()
	packets, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 53)})
	if err != nil {
		t.Fatal(err)
	}
	streams, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 53)})
	if err != nil {
		t.Fatal(err)
	}
	d := Real()
	d.Log, d.Packets, d.Streams = slog.New(slog.DiscardHandler), []PacketConn{packets}, []Listener{streams}
	r := New(d)
	var list []netip.AddrPort
	for _, s := range servers {
		list = append(list, addrPort(s))
	}
	r.Ask(list)
	ctx, stop := context.WithCancel(context.Background()) //nolint:usetesting // ended by the clean-up, which waits
	done := make(chan struct{})
	go func() {
		r.Serve(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return packets.LocalAddr().String(), streams.Addr().String()
}

func listenUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// answerWith answers the query in pkt with address a.
func answerWith(t *testing.T, pkt []byte, a string) []byte {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(pkt); err != nil {
		t.Errorf("the server got what is no query: %v", err)
		return nil
	}
	return replies(t, "answers", a, m)[0].([]byte)
}

// The kernel sees to it: the port is connected to the server.
func TestAReplyFromAnotherSourceIsNone(t *testing.T) {
	server, forger := listenUDP(t), listenUDP(t)
	at, _ := onLoopback(t, server.LocalAddr())
	go func() {
		buf := make([]byte, 512)
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			return // the test is over
		}
		// All that a forger could know, and first.
		_, _ = forger.WriteToUDPAddrPort(answerWith(t, buf[:n], "10.6.6.6"), from)
		_, _ = server.WriteToUDPAddrPort(answerWith(t, buf[:n], "10.0.0.1"), from)
	}()
	m := new(dns.Msg)
	m.SetQuestion("a.", dns.TypeA)
	reply, err := dns.Exchange(m, at)
	if err != nil {
		t.Fatal(err)
	}
	if got := said(reply); got != "NOERROR a. 10.0.0.1" {
		t.Errorf("told %s", got)
	}
}

// The wait for a refused port would end this test with the SERVFAIL's EDE, but it
// could not tell how soon: a second server that answers can.
func TestAPortThatIsRefusedCostsNoWait(t *testing.T) {
	refuses, server := listenUDP(t), listenUDP(t)
	gone := refuses.LocalAddr()
	_ = refuses.Close()
	at, _ := onLoopback(t, gone, server.LocalAddr())
	go func() {
		buf := make([]byte, 512)
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			return // the test is over
		}
		_, _ = server.WriteToUDPAddrPort(answerWith(t, buf[:n], "10.0.0.1"), from)
	}()
	m := new(dns.Msg)
	m.SetQuestion("a.", dns.TypeA)
	reply, err := dns.Exchange(m, at)
	if err != nil {
		t.Fatal(err)
	}
	if got := said(reply); got != "NOERROR a. 10.0.0.1" {
		t.Errorf("told %s", got)
	}
}

func TestAServerThatBreaksOffInsideAReplyIsAskedAgain(t *testing.T) {
	server, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, at := onLoopback(t, server.Addr())
	go func() {
		for n := 0; ; n++ {
			conn, err := server.AcceptTCP()
			if err != nil {
				return // the test is over
			}
			size := make([]byte, 2)
			_, _ = io.ReadFull(conn, size)
			query := make([]byte, binary.BigEndian.Uint16(size))
			_, _ = io.ReadFull(conn, query)
			reply := answerWith(t, query, "10.0.0.1")
			reply = append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
			if n == 0 {
				_, _ = conn.Write(reply[:len(reply)/2])
				_ = conn.SetLinger(0) // a reset
			} else {
				_, _ = conn.Write(reply)
			}
			_ = conn.Close()
		}
	}()
	m := new(dns.Msg)
	m.SetQuestion("a.", dns.TypeA)
	reply, _, err := (&dns.Client{Net: "tcp"}).Exchange(m, at)
	if err != nil {
		t.Fatal(err)
	}
	if got := said(reply); got != "NOERROR a. 10.0.0.1" {
		t.Errorf("told %s", got)
	}
}

// What glibc, musl, Go and c-ares look at before they take a failure for one and
// ask their next nameserver: id, QR, RA, and the question as they spelt it.
func TestTheFailureIsOneThatStubResolversTake(t *testing.T) {
	udpAddr, tcpAddr := onLoopback(t)
	for _, network := range []string{"udp", "tcp"} {
		for _, edns := range []bool{false, true} {
			m := new(dns.Msg)
			m.SetQuestion("KuberNetes.default.svc.cluster.local.", dns.TypeAAAA)
			m.CheckingDisabled = true
			if edns {
				m.SetEdns0(1232, true)
			}
			at := map[string]string{"udp": udpAddr, "tcp": tcpAddr}[network]
			got, _, err := (&dns.Client{Net: network}).Exchange(m, at)
			if err != nil {
				t.Fatalf("%s: %v", network, err)
			}
			want := new(dns.Msg)
			want.SetRcode(m, dns.RcodeServerFailure)
			want.RecursionAvailable, want.CheckingDisabled = true, true
			if edns {
				want.SetEdns0(1232, true)
				want.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeNoReachableAuthority, ExtraText: "nodelocaldns: no upstream is known"}}
			}
			if got.String() != want.String() {
				t.Errorf("%s: got:\n%s\nwant:\n%s", network, got, want)
			}
		}
	}
}

package kubedns

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func listen(t *testing.T) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func ask(t *testing.T, s *Server, proto, name string, qtype uint16) *dns.Msg {
	t.Helper()
	m, err := exchange(s, proto, name, qtype)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func exchange(s *Server, proto, name string, qtype uint16) (*dns.Msg, error) {
	m, _, err := (&dns.Client{Net: proto}).Exchange(new(dns.Msg).SetQuestion(name, qtype), s.Addr())
	return m, err
}

// text is the reply as a person reads it: rcode, flags, and the records of the
// answer, or those of the authority section behind a "!".
func text(m *dns.Msg) string {
	words := []string{dns.RcodeToString[m.Rcode]}
	if m.Authoritative {
		words = append(words, "aa")
	}
	if m.Truncated {
		words = append(words, "tc")
	}
	add := func(mark string, rrs []dns.RR) {
		for _, rr := range rrs {
			h := rr.Header()
			value := strings.TrimPrefix(rr.String(), h.String())
			words = append(words, fmt.Sprintf("%s[%s %d %s %s]", mark, h.Name, h.Ttl, dns.TypeToString[h.Rrtype], value))
		}
	}
	add("", m.Answer)
	add("!", m.Ns)
	return strings.Join(words, " ")
}

const clusterSOA = "![cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30]"

func TestItAnswersAsTheKubeDNSOfASmallCluster(t *testing.T) {
	s := listen(t)
	for _, c := range []struct {
		what, name string
		qtype      uint16
		want       string
	}{
		{"a service", "kubernetes.default.svc.cluster.local.", dns.TypeA,
			"NOERROR aa [kubernetes.default.svc.cluster.local. 30 A 10.96.0.1]"},
		{"the name keeps its case", "Kubernetes.DEFAULT.svc.cluster.local.", dns.TypeA,
			"NOERROR aa [Kubernetes.DEFAULT.svc.cluster.local. 30 A 10.96.0.1]"},
		{"a service without IPv6", "kubernetes.default.svc.cluster.local.", dns.TypeAAAA,
			"NOERROR aa " + clusterSOA},
		{"a headless service", "db.shop.svc.cluster.local.", dns.TypeA,
			"NOERROR aa [db.shop.svc.cluster.local. 30 A 10.244.1.11] [db.shop.svc.cluster.local. 30 A 10.244.1.12] [db.shop.svc.cluster.local. 30 A 10.244.2.13]"},
		{"a port of a service", "_http._tcp.web.shop.svc.cluster.local.", dns.TypeSRV,
			"NOERROR aa [_http._tcp.web.shop.svc.cluster.local. 30 SRV 0 100 80 web.shop.svc.cluster.local.]"},
		{"no such port, though names lie below it", "_tcp.web.shop.svc.cluster.local.", dns.TypeSRV,
			"NXDOMAIN aa " + clusterSOA},
		{"a namespace", "shop.svc.cluster.local.", dns.TypeA,
			"NOERROR aa " + clusterSOA},
		{"what a search path makes of an outside name", "example.com.default.svc.cluster.local.", dns.TypeA,
			"NXDOMAIN aa " + clusterSOA},
		{"a pod", "10-244-1-11.shop.pod.cluster.local.", dns.TypeA,
			"NOERROR aa [10-244-1-11.shop.pod.cluster.local. 30 A 10.244.1.11]"},
		{"a pod has no IPv6", "10-244-1-11.shop.pod.cluster.local.", dns.TypeAAAA,
			"NOERROR aa " + clusterSOA},
		{"no pod", "10-244-1.shop.pod.cluster.local.", dns.TypeA,
			"NXDOMAIN aa " + clusterSOA},
		{"a chain out of the cluster", "mail.shop.svc.cluster.local.", dns.TypeA,
			"NOERROR aa [mail.shop.svc.cluster.local. 30 CNAME mail.example.com.] [mail.example.com. 300 CNAME mx.example.net.] [mx.example.net. 300 CNAME mx1.example.net.] [mx1.example.net. 300 A 192.0.2.25]"},
		{"a chain that ends in no data", "mail.example.com.", dns.TypeAAAA,
			"NOERROR [mail.example.com. 300 CNAME mx.example.net.] [mx.example.net. 300 CNAME mx1.example.net.] ![example.net. 300 SOA ns.example.com. admin.example.com. 1 7200 3600 1209600 300]"},
		{"the CNAME itself", "www.example.com.", dns.TypeCNAME,
			"NOERROR [www.example.com. 300 CNAME example.com.]"},
		{"an address of the cluster", "1.0.96.10.in-addr.arpa.", dns.TypePTR,
			"NOERROR aa [1.0.96.10.in-addr.arpa. 30 PTR kubernetes.default.svc.cluster.local.]"},
		{"an address nobody has", "9.9.99.10.in-addr.arpa.", dns.TypePTR,
			"NXDOMAIN aa ![10.in-addr.arpa. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30]"},
		{"an outside address", "80.2.0.192.in-addr.arpa.", dns.TypePTR,
			"NOERROR [80.2.0.192.in-addr.arpa. 86400 PTR example.com.]"},
		{"an outside name that is not", "nowhere.example.com.", dns.TypeA,
			"NXDOMAIN ![example.com. 300 SOA ns.example.com. admin.example.com. 1 7200 3600 1209600 300]"},
		{"a short life", "short.example.com.", dns.TypeA,
			"NOERROR [short.example.com. 2 A 192.0.2.81]"},
	} {
		for _, proto := range []string{"udp", "tcp"} {
			t.Run(c.what+" over "+proto, func(t *testing.T) {
				if diff := cmp.Diff(c.want, text(ask(t, s, proto, c.name, c.qtype))); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		}
	}
}

func TestABigAnswerIsTruncatedOverUDPAndWholeOverTCP(t *testing.T) {
	s := listen(t)
	for _, c := range []struct {
		name  string
		qtype uint16
		size  uint16 // of the client's buffer in its EDNS option; 0 for no option
		whole int
	}{
		{"many.shop.svc.cluster.local.", dns.TypeA, 0, 100},
		{"many.shop.svc.cluster.local.", dns.TypeA, 1232, 100},
		{"big.shop.svc.cluster.local.", dns.TypeTXT, 1232, 60},
	} {
		q := new(dns.Msg).SetQuestion(c.name, c.qtype)
		limit := dns.MinMsgSize
		if c.size > 0 {
			q.SetEdns0(c.size, false)
			limit = int(c.size)
		}
		m, err := dns.Exchange(q, s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		m.Compress = true // as it was sent
		if !m.Truncated || m.Len() > limit {
			t.Errorf("%s, buffer of %d: tc=%t and %d bytes over UDP, want a truncated reply that fits", c.name, c.size, m.Truncated, m.Len())
		}
		if (m.IsEdns0() != nil) != (c.size > 0) {
			t.Errorf("%s, buffer of %d: reply has an EDNS option: %t", c.name, c.size, m.IsEdns0() != nil)
		}
		if m := ask(t, s, "tcp", c.name, c.qtype); m.Truncated || len(m.Answer) != c.whole {
			t.Errorf("%s: tc=%t and %d records over TCP, want all %d", c.name, m.Truncated, len(m.Answer), c.whole)
		}
	}
}

func TestQueriesOnOneTCPConnectionAreAnsweredInTurn(t *testing.T) {
	s := listen(t)
	conn, err := dns.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var sent, got []uint16
	for range 20 {
		q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		sent = append(sent, q.Id)
		if err := conn.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for range sent {
		m, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Id)
	}
	if !slices.Equal(sent, got) {
		t.Errorf("replies came for %d, want %d", got, sent)
	}
}

func TestItCountsWhatItIsAsked(t *testing.T) {
	s := listen(t)
	ask(t, s, "udp", "Example.com.", dns.TypeA)
	ask(t, s, "tcp", "example.com.", dns.TypeA)
	ask(t, s, "udp", "example.com.", dns.TypeAAAA)
	want := Counts{UDP: 2, TCP: 1, Names: map[string]uint64{"example.com. A": 2, "example.com. AAAA": 1}}
	if diff := cmp.Diff(want, s.Counts()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	s.Reset()
	if diff := cmp.Diff(Counts{Names: map[string]uint64{}}, s.Counts()); diff != "" {
		t.Errorf("after a reset, -want +got:\n%s", diff)
	}
}

func TestItCanBeToldToMisbehave(t *testing.T) {
	behave := func(t *testing.T, b Behaviour) *Server {
		t.Helper()
		s := listen(t)
		if err := s.Behave(b); err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("an rcode is the whole reply", func(t *testing.T) {
		s := behave(t, Behaviour{Rcode: "SERVFAIL"})
		if got := text(ask(t, s, "udp", "example.com.", dns.TypeA)); got != "SERVFAIL" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a TTL is that of all records", func(t *testing.T) {
		s := behave(t, Behaviour{TTL: 7})
		for range 2 { // the zone itself is not changed
			if got := ask(t, s, "udp", "www.example.com.", dns.TypeA).Answer; got[0].Header().Ttl != 7 || got[1].Header().Ttl != 7 {
				t.Errorf("got %v", got)
			}
		}
		if got := ask(t, s, "udp", "x.example.com.", dns.TypeA).Ns; got[0].Header().Ttl != 7 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("one protocol alone", func(t *testing.T) {
		s := behave(t, Behaviour{Proto: "udp", Rcode: "REFUSED"})
		udp, tcp := ask(t, s, "udp", "example.com.", dns.TypeA), ask(t, s, "tcp", "example.com.", dns.TypeA)
		if udp.Rcode != dns.RcodeRefused || tcp.Rcode != dns.RcodeSuccess {
			t.Errorf("got %s over UDP and %s over TCP", text(udp), text(tcp))
		}
	})
	t.Run("one zone alone", func(t *testing.T) {
		s := behave(t, Behaviour{Below: "Example.com", Rcode: "REFUSED"})
		for name, want := range map[string]int{"example.com.": dns.RcodeRefused, "www.EXAMPLE.com.": dns.RcodeRefused, "mx1.example.net.": dns.RcodeSuccess} {
			if got := ask(t, s, "udp", name, dns.TypeA); got.Rcode != want {
				t.Errorf("%s: got %s", name, text(got))
			}
		}
	})
	t.Run("every second query dropped", func(t *testing.T) {
		s := behave(t, Behaviour{DropEvery: 2})
		conn, err := dns.Dial("tcp", s.Addr()) // where queries are served in turn
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for i := range uint16(5) {
			q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
			q.Id = i
			if err := conn.WriteMsg(q); err != nil {
				t.Fatal(err)
			}
		}
		var kept []uint16
		for range 3 {
			m, err := conn.ReadMsg()
			if err != nil {
				t.Fatal(err)
			}
			kept = append(kept, m.Id)
		}
		if want := []uint16{0, 2, 4}; !slices.Equal(kept, want) || s.Counts().TCP != 5 {
			t.Errorf("of %d queries %d were answered, want %d of 5", s.Counts().TCP, kept, want)
		}
	})
	t.Run("silence", func(t *testing.T) {
		s := behave(t, Behaviour{DropEvery: 1})
		w := new(writer)
		s.serveDNS(w, new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
		if w.replies != 0 || s.Counts().Total() != 1 {
			t.Errorf("%d replies to %d queries, want none to one", w.replies, s.Counts().Total())
		}
	})
	t.Run("a delay is waited before each reply", func(t *testing.T) {
		s := listen(t)
		tick := make(chan time.Time)
		asked := make(chan time.Duration, 1)
		s.after = func(d time.Duration) <-chan time.Time { asked <- d; return tick }
		if err := s.Behave(Behaviour{Delay: time.Hour}); err != nil {
			t.Fatal(err)
		}
		reply := make(chan string, 1)
		go func() {
			m, err := exchange(s, "tcp", "short.example.com.", dns.TypeA)
			if err != nil {
				reply <- err.Error()
				return
			}
			reply <- text(m)
		}()
		if d := <-asked; d != time.Hour {
			t.Errorf("waited %s, want 1h", d)
		}
		select {
		case got := <-reply:
			t.Fatalf("replied before the delay was over: %s", got)
		default:
		}
		tick <- time.Time{}
		if got, want := <-reply, "NOERROR [short.example.com. 2 A 192.0.2.81]"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// A writer counts the replies to one client over UDP.
type writer struct {
	dns.ResponseWriter
	replies int
}

func (w *writer) LocalAddr() net.Addr     { return &net.UDPAddr{} }
func (w *writer) WriteMsg(*dns.Msg) error { w.replies++; return nil }

func TestControlOverHTTP(t *testing.T) {
	s := listen(t)
	web := httptest.NewServer(s.Control())
	defer web.Close()
	post := func(path, body string) string {
		t.Helper()
		r, err := web.Client().Post(web.URL+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(r.Status + " " + string(b))
	}
	for _, c := range []struct{ body, want string }{
		{`{"rcode":"SERVFAIL"}`, "200 OK"},
		{`{"rcode":"SERVFALL"}`, `400 Bad Request rcode "SERVFALL" is not one`},
		{`{"proto":"sctp"}`, `400 Bad Request proto "sctp" is not udp or tcp`},
		{`{"delay":-1}`, `400 Bad Request delay -1ns is negative`},
		{`{"rcod":"SERVFAIL"}`, `400 Bad Request unknown field "rcod"`},
	} {
		if got := post("/behave", c.body); got != c.want {
			t.Errorf("%s: got %q, want %q", c.body, got, c.want)
		}
	}
	if m := ask(t, s, "udp", "example.com.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %s, want the behaviour set last by a good request", text(m))
	}
	count := func() Counts {
		t.Helper()
		r, err := web.Client().Get(web.URL + "/count")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		var c Counts
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	if diff := cmp.Diff(Counts{UDP: 1, Names: map[string]uint64{"example.com. A": 1}}, count()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	post("/reset", "")
	if got := count().Total(); got != 0 {
		t.Errorf("%d queries after a reset", got)
	}
}

func TestClosingEndsADelayedReply(t *testing.T) {
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan struct{})
	s.after = func(time.Duration) <-chan time.Time { close(waiting); return nil }
	if err := s.Behave(Behaviour{Delay: time.Hour}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := exchange(s, "tcp", "example.com.", dns.TypeA)
		done <- err
	}()
	<-waiting
	s.Close()
	if err := <-done; err == nil {
		t.Error("a reply came after the server was closed")
	}
}

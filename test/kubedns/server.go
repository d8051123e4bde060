// Package kubedns is a small stand-in for a cluster's kube-dns. It serves the
// names of [cluster.zone] over UDP and TCP, counts what it was asked, and can
// be told to be slow, silent or broken.
//
// Like CoreDNS it is built on miekg/dns and answers the queries of one TCP
// connection in turn: a delayed reply delays those behind it.
package kubedns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Behaviour is how the stand-in treats queries. The zero value answers all of
// them at once.
type Behaviour struct {
	// Proto limits the rest to "udp" or "tcp"; empty means both. TTL is not
	// limited.
	Proto string `json:"proto,omitempty"`
	// Below limits the rest to the names below this one, and the name itself;
	// empty means all. TTL is not limited.
	Below string `json:"below,omitempty"`
	// Delay is waited before each reply, in nanoseconds in JSON.
	Delay time.Duration `json:"delay,omitempty"`
	// DropEvery n leaves every nth query without a reply; 1 is silence, 0 none.
	DropEvery uint64 `json:"dropEvery,omitempty"`
	// Rcode, such as "SERVFAIL", is the whole of every reply.
	Rcode string `json:"rcode,omitempty"`
	// TTL replaces those of all records, in seconds; 0 keeps them.
	TTL uint32 `json:"ttl,omitempty"`
}

func (b Behaviour) validate() error {
	if b.Proto != "" && b.Proto != "udp" && b.Proto != "tcp" {
		return fmt.Errorf("proto %q is not udp or tcp", b.Proto)
	}
	if b.Delay < 0 {
		return fmt.Errorf("delay %s is negative", b.Delay)
	}
	if _, ok := dns.StringToRcode[b.Rcode]; b.Rcode != "" && !ok {
		return fmt.Errorf("rcode %q is not one", b.Rcode)
	}
	return nil
}

// Counts says what was asked since the start or the last reset, answered or
// not.
type Counts struct {
	UDP   uint64            `json:"udp"`
	TCP   uint64            `json:"tcp"`
	Names map[string]uint64 `json:"names"` // by "name type", folded, such as "example.com. A"
}

// Total is the number of queries over both protocols.
func (c Counts) Total() uint64 { return c.UDP + c.TCP }

// A Server is a running stand-in. Its methods may be called from any
// goroutine.
type Server struct {
	zone    *zone
	servers []*dns.Server
	addr    string
	after   func(time.Duration) <-chan time.Time
	closing chan struct{}
	close   sync.Once

	mu        sync.Mutex
	behaviour Behaviour
	counts    Counts
}

// Listen serves on addr, an address and port, over UDP and TCP. Port 0 takes
// one that is free for both. The caller closes the server.
func Listen(addr string) (*Server, error) {
	z, err := cluster()
	if err != nil {
		return nil, err
	}
	l, pc, err := listenBoth(addr)
	if err != nil {
		return nil, err
	}
	s := &Server{zone: z, addr: pc.LocalAddr().String(), after: time.After, closing: make(chan struct{})}
	s.Reset()
	for _, d := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		started := make(chan struct{})
		d.Handler = dns.HandlerFunc(s.serveDNS)
		d.NotifyStartedFunc = func() { close(started) }
		go func() { _ = d.ActivateAndServe() }() // ends with Close; the sockets are open already
		<-started
		s.servers = append(s.servers, d)
	}
	return s, nil
}

// listenBoth opens one port for both protocols. A free TCP port may be taken
// for UDP, so port 0 is tried a few times.
func listenBoth(addr string) (net.Listener, net.PacketConn, error) {
	var errs []error
	for range 5 {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc, nil
		}
		errs = append(errs, err, l.Close())
	}
	return nil, nil, errors.Join(errs...)
}

// Addr is the address and port served.
func (s *Server) Addr() string { return s.addr }

// Close ends the server and its connections. Replies that are being delayed
// are not sent.
func (s *Server) Close() {
	s.close.Do(func() {
		close(s.closing)
		for _, d := range s.servers {
			_ = d.ShutdownContext(context.Background()) // the only error is "not started"
		}
	})
}

// Behave sets how queries are treated from now on.
func (s *Server) Behave(b Behaviour) error {
	if err := b.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behaviour = b
	return nil
}

// Counts returns what was asked so far.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	c.Names = make(map[string]uint64, len(s.counts.Names))
	for k, v := range s.counts.Names {
		c.Names[k] = v
	}
	return c
}

// Reset sets all counts to zero.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts = Counts{Names: map[string]uint64{}}
}

// count notes a query, and says how to treat it and its place among all.
func (s *Server) count(q dns.Question, proto string) (Behaviour, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if proto == "tcp" {
		s.counts.TCP++
	} else {
		s.counts.UDP++
	}
	s.counts.Names[dns.CanonicalName(q.Name)+" "+dns.TypeToString[q.Qtype]]++
	b := s.behaviour
	if b.Proto != "" && b.Proto != proto || b.Below != "" && !dns.IsSubDomain(dns.CanonicalName(b.Below), dns.CanonicalName(q.Name)) {
		b = Behaviour{TTL: b.TTL}
	}
	return b, s.counts.Total()
}

func (s *Server) serveDNS(w dns.ResponseWriter, req *dns.Msg) {
	if len(req.Question) != 1 {
		m := new(dns.Msg)
		_ = w.WriteMsg(m.SetRcodeFormatError(req))
		return
	}
	q, proto := req.Question[0], w.LocalAddr().Network()
	b, nth := s.count(q, proto)
	if b.DropEvery > 0 && nth%b.DropEvery == 0 {
		return
	}
	if b.Delay > 0 {
		select {
		case <-s.after(b.Delay):
		case <-s.closing:
			return
		}
	}
	m := new(dns.Msg).SetReply(req)
	if b.Rcode != "" {
		m.Rcode = dns.StringToRcode[b.Rcode]
	} else {
		m = s.zone.reply(req)
		setTTL(m, b.TTL)
	}
	limit := dns.MaxMsgSize
	opt := req.IsEdns0()
	if proto == "udp" {
		limit = dns.MinMsgSize
		if opt != nil {
			limit = max(limit, int(opt.UDPSize()))
		}
	}
	if opt != nil {
		m.SetEdns0(1232, opt.Do())
	}
	m.Compress = true
	m.Truncate(limit)
	_ = w.WriteMsg(m) // the asker is gone
}

func setTTL(m *dns.Msg, ttl uint32) {
	if ttl == 0 {
		return
	}
	for _, rr := range append(append([]dns.RR{}, m.Answer...), m.Ns...) {
		rr.Header().Ttl = ttl
	}
}

// Control serves GET /count, POST /reset and POST /behave with a [Behaviour]
// in JSON, which replaces the one before.
func (s *Server) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Counts())
	})
	mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { s.Reset() })
	mux.HandleFunc("POST /behave", func(w http.ResponseWriter, r *http.Request) {
		var b Behaviour
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		err := d.Decode(&b)
		if err == nil {
			err = s.Behave(b)
		}
		if err != nil {
			http.Error(w, strings.TrimPrefix(err.Error(), "json: "), http.StatusBadRequest)
		}
	})
	return mux
}

// Package bench is a load test that anybody can run: it looks names up as the
// programs of pods do, so many at once for so long, and counts what became of
// them and how long they took.
//
// A lookup is what getaddrinfo of glibc asks name servers for: the names that
// the search path makes of a name, in turn, each for A and AAAA at once, and the
// next server where one is silent or cannot. Neither /etc/hosts nor a cache has
// a part in it. In two things it is not glibc: sockets are kept from one lookup
// to the next unless Config.Fresh is set, and the options no-tld-query, no-aaaa
// and trust-ad change nothing.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// The bounds of a Config, so that a slip of the finger does no harm.
const (
	// MaxConcurrency is a fraction of the 28,232 ports that Linux has for
	// sockets without one of their own (ip_local_port_range): each lookup may
	// hold a port for each of MaxServers, and the node needs some too.
	MaxConcurrency = 5000
	// MaxDuration is more than what a measurement needs; what runs for longer
	// and is forgotten is an outage.
	MaxDuration = time.Hour
	// MaxHosts bounds the memory: the queries for all names are made
	// beforehand, each of some 100 bytes, for each domain of the search path.
	MaxHosts = 10000
)

// A Config is a load.
type Config struct {
	Hosts       []string // looked up in turn; each passes CheckName
	Types       []uint16 // asked for at once, at least one
	Resolver    Resolver
	Concurrency int           // lookups at once
	Duration    time.Duration // no lookup begins later
	Limit       time.Duration // lookups that took longer are counted
	// Fresh has a socket made for each question, as glibc does, instead of one
	// kept for all lookups: each is a connection more for conntrack.
	Fresh bool
	// Dial connects to a server over "udp" or "tcp". What it returns must give
	// one message to each Read if it is for udp.
	Dial func(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error)
	Seed uint64 // of the identifiers of queries
}

// A Bench is one run of a Config.
type Bench struct {
	cfg   Config
	hosts []host

	mu      sync.Mutex
	figures figures
}

// A host is a name to be looked up.
type host struct {
	questions [][]question // by candidate and type
	asIs      int
}

// New makes everything that a run needs but its sockets. An error says what is
// wrong with cfg.
func New(cfg Config) (*Bench, error) {
	for _, b := range []struct {
		what       string
		n, lo, max int
	}{
		{"hosts", len(cfg.Hosts), 1, MaxHosts},
		{"qtypes", len(cfg.Types), 1, 8},
		{"servers", len(cfg.Resolver.Servers), 1, MaxServers},
		{"concurrency", cfg.Concurrency, 1, MaxConcurrency},
		{"attempts", cfg.Resolver.Attempts, 1, MaxAttempts},
		{"ndots", cfg.Resolver.Ndots, 0, MaxNdots},
	} {
		if b.n < b.lo || b.n > b.max {
			return nil, fmt.Errorf("%s: %d is not between %d and %d", b.what, b.n, b.lo, b.max)
		}
	}
	for _, b := range []struct {
		what   string
		d, max time.Duration
	}{
		{"duration", cfg.Duration, MaxDuration},
		{"limit", cfg.Limit, MaxDuration},
		{"timeout", cfg.Resolver.Timeout, MaxTimeout},
	} {
		if b.d <= 0 || b.d > b.max {
			return nil, fmt.Errorf("%s: %s is not above 0 and at most %s", b.what, b.d, b.max)
		}
	}
	b := &Bench{cfg: cfg}
	for _, name := range cfg.Hosts {
		if err := CheckName(name); err != nil {
			return nil, err
		}
		h, err := newHost(name, cfg)
		if err != nil {
			return nil, err
		}
		b.hosts = append(b.hosts, h)
	}
	return b, nil
}

func newHost(name string, cfg Config) (h host, err error) {
	names, asIs := candidates(name, cfg.Resolver.Search, cfg.Resolver.Ndots)
	h.asIs = asIs
	for _, n := range names {
		if err := CheckName(n); err != nil {
			return h, fmt.Errorf("with the search path: %w", err)
		}
		var qs []question
		for _, t := range cfg.Types {
			q, err := newQuestion(n, t, cfg.Resolver.EDNS)
			if err != nil {
				return h, err
			}
			qs = append(qs, q)
		}
		h.questions = append(h.questions, qs)
	}
	return h, nil
}

// ednsSize is what glibc offers (RESOLV_EDNS_BUFFER_SIZE).
const ednsSize = 1200

func newQuestion(name string, qtype uint16, edns bool) (question, error) {
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Id = 0
	end := m.Len()
	if edns {
		m.SetEdns0(ednsSize, false)
	}
	wire, err := m.Pack()
	if err != nil {
		return question{}, fmt.Errorf("making a query for %s: %w", name, err)
	}
	return question{wire, end}, nil
}

// Run looks names up until Duration is over and the lookups under way have
// ended, or until ctx ends, which cuts them off. It is called once. An error says
// that there were too few files for the sockets, before any lookup.
func (b *Bench) Run(ctx context.Context) error {
	slots := make([]*slot, b.cfg.Concurrency)
	for i := range slots {
		slots[i] = &slot{
			Bench: b,
			rand:  rand.New(rand.NewPCG(b.cfg.Seed, uint64(i))), // #nosec G404 -- it measures, and trusts no reply
			turn:  i,
			next:  i,
			in:    make([]byte, inSize),
			conns: make([]*conn, len(b.cfg.Resolver.Servers)+1),
		}
	}
	defer func() {
		for _, s := range slots {
			s.close()
		}
	}()
	if network := b.network(); network == "udp" {
		for i, s := range slots {
			// A server without a way there is passed over by the lookups.
			_, err := s.open(ctx, network, 0, time.Now().Add(b.cfg.Resolver.Timeout))
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				return fmt.Errorf("making socket %d of %d: %w", i+1, len(slots), err)
			}
		}
	}
	begin := time.Now()
	b.mu.Lock()
	b.figures.begin = begin
	b.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		for _, s := range slots {
			s.interrupt()
		}
	})()
	var all sync.WaitGroup
	for _, s := range slots {
		all.Go(func() { s.run(ctx, begin.Add(b.cfg.Duration)) })
	}
	all.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.figures.end = time.Now()
	b.figures.interrupted = ctx.Err() != nil
	return nil
}

func (b *Bench) network() string {
	if b.cfg.Resolver.TCP {
		return "tcp"
	}
	return "udp"
}

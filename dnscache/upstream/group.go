package upstream

import (
	"context"
	"errors"
	"io"
	"time"

	"nodelocaldns/dnscache/wire"
)

// How a question is tried.
const (
	// tries bounds how often one question is sent.
	tries = 3
	// patience is how long a try is waited for before the next one starts
	// beside it, on another server or another connection. Three of them end
	// before the second in which a client is answered.
	patience = 250 * time.Millisecond
)

// ErrNoServer is returned by a group that has no servers.
var ErrNoServer = errors.New("no upstream server is known")

// A Group is the servers that answer for one zone, in order of preference.
// Its fields do not change once it is in use.
type Group struct {
	Servers []*Server
	Now     func() time.Time
}

type result struct {
	reply []byte
	err   error
}

// Exchange asks for key (wire.AppendKey) and returns the reply, in memory that
// is the caller's. Servers that failed lately are asked last, never not at
// all. A server that answers with a failure is believed only if no other one
// knows better. Exchange ends with ctx.
func (g *Group) Exchange(ctx context.Context, key []byte) ([]byte, error) {
	if len(g.Servers) == 0 {
		return nil, ErrNoServer
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	servers := g.inOrder()
	results := make(chan result, tries)
	var started, waiting int
	var begun [tries]time.Time
	try := func() {
		s := servers[started%len(servers)]
		begun[started] = g.Now()
		started++
		waiting++
		go func() { results <- g.try(ctx, s, key) }()
	}
	try()
	next := time.NewTimer(patience)
	defer next.Stop()
	var refusal []byte // a reply that says failure
	var failure error
	for {
		select {
		case r := <-results:
			waiting--
			// Asking a server that refused once more changes nothing; one that
			// could not be reached is worth another connection.
			limit := tries
			switch {
			case r.err != nil:
				failure = r.err
			case usable(r.reply):
				return r.reply, nil
			case len(servers) == 1:
				return r.reply, nil
			default:
				refusal = r.reply
				limit = min(tries, len(servers))
			}
			if started < limit {
				try()
				next.Reset(patience)
			} else if waiting == 0 {
				if refusal != nil {
					return refusal, nil
				}
				return nil, failure
			}
		case <-next.C:
			for i, at := range begun[:started] {
				servers[i%len(servers)].renewIfSilentSince(at)
			}
			if started < tries {
				try()
				next.Reset(patience)
			}
		case <-ctx.Done():
			if refusal != nil {
				return refusal, nil
			}
			return nil, context.Cause(ctx)
		}
	}
}

// try asks one server and notes how it did. It did not do well if it was
// silent for longer than patience when another one had answered, unless it
// answered somebody else meanwhile: then it was the name that took its time.
func (g *Group) try(ctx context.Context, s *Server, key []byte) result {
	start := g.Now()
	reply, err := s.ask(ctx, g.Now, key)
	now := g.Now()
	switch {
	case err == nil:
		s.ok(now)
	case ctx.Err() == nil:
		s.failed(now)
	case now.Sub(start) >= patience && s.silentSince(start):
		s.failed(now)
	}
	return result{reply, err}
}

func usable(reply []byte) bool {
	rcode := wire.RCode(reply)
	return rcode == wire.NoError || rcode == wire.NXDomain
}

// inOrder is the servers, those that failed lately behind the others.
func (g *Group) inOrder() []*Server {
	if len(g.Servers) == 1 {
		return g.Servers
	}
	now := g.Now()
	up := make([]*Server, 0, len(g.Servers))
	var down []*Server
	for _, s := range g.Servers {
		if s.Down(now) {
			down = append(down, s)
		} else {
			up = append(up, s)
		}
	}
	return append(up, down...)
}

// Close closes the idle connections of all servers.
func (g *Group) Close() {
	for _, s := range g.Servers {
		for _, e := range []Exchanger{s.UDP, s.TCP} {
			if c, ok := e.(io.Closer); ok {
				_ = c.Close()
			}
		}
	}
}

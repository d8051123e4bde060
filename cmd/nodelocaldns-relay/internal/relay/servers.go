package relay

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// servers are those that queries are passed on to, at one time.
type servers struct {
	all []*server

	// By protocol, guarded by Relay.mu.
	first [2]int // index of the one to ask first
	gates [2]gate
}

// A server is one kube-dns.
type server struct {
	addr netip.AddrPort
	tcp  Exchanger

	// Guarded by Relay.mu.
	ports     [portsPerServer]*port
	standings [2]standing // by protocol
}

func (s *servers) find(a netip.AddrPort) *server {
	i := slices.IndexFunc(s.all, func(o *server) bool { return o.addr == a })
	if i < 0 {
		return nil
	}
	return s.all[i]
}

// tries is how often a query is passed on at the most: twice, and to every
// server where the others refuse.
func (s *servers) tries() int { return max(2, len(s.all)) }

// pass says in which order a query that has come at now is to be passed on, if it
// is, and whether it is a probe: over is to be told of its end.
func (s *servers) pass(proto int, now time.Time) (o order, pass, probe bool) {
	o.start = s.first[proto]
	for i, one := range s.all {
		if one.standings[proto].dead && i < countedDead {
			o.dead |= 1 << i
		}
	}
	pass, probe = s.gates[proto].pass(s.dead(proto), now)
	return o, pass, probe
}

// over notes the end of a probe.
func (s *servers) over(proto int) { s.gates[proto].probing = false }

// dead says that there is no server that lives.
func (s *servers) dead(proto int) bool {
	return !slices.ContainsFunc(s.all, func(o *server) bool { return !o.standings[proto].dead })
}

// answered notes a reply at now of the server at index at, and makes it the one to
// ask first.
func (s *servers) answered(proto, at int, now time.Time) {
	s.first[proto] = at
	s.all[at].standings[proto].reply(now)
}

// failed makes another server the one to ask first, if it was the one at index
// at.
func (s *servers) failed(proto, at int) {
	if s.first[proto] == at {
		s.first[proto] = (at + 1) % len(s.all)
	}
}

// gaveUp notes that a query that began at began was answered by none, when its
// servers' standings have been told.
func (s *servers) gaveUp(proto int, began time.Time) {
	if s.dead(proto) {
		s.gates[proto].shut(began)
	}
}

func (s *servers) String() string {
	var words []string
	for _, o := range s.all {
		words = append(words, o.addr.String())
	}
	return strings.Join(words, " ")
}

// sayEvery bounds how often it is said that kube-dns went away.
const sayEvery = 10 * time.Second

// health says when kube-dns goes away and when it comes back, once each.
type health struct {
	log *slog.Logger

	mu       sync.Mutex
	answered time.Time // when last
	gone     time.Time // since when no query was answered; zero: it answers
	said     time.Time // when it was last said that it went away
	failed   uint64    // queries since it was gone
}

// reply notes that kube-dns answered at now.
func (h *health) reply(now time.Time, from netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answered = now
	if h.gone.IsZero() {
		return
	}
	h.log.Info("kube-dns answers again", "server", from, "after", now.Sub(h.gone).Round(time.Millisecond), "servfails", h.failed)
	h.gone, h.failed = time.Time{}, 0
}

// silence notes that a query that began at began has no reply at now. One name
// that kube-dns cannot resolve in time is no reason to say anything: others were
// answered meanwhile. Nor is it said more than once in sayEvery.
func (h *health) silence(began, now time.Time, asked *servers) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.gone.IsZero() {
		h.failed++
		return
	}
	if h.answered.After(began) || !h.said.IsZero() && now.Sub(h.said) < sayEvery {
		return
	}
	h.gone, h.said, h.failed = began, now, 1
	h.log.Warn("kube-dns does not answer: clients get SERVFAIL", "servers", asked)
}

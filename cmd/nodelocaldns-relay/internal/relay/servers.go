package relay

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// servers are those that queries are passed on to, at one time.
type servers struct {
	all   []*server
	first atomic.Int32 // index of the one to ask first
}

// A server is one kube-dns.
type server struct {
	addr  netip.AddrPort
	tcp   Exchanger
	ports [portsPerServer]*port // guarded by Relay.mu
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

// try is the server of try i of a query that began with start.
func (s *servers) try(start, i int) (*server, int) {
	at := (start + i) % len(s.all)
	return s.all[at], at
}

// answered makes the server at index at the one to ask first.
func (s *servers) answered(at int) { s.first.Store(int32(at)) }

// failed makes another server the one to ask first, if it was the one at index
// at.
func (s *servers) failed(at int) {
	s.first.CompareAndSwap(int32(at), int32((at+1)%len(s.all)))
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

package dnscache

import (
	"bytes"
	"net/netip"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/wire"
)

// A pod of namespace shop that looks for www.example.com asks, as its resolv.conf has
// ndots:5, for
//
//	www.example.com.shop.svc.cluster.local   the namespace's
//	www.example.com.svc.cluster.local        the services'
//	www.example.com.cluster.local            the domain's
//	www.example.com                          itself
//
// one after the other, each for A and AAAA: eight questions of which six are junk.
// Two things make that cheap, and neither gives an answer that upstream would not:
//
// The first name lies below com.shop.svc.cluster.local, which would have to be a
// service. If it does not exist, nothing does below it (RFC 8020), be it www.example.com
// or anything else in com. So that is what upstream is asked, once, and its denial
// answers for all names below it as long as it is fresh. It is asked instead of the
// name itself, whoever was known to exist excepted: web-0.web.shop.svc.cluster.local
// costs one question, too. RFC 8020 holds at that place only: CoreDNS denies
// _tcp.web.shop.svc.cluster.local, and has names below it.
//
// And while the client is told that there is no such name, the others are asked for
// already: the services' name, and once that is denied the domain's and the name
// itself, all of them for A and AAAA. So it waits for three questions, not for eight
// or, where it asks for both at once, four. A name that may be that of a service, such
// as web.shop, goes to nobody outside of the cluster before kube-dns has denied it.
//
// searchPath are the names that this is about.
type searchPath struct {
	domain   []byte // of the cluster, in wire form
	services []byte // svc in it
}

// svcLabel is the label of services (Kubernetes DNS specification 1.1.0, 2.3), in wire
// form.
var svcLabel = []byte("\x03svc")

// newSearchPath returns nil where the search path is left to the clients.
func newSearchPath(cfg Config) *searchPath {
	if !cfg.CollapseSearch {
		return nil
	}
	domain, _ := wire.ParseName(cfg.ClusterDomain) // Config.Validate has seen that it is one
	return &searchPath{domain, append(bytes.Clone(svcLabel), domain...)}
}

// place says where in a name below the services' its service and its namespace begin.
// It is false where the name is not one below a service, or has a label that begins
// with an underscore.
func (p *searchPath) place(name []byte) (service, namespace int, ok bool) {
	end := len(name) - len(p.services)
	labels := 0
	for at := 0; at < end; at += 1 + int(name[at]) {
		if labels++; name[at+1] == '_' {
			return 0, 0, false
		}
		service, namespace = namespace, at
		if at+1+int(name[at]) > end {
			return 0, 0, false // the last of it begins inside of a label
		}
	}
	return service, namespace, labels > 2 && string(name[end:]) == string(p.services)
}

// above is the key of the service that a name of the cluster's route lies below,
// appended to dst; nil where there is none.
func (p *searchPath) above(dst, key []byte, rt *route) []byte {
	if p == nil || rt.zone != zoneCluster {
		return nil
	}
	name, recursive := wire.SplitKey(key)
	service, _, ok := p.place(name)
	if !ok || !recursive {
		return nil
	}
	return wire.AppendSibling(dst, key[service:], wire.TypeA)
}

// denied returns the denial of a service that stands for one of the name of key, nil
// where there is none that is fresh. It does not allocate.
func (s *Server) denied(st *state, rt *route, key []byte, now time.Duration) *cache.Entry {
	var room [wire.MaxKey]byte
	above := st.search.above(room[:0], key, rt)
	if above == nil {
		return nil
	}
	if e := s.cache.Get(above); denies(e, now) {
		return e
	}
	return nil
}

// denies reports whether e, which the cache has of a service, is the denial of all
// names below it.
func denies(e *cache.Entry, now time.Duration) bool { return e != nil && e.Whole() && e.Fresh(now) }

// wasThere reports whether e, which the cache has of a service, is, or was, what there
// is of one that exists.
func wasThere(e *cache.Entry) bool {
	return e != nil && (e.Class() == cache.Success || e.Class() == cache.Denial && e.RCode() == wire.NoError)
}

// askAbove asks whether there is the service that a flight's name lies below, and
// returns its denial; nil where there is none, and the name itself is to be asked for.
// late says that this was in vain until it was too late for those who wait: one silence
// is enough for upstream.
func (s *Server) askAbove(fl *flight) (denial *cache.Entry, late bool) {
	key := s.state.Load().search.above(nil, fl.key, fl.route)
	if key == nil {
		return nil, false
	}
	// One that has been there most likely is still. If not, the name's own denial
	// tells.
	if wasThere(s.cache.Get(key)) {
		return nil, false
	}
	word := make(above, 1)
	s.join(key, &wire.Query{}, word)
	select {
	case t := <-word:
		if t.ttl == 0 && t.Whole() {
			return t.Entry, false
		}
		return nil, t.Class() == cache.Failure && s.now() >= fl.began+fl.wait
	case <-fl.ctx.Done():
		return nil, true
	}
}

// above is a flight that waits for word of the name above its own. It is no client: who
// waits for it is counted there.
type above chan told

func (a above) client() netip.Addr { return several }

func (a above) deliver(_ *wire.Query, t told, _ time.Duration) { a <- t }

// deny answers a flight with the denial of the service above its name. It is kept only
// where it was asked for with nobody waiting: for all others that of the service is.
func (s *Server) deny(fl *flight, above *cache.Entry) {
	if !s.searchOn(fl) && !fl.refresh {
		s.search(s.state.Load(), fl.key, s.now())
	}
	s.flights.mu.Lock()
	guessed := fl.guessed()
	s.flights.mu.Unlock()
	s.land(fl, above.Below(fl.key, fl.refresh, guessed), usable)
}

// isService reports whether a flight's is the name of a service, and asked for as
// searchPath.above does.
func (s *Server) isService(fl *flight) bool {
	p := s.state.Load().search
	if p == nil || fl.route.zone != zoneCluster || wire.KeyType(fl.key) != wire.TypeA {
		return false
	}
	name, _ := wire.SplitKey(fl.key)
	// As one of its own names would find it.
	service, _, ok := p.place(append([]byte{1, 'x'}, name...))
	return ok && service == 2
}

// search asks for the names that a client asks for next which is told that there is
// no name of this key, by the denial of a service. It does not allocate where they are
// known.
func (s *Server) search(st *state, key []byte, now time.Duration) {
	typ := wire.KeyType(key)
	if typ != wire.TypeA && typ != wire.TypeAAAA {
		return // what is looked for by others than resolver libraries
	}
	p := st.search
	name, _ := wire.SplitKey(key)
	_, namespace, ok := p.place(name)
	if !ok {
		return
	}
	var room [wire.MaxKey]byte
	if e := s.cache.Get(appendKey(room[:0], name[:namespace], p.services, key)); e != nil && e.Fresh(now) {
		return
	}
	g := guess{s, st, key, bytes.Clone(name[:namespace]), now}
	switch itself := append(bytes.Clone(g.sought), 0); {
	case wire.IsSubdomain(itself, p.domain): // a name of the cluster, spelled out
		g.begin(nil, p.services, p.domain, root)
	case wire.IsSubdomain(itself, append(bytes.Clone(svcLabel), 0)): // up to its svc
		g.begin(nil, p.services, p.domain)
	default:
		g.begin(g.sought, p.services)
	}
}

// searchOn goes on where the services' name has been denied, too; false where a flight
// is not for that.
func (s *Server) searchOn(fl *flight) bool {
	s.flights.mu.Lock()
	sought := fl.sought
	s.flights.mu.Unlock()
	st := s.state.Load()
	if sought == nil || st.search == nil {
		return false
	}
	g := guess{s, st, fl.key, sought, s.now()}
	g.begin(nil, st.search.domain, root)
	return true
}

var root = []byte{0}

// appendKey appends the key of a name below a suffix, with the type and the flags of
// another key.
func appendKey(dst, sought, suffix, like []byte) []byte {
	name, _ := wire.SplitKey(like)
	dst = append(append(dst, sought...), suffix...)
	return append(dst, like[len(name):]...)
}

// A guess is what a client is expected to ask for.
type guess struct {
	s      *Server
	st     *state
	like   []byte // a key of the client's
	sought []byte
	now    time.Duration
}

// begin asks for what is sought below suffixes, A and AAAA, with nobody waiting yet.
// Where then is not nil those for A go on to the other names, see searchOn.
func (g *guess) begin(then []byte, suffixes ...[]byte) {
	f := &g.s.flights
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, suffix := range suffixes {
		key := appendKey(nil, g.sought, suffix, g.like)
		g.one(wire.AppendSibling(nil, key, wire.TypeA), then)
		g.one(wire.AppendSibling(nil, key, wire.TypeAAAA), nil)
	}
}

// one asks for a key, unless that is known or asked already. flights.mu is held.
func (g *guess) one(key, then []byte) {
	f := &g.s.flights
	name, _ := wire.SplitKey(key)
	rt := g.st.routes.find(name)
	e := g.s.cache.Get(key)
	if fl := f.byKey[string(key)]; fl != nil {
		if fl.sought == nil {
			fl.sought = then // it was begun for somebody else
		}
		return
	}
	switch {
	case len(name) > wire.MaxName, f.closed, e != nil && e.Fresh(g.now),
		rt.loop.closed.Load(), rt.group.Dead(g.s.start.Add(g.now)), g.s.shares.limit.Load() > 0:
	case f.mayBegin(&f.guesses, g.now, 0):
		fl := g.s.beginForNobody(g.st, rt, key, e, g.now, refreshSearch)
		fl.sought = then
		go g.s.fly(fl)
	}
}

// Guesses are bounded by how many were right: each that a client has asked for after
// all may be followed by another one. Of those that nobody asks for there are
// guessIdle a second, guessBurst at once.
const (
	guessIdle  = 20
	guessBurst = 400
)

func newGuesses() bucket { return bucket{idle: guessIdle, burst: guessBurst, tokens: guessBurst} }

// guessed reports whether a flight is for what no client has asked for yet. flights.mu
// is held.
func (fl *flight) guessed() bool { return fl.refresh && fl.why == refreshSearch && !fl.asked }

// wasRight notes that a client has asked for what was guessed. mu is held.
func (f *flights) wasRight() {
	f.right++
	f.guesses.tokens++
}

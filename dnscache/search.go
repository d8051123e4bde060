package dnscache

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"sync/atomic"
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
// answers for all names below it as long as it is fresh. It is asked for before the
// name itself, unless it was there lately: web-0.web.shop.svc.cluster.local
// costs one question, too. RFC 8020 holds at that place only: CoreDNS denies
// _tcp.web.shop.svc.cluster.local, and has names below it.
//
// And while the client is told that there is no such name, the others are asked for
// already: the services' name, and once the client has asked for that and it is denied,
// the domain's and the name itself, all of them for A and AAAA. So it waits for three
// questions, not for eight, or for four where it asks for both types at once. A name
// that may be that of a service, such as web.shop, goes to nobody outside of the cluster
// before kube-dns has denied it.
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
	// Where denials that have expired are to be served each name needs its own.
	if !cfg.CollapseSearch || cfg.Cluster.Stale.Denial {
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
// appended to dst; nil where there is none. It is about what resolver libraries look for
// alone: CoreDNS has no SOA at any name, and says NODATA, and has done so for TXT.
func (p *searchPath) above(dst, key []byte, rt *route) []byte {
	if p == nil || rt.zone != zoneCluster {
		return nil
	}
	name, recursive := wire.SplitKey(key)
	service, _, ok := p.place(name)
	if typ := wire.KeyType(key); !ok || !recursive || typ != wire.TypeA && typ != wire.TypeAAAA {
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

// aboveAlone is how long the service is asked for alone. A kube-dns in the cluster takes
// a millisecond; one that is slow, or hangs with that very name (of an ExternalName whose
// own servers are gone), must not keep the names below from being asked for in time.
const aboveAlone = 30 * time.Millisecond

// askAbove has a flight wait for word whether there is the service that its name lies
// below; false where there is no need, and the name itself is to be asked for.
func (s *Server) askAbove(fl *flight) bool {
	key := fl.state.search.above(nil, fl.key, fl.route)
	if key == nil || s.there.has(key) {
		return false
	}
	f := &s.flights
	f.mu.Lock()
	a := lower{fl, fl.client, !fl.held, fl.why}
	f.mu.Unlock()
	fl.waits.Store(true)
	f.deadlines.Set(&fl.alone, fl, aboveAlone)
	s.join(key, &wire.Query{}, a)
	return true
}

// heard goes on with a flight that waits for word of the service above its name: with
// its denial, or with nil where the name itself is to be asked for.
func (s *Server) heard(fl *flight, denial *cache.Entry) {
	if !fl.waits.CompareAndSwap(true, false) {
		return
	}
	s.flights.deadlines.Stop(&fl.alone)
	if denial == nil {
		s.ask(fl, nil)
		return
	}
	fl.denied = true
	s.deny(fl.state, fl, denial)
	s.flights.ended(fl, false)
}

// joinForNobody begins the flight that another one waits for which was begun for nobody:
// it takes the place of no client's, either. flights.mu is held; it is released.
func (s *Server) joinForNobody(st *state, rt *route, key []byte, q *wire.Query, p lower, e *cache.Entry, now time.Duration) {
	f := &s.flights
	if f.refreshing >= maxRefreshes {
		f.mu.Unlock()
		p.deliver(q, s.refusal(key, rt, now), now)
		return
	}
	fl := s.beginForNobody(st, rt, key, e, now, p.why)
	fl.upper = true
	fl.waiters = []waiter{{peer: p, since: now}}
	f.mu.Unlock()
	s.fly(fl, nil)
}

// A lower flight waits for word of the name above its own. It is no client: who waits
// for it is counted there.
type lower struct {
	flight *flight
	from   netip.Addr
	nobody bool // no client waits for that flight, which was begun for the reason
	why    int
}

func (a lower) client() netip.Addr { return a.from }

func (a lower) deliver(_ *wire.Query, t told, _ time.Duration) {
	var denial *cache.Entry
	if t.ttl == 0 && t.Whole() {
		denial = t.Entry
	}
	a.flight.server.heard(a.flight, denial)
}

// services are keys of services that are there, most likely: those of the names below
// them that were asked for lately. Where one has gone its names' own denials tell.
type services struct {
	seed maphash.Seed
	keys [1024]atomic.Uint64 // hashes
}

func (t *services) at(key []byte) (slot *atomic.Uint64, hash uint64) {
	hash = maphash.Bytes(t.seed, key) | 1
	return &t.keys[hash>>1%uint64(len(t.keys))], hash
}

func (t *services) has(key []byte) bool {
	slot, hash := t.at(key)
	return slot.Load() == hash
}

// learn notes what upstream says of a service, or of a name below it.
func (t *services) learn(key []byte, there bool) {
	if slot, hash := t.at(key); there {
		slot.Store(hash)
	} else {
		slot.CompareAndSwap(hash, 0)
	}
}

// learn notes what a reply to a flight says of a service, and has one that denies it
// deny all names below it, too.
func (s *Server) learn(st *state, fl *flight, a *cache.Admission) {
	if a.RCode != wire.NoError && a.RCode != wire.NXDomain {
		return
	}
	there := a.RCode == wire.NoError
	if st.search.isService(fl) {
		s.there.learn(fl.key, there)
		if !there {
			a.MakeWhole(st.search.domain)
		}
	} else if key := st.search.above(nil, fl.key, fl.route); key != nil {
		s.there.learn(key, there)
	}
}

// deny answers a flight with the denial of the service above its name. It is kept only
// where it was asked for with nobody waiting: for all others that of the service is.
func (s *Server) deny(st *state, fl *flight, above *cache.Entry) {
	s.flights.mu.Lock()
	guessed, onward, asked := fl.guessed(), fl.onward, fl.wanted()
	s.flights.mu.Unlock()
	switch {
	case onward && asked:
		s.searchOn(st, fl.key, s.now())
	case !fl.refresh:
		s.search(st, fl.route, fl.key, s.now())
	}
	s.land(fl, above.Below(fl.key, fl.refresh, guessed, onward && !asked), usable, nil)
}

// isService reports whether a flight's is the name of a service, and asked for as
// above does.
func (p *searchPath) isService(fl *flight) bool {
	if p == nil || fl.route.zone != zoneCluster || wire.KeyType(fl.key) != wire.TypeA {
		return false
	}
	name, recursive := wire.SplitKey(fl.key)
	// As one of its own names would find it.
	service, _, ok := p.place(append([]byte{1, 'x'}, name...))
	return ok && recursive && service == 2
}

// search asks for the names that a client asks for next which is told that there is
// no name of this key, by the denial of a service. It does not allocate where they are
// known, or nothing may be asked.
func (s *Server) search(st *state, rt *route, key []byte, now time.Duration) {
	p := st.search
	name, _ := wire.SplitKey(key)
	_, namespace, ok := p.place(name)
	if !ok || now < time.Duration(s.flights.noGuess.Load()) || s.shares.limit.Load() > 0 {
		return
	}
	var room [wire.MaxKey]byte
	if e := s.cache.Get(appendKey(room[:0], name[:namespace], p.services, key)); e != nil && e.Fresh(now) || rt.group.Dead(s.start.Add(now)) {
		return
	}
	g := guess{s, st, key, bytes.Clone(name[:namespace]), now}
	switch itself := append(bytes.Clone(g.sought), 0); {
	case wire.IsSubdomain(itself, p.domain): // a name of the cluster, spelled out
		g.begin(false, p.services, p.domain, root)
	case wire.IsSubdomain(itself, append(bytes.Clone(svcLabel), 0)): // up to its svc
		g.begin(false, p.services, p.domain)
	default:
		g.begin(true, p.services)
	}
}

// searchOn goes on where a client has asked for the services' name, and that is denied.
func (s *Server) searchOn(st *state, key []byte, now time.Duration) {
	p := st.search
	if p == nil || now < time.Duration(s.flights.noGuess.Load()) || s.shares.limit.Load() > 0 {
		return
	}
	name, _ := wire.SplitKey(key)
	g := guess{s, st, key, bytes.Clone(name[:len(name)-len(p.services)]), now}
	g.begin(false, p.domain, root)
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
// Where onward is true others are asked for when a client wants that for A and it is
// denied.
func (g *guess) begin(onward bool, suffixes ...[]byte) {
	f := &g.s.flights
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, suffix := range suffixes {
		key := appendKey(nil, g.sought, suffix, g.like)
		g.one(wire.AppendSibling(nil, key, wire.TypeA), onward)
		g.one(wire.AppendSibling(nil, key, wire.TypeAAAA), false)
	}
}

// one asks for a key, unless that is known or asked already. flights.mu is held.
func (g *guess) one(key []byte, onward bool) {
	f := &g.s.flights
	name, _ := wire.SplitKey(key)
	rt := g.st.routes.find(name)
	e := g.s.cache.Get(key)
	if fl := f.byKey[string(key)]; fl != nil {
		fl.onward = fl.onward || onward // it was begun for somebody else
		return
	}
	switch {
	case len(name) > wire.MaxName, f.closed, e != nil && e.Fresh(g.now), rt.loop.closed.Load(), rt.group.Dead(g.s.start.Add(g.now)):
	case f.mayBegin(&f.guesses, g.now, 0):
		fl := g.s.beginForNobody(g.st, rt, key, e, g.now, refreshSearch)
		fl.onward = onward
		f.guessed++
		go g.s.fly(fl, nil) // without the lock
	default: // nobody else need try
		f.noGuess.Store(int64(g.now + time.Second/guessIdle))
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
func (fl *flight) guessed() bool {
	return fl.refresh && fl.why == refreshSearch && !fl.upper && !fl.wish
}

// wanted reports whether a client has asked for it. flights.mu is held.
func (fl *flight) wanted() bool { return fl.wish || clientsOf(fl.waiters) > 0 }

// wanted notes that a client has asked for what it was expected to ask for.
func (s *Server) wanted(st *state, e *cache.Entry, guessed, onward bool, now time.Duration) {
	if guessed {
		s.flights.mu.Lock()
		s.flights.wasRight()
		s.flights.mu.Unlock()
	}
	if onward && e.RCode() == wire.NXDomain {
		s.searchOn(st, e.Key(), now)
	}
}

// wasRight notes that a client has asked for what was guessed. mu is held.
func (f *flights) wasRight() {
	f.right++
	f.guesses.tokens++
}

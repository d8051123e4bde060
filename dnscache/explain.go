package dnscache

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/dnscache/wire"
)

// An Explanation says how queries for one name are answered at one moment, and what is
// known about that name and those who answer for it. As JSON it is what others read:
// what is not known is left out.
type Explanation struct {
	Name          string              `json:"name"` // in presentation form, lower case, with its last dot
	At            time.Time           `json:"at"`
	ClusterDomain string              `json:"cluster_domain"`
	Route         ExplainedRoute      `json:"route"`
	Overload      *ExplainedOverload  `json:"overload,omitempty"`
	Questions     []ExplainedQuestion `json:"questions"`
}

// An ExplainedRoute is who is asked for the name.
type ExplainedRoute struct {
	Zone    string            `json:"zone"`   // of ZoneKinds
	Suffix  string            `json:"suffix"` // of the name, for which the route is
	Policy  string            `json:"policy"`
	Loop    bool              `json:"loop"`    // it leads back to us
	Dead    bool              `json:"dead"`    // none of the servers answers anybody
	Await   bool              `json:"await"`   // kube-dns is not known yet
	Servers []ExplainedServer `json:"servers"` // in the order in which they would be asked
}

// An ExplainedServer is an upstream server, and how it does.
type ExplainedServer struct {
	Server   string          `json:"server"`
	Protos   []string        `json:"protos"`                    // in the order in which they would be tried
	State    string          `json:"state"`                     // up, down (comes last), dead (answers nobody)
	Down     float64         `json:"down_seconds,omitempty"`    // for so much longer
	Latency  float64         `json:"latency_seconds,omitempty"` // smoothed
	Answered *time.Time      `json:"answered,omitempty"`        // when last, be it somebody else
	Error    *ExplainedError `json:"error,omitempty"`           // of the last try without a reply
}

// An ExplainedError is what went wrong, and when.
type ExplainedError struct {
	Text string    `json:"text"`
	At   time.Time `json:"at"`
}

// An ExplainedOverload is why a client's query may be answered SERVFAIL although
// another client's is not.
type ExplainedOverload struct {
	NamesPerSecond int  `json:"names_per_second,omitempty"` // that are not in the cache, for each client
	Full           bool `json:"full,omitempty"`             // so many questions are under way that another one ends one of them
}

// An ExplainedQuestion is one question, and what becomes of it.
type ExplainedQuestion struct {
	Type   string           `json:"type"`
	DO     bool             `json:"do"` // with DNSSEC records
	CD     bool             `json:"cd"` // without validation
	RD     bool             `json:"rd"` // with recursion
	Answer ExplainedAnswer  `json:"answer"`
	Entry  *ExplainedEntry  `json:"entry,omitempty"`
	Flight *ExplainedFlight `json:"flight,omitempty"`
}

// From says where an answer comes from.
type From string

// Where answers come from.
const (
	FromCache    From = "cache"    // a fresh entry
	FromDenial   From = "denial"   // a fresh entry that says that there is nothing below another name
	FromStale    From = "stale"    // one that has expired, at once
	FromFlight   From = "flight"   // the question to upstream that is under way
	FromUpstream From = "upstream" // a question to upstream that is yet to be asked
	FromNobody   From = "nobody"   // SERVFAIL, and upstream is not asked
	FromUs       From = "refused"  // the resolver does not answer such questions
)

// A Reason says why upstream is not asked.
type Reason string

// Why it is not.
const (
	BecauseLoop     Reason = "loop"      // it leads back to us
	BecauseFailed   Reason = "failed"    // it was asked a short time ago, in vain
	BecauseDead     Reason = "dead"      // it answers nobody
	BecauseNoServer Reason = "no-server" // there is none
	BecauseNotReady Reason = "not-ready" // kube-dns is not known yet
	BecauseStopping Reason = "stopping"  // the resolver is about to end
	BecauseCrowded  Reason = "crowded"   // too many wait for that answer already
)

// An ExplainedAnswer is what a client would be told.
type ExplainedAnswer struct {
	From   From          `json:"from"`
	Above  string        `json:"above,omitempty"` // the service that the name lies below, where that is asked for, or denied, instead
	Why    Reason        `json:"why,omitempty"`
	RCode  string        `json:"rcode,omitempty"` // empty: that is for upstream to say
	EDE    *ExplainedEDE `json:"ede,omitempty"`
	Within float64       `json:"within_seconds,omitempty"` // what upstream does not say until then is not waited for;
	Else   From          `json:"else,omitempty"`           // then the answer comes from here: stale, or nobody
}

// An ExplainedEDE is an Extended DNS Error (RFC 8914).
type ExplainedEDE struct {
	Code uint16 `json:"code"`
	Name string `json:"name"`
}

// An ExplainedEntry is what the cache has: of the name, or where that is answered by a
// denial of another one, of that.
type ExplainedEntry struct {
	State      string            `json:"state"` // fresh, stale (may be served), expired (may not)
	Class      string            `json:"class"` // success, denial, failure
	RCode      string            `json:"rcode"`
	EDE        *ExplainedEDE     `json:"ede,omitempty"` // of what is fresh
	AD         bool              `json:"ad"`            // upstream has validated it
	Stored     time.Time         `json:"stored"`
	Expires    time.Time         `json:"expires"`
	Until      *time.Time        `json:"served_until,omitempty"` // when it has expired, at the latest
	Restored   bool              `json:"restored"`               // from what the process before has left
	Hits       int               `json:"hits"`                   // of clients; it counts up to
	HitsCap    int               `json:"hits_counted_to"`        // this, and no further
	Refresh    *ExplainedRefresh `json:"refresh,omitempty"`
	Failed     *ExplainedFailure `json:"failed,omitempty"`
	Upstream   *ExplainedSource  `json:"upstream,omitempty"`
	Answer     []string          `json:"answer,omitempty"`
	Authority  []string          `json:"authority,omitempty"`
	Additional []string          `json:"additional,omitempty"`
}

// An ExplainedRefresh is when upstream is asked again before the entry expires.
type ExplainedRefresh struct {
	Begun   bool       `json:"begun"`             // it was, or was refused because there were too many
	From    *time.Time `json:"from,omitempty"`    // not before, by a query;
	Queries int        `json:"queries,omitempty"` // by the next one at 1, by the one after it at 2
	Unasked *time.Time `json:"unasked,omitempty"` // although nobody asks for it
}

// An ExplainedFailure is the last refresh of an entry that has failed.
type ExplainedFailure struct {
	Since time.Time `json:"since"` // there has been no word of the name
	Name  bool      `json:"name"`  // the failure was about this name, not about upstream
}

// An ExplainedSource is who has said what an entry holds, and how long that took.
type ExplainedSource struct {
	Server netip.AddrPort `json:"server"`
	Proto  string         `json:"proto"`
	Took   float64        `json:"seconds"` // from the first try on, in 64ths of a millisecond
}

// An ExplainedFlight is a question to upstream under way.
type ExplainedFlight struct {
	Since    time.Time `json:"since"`
	Waiting  int       `json:"waiting"`            // clients, not the questions for names below its own
	Refresh  string    `json:"refresh,omitempty"`  // of Refreshes, where no client began it
	Replaced bool      `json:"replaced,omitempty"` // it goes to servers that are no longer asked: nobody joins it
}

// variants are the flags of queries that make other questions of one name and type:
// first what a pod's resolver asks.
var variants = [...]struct{ do, cd, rd bool }{
	{rd: true}, {do: true, rd: true}, {cd: true, rd: true}, {do: true, cd: true, rd: true},
	{}, {do: true}, {cd: true}, {do: true, cd: true},
}

// Explain says how queries for a name in wire form would be answered now: for each
// of the types the question as a pod asks it, and those with other flags of which
// something is known. It asks nobody and changes nothing; it may be called at any time.
func (s *Server) Explain(name []byte, types []uint16) Explanation {
	x := &explaining{s: s, st: s.state.Load(), now: s.now(), wall: s.wallClock()}
	name = wire.AppendFold(nil, name)
	var suffix []byte
	x.rt, suffix = x.st.routes.match(name)
	ex := Explanation{
		Name: nameText(name), At: x.wall, ClusterDomain: dns.Fqdn(x.st.cfg.ClusterDomain),
		Route: x.route(suffix), Overload: x.overload(), Questions: []ExplainedQuestion{},
	}
	for _, typ := range types {
		for i, v := range variants {
			q := wire.Query{Type: typ, DO: v.do, Question: append(slices.Clone(name), byte(typ>>8), byte(typ), 0, byte(wire.ClassIN))}
			if v.rd {
				q.Flags |= wire.FlagRD
			}
			if v.cd {
				q.Flags |= wire.FlagCD
			}
			if asked := x.question(wire.AppendKey(nil, &q)); i == 0 || asked.Entry != nil || asked.Flight != nil {
				asked.Type, asked.DO, asked.CD, asked.RD = typeText(typ), v.do, v.cd, v.rd
				ex.Questions = append(ex.Questions, asked)
			}
		}
	}
	return ex
}

// explaining is one Explanation being made: how things are at one moment.
type explaining struct {
	s    *Server
	st   *state
	rt   *route
	now  time.Duration // of the server's clock,
	wall time.Time     // which is this
}

// when is a time of the server's clock.
func (x *explaining) when(t time.Duration) time.Time { return x.wall.Add(t - x.now) }

// clock is the time that upstream.Group goes by.
func (x *explaining) clock() time.Time { return x.s.start.Add(x.now) }

// since is a time of upstream.Group's; nil for never.
func (x *explaining) since(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = x.when(t.Sub(x.s.start))
	return &t
}

func (x *explaining) route(suffix []byte) ExplainedRoute {
	g := x.rt.group
	out := ExplainedRoute{
		Zone: ZoneKinds[x.rt.zone], Suffix: nameText(suffix), Policy: g.Policy.String(),
		Loop: x.rt.loop.closed.Load(), Dead: g.Dead(x.clock()), Await: x.rt.await, Servers: []ExplainedServer{},
	}
	for _, server := range g.Order(x.clock()) {
		st := server.State(x.clock())
		e := ExplainedServer{
			Server: server.Addr.String(), State: "up",
			Down: st.Down.Seconds(), Latency: st.Latency.Seconds(), Answered: x.since(st.Answered),
		}
		switch {
		case st.Dead:
			e.State = "dead"
		case st.Down > 0:
			e.State = "down"
		}
		switch {
		case server.Addr.TLSName != "":
			e.Protos = []string{TLS.String()}
		case server.UDP != nil:
			e.Protos = []string{UDP.String(), TCP.String()}
		default:
			e.Protos = []string{TCP.String()}
		}
		if st.Err != nil {
			e.Error = &ExplainedError{st.Err.Error(), *x.since(st.Failed)}
		}
		out.Servers = append(out.Servers, e)
	}
	return out
}

func (x *explaining) overload() *ExplainedOverload {
	f := &x.s.flights
	f.mu.Lock()
	full := f.n-f.refreshing >= maxFlights
	f.mu.Unlock()
	o := ExplainedOverload{NamesPerSecond: int(x.s.shares.limit.Load()) * int(time.Second/window), Full: full}
	if o == (ExplainedOverload{}) {
		return nil
	}
	return &o
}

// A known is what is known of a question at one moment, nil or zero for nothing.
type known struct {
	key      []byte
	e        *cache.Entry
	above    []byte       // the key of the service that is asked for instead, see searchPath,
	service  *cache.Entry // and what the cache has of that
	fl       *ExplainedFlight
	end      time.Duration // until then those who join the flight wait
	full     bool          // nobody can join it
	stopping bool
}

// question explains what becomes of the question with a key.
func (x *explaining) question(key []byte) ExplainedQuestion {
	k := known{key: key}
	f := &x.s.flights
	f.mu.Lock() // what lands meanwhile is in the cache before its flight is gone
	if fl := f.byKey[string(key)]; fl != nil {
		k.fl = &ExplainedFlight{Since: x.when(fl.began), Waiting: int(clientsOf(fl.waiters)), Replaced: fl.route != x.rt}
		k.full = len(fl.waiters) >= maxWaiters
		if fl.refresh {
			k.fl.Refresh = Refreshes[fl.why]
		}
		k.end = fl.began + fl.wait
	}
	k.stopping = f.closed
	f.mu.Unlock()
	k.e = x.s.cache.Peek(key)
	if k.above = x.st.search.above(nil, key, x.rt); k.above != nil {
		k.service = x.s.cache.Peek(k.above)
	}
	q := ExplainedQuestion{Answer: x.answer(&k), Flight: k.fl}
	switch {
	case q.Answer.From == FromDenial:
		q.Entry = x.entry(k.service)
		q.Entry.Refresh = nil // no query for a name below has that
	case k.e != nil:
		q.Entry = x.entry(k.e)
	}
	return q
}

// answer is what a client would be told, by the order of the packet path: handler.go,
// and then join.
func (x *explaining) answer(k *known) ExplainedAnswer {
	if v := verdictOf(k.key); v != wire.Answer {
		return ExplainedAnswer{From: FromUs, RCode: rcodeText(v.RCode())}
	}
	rules, e := x.st.stale(x.rt), k.e
	expired := func(why Reason) ExplainedAnswer {
		return ExplainedAnswer{From: FromStale, Why: why, RCode: rcodeText(e.RCode()), EDE: edeText(e.StaleEDE())}
	}
	instead := func(why Reason, ede uint16) ExplainedAnswer {
		if rules.mayServe(e, x.now) {
			return expired(why)
		}
		return ExplainedAnswer{From: FromNobody, Why: why, RCode: rcodeText(wire.ServFail), EDE: edeText(ede)}
	}
	asking := func(from From, end time.Duration) ExplainedAnswer {
		a := ExplainedAnswer{From: from, Within: max(0, end-x.now).Seconds(), Else: FromNobody}
		if rules.mayServe(e, end) {
			a.Else = FromStale
		}
		if k.above != nil && !x.s.there.has(k.above) {
			a.Above = keyText(k.above)
		}
		return a
	}
	switch {
	case e != nil && e.Fresh(x.now):
		return ExplainedAnswer{From: FromCache, RCode: rcodeText(e.RCode()), EDE: edeText(e.EDE())}
	case denies(k.service, x.now):
		return ExplainedAnswer{From: FromDenial, Above: keyText(k.above), RCode: rcodeText(k.service.RCode())}
	}
	if rules.mayServe(e, x.now) {
		if why := x.s.hopeless(x.st, x.rt, e, x.now); why != "" {
			return expired(why)
		}
	}
	joins := k.fl != nil && !k.fl.Replaced
	switch {
	case x.rt.loop.closed.Load():
		return instead(BecauseLoop, wire.EDEOther)
	case joins && k.full:
		return instead(BecauseCrowded, wire.EDENotReady)
	case joins:
		return asking(FromFlight, k.end)
	case k.stopping:
		return instead(BecauseStopping, wire.EDENotReady)
	case x.rt.await:
		return instead(BecauseNotReady, wire.EDENotReady)
	case len(x.rt.group.Servers) == 0:
		return instead(BecauseNoServer, wire.EDENoReachable)
	case x.rt.group.Dead(x.clock()):
		return instead(BecauseDead, wire.EDENetworkError)
	case rules.mayServe(e, x.now+rules.ClientTimeout):
		return asking(FromUpstream, x.now+rules.ClientTimeout)
	}
	return asking(FromUpstream, x.now+budget)
}

// entry explains what the cache has of a key.
func (x *explaining) entry(e *cache.Entry) *ExplainedEntry {
	rules, prefetch := x.st.stale(x.rt), x.st.cfg.Prefetch
	expiry := x.now - e.Expired(x.now)
	out := &ExplainedEntry{
		State: "fresh", Class: [...]string{cache.Success: "success", cache.Denial: "denial", cache.Failure: "failure"}[e.Class()],
		RCode: rcodeText(e.RCode()), AD: e.AD(), Stored: x.when(e.Stored()), Expires: x.when(expiry),
		Restored: e.Stored() < 0, Hits: e.Hits(), HitsCap: max(prefetch.MinHits, 1),
	}
	switch {
	case e.Fresh(x.now):
		out.EDE, out.Refresh = edeText(e.EDE()), x.refresh(e, expiry)
	case rules.mayServe(e, x.now):
		out.State = "stale"
	default:
		out.State = "expired"
	}
	if rules.mayServe(e, expiry) {
		until := x.when(expiry + rules.For)
		out.Until = &until
	}
	if at, name, failed := e.Failed(); failed {
		out.Failed = &ExplainedFailure{x.when(at), name}
	}
	if a, known := x.s.upstreams.named(e.Source()); known {
		out.Upstream = &ExplainedSource{a.server, a.proto.String(), e.Took().Seconds()}
	}
	msg := e.AppendStored(nil, x.now)
	for i, section := range recordTexts(msg) {
		*[...]*[]string{&out.Answer, &out.Authority, &out.Additional}[i] = section
	}
	return out
}

// refresh says when a fresh entry is asked for again, nil for never.
func (x *explaining) refresh(e *cache.Entry, expiry time.Duration) *ExplainedRefresh {
	if e.Class() == cache.Failure {
		return nil
	}
	out := ExplainedRefresh{Begun: e.Begun()}
	hits := e.Hits()
	if p := x.st.cfg.Prefetch; p.At > 0 {
		from := x.when(expiry - (expiry-e.Stored())*time.Duration(p.At)/100)
		out.From, out.Queries = &from, max(p.MinHits-hits, 1)
	}
	if e.Class() == cache.Success && (hits > 0 && x.st.cfg.Reload > 0 || int(e.Unasked()) < x.st.cfg.Reload) {
		at := x.when(expiry - reloadAhead)
		out.Unasked = &at
	}
	if out == (ExplainedRefresh{}) {
		return nil
	}
	return &out
}

// verdictOf is how the question with a key fares before anything is looked up.
func verdictOf(key []byte) wire.Verdict {
	var q wire.Query
	return wire.ParseQuery(wire.AppendUpstreamQuery(nil, 0, key, false), &q)
}

// recordTexts are the records of a message by section, in presentation form.
func recordTexts(msg []byte) (sections [3][]string) {
	off := wire.HeaderLen
	off = wire.SkipName(msg, off) + 4
	for i := range sections {
		for range int(msg[6+2*i])<<8 | int(msg[7+2*i]) {
			r, ok := wire.NextRecord(msg, off)
			if !ok {
				return sections // not reached: these are the records of an entry
			}
			sections[i] = append(sections[i], recordText(msg, r))
			off = r.End
		}
	}
	return sections
}

// recordText is a record in presentation form, as one of an unknown type (RFC 3597 5)
// where its data is not what its type says.
func recordText(msg []byte, r wire.Record) string {
	rr, _, err := dns.UnpackRR(msg[:r.End], r.Name)
	if err != nil {
		owner, _, _ := dns.UnpackDomainName(msg, r.Name)
		rr = &dns.RFC3597{
			Hdr:   dns.RR_Header{Name: owner, Rrtype: r.Type, Class: r.Class, Ttl: r.TTL},
			Rdata: hex.EncodeToString(msg[r.Data:r.End]),
		}
	}
	return strings.ReplaceAll(rr.String(), "\t", " ")
}

func nameText(name []byte) string {
	text, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return "(" + hex.EncodeToString(name) + ")" // not reached: names are parsed on their way in
	}
	return text
}

func keyText(key []byte) string {
	name, _ := wire.SplitKey(key)
	return nameText(name)
}

func typeText(typ uint16) string { return dns.Type(typ).String() }

func rcodeText(rcode int) string {
	if text, known := dns.RcodeToString[rcode]; known {
		return text
	}
	return strconv.Itoa(rcode)
}

func edeText(ede uint16) *ExplainedEDE {
	if ede == wire.EDENone {
		return nil
	}
	return &ExplainedEDE{ede, dns.ExtendedErrorCodeToString[ede]}
}

package dnscache

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

func TestThePlaceOfAServiceInAName(t *testing.T) {
	p := newSearchPath(Config{ClusterDomain: "cluster.local", CollapseSearch: true})
	for name, want := range map[string]string{
		"www.example.com.shop.svc.cluster.local": "com shop",
		"a.web.shop.svc.cluster.local":           "web shop",
		"svc.svc.svc.svc.cluster.local":          "svc svc",
		"web.shop.svc.cluster.local":             "",
		"shop.svc.cluster.local":                 "",
		"svc.cluster.local":                      "",
		"cluster.local":                          "",
		"":                                       "",
		"a.web.shop.svc.cluster.example":         "",
		"a.web.shop.pod.cluster.local":           "",
		"a.web.shop.xsvc.cluster.local":          "",
		"_http._tcp.web.shop.svc.cluster.local":  "",
		"a._web.shop.svc.cluster.local":          "",
		"a.web._shop.svc.cluster.local":          "",
	} {
		w, ok := wire.ParseName(name)
		if !ok {
			t.Fatal(name)
		}
		got := ""
		if service, namespace, ok := p.place(w); ok {
			label := func(at int) string { return string(w[at+1 : at+1+int(w[at])]) }
			got = label(service) + " " + label(namespace)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	// The bytes of the suffix, but not its labels.
	trap := append([]byte("\x01a\x03web\x04shop\x18"), strings.Repeat("x", 9)...)
	if _, _, ok := p.place(append(append(trap, svcLabel...), p.domain...)); ok {
		t.Error("a name whose last label ends as the services' name does is taken for one below it")
	}
}

// kubernetes answers as CoreDNS does for a cluster of two services, one of them
// headless, and everything outside with an address.
func kubernetes(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	name, typ := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	record := func(format string, args ...any) dns.RR {
		rr, err := dns.NewRR(fmt.Sprintf(format, args...))
		if err != nil {
			panic(err)
		}
		return rr
	}
	if !dns.IsSubDomain("cluster.local.", name) {
		if typ == dns.TypeA && dns.IsSubDomain("com.", name) {
			m.Answer = append(m.Answer, record("%s 30 A 192.0.2.1", name))
		} else {
			m.Rcode = dns.RcodeNameError
			m.Ns = append(m.Ns, record(". 60 SOA a.root-servers.net. nstld.verisign-grs.com. 1 1800 900 604800 60"))
		}
		return m
	}
	m.Authoritative = true
	there := map[string]string{
		"web.shop.svc.cluster.local. A":               "web.shop.svc.cluster.local. 5 A 10.96.1.1",
		"db.shop.svc.cluster.local. A":                "db.shop.svc.cluster.local. 5 A 10.244.1.5",
		"db-0.db.shop.svc.cluster.local. A":           "db-0.db.shop.svc.cluster.local. 5 A 10.244.1.5",
		"_sql._tcp.db.shop.svc.cluster.local. SRV":    "_sql._tcp.db.shop.svc.cluster.local. 5 SRV 0 100 5432 db-0.db.shop.svc.cluster.local.",
		"com.bank.svc.cluster.local. AAAA":            "com.bank.svc.cluster.local. 5 AAAA fd00::1",
		"web.example.com.bank.svc.cluster.local. TXT": "web.example.com.bank.svc.cluster.local. 5 TXT odd",
		"cluster.local. NS":                           "cluster.local. 5 NS ns.dns.cluster.local.",
	}
	if rr, ok := there[name+" "+dns.TypeToString[typ]]; ok {
		m.Answer = append(m.Answer, record("%s", rr))
		return m
	}
	m.Rcode = dns.RcodeNameError
	for known := range there {
		if owner, _, _ := strings.Cut(known, " "); owner == name || !strings.Contains(name, "_") && dns.IsSubDomain(name, owner) && !strings.Contains(owner, "_") {
			m.Rcode = dns.RcodeSuccess
		}
	}
	m.Ns = append(m.Ns, record("cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"))
	return m
}

func collapsing(t testing.TB, collapse bool, up upstream.Exchanger) *Server {
	t.Helper()
	cfg := testConfig(kubeDNS)
	cfg.CollapseSearch = collapse
	return configured(t, cfg, up)
}

// toldBy is what a server tells a client.
func toldBy(t *testing.T, s *Server, pkt []byte) *dns.Msg {
	t.Helper()
	var q question
	reply, outcome := s.answer(&s.streamC, &q, pkt, nil, wire.MaxMessage, s.now())
	if outcome == deferred {
		got := make(chan []byte, 1)
		s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: pkt, limit: wire.MaxMessage, got: got})
		reply = <-got
	}
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestACollapsedSearchPathChangesNoAnswer(t *testing.T) {
	labels := strings.Fields("web db db-0 www example com shop bank svc cluster local _tcp _sql none")
	suffixes := []string{"shop.svc.cluster.local.", "bank.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""}
	types := strings.Fields("A A A AAAA AAAA SRV TXT NS")
	synctest.Test(t, func(t *testing.T) {
		on, off := collapsing(t, true, exchangerFunc(kubernetes)), collapsing(t, false, exchangerFunc(kubernetes))
		random := rand.New(rand.NewPCG(8020, 2308))
		const questions = 20000
		for i := range questions {
			var name strings.Builder
			for range 1 + random.IntN(4) {
				name.WriteString(labels[random.IntN(len(labels))] + ".")
			}
			name.WriteString(suffixes[random.IntN(len(suffixes))])
			pkt := packet(t, name.String(), types[random.IntN(len(types))], "edns=1232")
			got, want := toldBy(t, on, pkt), toldBy(t, off, pkt)
			for _, m := range []*dns.Msg{got, want} { // what was asked for when is another matter
				for _, rr := range slices.Concat(m.Answer, m.Ns) {
					rr.Header().Ttl = 0
				}
			}
			if diff := gocmp.Diff(want.String(), got.String()); diff != "" {
				t.Fatalf("question %d (-off +on):\n%s", i, diff)
			}
			if i%100 == 99 {
				synctest.Wait()
				time.Sleep(time.Second)
			}
		}
		synctest.Wait()
		st, plain := on.Stats(), off.Stats()
		if st.Collapsed == 0 || st.Guesses == 0 || st.GuessesUsed == 0 {
			t.Errorf("%d denied with their service, %d guesses, %d of them right: this proves nothing", st.Collapsed, st.Guesses, st.GuessesUsed)
		}
		t.Logf("of %d questions %d were denied with their service; upstream was asked %d, and %d without", questions, st.Collapsed, st.Upstreams[0].Queries, plain.Upstreams[0].Queries)
	})
}

func TestADeniedNameOfASearchPathAllocatesNothing(t *testing.T) {
	s := collapsing(t, true, exchangerFunc(kubernetes))
	pkt := packet(t, "www.example.com.shop.svc.cluster.local.", "A", "edns=1232")
	toldBy(t, s, pkt)
	s.flights.running.Wait() // what it has guessed is known
	var q question
	out := make([]byte, 0, wire.MaxUDP)
	now := s.now()
	if n := testing.AllocsPerRun(200, func() {
		if _, o := s.answer(&s.streamC, &q, pkt, out, 0, now); o != replied {
			t.Fatalf("outcome %v", o)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// Of a client that does not go on there is little to be guessed.
func TestGuessesThatNobodyAsksForAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := collapsing(t, true, exchangerFunc(kubernetes))
		const seconds, each = 10, 500
		for i := range seconds * each {
			toldBy(t, s, packet(t, fmt.Sprintf("www.n%d.com.shop.svc.cluster.local.", i), "A"))
			time.Sleep(time.Second / each)
		}
		synctest.Wait()
		st := s.Stats()
		if n := st.Guesses; st.GuessesUsed != 0 || n < guessBurst || n > guessBurst+(seconds+1)*guessIdle || st.Refused == 0 {
			t.Errorf("%d guesses, %d of them right, %d refused", st.Guesses, st.GuessesUsed, st.Refused)
		}
	})
}

// One that does has all of its names guessed, however fast it asks.
func TestGuessesThatAreRightAreNotBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := collapsing(t, true, exchangerFunc(kubernetes))
		const lookups = 1000
		for i := range lookups {
			for _, suffix := range []string{"shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
				for _, typ := range []string{"A", "AAAA"} {
					toldBy(t, s, packet(t, fmt.Sprintf("n%d.example.com.", i)+suffix, typ))
				}
				synctest.Wait()
			}
			time.Sleep(time.Millisecond)
		}
		if st := s.Stats(); st.GuessesUsed != 6*lookups || st.Refused != 0 {
			t.Errorf("%d of %d guesses were right, %d refused", st.GuessesUsed, 6*lookups, st.Refused)
		}
	})
}

// Whatever becomes of the configuration meanwhile, a flight goes on as it was begun.
func TestItMayBeTurnedOffWhileAServiceIsDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := collapsing(t, true, exchangerFunc(kubernetes))
		toldBy(t, s, packet(t, "www.example.com.shop.svc.cluster.local.", "A"))
		s.flights.running.Wait()
		before := s.state.Load()
		var q question
		pkt := packet(t, "mail.example.com.shop.svc.cluster.local.", "A")
		q.read(pkt)
		denial := s.denied(before, before.routes.find(q.query.Name()), q.key, s.now())
		got := make(chan []byte, 1)
		s.flights.mu.Lock()
		fl := s.begin(before, before.routes.find(q.query.Name()), q.key, nil, s.now())
		fl.waiters = []waiter{{query: q.query.Clone(), peer: &client4test{c: &conversation{counters: &s.streamC}, got: got}}}
		s.flights.mu.Unlock()
		off := before.cfg
		off.CollapseSearch = false
		if err := s.Reload(off); err != nil {
			t.Fatal(err)
		}
		s.deny(before, fl, denial)
		m := new(dns.Msg)
		if err := m.Unpack(<-got); err != nil || m.Rcode != dns.RcodeNameError {
			t.Errorf("%v, %v", m, err)
		}
		s.flights.ended(fl, true)
		s.flights.running.Wait()
	})
}

// A question about the service is the client's that has asked for a name below it: it
// has half as many, and nobody else fewer.
func TestAFloodOfNamesBelowServicesTakesNothingThatOthersShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		block := make(chan struct{})
		s := collapsing(t, true, exchangerFunc(func(q *dns.Msg) *dns.Msg {
			<-block
			return new(dns.Msg).SetReply(q)
		}))
		join := func(from int, name string, got chan []byte) {
			pkt := packet(t, name, "A")
			var q question
			s.answer(&s.streamC, &q, pkt, nil, 0, s.now())
			s.join(q.key, &q.query, &client4test{c: &conversation{counters: &s.streamC}, query: pkt, got: got, from: address(from)})
		}
		shared, flood := make(chan []byte, 1000), make(chan []byte, 1000000)
		for i := range 50 {
			join(2, fmt.Sprintf("m%d.example.", i), shared)
			join(3, fmt.Sprintf("m%d.example.", i), shared)
		}
		for i := range 2 * maxFlights {
			join(1, fmt.Sprintf("a.n%d.shop.svc.cluster.local.", i), flood)
			synctest.Wait()
		}
		if len(shared) > 0 || len(flood) == 0 {
			t.Errorf("%d of 100 questions that two clients share were shed, and %d of the flood", len(shared), len(flood))
		}
		close(block)
		s.flights.running.Wait()
	})
}

// Where what has expired is to be served each name needs a denial of its own.
func TestDenialsThatAreServedExpiredAreNotCollapsed(t *testing.T) {
	cfg := testConfig(kubeDNS)
	cfg.CollapseSearch = true
	if newSearchPath(cfg) == nil {
		t.Error("it is off")
	}
	cfg.Cluster.Stale.Denial = true
	if newSearchPath(cfg) != nil {
		t.Error("it is on where expired denials are served")
	}
}

// How long upstream took is not how long the service's name took before.
func TestTheWaitForAServiceIsNotItsNamesUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 20 * time.Millisecond
		s := collapsing(t, true, exchangerFunc(func(q *dns.Msg) *dns.Msg {
			time.Sleep(takes)
			return kubernetes(q)
		}))
		pkt := packet(t, "db-0.db.shop.svc.cluster.local.", "A")
		toldBy(t, s, pkt)
		s.flights.running.Wait()
		var q question
		q.read(pkt)
		if took := s.cache.Get(q.key).Took(); took < takes-time.Millisecond || took > takes {
			t.Errorf("the entry says %v, upstream took %v", took, takes)
		}
	})
}

// Where no more may be guessed nothing is made ready for it, either.
func TestWhatMayNotBeGuessedCostsNothing(t *testing.T) {
	s := collapsing(t, true, exchangerFunc(kubernetes))
	toldBy(t, s, packet(t, "www.example.com.shop.svc.cluster.local.", "A"))
	s.flights.running.Wait()
	pkt := packet(t, "other.example.com.shop.svc.cluster.local.", "A")
	now := s.now()
	s.flights.guesses = bucket{at: now}
	var q question
	out := make([]byte, 0, wire.MaxUDP)
	answer := func() {
		if _, o := s.answer(&s.streamC, &q, pkt, out, 0, now); o != replied {
			t.Fatalf("outcome %v", o)
		}
	}
	answer() // finds out
	if n := testing.AllocsPerRun(100, answer); n != 0 || s.Stats().Refused == 0 {
		t.Errorf("%v allocations, %d refused", n, s.Stats().Refused)
	}
}

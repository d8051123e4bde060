package dnscache

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/dnscache/dnstest"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

var update = flag.Bool("update", false, "write what happened into testdata/scenario, to be read before it is committed")

// Every file in testdata/scenario is one behaviour of the resolver: how it is
// configured, what upstream answers, and the conversation. Under each line of
// the conversation stands what then happens, and when, on a fake clock:
//
//	ask NAME TYPE [WORD...]    a client asks (dnstest.ParseAsk)
//	wait DURATION              time passes
//	reload [LINE]              with LINE added to the configuration
//	restart DURATION [LINE]    another process takes over after so long, with
//	                           LINE added to the configuration
//	upstream [NAME]            follows the script of that name from now on
//	resolv.conf [ADDRESS...]   the node's file is rewritten
//	watch loops|resolv.conf|expired|ending
//	                           the server's watchers run from now on
//	stats                      the counters that are not 0
//	why NAME TYPE...           what Explain says, on lines: times are those since the beginning
//	often EVERY FOR NAME TYPE [WORD...]
//	                           a client asks again and again; what happens is
//	                           counted, without times and records
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/scenario/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ar := txtar.Parse(data)
			resolvConf := filepath.Join(t.TempDir(), "resolv.conf")
			synctest.Test(t, func(t *testing.T) {
				for i := range ar.Files {
					if ar.Files[i].Name == "conversation" {
						ar.Files[i].Data = converse(t, ar, resolvConf, ar.Files[i].Data)
					}
				}
			})
			got := txtar.Format(ar)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(strings.Split(string(data), "\n"), strings.Split(string(got), "\n")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

var rfc = regexp.MustCompile(`RFC (\d+)`)

// Which standards there are, the package's comment says.
func TestEveryStandardHasAConversation(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, standards, _ := strings.Cut(string(doc), "# Standards")
	files, err := filepath.Glob("testdata/scenario/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range rfc.FindAllStringSubmatch(strings.ReplaceAll(string(txtar.Parse(data).Comment), "\n", " "), -1) {
			named = append(named, m[1])
		}
	}
	promised := regexp.MustCompile(`\b\d{4}\b`).FindAllString(standards, -1)
	if len(promised) == 0 {
		t.Error("no standards")
	}
	for _, number := range promised {
		if !slices.Contains(named, number) {
			t.Errorf("no conversation names RFC %s", number)
		}
	}
}

// A conversation is one scenario being played.
type conversation struct {
	t          *testing.T
	s          *Server
	cfg        Config
	ar         *txtar.Archive
	up         *dnstest.Upstream
	resolvConf string
	start      time.Time
	ctx        context.Context
	counters   *counters

	mu      sync.Mutex
	events  []event
	tally   bool // events are counted, whenever they happen
	slowest time.Duration
}

type event struct {
	at   time.Duration
	text string
	n    int
}

// about is the kind of an event, and the name and type that it is about.
func (e event) about() string {
	words := strings.Fields(e.text)
	switch {
	case words[0] == "asks" && len(words) > 5: // SERVER over PROTO: NAME TYPE
		return words[0] + words[4] + " " + words[5]
	case words[0] == "replies:" && len(words) > 2: // NAME TYPE
		return words[0] + words[1] + " " + words[2]
	}
	return words[0]
}

// happened notes an event. Equal ones that happen at one time are counted.
func (c *conversation) happened(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Since(c.start)
	if c.tally {
		at = -1
		text, _, _ = strings.Cut(text, "\n")
	}
	for i := range c.events {
		if e := &c.events[i]; e.at == at && e.text == text {
			e.n++
			return
		}
	}
	c.events = append(c.events, event{at, text, 1})
}

// took returns what happened since it was last called. What happens at one time
// does so in several goroutines: questions come before replies, and both go by name and
// type.
func (c *conversation) took() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortStableFunc(c.events, func(a, b event) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.about(), b.about()))
	})
	var b strings.Builder
	for _, e := range c.events {
		times := ""
		if e.n > 1 {
			times = fmt.Sprintf("%d× ", e.n)
		}
		at := "all the while"
		if e.at >= 0 {
			at = e.at.String()
		}
		fmt.Fprintf(&b, "\t%s %s%s\n", at, times, strings.ReplaceAll(e.text, "\n", "\n\t\t"))
	}
	c.events = nil
	return b.String()
}

func section(ar *txtar.Archive, name string) string {
	for _, f := range ar.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

var kubeDNS = netip.MustParseAddrPort("10.96.0.10:53")

// converse plays a scenario and returns its conversation with what happened.
func converse(t *testing.T, ar *txtar.Archive, resolvConf string, script []byte) []byte {
	c := &conversation{t: t, ar: ar, resolvConf: resolvConf, cfg: testConfig(kubeDNS), start: time.Now()}
	for line := range strings.Lines(section(ar, "config")) {
		c.configure(strings.Fields(line))
	}
	var err error
	if c.up, err = dnstest.ParseUpstream(section(ar, "upstream")); err != nil {
		t.Fatal(err)
	}
	c.up.Asked = func(server netip.AddrPort, proto string, query []byte) {
		c.happened("asks %s over %s: %s", server.Addr(), proto, format(t, query))
	}
	c.up.Resolve = c.resolve
	if file := section(ar, "resolv.conf"); file != "" {
		c.write(file)
	}
	c.begin()
	var stop context.CancelFunc
	c.ctx, stop = context.WithCancel(t.Context())

	var out strings.Builder
	for line := range strings.Lines(string(script)) {
		if line[0] == '\t' {
			continue // what is to happen, as opposed to what does
		}
		out.WriteString(line)
		if words := strings.Fields(line); len(words) > 0 && words[0] != "#" {
			c.do(words)
			synctest.Wait()
			out.WriteString(c.took())
		}
	}
	stop()
	c.end()
	synctest.Wait()
	if left := c.took(); left != "" {
		t.Errorf("behind the end of the conversation:\n%s", left)
	}
	return []byte(out.String())
}

// begin starts a server.
func (c *conversation) begin() {
	var err error
	c.s, err = New(c.cfg, Deps{
		Log:        slog.New(slog.DiscardHandler),
		ResolvConf: []string{c.resolvConf},
		Random:     bytes.NewReader(bytes.Repeat([]byte{0xAB}, 1<<16)),
		Uptime:     func() time.Duration { return time.Since(c.start) },
		Exchanger: func(server netip.AddrPort, p Proto) upstream.Exchanger {
			return c.up.Exchanger(server, p.String())
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.counters = &c.s.streamC
}

// end ends the server, as Serve does.
func (c *conversation) end() {
	c.s.flights.waiting.Wait()
	c.s.stop()
	c.s.flights.running.Wait()
}

// restart has another server take over from this one after a while.
func (c *conversation) restart(down string, line []string) {
	d, err := time.ParseDuration(down)
	if err != nil {
		c.t.Fatal(err)
	}
	c.end()
	var snapshot bytes.Buffer
	saved, err := c.s.SaveCache(&snapshot)
	if err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(d)
	c.configure(line)
	c.begin()
	if loaded, err := c.s.LoadCache(&snapshot); err != nil {
		c.happened("saved %d, loaded none: %v", saved, err)
	} else {
		c.happened("saved %d, loaded %d", saved, loaded)
	}
}

func (c *conversation) do(words []string) {
	c.t.Helper()
	switch rest := words[1:]; words[0] {
	case "ask":
		a, err := dnstest.ParseAsk(rest)
		if err != nil {
			c.t.Fatal(err)
		}
		for range a.Times {
			c.ask(a)
		}
	case "often":
		c.often(rest)
	case "wait":
		d, err := time.ParseDuration(rest[0])
		if err != nil {
			c.t.Fatal(err)
		}
		time.Sleep(d)
	case "reload":
		c.configure(rest)
		if err := c.s.Reload(c.cfg); err != nil {
			c.happened("error: %v", err)
		}
	case "restart":
		c.restart(rest[0], rest[1:])
	case "upstream":
		if err := c.up.Follow(section(c.ar, cmp.Or(strings.Join(rest, " "), "upstream"))); err != nil {
			c.t.Fatal(err)
		}
	case "resolv.conf":
		var b strings.Builder
		for _, a := range rest {
			b.WriteString("nameserver " + a + "\n")
		}
		c.write(b.String())
	case "watch":
		watchers := map[string]func(context.Context){"loops": c.s.watchLoops, "resolv.conf": c.s.watchResolvConf, "expired": c.s.sweep, "ending": c.s.reloadEnding}
		go watchers[rest[0]](c.ctx)
	case "stats":
		c.happened("%s", c.stats())
	case "why":
		c.happened("%s", c.why(rest))
	default:
		c.t.Fatalf("unknown word %q", words[0])
	}
}

// often has a client ask again and again for a while.
func (c *conversation) often(words []string) {
	every, err := time.ParseDuration(words[0])
	if err != nil {
		c.t.Fatal(err)
	}
	length, err := time.ParseDuration(words[1])
	if err != nil {
		c.t.Fatal(err)
	}
	a, err := dnstest.ParseAsk(words[2:])
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	c.mu.Lock()
	c.tally, c.slowest = true, 0
	c.mu.Unlock()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(every) {
		for range a.Times {
			c.ask(a)
		}
	}
	synctest.Wait()
	c.mu.Lock()
	slowest := c.slowest
	c.mu.Unlock()
	c.happened("slowest reply: %v", slowest)
	c.mu.Lock()
	c.tally = false
	c.mu.Unlock()
}

func (c *conversation) write(resolvConf string) {
	if err := os.WriteFile(c.resolvConf, []byte(resolvConf), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// configure reads one line of the configuration.
func (c *conversation) configure(words []string) {
	if len(words) == 0 {
		return
	}
	zones := map[string]*Zone{"cluster": &c.cfg.Cluster, "reverse": &c.cfg.Reverse, "external": &c.cfg.External}
	addrs := func(from int) (out []netip.AddrPort) {
		for _, w := range words[from:] {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(w), 53))
		}
		return out
	}
	var err error
	num := func(i int) int {
		n, err := strconv.Atoi(words[i])
		if err != nil {
			c.t.Fatal(err)
		}
		return n
	}
	switch {
	case words[0] == "kube-dns":
		c.cfg.ClusterDNS, c.cfg.AwaitClusterDNS = addrs(1), false
	case words[0] == "await": // kube-dns
		c.cfg.ClusterDNS, c.cfg.AwaitClusterDNS = nil, true
	case words[0] == "upstreams" && words[1] == "node":
		c.cfg.Upstreams = Upstreams{Source: NodeResolvers}
	case words[0] == "upstreams":
		c.cfg.Upstreams = Upstreams{Source: ServerList, Servers: upstream.Plain(addrs(1))}
	case words[0] == "tcp": // only, for a zone
		zones[words[1]].Transport = TransportTCP
	case words[0] == "random": // letters, for a zone
		zones[words[1]].RandomizeCase = true
	case words[0] == "stub":
		c.cfg.StubDomains = append(c.cfg.StubDomains, StubDomain{words[1], upstream.Plain(addrs(2))})
	case words[0] == "stale": // ZONE FOR [denial]
		zones[words[1]].Stale = Stale{AnswerTTL: 30 * time.Second, ClientTimeout: 400 * time.Millisecond, Denial: len(words) > 3}
		zones[words[1]].Stale.For, err = time.ParseDuration(words[2])
	case words[0] == "prefetch": // PERCENT HITS
		c.cfg.Prefetch = Prefetch{num(1), num(2)}
	case words[0] == "collapse": // search paths, or not
		c.cfg.CollapseSearch = len(words) < 2
	case words[0] == "reloads":
		c.cfg.Reload = num(1)
	case words[0] == "bytes":
		c.cfg.MaxBytes, err = strconv.ParseInt(words[1], 10, 64)
	case len(words) == 4 && zones[words[0]] != nil:
		l := Limits{}
		if l.Entries, err = strconv.Atoi(words[2]); err == nil {
			l.MaxTTL, err = time.ParseDuration(words[3])
		}
		if words[1] == "success" {
			zones[words[0]].Success = l
		} else {
			zones[words[0]].Denial = l
		}
	default:
		c.t.Fatalf("unknown line of configuration: %q", words)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// ask is one client's packet, on the path of the server's readers.
func (c *conversation) ask(a dnstest.Ask) {
	limit := 0
	if a.TCP {
		limit = wire.MaxMessage
	}
	var q question
	reply, outcome := c.s.answer(c.counters, &q, a.Packet, make([]byte, 0, wire.MaxUDP), limit, c.s.now())
	switch outcome {
	case replied:
		c.reply(a.Packet, reply, limit)
	case dropped:
		c.happened("dropped")
	case deferred:
		c.s.join(q.key, &q.query, &client4test{c: c, query: a.Packet, limit: limit, asked: time.Now()})
	}
}

// A client4test waits for its reply.
type client4test struct {
	c     *conversation
	query []byte
	limit int
	got   chan []byte
	asked time.Time
	from  netip.Addr
}

func (p *client4test) client() netip.Addr { return p.from }

func (p *client4test) deliver(q *wire.Query, t told, now time.Duration) {
	limit := p.limit
	if limit == 0 {
		limit = q.Limit()
	}
	reply := p.c.counters.send(nil, q, t, now, limit)
	if p.got != nil {
		p.got <- reply
		return
	}
	p.c.mu.Lock()
	p.c.slowest = max(p.c.slowest, time.Since(p.asked))
	p.c.mu.Unlock()
	p.c.reply(p.query, reply, p.limit)
}

// reply notes a reply, and checks what holds for all of them.
func (c *conversation) reply(query, reply []byte, limit int) {
	f := &c.s.flights
	f.mu.Lock()
	held := 0
	for _, h := range f.holders {
		held += h.n
	}
	if held != f.n-f.refreshing {
		c.t.Errorf("%d flights are held of %d", held, f.n-f.refreshing)
	}
	f.mu.Unlock()
	var q wire.Query
	wire.ParseQuery(query, &q)
	if limit == 0 {
		limit = q.Limit()
	}
	if len(reply) > limit {
		c.t.Errorf("reply of %d bytes to a client that takes %d", len(reply), limit)
	}
	questions := min(len(q.Question), 1) // none where it could not be read
	if !bytes.Equal(reply[:2], query[:2]) || int(binary.BigEndian.Uint16(reply[4:])) != questions ||
		!bytes.Equal(reply[wire.HeaderLen:wire.HeaderLen+len(q.Question)], q.Question) {
		c.t.Errorf("reply with another id or question: %x to %x", reply, query)
	}
	c.happened("replies: %s", format(c.t, reply))
}

// resolve is the resolver as an upstream of itself.
func (c *conversation) resolve(ctx context.Context, query []byte) ([]byte, error) {
	var q question
	reply, outcome := c.s.answer(c.counters, &q, query, nil, wire.MaxMessage, c.s.now())
	if outcome == replied {
		return reply, nil
	}
	p := &client4test{c: c, query: query, limit: wire.MaxMessage, got: make(chan []byte, 1)}
	c.s.join(q.key, &q.query, p)
	select {
	case reply := <-p.got:
		return reply, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func format(t *testing.T, packet []byte) string {
	t.Helper()
	s, err := dnstest.Format(packet)
	if err != nil {
		t.Error(err)
	}
	return s
}

// why is an explanation: its name, its route, its servers and its questions, each with
// what belongs to it on lines of their own.
func (c *conversation) why(words []string) string {
	name, ok := wire.ParseName(words[0])
	if !ok {
		c.t.Fatalf("%q is not a name", words[0])
	}
	var types []uint16
	for _, w := range words[1:] {
		types = append(types, dns.StringToType[w])
	}
	ex := c.s.Explain(name, types)
	var b strings.Builder
	line := func(indent int, what string, v any) {
		text, err := json.Marshal(v)
		if err != nil {
			c.t.Fatal(err)
		}
		// A time is the seconds since the conversation began.
		words := stamp.ReplaceAllFunc(text, func(quoted []byte) []byte {
			at, err := time.Parse(time.RFC3339Nano, strings.Trim(string(quoted), `"`))
			if err != nil {
				c.t.Fatal(err)
			}
			return []byte(at.Sub(c.start).String())
		})
		fmt.Fprintf(&b, "\n%s%s %s", strings.Repeat("  ", indent), what, words)
	}
	fmt.Fprintf(&b, "why: %s in a cluster %s", ex.Name, ex.ClusterDomain)
	r := ex.Route
	fmt.Fprintf(&b, "\nroute of %s zone %s policy %s", r.Suffix, r.Zone, r.Policy)
	for _, flag := range []struct {
		name string
		set  bool
	}{{"loop", r.Loop}, {"dead", r.Dead}, {"await", r.Await}} {
		if flag.set {
			b.WriteString(" " + flag.name)
		}
	}
	for _, s := range r.Servers {
		line(1, "server", s)
	}
	if ex.Overload != nil {
		line(0, "overload", ex.Overload)
	}
	for _, q := range ex.Questions {
		fmt.Fprintf(&b, "\nquestion %s do=%v cd=%v rd=%v", q.Type, q.DO, q.CD, q.RD)
		line(1, "answer", q.Answer)
		if q.Entry != nil {
			line(1, "entry", q.Entry)
		}
		if q.Flight != nil {
			line(1, "flight", q.Flight)
		}
	}
	return b.String()
}

// stamp is a time in JSON.
var stamp = regexp.MustCompile(`"\d{4}-\d\d-\d\dT[^"]*"`)

// stats is the counters that are not 0, on a line each for zones and servers.
func (c *conversation) stats() string {
	st := c.s.Stats()
	var b strings.Builder
	b.WriteString("stats:")
	add := func(name string, n int64) {
		if n != 0 {
			fmt.Fprintf(&b, " %s=%d", name, n)
		}
	}
	add("joined", int64(st.FlightsJoined))
	add("flights", st.Flights)
	for i, n := range st.Refreshes {
		add("refreshes-"+Refreshes[i], int64(n))
	}
	add("refused", int64(st.Refused))
	add("guesses", int64(st.Guesses))
	add("used", int64(st.GuessesUsed))
	add("collapsed", int64(st.Collapsed))
	add("timeouts", int64(st.Timeouts))
	add("shed", int64(st.Shed))
	add("loops", int64(st.Loops))
	add("evictions", int64(st.Evictions))
	for z, name := range ZoneKinds {
		cs := st.Cache[z]
		if cs != (CacheStats{}) {
			b.WriteString("\n" + name)
			add("hits", int64(cs.Hits))
			add("misses", int64(cs.Misses))
			add("stale", int64(cs.Stale))
			add("success", cs.Success)
			add("denial", cs.Denial)
		}
	}
	for _, u := range st.Upstreams {
		if u.Queries > 0 {
			fmt.Fprintf(&b, "\n%s over %s", u.Server.Addr(), u.Proto)
			add("queries", int64(u.Queries))
			add("errors", int64(u.Errors))
			if u.Down {
				b.WriteString(" down")
			}
		}
	}
	return b.String()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"nodelocaldns/dnscache"
	"nodelocaldns/host"
)

// whyJSON is the shape of why --json.
type whyJSON struct {
	Off bool `json:"off"` // a rollback was asked for: guard leaves the node alone
	dnscache.Explanation
}

func (a *app) whyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "why name [type]",
		Short: "how a query for a name is answered now, and why",
		Long: `How a query for a name is answered now, and why: who is asked for it and how they
do, what the cache has of it, from whom and for how long, and whether a question
for it is under way. The resolver that runs says so; it asks nobody for that, and
nothing is changed by it. Without a type it is A and AAAA. A name is taken as
complete, with or without its last dot.`,
		Example: `  nodelocaldns why web.shop.svc.cluster.local
  nodelocaldns why _grpc._tcp.web.shop.svc.cluster.local SRV
  nodelocaldns why 10.0.96.10.in-addr.arpa PTR`,
		Args: args(1, "name", "type"),
		RunE: func(cmd *cobra.Command, words []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			q, err := askWhy(words[0], words[1:])
			if err != nil {
				return err
			}
			return a.why(cmd.Context(), q, asJSON)
		},
		ValidArgsFunction: func(_ *cobra.Command, words []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(words) != 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT"}, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// A whyQuery is a name, as it was written and in wire form, and the types that are
// asked about.
type whyQuery struct {
	text  string
	name  []byte
	types []uint16
}

// askWhy reads the words of a command line.
func askWhy(name string, types []string) (whyQuery, error) {
	if len(types) == 0 {
		types = []string{"A", "AAAA"}
	}
	q, err := parseWhy(url.Values{"name": {name}, "type": types})
	if addr, perr := netip.ParseAddr(name); perr == nil {
		reverse, _ := dns.ReverseAddr(addr.WithZone("").String())
		return q, usagef(fmt.Sprintf("nodelocaldns why %s PTR is about its name", strings.TrimSuffix(reverse, ".")), "%s is an address", name)
	}
	return q, err
}

// parseWhy reads a query for an explanation. What is wrong with it is a usage error.
func parseWhy(v url.Values) (whyQuery, error) {
	q := whyQuery{text: v.Get("name")}
	room := make([]byte, 256) // the longest name has 255 octets (RFC 1035 2.3.4)
	n, err := dns.PackDomainName(dns.Fqdn(q.text), room, 0, nil, false)
	if err != nil || q.text == "" {
		return q, usagef("parts of 1 to 63 characters with dots between them, 253 in all: web.shop.svc.cluster.local", "%q is not a domain name", q.text)
	}
	q.name = room[:n]
	for _, text := range v["type"] {
		typ, known := dns.StringToType[strings.ToUpper(text)]
		if number, ok := strings.CutPrefix(strings.ToUpper(text), "TYPE"); ok && !known {
			n, err := strconv.ParseUint(number, 10, 16)
			typ, known = uint16(n), err == nil // RFC 3597 5
		}
		if !known || typ == dns.TypeNone || typ == dns.TypeOPT {
			return q, usagef("such as A, AAAA, PTR, SRV, TXT, or TYPE65 by its number", "%q is not a record type that is asked for", text)
		}
		q.types = append(q.types, typ)
	}
	return q, nil
}

// page is where the control socket answers q.
func (q whyQuery) page() string {
	v := url.Values{"name": {q.text}}
	for _, t := range q.types {
		v.Add("type", fmt.Sprintf("TYPE%d", t))
	}
	return "/why?" + v.Encode()
}

// why asks the resolver that runs, and prints what it says.
func (a *app) why(ctx context.Context, q whyQuery, asJSON bool) error {
	d, err := a.durableDeps(a.voice())
	if err != nil {
		return err
	}
	off, err := host.NewDurable(host.DurableConfig{}, d).Off()
	if err != nil {
		return err
	}
	w, err := a.standing(ctx)
	if err != nil {
		return err
	}
	var rs resolverStatus
	if !w.quiet() {
		rs = askControl(ctx, a.runDir)
	}
	if rs = w.correct(rs); !rs.Running {
		return noResolver(rs, off)
	}
	out := whyJSON{Off: off}
	path := filepath.Join(a.runDir, controlSocket)
	if err := getControl(ctx, path, q.page(), &out.Explanation); err != nil {
		return fmt.Errorf("asking %s: %w", path, err)
	}
	if asJSON {
		return a.json(out, false)
	}
	a.printWhy(out, q.text)
	return nil
}

// noResolver is the error where there is nobody to explain anything.
func noResolver(rs resolverStatus, off bool) error {
	text := "asking the resolver: " + rs.Why
	if off {
		text += "; a rollback was asked for"
	}
	switch {
	case rs.Why == unseen:
		return withHint(errors.New(text), "run it as root")
	case rs.Relay != nil && len(rs.Relay.Servers) == 0:
		return withHint(errors.New(text), "the relay knows no kube-dns: it answers every query SERVFAIL; nodelocaldns status says more")
	case rs.Relay != nil:
		return withHint(errors.New(text), "the relay passes every query on to %s and keeps nothing; nodelocaldns status says more", addressWords(rs.Relay.Servers))
	}
	return withHint(errors.New(text), "nodelocaldns status says who answers; --run-dir is that of the resolver")
}

// printWhy prints an explanation. asked is the name as it was written.
func (a *app) printWhy(x whyJSON, asked string) {
	rows := [][]string{{"name", x.Name}}
	if text := searched(x, asked); text != "" {
		rows = append(rows, []string{"search", text})
	}
	rows = append(rows, []string{"route", routeWords(x.Route)})
	for _, s := range x.Route.Servers {
		rows = append(rows, []string{"server", s.Server, strings.Join(s.Protos, ", then "), serverWords(s, x.At)})
	}
	if o := x.Overload; o != nil {
		rows = append(rows, []string{"overload", overloadWords(*o)})
	}
	if x.Off {
		rows = append(rows, []string{"off", "a rollback was asked for, guard leaves the node alone until the next apply"})
	}
	for _, q := range x.Questions {
		title := q.Type
		for _, flag := range []struct {
			set  bool
			word string
		}{{q.DO, " +do"}, {q.CD, " +cd"}, {!q.RD, " -rd"}} {
			if flag.set {
				title += flag.word
			}
		}
		rows = append(rows, []string{title, strings.Join(questionLines(q, x.At), "\n")})
	}
	a.table(rows, 1)
}

// ndots is what a pod's resolv.conf says: names with fewer dots are looked for below
// the search path first, unless they end in one (resolv.conf(5)).
const ndots = 5

// searched is where a pod looks for the name as it was written before it asks for it;
// empty for nowhere.
func searched(x whyJSON, asked string) string {
	if strings.HasSuffix(asked, ".") || strings.Count(asked, ".") >= ndots {
		return ""
	}
	domain := strings.TrimSuffix(x.ClusterDomain, ".")
	return fmt.Sprintf("a pod with ndots:%d looks for it below NAMESPACE.svc.%[2]s, svc.%[2]s and %[2]s first, unless it writes a last dot", ndots, domain)
}

func routeWords(r dnscache.ExplainedRoute) string {
	lines := []string{fmt.Sprintf("%s (%s), %s", r.Suffix, r.Zone, r.Policy)}
	switch {
	case r.Await:
		lines = append(lines, "kube-dns is not known yet")
	case len(r.Servers) == 0:
		lines = append(lines, "it has no servers")
	case r.Loop:
		lines = append(lines, "it leads back to this resolver")
	case r.Dead:
		lines = append(lines, "no server answers anybody; one question now and then sees whether one is back")
	}
	return strings.Join(lines, "\n")
}

func serverWords(s dnscache.ExplainedServer, at time.Time) string {
	parts := []string{s.State}
	switch {
	case s.State == "dead":
		parts[0] = "dead: it answers nobody"
	case s.Down > 0:
		parts[0] = "down: it comes last for " + span(seconds(s.Down))
	}
	if s.Latency > 0 {
		parts = append(parts, "replies take "+span(seconds(s.Latency)))
	}
	if s.Answered != nil {
		parts = append(parts, "last one "+before(at, *s.Answered))
	} else {
		parts = append(parts, "no reply yet")
	}
	if s.Error != nil {
		parts = append(parts, fmt.Sprintf("last error %s: %s", before(at, s.Error.At), s.Error.Text))
	}
	return strings.Join(parts, ", ")
}

func overloadWords(o dnscache.ExplainedOverload) string {
	var lines []string
	if o.NamesPerSecond > 0 {
		lines = append(lines, fmt.Sprintf("each client may ask %d names a second that are not in the cache; beyond that it gets SERVFAIL, or what has expired", o.NamesPerSecond))
	}
	if o.Full {
		lines = append(lines, "as many questions are under way as may be: one more ends another, whose clients get SERVFAIL, or what has expired")
	}
	return strings.Join(lines, "\n")
}

// questionLines are what becomes of a question, what the cache has of it, and what is
// under way for it.
func questionLines(q dnscache.ExplainedQuestion, at time.Time) []string {
	lines := []string{answerWords(q, at)}
	if e := q.Entry; e != nil {
		lines = append(lines, entryLines(*e, q.Answer.From, at)...)
	}
	if f := q.Flight; f != nil {
		line := fmt.Sprintf("asked upstream %s", before(at, f.Since))
		if f.Refresh != "" {
			line += " as a refresh (" + f.Refresh + ")"
		}
		line += fmt.Sprintf(", %s", waiting(f.Waiting))
		if f.Replaced {
			line += "; of servers that a reload has replaced, so nobody else joins it"
		}
		lines = append(lines, line)
	}
	if e := q.Entry; e != nil {
		lines = append(lines, recordLines("answer", e.Answer)...)
		lines = append(lines, recordLines("authority", e.Authority)...)
		lines = append(lines, recordLines("additional", e.Additional)...)
	}
	return lines
}

func waiting(clients int) string {
	switch clients {
	case 0:
		return "nobody waits"
	case 1:
		return "1 client waits"
	}
	return fmt.Sprintf("%d clients wait", clients)
}

// answerWords is what a client would be told.
func answerWords(q dnscache.ExplainedQuestion, at time.Time) string {
	r := q.Answer
	told := r.RCode
	if r.EDE != nil {
		told += fmt.Sprintf(" (EDE %d, %s)", r.EDE.Code, r.EDE.Name)
	}
	otherwise := fmt.Sprintf("without a reply in %s, SERVFAIL", span(seconds(r.Within)))
	if r.Else == dnscache.FromStale {
		otherwise = fmt.Sprintf("without a reply in %s, what has expired", span(seconds(r.Within)))
	}
	first := ""
	if r.Above != "" {
		first = fmt.Sprintf(", first for the service %s", r.Above)
	}
	switch r.From {
	case dnscache.FromCache:
		if q.Entry != nil && q.Entry.Class == "denial" && r.RCode == "NOERROR" {
			told += ", no such records"
		}
		return "from the cache: " + told
	case dnscache.FromDenial:
		return fmt.Sprintf("%s: there is no service %s, and so nothing below it", told, r.Above)
	case dnscache.FromStale:
		return "what has expired, at once: " + told + "; " + whyWords(r.Why, q.Entry, at)
	case dnscache.FromFlight:
		return "the reply to the question that is under way" + first + "; " + otherwise
	case dnscache.FromUpstream:
		return "upstream will be asked" + first + "; " + otherwise
	case dnscache.FromNobody:
		return told + ", at once; " + whyWords(r.Why, q.Entry, at)
	case dnscache.FromUs:
		return told + ": the resolver does not answer such questions"
	}
	return string(r.From)
}

// whyWords is why upstream is not asked.
func whyWords(why dnscache.Reason, e *dnscache.ExplainedEntry, at time.Time) string {
	switch why {
	case dnscache.BecauseLoop:
		return "upstream leads back to this resolver"
	case dnscache.BecauseFailed:
		if e == nil || e.Failed == nil {
			return "upstream was asked for it a short time ago, in vain"
		}
		if e.Failed.Name {
			return fmt.Sprintf("upstream failed at this name %s", before(at, e.Failed.Since))
		}
		return fmt.Sprintf("upstream was asked for it %s, and has answered nobody since", before(at, e.Failed.Since))
	case dnscache.BecauseDead:
		return "upstream answers nobody"
	case dnscache.BecauseNoServer:
		return "there is nobody to ask"
	case dnscache.BecauseNotReady:
		return "kube-dns is not known yet"
	case dnscache.BecauseStopping:
		return "the resolver is about to end"
	case dnscache.BecauseCrowded:
		return "too many wait for the reply already"
	}
	return string(why)
}

// entryLines are about what the cache has, where the answer comes from.
func entryLines(e dnscache.ExplainedEntry, from dnscache.From, at time.Time) []string {
	var line string
	switch e.State {
	case "fresh":
		line = fmt.Sprintf("kept %s, fresh for %s more", before(at, e.Stored), span(e.Expires.Sub(at)))
	case "stale":
		line = fmt.Sprintf("expired %s, served for %s more where upstream does not answer", before(at, e.Expires), span(e.Until.Sub(at)))
	default:
		line = fmt.Sprintf("the cache has what expired %s, and is served no more", before(at, e.Expires))
	}
	if e.AD {
		line += ", validated by upstream"
	}
	if e.Restored {
		line += ", from before the resolver was started"
	}
	lines := []string{line}
	if u := e.Upstream; u != nil {
		lines = append(lines, fmt.Sprintf("from %s over %s, in %s", u.Server, u.Proto, span(seconds(u.Took))))
	}
	switch {
	case from == dnscache.FromDenial: // names below its own do not count
	case e.Hits >= e.HitsCap && e.Hits > 0:
		lines = append(lines, fmt.Sprintf("given from the cache %s or more", count(e.Hits, "time")))
	case e.Hits > 0:
		lines = append(lines, "given from the cache "+count(e.Hits, "time"))
	default:
		lines = append(lines, "not given from the cache yet")
	}
	if r := e.Refresh; r != nil {
		lines = append(lines, refreshWords(*r, at))
	}
	if f := e.Failed; f != nil {
		line := "a refresh has failed: no word of it for " + span(at.Sub(f.Since))
		if f.Name {
			line += ", while upstream answers others"
		}
		lines = append(lines, line)
	}
	return lines
}

func refreshWords(r dnscache.ExplainedRefresh, at time.Time) string {
	if r.Begun {
		return "its refresh was begun, or there were too many"
	}
	var parts []string
	if r.From != nil {
		left := r.From.Sub(at)
		switch {
		case r.Queries > 1 && left > 0:
			parts = append(parts, fmt.Sprintf("%d more queries have it refreshed, the last of them in %s or later", r.Queries, span(left)))
		case r.Queries > 1:
			parts = append(parts, fmt.Sprintf("%d more queries have it refreshed", r.Queries))
		case left > 0:
			parts = append(parts, fmt.Sprintf("a query in %s or later has it refreshed", span(left)))
		default:
			parts = append(parts, "the next query has it refreshed")
		}
	}
	if r.Unasked != nil {
		parts = append(parts, fmt.Sprintf("it is refreshed in %s, asked for or not", span(max(0, r.Unasked.Sub(at)))))
	}
	return strings.Join(parts, "; ")
}

// shownRecords is how many records of a section are words; JSON has them all.
const shownRecords = 10

func recordLines(section string, records []string) []string {
	var lines []string
	for _, r := range records[:min(len(records), shownRecords)] {
		lines = append(lines, section+" "+r)
	}
	if more := len(records) - shownRecords; more > 0 {
		lines = append(lines, fmt.Sprintf("%s … %d more", section, more))
	}
	return lines
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// before is how long before at something was.
func before(at, then time.Time) string { return span(at.Sub(then)) + " ago" }

// span is a duration for a person, where that of a reply counts, too.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return ago(d)
}

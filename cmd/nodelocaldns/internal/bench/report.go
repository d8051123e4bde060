package bench

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// A Report is what a run has come to, in the shape of bench --json.
type Report struct {
	Hosts       []string         `json:"hosts"`
	Types       []string         `json:"qtypes"`
	Servers     []netip.AddrPort `json:"servers"`
	Proto       string           `json:"proto"` // udp or tcp
	Fresh       bool             `json:"fresh"`
	Search      []string         `json:"search"`
	Ndots       int              `json:"ndots"`
	Timeout     float64          `json:"timeout_seconds"`
	Attempts    int              `json:"attempts"`
	Concurrency int              `json:"concurrency"`
	Duration    float64          `json:"duration_seconds"` // as asked
	Limit       float64          `json:"limit_seconds"`

	Elapsed     float64 `json:"elapsed_seconds"` // until the last lookup had ended
	Interrupted bool    `json:"interrupted"`
	Lookups     uint64  `json:"lookups"` // that have ended
	Failed      uint64  `json:"failed"`
	Errors      Errors  `json:"errors"` // by kind, Failed in all
	Trouble     string  `json:"other"`  // the first of Errors.Other
	Over        uint64  `json:"over_limit"`
	Unfinished  uint64  `json:"unfinished"` // cut off, in no other figure but Over and Queries
	Queries     uint64  `json:"queries"`
	Lost        uint64  `json:"lost"`     // queries without a reply in time
	OverTCP     uint64  `json:"over_tcp"` // questions asked again over TCP

	Latency   Latency `json:"latency"`   // of lookups
	Histogram []Row   `json:"histogram"` // from the fastest lookup's row to the slowest's
}

// Errors are failed lookups by their Outcome.
type Errors struct {
	Timeout  uint64 `json:"timeout"`
	Servfail uint64 `json:"servfail"`
	Refused  uint64 `json:"refused"`
	NXDomain uint64 `json:"nxdomain"`
	NoData   uint64 `json:"nodata"`
	Other    uint64 `json:"other"`
}

// Latency is in seconds. Percentiles are at most 0.8 % too high.
type Latency struct {
	Min  float64 `json:"min_seconds"`
	Avg  float64 `json:"avg_seconds"`
	Max  float64 `json:"max_seconds"`
	P50  float64 `json:"p50_seconds"`
	P90  float64 `json:"p90_seconds"`
	P95  float64 `json:"p95_seconds"`
	P99  float64 `json:"p99_seconds"`
	P999 float64 `json:"p99_9_seconds"`
}

// A Row counts the lookups that took at most so long, and longer than the row
// before; those of the last may have no bound.
type Row struct {
	UpTo    *float64 `json:"up_to_seconds"`
	Lookups uint64   `json:"lookups"`
}

// Report is what there is so far. It is for any goroutine.
func (b *Bench) Report() Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, r := &b.figures, &b.cfg.Resolver
	out := Report{
		Hosts:       b.cfg.Hosts,
		Servers:     r.Servers,
		Proto:       b.network(),
		Fresh:       b.cfg.Fresh,
		Search:      append([]string{}, r.Search...),
		Ndots:       r.Ndots,
		Timeout:     r.Timeout.Seconds(),
		Attempts:    r.Attempts,
		Concurrency: b.cfg.Concurrency,
		Duration:    b.cfg.Duration.Seconds(),
		Limit:       b.cfg.Limit.Seconds(),
		Elapsed:     f.elapsed(time.Now()).Seconds(),
		Interrupted: f.interrupted,
		Lookups:     f.times.n,
		Failed:      f.failed(),
		Errors: Errors{
			f.outcomes[Timeout], f.outcomes[Servfail], f.outcomes[Refused],
			f.outcomes[NXDomain], f.outcomes[NoData], f.outcomes[Other],
		},
		Over:       f.over,
		Unfinished: f.outcomes[Unfinished],
		Queries:    f.queries,
		Lost:       f.lost,
		OverTCP:    f.overTCP,
		Histogram:  []Row{},
	}
	for _, t := range b.cfg.Types {
		out.Types = append(out.Types, dns.TypeToString[t])
	}
	if f.trouble != nil {
		out.Trouble = f.trouble.Error()
	}
	if f.times.n == 0 {
		return out
	}
	quantile := func(q float64) float64 { return min(f.times.quantile(q), f.most).Seconds() }
	out.Latency = Latency{
		f.least.Seconds(), (f.sum / time.Duration(f.times.n)).Seconds(), f.most.Seconds(),
		quantile(.5), quantile(.9), quantile(.95), quantile(.99), quantile(.999),
	}
	left := f.times.n
	for i, n := range f.rows {
		if n == 0 && (len(out.Histogram) == 0 || left == 0) {
			continue
		}
		row := Row{Lookups: n}
		if i < len(edges) {
			upTo := edges[i].Seconds()
			row.UpTo = &upTo
		}
		out.Histogram = append(out.Histogram, row)
		left -= n
	}
	return out
}

// Verdict is what was wrong, and what to do about it; both are empty if all
// lookups had an answer within the limit.
func (r Report) Verdict() (wrong, hint string) {
	var parts []string
	if r.Failed > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d lookups failed", r.Failed, r.Lookups))
	}
	if r.Over > 0 {
		parts = append(parts, fmt.Sprintf("%d took longer than %s", r.Over, seconds(r.Limit)))
	}
	if len(parts) == 0 && r.Lookups == 0 {
		parts = append(parts, "no lookup has ended")
	}
	switch {
	case len(parts) == 0:
	case r.Errors.NXDomain+r.Errors.NoData > 0:
		hint = "are the names right? --search has them looked up as below the search path of resolv.conf"
	case r.Errors.Refused > 0:
		hint = "does a server listen at " + servers(r.Servers) + ", and answer this node?"
	case r.Lost > 0 && r.Lost == r.Queries:
		hint = "is " + servers(r.Servers) + " a name server, and does a firewall let its replies through?"
	case r.Lost > 0:
		hint = "queries were dropped on the way: nstat -az UdpRcvbufErrors counts those for which a server's socket had no room, conntrack -S those that conntrack dropped (insert_failed, drop)"
	}
	return strings.Join(parts, ", "), hint
}

// Text is the report for a person, of lines no longer than 80 columns but for
// long names.
func (r Report) Text() string {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", key, fmt.Sprintf(format, args...))
	}
	names := r.Hosts[0]
	if more := len(r.Hosts) - 1; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	proto := strings.ToUpper(r.Proto)
	if r.Fresh {
		proto += ", each from a new port"
	}
	line("asked for", "%s, %s", names, strings.Join(r.Types, " and "))
	line("asked", "%s over %s", servers(r.Servers), proto)
	if len(r.Search) > 0 {
		line("search", "%s, ndots %d", strings.Join(r.Search, " "), r.Ndots)
	}
	line("lookups", "%d in %s, %d at once, %.0f a second", r.Lookups, human(span(r.Elapsed)), r.Concurrency, rate(r.Lookups, span(r.Elapsed)))
	queries := fmt.Sprintf("%d, %.0f a second; %d without a reply in time", r.Queries, rate(r.Queries, span(r.Elapsed)), r.Lost)
	if r.OverTCP > 0 {
		queries += fmt.Sprintf("; %d times again over TCP", r.OverTCP)
	}
	line("queries", "%s", queries)
	line("failed", "%s", r.kinds())
	line("over "+seconds(r.Limit), "%d", r.Over)
	if r.Unfinished > 0 {
		line("cut off", "%d", r.Unfinished)
	}
	if r.Lookups == 0 {
		return b.String()
	}
	l := r.Latency
	h := func(s float64) string { return human(span(s)) }
	line("took", "min %s, avg %s, max %s", h(l.Min), h(l.Avg), h(l.Max))
	line("", "p50 %s, p90 %s, p95 %s, p99 %s, p99.9 %s", h(l.P50), h(l.P90), h(l.P95), h(l.P99), h(l.P999))
	b.WriteString("\n    up to   lookups\n")
	var most uint64
	for _, row := range r.Histogram {
		most = max(most, row.Lookups)
	}
	for _, row := range r.Histogram {
		upTo := "longer"
		if row.UpTo != nil {
			upTo = edge(span(*row.UpTo))
		}
		// Whatever was counted can be seen, if only as a dot.
		bar := strings.Repeat("#", int(row.Lookups*barWidth/most))
		if bar == "" && row.Lookups > 0 {
			bar = "."
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("%9s %9d  %s", upTo, row.Lookups, bar), " ") + "\n")
	}
	return b.String()
}

const barWidth = 50

// kinds are the failed lookups by kind.
func (r Report) kinds() string {
	var parts []string
	for _, k := range []struct {
		n    uint64
		name string
	}{
		{r.Errors.Timeout, "timeout"}, {r.Errors.Servfail, "SERVFAIL"}, {r.Errors.Refused, "refused"},
		{r.Errors.NXDomain, "NXDOMAIN"}, {r.Errors.NoData, "no data"}, {r.Errors.Other, "other"},
	} {
		if k.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", k.n, k.name))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	text := fmt.Sprintf("%d: %s", r.Failed, strings.Join(parts, ", "))
	if r.Trouble != "" {
		text += " (such as " + r.Trouble + ")"
	}
	return text
}

func servers(all []netip.AddrPort) string {
	var words []string
	for _, s := range all {
		words = append(words, s.String())
	}
	return strings.Join(words, ", ")
}

func span(seconds float64) time.Duration {
	return time.Duration(math.Round(seconds * float64(time.Second)))
}

func seconds(s float64) string { return span(s).String() }

// edge is a round duration: 20 us, 5 ms, 1 s.
func edge(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d us", d/time.Microsecond)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d/time.Millisecond)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

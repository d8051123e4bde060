package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// The names of the cases that promises are about.
const (
	Hits        = "hits-1000"
	HitsFew     = "hits-100"
	HitsMany    = "hits-100000"
	HitsAtRate  = "rate"
	Clients     = "clients-1000"
	Misses      = "misses"
	LookupsCase = "lookups"
	StartCase   = "start"
	RSSEmpty    = "rss-0"
	RSSFull     = "rss-100000"
	freshHit    = "FreshHit/one"
)

// A Promise is what is promised, and what was measured.
type Promise struct {
	Figure   string `json:"figure"`
	Holds    string `json:"holds"`
	Measured string `json:"measured"`
	Verdict  string `json:"verdict"` // held, missed, or not measured
}

// The verdicts.
const (
	Held       = "held"
	Missed     = "missed"
	Unmeasured = "not measured"
)

// A check gathers the parts of a promise.
type check struct {
	texts   []string
	verdict string
}

// add notes a part of a promise with the figure that decides; NaN is none.
func (c *check) add(decides float64, held bool, text string, args ...any) {
	switch {
	case math.IsNaN(decides):
		if c.verdict != Missed {
			c.verdict = Unmeasured
		}
		return
	case !held:
		c.verdict = Missed
	case c.verdict == "":
		c.verdict = Held
	}
	c.texts = append(c.texts, fmt.Sprintf(text, args...))
}

func (c *check) promise(figure, holds string) Promise {
	return Promise{figure, holds, strings.Join(c.texts, "; "), c.verdict}
}

// Promises are the lines that the project is held to, all of them ratios of medians
// of this run, except for what is small whatever the machine: memory, the start,
// and a miss.
func (r Run) Promises() []Promise {
	ours := func(name string, m measure) float64 { return r.stat(Ours, name, m).Median }
	of := func(subject, name string, m measure) float64 { return r.stat(subject, name, m).Median }
	// limit checks that ours is at most so many times what another has.
	limit := func(c *check, name, other, otherName string, m measure, most float64, what string) {
		a, b := ours(name, m), of(other, otherName, m)
		c.add(a/b, a/b <= most, "%s is %s times %s of %s", figure(a), figure(a/b), figure(b), what)
	}
	// best checks that ours is below, or above, what the best of the peers has.
	best := func(c *check, name string, m measure, sign float64) {
		a, peer, b := ours(name, m), "", math.NaN()
		for _, p := range r.peers(name) {
			if v := of(p, name, m); !math.IsNaN(v) && !(sign*v >= sign*b) {
				peer, b = p, v
			}
		}
		c.add(a-b, sign*a < sign*b, "%s, the best peer %s (%s)", figure(a), figure(b), peer)
	}
	cost := func(name, title string, factor float64) Promise {
		c := new(check)
		limit(c, name, FloorC, name, cpu, 1.3, "the C floor")
		best(c, name, cpu, 1)
		a := of(CoreDNS, name, cpu) / ours(name, cpu)
		c.add(a, a >= factor, "%s times below CoreDNS", figure(a))
		return c.promise(title, fmt.Sprintf("at most 1.3 times the C floor; below every peer; at least %g times below CoreDNS", factor))
	}
	var out []Promise
	out = append(out, cost(Hits, "CPU µs for a cached query, full load", 5))
	out = append(out, cost(HitsAtRate, "CPU µs for a cached query at "+figure(float64(r.Rate))+" q/s", 4))

	c := new(check)
	known := math.NaN()
	if r.measured(Ours, LookupsCase) {
		known = 0
	}
	errors := r.sum(Ours, LookupsCase, func(s Sample) int { return s.Load.Wrong })
	slow := r.sum(Ours, LookupsCase, func(s Sample) int { return s.Load.Slow })
	drops := r.sum(Ours, LookupsCase, func(s Sample) int { return s.Drops })
	c.add(known, errors+slow+drops == 0, "%d errors, %d over 5 s, %d drops", errors, slow, drops)
	best(c, LookupsCase, mean, 1)
	out = append(out, c.promise("200 lookups at once, search path, A and AAAA; average µs", "0 errors, 0 over 5 s, 0 receive-buffer drops; average below every peer's"))

	c = new(check)
	best(c, Hits, perSecond, -1)
	out = append(out, c.promise("q/s on cached names", "above every peer"))

	c = new(check)
	limit(c, HitsAtRate, FloorC, HitsAtRate, p99, 1.5, "the C floor")
	out = append(out, c.promise("p99 µs at "+figure(float64(r.Rate))+" q/s", "at most 1.5 times the C floor's"))

	c = new(check)
	miss, unbound := ours(Misses, cpu), of(Unbound, Misses, cpu)
	c.add(miss, miss < 24, "%s", figure(miss))
	c.add(miss-unbound, miss < unbound, "unbound %s", figure(unbound))
	out = append(out, c.promise("CPU µs for a miss over TCP", "below 24 and below unbound"))

	c = new(check)
	if i := slices.IndexFunc(r.Micro, func(m Micro) bool { return m.Name == freshHit }); i >= 0 {
		m := r.Micro[i]
		c.add(m.Nanos, m.Nanos < 400 && m.Allocs == 0, "%s ns, %s allocations", figure(m.Nanos), figure(m.Allocs))
	} else {
		c.add(math.NaN(), false, "")
	}
	out = append(out, c.promise("a fresh hit in the micro-benchmark, 10,000 entries", "0 allocations, under 400 ns"))

	c = new(check)
	limit(c, HitsMany, Ours, HitsFew, cpu, 1.3, "100 entries")
	limit(c, Clients, Ours, Hits, cpu, 1.3, "one client")
	out = append(out, c.promise("growth: CPU µs for a hit with 100,000 entries, and from 1,000 addresses", "at most 1.3 times that with 100, and from one"))

	c = new(check)
	empty, full := ours(RSSEmpty, rss), ours(RSSFull, rss)
	c.add(empty, empty <= 25, "%s empty", figure(empty))
	c.add(full, full <= 64, "%s with 100,000 entries", figure(full))
	out = append(out, c.promise("RSS of the resolver, MiB", "at most 25 empty, at most 64 with 100,000 entries"))

	c = new(check)
	first := ours(StartCase, start)
	c.add(first, first < 50, "%s", figure(first))
	return append(out, c.promise("start to first answer, ms", "under 50"))
}

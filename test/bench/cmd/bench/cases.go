package main

import (
	"time"

	"nodelocaldns/test/bench/load"
	"nodelocaldns/test/bench/report"
)

// A scale is how long a run takes: that of `make bench`, or of `make bench-quick`.
type scale struct {
	rounds  int
	full    time.Duration // of a case at full load
	rate    time.Duration // of one at a fixed rate
	lookups time.Duration
	quick   bool // the cases that most promises are about, and no more
}

var (
	// thorough takes about a quarter of an hour with all peers.
	thorough = scale{rounds: 3, full: 1500 * time.Millisecond, rate: 3 * time.Second, lookups: 10 * time.Second}
	// brief takes about two minutes. At less than a second of processor time, its unit
	// of 10 ms is seen in the figures.
	brief = scale{rounds: 1, full: time.Second, rate: 2 * time.Second, lookups: 3 * time.Second, quick: true}
)

const (
	// rate is what a busy node's pods may ask in a second.
	rate = 10_000
	warm = 300 * time.Millisecond
	// host has four dots, so that its search path is asked first: eight queries.
	host = "web.shop.svc.cluster.local"
	// Names of numbers from here on are asked for once.
	fresh      = 1 << 20
	freshMixed = 1 << 21
	freshNames = 1 << 20
)

// A step is something that is done with a server, in order: what is in its cache
// stays there.
type step struct {
	report.Case
	// fill are names that are asked for first, so that they are in the cache.
	fill load.Set
	plan load.Plan // nothing is asked where its time is 0
	// floors are servers that know no names: a step means something for them.
	floors, quick bool
	calm          bool // first: it is not about what a server does after too much load
}

// steps are what is done with each server in each round.
func (s scale) steps() []step {
	pods := func(n int) load.Set { return load.Set{Kind: load.Pod, Count: n} }
	full := func(names load.Set) load.Plan {
		return load.Plan{Kind: load.UDP, Names: names, Window: 200, Sockets: 32, Warm: warm, Time: s.full}
	}
	hits := func(name, count string, names load.Set) step {
		return step{Case: report.Case{Name: name, Title: "Hits, " + count + " names, full load", Shows: report.Full}, fill: names, plan: full(names)}
	}
	few := pods(1000)
	main := hits(report.Hits, "1,000", few)
	main.floors, main.quick = true, true
	main.fill = few
	mainAtRate := step{
		Case:   report.Case{Name: report.HitsAtRate, Title: "Hits, 1,000 names, 10,000 q/s", Shows: report.AtRate},
		fill:   few,
		plan:   load.Plan{Kind: load.UDP, Names: few, Rate: rate, Sockets: 32, Warm: warm, Time: s.rate},
		floors: true, quick: true,
	}
	manyClients := step{Case: report.Case{Name: report.Clients, Title: "Hits, 1,000 names, from 1,000 addresses, full load", Shows: report.Full}, fill: few, plan: full(few), floors: true}
	manyClients.plan.Clients = 1000
	tcp := step{Case: report.Case{Name: "tcp", Title: "Hits, 1,000 names, over 16 TCP connections, full load", Shows: report.Full}, fill: few,
		plan: load.Plan{Kind: load.TCP, Names: few, Window: 64, Sockets: 16, Warm: warm, Time: s.full}}
	none := load.Set{Kind: load.None, Count: 1000}
	misses := step{Case: report.Case{Name: report.Misses, Title: "Misses, each name once, full load", Shows: report.Full},
		plan: full(load.Set{Kind: load.Pod, First: fresh, Count: freshNames}), quick: true, calm: true}
	misses.plan.Window = 64
	mixed := step{Case: report.Case{Name: "mixed", Title: "Nine hits to a miss, full load", Shows: report.Full}, plan: full(few)}
	mixed.plan.Once, mixed.plan.Every, mixed.plan.Window = load.Set{Kind: load.Pod, First: freshMixed, Count: freshNames}, 10, 64

	all := []step{
		{Case: report.Case{Name: report.RSSEmpty, Title: "empty", Shows: report.Memory}, floors: true, quick: true},
		hits("hits-10", "10", pods(10)),
		hits(report.HitsFew, "100", pods(100)),
		main,
		mainAtRate,
		manyClients,
		tcp,
		{Case: report.Case{Name: "nxdomain", Title: "Denials (NXDOMAIN), 1,000 names, full load", Shows: report.Full}, fill: none, plan: full(none)},
		{Case: report.Case{Name: report.LookupsCase, Title: "200 lookups at once, search path and ndots:5, A and AAAA", Shows: report.Lookups},
			plan: load.Plan{Kind: load.Lookups, Host: host, Window: 200, Sockets: 200, Warm: warm, Time: s.lookups}, quick: true},
		hits("hits-10000", "10,000", pods(10_000)),
		{Case: report.Case{Name: "rss-10000", Title: "10,000 entries", Shows: report.Memory}},
		hits(report.HitsMany, "100,000", pods(100_000)),
		{Case: report.Case{Name: report.RSSFull, Title: "100,000 entries", Shows: report.Memory}},
		misses,
		mixed,
	}
	var out []step
	for _, st := range all {
		if !s.quick || st.quick {
			out = append(out, st)
		}
	}
	return out
}

package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"nodelocaldns/cmd/internal/control"
	"nodelocaldns/dnscache"
)

// metrics is everything /metrics shows. Its registry is its own, so that two
// of them can live in one process.
type metrics struct {
	registry     *prometheus.Registry
	listenFailed *prometheus.GaugeVec
	reloads      *prometheus.CounterVec
	reloadFailed prometheus.Gauge
}

func newMetrics(v version) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		listenFailed: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "nodelocaldns_listen_failed",
			Help: "Whether an HTTP endpoint cannot have its address (1) or has it (0).",
		}, []string{"endpoint"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodelocaldns_config_reloads_total",
			Help: "Reloads of the configuration, by result.",
		}, []string{"result"}),
		reloadFailed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nodelocaldns_config_reload_failed",
			Help: "Whether the last reload was refused (1), so that the configuration in effect is older than the file.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "nodelocaldns_build_info",
		Help:        "Always 1; the labels say what this binary is.",
		ConstLabels: prometheus.Labels{"version": v.Version, "revision": v.Revision, "goversion": v.Go},
	})
	build.Set(1)
	relay := prometheus.NewGauge(prometheus.GaugeOpts{Name: control.Active, Help: control.ActiveHelp}) // 0: we are not the relay
	for _, result := range []string{"ok", "error"} {
		m.reloads.WithLabelValues(result) // 0 is seen before the first one
	}
	m.registry.MustRegister(m.listenFailed, m.reloads, m.reloadFailed, build, relay,
		collectors.NewGoCollector(), newProcess())
	return m
}

// watch adds the resolver's counters.
func (m *metrics) watch(r interface{ Stats() dnscache.Stats }) {
	m.registry.MustRegister(collector{r})
}

func (m *metrics) reloaded(ok bool) {
	if ok {
		m.reloads.WithLabelValues("ok").Inc()
		m.reloadFailed.Set(0)
		return
	}
	m.reloads.WithLabelValues("error").Inc()
	m.reloadFailed.Set(1)
}

// collector shows one snapshot of the resolver's counters per scrape. The
// resolver counts on its own, without this library in its packet path.
type collector struct {
	resolver interface{ Stats() dnscache.Stats }
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("nodelocaldns_"+name, help, labels, nil)
}

var (
	descQueries       = desc("queries_total", "Well-formed queries received, by protocol.", "proto")
	descMalformed     = desc("malformed_queries_total", "Packets that were no query: dropped, or answered FORMERR.")
	descReplies       = desc("replies_total", "Replies sent, by response code.", "rcode")
	descHits          = desc("cache_hits_total", "Queries answered with a fresh reply from the cache, by kind of zone.", "zone")
	descMisses        = desc("cache_misses_total", "Queries that the cache had no fresh reply to, by kind of zone.", "zone")
	descStale         = desc("stale_replies_total", "Replies given although they had expired, by kind of zone.", "zone")
	descEntries       = desc("cache_entries", "Replies kept, by kind of zone and of reply.", "zone", "kind")
	descBytes         = desc("cache_bytes", "Memory charged for all replies kept.")
	descMaxBytes      = desc("cache_max_bytes", "The most memory that replies may be charged for.")
	descEvictions     = desc("cache_evictions_total", "Replies dropped before their time to make room.")
	descFlights       = desc("flights", "Questions to upstreams under way.")
	descFlightsJoined = desc("flights_joined_total", "Queries that waited for a question already under way.")
	descRefreshes     = desc("refreshes_total", "Questions to upstreams that no client waited for, by reason.", "reason")
	descRefused       = desc("refreshes_refused_total", "Such questions that were not asked because there were too many.")
	descGuesses       = desc("search_guesses_total", "Names of search paths that were asked for before a client did.")
	descGuessesUsed   = desc("search_guesses_used_total", "Of these, those that a client has asked for after all.")
	descCollapsed     = desc("search_collapsed_total", "Queries denied from the cache because there is no service that their name lies below.")
	descLoops         = desc("loops_total", "Queries of our own that came back to us.")
	descTimeouts      = desc("timeouts_total", "Queries answered SERVFAIL because no upstream gave a usable reply in time.")
	descShed          = desc("shed_total", "Queries answered SERVFAIL because too many questions were under way.")
	descDrops         = desc("socket_drops_total", "Datagrams the kernel dropped because a receive buffer was full.")
	descClients       = desc("tcp_clients", "Open TCP connections of clients.")
	descUpQueries     = desc("upstream_queries_total", "Questions asked, by upstream and protocol.", "upstream", "proto")
	descUpHedges      = desc("upstream_hedges_total", "Questions asked once more because a reply was late, by upstream and protocol.", "upstream", "proto")
	descUpErrors      = desc("upstream_errors_total", "Questions without a usable reply, by upstream and protocol.", "upstream", "proto")
	descUpDown        = desc("upstream_down", "Whether the upstream failed lately, so that it is asked last (1).", "upstream", "proto")
	descUpSeconds     = desc("upstream_duration_seconds", "Time to a usable reply, by upstream and protocol.", "upstream", "proto")
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descQueries, descMalformed, descReplies, descHits, descMisses, descStale, descEntries, descBytes, descMaxBytes,
		descEvictions, descFlights, descFlightsJoined, descRefreshes, descRefused, descGuesses, descGuessesUsed, descCollapsed, descLoops, descTimeouts, descShed, descDrops, descClients,
		descUpQueries, descUpHedges, descUpErrors, descUpDown, descUpSeconds,
	} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.resolver.Stats()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	for p, n := range s.Queries {
		counter(descQueries, n, dnscache.Proto(p).String())
	}
	counter(descMalformed, s.Malformed)
	for code, n := range s.Replies {
		// The codes of everyday are always there, so that a rate over them
		// starts at 0; the rest appear when they do.
		if n > 0 || code <= dns.RcodeRefused {
			counter(descReplies, n, rcodeName(code, len(s.Replies)))
		}
	}
	for i, z := range s.Cache {
		zone := dnscache.ZoneKinds[i]
		counter(descHits, z.Hits, zone)
		counter(descMisses, z.Misses, zone)
		counter(descStale, z.Stale, zone)
		gauge(descEntries, z.Success, zone, "success")
		gauge(descEntries, z.Denial, zone, "denial")
	}
	gauge(descBytes, s.CacheBytes)
	gauge(descMaxBytes, s.CacheMax)
	counter(descEvictions, s.Evictions)
	gauge(descFlights, s.Flights)
	counter(descFlightsJoined, s.FlightsJoined)
	for i, n := range s.Refreshes {
		counter(descRefreshes, n, dnscache.Refreshes[i])
	}
	counter(descRefused, s.Refused)
	counter(descGuesses, s.Guesses)
	counter(descGuessesUsed, s.GuessesUsed)
	counter(descCollapsed, s.Collapsed)
	counter(descLoops, s.Loops)
	counter(descTimeouts, s.Timeouts)
	counter(descShed, s.Shed)
	counter(descDrops, s.SocketDrops)
	gauge(descClients, s.TCPClients)
	for _, u := range s.Upstreams {
		server, proto := u.Server.String(), u.Proto.String()
		counter(descUpQueries, u.Queries, server, proto)
		counter(descUpHedges, u.Hedges, server, proto)
		counter(descUpErrors, u.Errors, server, proto)
		gauge(descUpDown, map[bool]int64{true: 1}[u.Down], server, proto)
		buckets, count := cumulative(u.Latency[:])
		ch <- prometheus.MustNewConstHistogram(descUpSeconds, count, u.LatencySum.Seconds(), buckets, server, proto)
	}
}

// cumulative turns counts per bucket, the last one without a bound, into what
// a histogram is made of.
func cumulative(latency []uint64) (buckets map[float64]uint64, count uint64) {
	buckets = make(map[float64]uint64, len(dnscache.LatencyBounds))
	for i, bound := range dnscache.LatencyBounds {
		count += latency[i]
		buckets[bound.Seconds()] = count
	}
	return buckets, count + latency[len(latency)-1]
}

// rcodeName is the name of a response code; the last of n counts all above.
func rcodeName(code, n int) string {
	switch code {
	case n - 1:
		return "other"
	case dns.RcodeBadVers: // TSIG's BADSIG to the library: the same number
		return "BADVERS"
	}
	if name, ok := dns.RcodeToString[code]; ok {
		return strings.ToUpper(name)
	}
	return strconv.Itoa(code)
}

// meanLatency is over all replies so far.
func meanLatency(u dnscache.UpstreamStats) time.Duration {
	_, n := cumulative(u.Latency[:])
	if n == 0 {
		return 0
	}
	return u.LatencySum / time.Duration(n)
}

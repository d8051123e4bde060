package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"nodelocaldns/dnscache"
)

type fixedStats dnscache.Stats

func (s fixedStats) Stats() dnscache.Stats { return dnscache.Stats(s) }

// someStats has another number in every counter.
func someStats() fixedStats {
	s := dnscache.Stats{
		Malformed: 3, CacheBytes: 4096, CacheMax: 32 << 20, Evictions: 5, FlightsJoined: 6, Flights: 7,
		Loops: 8, Timeouts: 9, Shed: 10, SocketDrops: 11, TCPClients: 12,
	}
	s.Queries[dnscache.UDP], s.Queries[dnscache.TCP] = 1000, 200
	s.Replies[0], s.Replies[3], s.Replies[16], s.Replies[23] = 900, 100, 2, 1
	s.Refreshes, s.Refused = [...]uint64{51, 52, 53, 55}, 54
	s.Guesses, s.GuessesUsed, s.Collapsed = 58, 56, 57
	s.Cache[0] = dnscache.CacheStats{Hits: 21, Misses: 22, Stale: 25, Success: 23, Denial: 24}
	s.Cache[1] = dnscache.CacheStats{Hits: 31, Misses: 32, Stale: 35, Success: 33, Denial: 34}
	s.Cache[2] = dnscache.CacheStats{Hits: 41, Misses: 42, Stale: 45, Success: 43, Denial: 44}
	u := dnscache.UpstreamStats{
		Server: netip.MustParseAddrPort("10.96.0.10:53"), Proto: dnscache.TCP,
		Queries: 10, Hedges: 1, Errors: 2, LatencySum: 1500 * time.Millisecond, Down: true,
	}
	u.Latency[0], u.Latency[2], u.Latency[len(u.Latency)-1] = 4, 3, 1
	s.Upstreams = []dnscache.UpstreamStats{u}
	return fixedStats(s)
}

const wantMetrics = `
# HELP nodelocaldns_cache_bytes Memory charged for all replies kept.
# TYPE nodelocaldns_cache_bytes gauge
nodelocaldns_cache_bytes 4096
# HELP nodelocaldns_cache_entries Replies kept, by kind of zone and of reply.
# TYPE nodelocaldns_cache_entries gauge
nodelocaldns_cache_entries{kind="denial",zone="cluster"} 24
nodelocaldns_cache_entries{kind="denial",zone="external"} 44
nodelocaldns_cache_entries{kind="denial",zone="reverse"} 34
nodelocaldns_cache_entries{kind="success",zone="cluster"} 23
nodelocaldns_cache_entries{kind="success",zone="external"} 43
nodelocaldns_cache_entries{kind="success",zone="reverse"} 33
# HELP nodelocaldns_cache_evictions_total Replies dropped before their time to make room.
# TYPE nodelocaldns_cache_evictions_total counter
nodelocaldns_cache_evictions_total 5
# HELP nodelocaldns_cache_hits_total Queries answered with a fresh reply from the cache, by kind of zone.
# TYPE nodelocaldns_cache_hits_total counter
nodelocaldns_cache_hits_total{zone="cluster"} 21
nodelocaldns_cache_hits_total{zone="external"} 41
nodelocaldns_cache_hits_total{zone="reverse"} 31
# HELP nodelocaldns_cache_max_bytes The most memory that replies may be charged for.
# TYPE nodelocaldns_cache_max_bytes gauge
nodelocaldns_cache_max_bytes 3.3554432e+07
# HELP nodelocaldns_cache_misses_total Queries that the cache had no fresh reply to, by kind of zone.
# TYPE nodelocaldns_cache_misses_total counter
nodelocaldns_cache_misses_total{zone="cluster"} 22
nodelocaldns_cache_misses_total{zone="external"} 42
nodelocaldns_cache_misses_total{zone="reverse"} 32
# HELP nodelocaldns_flights Questions to upstreams under way.
# TYPE nodelocaldns_flights gauge
nodelocaldns_flights 7
# HELP nodelocaldns_flights_joined_total Queries that waited for a question already under way.
# TYPE nodelocaldns_flights_joined_total counter
nodelocaldns_flights_joined_total 6
# HELP nodelocaldns_loops_total Queries of our own that came back to us.
# TYPE nodelocaldns_loops_total counter
nodelocaldns_loops_total 8
# HELP nodelocaldns_malformed_queries_total Packets that were no query: dropped, or answered FORMERR.
# TYPE nodelocaldns_malformed_queries_total counter
nodelocaldns_malformed_queries_total 3
# HELP nodelocaldns_queries_total Well-formed queries received, by protocol.
# TYPE nodelocaldns_queries_total counter
nodelocaldns_queries_total{proto="tcp"} 200
nodelocaldns_queries_total{proto="udp"} 1000
# HELP nodelocaldns_refreshes_refused_total Such questions that were not asked because there were too many.
# TYPE nodelocaldns_refreshes_refused_total counter
nodelocaldns_refreshes_refused_total 54
# HELP nodelocaldns_refreshes_total Questions to upstreams that no client waited for, by reason.
# TYPE nodelocaldns_refreshes_total counter
nodelocaldns_refreshes_total{reason="prefetch"} 51
nodelocaldns_refreshes_total{reason="reload"} 52
nodelocaldns_refreshes_total{reason="search"} 55
nodelocaldns_refreshes_total{reason="stale"} 53
# HELP nodelocaldns_replies_total Replies sent, by response code.
# TYPE nodelocaldns_replies_total counter
nodelocaldns_replies_total{rcode="BADVERS"} 2
nodelocaldns_replies_total{rcode="FORMERR"} 0
nodelocaldns_replies_total{rcode="NOERROR"} 900
nodelocaldns_replies_total{rcode="NOTIMP"} 0
nodelocaldns_replies_total{rcode="NXDOMAIN"} 100
nodelocaldns_replies_total{rcode="REFUSED"} 0
nodelocaldns_replies_total{rcode="SERVFAIL"} 0
nodelocaldns_replies_total{rcode="other"} 1
# HELP nodelocaldns_search_collapsed_total Queries denied from the cache because there is no service that their name lies below.
# TYPE nodelocaldns_search_collapsed_total counter
nodelocaldns_search_collapsed_total 57
# HELP nodelocaldns_search_guesses_total Names of search paths that were asked for before a client did.
# TYPE nodelocaldns_search_guesses_total counter
nodelocaldns_search_guesses_total 58
# HELP nodelocaldns_search_guesses_used_total Of these, those that a client has asked for after all.
# TYPE nodelocaldns_search_guesses_used_total counter
nodelocaldns_search_guesses_used_total 56
# HELP nodelocaldns_shed_total Queries answered SERVFAIL because too many questions were under way.
# TYPE nodelocaldns_shed_total counter
nodelocaldns_shed_total 10
# HELP nodelocaldns_socket_drops_total Datagrams the kernel dropped because a receive buffer was full.
# TYPE nodelocaldns_socket_drops_total counter
nodelocaldns_socket_drops_total 11
# HELP nodelocaldns_stale_replies_total Replies given although they had expired, by kind of zone.
# TYPE nodelocaldns_stale_replies_total counter
nodelocaldns_stale_replies_total{zone="cluster"} 25
nodelocaldns_stale_replies_total{zone="external"} 45
nodelocaldns_stale_replies_total{zone="reverse"} 35
# HELP nodelocaldns_tcp_clients Open TCP connections of clients.
# TYPE nodelocaldns_tcp_clients gauge
nodelocaldns_tcp_clients 12
# HELP nodelocaldns_timeouts_total Queries answered SERVFAIL because no upstream gave a usable reply in time.
# TYPE nodelocaldns_timeouts_total counter
nodelocaldns_timeouts_total 9
# HELP nodelocaldns_upstream_down Whether the upstream failed lately, so that it is asked last (1).
# TYPE nodelocaldns_upstream_down gauge
nodelocaldns_upstream_down{proto="tcp",upstream="10.96.0.10:53"} 1
# HELP nodelocaldns_upstream_duration_seconds Time to a usable reply, by upstream and protocol.
# TYPE nodelocaldns_upstream_duration_seconds histogram
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.00025"} 4
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.0005"} 4
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.001"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.002"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.005"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.01"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.025"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.05"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.1"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.25"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="0.5"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="1"} 7
nodelocaldns_upstream_duration_seconds_bucket{proto="tcp",upstream="10.96.0.10:53",le="+Inf"} 8
nodelocaldns_upstream_duration_seconds_sum{proto="tcp",upstream="10.96.0.10:53"} 1.5
nodelocaldns_upstream_duration_seconds_count{proto="tcp",upstream="10.96.0.10:53"} 8
# HELP nodelocaldns_upstream_errors_total Questions without a usable reply, by upstream and protocol.
# TYPE nodelocaldns_upstream_errors_total counter
nodelocaldns_upstream_errors_total{proto="tcp",upstream="10.96.0.10:53"} 2
# HELP nodelocaldns_upstream_hedges_total Questions asked once more because a reply was late, by upstream and protocol.
# TYPE nodelocaldns_upstream_hedges_total counter
nodelocaldns_upstream_hedges_total{proto="tcp",upstream="10.96.0.10:53"} 1
# HELP nodelocaldns_upstream_queries_total Questions asked, by upstream and protocol.
# TYPE nodelocaldns_upstream_queries_total counter
nodelocaldns_upstream_queries_total{proto="tcp",upstream="10.96.0.10:53"} 10
`

func TestEveryCounterOfTheResolverIsShown(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(collector{someStats()})
	if err := testutil.GatherAndCompare(r, strings.NewReader(wantMetrics)); err != nil {
		t.Error(err)
	}
}

// The Go and process collectors are not ours to lint.
func TestMetricsAreNamedAsPrometheusWants(t *testing.T) {
	m := newMetrics(version{Version: "v1", Revision: "abc", Go: "go1"})
	m.watch(someStats())
	all, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	ours := all[:0]
	for _, f := range all {
		if strings.HasPrefix(f.GetName(), "nodelocaldns_") {
			ours = append(ours, f)
		}
	}
	if len(ours) < 20 {
		t.Fatalf("only %d metrics are ours", len(ours))
	}
	problems, err := promlint.NewWithMetricFamilies(ours).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestReloadsAreCountedFromZero(t *testing.T) {
	m := newMetrics(version{Version: "v1", Revision: "abc", Go: "go1"})
	expect := func(want string) {
		t.Helper()
		names := []string{"nodelocaldns_config_reload_failed", "nodelocaldns_config_reloads_total"}
		text := "# HELP nodelocaldns_config_reload_failed Whether the last reload was refused (1), so that the configuration in effect is older than the file.\n" +
			"# TYPE nodelocaldns_config_reload_failed gauge\n" +
			"# HELP nodelocaldns_config_reloads_total Reloads of the configuration, by result.\n" +
			"# TYPE nodelocaldns_config_reloads_total counter\n" + want
		if err := testutil.GatherAndCompare(m.registry, strings.NewReader(text), names...); err != nil {
			t.Error(err)
		}
	}
	expect("nodelocaldns_config_reload_failed 0\nnodelocaldns_config_reloads_total{result=\"error\"} 0\nnodelocaldns_config_reloads_total{result=\"ok\"} 0\n")
	m.reloaded(false)
	expect("nodelocaldns_config_reload_failed 1\nnodelocaldns_config_reloads_total{result=\"error\"} 1\nnodelocaldns_config_reloads_total{result=\"ok\"} 0\n")
	m.reloaded(true)
	expect("nodelocaldns_config_reload_failed 0\nnodelocaldns_config_reloads_total{result=\"error\"} 1\nnodelocaldns_config_reloads_total{result=\"ok\"} 1\n")
}

// An alarm on it must not go by whether there is such a metric at all.
func TestTheResolverSaysThatItIsNotTheRelay(t *testing.T) {
	const want = "# HELP nodelocaldns_relay_active Whether the relay answers in the resolver's place (1), without a cache.\n" +
		"# TYPE nodelocaldns_relay_active gauge\nnodelocaldns_relay_active 0\n"
	if err := testutil.GatherAndCompare(newMetrics(version{Version: "v1", Revision: "abc", Go: "go1"}).registry, strings.NewReader(want), "nodelocaldns_relay_active"); err != nil {
		t.Error(err)
	}
}

package main

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nodelocaldns/cmd/nodelocaldns/internal/bench"
)

// What bench does is seen in its report, also where nobody answers.
func TestBenchDoesWhatItsFlagsAndResolvConfSay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 127.1.2.3\nnameserver 127.1.2.4\nsearch x.example y.example\noptions ndots:3 timeout:1 attempts:1 use-vc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	at := func(all ...string) (out []netip.AddrPort) {
		for _, a := range all {
			out = append(out, netip.MustParseAddrPort(a))
		}
		return out
	}
	ofFile := bench.Report{
		Hosts: []string{"a"}, Types: []string{"A", "AAAA"}, Servers: at("127.1.2.3:53", "127.1.2.4:53"), Proto: "tcp",
		Search: []string{"x.example", "y.example"}, Ndots: 3, Timeout: 1, Attempts: 1,
		Concurrency: 50, Duration: 10, Limit: 5,
	}
	ofServer := bench.Report{
		Hosts: []string{"a"}, Types: []string{"A", "AAAA"}, Servers: at("127.0.0.1:1"), Proto: "udp",
		Search: []string{}, Ndots: 1, Timeout: 5, Attempts: 2,
		Concurrency: 50, Duration: 10, Limit: 5,
	}
	with := func(r bench.Report, change func(r *bench.Report)) bench.Report {
		change(&r)
		return r
	}
	const server = "--server 127.0.0.1:1 "
	for _, tt := range []struct {
		args string
		want bench.Report
	}{
		{"", ofFile},
		{"--search", ofFile},
		{"--search=", with(ofFile, func(r *bench.Report) { r.Search = []string{} })},
		{"--search=z.example --ndots 0 --timeout 2 --attempts 3", with(ofFile, func(r *bench.Report) {
			r.Search, r.Ndots, r.Timeout, r.Attempts = []string{"z.example"}, 0, 2, 3
		})},
		{server, ofServer},
		{server + "--search", with(ofServer, func(r *bench.Report) { r.Search, r.Ndots = ofFile.Search, 3 })},
		{server + "--search --ndots 5", with(ofServer, func(r *bench.Report) { r.Search, r.Ndots = ofFile.Search, 5 })},
		{server + "--search=z.example,z", with(ofServer, func(r *bench.Report) { r.Search = []string{"z.example", "z"} })},
		{server + "--tcp --fresh", with(ofServer, func(r *bench.Report) { r.Proto, r.Fresh = "tcp", true })},
		{server + "--host b,c --host d --qtype srv,TXT,SRV", with(ofServer, func(r *bench.Report) {
			r.Hosts, r.Types = []string{"a", "b", "c", "d"}, []string{"SRV", "TXT"}
		})},
		{server + "-c 2 -l 250 --timeout 1500ms", with(ofServer, func(r *bench.Report) { r.Concurrency, r.Limit, r.Timeout = 2, .25, 1.5 })},
		{server + "--concurrency 3 --limit 1m", with(ofServer, func(r *bench.Report) { r.Concurrency, r.Limit = 3, 60 })},
		{"--server 127.0.0.9", with(ofServer, func(r *bench.Report) { r.Servers = at("127.0.0.9:53") })},
	} {
		t.Run(tt.args, func(t *testing.T) {
			args := append([]string{"bench", "--json", "--host", "a", "--resolv-conf", file, "-d", "1ms"}, strings.Fields(tt.args)...)
			_, stdout, stderr := runHere(t, "", args...)
			var got bench.Report
			if err := json.Unmarshal([]byte(stdout), &got); err != nil {
				t.Fatalf("%v\n%s%s", err, stdout, stderr)
			}
			tt.want.Duration = .001
			counts := cmpopts.IgnoreFields(bench.Report{}, "Elapsed", "Lookups", "Failed", "Errors", "Trouble", "Over", "Queries", "Lost", "Latency", "Histogram")
			if diff := cmp.Diff(tt.want, got, counts, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The times in a row are seconds unless they have a unit.
func TestABareNumberHasTheUnitOfItsFlag(t *testing.T) {
	cmd := (&app{}).benchCommand()
	for _, tt := range [][3]string{
		{"duration", "", "10s"}, {"duration", "30", "30s"}, {"duration", "1m", "1m0s"},
		{"limit", "", "5s"}, {"limit", "5000", "5s"}, {"limit", "250", "250ms"}, {"limit", "1.5s", "1.5s"},
		{"timeout", "", ""}, {"timeout", "2", "2s"},
		{"ndots", "", ""}, {"ndots", "0", "0"},
	} {
		if tt[1] != "" {
			if err := cmd.Flags().Set(tt[0], tt[1]); err != nil {
				t.Error(err)
			}
		}
		if got := cmd.Flags().Lookup(tt[0]).Value.String(); got != tt[2] {
			t.Errorf("--%s %s: got %s, want %s", tt[0], tt[1], got, tt[2])
		}
	}
}

func TestAServerOfThisNodeIsNotSomebodyElses(t *testing.T) {
	own, err := ownAddrs()
	if err != nil {
		t.Fatal(err)
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	if len(own) != len(all) || len(own) == 0 {
		t.Errorf("got %v, of %v", own, all)
	}
}

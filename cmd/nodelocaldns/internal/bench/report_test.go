package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

var update = flag.Bool("update", false, "write the golden files; review each by eye")

// counted is a Bench that has run as the figures say.
func counted(cfg Config, count func(record func(o Outcome, took time.Duration, t tally)), elapsed time.Duration) *Bench {
	b := &Bench{cfg: cfg}
	count(b.record)
	b.figures.begin = time.Unix(0, 0)
	b.figures.end = b.figures.begin.Add(elapsed)
	return b
}

func reports() map[string]Report {
	ok := one("169.254.20.10")
	ok.Hosts, ok.Concurrency, ok.Duration, ok.Limit = []string{"web.shop.svc.cluster.local"}, 200, 30*time.Second, 5*time.Second
	bad := Config{
		Hosts: []string{"www.example.com", "b", "c"}, Types: []uint16{dns.TypeA}, Fresh: true,
		Resolver: Resolver{
			Servers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00::a]:5353")},
			Search:  []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Ndots: 5,
			Timeout: time.Second, Attempts: 3,
		},
		Concurrency: 7, Duration: 10 * time.Second, Limit: 1500 * time.Millisecond,
	}
	return map[string]Report{
		"ok": counted(ok, func(record func(Outcome, time.Duration, tally)) {
			for i := range 10000 {
				record(Answered, time.Duration(i*i)*time.Nanosecond/2+40*time.Microsecond, tally{queries: 2})
			}
			record(Answered, 260*time.Millisecond, tally{queries: 2})
		}, 30*time.Second+time.Millisecond).Report(),
		"bad": counted(bad, func(record func(Outcome, time.Duration, tally)) {
			for range 300 {
				record(Answered, 300*time.Microsecond, tally{queries: 4, overTCP: 1})
			}
			record(Timeout, 73*time.Second, tally{queries: 24, lost: 24})
			record(unreachable, time.Millisecond, tally{queries: 1})
			record(Servfail, time.Millisecond+1, tally{queries: 1})
			record(NXDomain, time.Microsecond, tally{queries: 1})
			record(NXDomain, 1500*time.Millisecond, tally{queries: 1})
			record(NoData, 1501*time.Millisecond, tally{queries: 1})
			record(Other, time.Second, tally{queries: 1, trouble: errors.New("write: operation not permitted")})
			record(Other, time.Second, tally{queries: 1, trouble: errors.New("later")})
			record(Unfinished, 2*time.Second, tally{queries: 1})
			record(Unfinished, time.Second, tally{queries: 1})
		}, 12*time.Second).Report(),
		"none": counted(ok, func(func(Outcome, time.Duration, tally)) {}, time.Second).Report(),
	}
}

func TestAReportIsToldAsItWas(t *testing.T) {
	for name, r := range reports() {
		golden(t, "testdata/"+name+".txt", r.Text())
	}
}

func TestTheJSONOfAReport(t *testing.T) {
	for name, r := range reports() {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
		golden(t, "testdata/"+name+".json", b.String())
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestAVerdictSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	const (
		names   = "are the names right? --search has them looked up as below the search path of resolv.conf"
		nobody  = "does a server listen at 192.0.2.1:53, and answer this node?"
		silent  = "is 192.0.2.1:53 a name server, and does a firewall let its replies through?"
		dropped = "queries were dropped on the way: nstat -az UdpRcvbufErrors counts those for which a server's socket had no room, conntrack -S those that conntrack dropped (insert_failed, drop)"
	)
	at := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
	for _, tt := range []struct {
		name        string
		r           Report
		wrong, hint string
	}{
		{"all is well", Report{Lookups: 5, Queries: 10, Lost: 1}, "", ""},
		{"nothing was done", Report{Unfinished: 3}, "no lookup has ended", ""},
		{"slow", Report{Lookups: 5, Over: 2, Limit: .25}, "2 took longer than 250ms", ""},
		{"slow for lost replies", Report{Lookups: 5, Over: 1, Limit: 5, Queries: 12, Lost: 1}, "1 took longer than 5s", dropped},
		{"no server", Report{Servers: at, Lookups: 5, Failed: 5, Errors: Errors{Refused: 5}}, "5 of 5 lookups failed", nobody},
		{"a silent one", Report{Servers: at, Lookups: 1, Failed: 1, Over: 1, Limit: 5, Queries: 4, Lost: 4, Errors: Errors{Timeout: 1}}, "1 of 1 lookups failed, 1 took longer than 5s", silent},
		{"no such name", Report{Lookups: 5, Failed: 5, Errors: Errors{NXDomain: 5}}, "5 of 5 lookups failed", names},
		{"no such type", Report{Lookups: 5, Failed: 4, Errors: Errors{NoData: 4}}, "4 of 5 lookups failed", names},
	} {
		if wrong, hint := tt.r.Verdict(); wrong != tt.wrong || hint != tt.hint {
			t.Errorf("%s:\n got %s; %s\nwant %s; %s", tt.name, wrong, hint, tt.wrong, tt.hint)
		}
	}
}

func TestDurationsForAPersonHaveThreeDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                         "0 us",
		99 * time.Microsecond:     "99 us",
		99700 * time.Nanosecond:   "0.10 ms",
		214 * time.Microsecond:    "0.21 ms",
		9994 * time.Microsecond:   "9.99 ms",
		9996 * time.Microsecond:   "10.0 ms",
		99960 * time.Microsecond:  "100 ms",
		999600 * time.Microsecond: "1.00 s",
		5003 * time.Millisecond:   "5.00 s",
	} {
		if got := human(d); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}

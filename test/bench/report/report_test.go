package report

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/test/bench/load"
)

var update = flag.Bool("update", false, "write the files of testdata anew")

// full is a sample of a case at full load, of so many µs a query.
func full(subject, name string, round int, cpu float64) Sample {
	return Sample{Subject: subject, Case: name, Round: round, Load: load.Result{Sent: 1000, Right: 1000, Replies: 1000, Seconds: cpu / 1000,
		CPU: time.Duration(cpu * 1e6), P50: 20 * time.Microsecond, P99: 45 * time.Microsecond, P999: 1500 * time.Microsecond, Mean: time.Duration(cpu * 1e3), Max: time.Second, Lag: 3 * time.Microsecond}}
}

// sample is a run with three servers, of which one lost queries.
func sample() Run {
	r := Run{
		When:    time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC),
		Machine: Machine{"Test CPU <1>", 2, "6.1.0", 0.1},
		Rounds:  3, Rate: 10_000,
		Subjects: []Subject{{Name: Ours, Version: "1.0", Setup: "two sockets"}, {Name: Unbound, Version: "1.17.1", Setup: "1 thread", UDP: true},
			{Name: CoreDNS, Version: "1.15", Setup: "a | b"}, {Name: FloorC, Setup: "1 thread", Floor: true}},
		Cases: []Case{{StartCase, "start to first answer", Start}, {RSSEmpty, "empty", Memory}, {HitsFew, "Hits, 100 names", Full}, {Hits, "Hits, 1,000 names", Full},
			{HitsAtRate, "At a rate", AtRate}, {LookupsCase, "200 lookups", Lookups}, {HitsMany, "Hits, 100,000 names", Full}, {RSSFull, "100,000 entries", Memory},
			{Misses, "Misses", Full}, {Clients, "1,000 clients", Full}},
		Micro: []Micro{{freshHit, 290, 0}},
	}
	for round := range 3 {
		x := float64(round)
		for _, s := range []struct {
			name string
			cpu  float64
		}{{Ours, 4}, {Unbound, 6}, {CoreDNS, 28}, {FloorC, 3.5}} {
			r.Samples = append(r.Samples, full(s.name, Hits, round, s.cpu+x/10), full(s.name, HitsAtRate, round, 3*s.cpu+x))
		}
		r.Samples = append(r.Samples,
			Sample{Subject: Ours, Case: StartCase, Round: round, Start: 30 * time.Millisecond},
			Sample{Subject: Ours, Case: RSSEmpty, Round: round, RSS: 20 << 20},
			full(Ours, HitsFew, round, 4), full(Ours, HitsMany, round, 5), full(Ours, Clients, round, 6),
			full(Ours, Misses, round, 25), full(Unbound, Misses, round, 24),
			Sample{Subject: Ours, Case: RSSFull, Round: round, RSS: 63 << 20},
			full(Ours, LookupsCase, round, 20), full(Unbound, LookupsCase, round, 25))
	}
	lossy := &r.Samples[len(r.Samples)-1]
	lossy.Load.Max, lossy.Drops, lossy.Load.Wrong, lossy.Load.Slow, lossy.Load.Example = 6*time.Second, 7, 2, 1, "web: rcode 2"
	r.Failures = []Trouble{{CoreDNS, "round 3", "it ended"}}
	return r
}

func TestAReportLooksLikeThis(t *testing.T) {
	r := sample()
	for name, got := range map[string]string{"report.txt": r.Text(), "report.md": r.Markdown(), "chart.svg": r.Chart()} {
		path := "testdata/" + name
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got; if it is better now: go test -update):\n%s", path, diff)
		}
	}
}

func TestAChartIsXML(t *testing.T) {
	d := xml.NewDecoder(strings.NewReader(sample().Chart()))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestARunCanBeReadAgain(t *testing.T) {
	want := sample()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Run
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAMachineWithOtherWorkIsToldOf(t *testing.T) {
	r := sample()
	r.Machine.Busy = 1.25
	if text := r.Text(); !strings.Contains(text, "The machine had other work (1.25 processors of it): these figures are noisy.") {
		t.Error(text)
	}
}

// verdicts are those of all promises, in order.
func verdicts(r Run) string {
	var out []string
	for _, p := range r.Promises() {
		out = append(out, p.Verdict)
	}
	return strings.Join(out, ", ")
}

func TestAPromiseIsHeldMissedOrNotMeasured(t *testing.T) {
	if got, want := verdicts(sample()), "held, held, held, held, held, missed, held, missed, held, held"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	never := strings.TrimSuffix(strings.Repeat(Unmeasured+", ", 10), ", ")
	if got := verdicts(Run{}); got != never {
		t.Errorf("of nothing: %s", got)
	}
	each := func(change func(*Sample)) func(*Run) {
		return func(r *Run) {
			for i := range r.Samples {
				change(&r.Samples[i])
			}
		}
	}
	for _, tt := range []struct {
		what   string
		which  int
		change func(*Run)
		want   string
	}{
		{"a peer is better than we are", 0, each(func(s *Sample) {
			if s.Subject == Unbound && s.Case == Hits {
				s.Load.CPU = 1
			}
		}), Missed},
		{"too far above the floor", 1, each(func(s *Sample) {
			if s.Subject == FloorC {
				s.Load.CPU /= 2
			}
		}), Missed},
		{"not far enough below CoreDNS", 0, each(func(s *Sample) {
			if s.Subject == CoreDNS {
				s.Load.CPU /= 2
			}
		}), Missed},
		{"without a floor", 0, func(r *Run) { r.Subjects = r.Subjects[:3]; r.Samples = without(r.Samples, FloorC) }, Unmeasured},
		{"without peers", 3, func(r *Run) { r.Subjects = r.Subjects[:1] }, Unmeasured},
		{"one lookup failed", 2, func(r *Run) { first(r, LookupsCase).Load.Wrong = 1 }, Missed},
		{"one lookup took five seconds", 2, func(r *Run) { first(r, LookupsCase).Load.Slow = 1 }, Missed},
		{"a packet was dropped", 2, func(r *Run) { first(r, LookupsCase).Drops = 1 }, Missed},
		{"lookups of a peer are faster", 2, each(func(s *Sample) {
			if s.Subject == Unbound {
				s.Load.Mean = 1
			}
		}), Missed},
		{"a peer has more q/s", 3, each(func(s *Sample) {
			if s.Subject == CoreDNS {
				s.Load.Seconds /= 10
			}
		}), Missed},
		{"the slowest are too slow", 4, each(func(s *Sample) {
			if s.Subject == Ours {
				s.Load.P99 *= 2
			}
		}), Missed},
		{"a miss is cheap, but wrong", 5, each(func(s *Sample) {
			if s.Subject == Ours && s.Case == Misses {
				s.Load.CPU, s.Load.Right, s.Load.Wrong = s.Load.CPU/2, 989, 11
			}
		}), Unmeasured},
		{"a miss is cheap", 5, each(func(s *Sample) {
			if s.Subject == Ours && s.Case == Misses {
				s.Load.CPU /= 2
			}
		}), Held},
		{"a hit allocates", 6, func(r *Run) { r.Micro[0].Allocs = 1 }, Missed},
		{"a hit is slow", 6, func(r *Run) { r.Micro[0].Nanos = 400 }, Missed},
		{"clients cost nothing", 7, each(func(s *Sample) {
			if s.Case == Clients {
				s.Load.CPU = 4e6
			}
		}), Held},
		{"memory grows", 8, each(func(s *Sample) { s.RSS += 2 << 20 }), Missed},
		{"the start is slow", 9, each(func(s *Sample) { s.Start *= 2 }), Missed},
	} {
		r := sample()
		tt.change(&r)
		if got := r.Promises()[tt.which]; got.Verdict != tt.want {
			t.Errorf("%s: %+v, want %s", tt.what, got, tt.want)
		}
	}
}

func without(samples []Sample, subject string) (out []Sample) {
	for _, s := range samples {
		if s.Subject != subject {
			out = append(out, s)
		}
	}
	return out
}

// first is the first sample of ours in a case.
func first(r *Run, name string) *Sample {
	for i := range r.Samples {
		if r.Samples[i].Subject == Ours && r.Samples[i].Case == name {
			return &r.Samples[i]
		}
	}
	return nil
}

func TestAMedianIsInTheMiddle(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   string
	}{
		{nil, "-"},
		{[]float64{3}, "3.00"},
		{[]float64{3, 1}, "2.00 (1.00 to 3.00)"},
		{[]float64{5, 1, 2}, "2.00 (1.00 to 5.00)"},
		{[]float64{2.0001, 2}, "2.00"},
	} {
		if got := statOf(tt.values).String(); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.values, got, tt.want)
		}
	}
}

func TestFiguresHaveThreeDigits(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 0.123: "0.12", 9.994: "9.99", 9.996: "10.0", 12.34: "12.3", 99.96: "100", 999.6: "1,000", 123456: "123,456",
		1234567: "1,234,567", -1234: "-1,234", -123: "-123", math.NaN(): "-"} {
		if got := figure(f); got != want {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
}

func TestMicroBenchmarksAreRead(t *testing.T) {
	const text = `goos: linux
pkg: nodelocaldns/dnscache
BenchmarkFreshHit/one-2         	 4000000	       290.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkFreshHit/all-cpus-2    	 4000000	       150.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkFreshHit/one-2         	 4000000	       310.0 ns/op	       0 B/op	       1 allocs/op
BenchmarkFreshHit/one-2         	 4000000	       300.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkSnapshot/write         	     100	   1000000 ns/op	       300 bytes
PASS
`
	got, err := ParseMicro(text)
	want := []Micro{{"FreshHit/one", 300, 1}, {"FreshHit/all-cpus", 150, 0}, {"Snapshot/write", 1e6, -1}}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, bad := range []string{"BenchmarkX 10 ? ns/op\n", "BenchmarkX 10 7 B/op\n"} {
		if got, err := ParseMicro(bad); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}

// Package report makes figures, tables, verdicts and a chart of what a benchmark
// measured. It decides nothing by itself: everything comes from a [Run], which is
// kept as JSON.
package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodelocaldns/test/bench/load"
)

// A Run is all that was measured at a time on a machine.
type Run struct {
	When    time.Time `json:"when"`
	Machine Machine   `json:"machine"`
	Rounds  int       `json:"rounds"`
	Rate    int       `json:"rate"` // of the cases at a fixed rate, in queries a second
	// Subjects are the servers in the order of the tables.
	Subjects []Subject `json:"subjects"`
	Cases    []Case    `json:"cases"`
	Samples  []Sample  `json:"samples"`
	Micro    []Micro   `json:"micro,omitempty"`
	// Failures are servers that were not measured to the end.
	Failures []Trouble `json:"failures,omitempty"`
}

// A Machine is where it was measured.
type Machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	// Busy is how many processors had other work in a second before a round, where
	// that was the most. Figures of a machine with other work are worth little.
	Busy float64 `json:"busy"`
}

// A Subject is a server that was measured.
type Subject struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Setup   string `json:"setup"` // in how many threads it runs, and what is special
	Floor   bool   `json:"floor,omitempty"`
	// UDP says that it asks upstream over UDP, as it cannot be told otherwise; all
	// others ask over TCP.
	UDP bool `json:"udp,omitempty"`
}

// The subjects that promises name.
const (
	Ours    = "nodelocaldns"
	FloorC  = "floor, C"
	FloorGo = "floor, Go"
	Unbound = "unbound"
	CoreDNS = "coredns"
)

// A Case is one kind of load.
type Case struct {
	Name  string `json:"name"`
	Title string `json:"title"`
	Shows Shows  `json:"shows"`
}

// Shows is which figures of a case are worth a look.
type Shows string

// What a case shows.
const (
	Full    Shows = "full"    // processor time for a query, queries a second
	AtRate  Shows = "rate"    // processor time for a query, latencies
	Lookups Shows = "lookups" // errors, slow ones, drops, latencies
	Memory  Shows = "memory"
	Start   Shows = "start"
)

// A Sample is one measurement.
type Sample struct {
	Subject string      `json:"subject"`
	Case    string      `json:"case"` // its name
	Round   int         `json:"round"`
	Load    load.Result `json:"load,omitzero"`
	// Drops are packets for which a receive buffer of the server had no room.
	Drops int           `json:"drops,omitempty"`
	RSS   int           `json:"rss,omitempty"` // of the server's processes, in bytes
	Start time.Duration `json:"start,omitempty"`
}

// A Stat is the median of some samples, with the least and the greatest. NaN where
// there is none.
type Stat struct{ Median, Min, Max float64 }

func statOf(values []float64) Stat {
	n := len(values)
	if n == 0 {
		return Stat{math.NaN(), math.NaN(), math.NaN()}
	}
	slices.Sort(values)
	return Stat{(values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]}
}

// String is the median, and where they differ the least and the greatest.
func (s Stat) String() string {
	if math.IsNaN(s.Median) {
		return "-"
	}
	median, least, greatest := figure(s.Median), figure(s.Min), figure(s.Max)
	if least == greatest {
		return median
	}
	return fmt.Sprintf("%s (%s to %s)", median, least, greatest)
}

// figure is a number with three digits that mean something, or all of those before
// the point, in groups.
func figure(f float64) string {
	if math.IsNaN(f) {
		return "-"
	}
	digits := 0
	switch abs := math.Abs(f); {
	case abs == 0 || abs >= 99.95:
	case abs >= 9.995:
		digits = 1
	default:
		digits = 2
	}
	s := strconv.FormatFloat(f, 'f', digits, 64)
	whole, rest, _ := strings.Cut(s, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest == "" {
		return whole
	}
	return whole + "." + rest
}

// A measure is a figure of a sample; NaN where it has none.
type measure func(Sample) float64

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// latency is one that is known where there was a reply at all.
func latency(of func(load.Result) time.Duration) measure {
	return func(s Sample) float64 {
		if s.Load.Right == 0 {
			return math.NaN()
		}
		return micros(of(s.Load))
	}
}

// tolerated is how many of a hundred queries may be lost or answered wrongly before
// a sample does not count: it is quick to say no.
const tolerated = 1

func served(s Sample) bool {
	return s.Load.Replies > 0 && s.Load.Seconds > 0 && (s.Load.Wrong+s.Load.Lost)*100 <= tolerated*s.Load.Sent
}

var (
	cpu measure = func(s Sample) float64 {
		if !served(s) {
			return math.NaN()
		}
		return micros(s.Load.CPU) / float64(s.Load.Replies)
	}
	perSecond measure = func(s Sample) float64 {
		if !served(s) {
			return math.NaN()
		}
		return float64(s.Load.Replies) / s.Load.Seconds
	}
	late measure = func(s Sample) float64 { return micros(s.Load.Lag) }

	p50  = latency(func(r load.Result) time.Duration { return r.P50 })
	p99  = latency(func(r load.Result) time.Duration { return r.P99 })
	p999 = latency(func(r load.Result) time.Duration { return r.P999 })
	mean = latency(func(r load.Result) time.Duration { return r.Mean })
	most = latency(func(r load.Result) time.Duration { return r.Max })

	rss   measure = func(s Sample) float64 { return float64(s.RSS) / (1 << 20) }
	start measure = func(s Sample) float64 { return micros(s.Start) / 1000 }
)

// stat is a figure of a subject in a case, over all rounds.
func (r Run) stat(subject, name string, m measure) Stat {
	var values []float64
	for _, s := range r.Samples {
		if s.Subject == subject && s.Case == name {
			if v := m(s); !math.IsNaN(v) {
				values = append(values, v)
			}
		}
	}
	return statOf(values)
}

// sum adds up a count of a subject in a case, over all rounds.
func (r Run) sum(subject, name string, count func(Sample) int) int {
	n := 0
	for _, s := range r.Samples {
		if s.Subject == subject && s.Case == name {
			n += count(s)
		}
	}
	return n
}

func (r Run) measured(subject, name string) bool {
	return slices.ContainsFunc(r.Samples, func(s Sample) bool { return s.Subject == subject && s.Case == name })
}

// peers are the subjects measured in a case that are neither ours nor a floor.
func (r Run) peers(name string) []string {
	var out []string
	for _, s := range r.Subjects {
		if s.Name != Ours && !s.Floor && r.measured(s.Name, name) {
			out = append(out, s.Name)
		}
	}
	return out
}

// A Micro is what a benchmark of Go's testing package says: the median over its
// runs.
type Micro struct {
	Name   string  `json:"name"` // such as FreshHit/one
	Nanos  float64 `json:"ns"`
	Allocs float64 `json:"allocs"` // NaN is not JSON: -1 where they were not counted
}

// ParseMicro reads what `go test -bench` printed. Lines of other kinds are passed
// over.
func ParseMicro(text string) ([]Micro, error) {
	type runs struct{ nanos, allocs []float64 }
	byName := map[string]*runs{}
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 { // GOMAXPROCS
			name = name[:i]
		}
		if byName[name] == nil {
			byName[name] = &runs{}
			names = append(names, name)
		}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("reading the benchmark %s: %w", name, err)
			}
			switch f[i+1] {
			case "ns/op":
				byName[name].nanos = append(byName[name].nanos, v)
			case "allocs/op":
				byName[name].allocs = append(byName[name].allocs, v)
			}
		}
	}
	var out []Micro
	for _, name := range names {
		m := Micro{Name: name, Nanos: statOf(byName[name].nanos).Median, Allocs: -1}
		if a := byName[name].allocs; len(a) > 0 {
			m.Allocs = slices.Max(a)
		}
		if math.IsNaN(m.Nanos) {
			return nil, fmt.Errorf("reading the benchmark %s: it has no ns/op", name)
		}
		out = append(out, m)
	}
	return out, nil
}

// A Trouble is what should not be: queries without a reply, or with a wrong one.
type Trouble struct {
	Subject string `json:"subject"`
	Case    string `json:"case"`
	What    string `json:"what"`
}

// Troubles are those of all subjects and cases.
func (r Run) Troubles() []Trouble {
	out := slices.Clone(r.Failures)
	for _, s := range r.Subjects {
		for _, c := range r.Cases {
			count := func(of func(load.Result) int) int {
				return r.sum(s.Name, c.Name, func(s Sample) int { return of(s.Load) })
			}
			var parts []string
			for _, p := range []struct {
				n    int
				text string
			}{
				{count(func(l load.Result) int { return l.Lost }), "lost"},
				{count(func(l load.Result) int { return l.Wrong }), "wrong"},
				{r.sum(s.Name, c.Name, func(s Sample) int { return s.Drops }), "dropped for want of room"},
			} {
				if p.n > 0 {
					parts = append(parts, figure(float64(p.n))+" "+p.text)
				}
			}
			if len(parts) == 0 {
				continue
			}
			text := strings.Join(parts, ", ") + " of " + figure(float64(count(func(l load.Result) int { return l.Sent })))
			i := slices.IndexFunc(r.Samples, func(x Sample) bool {
				return x.Subject == s.Name && x.Case == c.Name && x.Load.Example != ""
			})
			if i >= 0 {
				text += "; " + r.Samples[i].Load.Example
			}
			out = append(out, Trouble{s.Name, c.Title, text})
		}
	}
	return out
}

// byMedian sorts subjects by a figure in a case, and leaves out those without one.
func (r Run) byMedian(name string, m measure) []Subject {
	var out []Subject
	for _, s := range r.Subjects {
		if !math.IsNaN(r.stat(s.Name, name, m).Median) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b Subject) int {
		return cmp.Compare(r.stat(a.Name, name, m).Median, r.stat(b.Name, name, m).Median)
	})
	return out
}

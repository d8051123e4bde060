// Package load asks a name server as fast as it answers, or at a fixed rate, and
// measures what a query costs it.
//
// It is made to cost little itself, as it shares the machine's processors with
// what it measures: one thread, batched system calls, nothing allocated while it
// runs. The kernel says when a reply came, so that a reply that the load reads
// late is not taken for one that came late. It reads the server's processor time
// itself, at the moments between which it counts replies.
//
// Names and what they must resolve to are made from numbers (see [Set]), so that
// every reply is judged, however many names there are.
package load

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
)

// A Plan is what is asked, of whom, how fast and for how long.
type Plan struct {
	Server netip.AddrPort `json:"server"`
	Kind   Kind           `json:"kind"`
	Names  Set            `json:"names,omitzero"` // asked in turn
	Host   string         `json:"host,omitempty"` // of lookups
	// Once are asked in turn, too, in the place of every Every-th of Names: as
	// many as there is time for. Every 0 is never.
	Once  Set `json:"once,omitzero"`
	Every int `json:"every,omitempty"`
	// AnyAddress takes every address for the right one, for servers that know
	// no names.
	AnyAddress bool `json:"anyAddress,omitempty"`

	// Rate is in queries a second, whatever becomes of them. With 0 as many as
	// Window says are kept waiting for a reply: full load. A rate is for UDP alone.
	Rate   int `json:"rate,omitempty"`
	Window int `json:"window,omitempty"`
	// Sockets are used in turn. Over TCP they are connections.
	Sockets int `json:"sockets"`
	// Clients is from how many addresses it is asked over UDP: the first ones of
	// From, which must be routed to here. With 0 it is the one the kernel chooses.
	Clients int          `json:"clients,omitempty"`
	From    netip.Prefix `json:"from,omitzero"`

	// Warm is how long it is asked before anything is counted.
	Warm time.Duration `json:"warm,omitempty"`
	Time time.Duration `json:"time,omitempty"`
	// Count ends it after so many queries, Time or not; 0 does not.
	Count int `json:"count,omitempty"`
	// Timeout is when a query counts as lost; 0 is five seconds, as long as the
	// resolvers of glibc and Go wait.
	Timeout time.Duration `json:"timeout,omitempty"`
	// PID is the server's process, whose processor time is measured together
	// with that of its children; 0 for nobody's.
	PID int `json:"pid,omitempty"`
}

// A Kind is a way to ask.
type Kind string

// The kinds.
const (
	UDP Kind = "udp"
	TCP Kind = "tcp"
	// Lookups are those of programs with the resolver of glibc and a pod's
	// resolv.conf: Window of them at once, each of Host, which has too few dots, so
	// that it is asked for below each domain of the search path first, A and AAAA
	// at the same time, and again if there is no reply in time.
	Lookups Kind = "lookups"
)

const timeout = 5 * time.Second

// A Result is what came of a plan. Latencies are from the moment before a query was
// sent until the kernel had its reply; for lookups, from the first query to
// the last reply.
type Result struct {
	Sent  int `json:"sent"`  // after Warm, or lookups begun
	Right int `json:"right"` // of these
	Wrong int `json:"wrong"` // a reply that is not the truth; or a lookup that failed
	Lost  int `json:"lost"`  // no reply in time; for lookups: queries that were asked again
	Slow  int `json:"slow"`  // took five seconds or more
	// Strays are replies that nobody waited for.
	Strays     int `json:"strays"`
	Reconnects int `json:"reconnects"` // connections that the server ended, with queries on them

	// Replies came in Seconds, which are Time as far as the load could keep it, and
	// cost the server CPU in that time.
	Replies int           `json:"replies"`
	Seconds float64       `json:"seconds"`
	CPU     time.Duration `json:"cpu"`

	Mean time.Duration `json:"mean"`
	P50  time.Duration `json:"p50"`
	P99  time.Duration `json:"p99"`
	P999 time.Duration `json:"p999"` // 99.9 %
	Max  time.Duration `json:"max"`
	// Lag is how late 99 % of queries were sent at most, where there is a rate.
	Lag time.Duration `json:"lag"`
	// Example is one of what was wrong.
	Example string `json:"example,omitempty"`
}

// Run does what the plan says. It keeps the thread it is called on to itself.
func Run(p Plan) (Result, error) {
	if p.Timeout == 0 {
		p.Timeout = timeout
	}
	if err := p.validate(); err != nil {
		return Result{}, fmt.Errorf("running a load: %w", err)
	}
	r := &run{plan: p, latencies: make([]time.Duration, 0, 1<<20)}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.GC()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	switch p.Kind {
	case UDP:
		err = r.udp()
	case TCP:
		err = r.tcp()
	case Lookups:
		err = r.lookups()
	}
	if err != nil {
		return Result{}, fmt.Errorf("running a load: %w", err)
	}
	r.sum()
	return r.Result, nil
}

func (p Plan) validate() error {
	switch {
	case p.Kind != UDP && p.Kind != TCP && p.Kind != Lookups:
		return fmt.Errorf("kind %q is not one", p.Kind)
	case !p.Server.Addr().Is4():
		return fmt.Errorf("server %s has no IPv4 address", p.Server)
	case p.Sockets <= 0 || p.Rate < 0 || p.Window < 0 || (p.Rate == 0) == (p.Window == 0) || p.Rate > 0 && p.Kind != UDP:
		return fmt.Errorf("sockets %d, rate %d, window %d over %s", p.Sockets, p.Rate, p.Window, p.Kind)
	case p.Time <= 0 && p.Count <= 0:
		return fmt.Errorf("time %s, count %d", p.Time, p.Count)
	case p.Clients > 0 && p.Clients > 1<<(32-p.From.Bits()):
		return fmt.Errorf("%d clients from %s", p.Clients, p.From)
	case p.Kind == Lookups && p.Host == "":
		return errors.New("no host")
	case p.Kind != Lookups && p.Names.Count <= 0 || p.Every > 0 && p.Once.Count <= 0:
		return fmt.Errorf("names %+v, once %+v", p.Names, p.Once)
	}
	return nil
}

// A run is a plan on its way.
type run struct {
	Result
	plan  Plan
	asked int // queries sent, those of Warm too
	once  int // of Once

	start    time.Time // of Warm
	counting bool
	begin    time.Time // of what is counted
	cpu      time.Duration
	over     bool // nothing more is sent, nothing more is counted but losses

	latencies []time.Duration
	lags      []time.Duration
}

// next is the question that comes next.
func (r *run) next() question {
	i := r.asked
	r.asked++
	if r.plan.Every > 0 && i%r.plan.Every == 0 {
		r.once++
		return r.plan.Once.question(r.once - 1)
	}
	return r.plan.Names.question(i)
}

// tick begins and ends the counting as time goes by.
func (r *run) tick(now time.Time) error {
	if r.over {
		return nil
	}
	if !r.counting && now.Sub(r.start) >= r.plan.Warm {
		cpu, err := cpuTime(r.plan.PID)
		if err != nil {
			return err
		}
		r.counting, r.begin, r.cpu = true, time.Now(), cpu
	}
	if r.counting && (r.plan.Time > 0 && now.Sub(r.begin) >= r.plan.Time || r.plan.Count > 0 && r.asked >= r.plan.Count) {
		return r.end()
	}
	return nil
}

// end ends the counting.
func (r *run) end() error {
	cpu, err := cpuTime(r.plan.PID)
	if err != nil {
		return err
	}
	r.over, r.CPU, r.Seconds = true, cpu-r.cpu, time.Since(r.begin).Seconds()
	return nil
}

// sent notes that a query is sent.
func (r *run) sent() {
	if r.counting {
		r.Sent++
	}
}

// counted says whether a query that was sent at that time counts.
func (r *run) counted(at int64) bool { return r.counting && at >= r.begin.UnixNano() }

// replied notes a reply to a query that was sent at that time; why is what is wrong
// with it.
func (r *run) replied(at, now int64, why string, q question) {
	if r.counting && !r.over {
		r.Replies++
	}
	if !r.counted(at) {
		return
	}
	if why != "" {
		r.Wrong++
		if r.Example == "" {
			r.Example = fmt.Sprintf("%s: %s", q, why)
		}
		return
	}
	r.Right++
	r.took(time.Duration(now - at))
}

// lose notes a query that nobody waits for any more.
func (r *run) lose(s slot) {
	if s.at == 0 || !r.counted(s.at) {
		return
	}
	r.Lost++
	if r.Example == "" {
		r.Example = fmt.Sprintf("%s: no reply", s.q)
	}
}

func (r *run) took(d time.Duration) {
	if d >= timeout {
		r.Slow++
	}
	r.latencies = append(r.latencies, max(d, 0))
}

// sum makes figures of latencies.
func (r *run) sum() {
	if n := len(r.lags); n > 0 {
		slices.Sort(r.lags)
		r.Lag = r.lags[n*99/100]
	}
	n := len(r.latencies)
	if n == 0 {
		return
	}
	slices.Sort(r.latencies)
	var all time.Duration
	for _, d := range r.latencies {
		all += d
	}
	at := func(permille int) time.Duration { return r.latencies[min(n*permille/1000, n-1)] }
	r.Mean, r.P50, r.P99, r.P999, r.Max = all/time.Duration(n), at(500), at(990), at(999), r.latencies[n-1]
}

// Package load asks a name server at a fixed rate and records what became of
// every single query.
//
// The times at which queries are sent are fixed beforehand, and no query waits
// for another: a server that stands still for a second has a second's worth of
// queries to answer, as it has with pods. A query is judged against what its
// name must resolve to. How late it was sent is recorded, and for UDP its
// answer is timed by the kernel, so that a machine that is too slow for the
// rate is not taken for a server that is.
package load

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Timeout is when a query counts as lost unless the plan says otherwise: as long
// as the resolvers of glibc, Go and c-ares wait for a name server by default.
const Timeout = 5 * time.Second

// A Plan is what is asked, of whom and how fast.
type Plan struct {
	Server netip.AddrPort `json:"server"`
	Proto  string         `json:"proto"` // udp or tcp
	Rate   int            `json:"rate"`  // queries a second; 0: all at once
	Count  int            `json:"count"` // queries in all
	// Sockets are kept open and used in turn, over TCP as pipelined
	// connections. At least one, unless Fresh is 100.
	Sockets int `json:"sockets"`
	// Fresh of a hundred queries have a socket or connection of their own.
	Fresh   int           `json:"fresh"`
	Names   []Name        `json:"names"`             // asked in turn
	Timeout time.Duration `json:"timeout,omitempty"` // 0 is the constant
}

// A Name is a question and the truth about it.
type Name struct {
	Name   string   `json:"name"` // fully qualified
	Type   string   `json:"type"` // such as A
	Rcode  string   `json:"rcode"`
	Answer []string `json:"answer,omitempty"` // of each record owner, type and data, sorted; TTLs are not compared
}

// Truth takes a reply for the truth about its question, of which it must have one.
func Truth(reply *dns.Msg) Name {
	q := reply.Question[0]
	return Name{q.Name, dns.TypeToString[q.Qtype], dns.RcodeToString[reply.Rcode], records(reply)}
}

func records(m *dns.Msg) []string {
	var out []string
	for _, rr := range m.Answer {
		h := rr.Header()
		out = append(out, dns.CanonicalName(h.Name)+" "+dns.TypeToString[h.Rrtype]+" "+strings.TrimPrefix(rr.String(), h.String()))
	}
	slices.Sort(out)
	return out
}

// An Outcome is what became of a query.
type Outcome string

// The outcomes.
const (
	Right    Outcome = "right"    // what the name must resolve to
	Wrong    Outcome = "wrong"    // any other reply but these:
	Servfail Outcome = "servfail" // a stub asks its next name server at once
	Refused  Outcome = "refused"  // the reply REFUSED, or an ICMP error: a stub may go on, or not
	Lost     Outcome = "lost"     // no reply in time
)

// A Record is one query.
type Record struct {
	ID      uint16        `json:"id"`
	Port    uint16        `json:"port"` // that it came from, for TCP the last one
	Name    string        `json:"name"` // and type
	At      time.Duration `json:"at"`   // when it was sent, since Begin
	Lag     time.Duration `json:"lag"`  // how much later than planned that was
	Outcome Outcome       `json:"outcome"`
	Latency time.Duration `json:"latency"`        // until the outcome; over TCP it includes all tries
	Tries   int           `json:"tries"`          // how often it was sent, each time on another connection; 1 for UDP
	Note    string        `json:"note,omitempty"` // what was wrong
}

// A Result is what became of a Plan.
type Result struct {
	Begin time.Time `json:"begin"`
	// Strays are replies that nobody waited for: a second one to the same
	// query, or one that came after Timeout.
	Strays  int      `json:"strays"`
	Records []Record `json:"records"`
}

// Run does what the plan says, and returns when every query has its outcome.
// When ctx ends, no more are sent.
func Run(ctx context.Context, p Plan) (Result, error) {
	if len(p.Names) == 0 || p.Count <= 0 || p.Rate < 0 || p.Fresh < 0 || p.Fresh > 100 || p.Sockets <= 0 && p.Fresh < 100 {
		return Result{}, fmt.Errorf("running a load: names %d, count %d, rate %d, sockets %d, fresh %d", len(p.Names), p.Count, p.Rate, p.Sockets, p.Fresh)
	}
	if p.Timeout == 0 {
		p.Timeout = Timeout
	}
	r := &recorder{plan: p, begin: time.Now(), records: make([]Record, 0, p.Count)}
	for _, n := range p.Names {
		t, ok := dns.StringToType[n.Type]
		if !ok {
			return Result{}, fmt.Errorf("running a load: type %q is not one", n.Type)
		}
		wire, err := new(dns.Msg).SetQuestion(n.Name, t).Pack()
		if err != nil {
			return Result{}, fmt.Errorf("running a load: %s: %w", n.Name, err)
		}
		r.wires = append(r.wires, wire)
	}
	var asker interface {
		send(i int)
		close()
	}
	var err error
	switch p.Proto {
	case "udp":
		asker, err = newUDP(r)
	case "tcp":
		asker = newTCP(r)
	default:
		err = fmt.Errorf("proto %q is not udp or tcp", p.Proto)
	}
	if err != nil {
		return Result{}, fmt.Errorf("running a load: %w", err)
	}
	r.schedule(ctx, asker.send)
	r.settle()
	asker.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return Result{r.begin, r.strays, r.records}, nil
}

// A recorder has the records, which grow while queries are sent.
type recorder struct {
	plan  Plan
	wires [][]byte // of Names, with the id 0
	begin time.Time

	mu      sync.Mutex
	records []Record
	open    int // without an outcome
	strays  int
}

// schedule calls send for each query when it is due.
func (r *recorder) schedule(ctx context.Context, send func(i int)) {
	// Timers of Go are as coarse as a millisecond; at 10,000 queries a second
	// that would be ten at once.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range r.plan.Count {
		var due time.Duration
		if r.plan.Rate > 0 {
			due = time.Duration(i) * time.Second / time.Duration(r.plan.Rate)
		}
		for ahead := due - time.Since(r.begin); ahead > 0; ahead = due - time.Since(r.begin) {
			ts := unix.NsecToTimespec(int64(min(ahead, 100*time.Millisecond)))
			_ = unix.Nanosleep(&ts, nil) // a signal cuts it short
			if ctx.Err() != nil {
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		n := r.plan.Names[i%len(r.plan.Names)]
		at := time.Since(r.begin)
		r.records = append(r.records, Record{Name: n.Name + " " + n.Type, At: at, Lag: at - due})
		r.open++
		r.mu.Unlock()
		send(i)
	}
}

// settle waits until all queries have an outcome, and gives the last of them one.
func (r *recorder) settle() {
	for {
		r.mu.Lock()
		open := r.open
		last := time.Duration(0)
		if len(r.records) > 0 {
			last = r.records[len(r.records)-1].At
		}
		r.mu.Unlock()
		if open == 0 {
			return
		}
		if time.Since(r.begin) > last+r.plan.Timeout {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.records {
		if r.records[i].Outcome == "" {
			r.end(i, Lost, r.plan.Timeout, "")
		}
	}
}

// end gives a query its outcome. The caller holds the lock.
func (r *recorder) end(i int, o Outcome, latency time.Duration, note string) {
	q := &r.records[i]
	if q.Outcome != "" {
		r.strays++
		return
	}
	if latency >= r.plan.Timeout && o != Lost {
		r.strays++
		o, latency, note = Lost, r.plan.Timeout, ""
	}
	q.Outcome, q.Latency, q.Note = o, latency, note
	r.open--
}

// query is the message of a query with its id.
func (r *recorder) query(i int, id uint16) []byte {
	wire := slices.Clone(r.wires[i%len(r.wires)])
	wire[0], wire[1] = byte(id>>8), byte(id)
	return wire
}

// alone says whether a query has a socket of its own. They are spread evenly.
func (r *recorder) alone(i int) bool {
	return (i+1)*r.plan.Fresh/100 != i*r.plan.Fresh/100
}

func (r *recorder) name(i int) Name { return r.plan.Names[i%len(r.plan.Names)] }

// judge says what a reply to n is, and what is wrong with it.
func (n Name) judge(reply []byte) (Outcome, string) {
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		return Wrong, err.Error()
	}
	switch {
	case !m.Response || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, n.Name) || dns.TypeToString[m.Question[0].Qtype] != n.Type:
		return Wrong, "it answers another question: " + m.String()
	case m.Rcode == dns.RcodeServerFailure:
		return Servfail, ""
	case m.Rcode == dns.RcodeRefused:
		return Refused, "the reply REFUSED"
	case m.Truncated || dns.RcodeToString[m.Rcode] != n.Rcode || !slices.Equal(records(m), n.Answer):
		return Wrong, m.String()
	}
	return Right, ""
}

// ids are those of one socket: in turn from a random one, so that none is used
// twice in Timeout at any rate that a machine can send.
type ids struct {
	next    uint16
	pending map[uint16]int // the queries
}

func newIDs() ids { return ids{uint16(rand.Uint32()), map[uint16]int{}} }

func (s *ids) take(i int) uint16 {
	s.next++
	s.pending[s.next] = i
	return s.next
}

// A Summary is a Result in figures.
type Summary struct {
	Sent     int `json:"sent"`
	Right    int `json:"right"`
	Wrong    int `json:"wrong"`
	Servfail int `json:"servfail"`
	Refused  int `json:"refused"`
	Lost     int `json:"lost"`
	// Retried are those that were sent on more than one connection.
	Retried int `json:"retried"`
	// Of those that were answered at all; 0 where none was.
	Median  time.Duration `json:"median"`
	P99     time.Duration `json:"p99"`
	P999    time.Duration `json:"p999"` // 99.9 %
	Slowest time.Duration `json:"slowest"`
	// Rate is what was reached, in queries a second; Lag the longest delay of
	// a query by the machine.
	Rate float64       `json:"rate"`
	Lag  time.Duration `json:"lag"`
	// Example is one of what went wrong.
	Example string `json:"example,omitempty"`
}

// Summary sums up the queries for which keep is true; nil keeps all.
func (r Result) Summary(keep func(Record) bool) Summary {
	var s Summary
	var took []time.Duration
	var last time.Duration
	for _, q := range r.Records {
		if keep != nil && !keep(q) {
			continue
		}
		s.Sent++
		switch q.Outcome {
		case Right:
			s.Right++
		case Wrong:
			s.Wrong++
		case Servfail:
			s.Servfail++
		case Refused:
			s.Refused++
		case Lost:
			s.Lost++
		}
		if q.Outcome != Lost && q.Outcome != Refused {
			took = append(took, q.Latency)
		}
		if q.Outcome != Right && s.Example == "" {
			s.Example = fmt.Sprintf("%s sent after %s: %s %s", q.Name, q.At, q.Outcome, q.Note)
		}
		if q.Tries > 1 {
			s.Retried++
		}
		s.Lag = max(s.Lag, q.Lag)
		last = max(last, q.At)
	}
	if last > 0 {
		s.Rate = float64(s.Sent-1) / last.Seconds()
	}
	slices.SortFunc(took, cmp.Compare)
	if n := len(took); n > 0 {
		s.Median, s.P99, s.P999, s.Slowest = took[n/2], took[n*99/100], took[n*999/1000], took[n-1]
	}
	return s
}

// Failed is how many queries were not answered rightly.
func (s Summary) Failed() int { return s.Sent - s.Right }

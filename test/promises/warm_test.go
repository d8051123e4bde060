package promises

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"nodelocaldns/test/promises/load"
)

// Four thousand names at 10,000 queries a second: a resolver that begins with
// nothing has to ask kube-dns for each of them once, and so for four of ten of its
// first second's queries. They are denied, for thirty seconds each, so that one in
// 75 is a miss at any time.
func TestARestartBeginsWithWhatWasCached(t *testing.T) {
	m := alone(t)
	const (
		restarts = 10
		life     = 30 * time.Second
	)
	rate, count := 10000, 4000
	if quick() { // a busy machine cannot ask kube-dns for all of those at once
		rate, count = rate/4, count/4
	}
	names := make([]load.Name, count)
	for i := range names {
		names[i] = load.Name{Name: fmt.Sprintf("n%04d.example.com.", i), Type: "A", Rcode: "NXDOMAIN"}
	}
	begun := time.Now()
	l := m.load(t, load.Plan{Rate: rate, Count: 90 * rate, Sockets: 64, Fresh: 5, Names: names})
	time.Sleep(3 * time.Second) // two and a half rounds
	first := m.hits(t)
	time.Sleep(time.Second)
	before := m.hits(t).since(first).ratio()

	worst := 1.0
	for i := range restarts {
		if i > 0 && time.Since(begun) > life-5*time.Second {
			t.Logf("only %d restarts before all names expire", i)
			break
		}
		m.output(t, "systemctl", "restart", resolver)
		time.Sleep(time.Second)
		ratio := m.hits(t).ratio() // of the new process, and so since its start
		worst = min(worst, ratio)
	}
	s := l.stop().Summary(nil)
	none(t, "lost", s.Lost, s)
	if worst < 0.95*before {
		t.Errorf("in the first second after a restart %.1f %% were hits, %.1f %% before", 100*worst, 100*before)
	}
	report(t, 21, fmt.Sprintf("the same, %d names, each asked again within a second", count), "hits in the first second at least 95 % of before",
		[]load.Summary{s}, "%.1f %% hits before, %.1f %% at least in the first second after each; %d lost", 100*before, 100*worst, s.Lost)
}

// hits are what a process has answered from its cache, and what not.
type hits struct{ Hits, Misses float64 }

func (m *machine) hits(t *testing.T) hits {
	t.Helper()
	var status struct{ Resolver struct{ Cache hits } }
	must(t, json.Unmarshal([]byte(m.output(t, "nodelocaldns", "status", "--json")), &status))
	return status.Resolver.Cache
}

func (h hits) since(before hits) hits { return hits{h.Hits - before.Hits, h.Misses - before.Misses} }

func (h hits) ratio() float64 { return h.Hits / (h.Hits + h.Misses) }

package promises

import (
	"fmt"
	"testing"
	"time"

	"nodelocaldns/test/promises/load"
)

func TestAHungResolverIsReplacedBeforeAClientGivesUp(t *testing.T) {
	m := alone(t)
	const rate = 200
	restarts := m.number(t, resolver, "NRestarts")
	l := m.load(t, load.Plan{Rate: rate, Count: 60 * rate, Sockets: 16, Fresh: 20, Timeout: 30 * time.Second})
	time.Sleep(time.Second)
	m.kill(t, resolver, "STOP")
	eventually(t, "the resolver to be replaced", 30*time.Second, func() error {
		if n := m.number(t, resolver, "NRestarts"); n == restarts {
			return fmt.Errorf("it was started again %d times", n)
		}
		return nil
	})
	m.in(t, resolver, 10*time.Second, "active")
	time.Sleep(time.Second)
	r := l.stop()
	s := r.Summary(nil)
	late := r.Summary(func(q load.Record) bool { return q.Latency >= load.Timeout }).Sent
	none(t, "not answered rightly", s.Failed(), s)
	none(t, "answered after clients have given up", late, s)
	inTime(t, "the slowest answer", s.Slowest, load.Timeout)
	report(t, 50, fmt.Sprintf("SIGSTOP, UDP at %d q/s", rate), "replaced by the watchdog, within the 5 s after which clients ask elsewhere", []load.Summary{s},
		"%d queries: %d lost, %d wrong; the longest wait %s", s.Sent, s.Lost, s.Wrong, short(s.Slowest))
}

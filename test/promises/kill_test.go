package promises

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"nodelocaldns/test/promises/load"
)

// between is the time from one kill to the next.
const between = 3 * time.Second

func TestAKilledResolverAnswersWhatWaited(t *testing.T) {
	m := alone(t)
	kills := int(loopTime(t) / between)
	for i, tt := range []struct {
		proto    string
		rate     int
		promised time.Duration
		words    string
	}{
		{"udp", 1000, 250 * time.Millisecond, "lost: fewer than one a kill; all others within 250 ms"},
		{"tcp", 1000, 500 * time.Millisecond, "clients reconnect: none lost; all within 500 ms"},
	} {
		t.Run(tt.proto, func(t *testing.T) {
			m.healthy(t)
			restarts := m.number(t, resolver, "NRestarts")
			l := m.load(t, load.Plan{Proto: tt.proto, Rate: tt.rate, Count: tt.rate * int((time.Duration(kills)*between+2*time.Second)/time.Second), Sockets: 32, Fresh: 10})
			tick := time.NewTicker(between)
			defer tick.Stop()
			for range kills {
				<-tick.C
				m.kill(t, resolver, "KILL")
			}
			s := l.wait().Summary(nil)
			if n := m.number(t, resolver, "NRestarts") - restarts; n != int64(kills) {
				t.Errorf("the resolver was restarted %d times, want %d", n, kills)
			}
			none(t, "wrong answers", s.Wrong, s)
			none(t, "SERVFAIL", s.Servfail, s)
			none(t, "refused", s.Refused, s)
			if tt.proto == "tcp" {
				none(t, "lost", s.Lost, s)
			} else if s.Lost >= kills {
				t.Errorf("%d were lost in %d kills, want fewer than one a kill", s.Lost, kills)
			}
			inTime(t, "the slowest answer", s.Slowest, tt.promised)
			report(t, 10+i, fmt.Sprintf("SIGKILL every 3 s for %s, %s at %d q/s", time.Duration(kills)*between, strings.ToUpper(tt.proto), tt.rate), tt.words, []load.Summary{s},
				"%d kills, %d queries: %d lost, %d wrong; %s%s", kills, s.Sent, s.Lost, s.Wrong, slowest(s), again(s))
		})
	}
}

// Each pod brings three mounts or more, and systemd walks through all of them to
// start a service that is to see few of them.
func TestAKilledResolverAnswersWhatWaitedOnANodeWithManyPods(t *testing.T) {
	m := alone(t)
	const mounts, kills, rate = 300, 4, 1000
	m.output(t, "sh", "-ec", fmt.Sprintf("mkdir -p /run/many; cd /run/many; for i in $(seq %d); do mkdir $i; mount -t tmpfs none $i; done", mounts))
	l := m.load(t, load.Plan{Rate: rate, Count: 60 * rate, Sockets: 32, Fresh: 10})
	for range kills {
		time.Sleep(between)
		m.kill(t, resolver, "KILL")
	}
	time.Sleep(between)
	s := l.stop().Summary(nil)
	m.output(t, "sh", "-ec", "umount /run/many/*; rm -r /run/many")
	none(t, "wrong answers", s.Wrong, s)
	none(t, "SERVFAIL", s.Servfail, s)
	none(t, "refused", s.Refused, s)
	if s.Lost >= kills {
		t.Errorf("%d were lost in %d kills, want fewer than one a kill", s.Lost, kills)
	}
	const promised = 250 * time.Millisecond
	note(t, s.Slowest, promised)
	report(t, 12, fmt.Sprintf("the same with UDP, on a node with %d mounts more", mounts), "lost: fewer than one a kill; all others within 250 ms", []load.Summary{s},
		"%d kills, %d queries: %d lost, %d wrong; %s", kills, s.Sent, s.Lost, s.Wrong, slowest(s))
}

func again(s load.Summary) string {
	if s.Retried == 0 {
		return ""
	}
	return fmt.Sprintf("; %d asked again on a new connection", s.Retried)
}

func TestARestartLosesNoQuery(t *testing.T) {
	m := alone(t)
	const restarts, rate = 10, 10000
	l := m.load(t, load.Plan{Rate: rate, Count: 60 * rate, Sockets: 64, Fresh: 5})
	time.Sleep(time.Second)
	var longest time.Duration
	for range restarts {
		begun := time.Now()
		m.output(t, "systemctl", "restart", resolver)
		longest = max(longest, time.Since(begun))
		time.Sleep(300 * time.Millisecond)
	}
	time.Sleep(time.Second)
	s := l.stop().Summary(nil)
	none(t, "lost", s.Lost, s)
	none(t, "not answered rightly", s.Failed(), s)
	if state := m.show(t, relay, "ActiveState"); state == "active" {
		t.Error("the relay runs, although an administrator restarted the resolver")
	}
	report(t, 20, fmt.Sprintf("`systemctl restart` ten times, UDP at %d q/s", rate), "0 lost", []load.Summary{s},
		"%d queries at %.0f q/s: %d lost, %d wrong; %s; a restart took %s at most", s.Sent, s.Rate, s.Lost, s.Wrong, slowest(s), short(longest))
}

// The limit of the running resolver is lowered to what it has, and names that it
// has not seen make it grow. The next one has the limit of its unit again.
func TestAResolverKilledForItsMemoryAnswersWhatWaited(t *testing.T) {
	m := alone(t)
	// The controllers became writable after systemd had looked at them.
	m.output(t, "systemctl", "daemon-reexec")
	m.output(t, "systemctl", "restart", resolver)
	m.healthy(t)
	const kills, rate = 3, 1000
	// With control groups of version 1 systemd does not know why a process was
	// killed; but nobody else sends that signal here.
	killed := func() int {
		log := m.output(t, "journalctl", "--boot", "--unit="+resolver, "--output=cat")
		return strings.Count(log, "code=killed, status=9/KILL")
	}
	had := killed()
	l := m.load(t, load.Plan{Rate: rate, Count: 120 * rate, Sockets: 32, Fresh: 10})
	for range kills {
		before := m.number(t, resolver, "NRestarts")
		m.lowerMemory(t)
		flood := m.load(t, load.Plan{Rate: 1500, Count: 60 * 1500, Sockets: 32, Names: podNames(20000), Timeout: time.Second})
		tight := time.Now()
		eventually(t, "the resolver to be killed for its memory", time.Minute, func() error {
			if m.number(t, resolver, "NRestarts") > before {
				return nil
			}
			if time.Since(tight) > 10*time.Second { // the kernel has found something that it need not keep
				m.lowerMemory(t)
				tight = time.Now()
			}
			return errors.New("it has " + m.show(t, resolver, "MemoryCurrent") + " bytes")
		})
		flood.stop()
		m.in(t, resolver, 5*time.Second, "active")
		time.Sleep(between)
	}
	s := l.stop().Summary(nil)
	if n := killed() - had; n != kills {
		t.Errorf("it was killed %d times, want %d", n, kills)
	}
	none(t, "wrong answers", s.Wrong, s)
	none(t, "refused", s.Refused, s)
	if s.Lost >= kills {
		t.Errorf("%d were lost in %d kills, want fewer than one a kill", s.Lost, kills)
	}
	inTime(t, "the slowest answer", s.Slowest, 250*time.Millisecond)
	report(t, 30, fmt.Sprintf("OOM kill (memory limit lowered, 1,500 new names a second), UDP at %d q/s", rate), "lost: what had been read, fewer than one a kill; all others within 250 ms", []load.Summary{s},
		"%d kills, %d queries: %d lost, %d wrong, %d SERVFAIL; %s", kills, s.Sent, s.Lost, s.Wrong, s.Servfail, slowest(s))
}

// lowerMemory leaves the running resolver no more memory than it has, or where it
// has got some more meanwhile, as much as before.
func (m *machine) lowerMemory(t *testing.T) {
	t.Helper()
	m.output(t, "sh", "-ec", `cd /sys/fs/cgroup
		group=$(systemctl show --value --property=ControlGroup `+resolver+`)
		if [ -d memory ]; then
			cd "memory$group"; cat memory.usage_in_bytes >memory.limit_in_bytes || :
		else
			cd ".$group"; cat memory.current >memory.max || :
		fi`)
}

// podNames are names that kube-dns answers, each with an address of its own.
func podNames(n int) []load.Name {
	out := make([]load.Name, n)
	for i := range out {
		a, b := i/250, i%250+1
		name := fmt.Sprintf("10-245-%d-%d.shop.pod.cluster.local.", a, b)
		out[i] = load.Name{Name: name, Type: "A", Rcode: "NOERROR", Answer: []string{fmt.Sprintf("%s A 10.245.%d.%d", name, a, b)}}
	}
	return out
}

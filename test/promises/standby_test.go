package promises

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"nodelocaldns/test/promises/load"
)

// The relay answers where the resolver cannot run, or has been stopped, and goes
// when it is back.
func TestTheRelayAnswersWhereTheResolverCannot(t *testing.T) {
	t.Parallel()
	keep := func(t *testing.T, m *machine) { m.output(t, "cp", "-p", program, program+".kept") }
	back := func(t *testing.T, m *machine) { m.output(t, "mv", program+".kept", program) }
	falsify := func(t *testing.T, m *machine) {
		keep(t, m)
		m.output(t, "sh", "-ec", "cp /bin/false "+program+".new; mv "+program+".new "+program)
	}
	const dies = "#!/bin/sh\nkill -SEGV $$\n"
	for i, tt := range []struct {
		name    string
		doBreak func(*testing.T, *machine) // ends with the first failure
		mend    func(*testing.T, *machine)
		// It loses what has been sent before the relay is there: a resolver reads
		// it, and dies.
		loses  bool
		serves bool // it answers between two deaths
	}{
		{
			name: "configuration broken, then `systemctl restart`",
			doBreak: func(t *testing.T, m *machine) {
				must(t, m.Put(settings, []byte("no such key: 1\n"), 0o644))
				_, err := m.Exec(t.Context(), "systemctl", "restart", resolver)
				must(t, err)
			},
			mend: func(t *testing.T, m *machine) { must(t, m.Put(settings, []byte(config), 0o644)) },
		},
		{
			name: "program replaced by `/bin/false`, then SIGKILL",
			doBreak: func(t *testing.T, m *machine) {
				falsify(t, m)
				m.kill(t, resolver, "KILL")
			},
			mend: back,
		},
		{
			name: "program replaced by one that dies of a signal, then SIGKILL",
			doBreak: func(t *testing.T, m *machine) {
				keep(t, m)
				must(t, m.Put(program, []byte(dies), 0o755))
				m.kill(t, resolver, "KILL")
			},
			mend: back,
		},
		{
			name: "the same, and SIGKILL of guard too, until the start limit is reached",
			doBreak: func(t *testing.T, m *machine) {
				keep(t, m)
				must(t, m.Put(program, []byte(dies), 0o755))
				m.kill(t, guard, "KILL")
				m.kill(t, resolver, "KILL")
			},
			mend: back,
		},
		{
			name: "3 MB of memory: an OOM loop",
			doBreak: func(t *testing.T, m *machine) {
				m.output(t, "systemctl", "daemon-reexec") // see lowerMemory's test
				m.output(t, "systemctl", "set-property", "--runtime", resolver, "MemoryMax=3M")
				m.kill(t, resolver, "KILL")
			},
			mend: func(t *testing.T, m *machine) {
				m.output(t, "systemctl", "set-property", "--runtime", resolver, "MemoryMax=256M")
			},
			loses:  true,
			serves: true,
		},
		{
			name:    "`systemctl stop nodelocaldns`, and start",
			doBreak: func(t *testing.T, m *machine) { m.output(t, "systemctl", "stop", resolver) },
			mend:    func(t *testing.T, m *machine) { m.output(t, "systemctl", "start", resolver) },
		},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			m := apply(t)
			s, took, after := m.standIn(t, tt.doBreak, tt.mend)
			if most, failed := int((took+500*time.Millisecond).Seconds()*standbyRate), s.Lost+s.Refused+s.Servfail; tt.loses && failed > most {
				t.Errorf("%d were lost, refused or SERVFAIL, want %d at the most, as many as were sent before the relay was there", failed, most)
			} else if !tt.loses {
				none(t, "lost", s.Lost, s)
				none(t, "refused", s.Refused, s)
				none(t, "SERVFAIL", s.Servfail, s)
			}
			none(t, "wrong answers", s.Wrong, s)
			promised := "relay answers within 3 s of the first failure, queries wait for it"
			if tt.serves {
				promised = "relay answers after three deaths"
				inTime(t, "the relay", took, 10*time.Second)
			} else {
				inTime(t, "the relay", took, 3*time.Second)
			}
			inTime(t, "the slowest answer", s.Slowest, 3*time.Second)
			report(t, 60+i, fmt.Sprintf("%s, UDP at %d q/s", tt.name, standbyRate), promised, []load.Summary{s},
				"relay after %s; %d queries: %d lost, %d refused, %d wrong, slowest %s; resolver back %s after it was mended",
				short(took), s.Sent, s.Lost, s.Refused, s.Wrong, short(s.Slowest), short(after))
		})
	}
}

const standbyRate = 200

// standIn breaks the resolver under load, waits for the relay, mends what was
// broken, and waits for the resolver. It returns what became of the queries, how
// long it took until the relay was there, and until the resolver was back.
func (m *machine) standIn(t *testing.T, doBreak, mend func(*testing.T, *machine)) (s load.Summary, relayed, back time.Duration) {
	t.Helper()
	l := m.load(t, load.Plan{Rate: standbyRate, Count: 120 * standbyRate, Sockets: 16, Fresh: 20})
	time.Sleep(time.Second)
	begun := time.Now()
	doBreak(t, m)
	m.in(t, relay, 20*time.Second, "active")
	relayed = time.Since(begun)
	time.Sleep(2 * time.Second)
	m.gauge(t, "nodelocaldns_relay_active 1")
	begun = time.Now()
	mend(t, m)
	m.in(t, resolver, 30*time.Second, "active")
	back = time.Since(begun)
	m.in(t, relay, 30*time.Second, "inactive")
	m.gauge(t, "nodelocaldns_relay_active 0")
	time.Sleep(time.Second)
	s = l.stop().Summary(nil)
	m.healthy(t)
	return s, relayed, back
}

// gauge waits until the metrics have a line.
func (m *machine) gauge(t *testing.T, line string) {
	t.Helper()
	took := eventually(t, "the metrics to say "+line, 45*time.Second, func() error {
		r, err := m.Exec(t.Context(), "curl", "-sS", "http://127.0.0.1:9253/metrics")
		if err == nil && !strings.Contains(r.Stdout, "\n"+line+"\n") {
			err = errors.New(r.Stdout + r.Stderr)
		}
		return err
	})
	inTime(t, "the metrics", took, 5*time.Second)
}

// Clients ask their next name server as soon as they are told that there is no
// answer. When kube-dns has been found dead only a probe waits for it.
func TestTheRelaySaysSoWhereKubeDNSDoesNotAnswer(t *testing.T) {
	m := alone(t)
	const (
		rate    = 100
		seconds = 3
		waits   = 250 * time.Millisecond // what is slower than any machine
	)
	m.output(t, "systemctl", "stop", resolver)
	m.output(t, "systemctl", "start", relay) // as the next query would
	var all, atOnce [2]load.Summary
	var waited [2]int
	for i, how := range []string{"refuse", "drop"} {
		m.cutOff(t, how)
		r := m.load(t, load.Plan{Rate: rate, Count: seconds * rate, Sockets: 16, Fresh: 20}).wait()
		m.cutOff(t, "")
		known := func(q load.Record) bool { return q.At >= time.Second }
		all[i] = r.Summary(nil)
		atOnce[i] = r.Summary(func(q load.Record) bool { return known(q) && q.Latency < waits })
		waited[i] = r.Summary(known).Sent - atOnce[i].Sent
		none(t, how+": anything but SERVFAIL", all[i].Sent-all[i].Servfail, all[i])
		inTime(t, how+": the slowest SERVFAIL", all[i].Slowest, time.Second)
		inTime(t, how+": 99 of 100 SERVFAIL but the probes', after a second", atOnce[i].P99, 10*time.Millisecond)
		if most := (seconds-1)*4 + 1; waited[i] > most {
			t.Errorf("%s: %d queries waited, want %d at the most, as many as there may be probes", how, waited[i], most)
		}
		m.healthyBehindTheRelay(t)
	}
	m.output(t, "systemctl", "start", resolver)
	m.healthy(t)
	report(t, 67, fmt.Sprintf("relay, and kube-dns has no endpoints, or is silent, UDP at %d q/s", rate), "SERVFAIL within 1 s, never silence; after the first second at once, but for probes", append(all[:], atOnce[:]...),
		"no endpoints: %d of %d SERVFAIL, all within %s, after the first second %d probes wait, 99 of 100 others %s, all %s at the most; silent: %d of %d, within %s, %d probes, %s, %s",
		all[0].Servfail, all[0].Sent, short(all[0].Slowest), waited[0], short(atOnce[0].P99), short(atOnce[0].Slowest),
		all[1].Servfail, all[1].Sent, short(all[1].Slowest), waited[1], short(atOnce[1].P99), short(atOnce[1].Slowest))
}

// healthyBehindTheRelay waits until every name resolves, which is soon after
// kube-dns is back, and then is not forgotten again.
func (m *machine) healthyBehindTheRelay(t *testing.T) {
	t.Helper()
	took := eventually(t, "the relay to find kube-dns", 10*time.Second, func() error {
		if s := m.load(t, load.Plan{Rate: 100, Count: len(m.names), Sockets: 4}).wait().Summary(nil); s.Failed() > 0 {
			return errors.New(s.Example)
		}
		return nil
	})
	inTime(t, "finding kube-dns again", took, 2*time.Second)
	s := m.load(t, load.Plan{Rate: 100, Count: 100, Sockets: 16, Fresh: 20}).wait().Summary(nil)
	none(t, "not answered rightly when kube-dns is back", s.Failed(), s)
}

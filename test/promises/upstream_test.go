package promises

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"nodelocaldns/test/kubedns"
	"nodelocaldns/test/promises/load"
)

// outageTime is how long kube-dns is away, and each state of the network lasts;
// NODELOCALDNS_PROMISES_OUTAGE is another duration.
func outageTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("NODELOCALDNS_PROMISES_OUTAGE")
	if text == "" {
		return time.Minute
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

// What kube-dns and the network on the way there may do, all at the same time on
// nodes of their own.
func TestKubeDNSMayFail(t *testing.T) {
	beside(t)
	lasts := outageTime(t)
	for i, tt := range []struct {
		name string
		do   func(*testing.T, *bareNode)
	}{
		{"is silent", func(t *testing.T, b *bareNode) { b.behave(t, kubedns.Behaviour{DropEvery: 1}) }},
		{"refuses", func(t *testing.T, b *bareNode) { b.refuse(t) }},
		{"is gone with its node", func(t *testing.T, b *bareNode) { b.blackhole(t, 0); b.blackhole(t, 1) }},
	} {
		b := newBareNode(t, "") // all of them before the first is asked
		t.Run(fmt.Sprint("dead", i), func(t *testing.T) {
			t.Parallel()
			outage(t, b, 200+i, tt.name, lasts, tt.do)
		})
	}
	for i, tt := range []struct {
		name     string
		promised time.Duration // for 99.9 %; 0 for none
		do       func(*testing.T, *bareNode)
	}{
		{"nothing is wrong", 100 * time.Millisecond, func(*testing.T, *bareNode) {}},
		{"one of two endpoints is gone with its node", 100 * time.Millisecond, func(t *testing.T, b *bareNode) { b.blackhole(t, 1) }},
		{"2 % of all packets to and from kube-dns are lost", 100 * time.Millisecond, func(t *testing.T, b *bareNode) { b.lose(t, 0, 0.02); b.lose(t, 1, 0.02) }},
		{"10 % of them", 0, func(t *testing.T, b *bareNode) { b.lose(t, 0, 0.1); b.lose(t, 1, 0.1) }},
		{"each answer takes 100 ms", 0, func(t *testing.T, b *bareNode) { b.behave(t, kubedns.Behaviour{Delay: 100 * time.Millisecond}) }},
	} {
		b := newBareNode(t, "")
		t.Run(fmt.Sprint("impaired", i), func(t *testing.T) {
			t.Parallel()
			const rate = 100
			count := int(lasts.Seconds() * rate)
			tt.do(t, b)
			s := b.load(t, onPod, load.Plan{Rate: rate, Count: count, Sockets: 16, Fresh: 20, Names: podNames(count)}).wait().Summary(nil)
			none(t, "not answered rightly", s.Failed(), s)
			promised := "all answered"
			if tt.promised > 0 {
				promised += fmt.Sprintf("; 99.9 %% within %s", short(tt.promised))
				note(t, s.P999, tt.promised)
			}
			report(t, 210+i, fmt.Sprintf("%s, %d new names a second", tt.name, rate), promised, []load.Summary{s},
				"%d of %d answered; half within %s, 99 %% %s, 99.9 %% %s; %s", s.Right, s.Sent, short(s.Median), short(s.P99), short(s.P999), slowest(s))
		})
	}
	b := newBareNode(t, "")
	t.Run("hangs", func(t *testing.T) {
		t.Parallel()
		slowName(t, b, lasts)
	})
}

// outage has kube-dns away for so long, and asks for names that were asked before
// and for others.
func outage(t *testing.T, b *bareNode, order int, how string, lasts time.Duration, away func(*testing.T, *bareNode)) {
	const (
		known, knownRate = 300, 200
		newRate          = 20
		recheck          = 30 * time.Second
	)
	names := podNames(known + 10000)
	warm, other := names[:known], names[known:]
	b.behave(t, kubedns.Behaviour{TTL: 3})
	first := b.load(t, onPod, load.Plan{Rate: 500, Count: known, Sockets: 8, Names: warm}).wait().Summary(nil)
	none(t, "not answered rightly before the outage", first.Failed(), first)
	b.reset()
	away(t, b)
	count := func(rate int) int { return int(lasts.Seconds()) * rate }
	warmLoad := b.load(t, onPod, load.Plan{Rate: knownRate, Count: count(knownRate), Sockets: 16, Fresh: 10, Names: warm})
	for i := range other {
		other[i].Rcode, other[i].Answer = "SERVFAIL", nil
	}
	newLoad := b.load(t, onPod, load.Plan{Rate: newRate, Count: count(newRate), Sockets: 4, Fresh: 10, Names: other})
	w, n := warmLoad.wait().Summary(nil), newLoad.wait().Summary(nil)
	none(t, "not answered of names that were asked before", w.Failed(), w)
	none(t, "other than SERVFAIL for other names", n.Sent-n.Servfail, n)
	note(t, w.P99, 5*time.Millisecond)
	inTime(t, "the slowest SERVFAIL", n.Slowest, time.Second)
	// A question to upstream is sent up to three times.
	asked := b.asked()
	var most uint64
	for _, name := range warm {
		most = max(most, asked[name.Name+" "+name.Type])
	}
	if limit := 3 * uint64(1+lasts/recheck); most > limit {
		t.Errorf("kube-dns was asked %d times for one name in %s, want %d at the most", most, lasts, limit)
	}

	// It is back, and all of those names have been deleted.
	b.undo(t)
	b.behave(t, kubedns.Behaviour{Rcode: "NXDOMAIN"})
	begun := time.Now()
	i := 0
	eventually(t, "kube-dns to be asked again", 10*time.Second, func() error {
		i++
		back := slices.Clone(names[len(names)-i : len(names)-i+1])
		back[0].Rcode, back[0].Answer = "NXDOMAIN", nil
		s := b.load(t, onPod, load.Plan{Count: 1, Sockets: 1, Names: back}).wait().Summary(nil)
		if s.Failed() > 0 {
			return errors.New(s.Example)
		}
		return nil
	})
	back := time.Since(begun)
	for i := range warm {
		warm[i].Rcode, warm[i].Answer = "NXDOMAIN", nil
	}
	deleted := b.load(t, onPod, load.Plan{Rate: 200, Count: known, Sockets: 8, Names: warm}).wait().Summary(nil)
	none(t, "answered with what had been deleted", deleted.Failed(), deleted)
	report(t, order, fmt.Sprintf("kube-dns %s for %s; %d q/s for %d names asked before, with a TTL of 3 s, %d for others", how, lasts, knownRate, known, newRate),
		"those answered, 99 % within 5 ms, one refresh a name and 30 s; others SERVFAIL within 1 s; what is deleted is not served when kube-dns is back", []load.Summary{w, n, deleted},
		"%d of %d answered, 99 %% within %s, slowest %s; kube-dns was asked at most %d times a name; %d of %d SERVFAIL, slowest %s; back %s after kube-dns, then 0 of %d deleted served",
		w.Right, w.Sent, short(w.P99), short(w.Slowest), most, n.Servfail, n.Sent, short(n.Slowest), short(back), known)
}

// slowName is a kube-dns that answers the queries of a connection in turn, as
// CoreDNS does, and for some external names waits for a server that is not there.
func slowName(t *testing.T, b *bareNode, lasts time.Duration) {
	b.behave(t, kubedns.Behaviour{Below: "example.org", Delay: 2 * time.Second})
	const rate, hanging = 100, 5
	count := int(lasts.Seconds()) * rate
	var bad []load.Name
	for i := range 1000 {
		bad = append(bad, load.Name{Name: fmt.Sprintf("host%d.example.org.", i), Type: "A", Rcode: "SERVFAIL"})
	}
	badLoad := b.load(t, onPod, load.Plan{Rate: hanging, Count: int(lasts.Seconds()) * hanging, Sockets: 4, Names: bad})
	s := b.load(t, onPod, load.Plan{Rate: rate, Count: count, Sockets: 16, Fresh: 10, Names: podNames(count)}).wait().Summary(nil)
	h := badLoad.wait().Summary(nil)
	none(t, "not answered rightly", s.Failed(), s)
	none(t, "of the hanging names without an answer", h.Lost, h)
	note(t, s.P99, 5*time.Millisecond)
	report(t, 220, fmt.Sprintf("%d external names a second hang for 2 s at kube-dns; %d new cluster names a second", hanging, rate), "99 % within 5 ms", []load.Summary{s, h},
		"%d of %d answered, 99 %% within %s; %s", s.Right, s.Sent, short(s.P99), slowest(s))
}

// The resolvers of libc and others have our address and that of kube-dns: glibc
// asks for A and AAAA from one socket, and musl asks both servers at once.
func TestLookupsSucceedWhereKubeDNSFails(t *testing.T) {
	beside(t)
	for i, tt := range []struct {
		state string
		do    func(*testing.T, *bareNode)
	}{
		{"one of two endpoints gone", func(t *testing.T, b *bareNode) { b.blackhole(t, 1) }},
		{"10 % of packets lost", func(t *testing.T, b *bareNode) { b.lose(t, 0, 0.1); b.lose(t, 1, 0.1) }},
		{"kube-dns gone, name asked before", func(t *testing.T, b *bareNode) { b.blackhole(t, 0); b.blackhole(t, 1) }},
	} {
		b := newBareNode(t, "")
		b.behave(t, kubedns.Behaviour{TTL: 1})
		command := func(program string, args ...string) *exec.Cmd {
			return b.command(onPod, append([]string{b.installed(t, tools+program)}, args...)...)
		}
		const want = "10.96.10.21,fd00:96::21"
		lookUp(t, want, command) // nothing is wrong yet
		tt.do(t, b)
		for j, c := range lookUp(t, want, command) {
			c.State, c.order = tt.state, 100+10*i+j
			results.add(c)
			if c.Failed > 0 {
				t.Errorf("%s: %s: %d of %d lookups failed", c.State, c.Client, c.Failed, c.Lookups)
			}
			inTime(t, c.State+": "+c.Client+": the slowest lookup", c.Worst, time.Second)
		}
	}
}

// Two hundred clients ask for a name that nobody has asked for.
func TestTwoHundredClientsAreOneQuestion(t *testing.T) {
	b := newBareNode(t, "")
	b.behave(t, kubedns.Behaviour{Delay: 5 * time.Millisecond})
	name := podNames(1000)[999:]
	b.reset()
	s := b.load(t, onPod, load.Plan{Count: 200, Fresh: 100, Names: name}).wait().Summary(nil)
	none(t, "not answered rightly", s.Failed(), s)
	asked := b.asked()[name[0].Name+" A"]
	if asked != 1 {
		t.Errorf("kube-dns was asked %d times, want once", asked)
	}
	report(t, 221, "200 clients ask one new name at once, kube-dns takes 5 ms", "1 question to kube-dns", []load.Summary{s}, "%d; slowest answer %s", asked, short(s.Slowest))
}

// A pod asks for random names as fast as it can, beside others that behave.
func TestAFloodOfRandomNamesHurtsNobodyElse(t *testing.T) {
	b := newBareNode(t, "")
	const (
		warmRate, newRate = 500, 50
		floodRate         = 50000
		budget            = 256 << 20 // MemoryMax= of the unit
	)
	lasts := outageTime(t)
	warm := podNames(200)
	both := func(d time.Duration, from int) (w, n load.Summary) {
		t.Helper()
		fresh := podNames(from + int(d.Seconds())*newRate)[from:]
		wl := b.load(t, onPod, load.Plan{Rate: warmRate, Count: int(d.Seconds()) * warmRate, Sockets: 16, Fresh: 5, Names: warm})
		nl := b.load(t, onPod, load.Plan{Rate: newRate, Count: len(fresh), Sockets: 8, Fresh: 20, Names: fresh})
		return wl.wait().Summary(nil), nl.wait().Summary(nil)
	}
	both(time.Second, 1000) // now they are warm
	w0, n0 := both(min(lasts, 10*time.Second), 2000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watched := make(chan int64)
	go func() {
		var most int64
		for ctx.Err() == nil {
			most = max(most, b.memory(t))
			b.reset() // what is counted of random names is of no use
			pause(ctx, 200*time.Millisecond)
		}
		watched <- most
	}()
	flood := b.flood(t, floodRate, lasts+2*time.Second)
	time.Sleep(time.Second)
	w, n := both(lasts, 4000)
	reached := flood()
	cancel()
	most := <-watched
	for _, s := range []load.Summary{w, n} {
		none(t, "wrong answers", s.Wrong, s)
		if s.Failed()*1000 > s.Sent {
			t.Errorf("%d of %d were not answered, want one in a thousand at the most; such as %s", s.Failed(), s.Sent, s.Example)
		}
	}
	if most > budget {
		t.Errorf("serve had %d MiB in memory, want %d at the most", most>>20, budget>>20)
	}
	more := w.P99 - w0.P99
	note(t, more, 2*time.Millisecond)
	report(t, 222, fmt.Sprintf("a pod asks for random names for %s; another for %d q/s of warm names and %d of new ones", lasts, warmRate, newRate),
		"memory within the limit, warm names 99 % within 2 ms more than without, 99.9 % of both answered", []load.Summary{w0, n0, w, n},
		"%.0f random names a second; memory %d MiB at the most; warm names: %d of %d answered, 99 %% within %s, without %s; new names: %d of %d answered, 99 %% within %s, without %s",
		reached, most>>20, w.Right, w.Sent, short(w.P99), short(w0.P99), n.Right, n.Sent, short(n.P99), short(n0.P99))
}

package relay

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// at is a time of a test, "900ms" from its beginning.
func at(t *testing.T, since string) time.Time {
	t.Helper()
	d, err := time.ParseDuration(since)
	if err != nil {
		t.Fatal(err)
	}
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(d)
}

func TestAServerIsDeadThatAnswersNobody(t *testing.T) {
	for _, tt := range []struct{ name, events, want string }{
		{"not before anybody has asked", "", "alive"},
		{"by a refusal", "refusal a. 0s 1ms", "dead"},
		{"not by one refusal among answers", "reply 0s, refusal a. 10ms 11ms", "alive"},
		{"nor where somebody is answered before it is all over", "reply 0s, refusal a. 249ms 249ms", "alive"},
		{"by one when it has answered nobody for a moment", "reply 0s, refusal a. 250ms 250ms", "dead"},
		{"not by one query that was refused once and answered others meanwhile", "reply 500ms, refusal a. 0s 900ms", "alive"},
		{"by silence to two names", "silence a. 0s 900ms, silence b. 10ms 910ms", "dead"},
		{"not by one slow name", "silence a. 0s 900ms", "alive"},
		{"nor by its other address family", "silence a. 0s 900ms, silence a./AAAA 1ms 901ms", "alive"},
		{"nor by who waits for it at the same time", "silence a. 0s 900ms, silence a. 500ms 1.4s", "alive"},
		{"by silence to who asks for it again", "silence a. 0s 900ms, silence a. 900ms 1.8s", "dead"},
		{"not by silence to one while others are answered", "silence a. 0s 900ms, reply 920ms, silence b. 10ms 910ms", "alive"},
		{"nor by one name each that nobody answers", "silence a. 0s 900ms, reply 1s, silence b. 2s 2.9s, reply 3s, silence c. 4s 4.9s", "alive"},
		{"nor by silence to who asked before the last reply", "silence a. 0s 900ms, silence b. 0s 900ms, reply 910ms, silence c. 900ms 1.8s, silence d. 900ms 1.8s", "alive"},
		{"until its next reply", "silence a. 0s 900ms, silence b. 10ms 910ms, reply 2s", "alive"},
		{"and whatever fails in the meantime", "refusal a. 0s 0s, silence b. 0s 900ms, refusal c. 1s 1s", "dead"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s standing
			for event := range strings.SplitSeq(tt.events, ", ") {
				switch f := strings.Fields(event); {
				case len(f) == 2:
					s.reply(at(t, f[1]))
				case len(f) == 4 && f[0] == "refusal":
					s.refusal(at(t, f[2]), at(t, f[3]))
				case len(f) == 4:
					name, six := strings.CutSuffix(f[1], "/AAAA")
					m := new(dns.Msg).SetQuestion(name, dns.TypeA)
					if six {
						m.SetQuestion(name, dns.TypeAAAA)
					}
					s.silence(pack(t, m), at(t, f[2]), at(t, f[3]))
				}
			}
			if got := map[bool]string{true: "dead", false: "alive"}[s.dead]; got != tt.want {
				t.Errorf("after %s it is %s, want %s: %+v", tt.events, got, tt.want, s)
			}
		})
	}
}

func TestOneProbeAtATimePassesWhileAllAreDead(t *testing.T) {
	for _, tt := range []struct{ name, events, want string }{
		{"all pass while one lives", "alive 0s, alive 0s", "passes passes"},
		{"a moment after who has shown it", "shut 0s, dead 249ms, dead 250ms", "no probe"},
		{"which may be at once where that took longer", "shut 0s, dead 900ms", "probe"},
		{"one alone", "shut 0s, dead 900ms, dead 901ms, dead 5s", "probe no no"},
		{"the next one when that is over and a moment has gone", "shut 0s, dead 900ms, over, dead 1149ms, dead 1150ms", "probe no probe"},
		{"however long it took", "shut 0s, dead 900ms, over, dead 1.8s", "probe probe"},
		{"and who began before it changes nothing", "shut 0s, dead 900ms, over, shut 100ms, dead 1149ms, dead 1150ms", "probe no probe"},
		{"all pass when one lives again", "shut 0s, dead 900ms, dead 901ms, over, alive 902ms, alive 903ms", "probe no passes passes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var g gate
			var got []string
			for event := range strings.SplitSeq(tt.events, ", ") {
				f := strings.Fields(event)
				switch f[0] {
				case "over":
					g.probing = false
				case "shut":
					g.shut(at(t, f[1]))
				default:
					pass, probe := g.pass(f[0] == "dead", at(t, f[1]))
					got = append(got, map[[2]bool]string{{true, true}: "probe", {true, false}: "passes", {false, false}: "no"}[[2]bool{pass, probe}])
				}
			}
			if said := strings.Join(got, " "); said != tt.want {
				t.Errorf("%s: %s, want %s", tt.events, said, tt.want)
			}
		})
	}
}

func TestTheLivingAreTriedFirst(t *testing.T) {
	for _, tt := range []struct {
		o    order
		n    int
		want []int
	}{
		{order{}, 1, []int{0, 0}},
		{order{start: 1}, 2, []int{1, 0, 1}},
		{order{dead: 0b1}, 2, []int{1, 0}},
		{order{start: 1, dead: 0b010}, 3, []int{2, 0, 1, 2}},
		{order{start: 2, dead: 0b101}, 3, []int{1, 2, 0}},
		{order{start: 1, dead: 0b111}, 3, []int{1, 2, 0}},
		{order{start: 39, dead: 1<<32 - 1}, 40, []int{39, 32, 33, 34, 35, 36, 37, 38, 0, 1}},
	} {
		var got []int
		for i := range tt.want {
			got = append(got, tt.o.at(i, tt.n))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v of %d: %d, want %d", tt.o, tt.n, got, tt.want)
		}
	}
}

// Where a client waits for its SERVFAIL, it does not ask its next nameserver.
func TestNobodyWaitsForAKubeDNSThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "refuses refuses silent")
		w.query(1, "a.")
		synctest.Wait()
		w.query(2, "edns.a.") // its refusal would be one too many for the kernel
		time.Sleep(249 * time.Millisecond)
		w.query(3, "a.")
		time.Sleep(time.Millisecond)
		w.query(4, "a.")
		synctest.Wait()
		w.query(5, "b.")
		w.expect(time.Second, `
			0s 10.0.0.1:1 refuses a.
			0s 10.0.0.1:2 refuses a.
			0s told 1 SERVFAIL a.
			0s msg="kube-dns does not answer: clients get SERVFAIL" servers=10.0.0.1:53
			0s told 2 SERVFAIL edns.a. edns ede 23
			249ms told 3 SERVFAIL a.
			250ms 10.0.0.1:3 silent a.
			250ms told 5 SERVFAIL b.
			650ms 10.0.0.1:4 silent a.
			1.15s told 4 SERVFAIL a.`)
	})
}

func TestOnlyProbesWaitForAKubeDNSThatIsSilentAndTheFirstReplyEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 110 * time.Millisecond // nothing that is asked then coincides with what happens
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "silent")
		ask := func(from, to int) {
			for n := from; n < to; n++ {
				w.query(n, fmt.Sprintf("%d.", n))
				time.Sleep(every)
			}
		}
		// waits are the queries that were told something later than they asked.
		waits := func() (out []string) {
			for line := range strings.Lines(w.transcript(0)) {
				f := strings.Fields(line)
				if len(f) < 4 || f[1] != "told" {
					continue
				}
				told, err := time.ParseDuration(f[0])
				n, err2 := strconv.Atoi(f[2])
				if err != nil || err2 != nil {
					t.Fatal(line, err, err2)
				}
				if asked := time.Duration(n) * every; told > asked {
					out = append(out, fmt.Sprintf("%s asked at %s waits %s", f[3], asked, told-asked))
				}
			}
			return out
		}
		ask(0, 33)
		var want []string
		for n := range 10 { // until two names have got nothing, at 1.01s
			want = append(want, fmt.Sprintf("SERVFAIL asked at %s waits 900ms", time.Duration(n)*every))
		}
		want = append(want, "SERVFAIL asked at 1.1s waits 900ms", "SERVFAIL asked at 2.09s waits 900ms")
		if got := waits(); !slices.Equal(got, want) {
			t.Errorf("%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		w.becomes("10.0.0.1", "answers") // at 3.63s
		ask(33, 50)
		if got, want := waits(), []string{"SERVFAIL asked at 3.08s waits 900ms"}; !slices.Equal(got, want) {
			t.Errorf("when it is back: %q, want the one probe: %q", got, want)
		}
		if got, want := w.relay.Stats(), (Stats{UDP: 50, ServFails: 37}); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	})
}

func TestOneSlowNameHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "silent silent silent silent answers")
		w.query(1, "slow.")
		w.query(3, "slow.")
		w.transcript(time.Second)
		w.query(5, "a.")
		w.query(7, "a.")
		w.expect(time.Second, `
			1s 10.0.0.1:5 answers a.
			1s 10.0.0.1:6 answers a.
			1s told 5 NOERROR a. 10.0.0.1
			1s told 7 NOERROR a. 10.0.0.1
			1s msg="kube-dns answers again" server=10.0.0.1:53 after=1s servfails=2`)
	})
}

func TestTheKubeDNSThatLivesIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1 10.0.0.2 10.0.0.3")
		w.becomes("10.0.0.1", "refuses")
		w.becomes("10.0.0.2", "refuses")
		w.becomes("10.0.0.3", "refuses")
		w.query(1, "a.")
		w.transcript(300 * time.Millisecond)
		w.becomes("10.0.0.3", "answers")
		w.query(2, "b.") // the probe
		synctest.Wait()
		w.becomes("10.0.0.3", "silent")
		w.becomes("10.0.0.1", "answers")
		w.query(3, "c.")
		w.expect(600*time.Millisecond, `
			300ms 10.0.0.1:4 refuses b.
			300ms 10.0.0.2:5 refuses b.
			300ms 10.0.0.3:6 answers b.
			300ms told 2 NOERROR b. 10.0.0.3
			300ms msg="kube-dns answers again" server=10.0.0.3:53 after=300ms servfails=1
			300ms 10.0.0.3:7 silent c.
			700ms 10.0.0.1:8 answers c.
			700ms told 3 NOERROR c. 10.0.0.1`)
	})
}

func TestAKubeDNSIsDeadOverTCPByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "silent")
		conn := w.connect()
		w.hear(conn)
		send(conn, frame(t, 1, "a."))
		send(conn, frame(t, 2, "b."))
		w.expect(time.Second, `
			0s 10.0.0.1 tcp silent a.
			0s 10.0.0.1 tcp silent b.
			400ms 10.0.0.1 tcp silent a.
			400ms 10.0.0.1 tcp silent b.
			900ms 10.0.0.1 tcp is renewed
			900ms msg="kube-dns does not answer: clients get SERVFAIL" servers=10.0.0.1:53
			900ms told 1 SERVFAIL a.
			900ms told 2 SERVFAIL b.`)
		w.becomes("10.0.0.1", "silent answers")
		send(conn, frame(t, 3, "c.")) // the probe
		send(conn, frame(t, 4, "d."))
		w.query(5, "over-udp.")
		w.expect(time.Second, `
			1s 10.0.0.1 tcp silent c.
			1s told 4 SERVFAIL d.
			1s 10.0.0.1:1 answers over-udp.
			1s told 5 NOERROR over-udp. 10.0.0.1
			1s msg="kube-dns answers again" server=10.0.0.1:53 after=1s servfails=3
			1.4s 10.0.0.1 tcp answers c.
			1.4s told 3 NOERROR c. 10.0.0.1`)
		send(conn, frame(t, 6, "e."))
		send(conn, frame(t, 7, "f."))
		w.expect(0, `
			2s 10.0.0.1 tcp answers e.
			2s 10.0.0.1 tcp answers f.
			2s told 6 NOERROR e. 10.0.0.1
			2s told 7 NOERROR f. 10.0.0.1`)
		_ = conn.Close()
		w.transcript(0)
	})
}

func TestARefusalOverTCPIsOfNoUseToTheNextQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "refuses refuses answers")
		conn := w.connect()
		w.hear(conn)
		send(conn, frame(t, 1, "a."))
		send(conn, frame(t, 2, "b."))
		time.Sleep(moment)
		send(conn, frame(t, 3, "c."))
		w.expect(0, `
			0s 10.0.0.1 tcp refuses a.
			0s 10.0.0.1 tcp refuses a.
			0s 10.0.0.1 tcp is renewed
			0s msg="kube-dns does not answer: clients get SERVFAIL" servers=10.0.0.1:53
			0s told 1 SERVFAIL a.
			0s told 2 SERVFAIL b.
			250ms 10.0.0.1 tcp answers c.
			250ms msg="kube-dns answers again" server=10.0.0.1:53 after=250ms servfails=2
			250ms told 3 NOERROR c. 10.0.0.1`)
		_ = conn.Close()
		w.transcript(0)
	})
}

// An outage is no time to use more memory.
func TestAQueryThatIsNotPassedOnCostsNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "refuses")
		w.query(1, "a.")
		w.transcript(0)
		pkt, out := pack(t, new(dns.Msg).SetQuestion("b.", dns.TypeA)), make([]byte, 0, 512)
		var reply []byte
		if n := testing.AllocsPerRun(100, func() { reply = w.relay.packet(w.where[0], netip.AddrPort{}, pkt, out) }); n != 0 || reply == nil {
			t.Errorf("%v allocations, said %x", n, reply)
		}
	})
}

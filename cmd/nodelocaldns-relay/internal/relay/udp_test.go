package relay

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestAQueryIsPassedOn(t *testing.T) {
	for _, tt := range []struct{ name, servers, one, two, query, want string }{
		{"and its reply back", "10.0.0.1", "answers", "", "a.", `
			0s 10.0.0.1:1 answers a.
			0s told 1 NOERROR a. 10.0.0.1`},
		{"truncated as it is", "10.0.0.1", "truncated", "", "edns.a.", `
			0s 10.0.0.1:1 truncated edns.a.
			0s told 1 NOERROR edns.a. tc edns`},
		{"and of a reply too long the client hears that it is", "10.0.0.1", "huge", "", "edns.a.", `
			0s 10.0.0.1:1 huge edns.a.
			0s told 1 NOERROR edns.a. tc edns`},
		{"and gets its question where the server leaves it out", "10.0.0.1", "no-question", "", "a.", `
			0s 10.0.0.1:1 no-question a.
			0s told 1 REFUSED a.`},
		{"once more when there is silence, from another port", "10.0.0.1", "silent answers", "", "a.", `
			0s 10.0.0.1:1 silent a.
			400ms 10.0.0.1:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.1`},
		{"to the other server when one is silent", "10.0.0.1 10.0.0.2", "silent", "answers", "a.", `
			0s 10.0.0.1:1 silent a.
			400ms 10.0.0.2:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.2`},
		{"and gets SERVFAIL when there is nothing but silence", "10.0.0.1 10.0.0.2", "silent", "silent", "edns.a.", `
			0s 10.0.0.1:1 silent edns.a.
			400ms 10.0.0.2:2 silent edns.a.
			900ms told 1 SERVFAIL edns.a. edns ede 23
			900ms msg="kube-dns does not answer: clients get SERVFAIL" servers="10.0.0.1:53 10.0.0.2:53"`},
		{"to the other server at once when one refuses", "10.0.0.1 10.0.0.2", "refuses", "answers", "a.", `
			0s 10.0.0.1:1 refuses a.
			0s 10.0.0.2:2 answers a.
			0s told 1 NOERROR a. 10.0.0.2`},
		{"and gets SERVFAIL at once when all refuse", "10.0.0.1 10.0.0.2", "refuses", "refuses", "a.", `
			0s 10.0.0.1:1 refuses a.
			0s 10.0.0.2:2 refuses a.
			0s told 1 SERVFAIL a.
			0s msg="kube-dns does not answer: clients get SERVFAIL" servers="10.0.0.1:53 10.0.0.2:53"`},
		{"once to a server that is named twice", "10.0.0.1 10.0.0.1 10.0.0.2", "refuses", "answers", "a.", `
			0s 10.0.0.1:1 refuses a.
			0s 10.0.0.2:2 answers a.
			0s told 1 NOERROR a. 10.0.0.2`},
		{"to the third server when two refuse", "10.0.0.1 10.0.0.2 10.0.0.3", "refuses", "refuses", "a.", `
			0s 10.0.0.1:1 refuses a.
			0s 10.0.0.2:2 refuses a.
			0s 10.0.0.3:3 answers a.
			0s told 1 NOERROR a. 10.0.0.3`},
		{"and is not given up when the second server refuses", "10.0.0.1 10.0.0.2", "silent", "refuses", "a.", `
			0s 10.0.0.1:1 silent a.
			400ms 10.0.0.2:2 refuses a.
			900ms told 1 SERVFAIL a.
			900ms msg="kube-dns does not answer: clients get SERVFAIL" servers="10.0.0.1:53 10.0.0.2:53"`},
		{"to the other server when one cannot be sent to", "10.0.0.1 10.0.0.2", "unsendable", "answers", "a.", `
			0s 10.0.0.1:1 unsendable a.
			0s 10.0.0.2:2 answers a.
			0s told 1 NOERROR a. 10.0.0.2`},
		{"and gets SERVFAIL when there is no way to a server", "10.0.0.1", "undialable", "", "edns.a.", `
			0s told 1 SERVFAIL edns.a. edns ede 23
			0s msg="kube-dns does not answer: clients get SERVFAIL" servers=10.0.0.1:53`},
		{"and gets SERVFAIL when there is no server", "", "", "", "edns.a.", `
			0s told 1 SERVFAIL edns.a. edns ede 22`},
		{"but never to ourselves", "169.254.20.10", "", "", "a.", `
			0s told 1 SERVFAIL a.`},
		{"and a reply with another id is none", "10.0.0.1", "wrong-id answers", "", "a.", `
			0s 10.0.0.1:1 wrong-id a.
			400ms 10.0.0.1:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.1`},
		{"and a reply to another question is none", "10.0.0.1", "wrong-question answers", "", "a.", `
			0s 10.0.0.1:1 wrong-question a.
			400ms 10.0.0.1:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.1`},
		{"and a forged reply does not keep the right one away", "10.0.0.1", "forged-first", "", "a.", `
			0s 10.0.0.1:1 forged-first a.
			0s told 1 NOERROR a. 10.0.0.1`},
		{"and a query is no reply", "10.0.0.1", "echoes answers", "", "a.", `
			0s 10.0.0.1:1 echoes a.
			400ms 10.0.0.1:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.1`},
		{"and what is no message is no reply", "10.0.0.1", "garbage answers", "", "a.", `
			0s 10.0.0.1:1 garbage a.
			400ms 10.0.0.1:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.1`},
		{"and two replies are one", "10.0.0.1", "twice", "", "a.", `
			0s 10.0.0.1:1 twice a.
			0s told 1 NOERROR a. 10.0.0.1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tt.servers)
				w.becomes("10.0.0.1", tt.one)
				w.becomes("10.0.0.2", tt.two)
				w.query(1, tt.query)
				w.expect(2*time.Second, tt.want)
			})
		})
	}
}

// What a stub resolver looks at before it believes a failure.
func TestWhatIsNoQueryIsAnsweredAsTheResolverDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		msg := func(n int, change func(m *dns.Msg)) {
			m := new(dns.Msg)
			m.SetQuestion("a.", dns.TypeA)
			m.Id = uint16(n)
			change(m)
			w.send(n, pack(t, m))
			synctest.Wait()
		}
		w.send(0, nil)
		w.send(0, []byte{0, 1, 2})
		msg(2, func(m *dns.Msg) { m.Response = true })
		msg(4, func(m *dns.Msg) { m.Question = nil })
		msg(6, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate })
		msg(8, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
		msg(10, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR })
		msg(12, func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) })
		w.expect(time.Second, `
			0s told 4 FORMERR
			0s told 6 NOTIMP
			0s told 8 REFUSED a.
			0s told 10 REFUSED a.
			0s told 12 BADSIG a. edns`) // the library's name for 16, which is BADVERS here
		if got := w.relay.Stats(); got != (Stats{}) {
			t.Errorf("counted %+v, want nothing", got)
		}
	})
}

// The first query after silence pays for it; those that follow do not.
func TestTheServerThatAnsweredLastIsAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1 10.0.0.2")
		w.becomes("10.0.0.1", "silent")
		w.query(1, "a.")
		w.expect(2*time.Second, `
			0s 10.0.0.1:1 silent a.
			400ms 10.0.0.2:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.2`)
		w.query(2, "b.")
		w.expect(2*time.Second, `
			2s 10.0.0.2:3 answers b.
			2s told 2 NOERROR b. 10.0.0.2`)
		w.becomes("10.0.0.1", "answers")
		w.becomes("10.0.0.2", "refuses")
		w.query(3, "c.")
		w.expect(2*time.Second, `
			4s 10.0.0.2:4 refuses c.
			4s 10.0.0.1:5 answers c.
			4s told 3 NOERROR c. 10.0.0.1`)
	})
}

// Nor does it cost a server its place that it was slow once.
func TestALateReplyIsAnAnswerToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1 10.0.0.2")
		w.becomes("10.0.0.1", "answers-after=500ms answers")
		w.becomes("10.0.0.2", "silent")
		w.query(1, "a.")
		w.expect(2*time.Second, `
			0s 10.0.0.1:1 answers-after=500ms a.
			400ms 10.0.0.2:2 silent a.
			500ms told 1 NOERROR a. 10.0.0.1`)
		w.query(2, "b.")
		w.expect(2*time.Second, `
			2s 10.0.0.1:3 answers b.
			2s told 2 NOERROR b. 10.0.0.1`)
	})
}

func TestAPortThatIsBrokenIsNotUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.onePort = true
		w.becomes("10.0.0.1", "unsendable answers")
		w.query(1, "a.")
		synctest.Wait()
		w.query(2, "b.")
		synctest.Wait()
		w.query(3, "c.")
		w.expect(0, `
			0s 10.0.0.1:1 unsendable a.
			0s 10.0.0.1:2 answers a.
			0s told 1 NOERROR a. 10.0.0.1
			0s 10.0.0.1:3 answers b.
			0s told 2 NOERROR b. 10.0.0.1
			0s 10.0.0.1:3 answers c.
			0s told 3 NOERROR c. 10.0.0.1`)
	})
}

// The kernel tells of a refusal late, to whoever comes next, and not of which.
func TestARefusalIsForThoseWhoWereThereAndFinalForNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.onePort = true
		w.becomes("10.0.0.1", "silent was-refused answers")
		w.query(1, "a.")
		synctest.Wait()
		w.query(2, "b.")
		w.expect(2*time.Second, `
			0s 10.0.0.1:1 silent a.
			0s 10.0.0.1:1 was-refused b.
			0s 10.0.0.1:1 answers b.
			0s told 2 NOERROR b. 10.0.0.1
			0s 10.0.0.1:2 answers a.
			0s told 1 NOERROR a. 10.0.0.1`)
		w.becomes("10.0.0.1", "answers-after=100ms refuses silent")
		w.query(3, "a.")
		synctest.Wait()
		w.query(4, "b.")
		w.expect(2*time.Second, `
			2s 10.0.0.1:3 answers-after=100ms a.
			2s 10.0.0.1:3 refuses b.
			2s 10.0.0.1:4 silent a.
			2s 10.0.0.1:4 silent b.
			2.1s told 3 NOERROR a. 10.0.0.1
			2.9s told 4 SERVFAIL b.`)
	})
}

// A name that kube-dns cannot resolve says nothing about kube-dns.
func TestOneNameWithoutAReplyIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "silent silent answers")
		w.query(1, "a.")
		time.Sleep(500 * time.Millisecond)
		w.query(2, "b.")
		w.expect(time.Second, `
			0s 10.0.0.1:1 silent a.
			400ms 10.0.0.1:2 silent a.
			500ms 10.0.0.1:3 answers b.
			500ms told 2 NOERROR b. 10.0.0.1
			900ms told 1 SERVFAIL a.`)
	})
}

// A server that drops every other query would else fill the journal.
func TestAnOutageIsNotSaidOverAndOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		said := 0
		for n := range 60 {
			w.becomes("10.0.0.1", []string{"silent", "answers"}[n%2])
			w.query(n, "a.")
			said += strings.Count(w.transcript(time.Second), "does not answer")
		}
		if said < 5 || said > 6 {
			t.Errorf("said %d times in a minute, want 5 or 6", said)
		}
	})
}

func TestQueriesThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "silent")
		for n := range maxWaiting + 10 {
			w.query(n, "edns.a.")
		}
		shed := w.transcript(0)
		if got := strings.Count(shed, "SERVFAIL edns.a. edns ede 14"); got != 10 {
			t.Errorf("%d were told SERVFAIL at once, want 10", got)
		}
		if got := strings.Count(w.transcript(time.Second), "900ms told "); got != maxWaiting {
			t.Errorf("%d were told SERVFAIL at the end of the budget, want %d", got, maxWaiting)
		}
		w.becomes("10.0.0.1", "answers")
		w.query(7, "a.")
		if got := w.transcript(0); !strings.Contains(got, "told 7 NOERROR") {
			t.Errorf("a query after that: %s", got)
		}
	})
}

// RFC 5452 9.2 wants several ports; the connection table, not too many.
func TestQueriesShareAFewSourcePorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		for n := range 10000 { // in 10 s
			w.query(n, fmt.Sprintf("%d.", n))
			time.Sleep(time.Millisecond)
		}
		w.transcript(0)
		w.mu.Lock()
		defer w.mu.Unlock()
		if most := 11 * portsPerServer; w.dialed < 10*portsPerServer-portsPerServer || w.dialed > most {
			t.Errorf("%d sockets were made in 10 s, want some %d", w.dialed, 10*portsPerServer)
		}
	})
}

func TestWhatIsReadBeforeTheEndIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "silent answers")
		w.query(1, "a.")
		synctest.Wait()
		w.stop()
		synctest.Wait()
		w.query(2, "b.") // the next process's
		w.expect(2*time.Second, `
			0s 10.0.0.1:1 silent a.
			400ms 10.0.0.1:2 answers a.
			400ms told 1 NOERROR a. 10.0.0.1
			400ms 10.0.0.1 tcp is closed`)
		<-w.done
		if got := len(w.where[0].queue); got != 1 {
			t.Errorf("%d queries are left to the next process, want 1", got)
		}
	})
}

func TestOtherServersTakeOverWithoutALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1 10.0.0.2")
		w.becomes("10.0.0.1", "silent")
		w.query(1, "a.")
		synctest.Wait()
		w.ask("10.0.0.3 169.254.20.10 10.0.0.3 10.0.0.2")
		w.query(2, "b.")
		w.expect(2*time.Second, `
			0s 10.0.0.1:1 silent a.
			0s 10.0.0.1 tcp is closed
			0s 10.0.0.3:2 answers b.
			0s told 2 NOERROR b. 10.0.0.3
			400ms 10.0.0.2:3 answers a.
			400ms told 1 NOERROR a. 10.0.0.2`)
	})
}

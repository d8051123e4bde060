package relay

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// send writes to the relay without waiting for it to read.
func send(conn net.Conn, b []byte) {
	go func() { _, _ = conn.Write(b) }()
	synctest.Wait()
}

func TestAQueryOverTCPIsPassedOnOverTCP(t *testing.T) {
	for _, tt := range []struct{ name, servers, one, two, want string }{
		{"and its reply back", "10.0.0.1", "answers", "", `
			0s 10.0.0.1 tcp answers a.
			0s told 7 NOERROR a. 10.0.0.1`},
		{"and gets its question where the server leaves it out", "10.0.0.1", "no-question", "", `
			0s 10.0.0.1 tcp no-question a.
			0s told 7 REFUSED a.`},
		{"however long the reply", "10.0.0.1", "huge", "", `
			0s 10.0.0.1 tcp huge a.
			0s told 7 NOERROR a.` + strings.Repeat(" 10.0.0.1", 300)},
		{"once more when there is silence", "10.0.0.1", "silent answers", "", `
			0s 10.0.0.1 tcp silent a.
			400ms 10.0.0.1 tcp answers a.
			400ms told 7 NOERROR a. 10.0.0.1`},
		{"and the first server's reply is still waited for", "10.0.0.1 10.0.0.2", "answers-after=600ms", "silent", `
			0s 10.0.0.1 tcp answers-after=600ms a.
			400ms 10.0.0.2 tcp silent a.
			600ms told 7 NOERROR a. 10.0.0.1`},
		{"to the other server at once when one refuses", "10.0.0.1 10.0.0.2", "refuses", "answers", `
			0s 10.0.0.1 tcp refuses a.
			0s 10.0.0.2 tcp answers a.
			0s told 7 NOERROR a. 10.0.0.2`},
		{"and gets SERVFAIL at once when all refuse", "10.0.0.1 10.0.0.2", "refuses", "refuses", `
			0s 10.0.0.1 tcp refuses a.
			0s 10.0.0.2 tcp refuses a.
			0s 10.0.0.1 tcp is renewed
			0s 10.0.0.2 tcp is renewed
			0s msg="kube-dns does not answer: clients get SERVFAIL" servers="10.0.0.1:53 10.0.0.2:53"
			0s told 7 SERVFAIL a.`},
		{"and gets SERVFAIL when there is nothing but silence", "10.0.0.1", "silent", "", `
			0s 10.0.0.1 tcp silent a.
			400ms 10.0.0.1 tcp silent a.
			900ms msg="kube-dns does not answer: clients get SERVFAIL" servers=10.0.0.1:53
			900ms told 7 SERVFAIL a.`},
		{"and gets SERVFAIL when there is no server", "", "", "", `
			0s told 7 SERVFAIL a.`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tt.servers)
				w.becomes("10.0.0.1", tt.one)
				w.becomes("10.0.0.2", tt.two)
				conn := w.connect()
				w.hear(conn)
				send(conn, frame(t, 7, "a."))
				w.expect(2*time.Second, tt.want)
				if got := w.relay.Stats().TCP; got != 1 {
					t.Errorf("counted %d queries, want 1", got)
				}
				_ = conn.Close()
				w.transcript(0)
			})
		})
	}
}

// One name that takes its time does not hold up those behind it (RFC 7766 7).
func TestQueriesOfOneConnectionDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "answers-after=300ms answers")
		conn := w.connect()
		w.hear(conn)
		send(conn, frame(t, 1, "a."))
		send(conn, frame(t, 2, "b."))
		w.expect(time.Second, `
			0s 10.0.0.1 tcp answers-after=300ms a.
			0s 10.0.0.1 tcp answers b.
			0s told 2 NOERROR b. 10.0.0.1
			300ms told 1 NOERROR a. 10.0.0.1`)
		_ = conn.Close()
		w.transcript(0)
	})
}

func TestAConnectionIsClosedThatIsIdleOrBreaksTheProtocol(t *testing.T) {
	for _, tt := range []struct {
		name string
		sent []byte
		at   time.Duration
	}{
		{"nothing sent", nil, idleTimeout},
		{"half a query", []byte{0, 30, 1, 2, 3}, idleTimeout},
		{"a query too short to be one", []byte{0, 11, 1, 2, 3}, 0},
		{"a query too long for any", []byte{0xFF, 0xFF, 1, 2, 3}, 0},
		{"a reply", []byte{0, 12, 1, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "10.0.0.1")
				conn := w.connect()
				w.hear(conn)
				send(conn, tt.sent)
				w.expect(time.Minute, fmt.Sprintf("%s closed: EOF", tt.at))
			})
		})
	}
}

// It has a connection of its own to be slow on.
func TestAClientThatDoesNotReadHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		slow, quick := w.connect(), w.connect()
		send(slow, frame(t, 1, "slow."))
		w.transcript(0)
		w.hear(quick)
		send(quick, frame(t, 7, "a."))
		w.expect(0, `
			0s 10.0.0.1 tcp answers a.
			0s told 7 NOERROR a. 10.0.0.1`)
		_ = quick.Close()
		w.transcript(writeTimeout)
		if rest, err := io.ReadAll(slow); err != nil || len(rest) > 0 {
			t.Errorf("got %x, %v, want the slow one closed after %s", rest, err, writeTimeout)
		}
		if n := w.relay.clients.streamed; n != 0 {
			t.Errorf("%d queries hold room", n)
		}
	})
}

func TestConnectionsAreBoundedAndTheIdleOnesMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.quiet = true
		var open []net.Conn
		for range maxClients {
			conn := w.connect()
			open = append(open, conn)
			synctest.Wait()
		}
		w.quiet = false
		early := w.connect()
		w.hear(early)
		w.expect(0, "0s closed: EOF")
		time.Sleep(idleEnough)
		late := w.connect()
		w.hear(late)
		send(late, frame(t, 7, "a."))
		w.expect(0, `
			1s 10.0.0.1 tcp answers a.
			1s told 7 NOERROR a. 10.0.0.1`)
		closed := 0
		for _, conn := range open {
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); err == io.EOF { //nolint:errorlint // as net.Pipe says it
				closed++
			}
			_ = conn.Close()
		}
		if closed != 1 {
			t.Errorf("%d were closed to make room, want 1", closed)
		}
		_ = late.Close()
		w.transcript(0)
	})
}

func TestQueriesOverTCPThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "silent")
		var all []net.Conn
		for n := range maxStreamed/maxPending + 1 {
			conn := w.connect()
			all = append(all, conn)
			w.hear(conn)
			for range maxPending {
				send(conn, frame(t, n, "a."))
			}
		}
		got := w.transcript(0)
		if n := strings.Count(got, "told "); n != maxPending || !strings.Contains(got, fmt.Sprintf("0s told %d SERVFAIL", len(all)-1)) {
			t.Errorf("%d were told something at once, want %d, the last ones", n, maxPending)
		}
		if n := strings.Count(w.transcript(time.Second), "900ms told "); n != maxStreamed {
			t.Errorf("%d were told SERVFAIL at the end of the budget, want %d", n, maxStreamed)
		}
		for _, conn := range all {
			_ = conn.Close()
		}
		w.transcript(0)
	})
}

func TestWhatIsReadOverTCPBeforeTheEndIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "10.0.0.1")
		w.becomes("10.0.0.1", "answers-after=300ms")
		conn := w.connect()
		w.hear(conn)
		send(conn, frame(t, 1, "a."))
		w.stop()
		w.expect(time.Second, `
			0s 10.0.0.1 tcp answers-after=300ms a.
			300ms told 1 NOERROR a. 10.0.0.1
			300ms closed: EOF
			300ms 10.0.0.1 tcp is closed`)
	})
}

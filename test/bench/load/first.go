package load

import (
	"context"
	"net"
	"time"
)

// firstEvery is how often First asks.
const firstEvery = 500 * time.Microsecond

// First asks a server over UDP, again and again, until it has the right answer once.
// The connection's read deadline is changed.
func First(ctx context.Context, conn net.Conn, anyAddress bool) error {
	q := question{number: 1<<24 - 1} // of no other plan
	query := appendQuery(nil, 1, q)
	reply := make([]byte, maxReply)
	for ctx.Err() == nil {
		_, _ = conn.Write(query) // nobody is there yet: the ICMP error is about the one before
		for end := time.Now().Add(firstEvery); time.Now().Before(end); {
			if err := conn.SetReadDeadline(end); err != nil {
				return err
			}
			if n, err := conn.Read(reply); err == nil && q.judge(reply[:n], anyAddress) == "" {
				return nil
			}
		}
	}
	return ctx.Err()
}

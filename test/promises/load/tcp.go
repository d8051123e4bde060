package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// tcp asks over TCP. A query whose connection breaks is sent again on the next
// one, as a client does that still wants its answer.
type tcp struct {
	*recorder
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	kept []*stream
}

// reconnectAfter is the pause before a connection is tried again that could not
// be made: a client that spins would take the processor from the server.
const reconnectAfter = 10 * time.Millisecond

func newTCP(r *recorder) *tcp {
	t := &tcp{recorder: r}
	t.ctx, t.stop = context.WithCancel(context.Background())
	for range r.plan.Sockets {
		s := &stream{tcp: t, ids: newIDs()}
		t.kept = append(t.kept, s)
		t.wg.Go(s.run)
	}
	return t
}

func (t *tcp) close() {
	t.stop()
	t.wg.Wait()
}

func (t *tcp) send(i int) {
	if t.alone(i) {
		s := &stream{tcp: t, ids: newIDs(), fresh: true}
		s.id(i)
		t.wg.Go(s.run)
		return
	}
	t.kept[i%len(t.kept)].send(i)
}

// A stream is one connection at a time, and what waits for its answer on it.
type stream struct {
	*tcp
	fresh bool // and ends with its only query

	smu sync.Mutex // never taken with the recorder's held
	ids
	conn net.Conn // nil while there is none
}

// id gives a query its id on this stream.
func (s *stream) id(i int) uint16 {
	s.smu.Lock()
	defer s.smu.Unlock()
	id := s.take(i)
	s.mu.Lock()
	s.records[i].ID = id
	s.mu.Unlock()
	return id
}

func (s *stream) send(i int) {
	id := s.id(i)
	s.smu.Lock()
	defer s.smu.Unlock()
	if s.conn != nil {
		s.write(s.conn, i, id)
	}
}

// write sends a query. If that fails, so does the reader, and it is sent again.
func (s *stream) write(c net.Conn, i int, id uint16) {
	s.mu.Lock()
	s.records[i].Tries++
	s.records[i].Port = uint16(c.LocalAddr().(*net.TCPAddr).Port)
	s.mu.Unlock()
	wire := s.query(i, id)
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...))
}

// run keeps the stream connected until the end, or until its only query is
// answered.
func (s *stream) run() {
	var d net.Dialer
	for s.ctx.Err() == nil && s.wanted() {
		ctx, cancel := context.WithTimeout(s.ctx, s.plan.Timeout)
		c, err := d.DialContext(ctx, "tcp", s.plan.Server.String())
		cancel()
		if err != nil {
			select {
			case <-s.ctx.Done():
			case <-time.After(reconnectAfter):
			}
			continue
		}
		end := context.AfterFunc(s.ctx, func() { c.Close() })
		s.connected(c)
		s.read(c)
		s.smu.Lock()
		s.conn = nil
		s.smu.Unlock()
		end()
		c.Close()
	}
}

// wanted says whether a fresh stream still has something to wait for.
func (s *stream) wanted() bool {
	s.smu.Lock()
	defer s.smu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, i := range s.pending {
		if time.Since(s.begin)-s.records[i].At > s.plan.Timeout {
			delete(s.pending, id)
		}
	}
	return !s.fresh || len(s.pending) > 0
}

// connected sends what waits on a new connection, the oldest first.
func (s *stream) connected(c net.Conn) {
	s.smu.Lock()
	defer s.smu.Unlock()
	s.conn = c
	var waiting []uint16
	for id := range s.pending {
		waiting = append(waiting, id)
	}
	slices.SortFunc(waiting, func(a, b uint16) int { return s.pending[a] - s.pending[b] })
	for _, id := range waiting {
		s.write(c, s.pending[id], id)
	}
}

// read reads replies until the connection ends.
func (s *stream) read(c net.Conn) {
	var size [2]byte
	for {
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		reply := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, reply); err != nil {
			return
		}
		at := time.Since(s.begin)
		s.smu.Lock()
		i, waited := 0, false
		if len(reply) >= 2 {
			id := binary.BigEndian.Uint16(reply)
			i, waited = s.pending[id]
			delete(s.pending, id)
		}
		s.smu.Unlock()
		s.mu.Lock()
		if waited {
			outcome, note := s.name(i).judge(reply)
			if note != "" {
				note = fmt.Sprintf("over TCP: %s", note)
			}
			s.end(i, outcome, at-s.records[i].At, note)
		} else {
			s.strays++
		}
		s.mu.Unlock()
		if s.fresh {
			return
		}
	}
}

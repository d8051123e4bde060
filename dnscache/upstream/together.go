package upstream

// Together are questions that came at the same time: what they have queued on a
// connection goes out with one write. The zero value is ready for use, by one goroutine.
type Together struct{ conns []*conn }

// send has what is queued on c written: now, or with Send.
func (t *Together) send(c *conn) {
	if t == nil {
		c.send()
		return
	}
	t.conns = append(t.conns, c)
}

// Send writes what is queued. It does not wait.
func (t *Together) Send() {
	for i, c := range t.conns {
		c.send()
		t.conns[i] = nil
	}
	t.conns = t.conns[:0]
}

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

// A Round is the replies that were read from a connection at once.
type Round struct {
	// Left is what somebody who was answered has left to be done, once, when all of
	// them have been; nil for nothing.
	Left interface{ Send() }
}

func (r *Round) end() {
	if left := r.Left; left != nil {
		r.Left = nil
		left.Send()
	}
}

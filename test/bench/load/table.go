package load

// A table has the queries of one socket that wait for a reply, by their id. Ids
// are used in turn, so the oldest is known.
type table struct {
	slots  [1 << 16]slot
	next   uint16
	oldest uint16 // none before it waits
	open   int
}

// A slot is one query.
type slot struct {
	at int64 // when it was sent, in Unix ns; 0 for none
	q  question
}

// take gives a query an id. An earlier one with that id is returned, if it still
// waits: it will not be told from this one any more.
func (t *table) take(q question, at int64) (id uint16, earlier slot) {
	id = t.next
	t.next++
	earlier = t.slots[id]
	if earlier.at == 0 {
		t.open++
	} else {
		t.oldest = id + 1
	}
	t.slots[id] = slot{at, q}
	return id, earlier
}

// done returns the query that a reply with this id is to, which then does not wait
// any more; at is 0 where there is none.
func (t *table) done(id uint16) slot {
	s := t.slots[id]
	if s.at != 0 {
		t.slots[id] = slot{}
		t.open--
	}
	return s
}

// expire returns one query that was sent before that time and still waits, which
// then does not any more; at is 0 where there is none.
func (t *table) expire(before int64) slot {
	for ; t.open > 0; t.oldest++ {
		if s := t.slots[t.oldest]; s.at >= before {
			break
		} else if s.at != 0 {
			return t.done(t.oldest)
		}
	}
	return slot{}
}

package dnscache

import "net/netip"

// holders are the clients for whom flights were begun, and those flights; what more
// than one of them waits for is of several, who count as one more. Where all
// flights are taken a client that has less than its even share gets one of another
// client that has the most, and else one of its own: the oldest, whose client has
// waited longest and is told SERVFAIL, so that it asks its next nameserver.
//
// It is guarded by flights.mu.
type holders map[netip.Addr]*holder

// several has the flights that more than one client waits for.
var several netip.Addr

// A holder is a client's flights, in the order in which they were begun.
type holder struct {
	n              int
	oldest, newest *flight
}

// add notes a flight that was begun for fl.client.
func (h holders) add(fl *flight) {
	of := h[fl.client]
	if of == nil {
		of = &holder{}
		h[fl.client] = of
	}
	if fl.older = of.newest; fl.older != nil {
		fl.older.newer = fl
	} else {
		of.oldest = fl
	}
	of.newest = fl
	of.n++
}

// remove takes one out that was added.
func (h holders) remove(fl *flight) {
	of := h[fl.client]
	if fl.older != nil {
		fl.older.newer = fl.newer
	} else {
		of.oldest = fl.newer
	}
	if fl.newer != nil {
		fl.newer.older = fl.older
	} else {
		of.newest = fl.older
	}
	fl.older, fl.newer = nil, nil
	if of.n--; of.n == 0 {
		delete(h, fl.client)
	}
}

// victim is the flight that makes room for one of a client, where there are so many;
// nil where there is none.
func (h holders) victim(client netip.Addr, of int) *flight {
	if own := h[client]; own != nil && own.n*len(h) >= of {
		return own.oldest
	}
	var most *holder
	for _, other := range h {
		if most == nil || other.n > most.n {
			most = other
		}
	}
	if most == nil {
		return nil
	}
	return most.oldest
}

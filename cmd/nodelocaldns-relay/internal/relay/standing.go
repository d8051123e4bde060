package relay

import (
	"bytes"
	"time"

	"nodelocaldns/dnscache/wire"
)

const (
	// moment is how long nobody must have been answered by a server for a refusal
	// to be believed: of two pods behind one address of kube-dns one may be gone,
	// and every other query is refused until the node's rules know. It is also how
	// long a server that has been found dead is at least left alone, and so how
	// often a dead one is asked. kube-dns that is back is found so soon; four
	// queries a second trouble nobody.
	moment = 250 * time.Millisecond
	// countedDead is how many servers are remembered as dead, of as many as a
	// kubelet can name to pods.
	countedDead = 32
)

// A standing is what is known of one server over one protocol by what became of
// queries. The zero value is that of a server that nobody has asked. A server is
// dead when it has left queries without a reply and has answered nobody meanwhile;
// its next reply, to whomever, makes it alive.
type standing struct {
	dead     bool
	answered time.Time // when it last answered anybody

	// The one query that it has left without a reply since, in its whole time: it
	// may be the name that is slow.
	silent   []byte // the query, nil for none
	silentAt time.Time
}

// reply notes that the server answered at now.
func (s *standing) reply(now time.Time) { *s = standing{answered: now} }

// refusal notes that at now a query that began at began has failed, and that the
// server has refused it.
func (s *standing) refusal(began, now time.Time) {
	s.dead = s.dead || s.answered.Before(began) && now.Sub(s.answered) >= moment
}

// silence notes that at now the query msg that began at began has failed, and that
// the server has said nothing to it. The first such query is no evidence, nor is
// its other address family: somebody asks for the name again, or for another one.
func (s *standing) silence(msg []byte, began, now time.Time) {
	switch {
	case s.dead || !s.answered.Before(began):
	case s.silent == nil:
		s.silent, s.silentAt = msg, now
	case !began.Before(s.silentAt), !sameName(s.silent, msg):
		s.dead = true
	}
}

// sameName says whether two well-formed queries are for one name, spelled alike.
func sameName(a, b []byte) bool {
	var p, q wire.Query
	wire.ParseQuery(a, &p)
	wire.ParseQuery(b, &q)
	return bytes.Equal(p.Name(), q.Name())
}

// A gate lets queries pass while a server is alive, and a probe now and then while
// none is: one at a time, and one in a moment. The zero value is open.
type gate struct {
	probing bool
	last    time.Time // when the last probe began, or what showed that all are dead
}

// pass says at now whether a query may be passed on, and whether it is a probe,
// whose end is to be told.
func (g *gate) pass(dead bool, now time.Time) (pass, probe bool) {
	switch {
	case !dead:
		return true, false
	case g.probing || now.Sub(g.last) < moment:
		return false, false
	}
	g.probing, g.last = true, now
	return true, true
}

// shut notes that a query that began at began has shown that all are dead.
func (g *gate) shut(began time.Time) {
	if began.After(g.last) {
		g.last = began
	}
}

// An order is that in which a query is passed on to servers, by index: those that
// live, then the dead ones.
type order struct {
	start int    // the first, if it lives
	dead  uint32 // a bit each
}

// at is the index of the server of try i, of n servers.
func (o order) at(i, n int) int {
	i %= n
	for _, dead := range []bool{false, true} {
		for j := range n {
			at := (o.start + j) % n
			if (at < countedDead && o.dead>>at&1 == 1) != dead {
				continue
			}
			if i == 0 {
				return at
			}
			i--
		}
	}
	return o.start // not reached: each of the n is dead or not
}

// Package upstream asks other servers.
//
// A [Group] is the servers of one zone. It asks one of them, asks another one
// beside it when that takes longer than replies lately took, and knows when
// nobody answers any more. A [Server] is asked over [UDP], or over a [Pool] of
// TCP or TLS connections.
//
// # Tries
//
// A question has up to three tries within twice the learnt delay (see latency),
// which is less than 100 ms for any server near by, and two later ones over UDP,
// for a network that loses a tenth of all packets. Tries that only a delay
// caused are bounded in their share of all questions (see budget), so that
// a server that is slow because it has too much to do does not get more.
//
// # Pipelining
//
// A server built on miekg/dns, as CoreDNS is, answers the questions of one
// connection in turn, so a slow one holds up those behind it. RFC 7766 6.2.1.1
// has servers reply out of order, and such a server saves us connections. They
// cannot be told apart by asking. So a Pool has one question in flight on each
// connection until it has seen a reply overtake another one.
//
// To see it, it takes a connection whose reply is late already, and sends a
// copy of another question behind the one that waits: a copy, since the
// question itself goes its usual way, on a connection of its own. If
// the copy is answered first, and then the other one, the server replies out of
// order: one that had dropped a query would have answered the next one, too. If it
// does not, nobody waited for the copy, and the price was one query more for the
// server. There is at most one copy in copyEvery, and only where a reply was late. What was
// seen holds for outOfOrderFor and is seen again while it is made use of; a
// server that was replaced by one that answers in turn is used as such when
// that has run out, and until then a reply that holds up others costs them a hedged
// try, which goes to another connection.
//
// Questions that come together (see [Together]) are another matter. Where one read
// brings more than a few, those beyond share connections, up to maxTogether on one,
// though the server answers in turn: a write for each would cost more than all else of
// a question. That is done only while replies come so quickly that the last of them
// waits for a few milliseconds, and for none is waited longer than the learnt delay.
//
// # Memory and goroutines
//
// A connection has one goroutine, which reads, and in which replies are given to those
// who asked. Queries are written by whoever has one to send, as far as that does not
// wait; those that come up while one is being written go out together in the next
// write. A question has no goroutine and no timer of its own, but for one that is
// asked over UDP.
package upstream

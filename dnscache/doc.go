// Package dnscache is the resolver: it answers the queries of the pods on one
// node from a cache and asks kube-dns, and whoever else it is told to ask, for
// the rest.
//
// # The packet path
//
// A packet is read by the goroutine that owns its socket ([Server.Serve]),
// parsed (wire.ParseQuery) and looked up (wire.AppendKey, cache.Get). A fresh
// entry is answered there and then: the stored records are copied behind the
// client's own question and their TTLs counted down (cache.Entry.AppendReply).
// That path allocates nothing, takes one read lock for the length of a map
// lookup, and never waits. An entry that has expired is answered there, too, where
// upstream is known not to answer (stale.go).
//
// Everything else joins a flight: one upstream question for a key and all who
// wait for it. It finds the route (longest suffix) and asks the route's group of
// servers. It has no goroutine: whoever reads the reply decides what of it may be kept
// (cache.Admit), keeps it, and answers.
//
// # What holds
//
//   - Every query that is one gets a reply, within the budget of 900 ms:
//     SERVFAIL where upstream has none, because clients then ask their next
//     nameserver at once, and wait five seconds where there is silence.
//   - One key is asked upstream once at a time, however many ask for it.
//   - No reply is served past its TTL or its zone's cap, unless upstream does not
//     answer; none that upstream has deleted once it answers again.
//   - Memory is bounded: entries by a byte budget, flights, waiters and
//     connections by number.
//   - A loop of forwarders is reported and answered with SERVFAIL. Nothing
//     that comes over the network ends the process.
//
// # Standards
//
// What is promised of each of these, a conversation in testdata/scenario that names
// it shows: RFC 1035 and 2181 (messages, TTLs, whose word counts), 2308, 8020 and 9520
// (denials and failures), 3597 (unknown types), 4035 and 6840 (DNSSEC passed on), 5452
// (forged replies), 6891 (EDNS), 7766 (TCP), 7873 (cookies), 8482 (ANY), 8767 (stale
// replies), 8914 (extended errors) and 9460 (SVCB, HTTPS).
package dnscache

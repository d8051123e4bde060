// Package relay passes DNS queries on to kube-dns, and says SERVFAIL where
// kube-dns does not answer. It stands in for the resolver while that cannot run,
// on the resolver's own sockets: it has no cache and no configuration, so that
// there is little in it that can break.
//
// # What holds
//
//   - Every query that is one gets a reply within [Budget]: SERVFAIL where
//     kube-dns has none in time, is not known, or too many queries wait for it.
//     Clients then ask their next nameserver at once; silence, and for some of
//     them a refused port, costs them five seconds.
//   - A query is tried twice, at two servers where there are two, over UDP from
//     two source ports. A server that refuses costs no wait, and the one that
//     answered last is asked first.
//   - A server that leaves queries without a reply, and answers nobody meanwhile,
//     is dead until its next reply. Where all are dead, nobody waits for them:
//     queries get SERVFAIL at once, but for a probe, one at a time and at most
//     four a second, which is the next query that comes. One slow name makes no
//     server dead: it takes a second name, or somebody who asks again.
//   - A reply counts only from the server that was asked, to the port that asked,
//     with the random id and the question of the query (RFC 5452 3).
//   - Nothing is passed on to an address that is listened on. Where kube-dns
//     itself forwards to us, what goes round is bounded by the number of queries
//     that may wait, and ends with SERVFAIL.
//   - Memory is bounded, at some 25 MB: 1,000 queries of up to 4 KiB over UDP; 256
//     TCP clients, with 128 queries and replies of up to 64 KiB under way between
//     them; some 64 source ports of 4 KiB each.
//   - Sockets are only borrowed: at the end nothing more is read from them, what
//     was read is answered, and what lies in them is left to the next process.
//
// # Source ports
//
// Queries leave by a few connected UDP sockets, sixteen for each server, which
// are shared at random and replaced after a second (RFC 5452 9.2 asks for several
// unpredictable ports at the same time, and unpredictable ids). A socket for each
// query would be simpler, and the kernel would tell replies apart; but each one
// is an entry in the connection table of the node, which kube-proxy's translation
// of kube-dns's address needs, for 30 s and more: 10,000 queries a second would
// put 300,000 entries into a table that may hold 131,072, and a full table costs
// the node more than its DNS. Here it is 16 new ones a second, whatever the rate.
// One socket for good would stay with the kube-dns pod that the kernel picked for
// it first, dead or alive; after a second another one may be picked. It is the
// cheaper way too: on two cores 17 µs of CPU a query, where a socket for each used
// 45.
package relay

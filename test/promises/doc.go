// Package promises attacks nodelocaldns on booted nodes, and counts what the
// pods there feel of it: kills, restarts, hangs, broken files, reboots, and
// others who take away what is ours. On bare nodes, which are network namespaces
// with the resolver alone, it has kube-dns fail, the network lose packets, and a
// pod ask for random names. "make promises" runs it, and prints what it measured as
// tables.
//
// The queries come from the network namespace of a pod. [nodelocaldns/test/promises/load]
// sends them at a fixed rate and has a record of each; the programs in clients
// and cmd/lookup look names up as glibc, musl, c-ares and Go do, with the two
// name servers that the kubelet gives to pods.
//
// # What fails
//
// Counts fail a test: a query that is lost where none may be, a wrong answer
// anywhere. Times are printed beside what was promised, and the verdict "late"
// says that one was not kept; they fail a test at four times that, but for those
// of a few milliseconds, and at ten times in a quick run, in which tests run beside
// each other. On two processors that also run a control plane, a load
// generator and perhaps another build, the longest of 30,000 latencies says as
// much about the machine as about the resolver: the tables say how late the load
// generator was with its own queries, and when a reply came over UDP is told by the
// kernel.
package promises

// Package host changes this node and changes it back.
//
// A change is a [step.Step]: it checks, applies and undoes one thing. A plan is
// a list of steps in order. The engine runs a plan forward and back and keeps a
// record of each step in a journal, written before the change and dropped after
// it was undone, so that the power may go at any instant: one more apply or
// rollback converges. Nothing outside Apply and Undo of a step, or a method of
// a window, writes to the node; the program's own files, in RunDir and
// StateDir, are the journals, the locks, the facts for the resolver, the off
// switch, and what was refused.
//
// The words:
//
//	step      one reversible change
//	plan      steps in order
//	finding   result of a check: satisfied, pending or blocked
//	record    what we may have changed, and what was there before
//	journal   the durable set of records
//	before    what was there before our first write
//	after     what we may have left
//	drift     the record is done but the check is not satisfied: somebody else wrote
//	leftover  a record of a step that the configuration no longer has
//	window    the bracket round steps that disturb pods
//	guard     what keeps the runtime plan true
//	gate      what ends a rollback, when no pod names us any more
//
// The runtime plan, whose effects end with a reboot and whose journal is in
// /run for the same reason:
//
//	link/<interface>  our addresses on a device of ours, else on lo
//	notrack/ipv4      chains NODELOCALDNS in raw and filter, one jump a hook
//	notrack/ipv6      the same with ip6tables, if there is an IPv6 address
//	sysctl/<key>      conntrack sizes and timeouts: buckets first, then as configured
//
// The durable plan, which outlasts a reboot and is of files, so that it can be
// made in an image too; its journal is in /var/lib. Where systemd runs, our units
// are started and stopped, and a kubelet that runs is restarted in a window:
//
//	unit/nodelocaldns    our units, where nobody has brought them, enabled
//	kubelet/cluster-dns  one file that makes the kubelet's pods ask us first; in
//	                     window/kubelet, which restarts a kubelet that runs and
//	                     sees that it stays, forward and back
//
// A rollback begins with the kubelet. What answers pods, which is all the rest,
// is taken back by a [Gate], once no pod of the node names us.
//
// The steps of the runtime plan do not build on one another. One that fails is
// reported and the rest is done; a sysctl that is blocked is no failure of the
// plan.
package host

#!/bin/sh
# Run before the package's files go, by dpkg ("remove") and by rpm (how many
# versions are left). Before an upgrade it does nothing: nothing is stopped for
# one.
#
# It refuses while something on the node is still changed: pods ask an address
# that nobody would answer, and nobody could take the changes back.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

say() { echo "nodelocaldns: $*" >&2; }

# A journal without records leaves no file, so that one that is there means
# changes, whether or not there is a program that can read it.
for journal in /var/lib/nodelocaldns/journal.json /run/nodelocaldns/journal.json; do
	[ -e "$journal" ] || continue
	if [ "$NODELOCALDNS_REMOVE" = force ]; then
		say "warning: what $journal records stays as it is on this node"
		continue
	fi
	say "error: not removed: this node is still changed, as $journal records"
	say "hint: nodelocaldns rollback takes it back, then remove the package;" \
		"while pods still ask here it says draining, and nodelocaldns rollback --wait 1h waits for them"
	say "hint: NODELOCALDNS_REMOVE=force in the environment removes the package and leaves all that as it is"
	exit 1
done

# Guard goes first: it starts others. One that does not stop in time is killed,
# and a package that cannot be removed helps nobody.
set -- nodelocaldns.socket nodelocaldns.service nodelocaldns-relay.service nodelocaldns-kubelet.service nodelocaldns-resume.service
systemctl --quiet --no-reload disable nodelocaldns-guard.service "$@" || true
if [ -d /run/systemd/system ]; then
	systemctl stop nodelocaldns-guard.service || true
	systemctl stop "$@" || true
fi

#!/bin/sh
# Run when the package's files are gone, by dpkg ("remove", and "purge" when the
# configuration is to go too) and by rpm (how many versions are left).
set -e

case "$1" in
remove | purge | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	# Of units that are gone nobody wants to know that they failed once.
	systemctl reset-failed 'nodelocaldns*' || true
fi

# The off switch of a rollback is no longer of use, and would keep the package
# from working when it is installed again. But records are kept as long as what
# they record is: with the package installed again, nodelocaldns rollback takes
# it back.
[ "$1" != purge ] || rm -rf /etc/nodelocaldns
for dir in /var/lib/nodelocaldns /run/nodelocaldns; do
	if [ -e "$dir/journal.json" ] && ! [ "$1:$NODELOCALDNS_REMOVE" = purge:force ]; then
		echo "nodelocaldns: warning: $dir stays: it records what is still changed on this node" >&2
	else
		rm -rf "$dir"
	fi
done
# systemd leaves the link to the directory that the cache was in.
rm -rf /run/nodelocaldns-resolver

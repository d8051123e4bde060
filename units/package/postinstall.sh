#!/bin/sh
# Run when the package's files are there, by dpkg ("configure" and the version
# before, if any) and by rpm (how many versions are installed now).
#
# Nothing is enabled or started, and no kubelet is restarted, ever. What runs
# already is started again with the new programs; its sockets are systemd's, and
# queries wait in them meanwhile.
set -e

case "$1:$2" in
configure: | 1:*) first=1 ;;
configure:* | [2-9]*) first= ;;
*) exit 0 ;; # an upgrade or a removal was broken off: what ran goes on
esac

warn() { echo "nodelocaldns: $*" >&2; }

# What a preset of the administrator's wants to start. Ours wants nothing; it
# does not disable either, for who has used the program without the package.
[ -z "$first" ] || systemctl preset --quiet --preset-mode=enable-only \
	nodelocaldns-guard.service nodelocaldns.socket nodelocaldns.service \
	nodelocaldns-kubelet.service nodelocaldns-resume.service || true

[ -d /run/systemd/system ] || exit 0 # an image is being made
systemctl daemon-reload || true # it has said why; what runs goes on

# Sockets of a version that did not make the resolver's root are made again with it.
[ -d /run/nodelocaldns-root ] || systemctl try-restart nodelocaldns.socket || true

# The programs that run go on as they are, rather than end for good.
if ! nodelocaldns config check; then
	warn "warning: what runs is not started again: it would not come back with this configuration"
	warn "hint: mend it, then: systemctl try-restart nodelocaldns-guard nodelocaldns nodelocaldns-relay"
	exit 0
fi

# One at a time: while guard starts, the resolver runs.
for unit in nodelocaldns-guard nodelocaldns nodelocaldns-relay; do
	systemctl try-restart "$unit.service" || {
		warn "warning: $unit did not come back"
		warn "hint: journalctl -u $unit says why"
	}
done

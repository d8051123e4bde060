#!/usr/bin/env bash
# Boots systemd as PID 1 of the namespaces that this runs in, on this
# machine's files with a tree laid over them.
#
# usage: boot.sh TREE SCRATCH OUT CONSOLE
set -euo pipefail
tree=$1 scratch=$2 out=$3 console=$4

# Guard has been here: where our address is not, no kubelet is made to name it.
ip link set lo up
ip address add 169.254.20.10/32 dev lo

mount --make-rprivate /
mount -t tmpfs judge "$scratch"
cd "$scratch"
mkdir lower upper work root
cp -a "$tree/." lower/
mount -t overlay judge -o "lowerdir=$scratch/lower:/,upperdir=upper,workdir=work" root
mkdir -p root/proc root/sys root/dev root/run root/judge
mount -t proc judge root/proc
mount -t sysfs -o ro judge root/sys
if [[ -d lower/run ]]; then
	cp -a root/run run
fi
mount -t tmpfs judge root/run
if [[ -d run ]]; then
	cp -a run/. root/run/
fi
# Where this machine mounts only cgroup v2, that; else the part of v1 that
# systemd needs.
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
	mount -t cgroup2 judge root/sys/fs/cgroup
else
	mount -t tmpfs judge root/sys/fs/cgroup
	mkdir root/sys/fs/cgroup/systemd
	mount -t cgroup -o none,name=systemd judge root/sys/fs/cgroup/systemd
	mount -o remount,ro root/sys/fs/cgroup
fi
mount -t tmpfs judge root/dev
for device in null zero full random urandom tty; do
	: >"root/dev/$device"
	mount --bind "/dev/$device" "root/dev/$device"
done
: >root/dev/console
mount --bind "$console" root/dev/console
mkdir root/dev/shm root/dev/pts
ln -s pts/ptmx root/dev/ptmx # for units with devices of their own
mount --bind "$out" root/judge
cd root
init=/lib/systemd/systemd
[[ -x $init ]] || init=/usr/lib/systemd/systemd
exec chroot . env -i container=other SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=info "$init" --system --unit=judge.target --show-status=no

#!/bin/sh
# Makes of a container what a node with a kernel of its own is to containerd, to
# the kubelet and to whoever sets sysctls of conntrack.
set -eu

# systemd-nspawn leaves the controllers of cgroup v1 read-only.
for controller in /sys/fs/cgroup/*; do
	if mountpoint -q "$controller"; then
		mount -o remount,bind,rw "$controller"
	fi
done

# The kubelet reads the kernel's log for kills by the OOM killer.
[ -e /dev/kmsg ] || mknod /dev/kmsg c 1 11

# These belong to the whole machine and are read-only here. A plain file in
# their place takes what is written and gives it back.
mkdir -p /run/node-sysctl
stand_in() {
	echo "$2" >"/run/node-sysctl/${1##*/}"
	mount --bind "/run/node-sysctl/${1##*/}" "/proc/sys/$1"
}
stand_in vm/overcommit_memory 1
stand_in kernel/panic 10
stand_in kernel/panic_on_oops 1
stand_in net/netfilter/nf_conntrack_max 262144
stand_in net/netfilter/nf_conntrack_buckets 65536

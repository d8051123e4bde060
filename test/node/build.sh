#!/usr/bin/env bash
# Builds what the booted nodes are made of, once: a tree of Debian 12 and one of 13,
# Kubernetes and etcd from the modules that test/tools/k8s pins, an older kubelet
# from those that test/tools/kubelet134 pins, and two container images. Prints the
# directory that has it all, and everything else to standard error.
#
# usage: test/node/build.sh
#
# The parts are kept in NODELOCALDNS_TEST_CACHE, else /var/cache/nodelocaldns-test
# (1.4 GB), each under a name that changes with whatever it was built from. Whoever
# wants the space back removes that directory. From nothing it takes about twenty
# minutes on two cores.
set -euo pipefail
shopt -s inherit_errexit # or a part that failed would be taken for a whole one
cd "$(dirname "$0")/../.."

CACHE=${NODELOCALDNS_TEST_CACHE:-/var/cache/nodelocaldns-test}
PINS=test/tools/k8s
KUBELET_PINS=test/tools/kubelet134
PACKAGES=(
	systemd systemd-sysv dbus kmod procps # the system
	containerd containernetworking-plugins
	iproute2 iptables nftables conntrack
	openssh-server python3 python3-apt cloud-init # how a node is reached and set up
	bind9-dnsutils curl less # for a person who tries things
	busybox-static           # the image of the pods
)

fail() {
	printf 'build: error: %s\n' "$1" >&2
	printf 'build: hint: %s\n' "$2" >&2
	exit 1
}

# A node's tree, of the release that is the second input.
debian() {
	mmdebstrap --quiet --variant=minbase --include="$(
		IFS=,
		echo "${PACKAGES[*]}"
	)" "$3" "$1"
	# Nothing on a node may start by the clock and write into a comparison.
	rm -f "$1"/etc/systemd/system/timers.target.wants/*
	# Nor what a test has not asked for: a boot would wait for it. Keys of its own
	# are what a machine has, not what an image has.
	systemctl --quiet --root="$1" disable ssh.service
	rm "$1"/etc/ssh/ssh_host_*
	touch "$1/etc/cloud/cloud-init.disabled"
}

# compile MODULE OUT PACKAGE builds a program of the Kubernetes that a module pins.
compile() {
	local version minor ldflags package
	version=$(go -C "$1" list -m -f '{{.Version}}' k8s.io/kubernetes)
	minor=${version#v1.}
	ldflags='-s -w'
	for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		ldflags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
	done
	printf 'build:   %s\n' "${2##*/}" >&2
	CGO_ENABLED=0 go -C "$1" build -trimpath -buildvcs=false -ldflags "$ldflags" -o "$2" "$3"
}

# What a node has of it is below node; its kubelet is the older one.
kubernetes() {
	mkdir -p "$1/bin" "$1/node/usr/bin"
	compile "$PINS" "$1/bin/etcd" go.etcd.io/etcd/server/v3
	compile "$PINS" "$1/bin/image" ./cmd/image
	compile "$PINS" "$1/bin/pause" ./cmd/pause
	compile "$PINS" "$1/bin/kubelet" k8s.io/kubernetes/cmd/kubelet
	compile "$PINS" "$1/bin/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
	compile "$PINS" "$1/bin/kube-controller-manager" k8s.io/kubernetes/cmd/kube-controller-manager
	compile "$PINS" "$1/bin/kube-scheduler" k8s.io/kubernetes/cmd/kube-scheduler
	compile "$PINS" "$1/node/usr/bin/kubectl" k8s.io/kubernetes/cmd/kubectl
}

kubelet() {
	mkdir -p "$1/usr/bin"
	compile "$KUBELET_PINS" "$1/usr/bin/kubelet" k8s.io/kubernetes/cmd/kubelet
}

images() {
	local share=$1/usr/local/share/images
	mkdir -p "$share"
	"$k8s/bin/image" "$share/pause.tar" registry.k8s.io/pause:3.8 "$k8s/bin/pause" pause
	"$k8s/bin/image" "$share/busybox.tar" docker.io/library/busybox:local "$debian/bin/busybox" \
		busybox sh cat grep ip ls nc nslookup ps sleep wget
}

# part NAME INPUT… builds a part with the function of that name unless it is
# there, and prints where. The function is told the directory and the inputs, and
# the key is its text and these. The part gets its name when it is complete: what
# was cut short is never taken for it.
part() {
	local name=$1 key dir
	shift
	key=$({ declare -f "$name"; printf '%s\n' "$@"; } | sha256sum)
	dir=$CACHE/$name-${key:0:16}
	if [[ ! -d $dir ]]; then
		printf 'build: %s\n' "$dir" >&2
		rm -rf "$CACHE/$name.new"
		mkdir "$CACHE/$name.new"
		"$name" "$CACHE/$name.new" "$@" >&2
		sync --file-system "$CACHE/$name.new"
		mv -T "$CACHE/$name.new" "$dir"
	fi
	printf '%s\n' "$dir"
}

((EUID == 0)) || fail 'making a Debian tree needs root' 'run this as root'
mkdir -p "$CACHE"
exec {lock}>"$CACHE/lock"
if ! flock --nonblock "$lock"; then
	echo "build: waiting for another build in $CACHE" >&2
	flock "$lock"
fi

pins=$(cat "$PINS"/go.{mod,sum} "$PINS"/cmd/*/*.go)
debian=$(part debian "$(dpkg --print-architecture)" bookworm "${PACKAGES[@]}")
debian13=$(part debian "$(dpkg --print-architecture)" trixie "${PACKAGES[@]}")
k8s=$(part kubernetes "$(go env GOVERSION GOARCH)" "$pins" "$(declare -f compile)")
kubelet=$(part kubelet "$(go env GOVERSION GOARCH)" "$(cat "$KUBELET_PINS"/go.{mod,sum})" "$(declare -f compile)")
images=$(part images "$debian" "$k8s")

layers() {
	ln -s "$debian" "$1/debian12"
	ln -s "$debian13" "$1/debian13"
	ln -s "$k8s" "$1/kubernetes"
	ln -s "$kubelet" "$1/kubelet"
	ln -s "$images" "$1/images"
}
part layers "$debian" "$debian13" "$k8s" "$kubelet" "$images"

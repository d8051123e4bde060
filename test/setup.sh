#!/usr/bin/env bash
# Installs with apt what a make target needs and this machine lacks. Does
# nothing where all is there.
#
# usage: test/setup.sh package|run|test|node|promises|bench|bench-peers|lint
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
	printf 'setup: error: %s\n' "$1" >&2
	printf 'setup: hint: %s\n' "$2" >&2
	exit 1
}

# command:package
node=(ip:iproute2 iptables:iptables conntrack:conntrack sysctl:procps)
booted=(ip:iproute2 ps:procps systemd-nspawn:systemd-container mmdebstrap:mmdebstrap ssh-keygen:openssh-client)
case ${1-} in
package) need=() ;; # Go and git do it
run) need=("${node[@]}" dig:bind9-dnsutils curl:curl diff:diffutils) ;;
# The race detector needs a C compiler, systemd judges what we make of units, and
# packages have judges of their own. unbound answers what our resolver answers, to
# be compared.
test) need=("${node[@]}" unbound:unbound nft:nftables gcc:gcc systemd-analyze:systemd dbus-daemon:dbus rpm:rpm lintian:lintian rpmlint:rpmlint mandoc:mandoc ansible-playbook:ansible-core) ;;
node) need=("${booted[@]}" ansible-playbook:ansible-core) ;;
# The programs that look names up are in C.
promises) need=("${booted[@]}" iptables:iptables gcc:gcc musl-gcc:musl-tools) ;;
bench) need=("${node[@]}" gcc:gcc) ;;
bench-peers) need=(unbound:unbound dnsdist:dnsdist pdns_recursor:pdns-recursor kresd:knot-resolver dnsmasq:dnsmasq-base) ;;
lint) need=(shellcheck:shellcheck yamllint:yamllint ansible-playbook:ansible-core ansible-lint:ansible-lint) ;;
*) fail "unknown use ${1-\"\"}" 'usage: test/setup.sh package|run|test|node|promises|bench|bench-peers|lint' ;;
esac

# Ordinary users have no sbin in their PATH, and what lies there is installed
# all the same.
PATH=$PATH:/usr/sbin:/sbin

command -v go >/dev/null || fail 'go is not installed' "install Go $(awk '$1 == "go" {print $2}' go.mod) or newer and put it in PATH"

packages=()
for pair in "${need[@]}"; do
	command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
# gcc alone brings no headers of libc.
if [[ $1 == test || $1 == promises || $1 == bench ]] && [[ ! -e /usr/include/stdlib.h ]]; then
	packages+=(libc6-dev)
fi
if [[ $1 == promises && ! -e /usr/include/ares.h ]]; then
	packages+=(libc-ares-dev)
fi
((${#packages[@]})) || exit 0

install="apt-get install -y --no-install-recommends ${packages[*]}"
((EUID == 0)) || fail "not installed: ${packages[*]}" "run this as root: $install"
command -v apt-get >/dev/null || fail "not installed: ${packages[*]}, and there is no apt-get" 'install them with the package manager of this system'

# Name servers start when they are installed, and at every boot. What is measured is
# started by what measures it: on a machine that has no such unit yet it is masked.
if [[ $1 == bench-peers ]]; then
	for pair in "${need[@]}"; do
		unit=${pair#*:}
		[[ $unit != knot-resolver ]] || unit=kresd@1
		if [[ " ${packages[*]} " == *" ${pair#*:} "* && ! -e /etc/systemd/system/$unit.service ]]; then
			mkdir -p /etc/systemd/system
			ln -s /dev/null "/etc/systemd/system/$unit.service"
		fi
	done
fi

echo "setup: installing ${packages[*]}" >&2
# Its package would have unbound answer this machine's queries, now and after each
# boot. The tests start one of their own.
if [[ " ${packages[*]} " == *' unbound '* && -d /etc/systemd/system && ! -e /etc/systemd/system/unbound.service ]]; then
	ln -sf /dev/null /etc/systemd/system/unbound.service
	echo 'setup: unbound.service is masked: the tests start unbound themselves' >&2
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && $install; } </dev/null >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	fail "apt-get could not install ${packages[*]}" 'its last lines are above'
fi

package packaging

import (
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/test/judge"
)

// rpm itself runs the package through its life, in a copy of this machine's file
// system that lives as long as the shell does. systemd does not run there, so
// that this is what happens in an image; but for the reload and the stops, which
// are asked of systemd, it is what happens on a node.
func TestRPMInstallsUpgradesRefusesAndRemoves(t *testing.T) {
	if os.Geteuid() != 0 {
		judge.Skip(t, "needs root, for a root of its own")
	}
	tool(t, "rpm", "--version")
	const script = `
set -eu
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cp "$2" root/package.rpm

# Debian's rpm would rather not.
rpm() {
	code=0
	chroot root rpm --dbpath /var/lib/rpm-of-test "$@" >said 2>&1 || code=$?
	grep -v '^rpm: ' said || true
	[ $code = 0 ] || echo "exit code $code"
}
every() { (cd root && find etc run usr var -path var/lib/rpm-of-test -prune -o -print | LC_ALL=C sort); }
every | grep nodelocaldns | (cd root && xargs -r rm -rf) # of this machine
rpm --initdb
chroot root systemctl --version >/dev/null
every >before

say() { echo "== $*"; }
say install
rpm --nodeps --install /package.rpm
every | grep '^usr/bin/nodelocaldns'
chroot root systemctl is-enabled nodelocaldns.service || true
say 'upgrade of one that is enabled and configured'
chroot root systemctl --quiet enable nodelocaldns.service
echo 'cache: {maxBytes: 64MiB}' >>root/etc/nodelocaldns/config.yaml
rpm --nodeps --reinstall /package.rpm
chroot root systemctl is-enabled nodelocaldns.service nodelocaldns.socket nodelocaldns-guard.service
tail -n 1 root/etc/nodelocaldns/config.yaml
say 'removal of one that is in use'
mkdir root/var/lib/nodelocaldns
echo '{' >root/var/lib/nodelocaldns/journal.json
: >root/var/lib/nodelocaldns/off
rpm --erase nodelocaldns
rpm --query nodelocaldns
chroot root systemctl is-enabled nodelocaldns.service
say 'removal'
rm root/var/lib/nodelocaldns/journal.json
rpm --erase nodelocaldns
rpm --query nodelocaldns
say 'left, and taken'
every | diff before - | grep '^[<>]' || true
`
	out, err := exec.Command("unshare", "--mount", "sh", "-c", script, "sh", t.TempDir(), rpm("amd64")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := `== install
usr/bin/nodelocaldns
usr/bin/nodelocaldns-relay
disabled
== upgrade of one that is enabled and configured
enabled
enabled
enabled
cache: {maxBytes: 64MiB}
== removal of one that is in use
nodelocaldns: error: not removed: this node is still changed, as /var/lib/nodelocaldns/journal.json records
nodelocaldns: hint: nodelocaldns rollback takes it back, then remove the package; while pods still ask here it says draining, and nodelocaldns rollback --wait 1h waits for them
nodelocaldns: hint: NODELOCALDNS_REMOVE=force in the environment removes the package and leaves all that as it is
error: %preun(nodelocaldns-1.2.3-1.x86_64) scriptlet failed, exit status 1
error: nodelocaldns-1.2.3-1.x86_64: erase failed
exit code 1
nodelocaldns-1.2.3-1.x86_64
enabled
== removal
warning: /etc/nodelocaldns/config.yaml saved as /etc/nodelocaldns/config.yaml.rpmsave
package nodelocaldns is not installed
exit code 1
== left, and taken
> etc/nodelocaldns
> etc/nodelocaldns/config.yaml.rpmsave
`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

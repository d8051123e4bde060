package fleet

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nodelocaldns/test/node"
)

// seed is where cloud-init finds what a cloud would tell it (its datasource NoCloud).
const seed = "/var/lib/cloud/seed/nocloud/"

// site is the user-data that a site has besides ours. Keys of its own and a locale
// take a node seconds to make.
const site = `#cloud-config
locale: false
ssh_deletekeys: false
ssh_genkeytypes: [ed25519]
bootcmd:
  - touch /root/site
`

// unpacked is a directory of this machine with what is in the package.
func unpacked(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--extract", deb(), dir).CombinedOutput(); err != nil {
		t.Fatalf("unpacking %s: %v\n%s", deb(), err, out)
	}
	return dir
}

// putUserData has cloud-init find the site's user-data, and what nodelocaldns cloud-init
// prints with these flags.
func (m machine) putUserData(t *testing.T, flags ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(unpacked(t), "usr/bin/nodelocaldns"), append([]string{"cloud-init"}, flags...)...)
	ours, err := cmd.Output()
	must(t, err)
	var message bytes.Buffer
	parts := multipart.NewWriter(&message)
	fmt.Fprintf(&message, "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=%q\n\n", parts.Boundary())
	for _, text := range [][]byte{[]byte(site), ours} {
		w, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"text/cloud-config"}})
		must(t, err)
		_, err = w.Write(text)
		must(t, err)
	}
	must(t, parts.Close())
	must(t, m.Put(seed+"user-data", message.Bytes(), 0o600))
	must(t, m.Put(seed+"meta-data", fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %[1]s\n", m.Name), 0o600))
	must(t, m.Put("/root/ours", ours, 0o600))
	must(t, os.Remove(filepath.Join(m.Root, "etc/cloud/cloud-init.disabled")))
}

// prints fails the test unless that is what the script prints.
func (m machine) prints(t *testing.T, script, want string) {
	t.Helper()
	if got := m.sh(t, 0, script); got != want {
		t.Errorf("%s prints\n%swant\n%s", script, got, want)
	}
}

const (
	// kubelets says how many kubelets of this boot have found a cluster, and whom the
	// one that runs has pods ask.
	kubelets = `journalctl --boot --unit=kubelet --output=cat | grep -c '"Kubelet version"'
tr '\0' '\n' </proc/"$(systemctl show kubelet --property=MainPID --value)"/cmdline | grep ^--cluster-dns || true`

	asked = "--cluster-dns=" + local + "," + node.KubeDNS + "\n"

	// left is what of us is still on the disk.
	left = `find / -xdev -name '*nodelocaldns*' -not -path '/var/lib/cloud/*' -not -path '/proc/*' | sort
ls /etc/systemd/system/kubelet.service.d /etc/systemd/system/sockets.target.wants 2>/dev/null || true
ls /var/lib/nodelocaldns`
)

// answers waits until a name of the cluster has its address from us: guard looks for
// kube-dns when it starts.
func (m machine) answers(t *testing.T) {
	t.Helper()
	must(t, node.Until(t.Context(), "the resolver to answer", func() error {
		out, err := m.Output(t.Context(), "dig", "+short", "+time=1", "@"+local, "web.shop.svc.cluster.local")
		if err == nil && !strings.HasPrefix(out, "10.96.") {
			err = fmt.Errorf("the address of web.shop is %q", out)
		}
		return err
	}))
	m.sh(t, 0, "dig +short @"+local+" web.shop.svc.cluster.local")
}

// podAsks fails the test unless a new pod asks us, and then kube-dns.
func (m machine) podAsks(t *testing.T) {
	t.Helper()
	name := "first-" + m.Name
	must(t, m.cluster.RunPod(t.Context(), node.Pod{Name: name, Node: m.Node}))
	r, err := m.cluster.PodExec(t.Context(), name, "grep", "^nameserver ", "/etc/resolv.conf")
	must(t, err)
	if want := "nameserver " + local + "\nnameserver " + node.KubeDNS + "\n"; r.Stdout != want {
		t.Errorf("a new pod has\n%swant\n%s", r.Stdout, want)
	}
}

func TestThePodsOfANewNodeAskUsFromItsFirstBoot(t *testing.T) {
	t.Parallel()
	m := create(t, node.Debian12, "first")
	for _, name := range []string{"usr/bin/nodelocaldns", "usr/bin/nodelocaldns-relay"} {
		data, err := os.ReadFile(filepath.Join(unpacked(t), name))
		must(t, err)
		must(t, m.Put(name, data, 0o755))
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	must(t, os.WriteFile(config, []byte("# of the fleet\nkubelet: {settle: 3s}\n"), 0o600))
	m.putUserData(t, "--config", config)
	must(t, m.Join(t.Context()))
	must(t, m.Boot(t.Context()))
	must(t, m.Ready(t.Context()))

	m.prints(t, kubelets, "1\n"+asked)
	m.answers(t)
	m.prints(t, "cat /etc/nodelocaldns/config.yaml", "# of the fleet\nkubelet: {settle: 3s}\n")
	m.sh(t, 0, "journalctl --boot --no-hostname --identifier=cloud-init --identifier=systemd --identifier=timeout | grep -E 'applied|Finished cloud-init|nodelocaldns|kubelet'")
	m.sh(t, 0, "nodelocaldns plan")
	m.sh(t, 0, "cloud-init status --wait && cloud-init schema --config-file /root/ours && test -e /root/site")

	m.sh(t, 0, "nodelocaldns rollback")
	m.prints(t, left, "/etc/nodelocaldns\n/usr/bin/nodelocaldns\n/usr/bin/nodelocaldns-relay\n/var/lib/nodelocaldns\noff\n")
	must(t, m.Reboot(t.Context()))
	must(t, m.Ready(t.Context()))
	m.sh(t, 0, "cloud-init status --wait")
	m.prints(t, kubelets, "1\n")
	m.prints(t, left, "/etc/nodelocaldns\n/usr/bin/nodelocaldns\n/usr/bin/nodelocaldns-relay\n/var/lib/nodelocaldns\noff\n")
}

// crashLoops waits until the kubelet has found no cluster, and has ended.
func (m machine) crashLoops(t *testing.T) {
	t.Helper()
	must(t, node.Until(t.Context(), "the kubelet to have found no cluster", func() error {
		state, err := m.Output(t.Context(), "systemctl", "show", "kubelet", "--property=SubState", "--value")
		if err == nil && state != "auto-restart\n" {
			err = errors.New("it is " + strings.TrimSpace(state))
		}
		return err
	}))
}

// serve is a web server that nodes reach, of these files. It returns its URL.
func serve(t *testing.T, c *node.Cluster, files http.FileSystem) string {
	t.Helper()
	listener, err := net.Listen("tcp", c.Address()+":0")
	must(t, err)
	server := &http.Server{Handler: http.FileServer(files)}
	go func() { _ = server.Serve(listener) }() // until Close
	t.Cleanup(func() { must(t, server.Close()) })
	return "http://" + listener.Addr().String() + "/"
}

func TestAPackageIsFetchedInTheFirstBootOfANodeThatJoinsLater(t *testing.T) {
	t.Parallel()
	m := create(t, node.Debian13, "fetched")
	data, err := os.ReadFile(deb())
	must(t, err)
	url := serve(t, m.cluster, http.Dir(os.Getenv(built)))
	m.putUserData(t, "--url", url+filepath.Base(deb()), "--sha256", fmt.Sprintf("%x", sha256.Sum256(data)))
	must(t, m.Boot(t.Context()))
	m.crashLoops(t)
	must(t, m.Join(t.Context()))
	must(t, m.Ready(t.Context()))

	m.prints(t, kubelets, "1\n"+asked)
	m.podAsks(t)
	m.answers(t)
	m.sh(t, 0, "nodelocaldns plan")
	m.sh(t, 0, "cloud-init status --wait && cloud-init schema --config-file /root/ours && test -e /root/site")
	m.prints(t, "dpkg --verify nodelocaldns; ls /etc/systemd/system/nodelocaldns* 2>/dev/null || true", "")
}

// repository is one for apt that has the package alone: its directory.
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	data, err := os.ReadFile(deb())
	must(t, err)
	fields, err := exec.CommandContext(t.Context(), "dpkg-deb", "--field", deb()).Output()
	must(t, err)
	name := filepath.Base(deb())
	index := fmt.Appendf(fields, "Filename: ./%s\nSize: %d\nSHA256: %x\n", name, len(data), sha256.Sum256(data))
	must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "Packages"), index, 0o600))
	return dir
}

func TestAPackageOfARepositoryIsInstalledInTheFirstBoot(t *testing.T) {
	t.Parallel()
	m := create(t, node.Debian13, "repository")
	url := serve(t, m.cluster, http.Dir(repository(t)))
	must(t, m.Put("/etc/apt/sources.list", nil, 0o644)) // which apt would look for in vain
	sources := filepath.Join(t.TempDir(), "lab.sources")
	must(t, os.WriteFile(sources, []byte("Types: deb\nURIs: "+url+"\nSuites: ./\nTrusted: yes\n"), 0o600))
	m.putUserData(t, "--package", "nodelocaldns="+version, "--repository", sources)
	must(t, m.Join(t.Context()))
	must(t, m.Boot(t.Context()))
	must(t, m.Ready(t.Context()))

	m.prints(t, kubelets, "1\n"+asked)
	m.answers(t)
	m.sh(t, 0, "nodelocaldns plan")
	m.sh(t, 0, "cloud-init status --wait && cloud-init schema --config-file /root/ours")
}

// What Packer and mkosi do where they make an image is run in it.
func TestAnImageThatWasMadeInAChrootAsksUsFromItsFirstBoot(t *testing.T) {
	t.Parallel()
	m := create(t, node.Debian12, "image")
	data, err := os.ReadFile(deb())
	must(t, err)
	must(t, m.Put("/root/nodelocaldns.deb", data, 0o644))
	out, err := exec.CommandContext(t.Context(), "chroot", m.Root, "sh", "-ec", "dpkg --install /root/nodelocaldns.deb\nnodelocaldns --root / apply").CombinedOutput()
	t.Logf("image# dpkg --install, apply\n%s", out)
	must(t, err)
	must(t, m.Boot(t.Context()))
	m.crashLoops(t)
	must(t, m.Join(t.Context()))
	must(t, m.Ready(t.Context()))
	m.podAsks(t)
	m.sh(t, 0, "nodelocaldns plan")
}

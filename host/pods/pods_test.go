package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodelocaldns/host/fsys"
)

// A node is a made proc file system and the files beside it.
type node struct {
	t    testing.TB
	root string
}

func newNode(t testing.TB) *node {
	n := &node{t: t, root: t.TempDir()}
	n.process("1", "0::/init.scope", "host", "host", "nameserver 192.0.2.1")
	n.process("self", "0::/system.slice/nodelocaldns.service", "ours", "host", "nameserver 192.0.2.1")
	return n
}

func (n *node) finder() *Finder {
	return &Finder{Proc: filepath.Join(n.root, "proc"), Tree: fsys.Tree(n.root)}
}

func (n *node) running() []Pod {
	n.t.Helper()
	all, err := n.finder().Running(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return all
}

func (n *node) write(name, text string) {
	n.t.Helper()
	file := filepath.Join(n.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) link(target, name string) {
	n.t.Helper()
	file := filepath.Join(n.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.Symlink(target, file)); err != nil {
		n.t.Fatal(err)
	}
}

// process makes one whose files are its own; those with the same mnt see the
// same.
func (n *node) process(pid, groups, mnt, net, conf string) {
	n.t.Helper()
	dir := "proc/" + pid
	n.write(dir+"/cgroup", groups+"\n")
	n.write(dir+"/status", "Name:\tx\nNSpid:\t"+pid+"\t1\n")
	n.link("mnt:["+mnt+"]", dir+"/ns/mnt")
	n.link("net:["+net+"]", dir+"/ns/net")
	n.link(filepath.Join(n.root, "roots", mnt), dir+"/root")
	if conf != "" {
		n.write("roots/"+mnt+"/etc/resolv.conf", conf+"\n")
	}
}

// spec makes config.json of a container in dir.
func (n *node) spec(dir, cgroup, conf string, annotations map[string]string, namespaces ...string) {
	n.t.Helper()
	var spaces []map[string]string
	for _, s := range namespaces {
		kind, path, _ := strings.Cut(s, "=")
		spaces = append(spaces, map[string]string{"type": kind, "path": path})
	}
	text, err := json.Marshal(map[string]any{
		"ociVersion":  "1.1.0",
		"annotations": annotations,
		"mounts":      []map[string]string{{"destination": "/proc", "source": "proc"}, {"destination": "/etc/resolv.conf", "source": conf}},
		"linux":       map[string]any{"cgroupsPath": cgroup, "namespaces": spaces},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(dir+"/config.json", string(text))
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

const (
	uidA    = "0b1c2d3e-0000-4000-8000-00000000000a"
	uidB    = "0b1c2d3e-0000-4000-8000-00000000000b"
	uidC    = "0b1c2d3e-0000-4000-8000-00000000000c"
	uidD    = "0b1c2d3e-0000-4000-8000-00000000000d"
	static  = "5d7bc1ab4c5e4a0dbb0c2e4ce22c9e4f" // a hash of the manifest
	usFirst = "nameserver 169.254.20.10\nnameserver 10.96.0.10\noptions ndots:5"
	without = "nameserver 10.96.0.10"
)

func slice(uid string) string {
	return "kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
}

var us = addrs("169.254.20.10")

func TestPodsOfContainerdAreFoundByTheirProcessesAndSandboxes(t *testing.T) {
	n := newNode(t)
	const tasks = "run/containerd/io.containerd.runtime.v2.task/k8s.io/"
	const boxes = "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/"
	sandbox := func(id, uid, name, conf string, namespaces ...string) {
		n.write(boxes+id+"/resolv.conf", conf)
		n.spec(tasks+id, slice(uid)+":cri-containerd:"+id, boxes+id+"/resolv.conf", map[string]string{
			"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-uid": uid,
			"io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-name": name,
		}, namespaces...)
	}
	scope := func(uid, id string) string {
		return "0::/kubepods.slice/kubepods-burstable.slice/" + slice(uid) + "/cri-containerd-" + id + ".scope"
	}
	// One with a sandbox and a container, which has a process that came first
	// and one that has gone elsewhere.
	sandbox("aa01", uidA, "web-0", usFirst, "network=", "pid=")
	n.spec(tasks+"aa02", slice(uidA)+":cri-containerd:aa02", boxes+"aa01/resolv.conf", nil, "network=/proc/100/ns/net")
	n.process("90", scope(uidA, "aa02"), "a2", "wandered", usFirst)
	n.process("91", scope(uidA, "aa02"), "a2", "a", "")
	n.process("95", scope(uidA, "aa01"), "a1", "a", usFirst)
	// One that writes a resolv.conf of its own: what it has and what it gets
	// at its next start both count.
	sandbox("bb01", uidB, "web-1", without, "network=")
	n.process("200", scope(uidB, "bb01"), "b1", "b", without)
	n.process("199", scope(uidB, "bb02"), "b2", "b", "nameserver 169.254.20.10")
	// One in the network of the node.
	sandbox("cc01", uidC, "agent", "nameserver 192.0.2.1")
	n.process("300", scope(uidC, "cc01"), "c1", "host", "nameserver 192.0.2.1")
	// One without a process, such as in a virtual machine: only what watches
	// over it is there, with the files of the node.
	sandbox("dd01", uidD, "vm", without, "network=")
	n.write(boxes+"dd02/resolv.conf", "nameserver 169.254.20.10")
	n.process("400", scope(uidD, "dd01"), "host", "d", "")
	n.spec(tasks+"dd02", "/vc/dd02", boxes+"dd02/resolv.conf", map[string]string{"io.kubernetes.cri.sandbox-uid": uidD})
	// Sandboxes that are gone, and containers that are no pod's.
	n.write(boxes+"ee01/resolv.conf", usFirst)
	n.write("var/log/pods/shop_gone_"+uidA[:35]+"e/0.log", "")
	n.spec(tasks+"ff01", "/system.slice/nerdctl-ff01.scope", boxes+"ee01/resolv.conf", nil)
	n.process("500", "0::/system.slice/nginx.service", "nginx", "host", usFirst)

	want := []Pod{
		{Namespace: "shop", Name: "agent", UID: uidC, PID: 300, HostNetwork: true, Nameservers: addrs("192.0.2.1")},
		{Namespace: "shop", Name: "vm", UID: uidD, Nameservers: addrs("10.96.0.10", "169.254.20.10")},
		{Namespace: "shop", Name: "web-0", UID: uidA, PID: 95, Nameservers: addrs("169.254.20.10", "10.96.0.10")},
		{Namespace: "shop", Name: "web-1", UID: uidB, PID: 200, Nameservers: addrs("10.96.0.10", "169.254.20.10")},
	}
	f := n.finder()
	for _, look := range []string{"first", "second"} {
		got, err := f.Running(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(equalAddr)); diff != "" {
			t.Errorf("at the %s look (-want +got):\n%s", look, diff)
		}
	}
	if diff := cmp.Diff(want[1:], Naming(n.running(), us), cmp.Comparer(equalAddr)); diff != "" {
		t.Errorf("naming us (-want +got):\n%s", diff)
	}
}

func equalAddr(a, b netip.Addr) bool { return a == b }

func TestPodsOfEveryRuntimeAreFound(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(*node)
		want []Pod
	}{
		{"k3s, version 1 of control groups, driver cgroupfs, a static pod", func(n *node) {
			conf := "/var/lib/rancher/k3s/agent/containerd/io.containerd.grpc.v1.cri/sandboxes/aa/resolv.conf"
			n.write(conf, usFirst)
			n.spec("run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/aa", "/kubepods/besteffort/pod"+static+"/aa", conf, nil, "network=")
			n.write("var/log/pods/kube-system_etcd-n1_"+static+"/etcd/0.log", "")
			n.process("10", "12:pids:/kubepods/besteffort/pod"+static+"/aa\n1:name=systemd:/kubepods/besteffort/pod"+static+"/aa\n0::/", "m", "n", "")
		}, []Pod{{Namespace: "kube-system", Name: "etcd-n1", UID: static, PID: 10, Nameservers: addrs("169.254.20.10", "10.96.0.10")}}},
		{"microk8s, one container that waits to be started again", func(n *node) {
			conf := "/var/snap/microk8s/common/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/aa/resolv.conf"
			n.write(conf, usFirst)
			n.spec("var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io/aa", "/kubepods/pod"+uidA+"/aa", conf, nil)
		}, []Pod{{UID: uidA, HostNetwork: false, Nameservers: addrs("169.254.20.10", "10.96.0.10")}}},
		{"CRI-O without infra containers, and its ended pods", func(n *node) {
			const held = "/run/containers/storage/overlay-containers/"
			for id, uid := range map[string]string{"aa": uidA, "bb": uidB, "cc": uidC} {
				n.write(held+id+"/userdata/resolv.conf", usFirst)
				n.spec(held+id+"/userdata", slice(uid)+":crio:"+id, held+id+"/userdata/resolv.conf", map[string]string{
					"io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.cri-o.Namespace": "shop", "io.kubernetes.cri-o.KubeName": id,
				}, "network=/var/run/netns/"+id, "pid=/proc/1/ns/mnt")
			}
			n.link("/run", "var/run")
			n.write("run/netns/aa", "")
			n.write("run/netns/bb", "")
			n.process("20", "0::/kubepods.slice/"+slice(uidB)+"/crio-conmon-bb2.scope", "host", "host", "")
			n.process("19", "0::/kubepods.slice/"+slice(uidC)+"/crio-conmon-cc2.scope", "ours", "host", "")
			n.process("21", "0::/kubepods.slice/"+slice(uidB)+"/crio-bb2.scope/init.scope", "b", "b", usFirst)
		}, []Pod{
			{Namespace: "shop", Name: "aa", UID: uidA, Nameservers: addrs("169.254.20.10", "10.96.0.10")},
			{Namespace: "shop", Name: "bb", UID: uidB, PID: 21, Nameservers: addrs("169.254.20.10", "10.96.0.10")},
		}},
		{"Docker", func(n *node) {
			n.write("var/lib/docker/containers/aa/resolv.conf", usFirst)
			n.spec("run/containerd/io.containerd.runtime.v2.task/moby/aa", slice(uidA)+":docker:aa", "/var/lib/docker/containers/aa/resolv.conf", nil, "network=")
			n.spec("run/containerd/io.containerd.runtime.v2.task/moby/bb", "system.slice:docker:bb", "/var/lib/docker/containers/aa/resolv.conf", nil, "network=")
			n.process("10", "0::/kubepods.slice/"+slice(uidA)+"/docker-aa.scope", "a", "a", usFirst)
			n.process("20", "0::/system.slice/docker-bb.scope", "b", "b", usFirst)
		}, []Pod{{UID: uidA, PID: 10, Nameservers: addrs("169.254.20.10", "10.96.0.10")}}},
		{"a runtime that nobody knows", func(n *node) {
			n.process("10", "0::/kubepods/pod"+uidA+"/aa", "a", "a", usFirst)
		}, []Pod{{UID: uidA, PID: 10, Nameservers: addrs("169.254.20.10", "10.96.0.10")}}},
		{"gVisor, whose processes see nothing of the pod", func(n *node) {
			n.process("10", "0::/kubepods/pod"+uidA+"/aa", "a", "a", usFirst)
			n.link("/usr/local/bin/runsc", "proc/10/exe")
		}, nil},
		{"a process whose first thread has ended", func(n *node) {
			n.process("10", "0::/kubepods/pod"+uidA+"/aa", "a", "a", usFirst)
			old, now := filepath.Join(n.root, "proc/10"), filepath.Join(n.root, "proc/10/task/11")
			if err := errors.Join(os.MkdirAll(now, 0o755), os.Rename(old+"/ns", now+"/ns"), os.Rename(old+"/root", now+"/root")); err != nil {
				n.t.Fatal(err)
			}
		}, []Pod{{UID: uidA, PID: 10, Nameservers: addrs("169.254.20.10", "10.96.0.10")}}},
		{"processes that ended while we looked", func(n *node) {
			n.process("10", "0::/kubepods/pod"+uidA+"/aa", "a", "a", usFirst)
			n.process("20", "0::/kubepods/pod"+uidB+"/bb", "b", "b", usFirst)
			if err := errors.Join(os.Remove(filepath.Join(n.root, "proc/10/cgroup")), os.RemoveAll(filepath.Join(n.root, "proc/20/ns"))); err != nil {
				n.t.Fatal(err)
			}
		}, nil},
		{"the pods of another node in a container, and a cluster within a pod", func(n *node) {
			n.process("10", "0::/system.slice/docker-c0.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-"+slice(uidA)+"/cri-containerd-aa.scope", "a", "a", usFirst)
			n.write("proc/10/status", "NSpid:\t10\t7\t1\n")
			n.process("20", "0::/kubepods/pod"+uidB+"/bb/kubepods/pod"+uidC+"/cc", "b", "b", usFirst)
			n.write("proc/20/status", "NSpid:\t20\t9\t2\n")
			n.write("var/lib/kubelet/pods/"+uidB+"/etc-hosts", "")
		}, []Pod{{UID: uidB, PID: 20, Nameservers: addrs("169.254.20.10", "10.96.0.10")}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			tt.make(n)
			if diff := cmp.Diff(tt.want, n.running(), cmp.Comparer(equalAddr)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestControlGroupsNamePods(t *testing.T) {
	const u = "0b1c2d3e-0000-4000-8000-00000000000a"
	const under = "0b1c2d3e_0000_4000_8000_00000000000a"
	for groups, want := range map[string]member{
		"0::/kubepods/burstable/pod" + u + "/c1":                           {u, "c1"},
		"0::/kubepods/pod" + u + "/c1":                                     {u, "c1"},
		"0::/kubepods/pod" + u:                                             {u, ""},
		"0::/../../kubepods/besteffort/pod" + u + "/c1":                    {u, "c1"},
		"0::/kubelet/kubepods/besteffort/pod" + u + "/c1/init":             {u, "c1"},
		"0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-c1.scope": {u, "c1"},
		"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/docker-c1.scope":                         {u, "c1"},
		"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + under + ".slice/x": {u, "x"},
		"0::/system.slice/containerd.service/kubepods-burstable-pod" + under + ".slice:cri-containerd:c1":                                 {u, "c1"},
		"0::/kubepods.slice/kubepods-pod" + under + ".slice/cri-containerd-c1.scope (deleted)":                                            {u, "c1"},
		"9:name=systemd:/\n8:pids:/kubepods/burstable/pod" + u + "/c1\n0::/":                                                              {u, "c1"},
		"8:pids:/\n0::/kubepods/pod" + static + "/c1":                                                                                     {static, "c1"},
		"0::/kubepods.slice":                          {},
		"0::/kubepods.slice/kubepods-burstable.slice": {},
		"0::/kubepods/burstable":                      {},
		"0::/kubepods/pod":                            {},
		"0::/system.slice/podman-1.scope":             {},
		"0::/user.slice/pod" + u + "/c1":              {},
		"0::/machine.slice/libpod-c1.scope/kubepods":  {},
		"0::/system.slice/kubepods-watch.service":     {},
		"":        {},
		"garbage": {},
		"0::/kubepods.slice/kubepods-pod.slice/c.scope": {},
	} {
		got, ok := memberOf(groups + "\n")
		if got != want || ok != (want != member{}) {
			t.Errorf("%q: got %+v, %t; want %+v", groups, got, ok, want)
		}
	}
}

func TestNothingInAPodLeadsOutOfItOrHoldsUsUp(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("nameserver 192.0.2.66\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := func(n *node, conf string) { n.write("roots/m/etc/resolv.conf", conf) }
	for _, tt := range []struct {
		name string
		make func(n *node)
		want []netip.Addr
		err  string
	}{
		{name: "a link within", make: func(n *node) {
			n.link("../run/resolve/stub.conf", "roots/m/etc/resolv.conf")
			n.link("/real", "roots/m/run/resolve")
			n.write("roots/m/real/stub.conf", usFirst)
		}, want: addrs("169.254.20.10", "10.96.0.10")},
		{name: "a link to what is outside", make: func(n *node) { n.link(outside, "roots/m/etc/resolv.conf") }},
		{name: "a link up and out", make: func(n *node) {
			n.link(strings.Repeat("../", 40)+outside[1:], "roots/m/etc/resolv.conf")
		}},
		{name: "a directory that is a link up and out", make: func(n *node) {
			n.link(strings.Repeat("../", 40)+filepath.Dir(outside), "roots/m/etc")
			n.write("roots/m/resolv.conf", "")
		}},
		{name: "a link to itself", make: func(n *node) { n.link("resolv.conf", "roots/m/etc/resolv.conf") }, err: "too many levels of symbolic links"},
		{name: "a pipe", make: func(n *node) {
			n.write("roots/m/etc/x", "")
			if err := unix.Mkfifo(filepath.Join(n.root, "roots/m/etc/resolv.conf"), 0o666); err != nil {
				n.t.Fatal(err)
			}
		}, err: "not a regular file"},
		{name: "a directory", make: func(n *node) { n.write("roots/m/etc/resolv.conf/x", "") }, err: "not a regular file"},
		{name: "a file in the place of a directory", make: func(n *node) { n.write("roots/m/etc", "") }},
		{name: "more than anybody needs", make: func(n *node) {
			file(n, strings.Repeat("#\n", maxResolvConf/2)+"nameserver 169.254.20.10\n")
		}, err: "too long"},
		{name: "an endless hole", make: func(n *node) {
			file(n, "nameserver 10.0.0.1\n")
			if err := os.Truncate(filepath.Join(n.root, "roots/m/etc/resolv.conf"), 1<<40); err != nil {
				n.t.Fatal(err)
			}
		}, err: "too long"},
		{name: "none", make: func(n *node) { n.write("roots/m/etc/hosts", "") }},
		{name: "an empty one", make: func(n *node) { file(n, "") }},
		{name: "bytes without sense", make: func(n *node) {
			file(n, "\x00\xff nameserver\nnameserver\nnameserver x\nnameserver 10.0.0.1 # that one\r\n")
		}, want: addrs("10.0.0.1")},
		{name: "many spellings", make: func(n *node) {
			file(n, "; nameserver 1.1.1.1\n#nameserver 1.1.1.2\n  nameserver\t::ffff:10.0.0.1\nnameserver fe80::1%eth0\nnameserver 10.0.0.1\nnameservers 1.1.1.3\nnameserver 169.254.20.10")
		}, want: addrs("10.0.0.1", "fe80::1", "169.254.20.10")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.process("10", "0::/kubepods/pod"+uidA+"/aa", "m", "n", "")
			tt.make(n)
			got, err := n.finder().Running(t.Context())
			want := []Pod{{UID: uidA, PID: 10, Nameservers: tt.want}}
			if diff := cmp.Diff(want, got, cmp.Comparer(equalAddr)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), uidA)) {
				t.Errorf("err = %v, want one with %q", err, tt.err)
			}
		})
	}
}

// The kernel makes some files as they are read, and a device acts when it is
// opened: neither is.
func TestFilesThatAreNoneAreNotOpened(t *testing.T) {
	if text, err := readFile("/", "proc/self/status", 1<<20); err != nil || text != nil {
		t.Errorf("a file of proc: %q, %v; want it unread", text, err)
	}
	if text, err := readFile("/", "sys/kernel/mm/transparent_hugepage/enabled", 1<<20); !errors.Is(err, errNotRegular) && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file of sysfs: %q, %v; want it refused", text, err)
	}
	if text, err := readFile("/", "dev/null", 1<<20); !errors.Is(err, errNotRegular) {
		t.Errorf("a device: %q, %v; want it refused", text, err)
	}
	if _, err := readFile("/", "/..", 1<<20); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("the root: %v", err)
	}
	before := descriptors(t)
	_, _ = readFile("/", "etc/../etc/./passwd", 1<<20)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A file system that hangs costs a second once, and is not asked again before
// it answers.
func TestAFileThatNeverComesIsAnErrorUntilItComes(t *testing.T) {
	n := newNode(t)
	n.process("10", "0::/kubepods/pod"+uidA+"/aa", "hangs", "n", usFirst)
	n.process("20", "0::/kubepods/pod"+uidB+"/bb", "well", "n", usFirst)
	synctest.Test(t, func(t *testing.T) {
		f := n.finder()
		var asked atomic.Int32
		answer := make(chan struct{})
		f.read = func(root, name string, most int64) ([]byte, error) {
			if strings.Contains(root, "proc/10/") {
				asked.Add(1)
				<-answer
			}
			return readFile(root, name, most)
		}
		look := func() (named int, err error) {
			all, err := f.Running(t.Context())
			return len(Naming(all, us)), err
		}
		for range 2 {
			if named, err := look(); named != 1 || err == nil || err.Error() != "looking at pod "+uidA+": reading /etc/resolv.conf as process 10 sees it: its file system does not answer" {
				t.Errorf("%d name us, %v", named, err)
			}
		}
		if asked.Load() != 1 {
			t.Errorf("asked %d times, want once", asked.Load())
		}
		close(answer)
		synctest.Wait()
		if named, err := look(); named != 2 || err != nil {
			t.Errorf("when it answers: %d name us, %v", named, err)
		}
	})
}

func TestHangingReadsAreFew(t *testing.T) {
	n := newNode(t)
	for i := range maxStuck + 4 {
		pid := strconv.Itoa(10 + i)
		n.process(pid, "0::/kubepods/pod"+uidA[:34]+pid+"/aa", pid, "n", usFirst)
	}
	synctest.Test(t, func(t *testing.T) {
		f := n.finder()
		var asked atomic.Int32
		answer := make(chan struct{})
		f.read = func(string, string, int64) ([]byte, error) {
			asked.Add(1)
			<-answer
			return nil, nil
		}
		_, err := f.Running(t.Context())
		if asked.Load() != maxStuck || err == nil || !strings.HasSuffix(err.Error(), "\nand 9 more pods") {
			t.Errorf("asked %d, want %d; %v", asked.Load(), maxStuck, err)
		}
		close(answer)
	})
}

func TestWhatCannotBeSeenIsAnErrorAndNotNobody(t *testing.T) {
	n := newNode(t)
	n.process("10", "0::/kubepods/pod"+uidA+"/aa", "m", "n", usFirst)
	f := n.finder()
	f.read = func(string, string, int64) ([]byte, error) { return nil, syscall.EACCES }
	if all, err := f.Running(t.Context()); len(all) != 1 || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("no right to read: %v, %v", all, err)
	}
	n.write("run/containerd/io.containerd.runtime.v2.task/k8s.io/aa/config.json", `{"annotations":`)
	if _, err := n.finder().Running(t.Context()); err == nil || !strings.Contains(err.Error(), "k8s.io/aa/config.json: unexpected end of JSON input") {
		t.Errorf("half a specification: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if all, err := n.finder().Running(ctx); all != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, %v", all, err)
	}
	if _, err := (&Finder{Proc: filepath.Join(n.root, "none"), Tree: fsys.Tree(n.root)}).Running(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no proc: %v", err)
	}
}

func TestThisMachineCanBeLookedAt(t *testing.T) {
	if _, err := new(Finder).Running(t.Context()); err != nil && !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

// 250 pods of 3 containers, 3,000 processes, all with specifications of the
// size that containerd writes.
func BenchmarkRunning(b *testing.B) {
	n := newNode(b)
	const tasks = "run/containerd/io.containerd.runtime.v2.task/k8s.io/"
	pad := map[string]string{"pad": strings.Repeat("x", 20<<10)}
	for p := range 250 {
		uid := fmt.Sprintf("%s%03d", uidA[:33], p)
		n.write("var/log/pods/shop_web-"+strconv.Itoa(p)+"_"+uid+"/0.log", "")
		for c := range 3 {
			id := fmt.Sprintf("c%d-%d", p, c)
			n.write("boxes/"+id, usFirst)
			n.spec(tasks+id, slice(uid)+":cri-containerd:"+id, "/boxes/"+id, pad, "network=")
			for i := range 4 {
				n.process(strconv.Itoa(10+p*12+c*4+i), "0::/kubepods.slice/"+slice(uid)+"/cri-containerd-"+id+".scope", id, uid, usFirst)
			}
		}
	}
	for name, keep := range map[string]bool{"first": false, "again": true} {
		b.Run(name, func(b *testing.B) {
			f := n.finder()
			for b.Loop() {
				if !keep {
					f = n.finder()
				}
				if all, err := f.Running(b.Context()); err != nil || len(all) != 250 {
					b.Fatal(len(all), err)
				}
			}
		})
	}
}

package kubedns

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"nodelocaldns/host/fsys"
)

// A process is what a proc file system has of one, and what a kubelet's has.
type process struct {
	cmdline string // words with blanks between them
	status  string
	cgroup  string
}

const (
	rootHere = "Name:\tkubelet\nUid:\t0\t0\t0\t0\nNSpid:\t%\n"
	service  = "0::/system.slice/kubelet.service\n"
)

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// procOf is a proc file system of processes, whose numbers begin with 100.
func procOf(t *testing.T, all ...process) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "uptime"), "1 1\n")
	for i, p := range all {
		at := filepath.Join(dir, string(rune('1'+i))+"00")
		write(t, filepath.Join(at, "cmdline"), strings.ReplaceAll(p.cmdline, " ", "\x00")+"\x00")
		write(t, filepath.Join(at, "status"), p.status)
		write(t, filepath.Join(at, "cgroup"), p.cgroup)
	}
	return dir
}

func finder(run, proc string, log *bytes.Buffer) *Finder {
	return &Finder{
		Run: fsys.Dir(run), Proc: proc, Log: slog.New(slog.NewTextHandler(log, nil)),
		Ours: func(a netip.Addr) bool { return a == netip.MustParseAddr("169.254.20.10") },
	}
}

func servers(text string) (list []netip.AddrPort) {
	for _, w := range strings.Fields(text) {
		list = append(list, netip.MustParseAddrPort(w))
	}
	return list
}

var sameFound = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}

const ofKubelet = "--cluster-dns of the running kubelet"

func TestGuardTellsElseTheKubelet(t *testing.T) {
	kubelet := process{"/usr/bin/kubelet --v=2 --cluster-dns=169.254.20.10,10.96.0.10 --node-ip=::", rootHere, service}
	for _, tt := range []struct {
		name, facts string // no file if empty
		want        Found
	}{
		{"what guard has found", `{"cluster_dns":["10.96.0.11"],"source":"a file","metrics":":9253"}`, Found{servers("10.96.0.11:53"), "a file", ":9253"}},
		{"what the configuration says", `{"cluster_dns":null,"servers":["192.0.2.1:5353","[fd00::a]:53"],"source":"cluster.dns"}`, Found{servers("192.0.2.1:5353 [fd00::a]:53"), "cluster.dns", ""}},
		{"without ourselves", `{"servers":["169.254.20.10:5353","192.0.2.1:53"],"source":"cluster.dns"}`, Found{servers("192.0.2.1:53"), "cluster.dns", ""}},
		{"what the kubelet names after us, without facts", "", Found{servers("10.96.0.10:53"), ofKubelet, ""}},
		{"the same where facts name nobody", `{"cluster_dns":[],"source":"cluster.dns","metrics":":9253"}`, Found{servers("10.96.0.10:53"), ofKubelet, ":9253"}},
		{"the same where facts name us alone", `{"cluster_dns":["169.254.20.10"],"source":"?"}`, Found{servers("10.96.0.10:53"), ofKubelet, ""}},
		{"the same where facts are broken", `{"cluster_dns":["10.9`, Found{servers("10.96.0.10:53"), ofKubelet, ""}},
		{"the same where facts are empty", ` `, Found{servers("10.96.0.10:53"), ofKubelet, ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run := t.TempDir()
			if tt.facts != "" {
				write(t, filepath.Join(run, "facts.json"), tt.facts)
			}
			got := finder(run, procOf(t, kubelet), new(bytes.Buffer)).Look()
			if diff := cmp.Diff(tt.want, got, sameFound); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestOnlyTheNodesKubeletCounts(t *testing.T) {
	const dns = " --cluster-dns=10.96.0.10"
	for _, tt := range []struct {
		name string
		p    process
		want string
	}{
		{"the kubelet", process{"/usr/bin/kubelet" + dns, rootHere, service}, "10.96.0.10:53"},
		{"as hyperkube", process{"/hyperkube kubelet" + dns, rootHere, service}, "10.96.0.10:53"},
		{"by cgroup v1", process{"kubelet" + dns, rootHere, "12:pids:/system.slice/kubelet.service\n1:name=systemd:/system.slice/kubelet.service\n"}, "10.96.0.10:53"},
		{"another part of hyperkube", process{"/hyperkube kube-proxy" + dns, rootHere, service}, ""},
		{"something that is passed its name", process{"/usr/bin/strace kubelet" + dns, rootHere, service}, ""},
		{"a process without a command line", process{"", rootHere, service}, ""},
		{"one that is not root's", process{"kubelet" + dns, "Uid:\t1000\t0\t0\t0\nNSpid:\t7\n", service}, ""},
		{"one in another process namespace", process{"kubelet" + dns, "Uid:\t0\t0\t0\t0\nNSpid:\t700\t7\n", service}, ""},
		{"one in a pod", process{"kubelet" + dns, rootHere, "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-2.scope\n"}, ""},
		{"one that has ended", process{"kubelet" + dns, "", ""}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := kubeletServers(procOf(t, process{"/sbin/init", rootHere, "0::/init.scope\n"}, tt.p)); !slices.Equal(got, servers(tt.want)) {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
	if got := kubeletServers(filepath.Join(t.TempDir(), "none")); got != nil {
		t.Errorf("without a proc file system: got %v", got)
	}
}

func TestTheFlagIsReadAsTheKubeletReadsIt(t *testing.T) {
	for args, want := range map[string]string{
		"--cluster-dns=10.0.0.1":                         "10.0.0.1:53",
		"--cluster-dns 10.0.0.1 --v=2":                   "10.0.0.1:53",
		"--cluster_dns=10.0.0.1,fd00::a":                 "10.0.0.1:53 [fd00::a]:53",
		"--cluster-dns=10.0.0.1 --cluster-dns=10.0.0.2":  "10.0.0.1:53 10.0.0.2:53",
		"--cluster-dns= --cluster-dns=10.0.0.2":          "10.0.0.2:53",
		"--cluster-dns=what,10.0.0.2":                    "10.0.0.2:53",
		"--cluster-dns":                                  "",
		"--cluster-dnssec=10.0.0.1 -- --cluster-dns=::1": "",
		"-cluster-dns=10.0.0.1 cluster-dns=10.0.0.1":     "",
	} {
		if got := clusterDNS(strings.Fields(args)); !slices.Equal(got, servers(want)) {
			t.Errorf("%s: got %v, want %s", args, got, want)
		}
	}
}

func TestWhatWasKnownStaysKnownWhileNobodyTells(t *testing.T) {
	run := t.TempDir()
	file := filepath.Join(run, "facts.json")
	var log bytes.Buffer
	f := finder(run, procOf(t), &log)
	expect := func(want Found) {
		t.Helper()
		if diff := cmp.Diff(want, f.Look(), sameFound); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	expect(Found{})
	write(t, file, `{"cluster_dns":["10.96.0.10"],"source":"a file","metrics":":9253"}`)
	known := Found{servers("10.96.0.10:53"), "a file", ":9253"}
	expect(known)
	write(t, file, `{"cluster_`)
	expect(known)
	expect(known)
	if got := strings.Count(log.String(), "going by the kubelet"); got != 1 {
		t.Errorf("a broken file was said %d times, want once:\n%s", got, &log)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	expect(known)
	write(t, file, `{"cluster_dns":["10.96.0.11"],"source":"a file"}`)
	expect(Found{servers("10.96.0.11:53"), "a file", ""})
}

// The kubelet's own library, as far as both go: it exits where the command line is
// wrong, and this reads what a kubelet that runs was given.
func FuzzClusterDNSFlag(f *testing.F) {
	f.Add("--cluster-dns=10.0.0.1\x00--v=2")
	f.Add("--cluster_dns\x0010.0.0.1,fd00::a\x00--cluster-dns\x00")
	f.Add("--a=b\x00--\x00--cluster-dns=1.1.1.1")
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\x00")
		got := clusterDNS(args)
		fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
		fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
			return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
		})
		list := fs.StringSlice("cluster-dns", nil, "")
		if err := fs.Parse(args); err != nil || fs.NArg() > 0 {
			return
		}
		var want []netip.AddrPort
		for _, s := range *list {
			if a, err := netip.ParseAddr(s); err == nil {
				want = append(want, netip.AddrPortFrom(a, 53))
			}
		}
		if !slices.Equal(got, want) && !strings.ContainsAny(text, "\"\n\r") { // it splits as spreadsheets do
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

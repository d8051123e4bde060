package kubelet_test

import (
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodelocaldns/host/kubelet"
)

func TestKubeDNSIsAskedForWithTheKubeletsCredential(t *testing.T) {
	for _, tt := range []struct{ name, body, want, err string }{
		{name: "one family", body: `{"kind":"Service","spec":{"clusterIP":"10.96.0.10"}}`, want: "10.96.0.10"},
		{name: "both families", body: `{"kind":"Service","spec":{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10","fd00:10:96::a"]}}`, want: "10.96.0.10 fd00:10:96::a"},
		{name: "headless", body: `{"kind":"Service","spec":{"clusterIP":"None"}}`, err: "it has no address (None)"},
		{name: "forbidden", body: `{"kind":"Status","code":403,"message":"services \"kube-dns\" is forbidden"}`, err: "403 Forbidden: services \"kube-dns\" is forbidden"},
		{name: "no service", body: `{"kind":"Status","code":404,"message":"services \"kube-dns\" not found"}`, err: "404 Not Found"},
		{name: "no JSON", body: `<html>`, err: "reading the reply"},
		{name: "something else", body: `{}`, err: `reading the reply: its kind is "", not Service`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path != "/api/v1/namespaces/kube-system/services/kube-dns" || r.Method != http.MethodGet:
					t.Errorf("asked %s %s", r.Method, r.URL)
				case r.Header.Get("Authorization") != "Bearer of-the-kubelet":
					t.Errorf("asked with %q", r.Header.Get("Authorization"))
				}
				switch {
				case strings.Contains(tt.body, "403"):
					w.WriteHeader(http.StatusForbidden)
				case strings.Contains(tt.body, "404"):
					w.WriteHeader(http.StatusNotFound)
				}
				_, _ = w.Write([]byte(tt.body))
			}))
			defer api.Close()
			ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw}))
			file := filepath.Join(t.TempDir(), "kubelet.conf")
			write(t, file, `apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: x, user: x}}]
clusters: [{name: x, cluster: {server: "`+api.URL+`", certificate-authority-data: `+ca+`}}]
users: [{name: x, user: {token: of-the-kubelet}}]
`)
			list, err := kubelet.AskService(t.Context(), file)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("err = %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var words []string
			for _, a := range list {
				words = append(words, a.String())
			}
			if got := strings.Join(words, " "); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestTheKubeletIsTheOneProcessInItsUnit(t *testing.T) {
	proc := t.TempDir()
	process := func(pid, group, namespace string, argv ...string) {
		t.Helper()
		dir := filepath.Join(proc, pid)
		write(t, filepath.Join(dir, "cgroup"), "0::"+group+"\n")
		write(t, filepath.Join(dir, "cmdline"), strings.Join(argv, "\x00")+"\x00")
		if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("pid:["+namespace+"]", filepath.Join(dir, "ns/pid")); err != nil {
			t.Fatal(err)
		}
	}
	process("self", "/", "1", "nodelocaldns")
	process("10", "/system.slice/ssh.service", "1", "/usr/bin/kubelet", "--help")
	process("20", "/docker/c0ffee/kubelet.slice/kubelet.service", "2", "/usr/bin/kubelet", "--cluster-dns=10.0.0.1")
	process("30", "/runtime.slice/kubelet.service", "1", "/usr/bin/timeout", "2", "/usr/bin/nodelocaldns", "kubelet-env")
	process("40", "/runtime.slice/kubelet.service", "1", "/usr/bin/kubelet", "--cluster-dns=10.0.0.2", "")
	process("50", "/system.slice/k3s.service", "1", "/usr/local/bin/k3s server")

	p, err := kubelet.Running(proc)("kubelet.service")
	if err != nil || p == nil || p.PID != 40 || strings.Join(p.Argv, "|") != "/usr/bin/kubelet|--cluster-dns=10.0.0.2|" {
		t.Errorf("kubelet.service: %+v, %v", p, err)
	}
	for _, unit := range []string{"k3s.service", "rke2-server.service"} {
		if p, err := kubelet.Running(proc)(unit); p != nil || err != nil {
			t.Errorf("%s: %+v, %v; want none", unit, p, err)
		}
	}
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

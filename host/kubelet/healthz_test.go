package kubelet_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"nodelocaldns/host/kubelet"
)

func TestTheKubeletIsAskedForItsHealthWhereItSaysThatItAnswers(t *testing.T) {
	for _, tt := range []struct {
		name string
		argv []string          // of the running kubelet
		unit string            // if it is not the kubelet's own
		file map[string]string // of the node
		want string            // empty: nobody is asked
		err  string
	}{
		{name: "it does not say", want: "127.0.0.1:10248"},
		{name: "a port in its file", file: map[string]string{"/k.yaml": config("healthzPort: 1234")}, want: "127.0.0.1:1234"},
		{name: "JSON", file: map[string]string{"/k.yaml": `{"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"KubeletConfiguration","healthzPort":1234}`}, want: "127.0.0.1:1234"},
		{name: "an address in its file", file: map[string]string{"/k.yaml": config("healthzBindAddress: 192.0.2.1")}, want: "192.0.2.1:10248"},
		{name: "all addresses", file: map[string]string{"/k.yaml": config("healthzBindAddress: 0.0.0.0")}, want: "127.0.0.1:10248"},
		{name: "all addresses, IPv6", file: map[string]string{"/k.yaml": config(`healthzBindAddress: "::"`)}, want: "[::1]:10248"},
		{name: "off", file: map[string]string{"/k.yaml": config("healthzPort: 0")}},
		{name: "no number", file: map[string]string{"/k.yaml": config("healthzPort: a")}, err: `the kubelet's healthzPort is "a"`},
		{name: "no address", file: map[string]string{"/k.yaml": config("healthzBindAddress: here")}, err: `the kubelet's healthzBindAddress is "here"`},
		{
			name: "a flag beats its file",
			argv: []string{"/usr/bin/kubelet", "--config=/k.yaml", "--healthz-port", "4321", "--healthz-bind-address=192.0.2.2"},
			file: map[string]string{"/k.yaml": config("healthzPort: 1234")},
			want: "192.0.2.2:4321",
		},
		{
			name: "the last file of its directory",
			argv: []string{"/usr/bin/kubelet", "--config=/k.yaml", "--config-dir=/k.d"},
			file: map[string]string{
				"/k.yaml":        config("healthzPort: 1234"),
				"/k.d/10-a.conf": config("healthzPort: 1235"),
				"/k.d/20-b.conf": config("healthzPort: 1236"),
			},
			want: "127.0.0.1:1236",
		},
		{
			name: "k3s",
			unit: "k3s.service",
			file: map[string]string{
				"/etc/systemd/system/k3s.service":                                "[Service]\nExecStart=/usr/local/bin/k3s server\n",
				"/var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-defaults.conf": config("clusterDNS: [10.43.0.10]\nhealthzPort: 1234"),
				"/etc/rancher/k3s/config.yaml":                                   "kubelet-arg: [healthz-bind-address=192.0.2.3]\n",
			},
			want: "192.0.2.3:1234",
		},
		{
			name: "microk8s",
			unit: "snap.microk8s.daemon-kubelite.service",
			file: map[string]string{
				"/etc/systemd/system/snap.microk8s.daemon-kubelite.service": "[Service]\nExecStart=/usr/bin/snap run microk8s.daemon-kubelite\n",
				"/var/snap/microk8s/current/args/kubelet":                   "--cluster-dns=10.152.183.10\n--healthz-port=1234\n",
			},
			want: "127.0.0.1:1234",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t, envUnit)
				if tt.unit != "" {
					m.unit = tt.unit
					m.remove("/usr/lib/systemd/system/kubelet.service")
				}
				m.ends = func([]string) bool {
					if m.argv = tt.argv; tt.argv == nil && tt.unit == "" {
						m.argv = []string{"/usr/bin/kubelet", "--config=/k.yaml"}
					}
					return false
				}
				for name, text := range tt.file {
					m.write(name, text)
				}
				err := m.window().Settle(t.Context())
				if tt.err != "" {
					if err == nil || !strings.HasSuffix(err.Error(), tt.err) {
						t.Errorf("err = %v, want one with %s", err, tt.err)
					}
				} else if err != nil {
					t.Error(err)
				}
				equal(t, "healthz was asked at", strings.Join(m.asks, " "), strings.TrimSpace(strings.Repeat(tt.want+" ", len(m.asks))))
				if tt.want != "" && len(m.asks) == 0 {
					t.Errorf("nobody was asked, want %s", tt.want)
				}
			})
		})
	}
}

func TestAKubeletIsWellIfItSays200(t *testing.T) {
	status := http.StatusOK
	at := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" || r.Method != http.MethodGet {
			t.Errorf("asked %s %s", r.Method, r.URL)
		}
		w.WriteHeader(status)
	}))
	addr := netip.MustParseAddrPort(at.Listener.Addr().String())
	if err := kubelet.AskHealthz(t.Context(), addr); err != nil {
		t.Error(err)
	}
	status = http.StatusInternalServerError
	if err := kubelet.AskHealthz(t.Context(), addr); err == nil || err.Error() != "healthz says 500 Internal Server Error" {
		t.Errorf("err = %v", err)
	}
	at.Close()
	if err := kubelet.AskHealthz(t.Context(), addr); err == nil {
		t.Error("nobody answers, and it is well")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := kubelet.AskHealthz(ctx, addr); err == nil {
		t.Error("nobody was to wait, and it is well")
	}
}

package pods

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A list as an API server sends it, shortened: a pod of a Deployment, one with
// a dnsConfig of its own, the mirror object of a static pod.
const podList = `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"4711"},"items":[
{"metadata":{"name":"web-0","namespace":"shop","uid":"` + uidA + `","annotations":{"a":"b"}},"spec":{"dnsPolicy":"ClusterFirst","containers":[{"name":"c","env":[{"name":"X","value":"]}"}]}]}},
{"metadata":{"name":"own","namespace":"shop","uid":"` + uidB + `"},"spec":{"dnsPolicy":"None","dnsConfig":{"nameservers":["10.96.0.10","169.254.20.10","x"]}}},
{"metadata":{"name":"etcd-n1","namespace":"kube-system","uid":"` + uidC + `","annotations":{"kubernetes.io/config.hash":"` + static + `"}},"spec":{}}
]}`

func TestPodsOfTheNodeAreAskedForWithTheKubeletsCredential(t *testing.T) {
	specs := []Spec{
		{Namespace: "shop", Name: "web-0", UID: uidA},
		{Namespace: "shop", Name: "own", UID: uidB, Nameservers: addrs("10.96.0.10", "169.254.20.10")},
		{Namespace: "kube-system", Name: "etcd-n1", UID: static},
	}
	for _, tt := range []struct {
		name, node, cert string
		status           int
		body, err        string
		want             []Spec
	}{
		{name: "as the certificate says", cert: "system:node:n1.example", body: podList, want: specs},
		{name: "as we are told", node: "n1.example", body: podList, want: specs},
		{name: "none", node: "n1.example", body: `{"kind":"PodList","items":[]}`},
		{name: "null", node: "n1.example", body: `{"items":null,"kind":"PodList"}`},
		{name: "no list", node: "n1.example", body: `{}`, err: `asking HOST for the pods of node n1.example: reading the reply: its kind is "", not PodList`},
		{name: "no node's certificate", cert: "admin", err: `reading the node's name from FILE: it is the credential of "admin", not of a kubelet`},
		{name: "forbidden", node: "n1.example", status: 403, body: `{"kind":"Status","message":"pods is forbidden"}`, err: "asking HOST for the pods of node n1.example: 403 Forbidden: pods is forbidden"},
		{name: "no JSON", node: "n1.example", status: 502, body: `<html>`, err: "asking HOST for the pods of node n1.example: 502 Bad Gateway"},
		{name: "half a list", node: "n1.example", body: podList[:len(podList)-10], err: "asking HOST for the pods of node n1.example: reading the reply: unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got := r.Method + " " + r.URL.String(); got != "GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn1.example&resourceVersion=0" {
					t.Errorf("asked %s", got)
				}
				if tt.status != 0 {
					w.WriteHeader(tt.status)
				}
				_, _ = w.Write([]byte(tt.body))
			}))
			defer api.Close()
			file := kubeconfig(t, api, tt.cert)
			got, err := Ask(t.Context(), file, tt.node)
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(equalAddr)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			said := ""
			if err != nil {
				said = strings.NewReplacer(file, "FILE", api.Listener.Addr().String(), "HOST").Replace(err.Error())
			}
			if said != tt.err {
				t.Errorf("err = %q, want %q", said, tt.err)
			}
		})
	}
	if _, err := Ask(t.Context(), filepath.Join(t.TempDir(), "none"), ""); err == nil || !strings.HasPrefix(err.Error(), "reading ") {
		t.Errorf("no file: %v", err)
	}
}

// kubeconfig is a kubelet's credential for api; its certificate, if any, is of
// the common name cert, in one file with its key as kubelets keep it.
func kubeconfig(t *testing.T, api *httptest.Server, cert string) string {
	t.Helper()
	dir := t.TempDir()
	user := "{token: x}"
	if cert != "" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cert, Organization: []string{"system:nodes"}}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		pems := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		if err := os.WriteFile(filepath.Join(dir, "current.pem"), pems, 0o600); err != nil {
			t.Fatal(err)
		}
		user = "{client-certificate: current.pem, client-key: current.pem}"
	}
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw}))
	file := filepath.Join(dir, "kubelet.conf")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: x, user: x}}]
clusters: [{name: x, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: x, user: %s}]
`, api.URL, ca, user)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAPodsOwnSettingsAreTold(t *testing.T) {
	all := []Pod{{Namespace: "shop", Name: "web-0", UID: uidA}, {UID: uidB}, {UID: static}, {UID: uidD}}
	Explain(all, []Spec{
		{Namespace: "shop", Name: "web-0", UID: uidA},
		{Namespace: "shop", Name: "own", UID: uidB, Nameservers: addrs("10.96.0.10", "169.254.20.10")},
		{Namespace: "kube-system", Name: "etcd-n1", UID: static, Nameservers: addrs("192.0.2.1")},
	}, us)
	want := []Pod{
		{Namespace: "shop", Name: "web-0", UID: uidA},
		{Namespace: "shop", Name: "own", UID: uidB, OwnDNS: true},
		{Namespace: "kube-system", Name: "etcd-n1", UID: static},
		{UID: uidD},
	}
	if diff := cmp.Diff(want, all, cmp.Comparer(equalAddr)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var names []string
	for _, p := range all {
		names = append(names, p.String())
	}
	if got := strings.Join(names, ", "); got != "shop/web-0, shop/own, kube-system/etcd-n1, pod "+uidD {
		t.Errorf("they are called %s", got)
	}
}

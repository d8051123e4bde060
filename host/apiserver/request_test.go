package apiserver

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const nodeN1 = `{"kind":"Node","metadata":{"name":"n1","uid":"u","resourceVersion":"7"}}`

func TestWhatFailedCanBeTold(t *testing.T) {
	refuse := func(code int, reason, message string) http.HandlerFunc {
		return say(code, `{"kind":"Status","status":"Failure","reason":"`+reason+`","message":"`+message+`"}`)
	}
	retry := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3")
		say(429, "Too many requests, please try again later.\n")(w, r) // as priority and fairness says it
	}
	const node = "asking HOST for node n1: "
	for _, tt := range []struct {
		name              string
		reply             http.HandlerFunc
		kind, error, hint string
	}{
		{name: "forbidden", reply: refuse(403, "Forbidden", "no"), kind: "forbidden", error: node + "403 Forbidden: no", hint: "has no right to this"},
		{name: "not found", reply: refuse(404, "NotFound", "none"), kind: "not found", error: node + "404 Not Found: none"},
		{name: "unauthorized", reply: refuse(401, "Unauthorized", "Unauthorized"), kind: "unauthorized", error: node + "401 Unauthorized: Unauthorized", hint: "may have run out"},
		{name: "conflict", reply: refuse(409, "Conflict", "changed"), kind: "conflict", error: node + "409 Conflict: changed"},
		{name: "too many requests", reply: retry, kind: "busy 3s", error: node + "429 Too Many Requests"},
		{name: "etcd away", reply: refuse(500, "InternalError", "etcd"), kind: "unreachable", error: node + "500 Internal Server Error: etcd", hint: "is not well"},
		{name: "nothing behind a balancer", reply: say(503, "<html>"), kind: "unreachable", error: node + "503 Service Unavailable", hint: "is not well"},
		{name: "sent elsewhere", reply: http.RedirectHandler("https://192.0.2.1/", http.StatusFound).ServeHTTP, kind: "unreachable", error: node + "302 Found", hint: "is not well"},
		{name: "no JSON", reply: say(200, "<html>"), kind: "unreachable", error: node + "reading the reply: invalid character '<' looking for beginning of value", hint: "does not reply as an API server does"},
		{name: "half of it", reply: say(200, nodeN1[:40]), kind: "unreachable", error: node + "reading the reply: unexpected end of JSON input", hint: "does not reply as an API server does"},
		{name: "nothing in it", reply: say(200, "{}"), kind: "unreachable", error: node + `reading the reply: its kind is "", not Node`, hint: "does not reply as an API server does"},
		{name: "without end", reply: endless, kind: "unreachable", error: node + "reading the reply: it is longer than 8388608 bytes", hint: "does not reply as an API server does"},
		{name: "cut off", reply: cut, kind: "unreachable", error: node + "EOF", hint: "journalctl -u kubelet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, tt.reply)
			c := f.open(t)
			_, err := c.Node(t.Context(), "n1")
			if got := f.text(err, c); got != tt.error {
				t.Errorf("error %q, want %q", got, tt.error)
			}
			if got := kind(err); got != tt.kind {
				t.Errorf("it is %q, want %q", got, tt.kind)
			}
			if got := hint(err); (got == "") != (tt.hint == "") || !strings.Contains(got, tt.hint) {
				t.Errorf("hint %q, want one with %q", got, tt.hint)
			}
		})
	}
}

func endless(w http.ResponseWriter, _ *http.Request) {
	const more = 1 << 20
	for range maxOne/more + 1 {
		if _, err := io.WriteString(w, strings.Repeat("[", more)); err != nil {
			return
		}
	}
}

func TestAListIsReadOnlySoFar(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"kind":"PodList","items":[`)
		pod := `{"metadata":{"name":"p","annotations":{"x":"` + strings.Repeat("x", 1<<20) + `"}}},`
		for {
			if _, err := io.WriteString(w, pod); err != nil {
				return
			}
		}
	})
	c := f.open(t)
	c.list.size = 5 << 20
	_, err := c.Pods(t.Context(), "n1", "")
	if got, want := f.text(err, c), "asking HOST for the pods of node n1: reading the reply: it is longer than 5242880 bytes"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
}

func TestReadsAreTriedAgainAndChangesAreNot(t *testing.T) {
	half := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		say(200, nodeN1[:20])(w, r)
	}
	read := func(c *Client) error {
		_, err := c.Node(t.Context(), "n1")
		return err
	}
	change := func(c *Client) error {
		_, err := c.Cordon(t.Context(), Node{Name: "n1", ResourceVersion: "7"}, "k", "m")
		return err
	}
	for _, tt := range []struct {
		name  string
		reply http.HandlerFunc
		do    func(*Client) error
		asked int
		kind  string
	}{
		{"a read that is cut off twice", each(cut, half, say(200, nodeN1)), read, 3, ""},
		{"a read that is always cut off", cut, read, 3, "unreachable"},
		{"a read of garbage", say(200, "x"), read, 1, "unreachable"},
		{"a refused read", each(say(500, ""), say(200, nodeN1)), read, 1, "unreachable"},
		{"a change that is cut off", each(cut, say(200, nodeN1)), change, 1, "unreachable"},
		{"a read that is not let in", each(say(401, ""), say(200, nodeN1)), read, 2, ""},
		{"a change that is not let in", each(say(401, ""), say(200, nodeN1)), change, 2, ""},
		{"a change that is never let in", say(401, ""), change, 2, "unauthorized"},
		{"a change when all are busy", say(429, ""), change, 1, "busy 0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, tt.reply)
			err := tt.do(f.open(t))
			if got := kind(err); got != tt.kind || (err == nil) != (tt.kind == "") {
				t.Errorf("%v is %q, want %q", err, got, tt.kind)
			}
			if got := strings.Count(f.requests()+"\n", "\n"); got != tt.asked {
				t.Errorf("asked %d times, want %d", got, tt.asked)
			}
		})
	}
}

func TestAServerThatDoesNotReplyIsGivenUp(t *testing.T) {
	done := make(chan struct{})
	f := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-done:
		case <-r.Context().Done():
		}
	})
	t.Cleanup(func() { close(done) }) // before the server's: it waits for us
	c := f.open(t)
	c.one.time = 100 * time.Millisecond
	_, err := c.Node(t.Context(), "n1")
	if got := f.text(err, c) + ": " + kind(err); got != "asking HOST for node n1: no reply within 100ms: unreachable" {
		t.Error(got)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("told to end"))
	_, err = c.Node(ctx, "n1")
	if got := f.text(err, c); got != "asking HOST for node n1: told to end" {
		t.Error(got)
	}
	if got := kind(err); got == "unreachable" {
		t.Error("a call that its caller has ended is called unreachable")
	}
}

// A connection through a firewall that has forgotten it is not reset: it is
// silent, and HTTP/2 has all requests on one.
func TestADeadConnectionIsNotUsedTwice(t *testing.T) {
	f := serveHTTP2(t, say(200, nodeN1))
	var dead atomic.Bool
	c := open(t, f.through(t, func(first bool) bool { return !first || !dead.Load() }))
	cordon := func() error {
		_, err := c.Cordon(t.Context(), Node{Name: "n1"}, "k", "m")
		return err
	}
	if err := cordon(); err != nil {
		t.Fatal(err)
	}
	dead.Store(true)
	patience := c.one.time
	c.one.time = 50 * time.Millisecond
	if err := cordon(); kind(err) != "unreachable" {
		t.Errorf("over a dead connection: %v", err)
	}
	c.one.time = patience
	if err := cordon(); err != nil {
		t.Errorf("after a dead connection: %v", err)
	}
}

func TestNobodyListens(t *testing.T) {
	f := serve(t, say(200, nodeN1))
	c := f.open(t)
	f.Close()
	_, err := c.Node(t.Context(), "n1")
	if got := f.text(err, c) + ": " + kind(err); got != "asking HOST for node n1: dial tcp HOST: connect: connection refused: unreachable" {
		t.Error(got)
	}
}

func TestAnotherServerIsNotTrusted(t *testing.T) {
	f := serve(t, say(200, nodeN1))
	text, err := os.ReadFile(f.kubeconfig(t, t.TempDir(), "{token: x}"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "x")
	put(t, file, strings.Replace(string(text), "certificate-authority-data", "tls-server-name: not.this, certificate-authority-data", 1))
	c := open(t, file)
	_, err = c.Node(t.Context(), "n1")
	if kind(err) != "unreachable" || !strings.Contains(hint(err), "is not the API server that "+file+" is of") {
		t.Errorf("%v: %s: %s", err, kind(err), hint(err))
	}
	if asked := f.requests(); asked != "" {
		t.Errorf("asked %s", asked)
	}
}

func TestACertificateIsUsedFromTheMomentItIsThere(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request) {
		say(200, strings.Replace(nodeN1, "n1", r.TLS.PeerCertificates[0].Subject.CommonName, 1))(w, r)
	})
	dir := t.TempDir()
	current := filepath.Join(dir, "current.pem")
	put(t, current, certificate(t, "first"))
	c := open(t, f.kubeconfig(t, dir, "{client-certificate: current.pem, client-key: current.pem}"))
	as := func(want string) {
		t.Helper()
		n, err := c.Node(t.Context(), "n1")
		if err != nil || n.Name != want {
			t.Errorf("asked as %q, want %q (%v)", n.Name, want, err)
		}
	}
	as("first")
	put(t, current, certificate(t, "second"))
	as("second")
	put(t, current, "-----BEGIN CERT") // half written
	as("second")
	if err := os.Remove(current); err != nil {
		t.Fatal(err)
	}
	as("second")
	put(t, current, certificate(t, "third"))
	as("third")
	if _, err := Open(filepath.Join(dir, "none")); err == nil {
		t.Error("a file that never was is opened")
	}
}

func TestAProgramGetsTheCredential(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request) {
		say(200, strings.Replace(nodeN1, "n1", r.Header.Get("Authorization"), 1))(w, r)
	})
	program := func(script string) *Client {
		dir := t.TempDir()
		file := filepath.Join(dir, "get-token")
		put(t, file, "#!/bin/sh\n"+script)
		return open(t, f.kubeconfig(t, dir, "{exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: "+file+"}}"))
	}
	c := program(`echo '{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","status":{"token":"secret"}}'`)
	if n, err := c.Node(t.Context(), "n1"); err != nil || n.Name != "Bearer secret" {
		t.Errorf("asked as %q (%v)", n.Name, err)
	}
	f.requests()

	for name, tt := range map[string]struct {
		script, error string
		bound         time.Duration
	}{
		"that fails":      {"exit 3", "exit code 3", time.Minute},
		"that never ends": {`while [ -e "$0" ]; do sleep 0.02; done`, "context deadline exceeded", 50 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			c := program(tt.script)
			c.one.time = tt.bound
			_, err := c.Node(t.Context(), "n1")
			if kind(err) != "unauthorized" || !strings.Contains(f.text(err, c), tt.error) || !strings.Contains(hint(err), "if it names a program, run that by hand") {
				t.Errorf("%v: %s: %s", err, kind(err), hint(err))
			}
			if asked := f.requests(); asked != "" {
				t.Errorf("asked %s", asked)
			}
		})
	}
}

func TestOnlyAKubeconfigIsOpened(t *testing.T) {
	t.Setenv("KUBERNETES_MASTER", "https://192.0.2.1") // client-go's own way takes this
	for _, tt := range []struct{ name, text, error, hint string }{
		{"a KubeletConfiguration", "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
			"reading the kubeconfig FILE: its kind is KubeletConfiguration, not Config", "the kubelet's kubeconfig is the file that its flag --kubeconfig names"},
		{"an empty file", "", "reading the kubeconfig FILE: invalid configuration: no configuration has been provided, try setting KUBERNETES_MASTER environment variable", ""},
		{"no YAML", "\tx", "reading the kubeconfig FILE: yaml: found character that cannot start any token", ""},
		{"a missing certificate", "kind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\nclusters: [{name: x, cluster: {server: 'https://192.0.2.1'}}]\nusers: [{name: x, user: {client-certificate: no.pem, client-key: no.pem}}]\n",
			"reading the kubeconfig FILE: invalid configuration: [unable to read client-cert DIR/no.pem for x due to open DIR/no.pem: no such file or directory, unable to read client-key DIR/no.pem for x due to open DIR/no.pem: no such file or directory]", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "f")
			put(t, file, tt.text)
			_, err := Open(file)
			if err == nil {
				t.Fatal("it was")
			}
			if got := strings.NewReplacer(file, "FILE", filepath.Dir(file), "DIR").Replace(err.Error()); got != tt.error {
				t.Errorf("error %q, want %q", got, tt.error)
			}
			if got := hint(err); got != tt.hint {
				t.Errorf("hint %q, want %q", got, tt.hint)
			}
		})
	}
}

func TestTheNodesNameIsThatOfTheCredential(t *testing.T) {
	review := func(user string) http.HandlerFunc {
		return say(201, `{"kind":"SelfSubjectReview","status":{"userInfo":{"username":"`+user+`"}}}`)
	}
	for _, tt := range []struct {
		name, certificate  string
		reply              http.HandlerFunc
		want, error, asked string
	}{
		{name: "a kubelet's certificate", certificate: "system:node:n1.example", want: "n1.example"},
		{name: "another's", certificate: "admin", error: `reading the node's name from FILE: it is the credential of "admin", not of a kubelet`},
		{name: "a kubelet's token", reply: review("system:node:n1"), want: "n1", asked: whoami},
		{name: "another's token", reply: review("system:serviceaccount:kube-system:x"), asked: whoami,
			error: `reading the node's name from FILE: it is the credential of "system:serviceaccount:kube-system:x", not of a kubelet`},
		{name: "an API server before 1.28", reply: say(404, `{"message":"could not find it"}`), asked: whoami,
			error: "reading the node's name from FILE: asking HOST who we are: 404 Not Found: could not find it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, tt.reply)
			dir, user := t.TempDir(), "{token: x}"
			if tt.certificate != "" {
				put(t, filepath.Join(dir, "c.pem"), certificate(t, tt.certificate))
				user = "{client-certificate: c.pem, client-key: c.pem}"
			}
			c := open(t, f.kubeconfig(t, dir, user))
			got, err := c.NodeName(t.Context())
			if got != tt.want || f.text(err, c) != tt.error {
				t.Errorf("%q, %q; want %q, %q", got, f.text(err, c), tt.want, tt.error)
			}
			if asked := f.requests(); asked != tt.asked {
				t.Errorf("asked %q, want %q", asked, tt.asked)
			}
		})
	}
}

const whoami = `POST /apis/authentication.k8s.io/v1/selfsubjectreviews {"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`

func TestRequestsTellWhoAsks(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.UserAgent() + ", " + r.Header.Get("Authorization") + ", " + r.Header.Get("Accept"); got != "nodelocaldns, Bearer of-the-kubelet, application/json" {
			t.Error(got)
		}
		say(200, nodeN1)(w, r)
	})
	if _, err := f.open(t).Node(t.Context(), "n1"); err != nil {
		t.Error(err)
	}
}

package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A fake is an API server that says what it is told to, and remembers what it
// was asked. It is for what a real one cannot be made to say.
type fake struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string // "GET /path?query body", oldest first
}

// serve starts a fake that replies as reply does. The body is read already.
func serve(t *testing.T, reply http.HandlerFunc) *fake { return start(t, reply, false) }

// serveHTTP2 is serve with the protocol that API servers speak.
func serveHTTP2(t *testing.T, reply http.HandlerFunc) *fake { return start(t, reply, true) }

func start(t *testing.T, reply http.HandlerFunc, http2 bool) *fake {
	f := &fake{}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		f.asked = append(f.asked, strings.TrimSpace(fmt.Sprint(r.Method, " ", r.URL, " ", string(body))))
		f.mu.Unlock()
		reply(w, r)
	}))
	f.EnableHTTP2 = http2
	f.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	f.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

// requests are those since it was asked last.
func (f *fake) requests() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.asked, "\n")
	f.asked = nil
	return s
}

// say replies with a status and a body.
func say(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// cut closes the connection instead of a reply.
func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// each replies with the first of replies to the first request, and so on; the
// last stays.
func each(replies ...http.HandlerFunc) http.HandlerFunc {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		reply := replies[0]
		if len(replies) > 1 {
			replies = replies[1:]
		}
		mu.Unlock()
		reply(w, r)
	}
}

// kubeconfig writes one for f whose user is as given, in YAML.
func (f *fake) kubeconfig(t *testing.T, dir, user string) string {
	t.Helper()
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
	file := filepath.Join(dir, "kubelet.conf")
	put(t, file, fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: x
contexts: [{name: x, context: {cluster: x, user: x}}]
clusters: [{name: x, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: x, user: %s}]
`, f.URL, ca, user))
	return file
}

// through is a kubeconfig for f behind a proxy that loses what clients send over
// a connection, the first one or another, while pass is false.
func (f *fake) through(t *testing.T, pass func(first bool) bool) string {
	t.Helper()
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	go func() {
		for first := true; ; first = false {
			in, err := proxy.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", f.Listener.Addr().String())
			if err != nil {
				in.Close()
				return
			}
			go func() { _, _ = io.Copy(in, out) }()
			go func() {
				defer in.Close()
				defer out.Close()
				for b := make([]byte, 4096); ; {
					n, err := in.Read(b)
					if err != nil {
						return
					}
					if pass(first) {
						_, _ = out.Write(b[:n])
					}
				}
			}()
		}
	}()
	file := f.kubeconfig(t, t.TempDir(), "{token: of-the-kubelet}")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	put(t, file, strings.Replace(string(text), f.Listener.Addr().String(), proxy.Addr().String(), 1))
	return file
}

// open is a client of f with a token.
func (f *fake) open(t *testing.T) *Client {
	t.Helper()
	return open(t, f.kubeconfig(t, t.TempDir(), "{token: of-the-kubelet}"))
}

func open(t *testing.T, file string) *Client {
	t.Helper()
	c, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// put writes a file as kubelets do, so that it is never half there.
func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// certificate is one of a common name, with its key before it.
func certificate(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// kind is what an error can be told by.
func kind(err error) string {
	var kinds []string
	for _, k := range []struct {
		err  error
		name string
	}{
		{ErrUnreachable, "unreachable"}, {ErrUnauthorized, "unauthorized"}, {ErrForbidden, "forbidden"}, {ErrNotFound, "not found"},
		{ErrGone, "gone"}, {ErrNamespaceTerminating, "namespace terminating"},
	} {
		if errors.Is(err, k.err) {
			kinds = append(kinds, k.name)
		}
	}
	var conflict *Conflict
	if errors.As(err, &conflict) {
		kinds = append(kinds, "conflict")
	}
	var busy *Busy
	if errors.As(err, &busy) {
		kinds = append(kinds, fmt.Sprint("busy ", busy.RetryAfter))
	}
	var blocked *Blocked
	if errors.As(err, &blocked) {
		kinds = append(kinds, fmt.Sprint("blocked ", blocked.PDBs, " ", blocked.Why, " ", blocked.RetryAfter))
	}
	return strings.Join(kinds, ", ")
}

func hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// text is an error without what differs from run to run.
func (f *fake) text(err error, c *Client) string {
	if err == nil {
		return ""
	}
	return strings.NewReplacer(c.file, "FILE", f.Listener.Addr().String(), "HOST").Replace(err.Error())
}

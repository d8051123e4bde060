package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/cmd/internal/control"
	"nodelocaldns/dnscache"
	"nodelocaldns/dnscache/wire"
)

// Each file of testdata/why is an explanation as JSON, what was asked, and the words
// for it. The JSON is also the shape that others read: all of it is known, and none is
// left out.
func TestExplanationsAreRenderedInWords(t *testing.T) {
	files, err := filepath.Glob("testdata/why/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no explanations: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			ar := txtar.Parse(text)
			part := map[string]*txtar.File{}
			for i := range ar.Files {
				part[ar.Files[i].Name] = &ar.Files[i]
			}
			var x whyJSON
			dec := json.NewDecoder(bytes.NewReader(part["json"].Data))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&x); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			a := &app{term: term{stdout: &out}}
			if err := a.json(x, false); err != nil {
				t.Fatal(err)
			}
			part["json"].Data = bytes.Clone(out.Bytes())
			out.Reset()
			a.printWhy(x, strings.TrimSpace(string(part["asked"].Data)))
			part["words"].Data = out.Bytes()
			got := txtar.Format(ar)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(text), string(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestANameAndItsTypesAreReadAsWritten(t *testing.T) {
	for _, tt := range []struct {
		name  string
		types []string
		want  string // the name in wire form and the types, or what is wrong and what to do
	}{
		{"web.shop", nil, "\x03web\x04shop\x00 [1 28]"},
		{"Web.shop.", []string{"aaaa"}, "\x03Web\x04shop\x00 [28]"},
		{".", []string{"NS"}, "\x00 [2]"},
		{`a\.b.example`, []string{"TYPE65280", "type1"}, "\x03a.b\x07example\x00 [65280 1]"},
		{"example", []string{"AXFR", "ANY"}, "\x07example\x00 [252 255]"},
		{"", nil, `"" is not a domain name; parts of 1 to 63 characters with dots between them, 253 in all: web.shop.svc.cluster.local`},
		{"a..b", nil, `"a..b" is not a domain name; parts of 1 to 63 characters with dots between them, 253 in all: web.shop.svc.cluster.local`},
		{strings.Repeat("a", 64), nil, `"` + strings.Repeat("a", 64) + `" is not a domain name; parts of 1 to 63 characters with dots between them, 253 in all: web.shop.svc.cluster.local`},
		{strings.Repeat("a.", 128), nil, `"` + strings.Repeat("a.", 128) + `" is not a domain name; parts of 1 to 63 characters with dots between them, 253 in all: web.shop.svc.cluster.local`},
		{"a", []string{"B"}, `"B" is not a record type that is asked for; such as A, AAAA, PTR, SRV, TXT, or TYPE65 by its number`},
		{"a", []string{"TYPE65536"}, `"TYPE65536" is not a record type that is asked for; such as A, AAAA, PTR, SRV, TXT, or TYPE65 by its number`},
		{"a", []string{"TYPE0"}, `"TYPE0" is not a record type that is asked for; such as A, AAAA, PTR, SRV, TXT, or TYPE65 by its number`},
		{"a", []string{"OPT"}, `"OPT" is not a record type that is asked for; such as A, AAAA, PTR, SRV, TXT, or TYPE65 by its number`},
		{"10.96.0.10", nil, "10.96.0.10 is an address; nodelocaldns why 10.0.96.10.in-addr.arpa PTR is about its name"},
		{"::ffff:10.96.0.10", nil, "::ffff:10.96.0.10 is an address; nodelocaldns why 10.0.96.10.in-addr.arpa PTR is about its name"},
		{"fd00::1", []string{"PTR"}, "fd00::1 is an address; nodelocaldns why 1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR is about its name"},
	} {
		q, err := askWhy(tt.name, tt.types)
		got := fmt.Sprintf("%s %d", q.name, q.types)
		if err != nil {
			got = fmt.Sprintf("%v; %s", err, hintOf(err))
		}
		if got != tt.want {
			t.Errorf("%q %v: %q, want %q", tt.name, tt.types, got, tt.want)
			continue
		}
		if err != nil {
			continue
		}
		// The control socket reads the same.
		u, err := url.Parse(q.page())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseWhy(u.Query()); err != nil || fmt.Sprintf("%s %d", again.name, again.types) != got {
			t.Errorf("%s: %q %d, %v", q.page(), again.name, again.types, err)
		}
	}
}

// A fixed resolver explains what it was asked for.
type explainer struct {
	resolver
	asked []string
}

func (e *explainer) Explain(name []byte, types []uint16) dnscache.Explanation {
	e.asked = append(e.asked, fmt.Sprintf("%s %d", name, types))
	return dnscache.Explanation{Name: "a.example."}
}

func TestTheControlSocketExplainsOnlyWhatIsAQuestion(t *testing.T) {
	e := &explainer{}
	srv := httptest.NewServer((&serving{resolver: e}).controlHandler())
	defer srv.Close()
	get := func(page string) string {
		resp, err := http.Get(srv.URL + page)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, text)
	}
	if got := get("/why?name=a.example&type=TYPE1&type=TYPE28"); !strings.HasPrefix(got, `200 {"name":"a.example."`) {
		t.Error(got)
	}
	for _, page := range []string{"/why", "/why?name=a..b&type=A", "/why?name=a&type=B"} {
		if got := get(page); !strings.HasPrefix(got, "400 ") {
			t.Errorf("%s: %s", page, got)
		}
	}
	if diff := cmp.Diff([]string{"\x01a\x07example\x00 [1 28]"}, e.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestWhereNoResolverRunsItIsOneErrorAndAHint(t *testing.T) {
	servers := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}
	for _, tt := range []struct {
		rs   resolverStatus
		off  bool
		want string
	}{
		{resolverStatus{Why: "no resolver at run/control.sock"}, false, "asking the resolver: no resolver at run/control.sock; nodelocaldns status says who answers; --run-dir is that of the resolver"},
		{resolverStatus{Why: unseen}, false, "asking the resolver: not seen: needs root; run it as root"},
		{resolverStatus{Why: control.Why, Relay: &relayStatus{Servers: servers}}, true, "asking the resolver: the relay answers in its place; a rollback was asked for; the relay passes every query on to 10.96.0.10:53 and keeps nothing; nodelocaldns status says more"},
		{resolverStatus{Why: control.Why, Relay: &relayStatus{}}, false, "asking the resolver: the relay answers in its place; the relay knows no kube-dns: it answers every query SERVFAIL; nodelocaldns status says more"},
	} {
		err := noResolver(tt.rs, tt.off)
		if got := fmt.Sprintf("%v; %s", err, hintOf(err)); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// A resolver that is older than this program does not know the question.
func TestAResolverThatDoesNotExplainIsAnError(t *testing.T) {
	dir := t.TempDir()
	l, err := listenControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(resolverStatus{Running: true})
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	a := &app{runDir: dir, stateDir: t.TempDir(), term: term{stdout: io.Discard, stderr: io.Discard}}
	err = a.why(t.Context(), whyQuery{"a", []byte("\x01a\x00"), []uint16{wire.TypeA}}, false)
	if want := "asking " + filepath.Join(dir, controlSocket) + ": 404 Not Found"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

package migrate

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
)

var update = flag.Bool("update", false, "write what is made into the golden files; review each by eye")

// A golden file has sources, and what becomes of them: the keys of the
// configuration that are not as by default, then the report.
func TestImport(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) < 24 {
		t.Fatalf("%d golden files, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var sources []Source
			var want string
			golden := &txtar.Archive{Comment: a.Comment}
			for _, f := range a.Files {
				if f.Name == "config" || f.Name == "report" {
					want += fmt.Sprintf("-- %s --\n%s", f.Name, f.Data)
					continue
				}
				golden.Files = append(golden.Files, f)
				sources = append(sources, Source{f.Name, string(f.Data)})
			}
			c, report, err := Import(sources)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := config.Parse(bytes.NewReader(c.YAML())); err != nil || !bytes.Equal(again.YAML(), c.YAML()) {
				t.Errorf("config check does not read it back: %v", err)
			}
			var text strings.Builder
			for _, i := range report {
				fmt.Fprintln(&text, i)
			}
			golden.Files = append(golden.Files,
				txtar.File{Name: "config", Data: []byte(unusual(t, c))},
				txtar.File{Name: "report", Data: []byte(text.String())})
			if *update {
				if err := os.WriteFile(name, txtar.Format(golden), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			var got string
			for _, f := range golden.Files[len(golden.Files)-2:] {
				got += fmt.Sprintf("-- %s --\n%s", f.Name, f.Data)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// unusual are the keys of c that are not as by default, one a line.
func unusual(t *testing.T, c config.Config) string {
	t.Helper()
	usual := keysOf(t, config.Default())
	is := map[string]bool{}
	for _, line := range usual {
		is[line] = true
	}
	var b strings.Builder
	for _, line := range keysOf(t, c) {
		if !is[line] {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// keysOf are the keys of c, dotted, with their values.
func keysOf(t *testing.T, c config.Config) []string {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal(c.YAML(), &doc); err != nil {
		t.Fatal(err)
	}
	var lines []string
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				walk(path+"."+n.Content[i].Value, n.Content[i+1])
			}
		case yaml.SequenceNode:
			var items []string
			for _, item := range n.Content {
				items = append(items, item.Value)
			}
			lines = append(lines, fmt.Sprintf("%s: [%s]", path[1:], strings.Join(items, ", ")))
		default:
			lines = append(lines, path[1:]+": "+n.Value)
		}
	}
	walk("", doc.Content[0])
	return lines
}

func TestWhatCannotBeImportedHasOneErrorWithItsPlace(t *testing.T) {
	manifest := func(data string) string {
		return "apiVersion: v1\nkind: ConfigMap\ndata:\n" + data
	}
	for _, c := range []struct{ text, want string }{
		{"", "x:1: found no server block; " + hintSources},
		{". {\n errors\n", "x:1: the { that opens here is never closed"},
		{".\x1b[2J\n", "x:1: . [2J has no block; put its directives in braces: { behind the zones, } on a line of its own"},
		{"apiVersion: v1\nkind: [\n", "x: not YAML: line 2: did not find expected node content; " + hintSources},
		{"apiVersion: v1\nkind: Service\n", "x: found no Corefile, and neither stubDomains nor upstreamNameservers; " + hintSources},
		{manifest("  Corefile: {}\n"), "x:4: data.Corefile is no text; " + hintSources},
		{manifest("  Corefile: |\n    . {\n        errors }\n    }\n"), "x:6: found a } with something else on its line; write } on a line of its own"},
		{manifest("  Corefile: \". {\\n errors }\\n}\\n\"\n"), "x: Corefile:2: found a } with something else on its line; write } on a line of its own"},
		{manifest("  stubDomains: |\n    {\"a.b\": \"192.0.2.1\"}\n"), `x:4: stubDomains: found no JSON of the right shape (json: cannot unmarshal string into Go value of type []string), allowed: zones with lists of servers, such as {"corp.example": ["192.0.2.1"]}`},
		{manifest("  upstreamNameservers: 192.0.2.1\n"), `x:4: upstreamNameservers: found no JSON of the right shape (invalid character '.' after top-level value), allowed: a list of servers, such as ["192.0.2.1"]`},
		{manifest("  stubDomains: '{}'\n") + "---\n" + manifest("  stubDomains: '{}'\n"), "x:9: found stubDomains again, as at x:4"},
		{manifest("  Corefile: x\n") + "---\n" + manifest("  Corefile: x\n"), "x: Corefile:9: found a second Corefile, after that of x: Corefile; that of node-local-dns is to be imported; that of kube-dns itself stays what it is"},
		{"{{ .Values.domain }}:53 {\n}\n", `x:1: found "{{" as a zone, allowed: a domain name, such as cluster.local:53`},
		{"__PILLAR__ZONE__ {\n}\n", `x:1: found "__PILLAR__ZONE__" as a zone, allowed: a domain name, such as cluster.local:53`},
		{".:dns {\n}\n", `x:1: zone .:dns: found port "dns", allowed: a number from 1 to 65535`},
		{"tls://. {\n}\n", "x:1: found no block that answers pods over UDP and TCP; " + hintSources},
		{". {\n bind 192.0.2.1\n}\n. {\n bind 192.0.2.1\n}\n", "x:4: found zone . again, at the same address; CoreDNS does not start with this Corefile either"},
		{". {\n bind\n}\n", "x:2: bind: an address is missing"},
		{". {\n cache 0\n}\n", "x:2: cache: found a TTL of 0, allowed: seconds, 1 or more"},
		{". {\n cache {\n  success\n }\n}\n", "x:3: cache: success: the number of entries is missing"},
		{". {\n cache {\n  denial many\n }\n}\n", `x:3: cache: denial: found "many", allowed: a number of entries, then a TTL and a least TTL in seconds`},
		{". {\n cache {\n  success 1 0\n }\n}\n", "x:3: cache: success: found a TTL of 0, allowed: seconds, 1 or more"},
		{". {\n cache {\n  prefetch 1 1m 5%\n }\n}\n", `x:3: cache: found "prefetch 1 1m 5%", allowed: prefetch 2, or with a time and a share, such as prefetch 2 1m 10%`},
		{". {\n cache {\n  serve_stale 1h later\n }\n}\n", `x:3: cache: found "serve_stale 1h later", allowed: serve_stale, or with a time and a mode, such as serve_stale 1h verify`},
		{". {\n cache {\n  prefetch\n }\n}\n", `x:3: cache: found "prefetch", allowed: prefetch 2, or with a time and a share, such as prefetch 2 1m 10%`},
		{". {\n cache {\n  prefetch often\n }\n}\n", `x:3: cache: found "prefetch often", allowed: prefetch 2, or with a time and a share, such as prefetch 2 1m 10%`},
		{". {\n cache {\n  prefetch 2 soon\n }\n}\n", `x:3: cache: found "prefetch 2 soon", allowed: prefetch 2, or with a time and a share, such as prefetch 2 1m 10%`},
		{". {\n cache {\n  serve_stale long\n }\n}\n", `x:3: cache: found "serve_stale long", allowed: serve_stale, or with a time and a mode, such as serve_stale 1h verify`},
		{". {\n cache {\n  servfail\n }\n}\n", `x:3: cache: found "servfail", allowed: servfail DURATION`},
		{". {\n forward . 192.0.2.1 {\n  policy\n }\n}\n", `x:3: forward: found "policy", allowed: policy random, round_robin or sequential`},
		{manifest("  upstreamNameservers: '[]'\n") + "---\n" + manifest("  upstreamNameservers: '[]'\n"), "x:9: found upstreamNameservers again, as at x:4"},
		{". {\n cache {\n  servfail 1h\n }\n}\n", `x:3: cache: found "servfail 1h", allowed: servfail 0s to servfail 5m`},
		{". {\n cache {\n  disable all\n }\n}\n", `x:3: cache: found "disable all", allowed: disable success or disable denial, then zones`},
		{". {\n forward .\n}\n", `x:2: forward: found "forward .", allowed: a zone and its servers, such as forward . 192.0.2.1`},
		{". {\n forward . 192.0.2.1 {\n  force_tcp yes\n }\n}\n", `x:3: forward: found "force_tcp yes", allowed: force_tcp`},
		{". {\n forward . 192.0.2.1 {\n  policy fastest\n }\n}\n", `x:3: forward: found policy "fastest", allowed: random, round_robin, sequential`},
		{". {\n health 8080\n}\n", `x:2: health: found "8080", allowed: address:port, or :port for every address`},
	} {
		_, _, err := Import([]Source{{"x", c.text}})
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		got := e.Error()
		if e.Hint() != "" {
			got += "; " + e.Hint()
		}
		if got != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}

// Whatever is imported is a configuration that config check accepts.
func FuzzImport(f *testing.F) {
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(a.Files[0].Data))
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, _, err := Import([]Source{{"x", text}})
		var e *Error
		if errors.As(err, &e) && !strings.Contains(e.Text, "no valid configuration") {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := config.Parse(bytes.NewReader(c.YAML())); err != nil {
			t.Fatal(err)
		}
	})
}

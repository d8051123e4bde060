package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"nodelocaldns/cmd/nodelocaldns/internal/corefile"
)

// A Source is one file to import, under the name that it is reported by.
type Source struct{ Name, Text string }

// An Error says what keeps a source from being imported, and where.
type Error struct {
	At   string // the source, with the line where there is one
	Text string // on one line
	Next string // what to do; empty if Text says it
}

func (e *Error) Error() string { return e.At + ": " + e.Text }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Next }

// a text is a part of a source.
type text struct {
	name   string // of the source; with what is in it where lines cannot be told
	offset int    // of its first line in the source, from 0
	text   string
}

func (t text) at(line int) string { return fmt.Sprintf("%s:%d", t.name, t.offset+line) }

// found is what the sources are about.
type found struct {
	corefile    *text
	stubDomains map[string][]string
	stubsAt     place
	nameservers []string
	serversAt   place
	others      []entry // keys that are neither
}

// A place is a line of a source.
type place struct {
	file string
	line int
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// An entry is a key of a ConfigMap's data.
type entry struct {
	place
	key string
}

// manifest tells a manifest from a Corefile. No zone is called apiVersion.
var manifest = regexp.MustCompile(`(?m)^[ \t{]*"?apiVersion"?[ \t]*:`)

const hintSources = "kubectl -n kube-system get configmap node-local-dns kube-dns -o yaml prints what this reads"

// find looks through sources.
func find(sources []Source) (found, error) {
	var f found
	for _, s := range sources {
		var err error
		if manifest.MatchString(s.Text) {
			err = f.manifest(s)
		} else {
			err = f.setCorefile(text{name: s.Name, text: s.Text}, 1)
		}
		if err != nil {
			return f, err
		}
	}
	if f.corefile == nil && f.stubDomains == nil && f.nameservers == nil {
		var names []string
		for _, s := range sources {
			names = append(names, s.Name)
		}
		return f, &Error{strings.Join(names, ", "), "found no Corefile, and neither stubDomains nor upstreamNameservers", hintSources}
	}
	return f, nil
}

// manifest looks for ConfigMaps in a manifest, among whatever else is there.
func (f *found) manifest(s Source) error {
	dec := yaml.NewDecoder(strings.NewReader(s.Text))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &Error{s.Name, "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), hintSources}
		}
		for _, root := range doc.Content {
			if err := f.object(s, root); err != nil {
				return err
			}
		}
	}
}

// object looks for ConfigMaps in an object, which may be a list of them.
func (f *found) object(s Source, n *yaml.Node) error {
	if items := value(n, "items"); items != nil && items.Kind == yaml.SequenceNode {
		for _, item := range items.Content {
			if err := f.object(s, item); err != nil {
				return err
			}
		}
	}
	if kind := value(n, "kind"); kind == nil || kind.Value != "ConfigMap" {
		return nil
	}
	for _, part := range []string{"data", "binaryData"} {
		data := value(n, part)
		if data == nil || data.Kind != yaml.MappingNode {
			continue
		}
		for i := 0; i+1 < len(data.Content); i += 2 {
			if err := f.key(s, data.Content[i], data.Content[i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// value is that of a key of a mapping, nil if there is none.
func value(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	}
	return nil
}

// key takes in one key of a ConfigMap's data.
func (f *found) key(s Source, k, v *yaml.Node) error {
	at := place{s.Name, k.Line}
	if v.Kind != yaml.ScalarNode {
		return &Error{at.String(), fmt.Sprintf("data.%s is no text", clip(k.Value)), hintSources}
	}
	switch k.Value {
	case "Corefile":
		t := text{name: s.Name, offset: v.Line, text: v.Value}
		if v.Style&yaml.LiteralStyle == 0 {
			// In quotes its lines are not those of the manifest.
			t.name, t.offset = s.Name+": Corefile", 0
		}
		return f.setCorefile(t, k.Line)
	case "stubDomains":
		if f.stubDomains != nil {
			return &Error{at.String(), "found stubDomains again, as at " + f.stubsAt.String(), ""}
		}
		f.stubsAt = at
		return fromJSON(&f.stubDomains, at, k, v, `zones with lists of servers, such as {"corp.example": ["192.0.2.1"]}`)
	case "upstreamNameservers":
		if f.nameservers != nil {
			return &Error{at.String(), "found upstreamNameservers again, as at " + f.serversAt.String(), ""}
		}
		f.serversAt = at
		return fromJSON(&f.nameservers, at, k, v, `a list of servers, such as ["192.0.2.1"]`)
	}
	f.others = append(f.others, entry{at, k.Value})
	return nil
}

func (f *found) setCorefile(t text, line int) error {
	if f.corefile != nil {
		return &Error{place{t.name, line}.String(), "found a second Corefile, after that of " + f.corefile.name, "that of node-local-dns is to be imported; that of kube-dns itself stays what it is"}
	}
	f.corefile = &t
	return nil
}

// fromJSON reads what the kube-dns ConfigMap has as JSON in a text.
func fromJSON[T any](dst *T, at place, k, v *yaml.Node, allowed string) error {
	if strings.TrimSpace(v.Value) == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(v.Value), dst); err != nil {
		return &Error{at.String(), fmt.Sprintf("%s: found no JSON of the right shape (%v), allowed: %s", k.Value, err, allowed), ""}
	}
	return nil
}

// parseCorefile reads t. Its errors have the place in the source.
func parseCorefile(t text) (corefile.File, error) {
	f, err := corefile.Parse(t.text)
	var e *corefile.Error
	if errors.As(err, &e) {
		return f, &Error{t.at(e.Line), printable(e.Text), e.Next}
	}
	return f, err
}

// sorted are the keys of m in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// printable is s, which came from a file, without what a terminal would obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// clip shortens s, which came from a file, to what fits on a line.
func clip(s string) string {
	const most = 60
	s = printable(s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// nothingOfKubeDNS reports whether no ConfigMap of kube-dns has said anything.
func (f found) nothingOfKubeDNS() bool { return f.stubDomains == nil && f.nameservers == nil }

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds what is read. The reference is 4 KiB; a list of stub domains
// that fills the rest would be the largest ever seen.
const maxFile = 1 << 20

// document reads r as one YAML document and returns its root, or nil for a
// document without content. What YAML allows and a configuration does not
// need (anchors, aliases, tags, a second document) is a problem: it is where
// surprises and memory bombs come from.
func document(r io.Reader) (*yaml.Node, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if p, bad := unreadable(text); bad {
		return nil, Problems{p}
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, Problems{syntax(err, text)}
	}
	if err := dec.Decode(&second); err == nil {
		return nil, Problems{{Line: second.Line, Text: "found a second YAML document, allowed: one"}}
	} else if !errors.Is(err, io.EOF) {
		return nil, Problems{syntax(err, text)}
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	root := doc.Content[0]
	if ps := fancy(root, nil); len(ps) > 0 {
		return nil, ps.sorted()
	}
	if null(root) && root.Value == "" {
		return nil, nil
	}
	return root, nil
}

// unreadable finds what makes text no YAML at all.
func unreadable(text []byte) (Problem, bool) {
	lineAt := func(i int) int { return 1 + bytes.Count(text[:i], []byte("\n")) }
	switch {
	case len(text) > maxFile:
		return Problem{Line: lineAt(maxFile), Text: "found more than 1 MiB of configuration, allowed: up to 1 MiB"}, true
	case bytes.HasPrefix(text, []byte("\xef\xbb\xbf")):
		return Problem{Line: 1, Text: "found a byte order mark, allowed: UTF-8 without one"}, true
	case bytes.HasPrefix(text, []byte("\xff\xfe")), bytes.HasPrefix(text, []byte("\xfe\xff")):
		return Problem{Line: 1, Text: "found UTF-16, allowed: UTF-8"}, true
	case !utf8.Valid(text):
		i := 0
		for i < len(text) {
			r, n := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			i += n
		}
		return Problem{Line: lineAt(i), Text: fmt.Sprintf("found byte 0x%02x, allowed: UTF-8", text[i])}, true
	}
	return Problem{}, false
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?((?s:.*))$`)

// syntax turns the YAML package's error into a problem.
func syntax(err error, text []byte) Problem {
	// A tab where blanks must be is the commonest mistake, and the parser
	// names the line before or after it, with words that mention no tab.
	for i, line := range bytes.Split(text, []byte("\n")) {
		rest := bytes.TrimLeft(line, " \t")
		if indent := line[:len(line)-len(rest)]; bytes.ContainsRune(indent, '\t') && len(bytes.TrimSpace(rest)) > 0 && rest[0] != '#' {
			return Problem{Line: i + 1, Text: "found a tab in the indentation, allowed: blanks"}
		}
	}
	m := yamlError.FindStringSubmatch(err.Error())
	if m == nil {
		return Problem{Line: 1, Text: "not YAML: " + oneLine(err.Error())}
	}
	// The package leaves the number out where its count, from 0, is 0.
	line, _ := strconv.Atoi(m[1])
	return Problem{Line: max(line, 1), Text: "not YAML: " + oneLine(m[2])}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// fancy appends to ps every node that uses more of YAML than we read.
func fancy(n *yaml.Node, ps Problems) Problems {
	switch {
	case n.Kind == yaml.AliasNode:
		return append(ps, Problem{Line: n.Line, Text: fmt.Sprintf("found the alias *%s, allowed: the value itself", clip(n.Value))})
	case n.Anchor != "":
		ps = append(ps, Problem{Line: n.Line, Text: fmt.Sprintf("found the anchor &%s, allowed: the value itself", clip(n.Anchor))})
	case n.Style&yaml.TaggedStyle != 0:
		ps = append(ps, Problem{Line: n.Line, Text: fmt.Sprintf("found the tag %s, allowed: the value itself", clip(n.Tag))})
	}
	for _, c := range n.Content {
		ps = fancy(c, ps)
	}
	return ps
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe says what n is, for "found …".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!str":
		return strconv.Quote(clip(n.Value))
	}
	return clip(n.Value)
}

// clip shortens s, which came from the file, to what fits on a line.
func clip(s string) string {
	const most = 48
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// dotted is the path of key inside parent.
func dotted(parent, key string) string {
	if key = clip(key); !plainKey.MatchString(key) {
		key = strconv.Quote(key)
	}
	if parent == "" {
		return key
	}
	return parent + "." + key
}

// A field is one key of a mapping and what reads its value. path is dotted,
// the key included.
type field struct {
	key  string
	read func(path string, n *yaml.Node)
}

// A reader walks the document and collects what is wrong with it. Where a
// value is wrong, what the Config held before stays.
type reader struct {
	problems Problems
	known    []string // every path that could have been given, as mapping met it
	given    []string // every path that was
	later    []func() // what is read when all the rest has been
}

func (r *reader) problem(n *yaml.Node, path, format string, args ...any) {
	r.problems = append(r.problems, Problem{Line: n.Line, Key: path, Text: fmt.Sprintf(format, args...)})
}

// wrong reports that n is not what is allowed.
func (r *reader) wrong(n *yaml.Node, path, allowed string) {
	r.problem(n, path, "found %s, allowed: %s", describe(n), allowed)
}

// entries returns the keys and values of the mapping n. Repeated keys and
// keys that are no text are reported and left out.
func (r *reader) entries(path string, n *yaml.Node, allowed string) [][2]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.wrong(n, path, allowed)
		return nil
	}
	var es [][2]*yaml.Node
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || null(k) {
			r.problem(k, path, "found %s as a key, allowed: %s", describe(k), allowed)
			continue
		}
		if first, ok := lines[k.Value]; ok {
			r.problem(k, dotted(path, k.Value), "found this key again, allowed: once, as on line %d", first)
			continue
		}
		lines[k.Value] = k.Line
		es = append(es, [2]*yaml.Node{k, v})
	}
	return es
}

// mapping reads n, whose keys are all among fields. It reads them in the order
// of fields, so that a field may rely on those before it.
func (r *reader) mapping(path string, n *yaml.Node, fields ...field) {
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
		r.known = append(r.known, dotted(path, f.key))
	}
	allowed := strings.Join(keys, ", ")
	values := map[string]*yaml.Node{}
	for _, e := range r.entries(path, n, "a mapping of "+allowed) {
		if k := e[0].Value; !slices.Contains(keys, k) {
			r.problem(e[0], dotted(path, k), "unknown key, allowed: %s", allowed)
		} else {
			values[k] = e[1]
		}
	}
	for _, f := range fields {
		if v, ok := values[f.key]; ok {
			p := dotted(path, f.key)
			r.given = append(r.given, p)
			f.read(p, v)
		}
	}
}

// Package corefile reads the language of CoreDNS's configuration: server blocks
// of directives, as caddy's lexer and parser take them apart. It is stricter
// where those guess: what they take to be something else than it looks like is an
// error here. It knows no directive by name, but for import.
package corefile

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A File is what a Corefile says, snippets put in where they are imported.
type File struct {
	Blocks []Block
	// Imports are the import directives outside of blocks: the files that they
	// name may hold blocks, and have not been read.
	Imports []Directive
}

// A Block is a server block. An import among its directives, however deep, names
// files that have not been read.
type Block struct {
	Keys       []Word // zones as they are spelled, [scheme://]zone[:port]; at least one
	Directives []Directive
}

// A Directive is a line: a plugin, or an option of one.
type Directive struct {
	Line  int // from 1; that of its name, in the snippet if it is from one
	Name  string
	Args  []string
	Block []Directive // what stands in its braces
}

// A Word is one of the keys of a block.
type Word struct {
	Line int // from 1
	Text string
}

// String is d on one line, without what is in its braces.
func (d Directive) String() string {
	return strings.Join(append([]string{d.Name}, d.Args...), " ")
}

// An Error says what is wrong with a Corefile, and where.
type Error struct {
	Line int    // from 1
	Text string // on one line
	Next string // what to do; empty if Text says it
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Text) }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Next }

// Plugins have two levels of braces. Snippets may import snippets, and so a small
// file be a large one; what a ConfigMap holds without them (1 MiB) is far below.
const (
	maxDepth      = 16
	maxDirectives = 100_000
)

// Parse reads a Corefile. The error is an [*Error].
func Parse(text string) (File, error) {
	tokens, err := lex(text)
	if err != nil {
		return File{}, err
	}
	p := parser{tokens: tokens, snippets: map[string][]Directive{}}
	var f File
	for len(p.tokens) > 0 {
		if err := p.block(&f); err != nil {
			return File{}, err
		}
	}
	return f, nil
}

// A token is a word, or a brace.
type token struct {
	line   int
	text   string
	quoted bool // a brace in quotes is none
	first  bool // on its line
}

func (t token) is(brace string) bool { return !t.quoted && t.text == brace }

// lex takes text apart as caddy's lexer does: words are what stands between
// white space, or between quotes, in which only \" is special.
func lex(text string) ([]token, error) {
	if !utf8.ValidString(text) {
		return nil, &Error{Line: badByte(text), Text: "it is not UTF-8"}
	}
	var tokens []token
	line, first := 1, true
	text = strings.TrimPrefix(text, "\ufeff")
	for text != "" {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == '\n':
			line, first = line+1, true
			text = text[n:]
		case unicode.IsSpace(r):
			text = text[n:]
		case r == '#':
			text = text[len(untilLineEnd(text)):]
		default:
			t := token{line: line, first: first, quoted: r == '"'}
			var err error
			if t.quoted {
				t.text, text, err = quoted(text[n:], line)
				line += strings.Count(t.text, "\n")
			} else {
				t.text, text, err = bare(text, line)
			}
			if err == nil {
				err = noVariable(t)
			}
			if err != nil {
				return nil, err
			}
			tokens, first = append(tokens, t), false
		}
	}
	return tokens, nil
}

func badByte(text string) int {
	for i, r := range text {
		if _, n := utf8.DecodeRuneInString(text[i:]); r == utf8.RuneError && n == 1 {
			return 1 + strings.Count(text[:i], "\n")
		}
	}
	return 1
}

func untilLineEnd(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// quoted reads what is behind an opening quote, and returns the rest.
func quoted(s string, line int) (text, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '"':
			i++
			b.WriteByte('"')
		case s[i] == '"':
			return b.String(), s[i+1:], nil
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", &Error{Line: line, Text: `the quote that opens here is never closed`}
}

// bare reads a word without quotes, and returns the rest.
func bare(s string, line int) (text, rest string, err error) {
	end := strings.IndexFunc(s, func(r rune) bool { return unicode.IsSpace(r) || r == '#' })
	if end < 0 {
		return s, "", nil
	}
	if s[end] == '#' {
		// caddy ends the comment at the next blank, and reads on in it.
		return "", "", &Error{Line: line, Text: fmt.Sprintf("found a # within a word, behind %q", clip(s[:end])), Next: "write a blank before the # of a comment, and a # that is none in quotes"}
	}
	return s[:end], s[end:], nil
}

// noVariable refuses what caddy would replace by a variable of its environment.
func noVariable(t token) error {
	for _, v := range [][2]string{{"{$", "}"}, {"{%", "%}"}} {
		if _, rest, ok := strings.Cut(t.text, v[0]); ok {
			if name, _, ok := strings.Cut(rest, v[1]); ok && name != "" {
				return &Error{Line: t.line, Text: fmt.Sprintf("found the environment variable %s, which the file does not tell", clip(v[0]+name+v[1])), Next: "put its value in its place; the DaemonSet's env has it"}
			}
		}
	}
	return nil
}

// clip shortens s, which came from the file, to what fits on a line.
func clip(s string) string {
	const most = 48
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

type parser struct {
	tokens   []token // the rest
	last     int     // the line of the token before
	snippets map[string][]Directive
	expanded int // directives, snippets' included
}

func (p *parser) next() token {
	t := p.tokens[0]
	p.tokens, p.last = p.tokens[1:], t.line+strings.Count(t.text, "\n")
	return t
}

// line reads the words that are left on this line.
func (p *parser) line() []token {
	var words []token
	for len(p.tokens) > 0 && !p.tokens[0].first && !p.tokens[0].is("{") && !p.tokens[0].is("}") {
		words = append(words, p.next())
	}
	return words
}

// block reads a server block, a snippet, or an import outside of both.
func (p *parser) block(f *File) error {
	t := p.next()
	if t.is("{") || t.is("}") {
		return &Error{Line: t.line, Text: fmt.Sprintf("found %s, wanted the zones of a server block", t.text)}
	}
	words := append([]token{t}, p.line()...)
	if !t.quoted && t.text == "import" {
		d := Directive{Line: t.line, Name: t.text, Args: texts(words[1:])}
		if err := checkImport(d); err != nil {
			return err
		}
		if _, ok := p.snippets[d.Args[0]]; ok {
			return &Error{Line: t.line, Text: fmt.Sprintf("found the import of snippet %s outside of a block", clip(d.Args[0])), Next: "write its server blocks in its place"}
		}
		f.Imports = append(f.Imports, d)
		return nil
	}
	// A comma says that more zones follow, maybe on the next line.
	for strings.HasSuffix(words[len(words)-1].text, ",") && len(p.tokens) > 0 && !p.tokens[0].is("{") {
		words = append(append(words, p.next()), p.line()...)
	}
	var keys []Word
	for _, w := range words {
		if key := strings.TrimRight(w.text, ","); key != "" {
			keys = append(keys, Word{w.line, key})
		}
	}
	switch {
	case len(keys) == 0:
		return &Error{Line: t.line, Text: "found a server block without a zone"}
	case strings.HasSuffix(words[len(words)-1].text, ","):
		return &Error{Line: p.last, Text: "a zone is missing after the comma"}
	case len(p.tokens) == 0 || !p.tokens[0].is("{"):
		return &Error{Line: p.last, Text: fmt.Sprintf("%s has no block", clip(keys[0].Text)), Next: "put its directives in braces: { behind the zones, } on a line of its own"}
	}
	body, err := p.braces(0)
	if err != nil {
		return err
	}
	if name, ok := snippet(keys); ok {
		if _, again := p.snippets[name]; again {
			return &Error{Line: keys[0].Line, Text: fmt.Sprintf("found snippet %s again", clip(name))}
		}
		p.snippets[name] = body
		return nil
	}
	f.Blocks = append(f.Blocks, Block{Keys: keys, Directives: body})
	return nil
}

// snippet is the name of a block that is one: a single key in parentheses.
func snippet(keys []Word) (string, bool) {
	name, open := strings.CutPrefix(keys[0].Text, "(")
	name, shut := strings.CutSuffix(name, ")")
	return name, open && shut && len(keys) == 1
}

func texts(words []token) []string {
	var ts []string
	for _, w := range words {
		ts = append(ts, w.text)
	}
	return ts
}

// braces reads directives from an opening brace to the closing one. depth is
// how many are open around it.
func (p *parser) braces(depth int) ([]Directive, error) {
	open := p.next()
	if depth >= maxDepth {
		return nil, &Error{Line: open.line, Text: fmt.Sprintf("found more than %d braces in each other", maxDepth)}
	}
	if len(p.tokens) > 0 && !p.tokens[0].first {
		return nil, &Error{Line: open.line, Text: fmt.Sprintf("found %q behind {", clip(p.tokens[0].text)), Next: "begin a new line behind {"}
	}
	var ds []Directive
	for {
		if len(p.tokens) == 0 {
			return nil, &Error{Line: open.line, Text: "the { that opens here is never closed"}
		}
		t := p.next()
		switch {
		case t.is("}"):
			if !t.first || len(p.tokens) > 0 && !p.tokens[0].first {
				return nil, &Error{Line: t.line, Text: "found a } with something else on its line", Next: "write } on a line of its own"}
			}
			return ds, nil
		case t.is("{"):
			return nil, &Error{Line: t.line, Text: "found { without a directive in front of it"}
		}
		d := Directive{Line: t.line, Name: t.text, Args: texts(p.line())}
		if len(p.tokens) > 0 && p.tokens[0].is("{") {
			body, err := p.braces(depth + 1)
			if err != nil {
				return nil, err
			}
			d.Block = body
		} else if len(p.tokens) > 0 && !p.tokens[0].first {
			return nil, &Error{Line: t.line, Text: "found a } with something else on its line", Next: "write } on a line of its own"}
		}
		more := []Directive{d}
		if !t.quoted && d.Name == "import" {
			if err := checkImport(d); err != nil {
				return nil, err
			}
			if body, ok := p.snippets[d.Args[0]]; ok {
				more = body
			}
		}
		if p.expanded += count(more); p.expanded > maxDirectives {
			return nil, &Error{Line: t.line, Text: fmt.Sprintf("found more than %d directives, those of snippets counted where they are imported", maxDirectives)}
		}
		ds = append(ds, more...)
	}
}

// count counts directives, those in braces too.
func count(ds []Directive) int {
	n := len(ds)
	for _, d := range ds {
		n += count(d.Block)
	}
	return n
}

func checkImport(d Directive) error {
	if len(d.Args) != 1 || d.Args[0] == "" || d.Block != nil {
		return &Error{Line: d.Line, Text: fmt.Sprintf("import takes one file or snippet, found %d", len(d.Args))}
	}
	return nil
}

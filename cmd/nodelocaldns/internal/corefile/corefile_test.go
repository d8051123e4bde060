package corefile

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestABlockIsReadWithItsLines(t *testing.T) {
	const text = `# of a node
cluster.local:53 {   # the cluster's
    errors
    cache {
        success 9984 30
    }
    template IN A {
        match "^[^.]+ \"x\"
$"
        answer "}" "{"
    }
    loop
}

a.example, b.example
{
    bind 169.254.20.10 ::1
    hosts
    {
        192.0.2.1 c.example
    }
}
d.example,
e.example {
}
import /etc/coredns/*.server
`
	want := File{
		Blocks: []Block{
			{Keys: []Word{{2, "cluster.local:53"}}, Directives: []Directive{
				{Line: 3, Name: "errors"},
				{Line: 4, Name: "cache", Block: []Directive{{Line: 5, Name: "success", Args: []string{"9984", "30"}}}},
				{Line: 7, Name: "template", Args: []string{"IN", "A"}, Block: []Directive{{Line: 8, Name: "match", Args: []string{"^[^.]+ \"x\"\n$"}}, {Line: 10, Name: "answer", Args: []string{"}", "{"}}}},
				{Line: 12, Name: "loop"},
			}},
			{Keys: []Word{{15, "a.example"}, {15, "b.example"}}, Directives: []Directive{
				{Line: 17, Name: "bind", Args: []string{"169.254.20.10", "::1"}},
				{Line: 18, Name: "hosts", Block: []Directive{{Line: 20, Name: "192.0.2.1", Args: []string{"c.example"}}}},
			}},
			{Keys: []Word{{23, "d.example"}, {24, "e.example"}}},
		},
		Imports: []Directive{{Line: 26, Name: "import", Args: []string{"/etc/coredns/*.server"}}},
	}
	for _, text := range []string{text, strings.ReplaceAll(text, "\n", "\r\n"), "\ufeff" + text} {
		got, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "\r") { // the one in quotes is text
			got.Blocks[0].Directives[2].Block[0].Args[0] = strings.ReplaceAll(got.Blocks[0].Directives[2].Block[0].Args[0], "\r", "")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestASnippetStandsWhereItIsImported(t *testing.T) {
	got, err := Parse(`(common) {
    errors
    import caps
}
(caps) {
    success 9984
}
(all) {
    import common
    loop
}
. {
    import all
    cache {
        import caps
    }
}
`)
	want := File{Blocks: []Block{{Keys: []Word{{12, "."}}, Directives: []Directive{
		{Line: 2, Name: "errors"},
		{Line: 3, Name: "import", Args: []string{"caps"}}, // a file: that snippet comes later
		{Line: 10, Name: "loop"},
		{Line: 14, Name: "cache", Block: []Directive{{Line: 6, Name: "success", Args: []string{"9984"}}}},
	}}}}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNoCorefileHasOneErrorWithItsLine(t *testing.T) {
	bomb := "(s0) {\n errors\n}\n"
	for i := range 20 {
		bomb += fmt.Sprintf("(s%d) {\n import s%d\n import s%[2]d\n}\n", i+1, i)
	}
	for _, c := range []struct{ text, want string }{
		{". {\n errors\n", "line 1: the { that opens here is never closed"},
		{". {\n cache {\n  success 1\n}\n", "line 1: the { that opens here is never closed"},
		{". {\n}\n}\n", "line 3: found }, wanted the zones of a server block"},
		{"\n{\n}\n", "line 2: found {, wanted the zones of a server block"},
		{".:53\nerrors\n", "line 1: .:53 has no block; put its directives in braces: { behind the zones, } on a line of its own"},
		{". { errors }\n", `line 1: found "errors" behind {; begin a new line behind {`},
		{". {\n errors }\n", "line 2: found a } with something else on its line; write } on a line of its own"},
		{". {\n errors\n} example.org {\n}\n", "line 3: found a } with something else on its line; write } on a line of its own"},
		{". {\n\n {\n }\n}\n", "line 3: found { without a directive in front of it"},
		{". {\n log \"a\n}\n", "line 2: the quote that opens here is never closed"},
		{". {\n forward . 192.0.2.1#x\n}\n", `line 2: found a # within a word, behind "192.0.2.1"; write a blank before the # of a comment, and a # that is none in quotes`},
		{". {\n forward . {$DNS}\n}\n", "line 2: found the environment variable {$DNS}, which the file does not tell; put its value in its place; the DaemonSet's env has it"},
		{". {\n forward . {%DNS%}\n}\n", "line 2: found the environment variable {%DNS%}, which the file does not tell; put its value in its place; the DaemonSet's env has it"},
		{"a,\n", "line 1: a zone is missing after the comma"},
		{"\"\" {\n}\n", "line 1: found a server block without a zone"},
		{"(a) {\n}\n(a) {\n}\n", "line 3: found snippet a again"},
		{"(a) {\n}\nimport a\n", "line 3: found the import of snippet a outside of a block; write its server blocks in its place"},
		{". {\n import\n}\n", "line 2: import takes one file or snippet, found 0"},
		{"import a b\n", "line 1: import takes one file or snippet, found 2"},
		{". {\n" + strings.Repeat("a {\n", 16) + strings.Repeat("}\n", 17), "line 17: found more than 16 braces in each other"},
		{bomb, "line 66: found more than 100000 directives, those of snippets counted where they are imported"},
		{". {\n \xff\n}\n", "line 2: it is not UTF-8"},
	} {
		_, err := Parse(c.text)
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

// Whatever is read can be written down again, and is read as the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		".:53 {\n errors\n cache 30 {\n  success 1 2\n }\n}\n",
		"(a) {\n log \"x \\\" y\\\\\"\n}\nb, c {\n import a\n import /d\n}\nimport e\n",
		"a\n{\n b # c\n\n {\n }\n}\n", "\ufeff# x\r\n. {\r\n}\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		read, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(written(read))
		if err != nil {
			t.Fatalf("%v\n%s", err, written(read))
		}
		if diff := cmp.Diff(read, again, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(Word{}, "Line"), cmpopts.IgnoreFields(Directive{}, "Line")); diff != "" {
			t.Fatal(diff)
		}
	})
}

func written(f File) string {
	var b strings.Builder
	word := func(s string) string {
		if s == "" || s == "{" || s == "}" || s[0] == '"' || strings.ContainsAny(s, " \t\r\n\v\f#\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff") {
			return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
		}
		return s
	}
	var directives func(ds []Directive)
	directives = func(ds []Directive) {
		for _, d := range ds {
			name := word(d.Name)
			if d.Name == "import" && (len(d.Args) != 1 || d.Args[0] == "" || len(d.Block) > 0) {
				name = `"import"`
			}
			b.WriteString(name)
			for _, a := range d.Args {
				b.WriteString(" " + word(a))
			}
			if len(d.Block) > 0 {
				b.WriteString(" {\n")
				directives(d.Block)
				b.WriteString("}")
			}
			b.WriteString("\n")
		}
	}
	for _, block := range f.Blocks {
		for i, k := range block.Keys {
			if i == 0 && k.Text == "import" {
				k.Text = `"import"`
			} else {
				k.Text = word(k.Text)
			}
			b.WriteString(k.Text + " ")
		}
		b.WriteString("{\n")
		directives(block.Directives)
		b.WriteString("}\n")
	}
	directives(f.Imports)
	return b.String()
}

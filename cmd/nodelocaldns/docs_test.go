package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// A page has what --help says, and no word of it asks roff for anything.
func TestAManualPageSaysWhatHelpSays(t *testing.T) {
	root := &cobra.Command{Use: "tool", Short: "does things"}
	run := &cobra.Command{
		Use:     "run file",
		Short:   "run a file",
		Long:    "Run a file, as\n.profile does: don't.\n\nA back\\slash.\n  tool run -\n",
		Example: "  tool run ~/x",
		Run:     func(*cobra.Command, []string) {},
	}
	run.Flags().String("as-user", "root", "who is its `user`")
	run.Flags().BoolP("quiet", "q", false, "say nothing")
	run.Flags().Bool("secret", false, "")
	_ = run.Flags().MarkHidden("secret")
	hidden := &cobra.Command{Use: "hidden", Short: "not told of", Hidden: true, Run: func(*cobra.Command, []string) {}}
	root.AddCommand(run, hidden)

	pages := manuals(root, "2026-01-02", "tool v1")
	const want = `.TH TOOL\-RUN 8 "2026-01-02" "tool v1"
.nh
.ad l
.SH NAME
tool\-run \- run a file
.SH SYNOPSIS
\fBtool run\fR file [flags]
.SH DESCRIPTION
Run a file, as
\&.profile does: don\(aqt.
.PP
A back\eslash.
.EX
  tool run \-
.EE
.SH OPTIONS
.TP
\fB\-\-as\-user\fR \fIuser\fR
who is its user (default root)
.TP
\fB\-q\fR, \fB\-\-quiet\fR
say nothing
.PP
Those of \fBtool\fR(8) are taken too.
.SH EXAMPLES
.EX
  tool run \(ti/x
.EE
.SH EXIT STATUS
0 as asked, 1 error, 2 usage, 3 plan or status found a difference, config import something without a counterpart
.SH SEE ALSO
\fBtool\fR(8),
\fBnodelocaldns.yaml\fR(5)
`
	if diff := cmp.Diff(want, pages["tool-run.8"]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if strings.Contains(pages["tool.8"], "hidden") || pages["tool-hidden.8"] != "" {
		t.Error("a hidden command is told of")
	}
}

func TestTheManualOfTheConfigurationPutsCommentsBelowTheirLines(t *testing.T) {
	const reference = "# About it,\n# and more.\n\nlisten:\n  port: 53     # UDP\n  bare: {a: 1,  b: 2}\n"
	const want = `.SH NAME
nodelocaldns.yaml \- configuration of nodelocaldns
.SH SYNOPSIS
\fI/etc/nodelocaldns/config.yaml\fR
.SH DESCRIPTION
About it,
and more.
.PP
\fBlisten:\fR
.br
\ \ \fBport:\ 53\fR
.RS 8
UDP
.RE
.br
\ \ \fBbare:\ {a:\ 1,\ b:\ 2}\fR
.SH SEE ALSO
\fBnodelocaldns\fR(8),
\fBnodelocaldns\-config\fR(8)
`
	if diff := cmp.Diff(want, configPage(reference)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// There is one for each command, and for each that one of them refers to but
// that of the relay, which is no command.
func TestManWritesAPageForEachCommand(t *testing.T) {
	dir := t.TempDir()
	var stderr bytes.Buffer
	if code := run([]string{"man", "--date", "2026-01-02", dir}, nil, &stderr, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, name := range files {
		got = append(got, filepath.Base(name))
	}
	want := []string{"nodelocaldns.8", "nodelocaldns.yaml.5"}
	a := &app{}
	var add func(path string, all []*cobra.Command)
	add = func(path string, all []*cobra.Command) {
		for _, c := range all {
			if !c.Hidden && c.Name() != "help" {
				want = append(want, path+c.Name()+".8")
				add(path+c.Name()+"-", c.Commands())
			}
		}
	}
	add("nodelocaldns-", a.commands())
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	stderr.Reset()
	if code := run([]string{"man", filepath.Join(dir, "none")}, nil, &stderr, &stderr); code != 1 || !strings.Contains(stderr.String(), "writing a manual page: ") {
		t.Errorf("into a directory that is not there: %d %s", code, &stderr)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "nodelocaldns.8")); err != nil || !strings.Contains(string(text), `"2026-01-02"`) {
		t.Errorf("%v\n%s", err, text)
	}
}

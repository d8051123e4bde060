package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nodelocaldns/cmd/internal/buildinfo"
	"nodelocaldns/cmd/nodelocaldns/internal/config"
)

// manCommand is for those who make packages. It is written in man(7) here:
// cobra's own pages are made by way of Markdown, with two more modules.
func (a *app) manCommand() *cobra.Command {
	var date string
	cmd := &cobra.Command{
		Use:    "man dir",
		Short:  "write the manual pages into a directory",
		Hidden: true,
		Args:   args(1, "dir"),
		RunE: func(cmd *cobra.Command, dirs []string) error {
			source := "nodelocaldns " + buildinfo.This().Version
			for name, text := range manuals(cmd.Root(), date, source) {
				if err := os.WriteFile(filepath.Join(dirs[0], name), []byte(text), 0o644); err != nil {
					return fmt.Errorf("writing a manual page: %w", err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&date, "date", "", "`date` of this version, such as 2026-01-02")
	return cmd
}

// manuals are the pages by file name: one for each command, and that of the
// configuration. The date and what they are about, with its version, are in the
// footer.
func manuals(root *cobra.Command, date, source string) map[string]string {
	pages := map[string]string{"nodelocaldns.yaml.5": heading("nodelocaldns.yaml", 5, date, source) + configPage(string(config.Reference))}
	var add func(c *cobra.Command)
	add = func(c *cobra.Command) {
		name := pageName(c)
		pages[name+".8"] = heading(name, 8, date, source) + commandPage(c)
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				add(sub)
			}
		}
	}
	add(root)
	return pages
}

func heading(name string, section int, date, source string) string {
	// No hyphens and no wide spaces: the text is full of names.
	return fmt.Sprintf(".TH %s %d %q %q\n.nh\n.ad l\n", roff(strings.ToUpper(name)), section, date, source)
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// commandPage is the page of c without its heading: what --help prints, and
// where to read on.
func commandPage(c *cobra.Command) string {
	var b strings.Builder
	line := func(text string) { b.WriteString(text + "\n") }
	section := func(title string) { line(".SH " + title) }

	section("NAME")
	line(roff(pageName(c)) + ` \- ` + roff(c.Short))
	section("SYNOPSIS")
	if c.HasAvailableSubCommands() {
		line(bold(c.CommandPath()) + " [flags] command")
	} else {
		path := c.CommandPath()
		line(bold(path) + roff(strings.TrimPrefix(c.UseLine(), path)))
	}
	section("DESCRIPTION")
	if c.Long != "" {
		b.WriteString(paragraphs(c.Long))
	} else {
		line(roff(strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."))
	}
	see := []string{ref("nodelocaldns.yaml", 5)}
	if c.HasParent() {
		see = append([]string{ref(pageName(c.Parent()), 8)}, see...)
	}
	if c.HasAvailableSubCommands() {
		section("COMMANDS")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				line(".TP\n" + ref(pageName(sub), 8) + "\n" + roff(sub.Short))
			}
		}
	}
	section("OPTIONS")
	own := options(c.LocalFlags())
	b.WriteString(own)
	switch {
	case !c.HasParent():
	case own == "":
		line("Those of " + ref(pageName(c.Root()), 8) + ".")
	default:
		line(".PP\nThose of " + ref(pageName(c.Root()), 8) + " are taken too.")
	}
	if c.Example != "" {
		section("EXAMPLES")
		b.WriteString(paragraphs(c.Example))
	}
	_, exits, _ := strings.Cut(strings.TrimSpace(usage), "exit codes: ")
	section("EXIT STATUS")
	line(roff(exits))
	if !c.HasParent() {
		section("FILES")
		for _, f := range [][2]string{
			{defaultConfig, "the configuration; all of it has defaults, and the file may be absent"},
			{defaultStateDir, "the record of what was changed on the node and outlasts a reboot, and the off switch of a rollback"},
			{defaultRunDir, "the record of what ends with a reboot, locks, and what the processes tell each other"},
		} {
			line(".TP\n" + `\fI` + roff(f[0]) + `\fR` + "\n" + roff(f[1]))
		}
		see = append(see, ref("nodelocaldns-relay", 8))
	}
	section("SEE ALSO")
	line(strings.Join(see, ",\n"))
	return b.String()
}

// configPage is the page of the configuration: the reference file, with its
// comments below the lines that they are about.
func configPage(reference string) string {
	var b strings.Builder
	line := func(text string) { b.WriteString(text + "\n") }
	line(".SH NAME\n" + roff("nodelocaldns.yaml - configuration of nodelocaldns"))
	line(".SH SYNOPSIS\n" + `\fI` + roff(defaultConfig) + `\fR`)
	line(".SH DESCRIPTION")
	begin := ".br"
	for text := range strings.Lines(reference) {
		text = strings.TrimRight(text, "\n")
		key, comment, _ := strings.Cut(text, "# ")
		key = strings.TrimRight(key, " ")
		switch bare := strings.TrimLeft(key, " "); {
		case text == "":
			begin = ".PP"
			continue
		case bare == "":
			line(roff(comment))
		default:
			words := strings.Fields(bare)
			line(begin + "\n" + strings.Repeat(`\ `, len(key)-len(bare)) + strings.ReplaceAll(bold(strings.Join(words, " ")), " ", `\ `))
			if comment != "" {
				line(".RS 8\n" + roff(comment) + "\n.RE")
			}
		}
		begin = ".br"
	}
	line(".SH SEE ALSO\n" + ref("nodelocaldns", 8) + ",\n" + ref("nodelocaldns-config", 8))
	return b.String()
}

// options are flags, each with its argument, what it is for, and its default.
func options(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name, about := pflag.UnquoteUsage(f)
		b.WriteString(".TP\n")
		if f.Shorthand != "" {
			b.WriteString(bold("-"+f.Shorthand) + ", ")
		}
		b.WriteString(bold("--" + f.Name))
		if name != "" {
			b.WriteString(` \fI` + roff(name) + `\fR`)
		}
		b.WriteString("\n" + roff(about))
		if !slices.Contains([]string{"", "false", "0", "0s", "[]"}, f.DefValue) {
			b.WriteString(roff(" (default " + f.DefValue + ")"))
		}
		b.WriteString("\n")
	})
	return b.String()
}

// paragraphs are text that is filled, but for what is indented: examples.
func paragraphs(text string) string {
	var b strings.Builder
	example := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if indented := strings.HasPrefix(line, " "); indented != example {
			example = indented
			b.WriteString(map[bool]string{true: ".EX\n", false: ".EE\n"}[example])
		}
		if line == "" {
			line = ".PP"
		} else {
			line = roff(line)
		}
		b.WriteString(line + "\n")
	}
	if example {
		b.WriteString(".EE\n")
	}
	return b.String()
}

func bold(text string) string { return `\fB` + roff(text) + `\fR` }

func ref(name string, section int) string { return fmt.Sprintf("%s(%d)", bold(name), section) }

var escapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

// roff is one line of text as man(7) has it: an ASCII hyphen is one that can be
// copied, and a full stop at its beginning asks for nothing.
func roff(text string) string {
	text = escapes.Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

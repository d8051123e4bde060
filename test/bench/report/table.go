package report

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"nodelocaldns/test/bench/load"
)

// A Table is a part of the report.
type Table struct {
	Title string
	Head  []string
	Rows  [][]string
	// Left is how many columns are texts; the others are figures.
	Left int
	// Long says that its texts are too long for the lines of a terminal, where each
	// cell has a line of its own then.
	Long bool
}

// Tables are the whole report but its introduction.
func (r Run) Tables() []Table {
	var out []Table
	promises := Table{Title: "What is promised", Head: []string{"figure", "promised", "measured", "verdict"}, Left: 4, Long: true}
	for _, p := range r.Promises() {
		promises.Rows = append(promises.Rows, []string{p.Figure, p.Holds, p.Measured, p.Verdict})
	}
	out = append(out, promises)
	for _, c := range r.Cases {
		if c.Shows != Memory && c.Shows != Start {
			out = r.tableOf(out, c)
		}
	}
	out = r.footprint(out)
	troubles := Table{Title: fmt.Sprintf("Lost, wrong or dropped; where that is more than %d %%, no cost and no rate is shown", tolerated), Head: []string{"server", "case", "what"}, Left: 3, Long: true}
	for _, t := range r.Troubles() {
		troubles.Rows = append(troubles.Rows, []string{t.Subject, t.Case, t.What})
	}
	if len(troubles.Rows) > 0 {
		out = append(out, troubles)
	}
	subjects := Table{Title: "Servers", Head: []string{"server", "version", "set up"}, Left: 3}
	for _, s := range r.Subjects {
		subjects.Rows = append(subjects.Rows, []string{s.Name, s.Version, s.Setup})
	}
	return append(out, subjects)
}

// tableOf appends the table of a case, if any subject has figures in it.
func (r Run) tableOf(tables []Table, c Case) []Table {
	type column struct {
		head string
		m    measure
	}
	var columns []column
	switch c.Shows {
	case Full:
		columns = []column{{"CPU µs a query", cpu}, {"q/s", perSecond}}
	case AtRate:
		columns = []column{{"CPU µs a query", cpu}, {"p50 µs", p50}, {"p99 µs", p99}, {"p99.9 µs", p999}, {"99 % sent at most µs late", late}}
	case Lookups:
		count := func(of func(load.Result) int) measure {
			return func(s Sample) float64 { return float64(of(s.Load)) }
		}
		columns = []column{{"lookups", count(func(l load.Result) int { return l.Sent })}, {"errors", count(func(l load.Result) int { return l.Wrong })},
			{"over 5 s", count(func(l load.Result) int { return l.Slow })}, {"drops", func(s Sample) float64 { return float64(s.Drops) }},
			{"average µs", mean}, {"p99 µs", p99}, {"longest µs", most}}
	}
	t := Table{Title: c.Title, Head: []string{"server"}, Left: 1}
	for _, col := range columns {
		t.Head = append(t.Head, col.head)
	}
	for _, s := range r.Subjects {
		if !r.measured(s.Name, c.Name) {
			continue
		}
		row := []string{s.Name}
		for _, col := range columns {
			row = append(row, r.stat(s.Name, c.Name, col.m).String())
		}
		t.Rows = append(t.Rows, row)
	}
	if len(t.Rows) == 0 {
		return tables
	}
	return append(tables, t)
}

// footprint appends the table of memory and of the start.
func (r Run) footprint(tables []Table) []Table {
	t := Table{Title: "Memory and start", Head: []string{"server"}, Left: 1}
	measures := []measure{}
	var cases []Case
	for _, c := range r.Cases {
		m, unit := rss, ", RSS MiB"
		if c.Shows == Start {
			m, unit = start, ", ms"
		} else if c.Shows != Memory {
			continue
		}
		cases, measures, t.Head = append(cases, c), append(measures, m), append(t.Head, c.Title+unit)
	}
	for _, s := range r.Subjects {
		row, any := []string{s.Name}, false
		for i, c := range cases {
			v := r.stat(s.Name, c.Name, measures[i])
			any = any || !math.IsNaN(v.Median)
			row = append(row, v.String())
		}
		if any {
			t.Rows = append(t.Rows, row)
		}
	}
	if len(t.Rows) == 0 {
		return tables
	}
	return append(tables, t)
}

// busy is how much other work there may be before figures are said to be noisy, in
// processors.
const busy = 0.2

// intro is where and how it was measured.
func (r Run) intro() string {
	s := fmt.Sprintf("%s, %d × %s, Linux %s; rounds: %d, each figure is the median (least to greatest).",
		r.When.UTC().Format(time.DateOnly), r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Rounds)
	if r.Machine.Busy > busy {
		s += fmt.Sprintf(" The machine had other work (%s processors of it): these figures are noisy.", figure(r.Machine.Busy))
	}
	return s
}

// Text is the report for a terminal.
func (r Run) Text() string {
	var b strings.Builder
	fmt.Fprintln(&b, r.intro())
	for _, t := range r.Tables() {
		b.WriteByte('\n')
		b.WriteString(t.text())
	}
	return b.String()
}

// Markdown is the report as a document.
func (r Run) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\n%s\n", r.intro())
	for _, t := range r.Tables() {
		b.WriteByte('\n')
		b.WriteString(t.markdown())
	}
	return b.String()
}

// text is the table with columns of equal width.
func (t Table) text() string {
	rows := append([][]string{t.Head}, t.Rows...)
	widths := make([]int, len(t.Head))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	fmt.Fprintln(&b, t.Title)
	if t.Long {
		for _, row := range t.Rows {
			for i, cell := range row {
				indent := "  "
				if i > 0 {
					indent = "      " + t.Head[i] + ": "
				}
				if cell != "" {
					fmt.Fprintln(&b, indent+cell)
				}
			}
		}
		return b.String()
	}
	for _, row := range rows {
		line := " "
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i < t.Left {
				line += " " + cell + pad + " "
			} else {
				line += " " + pad + cell + " "
			}
		}
		fmt.Fprintln(&b, strings.TrimRight(line, " "))
	}
	return b.String()
}

func (t Table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n", t.Title)
	rule := make([]string, len(t.Head))
	for i := range rule {
		rule[i] = "---"
		if i >= t.Left {
			rule[i] = "---:"
		}
	}
	escape := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, row := range append([][]string{t.Head, rule}, t.Rows...) {
		b.WriteByte('|')
		for _, cell := range row {
			b.WriteString(" " + escape.Replace(cell) + " |")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

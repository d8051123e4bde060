package report

import (
	"fmt"
	"html"
	"strings"
	"time"
)

// The chart's layout, in pixels.
const (
	chartWidth = 760
	margin     = 20
	labelWidth = 110
	valueWidth = 170
	barHeight  = 14
	rowHeight  = 22
	panelHead  = 44
	barStart   = margin + labelWidth
	barSpace   = chartWidth - 2*margin - labelWidth - valueWidth
)

// style has the colours for a light and a dark page. A chart that is an image on a
// page is told which of them the reader has.
const style = `
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.note { fill: #59636e }
.bar { fill: #9aa4b0 }
.ours { fill: #0969da }
.floor { fill: none; stroke: #9aa4b0 }
.range { stroke: #1f2328; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .note { fill: #9198a1 }
  .bar { fill: #656c76 }
  .ours { fill: #4493f8 }
  .floor { fill: none; stroke: #656c76 }
  .range { stroke: #f0f6fc }
}
`

// A panel is one figure for all subjects that have it.
type panel struct {
	title, note, name string
	m                 measure
	upstream          bool // how upstream is asked matters
}

// Chart is an SVG of the main figures: the less, the better. There is a panel
// for each that was measured.
func (r Run) Chart() string {
	rate := figure(float64(r.Rate))
	panels := []panel{
		{"Cached query, full load", "CPU µs of the server a query, 1,000 names", Hits, cpu, false},
		{"Cached query at " + rate + " q/s", "CPU µs of the server a query, 1,000 names", HitsAtRate, cpu, false},
		{"Latency at " + rate + " q/s", "µs, 99 % are faster", HitsAtRate, p99, false},
		{"Miss, full load", "CPU µs of the server a query, each name once; upstream over TCP", Misses, cpu, true},
	}
	var b strings.Builder
	y := margin
	for _, p := range panels {
		subjects := r.byMedian(p.name, p.m)
		if len(subjects) == 0 {
			continue
		}
		widest := 0.0
		for _, s := range subjects {
			widest = max(widest, r.stat(s.Name, p.name, p.m).Max)
		}
		fmt.Fprintf(&b, `<text class="title" x="%d" y="%d">%s</text>`+"\n", margin, y+14, html.EscapeString(p.title))
		fmt.Fprintf(&b, `<text class="note" x="%d" y="%d">%s</text>`+"\n", margin, y+32, html.EscapeString(p.note))
		y += panelHead
		for _, s := range subjects {
			label := s.Name
			if p.upstream && s.UDP {
				label += " (UDP)"
			}
			bar(&b, y, s, label, r.stat(s.Name, p.name, p.m), widest)
			y += rowHeight
		}
		y += margin
	}
	foot := fmt.Sprintf("%s, %d × %s; bars are medians of %d rounds, lines the least and the greatest; outlined: what the kernel takes",
		r.When.UTC().Format(time.DateOnly), r.Machine.CPUs, r.Machine.CPU, r.Rounds)
	fmt.Fprintf(&b, `<text class="note" x="%d" y="%d">%s</text>`+"\n", margin, y+4, html.EscapeString(foot))
	y += margin
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="Benchmarks">`+"\n<style>%s</style>\n%s</svg>\n",
		chartWidth, y, chartWidth, y, style, b.String())
}

// bar draws the row of a subject.
func bar(b *strings.Builder, y int, s Subject, label string, v Stat, widest float64) {
	class := "bar"
	switch {
	case s.Name == Ours:
		class = "ours"
	case s.Floor:
		class = "floor"
	}
	at := func(f float64) float64 { return f / widest * barSpace }
	text := y + barHeight - 3
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, barStart-8, text, html.EscapeString(label))
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/>`, class, barStart, y, at(v.Median), barHeight)
	if v.Max > v.Min {
		fmt.Fprintf(b, `<line class="range" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, barStart+at(v.Min), barStart+at(v.Max), y+barHeight/2, y+barHeight/2)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", barStart+at(v.Max)+8, text, html.EscapeString(figure(v.Median)))
}

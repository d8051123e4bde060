package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Verdict is what has become of a directive.
type Verdict string

// The verdicts.
const (
	Taken    Verdict = "taken over"     // Text says as which key
	Unneeded Verdict = "not needed"     // Text says what does its work here
	Lost     Verdict = "no counterpart" // Text says what it did, and what to do instead
)

// An Item is what has become of a directive, or of the want of one.
type Item struct {
	File    string
	Lines   []int // where it stands, with the same outcome; empty: it stands nowhere
	What    string
	Verdict Verdict
	Text    string // on one line
}

// String is i on one line.
func (i Item) String() string {
	at := i.File
	if len(i.Lines) > 0 {
		lines := make([]string, len(i.Lines))
		for n, l := range i.Lines {
			lines[n] = strconv.Itoa(l)
		}
		at += ":" + strings.Join(lines, ",")
	}
	return fmt.Sprintf("%s: %s: %s: %s", at, i.What, i.Verdict, i.Text)
}

// A Report is what has become of all that was imported: what was taken over first,
// what is lost last, each by line.
type Report []Item

// Count is how many directives have met with v.
func (r Report) Count(v Verdict) int {
	n := 0
	for _, i := range r {
		if i.Verdict == v {
			n += max(len(i.Lines), 1)
		}
	}
	return n
}

// add takes in i; the same outcome at another line is the same item.
func (r *Report) add(i Item) {
	i.What, i.Text = printable(i.What), printable(i.Text)
	for n := range *r {
		if o := &(*r)[n]; o.File == i.File && o.What == i.What && o.Verdict == i.Verdict && o.Text == i.Text {
			for _, l := range i.Lines {
				if !slices.Contains(o.Lines, l) {
					o.Lines = append(o.Lines, l)
				}
			}
			return
		}
	}
	*r = append(*r, i)
}

func (r Report) sort() {
	order := []Verdict{Taken, Unneeded, Lost}
	for _, i := range r {
		slices.Sort(i.Lines)
	}
	slices.SortStableFunc(r, func(a, b Item) int {
		return cmp.Or(
			cmp.Compare(slices.Index(order, a.Verdict), slices.Index(order, b.Verdict)),
			cmp.Compare(a.File, b.File),
			slices.Compare(a.Lines, b.Lines),
		)
	})
}

package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Problem is one thing that is wrong with a configuration file.
type Problem struct {
	Line int    // from 1
	Key  string // dotted, such as listen.port; empty if the file itself is wrong
	Text string // what was found and what is allowed, on one line
}

// String is p without the file's name: "3: listen.port: found …".
func (p Problem) String() string {
	if p.Key == "" {
		return fmt.Sprintf("%d: %s", p.Line, p.Text)
	}
	return fmt.Sprintf("%d: %s: %s", p.Line, p.Key, p.Text)
}

// Problems is everything found wrong with one file, in the order of its
// lines. It is never empty where it is an error.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = "line " + p.String()
	}
	return strings.Join(lines, "; ")
}

func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return ps
}

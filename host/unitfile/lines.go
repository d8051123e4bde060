package unitfile

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	blank = " \t\n\r" // what systemd strips and splits at

	// maxLine is where systemd gives up on a line, continuation lines joined:
	// LONG_LINE_MAX in its src/basic/fileio.h.
	maxLine = 1 << 20

	byteOrderMark = "\ufeff"
)

// A logicalLine is what stands between two line ends, after continuation
// lines were joined and comments dropped.
type logicalLine struct {
	number int    // of its first line, from 1
	text   []byte // with a space for each backslash and line end
	at     []int  // for each byte of text its offset in the file
}

// parseFile calls each for every assignment in a file, in order, and warn for
// every line that counts for nothing. It returns why systemd reads no further,
// if it does not: the line is ill-formed, or each said so.
func parseFile(file string, data []byte, sections []string, each func(Setting) *BadSetting, warn func(Problem)) *BadSetting {
	section, known := "", false
	ignored := false // the section is one that nobody reads
	problem := func(l logicalLine, format string, args ...any) {
		warn(Problem{File: file, Line: l.number, Text: fmt.Sprintf(format, args...)})
	}
	fatal := func(number int, format string, args ...any) *BadSetting {
		return &BadSetting{File: file, Line: number, Text: fmt.Sprintf(format, args...)}
	}
	one := func(l logicalLine) *BadSetting {
		start, end := trim(l.text, 0, len(l.text))
		text := l.text[start:end]
		switch {
		case len(text) == 0:
			return nil
		case !validUTF8(text):
			// The message of systemd says "ignoring", but it leaves the file.
			return fatal(l.number, "not UTF-8")
		case text[0] == '[':
			if text[len(text)-1] != ']' {
				return fatal(l.number, "section header without ]")
			}
			name := string(text[1 : len(text)-1])
			if !safe(name) {
				return fatal(l.number, "section header with quotes or control characters")
			}
			known = slices.Contains(sections, name)
			section, ignored = name, !known
			if !known && !strings.HasPrefix(name, "X-") {
				problem(l, "unknown section [%s] is ignored", name)
			}
			return nil
		case !known:
			if !ignored {
				problem(l, "assignment outside of a section is ignored")
			}
			return nil
		}
		equals := bytes.IndexByte(text, '=')
		if equals <= 0 {
			problem(l, "line without key and = is ignored")
			return nil
		}
		ks, ke := trim(text, 0, equals)
		vs, ve := trim(text, equals+1, len(text))
		s := Setting{
			File:    file,
			Line:    l.number,
			Section: section,
			Key:     string(text[ks:ke]),
			Value:   string(text[vs:ve]),
		}
		at := l.at[start:]
		if vs < ve {
			s.Offset = at[vs]
			s.Raw = string(data[s.Offset : at[ve-1]+1])
			s.at = make([]int, ve-vs)
			for i := range s.at {
				s.at[i] = at[vs+i] - s.Offset
			}
		} else {
			s.Offset = at[equals] + 1
		}
		return each(s)
	}

	var open *logicalLine // a line that ends in a backslash
	number, bomSeen := 0, false
	for off := 0; off < len(data); {
		start, end, next, ok := readLine(data, off)
		if !ok {
			return fatal(number+1, "line longer than %d bytes", maxLine-1)
		}
		off = next
		number++
		line := data[start:end]
		if first := bytes.TrimLeft(line, blank); len(first) > 0 && (first[0] == '#' || first[0] == ';') {
			continue // also between two parts of a continued line
		}
		if !bomSeen && bytes.HasPrefix(line, []byte(byteOrderMark)) {
			bomSeen = true
			start += len(byteOrderMark)
			line = data[start:end]
		}
		l := logicalLine{number: number}
		if open != nil {
			if l = *open; len(l.text)+len(line) > maxLine {
				return fatal(number, "continued line longer than %d bytes", maxLine)
			}
		}
		l.text = append(l.text, line...)
		for i := range line {
			l.at = append(l.at, start+i)
		}
		if endsInBackslash(line) {
			l.text[len(l.text)-1] = ' '
			open = &l
			continue
		}
		open = nil
		if bad := one(l); bad != nil {
			return bad
		}
	}
	if open != nil {
		return one(*open)
	}
	return nil
}

// readLine returns the range of the line that begins at off, and where the
// next one begins. Line ends are \n, \r, NUL and what may be taken for one
// line end of several of them, such as \r\n.
func readLine(data []byte, off int) (start, end, next int, ok bool) {
	const lf, cr, nul = 1, 2, 4
	seen := 0
	n := 0
	for i := off; ; i++ {
		if n >= maxLine {
			return 0, 0, 0, false
		}
		if i == len(data) {
			return off, off + n, i, true
		}
		kind := 0
		switch data[i] {
		case '\n':
			kind = lf
		case '\r':
			kind = cr
		case 0:
			kind = nul
		}
		if seen&nul != 0 || kind == 0 && seen != 0 || kind&seen != 0 {
			return off, off + n, i, true
		}
		if seen |= kind; kind == 0 {
			n++
		}
	}
}

// endsInBackslash reports whether the last byte is a backslash that no other
// backslash escapes.
func endsInBackslash(line []byte) bool {
	n := 0
	for n < len(line) && line[len(line)-1-n] == '\\' {
		n++
	}
	return n%2 == 1
}

// trim returns the range without blanks at both ends.
func trim(text []byte, start, end int) (int, int) {
	for start < end && strings.IndexByte(blank, text[start]) >= 0 {
		start++
	}
	for start < end && strings.IndexByte(blank, text[end-1]) >= 0 {
		end--
	}
	return start, end
}

// safe reports whether systemd takes the text for a section or a program:
// no quotes, backslashes and control characters.
func safe(text string) bool {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c == 0x7f || c == '"' || c == '\'' || c == '\\' {
			return false
		}
	}
	return true
}

// validUTF8 is systemd's idea of it, which does not allow noncharacters such
// as U+FFFF.
func validUTF8(text []byte) bool {
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if r == utf8.RuneError && n == 1 || !validRune(r) {
			return false
		}
		text = text[n:]
	}
	return true
}

func validRune(r rune) bool {
	return r >= 0 && r < 0x110000 && (r < 0xd800 || r > 0xdfff) && (r < 0xfdd0 || r > 0xfdef) && r&0xfffe != 0xfffe
}

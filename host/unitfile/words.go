package unitfile

import (
	"errors"
	"strings"
)

// errQuote says that a quote is not closed, or that nothing follows a
// backslash.
var errQuote = errors.New("unbalanced quote")

// errEscape says that a backslash is followed by nothing known.
var errEscape = errors.New("unknown escape sequence")

// mode is how words are told apart in one place of systemd. In all of them
// blanks separate, and quotes, also in the middle of a word, hold together.
type mode int

const (
	cEscapes mode = 1 << iota // \n, \x20, \u00e9 and so on; else a backslash stands for the byte after it
	verbatim                  // an unknown escape sequence keeps its backslash
	relaxed                   // what is open at the end is closed
)

// A span is a word and where it stands.
type span struct {
	text       string
	start, end int
	next       int // where to look for the next word
	odd        bool
}

// firstWord returns the first word of text at or after i; ok is false if there
// is none.
func firstWord(text string, i int, m mode) (w span, ok bool, err error) {
	for i < len(text) && strings.IndexByte(blank, text[i]) >= 0 {
		i++
	}
	if i == len(text) {
		return span{next: i}, false, nil
	}
	w.start = i
	var b []byte
	quote := byte(0)
	for ; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\':
			i++
			if i == len(text) {
				switch {
				case m&verbatim != 0 && (quote == 0 || m&relaxed != 0):
					b = append(b, '\\')
				case m&relaxed == 0:
					return span{}, false, errQuote
				}
				w.text, w.end, w.next = string(b), i, i
				return w, true, nil
			}
			if m&cEscapes == 0 {
				b = append(b, text[i])
				continue
			}
			n := 0
			if b, n = unescape(b, text[i:]); n > 0 {
				i += n - 1
			} else if m&verbatim != 0 {
				b = append(b, '\\', text[i])
			} else {
				return span{}, false, errEscape
			}
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b = append(b, c)
		case c == '"' || c == '\'':
			quote = c
		case strings.IndexByte(blank, c) >= 0:
			w.text, w.end = string(b), i
			for i < len(text) && strings.IndexByte(blank, text[i]) >= 0 {
				i++
			}
			w.next = i
			return w, true, nil
		default:
			b = append(b, c)
		}
	}
	if quote != 0 && m&relaxed == 0 {
		return span{}, false, errQuote
	}
	w.text, w.end, w.next = string(b), i, i
	return w, true, nil
}

// firstWordOr tries again, with unknown escape sequences taken as they stand,
// as systemd does in command lines.
func firstWordOr(text string, i int) (span, bool, error) {
	w, ok, err := firstWord(text, i, cEscapes)
	if err == nil {
		return w, ok, nil
	}
	w, ok, err = firstWord(text, i, cEscapes|verbatim)
	w.odd = true
	if err != nil {
		err = errQuote
	}
	return w, ok, err
}

// splitWords is how the value of a lone $VAR becomes arguments.
func splitWords(text string) []string {
	var words []string
	for i := 0; ; {
		w, ok, err := firstWord(text, i, relaxed)
		if !ok || err != nil {
			return words
		}
		words = append(words, w.text)
		i = w.next
	}
}

// unescape appends what the escape sequence at the start of s, its backslash
// already gone, stands for. n is its length, 0 if it is none.
func unescape(b []byte, s string) (_ []byte, n int) {
	const names, values = `abfnrtv\"'s`, "\a\b\f\n\r\t\v\\\"' "
	if i := strings.IndexByte(names, s[0]); i >= 0 {
		return append(b, values[i]), 1
	}
	switch s[0] {
	case 'x':
		if v, ok := digits(s[1:], 2, 16); ok && v != 0 {
			return append(b, byte(v)), 3
		}
	case 'u':
		if v, ok := digits(s[1:], 4, 16); ok && v != 0 {
			return appendRune(b, v), 5
		}
	case 'U':
		if v, ok := digits(s[1:], 8, 16); ok && v != 0 && v < 0x110000 && validRune(rune(v)) {
			return appendRune(b, v), 9
		}
	case '0', '1', '2', '3', '4', '5', '6', '7':
		if v, ok := digits(s, 3, 8); ok && v != 0 && v < 256 {
			return append(b, byte(v)), 3
		}
	}
	return b, 0
}

func digits(s string, n int, base uint64) (v uint64, ok bool) {
	if len(s) < n {
		return 0, false
	}
	for i := range n {
		d := uint64(strings.IndexByte("0123456789abcdef", s[i]|0x20))
		if s[i] < '0' || d >= base {
			return 0, false
		}
		v = v*base + d
	}
	return v, true
}

// appendRune encodes like systemd, which does not mind surrogates in \u.
func appendRune(b []byte, v uint64) []byte {
	switch {
	case v < 1<<7:
		return append(b, byte(v))
	case v < 1<<11:
		return append(b, 0xc0|byte(v>>6), 0x80|byte(v&0x3f))
	case v < 1<<16:
		return append(b, 0xe0|byte(v>>12), 0x80|byte(v>>6&0x3f), 0x80|byte(v&0x3f))
	}
	return append(b, 0xf0|byte(v>>18), 0x80|byte(v>>12&0x3f), 0x80|byte(v>>6&0x3f), 0x80|byte(v&0x3f))
}

package notrack

import (
	"slices"
	"strings"
)

// Words splits a rule as iptables -S prints it: at spaces, but not between
// double quotes, where a backslash protects the next byte.
func Words(line string) []string {
	var out []string
	var w strings.Builder
	in, quoted := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\' && i+1 < len(line):
			i++
			w.WriteByte(line[i])
		case c == '"':
			quoted, in = !quoted, true
		case c == ' ' && !quoted:
			if in {
				out = append(out, w.String())
				w.Reset()
			}
			in = false
		default:
			w.WriteByte(c)
			in = true
		}
	}
	if in {
		out = append(out, w.String())
	}
	return out
}

// canon brings a rule to a form in which equal rules are equal: the versions
// of iptables add or leave out "-m udp" after "-p udp", and print the target
// NOTRACK as "CT --notrack".
//
// The rules are compared here and not by "iptables -C": that has been seen to
// miss rules that are there (iptables-nft 1.8.7), and each repair then adds
// one more.
func canon(rule []string) []string {
	var out []string
	for i := 0; i < len(rule); i++ {
		switch {
		case rule[i] == "-m" && i+1 < len(rule):
			i++
		case rule[i] == "-j" && i+2 < len(rule) && rule[i+1] == "CT" && rule[i+2] == "--notrack":
			out = append(out, "-j", "NOTRACK")
			i += 2
		default:
			out = append(out, rule[i])
		}
	}
	return out
}

// same says whether a chain holds exactly these rules, in this order.
func same(have []string, want [][]string) bool {
	return slices.EqualFunc(have, want, func(line string, rule []string) bool {
		return slices.Equal(canon(Words(line)), canon(rule))
	})
}

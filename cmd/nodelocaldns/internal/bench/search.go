package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// CheckName says why name cannot be looked up, nil if it can: glibc asks for
// names of letters, digits, hyphens and underscores alone (res_hnok).
func CheckName(name string) error {
	bare := strings.TrimSuffix(name, ".")
	if _, err := netip.ParseAddr(bare); err == nil {
		return fmt.Errorf("%s is an address, and nobody is asked for those", name)
	}
	switch {
	case bare == "":
		return errors.New("a name is empty")
	case len(bare) > maxName:
		return fmt.Errorf("%s is no name: it is longer than %d bytes", name, maxName)
	}
	for label := range strings.SplitSeq(bare, ".") {
		switch {
		case label == "":
			return fmt.Errorf("%q is no name: it has an empty label", name)
		case len(label) > maxLabel:
			return fmt.Errorf("%q is no name: a label is longer than %d bytes", name, maxLabel)
		case strings.HasPrefix(label, "-"):
			return fmt.Errorf("%q is no name: a label begins with a hyphen", name)
		}
		for _, r := range label {
			if !strings.ContainsRune(nameRunes, r) {
				return fmt.Errorf("%q is no name: it has a %q", name, r)
			}
		}
	}
	return nil
}

// The limits of RFC 1035, section 2.3.4; a name of 255 bytes on the wire has 253
// in text.
const (
	maxName  = 253
	maxLabel = 63
)

const nameRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// candidates are the names that a lookup of name asks for until one has an
// answer, fully qualified. asIs is the place of name itself among them.
func candidates(name string, search []string, ndots int) (names []string, asIs int) {
	if strings.HasSuffix(name, ".") {
		return []string{name}, 0
	}
	asIs = -1
	if strings.Count(name, ".") >= ndots {
		names, asIs = append(names, name+"."), 0
	}
	for _, domain := range search {
		domain = strings.Trim(domain, ".")
		if domain == "" { // the root
			if asIs < 0 {
				asIs = len(names)
			}
			names = append(names, name+".")
			continue
		}
		names = append(names, name+"."+domain+".")
	}
	if asIs < 0 {
		names, asIs = append(names, name+"."), len(names)
	}
	return names, asIs
}

// walk asks for candidates, by their number, until one has an answer, and
// returns what became of the lookup. It goes on where __res_context_search of
// glibc does: after NXDOMAIN, no data and SERVFAIL. After all else only the name
// as it is may yet be asked for.
func walk(n, asIs int, ask func(i int) Outcome) Outcome {
	var first, last Outcome
	var nodata, servfail bool
search:
	for i := range n {
		last = ask(i)
		switch {
		case last == Answered, last == Unfinished:
			return last
		case i == asIs && i == 0:
			first = last
		case last == unreachable:
			return last
		case last == NoData:
			nodata = true
		case last == Servfail:
			servfail = true
		case last != NXDomain:
			if asIs > i {
				last = ask(asIs)
			}
			break search
		}
	}
	switch {
	case last == Answered, last == Unfinished:
		return last
	case asIs == 0:
		return first
	case nodata:
		return NoData
	case servfail:
		return Servfail
	}
	return last
}

package kubelet

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A flag is one occurrence of a flag among arguments.
type flag struct {
	name  string // with dashes, however it was spelt
	value string
	bare  bool // nothing followed: no "=" and no further word
	first int  // index of the word with the name
	last  int  // index of the word with the value: first, or the one after
}

const clusterDNS = "cluster-dns"

// wantsValue are the flags whose value we read.
var wantsValue = map[string]bool{clusterDNS: true, "config": true, "config-dir": true, "kubeconfig": true}

// flags reads args, without the program, the way the kubelet's flag library
// (spf13/pflag with an underscore taken for a dash) reads them. A flag that is
// not followed by "=" takes the next word unless that one starts with a dash;
// the flags we read take it in any case, as pflag does for a flag that it knows
// to want a value. Words after "--" and words that are no flags make the kubelet
// exit, and so does a long flag with one dash: those are the error.
func flags(args []string) ([]flag, error) {
	var out []flag
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			if i+1 < len(args) {
				return out, fmt.Errorf("%q after -- is no flag: the kubelet would exit", args[i+1])
			}
			return out, nil
		case strings.HasPrefix(arg, "--"):
		case strings.HasPrefix(arg, "-") && len(arg) > 1:
			// The kubelet has -h and -v alone as short flags.
			if strings.HasPrefix(arg, "-v") || arg == "-h" {
				if arg == "-v" && i+1 < len(args) {
					i++
				}
				continue
			}
			return out, fmt.Errorf("%q has one dash: the kubelet would exit", arg)
		default:
			return out, fmt.Errorf("%q is no flag: the kubelet would exit", arg)
		}
		name, value, given := strings.Cut(arg[2:], "=")
		f := flag{name: strings.ReplaceAll(name, "_", "-"), value: value, first: i, last: i}
		if !given {
			switch rest := args[i+1:]; {
			case len(rest) == 0:
				f.bare = true
			case wantsValue[f.name] || !strings.HasPrefix(rest[0], "-"):
				i++
				f.value, f.last = rest[0], i
			default:
				f.bare = true
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// lastValue is the value of the flag, whose last occurrence counts.
func lastValue(all []flag, name string) (string, bool) {
	value, ok := "", false
	for _, f := range all {
		if f.name == name && !f.bare {
			value, ok = f.value, true
		}
	}
	return value, ok
}

// serversOf is the list that --cluster-dns gives, entry by entry as written:
// the first occurrence replaces what the configuration says, the others
// append. set says that there is one at all: an empty list that is set wipes
// that of the configuration.
func serversOf(all []flag) (list []string, set bool, err error) {
	for _, f := range all {
		if f.name != clusterDNS {
			continue
		}
		if f.bare {
			return nil, false, fmt.Errorf("--%s without a value: the kubelet would exit", clusterDNS)
		}
		entries, err := splitCSV(f.value)
		if err != nil {
			return nil, false, fmt.Errorf("--%s=%s: %w: the kubelet would exit", clusterDNS, f.value, err)
		}
		list, set = append(list, entries...), true
	}
	return list, set, nil
}

// splitCSV splits the value of a list flag: one record of comma-separated
// values, quoted as in a spreadsheet.
func splitCSV(value string) ([]string, error) {
	if value == "" {
		return nil, nil
	}
	entries, err := csv.NewReader(strings.NewReader(value)).Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("no value in it")
	}
	return entries, err
}

package unitfile

import "strings"

// unitTypes are the suffixes of unit names.
var unitTypes = []string{
	"service", "socket", "target", "device", "mount", "automount", "swap",
	"timer", "path", "slice", "scope",
}

// A unitName is a name taken apart: prefix@instance.kind.
type unitName struct {
	prefix, instance, kind string
	at                     bool // a template, or an instance of one
}

// parseName reports whether name can be the name of a unit (systemd.unit(5)).
func parseName(name string) (unitName, bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || len(name) > 255 {
		return unitName{}, false
	}
	n := unitName{kind: name[dot+1:]}
	found := false
	for _, t := range unitTypes {
		found = found || t == n.kind
	}
	if !found {
		return unitName{}, false
	}
	n.prefix, n.instance, n.at = strings.Cut(name[:dot], "@")
	if n.prefix == "" {
		return unitName{}, false
	}
	for i := range dot {
		c := name[i]
		if c != '@' && strings.IndexByte(":-_.\\", c) < 0 && !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z') {
			return unitName{}, false
		}
	}
	return n, true
}

func (n unitName) String() string { return n.stem() + "." + n.kind }

// stem is the name without its type.
func (n unitName) stem() string {
	if n.at {
		return n.prefix + "@" + n.instance
	}
	return n.prefix
}

// template is the name without its instance.
func (n unitName) template() unitName {
	n.instance = ""
	return n
}

func (n unitName) isTemplate() bool { return n.at && n.instance == "" }

func (n unitName) isInstance() bool { return n.instance != "" }

// shorter returns the name whose drop-ins count for this unit too: a-b-c.service
// has a-b-.service, and that has a-.service.
func (n unitName) shorter() (unitName, bool) {
	p := strings.TrimSuffix(n.prefix, "-")
	dash := strings.LastIndexByte(p, '-')
	if dash <= 0 {
		return unitName{}, false
	}
	n.prefix = p[:dash+1]
	return n, true
}

// unescapeName undoes systemd-escape(1).
func unescapeName(s string) (string, bool) {
	var b []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			b = append(b, '/')
		case s[i] == '\\':
			v, ok := uint64(0), len(s) > i+3 && s[i+1] == 'x'
			if ok {
				v, ok = digits(s[i+2:], 2, 16)
			}
			if !ok {
				return "", false
			}
			b = append(b, byte(v))
			i += 3
		default:
			b = append(b, s[i])
		}
	}
	return string(b), true
}

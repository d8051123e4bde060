package unitfile

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// errSpecifier says that systemd itself cannot replace a specifier.
var errSpecifier = errors.New("unknown specifier")

// An unknownError says that only a running system knows.
type unknownError struct{ what string }

func (e *unknownError) Error() string { return e.what + " is not known from files" }

// specifiers replaces %x in text as systemd does for a setting of file. The
// error is an *unknownError or wraps errSpecifier.
func (u *Unit) specifiers(text, file string) (string, error) {
	if strings.IndexByte(text, '%') < 0 {
		return text, nil
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '%' || i+1 == len(text) {
			b.WriteByte(c)
			continue
		}
		i++
		switch c := text[i]; {
		case c == '%':
			b.WriteByte('%')
		case c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z':
			value, err := u.specifier(c, file)
			if err != nil {
				return "", err
			}
			b.WriteString(value)
		default:
			b.WriteByte('%')
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

func (u *Unit) specifier(c byte, file string) (string, error) {
	unknown := &unknownError{what: "%" + string(c)}
	given := func(value string) (string, error) {
		if value == "" {
			return "", unknown
		}
		return value, nil
	}
	unescaped := func(s string) (string, error) {
		if s, ok := unescapeName(s); ok {
			return s, nil
		}
		return "", fmt.Errorf("%%%c: %w", c, errSpecifier)
	}
	n, _ := parseName(u.ID)
	last := n.prefix[strings.LastIndexByte(n.prefix, '-')+1:]
	switch c {
	case 'n', 'N', 'p', 'P', 'j', 'J', 'f', 'd':
		// The fragment is read under the name by which the unit was first
		// asked for, drop-ins under the fragment's.
		if len(u.names) > 1 && file == u.Fragment {
			return "", &unknownError{what: fmt.Sprintf("%%%c of a unit with several names", c)}
		}
	}
	switch c {
	case 'n':
		return u.ID, nil
	case 'N':
		return n.stem(), nil
	case 'p':
		return n.prefix, nil
	case 'P':
		return unescaped(n.prefix)
	case 'i':
		return n.instance, nil
	case 'I':
		return unescaped(n.instance)
	case 'j':
		return last, nil
	case 'J':
		return unescaped(last)
	case 't':
		return "/run", nil
	case 'S':
		return "/var/lib", nil
	case 'C':
		return "/var/cache", nil
	case 'L':
		return "/var/log", nil
	case 'E':
		return "/etc", nil
	case 'T':
		return "/tmp", nil
	case 'V':
		return "/var/tmp", nil
	case 'u', 'g':
		return "root", nil
	case 'U', 'G':
		return "0", nil
	case 'h':
		return "/root", nil
	case 'H':
		return given(u.host.Hostname)
	case 'l':
		short, _, _ := strings.Cut(u.host.Hostname, ".")
		return given(short)
	case 'b':
		return given(u.host.BootID)
	case 'v':
		return given(u.host.Kernel)
	case 'a':
		return given(u.host.Arch)
	case 'm':
		return given(u.machineID())
	case 'o':
		return u.osRelease("ID", unknown)
	case 'w':
		return u.osRelease("VERSION_ID", unknown)
	case 'B':
		return u.osRelease("BUILD_ID", unknown)
	case 'W':
		return u.osRelease("VARIANT_ID", unknown)
	case 'c', 'r', 'R', 's', 'f', 'd', 'D', 'y', 'Y', 'q', 'A', 'M':
		// Some need the running manager, some are younger than 247.
		return "", unknown
	}
	return "", fmt.Errorf("%%%c: %w", c, errSpecifier)
}

// machineID is the content of /etc/machine-id, "" if the node has none yet.
func (u *Unit) machineID() string {
	data, err := u.files.readFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	id := strings.ToLower(strings.TrimSuffix(string(data), "\n"))
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" || strings.Trim(id, "0") == "" {
		return ""
	}
	return id
}

// osRelease is a field of os-release(5). A field that is not there is empty.
func (u *Unit) osRelease(key string, unknown error) (string, error) {
	for _, dir := range []string{"/etc", "/usr/lib"} {
		file := path.Join(dir, "os-release")
		data, err := u.files.readFile(file)
		if err != nil {
			continue
		}
		vars, err := ParseEnvFile(file, data, u.host)
		if err != nil {
			return "", unknown
		}
		value := ""
		for _, v := range vars {
			if v.Name == key {
				value = v.Value
			}
		}
		return value, nil
	}
	return "", unknown
}

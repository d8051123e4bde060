package units

import (
	"bytes"
	"slices"
	"strings"
)

// DropInName is the file in the directory of a unit's drop-ins that is ours. Those
// of an administrator are read after it, as a rule: systemctl edit writes
// override.conf, and systemctl set-property 50-MemoryMax.conf.
const DropInName = "05-nodelocaldns.conf"

// A fitted is what of a unit depends on the configuration.
type fitted struct {
	section string
	keys    []string // the beginnings of lines
	reset   string   // the line by which what the unit says is forgotten
	adds    bool     // lines are added to what the unit says
}

var (
	listens = fitted{"Socket", []string{"ListenDatagram=", "ListenStream="}, "ListenStream=", false}
	fitting = []fitted{
		{"Unit", []string{"Before=", "After="}, "", true},
		listens,
		{"Service", []string{stamped}, "", false}, // so that it is started again
		{"Service", []string{"ExecStart="}, "ExecStart=", false},
		{"Service", []string{"BindReadOnlyPaths="}, "", true},
		{"Service", []string{"Environment=GOMEMLIMIT="}, "", false},
		{"Service", []string{"MemoryMax="}, "", false},
	}
)

// of is the lines in text.
func (f fitted) of(text []byte) []string {
	var out []string
	for line := range strings.Lines(string(text)) {
		if slices.ContainsFunc(f.keys, func(key string) bool { return strings.HasPrefix(line, key) }) {
			out = append(out, line)
		}
	}
	return out
}

// DropIn returns the drop-in by which a unit of that name that says something else,
// one that a package or an administrator has brought, does what f does, as far as
// that is for the configuration to say. It is nil where there is nothing to say: what
// the configuration leaves as it is by default is for who brought the unit.
func (f File) DropIn(says []byte) []byte {
	var out bytes.Buffer
	section := ""
	for _, what := range fitting {
		want, plain, has := what.of(f.Content), what.of(f.Plain), what.of(says)
		if slices.Equal(want, plain) || slices.Equal(want, has) {
			continue
		}
		if what.adds {
			want = slices.DeleteFunc(want, func(line string) bool { return slices.Contains(has, line) || slices.Contains(plain, line) })
		}
		if section != what.section && len(want) > 0 {
			section = what.section
			out.WriteString("\n[" + section + "]\n")
		}
		if what.reset != "" {
			out.WriteString(what.reset + "\n")
		}
		out.WriteString(strings.Join(want, ""))
	}
	if out.Len() == 0 {
		return nil
	}
	return slices.Concat([]byte("# For what the configuration says; nodelocaldns apply keeps it so.\n"), out.Bytes())
}

// Listens are the lines that say where a socket unit listens, one file of it read
// after the other.
func Listens(files ...[]byte) string {
	var out []string
	for _, text := range files {
		if lines := listens.of(text); len(lines) > 0 {
			out = slices.DeleteFunc(lines, func(line string) bool { return line == listens.reset+"\n" })
		}
	}
	return strings.Join(out, "")
}

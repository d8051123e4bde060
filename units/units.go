// Package units holds what systemd runs: the unit files of this directory,
// which are as a package installs them, those below lib, which a package puts below
// /usr/lib, and what they are for a node whose configuration says otherwise.
//
// The sockets are those of a socket unit, and not in the descriptor store of the
// resolver. Either outlives a process that is killed or restarted, but what is
// stored is gone when its service is stopped, nobody else can adopt it, and nobody
// is started for the queries that wait in it. And systemd makes the sockets as root:
// with a receive buffer that the resolver may not have.
package units

import (
	"bytes"
	"embed"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// The names of the units.
const (
	Socket   = "nodelocaldns.socket"
	Guard    = "nodelocaldns-guard.service"
	Resolver = "nodelocaldns.service"
	Relay    = "nodelocaldns-relay.service"
	Kubelet  = "nodelocaldns-kubelet.service"
	Resume   = "nodelocaldns-resume.service"
)

// Names are all units, in the order in which they start.
var Names = []string{Guard, Socket, Resolver, Relay, Kubelet, Resume}

//go:embed *.socket *.service lib
var files embed.FS

// UnitDir is File.Dir of the units.
const UnitDir = "systemd/system"

// others are the files besides units.
var others = []File{
	// Where one of the two manages interfaces, it would take ours for its own.
	{Dir: "systemd/network", Name: "10-nodelocaldns.network", Readers: []string{"/usr/lib/systemd/systemd-networkd", "/lib/systemd/systemd-networkd"}},
	{Dir: "NetworkManager/conf.d", Name: "nodelocaldns.conf", Readers: []string{"/usr/sbin/NetworkManager", "/usr/bin/NetworkManager"}},
	{Dir: "modules-load.d", Name: "nodelocaldns.conf"},

	// Without the first, DynamicUser=yes does as well; without the second, nobody
	// enables what no package has installed.
	{Dir: "sysusers.d", Name: "nodelocaldns.conf", Packaged: true},
	{Dir: "systemd/system-preset", Name: "90-nodelocaldns.preset", Packaged: true},
}

// What the files in this directory say. RelayProgram is that of Relay, Program that
// of all other services.
const (
	Program      = "/usr/bin/nodelocaldns"
	RelayProgram = "/usr/bin/nodelocaldns-relay"

	address = "169.254.20.10:53"
	device  = "nodelocaldns0"
	before  = "Before=kubelet.service "
	behind  = "After=kubelet.service "
	sees    = "BindReadOnlyPaths=/run/" // the last of what the resolver sees
)

// Memory of the resolver beyond its cache: what it uses without one under a
// flood of names that are not in it, and how far the kernel's limit is above
// the garbage collector's. The cache counts twice: the collector runs when the
// heap has doubled. At the end it is written to memory once more, which the
// collector knows nothing of.
const (
	baseBytes  = 128 << 20
	spareBytes = 64 << 20
)

// Settings are what differs from node to node. The zero value of a field means
// what the files in this directory say.
type Settings struct {
	Listen     []netip.AddrPort // served over UDP and TCP
	CacheBytes int64            // of the resolver, for all cached replies together
	Interface  string           // that has the addresses
	Kubelet    string           // the unit that runs the kubelet, where it is none of those that are known
	Config     string           // --config of the program, absolute

	// Stamp tells one configuration from another. It is in the files of what
	// reads the configuration once, at its start, and so has it started again
	// when that changes. One line.
	Stamp string
}

// A File is a unit, or another file that systemd or its like read. There are
// several directories for each kind: in a package it is /usr/lib/Dir/Name, an
// administrator's is /etc/Dir/Name, and the latter replaces the former.
type File struct {
	Dir      string   // UnitDir, modules-load.d, …
	Name     string   // such as nodelocaldns.service
	Content  []byte   // for the node
	Plain    []byte   // for a node whose configuration says nothing: as a package installs it
	WantedBy string   // the target that starts a unit at boot, "" for none
	Readers  []string // the programs that read it: of use where one of them is, and nowhere else; none are everywhere
	Packaged bool     // it is for packages alone
}

// Unit says whether it is a unit.
func (f File) Unit() bool { return f.Dir == UnitDir }

// Render returns the files for a node: the units in the order of Names, then the
// others. The error is about a name that cannot stand in one of them.
func Render(s Settings) ([]File, error) {
	for _, name := range []string{s.Config, s.Kubelet} {
		if strings.ContainsAny(name, "\"'\\$%; \t\n") {
			return nil, fmt.Errorf("the name %q cannot be put into a unit", name)
		}
	}
	if strings.ContainsAny(s.Interface, "*?[]!,;=~ \t\n") {
		return nil, fmt.Errorf("the name %q of the interface would stand for others too", s.Interface)
	}
	var out []File
	for _, name := range Names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err // not reached: it is embedded
		}
		out = append(out, File{Dir: UnitDir, Name: name, Content: s.render(name, text), Plain: text, WantedBy: wantedBy(text)})
	}
	for _, f := range others {
		text, err := files.ReadFile(path.Join("lib", f.Dir, f.Name))
		if err != nil {
			return nil, err // as above
		}
		f.Content, f.Plain = s.render(f.Name, text), text
		out = append(out, f)
	}
	return out, nil
}

// stamped begins the line with a Stamp.
const stamped = "# Started for the configuration "

// render replaces the lines of a file that s says something of.
func (s Settings) render(name string, text []byte) []byte {
	var out bytes.Buffer
	cache := name == Resolver && s.CacheBytes != 0
	for line := range strings.Lines(string(text)) {
		if s.Stamp != "" && (strings.HasPrefix(line, "ExecStart="+Program+" guard") || strings.HasPrefix(line, "ExecStart="+Program+" serve")) {
			out.WriteString(stamped + s.Stamp + ".\n")
		}
		switch {
		case strings.HasSuffix(line, "="+address+"\n") && s.Listen != nil:
			for _, a := range s.Listen {
				out.WriteString(strings.Replace(line, address, a.String(), 1))
			}
		case strings.HasPrefix(line, "ExecStart="+Program+" ") && s.Config != "":
			out.WriteString(strings.Replace(line, Program, Program+" --config "+s.Config, 1))
		case strings.HasPrefix(line, "Environment=GOMEMLIMIT=") && cache:
			fmt.Fprintf(&out, "Environment=GOMEMLIMIT=%dMiB\n", s.memory()>>20)
		case strings.HasPrefix(line, "MemoryMax=") && cache:
			fmt.Fprintf(&out, "MemoryMax=%dM\n", (s.memory()+max(spareBytes, s.CacheBytes))>>20)
		case s.Interface != "" && (line == "Name="+device+"\n" || line == "match-device=interface-name:"+device+"\n"):
			out.WriteString(strings.Replace(line, device, s.Interface, 1))
		case strings.HasPrefix(line, before) && s.elsewhere(line):
			out.WriteString(line + "Before=" + s.Kubelet + "\n")
		case strings.HasPrefix(line, behind) && s.elsewhere(line):
			out.WriteString(line + "After=" + s.Kubelet + "\n")
		case strings.HasPrefix(line, sees) && s.unseen() != "":
			out.WriteString(line + "BindReadOnlyPaths=-" + s.unseen() + "\n")
		default:
			out.WriteString(line)
		}
	}
	return out.Bytes()
}

// elsewhere says that the kubelet's unit is none of those in the line.
func (s Settings) elsewhere(line string) bool {
	_, names, _ := strings.Cut(line, "=")
	return s.Kubelet != "" && !slices.Contains(strings.Fields(names), s.Kubelet)
}

// unseen is what the resolver must also see for its configuration: the directory, for
// the file may be replaced; "" where it sees it anyway.
func (s Settings) unseen() string {
	dir := path.Dir(s.Config)
	switch {
	case s.Config == "" || strings.HasPrefix(s.Config, "/etc/"):
		return ""
	case dir == "/":
		dir = s.Config
	}
	return strings.ReplaceAll(dir, ":", `\:`)
}

func (s Settings) memory() int64 { return baseBytes + 2*s.CacheBytes }

// Root is what the resolver has as its root directory. systemd makes it with the
// sockets, and what RootCommands are make what is in it.
const Root = "/run/nodelocaldns-root"

// RootCommands are programs and their arguments, to be run in the root one after the
// other. Run again they make what is missing.
func RootCommands() [][]string {
	text, err := files.ReadFile(Socket)
	if err != nil {
		panic(err) // not reached: it is embedded
	}
	var out [][]string
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(line, "ExecStartPre=-"); ok {
			out = append(out, strings.Fields(command))
		}
	}
	return out
}

func wantedBy(text []byte) string {
	_, rest, _ := bytes.Cut(text, []byte("\nWantedBy="))
	name, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(name)
}

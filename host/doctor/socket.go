package doctor

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A Socket is one that receives: a listening TCP socket, or a UDP socket that
// is connected to nobody.
type Socket struct {
	Proto string // udp or tcp
	Local netip.AddrPort
	Drops uint64 // datagrams dropped because its buffer was full; 0 for TCP
	inode string
}

// Wildcard says that it receives what is sent to any address.
func (s Socket) Wildcard() bool { return s.Local.Addr().IsUnspecified() }

// takes says whether a socket on address a and the same port and protocol
// would be in its way, or it in theirs. One on [::] takes IPv4 too, unless it
// was told not to, which cannot be seen.
func (s Socket) takes(a netip.Addr) bool {
	local := s.Local.Addr()
	switch {
	case local == a:
		return true
	case !local.IsUnspecified() && !a.IsUnspecified():
		return false
	}
	return local.Is4() == a.Is4() || local.Is6() && local.IsUnspecified() || a.Is6() && a.IsUnspecified()
}

// Sockets are those on port.
func (e *Env) Sockets(port uint16) ([]Socket, error) {
	var all []Socket
	for _, proto := range []string{"udp", "tcp"} {
		for _, table := range []string{proto, proto + "6"} {
			text, err := os.ReadFile(e.proc("net/" + table))
			if errors.Is(err, fs.ErrNotExist) {
				continue // a kernel without IPv6
			} else if err != nil {
				return nil, err
			}
			for line := range strings.Lines(string(text)) {
				s, ok := parseSocket(proto, line)
				if ok && s.Local.Port() == port {
					all = append(all, s)
				}
			}
		}
	}
	return all, nil
}

// parseSocket reads a line of /proc/net/udp or tcp (proc(5)): sl local remote
// state queues timer retransmits uid timeout inode, then for UDP references,
// pointer, drops. Addresses are hexadecimal, in words as the CPU has them.
func parseSocket(proto, line string) (Socket, bool) {
	w := strings.Fields(line)
	if len(w) < 10 {
		return Socket{}, false
	}
	local, ok := parseEndpoint(w[1])
	remote, rok := parseEndpoint(w[2])
	const listen = "0A"
	if !ok || !rok || proto == "tcp" && w[3] != listen || proto == "udp" && remote.Port() != 0 {
		return Socket{}, false
	}
	s := Socket{Proto: proto, Local: local, inode: w[9]}
	if proto == "udp" && len(w) > 12 {
		s.Drops, _ = strconv.ParseUint(w[12], 10, 64)
	}
	return s, true
}

func parseEndpoint(text string) (netip.AddrPort, bool) {
	addr, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(addr)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), true
}

// holder is the process that has the socket open, such as "dnsmasq (pid 7)", or
// "" if none could be seen.
func (e *Env) holder(s Socket) string {
	all, _ := e.holders.get(func() (map[string]string, error) {
		names := map[string]string{}
		list, err := e.processList()
		for _, p := range list {
			dir := e.proc(strconv.Itoa(p.pid) + "/fd")
			fds, err := os.ReadDir(dir)
			if err != nil {
				continue // another user's, or it ended
			}
			for _, fd := range fds {
				target, err := os.Readlink(filepath.Join(dir, fd.Name()))
				inode, ok := strings.CutPrefix(target, "socket:[")
				if err != nil || !ok {
					continue
				}
				// What systemd hands over, both have open: the other one is
				// who serves it.
				if inode = strings.TrimSuffix(inode, "]"); names[inode] == "" || strings.HasSuffix(names[inode], " (pid 1)") {
					names[inode] = p.String()
				}
			}
		}
		return names, err
	})
	return all[s.inode]
}

// ours says whether a holder is the resolver, or systemd on its behalf: until
// the program is there, its process has the last eight bytes of the name, in
// parentheses.
func ours(holder string) bool {
	return strings.HasPrefix(holder, "nodelocaldns") || strings.HasPrefix(holder, "(localdns) ") || holder == "systemd (pid 1)"
}

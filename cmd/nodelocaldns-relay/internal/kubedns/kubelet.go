package kubedns

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kubeletServers are the addresses in the --cluster-dns of the kubelet that runs,
// without ports of their own. A kubelet that has them in its configuration file
// does not tell, nor does one that is one with k3s.
//
// It goes by what every user may read (host/kubelet also looks at namespaces,
// which takes root), and by nothing that a pod could make up: a process with that
// name counts if it is root's, in no other process namespace than the one that
// proc shows, and in the control group of a service.
func kubeletServers(proc string) []netip.AddrPort {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		argv, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it ended while we looked, or is hidden
		}
		if args := kubeletArgs(argv); args != nil && isService(dir) {
			return clusterDNS(args)
		}
	}
	return nil
}

// kubeletArgs are the arguments of a kubelet's command line, as
// /proc/PID/cmdline has it; nil for other programs.
func kubeletArgs(cmdline []byte) []string {
	words := strings.Split(string(bytes.TrimSuffix(cmdline, []byte{0})), "\x00")
	switch filepath.Base(words[0]) {
	case "kubelet":
		return words[1:]
	case "hyperkube":
		if len(words) > 1 && words[1] == "kubelet" {
			return words[2:]
		}
	}
	return nil
}

// isService says whether the process of a directory below proc is root's, in the
// process namespace that proc shows, and in the control group of a service.
func isService(dir string) bool {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return false
	}
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return false
	}
	root, here, service := false, false, false
	for line := range strings.Lines(string(status)) {
		switch w := strings.Fields(line); {
		case len(w) > 1 && w[0] == "Uid:":
			root = w[1] == "0"
		case len(w) > 0 && w[0] == "NSpid:": // one number a namespace, from this one inwards
			here = len(w) == 2
		}
	}
	for line := range strings.Lines(string(groups)) {
		service = service || strings.HasSuffix(strings.TrimSpace(line), ".service")
	}
	return root && here && service
}

// clusterDNS are the addresses in the --cluster-dns among args, which the kubelet
// takes with underscores too, with its value behind "=" or as the next word, and
// more than once.
func clusterDNS(args []string) []netip.AddrPort {
	var all []netip.AddrPort
	for i := 0; i < len(args); i++ {
		name, dashes := strings.CutPrefix(args[i], "--")
		if !dashes {
			continue
		}
		if name == "" {
			break // what follows are no flags
		}
		name, value, given := strings.Cut(name, "=")
		if strings.ReplaceAll(name, "_", "-") != "cluster-dns" {
			continue
		}
		if !given {
			if i++; i == len(args) {
				break
			}
			value = args[i]
		}
		for w := range strings.SplitSeq(value, ",") {
			if a, err := netip.ParseAddr(w); err == nil {
				all = append(all, netip.AddrPortFrom(a, 53))
			}
		}
	}
	return all
}

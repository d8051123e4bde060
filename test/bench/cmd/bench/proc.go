package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nodelocaldns/test/bench/load"
	"nodelocaldns/test/bench/report"
)

// receiveDrops is how many packets the node's UDP sockets had no room for.
func receiveDrops() (int, error) {
	text, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0, err
	}
	return counter(string(text), "Udp", "RcvbufErrors")
}

// counter finds one in /proc/net/snmp, where a line of names comes before one of
// values.
func counter(text, proto, name string) (int, error) {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != proto+":" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, n := range names {
			if n == name && i < len(f) {
				return strconv.Atoi(f[i])
			}
		}
	}
	return 0, fmt.Errorf("no %s of %s in /proc/net/snmp", name, proto)
}

// resident is the memory of a process and its descendants, in bytes.
func resident(pid int) (int, error) {
	family, err := load.Family(pid)
	if err != nil {
		return 0, err
	}
	sum := 0
	for _, p := range family {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		if err != nil {
			continue // it has ended
		}
		n, err := status(string(text), "VmRSS")
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// status finds a size in /proc/PID/status, in bytes.
func status(text, name string) (int, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc/PID/status", name)
}

// machine is the one this runs on.
func machine() (report.Machine, error) {
	m := report.Machine{CPU: "unknown CPU"}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(info)) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "processor":
			m.CPUs++
		case "model name":
			m.CPU = strings.Join(strings.Fields(value), " ")
		}
	}
	avg, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	first, _, _ := strings.Cut(string(avg), " ")
	if m.Load, err = strconv.ParseFloat(first, 64); err != nil {
		return m, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	return m, nil
}

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

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
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	return m, nil
}

// idleLook is how long it is looked whether the machine has other work.
const idleLook = time.Second

// otherWork is how many processors have something to do just now.
func otherWork(ctx context.Context) (float64, error) {
	var busy [2]int
	begin := time.Now()
	for i := range busy {
		text, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0, err
		}
		if busy[i], err = busyTicks(string(text)); err != nil {
			return 0, err
		}
		if i == 0 {
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(idleLook):
			}
		}
	}
	const perSecond = 100 // USER_HZ
	return float64(busy[1]-busy[0]) / perSecond / time.Since(begin).Seconds(), nil
}

// busyTicks is how long all processors were not idle, by the first line of
// /proc/stat (proc_stat(5)). What the hypervisor took (steal) counts.
func busyTicks(text string) (int, error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	const idle, iowait, steal = 4, 5, 8
	if len(f) <= steal || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	busy := 0
	for i, field := range f[1 : steal+1] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, fmt.Errorf("reading /proc/stat: %w", err)
		}
		if i+1 != idle && i+1 != iowait {
			busy += n
		}
	}
	return busy, nil
}

package load

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/PID/stat: USER_HZ, which is 100 on every architecture
// Go runs on.
const tick = 10 * time.Millisecond

// A process is what /proc/PID/stat says of one.
type process struct {
	parent int
	// time is utime, stime, cutime and cstime: of all its threads, those that
	// ended too, and of children that it waited for.
	time time.Duration
}

// parseStat reads a /proc/PID/stat (proc_pid_stat(5)).
func parseStat(text string) (process, error) {
	// The name is in brackets and may have any characters in it.
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const ppid, utime, cstime = 4 - 3, 14 - 3, 17 - 3
	if len(f) <= cstime {
		return process{}, fmt.Errorf("a stat of %d fields", len(f))
	}
	p := process{}
	var err error
	if p.parent, err = strconv.Atoi(f[ppid]); err != nil {
		return process{}, err
	}
	for _, field := range f[utime : cstime+1] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return process{}, err
		}
		p.time += time.Duration(n) * tick
	}
	return p, nil
}

// cpuTime is the processor time that a process and its descendants have used; of
// none for pid 0.
func cpuTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	all := map[int]process{}
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/stat")
		if errors.Is(err, fs.ErrNotExist) || err != nil && strings.Contains(err.Error(), "no such process") {
			continue // it has ended
		}
		if err != nil {
			return 0, err
		}
		p, err := parseStat(string(text))
		if err != nil {
			return 0, fmt.Errorf("reading %s/stat: %w", dir, err)
		}
		n, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return 0, err
		}
		all[n] = p
	}
	if _, ok := all[pid]; !ok {
		return 0, fmt.Errorf("the server's process %d has ended", pid)
	}
	return sumOf(all, pid), nil
}

// sumOf adds up a process and its descendants.
func sumOf(all map[int]process, pid int) time.Duration {
	sum := all[pid].time
	for child, p := range all {
		if p.parent == pid && child != pid {
			sum += sumOf(all, child)
		}
	}
	return sum
}

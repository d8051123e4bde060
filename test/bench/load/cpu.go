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

	"golang.org/x/sys/unix"
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

// processes are all of them.
func processes() (map[int]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	all := map[int]process{}
	for _, dir := range dirs {
		text, err := os.ReadFile(dir + "/stat")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		p, err := parseStat(string(text))
		if err != nil {
			return nil, fmt.Errorf("reading %s/stat: %w", dir, err)
		}
		n, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		all[n] = p
	}
	return all, nil
}

// cpuTime is the processor time that a process and its descendants have used; of
// none for pid 0.
func cpuTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	all, err := processes()
	if err != nil {
		return 0, err
	}
	if _, ok := all[pid]; !ok {
		return 0, fmt.Errorf("the server's process %d has ended", pid)
	}
	var sum time.Duration
	for _, p := range familyOf(all, pid) {
		sum += all[p].time
	}
	return sum, nil
}

// Family are a process and its descendants, without those that ended.
func Family(pid int) ([]int, error) {
	all, err := processes()
	return familyOf(all, pid), err
}

func familyOf(all map[int]process, pid int) []int {
	family := []int{pid}
	for child, p := range all {
		if p.parent == pid && child != pid {
			family = append(family, familyOf(all, child)...)
		}
	}
	return family
}

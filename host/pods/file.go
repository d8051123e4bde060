package pods

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// resolvConf is where every C library looks for nameservers.
const resolvConf = "/etc/resolv.conf"

// maxResolvConf is more than any resolv.conf needs: a kubelet writes three
// nameservers and at most 2 KiB of search paths.
const maxResolvConf = 64 << 10

// maxLinks is how many symbolic links one name may lead through: the kernel's
// MAXSYMLINKS (path_resolution(7)).
const maxLinks = 40

var (
	errNotRegular = errors.New("not a regular file")
	errTooLong    = errors.New("too long")
)

// readFile reads the regular file that name is to a process whose root is the
// directory root, and which may belong to somebody who wants to harm us:
// nothing outside of root is reached, and nothing but a regular file is opened,
// because to open a device or a pipe can act or block. More than most bytes are
// an error.
func readFile(root, name string, most int64) ([]byte, error) {
	dir, err := open(unix.AT_FDCWD, root, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := resolve(dir, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errNotRegular
	case st.Size == 0:
		return nil, nil // empty, or made by the kernel as it is read
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return nil, err
	}
	if slices.Contains(kernelFiles, int64(sfs.Type)) {
		return nil, errNotRegular
	}
	// Opened again by its descriptor it is the file that was looked at, even
	// if another has its name by now.
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = errTooLong
	}
	return text, err
}

// kernelFiles are file systems whose files are regular by name alone: to read
// one can act, or wait.
var kernelFiles = []int64{
	unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
	unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC,
}

// resolve finds what name is to a process whose root is the directory root,
// and returns a descriptor that can only be asked what it is of (O_PATH).
//
// It goes from directory to directory by descriptor and follows links itself,
// so no name is ever looked up outside of root, whatever is moved meanwhile.
// openat2 with RESOLVE_IN_ROOT does the same, but not before Linux 5.6.
func resolve(root int, name string) (fd int, err error) {
	at := []int{root} // the directories from the root down to where we are
	up := func(n int) {
		for _, fd := range at[n:] {
			unix.Close(fd)
		}
		at = at[:n]
	}
	defer func() { up(1) }()
	rest := strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		element := rest[0]
		rest = rest[1:]
		switch element {
		case "", ".":
			continue
		case "..":
			up(max(1, len(at)-1))
			continue
		}
		fd, err := open(at[len(at)-1], element, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return -1, err
		}
		at = append(at, fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return -1, err
		}
		target := string(buf[:n])
		up(len(at) - 1)
		if strings.HasPrefix(target, "/") {
			up(1)
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if len(at) == 1 {
		return -1, unix.EISDIR
	}
	fd = at[len(at)-1]
	at = at[:len(at)-1]
	return fd, nil
}

// open is openat, again if a signal came between: Go's own come often.
func open(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// nameservers are the addresses that a resolv.conf names. It is read as
// generously as any C library does, and more than the three they use count:
// whom it names by a doubtful line is better known than missed.
func nameservers(text []byte) []netip.Addr {
	var out []netip.Addr
	for line := range bytes.Lines(text) {
		w := bytes.Fields(line)
		if len(w) < 2 || string(w[0]) != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(string(w[1])); err == nil {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}

package sysctl

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lorenzosaino/go-sysctl"
	"golang.org/x/sys/unix"
)

// Values is what the step needs of the kernel's parameters. A key that does
// not exist is an error that wraps fs.ErrNotExist.
type Values interface {
	Get(key string) (string, error)
	Set(key, value string) error
	// ReadOnly says that nobody may write key here, root included, and not
	// whether this process may.
	ReadOnly(key string) (bool, error)
}

// Open returns the parameters below dir, which is /proc/sys but in tests.
func Open(dir string) (Values, error) {
	c, err := sysctl.NewClient(dir)
	if err != nil {
		return nil, err
	}
	return tree{Client: c, dir: dir}, nil
}

type tree struct {
	*sysctl.Client
	dir string
}

// ReadOnly looks at the permission bits, because the kernel goes by them for
// root too: in a network namespace other than the first, nf_conntrack_max and
// nf_conntrack_buckets are 0444. In many containers /proc/sys as a whole is
// mounted read-only.
func (t tree) ReadOnly(key string) (bool, error) {
	path := filepath.Join(t.dir, filepath.FromSlash(strings.ReplaceAll(key, ".", "/")))
	fi, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	if fi.Mode()&0o222 == 0 {
		return true, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// A Tree is a node's file tree, seen from its root: "/" for the running node,
// or the directory an image is built in. It only reads.
//
// Names are slash-separated and taken from the root, with or without a leading
// slash. Symbolic links are followed as a process sees them whose root is the
// Tree: an absolute target starts at the root again, and ".." stops there. So
// nothing outside is ever read by name. The tree is trusted not to change
// while it is read: that is the node's own /etc, not a stranger's upload.
//
// Errors are *fs.PathError with the name inside the tree, and wrap
// fs.ErrNotExist, syscall.ENOTDIR or syscall.ELOOP as system calls do. The
// zero Tree is the root of the running node. The methods may be called
// concurrently and need no right but that to read.
type Tree string

// maxLinks is how many symbolic links one name may lead through: the kernel's
// MAXSYMLINKS (path_resolution(7)).
const maxLinks = 40

// Path is the name as the running system sees it, for errors and logs. No
// link is followed.
func (t Tree) Path(name string) string { return filepath.Join(t.root(), path.Join("/", name)) }

func (t Tree) root() string {
	if t == "" {
		return "/"
	}
	return string(t)
}

// Resolve returns the absolute name, inside the tree, of what name is once all
// symbolic links are followed. It must be there.
func (t Tree) Resolve(name string) (string, error) {
	real, info, err := t.walk(name, true)
	if err == nil && info == nil {
		err = syscall.ENOENT
	}
	if err != nil {
		return "", &fs.PathError{Op: "resolve", Path: path.Join("/", name), Err: err}
	}
	return real, nil
}

// ReadFile returns the content of name. What is no regular file is an error:
// reading a pipe or a device could wait for ever.
func (t Tree) ReadFile(name string) ([]byte, error) {
	real, info, err := t.walk(name, true)
	switch {
	case err != nil:
	case info == nil:
		err = syscall.ENOENT
	case info.IsDir():
		err = syscall.EISDIR
	case !info.Mode().IsRegular():
		err = errors.New("not a regular file")
	default:
		var data []byte
		if data, err = os.ReadFile(t.Path(real)); err == nil {
			return data, nil
		}
	}
	return nil, &fs.PathError{Op: "read", Path: path.Join("/", name), Err: cause(err)}
}

// Stat describes what name is once all symbolic links are followed.
func (t Tree) Stat(name string) (fs.FileInfo, error) { return t.stat(name, true) }

// Lstat describes name itself; links before its last element are followed.
func (t Tree) Lstat(name string) (fs.FileInfo, error) { return t.stat(name, false) }

func (t Tree) stat(name string, follow bool) (fs.FileInfo, error) {
	_, info, err := t.walk(name, follow)
	if err == nil && info == nil {
		err = syscall.ENOENT
	}
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path.Join("/", name), Err: err}
	}
	return info, nil
}

// Readlink returns the text of the symbolic link name, as it is written.
func (t Tree) Readlink(name string) (string, error) {
	real, info, err := t.walk(name, false)
	switch {
	case err != nil:
	case info == nil:
		err = syscall.ENOENT
	case info.Mode().Type() != fs.ModeSymlink:
		err = syscall.EINVAL
	default:
		var target string
		if target, err = os.Readlink(t.Path(real)); err == nil {
			return target, nil
		}
	}
	return "", &fs.PathError{Op: "readlink", Path: path.Join("/", name), Err: cause(err)}
}

// ReadDir returns the entries of the directory name, sorted by name, each
// described without following it.
func (t Tree) ReadDir(name string) ([]fs.DirEntry, error) {
	real, info, err := t.walk(name, true)
	switch {
	case err != nil:
	case info == nil:
		err = syscall.ENOENT
	case !info.IsDir():
		err = syscall.ENOTDIR
	default:
		var list []fs.DirEntry
		if list, err = os.ReadDir(t.Path(real)); err == nil {
			return list, nil
		}
	}
	return nil, &fs.PathError{Op: "readdir", Path: path.Join("/", name), Err: cause(err)}
}

// walk follows name from the root, element by element. It returns the name
// without links and what lies there; a nil FileInfo without an error means
// that only the last element is missing.
func (t Tree) walk(name string, follow bool) (string, fs.FileInfo, error) {
	at := "/"
	info, err := os.Stat(t.root())
	if err != nil {
		return "", nil, cause(err)
	}
	rest, links := strings.Split(name, "/"), 0
	for i := 0; i < len(rest); i++ {
		element := rest[i]
		switch {
		case info == nil:
			if element == "" && i == len(rest)-1 {
				continue // a trailing slash is said by the missing name already
			}
			return "", nil, syscall.ENOENT
		case !info.IsDir():
			return "", nil, syscall.ENOTDIR
		case element == "" || element == ".":
			continue
		case element == "..":
			// No link is left in at, so its parent is the one of its text.
			at = path.Dir(at)
			if info, err = os.Lstat(t.Path(at)); err != nil {
				return "", nil, cause(err)
			}
			if at == "/" {
				info, err = os.Stat(t.root())
			}
			if err != nil {
				return "", nil, cause(err)
			}
			continue
		}
		next := path.Join(at, element)
		info, err = os.Lstat(t.Path(next))
		if errors.Is(err, fs.ErrNotExist) {
			at, info = next, nil
			continue
		} else if err != nil {
			return "", nil, cause(err)
		}
		if info.Mode().Type() != fs.ModeSymlink || !follow && i == len(rest)-1 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", nil, syscall.ELOOP
		}
		target, err := os.Readlink(t.Path(next))
		if err != nil {
			return "", nil, cause(err)
		}
		if strings.HasPrefix(target, "/") {
			at = "/"
		}
		if info, err = os.Stat(t.Path(at)); err != nil {
			return "", nil, cause(err)
		}
		rest, i = append(strings.Split(target, "/"), rest[i+1:]...), -1
	}
	return at, info, nil
}

// cause is what the system said, without the name it was said of: that name
// is below the root, and ours is inside it.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

var _ fmt.Stringer = Tree("")

// String is the root.
func (t Tree) String() string { return t.root() }

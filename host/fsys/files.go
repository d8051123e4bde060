package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// Files is what steps write lasting files with. Names are those of a Tree; links in the
// directory part are followed inside it. When a method returns nil its change
// survives a power cut.
type Files interface {
	// Mkdir makes one directory with mode 0755.
	Mkdir(name string) error

	// Write makes a new file; one of that name, left from a cut off run, is
	// replaced. It is the one method that a power cut may leave half done. Its
	// extended attributes, labels of SELinux among them, are those of like,
	// unless that is empty.
	Write(name string, c Content, like string) error

	// Symlink makes a symbolic link. What is there already is an error that is
	// fs.ErrExist.
	Symlink(target, name string) error

	// Rename puts one file in the place of another, in the same directory.
	Rename(from, to string) error

	// Remove takes away a file, a link, or an empty directory. What is not there is no
	// error.
	Remove(name string) error
}

// Content is a file, whole.
type Content struct {
	Data []byte      `json:"data"`
	Mode fs.FileMode `json:"mode"` // permission bits
	UID  int         `json:"uid"`
	GID  int         `json:"gid"`
}

// Temporary is where Replace writes a file before it is renamed. There is one name
// for each file, so that what a power cut left is found again, and removed by who
// undoes. Those who read a directory whole, systemd and the kubelet, do not read
// it: it is hidden, and ends in none of their suffixes.
func Temporary(name string) string {
	return path.Join(path.Dir(name), "."+path.Base(name)+".nodelocaldns")
}

// Replace makes the file name, or replaces it; like is that of [Files.Write]. When
// it fails, the old one is there as it was.
func Replace(f Files, name string, c Content, like string) error {
	tmp := Temporary(name)
	err := f.Write(tmp, c, like)
	if err == nil {
		err = f.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, f.Remove(tmp))
	}
	return nil
}

// DirFiles returns the Files of a tree.
func DirFiles(tree Tree) Files { return dirFiles{tree} }

type dirFiles struct{ tree Tree }

// at is where name is on the running system, and its directory.
func (d dirFiles) at(name string) (file, dir string, err error) {
	dir, err = d.tree.Resolve(path.Dir(name))
	if err != nil {
		return "", "", err
	}
	return d.tree.Path(path.Join(dir, path.Base(name))), d.tree.Path(dir), nil
}

func (d dirFiles) Mkdir(name string) error {
	file, dir, err := d.at(name)
	if err != nil {
		return err
	}
	if err := os.Mkdir(file, 0o755); err != nil {
		return err
	}
	// The umask may have taken bits away.
	if err := os.Chmod(file, 0o755); err != nil {
		return err
	}
	return syncPath(dir)
}

func (d dirFiles) Write(name string, c Content, like string) error {
	file, _, err := d.at(name)
	if err != nil {
		return err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(f, c)
	if err == nil && like != "" {
		var from string
		if from, _, err = d.at(like); err == nil {
			err = copyAttributes(from, f)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

func fill(f *os.File, c Content) error {
	if _, err := f.Write(c.Data); err != nil {
		return err
	}
	// A tree may be built by somebody who is not root, and may be nobody else.
	if info, err := f.Stat(); err != nil {
		return err
	} else if uid, gid := Owner(info); uid != c.UID || gid != c.GID {
		if err := f.Chown(c.UID, c.GID); err != nil {
			return err
		}
	}
	return f.Chmod(c.Mode.Perm())
}

// copyAttributes copies extended attributes, as far as the file system has
// them and we may.
func copyAttributes(from string, to *os.File) error {
	names := make([]byte, 4096)
	n, err := unix.Listxattr(from, names)
	if err != nil {
		return ignorable(err)
	}
	value := make([]byte, 64<<10)
	for _, name := range splitNul(names[:n]) {
		n, err := unix.Getxattr(from, name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err := ignorable(err); err != nil {
			return fmt.Errorf("copying %s of %s: %w", name, from, err)
		}
	}
	return nil
}

func ignorable(err error) error {
	for _, e := range []error{unix.ENOTSUP, unix.EPERM, unix.ENODATA} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

func splitNul(b []byte) []string {
	var out []string
	start := 0
	for i, c := range b {
		if c == 0 {
			out, start = append(out, string(b[start:i])), i+1
		}
	}
	return out
}

func (d dirFiles) Symlink(target, name string) error {
	file, dir, err := d.at(name)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, file); err != nil {
		return err
	}
	return syncPath(dir)
}

func (d dirFiles) Rename(from, to string) error {
	old, dir, err := d.at(from)
	if err != nil {
		return err
	}
	file, _, err := d.at(to)
	if err != nil {
		return err
	}
	if err := os.Rename(old, file); err != nil {
		return err
	}
	return syncPath(dir)
}

func (d dirFiles) Remove(name string) error {
	file, dir, err := d.at(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := os.Remove(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return syncPath(dir)
}

// syncPath makes what happened to the entries of a directory durable.
func syncPath(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Owner is who owns a file of the running system; this process, for any other.
func Owner(info fs.FileInfo) (uid, gid int) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return os.Getuid(), os.Getgid()
	}
	return int(st.Uid), int(st.Gid)
}

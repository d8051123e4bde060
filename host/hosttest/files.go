package hosttest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"nodelocaldns/host/fsys"
)

// TempDir is a new directory that is in memory where there is such a place: on
// a disk, thousands of cases would wait for fsync most of their time. It is
// removed when the test ends.
func TempDir(t testing.TB) string {
	t.Helper()
	dir := fmt.Sprintf("/dev/shm/nodelocaldns-test-%d-t%d", os.Getpid(), dirs.Add(1))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var dirs atomic.Int64

// Files are those below a directory, as the node's own: they are in what it
// prints, with mode and owner, and writes of them can fail or lose power. One
// that is to lose power before it lands leaves half of a file that is written,
// but nothing of what a rename does.
func (n *Node) Files(root string) fsys.Files {
	n.Lock()
	defer n.Unlock()
	n.root = root
	return disk{n, fsys.DirFiles(fsys.Tree(root))}
}

type disk struct {
	n     *Node
	files fsys.Files
}

func (d disk) write(what, name string, do func() error) error {
	d.n.Lock()
	defer d.n.Unlock()
	return d.n.write(what+" "+name, do)
}

func (d disk) Mkdir(name string) error {
	return d.write("mkdir", name, func() error { return d.files.Mkdir(name) })
}

func (d disk) Write(name string, c fsys.Content, like string) error {
	d.n.Lock()
	defer d.n.Unlock()
	if d.n.writes+1 == d.n.at && d.n.fault == CutBefore {
		half := c
		half.Data = c.Data[:len(c.Data)/2]
		if err := d.files.Write(name, half, like); err != nil {
			return err
		}
	}
	return d.n.write("write "+name, func() error { return d.files.Write(name, c, like) })
}

func (d disk) Symlink(target, name string) error {
	return d.write("link", name, func() error { return d.files.Symlink(target, name) })
}

func (d disk) Rename(from, to string) error {
	return d.write("rename", to, func() error { return d.files.Rename(from, to) })
}

func (d disk) Remove(name string) error {
	return d.write("remove", name, func() error { return d.files.Remove(name) })
}

// printFiles prints every file with its mode, its owner where that is not this
// process, and what it holds, or the sum of that where it is long.
func (n *Node) printFiles(b *strings.Builder) {
	if n.root == "" {
		return
	}
	err := filepath.WalkDir(n.root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == n.root {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%s ", info.Mode())
		if uid, gid := fsys.Owner(info); uid != os.Getuid() || gid != os.Getgid() {
			fmt.Fprintf(b, "%d:%d ", uid, gid)
		}
		name = strings.TrimPrefix(name, n.root)
		b.WriteString(name)
		switch {
		case info.Mode().IsRegular():
			data, err := fsys.Tree(n.root).ReadFile(name)
			if err != nil {
				return err
			}
			if len(data) > 80 {
				fmt.Fprintf(b, " %s", digest(data))
			} else {
				fmt.Fprintf(b, " %q", data)
			}
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := fsys.Tree(n.root).Readlink(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(b, " -> %s", target)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		fmt.Fprintf(b, "%v\n", err)
	}
}

package unitfile

import (
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"nodelocaldns/host/fsys"
)

// files is a tree in which some files are said to have another content, or
// not to be there.
type files struct {
	tree    fsys.Tree
	changed map[string][]byte // by name without links; nil: gone
}

func (f files) without(name string) files { return f.with(name, nil) }

func (f files) with(name string, content []byte) files {
	changed := maps.Clone(f.changed)
	if changed == nil {
		changed = map[string][]byte{}
	}
	if content == nil {
		changed[f.real(name)] = nil
	} else {
		changed[f.real(name)] = append([]byte{}, content...)
	}
	return files{tree: f.tree, changed: changed}
}

// real is name without links before its last element.
func (f files) real(name string) string {
	name = path.Join("/", name)
	dir, base := path.Split(name)
	if real, err := f.tree.Resolve(dir); err == nil {
		return path.Join(real, base)
	}
	return name
}

func (f files) readFile(name string) ([]byte, error) {
	if content, ok := f.changed[f.real(name)]; ok {
		if content == nil {
			return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.ENOENT}
		}
		return content, nil
	}
	return f.tree.ReadFile(name)
}

// readDir returns the names in a directory, sorted: none where it is not there. It
// may have been when the caller looked for it: systemd removes the directories of
// its generators and makes them anew at each daemon-reload.
func (f files) readDir(name string) ([]string, error) {
	list, err := f.tree.ReadDir(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	dir, _ := f.dir(name)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	for changed, content := range f.changed {
		d, base := path.Split(changed)
		if path.Clean(d) != dir {
			continue
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == base })
		if content != nil {
			names = append(names, base)
		}
	}
	slices.Sort(names)
	return names, nil
}

// dir returns the directory without links, and whether it is one.
func (f files) dir(name string) (string, bool) {
	real, err := f.tree.Resolve(name)
	if err == nil {
		info, err := f.tree.Lstat(real)
		return real, err == nil && info.IsDir()
	}
	// It may be said to have a file.
	for changed, content := range f.changed {
		if content != nil && strings.HasPrefix(changed, f.real(name)+"/") {
			return f.real(name), true
		}
	}
	return "", false
}

// entry says what a name in a directory is: a link, and its text, or a regular
// file.
func (f files) entry(name string) (link string, isLink, regular bool) {
	if content, ok := f.changed[f.real(name)]; ok {
		return "", false, content != nil
	}
	info, err := f.tree.Lstat(name)
	switch {
	case err != nil:
		return "", false, false
	case info.Mode().IsRegular():
		return "", false, true
	case info.Mode().Type() != fs.ModeSymlink:
		return "", false, false
	}
	link, err = f.tree.Readlink(name)
	return link, err == nil, false
}

// isNull reports whether name leads to /dev/null, which need not be there in
// a tree that is not running, or to another device.
func (f files) isNull(name string) bool {
	for range 40 {
		link, isLink, _ := f.entry(name)
		if !isLink {
			break
		}
		if !path.IsAbs(link) {
			link = path.Join(path.Dir(f.real(name)), link)
		}
		if name = path.Clean(link); name == "/dev/null" {
			return true
		}
	}
	if _, ok := f.changed[f.real(name)]; ok {
		return false
	}
	info, err := f.tree.Stat(name)
	return err == nil && info.Mode()&fs.ModeDevice != 0
}

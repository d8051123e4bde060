package unitfile

import (
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

// readDir returns the names in a directory, sorted.
func (f files) readDir(name string) ([]string, error) {
	list, err := f.tree.ReadDir(name)
	if len(f.changed) == 0 && err != nil {
		return nil, err
	}
	dir := name
	if real, rerr := f.tree.Resolve(name); rerr == nil {
		dir = real
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	for changed, content := range f.changed {
		d, base := path.Split(changed)
		if path.Clean(d) != path.Clean(dir) {
			continue
		}
		err = nil
		names = slices.DeleteFunc(names, func(n string) bool { return n == base })
		if content != nil {
			names = append(names, base)
		}
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(names, strings.Compare)
	return names, nil
}

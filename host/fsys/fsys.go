// Package fsys writes files so that a power cut leaves the old or the new
// content, never something between.
package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// A Dir is the part of the file system below one directory. Names given to its
// methods are slash-separated paths below it; a name that leads outside, also
// by way of a symbolic link, is an error. The zero Dir is not usable.
//
// The methods may be called concurrently; two writers of one name leave the
// content of one of them.
type Dir string

// Path is the name as the rest of the system sees it, for errors and logs.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// ReadFile returns the content of name. A missing file, or a missing Dir, is
// an error that wraps fs.ErrNotExist.
func (d Dir) ReadFile(name string) ([]byte, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.ReadFile(clean(name))
}

// WriteAtomic replaces name by data with permissions perm: temporary file,
// fsync, rename, fsync of the directory. When it returns nil the content
// survives a power cut; when it fails, the old content is still there, unless
// only the last fsync failed. Missing directories are made with mode 0755. What
// an earlier write of name has left that was cut off is removed: two processes must
// not write the same name at once.
func (d Dir) WriteAtomic(name string, data []byte, perm fs.FileMode) error {
	name = clean(name)
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return err
	}
	defer root.Close()
	dir := filepath.Dir(name)
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The temporary file is made at the top of the root it is given, and must
	// be on the file system of its target.
	in, err := root.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := removeStale(in, filepath.Base(name)); err != nil {
		return fmt.Errorf("writing %s: %w", d.Path(name), err)
	}
	if err := replace(in, filepath.Base(name), data, perm); err != nil {
		return fmt.Errorf("writing %s: %w", d.Path(name), err)
	}
	return syncDir(in)
}

func replace(in *os.Root, base string, data []byte, perm fs.FileMode) error {
	f, err := renameio.NewPendingFile(base, renameio.WithRoot(in), renameio.WithStaticPermissions(perm))
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Cleanup())
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return errors.Join(err, f.Cleanup())
	}
	return nil
}

// Remove deletes name, and what a write of it has left that was cut off, and makes
// that durable. A file that is not there is not an error.
func (d Dir) Remove(name string) error {
	name = clean(name)
	root, err := os.OpenRoot(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer root.Close()
	in, err := root.OpenRoot(filepath.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer in.Close()
	if err := removeStale(in, filepath.Base(name)); err != nil {
		return fmt.Errorf("removing %s: %w", d.Path(name), err)
	}
	if err := root.Remove(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("removing %s: %w", d.Path(name), err)
	}
	return syncDir(in)
}

// removeStale removes what a WriteAtomic of base has left that was cut off before
// its rename: a name of renameio's, a dot in front and digits behind.
func removeStale(in *os.Root, base string) error {
	all, err := fs.ReadDir(in.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range all {
		digits, ours := strings.CutPrefix(e.Name(), "."+base)
		if !ours || digits == "" || strings.Trim(digits, "0123456789") != "" || !e.Type().IsRegular() {
			continue
		}
		if err := in.Remove(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// syncDir makes a rename or a removal in dir survive a power cut: fsync of the
// file alone does not cover its directory entry.
func syncDir(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir.Name(), err)
	}
	return nil
}

// clean makes "/etc/x" and "etc/x" the same name below the Dir.
func clean(name string) string {
	return filepath.Clean(strings.TrimLeft(filepath.FromSlash(name), "/"))
}

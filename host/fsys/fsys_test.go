package fsys_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nodelocaldns/host/fsys"
)

func TestWriteReplacesContentAndModeAndLeavesNothingElse(t *testing.T) {
	d := fsys.Dir(filepath.Join(t.TempDir(), "not", "there"))
	for _, want := range []struct {
		text string
		mode fs.FileMode
	}{{"one", 0o600}, {"two", 0o644}} {
		if err := d.WriteAtomic("/a/b", []byte(want.text), want.mode); err != nil {
			t.Fatal(err)
		}
		got, err := d.ReadFile("a/b")
		if err != nil || string(got) != want.text {
			t.Fatalf("read %q, %v; want %q", got, err, want.text)
		}
		fi, err := os.Stat(d.Path("a/b"))
		if err != nil || fi.Mode().Perm() != want.mode {
			t.Fatalf("mode %v, %v; want %v", fi.Mode(), err, want.mode)
		}
	}
	files, err := os.ReadDir(d.Path("a"))
	if err != nil || len(files) != 1 {
		t.Errorf("directory has %v, %v; want one file", files, err)
	}
}

func TestAWriteThatFailsLeavesTheOldContentAndNothingElse(t *testing.T) {
	d := fsys.Dir(t.TempDir())
	// A directory in the place of the target lets everything up to the rename
	// succeed.
	if err := os.MkdirAll(d.Path("x/inner"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAtomic("x", []byte("new"), 0o644); err == nil {
		t.Fatal("no error")
	}
	files, err := os.ReadDir(string(d))
	if err != nil || len(files) != 1 || !files[0].IsDir() {
		t.Errorf("directory has %v, %v; want x alone, as it was", files, err)
	}
}

func TestANameCannotLeadOutside(t *testing.T) {
	outside := t.TempDir()
	d := fsys.Dir(t.TempDir())
	if err := os.Symlink(outside, d.Path("link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link/x", "../x"} {
		if err := d.WriteAtomic(name, []byte("x"), 0o644); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	if files, _ := os.ReadDir(outside); len(files) != 0 {
		t.Errorf("outside has %v", files)
	}
}

func TestWhatIsNotThereIsReadAsMissingAndRemovedWithoutError(t *testing.T) {
	for _, d := range []fsys.Dir{fsys.Dir(t.TempDir()), fsys.Dir(filepath.Join(t.TempDir(), "none"))} {
		if _, err := d.ReadFile("x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read: %v", err)
		}
		if err := d.Remove("x"); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
}

func TestRemoveRemoves(t *testing.T) {
	d := fsys.Dir(t.TempDir())
	if err := d.WriteAtomic("x", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadFile("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

// A power cut before the rename leaves a file that nobody looks for.
func TestWhatACutWriteHasLeftGoesWithTheNextAndWithTheFile(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(d fsys.Dir) error
		want []string
	}{
		{"write", func(d fsys.Dir) error { return d.WriteAtomic("refused", []byte("x"), 0o600) }, []string{".refused", ".refused-1", ".refusedly7", "refused"}},
		{"remove", func(d fsys.Dir) error { return d.Remove("refused") }, []string{".refused", ".refused-1", ".refusedly7"}},
	} {
		d := fsys.Dir(t.TempDir())
		for _, left := range []string{".refused4267265617133698386", ".refused1", ".refused", ".refused-1", ".refusedly7"} {
			if err := os.WriteFile(d.Path(left), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := tt.do(d); err != nil {
			t.Fatal(err)
		}
		var got []string
		all, err := os.ReadDir(string(d))
		for _, e := range all {
			got = append(got, e.Name())
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

package facts_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
)

func TestFactsAreReadBackAsTheyWereWritten(t *testing.T) {
	run := fsys.Dir(filepath.Join(t.TempDir(), "run"))
	if _, err := facts.Read(run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the first write: got %v, want %v", err, fs.ErrNotExist)
	}
	want := facts.Facts{ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a")}, Source: "a flag"}
	if err := facts.Write(run, want); err != nil {
		t.Fatal(err)
	}
	if got, err := facts.Read(run); err != nil || !got.Equal(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	info, err := os.Stat(run.Path("facts.json"))
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the resolver reads it without rights of its own: got mode %v, %v", info.Mode(), err)
	}
	if err := errors.Join(facts.Remove(run), facts.Remove(run)); err != nil {
		t.Error(err)
	}
}

func TestDamagedFactsAreAnErrorThatNamesTheFile(t *testing.T) {
	run := fsys.Dir(t.TempDir())
	if err := os.WriteFile(run.Path("facts.json"), []byte(`{"cluster_dns":["10.96.0`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := facts.Read(run); err == nil || !strings.Contains(err.Error(), "facts.json") {
		t.Errorf("got %v", err)
	}
}

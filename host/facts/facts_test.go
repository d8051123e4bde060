package facts_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
	want := facts.Facts{ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a")}, Source: "a flag", Metrics: ":9253"}
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

// A resolver and a guard may be of different versions for as long as an upgrade
// takes.
func TestFactsSayTheSameToOlderAndNewerReaders(t *testing.T) {
	for _, tt := range []struct {
		facts facts.Facts
		text  string
		dns   []netip.AddrPort
	}{{
		facts.Facts{ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Source: "a flag"},
		`{"cluster_dns":["10.96.0.10"],"source":"a flag"}`,
		[]netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")},
	}, {
		facts.Facts{Servers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:5353"), netip.MustParseAddrPort("[fd00::a]:53")}, Source: "cluster.dns", Metrics: ":9253"},
		`{"cluster_dns":null,"servers":["10.96.0.10:5353","[fd00::a]:53"],"source":"cluster.dns","metrics":":9253"}`,
		[]netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:5353"), netip.MustParseAddrPort("[fd00::a]:53")},
	}} {
		run := fsys.Dir(t.TempDir())
		if err := facts.Write(run, tt.facts); err != nil {
			t.Fatal(err)
		}
		if text, err := run.ReadFile("facts.json"); string(text) != tt.text+"\n" {
			t.Errorf("wrote %s, %v, want %s", text, err, tt.text)
		}
		if got, err := facts.Read(run); err != nil || !slices.Equal(got.KubeDNS(), tt.dns) || !got.Equal(tt.facts) {
			t.Errorf("read %v, kube-dns %v (%v), want %v, kube-dns %v", got, got.KubeDNS(), err, tt.facts, tt.dns)
		}
	}
}

func TestFactsThatDifferInAnythingAreNotEqual(t *testing.T) {
	all := []facts.Facts{
		{},
		{ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}},
		{Servers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}},
		{Source: "a flag"},
		{Metrics: ":9253"},
	}
	for i, f := range all {
		for j, g := range all {
			if f.Equal(g) != (i == j) {
				t.Errorf("%v and %v: equal %v", f, g, f.Equal(g))
			}
		}
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

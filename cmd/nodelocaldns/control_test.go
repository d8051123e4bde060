package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"nodelocaldns/cmd/internal/control"
)

// It has the resolver's control socket, and is not the resolver.
func TestARelayAnswersForAResolverThatDoesNotRun(t *testing.T) {
	dir := t.TempDir()
	l, err := listenControl(dir)
	if err != nil {
		t.Fatal(err)
	}
	relay := control.Relay{
		PID: 7, Version: thisVersion(), Since: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC),
		Servers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}, Source: "a flag", Queries: 12, ServFails: 3,
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(control.Reply{Why: control.Why, Relay: relay})
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	got := askControl(t.Context(), dir)
	want := resolverStatus{Why: "the relay answers in its place", Relay: &relay}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("%s: -want +got:\n%s", filepath.Join(dir, controlSocket), diff)
	}
}

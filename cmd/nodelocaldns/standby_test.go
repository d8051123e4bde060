package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"nodelocaldns/cmd/internal/control"
	"nodelocaldns/host/standby"
)

func TestStatusSaysWhoAnswers(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 5, 11, 0, time.UTC)
	next := now.Add(40 * time.Second)
	past := now.Add(-time.Second)
	unit := func(text string) standby.Unit {
		active, sub, _ := strings.Cut(text, " ")
		return standby.Unit{Load: "loaded", Active: active, Sub: sub}
	}
	failed := func(tries int, next *time.Time) *standby.State {
		return &standby.State{Since: now.Add(-2 * time.Minute), Why: "exit-code 1", Tries: tries, NextTry: next}
	}
	relay := &relayStatus{PID: 7, Since: now.Add(-time.Hour), Servers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}, Source: "a flag", Queries: 12, ServFails: 3}
	const silent = "no resolver at /run/nodelocaldns/control.sock"
	for _, tt := range []struct {
		name                    string
		resolver, relay, socket string // empty: systemd does not say
		outage                  *standby.State
		answers                 *relayStatus
		want                    string
	}{
		{"the resolver has failed", "inactive dead", "active running", "active running", failed(3, &next), relay, `
resolver: nodelocaldns.service failed: exit-code 1
relay: answers in the resolver's place since 12:03:11 (2m0s): nodelocaldns.service failed: exit-code 1, 3 tries, next in 40s
  kube-dns  10.96.0.10:53 (a flag)
  queries   12; 3 answered SERVFAIL
error: nodelocaldns.service has failed: exit-code 1
hint: journalctl -u nodelocaldns says why
`},
		{"just now", "inactive dead", "active running", "active running", failed(0, &next), relay, `
resolver: nodelocaldns.service failed: exit-code 1
relay: answers in the resolver's place since 12:03:11 (2m0s): nodelocaldns.service failed: exit-code 1, not tried again yet, next in 40s
  kube-dns  10.96.0.10:53 (a flag)
  queries   12; 3 answered SERVFAIL
error: nodelocaldns.service has failed: exit-code 1
hint: journalctl -u nodelocaldns says why
`},
		{"it is tried", "activating start", "active running", "active running", failed(1, nil), relay, `
resolver: nodelocaldns.service failed: exit-code 1
relay: answers in the resolver's place since 12:03:11 (2m0s): nodelocaldns.service failed: exit-code 1, 1 try, one is under way
  kube-dns  10.96.0.10:53 (a flag)
  queries   12; 3 answered SERVFAIL
error: nodelocaldns.service has failed: exit-code 1
hint: journalctl -u nodelocaldns says why
`},
		{"the relay fails too", "activating auto-restart", "activating auto-restart", "active listening", failed(2, &past), nil, `
resolver: nodelocaldns.service failed: exit-code 1
relay: nodelocaldns-relay.service is activating, and nobody answers since 12:03:11 (2m0s): nodelocaldns.service failed: exit-code 1, 2 tries, next now
not asked
error: nodelocaldns.service has failed: exit-code 1
hint: journalctl -u nodelocaldns says why
`},
		{"there is no guard to see it", "failed failed", "active running", "active running", nil, relay, `
resolver: nodelocaldns.service has failed: exit-code 203/EXEC
relay: answers for 1h0m, pid 7
  kube-dns  10.96.0.10:53 (a flag)
  queries   12; 3 answered SERVFAIL
error: nodelocaldns.service has failed: exit-code 203/EXEC
hint: journalctl -u nodelocaldns says why
`},
		{"systemd does not say", "", "", "", failed(3, &next), nil, `
resolver: no resolver at /run/nodelocaldns/control.sock
relay: answers in the resolver's place since 12:03:11 (2m0s): nodelocaldns.service failed: exit-code 1, 3 tries, next in 40s
error: nodelocaldns.service has failed: exit-code 1
hint: journalctl -u nodelocaldns says why
`},
		{"stopped, and asked since", "inactive dead", "active running", "active running", nil, relay, `
resolver: stopped; the relay answers, kube-dns is asked for everything
relay: answers for 1h0m, pid 7
  kube-dns  10.96.0.10:53 (a flag)
  queries   12; 3 answered SERVFAIL
`},
		{"stopped", "inactive dead", "inactive dead", "active listening", nil, nil, `
resolver: stopped; the next query starts the relay
not asked
`},
		{"stopped with its sockets", "inactive dead", "inactive dead", "inactive dead", nil, nil, `
resolver: stopped, and nodelocaldns.socket too: nobody answers
`},
		{"it has died", "activating auto-restart", "inactive dead", "active running", nil, nil, `
resolver: nodelocaldns.service has ended (exit-code 203/EXEC) and is being started again
not asked
`},
		{"it starts", "activating start", "inactive dead", "active running", nil, nil, `
resolver: nodelocaldns.service is activating
not asked
`},
		{"it hangs", "active running", "inactive dead", "active running", nil, nil, `
resolver: no resolver at /run/nodelocaldns/control.sock
`},
		{"both, and the relay is asked", "active running", "active running", "active running", nil, relay, `
resolver: it runs, and the relay beside it
relay: answers beside the resolver, until guard stops it
  kube-dns  10.96.0.10:53 (a flag)
  queries   12; 3 answered SERVFAIL
`},
		{"no systemd", "", "", "", nil, nil, `
resolver: no resolver at /run/nodelocaldns/control.sock
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := standing{outage: tt.outage}
			if tt.resolver != "" {
				w.units = &standby.Snapshot{Resolver: standby.Resolver{Unit: unit(tt.resolver), Result: "exit-code", Status: 203}, Relay: unit(tt.relay), Socket: unit(tt.socket)}
			}
			rs := resolverStatus{Why: silent}
			if tt.answers != nil {
				rs = resolverStatus{Why: control.Why, Relay: tt.answers}
			}
			var out bytes.Buffer
			a := &app{term: term{stdout: &out}}
			rs = w.correct(rs)
			a.printResolver(rs)
			a.printRelay(w.relay(now), rs.Relay, now)
			if w.quiet() {
				fmt.Fprintln(&out, "not asked")
			}
			if err := w.trouble(); err != nil {
				fmt.Fprintf(&out, "error: %v\n", err)
				if h, ok := err.(interface{ Hint() string }); ok {
					fmt.Fprintf(&out, "hint: %s\n", h.Hint())
				}
			}
			if got := "\n" + out.String(); got != tt.want {
				t.Errorf("got%swant%s", got, tt.want)
			}
		})
	}
}

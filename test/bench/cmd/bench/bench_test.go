package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodelocaldns/test/bench/load"
	"nodelocaldns/test/bench/report"
)

func TestEverySubjectsConfigurationIsComplete(t *testing.T) {
	for _, s := range subjects {
		dir := t.TempDir()
		argv, err := s.command(dir)
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
			continue
		}
		all := strings.Join(argv[1:], " ")
		if s.config != "" {
			text, err := os.ReadFile(filepath.Join(dir, s.config))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), kubeDNS) {
				t.Errorf("%s does not know kube-dns:\n%s", s.Name, text)
			}
			if !strings.Contains(all, dir) {
				t.Errorf("%s is not told of its configuration: %q", s.Name, argv)
			}
			all += string(text)
		}
		// Ours listens there by default.
		if strings.Contains(all, "{{") || s.Name != report.Ours && !strings.Contains(all, address) {
			t.Errorf("%s is run as %q with\n%s", s.Name, argv, all)
		}
	}
}

func TestAVersionIsFoundInWhatProgramsSay(t *testing.T) {
	for text, want := range map[string]string{
		"nodelocaldns (devel) go1.26.8":           "(devel)",
		"nodelocaldns v0.3.0 go1.26.8":            "v0.3.0",
		"Version 1.17.1\n\nConfigure line: 3.4":   "1.17.1",
		"dnsdist 1.7.3 (Lua 5.1.4 [LuaJIT 2.1])":  "1.7.3",
		"Nov 22 10:41:41 PowerDNS Recursor 4.8.8": "4.8.8",
		"Knot Resolver, version 5.6.0":            "5.6.0",
		"Dnsmasq version 2.90  Copyright (c)":     "2.90",
		"CoreDNS-1.15.0\nlinux/amd64, go1.26.8, ": "1.15.0",
		"usage: floor": "",
	} {
		if got := versionIn(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// What promises are about must be measured, and what a case needs in the cache must be
// put there by it or by one before.
func TestEveryPromiseHasItsCase(t *testing.T) {
	names := func(s scale) (out []string) {
		filled := map[load.Set]bool{}
		for _, st := range s.steps() {
			out = append(out, st.Name)
			filled[st.fill] = true
			if p := st.plan; st.Shows != report.Memory && p.Kind != load.Lookups && p.Names.First < fresh && !filled[p.Names] {
				t.Errorf("%s: its names are not in the cache", st.Name)
			}
		}
		slices.Sort(out)
		if len(slices.Compact(slices.Clone(out))) != len(out) {
			t.Errorf("a case is there twice: %q", out)
		}
		return out
	}
	all := names(thorough)
	for _, c := range []string{report.Hits, report.HitsFew, report.HitsMany, report.HitsAtRate, report.Clients, report.Misses, report.LookupsCase, report.RSSEmpty, report.RSSFull} {
		if !slices.Contains(all, c) {
			t.Errorf("there is no case %s", c)
		}
	}
	for _, c := range names(brief) {
		if !slices.Contains(all, c) {
			t.Errorf("%s is in the short run alone", c)
		}
	}
}

func TestFiguresOfProcAreFound(t *testing.T) {
	const snmp = "Ip: Forwarding DefaultTTL\nIp: 1 64\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 5 6 7 8 9\nUdpLite: InDatagrams RcvbufErrors\nUdpLite: 1 2\n"
	if n, err := counter(snmp, "Udp", "RcvbufErrors"); n != 9 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := counter(snmp, "Udp", "SndbufErrors"); err == nil {
		t.Errorf("got %d", n)
	}
	const status1 = "Name:\tx\nVmHWM:\t  9 kB\nVmRSS:\t    20480 kB\n"
	if n, err := status(status1, "VmRSS"); n != 20<<20 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := status("Name:\tx\n", "VmRSS"); err == nil {
		t.Errorf("got %d", n)
	}
	if n, err := busyTicks("cpu  1 20 300 4000 5000 600 7 8 9 9\ncpu0 1\n"); n != 936 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	for _, bad := range []string{"", "cpu 1 2 3\n", "cpu 1 2 x 4 5 6 7 8 9 10\n"} {
		if n, err := busyTicks(bad); err == nil {
			t.Errorf("%q: got %d", bad, n)
		}
	}
	m, err := machine()
	if err != nil || m.CPUs == 0 || m.CPU == "" || m.Kernel == "" {
		t.Errorf("the machine is %+v, %v", m, err)
	}
}

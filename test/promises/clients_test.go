package promises

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/test/node"
	"nodelocaldns/test/promises/load"
)

const (
	lookups = 50
	every   = 100 * time.Millisecond
	// limit is how long the last of them is waited for: some clients would go
	// on for more than a minute where nobody answers.
	limit    = 12 * time.Second
	lookedUp = "dual.shop.svc.cluster.local." // without the search path
)

// clientPrograms are the columns of the table, and how the programs are called.
var clientPrograms = []struct{ name, program string }{
	{"glibc", "lookup-glibc"},
	{"musl", "lookup-musl"},
	{"Go", "lookup"},
	{"c-ares", "lookup-ares"},
}

// The programs of a pod look a name up, each with its own resolver, and ask us
// first and kube-dns second.
func TestLookupsSucceedInEveryState(t *testing.T) {
	beside(t)
	machine := alone
	if quick() {
		machine = apply
	}
	m := machine(t)
	nothing := func(context.Context) {}
	command := func(args ...string) func(context.Context) {
		return func(ctx context.Context) { _, _ = m.Exec(ctx, args...) }
	}
	for i, tt := range []struct {
		state  string
		before func(context.Context)
		during func(context.Context) // its context ends with the lookups
		after  func(context.Context)
		fails  bool // every lookup, and soon
		// worst is promised of every client; 0 where nothing is.
		worst time.Duration
	}{
		{"normal", nothing, nothing, nothing, false, 100 * time.Millisecond},
		{"SIGKILL every 3 s", nothing, func(ctx context.Context) {
			for ctx.Err() == nil {
				_, _ = m.Exec(ctx, "systemctl", "kill", "--kill-who=main", "--signal=KILL", resolver)
				pause(ctx, between)
			}
		}, nothing, false, load.Timeout}, // what a query costs that was lost
		{"SIGSTOP until the watchdog", nothing, command("systemctl", "kill", "--kill-who=main", "--signal=STOP", resolver), nothing, false, load.Timeout},
		{"resolver stopped: relay", command("systemctl", "stop", resolver), nothing, command("systemctl", "start", resolver), false, time.Second},
		{"kube-dns has no endpoints", func(context.Context) { m.cutOff(t, "refuse") }, nothing, func(context.Context) { m.cutOff(t, "") }, false, time.Second},
		{"kube-dns is silent", func(context.Context) { m.cutOff(t, "drop") }, nothing, func(context.Context) { m.cutOff(t, "") }, false, time.Second},
		{"relay, and kube-dns has no endpoints", func(ctx context.Context) {
			command("systemctl", "stop", resolver)(ctx)
			m.cutOff(t, "refuse")
		}, nothing, func(ctx context.Context) {
			m.cutOff(t, "")
			command("systemctl", "start", resolver)(ctx)
		}, true, 0},
		{"relay, and kube-dns is silent", func(ctx context.Context) {
			command("systemctl", "stop", resolver)(ctx)
			m.cutOff(t, "drop")
		}, nothing, func(ctx context.Context) {
			m.cutOff(t, "")
			command("systemctl", "start", resolver)(ctx)
		}, true, 0},
	} {
		m.healthy(t)
		tt.before(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		disturbed := make(chan struct{})
		go func() {
			defer close(disturbed)
			pause(ctx, 500*time.Millisecond)
			tt.during(ctx)
		}()
		cells := lookUp(t, addresses(t, lookedUp), func(program string, args ...string) *exec.Cmd {
			return m.inPod(t, append([]string{tools + program}, args...)...)
		})
		cancel()
		<-disturbed
		tt.after(t.Context())
		for j, c := range cells {
			c.State, c.order = tt.state, i*len(cells)+j
			results.add(c)
			t.Logf("%s: %s: %d failed, %d slow, worst %s", c.State, c.Client, c.Failed, c.Slow, short(c.Worst))
			if tt.fails {
				continue
			}
			if c.Failed > 0 {
				t.Errorf("%s: %s: %d of %d lookups failed", c.State, c.Client, c.Failed, c.Lookups)
			}
			if tt.worst > 0 {
				inTime(t, c.State+": "+c.Client+": the slowest lookup", c.Worst, tt.worst)
			}
		}
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// lookUp has all clients look up the same name at the same time. What it has is
// want; a command runs a program in a pod.
func lookUp(t *testing.T, want string, command func(program string, args ...string) *exec.Cmd) []cell {
	t.Helper()
	cmds, printed := make([]*exec.Cmd, len(clientPrograms)), make([]bytes.Buffer, len(clientPrograms))
	for i, p := range clientPrograms {
		cmds[i] = command(p.program, strconv.Itoa(lookups), strconv.Itoa(int(every.Milliseconds())), strconv.Itoa(int(limit.Milliseconds())), lookedUp)
		cmds[i].Stdout, cmds[i].Stderr = &printed[i], &printed[i]
		must(t, cmds[i].Start())
	}
	out := make([]cell, len(cmds))
	for i, p := range clientPrograms {
		if err := cmds[i].Wait(); err != nil {
			t.Fatalf("%s: %v\n%s", p.name, err, &printed[i])
		}
		out[i] = cell{Client: p.name}
		for line := range strings.Lines(printed[i].String()) {
			f := strings.SplitN(strings.TrimSpace(line), " ", 3)
			took, err := strconv.ParseInt(f[1], 10, 64)
			must(t, err)
			out[i].Lookups++
			out[i].Worst = max(out[i].Worst, time.Duration(took))
			if time.Duration(took) >= time.Second {
				out[i].Slow++
			}
			switch {
			case strings.HasPrefix(f[2], "error: "):
				out[i].Failed++
			case f[2] != want:
				t.Errorf("%s found %s at %s, want %s", p.name, lookedUp, f[2], want)
			}
		}
		if out[i].Lookups != lookups {
			t.Errorf("%s made %d lookups, want %d\n%s", p.name, out[i].Lookups, lookups, &printed[i])
		}
	}
	return out
}

// addresses are what kube-dns says about a name, as the clients print them.
func addresses(t *testing.T, name string) string {
	t.Helper()
	var out []string
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(name, kind), node.KubeDNS+":53")
		must(t, err)
		for _, rr := range reply.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				out = append(out, rr.A.String())
			case *dns.AAAA:
				out = append(out, rr.AAAA.String())
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// cutOff makes kube-dns refuse or drop what the node and its pods send, or
// undoes that. It refuses as kube-proxy does for a service without endpoints.
func (m *machine) cutOff(t *testing.T, how string) {
	t.Helper()
	run := func(verb, proto string, target ...string) error {
		out, err := exec.Command("iptables", append([]string{"-w", verb, "INPUT", "-s", m.from, "-d", node.KubeDNS, "-p", proto, "--dport", "53"}, target...)...).CombinedOutput()
		if err != nil {
			err = errors.Join(err, errors.New(string(out)))
		}
		return err
	}
	for _, proto := range []string{"udp", "tcp"} {
		refuse := []string{"-j", "REJECT", "--reject-with", map[string]string{"udp": "icmp-port-unreachable", "tcp": "tcp-reset"}[proto]}
		for _, target := range [][]string{refuse, {"-j", "DROP"}} {
			_ = run("-D", proto, target...) // where it is there
		}
		switch how {
		case "refuse":
			must(t, run("-I", proto, refuse...))
		case "drop":
			must(t, run("-I", proto, "-j", "DROP"))
		}
	}
}

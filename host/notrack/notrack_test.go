package notrack_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/step"
)

var (
	addr  = netip.MustParseAddr("169.254.20.10")
	other = netip.MustParseAddr("169.254.20.11")
)

func want(backend notrack.Backend, a string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(`
iptables-nft filter -N NODELOCALDNS
iptables-nft filter -A INPUT -m comment --comment nodelocaldns -j NODELOCALDNS
iptables-nft filter -A NODELOCALDNS -d ADDR -p udp --dport 53 -m comment --comment nodelocaldns -j ACCEPT
iptables-nft filter -A NODELOCALDNS -s ADDR -p udp --sport 53 -m comment --comment nodelocaldns -j ACCEPT
iptables-nft filter -A NODELOCALDNS -d ADDR -p tcp --dport 53 -m comment --comment nodelocaldns -j ACCEPT
iptables-nft filter -A NODELOCALDNS -s ADDR -p tcp --sport 53 -m comment --comment nodelocaldns -j ACCEPT
iptables-nft filter -A OUTPUT -m comment --comment nodelocaldns -j NODELOCALDNS
iptables-nft raw -N NODELOCALDNS
iptables-nft raw -A NODELOCALDNS -d ADDR -p udp --dport 53 -m comment --comment nodelocaldns -j NOTRACK
iptables-nft raw -A NODELOCALDNS -s ADDR -p udp --sport 53 -m comment --comment nodelocaldns -j NOTRACK
iptables-nft raw -A NODELOCALDNS -d ADDR -p tcp --dport 53 -m comment --comment nodelocaldns -j NOTRACK
iptables-nft raw -A NODELOCALDNS -s ADDR -p tcp --sport 53 -m comment --comment nodelocaldns -j NOTRACK
iptables-nft raw -A OUTPUT -m comment --comment nodelocaldns -j NODELOCALDNS
iptables-nft raw -A PREROUTING -m comment --comment nodelocaldns -j NODELOCALDNS
`), "ADDR", a), "iptables-nft", "iptables-"+string(backend))
}

func config() notrack.Config {
	return notrack.Config{Addrs: []netip.Addr{addr}, Port: 53, Backend: notrack.Auto}
}

func build(cfg notrack.Config) func(*hosttest.Node) step.Step {
	return func(n *hosttest.Node) step.Step { return notrack.New(n.Tables, cfg) }
}

func TestStepNotrack(t *testing.T) {
	t.Run("ipv4", func(t *testing.T) {
		hosttest.RunStep(t, hosttest.New, build(config()), want(notrack.NFT, "169.254.20.10/32"))
	})
	t.Run("ipv6", func(t *testing.T) {
		cfg := config()
		cfg.V6, cfg.Addrs = true, []netip.Addr{netip.MustParseAddr("fd00::a")}
		hosttest.RunStep(t, hosttest.New, build(cfg), strings.ReplaceAll(want(notrack.NFT, "fd00::a/128"), "iptables", "ip6tables"))
	})
	t.Run("legacy on request", func(t *testing.T) {
		cfg := config()
		cfg.Backend = notrack.Legacy
		hosttest.RunStep(t, hosttest.New, build(cfg), want(notrack.Legacy, "169.254.20.10/32"))
	})
	t.Run("with the rules of others", func(t *testing.T) {
		hosttest.RunStep(t, withOthers, build(config()), want(notrack.NFT, "169.254.20.10/32"))
	})
}

// withOthers is a node on which kube-proxy and a firewall were first.
func withOthers() *hosttest.Node {
	n := hosttest.New()
	t, err := n.Tables(notrack.Auto, false)
	if err != nil {
		panic(err)
	}
	err = errors.Join(
		t.NewChain("filter", "KUBE-FORWARD"),
		t.Append("filter", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT"),
		t.Append("filter", "INPUT", "-j", "DROP"),
		t.Append("filter", "FORWARD", "-j", "KUBE-FORWARD"),
	)
	if err != nil {
		panic(err)
	}
	return n
}

func apply(t *testing.T, n *hosttest.Node, j *hosttest.Journal, cfg notrack.Config) {
	t.Helper()
	if len(j.Records) > 0 {
		var err error
		if cfg.Held, err = notrack.HeldBy(j.Records[0].Saved); err != nil {
			t.Fatal(err)
		}
	}
	s := notrack.New(n.Tables, cfg)
	if err := j.Engine(s).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Check(t.Context()); err != nil || f.State != step.Satisfied {
		t.Fatalf("after apply: %+v, %v", f, err)
	}
}

func rollback(t *testing.T, n *hosttest.Node, j *hosttest.Journal) {
	t.Helper()
	if err := j.Engine(notrack.New(n.Tables, notrack.Config{})).Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestWhatOthersDoToOurRulesIsRepairedAndUndone(t *testing.T) {
	jump := []string{"-m", "comment", "--comment", "nodelocaldns", "-j", "NODELOCALDNS"}
	for name, drift := range map[string]func(notrack.Tables) error{
		"a jump is deleted": func(x notrack.Tables) error { return x.Delete("raw", "OUTPUT", jump...) },
		"a jump is there three times": func(x notrack.Tables) error {
			return errors.Join(x.Append("raw", "OUTPUT", jump...), x.Append("raw", "OUTPUT", jump...))
		},
		"a jump only for one device is added": func(x notrack.Tables) error {
			return x.Insert("filter", "INPUT", 1, "-i", "eth0", "-j", "NODELOCALDNS")
		},
		"a jump is replaced by one for one device": func(x notrack.Tables) error {
			return errors.Join(x.Delete("filter", "INPUT", jump...), x.Append("filter", "INPUT", "-i", "eth0", "-j", "NODELOCALDNS"))
		},
		"our chain is emptied": func(x notrack.Tables) error { return x.ClearChain("raw", "NODELOCALDNS") },
		"a rule is put into our chain": func(x notrack.Tables) error {
			return x.Insert("filter", "NODELOCALDNS", 1, "-j", "DROP")
		},
		"everything of ours in a table is flushed": func(x notrack.Tables) error {
			return errors.Join(x.ClearChain("raw", "OUTPUT"), x.ClearChain("raw", "PREROUTING"),
				x.ClearChain("raw", "NODELOCALDNS"), x.DeleteChain("raw", "NODELOCALDNS"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, j := withOthers(), &hosttest.Journal{}
			before := n.String()
			apply(t, n, j, config())
			whole := n.String()
			x, _ := n.Tables(notrack.Auto, false)
			if err := drift(x); err != nil {
				t.Fatal(err)
			}
			all, err := j.Engine(notrack.New(n.Tables, config())).Status(t.Context())
			if err != nil || !all[0].Drift {
				t.Fatalf("status %+v, %v; want drift", all, err)
			}
			apply(t, n, j, config())
			if diff := cmp.Diff(whole, n.String()); diff != "" {
				t.Errorf("repaired (-want +got):\n%s", diff)
			}
			if err := drift(x); err != nil {
				t.Fatal(err)
			}
			rollback(t, n, j)
			if diff := cmp.Diff(before, n.String()); diff != "" {
				t.Errorf("undone from drift (-before +after):\n%s", diff)
			}
		})
	}
}

func TestAJumpThatIsNoLongerFirstIsLeftWhereItIs(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	apply(t, n, j, config())
	x, _ := n.Tables(notrack.Auto, false)
	if err := x.Insert("filter", "INPUT", 1, "-j", "cali-INPUT"); err != nil {
		t.Fatal(err)
	}
	writes := n.Writes()
	apply(t, n, j, config())
	if n.Writes() != writes {
		t.Errorf("fought for the first place:\n%s", n)
	}
}

func TestChangedAddressesReplaceTheRules(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	before := n.String()
	apply(t, n, j, config())
	cfg := config()
	cfg.Addrs, cfg.Port = []netip.Addr{other}, 5353
	apply(t, n, j, cfg)
	if s := n.String(); strings.Contains(s, "169.254.20.10") || strings.Contains(s, "port 53 ") {
		t.Errorf("old rules are left:\n%s", s)
	}
	rollback(t, n, j)
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("undone (-before +after):\n%s", diff)
	}
}

func TestAHostThatChangedItsBackendKeepsNoRulesInTheOldOne(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	before := n.String()
	apply(t, n, j, config())
	n.Programs = []notrack.Backend{notrack.Legacy, notrack.NFT}
	apply(t, n, j, config())
	if s := n.String(); strings.Contains(s, "iptables-nft") || !strings.Contains(s, "iptables-legacy") {
		t.Errorf("rules are not where they belong:\n%s", s)
	}
	rollback(t, n, j)
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("undone (-before +after):\n%s", diff)
	}
}

func TestUndoFindsRulesInABackendThatIsNotTheHostsAnyMore(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	before := n.String()
	apply(t, n, j, config())
	n.Programs = []notrack.Backend{notrack.Legacy, notrack.NFT}
	rollback(t, n, j)
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("undone (-before +after):\n%s", diff)
	}
}

func TestANodeWithoutIptablesIsBlockedWithAHint(t *testing.T) {
	n := hosttest.New()
	n.Programs = nil
	f, err := notrack.New(n.Tables, config()).Check(t.Context())
	if err != nil || f.State != step.Blocked || !strings.Contains(f.Hint, "install iptables") {
		t.Errorf("check found %+v, %v", f, err)
	}
}

func TestUndoWithoutTheProgramIsAnErrorAndNotForgotten(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	apply(t, n, j, config())
	n.Programs = []notrack.Backend{notrack.Legacy}
	err := j.Engine(notrack.New(n.Tables, notrack.Config{})).Rollback(t.Context())
	if !errors.Is(err, notrack.ErrMissing) || len(j.Records) != 1 {
		t.Errorf("err = %v, journal %v", err, j.Records)
	}
}

func TestRulesInABackendThatWasAwayForAWhileAreStillUndone(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	before := n.String()
	apply(t, n, j, config())
	n.Programs = []notrack.Backend{notrack.Legacy}
	apply(t, n, j, config())
	n.Programs = []notrack.Backend{notrack.Legacy, notrack.NFT}
	rollback(t, n, j)
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("undone (-before +after):\n%s", diff)
	}
}

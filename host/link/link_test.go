package link_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/link"
	"nodelocaldns/host/step"
)

var (
	v4    = netip.MustParseAddr("169.254.20.10")
	other = netip.MustParseAddr("169.254.20.11")
	v6    = netip.MustParseAddr("fd00::a")
	six   = netip.MustParseAddr("fd00::b")
)

func on(typ link.Type, addrs ...netip.Addr) func(*hosttest.Node) step.Step {
	return func(n *hosttest.Node) step.Step {
		return link.New(n.Netlink(), link.Config{Name: "nodelocaldns0", Type: typ, Addrs: addrs})
	}
}

func TestStepLink(t *testing.T) {
	device := func(kind string) string {
		return "nodelocaldns0 " + kind + " up alias nodelocaldns\n  169.254.20.10/32\n  fd00::a/128"
	}
	lo := "  169.254.20.10/32 lo:nodelocaldns\n  fd00::a/128"
	for _, tt := range []struct {
		name  string
		typ   link.Type
		kinds []string
		want  string
	}{
		{"auto takes a dummy", link.Auto, []string{"dummy", "bridge"}, device("dummy")},
		{"auto takes a bridge without dummy", link.Auto, []string{"bridge"}, device("bridge")},
		{"auto takes lo without either", link.Auto, nil, lo},
		{"dummy", link.Dummy, []string{"dummy", "bridge"}, device("dummy")},
		{"bridge", link.Bridge, []string{"dummy", "bridge"}, device("bridge")},
		{"lo", link.Lo, []string{"dummy", "bridge"}, lo},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hosttest.RunStep(t, func() *hosttest.Node {
				n := hosttest.New()
				n.Kinds = tt.kinds
				return n
			}, on(tt.typ, v4, v6), tt.want)
		})
	}
}

func apply(t *testing.T, n *hosttest.Node, j *hosttest.Journal, cfg link.Config) {
	t.Helper()
	if len(j.Records) > 0 {
		var err error
		if cfg.Held, err = link.HeldBy(j.Records[0].Saved); err != nil {
			t.Fatal(err)
		}
	}
	s := link.New(n.Netlink(), cfg)
	if err := j.Engine(s).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	f, err := s.Check(t.Context())
	if err != nil || f.State != step.Satisfied {
		t.Fatalf("after apply: %+v, %v", f, err)
	}
}

// Whatever configuration follows whatever other, the node converges to what
// the last one alone would have made, and undo restores the original.
func TestAChangedConfigurationConvergesAndIsUndone(t *testing.T) {
	configs := map[string]link.Config{
		"dummy":         {Type: link.Dummy, Addrs: []netip.Addr{v4, v6}},
		"bridge, other": {Type: link.Bridge, Addrs: []netip.Addr{other, six}},
		"lo":            {Type: link.Lo, Addrs: []netip.Addr{v4, v6}},
		"lo, other":     {Type: link.Lo, Addrs: []netip.Addr{other, six}},
		"auto, fewer":   {Type: link.Auto, Addrs: []netip.Addr{v4}},
	}
	undo := func(t *testing.T, n *hosttest.Node, j *hosttest.Journal) {
		t.Helper()
		if err := j.Engine(link.New(n.Netlink(), link.Config{Name: "nodelocaldns0"})).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for first, a := range configs {
		for second, b := range configs {
			t.Run(first+" then "+second, func(t *testing.T) {
				a.Name, b.Name = "nodelocaldns0", "nodelocaldns0"
				n, j := hosttest.New(), &hosttest.Journal{}
				before := n.String()
				apply(t, n, j, a)
				apply(t, n, j, b)
				if !(a.Type != b.Type && (b.Type == link.Auto)) { // auto is content with any place
					alone := hosttest.New()
					apply(t, alone, &hosttest.Journal{}, b)
					if diff := cmp.Diff(lines(alone), lines(n)); diff != "" {
						t.Errorf("(-second alone +after first):\n%s", diff)
					}
				}
				undo(t, n, j)
				if diff := cmp.Diff(before, n.String()); diff != "" {
					t.Errorf("undone (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// lines is the node without the order of addresses.
func lines(n *hosttest.Node) map[string]int {
	out := map[string]int{}
	for _, l := range strings.Split(n.String(), "\n") {
		out[l]++
	}
	return out
}

func TestAForeignDeviceOfOurNameIsBlockedAndNeverTouched(t *testing.T) {
	n := hosttest.New()
	foreign := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "nodelocaldns0"}}
	if err := n.Netlink().LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	before := n.String()
	s := on(link.Auto, v4)(n)
	f, err := s.Check(t.Context())
	if err != nil || f.State != step.Blocked || !strings.Contains(f.Hint, "ip link del nodelocaldns0") {
		t.Fatalf("check found %+v, %v", f, err)
	}
	// It took the place of ours after apply.
	err = s.Undo(t.Context(), step.Saved{After: []json.RawMessage{json.RawMessage(`{"device": ["169.254.20.10"]}`)}})
	var released *step.Released
	if !errors.As(err, &released) || !strings.Contains(released.Why, "not our device") {
		t.Errorf("undo: %v", err)
	}
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("the node (-before +after):\n%s", diff)
	}
}

func TestADeviceCutOffBeforeItsAliasWasSetIsOurs(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	n.Arm(1, hosttest.CutAfter)
	func() {
		defer func() { _ = recover() }()
		_ = j.Engine(on(link.Dummy, v4)(n)).Apply(t.Context())
	}()
	n.Arm(0, 0)
	if !strings.Contains(n.String(), "nodelocaldns0 dummy\n") {
		t.Fatalf("the node is not as the test needs it:\n%s", n)
	}
	apply(t, n, j, link.Config{Name: "nodelocaldns0", Type: link.Dummy, Addrs: []netip.Addr{v4}})
}

func TestAnAddressOnLoThatWasThereBeforeUsStays(t *testing.T) {
	for _, a := range []netip.Addr{v4, v6} {
		n, j := hosttest.New(), &hosttest.Journal{}
		lo, err := n.Netlink().LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		bits := a.BitLen()
		theirs := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, bits)}}
		if err := n.Netlink().AddrReplace(lo, theirs); err != nil {
			t.Fatal(err)
		}
		before := n.String()
		cfg := link.Config{Name: "nodelocaldns0", Type: link.Lo, Addrs: []netip.Addr{a, other, six}}
		apply(t, n, j, cfg)
		cfg.Addrs = []netip.Addr{a}
		apply(t, n, j, cfg)
		if err := j.Engine(link.New(n.Netlink(), cfg)).Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, n.String()); diff != "" {
			t.Errorf("%s (-before +after):\n%s", a, diff)
		}
	}
}

func TestALoThatIsDownIsBlocked(t *testing.T) {
	n := hosttest.New()
	n.Down("lo")
	f, err := on(link.Lo, v4)(n).Check(t.Context())
	if err != nil || f.State != step.Blocked || f.Hint != "ip link set lo up" {
		t.Errorf("check found %+v, %v", f, err)
	}
}

func TestAKindTheKernelLacksIsAnErrorWithAHint(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	n.Kinds = []string{"bridge"}
	before := n.String()
	err := j.Engine(on(link.Dummy, v4)(n)).Apply(t.Context())
	var hinted interface{ Hint() string }
	if err == nil || !strings.Contains(err.Error(), "this kernel has no dummy devices") || !errors.As(err, &hinted) {
		t.Fatalf("err = %v", err)
	}
	if diff := cmp.Diff(before, n.String()); diff != "" {
		t.Errorf("the node (-before +after):\n%s", diff)
	}
}

func TestDriftIsFoundAndRepairedWhateverItIs(t *testing.T) {
	for name, drift := range map[string]func(t *testing.T, n *hosttest.Node){
		"address deleted": func(t *testing.T, n *hosttest.Node) {
			l, _ := n.Netlink().LinkByName("nodelocaldns0")
			as, _ := n.Netlink().AddrList(l, netlink.FAMILY_ALL)
			if err := n.Netlink().AddrDel(l, &as[0]); err != nil {
				t.Fatal(err)
			}
		},
		"device deleted": func(t *testing.T, n *hosttest.Node) {
			l, _ := n.Netlink().LinkByName("nodelocaldns0")
			if err := n.Netlink().LinkDel(l); err != nil {
				t.Fatal(err)
			}
		},
		"device down": func(_ *testing.T, n *hosttest.Node) { n.Down("nodelocaldns0") },
		"alias changed": func(t *testing.T, n *hosttest.Node) {
			l, _ := n.Netlink().LinkByName("nodelocaldns0")
			if err := n.Netlink().LinkSetAlias(l, "mine"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, j := hosttest.New(), &hosttest.Journal{}
			cfg := link.Config{Name: "nodelocaldns0", Type: link.Auto, Addrs: []netip.Addr{v4, v6}}
			apply(t, n, j, cfg)
			want := lines(n)
			drift(t, n)
			all, err := j.Engine(link.New(n.Netlink(), cfg)).Status(t.Context())
			if err != nil || !all[0].Drift {
				t.Fatalf("status %+v, %v; want drift", all, err)
			}
			apply(t, n, j, cfg)
			if diff := cmp.Diff(want, lines(n)); diff != "" {
				t.Errorf("repaired (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnAddressOnLoThatSomebodyElseMadeAnewIsReleased(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	cfg := link.Config{Name: "nodelocaldns0", Type: link.Lo, Addrs: []netip.Addr{v4}}
	apply(t, n, j, cfg)
	lo, err := n.Netlink().LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: v4.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	if err := errors.Join(n.Netlink().AddrDel(lo, a), n.Netlink().AddrReplace(lo, a)); err != nil {
		t.Fatal(err)
	}
	theirs := n.String()
	var notes []string
	e := j.Engine(link.New(n.Netlink(), cfg))
	e.Note = func(_, what, why string) { notes = append(notes, what+": "+why) }
	if err := e.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(theirs, n.String()); diff != "" {
		t.Errorf("the node (-theirs +after):\n%s", diff)
	}
	if len(notes) != 1 || notes[0] != "released: 169.254.20.10 on lo is not ours" {
		t.Errorf("notes %q", notes)
	}
}

func TestAnAddressThatOthersPutOnOurDeviceIsNotOursToTakeAway(t *testing.T) {
	n, j := hosttest.New(), &hosttest.Journal{}
	cfg := link.Config{Name: "nodelocaldns0", Type: link.Dummy, Addrs: []netip.Addr{v4}}
	apply(t, n, j, cfg)
	dev, err := n.Netlink().LinkByName("nodelocaldns0")
	if err != nil {
		t.Fatal(err)
	}
	theirs := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1).To4(), Mask: net.CIDRMask(32, 32)}}
	if err := n.Netlink().AddrReplace(dev, theirs); err != nil {
		t.Fatal(err)
	}
	for _, addrs := range [][]netip.Addr{{v4, v6}, {v6}, {v6}} {
		cfg.Addrs = addrs
		apply(t, n, j, cfg)
	}
	if s := n.String(); !strings.Contains(s, "192.0.2.1/32") || strings.Contains(s, "169.254.20.10") {
		t.Errorf("the node is\n%s", s)
	}
}

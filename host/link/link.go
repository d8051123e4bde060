package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodelocaldns/host/step"
)

// mark is the alias of our device, for people and programs that look at it,
// and the label of our IPv4 addresses on lo. A label must begin with the
// device's name and fit IFNAMSIZ: this one fills it to the last byte.
const (
	mark  = "nodelocaldns"
	label = "lo:" + mark
)

// hardware is the address of our device, locally administered, "nldns" in
// ASCII. Unlike the alias the kernel takes it in the request that makes the
// device, so that a power cut between the two never leaves a device that
// nobody owns. That it is set at all also keeps systemd-udevd's
// MACAddressPolicy= away from the device.
var hardware = net.HardwareAddr{0x02, 'n', 'l', 'd', 'n', 's'}

// Netlink is what the step needs of the kernel; *netlink.Handle is one.
type Netlink interface {
	LinkByName(name string) (netlink.Link, error)
	LinkAdd(netlink.Link) error
	LinkDel(netlink.Link) error
	LinkSetUp(netlink.Link) error
	LinkSetAlias(link netlink.Link, alias string) error
	AddrList(link netlink.Link, family int) ([]netlink.Addr, error)
	AddrReplace(link netlink.Link, addr *netlink.Addr) error
	AddrDel(link netlink.Link, addr *netlink.Addr) error
}

// Config is what is wanted.
type Config struct {
	Name  string       // of our device, and of the step
	Type  Type         // what holds the addresses
	Addrs []netip.Addr // each as /32 or /128; none of them loopback
	Held  Held         // what our record says we may have left, from HeldBy
}

// A Link is the step link/<interface>: our addresses on a device of ours, or
// on lo.
type Link struct {
	nl  Netlink
	cfg Config
}

// New returns the step. It keeps cfg's slices.
func New(nl Netlink, cfg Config) *Link { return &Link{nl: nl, cfg: cfg} }

// Held is what earlier applies may have left: addresses on our device and
// addresses on lo. It tells ours from a stranger's where the kernel keeps no
// mark (an IPv6 address on lo), and lets a changed configuration clear away
// what the old one set.
type Held struct {
	Device []netip.Addr `json:"device"`
	Lo     []netip.Addr `json:"lo"`
}

// HeldBy reads Held from the record of the step.
func HeldBy(s step.Saved) (Held, error) {
	var all Held
	for _, raw := range s.After {
		var h Held
		if err := json.Unmarshal(raw, &h); err != nil {
			return Held{}, fmt.Errorf("reading the record: %w", err)
		}
		all.Device, all.Lo = union(all.Device, h.Device), union(all.Lo, h.Lo)
	}
	return all, nil
}

// Name is the journal key.
func (l *Link) Name() string { return "link/" + l.cfg.Name }

// view is what there is of us on the node.
type view struct {
	dev    netlink.Link // nil if there is no device of our name
	ours   bool         // dev carries our mark
	onDev  []netip.Addr // host addresses on dev, if ours
	lo     netlink.Link
	onLo   []netip.Addr // host addresses on lo, anybody's
	marked []netip.Addr // those of onLo that carry our label
}

// A change is one write and how plan shows it.
type change struct {
	diff string
	do   func() error
}

// Check compares the node with what is wanted. It works without root.
func (l *Link) Check(context.Context) (step.Finding, error) {
	v, err := l.look()
	if err != nil {
		return step.Finding{}, err
	}
	if f := l.blocked(v); f != nil {
		return *f, nil
	}
	changes := l.changes(v)
	if len(changes) == 0 {
		return step.Finding{State: step.Satisfied, Why: l.found(v)}, nil
	}
	diff := make([]string, len(changes))
	for i, c := range changes {
		diff[i] = c.diff
	}
	before, err := json.Marshal(v.held())
	if err != nil {
		return step.Finding{}, err
	}
	after, err := json.Marshal(l.leaves(v))
	if err != nil {
		return step.Finding{}, err
	}
	return step.Finding{
		State:  step.Pending,
		Why:    fmt.Sprintf("%d changes to hold %s", len(changes), l.wanted()),
		Diff:   strings.Join(diff, "\n"),
		Before: before,
		After:  after,
	}, nil
}

// Apply makes the node as wanted. New addresses are there before old ones go.
func (l *Link) Apply(context.Context) error {
	v, err := l.look()
	if err != nil {
		return err
	}
	for _, c := range l.changes(v) {
		if err := c.do(); err != nil {
			return fmt.Errorf("%s: %w", c.diff, err)
		}
	}
	return nil
}

// Undo deletes our device whole, and from lo the addresses that we put there.
// A device of our name without our mark is left alone.
func (l *Link) Undo(_ context.Context, s step.Saved) error {
	held, err := HeldBy(s)
	if err != nil {
		return err
	}
	v, err := l.look()
	if err != nil {
		return err
	}
	var released []string
	for _, a := range held.Lo {
		switch {
		case !slices.Contains(v.onLo, a):
		case a.Is4() && !slices.Contains(v.marked, a):
			released = append(released, fmt.Sprintf("%s on lo is not ours", a))
		default:
			if err := l.nl.AddrDel(v.lo, address(a, true)); err != nil {
				return fmt.Errorf("removing %s from lo: %w", a, err)
			}
		}
	}
	switch {
	case v.dev == nil:
	case !v.ours:
		released = append(released, l.cfg.Name+" is not our device any more")
	default:
		if err := l.nl.LinkDel(v.dev); err != nil {
			return fmt.Errorf("deleting %s: %w", l.cfg.Name, err)
		}
	}
	if released != nil {
		return &step.Released{Why: strings.Join(released, ", ")}
	}
	return nil
}

func (l *Link) look() (view, error) {
	var v view
	var err error
	if v.lo, err = l.nl.LinkByName("lo"); err != nil {
		return view{}, fmt.Errorf("looking at lo: %w", err)
	}
	if v.onLo, v.marked, err = l.addrs(v.lo); err != nil {
		return view{}, err
	}
	v.dev, err = l.nl.LinkByName(l.cfg.Name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		v.dev = nil
		return v, nil
	} else if err != nil {
		return view{}, fmt.Errorf("looking at %s: %w", l.cfg.Name, err)
	}
	kind, at := v.dev.Type(), v.dev.Attrs()
	v.ours = (kind == string(Dummy) || kind == string(Bridge)) &&
		(at.Alias == mark || slices.Equal(at.HardwareAddr, hardware))
	if v.ours {
		v.onDev, _, err = l.addrs(v.dev)
	}
	return v, err
}

// addrs lists the host addresses of dev, and which of them carry our label.
// The kernel says when others changed the list while it was dumped; the dump
// may be incomplete then and is taken again.
func (l *Link) addrs(dev netlink.Link) (all, marked []netip.Addr, err error) {
	var list []netlink.Addr
	for range 10 {
		if list, err = l.nl.AddrList(dev, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing addresses of %s: %w", dev.Attrs().Name, err)
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		ip = ip.Unmap()
		if ones, bits := a.Mask.Size(); ones != bits {
			continue
		}
		all = append(all, ip)
		if a.Label == label {
			marked = append(marked, ip)
		}
	}
	return all, marked, nil
}

func (l *Link) blocked(v view) *step.Finding {
	if v.dev != nil && !v.ours && l.cfg.Type != Lo {
		return &step.Finding{
			State: step.Blocked,
			Why:   fmt.Sprintf("%s is a %s device that is not ours", l.cfg.Name, v.dev.Type()),
			Hint:  "set another interface in the configuration, or delete it: ip link del " + l.cfg.Name,
		}
	}
	if v.lo.Attrs().Flags&net.FlagUp == 0 && l.onLo(v) {
		return &step.Finding{State: step.Blocked, Why: "lo is down", Hint: "ip link set lo up"}
	}
	return nil
}

// onLo says whether the addresses go on lo: asked for, or where an earlier
// apply found that this kernel has no device for them.
func (l *Link) onLo(v view) bool {
	return l.cfg.Type == Lo || l.cfg.Type == Auto && v.dev == nil && len(l.cfg.Addrs) > 0 && contains(v.onLo, l.cfg.Addrs)
}

// changes is what has to be written, in order.
func (l *Link) changes(v view) []change {
	var out []change
	add := func(do func() error, format string, args ...any) {
		out = append(out, change{diff: fmt.Sprintf(format, args...), do: do})
	}
	name := l.cfg.Name
	if l.onLo(v) {
		for _, a := range missing(l.cfg.Addrs, v.onLo) {
			add(func() error { return l.nl.AddrReplace(v.lo, address(a, true)) }, "+ %s on lo", prefix(a))
		}
		for _, a := range missing(v.ourLo(l.cfg.Held), l.cfg.Addrs) {
			add(func() error { return l.nl.AddrDel(v.lo, address(a, true)) }, "- %s on lo", prefix(a))
		}
		if v.ours {
			add(func() error { return l.nl.LinkDel(v.dev) }, "- device %s (%s)", name, v.dev.Type())
		}
		return out
	}
	dev := v.dev
	if dev != nil && l.cfg.Type != Auto && dev.Type() != string(l.cfg.Type) {
		add(func() error { return l.nl.LinkDel(v.dev) }, "- device %s (%s)", name, dev.Type())
		dev, v.onDev = nil, nil
	}
	if dev == nil {
		kind := string(l.cfg.Type)
		if l.cfg.Type == Auto {
			kind = "dummy, else bridge, else lo"
		}
		add(l.create, "+ device %s (%s)", name, kind)
	} else if dev.Attrs().Alias != mark {
		add(func() error { return l.nl.LinkSetAlias(dev, mark) }, "+ alias %s on %s", mark, name)
	}
	if dev == nil || dev.Attrs().Flags&net.FlagUp == 0 {
		add(l.up, "+ %s up", name)
	}
	for _, a := range missing(l.cfg.Addrs, v.onDev) {
		add(func() error { return l.hold(a) }, "+ %s on %s", prefix(a), name)
	}
	for _, a := range missing(l.cfg.Held.Device, l.cfg.Addrs) {
		if slices.Contains(v.onDev, a) {
			add(func() error { return l.nl.AddrDel(v.dev, address(a, false)) }, "- %s on %s", prefix(a), name)
		}
	}
	for _, a := range v.ourLo(l.cfg.Held) {
		add(func() error { return l.leaveLo(a) }, "- %s on lo", prefix(a))
	}
	return out
}

// ourLo is what is on lo and ours: by its label, or by the record.
func (v view) ourLo(h Held) []netip.Addr {
	var out []netip.Addr
	for _, a := range v.onLo {
		if slices.Contains(v.marked, a) || a.Is6() && slices.Contains(h.Lo, a) {
			out = append(out, a)
		}
	}
	return out
}

// create makes the device. A kernel built or shipped without a kind says
// EOPNOTSUPP; auto then takes the next one, and lo in the end.
func (l *Link) create() error {
	kinds := []Type{l.cfg.Type}
	if l.cfg.Type == Auto {
		kinds = []Type{Dummy, Bridge}
	}
	for _, kind := range kinds {
		at := netlink.NewLinkAttrs()
		at.Name, at.HardwareAddr = l.cfg.Name, hardware
		var dev netlink.Link = &netlink.Dummy{LinkAttrs: at}
		if kind == Bridge {
			// A bridge that snoops on multicast joins a group of its own, from
			// the first address it is given: conntrack would show our address.
			snoop := false
			dev = &netlink.Bridge{LinkAttrs: at, MulticastSnooping: &snoop}
		}
		err := l.nl.LinkAdd(dev)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP) && l.cfg.Type == Auto:
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			return &step.Error{
				Err:  fmt.Errorf("this kernel has no %s devices", kind),
				Next: "set linkType: auto in the configuration",
			}
		case err != nil:
			return err
		}
		made, err := l.nl.LinkByName(l.cfg.Name)
		if err != nil {
			return err
		}
		return l.nl.LinkSetAlias(made, mark)
	}
	return nil
}

func (l *Link) up() error {
	v, err := l.look()
	if err != nil || !v.ours {
		return err // not ours: auto ended on lo, which is up
	}
	return l.nl.LinkSetUp(v.dev)
}

// hold puts a on our device, or on lo if create found no device for it.
func (l *Link) hold(a netip.Addr) error {
	v, err := l.look()
	if err != nil {
		return err
	}
	if v.ours {
		return l.nl.AddrReplace(v.dev, address(a, false))
	}
	if slices.Contains(v.onLo, a) {
		return nil
	}
	return l.nl.AddrReplace(v.lo, address(a, true))
}

// leaveLo takes a from lo, unless create found no device and lo is its place.
func (l *Link) leaveLo(a netip.Addr) error {
	v, err := l.look()
	if err != nil {
		return err
	}
	if !v.ours && slices.Contains(l.cfg.Addrs, a) {
		return nil
	}
	return l.nl.AddrDel(v.lo, address(a, true))
}

// held is the view in the form of a record.
func (v view) held() Held { return Held{Device: v.onDev, Lo: v.onLo} }

// leaves is everything of ours that may be on the node after Apply, or after
// a part of it. What others put on lo, or on our device, is not in it.
func (l *Link) leaves(v view) Held {
	h := Held{Lo: v.ourLo(l.cfg.Held)}
	if l.cfg.Type == Lo || l.cfg.Type == Auto {
		h.Lo = union(h.Lo, missing(l.cfg.Addrs, v.onLo))
	}
	for _, a := range l.cfg.Held.Device {
		if slices.Contains(v.onDev, a) {
			h.Device = append(h.Device, a)
		}
	}
	if l.cfg.Type != Lo {
		h.Device = union(h.Device, l.cfg.Addrs)
	}
	return h
}

func (l *Link) found(v view) string {
	on := "lo"
	if v.ours && l.cfg.Type != Lo {
		on = fmt.Sprintf("%s (%s)", l.cfg.Name, v.dev.Type())
	}
	return l.wanted() + " on " + on
}

func (l *Link) wanted() string {
	as := make([]string, len(l.cfg.Addrs))
	for i, a := range l.cfg.Addrs {
		as[i] = prefix(a)
	}
	return strings.Join(as, ", ")
}

func prefix(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// address is a as the kernel takes it. IPv6 without duplicate address
// detection: nobody else is on the device, and an address that is still
// tentative cannot be bound.
func address(a netip.Addr, lo bool) *netlink.Addr {
	out := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is6() {
		out.Flags = unix.IFA_F_NODAD
	} else if lo {
		out.Label = label
	}
	return out
}

// missing is what of want is not in have.
func missing(want, have []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range want {
		if !slices.Contains(have, a) {
			out = append(out, a)
		}
	}
	return out
}

func contains(have, want []netip.Addr) bool { return len(missing(want, have)) == 0 }

func union(a, b []netip.Addr) []netip.Addr { return append(slices.Clone(a), missing(b, a)...) }

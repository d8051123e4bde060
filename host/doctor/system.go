package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/notrack"
	"nodelocaldns/host/pods"
)

// System returns the Env of the node this process runs on, in the network
// namespace of the calling thread.
func System(want Want, node kubelet.Node) (*Env, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	if err := nl.SetSocketTimeout(5 * time.Second); err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	e := &Env{
		Want:    want,
		Tree:    fsys.Tree("/"),
		Network: rtnetlink{nl},
		Tables:  notrack.System,
		Node:    node,
		Pods:    (&pods.Finder{}).Running,
		Version: askVersion,
		Self:    self,
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil { // sd_booted(3)
		e.Systemd = bus{}
	}
	return e, nil
}

// askVersion starts program with --version and without our environment.
func askVersion(ctx context.Context, program string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.WaitDelay = 100 * time.Millisecond
	out, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return string(out), err
}

// A rtnetlink asks the kernel. Its reads change nothing.
type rtnetlink struct{ *netlink.Handle }

// Devices is Network.
func (k rtnetlink) Devices() ([]Device, error) {
	links, err := again(k.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	addrs, err := again(func() ([]netlink.Addr, error) { return k.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	byIndex := map[int][]netip.Prefix{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			byIndex[a.LinkIndex] = append(byIndex[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	var out []Device
	for _, l := range links {
		out = append(out, Device{l.Attrs().Name, l.Type(), byIndex[l.Attrs().Index]})
	}
	return out, nil
}

// again takes a dump anew that others' changes interrupted.
func again[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// Route is Network.
func (k rtnetlink) Route(to netip.Addr) (Route, error) {
	routes, err := k.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return Route{}, fmt.Errorf("asking for the route to %s: %w", to, err)
	}
	r := Route{Local: routes[0].Type == unix.RTN_LOCAL}
	if l, err := k.LinkByIndex(routes[0].LinkIndex); err == nil {
		r.Device = l.Attrs().Name
	}
	return r, nil
}

// A bus asks the running systemd over D-Bus, over one connection a question.
type bus struct{}

func connect(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.NewWithContext(ctx)
	if errors.Is(err, fs.ErrNotExist) && os.Geteuid() != 0 {
		err = fmt.Errorf("%w: %w", fs.ErrPermission, err) // without a bus, systemd has a door for root alone
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return conn, nil
}

func (bus) Version(ctx context.Context) (string, error) {
	conn, err := connect(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	v, err := conn.GetManagerProperty("Version")
	return strings.Trim(v, `"`), err
}

func (bus) Unit(ctx context.Context, name string) (Unit, error) {
	conn, err := connect(ctx)
	if err != nil {
		return Unit{}, err
	}
	defer conn.Close()
	return unit(ctx, conn, name)
}

func (bus) Units(ctx context.Context, glob string) ([]Unit, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	files, err := conn.ListUnitFilesByPatternsContext(ctx, nil, []string{glob})
	if err != nil {
		return nil, fmt.Errorf("asking systemd for unit files: %w", err)
	}
	loaded, err := conn.ListUnitsByPatternsContext(ctx, nil, []string{glob})
	if err != nil {
		return nil, fmt.Errorf("asking systemd for units: %w", err)
	}
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f.Path))
	}
	for _, u := range loaded {
		names = append(names, u.Name)
	}
	slices.Sort(names)
	var out []Unit
	for _, name := range slices.Compact(names) {
		u, err := unit(ctx, conn, name)
		if err != nil {
			return nil, err
		}
		if u.Load != "not-found" { // others name it, and it is not there
			out = append(out, u)
		}
	}
	return out, nil
}

func unit(ctx context.Context, conn *dbus.Conn, name string) (Unit, error) {
	p, err := conn.GetUnitPropertiesContext(ctx, name)
	if err != nil {
		return Unit{}, fmt.Errorf("asking systemd for %s: %w", name, err)
	}
	word := func(key string) string { s, _ := p[key].(string); return s }
	reload, _ := p["NeedDaemonReload"].(bool)
	return Unit{name, word("LoadState"), word("ActiveState"), word("SubState"), word("UnitFileState"), reload}, nil
}

package hosttest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"nodelocaldns/host/fsys"
	hostunit "nodelocaldns/host/unit"
)

// A service is what systemd knows of a unit that it has been asked for.
type service struct {
	loaded []byte // its file as last read; nil: there is none
	runs   []byte // the file that what runs was started from; nil: nothing runs
	failed string // the result, once it has failed
}

// Systemd is the node's, above its Files. It reads unit files of the
// directories of the administrator and of packages, with the administrator's drop-ins,
// and nothing in them. It has started nothing, and makes no sockets for a service
// that runs.
//
// fail are units whose start fails, with the result.
func (n *Node) Systemd(fail map[string]string) hostunit.Systemd {
	n.Lock()
	defer n.Unlock()
	if n.units == nil {
		n.units = map[string]*service{}
	}
	return manager{n, fail}
}

type manager struct {
	n    *Node
	fail map[string]string
}

// file is the file of a unit as it is now, and its drop-ins, nil for none.
func (n *Node) file(name string) []byte {
	const etc = "/etc/systemd/system"
	tree := fsys.Tree(n.root)
	for _, dir := range []string{etc, "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		data, err := tree.ReadFile(path.Join(dir, name))
		if err != nil {
			continue
		}
		dropIns, _ := filepath.Glob(tree.Path(path.Join(etc, name+".d", "*.conf"))) // the pattern is a good one
		for _, file := range dropIns {
			if more, err := os.ReadFile(file); err == nil {
				data = append(data, more...)
			}
		}
		return data
	}
	return nil
}

// unit is what is known of a unit. One that is asked for the first time is
// read.
func (n *Node) unit(name string) *service {
	u := n.units[name]
	if u == nil {
		u = &service{loaded: n.file(name)}
		if u.loaded != nil {
			n.units[name] = u
		}
	}
	return u
}

func (m manager) Reload(context.Context) error {
	m.n.Lock()
	defer m.n.Unlock()
	return m.n.write("reload", func() error {
		for name, u := range m.n.units {
			u.loaded = m.n.file(name)
			if u.loaded == nil && u.runs == nil && u.failed == "" {
				delete(m.n.units, name)
			}
		}
		return nil
	})
}

func (m manager) Status(_ context.Context, name string) (hostunit.Status, error) {
	m.n.Lock()
	defer m.n.Unlock()
	u := m.n.unit(name)
	st := hostunit.Status{Load: "loaded", Active: u.active(), Result: u.failed, Stale: digest(u.loaded) != digest(m.n.file(name))}
	if u.loaded == nil {
		st.Load = "not-found"
	}
	return st, nil
}

func (u *service) active() string {
	switch {
	case u.runs != nil:
		return "active"
	case u.failed != "":
		return "failed"
	}
	return "inactive"
}

// change is a job. do is not called for a unit that is not known.
func (m manager) change(what, name string, do func(*service) error) error {
	m.n.Lock()
	defer m.n.Unlock()
	return m.n.write(what+" "+name, func() error {
		u := m.n.unit(name)
		if u.loaded == nil && u.runs == nil && u.failed == "" {
			return nil
		}
		return do(u)
	})
}

func (m manager) start(name string, u *service) error {
	if result := m.fail[name]; result != "" {
		u.runs, u.failed = nil, result
		return fmt.Errorf("it is failed: %s", result)
	}
	if kind := ".socket"; strings.HasSuffix(name, kind) && u.runs == nil {
		if s := m.n.units[strings.TrimSuffix(name, kind)+".service"]; s != nil && s.runs != nil {
			return errors.New("its service is active already")
		}
	}
	u.runs, u.failed = u.loaded, ""
	return nil
}

func (m manager) Start(_ context.Context, name string) error {
	m.n.Lock()
	known := m.n.unit(name).loaded != nil
	m.n.Unlock()
	if !known {
		return fmt.Errorf("unit %s not found", name)
	}
	return m.change("start", name, func(u *service) error {
		if u.runs != nil {
			return nil
		}
		return m.start(name, u)
	})
}

func (m manager) Restart(_ context.Context, name string) error {
	return m.change("restart", name, func(u *service) error { return m.start(name, u) })
}

func (m manager) Stop(_ context.Context, name string) error {
	return m.change("stop", name, func(u *service) error {
		u.runs = nil
		if u.loaded == nil && u.failed == "" {
			delete(m.n.units, name)
		}
		return nil
	})
}

func (m manager) ResetFailed(_ context.Context, name string) error {
	return m.change("reset-failed", name, func(u *service) error {
		u.failed = ""
		if u.loaded == nil && u.runs == nil {
			delete(m.n.units, name)
		}
		return nil
	})
}

// printUnits prints what is not as after a boot: what runs or has failed, and
// what runs by another file than there is.
func (n *Node) printUnits(b *strings.Builder) {
	for _, name := range slices.Sorted(maps.Keys(n.units)) {
		u := n.units[name]
		if digest(u.loaded) != digest(n.file(name)) {
			fmt.Fprintf(b, "%s: systemd has not read its file\n", name)
		}
		switch {
		case u.runs != nil && digest(u.runs) != digest(n.file(name)):
			fmt.Fprintf(b, "%s: active, by an older file\n", name)
		case u.runs != nil || u.failed != "":
			fmt.Fprintf(b, "%s: %s\n", name, strings.TrimSuffix(u.active()+" "+u.failed, " "))
		}
	}
}

// digest stands for the content of a file.
func digest(data []byte) string {
	if data == nil {
		return "nothing"
	}
	h := fnv.New64a()
	_, _ = h.Write(data)
	return fmt.Sprintf("%d bytes %x", len(data), h.Sum64())
}

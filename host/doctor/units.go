package doctor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"strings"
)

// Installed is where units, ours and the kubelet's, call our program.
const Installed = "/usr/bin/nodelocaldns"

// program says whether what runs is what the units call.
func (e *Env) program(ctx context.Context) []Result {
	called := ""
	if len(e.ourUnits(ctx)) > 0 {
		called = "our units call it"
	}
	path := e.Tree.Path(Installed)
	installed, err := os.Stat(path)
	if err != nil {
		if called == "" {
			return info("", "%s is not there: nothing is installed yet", Installed)
		}
		return failure("install -m 755 nodelocaldns "+Installed, "%s is not there, and %s", Installed, called)
	}
	self, err := os.Stat(e.Self)
	if err != nil {
		return unseen(err)
	}
	if os.SameFile(self, installed) {
		return ok("%s", Installed)
	}
	same, err := sameContent(e.Self, path)
	switch {
	case err != nil:
		return unseen(err)
	case !same:
		return warning("install the one you mean to run, then: systemctl restart 'nodelocaldns*.service'", "%s is another build than this one", Installed)
	}
	return ok("%s, of which this is a copy", Installed)
}

func sameContent(a, b string) (bool, error) {
	var sums [2][]byte
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			return false, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		_ = f.Close()
		if err != nil {
			return false, err
		}
		sums[i] = h.Sum(nil)
	}
	return bytes.Equal(sums[0], sums[1]), nil
}

// ourUnits are those that are there.
func (e *Env) ourUnits(ctx context.Context) []Unit {
	if e.Systemd == nil {
		return nil
	}
	all, _ := e.Systemd.Units(ctx, "nodelocaldns*") // units says why
	return all
}

// units looks at our units, and at guard where none of them runs it.
func (e *Env) units(ctx context.Context) []Result {
	if e.Systemd == nil {
		return nil
	}
	all, err := e.Systemd.Units(ctx, "nodelocaldns*")
	if err != nil {
		return unseen(err)
	}
	if len(all) == 0 {
		return info("", "no unit of ours is installed")
	}
	var out []Result
	var active, idle []string
	for _, u := range all {
		see := "systemctl status " + u.Name + "; journalctl -u " + u.Name
		switch {
		case u.Load == "masked" || strings.HasPrefix(u.File, "masked"):
			out = append(out, warning("systemctl unmask "+u.Name, "%s is masked: it cannot start", u.Name)...)
		case u.Load == "bad-setting" || u.Load == "error":
			out = append(out, failure("systemctl status "+u.Name+"; systemd-analyze verify "+u.Name, "systemd cannot read %s (%s)", u.Name, u.Load)...)
		case u.Active == "failed":
			out = append(out, failure(see, "%s has failed", u.Name)...)
		case u.NeedReload:
			out = append(out, warning("systemctl daemon-reload", "the files of %s have changed since systemd read them", u.Name)...)
		case u.Active == "active" || u.Active == "activating" || u.Active == "reloading":
			active = append(active, u.Name)
		case u.File == "enabled" || u.File == "enabled-runtime":
			idle = append(idle, u.Name)
		}
	}
	switch {
	case len(active) > 0 && len(idle) > 0:
		return append(out, info("", "active: %s; enabled and not active: %s", strings.Join(active, ", "), strings.Join(idle, ", "))...)
	case len(active) > 0:
		return append(out, ok("active: %s", strings.Join(active, ", "))...)
	}
	return append(out, info("systemctl enable --now nodelocaldns", "%s installed, none is active", plural(len(all), "unit"))...)
}

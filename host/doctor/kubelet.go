package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"nodelocaldns/host/kubelet"
)

// kubelet says whom pods ask, whom they will, and what keeps us from it.
func (e *Env) kubelet(ctx context.Context) []Result {
	if len(e.Want.Kubelet.Addresses) == 0 {
		return info("", "left alone: pods ask port 53 of an address that is not loopback, and we have none")
	}
	f, err := e.Kubelet(ctx)
	var refusal *kubelet.Refusal
	switch {
	case err == nil:
	case errors.Is(err, kubelet.ErrNone):
		return info("", "no kubelet is installed here")
	case errors.Is(err, fs.ErrPermission):
		return unseen(err)
	case errors.As(err, &refusal) && !e.Want.Manage:
		return info("", "%s", refusal)
	case errors.As(err, &refusal):
		return failure(refusal.Hint(), "%s", refusal)
	default:
		return failure("run doctor again, as root", "%v", err)
	}
	var out []Result
	what := fmt.Sprintf("%s (%s): ", f.Unit, f.Backend)
	ours := len(f.Now) > 0 && f.Now[0] == e.Want.Kubelet.Addresses[0]
	switch {
	case f.Later:
		out = info("", "%swhom its pods are to ask is not known yet; it will be at its first start", what)
	case ours:
		out = ok("%spods ask %s", what, named(f.Now))
	case !e.Want.Manage:
		out = info("", "kubelet.manage is off: pods ask %s", nobody(named(f.Now)))
	default:
		out = ok("%spods ask %s (%s), and with us %s", what, nobody(named(f.Now)), f.Where, named(f.Target))
	}
	if f.Pending != "" {
		out = append(out, warning("nodelocaldns apply, or a restart of "+f.Unit+" at a time of your choice", "restart pending: %s", f.Pending)...)
	}
	for _, note := range f.Notes {
		out = append(out, warning("look at "+f.Where, "%s", note)...)
	}
	return append(out, e.health(f)...)
}

func nobody(list string) string {
	if list == "" {
		return "whom the node asks"
	}
	return list
}

// healthPort is where a kubelet answers /healthz on loopback unless it was told
// otherwise (healthzPort; typhoon and others set 0, which is off).
const healthPort = 10248

func (e *Env) health(f kubelet.Facts) []Result {
	if f.PID == 0 {
		return nil
	}
	all, err := e.Sockets(healthPort)
	if err != nil || slices.ContainsFunc(all, func(s Socket) bool { return s.Proto == "tcp" }) {
		return nil
	}
	return info("", "nothing listens on port %d, where a kubelet answers /healthz by default: it is off, or elsewhere", healthPort)
}

// kubeletUnit asks systemd what it has of the unit that runs the kubelet.
func (e *Env) kubeletUnit(ctx context.Context) []Result {
	f, _ := e.Kubelet(ctx)
	if e.Systemd == nil || f.Unit == "" {
		return nil
	}
	u, err := e.Systemd.Unit(ctx, f.Unit)
	if err != nil {
		return unseen(err)
	}
	switch {
	case u.Load == "bad-setting" || u.Load == "error":
		return failure("systemd-analyze verify "+u.Name, "systemd cannot read %s (%s): it would not start again", u.Name, u.Load)
	case u.Active == "failed":
		return failure("journalctl -u "+u.Name, "%s has failed", u.Name)
	case u.NeedReload:
		return warning("systemctl daemon-reload, before the next restart", "the files of %s have changed since systemd read them", u.Name)
	}
	level := OK
	if u.Active != "active" && u.Active != "activating" && u.Active != "reloading" {
		level = Info
	}
	return []Result{{Level: level, Why: fmt.Sprintf("%s is %s (%s)", u.Name, u.Active, u.Sub)}}
}

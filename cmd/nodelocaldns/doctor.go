package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/dnscache"
	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/host"
	"nodelocaldns/host/doctor"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/step"
)

// checkLimit bounds each check of doctor. iptables waits five seconds for its
// lock, and kube-dns is given twice two.
const checkLimit = 10 * time.Second

// doctorJSON is the shape of doctor --json.
type doctorJSON struct {
	OK     bool          `json:"ok"` // no check found an error
	Checks []doctorCheck `json:"checks"`
}

// A doctorCheck is one thing that was found. A check that finds several is
// there several times; one that has no meaning on this node is not.
type doctorCheck struct {
	Name   string       `json:"name"`
	Result doctor.Level `json:"result"` // ok, info, warning or error
	Why    string       `json:"why"`
	Hint   string       `json:"hint"`
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON, leftovers bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "look for what is, or may become, a trouble on this node; change nothing",
		Long: `Look for what is, or may become, a trouble on this node: ports, foreign rules,
other caches, the network of the pods, the kubelet, conntrack, kube-dns, the
resolver. Nothing is changed, and nothing is sent but two questions to kube-dns.
Without root it sees less, and says where. The name of the node is left out.
Exit 0, also with warnings; 1: a check found an error.

With --leftovers it prints, and nothing else, the commands that remove what a
node-cache of the node-local-dns DaemonSet has left behind: its rules, in every
iptables, with any that leave packets to kube-dns untracked, and its device. A
shell may read them. It is an error while one runs.`,
		Example: `  nodelocaldns doctor --leftovers | sh -ex`,
		Args:    args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && leftovers {
				return usagef("what --leftovers prints is for a shell", "--json and --leftovers contradict each other")
			}
			if err := a.running(cmd); err != nil {
				return err
			}
			e, err := a.examination()
			if err != nil {
				return err
			}
			if leftovers {
				return a.leftovers(cmd.Context(), e.env)
			}
			return a.doctor(cmd.Context(), e, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&leftovers, "leftovers", false, "print the commands that remove what a node-local-dns DaemonSet has left behind")
	return cmd
}

// leftovers prints the commands that remove what the DaemonSet has left behind.
func (a *app) leftovers(ctx context.Context, e *doctor.Env) error {
	r, err := e.Leftovers(ctx)
	if err != nil {
		return err
	}
	for _, c := range r.Commands {
		a.print("%s\n", c)
	}
	if r.Kept != "" {
		a.warn("not all of it: " + r.Kept + ": nodelocaldns apply puts it on a device of ours")
	}
	return nil
}

// doctor prints what e finds.
func (a *app) doctor(ctx context.Context, e *examination, asJSON bool) error {
	found := doctor.Run(ctx, e.checks(), checkLimit)
	for _, name := range e.hide {
		doctor.Hide(found, name, "NODE")
	}
	out := doctorJSON{OK: true, Checks: []doctorCheck{}}
	for _, f := range found {
		out.OK = out.OK && f.Level != doctor.Error
		out.Checks = append(out.Checks, doctorCheck{f.Check, f.Level, f.Why, f.Hint})
	}
	if asJSON {
		if err := a.json(out, false); err != nil {
			return err
		}
	} else {
		a.printDoctor(out)
	}
	if !out.OK {
		return differ(exitError)
	}
	return nil
}

func (a *app) printDoctor(d doctorJSON) {
	var rows [][]string
	n := map[doctor.Level]int{}
	for _, c := range d.Checks {
		n[c.Result]++
		text := c.Why
		if c.Hint != "" {
			text += "\nhint: " + c.Hint
		}
		rows = append(rows, []string{c.Result.String(), c.Name, text})
	}
	a.table(rows, 2)
	a.print("%s, %s; nothing was changed\n", count(n[doctor.Error], "error"), count(n[doctor.Warning], "warning"))
}

// An examination is what doctor looks at: the node, and what only the
// configuration, the journals and the resolver tell.
type examination struct {
	env  *doctor.Env
	hide []string // names of the node

	file    string // of the configuration
	cfg     config.Config
	missing bool  // there is no such file, and none need be
	cfgErr  error // why cfg is not what the file says

	plan  func(ctx context.Context) ([]engine.Status, error) // the runtime plan
	phase func() (host.Phase, error)

	control func(ctx context.Context) resolverStatus
	probe   func(ctx context.Context) error
	ask     func(ctx context.Context, network string, server netip.AddrPort, name string) (rcode int, err error)
}

// examination is that of the running node. A configuration that is wrong is
// reported by a check; the others then go by the defaults.
func (a *app) examination() (*examination, error) {
	e := &examination{file: a.configPath}
	if e.cfg, e.cfgErr = readConfig(a.configPath); errors.Is(e.cfgErr, fs.ErrNotExist) && !a.configGiven {
		e.missing, e.cfgErr = true, nil
	}
	if e.missing || e.cfgErr != nil {
		e.cfg = config.Default()
	}
	p, err := a.plans(e.cfg, slog.New(slog.DiscardHandler), false)
	if err != nil {
		return nil, err
	}
	if e.env, err = doctor.System(wantOf(e.cfg), p.node); err != nil {
		return nil, err
	}
	if name, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(name, ".")
		e.hide = slices.Compact([]string{name, short})
	}
	e.plan = p.runtime.Check
	e.phase = (&host.Gate{Node: p.runtime, Durable: p.durable}).Phase
	e.control = func(ctx context.Context) resolverStatus { return askControl(ctx, a.runDir) }
	e.probe = (&prober{addrs: e.cfg.Resolver(nil).Listen}).ask
	e.ask = askServer
	return e, nil
}

// wantOf is what cfg asks of the node.
func wantOf(cfg config.Config) doctor.Want {
	w := doctor.Want{
		Addresses: cfg.Listen.Addresses,
		Port:      cfg.Listen.Port,
		Interface: cfg.Listen.Interface,
		LinkType:  cfg.Listen.LinkType,
		Notrack:   cfg.Notrack.Enabled,
		Sysctls:   cfg.Sysctls,
		Kubelet:   kubelet.Want{Addresses: cfg.PodsCanAsk(), Unit: cfg.Kubelet.Unit, Backend: cfg.Kubelet.Backend},
		Manage:    cfg.Kubelet.Manage,
	}
	if want := cfg.Durable("").Kubelet; want != nil {
		w.Kubelet = *want
	}
	for _, s := range cfg.Cluster.DNS {
		w.KubeDNS = append(w.KubeDNS, s.Addr())
	}
	for _, p := range []struct {
		key string
		at  config.Endpoint
	}{{"metrics.address", cfg.Metrics}, {"health.address", cfg.Health}} {
		if p.at.On() {
			w.Endpoints = append(w.Endpoints, doctor.Endpoint{Key: p.key, Addr: netip.AddrPortFrom(p.at.Addr, p.at.Port)})
		}
	}
	return w
}

// checks are all, in the order of the report.
func (e *examination) checks() []doctor.Check {
	return slices.Concat(
		[]doctor.Check{{Name: "config", Run: e.config}},
		e.env.Checks(),
		[]doctor.Check{
			{Name: "plan", Run: e.steps},
			{Name: "rollback", Run: e.rollback},
			{Name: "guard", Run: e.guard},
			{Name: "kube-dns", Run: e.kubeDNS},
			{Name: "resolv.conf", Run: e.resolvConf},
			{Name: "resolver", Run: e.resolver},
		},
	)
}

func found(level doctor.Level, hint, format string, args ...any) doctor.Result {
	return doctor.Result{Level: level, Why: fmt.Sprintf(format, args...), Hint: hint}
}

func one(level doctor.Level, hint, format string, args ...any) []doctor.Result {
	return []doctor.Result{found(level, hint, format, args...)}
}

func (e *examination) config(ctx context.Context) []doctor.Result {
	if e.cfgErr != nil {
		var out []doctor.Result
		for _, err := range each(e.cfgErr) {
			out = append(out, found(doctor.Error, hintOf(err), "%s", oneLine(err.Error())))
		}
		return append(out, found(doctor.Info, "", "what follows goes by the defaults"))
	}
	if e.missing {
		return one(doctor.OK, "", "there is no %s: all defaults", e.file)
	}
	if errors.Is(e.cfg.Resolver(e.env.KubeDNS(ctx)).Validate(), dnscache.ErrNoClusterDNS) {
		return one(doctor.Error, hintDNS, "%s: upstreams is kube-dns and cluster.dns is empty", e.file)
	}
	return one(doctor.OK, "", "%s", e.file)
}

// steps is what plan and status would complain of, the runtime plan alone: the
// kubelet has checks of its own.
func (e *examination) steps(ctx context.Context) []doctor.Result {
	all, err := e.plan(ctx)
	if err != nil {
		return one(doctor.Warning, "run doctor again, as root", "not all was seen: %s", oneLine(err.Error()))
	}
	var out []doctor.Result
	n := map[string]int{}
	for _, st := range all {
		n[stateOf(st)]++
		switch {
		case st.Err != nil:
			out = append(out, found(doctor.Error, hintOf(st.Err), "%s: %s", st.Name, oneLine(st.Err.Error())))
		case st.Unseen:
			out = append(out, found(doctor.Info, "", "%s: not seen: needs root", st.Name))
		case st.Drift:
			out = append(out, found(doctor.Warning, "guard repairs it, if it runs; nodelocaldns apply does it now", "%s: somebody else changed it: %s", st.Name, st.Why))
		case st.State == step.Blocked && st.Optional:
			out = append(out, found(doctor.Warning, st.Hint, "%s: blocked: %s", st.Name, st.Why))
		case st.State == step.Blocked:
			out = append(out, found(doctor.Error, st.Hint, "%s: blocked: %s", st.Name, st.Why))
		}
	}
	if len(out) > 0 {
		return out
	}
	return one(doctor.OK, "", "%s as wanted, %d to be made by apply", count(n[step.Satisfied.String()], "step"), n[step.Pending.String()])
}

func (e *examination) rollback(context.Context) []doctor.Result {
	phase, err := e.phase()
	switch {
	case errors.Is(err, fs.ErrPermission):
		return one(doctor.Info, "", "not seen: needs root")
	case err != nil:
		return one(doctor.Warning, "run doctor again, as root", "not seen: %s", oneLine(err.Error()))
	}
	switch phase {
	case host.Unfinished:
		return one(doctor.Warning, "run nodelocaldns rollback again", "a rollback was begun, and the kubelet has not got everything back")
	case host.Draining:
		return one(doctor.Info, "nodelocaldns status lists the pods; nodelocaldns apply calls the rollback off", "a rollback waits for pods that still name us: guard ends it when the last is gone")
	case host.Finished:
		return one(doctor.Info, "nodelocaldns apply begins anew", "a rollback was asked for and is done: guard leaves the node alone")
	}
	return nil
}

// guard is about changes of ours that nobody looks after.
func (e *examination) guard(ctx context.Context) []doctor.Result {
	if e.env.Ours("guard") {
		return one(doctor.OK, "", "it runs")
	}
	phase, err := e.phase()
	if err != nil || phase == host.Finished {
		return nil // rollback says so
	}
	all, err := e.plan(ctx)
	if err != nil || !slices.ContainsFunc(all, func(st engine.Status) bool { return st.Ours }) {
		return nil
	}
	return one(doctor.Warning, "systemctl start nodelocaldns-guard, or nodelocaldns guard under another supervisor", "it does not run: what others change of ours stays so")
}

// kubeDNS asks each kube-dns the one name that every cluster has, as the
// resolver would.
func (e *examination) kubeDNS(ctx context.Context) []doctor.Result {
	servers := e.cfg.Resolver(e.env.KubeDNS(ctx)).ClusterDNS
	if len(servers) == 0 {
		return nil
	}
	name := e.everywhere()
	var out []doctor.Result
	for _, s := range servers {
		errs, rcode := map[string]error{}, dns.RcodeSuccess
		for _, network := range []string{"udp", "tcp"} {
			code, err := e.ask(ctx, network, s, name)
			if errs[network] = err; err == nil {
				rcode = code
			}
		}
		const look = "kubectl -n kube-system get endpointslices -l k8s-app=kube-dns; is kube-proxy, or what stands in for it, well on this node?"
		switch {
		case errs["udp"] != nil && errs["tcp"] != nil:
			out = append(out, found(doctor.Error, look, "%s answers this node neither over UDP nor over TCP: %s", s, reason(errs["udp"])))
		case errs["tcp"] != nil && e.cfg.Zones.Cluster.Transport != dnscache.TransportUDP:
			out = append(out, found(doctor.Error, "let TCP port 53 through to kube-dns, or set zones.*.transport: udp", "%s does not answer over TCP, by which it is asked: %s", s, reason(errs["tcp"])))
		case errs["tcp"] != nil:
			out = append(out, found(doctor.Warning, "let TCP port 53 through to kube-dns", "%s does not answer over TCP: %s", s, reason(errs["tcp"])))
		case errs["udp"] != nil:
			out = append(out, found(doctor.Warning, "let UDP port 53 through to kube-dns: pods ask it so when we do not answer", "%s does not answer over UDP: %s", s, reason(errs["udp"])))
		case rcode == dns.RcodeNameError:
			out = append(out, found(doctor.Warning, "set cluster.domain to the kubelet's clusterDomain", "%s knows no %s: the cluster may have another domain", s, name))
		case rcode != dns.RcodeSuccess:
			out = append(out, found(doctor.Warning, look, "%s answers %s for %s", s, dns.RcodeToString[rcode], name))
		default:
			out = append(out, found(doctor.OK, "", "%s answers over UDP and TCP", s))
		}
	}
	return out
}

// reason is why a server did not answer, without addresses of this node.
func reason(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return oneLine(err.Error())
		}
		err = next
	}
}

// askServer asks once. The rights and the route are those of the resolver.
func askServer(ctx context.Context, network string, server netip.AddrPort, name string) (int, error) {
	c := dns.Client{Net: network, Timeout: 2 * time.Second}
	m, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA), server.String())
	if err != nil {
		return 0, err
	}
	return m.Rcode, nil
}

// resolvConf looks for queries that would go round: the kube-dns pods of this
// node forward to whom its resolv.conf names, by way of the kubelet.
func (e *examination) resolvConf(ctx context.Context) []doctor.Result {
	var all []netip.AddrPort
	var out []doctor.Result
	read := false
	for _, file := range resolvConfs {
		text, err := e.env.Tree.ReadFile(file)
		if err != nil {
			continue
		}
		list, err := upstream.ParseResolvConf(bytes.NewReader(text))
		if err != nil {
			continue
		}
		read = true
		for _, s := range list {
			if !slices.Contains(e.cfg.Listen.Addresses, s.Addr()) {
				all = append(all, s)
				continue
			}
			out = append(out, found(doctor.Warning, "name the network's own servers there: pods need no such line, the kubelet names us to them",
				"%s names %s: kube-dns pods on this node may forward to us what we forward to them", file, s.Addr()))
		}
	}
	switch {
	case !read && e.cfg.Upstreams.Source != dnscache.NodeResolvers:
		return nil
	case len(all) == 0 && e.cfg.Upstreams.Source == dnscache.NodeResolvers:
		return append(out, found(doctor.Error, "set upstreams to a list of servers, or to kube-dns", "upstreams is node, and this node names no server but itself"))
	case len(all) == 0 && len(e.env.KubeDNS(ctx)) > 0:
		return append(out, found(doctor.Info, "resolvConf in the kubelet's configuration may name another file", "this node names no server but itself: kube-dns pods that take that over have nobody to forward to"))
	case len(out) == 0:
		return one(doctor.OK, "", "it does not name us")
	}
	return out
}

// unseenControl is what askControl says without the rights to ask.
const unseenControl = "not seen: needs root"

// resolver asks the resolver about itself. It is asked only if it runs: where
// systemd holds its sockets, to ask would be to start it.
func (e *examination) resolver(ctx context.Context) []doctor.Result {
	if !e.env.Ours("serve") {
		if e.env.Held(ctx) {
			return one(doctor.Info, "", "no resolver runs: systemd has its sockets, and starts it with the first query")
		}
		if e.env.Needed(ctx) {
			return one(doctor.Error, "systemctl start nodelocaldns; journalctl -u nodelocaldns says why it ended", "no resolver runs, and pods are sent to it")
		}
		return one(doctor.Info, "", "no resolver runs, and no pod is seen to be sent to it")
	}
	var out []doctor.Result
	switch err := e.probe(ctx); {
	case errors.Is(err, errAbsent):
		out = append(out, found(doctor.Error, "nodelocaldns apply, or guard, makes the address", "%s", err))
	case err != nil:
		out = append(out, found(doctor.Error, "journalctl -u nodelocaldns; systemctl restart nodelocaldns", "%s", err))
	}
	if len(out) == 0 {
		out = e.answers(ctx)
	}
	rs := e.control(ctx)
	switch {
	case !rs.Running && rs.Why == unseenControl:
		return append(out, found(doctor.Info, "", "%s", rs.Why))
	case !rs.Running:
		return append(out, found(doctor.Warning, "journalctl -u nodelocaldns", "it runs, and does not tell of itself: %s", rs.Why))
	}
	for _, u := range rs.Upstreams {
		if u.Down {
			out = append(out, found(doctor.Warning, "ask it yourself from this node: dig @"+u.Server.Addr().String(), "upstream %s (%s) failed lately: %d of %d questions without a reply", u.Server, u.Proto, u.Errors, u.Queries))
		}
	}
	if q := rs.Queries; q != nil && q.Loops > 0 {
		out = append(out, found(doctor.Warning, "what do the upstreams forward to? None of them may ask us", "%d of its own queries came back to it: an upstream forwards to us", q.Loops))
	}
	if c := rs.Config; c != nil {
		if len(c.ClusterDNS) == 0 && len(e.env.KubeDNS(ctx)) > 0 {
			out = append(out, found(doctor.Warning, "guard tells it: systemctl status nodelocaldns-guard; or set cluster.dns", "it has not been told yet who kube-dns is"))
		}
		if info, err := os.Stat(c.File); err == nil && info.ModTime().After(c.Loaded) {
			out = append(out, found(doctor.Info, "nodelocaldns config check; systemctl reload nodelocaldns", "%s is newer than what the resolver goes by", c.File))
		}
	}
	if v := thisVersion(); rs.Version != nil && *rs.Version != v {
		out = append(out, found(doctor.Info, "systemctl restart nodelocaldns", "the resolver that runs is another build: %s", rs.Version))
	}
	if len(out) > 0 {
		return out
	}
	return one(doctor.OK, "", "it answers; %d queries over UDP and %d over TCP in %s, %d of them got no reply in time",
		rs.Queries.UDP, rs.Queries.TCP, ago(time.Duration(*rs.Uptime)*time.Second), rs.Queries.Timeouts)
}

// answers asks the resolver for the name that every cluster has, as a pod would.
func (e *examination) answers(ctx context.Context) []doctor.Result {
	if len(e.cfg.Resolver(e.env.KubeDNS(ctx)).ClusterDNS) == 0 {
		return nil // nobody knows
	}
	var out []doctor.Result
	for _, s := range e.cfg.Resolver(nil).Listen {
		for _, network := range []string{"udp", "tcp"} {
			const look = "see the check kube-dns, and the upstreams in nodelocaldns status"
			switch rcode, err := e.ask(ctx, network, s, e.everywhere()); {
			case err != nil:
				out = append(out, found(doctor.Error, "journalctl -u nodelocaldns", "%s does not answer over %s: %s", s, strings.ToUpper(network), reason(err)))
			case rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError:
				out = append(out, found(doctor.Error, look, "%s answers %s over %s for %s", s, dns.RcodeToString[rcode], strings.ToUpper(network), e.everywhere()))
			}
		}
	}
	return out
}

// everywhere is a name that every cluster has.
func (e *examination) everywhere() string {
	return "kubernetes.default.svc." + e.cfg.Cluster.Domain
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/host"
	"nodelocaldns/host/engine"
	"nodelocaldns/host/standby"
)

// watchEvery is the pace of status --watch.
const watchEvery = 2 * time.Second

// statusJSON is the shape of status --json.
type statusJSON struct {
	Drift          bool           `json:"drift"`           // somebody else changed something of ours
	Off            bool           `json:"off"`             // a rollback was asked for: guard leaves the node alone
	Rollback       string         `json:"rollback"`        // how far it is: not asked for, unfinished, draining, finished
	RestartPending bool           `json:"restart_pending"` // the running kubelet has not read its files since they changed
	Refused        string         `json:"refused"`         // why no boot sends pods to us, if the last apply has refused to
	Pods           []podJSON      `json:"pods"`            // that name us
	Steps          []statusStep   `json:"steps"`
	Resolver       resolverStatus `json:"resolver"`
	Standby        *standby.State `json:"standby"` // the resolver has failed and the relay answers; else null
}

type statusStep struct {
	Name  string     `json:"name"`
	State string     `json:"state"` // as stateOf
	Why   string     `json:"why"`
	Ours  bool       `json:"ours"`
	Since *time.Time `json:"since"` // null if it is not ours
	Drift bool       `json:"drift"`
}

func (a *app) statusCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "what is ours, since when, what drifted; the resolver's figures",
		Long: `What is ours, since when, what drifted; the resolver's figures.
Exit 0: as we left it; 3: something drifted; 1: an error, the resolver has
failed, or something is blocked or cannot be seen. With --watch, 0 when
interrupted.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			p, err := a.plans(cfg, a.voice(), false)
			if err != nil {
				return err
			}
			if watch {
				return a.watchStatus(cmd.Context(), p, asJSON)
			}
			return a.status(cmd.Context(), p, asJSON, false)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch, one line each time")
	cmd.Flags().BoolVar(&watch, "watch", false, fmt.Sprintf("again every %s, until interrupted", watchEvery))
	return cmd
}

func (a *app) watchStatus(ctx context.Context, p *plans, asJSON bool) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if !asJSON {
			a.print("%s\n", time.Now().Format(time.DateTime))
		}
		if err := a.status(ctx, p, asJSON, true); err != nil && ctx.Err() == nil {
			a.exit(err)
		}
		if !asJSON {
			a.print("\n")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// status prints once how things are. What is wrong with the node is an error
// or the exit code of a difference.
func (a *app) status(ctx context.Context, p *plans, asJSON, compact bool) error {
	all, err := p.Check(ctx)
	if all == nil && err != nil {
		return err
	}
	off, oerr := p.Off()
	w, werr := a.standing(ctx)
	rs := resolverStatus{Why: "not asked below --root"}
	if a.rootDir == "" && !w.quiet() {
		rs = askControl(ctx, a.runDir)
	}
	out := statusOf(all, off, w.correct(rs))
	out.Standby = w.outage
	refused := p.durable.Refused()
	if errors.Is(refused, host.ErrRefused) {
		out.Refused = strings.TrimPrefix(refused.Error(), host.ErrRefused.Error()+": ")
		refused = nil
	}
	r := p.restartPending(ctx)
	out.RestartPending = r != nil
	perr := p.statusOfPods(ctx, &out)
	if asJSON {
		if err := a.json(out, compact); err != nil {
			return err
		}
	} else {
		a.printStatus(out, time.Now(), r, w)
	}
	if err := errors.Join(err, oerr, perr, werr, refused, a.troubles(all), w.trouble()); err != nil {
		return err
	}
	if out.Drift {
		return differ(exitDiffer)
	}
	return nil
}

// statusOfPods adds how far a rollback is, and the pods that name us.
func (p *plans) statusOfPods(ctx context.Context, out *statusJSON) error {
	if p.runtime == nil {
		return nil
	}
	phase, err := p.gate().Phase()
	if err != nil {
		return err
	}
	out.Rollback = phase.String()
	naming, err := p.pods.naming(ctx)
	if errors.Is(err, fs.ErrPermission) {
		err = withHint(errors.New("pods: not seen: needs root"), "run it as root to see everything")
	} else if err != nil {
		err = fmt.Errorf("looking for pods that name us: %w", err)
	}
	if phase == host.Draining || phase == host.Unfinished {
		p.pods.explain(ctx, naming)
	}
	out.Pods = podsJSON(naming)
	return err
}

func statusOf(all []engine.Status, off bool, rs resolverStatus) statusJSON {
	out := statusJSON{Off: off, Rollback: host.NotAsked.String(), Pods: []podJSON{}, Steps: []statusStep{}, Resolver: rs}
	for _, st := range all {
		s := statusStep{Name: st.Name, State: stateOf(st), Why: st.Why, Ours: st.Ours, Drift: st.Drift}
		if st.Ours {
			s.Since = &st.Since
		}
		out.Drift = out.Drift || st.Drift
		out.Steps = append(out.Steps, s)
	}
	return out
}

func (a *app) printStatus(s statusJSON, now time.Time, r *host.Restart, w standing) {
	var rows [][]string
	for _, st := range s.Steps {
		state, ours := st.State, "not ours"
		if st.Drift {
			state = "drift"
		}
		if st.Ours {
			ours = "ours for " + ago(now.Sub(*st.Since))
		}
		rows = append(rows, []string{state, st.Name, ours, st.Why})
	}
	a.table(rows, 1)
	a.printRollback(s)
	if r != nil {
		a.print("restart pending: %s\n", r.Why)
	}
	if s.Refused != "" {
		a.print("refused: %s; no boot changes the kubelet before the next apply\n", s.Refused)
	}
	a.printResolver(s.Resolver)
	a.printRelay(w.relay(now), s.Resolver.Relay, now)
}

// printRollback says how far a rollback is that was asked for, and what pods
// have to do with it.
func (a *app) printRollback(s statusJSON) {
	if !s.Off {
		if len(s.Pods) > 0 {
			a.print("pods: %s\n", nameUs(len(s.Pods)))
		}
		return
	}
	switch s.Rollback {
	case host.Unfinished.String():
		a.print("off: a rollback was asked for, and the kubelet has not got everything back: run nodelocaldns rollback again\n")
	case host.Draining.String():
		a.print("off: a rollback is draining: %s; guard takes the rest back when none does\n", nameUs(len(s.Pods)))
	default:
		a.print("off: a rollback was asked for, guard leaves the node alone until the next apply\n")
	}
	a.table(podRows(s.Pods), 1)
}

func (a *app) printResolver(r resolverStatus) {
	if !r.Running {
		a.print("resolver: %s\n", r.Why)
		return
	}
	a.print("resolver: serving %s for %s, pid %d\n", addressWords(r.Config.Listen), ago(time.Duration(*r.Uptime)*time.Second), r.PID)
	q, c := r.Queries, r.Cache
	kubeDNS := "none"
	if words := addressWords(r.Config.ClusterDNS); words != "" {
		kubeDNS = words
	}
	a.table([][]string{
		{"  kube-dns", fmt.Sprintf("%s (%s)", kubeDNS, r.Config.DNSSource)},
		{"  queries", fmt.Sprintf("%d udp, %d tcp; %d timed out, %d malformed, %d looped, %d shed, %d dropped by full sockets", q.UDP, q.TCP, q.Timeouts, q.Malformed, q.Loops, q.Shed, q.SocketDrops)},
		{"  cache", fmt.Sprintf("%s hits; %d entries in %s of %s; %d evicted", percent(c.Hits, c.Hits+c.Misses), c.Entries, ibytes(c.Bytes), ibytes(c.MaxBytes), c.Evictions)},
	}, 1)
	var rows [][]string
	for _, u := range r.Upstreams {
		health := "up"
		if u.Down {
			health = "down"
		}
		mean := time.Duration(u.Mean * float64(time.Second)).Round(10 * time.Microsecond)
		rows = append(rows, []string{"  upstream", u.Server.String(), u.Proto, health, fmt.Sprintf("%d asked, %d without a reply, %s on average", u.Queries, u.Errors, mean)})
	}
	a.table(rows, 1)
}

// printRelay says what the relay does, where it does anything.
func (a *app) printRelay(line string, r *relayStatus, now time.Time) {
	if line == "" && r != nil {
		line = fmt.Sprintf("answers for %s, pid %d", ago(now.Sub(r.Since)), r.PID)
	}
	if line != "" {
		a.print("relay: %s\n", line)
	}
	if r == nil {
		return
	}
	kubeDNS := "none"
	if words := addressWords(r.Servers); words != "" {
		kubeDNS = words
	}
	a.table([][]string{
		{"  kube-dns", fmt.Sprintf("%s (%s)", kubeDNS, r.Source)},
		{"  queries", fmt.Sprintf("%d; %d answered SERVFAIL", r.Queries, r.ServFails)},
	}, 1)
}

// addressWords are addresses with blanks between them.
func addressWords(list []netip.AddrPort) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = a.String()
	}
	return strings.Join(words, " ")
}

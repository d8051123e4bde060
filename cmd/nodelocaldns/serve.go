package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/dnscache"
	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
)

// A resolver is what serve needs of [dnscache.Server].
type resolver interface {
	Serve(ctx context.Context) error
	Ready() <-chan struct{}
	Reload(cfg dnscache.Config) error
	Stats() dnscache.Stats
	Sockets() []dnscache.SocketState
	Explain(name []byte, types []uint16) dnscache.Explanation
	SaveCache(w io.Writer) (replies int, err error)
	LoadCache(r io.Reader) (replies int, err error)
}

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "the resolver, in the foreground",
		Long: `The resolver, in the foreground. It adopts the sockets systemd hands over, or
makes its own where none is handed over. SIGHUP reads the configuration again
(listen excepted) and keeps the old one if the new one is wrong; SIGTERM answers
what is in flight and ends. It needs no root: ports below 1024 need
CAP_NET_BIND_SERVICE.

With cluster.dns: auto it asks the kube-dns that guard has found out, and follows
when guard finds another. Until guard has found one, names that kube-dns answers
get SERVFAIL at once, so that clients ask their next nameserver.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			return a.serve(cmd.Context())
		},
	}
}

// statusEvery is how often systemd's one-line status is brought up to date.
const statusEvery = 10 * time.Second

// serving is a resolver that runs, with what is known about it.
type serving struct {
	resolver
	log     *slog.Logger
	started time.Time
	path    string // of the configuration
	run     fsys.Dir
	metrics *metrics
	probe   *prober

	config  atomic.Pointer[loaded]
	unknown string // why the facts could not be read when last tried; of serve's goroutine alone
}

// loaded is a configuration in effect, since when, and what is known besides.
type loaded struct {
	config.Config
	at    time.Time
	found facts.Facts
}

// resolver is what the resolver goes by.
func (l *loaded) resolver() dnscache.Config { return l.Resolver(l.found.ClusterDNS) }

// source is what names kube-dns.
func (l *loaded) source() string {
	switch {
	case !l.Cluster.Auto:
		return sourceConfig
	case len(l.found.ClusterDNS) == 0:
		return "not known yet"
	}
	return l.found.Source
}

func (a *app) serve(ctx context.Context) error {
	// Signals come first: a reload asked for while we start must not kill us.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	cfg, err := a.servable()
	if err != nil {
		return err
	}
	log := a.logger()
	s := &serving{log: log, started: time.Now(), path: a.under(a.configPath), run: fsys.Dir(a.runDir), metrics: newMetrics(thisVersion())}
	begin := &loaded{cfg, s.started, s.facts(facts.Facts{})}
	s.config.Store(begin)
	listen := begin.resolver().Listen

	given := adopt(listen, a.runDir, log)
	control, err := a.control(given, log)
	if err != nil {
		return err
	}
	if control != nil {
		defer control.Close()
	}
	s.resolver, err = newResolver(begin.resolver(), log, given.packets, given.streams)
	if err != nil {
		return explainBind(err, cfg.Listen.Port, "listen.port or listen.addresses")
	}
	s.metrics.watch(s.resolver)
	warm := warmPath()
	s.takeOver(warm)
	s.probe = &prober{addrs: listen}

	// What is seen from outside ends after the resolver: a scrape or a status
	// during the last second still gets an answer.
	seen, blind := context.WithCancel(context.WithoutCancel(ctx))
	var outside sync.WaitGroup
	defer outside.Wait()
	defer blind()
	if control != nil {
		outside.Go(func() { serveHTTP(seen, control, s.controlHandler(), log) })
	}
	eps := s.endpoints(seen, &outside)
	eps.set(cfg)

	resolved := make(chan error, 1)
	go func() { resolved <- s.Serve(ctx) }()
	select {
	case err := <-resolved:
		return explainBind(err, cfg.Listen.Port, "listen.port or listen.addresses")
	case <-s.Ready():
	}
	log.Info("serving", "listen", s.probe.String(), "adopted", len(given.packets)+len(given.streams), "config", s.path, "version", thisVersion().String())
	if begin.resolver().AwaitClusterDNS {
		log.Info("kube-dns is not known yet: what it would answer gets SERVFAIL until guard has found it out")
	}
	notify("READY=1", "STATUS="+s.line())
	if every := watchdogInterval() / watchdogShare; every > 0 {
		outside.Go(func() { s.watchdog(every).run(seen) })
	}

	tick, look := time.NewTicker(statusEvery), time.NewTicker(factsEvery)
	defer tick.Stop()
	defer look.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case err := <-resolved:
			resolved <- err
			if ctx.Err() == nil {
				return errors.Join(errors.New("the resolver ended by itself"), err)
			}
		case <-tick.C:
			notify("STATUS=" + s.line())
		case <-look.C:
			if s.learn() {
				notify("STATUS=" + s.line())
			}
		case <-hup:
			notify("RELOADING=1", monotonic(), "STATUS=reloading")
			if cfg, err := a.reload(s); err != nil {
				s.metrics.reloaded(false)
				log.Error("reloading the configuration: the old one stays", cause(err)...)
			} else {
				s.metrics.reloaded(true)
				eps.set(cfg)
				log.Info("reloaded", "config", s.path)
			}
			notify("READY=1", "STATUS="+s.line())
		}
	}
	stop() // a second signal ends us at once
	notify("STOPPING=1", "STATUS=answering what is in flight")
	log.Info("stopping")
	err = <-resolved
	s.leave(warm)
	log.Info("stopped", "queries", s.totals().queries)
	return err
}

func (s *serving) watchdog(every time.Duration) *watchdog {
	return &watchdog{every, s.probe.touch, s.Sockets, func() { notify("WATCHDOG=1") }, s.log}
}

// control is where status asks: the socket that was handed over, else one of our
// own. Nil where there can be none: the resolver goes on without.
func (a *app) control(given handedOver, log *slog.Logger) (net.Listener, error) {
	if given.control != nil {
		return given.control, nil
	}
	l, err := listenControl(a.runDir)
	var taken *takenError
	if errors.As(err, &taken) {
		return nil, err
	}
	if err != nil {
		log.Info("no control socket: status will not see this resolver", "error", err)
		return nil, nil
	}
	return l, nil
}

// servable reads the configuration and checks that a resolver can run on it.
func (a *app) servable() (config.Config, error) {
	cfg, err := a.config()
	if errors.Is(err, fs.ErrPermission) {
		return cfg, withHint(err, "the resolver runs as a user of its own, who must be able to read it: chmod 644 %s", a.under(a.configPath))
	} else if err != nil {
		return cfg, err
	}
	if err := cfg.TLS.Read(a.under(cfg.TLS.CAFile)); err != nil {
		return cfg, withHint(err, `the resolver's own user must be able to read it; tls.caFile: "" believes whom the system trusts`)
	}
	err = cfg.Resolver(nil).Validate()
	if errors.Is(err, dnscache.ErrNoClusterDNS) {
		err = withHint(errors.New("upstreams is kube-dns and cluster.dns is empty"), "%s", hintDNS)
	}
	return cfg, err
}

// reload puts the file's configuration into effect, whole or not at all.
func (a *app) reload(s *serving) (config.Config, error) {
	cfg, err := a.servable()
	if err != nil {
		return cfg, err
	}
	next := &loaded{cfg, time.Now(), s.facts(s.config.Load().found)}
	if err := s.Reload(next.resolver()); errors.Is(err, dnscache.ErrListenChanged) {
		return cfg, withHint(err, "restart the resolver to listen elsewhere")
	} else if err != nil {
		return cfg, err
	}
	s.config.Store(next)
	return cfg, nil
}

// factsEvery is how often serve looks for what guard has found out: once a
// second, as dnscache looks at the node's resolv.conf. It is a read of some
// bytes in memory, and finds the file whoever has replaced or removed it, and
// its directory, meanwhile.
const factsEvery = time.Second

// facts are what guard has found out; last, as long as it has found nothing, or
// nothing that can be read.
func (s *serving) facts(last facts.Facts) facts.Facts {
	now, err := facts.Read(s.run)
	why := ""
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		why = err.Error()
	}
	if why != s.unknown && why != "" {
		s.log.Warn("reading what guard has found out: going by what was known", "error", why)
	}
	s.unknown = why
	if err != nil || len(now.ClusterDNS) == 0 {
		return last
	}
	return now
}

// learn takes over what guard has found out since, and says whether it did.
func (s *serving) learn() bool {
	was := s.config.Load()
	now := &loaded{was.Config, was.at, s.facts(was.found)}
	if now.found.Equal(was.found) {
		return false
	}
	if had, have := was.resolver().ClusterDNS, now.resolver().ClusterDNS; !slices.Equal(had, have) {
		if err := s.Reload(now.resolver()); err != nil {
			s.log.Error("taking over what guard has found out", cause(err)...)
			return false
		}
		s.log.Info("kube-dns is known", "addresses", have, "source", now.source(), "before", had)
	}
	s.config.Store(now)
	return true
}

// line is the resolver in one line, for systemd's status.
func (s *serving) line() string {
	t := s.totals()
	line := fmt.Sprintf("serving %s: %d queries, %s from the cache", s.probe, t.queries, percent(t.hits, t.hits+t.misses))
	if s.config.Load().resolver().AwaitClusterDNS {
		line += "; kube-dns is not known yet"
	}
	return line
}

// totals are sums over Stats that several readers want.
type totals struct {
	queries, hits, misses uint64
	entries               int64
}

func (s *serving) totals() totals { return total(s.Stats()) }

func total(st dnscache.Stats) totals {
	t := totals{queries: st.Queries[dnscache.UDP] + st.Queries[dnscache.TCP]}
	for _, c := range st.Cache {
		t.hits += c.Hits
		t.misses += c.Misses
		t.entries += c.Success + c.Denial
	}
	return t
}

// percent is a of b, or a dash where there is nothing to divide.
func percent(a, b uint64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(a)/float64(b))
}

// explainBind says what can be done about a socket that could not be made;
// keys are those of the configuration that say where it is.
func explainBind(err error, port uint16, keys string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		if who := portHolders(port); len(who) > 0 {
			return withHint(err, "port %d is held by %s: stop it, or set %s", port, strings.Join(who, ", "), keys)
		}
		return withHint(err, "ss -lnptu 'sport = :%d' as root shows who holds the port; stop it, or set %s", port, keys)
	case errors.Is(err, syscall.EACCES):
		return withHint(err, "ports below 1024 need root or CAP_NET_BIND_SERVICE; set listen.port to try it without")
	}
	return err
}

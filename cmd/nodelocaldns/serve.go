package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/dnscache"
)

// A resolver is what serve needs of [dnscache.Server].
type resolver interface {
	Serve(ctx context.Context) error
	Ready() <-chan struct{}
	Reload(cfg dnscache.Config) error
	Stats() dnscache.Stats
}

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "the resolver, in the foreground",
		Long: `The resolver, in the foreground. It adopts the sockets systemd hands over, or
makes its own. SIGHUP reads the configuration again (listen excepted) and keeps
the old one if the new one is wrong; SIGTERM answers what is in flight and ends.
It needs no root: ports below 1024 need CAP_NET_BIND_SERVICE.`,
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
	metrics *metrics
	probe   *prober

	config atomic.Pointer[loaded]
}

// loaded is a configuration in effect, and since when.
type loaded struct {
	config.Config
	at time.Time
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
	s := &serving{log: log, started: time.Now(), path: a.under(a.configPath), metrics: newMetrics(thisVersion())}
	s.config.Store(&loaded{cfg, s.started})

	given := adopt(cfg.Resolver(nil).Listen, a.runDir, log)
	control, err := a.control(given, log)
	if err != nil {
		return err
	}
	if control != nil {
		defer control.Close()
	}
	s.resolver, err = newResolver(cfg.Resolver(nil), log, given.packets, given.streams)
	if err != nil {
		return explainBind(err, cfg.Listen.Port, "listen.port or listen.addresses")
	}
	s.metrics.watch(s.resolver)
	s.probe = &prober{addrs: cfg.Resolver(nil).Listen}

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
	notify("READY=1", "STATUS="+s.line())
	outside.Go(func() { s.feedWatchdog(seen) })

	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
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
	log.Info("stopped", "queries", s.totals().queries)
	return err
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
	if err != nil {
		return cfg, err
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
	if err := s.Reload(cfg.Resolver(nil)); errors.Is(err, dnscache.ErrListenChanged) {
		return cfg, withHint(err, "restart the resolver to listen elsewhere")
	} else if err != nil {
		return cfg, err
	}
	s.config.Store(&loaded{cfg, time.Now()})
	return cfg, nil
}

// line is the resolver in one line, for systemd's status.
func (s *serving) line() string {
	t := s.totals()
	return fmt.Sprintf("serving %s: %d queries, %s from the cache", s.probe, t.queries, percent(t.hits, t.hits+t.misses))
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

// feedWatchdog tells systemd that we live as long as our own sockets answer.
// An address that is not on the node is the guard's business: killing the
// resolver would not bring it back, so it counts as living.
func (s *serving) feedWatchdog(ctx context.Context) {
	every := watchdogInterval() / 3 // two of three may be lost
	if every <= 0 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	hung := false
	for {
		err := s.probe.ask(ctx)
		switch silent := errors.Is(err, errSilent); {
		case ctx.Err() != nil:
			return
		case !silent:
			notify("WATCHDOG=1")
			if hung {
				s.log.Info("our own sockets answer again")
			}
			hung = false
		case !hung:
			s.log.Error("our own sockets do not answer: the watchdog is not fed", "error", err)
			hung = true
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
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

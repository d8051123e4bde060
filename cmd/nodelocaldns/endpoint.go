package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
)

// listenRetry is how long an endpoint waits before it tries its address
// again: the address may come with the guard, the port may be let go.
const listenRetry = 3 * time.Second

// An endpoint serves HTTP at an address that may be taken or absent. That is
// a warning and a gauge, never a reason to stop answering DNS.
type endpoint struct {
	name    string
	handler http.Handler
	failed  prometheus.Gauge
	log     *slog.Logger
	listen  func(addr string) (net.Listener, error)
}

// run serves at addr until ctx ends.
func (e *endpoint) run(ctx context.Context, addr string) {
	defer e.failed.Set(0)
	warned := false
	for {
		l, err := e.listen(addr)
		if err == nil {
			e.failed.Set(0)
			e.log.Info("listening", "endpoint", e.name, "address", l.Addr().String())
			warned = false
			err = serveHTTP(ctx, l, e.handler, e.log)
		}
		if ctx.Err() != nil {
			return
		}
		e.failed.Set(1)
		if !warned {
			e.log.Warn("cannot listen: trying again", cause(err, "endpoint", e.name, "address", addr, "every", listenRetry)...)
			warned = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(listenRetry):
		}
	}
}

// serveHTTP serves h on l until ctx ends, and closes l. It returns nil when
// ctx ended it.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h,
		// A scrape's header is one packet; a client that sends none holds a
		// file descriptor no longer than this.
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// One second for a scrape under way; DNS has been answered by now.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(last) != nil {
		_ = srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// endpoints are the endpoints of one resolver, each at its address of the
// configuration in effect. They are used from one goroutine.
type endpoints struct {
	ctx     context.Context
	wg      *sync.WaitGroup
	all     map[string]*endpoint
	running map[string]*at
}

type at struct {
	addr string
	stop context.CancelFunc
	done chan struct{}
}

func (s *serving) endpoints(ctx context.Context, wg *sync.WaitGroup) *endpoints {
	metricsMux, healthMux := http.NewServeMux(), http.NewServeMux()
	metricsMux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	healthMux.HandleFunc("GET /health", s.health)
	healthMux.HandleFunc("GET /ready", s.ready)
	es := &endpoints{ctx: ctx, wg: wg, all: map[string]*endpoint{}, running: map[string]*at{}}
	for name, h := range map[string]http.Handler{"metrics": metricsMux, "health": healthMux} {
		es.all[name] = &endpoint{name, h, s.metrics.listenFailed.WithLabelValues(name), s.log, s.listenTCP}
	}
	return es
}

// listenTCP listens at addr. An address that we answer at may come later: guard
// makes it, and nothing of ours waits for guard.
func (s *serving) listenTCP(addr string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(addr)
	ours := err == nil && slices.ContainsFunc(s.config.Load().resolver().Listen, func(l netip.AddrPort) bool { return l.Addr() == at.Addr() })
	return listenTCP(addr, ours)
}

// set moves each endpoint to its address of cfg; one that is there already
// is left alone, one without an address ends. All that leave do so before the
// first one comes: they may swap ports.
func (es *endpoints) set(cfg config.Config) {
	want := map[string]string{"metrics": cfg.Metrics.String(), "health": cfg.Health.String()}
	for name, now := range es.running {
		if now.addr != want[name] {
			now.stop()
			<-now.done
			delete(es.running, name)
		}
	}
	for name, addr := range want {
		if addr == "" || es.running[name] != nil {
			continue
		}
		ctx, stop := context.WithCancel(es.ctx)
		next := &at{addr, stop, make(chan struct{})}
		es.running[name] = next
		es.wg.Go(func() {
			defer close(next.done)
			es.all[name].run(ctx, addr)
		})
	}
}

// health is 200 when a question was answered through our own sockets.
func (s *serving) health(w http.ResponseWriter, r *http.Request) {
	if err := s.probe.ask(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// ready is 200 once the sockets are ours, whatever upstreams do: at boot
// kube-dns cannot be reached before pods can.
func (s *serving) ready(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-s.Ready():
		fmt.Fprintln(w, "ok")
	default:
		http.Error(w, "starting", http.StatusServiceUnavailable)
	}
}

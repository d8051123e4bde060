// Command nodelocaldns-relay answers in the resolver's place while that cannot
// run: it passes the queries of the node's pods on to kube-dns, and says SERVFAIL
// where kube-dns does not answer. It is a program of its own, small and without
// configuration, so that nothing that stops the resolver stops it too.
//
// systemd starts it with the resolver's sockets. It logs as the resolver does,
// and says everything else in the same way: see cmd/nodelocaldns, term.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"nodelocaldns/cmd/internal/buildinfo"
	"nodelocaldns/cmd/internal/control"
	"nodelocaldns/cmd/nodelocaldns-relay/internal/kubedns"
	"nodelocaldns/cmd/nodelocaldns-relay/internal/relay"
	"nodelocaldns/host/fsys"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// Exit codes, as those of nodelocaldns.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

const usage = `usage: nodelocaldns-relay [--run-dir dir] | --version

Passes DNS queries on to kube-dns, from the sockets that systemd hands over.
kube-dns is whom nodelocaldns guard has written down in the run directory, else
whom the running kubelet names to pods.
`

// lookEvery is how often it is looked for what guard has found out, as the
// resolver does.
const lookEvery = time.Second

// run is the program, until ctx ends. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("nodelocaldns-relay", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	runDir := flags.String("run-dir", "/run/nodelocaldns", "")
	version := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if err != nil {
		return say(stderr, exitUsage, err.Error(), "nodelocaldns-relay --help shows what it takes")
	}
	if *version {
		fmt.Fprintf(stdout, "nodelocaldns-relay %s\n", buildinfo.This())
		return exitOK
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	given, err := adopt(handedOver(), log)
	if err != nil {
		return say(stderr, exitError, err.Error(), "see what nodelocaldns.socket has: systemctl status nodelocaldns.socket")
	}
	if len(given.packets)+len(given.streams) == 0 {
		return say(stderr, exitUsage, "no sockets were handed over", "systemd starts it, with the sockets of nodelocaldns.socket: systemctl start nodelocaldns-relay")
	}
	serve(ctx, given, fsys.Dir(*runDir), log)
	return exitOK
}

// say ends with an error and what to do about it.
func say(stderr io.Writer, code int, text, hint string) int {
	fmt.Fprintf(stderr, "nodelocaldns-relay: error: %s\nnodelocaldns-relay: hint: %s\n", text, hint)
	return code
}

// A standIn is a relay that runs, with what is known about it.
type standIn struct {
	*relay.Relay
	log   *slog.Logger
	since time.Time
	found atomic.Pointer[kubedns.Found]
}

// serve is the relay until ctx ends and what it has read is answered.
func serve(ctx context.Context, given given, run fsys.Dir, log *slog.Logger) {
	deps := relay.Real()
	deps.Log, deps.Packets, deps.Streams = log, given.packets, given.streams
	s := &standIn{Relay: relay.New(deps), log: log, since: time.Now()}
	s.found.Store(&kubedns.Found{})
	finder := &kubedns.Finder{Run: run, Proc: "/proc", Ours: s.Ours, Log: log}
	log.Info("relay: answering in the resolver's place", "listen", words(s.Listen()), "adopted", len(given.packets)+len(given.streams), "version", buildinfo.This().String())
	if !s.learn(finder.Look()) {
		log.Warn("kube-dns is not known: clients get SERVFAIL until guard, or the kubelet, tells")
	}

	// What is seen from outside ends after the last reply.
	seen, blind := context.WithCancel(context.WithoutCancel(ctx))
	var outside sync.WaitGroup
	defer outside.Wait()
	defer blind()
	for _, l := range given.control {
		outside.Go(func() { serveHTTP(seen, l, "/status", "application/json", s.status) })
	}
	metrics := &endpoint{log: log, page: s.metrics, listen: listenTCP, wg: &outside}
	metrics.set(seen, s.found.Load().Metrics)

	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(ctx)
	}()
	notify("READY=1", "STATUS="+s.line())
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-look.C:
			if s.learn(finder.Look()) {
				metrics.set(seen, s.found.Load().Metrics)
				notify("STATUS=" + s.line())
			}
		}
	}
	notify("STOPPING=1", "STATUS=answering what is in flight")
	<-served
	st := s.Stats()
	log.Info("relay: stopped", "queries", st.UDP+st.TCP, "servfails", st.ServFails)
}

// learn takes over what was found, and says whether it is anything new.
func (s *standIn) learn(f kubedns.Found) bool {
	was := s.found.Load()
	if f.Equal(*was) {
		return false
	}
	s.found.Store(&f)
	if had, have := words(was.Servers), words(f.Servers); had != have {
		s.log.Info("kube-dns is known", "servers", have, "source", f.Source, "before", had)
		s.Ask(f.Servers)
	}
	return true
}

// line is the relay in one line, for systemd's status.
func (s *standIn) line() string {
	if f := s.found.Load(); len(f.Servers) > 0 {
		return "in the resolver's place: passing queries on to " + words(f.Servers)
	}
	return "in the resolver's place: kube-dns is not known"
}

// status is what the relay says at the control socket.
func (s *standIn) status() []byte {
	f, st := s.found.Load(), s.Stats()
	return asJSON(control.Reply{Why: control.Why, Relay: control.Relay{
		PID:       os.Getpid(),
		Version:   buildinfo.This(),
		Since:     s.since,
		Servers:   append([]netip.AddrPort{}, f.Servers...),
		Source:    f.Source,
		Queries:   st.UDP + st.TCP,
		ServFails: st.ServFails,
	}})
}

// metrics is what the relay says to Prometheus, in its text format.
func (s *standIn) metrics() []byte {
	st, v := s.Stats(), buildinfo.This()
	var b strings.Builder
	family := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	family("nodelocaldns_build_info", "gauge", "Always 1; the labels say what this binary is.")
	// Go's quoting of plain text is the format's.
	fmt.Fprintf(&b, "nodelocaldns_build_info{goversion=%q,revision=%q,version=%q} 1\n", v.Go, v.Revision, v.Version)
	family(control.Active, "gauge", control.ActiveHelp)
	fmt.Fprintf(&b, "%s 1\n", control.Active)
	family("nodelocaldns_relay_queries_total", "counter", "Well-formed queries that the relay received, by protocol.")
	fmt.Fprintf(&b, "nodelocaldns_relay_queries_total{proto=\"tcp\"} %d\nnodelocaldns_relay_queries_total{proto=\"udp\"} %d\n", st.TCP, st.UDP)
	family("nodelocaldns_relay_servfails_total", "counter", "Queries that the relay answered SERVFAIL because no kube-dns did.")
	fmt.Fprintf(&b, "nodelocaldns_relay_servfails_total %d\n", st.ServFails)
	return []byte(b.String())
}

// words are addresses with blanks between them.
func words(list []netip.AddrPort) string {
	var all []string
	for _, a := range list {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}

func listenTCP(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

// notify tells systemd, if it started us and wants to know.
func notify(states ...string) {
	_, _ = daemon.SdNotify(false, strings.Join(states, "\n"))
}

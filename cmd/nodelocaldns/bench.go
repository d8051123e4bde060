package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/bench"
)

// benchTypes are what bench asks for: what programs look up, and no type whose
// replies are made for an attack, such as ANY.
var benchTypes = []string{"A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT"}

// benchNoteEvery is the pace of bench's progress where there is no terminal.
const benchNoteEvery = 5 * time.Second

// fromResolvConf is --search without a list.
const fromResolvConf = "resolv.conf"

// benchFlags are what a command line of bench asks for. Durations of 0, and
// numbers below it, are those of resolv.conf.
type benchFlags struct {
	hosts, types             []string
	concurrency              int
	duration, limit, timeout time.Duration
	server, search, file     string
	searchGiven              bool
	ndots, attempts          int
	tcp, fresh, yes          bool
}

func (a *app) benchCommand() *cobra.Command {
	f := benchFlags{duration: 10 * time.Second, limit: 5 * time.Second, ndots: -1, attempts: -1}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "bench --host name [flags]",
		Short: "look names up, many at once, and say how long that took",
		Long: `Look names up, many at once, and say how long that took. A lookup is what
getaddrinfo of glibc asks of name servers: each name that the search path makes
of a name, for A and AAAA at once, until one has an address; a server that is
silent for 5 s is passed over. It asks those of /etc/resolv.conf, or any other
DNS server with --server. Times without a unit are seconds, that of --limit
milliseconds. An interrupt ends it early, with the figures so far.
Exit 0: every lookup had an answer within --limit; 1: some did not.`,
		Example: `  nodelocaldns bench --host web.shop.svc.cluster.local -c 200 -d 30 -l 5000
  nodelocaldns bench --host example.com --server 169.254.20.10 --ndots 5 --search=default.svc.cluster.local,svc.cluster.local,cluster.local
  nodelocaldns bench --host web.shop --resolv-conf pod-resolv.conf --json`,
		Args: func(cmd *cobra.Command, got []string) error {
			if f.search == fromResolvConf && len(got) > 0 {
				return usagef("a search list is given as --search="+got[0], "unknown argument %q", got[0])
			}
			return args(0)(cmd, got)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			f.searchGiven = cmd.Flags().Changed("search")
			return a.bench(cmd.Context(), f, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.hosts, "host", nil, "`name` to look up; several are looked up in turn")
	flags.IntVarP(&f.concurrency, "concurrency", "c", 50, fmt.Sprintf("`number` of lookups at once, at most %d", bench.MaxConcurrency))
	flags.VarP(&timeFlag{&f.duration, time.Second}, "duration", "d", fmt.Sprintf("`time` after which no more lookups begin, at most %s", bench.MaxDuration))
	flags.VarP(&timeFlag{&f.limit, time.Millisecond}, "limit", "l", "`time` above which a lookup is counted as too long")
	flags.StringVar(&f.server, "server", "", "`address` of the server to ask, with or without a port; none of resolv.conf is in effect then")
	flags.StringSliceVar(&f.types, "qtype", []string{"A", "AAAA"}, "`types` to ask for at once: "+strings.Join(benchTypes, ", "))
	flags.StringVar(&f.search, "search", "", "`domains` of the search path, as --search=a,b; without them, and without --server, those of resolv.conf and its ndots")
	flags.Lookup("search").NoOptDefVal = fromResolvConf
	flags.Var(&countFlag{&f.ndots}, "ndots", "`number` of dots with which a name is asked for as it is before the search (default that of resolv.conf, or 1)")
	flags.Var(&timeFlag{&f.timeout, time.Second}, "timeout", "`time` to wait for a reply (default that of resolv.conf, or 5s)")
	flags.Var(&countFlag{&f.attempts}, "attempts", "how `often` to ask all servers (default that of resolv.conf, or 2)")
	flags.BoolVar(&f.tcp, "tcp", false, "ask over TCP, on connections that are kept")
	flags.BoolVar(&f.fresh, "fresh", false, "ask each time from a new port, as programs do; conntrack has a connection for each, unless it is told not to")
	flags.StringVar(&f.file, "resolv-conf", "/etc/resolv.conf", "`file` that stands for the system's, such as that of a pod")
	flags.BoolVar(&f.yes, "yes", false, "ask also servers with public addresses")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.MarkFlagFilename("resolv-conf")
	_ = cmd.RegisterFlagCompletionFunc("qtype", cobra.FixedCompletions(benchTypes, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"host", "concurrency", "duration", "limit", "server", "search", "ndots", "timeout", "attempts"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return cmd
}

// bench runs a load as f says, and prints what came of it.
func (a *app) bench(ctx context.Context, f benchFlags, asJSON bool) error {
	cfg, err := f.config(func() (bench.Resolver, error) { return readResolvConf(f.file) })
	if err != nil {
		return err
	}
	if !f.yes {
		own, err := ownAddrs()
		if err != nil {
			return err
		}
		for _, s := range cfg.Resolver.Servers {
			if bench.Public(s.Addr(), own) {
				return usagef("with --yes it is asked all the same: is it yours?", "%s is an address neither of this node nor of a private network", s.Addr())
			}
		}
	}
	cfg.Seed = rand.Uint64() // #nosec G404 -- it measures, and trusts no reply
	cfg.Dial = func(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server.String())
	}
	b, err := bench.New(cfg)
	if err != nil {
		return usagef("nodelocaldns bench --help shows what it takes", "%s", err)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ended := make(chan struct{})
	if !a.live(b.Progress) {
		go a.noteProgress(b, ended)
	}
	err = b.Run(ctx)
	close(ended)
	a.live(nil)
	if err != nil {
		return withHint(err, "each lookup at once needs a file: ulimit -Hn says how many there are; -c takes fewer")
	}
	r := b.Report()
	if asJSON {
		err = a.json(r, false)
	} else {
		a.print("%s", r.Text())
	}
	if wrong, hint := r.Verdict(); wrong != "" {
		err = errors.Join(err, withHint(errors.New(wrong), "%s", hint))
	}
	return err
}

// noteProgress says how far b is, until ended is closed.
func (a *app) noteProgress(b *bench.Bench, ended <-chan struct{}) {
	tick := time.NewTicker(benchNoteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			a.voice().Info(b.Progress())
		}
	}
}

// config is the load that f asks for, without a socket or a seed. system reads
// what the system's resolver is set by; it is called where that has a say.
func (f benchFlags) config(system func() (bench.Resolver, error)) (bench.Config, error) {
	cfg := bench.Config{Hosts: f.hosts, Concurrency: f.concurrency, Duration: f.duration, Limit: f.limit, Fresh: f.fresh}
	if len(f.hosts) == 0 {
		return cfg, usagef("such as --host kubernetes.default.svc.cluster.local", "no name given with --host")
	}
	for _, word := range f.types {
		word = strings.ToUpper(word)
		if !slices.Contains(benchTypes, word) {
			return cfg, usagef("allowed: "+strings.Join(benchTypes, ", "), "unknown type %q", word)
		}
		if t := dns.StringToType[word]; !slices.Contains(cfg.Types, t) {
			cfg.Types = append(cfg.Types, t)
		}
	}
	r := bench.Defaults()
	if f.server == "" || f.search == fromResolvConf {
		var err error
		if r, err = system(); err != nil {
			return cfg, err
		}
	}
	if f.server != "" {
		s, err := parseServer(f.server)
		if err != nil {
			return cfg, err
		}
		only := bench.Defaults()
		only.Servers, only.Search, only.Ndots = []netip.AddrPort{s}, r.Search, r.Ndots
		r = only
	}
	if f.searchGiven && f.search != fromResolvConf {
		r.Search = strings.FieldsFunc(f.search, func(c rune) bool { return c == ',' || c == ' ' })
	}
	if f.ndots >= 0 {
		r.Ndots = f.ndots
	}
	if f.timeout != 0 {
		r.Timeout = f.timeout
	}
	if f.attempts >= 0 {
		r.Attempts = f.attempts
	}
	r.TCP = r.TCP || f.tcp
	cfg.Resolver = r
	return cfg, nil
}

// parseServer is an address with or without a port.
func parseServer(s string) (netip.AddrPort, error) {
	if p, err := netip.ParseAddrPort(s); err == nil && p.Port() != 0 {
		return p, nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.AddrPort{}, usagef("such as 169.254.20.10, 127.0.0.1:5353 or [fd00::a]:53", "--server %s is no address", s)
	}
	return netip.AddrPortFrom(addr, bench.DNSPort), nil
}

func readResolvConf(name string) (bench.Resolver, error) {
	file, err := os.Open(name)
	if err != nil {
		return bench.Resolver{}, fmt.Errorf("finding name servers: %w", err)
	}
	defer file.Close()
	hostname, err := os.Hostname()
	if err != nil {
		return bench.Resolver{}, fmt.Errorf("finding the search path: %w", err)
	}
	r, err := bench.ParseResolvConf(io.LimitReader(file, 1<<20), hostname)
	if err != nil {
		return r, fmt.Errorf("finding name servers: %s: %w", name, err)
	}
	return r, nil
}

// ownAddrs are the addresses of this node.
func ownAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("finding the addresses of this node: %w", err)
	}
	var own []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap())
		}
	}
	return own, nil
}

// A timeFlag is a flag that takes a duration; a bare number has a unit of its own.
type timeFlag struct {
	d    *time.Duration
	unit time.Duration
}

func (s *timeFlag) String() string {
	if s.d == nil || *s.d == 0 {
		return ""
	}
	return s.d.String()
}

func (s *timeFlag) Type() string { return "time" }

func (s *timeFlag) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, nerr := strconv.ParseInt(text, 10, 32); nerr == nil {
		d, err = time.Duration(n)*s.unit, nil
	}
	switch {
	case err != nil:
		return errors.New("want a number, or a duration such as 500ms or 30s")
	case d <= 0:
		return errors.New("want more than 0")
	}
	*s.d = d
	return nil
}

// A countFlag is a flag whose default, below 0, is not told: it depends.
type countFlag struct{ n *int }

func (n *countFlag) String() string {
	if n.n == nil || *n.n < 0 {
		return ""
	}
	return strconv.Itoa(*n.n)
}

func (n *countFlag) Type() string { return "number" }

func (n *countFlag) Set(text string) error {
	v, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return errors.New("want a number of 0 or more")
	}
	*n.n = int(v)
	return nil
}

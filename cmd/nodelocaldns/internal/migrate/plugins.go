package migrate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/cmd/nodelocaldns/internal/corefile"
	"nodelocaldns/dnscache"
)

// unneeded are the plugins whose work is done here without being asked for, or is
// about CoreDNS itself.
var unneeded = map[string]string{
	"errors":      "what goes wrong is logged and counted",
	"log":         "queries are counted, not logged one by one: nodelocaldns why NAME says how one is answered",
	"loop":        "a loop is found and reported, and the resolver goes on",
	"reload":      "systemctl reload nodelocaldns reads the configuration again",
	"minimal":     "replies are passed on as they come; what is too big for UDP is had over TCP",
	"bufsize":     "a reply over UDP is no bigger than its client says that it takes",
	"autopath":    "searchPath.collapse has search paths cost less, for every pod",
	"ready":       "/ready is at health.address; the probe that asked there goes with the DaemonSet",
	"nodecache":   "guard holds the address and the rules",
	"debug":       "the resolver goes on after a mistake of its own by being started again; --log-level debug tells more",
	"root":        "no file is read relative to it",
	"metadata":    "no plugin needs it",
	"cancel":      "a client is answered before a second is over",
	"timeouts":    "connections of clients that are idle or slow are closed",
	"multisocket": "there are several sockets to each address",
	"shed":        "queries under way are bounded",
}

const atServer = "let a DNS server do that, and name it in stubDomains for these names"

// lost are the plugins that have no counterpart: what they did, and what to do
// instead.
var lost = map[string]string{
	"acl":          "it refused some clients or queries: a network policy can keep pods from asking",
	"any":          "it gave a short answer to queries for ANY; here they are asked like others",
	"auto":         "it answered from zone files: " + atServer,
	"azure":        "it answered from Azure DNS: " + atServer,
	"chaos":        "it told its version to who asked: nodelocaldns version does",
	"clouddns":     "it answered from Cloud DNS: " + atServer,
	"dns64":        "it made AAAA records of A records: have kube-dns do that, with upstreams: kube-dns",
	"dnssec":       "it signed answers: " + atServer,
	"dnstap":       "it sent what it answered to a collector: look at the metrics, and at why NAME",
	"dynupdate":    "it took updates: " + atServer,
	"erratic":      "it answered badly on purpose: leave it out",
	"etcd":         "it answered from etcd: " + atServer,
	"file":         "it answered from a zone file: " + atServer,
	"geoip":        "it looked up where clients are: leave it out, nothing here asks for that",
	"grpc":         "it asked over gRPC: name a server in upstreams or stubDomains",
	"grpc_server":  "it answered over gRPC: pods ask over UDP and TCP",
	"header":       "it changed header bits of replies: they are passed on as they come",
	"hosts":        "it answered from a list of names: " + atServer + ", or have hosts in kube-dns's Corefile",
	"https":        "it answered over HTTPS: pods ask over UDP and TCP",
	"https3":       "it answered over HTTPS: pods ask over UDP and TCP",
	"k8s_external": "it answered names of Services for the world outside: kube-dns's own Corefile may have it",
	"kubernetes":   "kube-dns answers the cluster's names: if this is its own Corefile, import that of node-local-dns",
	"local":        "it answered localhost and its like: a pod's own /etc/hosts does, and upstream",
	"nomad":        "it answered from Nomad: " + atServer,
	"nsid":         "it told clients which server it is: why NAME and the metrics are each node's own",
	"on":           "it ran a command when it started: a unit with After=nodelocaldns.service can",
	"pprof":        "it showed profiles: there are none",
	"proxyproto":   "it believed a proxy who its clients are: pods ask without one",
	"quic":         "it answered over QUIC: pods ask over UDP and TCP",
	"rewrite":      "it changed queries or answers: have it in kube-dns's Corefile, with upstreams: kube-dns",
	"route53":      "it answered from Route 53: " + atServer,
	"secondary":    "it answered from a zone that it was sent: " + atServer,
	"sign":         "it signed zone files: " + atServer,
	"siit":         "it translated addresses: have kube-dns do that, with upstreams: kube-dns",
	"template":     "it made up answers: have it in kube-dns's Corefile, with upstreams: kube-dns",
	"tls":          "it answered over TLS: pods ask over UDP and TCP",
	"trace":        "it traced queries: look at the metrics, and at why NAME",
	"transfer":     "it gave zones away: " + atServer,
	"tsig":         "it checked signatures of queries: pods send none",
	"whoami":       "it told clients who they are, for tests: ask /health at health.address",
}

// directive imports one of b.
func (im *importer) directive(b *block, d corefile.Directive) error {
	if why, ok := unneeded[d.Name]; ok {
		im.tell(d.Line, d.String(), Unneeded, "%s", why)
		return nil
	}
	if what, ok := lost[d.Name]; ok {
		im.tell(d.Line, d.String(), Lost, "%s", what)
		return nil
	}
	switch d.Name {
	case "bind": // listen has had them all
		return nil
	case "cache":
		return im.cache(b, d)
	case "forward":
		return im.forward(b, d)
	case "health", "prometheus":
		return im.endpoint(d)
	case "loadbalance":
		im.loadbalance(d)
	case "import":
		im.unread(d)
	default:
		im.tell(d.Line, d.String(), Lost, "this plugin is not known here: see what it does, and whether you need it")
	}
	return nil
}

func (im *importer) loadbalance(d corefile.Directive) {
	if len(d.Block) == 0 && (len(d.Args) == 0 || len(d.Args) == 1 && d.Args[0] == "round_robin") {
		im.tell(d.Line, d.String(), Unneeded, "the addresses of an answer come in turn")
		return
	}
	im.tell(d.Line, d.String(), Lost, "it preferred some addresses of an answer; here they come in turn")
}

// endpoint imports where something is served over HTTP.
func (im *importer) endpoint(d corefile.Directive) error {
	dst, key, usual, note := &im.cfg.Health, "health.address", ":8080", "/ready is there too"
	if d.Name == "prometheus" {
		dst, key, usual, note = &im.cfg.Metrics, "metrics.address", "127.0.0.1:9153", "the metrics have names of their own"
	}
	spelled := usual
	if len(d.Args) > 0 {
		spelled = strings.Replace(d.Args[0], holdLocal, im.cfg.Listen.Addresses[0].String(), 1)
		if port, ok := strings.CutPrefix(spelled, "localhost:"); ok {
			spelled = "127.0.0.1:" + port
		}
	}
	e, err := config.ParseEndpoint(spelled)
	if err != nil || len(d.Args) > 1 || !e.On() {
		return im.bad(d.Line, "", "%s: found %q, allowed: address:port, or :port for every address", d.Name, clip(strings.Join(d.Args, " ")))
	}
	im.take(d.Line, d.String(), note, setting{key: key, value: strconv.Quote(e.String()), apply: func() { *dst = e }})
	for _, o := range d.Block {
		switch o.Name {
		case "lameduck":
			im.tell(o.Line, o.String(), Unneeded, "systemd holds the sockets while the resolver is replaced")
		case "runtime_metrics":
			im.tell(o.Line, o.String(), Unneeded, "the metrics have what is of use about the process")
		default:
			im.tell(o.Line, o.String(), Lost, "this option of %s has no counterpart: the endpoint is plain HTTP", d.Name)
		}
	}
	return nil
}

// What CoreDNS's cache has where nothing is said.
const (
	usualEntries = 9984
	usualSuccess = time.Hour
	usualDenial  = 30 * time.Minute
)

func spellLimits(l dnscache.Limits) string {
	return fmt.Sprintf("{entries: %d, maxTTL: %s}", l.Entries, l.MaxTTL)
}

func (im *importer) success(b *block, l dnscache.Limits) setting {
	return ofZone(im, b, "success", l, func(z *dnscache.Zone) *dnscache.Limits { return &z.Success }, spellLimits)
}

func (im *importer) denial(b *block, l dnscache.Limits) setting {
	return ofZone(im, b, "denial", l, func(z *dnscache.Zone) *dnscache.Limits { return &z.Denial }, spellLimits)
}

// cache imports the cache of b.
func (im *importer) cache(b *block, d corefile.Directive) error {
	success := dnscache.Limits{Entries: usualEntries, MaxTTL: usualSuccess}
	denial := dnscache.Limits{Entries: usualEntries, MaxTTL: usualDenial}
	zones := d.Args
	if len(zones) > 0 {
		if n, err := strconv.Atoi(zones[0]); err == nil {
			t, err := im.ttl(d.Line, "cache", zones[0], n)
			if err != nil {
				return err
			}
			success.MaxTTL, denial.MaxTTL, zones = t, t, zones[1:]
		} else if t, err := time.ParseDuration(zones[0]); err == nil && t >= time.Second && t <= config.MaxTTL {
			im.tell(d.Line, d.String(), Lost, "to CoreDNS %s is a zone, not a TTL, and nothing else is cached in this block: taken as the TTL that was meant", zones[0])
			success.MaxTTL, denial.MaxTTL, zones = t.Truncate(time.Second), t.Truncate(time.Second), zones[1:]
		}
	}
	if len(zones) > 0 && !im.covers(zones, b) {
		im.tell(d.Line, d.String(), Lost, "it cached names below %s only; here all of the block's are", clip(strings.Join(zones, " ")))
	}
	atSuccess, atDenial := d, d
	for _, o := range d.Block {
		var err error
		switch o.Name {
		case "success":
			atSuccess = o
			success, err = im.limits(o, success)
		case "denial":
			atDenial = o
			denial, err = im.limits(o, denial)
		case "disable":
			switch {
			case len(o.Args) == 0 || o.Args[0] != "success" && o.Args[0] != "denial":
				err = im.bad(o.Line, "", "cache: found %q, allowed: disable success or disable denial, then zones", clip(o.String()))
			case len(o.Args) > 1 && !im.covers(o.Args[1:], b):
				im.tell(o.Line, o.String(), Lost, "names below %s were not cached; here all of the block's are", clip(strings.Join(o.Args[1:], " ")))
			case o.Args[0] == "success":
				atSuccess, success.Entries = o, 0
			default:
				atDenial, denial.Entries = o, 0
			}
		case "prefetch":
			err = im.prefetch(o)
		case "serve_stale":
			err = im.serveStale(b, o)
		case "serve_stale_policy":
			im.tell(o.Line, o.String(), Unneeded, "expired denials are not served (serveStale.denial: false)")
		case "servfail":
			err = im.servfail(o)
		case "keepttl":
			im.tell(o.Line, o.String(), Lost, "it kept the TTL of what it gave; here TTLs count down, so that nobody keeps an answer for too long")
		case "import":
			im.unread(o)
		default:
			im.tell(o.Line, o.String(), Lost, "this option of cache is not known here: see what CoreDNS does with it, and whether you need it")
		}
		if err != nil {
			return err
		}
	}
	s, n := im.success(b, success), im.denial(b, denial)
	if atSuccess.Line == atDenial.Line {
		im.take(d.Line, d.String(), "", s, n)
		return nil
	}
	im.take(atSuccess.Line, atSuccess.String(), "", s)
	im.take(atDenial.Line, atDenial.String(), "", n)
	if len(d.Args) > 0 && atSuccess.Line != d.Line && atDenial.Line != d.Line {
		im.tell(d.Line, d.String(), Taken, "with success and denial below")
	}
	return nil
}

// covers reports whether all zones of b are among, or below, zones.
func (im *importer) covers(zones []string, b *block) bool {
	return !slices.ContainsFunc(b.zones, func(z zone) bool {
		return !slices.ContainsFunc(zones, func(name string) bool {
			parsed, err := config.ParseDomain(im.domainIn(name))
			return name == "." || err == nil && within(z.name, parsed)
		})
	})
}

// ttl is n seconds, more than a week cut to it.
func (im *importer) ttl(line int, what, spelled string, n int) (time.Duration, error) {
	if n <= 0 {
		return 0, im.bad(line, "", "%s: found a TTL of %s, allowed: seconds, 1 or more", what, clip(spelled))
	}
	return min(time.Duration(min(n, int(config.MaxTTL/time.Second)))*time.Second, config.MaxTTL), nil
}

// limits reads success or denial CAPACITY [TTL [MINTTL]] over l.
func (im *importer) limits(o corefile.Directive, l dnscache.Limits) (dnscache.Limits, error) {
	what := "cache: " + o.Name
	n := make([]int, len(o.Args))
	for i, s := range o.Args {
		v, err := strconv.Atoi(s)
		if err != nil || v < 0 || len(o.Args) > 3 {
			return l, im.bad(o.Line, "", "%s: found %q, allowed: a number of entries, then a TTL and a least TTL in seconds", what, clip(strings.Join(o.Args, " ")))
		}
		n[i] = v
	}
	if len(n) == 0 {
		return l, im.bad(o.Line, "", "%s: the number of entries is missing", what)
	}
	l.Entries = min(n[0], config.MaxEntries)
	if len(n) > 1 {
		t, err := im.ttl(o.Line, what, o.Args[1], n[1])
		if err != nil {
			return l, err
		}
		l.MaxTTL = t
	}
	if len(n) > 2 && n[2] > 0 {
		im.tell(o.Line, o.String(), Lost, "it kept replies for %s at least; here a TTL is never stretched", time.Duration(min(n[2], 1<<31))*time.Second)
	}
	return l, nil
}

// prefetch reads AMOUNT [DURATION [PERCENTAGE%]].
func (im *importer) prefetch(o corefile.Directive) error {
	bad := func() error {
		return im.bad(o.Line, "", "cache: found %q, allowed: prefetch 2, or with a time and a share, such as prefetch 2 1m 10%%", clip(o.String()))
	}
	if len(o.Args) == 0 || len(o.Args) > 3 {
		return bad()
	}
	amount, err := strconv.Atoi(o.Args[0])
	if err != nil || amount < 0 {
		return bad()
	}
	at, note := 10, ""
	if len(o.Args) > 1 {
		if _, err := time.ParseDuration(o.Args[1]); err != nil {
			return bad()
		}
		note = "what counts is how often it was asked for since it came, not in a time"
	}
	if len(o.Args) > 2 {
		digits, ok := strings.CutSuffix(o.Args[2], "%")
		if at, err = strconv.Atoi(digits); !ok || err != nil || at < 10 || at > 90 {
			return bad()
		}
	}
	p := dnscache.Prefetch{At: at, MinHits: min(amount, 100)}
	if amount == 0 {
		p = dnscache.Prefetch{At: 0, MinHits: im.cfg.Cache.Prefetch.MinHits}
	}
	im.take(o.Line, o.String(), note, setting{key: "cache.prefetch", value: fmt.Sprintf("{at: %d%%, minHits: %d}", p.At, p.MinHits), apply: func() { im.cfg.Cache.Prefetch = p }})
	return nil
}

// serveStale reads [DURATION [MODE [VERIFY_TIMEOUT] [TTL [RECHECK]]]].
func (im *importer) serveStale(b *block, o corefile.Directive) error {
	bad := func() error {
		return im.bad(o.Line, "", "cache: found %q, allowed: serve_stale, or with a time and a mode, such as serve_stale 1h verify", clip(o.String()))
	}
	var times []time.Duration
	verify := false
	for i, s := range o.Args {
		mode := strings.ToLower(s)
		if i == 1 {
			if mode != "verify" && mode != "immediate" {
				return bad()
			}
			verify = mode == "verify"
			continue
		}
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return bad()
		}
		times = append(times, d)
	}
	stale := config.Default().Cache.ServeStale
	if len(times) > 0 {
		stale.For = min((times[0] + time.Second - 1).Truncate(time.Second), config.MaxTTL)
	}
	rest := times[min(1, len(times)):]
	note := "upstream has 400 ms first, unless it is known to be dead"
	switch {
	case stale.For == 0:
		note, stale.ClientTimeout = "nothing that has expired is served", config.Default().Cache.ServeStale.ClientTimeout
	case verify && len(rest) > 0 && rest[0] > 0:
		stale.ClientTimeout = min(max(rest[0], 100*time.Millisecond), 800*time.Millisecond)
		note = "clientTimeout is from 100 ms to 800 ms"
	case !verify:
		stale.ClientTimeout = 100 * time.Millisecond
		note = "upstream has 100 ms first, unless it is known to be dead"
	}
	if stale.For > 0 {
		note += "; denials that have expired are served with denial: true only"
	}
	if verify {
		rest = rest[min(1, len(rest)):]
	}
	if len(rest) > 2 {
		return bad()
	}
	if len(rest) > 0 && rest[0] > 0 {
		stale.AnswerTTL = min(max(rest[0].Truncate(time.Second), time.Second), time.Hour)
	}
	im.take(o.Line, o.String(), note, ofZone(im, b, "serveStale", stale,
		func(z *dnscache.Zone) *dnscache.Stale { return &z.Stale },
		func(s dnscache.Stale) string {
			return fmt.Sprintf("{for: %s, answerTTL: %s, clientTimeout: %s}", s.For, s.AnswerTTL, s.ClientTimeout)
		}))
	return nil
}

// servfail reads how long failures are kept.
func (im *importer) servfail(o corefile.Directive) error {
	if len(o.Args) != 1 {
		return im.bad(o.Line, "", "cache: found %q, allowed: servfail DURATION", clip(o.String()))
	}
	d, err := time.ParseDuration(o.Args[0])
	if err != nil || d < 0 || d > 5*time.Minute {
		return im.bad(o.Line, "", "cache: found %q, allowed: servfail 0s to servfail 5m", clip(o.String()))
	}
	v := Unneeded
	if d > 5*time.Second { // what CoreDNS has by default is near enough
		v = Lost
	}
	im.tell(o.Line, o.String(), v, "a failure is kept for 1 s, as RFC 9520 asks for at least")
	return nil
}

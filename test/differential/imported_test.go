package differential

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/fnv"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"nodelocaldns/host/facts"
	"nodelocaldns/host/fsys"
	"nodelocaldns/test/netns"
)

// Where the node-local-dns DaemonSet and whom it asks are in the test's cluster.
const (
	localDNS  = "169.254.20.10"
	kubeDNS   = "10.96.0.10"   // the DaemonSet holds it as well
	behind    = "10.96.0.11"   // kube-dns-upstream, the same pods
	nodeDNS   = "198.51.100.1" // in /etc/resolv.conf
	siteCA    = "/etc/coredns/ca.pem"
	tlsServer = "dns.example"
)

// A source is a golden file of config import: what is imported, and the report.
type source struct {
	name  string
	files []txtar.File
	lost  []string // lines of the report
}

func sources(t *testing.T) []source {
	t.Helper()
	names, err := filepath.Glob("../../cmd/nodelocaldns/internal/migrate/testdata/*.txtar")
	if err != nil || len(names) < 30 {
		t.Fatal(len(names), err)
	}
	var all []source
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s := source{name: strings.TrimSuffix(filepath.Base(name), ".txtar")}
		for _, f := range a.Files {
			switch f.Name {
			case "report":
				for line := range strings.Lines(string(f.Data)) {
					if strings.Contains(line, ": no counterpart: ") {
						s.lost = append(s.lost, strings.TrimSpace(line))
					}
				}
			case "config":
			default:
				s.files = append(s.files, f)
			}
		}
		all = append(all, s)
	}
	return all
}

// manifest is what is read of ConfigMaps and lists of them.
type manifest struct {
	Items []manifest
	Data  struct{ Corefile, StubDomains, UpstreamNameservers string }
}

// corefile is what CoreDNS runs on where node-cache has been given s: placeholders
// have their values, and the stub domains of kube-dns have blocks (kubernetes/dns,
// cmd/node-cache/app/configmap.go). It is empty where s has none.
func (s source) corefile(t *testing.T) string {
	t.Helper()
	var text string
	upstreams, stubs := "/etc/resolv.conf", map[string][]string{}
	var take func(m manifest)
	take = func(m manifest) {
		text += m.Data.Corefile
		var servers []string
		for _, f := range []struct {
			text string
			into any
		}{{m.Data.StubDomains, &stubs}, {m.Data.UpstreamNameservers, &servers}} {
			if f.text == "" {
				continue
			}
			if err := json.Unmarshal([]byte(f.text), f.into); err != nil {
				t.Fatal(err)
			}
		}
		if len(servers) > 0 {
			upstreams = strings.Join(servers, " ")
		}
		for _, item := range m.Items {
			take(item)
		}
	}
	for _, f := range s.files {
		if f.Name == "Corefile" {
			text += string(f.Data)
			continue
		}
		docs := yaml.NewDecoder(bytes.NewReader(f.Data))
		for {
			var node yaml.Node
			if docs.Decode(&node) != nil {
				break
			}
			var m manifest
			var doc any
			if err := node.Decode(&doc); err != nil {
				t.Fatal(err)
			}
			j, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(j, &m); err != nil {
				t.Fatal(err)
			}
			take(m)
		}
	}
	if text == "" {
		return ""
	}
	for zone, servers := range stubs {
		text += fmt.Sprintf("%s:53 {\n errors\n cache 30\n bind %s\n forward . %s\n}\n", zone, localDNS, strings.Join(servers, " "))
	}
	if upstreams != "/etc/resolv.conf" {
		text = upstreamOverTCP.ReplaceAllString(text, "$1") // as node-cache does
	}
	return strings.NewReplacer(
		"__PILLAR__LOCAL__DNS__", localDNS, "__PILLAR__DNS__SERVER__", kubeDNS, "__PILLAR__CLUSTER__DNS__", behind,
		"__PILLAR__UPSTREAM__SERVERS__", upstreams, "__PILLAR__DNS__DOMAIN__", "cluster.local", "Vnet_Dns_Servers", nodeDNS,
	).Replace(text)
}

var upstreamOverTCP = regexp.MustCompile(`(forward \. __PILLAR__UPSTREAM__SERVERS__) \{\s*force_tcp\s*\}`)

// anAddress is one in a Corefile or a configuration.
var anAddress = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b|\b[0-9a-f]+:[0-9a-f:]*:[0-9a-f:]+\b`)

var reverseName = regexp.MustCompile(`\S+\.arpa`)

func addressesIn(text string) []netip.Addr {
	var all []netip.Addr
	for _, word := range anAddress.FindAllString(reverseName.ReplaceAllString(text, ""), -1) {
		if a, err := netip.ParseAddr(word); err == nil && !a.IsUnspecified() && !a.IsMulticast() && !(a.Is6() && a.IsLinkLocalUnicast()) {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// parties names the servers of a Corefile: those of one forward have one name, as
// chance decides which of them is asked, and so has kube-dns by its two addresses.
func parties(corefile string) map[netip.Addr]string {
	all := map[netip.Addr]string{}
	for line := range strings.Lines(corefile) {
		if strings.HasPrefix(strings.TrimSpace(line), "forward ") {
			together := addressesIn(line)
			first := ""
			for _, a := range together {
				first = cmp.Or(all[a], first, a.String())
			}
			for _, a := range together {
				all[a] = first
			}
		}
	}
	all[netip.MustParseAddr(kubeDNS)], all[netip.MustParseAddr(behind)] = "kube-dns", "kube-dns"
	all[netip.MustParseAddr(nodeDNS)] = "the node's"
	return all
}

// A server answers at one address; who it is is in what it says.
type server struct{ name, proto string }

const long = 7200 // the TTL of all that upstreams say, for caches to cut

// ServeDNS answers as if every zone had the same names in it.
func (s server) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	m := new(dns.Msg).SetReply(query)
	m.RecursionAvailable, m.Compress = true, true
	if opt := query.IsEdns0(); opt != nil {
		m.SetEdns0(dns.DefaultMsgSize, opt.Do())
	}
	q := m.Question[0]
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.name))
	last := byte(h.Sum32())
	hdr := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: long}
	first, _, _ := strings.Cut(strings.ToLower(q.Name), ".")
	switch {
	case first == "nx":
		m.Rcode = dns.RcodeNameError
	case first == "v4" && q.Qtype != dns.TypeA:
	case q.Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: hdr, A: net.IPv4(203, 0, 113, last)}}
	case q.Qtype == dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: hdr, AAAA: net.ParseIP(fmt.Sprintf("2001:db8:ff::%x", last))}}
	case q.Qtype == dns.TypeTXT:
		m.Answer = []dns.RR{&dns.TXT{Hdr: hdr, Txt: []string{s.name, s.proto}}}
	case q.Qtype == dns.TypePTR:
		m.Answer = []dns.RR{&dns.PTR{Hdr: hdr, Ptr: fmt.Sprintf("host-%d.example.", last)}}
	}
	if len(m.Answer) == 0 {
		_, parent, _ := strings.Cut(q.Name, ".")
		m.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: dns.Fqdn(parent), Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: long},
			Ns:  fmt.Sprintf("host-%d.example.", last), Mbox: "root.", Serial: 1, Refresh: 1, Retry: 1, Expire: 1, Minttl: long,
		}}
	}
	_ = w.WriteMsg(m) // who asked may be gone
}

// serve answers at all addresses, on the ports of DNS that the sources name, but not
// where somebody is told to listen. The caller stops it.
func serve(t *testing.T, at []netip.Addr, busy func(netip.AddrPort) bool, names map[netip.Addr]string, cert tls.Certificate) (stop func()) {
	t.Helper()
	shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return reusePort(c) }}
	var all []*dns.Server
	for _, a := range at {
		for _, port := range []uint16{53, 5353, 853, 8853} {
			addr := netip.AddrPortFrom(a, port)
			if busy(addr) {
				continue
			}
			name := cmp.Or(names[a], a.String())
			if port == 853 || port == 8853 {
				l, err := shared.Listen(t.Context(), "tcp", addr.String())
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, &dns.Server{Listener: tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}), Handler: server{name, "tls"}, MaxTCPQueries: -1})
				continue
			}
			l, err := shared.Listen(t.Context(), "tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			c, err := shared.ListenPacket(t.Context(), "udp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, &dns.Server{Listener: l, Handler: server{name, "tcp"}, MaxTCPQueries: -1}, &dns.Server{PacketConn: c, Handler: server{name, "udp"}})
		}
	}
	for _, s := range all {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
	}
	return func() {
		for _, s := range all {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // nobody is waited for
			_ = s.ShutdownContext(ctx)
		}
	}
}

func reusePort(c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
		return cerr
	}
	return err
}

// certificate makes an authority, whose certificate it writes to a file, and a
// server's certificate.
func certificate(t *testing.T, file string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: tlsServer}, DNSNames: []string{tlsServer},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// An inquiry is a question and what was seen of its reply.
type inquiry struct {
	name string
	typ  uint16
	net  string
}

func (i inquiry) String() string { return fmt.Sprintf("%s %s %s", i.name, dns.Type(i.typ), i.net) }

// inquiries are those for the names that a Corefile tells apart: all zones that are
// in one of the sources, and what some of them answer themselves.
func inquiries() []inquiry {
	var all []inquiry
	for _, zone := range []string{
		"default.svc.cluster.local", "default.svc.k8s.site.example", "default.svc.k8s.example", "mesh.cluster.local", "example.net",
		"corp.example", "same.example", "other.example", "site.example", "node.example", "kube.example", "dev.example", "a.example", "c.example",
		"internal.example.net", "invalid",
	} {
		all = append(all,
			inquiry{"www." + zone + ".", dns.TypeA, "udp"},
			inquiry{"route." + zone + ".", dns.TypeTXT, "udp"},
			inquiry{"stream." + zone + ".", dns.TypeTXT, "tcp"},
			inquiry{"nx." + zone + ".", dns.TypeA, "udp"},
			inquiry{"v4." + zone + ".", dns.TypeAAAA, "udp"},
		)
	}
	for _, reverse := range []string{
		"1.0.96.10.in-addr.arpa", "7.2.0.192.in-addr.arpa", "1.2.0.10.in-addr.arpa",
		"a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa", "1.0.0.2.ip6.arpa",
	} {
		all = append(all, inquiry{reverse + ".", dns.TypePTR, "udp"}, inquiry{reverse + ".", dns.TypeTXT, "udp"})
	}
	for _, name := range []string{"listed.cluster.local", "listed.example.net", "made.example.net", "other.example.net", "a.b.c.d.internal.example.net", "static.example"} {
		all = append(all, inquiry{name + ".", dns.TypeA, "udp"})
	}
	return append(all, inquiry{".", dns.TypeNS, "udp"}, inquiry{"www.example.net.", dns.TypeHINFO, "udp"})
}

// put asks, and says what a client sees of the reply: code, records in order, and
// their TTLs.
func (i inquiry) put(at netip.AddrPort) string {
	c := &dns.Client{Net: i.net, Timeout: patience}
	m := new(dns.Msg).SetQuestion(i.name, i.typ)
	r, _, err := c.Exchange(m, at.String())
	if err != nil {
		return "no reply"
	}
	words := []string{dns.RcodeToString[r.Rcode]}
	for _, rr := range append(slices.Clone(r.Answer), r.Ns...) {
		h := rr.Header()
		text := strings.TrimSpace(strings.TrimPrefix(rr.String(), h.String()))
		if soa, ok := rr.(*dns.SOA); ok {
			text = "SOA of " + soa.Ns
		}
		if h.Name != i.name && h.Rrtype != dns.TypeSOA {
			text = h.Name + " " + text
		}
		words = append(words, fmt.Sprintf("%s for %d s", text, h.Ttl))
	}
	return strings.Join(words, ", ")
}

var ttls = regexp.MustCompile(` for \d+ s`)

// again is behind a question that is put for the second time.
const again = " again"

// view is all that is seen of a resolver, asked twice: second answers without TTLs.
func view(at netip.AddrPort) map[string]string {
	seen := map[string]string{}
	for _, i := range inquiries() {
		seen[i.String()] = i.put(at)
	}
	for _, i := range inquiries() {
		seen[i.String()+again] = ttls.ReplaceAllString(i.put(at), "")
	}
	return seen
}

// alike says whether pods are served alike by two replies. Where a Corefile says
// nothing of transport, CoreDNS asks by that of its client, and we are free.
func alike(i string, theirs, ours string) bool {
	free := ` "udp"`
	if strings.Contains(i, " tcp") {
		free = ` "tcp"`
	}
	if strings.Contains(theirs, free) {
		for _, proto := range []string{"udp", "tcp"} {
			theirs, ours = strings.ReplaceAll(theirs, ` "`+proto+`"`, ""), strings.ReplaceAll(ours, ` "`+proto+`"`, "")
		}
	}
	return theirs == ours
}

// A configuration that config import has made answers as CoreDNS does with what it
// was made of, but where the report has said that it would not.
func TestAnImportedConfigurationAnswersAsItsSource(t *testing.T) {
	program := filepath.Join(t.TempDir(), "nodelocaldns")
	coreDNSAt := coreDNSProgram(t)
	if !netns.Enter(t) {
		return
	}
	netns.Run(t, "go", "build", "-o", program, "nodelocaldns/cmd/nodelocaldns")

	resolvConf := filepath.Join(t.TempDir(), "resolv.conf")
	writeFile(t, resolvConf, "nameserver "+nodeDNS+"\n")
	netns.Run(t, "mount", "--bind", resolvConf, "/etc/resolv.conf")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := certificate(t, ca)
	f := facts.Facts{ClusterDNS: []netip.Addr{netip.MustParseAddr(kubeDNS)}, Source: "the test"}
	netns.Run(t, "mkdir", "-p", "/run/nodelocaldns", "/run/systemd/resolve")
	writeFile(t, "/run/systemd/resolve/resolv.conf", "nameserver "+nodeDNS+"\n")
	if err := facts.Write(fsys.Dir("/run/nodelocaldns"), f); err != nil {
		t.Fatal(err)
	}

	all := sources(t)
	text := strings.Join([]string{localDNS, kubeDNS, behind, nodeDNS}, "\n")
	for _, s := range all {
		for _, f := range s.files {
			text += "\n" + string(f.Data)
		}
	}
	for _, a := range addressesIn(text) {
		if !a.IsLoopback() {
			netns.Run(t, "ip", "addr", "add", a.String(), "dev", "lo")
		}
	}

	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			dir := t.TempDir()
			args := []string{"config", "import", "--output", filepath.Join(dir, "config.yaml")}
			for _, f := range s.files {
				name := filepath.Join(dir, f.Name)
				writeFile(t, name, strings.ReplaceAll(string(f.Data), siteCA, ca))
				args = append(args, name)
			}
			if out, err := exec.Command(program, args...).CombinedOutput(); err != nil && len(s.lost) == 0 {
				t.Fatalf("%v\n%s", err, out)
			}
			netns.Run(t, program, "config", "check", filepath.Join(dir, "config.yaml"))
			imported, err := os.ReadFile(filepath.Join(dir, "config.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			var c struct {
				Listen struct {
					Addresses []netip.Addr
					Port      uint16
				}
			}
			if err := yaml.Unmarshal(imported, &c); err != nil {
				t.Fatal(err)
			}
			at := netip.AddrPortFrom(c.Listen.Addresses[0], c.Listen.Port)
			corefile := strings.ReplaceAll(s.corefile(t), siteCA, ca)
			names := parties(corefile)
			upstreams := addressesIn(corefile + string(imported) + " " + nodeDNS + " " + kubeDNS)

			bound := addressesIn(strings.Join(regexp.MustCompile(`(?m)^\s*bind .*$`).FindAllString(corefile, -1), "\n"))
			stop := serve(t, upstreams, func(a netip.AddrPort) bool {
				return a == at || slices.Contains(bound, a.Addr()) && a.Port() == at.Port()
			}, names, cert)
			writeFile(t, filepath.Join(dir, "Corefile.run"), corefile)
			var theirs map[string]string
			said := "no Corefile"
			if corefile != "" {
				var kill func()
				if kill, said = launch(t, "CoreDNS-", exec.Command(coreDNSAt, "-conf", filepath.Join(dir, "Corefile.run"))); kill != nil {
					theirs = view(at)
					kill()
				}
			}
			stop()

			defer serve(t, upstreams, func(a netip.AddrPort) bool {
				return slices.Contains(c.Listen.Addresses, a.Addr()) && a.Port() == at.Port()
			}, names, cert)()
			kill, log := launch(t, "serving", exec.Command(program, "--config", filepath.Join(dir, "config.yaml"), "serve"))
			if kill == nil {
				t.Fatalf("it does not serve:\n%s", log)
			}
			ours := view(at)
			kill()
			if why := unstarted[s.name]; (theirs == nil) != (why != "") || !strings.Contains(said, why) {
				t.Errorf("CoreDNS starts: %t; want why it does not: %q\n%s", theirs != nil, why, said)
			}
			s.judge(t, theirs, ours)
		})
	}
}

// A gap is where a report says that pods are served otherwise than before.
type gap struct {
	questions string // a regular expression
	lost      string // a part of the line that says so; "": none does, they are served alike
}

const (
	reverse   = `arpa\.`
	unmatched = `.`
)

// gaps are those of each golden file. A question belongs to the first that it
// matches; one that matches none is answered alike.
var gaps = map[string][]gap{
	"aks": {
		{`cluster\.local`, ""},
		{`^a\.b\.c\.d\.internal`, "template ANY ANY internal.example.net"},
		{`corp\.example`, "forward . Vnet_Dns_Servers"},
		{reverse, "no block for in-addr.arpa, ip6.arpa"},
		{unmatched, "to CoreDNS 3600s is a zone, not a TTL"},
	},
	"cache": {
		{`ip6\.arpa`, "cache 30: no counterpart: zones.reverse.success"},
		{`corp\.example`, "cache 5: no counterpart"},
	},
	"dns64":   {{reverse, "no block for"}, {`^v4\.(mesh|default\.svc)\.cluster\.local`, ""}, {`^v4\.corp`, ""}, {`^v4\.`, "dns64: no counterpart"}},
	"domain":  {{reverse, "no block for"}},
	"forward": {{reverse, "no block for"}},
	"forward-zones": {
		{`^route.*site\.example`, "force_tcp: no counterpart"},
		{`node\.example`, "forward node.example"},
	},
	"gke":          {{`ip6\.arpa`, "no block for ip6.arpa"}, {`HINFO`, "template ANY HINFO"}},
	"hosts":        {{reverse, "no block for"}, {`^listed`, "hosts: no counterpart"}},
	"json":         {{reverse, "no block for in-addr.arpa"}, {`cluster\.local`, "no block for the cluster's domain"}},
	"one-endpoint": {{reverse, "no block for in-addr.arpa"}, {`cluster\.local`, "no block for the cluster's domain"}},
	"nothing-said": {{`corp\.example`, ""}, {unmatched, "no block for ."}},
	"port-5353":    {{reverse, "no block for"}},
	"ports":        {{`cluster\.local`, ""}, {unmatched, "no block for ."}},
	"prefixes":     {{`^1\.2\.0\.10|^1\.0\.0\.2`, "no block for in-addr.arpa, ip6.arpa"}},
	"readme":       {{`corp\.example`, "node-cache kept it for 30s"}, {`HINFO`, "template ANY HINFO"}},
	"rewrite":      {{reverse, "no block for"}, {`^other\.example\.net`, "rewrite name exact"}},
	"stale":        {{`ip6\.arpa`, "no block for ip6.arpa"}},
	"template":     {{reverse, "no block for"}, {`^made\.`, "template IN A made.example.net"}, {`invalid\.`, "template ANY ANY invalid"}},
	"tls":          {{reverse, "no block for"}},
}

// unstarted is why CoreDNS does not start with what it is given, as it says.
var unstarted = map[string]string{
	"addresses":            "not a valid IP address or interface name",
	"addresses-alike":      "not a valid IP address or interface name",
	"cache-none":           "unexpected line ending after 'shards'",
	"endpoints":            "unknown property 'verbose'",
	"forward-tls":          "could not load TLS cert",
	"forward-unusable":     "paths are not allowed in HTTPS upstream",
	"kubedns":              "no Corefile",
	"kubedns-and-corefile": "it is already defined",
	"kubernetes":           "no action found for directive 'kubernetes'",
	"lost":                 "Unknown directive 'fancy'",
	"snippets":             "Unknown directive 'success'",
	"unneeded":             "Unknown directive 'nodecache'",
	"view":                 "no action found for directive 'view'",
}

// judge holds the gaps of s against what was seen. In a gap every first answer
// differs; a second one need not, as it is seen without TTLs.
func (s source) judge(t *testing.T, theirs, ours map[string]string) {
	met := make([]bool, len(gaps[s.name]))
	for _, q := range slices.Sorted(maps.Keys(theirs)) {
		i := slices.IndexFunc(gaps[s.name], func(g gap) bool { return regexp.MustCompile(g.questions).MatchString(q) })
		differ := !alike(q, theirs[q], ours[q])
		switch {
		case i < 0 || gaps[s.name][i].lost == "":
			if differ {
				t.Errorf("%s: answered otherwise, and nothing in the report says so\n\tCoreDNS: %s\n\tours:    %s", q, theirs[q], ours[q])
			}
		case !differ && !strings.HasSuffix(q, again):
			t.Errorf("%s: answered alike (%s), and the report says that it is not: %s", q, ours[q], gaps[s.name][i].lost)
		}
		if i >= 0 {
			met[i] = true
		}
	}
	for i, g := range gaps[s.name] {
		if !met[i] {
			t.Errorf("nobody has asked for %s", g.questions)
		}
		if !slices.ContainsFunc(s.lost, func(line string) bool { return strings.Contains(line, g.lost) }) && g.lost != "" {
			t.Errorf("the report does not say %q", g.lost)
		}
	}
}

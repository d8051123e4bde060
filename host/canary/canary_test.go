package canary

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/host/notrack"
	"nodelocaldns/host/pods"
	"nodelocaldns/test/kubedns"
	"nodelocaldns/test/netns"
)

// pod makes a network namespace behind a link of its own, with a process in it
// until the test ends.
func pod(t *testing.T, i int, namespace, name string) pods.Pod {
	t.Helper()
	n, link := strconv.Itoa(i), "pod"+strconv.Itoa(i)
	for _, line := range []string{
		"netns add " + link,
		"link add " + link + " type veth peer name eth0 netns " + link,
		"addr add 10.244." + n + ".1/24 dev " + link,
		"link set " + link + " up",
		"-n " + link + " addr add 10.244." + n + ".2/24 dev eth0",
		"-n " + link + " link set eth0 up",
		"-n " + link + " route add default via 10.244." + n + ".1",
	} {
		netns.Run(t, "ip", strings.Fields(line)...)
	}
	cmd := exec.Command("ip", "netns", "exec", link, "cat")
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	// It answers from where it is.
	_, err := io.WriteString(in, "\n")
	if _, rerr := bufio.NewReader(out).ReadByte(); err != nil || rerr != nil {
		t.Fatal(err, rerr)
	}
	return pods.Pod{Namespace: namespace, Name: name, UID: "uid-" + n, PID: cmd.Process.Pid}
}

func listen(t *testing.T, addr string) *kubedns.Server {
	t.Helper()
	s, err := kubedns.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// show is a report in a line a thing, without durations.
func show(r Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d running, %d in the node's network, %d unseen, %d ended; %d asked, %d failed, ok %t\n",
		r.Running, r.HostNetwork, r.Unseen, r.Ended, r.Asked, r.Failed, r.OK())
	for _, kind := range []struct {
		word string
		all  []Failure
	}{{"failure", r.Failures}, {"warning", r.Warnings}} {
		for _, f := range kind.all {
			fmt.Fprintf(&b, "%s: %s %s %s: %s: %s\n", kind.word, f.From(), f.Kind, f.Proto, f.What, f.Detail)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintln(&b, "note:", n)
	}
	if err := r.Err(); err != nil {
		fmt.Fprintf(&b, "%s: %s\n", r.Reason.Cause, err)
	}
	return b.String()
}

func TestPodsAreAskedFromWhereTheyAre(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	for _, a := range []string{"169.254.20.10/32", "169.254.20.12/32", "10.96.0.10/32"} {
		netns.Run(t, "ip", "addr", "add", a, "dev", "lo")
	}
	ownBig(t, "169.254.20.12:53")
	const (
		server  = "169.254.20.10:53"
		kubeDNS = "10.96.0.10:53"
	)
	ours, theirs := listen(t, server), listen(t, kubeDNS)
	all := []pods.Pod{pod(t, 1, "shop", "web-0"), pod(t, 2, "shop", "web-1"), pod(t, 3, "data", "db-0")}
	all = append(all, all[2]) // the same network again
	all[3].Name = "db-0-twin"
	all = append(all,
		pods.Pod{Namespace: "kube-system", Name: "agent", UID: "h", PID: 1, HostNetwork: true},
		pods.Pod{Namespace: "shop", Name: "vm", UID: "v"},
		pods.Pod{Namespace: "shop", Name: "ended", UID: "e", PID: 1 << 30},
		pods.Pod{Namespace: "shop", Name: "recycled", UID: "r", PID: os.Getpid()})
	cfg := Config{
		Pods:    all,
		Servers: []netip.AddrPort{netip.MustParseAddrPort(server)},
		KubeDNS: []netip.AddrPort{netip.MustParseAddrPort(kubeDNS)},
		Cluster: "kubernetes.default.svc.cluster.local", External: "example.com", Big: "big.shop.svc.cluster.local",
		Patience: 600 * time.Millisecond,
		Counted: func() (notrack.Packets, error) {
			return notrack.Counted(notrack.Auto, []netip.Addr{netip.MustParseAddr("169.254.20.10")})
		},
	}
	const found = "8 running, 1 in the node's network, 1 unseen, 2 ended; "
	every := func(pods []string, lines ...string) string {
		var out []string
		for _, p := range pods {
			for _, l := range lines {
				out = append(out, "failure: "+p+" "+l)
			}
		}
		return strings.Join(out, "\n") + "\n"
	}
	three := []string{"data/db-0", "shop/web-0", "shop/web-1"}
	untracked := []string{
		"-t raw -N NODELOCALDNS", "-t raw -A PREROUTING -j NODELOCALDNS",
		"-t raw -A NODELOCALDNS -d 169.254.20.10/32 -p udp --dport 53 -j NOTRACK",
		"-t raw -A NODELOCALDNS -d 169.254.20.10/32 -p tcp --dport 53 -j NOTRACK",
	}
	for _, tt := range []struct {
		name   string
		rules  []string // of iptables
		more   func(*Config)
		ours   kubedns.Behaviour
		theirs kubedns.Behaviour
		want   string
		asked  map[string]uint64 // of ours, by name and type
	}{
		{name: "all is well", want: found + "3 asked, 0 failed, ok true\n"},
		{
			name:  "the firewall drops what is untracked, over UDP",
			rules: append(slices.Clone(untracked), "-A INPUT -i pod+ -p udp -d 169.254.20.10 -m conntrack --ctstate UNTRACKED -j DROP"),
			want: found + "3 asked, 3 failed, ok false\n" + every(three, "cluster udp: silent: no answer", "external udp: silent: no answer", "big udp: silent: no answer") +
				"firewall: 3 of 3 pods would be worse off: what pods ask 169.254.20.10 over UDP reaches the node and is dropped there: a firewall that drops packets which conntrack does not track, most likely\n",
		},
		{
			name:  "the network of pods does not lead to the node's rules",
			rules: append(slices.Clone(untracked), "-t raw -I PREROUTING -i pod+ -d 169.254.20.10 -p tcp -j DROP"),
			want: found + "3 asked, 3 failed, ok false\n" + every(three, "cluster tcp: silent: no answer", "external tcp: silent: no answer", "big tcp: silent: no answer") +
				"cni: 3 of 3 pods would be worse off: what pods ask 169.254.20.10 over TCP does not reach the node's network stack: a CNI that bypasses it, or a network policy for all pods\n",
		},
		{
			name:  "nothing counts",
			rules: []string{"-A INPUT -i pod+ -p udp -d 169.254.20.10 -j DROP"},
			more:  func(c *Config) { c.Counted, c.External = nil, "" },
			want: found + "3 asked, 3 failed, ok false\n" + every(three, "cluster udp: silent: no answer", "big udp: silent: no answer") +
				"unclear: 3 of 3 pods would be worse off: 169.254.20.10 answers on the node and not in pods over UDP: a firewall of the node, a network policy for all pods, or a CNI that bypasses the node's network stack\n",
		},
		{
			name:  "the firewall rejects",
			rules: []string{"-A INPUT -i pod+ -p udp -d 169.254.20.10 -j REJECT"},
			more:  func(c *Config) { c.External, c.Pods = "", all[:1] },
			want: "1 running, 0 in the node's network, 0 unseen, 0 ended; 1 asked, 1 failed, ok false\n" + every(three[1:2], "cluster udp: refused: connection refused", "big udp: refused: connection refused") +
				"firewall: 1 of 1 pods would be worse off: a firewall on the node rejects what pods ask 169.254.20.10 over UDP\n",
		},
		{
			name:  "big replies are dropped",
			rules: []string{"-A OUTPUT -o pod+ -s 169.254.20.10 -m length --length 1300: -j DROP"},
			want: found + "3 asked, 3 failed, ok false\n" + every(three, "big udp: silent: no answer", "big tcp: silent: no answer") +
				"size: 3 of 3 pods would be worse off: small replies arrive, those over 1232 bytes do not\n",
		},
		{
			name:   "big replies to the resolver's own name are dropped",
			rules:  []string{"-A OUTPUT -o pod+ -s 169.254.20.12 -m length --length 1300: -j DROP"},
			theirs: kubedns.Behaviour{Rcode: "REFUSED"}, // it does not know the name
			more: func(c *Config) {
				c.Servers = []netip.AddrPort{netip.MustParseAddrPort("169.254.20.12:53")}
				c.Big, c.External, c.Pods = "", "", all[:1]
			},
			want: "1 running, 0 in the node's network, 0 unseen, 0 ended; 1 asked, 1 failed, ok false\n" + every(three[1:2], "big tcp: silent: no answer") +
				"size: 1 of 1 pods would be worse off: small replies arrive, those over 1232 bytes do not\n",
		},
		{
			name:  "a policy keeps one pod from us, but not from kube-dns",
			rules: []string{"-A INPUT -i pod2 -d 169.254.20.10 -j DROP"},
			more:  func(c *Config) { c.External = "" },
			want: found + "3 asked, 1 failed, ok false\n" + every(three[2:], "cluster udp: silent: no answer", "cluster tcp: silent: no answer", "big udp: silent: no answer", "big tcp: silent: no answer") +
				"policy: 1 of 3 pods would be worse off: 169.254.20.10 does not answer some pods, others it does: a network policy, most likely\n",
		},
		{
			name:  "a pod that may ask nobody is no worse off",
			rules: []string{"-A INPUT -i pod2 -j DROP"},
			more:  func(c *Config) { c.External, c.Big = "", "none.invalid" },
			want: found + "3 asked, 0 failed, ok true\n" +
				"warning: shop/web-1 cluster udp: silent: no answer; kube-dns does not answer it either\nwarning: shop/web-1 cluster tcp: silent: no answer; kube-dns does not answer it either\n" +
				"note: no reply over 1232 bytes was asked for: nothing on this node has one for none.invalid.\n",
		},
		{
			name:  "there is no way to us",
			rules: []string{"-A INPUT -i pod+ -d 169.254.20.10 -j REJECT --reject-with icmp-net-unreachable"},
			more:  func(c *Config) { c.External, c.Big = "", "none.invalid" },
			want: found + "3 asked, 3 failed, ok false\n" + every(three, "cluster udp: unreachable: unreachable", "cluster tcp: unreachable: unreachable") +
				"note: no reply over 1232 bytes was asked for: nothing on this node has one for none.invalid.\n" +
				"route: 3 of 3 pods would be worse off: pods have no way to 169.254.20.10\n",
		},
		{
			name: "nobody has an answer for an outside name, and nothing here is big",
			more: func(c *Config) { c.External, c.Big = "outside.invalid", "" },
			want: found + "3 asked, 0 failed, ok true\nnote: no reply over 1232 bytes was asked for: nothing on this node has one for canary.nodelocaldns.\n",
		},
		{
			name: "kube-dns is down: any reply of ours will do",
			ours: kubedns.Behaviour{Rcode: "SERVFAIL"}, theirs: kubedns.Behaviour{Rcode: "REFUSED"},
			want: found + "3 asked, 0 failed, ok true\n" +
				"warning: the node cluster udp: bad: SERVFAIL; kube-dns does not answer it either\nwarning: the node cluster tcp: bad: SERVFAIL; kube-dns does not answer it either\n" +
				"warning: the node external udp: bad: SERVFAIL; kube-dns does not answer it either\nwarning: the node external tcp: bad: SERVFAIL; kube-dns does not answer it either\n" +
				"note: no reply over 1232 bytes was asked for: nothing on this node has one for big.shop.svc.cluster.local.\n",
			// On the node twice over each protocol, and the first from pods.
			asked: map[string]uint64{"kubernetes.default.svc.cluster.local. A": 4 + 3*2, "example.com. A": 4},
		},
		{
			name: "ours fails where kube-dns does not",
			ours: kubedns.Behaviour{Rcode: "SERVFAIL"},
			more: func(c *Config) { c.External = "" },
			want: "8 running, 0 in the node's network, 0 unseen, 0 ended; 0 asked, 0 failed, ok false\n" +
				"failure: the node cluster udp: bad: SERVFAIL\nfailure: the node cluster tcp: bad: SERVFAIL\n" +
				"upstream: no pod was asked: 169.254.20.10:53 replies with an error where kube-dns has an answer\n",
		},
		{
			name: "ours hangs, and kube-dns is no excuse",
			ours: kubedns.Behaviour{DropEvery: 1}, theirs: kubedns.Behaviour{DropEvery: 1},
			more: func(c *Config) { c.External = "" },
			want: "8 running, 0 in the node's network, 0 unseen, 0 ended; 0 asked, 0 failed, ok false\n" +
				"failure: the node cluster udp: silent: no answer; kube-dns does not answer it either\nfailure: the node cluster tcp: silent: no answer; kube-dns does not answer it either\n" +
				"resolver: no pod was asked: 169.254.20.10:53 does not answer on the node itself\n",
		},
		{
			name: "nobody listens",
			more: func(c *Config) {
				c.Servers = []netip.AddrPort{netip.MustParseAddrPort("169.254.20.10:54")}
				c.External = ""
			},
			want: "8 running, 0 in the node's network, 0 unseen, 0 ended; 0 asked, 0 failed, ok false\n" +
				"failure: the node cluster udp: refused: connection refused\nfailure: the node cluster tcp: refused: connection refused\n" +
				"resolver: no pod was asked: nobody listens at 169.254.20.10:54\n",
		},
		{
			name: "kube-dns is not known",
			ours: kubedns.Behaviour{Rcode: "SERVFAIL"},
			more: func(c *Config) { c.External, c.KubeDNS = "", nil },
			want: found + "3 asked, 0 failed, ok true\n" +
				"warning: the node cluster udp: bad: SERVFAIL; kube-dns is not known\nwarning: the node cluster tcp: bad: SERVFAIL; kube-dns is not known\n" +
				"note: no reply over 1232 bytes was asked for: nothing on this node has one for big.shop.svc.cluster.local.\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, rule := range tt.rules {
				netns.Run(t, "iptables", strings.Fields(rule)...)
			}
			defer netns.Run(t, "nft", "flush", "ruleset")
			for s, b := range map[*kubedns.Server]kubedns.Behaviour{ours: tt.ours, theirs: tt.theirs} {
				if err := s.Behave(b); err != nil {
					t.Fatal(err)
				}
			}
			ours.Reset()
			cfg := cfg
			if tt.more != nil {
				tt.more(&cfg)
			}
			r, err := Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(r); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
			for name, want := range tt.asked {
				if got := ours.Counts().Names[name]; got != want {
					t.Errorf("asked %d times for %s, want %d", got, name, want)
				}
			}
		})
	}
	t.Run("no thread stays there", func(t *testing.T) { noThreadStays(t, all[0].PID) })
}

// ownBig serves [OwnBig] as the resolver does: whole over TCP, cut over UDP.
func ownBig(t *testing.T, addr string) {
	t.Helper()
	for _, proto := range protos {
		ready := make(chan struct{})
		s := &dns.Server{Addr: addr, Net: proto, NotifyStartedFunc: func() { close(ready) }}
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			if q.Question[0].Name == OwnBig && q.Question[0].Qclass == dns.ClassCHAOS {
				h := dns.RR_Header{Name: OwnBig, Rrtype: dns.TypeTXT, Class: dns.ClassCHAOS}
				m.Answer = []dns.RR{&dns.TXT{Hdr: h, Txt: slices.Repeat([]string{strings.Repeat("x", 255)}, 16)}}
			}
			if w.LocalAddr().Network() == "udp" {
				m.Truncate(Big)
			}
			_ = w.WriteMsg(m)
		})
		go func() { _ = s.ListenAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
		<-ready
	}
}

// Over UDP a reply to somebody else may come first.
func TestOnlyTheReplyToTheQuestionCounts(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 512)
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		q := new(dns.Msg)
		if q.Unpack(buf[:n]) != nil {
			return
		}
		_, _ = pc.WriteTo(buf[:n], from) // no reply
		other := new(dns.Msg).SetRcode(q, dns.RcodeRefused)
		other.Id++
		for _, m := range []*dns.Msg{other, new(dns.Msg).SetRcode(q, dns.RcodeNameError)} {
			text, _ := m.Pack()
			_, _ = pc.WriteTo(text, from)
		}
	}()
	r := &run{Config: Config{Patience: 10 * time.Second, Now: time.Now}}
	q := questions(Config{Cluster: "x.example"})[0]
	o := r.ask(t.Context(), node{}, pc.LocalAddr().(*net.UDPAddr).AddrPort(), "udp", q)
	if what, detail, failed := o.judge(q); failed || o.rcode != dns.RcodeNameError {
		t.Errorf("got %+v: %s, %s; want NXDOMAIN", o, what, detail)
	}
}

// noThreadStays enters a namespace many times and looks where goroutines are.
func noThreadStays(t *testing.T, pid int) {
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	at, err := enter(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer at.close()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := at.do(func() {
				if there, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || there == own {
					t.Errorf("in %s, %v", there, err)
				}
			}); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if here, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || here != own {
				t.Errorf("a goroutine is in %s, %v", here, err)
			}
		})
	}
	wg.Wait()
	if main, err := os.Readlink("/proc/self/ns/net"); err != nil || main != own {
		t.Errorf("the process is in %s, %v", main, err)
	}
}

func TestASampleIsOfFiftyAndRepeatable(t *testing.T) {
	var all []pods.Pod
	for i := range 120 {
		all = append(all, pods.Pod{UID: strconv.Itoa(i)})
	}
	uids := func(seed uint64) string {
		var out []string
		for _, p := range sample(slices.Clone(all), seed) {
			if !slices.Contains(out, p.UID) {
				out = append(out, p.UID)
			}
		}
		return strings.Join(out, " ")
	}
	one := uids(1)
	if n := len(strings.Fields(one)); n != Sample {
		t.Errorf("%d pods, want %d", n, Sample)
	}
	if uids(1) != one || uids(2) == one {
		t.Error("the seed does not make the sample")
	}
	if n := len(sample(all[:Sample], 1)); n != Sample {
		t.Errorf("of %d only %d", Sample, n)
	}
}

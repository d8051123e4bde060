package node

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"nodelocaldns/dnscache/cache"
	"nodelocaldns/test/kubedns"
	"nodelocaldns/test/node"
	"nodelocaldns/test/promises/load"
)

// podNames are the first names of pods, and their addresses.
func podNames(count int) []load.Name {
	names := make([]load.Name, count)
	for i := range names {
		a, b := i/256, i%256
		name := fmt.Sprintf("10-244-%d-%d.shop.pod.cluster.local.", a, b)
		names[i] = load.Name{Name: name, Type: "A", Rcode: "NOERROR", Answer: []string{fmt.Sprintf("%s A 10.244.%d.%d", name, a, b)}}
	}
	return names
}

// What the cache of the process before is worth to the next, and that nothing but
// that cache is taken for it. On both releases at once, but beside no other test:
// two cores can just bear the queries of one of them.
func TestAPackagesResolverBeginsWithWhatWasCached(t *testing.T) {
	// An hour, so that what is a miss is one for want of a cache, and not expired.
	dns := cluster(t).DNS()
	must(t, dns.Behave(kubedns.Behaviour{TTL: 3600}))
	t.Cleanup(func() { must(t, dns.Behave(kubedns.Behaviour{})) })
	for release, rate := range map[node.Release]int{node.Debian12: 10000, node.Debian13: 1000} {
		t.Run(string(release), func(t *testing.T) {
			t.Parallel()
			beginsWithWhatWasCached(t, bootOf(t, release, "warm-"+string(release)), rate)
		})
	}
}

func beginsWithWhatWasCached(t *testing.T, m machine, rate int) {
	t.Helper()
	m.sh(t, 0, "dpkg --install /root/newer.deb && echo 'zones: {cluster: {success: {maxTTL: 1h}}}' >/etc/nodelocaldns/config.yaml && systemctl enable --now nodelocaldns")
	m.started(t)
	m.runPod(t, "warm", node.KubeDNS)
	names := podNames(4000)

	for try := 0; ; try++ { // until kube-dns is known, it has answered SERVFAIL
		if s := m.load(t, 100, func() { time.Sleep(200 * time.Millisecond) }, names[0]); s.Right == s.Sent {
			break
		} else if try == 50 {
			t.Fatalf("of %d queries %d were answered rightly: %s", s.Sent, s.Right, s.Example)
		}
	}
	for try := 0; ; try++ { // on a busy machine some are answered SERVFAIL
		if s := m.load(t, 1000, func() { time.Sleep(4 * time.Second) }, names...); s.Right == s.Sent && s.Sent >= len(names) {
			break
		} else if try == 5 {
			t.Fatalf("of %d queries %d were answered rightly: %s", s.Sent, s.Right, s.Example)
		}
	}
	restartedTenTimes(t, m, rate, names)
	m.sh(t, 0, "systemctl stop nodelocaldns && systemctl start nodelocaldns") // with an empty cache
	damaged(t, m, names[:500])
}

// hits is what part of the queries the process that runs has answered from its
// cache.
func (m machine) hits(t *testing.T) float64 {
	t.Helper()
	var status struct {
		Resolver struct {
			Cache struct{ Hits, Misses float64 }
		}
	}
	must(t, json.Unmarshal([]byte(m.sh(t, 0, "nodelocaldns status --json | tr -d ' \\n'")), &status))
	c := status.Resolver.Cache
	return c.Hits / (c.Hits + c.Misses)
}

// All names are in the cache, so all queries are hits before, and 95 of a hundred are
// to be hits in the first second after each restart. A resolver that begins with
// nothing has four misses in ten queries at 10,000 a second, and nothing else at 1,000.
func restartedTenTimes(t *testing.T, m machine, rate int, names []load.Name) {
	t.Helper()
	worst := 1.0
	s := m.load(t, rate, func() {
		for range 10 {
			m.sh(t, 0, "systemctl restart nodelocaldns")
			time.Sleep(time.Second)
			worst = min(worst, m.hits(t))
		}
	}, names...)
	t.Logf("ten restarts at %.0f of %d q/s: %d queries, %d lost, %d wrong, %d SERVFAIL; slowest %v (load up to %v behind); at least %.2f %% hits in the first second after each",
		s.Rate, rate, s.Sent, s.Lost, s.Wrong, s.Servfail, s.Slowest, s.Lag, 100*worst)
	if s.Right != s.Sent {
		t.Errorf("of %d queries during ten restarts %d were answered rightly: %s", s.Sent, s.Right, s.Example)
	}
	if worst < 0.95 {
		t.Errorf("in the first second after a restart %.1f %% were hits", 100*worst)
	}
}

// damaged has the next process find a cache that cannot be used, and as a control
// one that can. All that was in it is asked for within a second.
func damaged(t *testing.T, m machine, names []load.Name) {
	t.Helper()
	const dropped = "beginning with an empty cache: that of the process before cannot be used"
	// Started again with the resolver, in between its end and its start.
	m.sh(t, 0, `cat >/etc/systemd/system/damage.service <<'END'
[Unit]
PartOf=nodelocaldns.service
Before=nodelocaldns.service
StartLimitIntervalSec=0
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -e /root/damage.sh
END
systemctl daemon-reload
echo >/root/damage.sh
systemctl start damage`)
	for _, tt := range []struct{ cache, script, want string }{
		{"that is as it was left", "true", "cache taken over"},
		{"that is cut short by a byte", "truncate --size=-1 $f", cache.ErrDamaged.Error()},
		{"that is cut short to its first bytes", "truncate --size=20 $f", cache.ErrCutShort.Error()},
		{"of another version", `printf '\001' | dd of=$f bs=1 seek=7 conv=notrunc status=none`, cache.ErrOtherVersion.Error()},
		{"that has a flipped byte", `half=$(($(stat --format=%s $f) / 2))
dd if=$f bs=1 skip=$half count=1 status=none | tr '\000-\377' '\001-\377\000' | dd of=$f bs=1 seek=$half conv=notrunc status=none`, cache.ErrDamaged.Error()},
	} {
		m.sh(t, 0, "cat >/root/damage.sh <<'END'\nf=/run/nodelocaldns-resolver/cache\ntest -s $f\n"+tt.script+"\nEND")
		s := m.load(t, 500, func() { m.sh(t, 0, "systemctl restart nodelocaldns && systemctl is-active damage") }, names...)
		if s.Right != s.Sent || s.Sent < 2*len(names) {
			t.Errorf("beginning with a cache %s: of %d queries %d were answered rightly: %s", tt.cache, s.Sent, s.Right, s.Example)
		}
		said := m.sh(t, 0, "journalctl --sync; journalctl --unit=nodelocaldns --output=cat _PID=$(systemctl show --value --property=MainPID nodelocaldns)")
		var about []string
		for line := range strings.Lines(said) {
			if strings.Contains(line, "WARN") || strings.Contains(line, "cache") {
				about = append(about, line)
			}
		}
		if len(about) != 1 || !strings.Contains(about[0], tt.want) || strings.Contains(about[0], dropped) == (tt.want == "cache taken over") {
			t.Errorf("beginning with a cache %s: it says, want one line of the cache with %q:\n%s", tt.cache, tt.want, said)
		}
	}
}

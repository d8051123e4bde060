package promises

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"nodelocaldns/test/node"
	"nodelocaldns/test/promises/load"
)

// latest is how much later than without us a kubelet may start when everything
// of ours is broken; rig is what this machine needs for itself.
const (
	latest = 30 * time.Second
	rig    = 5 * time.Second
)

// start boots the node, and returns how long that took: until the kubelet
// listened, and until systemd had finished.
func (m *machine) start(t *testing.T) (kubelet, finished time.Duration) {
	t.Helper()
	begun := time.Now()
	booted := make(chan error, 1)
	go func() { booted <- m.Boot(t.Context()) }()
	var up error
	for kubelet = 0; up == nil; time.Sleep(20 * time.Millisecond) {
		if c, err := net.DialTimeout("tcp", m.Addr+":10250", 100*time.Millisecond); err == nil {
			c.Close()
			kubelet = time.Since(begun)
			up = errors.New("it listens")
		}
		select {
		case err := <-booted:
			if err != nil {
				t.Fatalf("the kubelet listened after %s (0: not at all); %v", kubelet, err)
			}
			finished = time.Since(begun)
			booted = nil
		default:
		}
		if time.Since(begun) > 2*time.Minute {
			t.Fatal("the kubelet does not listen after two minutes")
		}
	}
	if booted != nil {
		if err := <-booted; err != nil {
			t.Fatalf("the kubelet listened after %s; %v", kubelet, err)
		}
		finished = time.Since(begun)
	}
	must(t, m.Ready(t.Context()))
	return kubelet, finished
}

// podRuns waits until the pod runs again after a boot.
func (m *machine) podRuns(t *testing.T) {
	t.Helper()
	eventually(t, "the pod to run again", time.Minute, func() error {
		r, err := m.Exec(t.Context(), "ls", "/run/netns")
		if err == nil && len(strings.Fields(r.Stdout)) != 1 {
			err = errors.New(r.Stdout + r.Stderr)
		}
		if err != nil {
			return err
		}
		r, err = m.cluster.PodExec(t.Context(), m.pod, "busybox", "true")
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stderr)
		}
		return err
	})
}

func TestANodeBootsInTimeAndPodsAreAnsweredAsSoonAsKubeDNSIs(t *testing.T) {
	t.Parallel()
	m := boot(t)
	must(t, m.PowerOff(t.Context()))
	plain, _ := m.start(t)
	m.apply(t)

	t.Run("with kube-dns", func(t *testing.T) {
		must(t, m.PowerOff(t.Context()))
		kubelet, finished := m.start(t)
		m.podRuns(t)
		s := m.load(t, load.Plan{Rate: 200, Count: 400, Sockets: 16, Fresh: 20}).wait().Summary(nil)
		none(t, "not answered rightly", s.Failed(), s)
		inTime(t, "the kubelet's start", kubelet-plain, latest/4)
		m.healthy(t)
		report(t, 70, "reboot", "kubelet starts in time, pods are answered", []load.Summary{s},
			"kubelet after %s, without us %s, boot finished after %s; %d of the pod's first %d queries failed", short(kubelet), short(plain), short(finished), s.Failed(), s.Sent)
	})

	t.Run("without kube-dns", func(t *testing.T) {
		must(t, m.Cut())
		m.cutOff(t, "drop")
		kubelet, _ := m.start(t)
		m.podRuns(t)
		const rate = 100
		l := m.load(t, load.Plan{Rate: rate, Count: 60 * rate, Sockets: 16, Fresh: 20})
		time.Sleep(3 * time.Second)
		back := time.Now()
		m.cutOff(t, "")
		time.Sleep(4 * time.Second)
		r := l.stop()
		cut := func(q load.Record) bool { return r.Begin.Add(q.At).Before(back) }
		while, after := r.Summary(cut), r.Summary(func(q load.Record) bool { return !cut(q) })
		none(t, "lost while kube-dns is unreachable", while.Lost, while)
		none(t, "lost after", after.Lost, after)
		none(t, "wrong answers", while.Wrong+after.Wrong, after)
		inTime(t, "a reply while kube-dns is unreachable", while.Slowest, time.Second)
		last := time.Duration(0) // from kube-dns' return to the last query that failed, as long as it lasted
		for _, q := range r.Records {
			if q.Outcome != load.Right {
				last = max(last, r.Begin.Add(q.At+q.Latency).Sub(back))
			}
		}
		inTime(t, "being answered again", last, time.Second)
		inTime(t, "the kubelet's start", kubelet-plain, latest/4)
		m.healthy(t)
		report(t, 71, "power cut, and kube-dns is silent when the node boots", "kubelet starts in time; SERVFAIL within 1 s, DNS works as soon as kube-dns does", []load.Summary{while, after},
			"kubelet after %s; until then %d of %d SERVFAIL, %d lost, slowest %s; the last failure %s after kube-dns was back", short(kubelet), while.Servfail, while.Sent, while.Lost, short(while.Slowest), short(last))
	})

	t.Run("disabled", func(t *testing.T) {
		l := m.load(t, load.Plan{Rate: 200, Count: 60 * 200, Sockets: 16, Fresh: 20})
		time.Sleep(500 * time.Millisecond)
		m.output(t, "systemctl", "disable", "--now", resolver)
		time.Sleep(2 * time.Second)
		now := l.stop().Summary(nil)
		none(t, "not answered rightly when it was disabled", now.Failed(), now)
		must(t, m.PowerOff(t.Context()))
		m.start(t)
		m.podRuns(t)
		s := m.load(t, load.Plan{Rate: 200, Count: 400, Sockets: 16, Fresh: 20}).wait().Summary(nil)
		none(t, "not answered rightly after the reboot", s.Failed(), s)
		m.output(t, "systemctl", "enable", "--now", resolver)
		m.healthy(t)
		report(t, 72, "`systemctl disable --now nodelocaldns`, then reboot", "pods that ask us are answered", []load.Summary{now, s},
			"%d of %d queries failed when it was disabled, %d of %d after the reboot", now.Failed(), now.Sent, s.Failed(), s.Sent)
	})

	t.Run("everything of ours hangs", func(t *testing.T) {
		must(t, m.PowerOff(t.Context()))
		const hang = "#!/bin/sh\ntrap '' TERM INT HUP ABRT QUIT\nwhile :; do sleep 600; done\n"
		all, err := programs()
		must(t, err)
		for name := range all {
			if strings.HasPrefix(name, "/usr/bin/") {
				must(t, m.Put(name, []byte(hang), 0o755))
			}
		}
		kubelet, finished := m.start(t)
		if late := kubelet - plain; late > latest+rig {
			t.Errorf("the kubelet started %s late, want %s at the most", short(late), short(latest))
		}
		servers := m.runPod(t)
		if servers != node.KubeDNS {
			t.Errorf("a new pod asks %s, want %s alone", servers, node.KubeDNS)
		}
		report(t, 73, "boot with programs of ours that hang and ignore SIGTERM", "kubelet at most 30 s late", nil,
			"%s late, boot finished after %s; new pods ask %s", short(kubelet-plain), short(finished), servers)
	})
}

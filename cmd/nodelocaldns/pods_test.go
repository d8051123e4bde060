package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/pods"
)

var oursForTest = netip.MustParseAddr("169.254.20.10")

// around are the pods of a node: one that names us or none, or what keeps them
// from being seen, and whom the kubelet names.
func around(naming bool, err error, kubelet ...netip.Addr) *neighbours {
	var all []pods.Pod
	if naming {
		all = []pods.Pod{{Namespace: "shop", Name: "web-0", UID: "u1", Nameservers: []netip.Addr{oursForTest}}}
	}
	return &neighbours{
		find:    func(context.Context) ([]pods.Pod, error) { return all, err },
		ours:    func() []netip.Addr { return []netip.Addr{oursForTest} },
		kubelet: func(context.Context) []netip.Addr { return kubelet },
		explain: func(context.Context, []pods.Pod) {},
	}
}

func TestARollbackTakesNothingFromPodsUnlessItIsTold(t *testing.T) {
	kubeDNS := netip.MustParseAddr("10.96.0.10")
	broken := errors.New("proc is not mounted")
	for _, tt := range []struct {
		name string
		pods *neighbours
		g    gentle
		left int
		err  string
		said string
	}{
		{"nobody names us", around(false, nil, kubeDNS), gentle{}, 0, "", ""},
		{"a pod does", around(true, nil, kubeDNS), gentle{}, 1, "", ""},
		{"a pod does, now", around(true, nil, kubeDNS), gentle{now: true}, 0, "", "1 pod still named us"},
		{"it cannot be seen", around(false, broken, kubeDNS), gentle{}, 0, "looking for pods that name us: proc is not mounted", ""},
		{"it cannot be seen, now", around(false, broken, kubeDNS), gentle{now: true}, 0, "", ""},
		{"the kubelet goes on to", around(false, nil, oursForTest, kubeDNS), gentle{}, 0, errStillNamed.Error(), ""},
		{"the kubelet goes on to, now", around(false, nil, oursForTest, kubeDNS), gentle{now: true}, 0, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			a := &app{term: term{stderr: &stderr}}
			left, err := a.waiter(&plans{pods: tt.pods}, tt.g)(t.Context())
			text := ""
			if err != nil {
				text = err.Error()
			}
			if len(left) != tt.left || text != tt.err || !strings.Contains(stderr.String(), tt.said) {
				t.Errorf("left %v, error %q, said %q", left, text, &stderr)
			}
		})
	}
}

func TestACanaryWaitsUntilTheResolverKnowsKubeDNS(t *testing.T) {
	knows := func(after time.Duration) func(time.Duration) resolverStatus {
		return func(at time.Duration) resolverStatus {
			rs := resolverStatus{Running: true, Config: &configFacts{}}
			if at >= after {
				rs.Config.ClusterDNS = []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}
			}
			return rs
		}
	}
	for _, tt := range []struct {
		name     string
		resolver func(at time.Duration) resolverStatus
		stop     time.Duration // when somebody stops the command; 0: nobody does
		want     time.Duration
	}{
		{"it knows", knows(0), 0, 0},
		{"guard has just told it", knows(3200 * time.Millisecond), 0, 3500 * time.Millisecond},
		{"it is never told", knows(time.Hour), 0, 15 * time.Second},
		{"it is never told, and somebody stops us", knows(time.Hour), 2200 * time.Millisecond, 2200 * time.Millisecond},
		{"no resolver runs", func(time.Duration) resolverStatus { return resolverStatus{Why: "no resolver"} }, 0, 0},
		{"it ends meanwhile", func(at time.Duration) resolverStatus {
			return resolverStatus{Running: at < time.Second, Config: &configFacts{}}
		}, 0, time.Second},
		{"one that says nothing of its configuration", func(time.Duration) resolverStatus { return resolverStatus{Running: true} }, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, begin := t.Context(), time.Now()
				if tt.stop > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.stop)
					defer cancel()
				}
				awaitKubeDNS(ctx, func(context.Context) resolverStatus { return tt.resolver(time.Since(begin)) })
				if took := time.Since(begin); took != tt.want {
					t.Errorf("waited for %s, want %s", took, tt.want)
				}
			})
		})
	}
}

func TestGuardWaitsForTheKubeletToo(t *testing.T) {
	names, err := around(true, nil, oursForTest).names(t.Context())
	if got := strings.Join(names, "; "); err != nil || got != "shop/web-0; new pods, by the kubelet" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestAnAddressThatPodsNameIsNotTakenFromThem(t *testing.T) {
	leaving := []netip.Addr{oursForTest}
	for _, tt := range []struct {
		name string
		p    plans
		err  string
	}{
		{"nothing goes", plans{pods: around(true, nil)}, ""},
		{"nobody names it", plans{pods: around(false, nil), leaving: leaving}, ""},
		{"a pod names it", plans{pods: around(true, nil), leaving: leaving}, "169.254.20.10 is not in listen.addresses any more, and pods of this node still name it: shop/web-0"},
		{"it cannot be seen", plans{pods: around(false, errors.New("no proc")), leaving: leaving}, "looking for pods that name 169.254.20.10: no proc"},
	} {
		err := tt.p.stillAsked(t.Context())
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != tt.err {
			t.Errorf("%s: got %q, want %q", tt.name, text, tt.err)
		}
	}
}

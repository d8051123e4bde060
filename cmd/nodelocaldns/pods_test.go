package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

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

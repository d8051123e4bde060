package kubelet

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// A Healthz asks the kubelet at an address whether it is well: nil if it
// answers 200.
type Healthz func(ctx context.Context, at netip.AddrPort) error

// healthzWithin bounds one question: the endpoint is a bare ping
// (k8s.io/kubernetes/pkg/kubelet/server), which a live kubelet answers at once.
const healthzWithin = time.Second

// AskHealthz is the Healthz that asks over HTTP, by no proxy.
func AskHealthz(ctx context.Context, at netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, healthzWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/healthz", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("healthz says %s", resp.Status)
	}
	return nil
}

// The defaults of KubeletConfiguration, v1beta1.
var healthzDefault = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 10248)

// healthz is where the kubelet answers, the zero value if it does not: a flag,
// else the last file of its configuration that says, else the default.
func (f *found) healthz() (netip.AddrPort, error) {
	address, port := healthzDefault.Addr().String(), strconv.Itoa(int(healthzDefault.Port()))
	read := func(name string) error {
		m, err := readObject(f.node.Tree, name)
		if err != nil {
			return err
		}
		if v, ok := m["healthzBindAddress"].(string); ok && v != "" {
			address = v
		}
		if v, ok := m["healthzPort"]; ok && v != nil {
			port = fmt.Sprint(v)
		}
		return nil
	}
	conf, dir := f.conf, f.dir
	if f.kind == isKubelet { // of the one that runs
		conf, _ = lastValue(f.all, "config")
		dir, _ = lastValue(f.all, "config-dir")
	}
	if conf != "" {
		if err := read(conf); err != nil {
			return netip.AddrPort{}, err
		}
	}
	if dir != "" {
		names, err := configFiles(f.node.Tree, dir)
		if err != nil {
			return netip.AddrPort{}, err
		}
		for _, name := range names {
			if err := read(name); err != nil {
				return netip.AddrPort{}, err
			}
		}
	}
	if v, ok := lastValue(f.all, "healthz-bind-address"); ok {
		address = v
	}
	if v, ok := lastValue(f.all, "healthz-port"); ok {
		port = v
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the kubelet's healthzPort is %q", port)
	}
	if n == 0 {
		return netip.AddrPort{}, nil
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("the kubelet's healthzBindAddress is %q", address)
	}
	switch {
	case a == netip.IPv6Unspecified():
		a = netip.IPv6Loopback()
	case a.IsUnspecified():
		a = healthzDefault.Addr()
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}

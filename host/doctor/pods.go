package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"nodelocaldns/host/pods"
)

// podsNaming says how many pods depend on us: not which, because what doctor
// says is posted in public.
func (e *Env) podsNaming(ctx context.Context) []Result {
	if e.Pods == nil {
		return nil
	}
	all, err := e.podList(ctx)
	n := len(pods.Naming(all, e.Want.Addresses))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return unseen(err)
	case err != nil:
		return warning("nodelocaldns status, as root, says which", "%s seen, %d of them with %s in resolv.conf, and some could not be looked at", plural(len(all), "pod"), n, named(e.Want.Addresses))
	case len(all) == 0:
		return nil
	}
	return ok("%s, %d of them with %s in resolv.conf", plural(len(all), "pod"), n, named(e.Want.Addresses))
}

func (e *Env) podList(ctx context.Context) ([]pods.Pod, error) {
	return e.pods.get(func() ([]pods.Pod, error) { return e.Pods(ctx) })
}

// Needed says whether pods are sent to us: by the kubelet, or by the resolv.conf
// that they have. What cannot be seen is not.
func (e *Env) Needed(ctx context.Context) bool {
	f, _ := e.Kubelet(ctx)
	if slices.ContainsFunc(f.Now, func(a netip.Addr) bool { return slices.Contains(e.Want.Addresses, a) }) {
		return true
	}
	if e.Pods == nil {
		return false
	}
	all, _ := e.podList(ctx)
	return len(pods.Naming(all, e.Want.Addresses)) > 0
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

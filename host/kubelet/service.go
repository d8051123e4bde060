package kubelet

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"nodelocaldns/host/apiserver"
)

// A Service looks up the addresses of the Service kube-system/kube-dns with
// the credential in the file kubeconfig. It reads and never writes.
type Service func(ctx context.Context, kubeconfig string) ([]netip.Addr, error)

// AskService is the Service that asks the API server, for at most five
// seconds. Its connections are closed before it returns.
func AskService(ctx context.Context, kubeconfig string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	api, err := apiserver.Open(kubeconfig)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	// The kubelet's own credential may read services, and no release of
	// Kubernetes or of an installer names this one otherwise.
	all, err := api.ServiceIPs(ctx, "kube-system", "kube-dns")
	if err != nil {
		return nil, err
	}
	list := parseServers(all)
	if len(list) == 0 {
		return nil, fmt.Errorf("asking %s for the service kube-system/kube-dns: it has no address (%s)", api.Server(), strings.Join(all, ","))
	}
	return list, nil
}

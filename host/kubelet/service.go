package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// A Service looks up the addresses of the Service kube-system/kube-dns with
// the credential in the file kubeconfig. It reads and never writes.
type Service func(ctx context.Context, kubeconfig string) ([]netip.Addr, error)

// kubeDNS is the one object asked for: the kubelet's own credential may read
// services, and no release of Kubernetes or of an installer names it otherwise.
const kubeDNS = "/api/v1/namespaces/kube-system/services/kube-dns"

// AskService is the Service that asks the API server, once, for at most five
// seconds. Its connections are closed before it returns.
func AskService(ctx context.Context, kubeconfig string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", kubeconfig, err)
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("using %s: %w", kubeconfig, err)
	}
	defer client.CloseIdleConnections()
	at, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("using %s: %w", kubeconfig, err)
	}
	list, err := askService(ctx, client, at)
	if err != nil {
		return nil, fmt.Errorf("asking %s for the service kube-system/kube-dns: %w", at.Host, err)
	}
	return list, nil
}

func askService(ctx context.Context, client *http.Client, at *url.URL) ([]netip.Addr, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.JoinPath(kubeDNS).String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	// A service is a kilobyte or two; what is much longer is not one.
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(body, &status) == nil && status.Message != "" {
			return nil, fmt.Errorf("%s: %s", resp.Status, status.Message)
		}
		return nil, fmt.Errorf("%s", resp.Status)
	}
	var service struct {
		Spec struct {
			ClusterIP  string   `json:"clusterIP"`
			ClusterIPs []string `json:"clusterIPs"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(body, &service); err != nil {
		return nil, fmt.Errorf("reading the reply: %w", err)
	}
	all := service.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{service.Spec.ClusterIP}
	}
	list := parseServers(all)
	if len(list) == 0 {
		return nil, fmt.Errorf("it has no address (%s)", strings.Join(all, ","))
	}
	return list, nil
}

package sim_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/limit"
	"nodelocaldns/test/node"
	"nodelocaldns/test/sim"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m.Run)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// controlPlane starts one whose nodes are only names there, and returns the
// kubeconfig of the identity that --max-unavailable has.
func controlPlane(t *testing.T, names []string) (c *node.Cluster, kubeconfig string) {
	t.Helper()
	if os.Getenv(node.Layers) == "" {
		t.Skip(node.Layers + " is not set; make test-cluster does that")
	}
	c, err := node.NewCluster(t.Context())
	must(t, err)
	var list []string
	for _, name := range names {
		list = append(list, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q}}`, name))
	}
	rbac, err := os.ReadFile(filepath.Join("..", "..", "units", "rbac.yaml"))
	must(t, err)
	for _, manifest := range []string{string(rbac), `{"apiVersion": "v1", "kind": "List", "items": [` + strings.Join(list, ",") + `]}`} {
		_, err = c.KubectlApply(t.Context(), manifest)
		must(t, err)
	}
	token, err := c.Kubectl(t.Context(), "--namespace=kube-system", "create", "token", "nodelocaldns-window", "--duration=1h")
	must(t, err)
	text, err := c.Kubectl(t.Context(), "config", "view", "--raw", "--flatten", "--minify")
	must(t, err)
	config, err := clientcmd.Load([]byte(text))
	must(t, err)
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &api.AuthInfo{Token: strings.TrimSpace(token)}
	}
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	must(t, clientcmd.WriteToFile(*config, kubeconfig))
	return c, kubeconfig
}

// A meter is an API that counts requests.
type meter struct {
	sim.API
	*counts
}

type counts struct {
	sync.Mutex
	reads, writes int
}

func (c *counts) read() {
	c.Lock()
	defer c.Unlock()
	c.reads++
}

func (c *counts) write() {
	c.Lock()
	defer c.Unlock()
	c.writes++
}

func (m meter) Lease(ctx context.Context, namespace, name string) (apiserver.Lease, error) {
	m.read()
	return m.API.Lease(ctx, namespace, name)
}

func (m meter) Node(ctx context.Context, name string) (apiserver.Node, error) {
	m.read()
	return m.API.Node(ctx, name)
}

func (m meter) CreateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	m.write()
	return m.API.CreateLease(ctx, l)
}

func (m meter) UpdateLease(ctx context.Context, l apiserver.Lease) (apiserver.Lease, error) {
	m.write()
	return m.API.UpdateLease(ctx, l)
}

func (m meter) Cordon(ctx context.Context, n apiserver.Node, key, mark string) (apiserver.Node, error) {
	m.write()
	return m.API.Cordon(ctx, n, key, mark)
}

func (m meter) Uncordon(ctx context.Context, n apiserver.Node, key string) (apiserver.Node, error) {
	m.write()
	return m.API.Uncordon(ctx, n, key)
}

// NODELOCALDNS_SIM=1000 has so many nodes, and measures what the model goes by.
func TestNodesTakeTurnsAtARealAPIServer(t *testing.T) {
	count, most := 10, 3
	n, err := strconv.Atoi(os.Getenv("NODELOCALDNS_SIM"))
	if err == nil {
		count, most = n, 10
	}
	names := sim.Names(count)
	c, kubeconfig := controlPlane(t, names)
	open := func() *apiserver.Client {
		client, err := apiserver.Open(kubeconfig)
		must(t, err)
		t.Cleanup(client.Close)
		return client
	}
	if n > 0 {
		measure(t, open)
	}
	var made counts
	got := sim.Roll{
		Nodes: names, Max: most, Seed: 1, Begin: time.Second,
		API:    func(string) sim.API { return meter{open(), &made} },
		Window: func(float64) time.Duration { return 200 * time.Millisecond },
	}.Run(t.Context())
	t.Logf("%d nodes, %d at once: %s, %d reads, %d writes", count, most, got.Wall, made.reads, made.writes)
	if got.AtOnce > most {
		t.Errorf("%d nodes were cordoned at once, want %d at most", got.AtOnce, most)
	}
	got.Wall, got.AtOnce = 0, 0
	if want := (sim.Result{Rolled: count}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, left := range []string{
		"nodes --output=jsonpath={.items[*].spec.unschedulable}",
		"leases --namespace=kube-system --selector=!x --output=jsonpath={.items[?(@.metadata.name!=\"\")].spec.holderIdentity}",
	} {
		out, err := c.Kubectl(t.Context(), append([]string{"get"}, strings.Fields(left)...)...)
		must(t, err)
		if strings.Contains(out, "sim-") || strings.Contains(out, "true") {
			t.Errorf("left behind: %s", out)
		}
	}
}

// measure logs what a request takes alone, and how many are answered a second when
// all that this identity may ask for is asked for at once, by many clients.
func measure(t *testing.T, open func() *apiserver.Client) {
	const most, long = 10, 5 * time.Second // units/rbac.yaml has ten Leases
	ctx := t.Context()
	leases := make([]apiserver.Lease, most)
	for i := range leases {
		var err error
		leases[i], err = open().CreateLease(ctx, apiserver.Lease{Namespace: limit.Namespace, Name: limit.Name(i)})
		must(t, err)
	}
	for _, kind := range []struct {
		name    string
		clients int
		ask     func(c *apiserver.Client, i int) error
	}{
		{"read", 4 * most, func(c *apiserver.Client, i int) error {
			_, err := c.Lease(ctx, limit.Namespace, limit.Name(i%most))
			return err
		}},
		{"write", most, func(c *apiserver.Client, i int) (err error) {
			leases[i].Renewed = time.Now()
			leases[i], err = c.UpdateLease(ctx, leases[i])
			return err
		}},
	} {
		var took []time.Duration
		client := open()
		for range 300 {
			begin := time.Now()
			must(t, kind.ask(client, 0))
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		var asked sync.WaitGroup
		answered := make([]int, kind.clients)
		end := time.Now().Add(long)
		for i := range kind.clients {
			client := open()
			asked.Go(func() {
				for time.Now().Before(end) && kind.ask(client, i) == nil {
					answered[i]++
				}
			})
		}
		asked.Wait()
		total := 0
		for _, n := range answered {
			total += n
		}
		t.Logf("%s: %s alone (median), %.0f a second by %d clients", kind.name, took[len(took)/2], float64(total)/long.Seconds(), kind.clients)
	}
}

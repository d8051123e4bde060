// Package fleet brings nodelocaldns to booted nodes of a cluster as fleets are
// given it, and takes it back.
package fleet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"nodelocaldns/test/node"
	packaging "nodelocaldns/test/package"
)

// version is what is packed.
const version = "1.2.3"

const (
	local = "169.254.20.10"
	both  = local + " " + node.KubeDNS
)

// built is the environment variable with the directory of the packages and of
// what plays a part in tests.
const built = "NODELOCALDNS_TEST_FLEET"

func TestMain(m *testing.M) { os.Exit(node.MainBuilt(built, build, m.Run)) }

func build(dir string) error {
	return errors.Join(packaging.Build("../..", dir, version), buildForMigration(dir))
}

// deb is the file of the package for this machine's nodes.
func deb() string { return filepath.Join(os.Getenv(built), packaging.Deb(version, runtime.GOARCH)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// All tests share one control plane.
var shared = sync.OnceValues(func() (*node.Cluster, error) { return node.NewCluster(context.Background()) })

// cluster skips the test where there is no lab.
func cluster(t *testing.T) *node.Cluster {
	t.Helper()
	if os.Getenv(node.Layers) == "" {
		t.Skip(node.Layers + " is not set; make test-cluster does that")
	}
	c, err := shared()
	must(t, err)
	return c
}

// A machine is a node with its cluster.
type machine struct {
	*node.Node
	cluster *node.Cluster
}

// create makes a node that is off and has not joined. If the test fails, its
// journal tells why.
func create(t *testing.T, release node.Release, name string) machine {
	t.Helper()
	c := cluster(t)
	n, err := c.NodeOf(release, name)
	must(t, err)
	m := machine{n, c}
	t.Cleanup(func() {
		if t.Failed() {
			r, _ := m.Exec(context.WithoutCancel(t.Context()), "sh", "-c",
				"journalctl --boot --no-pager --no-hostname --lines=100 --unit='nodelocaldns*' --unit='cloud-*' | cut -c 1-300")
			t.Log(r.Stdout)
		}
		must(t, m.Cut())
	})
	return m
}

// boot makes a node that has joined, and boots it. Prepare may change it before.
func boot(t *testing.T, release node.Release, name string, prepare ...func(machine)) machine {
	t.Helper()
	m := create(t, release, name)
	must(t, m.Join(t.Context()))
	for _, f := range prepare {
		f(m)
	}
	must(t, m.Boot(t.Context()))
	must(t, m.Ready(t.Context()))
	return m
}

// sh runs a shell on the node and returns what it printed, to both outputs. Another
// exit code than the wanted one ends the test. With -test.v it is a transcript.
func (m machine) sh(t *testing.T, want int, script string) string {
	t.Helper()
	r, err := m.Exec(context.WithoutCancel(t.Context()), "sh", "-c", "exec 2>&1\n"+script)
	must(t, err)
	t.Logf("%s# %s\n%s", m.Name, script, r.Stdout)
	if r.Code != want {
		t.Fatalf("%s: exit code %d, want %d\n%s", script, r.Code, want, r.Stdout)
	}
	return r.Stdout
}

func (m machine) dump(t *testing.T) node.Dump {
	t.Helper()
	d, err := m.Dump(t.Context())
	must(t, err)
	return d
}

// Package apiserver is the API server as a node may ask it, with the credential
// of its kubelet or one of its own: nodes, pods and their eviction, leases,
// events. Of each object it reads the few fields that are needed here.
//
// What the kubelet's credential may do, as seen with Kubernetes 1.34 under
// --authorization-mode=Node,RBAC and NodeRestriction: read and change its own
// Node, but not its taints; list the pods of its node; evict those; read its
// own Lease in kube-node-lease; read Services; write Events. It may not read
// other nodes, DaemonSets, PodDisruptionBudgets, or Leases elsewhere, and a pod
// that is gone is forbidden to it, not missing: whether one is gone tells a
// list of the node's pods.
package apiserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"nodelocaldns/host/step"
)

// Manager is the field manager of what we change: who reads an object's
// managedFields sees this name. It is also the name that requests are logged
// under, and what Events come from.
const Manager = "nodelocaldns"

const (
	// oneFor bounds an attempt to read or change one object. An API server that
	// is well answers in milliseconds, and 99 % within a second (the SLO of
	// Kubernetes).
	oneFor = 10 * time.Second

	// listFor bounds an attempt to list pods, for which that SLO allows 30 s.
	listFor = 30 * time.Second

	// maxOne bounds a reply with one object. etcd refuses what is longer than
	// 1.5 MiB, which may be more as JSON.
	maxOne = 8 << 20

	// maxList bounds a list of pods: 500 of 100 KiB each, far more than a
	// kubelet takes.
	maxList = 50 << 20

	// tries is how often a read is tried where there is no reply. It is tried
	// again at once: over a new connection, to another server behind the same
	// address. Who can wait, waits between calls.
	tries = 3
)

// A Client asks one API server. Its methods may be called from any goroutine.
// Each attempt at a request is bounded, by 10 s or for lists by 30 s, whatever
// its context allows. Reads are tried up to three times where there is no
// reply, changes once: after an [ErrUnreachable] they may have been made or not.
//
// Errors are an [Error], or a [Conflict] or [Busy] around one.
type Client struct {
	file      string
	one, list bound

	mu  sync.Mutex
	now *connection
}

// A bound is on one attempt at a request.
type bound struct {
	time time.Duration
	size int64 // of the reply, in bytes
}

// A connection is what the files of a credential make.
type connection struct {
	text   []byte // the kubeconfig
	config *rest.Config
	client *http.Client
	base   *url.URL
}

// Open prepares to ask the API server of a kubeconfig, and asks nothing yet. The
// file, and the certificates that it names, are read again for every request:
// the kubelet renews its own. A program that it names (exec) is run as
// client-go does, without standard input.
func Open(kubeconfig string) (*Client, error) {
	c := &Client{file: kubeconfig, one: bound{oneFor, maxOne}, list: bound{listFor, maxList}}
	if _, err := c.connection(); err != nil {
		return nil, err
	}
	return c, nil
}

// Close closes the connections. The client stays good.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.close()
}

// Server is the API server's host and port, as the kubeconfig has them.
func (c *Client) Server() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.base.Host
}

// connection is that of the credential in the files as they are now. If they
// cannot be read, and could before, somebody is replacing them: then it is that
// of before.
func (c *Client) connection() (*connection, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, config, err := load(c.file)
	if err == nil && c.now != nil && c.now.of(text, config) {
		return c.now, nil
	}
	var next *connection
	if err == nil {
		next, err = newConnection(text, config)
	}
	switch {
	case err == nil:
		c.now.close()
		c.now = next
	case c.now == nil:
		return nil, err
	}
	return c.now, nil
}

// leave has later requests made over connections of their own. That old is
// silent does not make it idle at once, and nobody else may be cut off who waits
// there; client-go's own probes end it within a minute.
func (c *Client) leave(old *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old.close()
	if c.now != old {
		return
	}
	if next, err := newConnection(old.text, old.config); err == nil {
		c.now = next
	}
}

// of reports whether c was made from these.
func (c *connection) of(text []byte, config *rest.Config) bool {
	return bytes.Equal(c.text, text) &&
		bytes.Equal(c.config.CertData, config.CertData) && bytes.Equal(c.config.KeyData, config.KeyData) && bytes.Equal(c.config.CAData, config.CAData)
}

func (c *connection) close() {
	if c != nil {
		// The client's own method does not reach through client-go's layers.
		utilnet.CloseIdleConnectionsFor(c.client.Transport)
	}
}

func newConnection(text []byte, config *rest.Config) (*connection, error) {
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	// An API server does not send anybody elsewhere; what does, is none.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &connection{text: text, config: config, client: &http.Client{Transport: transport, CheckRedirect: stay}, base: base}, nil
}

// load reads a kubeconfig and all files that it names.
func load(file string) ([]byte, *rest.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	fail := func(err error) ([]byte, *rest.Config, error) {
		return nil, nil, fmt.Errorf("reading the kubeconfig %s: %w", file, err)
	}
	var head struct {
		Kind string `yaml:"kind"`
	}
	if err := yaml.Unmarshal(text, &head); err != nil {
		return fail(err)
	}
	// OpenShift and kops have KubeletConfigurations where others have this.
	if head.Kind != "" && head.Kind != "Config" {
		return fail(&step.Error{
			Err:  fmt.Errorf("its kind is %s, not Config", head.Kind),
			Next: "the kubelet's kubeconfig is the file that its flag --kubeconfig names",
		})
	}
	config, err := clientcmd.Load(text)
	if err != nil {
		return fail(err)
	}
	for _, cluster := range config.Clusters {
		cluster.LocationOfOrigin = file
	}
	for _, user := range config.AuthInfos {
		user.LocationOfOrigin = file
	}
	if err := clientcmd.ResolveLocalPaths(config); err != nil {
		return fail(err)
	}
	// Not BuildConfigFromFlags: where the file tells of no server, that takes
	// one from the environment.
	out, err := clientcmd.NewDefaultClientConfig(*config, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return fail(err)
	}
	if err := rest.LoadTLSFiles(out); err != nil {
		return fail(err)
	}
	out.UserAgent = Manager
	// Or client-go has one set of connections for all that it was given the
	// same credential for. The numbers are its own.
	out.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	if out.ExecProvider != nil {
		out.ExecProvider.StdinUnavailable = true
		out.ExecProvider.StdinUnavailableMessage = "it runs in the background"
	}
	return text, out, nil
}

// nodeUser begins the user names of kubelets, in certificates and elsewhere.
const nodeUser = "system:node:"

// NodeName is the name of the node whose kubelet has this credential: that of
// its client certificate or, where it has none, as the API server tells
// (SelfSubjectReview, from Kubernetes 1.28 on). For another's credential it is
// an error.
func (c *Client) NodeName(ctx context.Context) (string, error) {
	now, err := c.connection()
	if err != nil {
		return "", err
	}
	user, err := certificateUser(now.config.CertData)
	if err == nil && user == "" {
		user, err = c.user(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("reading the node's name from %s: %w", c.file, err)
	}
	name, ok := strings.CutPrefix(user, nodeUser)
	if !ok {
		return "", fmt.Errorf("reading the node's name from %s: it is the credential of %q, not of a kubelet", c.file, user)
	}
	return name, nil
}

// certificateUser is whom the client certificate in text is of. Kubelets keep
// the key in the same file.
func certificateUser(text []byte) (string, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return "", nil
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		// The first is the client's, others are those who signed it.
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", err
		}
		return cert.Subject.CommonName, nil
	}
}

// user is whom the API server takes us for.
func (c *Client) user(ctx context.Context) (string, error) {
	var review struct {
		Status struct {
			UserInfo struct {
				Username string `json:"username"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	err := c.do(ctx, request{
		what: "who we are", method: http.MethodPost, path: "/apis/authentication.k8s.io/v1/selfsubjectreviews",
		body: object{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
		kind: "SelfSubjectReview", reply: &review,
	})
	if err == nil && review.Status.UserInfo.Username == "" {
		err = errors.New("the API server does not tell")
	}
	return review.Status.UserInfo.Username, err
}

// ServiceIPs are the addresses of a Service, as they are written in it: "None"
// where it has none.
func (c *Client) ServiceIPs(ctx context.Context, namespace, name string) ([]string, error) {
	var service struct {
		Spec struct {
			ClusterIP  string   `json:"clusterIP"`
			ClusterIPs []string `json:"clusterIPs"` // from Kubernetes 1.20 on
		} `json:"spec"`
	}
	err := c.do(ctx, request{
		what: "for the service " + namespace + "/" + name, method: http.MethodGet,
		path: "/api/v1/namespaces/" + namespace + "/services/" + name, kind: "Service", reply: &service,
	})
	if err != nil {
		return nil, err
	}
	if len(service.Spec.ClusterIPs) == 0 && service.Spec.ClusterIP != "" {
		return []string{service.Spec.ClusterIP}, nil
	}
	return service.Spec.ClusterIPs, nil
}

// An object is one of JSON.
type object = map[string]any

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/test/kubedns"
)

// The addresses of a lab: kubeadm's for services, and others that no network
// around it can be confused by.
const (
	KubeDNS   = "10.96.0.10" // of the stand-in for kube-dns
	bridge    = "br0"
	labAddr   = "10.77.0.1" // of the API server, and where nodes send what is not theirs
	apiServer = "https://" + labAddr + ":6443"
)

// startTimeout bounds how long any one thing may take to come up.
const startTimeout = 90 * time.Second

// A Cluster is a control plane in the lab of this process. Its nodes are made
// with Node. It lasts until the process ends, and so do they. Its methods may
// be called from any goroutine.
type Cluster struct {
	dir       string // the lab's
	layers    string
	authority *authority
	admin     string // kubeconfig of cluster-admin

	mu    sync.Mutex
	dns   *kubedns.Server // nil while it is stopped
	nodes map[string]bool // the names that are taken
}

// NewCluster starts a control plane. It fails outside of Main's lab.
func NewCluster(ctx context.Context) (*Cluster, error) {
	dir := os.Getenv(inside)
	if dir == "" {
		return nil, fmt.Errorf("starting a cluster: %s is not set", Layers)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c := &Cluster{dir: dir, layers: os.Getenv(Layers), nodes: map[string]bool{}}
	if err := errors.Join(c.writeNodeFiles(), c.StartDNS()); err != nil {
		return nil, fmt.Errorf("starting a cluster: %w", err)
	}
	if err := c.startControlPlane(ctx); err != nil {
		return nil, fmt.Errorf("starting a cluster: %w", err)
	}
	return c, nil
}

// Address is where nodes reach the lab.
func (c *Cluster) Address() string { return labAddr }

// StartDNS starts the stand-in for kube-dns where it has been stopped. It has
// forgotten what it was asked, and how to behave.
func (c *Cluster) StartDNS() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dns != nil {
		return nil
	}
	s, err := kubedns.Listen(KubeDNS + ":53")
	if err == nil {
		c.dns = s
	}
	return err
}

// StopDNS stops the stand-in for kube-dns: its address stays, and refuses.
func (c *Cluster) StopDNS() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dns != nil {
		c.dns.Close()
		c.dns = nil
	}
}

// DNS is the running stand-in for kube-dns, or nil.
func (c *Cluster) DNS() *kubedns.Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dns
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	var err error
	if c.authority, err = newAuthority(); err != nil {
		return err
	}
	write := func(name string, data []byte, err error) (string, error) {
		name = filepath.Join(c.dir, name)
		if err == nil {
			err = os.WriteFile(name, data, 0o600)
		}
		return name, err
	}
	ca, err := write("ca.crt", c.authority.pem, nil)
	if err != nil {
		return err
	}
	cert, key, err := c.authority.issue("kube-apiserver", "system:masters", labAddr, "127.0.0.1")
	if err != nil {
		return err
	}
	certFile, err := write("apiserver.crt", cert, nil)
	if err != nil {
		return err
	}
	// One key serves, asks kubelets, and signs the tokens of service accounts.
	keyFile, err := write("apiserver.key", key, nil)
	if err != nil {
		return err
	}
	kubeconfig := func(file, name, organization string) string {
		data, e := c.authority.kubeconfig(name, organization)
		file, e = write(file, data, e)
		err = errors.Join(err, e)
		return file
	}
	c.admin = kubeconfig("admin.conf", "kubernetes-admin", "system:masters")
	manager := kubeconfig("controller-manager.conf", "system:kube-controller-manager", "")
	scheduler := kubeconfig("scheduler.conf", "system:kube-scheduler", "")
	if err != nil {
		return err
	}

	const etcd, peers = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	ended := make(chan error, 4)
	for _, p := range [][]string{
		{"etcd", "--data-dir=" + filepath.Join(c.dir, "etcd"), "--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
			"--listen-peer-urls=" + peers, "--unsafe-no-fsync", "--log-level=warn"},
		{"kube-apiserver", "--etcd-servers=" + etcd, "--advertise-address=" + labAddr, "--secure-port=6443",
			"--cert-dir=" + filepath.Join(c.dir, "certs"), "--service-cluster-ip-range=10.96.0.0/16", "--client-ca-file=" + ca,
			"--tls-cert-file=" + certFile, "--tls-private-key-file=" + keyFile,
			"--kubelet-client-certificate=" + certFile, "--kubelet-client-key=" + keyFile, "--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + keyFile, "--service-account-signing-key-file=" + keyFile,
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			// For dnsconfig --policy. From Kubernetes 1.36 both are on, in version v1.
			"--feature-gates=MutatingAdmissionPolicy=true", "--runtime-config=admissionregistration.k8s.io/v1beta1=true"},
		{"kube-controller-manager", "--kubeconfig=" + manager, "--authentication-kubeconfig=" + manager, "--authorization-kubeconfig=" + manager,
			"--cert-dir=" + filepath.Join(c.dir, "certs"), "--use-service-account-credentials",
			"--service-account-private-key-file=" + keyFile, "--root-ca-file=" + ca, "--leader-elect=false"},
		{"kube-scheduler", "--kubeconfig=" + scheduler, "--authentication-kubeconfig=" + scheduler, "--authorization-kubeconfig=" + scheduler,
			"--cert-dir=" + filepath.Join(c.dir, "certs"), "--leader-elect=false"},
	} {
		if err := c.start(ended, p[0], p[1:]...); err != nil {
			return err
		}
		if p[0] != "kube-apiserver" {
			continue
		}
		ready := func() error {
			_, err := c.Kubectl(ctx, "get", "--raw", "/readyz")
			return err
		}
		if err := until(ctx, "the API server to be ready", ended, ready); err != nil {
			return err
		}
	}
	if _, err := c.KubectlApply(ctx, kubeDNSService); err != nil {
		return err
	}
	return until(ctx, "the controller manager to be at work", ended, func() error {
		_, err := c.Kubectl(ctx, "get", "serviceaccount", "default")
		return err
	})
}

// kubeDNSService is how a node may learn the address of kube-dns.
const kubeDNSService = `{"apiVersion": "v1", "kind": "Service",
 "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
 "spec": {"clusterIP": "` + KubeDNS + `", "ports": [
  {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}}`

// start starts a process of the control plane. It logs to a file of its name.
func (c *Cluster) start(ended chan<- error, name string, args ...string) error {
	log, err := os.Create(filepath.Join(c.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(c.layers, "kubernetes/bin", name), args...)
	cmd.Dir = c.dir
	cmd.Stdout, cmd.Stderr = log, log
	// Ctrl-C is for the lab's keeper alone, which ends all of it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { ended <- fmt.Errorf("%s ended: %w\n%s", name, cmd.Wait(), tail(log.Name())) }()
	return nil
}

// Kubectl runs kubectl as cluster-admin and returns what it printed to its
// standard output. Where it fails, the error has what it printed otherwise.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(ctx, "", args...)
}

// KubectlApply has kubectl apply a manifest.
func (c *Cluster) KubectlApply(ctx context.Context, manifest string) (string, error) {
	return c.kubectl(ctx, manifest, "apply", "-f", "-")
}

func (c *Cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	r, err := run(c.kubectlCommand(ctx, args...), stdin)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("kubectl %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout, err
}

// AdminKubectl is the command line of a kubectl that may do everything, up to what
// it is to do.
func (c *Cluster) AdminKubectl() []string {
	return []string{filepath.Join(c.layers, "kubernetes/node/usr/bin/kubectl"), "--kubeconfig=" + c.admin}
}

func (c *Cluster) kubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	args = append(c.AdminKubectl(), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "HOME="+c.dir) // it keeps a cache there
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// A Pod is one of busybox that sleeps.
type Pod struct {
	Name string
	Node *Node
	// Nameservers, if there are any, are the pod's own: dnsPolicy None.
	Nameservers []string
}

// RunPod runs a pod in the default namespace and returns when it is ready.
func (c *Cluster) RunPod(ctx context.Context, p Pod) error {
	type object = map[string]any
	spec := object{
		"nodeName":                      p.Node.Name,
		"automountServiceAccountToken":  false,
		"terminationGracePeriodSeconds": 0,
		"containers": []any{object{
			"name": "main", "image": "docker.io/library/busybox:local", "imagePullPolicy": "Never",
			"command": []string{"sleep", "86400"},
		}},
	}
	if len(p.Nameservers) > 0 {
		spec["dnsPolicy"] = "None"
		spec["dnsConfig"] = object{"nameservers": p.Nameservers}
	}
	manifest, err := json.Marshal(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": p.Name}, "spec": spec})
	if err != nil {
		return err
	}
	if _, err := c.KubectlApply(ctx, string(manifest)); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout="+startTimeout.String(), "pod/"+p.Name)
	return err
}

// DeletePod deletes a pod and returns when it is gone.
func (c *Cluster) DeletePod(ctx context.Context, name string) error {
	_, err := c.Kubectl(ctx, "delete", "pod", name, "--wait", "--timeout="+startTimeout.String())
	return err
}

// PodExec runs a command in a pod, through the kubelet.
func (c *Cluster) PodExec(ctx context.Context, name string, args ...string) (Result, error) {
	return run(c.kubectlCommand(ctx, append([]string{"exec", name, "--"}, args...)...), "")
}

// A Result is what came of a command.
type Result struct {
	Stdout, Stderr string
	Code           int // its exit code; -1 where a signal ended it
}

// run runs a command. That it fails is no error, but that it could not be run is.
func run(cmd *exec.Cmd, stdin string) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	r := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	if err != nil {
		return r, fmt.Errorf("running %s: %w", strings.Join(cmd.Args, " "), err)
	}
	r.Code = cmd.ProcessState.ExitCode()
	return r, nil
}

// until tries f until it succeeds, and gives up when ctx ends or something is
// received from ended.
func until(ctx context.Context, what string, ended <-chan error, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case e := <-ended:
			return fmt.Errorf("waiting for %s: %w", what, e)
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Until tries f every 100 ms until it succeeds or ctx ends.
func Until(ctx context.Context, what string, f func() error) error { return until(ctx, what, nil, f) }

// tail is the end of a log.
func tail(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	const most = 4 << 10
	return string(data[max(0, len(data)-most):])
}

// overlay mounts a file tree whose lower layers stay as they are.
func overlay(target, upper, work string, lower ...string) error {
	for _, dir := range []string{target, upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("mounting an overlay at %s: %w", target, err)
	}
	return nil
}

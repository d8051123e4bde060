// Node boots a node of a cluster with the programs of nodelocaldns in /usr/bin
// and nothing of them active, runs a shell there on its standard input, and
// removes everything when that ends. Its exit code is the shell's unless a
// person sits there.
//
// usage: node PROGRAM...
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nodelocaldns/test/node"
)

const welcome = `
A node of a cluster, Kubernetes 1.34 on Debian 12; it ends with this shell, and
leaves nothing. kube-dns is a stand-in at ` + node.KubeDNS + `. A pod named "before" runs.
nodelocaldns is the one that was just built; nothing of it is active.

  nodelocaldns plan
  nodelocaldns apply
  kubectl run after --image=busybox:local -- sleep 86400
  kubectl exec after -- cat /etc/resolv.conf                      # and that of before
  kubectl exec after -- nslookup web.shop.svc.cluster.local
  nodelocaldns status
  nodelocaldns rollback
  kubectl delete pod after --now

`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: node PROGRAM...")
		os.Exit(2)
	}
	os.Exit(node.Main(func() int {
		code, err := run(os.Args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "node: error:", err)
			return 1
		}
		return code
	}))
}

func run(programs []string) (int, error) {
	ctx := context.Background()
	fmt.Fprintln(os.Stderr, "node: starting a cluster, which takes a quarter of a minute")
	c, err := node.NewCluster(ctx)
	if err != nil {
		return 0, err
	}
	n, err := c.Node("node")
	if err != nil {
		return 0, err
	}
	if err := errors.Join(n.Join(ctx), n.JoinAdmin(), n.Put("/root/.bashrc", []byte("PS1='\\h# '\n"), 0o644)); err != nil {
		return 0, err
	}
	for _, name := range programs {
		data, err := os.ReadFile(name)
		if err == nil {
			err = n.Put(filepath.Join("/usr/bin", filepath.Base(name)), data, 0o755)
		}
		if err != nil {
			return 0, err
		}
	}
	if err := n.Boot(ctx); err != nil {
		return 0, err
	}
	if err := n.Ready(ctx); err != nil {
		return 0, err
	}
	if err := c.RunPod(ctx, node.Pod{Name: "before", Node: n}); err != nil {
		return 0, err
	}
	fmt.Fprint(os.Stderr, welcome)
	return shell(ctx, n)
}

// shell runs a shell on the node: with a terminal of the node's own where
// standard input is one, else reading its commands from there.
func shell(ctx context.Context, n *node.Node) (int, error) {
	cmd := n.Command(ctx, "bash", "-l")
	_, err := unix.IoctlGetTermios(unix.Stdin, unix.TCGETS)
	person := err == nil
	if person {
		cmd = n.Command(ctx, "systemd-run", "--quiet", "--collect", "--wait", "--pty", "--working-directory=/root",
			"--setenv=HOME=/root", "--setenv=TERM="+os.Getenv("TERM"), "bash", "-i")
		// To read from the terminal it must be in the group that has it.
		cmd.SysProcAttr, cmd.Cancel = nil, nil
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case !errors.As(err, &exit):
		return 0, err
	case person:
		return 0, nil // whether their last command failed, they have seen
	default:
		return exit.ExitCode(), nil
	}
}

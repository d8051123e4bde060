package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// The files of a lab's keys, in its directory.
const (
	sshKey   = "ssh"      // of whoever logs in
	sshHost  = "ssh-host" // of all nodes
	sshKnown = "ssh-known-hosts"
)

// makeSSHKeys makes the keys, once in a lab.
var makeSSHKeys = sync.OnceValue(func() error {
	dir := os.Getenv(inside)
	for _, name := range []string{sshKey, sshHost} {
		cmd := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", filepath.Join(dir, name))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	host, err := os.ReadFile(filepath.Join(dir, sshHost+".pub"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, sshKnown), append([]byte("* "), host...), 0o600)
})

// AllowSSH starts the SSH server of the running node, where root may then log in
// with what SSHOptions names. After a boot the server is off again, as on all
// nodes.
func (n *Node) AllowSSH(ctx context.Context) error {
	if err := n.allowSSH(ctx); err != nil {
		return fmt.Errorf("letting root in to node %s by ssh: %w", n.Name, err)
	}
	return nil
}

func (n *Node) allowSSH(ctx context.Context) error {
	if err := makeSSHKeys(); err != nil {
		return err
	}
	host, err := os.ReadFile(filepath.Join(n.cluster.dir, sshHost))
	if err != nil {
		return err
	}
	public, err := os.ReadFile(filepath.Join(n.cluster.dir, sshKey+".pub"))
	if err != nil {
		return err
	}
	if err := errors.Join(
		n.Put("/etc/ssh/ssh_host_ed25519_key", host, 0o600),
		n.Put("/root/.ssh/authorized_keys", public, 0o600)); err != nil {
		return err
	}
	_, err = n.Output(ctx, "systemctl", "start", "ssh")
	return err
}

// SSHOptions are the arguments with which ssh, scp and sftp get in to the nodes of
// this lab that AllowSSH has let them in to, at their addresses, as root.
func (c *Cluster) SSHOptions() []string {
	file := func(name string) string { return filepath.Join(c.dir, name) }
	return []string{"-F", "none", "-i", file(sshKey), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "User=root",
		"-o", "UserKnownHostsFile=" + file(sshKnown), "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes"}
}

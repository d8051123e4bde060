package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
)

// The kubelet waits for us at each of its starts, and its unit gives up after
// two seconds. That is our own part, and that of an API server that is down.
const (
	envWithin = 1500 * time.Millisecond
	envAskFor = time.Second
)

func (a *app) kubeletEnvCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubelet-env",
		Short: "run by the kubelet's unit before each start: write the arguments that put us first",
		Long: `Run by the kubelet's unit before each start: write the environment file that
puts us first, from what is true of the kubelet then. The file of the last
start is removed first. On any doubt, with the off switch set, or with a broken
configuration, there is no file and one warning; the kubelet starts without it,
as it would without us. The exit code is 0 in any case.

With --root, print what would be written, and write nothing.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), envWithin)
			defer cancel()
			if err := a.kubeletEnv(ctx); err != nil {
				text := "no " + path.Base(kubelet.EnvFile) + ": " + err.Error()
				if h := hintOf(err); h != "" {
					text += " (" + h + ")"
				}
				a.warn(text)
			}
			return nil
		},
	}
}

// onNode is an error if one of our addresses is not on the node: pods must not
// be sent where nobody is.
func onNode(ours []netip.Addr) error {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("looking for our addresses: %w", err)
	}
	for _, a := range ours {
		if !slices.ContainsFunc(all, func(have net.Addr) bool {
			p, err := netip.ParsePrefix(have.String())
			return err == nil && p.Addr().Unmap() == a.Unmap()
		}) {
			return withHint(fmt.Errorf("%s is not on this node", a), "is guard running? nodelocaldns status says more")
		}
	}
	return nil
}

func (a *app) kubeletEnv(ctx context.Context) error {
	run, file := fsys.Dir(a.runDir), path.Base(kubelet.EnvFile)
	if a.rootDir == "" {
		if err := run.Remove(file); err != nil {
			return err
		}
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	text, target, err := a.envFile(ctx, cfg)
	switch {
	case err != nil:
		return err
	case text == nil:
		return errors.New("no need of it: its files put us first already")
	case a.rootDir != "":
		a.print("%s", text)
		return nil
	}
	// The arguments of a kubelet may hold what only its own user should read.
	if err := run.WriteAtomic(file, text, 0o600); err != nil {
		return errors.Join(err, run.Remove(file))
	}
	a.print("wrote %s: the kubelet has pods ask %s\n", run.Path(file), target)
	return nil
}

// envFile is the content of the file, nil if there is no need of it, and whom
// pods will ask.
func (a *app) envFile(ctx context.Context, cfg config.Config) (text []byte, target string, err error) {
	d, err := a.durableDeps(a.voice())
	if err != nil {
		return nil, "", err
	}
	switch off, err := host.NewDurable(host.DurableConfig{}, d).Off(); {
	case err != nil:
		return nil, "", err
	case off:
		return nil, "", withHint(errors.New("off: a rollback was asked for"), "nodelocaldns apply clears it")
	}
	name, err := a.configForUnit()
	if err != nil {
		return nil, "", err
	}
	want := cfg.Durable(name).Kubelet
	if want == nil {
		return nil, "", errors.New("kubelet.manage is false, or no pod can ask listen.addresses")
	}
	if a.rootDir == "" {
		if err := onNode(want.Addresses); err != nil {
			return nil, "", err
		}
		if err := host.NewDurable(host.DurableConfig{}, d).Refused(); err != nil {
			return nil, "", err
		}
	}
	n := d.Node
	n.Running = nil // what is about to start is not what ran
	if n.Service != nil {
		n.Service = askSometimes(n.Service, envAskFor, askAgain, time.Now)
	}
	f, text, err := kubelet.Env(ctx, n, *want)
	if err != nil {
		return nil, "", err
	}
	return text, named(f.Target), nil
}

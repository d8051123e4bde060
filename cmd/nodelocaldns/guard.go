package main

import (
	"context"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/fsys"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/standby"
	"nodelocaldns/host/systemd"
	"nodelocaldns/units"
)

func (a *app) guardCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "apply the runtime plan and repair what others change, in the foreground",
		Long: `Apply the runtime plan and repair what others change, in the foreground. The
files that outlast a reboot are not its business: see apply. It takes nothing
away when it ends: pods keep the address as long as they live.`,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.running(cmd); err != nil {
				return err
			}
			cfg, err := a.guardable()
			if err != nil {
				return err
			}
			if err := privileged(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			p, err := a.plans(cfg, a.logger(), false)
			if err != nil {
				return err
			}
			standBy, err := a.standBy(p)
			if err != nil {
				return err
			}
			g := p.runtime.Guard(host.Duties{Gate: p.gate(), Facts: findFacts(cfg, p.node), Changed: kubeletChanged(cfg), Standby: standBy})
			if once {
				return g.Once(ctx)
			}
			go func() {
				select {
				case <-ctx.Done():
				case <-g.Ready():
					notify("READY=1", "STATUS="+g.String())
				}
			}()
			err = g.Run(ctx)
			if ctx.Err() != nil { // else it has ended a rollback, and its own unit with it
				notify("STOPPING=1")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "one pass, then exit; 1 if something could not be done")
	return cmd
}

// kubeletChanged tells when the kubelet has been started anew, and with it maybe
// another kube-dns is named to pods; nil where the configuration names it.
func kubeletChanged(cfg config.Config) func(ctx context.Context) <-chan struct{} {
	if !cfg.Cluster.Auto {
		return nil
	}
	names := kubelet.Names()
	if cfg.Kubelet.Unit != "" {
		names = []string{cfg.Kubelet.Unit}
	}
	return func(ctx context.Context) <-chan struct{} {
		bus := new(systemd.Bus)
		context.AfterFunc(ctx, bus.Close)
		return bus.Watch(ctx, names...)
	}
}

// standBy keeps an answer to pods' queries, where our units run; nil elsewhere.
// It is over when a rollback is: then nobody asks any more.
func (a *app) standBy(p *plans) (func(ctx context.Context), error) {
	d, err := a.durableDeps(a.logger())
	if err != nil || !a.hasUnits(d) {
		return nil, err
	}
	gate := p.gate()
	return func(ctx context.Context) {
		bus := new(systemd.Bus)
		defer bus.Close()
		standby.Run(ctx, standby.Deps{
			Systemd: standby.Units{Bus: bus, Root: units.Root},
			Dir:     fsys.Dir(d.RunDir),
			Wanted: func() (bool, error) {
				phase, err := gate.Phase()
				return phase != host.Finished, err
			},
			Log: a.logger(),
			Now: time.Now,
		})
	}, nil
}

// guardable is the configuration. One that is broken must not keep a rollback
// from its end: that goes by the journals.
func (a *app) guardable() (config.Config, error) {
	cfg, err := a.config()
	if err == nil {
		return cfg, nil
	}
	d, derr := a.durableDeps(a.logger())
	if derr != nil {
		return cfg, err
	}
	if off, oerr := host.NewDurable(host.DurableConfig{}, d).Off(); oerr != nil || !off {
		return cfg, err
	}
	a.logger().Warn("a rollback was asked for: going by the journals alone", cause(err)...)
	return config.Default(), nil
}

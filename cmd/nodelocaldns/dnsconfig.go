package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/cmd/nodelocaldns/internal/dnsconfig"
)

func (a *app) dnsconfigCommand() *cobra.Command {
	var asJSON, policy bool
	var namespace, domain, version string
	var kubeDNS, search []string
	// The kubelet's ndots. A resolver of ours replies before a second is over,
	// and kube-dns may take as long for a name outside of the cluster.
	options := dnsconfig.Options{Ndots: 5, Timeout: 2, Attempts: 2}
	cmd := &cobra.Command{
		Use:   "dnsconfig",
		Short: "print what a pod's specification says to ask us, or a policy that writes it into pods",
		Long: `Print dnsPolicy and dnsConfig of a pod that asks our address first and kube-dns
second, whatever the kubelet of its node says: for its specification, or for the
template of a Deployment, a DaemonSet, a Job.

With --policy print a MutatingAdmissionPolicy and its binding, which write the same
into new pods of each namespace that is labelled
` + dnsconfig.Label + "=" + dnsconfig.Enabled + `, with the searches of their own namespace. They
leave alone the pods with the label ` + dnsconfig.Label + "=" + dnsconfig.Disabled + `, those in
the node's network or with a dnsPolicy other than ClusterFirst, and those whose
dnsConfig names servers; other searches and options of a pod's own are kept.

Every node that such a pod may come to must have our address: where nobody answers
there, each lookup waits for --timeout before it goes to kube-dns.`,
		Example: `  kubectl -n shop patch deployment web --patch "{spec: {template: {spec: $(nodelocaldns dnsconfig --namespace shop --json)}}}"
  nodelocaldns dnsconfig --policy | kubectl apply -f -
  kubectl label namespace shop ` + dnsconfig.Label + "=" + dnsconfig.Enabled,
		Args: args(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			switch flags := cmd.Flags(); {
			case policy && flags.Changed("namespace"):
				return usagef("leave --namespace out: the policy is for those with the label "+dnsconfig.Label+"="+dnsconfig.Enabled, "--policy writes the searches of each pod's own namespace")
			case !policy && flags.Changed("api-version"):
				return usagef("give --policy too, or leave --api-version out", "--api-version is that of --policy")
			case !policy && namespace == "":
				return usagef("give the namespace of the pod, or leave --namespace out for default", "--namespace is empty")
			case policy:
				namespace = ""
			}
			cfg, err := a.config()
			if err != nil {
				return err
			}
			c := dnsconfig.Config{Ours: cfg.PodsCanAsk(), Domain: cfg.Cluster.Domain, Options: options}
			if len(c.Ours) == 0 {
				return withHint(errors.New("listen has no address with port 53 that pods reach"), "pods ask port 53 alone, and their loopback is their own")
			}
			if domain != "" {
				c.Domain = domainOf(domain)
			}
			for _, s := range search {
				c.Search = append(c.Search, domainOf(s))
			}
			if c.KubeDNS, err = a.secondServers(ctx, cfg, kubeDNS); err != nil {
				return err
			}
			if err := c.Validate(namespace); err != nil {
				return dnsconfigProblem(err)
			}
			if policy {
				return a.objects(asJSON, c.Policy(version))
			}
			if asJSON {
				return a.json(c.Spec(namespace), false)
			}
			return a.yaml(c.Spec(namespace))
		},
	}
	f := cmd.Flags()
	f.StringVar(&namespace, "namespace", "default", "`name` of the pod's namespace, for its searches")
	f.StringSliceVar(&kubeDNS, "kube-dns", nil, "`address` of kube-dns, asked where we do not answer (default cluster.dns, else whom the node knows)")
	f.StringVar(&domain, "cluster-domain", "", "`name` of the cluster's domain (default cluster.domain)")
	f.StringSliceVar(&search, "search", nil, "a `name` to try after those of the cluster, such as the node's own; may be given again")
	f.IntVar(&options.Ndots, "ndots", options.Ndots, "a `number` of dots: names with fewer are tried with the searches first")
	f.IntVar(&options.Timeout, "timeout", options.Timeout, "`seconds` that a server is waited for")
	f.IntVar(&options.Attempts, "attempts", options.Attempts, "`number` of times that all servers are asked")
	f.BoolVar(&options.SingleRequestReopen, "single-request-reopen", false, "glibc asks for A and AAAA from two ports")
	f.BoolVar(&options.UseVC, "use-vc", false, "glibc asks over TCP")
	f.BoolVar(&policy, "policy", false, "print the policy and its binding")
	versions := dnsconfig.Versions()
	version = versions[0]
	f.Var(&enum[string]{&version, versions, func(s string) string { return s }}, "api-version", "that of the policy: v1 (Kubernetes 1.36 and newer), v1beta1 (1.34) or v1alpha1 (1.32), which need the feature gate MutatingAdmissionPolicy")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("api-version", cobra.FixedCompletions(versions, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"namespace", "kube-dns", "cluster-domain", "search", "ndots", "timeout", "attempts"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return cmd
}

// domainOf is s as the configuration has domains; what is none stays as it is,
// for Validate to say so.
func domainOf(s string) string {
	if d, err := config.ParseDomain(s); err == nil {
		return d
	}
	return s
}

// secondServers are whom pods ask after us: those of the flag, else those that
// the configuration, guard or the node knows and that pods can ask.
func (a *app) secondServers(ctx context.Context, cfg config.Config, flag []string) ([]netip.Addr, error) {
	const hint = "give the ClusterIP of kube-dns: kubectl -n kube-system get service kube-dns"
	var servers []netip.Addr
	for _, text := range flag {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, usagef(hint, "--kube-dns is %q, which is no address", text)
		}
		servers = append(servers, addr)
	}
	if len(servers) > 0 {
		return servers, nil
	}
	for _, s := range a.kubeDNS(ctx, cfg) {
		if s.Port() == 53 && s.Addr().Zone() == "" && !s.Addr().IsLoopback() && !slices.Contains(servers, s.Addr()) {
			servers = append(servers, s.Addr())
		}
	}
	switch room := dnsconfig.MaxServers - len(cfg.PodsCanAsk()); {
	case len(servers) == 0:
		return nil, usagef(strings.Replace(hint, "give", "--kube-dns takes", 1), "kube-dns is not known here")
	case room > 0 && len(servers) > room:
		servers = servers[:room]
	}
	return servers, nil
}

// dnsconfigProblem is a problem as that of a flag: what it is about has one of
// its name.
func dnsconfigProblem(err error) error {
	var p *dnsconfig.Problem
	if !errors.As(err, &p) {
		return err
	}
	return usagef("nodelocaldns dnsconfig --help lists its flags", "--%s", p)
}

// objects prints objects of the API, as documents in YAML or a list in JSON.
func (a *app) objects(asJSON bool, all []dnsconfig.Object) error {
	if asJSON {
		return a.json(struct {
			APIVersion string             `json:"apiVersion"`
			Kind       string             `json:"kind"`
			Items      []dnsconfig.Object `json:"items"`
		}{"v1", "List", all}, false)
	}
	documents := make([]any, len(all))
	for i, o := range all {
		documents[i] = o
	}
	return a.yaml(documents...)
}

// yaml prints documents as a result.
func (t *term) yaml(documents ...any) error {
	enc := yaml.NewEncoder(t.stdout)
	enc.SetIndent(2)
	for _, d := range documents {
		if err := enc.Encode(d); err != nil {
			return fmt.Errorf("printing YAML: %w", err)
		}
	}
	return enc.Close()
}

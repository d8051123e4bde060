package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/cloudinit"
	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/dnscache"
)

func (a *app) cloudInitCommand() *cobra.Command {
	var pack, repository string
	var urls, sums []string
	cmd := &cobra.Command{
		Use:   "cloud-init",
		Short: "print user-data with which the pods of a new node ask us from its first boot",
		Long: `Print user-data of cloud-init with which the pods of a new node ask us from its
first boot, before its kubelet starts for the first time. It writes the
configuration that --config names, or this node's where there is one, installs
what is not in the image, and then does what apply --root does in an image:
units and the kubelet's file, recorded, so that rollback takes them back. It
needs not know the cluster, and restarts nothing.

The programs are in the image, unless a flag says where else they come from.
A kubelet that the program does not understand keeps its files and starts as it
would without us; what was wrong is in the log of cloud-init.`,
		Example: `  nodelocaldns --config fleet.yaml cloud-init > user-data
  nodelocaldns cloud-init --package nodelocaldns=1.2.3 --repository example.sources
  nodelocaldns cloud-init --url https://example.com/nodelocaldns_1.2.3_amd64.deb --sha256 "$sum"`,
		Args: args(0),
		RunE: func(*cobra.Command, []string) error {
			from, err := source(pack, repository, urls, sums)
			if err != nil {
				return err
			}
			file, err := a.firstConfig()
			if err != nil {
				return err
			}
			text, err := cloudinit.UserData(from, file)
			switch {
			case errors.Is(err, cloudinit.ErrTooLarge):
				return withHint(err, "have the configuration in the image, or in the package")
			case err != nil:
				return misused(err)
			}
			a.print("%s", text)
			return nil
		},
	}
	cmd.Flags().StringVar(&pack, "package", "", "install this package, `name[=version]`, with apt-get, dnf or yum")
	cmd.Flags().StringVar(&repository, "repository", "", "where --package is found: a `file` for /etc/apt/sources.list.d (.sources, .list) or /etc/yum.repos.d (.repo); else the image's repositories")
	cmd.Flags().StringArrayVar(&urls, "url", nil, "fetch the package from this `url`, ending in .deb or .rpm, and install it; once for each architecture")
	cmd.Flags().StringArrayVar(&sums, "sha256", nil, "the `sum` of what --url has, as sha256sum prints it; as often as --url, in the same order")
	_ = cmd.MarkFlagFilename("repository", "sources", "list", "repo")
	return cmd
}

// misused is an error about the flags.
func misused(err error) error {
	return usagef("nodelocaldns cloud-init --help says what goes together", "%s", err)
}

// source is where the programs come from, as the flags say.
func source(pack, repository string, urls, sums []string) (cloudinit.Source, error) {
	var s cloudinit.Source
	if pack != "" {
		var err error
		if s.Package, err = cloudinit.ParsePackage(pack); err != nil {
			return s, misused(err)
		}
	}
	if repository != "" {
		text, err := os.ReadFile(repository)
		if err != nil {
			return s, fmt.Errorf("reading the repository: %w", err)
		}
		if s.Repository, err = cloudinit.RepositoryFile(repository, text); err != nil {
			return s, misused(err)
		}
	}
	if len(urls) != len(sums) {
		return s, misused(fmt.Errorf("--url is there %d times, and --sha256 %d times", len(urls), len(sums)))
	}
	for i, u := range urls {
		d, err := cloudinit.ParseDownload(u, sums[i])
		if err != nil {
			return s, misused(err)
		}
		s.Downloads = append(s.Downloads, d)
	}
	return s, nil
}

// firstConfig is the configuration for a new node, as it is written here; nil where
// there is none. It must be one to start with.
func (a *app) firstConfig() (*cloudinit.File, error) {
	name := a.under(a.configPath)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = a.config() // which says where that is an error
		return nil, err
	}
	var c config.Config
	if err == nil {
		c, err = parseConfig(bytes.NewReader(text), name)
	} else {
		err = fmt.Errorf("reading the configuration: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if err := c.Resolver(nil).Validate(); errors.Is(err, dnscache.ErrNoClusterDNS) {
		return nil, withHint(fmt.Errorf("%s: upstreams is kube-dns and cluster.dns is empty: the resolver would not start", name), hintDNS)
	}
	for _, other := range []string{c.TLS.CAFile, c.Kubelet.Kubeconfig} {
		if other != "" {
			a.warn(fmt.Sprintf("%s is not in the user-data: the configuration names it, and the image is to have it", other))
		}
	}
	return &cloudinit.File{Name: defaultConfig, Text: text}, nil
}

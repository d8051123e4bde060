package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/dnscache"
)

// hintDNS is what to do where kube-dns answers external names and nobody said
// where it is.
const hintDNS = "set cluster.dns to the ClusterIP of kube-dns (kubectl -n kube-system get service kube-dns), or upstreams: node"

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config command",
		Short: "the configuration: its reference, a strict check, what is in effect",
		RunE:  group,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "default",
			Short: "print every key with its default and a comment",
			Args:  args(0),
			RunE: func(*cobra.Command, []string) error {
				a.print("%s", config.Reference)
				return nil
			},
		},
		&cobra.Command{
			Use:   "check [file|-]",
			Short: "check a file, or standard input, and say what is wrong on which line",
			Args:  args(0, "file"),
			RunE: func(_ *cobra.Command, files []string) error {
				c, err := a.checked(files)
				if err != nil {
					return err
				}
				if errors.Is(c.Resolver(nil).Validate(), dnscache.ErrNoClusterDNS) {
					a.warn("upstreams is kube-dns and cluster.dns is empty: serve will not start")
					a.hint(hintDNS)
				}
				return nil
			},
		},
		&cobra.Command{
			Use:   "show",
			Short: "print what is in effect, every key, as a file that check accepts",
			Args:  args(0),
			RunE: func(*cobra.Command, []string) error {
				c, err := a.config()
				if err != nil {
					return err
				}
				a.print("%s", c.YAML())
				return nil
			},
		},
	)
	return cmd
}

func (a *app) checked(files []string) (config.Config, error) {
	switch {
	case len(files) == 0:
		return a.config()
	case files[0] == "-":
		return parseConfig(a.stdin, "standard input")
	}
	return readConfig(files[0])
}

// config reads the configuration the global flags name. Without --config a
// missing file is all defaults, but one that is a link to nowhere is not missing:
// in the resolver's root it may be that this process alone does not see it.
func (a *app) config() (config.Config, error) {
	name := a.under(a.configPath)
	c, err := readConfig(name)
	if !errors.Is(err, fs.ErrNotExist) || a.configGiven {
		return c, err
	}
	for _, part := range []string{name, filepath.Dir(name)} {
		at, noLink := os.Readlink(part)
		if _, gone := os.Stat(part); noLink == nil && gone != nil {
			return c, withHint(err, "%s is a link to %s, and the resolver sees /etc alone: have the file itself there", part, at)
		}
	}
	return config.Default(), nil
}

func readConfig(path string) (config.Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = withHint(err, "nodelocaldns config default prints a file to start from")
	}
	if err != nil {
		return config.Config{}, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	return parseConfig(f, path)
}

// parseConfig reads r. Each problem is an error of its own, named after file,
// and all share one hint.
func parseConfig(r io.Reader, file string) (config.Config, error) {
	c, err := config.Parse(r)
	var ps config.Problems
	if !errors.As(err, &ps) {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			err = pe.Err // it names the file again
		}
		if err != nil {
			err = fmt.Errorf("reading %s: %w", file, err)
		}
		return c, err
	}
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = withHint(fmt.Errorf("%s:%s", file, p), "nodelocaldns config default prints every key with its default")
	}
	return c, errors.Join(errs...)
}

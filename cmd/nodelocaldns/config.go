package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/cmd/nodelocaldns/internal/migrate"
	"nodelocaldns/dnscache"
	"nodelocaldns/host/fsys"
)

// hintDNS is what to do where kube-dns answers external names and nobody said
// where it is.
const hintDNS = "set cluster.dns to the ClusterIP of kube-dns (kubectl -n kube-system get service kube-dns), or upstreams: node"

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config command",
		Short: "the configuration: its reference, a strict check, what is in effect, one from the DaemonSet's",
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
		a.importCommand(),
	)
	return cmd
}

func (a *app) importCommand() *cobra.Command {
	var output string
	var force bool
	cmd := &cobra.Command{
		Use:   "import [file|-]...",
		Short: "print a configuration that is made of the node-local-dns DaemonSet's, and what became of each of its lines",
		Long: `Print a configuration that is made of what the node-local-dns DaemonSet runs on:
its ConfigMap, in YAML or JSON, or its Corefile, and the ConfigMap of kube-dns
with its stubDomains and upstreamNameservers. Without a file it is read from
standard input.

Standard error says of each directive whether it was taken over, and as which key;
or is not needed; or has no counterpart, and what to do instead: then the exit code
is 3. What those files say nothing about is as by default.`,
		Example: `  kubectl -n kube-system get configmap node-local-dns kube-dns -o yaml --ignore-not-found |
    nodelocaldns config import --output config.yaml -
  nodelocaldns config check config.yaml`,
		RunE: func(_ *cobra.Command, files []string) error {
			if output != "" && !force {
				if _, err := os.Lstat(output); err == nil {
					return withHint(fmt.Errorf("writing %s: it exists", output), "--force writes over it")
				}
			}
			sources, err := a.sources(files)
			if err != nil {
				return err
			}
			c, report, err := migrate.Import(sources)
			if err != nil {
				return err
			}
			for _, i := range report {
				if i.Verdict == migrate.Lost {
					a.warn(i.String())
				} else {
					a.note(i.String())
				}
			}
			lost := report.Count(migrate.Lost)
			a.note(fmt.Sprintf("%d taken over, %d not needed, %d without a counterpart", report.Count(migrate.Taken), report.Count(migrate.Unneeded), lost))
			if output == "" {
				a.print("%s", c.YAML())
			} else if err := fsys.Dir(filepath.Dir(output)).WriteAtomic(filepath.Base(output), c.YAML(), 0o644); err != nil {
				return err
			}
			if lost > 0 {
				return differ(exitDiffer)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "write to this `file`, which must not exist, not to standard output")
	cmd.Flags().BoolVar(&force, "force", false, "write to the file of --output even if it exists")
	_ = cmd.MarkFlagFilename("output", "yaml", "yml")
	return cmd
}

// sources reads files, or standard input where there is none.
func (a *app) sources(files []string) ([]migrate.Source, error) {
	if len(files) == 0 {
		files = []string{"-"}
	}
	var sources []migrate.Source
	for i, name := range files {
		if slices.Contains(files[:i], name) {
			return nil, usagef("name each file once", "%s is there twice", name)
		}
		var text []byte
		var err error
		if name == "-" {
			name = "standard input"
			text, err = readLimited(a.stdin)
		} else {
			var f *os.File
			if f, err = os.Open(name); err == nil {
				text, err = readLimited(f)
				f.Close()
			}
		}
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			err = pe.Err // it names the file again
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		sources = append(sources, migrate.Source{Name: name, Text: string(text)})
	}
	return sources, nil
}

// readLimited reads r, but no more than the ConfigMaps of a few namespaces can be:
// each is 1 MiB at most.
func readLimited(r io.Reader) ([]byte, error) {
	const most = 16 << 20
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && len(text) > most {
		err = errors.New("it is longer than 16 MiB")
	}
	return text, err
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

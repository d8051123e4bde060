// Command nodelocaldns is a caching DNS resolver on a Kubernetes node, and
// what changes the node for it and changes it back.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func init() {
	cobra.EnableCommandSorting = false // --help follows the order of commands
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program: everything it needs from the process comes in here or
// from deps.go. It returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{term: newTerm(stdout, stderr, os.Getenv("TERM")), stdin: stdin, level: slog.LevelInfo, format: "text"}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	return a.exit(usageOf(root, root.ExecuteContext(context.Background())))
}

// Where things are on a node, unless a flag says otherwise.
const (
	defaultConfig   = "/etc/nodelocaldns/config.yaml"
	defaultRunDir   = "/run/nodelocaldns"
	defaultStateDir = "/var/lib/nodelocaldns"
)

// app is one invocation: the global flags and where it speaks.
type app struct {
	term
	stdin io.Reader

	configPath  string
	configGiven bool
	rootDir     string
	runDir      string
	stateDir    string
	level       slog.Level
	format      string

	// disturb is what this command may do to pods for a restart of the kubelet;
	// nil where it restarts none.
	disturb *disturbance
}

// commands is every command, in the order of --help.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.serveCommand(),
		a.reloadCommand(),
		a.guardCommand(),
		a.planCommand(),
		a.applyCommand(),
		a.rollbackCommand(),
		a.statusCommand(),
		a.whyCommand(),
		a.canaryCommand(),
		a.benchCommand(),
		a.doctorCommand(),
		a.kubeletEnvCommand(),
		a.cloudInitCommand(),
		a.configCommand(),
		a.dnsconfigCommand(),
		a.versionCommand(),
		a.completionCommand(),
		a.manCommand(),
		a.helpCommand(),
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "nodelocaldns",
		Short: "a caching DNS resolver on a Kubernetes node, and what changes the node for it and back",
		Long: `A caching DNS resolver on a Kubernetes node, and what changes the node for it
and changes it back. plan shows what would change, apply does it, rollback
undoes it; guard keeps it so, and serve answers queries.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		// cobra's guess goes into the text of its error; ours is the hint.
		DisableSuggestions:    true,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef(cmd.CommandPath()+" --help lists the commands", "no command given")
		},
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.configGiven = cmd.Flags().Changed("config")
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.configPath, "config", defaultConfig, "configuration `file`; if it is missing and this flag is not given, all defaults")
	f.StringVar(&a.rootDir, "root", "", "take every path relative to `dir` and leave the running system alone")
	f.Var(&enum[slog.Level]{&a.level, []string{"debug", "info", "warn", "error"}, parseLevel}, "log-level", "debug, info, warn or error")
	f.Var(&enum[string]{&a.format, []string{"text", "json"}, func(s string) string { return s }}, "log-format", "text or json")
	f.StringVar(&a.runDir, "run-dir", defaultRunDir, "`dir` of the control socket, the lock, the runtime journal and kubelet.env; for tests and several instances on one machine")
	f.StringVar(&a.stateDir, "state-dir", defaultStateDir, "`dir` of the off switch and the journal of what outlasts a reboot; for tests and several instances on one machine")
	for name, words := range map[string][]string{"log-level": {"debug", "info", "warn", "error"}, "log-format": {"text", "json"}} {
		_ = root.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	_ = root.MarkPersistentFlagFilename("config", "yaml", "yml")
	_ = root.MarkPersistentFlagDirname("root")
	_ = root.MarkPersistentFlagDirname("run-dir")
	_ = root.MarkPersistentFlagDirname("state-dir")

	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef(cmd.CommandPath()+" --help lists its flags", "%s", firstLine(err.Error()))
	})
	root.SetUsageTemplate(usage)
	root.SetHelpTemplate("{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}\n\n{{end}}{{.UsageString}}")
	root.AddCommand(a.commands()...)
	root.SetHelpCommand(root.Commands()[slices.IndexFunc(root.Commands(), func(c *cobra.Command) bool { return c.Name() == "help" })])
	return root
}

const usage = `usage: {{if .HasAvailableSubCommands}}{{.CommandPath}} [flags] command{{else}}{{.UseLine}}{{end}}
{{- if .HasAvailableSubCommands}}

commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}
{{- if .HasExample}}

examples:
{{.Example}}{{end}}
{{- if .HasAvailableLocalFlags}}

flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
{{- if .HasAvailableInheritedFlags}}

global flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}

exit codes: 0 as asked, 1 error, 2 usage, 3 plan or status found a difference, config import something without a counterpart
`

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

var unknownCommand = regexp.MustCompile(`^unknown command "(.*)" for "`)

// usageOf turns what cobra itself says about the command line into a usage
// error; errors of ours pass.
func usageOf(root *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	if m := unknownCommand.FindStringSubmatch(err.Error()); m != nil {
		return noCommand(root, m[1])
	}
	return err
}

// noCommand says that parent has no command of that name, and which one is
// nearest.
func noCommand(parent *cobra.Command, name string) error {
	parent.SuggestionsMinimumDistance = 2
	hint := parent.CommandPath() + " --help lists the commands"
	if near := parent.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %s %s?", parent.CommandPath(), near[0])
	}
	return usagef(hint, "unknown command %q", name)
}

// group is the RunE of a command that only has commands of its own.
func group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return noCommand(cmd, args[0])
	}
	return usagef(cmd.CommandPath()+" --help lists the commands", "no command given for %s", cmd.CommandPath())
}

// args checks the number of arguments. The names are those of the use line.
func args(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		help := cmd.CommandPath() + " --help shows what it takes"
		switch {
		case len(got) > len(names):
			return usagef(help, "unknown argument %q", got[len(names)])
		case len(got) < least:
			return usagef(help, "missing argument %s", names[len(got)])
		}
		return nil
	}
}

// enum is a flag that takes one of some words.
type enum[T any] struct {
	dst   *T
	words []string
	parse func(string) T
}

func (e *enum[T]) String() string {
	if e.dst == nil {
		return ""
	}
	return strings.ToLower(fmt.Sprint(*e.dst))
}

func (e *enum[T]) Type() string { return "word" }

func (e *enum[T]) Set(s string) error {
	if !slices.Contains(e.words, s) {
		return fmt.Errorf("allowed: %s", strings.Join(e.words, ", "))
	}
	*e.dst = e.parse(s)
	return nil
}

func parseLevel(s string) slog.Level {
	var l slog.Level
	_ = l.UnmarshalText([]byte(s)) // enum lets only its words through
	return l
}

func (a *app) logger() *slog.Logger { return a.term.logger(a.level, a.format) }

// under is path below --root.
func (a *app) under(path string) string {
	if a.rootDir == "" {
		return path
	}
	return filepath.Join(a.rootDir, path)
}

// running refuses --root for a command whose whole work is on the running
// system.
func (a *app) running(cmd *cobra.Command) error {
	if a.rootDir == "" {
		return nil
	}
	return usagef("run it without --root; config, dnsconfig, plan, apply, rollback, status and kubelet-env take --root", "%s works on the running system, --root leaves that alone", cmd.CommandPath())
}

func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "help on a command",
		RunE: func(cmd *cobra.Command, names []string) error {
			c := cmd.Root()
			for _, name := range names {
				i := slices.IndexFunc(c.Commands(), func(c *cobra.Command) bool { return c.Name() == name })
				if i < 0 {
					return noCommand(c, name)
				}
				c = c.Commands()[i]
			}
			return c.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, names []string, _ string) ([]string, cobra.ShellCompDirective) {
			var words []string
			if len(names) == 0 {
				for _, c := range cmd.Root().Commands() {
					words = append(words, c.Name()+"\t"+c.Short)
				}
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "print the completion script of a shell",
		Example: `  nodelocaldns completion bash > /usr/share/bash-completion/completions/nodelocaldns
  nodelocaldns completion zsh > /usr/share/zsh/vendor-completions/_nodelocaldns
  nodelocaldns completion fish > /usr/share/fish/vendor_completions.d/nodelocaldns.fish`,
		Args:      args(1, "bash|zsh|fish"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, names []string) error {
			switch root := cmd.Root(); names[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			}
			return usagef("allowed: "+strings.Join(shells, ", "), "unknown shell %q", names[0])
		},
	}
}

package kubelet

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// kubeletFlags reads args with the library the kubelet uses, set up as it does.
// Flags that are not among others are unknown, unless there are none.
func kubeletFlags(args []string, others ...string) (list []string, set bool, config string, err error) {
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	fs.SetOutput(discard{})
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	fs.StringSliceVar(&list, clusterDNS, nil, "")
	fs.StringVar(&config, "config", "", "")
	for _, name := range others {
		fs.String(name, "", "")
	}
	fs.ParseErrorsAllowlist.UnknownFlags = len(others) == 0
	err = fs.Parse(args)
	if err == nil && fs.NArg() > 0 {
		err = pflag.ErrHelp // the kubelet exits
	}
	return list, fs.Changed(clusterDNS), config, err
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func TestClusterDNSIsReadAsTheKubeletReadsIt(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want []string
		set  bool
		err  string
	}{
		{name: "none", args: []string{"--v=2"}},
		{name: "one", args: []string{"--cluster-dns=A"}, want: []string{"A"}, set: true},
		{name: "repeated", args: []string{"--cluster-dns=A", "--cluster-dns=B"}, want: []string{"A", "B"}, set: true},
		{name: "comma", args: []string{"--cluster-dns=A,B"}, want: []string{"A", "B"}, set: true},
		{name: "two words", args: []string{"--cluster-dns", "A", "--v=2"}, want: []string{"A"}, set: true},
		{name: "underscore", args: []string{"--cluster_dns=A"}, want: []string{"A"}, set: true},
		{name: "empty", args: []string{"--cluster-dns="}, set: true},
		{name: "empty, then one", args: []string{"--cluster-dns=", "--cluster-dns=A"}, want: []string{"A"}, set: true},
		{name: "blank behind the comma", args: []string{"--cluster-dns=A, B"}, want: []string{"A", " B"}, set: true},
		{name: "double quotes", args: []string{`--cluster-dns="A"`}, want: []string{"A"}, set: true},
		{name: "single quotes", args: []string{`--cluster-dns='A'`}, want: []string{"'A'"}, set: true},
		{name: "comma at the end", args: []string{"--cluster-dns=A,"}, want: []string{"A", ""}, set: true},
		{name: "a comma in quotes", args: []string{`--cluster-dns="A,B",C`}, want: []string{"A,B", "C"}, set: true},
		{name: "a quote that is not closed", args: []string{`--cluster-dns="A`}, err: `"A`},
		{name: "one dash", args: []string{"-cluster-dns=A"}, err: "one dash"},
		{name: "after the end of flags", args: []string{"--", "--cluster-dns=A"}, err: "after --"},
		{name: "no value", args: []string{"--cluster-dns"}, err: "without a value"},
		{name: "a word that is no flag", args: []string{"--v=2", "run"}, err: "no flag"},
		{name: "the name in a value", args: []string{"--node-labels=--cluster-dns=A"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, err := flags(tt.args)
			var got []string
			var set bool
			if err == nil {
				got, set, err = serversOf(all)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("err = %v, want one with %q", err, tt.err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" && (len(tt.want) > 0 || len(got) > 0) || set != tt.set {
				t.Errorf("got %q, set %t; want %q, set %t", got, set, tt.want, tt.set)
			}
			theirs, theySet, _, theirErr := kubeletFlags(tt.args, "v", "node-labels")
			if (theirErr != nil) != (tt.err != "") {
				t.Fatalf("pflag says %v", theirErr)
			}
			if theirErr == nil && (!slices.Equal(theirs, tt.want) || theySet != tt.set) {
				t.Errorf("pflag reads %q, set %t", theirs, theySet)
			}
		})
	}
}

// FuzzFlags holds our reading of --cluster-dns and --config to that of the
// library the kubelet uses. Arguments are separated by newlines.
func FuzzFlags(f *testing.F) {
	for _, seed := range []string{
		"--cluster-dns=10.96.0.10\n--config=/x",
		"--cluster_dns\n10.96.0.10\n--v\n2",
		"--cluster-dns=\"a,b\",c\n--cluster-dns=",
		"--cluster-dns\n--config=/x",
		"--\n--cluster-dns=a",
		"--x\n--cluster-dns=a\n--config\n/y",
		"--cluster-dns=a\rb",
		"--cluster-dns=\n\n--config=a",
		"--x\n--cluster-dns=a\n--config\n--",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		for _, a := range args {
			// The library reads names it does not know and short flags by rules
			// of its own; the kubelet knows all of its flags.
			if a == "-" || strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") || strings.HasPrefix(a, "---") ||
				strings.HasPrefix(a, "--=") || strings.Contains(a, "help") || strings.ContainsAny(a, " \t") && strings.HasPrefix(a, "--") && !strings.Contains(a, "=") {
				t.Skip("read by rules of the library's own")
			}
		}
		theirs, theySet, config, theirErr := kubeletFlags(args)
		all, err := flags(args)
		var ours []string
		var set bool
		if err == nil {
			ours, set, err = serversOf(all)
		}
		if theirErr != nil && err == nil {
			// A value that another flag lacks is not ours to find.
			for _, fl := range all {
				if fl.bare && fl.name == "config" {
					t.Skip("a value that another flag lacks")
				}
			}
		}
		if (err != nil) != (theirErr != nil) {
			t.Fatalf("%q: ours %v, theirs %v", args, err, theirErr)
		}
		if err != nil {
			return
		}
		if !slices.Equal(ours, theirs) || set != theySet {
			t.Errorf("%q: ours %q %t, theirs %q %t", args, ours, set, theirs, theySet)
		}
		if got, _ := lastValue(all, "config"); got != config {
			t.Errorf("%q: --config is %q to us, %q to them", args, got, config)
		}
	})
}

func TestServersAreKeptOrDroppedAsTheKubeletDoes(t *testing.T) {
	got := parseServers([]string{"10.96.0.10", " 10.96.0.11", "010.096.0.012", "", "'10.0.0.1'", "fd00::a", "fe80::1%eth0", "::ffff:10.0.0.2", "x"})
	if diff := cmp.Diff("10.96.0.10,10.96.0.12,fd00::a,10.0.0.2", join(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTargetIsOursThenTheOthersAtMostThree(t *testing.T) {
	for _, tt := range []struct{ ours, list, base, target, cut string }{
		{"169.254.20.10", "10.96.0.10", "10.96.0.10", "169.254.20.10,10.96.0.10", ""},
		{"169.254.20.10", "10.96.0.10,169.254.20.10,10.96.0.10", "10.96.0.10", "169.254.20.10,10.96.0.10", ""},
		{"169.254.20.10", "169.254.25.10,169.254.10.11", "", "169.254.20.10", ""},
		{"169.254.20.10", "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4", "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4", "169.254.20.10,10.0.0.1,10.0.0.2", "10.0.0.3,10.0.0.4"},
		{"169.254.20.10,fd00::a", "10.0.0.1,fd00::1", "10.0.0.1,fd00::1", "169.254.20.10,fd00::a,10.0.0.1", "fd00::1"},
		{"169.254.77.1", "169.254.20.9,10.0.0.1", "10.0.0.1", "169.254.77.1,10.0.0.1", ""},
	} {
		ours := parseServers(strings.Split(tt.ours, ","))
		base := Base(parseServers(strings.Split(tt.list, ",")), ours)
		target, cut := Target(ours, base)
		if join(base) != tt.base || join(target) != tt.target || join(cut) != tt.cut {
			t.Errorf("%s before %s: base %s, target %s, cut %s", tt.ours, tt.list, join(base), join(target), join(cut))
		}
	}
}

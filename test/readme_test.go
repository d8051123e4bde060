// Package test holds what needs more than one of the project's directories.
// These tests hold README.md to what the binary does.
package test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/test/kubedns"
	"nodelocaldns/test/ports"
)

// binary is nodelocaldns as it would be shipped.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "nodelocaldns-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "nodelocaldns")
		if out, err := exec.Command("go", "build", "-o", binary, "../cmd/nodelocaldns").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s%v\n", out, err)
			return 1
		}
		return m.Run()
	}())
}

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// nodelocaldns runs the binary and returns what it printed.
func nodelocaldns(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary, args...).Output()
	if err != nil {
		t.Fatalf("nodelocaldns %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

func TestReadmeShowsTheDefaultConfiguration(t *testing.T) {
	if want := "```yaml\n" + nodelocaldns(t, "config", "default") + "```\n"; !strings.Contains(readme(t), want) {
		t.Error("README.md does not contain what config default prints")
	}
}

func TestReadmeShowsUserData(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("# of the fleet\ncache: {maxBytes: 64MiB}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if want := "```yaml\n" + nodelocaldns(t, "--config", config, "cloud-init") + "```\n"; !strings.Contains(readme(t), want) {
		t.Errorf("README.md does not contain what cloud-init prints:\n%s", want)
	}
}

func TestReadmeShowsAnImport(t *testing.T) {
	a, err := txtar.ParseFile("../cmd/nodelocaldns/internal/migrate/testdata/readme.txtar")
	if err != nil {
		t.Fatal(err)
	}
	source := a.Files[0]
	cmd := exec.Command(binary, "config", "import", "--output", "config.yaml", source.Name)
	cmd.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(cmd.Dir, source.Name), source.Data, 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("config import: %v\n%s", err, said)
	}
	if !strings.Contains(readme(t), string(said)+"exit code 3\n") {
		t.Errorf("README.md does not contain what config import says:\n%s", said)
	}
}

func TestReadmeShowsTheDNSConfigOfAPod(t *testing.T) {
	const command = "dnsconfig --namespace shop --kube-dns 10.96.0.10"
	want := "```\nnode# nodelocaldns " + command + "\n" + nodelocaldns(t, append([]string{"--root", t.TempDir()}, strings.Fields(command)...)...) + "```\n"
	if !strings.Contains(readme(t), want) {
		t.Errorf("README.md does not contain what dnsconfig prints:\n%s", want)
	}
}

func TestReadmeListsEveryCommand(t *testing.T) {
	command := regexp.MustCompile(`(?m)^  ([\w-]+) +\w`)
	_, help, _ := strings.Cut(nodelocaldns(t, "--help"), "\ncommands:\n")
	help, _, _ = strings.Cut(help, "\n\n")
	var want, got []string
	for _, m := range command.FindAllStringSubmatch(help, -1) {
		want = append(want, m[1])
	}
	_, table, _ := strings.Cut(readme(t), "\n| command |")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, m := range regexp.MustCompile("(?m)^\\| `([\\w-]+)").FindAllStringSubmatch(table, -1) {
		if !slices.Contains(got, m[1]) {
			got = append(got, m[1])
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
		t.Errorf("commands, -help +README:\n%s", diff)
	}
}

func TestReadmeListsEveryMetric(t *testing.T) {
	want := scrape(t)
	got := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `(nodelocaldns_\\w+)` \\| (\\w+) \\|([^|]*)\\| [^|]+\\|$")
	for _, m := range row.FindAllStringSubmatch(readme(t), -1) {
		labels := strings.Split(strings.NewReplacer("`", "", " ", "").Replace(m[3]), ",")
		slices.Sort(labels)
		got[m[1]] = m[2] + " " + strings.Join(labels, ",")
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
		t.Errorf("metrics, -/metrics +README:\n%s", diff)
	}
}

// scrape runs the resolver, asks it something, and returns our metrics as
// "type label,label" by name.
func scrape(t *testing.T) map[string]string {
	t.Helper()
	upstream, err := kubedns.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(upstream.Close)
	dir := t.TempDir()
	address, metrics := ports.Free(t).String(), ports.Free(t).String()
	_, port, _ := net.SplitHostPort(address)
	config := fmt.Sprintf(`listen: {addresses: [127.0.0.1], port: %s}
cluster: {dns: ["%s"]}
metrics: {address: "%s"}
health: {address: ""}
`, port, upstream.Addr(), metrics)
	serve(t, dir, config)

	m, err := dns.Exchange(new(dns.Msg).SetQuestion("example.com.", dns.TypeA), address)
	if err != nil || len(m.Answer) != 1 {
		t.Fatalf("asking the resolver: %v, %v", m, err)
	}
	r, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	label := regexp.MustCompile(`(\w+)="`)
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (nodelocaldns_\w+) (\w+)$`).FindAllStringSubmatch(string(text), -1) {
		labels := map[string]bool{}
		for _, sample := range regexp.MustCompile(`(?m)^`+m[1]+`(?:_bucket)?\{(.*)\} `).FindAllStringSubmatch(string(text), -1) {
			for _, l := range label.FindAllStringSubmatch(sample[1], -1) {
				if l[1] != "le" {
					labels[l[1]] = true
				}
			}
		}
		found[m[1]] = m[2] + " " + strings.Join(slices.Sorted(maps.Keys(labels)), ",")
	}
	return found
}

// serve runs nodelocaldns serve until the test ends, and returns once its log
// says that it serves DNS and metrics.
func serve(t *testing.T, dir, config string) {
	t.Helper()
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--config", file, "--run-dir", filepath.Join(dir, "run"), "serve")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	var log []string
	for wait := []string{"msg=serving ", "endpoint=metrics "}; len(wait) > 0; {
		if !lines.Scan() {
			t.Fatalf("serve ended with %v:\n%s", cmd.Wait(), strings.Join(log, "\n"))
		}
		log = append(log, lines.Text())
		wait = slices.DeleteFunc(wait, func(s string) bool { return strings.Contains(lines.Text(), s) })
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		for lines.Scan() {
			log = append(log, lines.Text())
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve ended with %v:\n%s", err, strings.Join(log, "\n"))
		}
	})
}

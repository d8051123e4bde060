package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"nodelocaldns/test/node"
)

// A controller is where Ansible runs, for some nodes.
type controller struct {
	dir       string // has the inventory, and is the home of whoever runs it
	playbooks string
}

// newController makes an inventory of the nodes. The variables are all nodes', as JSON.
func newController(t *testing.T, workers, controlPlane []machine, variables map[string]any) controller {
	t.Helper()
	for _, program := range []string{"ansible-playbook", "ssh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not installed; make test-cluster does that")
		}
	}
	playbooks, err := filepath.Abs("../../ansible")
	must(t, err)
	dir := t.TempDir()
	group := func(machines []machine) map[string]any {
		hosts := map[string]any{}
		for _, m := range machines {
			hosts[m.Name] = map[string]string{"ansible_host": m.Addr, "ansible_user": "root", "ansible_ssh_common_args": strings.Join(m.cluster.SSHOptions(), " ")}
		}
		return map[string]any{"hosts": hosts}
	}
	inventory, err := json.Marshal(map[string]any{"all": map[string]any{
		"vars":     variables,
		"children": map[string]any{"kube_node": group(workers), "kube_control_plane": group(controlPlane)},
	}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "inventory.yml"), inventory, 0o600))
	return controller{dir, playbooks}
}

// play runs a playbook and returns what it printed. Another exit code than the
// wanted one ends the test. With -test.v it is a transcript.
func (c controller) play(t *testing.T, want int, playbook string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ansible-playbook", append([]string{"-i", c.dir + "/inventory.yml", playbook}, args...)...)
	cmd.Dir = c.playbooks
	cmd.Env = append(os.Environ(), "HOME="+c.dir, "ANSIBLE_SSH_CONTROL_PATH_DIR=/run/ansible", // the lab's; a socket's name is short
		"LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1", "ANSIBLE_DEPRECATION_WARNINGS=0")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("$ ansible-playbook %s %s\n%s", playbook, strings.Join(args, " "), out)
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Fatalf("%s: exit code %d, want %d\n%s", playbook, got, want, out)
	}
	return string(out)
}

// recap is a line of what a playbook printed last, about a node.
var recap = regexp.MustCompile(`(?m)^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)`)

// changed are the nodes on which something changed, or would.
func changed(out string) (names []string) {
	for _, m := range recap.FindAllStringSubmatch(out, -1) {
		if m[2] != "0" {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	return names
}

// summary is the table that a playbook printed: what became of each node.
func summary(t *testing.T, out string) string {
	t.Helper()
	m := table.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no summary:\n%s", out)
	}
	var b strings.Builder
	for line := range strings.Lines(m[1]) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		result, _, _ := strings.Cut(strings.TrimSpace(rest), "  ")
		fmt.Fprintf(&b, "%s: %s\n", name, result)
	}
	return b.String()
}

// table is all of it but the last line, which counts.
var table = regexp.MustCompile(`(?s)Summary\] .*?msg: \|-\n(.*?\n) *\d+ nodes: `)

// own is what Ansible, dpkg and apt keep of their own work.
var own = regexp.MustCompile(`(?m)^[-+] file (/root/\.ansible.*|/var/lib/(dpkg/(status-old|available(-old)?|lock(-frontend)?|diversions-old|statoverride-old|triggers/(Lock|Unincorp))|apt/(extended_states|lists/lock|lists/auxfiles|daily_lock|periodic.*)) .*)\n`)

func differ(before, after node.Dump) string {
	return own.ReplaceAllString(node.Diff(before, after), "")
}

// dumps are those of all, taken at once.
func dumps(t *testing.T, machines []machine) []node.Dump {
	t.Helper()
	all := make([]node.Dump, len(machines))
	each(t, machines, func(i int, m machine) (err error) {
		all[i], err = m.Dump(t.Context())
		return err
	})
	return all
}

// each does something with all machines at once.
func each(t *testing.T, machines []machine, do func(int, machine) error) {
	t.Helper()
	errs := make([]error, len(machines))
	var all sync.WaitGroup
	for i, m := range machines {
		all.Go(func() { errs[i] = do(i, m) })
	}
	all.Wait()
	must(t, errors.Join(errs...))
}

// A kubelet that does not come back once it is to name us, and else is the real one.
const picky = `#!/bin/bash
case "$*" in *169.254.20.10*) exit 1 ;; esac
exec -a /usr/bin/kubelet /usr/bin/kubelet.real "$@"
`

func TestAnsibleRollsOutInRingsStopsWhereANodeFailsGoesOnAndTakesAllBack(t *testing.T) {
	t.Parallel()
	var all []machine
	for _, name := range []string{"worker1", "worker2", "cp1"} {
		all = append(all, create(t, node.Debian12, name))
	}
	each(t, all, func(_ int, m machine) error {
		ctx := t.Context()
		return errors.Join(m.Join(ctx), m.Boot(ctx), m.Ready(ctx), m.AllowSSH(ctx))
	})
	worker1, worker2, cp1 := all[0], all[1], all[2]
	c := newController(t, []machine{worker1, worker2}, []machine{cp1}, map[string]any{
		"nodelocaldns_source":  "file",
		"nodelocaldns_package": deb(),
		"nodelocaldns_config":  map[string]any{"kubelet": map[string]any{"settle": "2s"}},
		"nodelocaldns_soak":    1,
	})
	same := func(what string, before []node.Dump) {
		t.Helper()
		for i, after := range dumps(t, all) {
			if diff := differ(before[i], after); diff != "" {
				t.Errorf("%s: %s (-before +after):\n%s", all[i].Name, what, diff)
			}
		}
	}
	says := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	before := dumps(t, all)

	worker2.sh(t, 0, "mv /usr/bin/kubelet /usr/bin/kubelet.real")
	must(t, worker2.Put("/usr/bin/kubelet", []byte(picky), 0o755))
	out := c.play(t, 2, "apply.yml")
	says("a kubelet that does not come back", summary(t, out), "worker1: applied\nworker2: undone\ncp1: not begun\n")
	if diff := differ(before[2], cp1.dump(t)); diff != "" {
		t.Errorf("the ring after the one that failed was touched (-before +after):\n%s", diff)
	}
	out = c.play(t, 2, "status.yml")
	says("status after a failure", summary(t, out), "worker1: applied\nworker2: rollback finished\ncp1: not installed\n")
	worker2.sh(t, 0, "mv /usr/bin/kubelet.real /usr/bin/kubelet")
	must(t, worker2.Ready(t.Context()))

	halfway := dumps(t, all)
	out = c.play(t, 0, "apply.yml", "--check", "--diff")
	says("check halfway", summary(t, out), "worker1: nothing to do\nworker2: would change\ncp1: would change\n")
	predicted := changed(out)
	same("after a check halfway", halfway)

	out = c.play(t, 0, "apply.yml")
	says("the second run", summary(t, out), "worker1: nothing to do\nworker2: applied\ncp1: applied\n")
	if got := changed(out); !slices.Equal(got, predicted) || !slices.Equal(got, []string{"cp1", "worker2"}) {
		t.Errorf("changed: %q; the check said %q", got, predicted)
	}
	out = c.play(t, 0, "apply.yml")
	if got := changed(out); got != nil {
		t.Errorf("changed where all was done: %q", got)
	}
	out = c.play(t, 0, "rollback.yml", "-e", "nodelocaldns_remove=true")
	says("rollback", summary(t, out), "worker1: undone\nworker2: undone\ncp1: undone\n")
	same("after the rollback", before)
}

func TestAnsibleRefusesVariablesThatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	m := machine{&node.Node{Name: "nobody", Addr: "192.0.2.1"}, cluster(t)} // no node is asked
	for _, test := range []struct{ playbook, variable, want string }{
		{"apply.yml", "nodelocaldns_throttle=many", "argument 'nodelocaldns_throttle' is of type <class 'str'> and we were unable to convert to int"},
		{"apply.yml", "nodelocaldns_source=ftp", "value of nodelocaldns_source must be one of: repository, file, image, got: ftp"},
		{"apply.yml", "nodelocaldns_sauce=file", "nodelocaldns_sauce: no such variable"},
		{"rollback.yml", "nodelocaldns_drain=away", "value of nodelocaldns_drain must be one of: configured, auto, never, cordon, drain, got: away"},
		{"migrate.yml", "nodelocaldns_throttle=few", "argument 'nodelocaldns_throttle' is of type <class 'str'> and we were unable to convert to int"},
		{"migrate.yml", "nodelocaldns_sauces=file", "nodelocaldns_sauces: no such variable"},
	} {
		t.Run(test.variable, func(t *testing.T) {
			c := newController(t, []machine{m}, nil, nil)
			out := c.play(t, 2, test.playbook, "-e", test.variable)
			if !strings.Contains(out, test.want) {
				t.Errorf("does not say %q", test.want)
			}
		})
	}
}

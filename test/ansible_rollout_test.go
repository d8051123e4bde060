package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/test/judge"
)

// A fleet is nodes that are directories of this machine. Their program is a script
// that writes down what it is asked for, and does badly what a file says.
type fleet struct{ dir string }

// The files: "applied" is what it is like, "lost on X" has Ansible not reach the node
// once X was run, and "X fails" is what it prints then.
const nodeProgram = `#!/bin/bash
cd "${0%/*}"
case $1 in
apply | rollback) echo "${PWD##*/} $1" >>../log ;;
esac
[[ -e "lost on $1" ]] && touch lost
[[ -e "$1 fails" ]] && { cat "$1 fails"; exit 1; }
case $1 in
plan) [[ ! -e applied || -e pending ]] && exit 3 ;;
apply) touch applied; rm -f pending; printf '{\n  "changed": true,\n  "steps": []\n}' ;;
rollback) rm applied; printf '{\n  "changed": true,\n  "draining": false,\n  "pods": []\n}' ;;
status) echo '{"rollback": "not asked for", "steps": [{"ours": '"$([[ -e applied ]] && echo true || echo false)"'}]}' ;;
esac
exit 0
`

// newFleet makes nodes n1, n2, and so on, with these files.
func newFleet(t *testing.T, nodes int, files map[string]string) fleet {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		judge.Skip(t, "needs ansible-playbook, of Debian's package ansible-core")
	}
	f := fleet{t.TempDir()}
	hosts := map[string]any{}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		put(t, filepath.Join(f.dir, name, "nodelocaldns"), []byte(nodeProgram), 0o755)
		hosts[name] = map[string]string{"ansible_connection": "{{ 'ssh' if '" + filepath.Join(f.dir, name, "lost") + "' is exists else 'local' }}"}
	}
	for name, text := range files {
		put(t, filepath.Join(f.dir, name), []byte(text), 0o644)
	}
	inventory, err := json.Marshal(map[string]any{"all": map[string]any{
		"vars": map[string]any{
			"ansible_host": "127.0.0.1", "ansible_port": 1, // nobody is there
			"ansible_python_interpreter": "{{ ansible_playbook_python }}",
			"nodelocaldns_source":        "image",
			"nodelocaldns_soak":          0,
			"nodelocaldns_skip_canary":   true,
		},
		"children": map[string]any{"kube_node": map[string]any{"hosts": hosts}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(f.dir, "inventory.yml"), inventory, 0o644)
	return f
}

// rollOut runs apply.yml with rings of three nodes, and returns its exit code, its
// table, and what was run on which node.
func (f fleet) rollOut(t *testing.T, args ...string) string {
	t.Helper()
	given, err := json.Marshal(map[string]any{
		"nodelocaldns_rings":     []int{3},
		"__nodelocaldns_program": f.dir + "/{{ inventory_hostname }}/nodelocaldns",
		"__nodelocaldns_before":  map[string]any{"stat": map[string]any{"exists": true}},
		"ansible_become":         false,
	})
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(f.dir, "log")
	if err := os.RemoveAll(log); err != nil {
		t.Fatal(err)
	}
	// This machine is not one that preflight knows.
	cmd := exec.CommandContext(t.Context(), "ansible-playbook", append([]string{"-i", f.dir + "/inventory.yml", "--skip-tags=preflight", "-e", string(given), "apply.yml"}, args...)...)
	cmd.Dir = "../ansible"
	cmd.Env = append(os.Environ(), "HOME="+f.dir, "TMPDIR="+f.dir, "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1", "ANSIBLE_DEPRECATION_WARNINGS=0")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("apply.yml %q:\n%s", args, out)
	table := fleetTable.FindSubmatch(out)
	if table == nil {
		t.Fatal("no table")
	}
	ran, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(f.dir, "nodelocaldns-*")); left != nil {
		t.Errorf("left on the controller: %q", left)
	}
	said := regexp.MustCompile(`(?m)^ +`).ReplaceAllString(string(table[1]), "")
	said = regexp.MustCompile(`unreachable  .*`).ReplaceAllString(said, "unreachable") // in ssh's words
	return fmt.Sprintf("exit code %d\n%s%s", cmd.ProcessState.ExitCode(), said, ran)
}

// fleetTable is all of a table but the last line, which counts.
var fleetTable = regexp.MustCompile(`(?s)Summary\] .*?msg: \|-\n(.*?\n) *\d+ nodes: `)

func TestARolloutStopsAtANodeThatFailsOrIsLost(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		files map[string]string
		args  []string
		want  string
	}{
		{"apply fails, and does not come to the end of what it says", map[string]string{
			"n2/apply fails": "{\n  \"changed\": true,\n  \"error\": \"no \\\"kubelet\\\"\",\n  \"st",
		}, nil, `exit code 2
n1  applied
n2  undone             no "kubelet"
n3  not begun
n4  not begun
n1 apply
n2 apply
n2 rollback
`},
		{"apply fails where it was applied before", map[string]string{
			"n2/applied": "", "n2/pending": "", "n2/apply fails": "{\n  \"changed\": true,\n  \"error\": \"not now\"\n}",
		}, []string{"--tags=apply"}, `exit code 2
n1  applied
n2  failed             not now
n3  not begun
n4  not begun
n1 apply
n2 apply
`},
		{"lost before apply", map[string]string{"n2/lost on status": ""}, nil, `exit code 2
n1  applied
n2  unreachable
n3  not begun
n4  not begun
n1 apply
`},
		{"lost before its plan is known", map[string]string{"n2/lost on plan": ""}, nil, `exit code 2
n1  not begun
n2  unreachable
n3  not begun
n4  not begun
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 4, test.files)
			if diff := cmp.Diff(test.want, f.rollOut(t, test.args...)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

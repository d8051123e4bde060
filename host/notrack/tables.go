package notrack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// Tables is what the step needs of one iptables program. Implementations keep
// the error kinds of their library to themselves: a table, chain or rule that
// does not exist is an empty answer, and missing rights wrap fs.ErrPermission.
type Tables interface {
	// Backend is Legacy or NFT.
	Backend() Backend

	// Chains lists the chains of a table and Rules the rules of a chain, each
	// as iptables -S prints it without "-A CHAIN". Neither writes, loads a
	// module or makes a table.
	Chains(table string) ([]string, error)
	Rules(table, chain string) ([]string, error)

	NewChain(table, chain string) error
	ClearChain(table, chain string) error
	DeleteChain(table, chain string) error // an empty one
	Append(table, chain string, rule ...string) error
	Insert(table, chain string, pos int, rule ...string) error
	Delete(table, chain string, rule ...string) error // the first that is equal
}

// An Opener finds the iptables program of a back-end for IPv4 or IPv6. It
// resolves Auto to the one the host uses. A program that is not there is an
// error that wraps ErrMissing.
type Opener func(b Backend, v6 bool) (Tables, error)

// ErrMissing says that the node has no such iptables program.
var ErrMissing = errors.New("not installed")

// LockTimeout is how many seconds iptables waits for the xtables lock. kubelet
// and kube-proxy hold it for a second or two on large nodes; without a bound
// one hung iptables would stop guard for ever.
const LockTimeout = 5

// System is the Opener of this node.
//
// Auto follows the host's own iptables, as the kubelet does: its version says
// which back-end it is. No rule is listed to find out, because
// "iptables-legacy -t raw -S" alone would make the table.
func System(b Backend, v6 bool) (Tables, error) {
	p, err := system(b, v6)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func system(b Backend, v6 bool) (*program, error) {
	path, b, err := find(b, v6)
	if err != nil {
		return nil, err
	}
	proto, names := iptables.ProtocolIPv4, "/proc/net/ip_tables_names"
	if v6 {
		proto, names = iptables.ProtocolIPv6, "/proc/net/ip6_tables_names"
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Timeout(LockTimeout), iptables.Path(path))
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	return &program{ipt: ipt, backend: b, names: names}, nil
}

// find returns the path of the program for b, and what b is if it is Auto.
func find(b Backend, v6 bool) (string, Backend, error) {
	base := "iptables"
	if v6 {
		base = "ip6tables"
	}
	if b != Auto {
		if path, err := look(base + "-" + string(b)); err == nil {
			return path, b, nil
		}
	}
	// Older distributions have one back-end, and no name for it but iptables.
	if path, err := look(base); err == nil {
		got, err := version(path)
		if err != nil {
			return "", "", err
		}
		if b == Auto || b == got {
			return path, got, nil
		}
	}
	if b != Auto {
		return "", "", fmt.Errorf("%s-%s: %w", base, b, ErrMissing)
	}
	for _, b := range []Backend{NFT, Legacy} {
		if path, err := look(base + "-" + string(b)); err == nil {
			return path, b, nil
		}
	}
	return "", "", fmt.Errorf("%s: %w", base, ErrMissing)
}

// look is exec.LookPath that also knows the directories a user's PATH leaves
// out, so that plan works without root.
func look(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// version tells the back-end of an iptables: 1.8 and newer name it, anything
// older is legacy.
func version(path string) (Backend, error) {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	if strings.Contains(string(out), "nf_tables") {
		return NFT, nil
	}
	return Legacy, nil
}

// A program is one iptables or ip6tables.
type program struct {
	ipt     *iptables.IPTables
	backend Backend
	names   string // lists the tables that exist, for the legacy back-end
}

func (p *program) Backend() Backend { return p.backend }

// Chains lists the chains of a table. A legacy table that does not exist yet
// has none, and is not asked: asking makes it.
func (p *program) Chains(table string) ([]string, error) {
	if p.backend == Legacy {
		// The file is missing until the first table is made in this namespace.
		made, err := os.ReadFile(p.names)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if !slices.Contains(strings.Fields(string(made)), table) {
			return nil, nil
		}
	}
	chains, err := p.ipt.ListChains(table)
	return chains, classify(err)
}

func (p *program) Rules(table, chain string) ([]string, error) {
	lines, err := p.ipt.List(table, chain)
	if err != nil {
		return nil, classify(err)
	}
	var rules []string
	for _, line := range lines {
		if rule, ok := strings.CutPrefix(line, "-A "+chain+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules, nil
}

func (p *program) NewChain(table, chain string) error {
	return classify(p.ipt.NewChain(table, chain))
}

func (p *program) ClearChain(table, chain string) error {
	return classify(p.ipt.ClearChain(table, chain))
}

func (p *program) DeleteChain(table, chain string) error {
	return classify(p.ipt.DeleteChain(table, chain))
}

func (p *program) Append(table, chain string, rule ...string) error {
	return classify(p.ipt.Append(table, chain, rule...))
}

func (p *program) Insert(table, chain string, pos int, rule ...string) error {
	return classify(p.ipt.Insert(table, chain, pos, rule...))
}

func (p *program) Delete(table, chain string, rule ...string) error {
	return classify(p.ipt.Delete(table, chain, rule...))
}

// classify turns the one error that callers tell apart into its own kind. Both
// back-ends end with status 4 for missing rights as for a lock that was not
// had, and only their text tells which.
func classify(err error) error {
	var failed *iptables.Error
	if errors.As(err, &failed) {
		for _, text := range []string{"you must be root", "Permission denied", "Operation not permitted"} {
			if strings.Contains(failed.Error(), text) {
				return fmt.Errorf("%w: %w", fs.ErrPermission, err)
			}
		}
	}
	return err
}

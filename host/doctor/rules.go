package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"nodelocaldns/host/notrack"
)

// A place is one chain of one table of one iptables program.
type place struct {
	backend      notrack.Backend
	v6           bool
	table, chain string
}

func (p place) program() string {
	if p.v6 {
		return "ip6tables-" + string(p.backend)
	}
	return "iptables-" + string(p.backend)
}

func (p place) String() string { return fmt.Sprintf("%s of %s in %s", p.chain, p.table, p.program()) }

// A ruleset is what was read of the node's rules. Chains are read when they are
// first asked for: a node may have thousands.
type ruleset struct {
	tables map[notrack.Backend]map[bool]notrack.Tables // by back-end, and whether IPv6

	mu    sync.Mutex // several checks read on
	rules map[place][][]string
	err   error // the first that kept something from being read
}

// The hooks in which DNS packets are left untracked, let through or dropped.
var hooks = map[string][]string{"raw": {"PREROUTING", "OUTPUT"}, "filter": {"INPUT", "OUTPUT"}}

// ruleset reads the built-in chains that matter. It makes no table: a legacy
// table that does not exist yet is not asked.
func (e *Env) ruleset() (*ruleset, error) {
	return e.chains.get(func() (*ruleset, error) {
		r := &ruleset{tables: map[notrack.Backend]map[bool]notrack.Tables{}, rules: map[place][][]string{}}
		for _, b := range []notrack.Backend{notrack.NFT, notrack.Legacy} {
			for _, v6 := range []bool{false, true} {
				t, err := e.Tables(b, v6)
				if errors.Is(err, notrack.ErrMissing) {
					continue
				} else if err != nil {
					return nil, err
				}
				if r.tables[b] == nil {
					r.tables[b] = map[bool]notrack.Tables{}
				}
				r.tables[b][v6] = t
				for table, chains := range hooks {
					made, err := t.Chains(table)
					if err != nil {
						return nil, err
					}
					for _, chain := range chains {
						if slices.Contains(made, chain) {
							r.in(place{b, v6, table, chain})
						}
					}
				}
			}
		}
		return r, r.failed()
	})
}

// in are the rules of one chain, each in words.
func (r *ruleset) in(p place) [][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if have, ok := r.rules[p]; ok {
		return have
	}
	var out [][]string
	lines, err := r.tables[p.backend][p.v6].Rules(p.table, p.chain)
	if err != nil && r.err == nil && !errors.Is(err, fs.ErrNotExist) {
		r.err = err
	}
	for _, line := range lines {
		out = append(out, notrack.Words(line))
	}
	r.rules[p] = out
	return out
}

func (r *ruleset) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// places are the built-in chains that were read, in a stable order.
func (r *ruleset) places() []place {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []place
	for p := range r.rules {
		if slices.Contains(hooks[p.table], p.chain) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b place) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// value is what follows a word of a rule, or "".
func value(rule []string, word string) string {
	for i, w := range rule {
		if w == word && i+1 < len(rule) {
			return rule[i+1]
		}
	}
	return ""
}

func target(rule []string) string { return value(rule, "-j") + value(rule, "-g") }

// untracks says whether the rule keeps packets out of conntrack: NOTRACK is
// printed as CT --notrack by some versions.
func untracks(rule []string) bool {
	return target(rule) == "NOTRACK" || target(rule) == "CT" && slices.Contains(rule, "--notrack")
}

// about is the one address that a rule is about, if it is about one.
func about(rule []string) (netip.Addr, bool) {
	for _, word := range []string{"-d", "-s"} {
		text, _, _ := strings.Cut(value(rule, word), "/")
		if a, err := netip.ParseAddr(text); err == nil {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// nodeCacheComment begins the comments of node-cache's rules: "skip conntrack"
// and "allow DNS traffic" (cmd/node-cache/app in kubernetes/dns).
const nodeCacheComment = "NodeLocal DNS Cache:"

// daemonSetRuns says whether the DaemonSet's rules have an owner.
func (e *Env) daemonSetRuns() (bool, error) {
	caches, err := e.running("node-cache")
	return len(caches) > 0, err
}

// A foreignRule is one that is not ours, and where it is.
type foreignRule struct {
	place
	words []string
}

// command deletes the rule, or the first of several that are equal.
func (r foreignRule) command() string {
	return fmt.Sprintf("%s -w %d -t %s -D %s %s", r.program(), notrack.LockTimeout, r.table, r.chain, strings.Join(quoted(r.words), " "))
}

func (r foreignRule) byNodeCache() bool {
	return strings.HasPrefix(value(r.words, "--comment"), nodeCacheComment)
}

// breaks says whether packets to or from one of kubeDNS are left untracked by the rule,
// so that kube-proxy does not translate them.
func (r foreignRule) breaks(kubeDNS []netip.Addr) bool {
	a, found := about(r.words)
	return found && r.table == "raw" && untracks(r.words) && slices.Contains(kubeDNS, a)
}

// where are the rules of the built-in chains of which is says so.
func (r *ruleset) where(is func(foreignRule) bool) []foreignRule {
	var out []foreignRule
	for _, p := range r.places() {
		for _, rule := range r.in(p) {
			if f := (foreignRule{p, rule}); is(f) {
				out = append(out, f)
			}
		}
	}
	return out
}

// leftovers are rules of a node-cache that was killed: it takes them away only
// when it ends by itself.
func (e *Env) leftovers(context.Context) []Result {
	r, err := e.ruleset()
	if err != nil {
		return unseen(err)
	}
	runs, err := e.daemonSetRuns()
	if err != nil {
		return unseen(err)
	}
	left := r.where(foreignRule.byNodeCache)
	if len(left) == 0 {
		if len(r.tables) == 0 {
			return nil // no iptables
		}
		return ok("no rule of the DaemonSet node-local-dns")
	}
	var where []string
	for _, rule := range left {
		if a, _ := about(rule.words); !slices.Contains(where, a.String()) {
			where = append(where, a.String())
		}
	}
	slices.Sort(where)
	if runs {
		return info("", "%s of the DaemonSet node-local-dns for %s: it runs here and takes them away itself", plural(len(left), "rule"), strings.Join(where, ", "))
	}
	return warning(removeHint, "%s of the DaemonSet node-local-dns for %s left behind: no node-cache runs", plural(len(left), "rule"), strings.Join(where, ", "))
}

// untrackedKubeDNS is about rules that break the second nameserver of every
// pod: kube-proxy translates only what conntrack sees (kubernetes/dns#453).
func (e *Env) untrackedKubeDNS(ctx context.Context) []Result {
	kubeDNS := e.KubeDNS(ctx)
	if len(kubeDNS) == 0 {
		return nil
	}
	r, err := e.ruleset()
	if err != nil {
		return unseen(err)
	}
	if len(r.tables) == 0 {
		return nil
	}
	runs, err := e.daemonSetRuns()
	if err != nil {
		return unseen(err)
	}
	untracked := r.where(func(r foreignRule) bool { return r.breaks(kubeDNS) })
	if len(untracked) == 0 {
		return ok("packets to kube-dns are tracked")
	}
	first := untracked[0]
	a, _ := about(first.words)
	if runs {
		return info("", "packets to %s are left untracked: node-cache answers there itself", a)
	}
	return failure("delete it: "+first.command(),
		"a rule leaves packets to kube-dns (%s) untracked, so that kube-proxy does not translate them: %s", a, first.place)
}

// quoted is the rule as a shell takes it, and runs nothing of it.
func quoted(rule []string) []string {
	out := slices.Clone(rule)
	for i, w := range out {
		if w == "" || strings.ContainsAny(w, " \t\n'\"$`\\!*?[](){}<>|&;#~") && w != "!" {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return out
}

// drops follows a query and its reply through the filter table, as far as our
// own rule: what surely drops them before it is an error. Rules that match by
// what is not known here, such as a mark, are passed over.
func (e *Env) drops(context.Context) []Result {
	r, err := e.ruleset()
	if err != nil {
		return unseen(err)
	}
	var out []Result
	seen := false
	for _, p := range r.places() {
		if p.table != "filter" {
			continue
		}
		builtin := r.in(p)
		if p.chain == "OUTPUT" {
			if rule := silences(builtin); rule != nil {
				out = append(out, info("let ICMP errors out: iptables -I OUTPUT -p icmp --icmp-type port-unreachable -j ACCEPT",
					"%s drops packets of state INVALID, ICMP errors for untracked packets among them: should nobody listen at our address, pods wait for seconds instead of asking kube-dns at once", p)...)
			}
		}
		if !slices.ContainsFunc(builtin, func(rule []string) bool { return target(rule) == notrack.Chain }) {
			continue
		}
		seen = true
		for _, a := range e.Want.Addresses {
			for _, proto := range []string{"udp", "tcp"} {
				pk := packet{addr: a, proto: proto, port: e.Want.Port, to: p.chain == "INPUT"}
				if rule, where, dropped := r.walk(p, pk, 5); dropped && a.Is6() == p.v6 {
					out = append(out, failure("have it stand behind the jump to "+notrack.Chain+", or accept DNS to and from "+a.String()+" before it",
						"%s drops DNS over %s before our rule is reached: %s", where, strings.ToUpper(proto), strings.Join(quoted(rule), " "))...)
				}
			}
		}
	}
	if err := r.failed(); err != nil {
		return append(out, unseen(err)...)
	}
	if !seen {
		return out // our rules are not there, so that nothing can be in front of them
	}
	return orOK(out, "nothing drops DNS to us before our rules let it through")
}

// silences is a rule that drops what conntrack calls INVALID, whatever it is.
func silences(rules [][]string) []string {
	for _, rule := range rules {
		states := value(rule, "--ctstate") + value(rule, "--state")
		proto := value(rule, "-p")
		if slices.Contains(strings.Split(states, ","), "INVALID") && !slices.Contains(rule, "!") && (proto == "" || proto == "icmp") &&
			(target(rule) == "DROP" || target(rule) == "REJECT") && value(rule, "-d") == "" && value(rule, "-s") == "" {
			return rule
		}
	}
	return nil
}

// A packet is DNS to or from one of our addresses, untracked.
type packet struct {
	addr  netip.Addr
	proto string
	port  uint16
	to    bool
}

// walk follows pk through a chain: the first rule that surely drops it, before
// any surely lets it through. depth bounds how far chains lead to others.
func (r *ruleset) walk(p place, pk packet, depth int) (rule []string, where place, dropped bool) {
	rule, where, verdict := r.verdict(p, pk, depth)
	return rule, where, verdict == "drop"
}

func (r *ruleset) verdict(p place, pk packet, depth int) ([]string, place, string) {
	if depth == 0 {
		return nil, p, "unknown"
	}
	for _, rule := range r.in(p) {
		if !pk.surely(rule) {
			continue
		}
		switch t := target(rule); t {
		case "DROP", "REJECT":
			return rule, p, "drop"
		case "ACCEPT", notrack.Chain:
			return rule, p, "accept"
		case "RETURN":
			return nil, p, ""
		case "", "LOG", "NFLOG", "MARK", "CONNMARK", "AUDIT", "TRACE":
		default:
			next := p
			next.chain = t
			found, where, verdict := r.verdict(next, pk, depth-1)
			if verdict != "" {
				return found, where, verdict
			}
			if value(rule, "-g") != "" {
				return nil, p, ""
			}
		}
	}
	return nil, p, ""
}

// surely says whether the rule matches pk, whatever is not known of it: who
// sent it, by which device it comes, its mark.
func (pk packet) surely(rule []string) bool {
	for i := 0; i < len(rule); i++ {
		not := rule[i] == "!"
		if not {
			i++
		}
		if i >= len(rule) {
			return false
		}
		word, arg := rule[i], ""
		if i+1 < len(rule) {
			arg = rule[i+1]
		}
		match, known := false, true
		switch word {
		case "-j", "-g":
			return true
		case "-m", "--comment":
			i++
			continue
		case "-p":
			match = arg == pk.proto || arg == "all"
		case "-d", "-s":
			match, known = pk.address(arg, word == "-d")
		case "--dport", "--sport", "--dports", "--sports":
			match, known = pk.ports(arg, word[2] == 'd')
		case "--ctstate", "--state":
			match = slices.Contains(strings.Split(arg, ","), "UNTRACKED")
		default:
			known = false
		}
		if !known || match == not {
			return false
		}
		i++
	}
	return true
}

func (pk packet) address(arg string, dst bool) (match, known bool) {
	prefix, err := netip.ParsePrefix(arg)
	if a, aerr := netip.ParseAddr(arg); aerr == nil {
		prefix, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil {
		return false, false
	}
	if dst == pk.to {
		return prefix.Contains(pk.addr), true
	}
	return true, prefix.Bits() == 0
}

func (pk packet) ports(arg string, dst bool) (match, known bool) {
	if dst != pk.to {
		return false, false
	}
	for part := range strings.SplitSeq(arg, ",") {
		first, last, ranged := strings.Cut(part, ":")
		if !ranged {
			last = first
		}
		lo, lerr := strconv.ParseUint(first, 10, 16)
		hi, herr := strconv.ParseUint(last, 10, 16)
		if lerr != nil || herr != nil {
			return false, false
		}
		if uint64(pk.port) >= lo && uint64(pk.port) <= hi {
			return true, true
		}
	}
	return false, true
}

// backends says whether both iptables have rules: the kernel asks both, and a
// packet must pass them all.
func (e *Env) backends(context.Context) []Result {
	r, err := e.ruleset()
	if err != nil {
		return unseen(err)
	}
	used := map[notrack.Backend]bool{}
	mine := map[notrack.Backend]bool{}
	for _, p := range r.places() {
		for _, rule := range r.in(p) {
			used[p.backend] = true
			mine[p.backend] = mine[p.backend] || target(rule) == notrack.Chain
		}
	}
	switch {
	case len(used) == 0:
		return nil
	case len(used) == 1:
		for b := range used {
			return ok("all rules are in iptables-%s", b)
		}
	case mine[notrack.NFT] && mine[notrack.Legacy]:
		return warning("nodelocaldns apply leaves them in one", "our rules are in iptables-legacy and in iptables-nft")
	}
	return info("update-alternatives --display iptables shows the host's own; programs that bring their own iptables should choose the same",
		"iptables-legacy and iptables-nft both have rules: a packet must pass both")
}

// firewall is about those that write rules of their own, and flush others'.
func (e *Env) firewall(ctx context.Context) []Result {
	if e.Systemd == nil {
		return nil
	}
	var out []Result
	for _, f := range []struct {
		unit  string
		judge func() []Result
	}{
		{"firewalld.service", func() []Result {
			return warning("firewall-cmd --permanent --zone=trusted --add-source=PODS, with the network of the pods, then firewall-cmd --reload",
				"firewalld runs: what pods send us may be dropped by its own table, whatever our rules let through; and its reload flushes ours until guard has put them back, 10 s at most")
		}},
		{"ufw.service", func() []Result {
			conf, err := e.Tree.ReadFile("/etc/ufw/ufw.conf")
			if err != nil || !strings.Contains("\n"+string(conf), "\nENABLED=yes") {
				return nil
			}
			return info("", "ufw is enabled: our rules stand in front of its own, and guard puts them back after its reload")
		}},
		{"nftables.service", func() []Result {
			conf, err := e.Tree.ReadFile("/etc/nftables.conf")
			if err != nil || !strings.Contains("\n"+string(conf), "\nflush ruleset") {
				return nil
			}
			return info("", "a restart of nftables.service flushes all rules, kube-proxy's too; guard puts ours back within 10 s")
		}},
	} {
		u, err := e.Systemd.Unit(ctx, f.unit)
		if err != nil {
			return unseen(err)
		}
		if u.Active == "active" {
			out = append(out, f.judge()...)
		}
	}
	return orOK(out, "none that flushes or drops what is not its own")
}

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/unitfile"
)

// A Backend is a way to make the kubelet ask us first.
type Backend string

// The back-ends.
const (
	Auto        Backend = "auto"       // the first of the next four that fits
	ByEnv       Backend = "env"        // an environment file that is computed at each start of the kubelet
	ByConfigDir Backend = "config-dir" // a file of ours in the kubelet's --config-dir
	ByDropIn    Backend = "dropin"     // a drop-in of ours that restates ExecStart
	ByArgsFile  Backend = "args-file"  // one line in the args file of a snap
	ByRewrite   Backend = "rewrite"    // the file that holds ExecStart, in place; never chosen by itself
)

// Backends are all of them, in the order of the documentation.
func Backends() []Backend {
	return []Backend{Auto, ByEnv, ByDropIn, ByConfigDir, ByArgsFile, ByRewrite}
}

// A Source is what told us whom pods ask.
type Source string

// The sources, in the order in which they are believed.
const (
	FromRunning   Source = "running"    // --cluster-dns of the running kubelet
	FromUnit      Source = "unit"       // --cluster-dns, as systemd would start the kubelet
	FromArgs      Source = "args"       // --cluster-dns in the args file of a snap
	FromConfig    Source = "config"     // clusterDNS in the kubelet's configuration file
	FromConfigDir Source = "config-dir" // clusterDNS in a file of its configuration directory
	FromService   Source = "service"    // the Service kube-system/kube-dns
	FromUs        Source = "configured" // our own configuration, where the node does not tell
)

// A Process is a running kubelet.
type Process struct {
	PID  int
	Argv []string
}

// A Node is where Find looks. Only Tree must be set.
type Node struct {
	Tree fsys.Tree
	Host unitfile.Host // what the specifiers of units need; empty for a tree that is not running

	// Running returns the running kubelet of a unit, or nil if there is none.
	// A nil Running says that nothing runs: a tree, or a kubelet about to start.
	Running func(unit string) (*Process, error)

	// Started returns when the unit's main process was started, the zero time
	// if there is none. It tells whether a kubelet whose command line does not
	// name its servers has read its files. Nil: that cannot be told.
	Started func(ctx context.Context, unit string) (time.Time, error)

	// Service is asked when nothing else tells. Nil: nobody is asked.
	Service Service
}

// A Want is what we want of the kubelet.
type Want struct {
	Addresses []netip.Addr // ours, in the order in which pods should have them; at least one
	Servers   []netip.Addr // kube-dns, for where the node does not tell; usually none
	Unit      string       // the unit of the kubelet; empty: found
	Backend   Backend      // empty is Auto; any other also lifts the refusal of an operating system that owns its files
	Config    string       // --config of our program, if it is not the default
}

// Facts are what was found, and what follows from it.
type Facts struct {
	Unit       string
	Program    string // of the kubelet; of k3s and its like, where it is one with them
	PID        int    // of the running kubelet; 0 if none was seen
	Kubeconfig string // the kubelet's credential; empty if not known
	NodeName   string // --hostname-override; empty if there is none
	Backend    Backend

	Now     []netip.Addr // whom pods ask that start now; none: those of the node
	NowFrom string       // what makes them: a flag, a variable or a key, and its file
	Base    []netip.Addr // whom they would ask without us, other node-local caches left out
	Source  Source       // what told Base
	Where   string       // the same in words
	Target  []netip.Addr // whom they will ask: ours, then Base
	Cut     []netip.Addr // of Base, for which there was no room
	Already bool         // they would ask Target without us: there is nothing to do

	// Later says that nothing tells yet, because the node has not joined a
	// cluster, and that the back-end needs to know no more: ByEnv, which finds
	// Base and Target at each start of the kubelet.
	Later bool

	// Pending is what the running kubelet has not taken over of what its files
	// say of us, in words: it names us and they do not, or the other way round.
	// Empty: nothing, or it cannot be told.
	Pending string

	// Notes are worth a warning and no reason to stop.
	Notes []string
}

// A Refusal is why we keep away from a kubelet.
type Refusal struct {
	Why  string // what was found
	Next string // what to do instead
}

func (r *Refusal) Error() string { return r.Why }

// Hint says what to do instead.
func (r *Refusal) Hint() string { return r.Next }

func refuse(next, format string, args ...any) error {
	return &Refusal{Why: fmt.Sprintf(format, args...), Next: next}
}

// Find reads the node and says whom its pods ask, whom they will ask, and by
// which back-end. It writes nothing. The error is a *Refusal where we keep
// away; the Facts then hold what had been found until there.
func Find(ctx context.Context, n Node, w Want) (Facts, error) {
	f, err := find(ctx, n, w)
	return f.Facts, err
}

// found is Facts, and what a back-end renders from. All of it is without our
// own file.
type found struct {
	Facts
	node  Node
	want  Want
	kind  kind
	ours  []string // our files that are there, among the names we might choose
	whole bool     // they are not to be left out

	// For a kubelet that is a unit of its own.
	unit *unitfile.Unit
	cmd  unitfile.Command
	word int            // the kubelet's arguments begin after this word of cmd.Argv
	args []unitfile.Arg // them, expanded; nil if the environment is not known
	env  unitfile.Env   // what expanded them
	dns  []flag         // --cluster-dns among args
	list []netip.Addr   // whom the files alone name, node-local ones too
	conf string         // --config
	dir  string         // --config-dir
	text []byte         // content of the args file of a snap
	all  []flag         // of the kubelet that runs, else of the one its files start

	untold error // why Pending cannot be told

	// anywhere looks also where an operating system owns the kubelet's files.
	anywhere bool
}

func find(ctx context.Context, n Node, w Want) (*found, error) {
	f := &found{node: n, want: w}
	return f, f.find(ctx)
}

func (f *found) find(ctx context.Context) error {
	w := &f.want
	if w.Backend == "" {
		w.Backend = Auto
	}
	if len(w.Addresses) == 0 {
		return errors.New("no address of ours is given")
	}
	if len(w.Addresses) >= MaxServers {
		return refuse("give at most two", "%d addresses of ours leave no room for kube-dns: pods have %d nameservers at most", len(w.Addresses), MaxServers)
	}
	if err := f.system(); err != nil {
		return err
	}
	if err := f.findUnit(); err != nil {
		return err
	}
	var err error
	switch f.kind {
	case isKubelet:
		err = f.findKubelet(ctx)
	case isMicroK8s:
		err = f.findMicroK8s(ctx)
	default:
		err = f.findEmbedded(ctx)
	}
	// What was found before a refusal is true all the same.
	if r := new(Refusal); err == nil || errors.As(err, &r) {
		f.Pending, f.untold = f.findPending(ctx)
	}
	return err
}

// findKubelet fills in what can be known of a kubelet that is a unit of its
// own, and decides.
func (f *found) findKubelet(ctx context.Context) error {
	if err := f.command(); err != nil {
		return err
	}
	envErr := f.expand()
	var filesErr error
	if envErr == nil {
		filesErr = f.readFiles()
	} else {
		filesErr = envErr
	}
	if r := new(Refusal); errors.As(filesErr, &r) {
		return filesErr
	}
	if err := f.running(); err != nil {
		return err
	}
	if f.Source != FromRunning && filesErr != nil && f.PID != 0 && len(f.Now) > 0 && f.Base == nil {
		// It runs with our change, and its files have become unreadable since.
		f.Base, f.Source, f.Where = Base(f.Now, f.want.Addresses), FromRunning, f.runningWhere()
		filesErr = nil
	}
	if err := f.choose(); err != nil {
		return err
	}
	if filesErr != nil && f.Source != FromRunning {
		if f.Backend == ByEnv && f.PID == 0 && errors.Is(filesErr, fs.ErrNotExist) {
			f.Later = true
			return nil
		}
		return notKnown(filesErr)
	}
	if f.Backend == ByEnv && f.Source == "" && f.PID == 0 && f.unset() {
		f.Later = true
		return nil
	}
	return f.decide(ctx)
}

// unset says that the variable our back-end would use has no value yet: the
// node has not been told its cluster.
func (f *found) unset() bool {
	_, ok := f.env.Get(f.last())
	return !ok && f.conf == ""
}

func notKnown(err error) error {
	return refuse("run this on the node itself, once its kubelet has joined a cluster",
		"whom pods ask is not known: %v", err)
}

// readFiles finds the list that the files name: a flag, else the
// configuration.
func (f *found) readFiles() error {
	all, err := flags(f.words())
	if err == nil {
		err = f.readFlags(all)
	}
	if err != nil {
		return refuse("mend the unit first: systemctl cat "+f.Unit, "%s would not start: %v", f.Unit, err)
	}
	if f.Source != "" {
		return nil
	}
	if err := f.ourConfigs(); err != nil {
		return err
	}
	c, err := readConfig(f.node.Tree, f.conf, f.dir, f.isMine)
	if err != nil {
		return err
	}
	f.setConfig(c)
	return nil
}

func (f *found) readFlags(all []flag) error {
	f.all = all
	f.conf, _ = lastValue(all, "config")
	f.dir, _ = lastValue(all, "config-dir")
	if f.Kubeconfig == "" {
		f.Kubeconfig, _ = lastValue(all, "kubeconfig")
	}
	if f.NodeName == "" {
		f.NodeName, _ = lastValue(all, "hostname-override")
	}
	list, set, err := serversOf(all)
	if err != nil {
		return err
	}
	var places []string
	for _, fl := range all {
		if fl.name != clusterDNS {
			continue
		}
		f.dns = append(f.dns, fl)
		if p := f.place(f.args[fl.last]); !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	if set {
		f.setBase(list, FromUnit, "--cluster-dns in "+strings.Join(places, " and "))
	}
	return nil
}

// place is where an argument is written.
func (f *found) place(a unitfile.Arg) string {
	if v, ok := f.env.Get(a.Var); ok {
		return v.Name + " of " + v.File
	}
	return "ExecStart of " + f.cmd.Setting.File
}

func (f *found) setConfig(c setting) {
	if !c.set {
		return
	}
	source := FromConfig
	if c.file != f.conf {
		source = FromConfigDir
	}
	f.setBase(c.list, source, "clusterDNS in "+c.file)
}

func (f *found) setBase(entries []string, source Source, where string) {
	f.list = parseServers(entries)
	f.Source, f.Where = source, where
	f.Base = Base(f.list, f.want.Addresses)
	f.Now, f.NowFrom = f.list, where
	f.dropped(entries, where)
}

// dropped notes entries that the kubelet throws away, and says so only in its
// log.
func (f *found) dropped(entries []string, where string) {
	for _, e := range entries {
		if _, ok := parseServer(e); !ok {
			f.note("the kubelet drops %q, which is no address (%s)", e, where)
		}
	}
}

func (f *found) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(f.Notes, n) {
		f.Notes = append(f.Notes, n)
	}
}

func (f *found) runningWhere() string {
	return fmt.Sprintf("--cluster-dns of the running kubelet (pid %d)", f.PID)
}

// running looks at the kubelet that runs. What it was started with is whom
// pods ask now, whatever the files have become; a list of its own, without us
// in front, is also whom they would ask without us.
func (f *found) running() error {
	if f.node.Running == nil {
		if f.PID == 0 && len(f.ours) > 0 {
			f.nowByFiles()
		}
		return nil
	}
	p, err := f.node.Running(f.Unit)
	if err != nil {
		return fmt.Errorf("looking for the kubelet of %s: %w", f.Unit, err)
	}
	if p == nil {
		if len(f.ours) > 0 {
			f.nowByFiles()
		}
		return nil
	}
	at := kubeletWord(p.Argv)
	if at < 0 {
		return nil
	}
	all, err := flags(p.Argv[at+1:])
	if err != nil {
		return nil //nolint:nilerr // it runs, so it is another program's idea of flags than ours: the files tell
	}
	f.PID, f.all = p.PID, all
	if k, ok := lastValue(all, "kubeconfig"); ok {
		f.Kubeconfig = k
	}
	if n, ok := lastValue(all, "hostname-override"); ok {
		f.NodeName = n
	}
	entries, set, err := serversOf(all)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	if !set {
		conf, _ := lastValue(all, "config")
		dir, _ := lastValue(all, "config-dir")
		c, err := readConfig(f.node.Tree, conf, dir, nil)
		if errors.Is(err, fs.ErrNotExist) && f.Source == "" {
			// One that waits for kubeadm join, in the moment that each of its
			// lives lasts.
			f.PID = 0
			return nil
		}
		if err != nil {
			return nil //nolint:nilerr // it started with files that have gone since: the present ones tell
		}
		if f.Source == "" && conf == f.conf && dir == f.dir {
			f.setConfig(c)
		}
		f.Now, f.NowFrom = parseServers(c.list), "clusterDNS in "+c.file
		return nil
	}
	now := parseServers(entries)
	// With our file there, the list is most likely what we made it, perhaps
	// with an older address of ours: then the files tell what is not ours.
	if mine := len(f.ours) > 0 && f.Source != ""; !mine && (len(now) == 0 || now[0] != f.want.Addresses[0]) {
		files, had := f.list, f.Source
		f.setBase(entries, FromRunning, f.runningWhere())
		if had != "" && !slices.Equal(files, now) {
			f.note("the running kubelet asks %s, its files now say %s: they count from its next start", named(now), named(files))
		}
		f.list = files
		if had == "" {
			f.list = now
		}
	}
	f.Now, f.NowFrom = now, f.runningWhere()
	return nil
}

// nowByFiles is whom a kubelet would ask that started now, with our file.
func (f *found) nowByFiles() {
	all, err := unitfile.Load(f.node.Tree, f.Unit, f.node.Host)
	if err != nil {
		return
	}
	g := &found{node: f.node, want: f.want, unit: all, Facts: Facts{Unit: f.Unit}, whole: true}
	if g.command() == nil && g.expand() == nil && g.readFiles() == nil {
		f.Now, f.NowFrom = g.Now, g.NowFrom
	}
}

// ourConfigs finds our files in the configuration directory.
func (f *found) ourConfigs() error {
	if f.dir == "" || f.whole {
		return nil
	}
	for _, name := range fileNames {
		name = path.Join(f.dir, name)
		mine, err := isOurs(f.node.Tree, name)
		if err != nil {
			return err
		}
		if mine {
			f.ours = append(f.ours, name)
		}
	}
	return nil
}

func (f *found) isMine(name string) bool { return slices.Contains(f.ours, name) }

// decide ends the search: it asks the API server or our configuration where
// the node itself tells nothing useful, and computes the target.
func (f *found) decide(ctx context.Context) error {
	for _, a := range f.Now {
		if isAKS(a) && !slices.Contains(f.want.Addresses, a) {
			return refuse("turn LocalDNS off for this node pool (az aks nodepool update --localdns-config), or keep it and do without us",
				"AKS LocalDNS is in charge: pods ask %s", named(f.Now))
		}
	}
	if strings.HasPrefix(f.Program, "/home/kubernetes/bin/") && len(f.ours) == 0 && slices.Contains(f.Now, nodeLocal[0]) {
		return refuse("turn the NodeLocal DNSCache add-on off, or keep it and do without us",
			"GKE's NodeLocal DNSCache is in charge: pods ask %s", named(f.Now))
	}
	if len(f.Base) == 0 {
		if err := f.ask(ctx); err != nil {
			return err
		}
	}
	f.Target, f.Cut = Target(f.want.Addresses, f.Base)
	if len(f.Cut) > 0 {
		f.note("pods have %d nameservers at most: %s is left out", MaxServers, named(f.Cut))
	}
	f.Already = len(f.ours) == 0 && slices.Equal(f.Target, f.list)
	return nil
}

// ask is for a node that names no kube-dns: nobody at all, or node-local
// caches alone.
func (f *found) ask(ctx context.Context) error {
	why := "the kubelet has neither --cluster-dns nor clusterDNS"
	if f.Source != "" {
		why = fmt.Sprintf("%s names no kube-dns: %s", f.Where, named(f.list))
	}
	next := "set cluster.dns in our configuration to the address of the service kube-system/kube-dns"
	if slices.ContainsFunc(f.list, func(a netip.Addr) bool {
		return isNodeLocal(a) && !slices.Contains(f.want.Addresses, a)
	}) {
		next += ", and turn the other node-local cache off when pods no longer name it"
	}
	if len(f.want.Servers) > 0 {
		f.Base, f.Source, f.Where = Base(f.want.Servers, f.want.Addresses), FromUs, "cluster.dns in our configuration"
	} else if f.node.Service != nil && f.Kubeconfig != "" {
		if ok, err := isKubeconfig(f.node.Tree, f.Kubeconfig); err != nil || !ok {
			return refuse(next, "%s, and its credential %s cannot be used", why, f.Kubeconfig)
		}
		list, err := f.node.Service(ctx, f.node.Tree.Path(f.Kubeconfig))
		if err != nil {
			return refuse(next, "%s, and the API server does not tell: %v", why, err)
		}
		f.Base, f.Source, f.Where = Base(list, f.want.Addresses), FromService, "the service kube-system/kube-dns"
	}
	if len(f.Base) == 0 {
		return refuse(next, "%s", why)
	}
	return nil
}

func isAKS(a netip.Addr) bool { return a == nodeLocal[2] || a == nodeLocal[3] }

// Package pods finds the pods that run on this node and whom they ask for
// names, without asking anybody: from the processes in the pods' control groups
// and from the directories of the container runtime. A pod keeps the nameservers
// it started with for life, so this is how a node knows that an address is still
// needed.
package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"nodelocaldns/host/fsys"
)

// A Pod is a pod that runs on this node, as far as files and processes tell.
type Pod struct {
	Namespace, Name string // both empty where nothing tells them
	UID             string // as control groups have it: for a static pod that of its manifest, not of its mirror object

	// PID is a process of the pod, by which its network namespace can be
	// entered; 0 if none was seen, as of a pod in a virtual machine.
	PID int

	HostNetwork bool

	// Nameservers are all that its containers' resolv.conf name, in order,
	// each once.
	Nameservers []netip.Addr

	// OwnDNS says that its own dnsConfig names one of our addresses. Only
	// [Explain] knows.
	OwnDNS bool
}

// String is the pod as kubectl names it, or its UID.
func (p Pod) String() string {
	if p.Name == "" {
		return "pod " + p.UID
	}
	return p.Namespace + "/" + p.Name
}

// Naming returns those of all that name one of ours.
func Naming(all []Pod, ours []netip.Addr) []Pod {
	var out []Pod
	for _, p := range all {
		if slices.ContainsFunc(p.Nameservers, func(a netip.Addr) bool { return slices.Contains(ours, a) }) {
			out = append(out, p)
		}
	}
	return out
}

// A Finder looks for pods. The zero Finder looks at the running node; keep it
// for the next look, because it remembers what does not change. It may be used
// concurrently, one call at a time.
type Finder struct {
	Proc string    // a proc file system; empty: /proc
	Tree fsys.Tree // the files of the node that Proc is of

	mu    sync.Mutex
	specs map[string]bundle             // by directory
	stuck map[string]<-chan fileContent // reads that have not come back
	read  func(root, name string, most int64) ([]byte, error)
}

// logs is where the kubelet has a directory NAMESPACE_NAME_UID for each pod,
// made before its sandbox.
const logs = "/var/log/pods"

// kubelets is where it has a directory UID for each pod.
const kubelets = "/var/lib/kubelet/pods"

// Running returns the pods that run, sorted by namespace, name and UID. Where
// the error is not nil, they may be incomplete, or name more than they show:
// who needs to know that nobody names an address must not conclude it then. The
// error wraps fs.ErrPermission where rights were missing; without root little
// can be seen.
//
// Nothing that is in a pod can stop it, lead it elsewhere, or make it open
// anything but a regular file; a file that does not come within a second is an
// error. It returns early with the error of ctx when that is done.
//
// A pod runs if it has a process or a sandbox that the runtime holds: one whose
// containers all wait to be started again has only that.
func (f *Finder) Running(ctx context.Context) ([]Pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.read == nil {
		f.read = readFile
	}
	s := &scan{Finder: f, ctx: ctx, proc: f.Proc, pods: map[string]*entry{}, sandboxes: map[string]bool{}, done: map[string]bool{}}
	if s.proc == "" {
		s.proc = "/proc"
	}
	f.freed()
	if err := s.nameAll(); err != nil {
		return nil, err
	}
	held, err := s.bundles()
	for _, b := range held {
		if b.sandbox {
			s.sandboxes[b.id] = true
		}
	}
	err = errors.Join(err, s.processes())
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, b := range held {
		s.addBundle(b)
	}
	all, errs := s.result()
	return all, errors.Join(err, errs, ctx.Err())
}

// A scan is one look.
type scan struct {
	*Finder
	ctx  context.Context
	proc string

	names     map[string][2]string // namespace and name by UID
	pods      map[string]*entry    // by UID
	sandboxes map[string]bool      // the ids of containers that hold a pod's namespaces
	done      map[string]bool      // files that were read, by whose view and name

	// Namespaces of the node itself; empty until needed.
	hostMnt []string
	hostNet string
}

// An entry is a pod that is being put together.
type entry struct {
	Pod
	sandboxed []netip.Addr // named by the file of the sandbox
	seen      []netip.Addr // named by what its processes see
	main      bool         // PID is of the sandbox
	err       error        // the first thing that could not be read
}

func (s *scan) entry(uid string) *entry {
	e := s.pods[uid]
	if e == nil {
		e = &entry{Pod: Pod{UID: uid}}
		if n, ok := s.names[uid]; ok {
			e.Namespace, e.Name = n[0], n[1]
		}
		s.pods[uid] = e
	}
	return e
}

// nameAll learns the names of pods from the directories of their logs. Old ones
// stay there for a while, so they say nothing of what runs.
func (s *scan) nameAll() error {
	s.names = map[string][2]string{}
	dirs, err := s.Tree.ReadDir(logs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	for _, d := range dirs {
		// Neither namespaces nor names have underscores.
		if w := strings.Split(d.Name(), "_"); len(w) == 3 {
			s.names[w[2]] = [2]string{w[0], w[1]}
		}
	}
	return nil
}

// processes adds what every process in a pod's control group sees.
func (s *scan) processes() error {
	all, err := os.ReadDir(s.proc)
	if err != nil {
		return err
	}
	for _, d := range all {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if s.ctx.Err() != nil {
			return nil
		}
		dir := filepath.Join(s.proc, d.Name())
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if gone(err) {
			continue
		} else if err != nil {
			return err
		}
		m, ok := memberOf(string(groups))
		if !ok || !s.ofThisNode(dir, m.pod) {
			continue
		}
		if err := s.addProcess(pid, dir, m); err != nil && !gone(err) {
			if e := s.entry(m.pod); e.err == nil {
				e.err = err
			}
		}
	}
	return nil
}

// ofThisNode tells the pods of this node from those of others that run in
// containers on it: these are two process namespaces down or more, and the
// kubelet here does not know them. What cannot be told is ours.
func (s *scan) ofThisNode(dir, uid string) bool {
	if _, ok := s.names[uid]; ok {
		return true
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok && len(strings.Fields(pids)) > 2 {
			_, err := s.Tree.Lstat(path.Join(kubelets, uid))
			return !errors.Is(err, fs.ErrNotExist)
		}
	}
	return true
}

// addProcess adds what the process of dir sees. An error that is [gone] says
// that it has ended.
func (s *scan) addProcess(pid int, dir string, m member) error {
	if err := s.host(); err != nil {
		return err
	}
	mnt, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
	if gone(err) {
		// Where the first thread of a process has ended, the others go on.
		threads, _ := os.ReadDir(filepath.Join(dir, "task"))
		for _, t := range threads {
			if mnt, err = os.Readlink(filepath.Join(dir, "task", t.Name(), "ns/mnt")); err == nil {
				dir = filepath.Join(dir, "task", t.Name())
				break
			}
		}
	}
	if err != nil {
		return err
	}
	// What watches over containers or runs them as virtual machines is in the
	// pod's control group too, with the files of the node: it asks for itself.
	if slices.Contains(s.hostMnt, mnt) || servesPods(dir) {
		return nil
	}
	e := s.entry(m.pod)
	if main := s.sandboxes[m.container]; e.PID == 0 || main && !e.main {
		net, err := os.Readlink(filepath.Join(dir, "ns/net"))
		if err != nil {
			return err
		}
		e.PID, e.main, e.HostNetwork = pid, main, net == s.hostNet
	}
	root, err := os.Readlink(filepath.Join(dir, "root"))
	if err != nil {
		return err
	}
	// One file for all who share a view of it. Nothing above asks the file
	// systems of the pod anything: those may hang.
	view := mnt + " " + root
	if s.done[view] {
		return nil
	}
	text, err := s.wait(view, filepath.Join(dir, "root"), resolvConf, maxResolvConf)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		// There is none, or the process has ended: then there is another
		// look with the next one that has the same view.
		return nil
	case err != nil:
		s.done[view] = true
		return fmt.Errorf("reading %s as process %d sees it: %w", resolvConf, pid, err)
	}
	s.done[view] = true
	e.seen = append(e.seen, nameservers(text)...)
	return nil
}

// host learns the namespaces of the node: its network is ours, but its files are
// those of process 1, because a unit may have us see some otherwise.
func (s *scan) host() error {
	if s.hostMnt != nil {
		return nil
	}
	net, err := os.Readlink(filepath.Join(s.proc, "self/ns/net"))
	if err != nil {
		return err
	}
	own, err := os.Readlink(filepath.Join(s.proc, "self/ns/mnt"))
	if err != nil {
		return err
	}
	s.hostNet, s.hostMnt = net, []string{own}
	// In a container process 1 may have rights that we lack, and then it keeps
	// us from looking; who may not look at pods either hears of it there.
	switch first, err := os.Readlink(filepath.Join(s.proc, "1/ns/mnt")); {
	case err == nil:
		s.hostMnt = append(s.hostMnt, first)
	case !errors.Is(err, fs.ErrPermission):
		return err
	}
	return nil
}

// servesPods says that the process is no container: gVisor's sandbox and
// Kata's file server have mount namespaces of their own.
func servesPods(dir string) bool {
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	return err == nil && (path.Base(exe) == "runsc" || path.Base(exe) == "virtiofsd")
}

// addBundle adds what a bundle says of its pod.
func (s *scan) addBundle(b bundle) {
	if _, seen := s.pods[b.uid]; !seen && !b.lives(s.Tree) {
		return
	}
	e := s.entry(b.uid)
	if e.Name == "" {
		e.Namespace, e.Name = b.namespace, b.name
	}
	if e.PID == 0 && b.sandbox {
		e.HostNetwork = b.hostNetwork
	}
	if b.conf == "" || s.done[b.conf] {
		return
	}
	s.done[b.conf] = true
	text, err := s.wait(b.conf, s.Tree.String(), b.conf, maxResolvConf)
	switch {
	case errors.Is(err, fs.ErrNotExist): // its directory is being taken away
	case err != nil:
		if e.err == nil {
			e.err = fmt.Errorf("reading %s: %w", b.conf, err)
		}
	default:
		e.sandboxed = append(e.sandboxed, nameservers(text)...)
	}
}

// maxErrors is how many pods are named that could not be looked at.
const maxErrors = 3

func (s *scan) result() ([]Pod, error) {
	var all []Pod
	var errs []*entry
	for _, e := range s.pods {
		e.Nameservers = unique(append(e.sandboxed, e.seen...))
		all = append(all, e.Pod)
		if e.err != nil {
			errs = append(errs, e)
		}
	}
	slices.SortFunc(all, comparePods)
	slices.SortFunc(errs, func(a, b *entry) int { return comparePods(a.Pod, b.Pod) })
	var out []error
	for i, e := range errs {
		if i == maxErrors {
			out = append(out, fmt.Errorf("and %d more pods", len(errs)-i))
			break
		}
		out = append(out, fmt.Errorf("looking at %s: %w", e.Pod, e.err))
	}
	return all, errors.Join(out...)
}

func comparePods(a, b Pod) int {
	return slices.Compare([]string{a.Namespace, a.Name, a.UID}, []string{b.Namespace, b.Name, b.UID})
}

func unique(all []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// gone says that a process ended while we looked.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// patience is how long the file of a pod may take. It comes out of memory as a
// rule; on a network or FUSE file system whose server hangs it never comes.
const patience = time.Second

// maxStuck is how many reads may hang at a time: each holds a thread, until its
// file system answers.
const maxStuck = 8

type fileContent struct {
	text []byte
	err  error
}

// wait reads a file that may never come. Whose view it is of says what hangs,
// so that this is not tried again while it does.
func (f *Finder) wait(view, root, name string, most int64) ([]byte, error) {
	if _, ok := f.stuck[view]; ok {
		return nil, errStuck
	} else if len(f.stuck) >= maxStuck {
		return nil, errManyStuck
	}
	ch := make(chan fileContent, 1)
	go func() {
		text, err := f.read(root, name, most)
		ch <- fileContent{text, err}
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case c := <-ch:
		return c.text, c.err
	case <-timer.C:
		if f.stuck == nil {
			f.stuck = map[string]<-chan fileContent{}
		}
		f.stuck[view] = ch
		return nil, errStuck
	}
}

var (
	errStuck     = errors.New("its file system does not answer")
	errManyStuck = fmt.Errorf("not tried: %d file systems do not answer already", maxStuck)
)

// freed forgets the reads that have come back since.
func (f *Finder) freed() {
	for view, ch := range f.stuck {
		select {
		case <-ch:
			delete(f.stuck, view)
		default:
		}
	}
}

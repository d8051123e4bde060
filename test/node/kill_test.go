package node

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"nodelocaldns/host/engine"
)

// stateDir is where nodelocaldns keeps what is to outlast a reboot.
const stateDir = "var/lib/nodelocaldns"

// written are the directories that a window writes to, from the root of the node.
var written = []string{stateDir, "etc/systemd/system", "etc/systemd/system/kubelet.service.d"}

// A killer kills a process right at one of its lasting writes. It goes by the
// permission events of fanotify(7): whoever opens one of the directories, or
// what is in them, stands still until he is let go on, or killed. A write has
// two such moments: its temporary file was just made, which is before the
// rename; and the directory is opened to be synced, right after the rename. What
// is made or removed without a temporary file has the second one. Reading opens
// too, but leaves the directories as they were the time before.
type killer struct {
	node   *Node
	events *os.File

	last   map[string]string // the files in the directories: what they hold
	writes []string          // what was different, time by time
}

func newKiller(t *testing.T, n *Node) *killer {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	must(t, err)
	k := &killer{node: n, events: os.NewFile(uintptr(fd), "fanotify")}
	must(t, k.watch())
	k.last, err = k.look()
	must(t, err)
	return k
}

// watch begins with the directories that are there by now.
func (k *killer) watch() error {
	for _, dir := range written {
		err := unix.FanotifyMark(int(k.events.Fd()), unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR,
			unix.FAN_OPEN_PERM|unix.FAN_ONDIR|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, filepath.Join(k.node.Root, dir))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("watching %s: %w", dir, err)
		}
	}
	return nil
}

// look reads the directories: in the layer that the node's writes go to, where
// nobody stands still who opens something.
func (k *killer) look() (map[string]string, error) {
	layer := filepath.Join(filepath.Dir(k.node.Root), "upper")
	files := map[string]string{}
	for _, dir := range written {
		entries, err := os.ReadDir(filepath.Join(layer, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			data := []byte(e.Type().String())
			if e.Type().IsRegular() {
				data, err = os.ReadFile(filepath.Join(layer, name))
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return nil, err
				}
			}
			files[name] = string(data)
		}
	}
	return files, nil
}

// follow lets everybody go on, and kills a child of parent when it has made as
// many writes. It returns when the events are closed.
func (k *killer) follow(parent, number int) error {
	buffer := make([]byte, 4096)
	for {
		size, err := k.events.Read(buffer)
		if errors.Is(err, os.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		for all := bytes.NewReader(buffer[:size]); all.Len() > 0; {
			var e unix.FanotifyEventMetadata
			if err := binary.Read(all, binary.NativeEndian, &e); err != nil {
				return err
			}
			err := k.event(int(e.Pid), parent, number)
			answer := binary.NativeEndian.AppendUint32(nil, uint32(e.Fd))
			_, werr := k.events.Write(binary.NativeEndian.AppendUint32(answer, unix.FAN_ALLOW))
			err = errors.Join(err, unix.Close(int(e.Fd)))
			if errors.Is(werr, os.ErrClosed) {
				return err // who asked has ended, or goes on by that
			}
			if err := errors.Join(err, werr); err != nil {
				return err
			}
		}
	}
}

// event looks at what was written by the process pid, which stands still, if it
// is a child of parent.
func (k *killer) event(pid, parent, number int) error {
	if is, err := parentOf(pid); err != nil || is != parent || len(k.writes) == number {
		return err
	}
	now, err := k.look()
	if err != nil || maps.Equal(k.last, now) {
		return err
	}
	k.writes, k.last = append(k.writes, difference(k.last, now)), now
	if len(k.writes) == number {
		return unix.Kill(pid, unix.SIGKILL)
	}
	return k.watch()
}

// parentOf is 0 for a process that is gone.
func parentOf(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	// After the name, in brackets: state, parent.
	return strconv.Atoi(strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))[1])
}

var random = regexp.MustCompile(`\d{6,}$`)

// difference is what was made (+), replaced (=) and removed (-).
func difference(before, now map[string]string) string {
	var all []string
	add := func(sign, name string) {
		all = append(all, sign+random.ReplaceAllString(path.Base(name), "*"))
		if text, ok := now[name]; ok && name == stateDir+"/journal.json" {
			all = append(all, records(text)...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		switch was, ok := before[name]; {
		case !ok:
			add("+", name)
		case was != now[name]:
			add("=", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, ok := now[name]; !ok {
			add("-", name)
		}
	}
	return strings.Join(all, " ")
}

// records are those of a journal that have to do with the kubelet.
func records(text string) (all []string) {
	var journal struct{ Records []engine.Record }
	if err := json.Unmarshal([]byte(text), &journal); err != nil {
		return []string{err.Error()}
	}
	for _, r := range journal.Records {
		switch name, ok := strings.CutPrefix(r.Name, "window/"); {
		case ok:
			all = append(all, fmt.Sprintf("(%s %s)", name, cmp.Or(string(r.Stage), "opening")))
		case strings.HasPrefix(r.Name, "kubelet/"):
			all = append(all, fmt.Sprintf("(%s %t)", r.Name, r.Done))
		}
	}
	return all
}

// killedAt runs nodelocaldns on the node and kills it at its write with a number,
// counted from 1. One that ends before has to end well.
func killedAt(t *testing.T, n *Node, number int, args ...string) (writes []string, killed bool) {
	t.Helper()
	k := newKiller(t, n)
	w := begin(t, n, args...)
	followed := make(chan error, 1)
	go func() {
		err := k.follow(w.cmd.Process.Pid, number)
		followed <- err
		_ = k.events.Close() // lets go on whoever stands still
	}()
	w.gone()
	_ = k.events.Close()
	must(t, <-followed)
	killed = len(k.writes) == number
	if code := w.cmd.ProcessState.ExitCode(); killed != (code == -1) || !killed && code != 0 {
		t.Fatalf("%s: %s after %d writes, killed at %d: %t\n%s", w.what, w.cmd.ProcessState, len(k.writes), number, killed, &w.said)
	}
	return k.writes, killed
}

// What is killed here, and what comes after it.
var (
	cordonedApply    = []string{"apply", "--drain=cordon"}
	cordonedRollback = append([]string{"rollback", "--drain=cordon"}, theRest...)
)

// killedAtEach has f kill apply at each of its writes, by its number, on nodes
// that node returns, on which our units are. They work in parallel, in subtests
// that begin when t returns.
func killedAtEach(t *testing.T, nodes int, node func(t *testing.T, i int) *Node, f func(t *testing.T, n *Node, number int) (killed bool)) {
	t.Helper()
	var number, last atomic.Int64
	last.Store(math.MaxInt64)
	for i := range nodes {
		t.Run(fmt.Sprint("node ", i+1), func(t *testing.T) {
			t.Parallel()
			n := node(t, i)
			// One of them finds out how many there are.
			if i == 0 {
				writes, _ := killedAt(t, n, math.MaxInt, cordonedApply...)
				begin(t, n, cordonedRollback...).ends(0)
				all := strings.Join(writes, "\n")
				t.Logf("apply writes %d times:\n%s", len(writes), all)
				contains(t, "apply", all, "=journal.json (kubelet opening)", "=journal.json (kubelet opened)", "+99-nodelocaldns.conf",
					"=journal.json (kubelet opened) (kubelet/cluster-dns true)", "=journal.json (kubelet settled)", "=journal.json (kubelet/cluster-dns true)")
				last.Store(int64(len(writes)))
			}
			for {
				now := number.Add(1)
				if now > last.Load() {
					return
				}
				if !f(t, n, int(now)) {
					t.Errorf("apply came to its end before its write %d", now)
				}
			}
		})
	}
}

// worn returns a node on which apply and rollback have been: all that they write
// from then on is the window's.
func worn(t *testing.T, n *Node) *Node {
	t.Helper()
	begin(t, n, cordonedApply...).ends(0)
	begin(t, n, cordonedRollback...).ends(0)
	return n
}

// And by an apply, with a limit: TestTwoNodesAreNeverAwayAtOnceAndNoneForEver.
func TestAWindowThatIsKilledAtAnyWriteIsClosedByARollback(t *testing.T) {
	t.Parallel()
	fresh := func(t *testing.T, _ int) *Node { t.Helper(); return worn(t, bootWith(t, quick)) }
	killedAtEach(t, 2, fresh, func(t *testing.T, n *Node, number int) bool {
		writes, killed := killedAt(t, n, number, cordonedApply...)
		begin(t, n, cordonedRollback...).ends(0)
		ends(t, fmt.Sprintf("apply, killed at write %d, %s, and rollback", number, writes[len(writes)-1]), n, asBeforeUs)
		return killed
	})
}

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/drain"
)

// A pty is a terminal of the kernel's, and all that was written to it.
type pty struct {
	*os.File // its end for programs
	master   *os.File
	all      chan string
}

func newPty(t *testing.T) *pty {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	p := &pty{slave, master, make(chan string, 1)}
	go func() {
		var all strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // an error when the other end is closed
			all.Write(buf[:n])
			if err != nil {
				p.all <- all.String()
				return
			}
		}
	}()
	return p
}

func (p *pty) columns(t *testing.T, n uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: n}); err != nil {
		t.Fatal(err)
	}
}

var live = regexp.MustCompile("\r([^\r\n]*?)\x1b\\[K")

// written is what was written to it: live lines in angle brackets, and what
// takes one away as empty ones.
func (p *pty) written() string {
	_ = p.Close()
	return live.ReplaceAllString(strings.ReplaceAll(<-p.all, "\r\n", "\n"), "<$1>")
}

// left are pods by name. One is ending, or kept by the budget after a colon.
func left(names ...string) (all []drain.Left) {
	for _, name := range names {
		name, pdb, kept := strings.Cut(name, ":")
		l := drain.Left{Pod: apiserver.Pod{Namespace: "shop", Name: name, Terminating: !kept}}
		if kept {
			l.Err = &apiserver.Blocked{PDBs: []string{pdb}, Why: "not now"}
		}
		all = append(all, l)
	}
	return all
}

// evict is an eviction of three pods, with what others say meanwhile.
func evict(a *app, gone bool, resize func(columns uint16)) error {
	tell := a.evicting()
	p := drain.Progress{Total: 3, Until: time.Now().Add(time.Minute)}
	step := func(after time.Duration, names ...string) {
		p.Left = left(names...)
		tell(p)
		time.Sleep(after)
	}
	a.note("cordoned (node n1)")
	step(1500*time.Millisecond, "web-1", "web-2:web", "web-3:web")
	a.voice().Warn("somebody else is slow", "why", "it is")
	step(100*time.Millisecond, "web-2:web", "web-3:web")
	a.print("a result\n")
	step(100*time.Millisecond, "web-2:web", "web-3:web") // the same
	resize(40)
	step(time.Second, "web-2:web", "web-3")
	resize(1)
	step(time.Second, "web-3")
	resize(0)
	step(time.Second, "web-3")
	var err error
	if p.Over = true; gone {
		p.Left = nil
	} else {
		err = withHint(errors.New("1 of 3 pods is left after 1m0s: shop/web-3 is ending"), "wait")
	}
	tell(p)
	return err
}

const plainly = `nodelocaldns: cordoned (node n1)
nodelocaldns: evicting: 3 of 3 pods left; shop/web-1 is ending; shop/web-2 is kept by PodDisruptionBudget web; shop/web-3 is kept by PodDisruptionBudget web
nodelocaldns: warning: somebody else is slow (why it is)
nodelocaldns: evicting: 2 of 3 pods left; shop/web-2 is kept by PodDisruptionBudget web; shop/web-3 is kept by PodDisruptionBudget web
a result
nodelocaldns: evicting: 2 of 3 pods left; shop/web-2 is kept by PodDisruptionBudget web; shop/web-3 is ending
nodelocaldns: evicting: 1 of 3 pods left; shop/web-3 is ending
`

func TestAnEvictionIsTheLastLineOfATerminalUntilItIsOver(t *testing.T) {
	const alive = `nodelocaldns: cordoned (node n1)
<nodelocaldns: evicting: 3 of 3 pods left, 1m0s to go; PDB shop/web keeps web-2, web-3; shop/web-1 …>` +
		`<nodelocaldns: evicting: 3 of 3 pods left, 59s to go; PDB shop/web keeps web-2, web-3; shop/web-1 i…>` +
		`<>nodelocaldns: warning: somebody else is slow (why it is)
<nodelocaldns: evicting: 3 of 3 pods left, 59s to go; PDB shop/web keeps web-2, web-3; shop/web-1 i…>` +
		`<nodelocaldns: evicting: 2 of 3 pods left, 59s to go; PDB shop/web keeps web-2, web-3>` +
		`<>a result
<nodelocaldns: evicting: 2 of 3 pods left, 58s to go; PDB shop/web keeps web-2, web-3>` +
		`<nodelocaldns: evicting: 2 of 3 pods left, 58s to go; PDB shop/web keeps web-2, web-3>` +
		`<nodelocaldns: evicting: 2 of 3 pods le…>` +
		`<nodelocaldns: evicting: 2 of 3 pods le…>` +
		`<><>` + // a column wide
		`<nodelocaldns: evicting: 1 of 3 pods left, 56s to go; shop/web-3 is ending>` + // of whatever width
		`<nodelocaldns: evicting: 1 of 3 pods left, 56s to go; shop/web-3 is ending>` +
		`<>`
	for _, tt := range []struct {
		name string
		gone bool
		code int
		want string
	}{
		{"all are gone", true, exitOK, alive + "nodelocaldns: evicting: 3 pods gone\n"},
		{"one is left", false, exitError, alive + "nodelocaldns: error: 1 of 3 pods is left after 1m0s: shop/web-3 is ending\nnodelocaldns: hint: wait\n"},
	} {
		tty := newPty(t)
		tty.columns(t, 100)
		synctest.Test(t, func(t *testing.T) {
			a := &app{term: newTerm(tty.File, tty.File, "xterm")}
			err := evict(a, tt.gone, func(n uint16) { tty.columns(t, n) })
			if code := a.exit(err); code != tt.code {
				t.Errorf("%s: exit code %d", tt.name, code)
			}
		})
		if diff := cmp.Diff(tt.want, tty.written()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestAnEvictionIsALineForEachChangeElsewhere(t *testing.T) {
	for _, tt := range []struct {
		name string
		gone bool
		want string
	}{
		{"all are gone", true, plainly + "nodelocaldns: evicting: 3 pods gone\n"},
		{"one is left", false, plainly + "nodelocaldns: error: 1 of 3 pods is left after 1m0s: shop/web-3 is ending\nnodelocaldns: hint: wait\n"},
	} {
		run := func(t *testing.T, out *os.File, kind string) {
			synctest.Test(t, func(t *testing.T) {
				a := &app{term: newTerm(out, out, kind)}
				a.exit(evict(a, tt.gone, func(uint16) {}))
			})
		}
		for _, kind := range []string{"dumb", ""} {
			tty := newPty(t)
			run(t, tty.File, kind)
			if diff := cmp.Diff(tt.want, tty.written()); diff != "" {
				t.Errorf("%s on a terminal %q (-want +got):\n%s", tt.name, kind, diff)
			}
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		run(t, w, "xterm")
		_ = w.Close()
		var got strings.Builder
		if _, err := r.WriteTo(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got.String()); diff != "" {
			t.Errorf("%s on a pipe (-want +got):\n%s", tt.name, diff)
		}
	}
}

// What is read by a program from standard output is not for the terminal.
func TestALiveLineIsOfTheTerminalAlone(t *testing.T) {
	tty := newPty(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	tm := newTerm(w, tty.File, "xterm")
	tm.live(func() string { return "at work" })
	tm.print("{\n")
	tm.print("}")
	tm.live(nil)
	_ = w.Close()
	var got strings.Builder
	if _, err := r.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	if got.String() != "{\n}" {
		t.Errorf("standard output: %q", &got)
	}
	if got := tty.written(); got != "<nodelocaldns: at work><>" {
		t.Errorf("the terminal: %q", got)
	}
}

func TestALiveLineWaitsForTheEndOfALine(t *testing.T) {
	tty := newPty(t)
	tm := newTerm(tty.File, tty.File, "xterm")
	tm.live(func() string { return "at work" })
	tm.print("half a")
	tm.live(func() string { return "still at work" })
	tm.print(" line\n")
	tm.live(nil)
	tm.print("the end\n")
	const want = "<nodelocaldns: at work><>half a line\n<nodelocaldns: still at work><>the end\n"
	if diff := cmp.Diff(want, tty.written()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// shown is what stands on a terminal of a hundred columns in the end.
func shown(written string) []string {
	lines, at, col := [][]rune{nil}, 0, 0
	put := func(r rune) {
		if col == 100 {
			lines, at, col = append(lines, nil), at+1, 0
		}
		for len(lines[at]) <= col {
			lines[at] = append(lines[at], ' ')
		}
		lines[at][col] = r
		col++
	}
	for rest := written; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		switch {
		case r == '\r':
			col = 0
		case r == '\n':
			lines, at = append(lines, nil), at+1
		case strings.HasPrefix(rest, eraseRest):
			lines[at] = lines[at][:min(col, len(lines[at]))]
			size = len(eraseRest)
		default:
			put(r)
		}
		rest = rest[size:]
	}
	var out []string
	for _, l := range lines {
		out = append(out, string(l))
	}
	return out
}

func TestNothingThatIsSaidMeanwhileIsMangled(t *testing.T) {
	tty := newPty(t)
	tty.columns(t, 100)
	var want []string
	synctest.Test(t, func(t *testing.T) {
		a := &app{term: newTerm(tty.File, tty.File, "xterm"), level: slog.LevelInfo}
		n := 0
		var all sync.WaitGroup
		says := func(say func(text string)) {
			who := n
			n++
			for i := range 50 {
				want = append(want, fmt.Sprintf("%d %d", who, i))
			}
			all.Go(func() {
				for i := range 50 {
					say(fmt.Sprintf("%d %d", who, i))
					if i%10 == 0 {
						time.Sleep(100 * time.Millisecond)
					}
				}
			})
		}
		says(a.note)
		says(a.warn)
		says(func(text string) { a.print("%s\n", text) })
		says(func(text string) { a.voice().Info(text) })
		says(func(text string) { a.logger().Info(text) })
		all.Go(func() {
			for i := range 100 {
				a.live(func() string { return fmt.Sprintf("live %d%s", i, strings.Repeat(" and on", i)) })
				time.Sleep(10 * time.Millisecond)
			}
		})
		all.Wait()
		a.live(nil)
	})
	var got []string
	_ = tty.Close()
	for _, line := range shown(<-tty.all) {
		if _, text, ok := strings.Cut(line, `msg="`); ok {
			line = strings.TrimSuffix(text, `"`)
		}
		line = strings.TrimPrefix(strings.TrimPrefix(line, "nodelocaldns: "), "warning: ")
		if line != "" {
			got = append(got, line)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestALineIsCutToTheColumnsThatThereAre(t *testing.T) {
	for _, tt := range []struct {
		text string
		n    int
		want string
	}{
		{"evicting", 9, "evicting"},
		{"evicting", 8, "evicting"},
		{"evicting", 7, "evicti…"},
		{"evicting", 1, "…"},
		{"evicting", 0, ""},
		{"evicting", -1, ""},
		{"gewährt…", 8, "gewährt…"},
		{"a\x1b[2Jb\nc\td\u009b", 20, "a [2Jb c d "},
	} {
		if got := cut(tt.text, tt.n); got != tt.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tt.text, tt.n, got, tt.want)
		}
	}
}

func TestWhatKeepsAnEvictionIsSaidFirst(t *testing.T) {
	now := time.Now()
	away := drain.Left{Pod: apiserver.Pod{Namespace: "db", Name: "pg-0"}, Err: errors.New("the API server does not allow it")}
	unnamed := drain.Left{Pod: apiserver.Pod{Namespace: "db", Name: "pg-1"}, Err: &apiserver.Blocked{Why: "not now"}}
	asked := drain.Left{Pod: apiserver.Pod{Namespace: "db", Name: "pg-2"}}
	for _, tt := range []struct {
		name string
		p    drain.Progress
		want string
	}{
		{"one pod, for ever", drain.Progress{Total: 1, Left: left("web-1")}, "evicting: 1 of 1 pod left; shop/web-1 is ending"},
		{"two budgets", drain.Progress{Total: 9, Left: left("web-1", "web-2:web", "api-1:api", "web-3:web"), Until: now.Add(70 * time.Second)},
			"evicting: 4 of 9 pods left, 1m10s to go; PDB shop/api keeps api-1; PDB shop/web keeps web-2, web-3; shop/web-1 is ending"},
		{"all ways", drain.Progress{Total: 5, Left: append(left("web-1"), asked, away, unnamed), Until: now.Add(-time.Second), Err: apiserver.ErrUnreachable},
			"evicting: 4 of 5 pods left, 0s to go; no reply from the API server; db/pg-0: the API server does not allow it; " +
				"db/pg-1 is kept by a PodDisruptionBudget: not now; shop/web-1 is ending; db/pg-2 is about to be evicted"},
	} {
		if got := evictingNow(tt.p, now); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

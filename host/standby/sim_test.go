package standby

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/host/fsys"
)

// A life is what becomes of a program from its start: it gets ready after a
// time, and ends after a time; never where that is zero.
type life struct {
	ready, end time.Duration
	result     string
	status     int32
}

var (
	serves = life{ready: 20 * time.Millisecond}
	relays = life{ready: 35 * time.Millisecond}
	fails  = life{end: 30 * time.Millisecond, result: "exit-code", status: 2} // as after a panic
	quits  = life{end: 30 * time.Millisecond, result: "exit-code", status: 1} // which is not started again
	hangs  = life{}
)

// A node is a systemd with our units as far as this package sees them: what it
// does is done after the times that it takes, by the clock of the bubble. It
// writes down what happens.
type node struct {
	sync.Mutex
	t       *testing.T
	dir     fsys.Dir
	booted  time.Time
	began   time.Time
	changed chan struct{}
	log     strings.Builder // what happens, and what guard does

	resolver, relay program
	socket          Unit
	load            string // of the resolver

	mute   bool // it tells nobody of changes
	deaf   bool // it answers no question
	refuse map[Action]bool
	off    bool // a rollback has finished
	offErr error

	guard func()        // stops the present one
	said  *bytes.Buffer // what guards have logged
}

// A program is a unit that is a process.
type program struct {
	n      *node
	name   string
	pause  time.Duration // RestartSec=
	limit  int           // StartLimitBurst= in ten seconds, 0 for none
	stops  time.Duration // how long its end takes; from ten seconds on it is killed
	life   life          // of each of its processes from now on
	state  Resolver
	starts int           // since
	since  time.Duration // a moment at most ten seconds ago
	turn   int           // of states: a timer of another one does nothing
	flush  bool          // the next start by a job forgets Restarts: not after one that was about to be started again (systemd 252)
}

// on runs the test on a node that has been up for an hour, on which both
// programs do what they should and the resolver runs.
func on(t *testing.T, test func(n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := &node{t: t, dir: fsys.Dir(t.TempDir()), booted: time.Now(), changed: make(chan struct{}, 1), load: "loaded", said: new(bytes.Buffer)}
		n.socket = Unit{Load: "loaded", Active: "active", Sub: "listening"}
		inactive := Resolver{Unit: Unit{Load: "loaded", Active: "inactive", Sub: "dead"}, Result: "success"}
		n.resolver = program{n: n, name: "resolver", pause: 2 * time.Millisecond, limit: 30, stops: 20 * time.Millisecond, state: inactive}
		n.relay = program{n: n, name: "relay", pause: time.Second, stops: 35 * time.Millisecond, state: inactive}
		n.resolver.life, n.relay.life = serves, relays
		time.Sleep(time.Hour)
		n.resolver.start()
		after(10 * time.Minute)
		n.began = time.Now()
		n.log.Reset()
		test(n)
		if n.guard != nil {
			n.guard()
		}
		// What is still to happen on this node does not.
		n.Lock()
		n.resolver.turn, n.relay.turn = -1, -1
		n.Unlock()
		time.Sleep(time.Hour)
	})
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// guarded starts a guard, and kills one that runs.
func (n *node) guarded() {
	n.unguarded()
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		log := slog.New(slog.NewTextHandler(n.said, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		Run(ctx, Deps{Systemd: n, Dir: n.dir, Wanted: n.wanted, Log: log, Now: time.Now})
	}()
	n.guard = func() { cancel(); <-done }
	synctest.Wait()
}

func (n *node) unguarded() {
	if n.guard != nil {
		n.guard()
		n.guard = nil
	}
}

func (n *node) wanted() (bool, error) {
	n.Lock()
	defer n.Unlock()
	return !n.off, n.offErr
}

// note writes down what happens.
func (n *node) note(format string, args ...any) {
	fmt.Fprintf(&n.log, "%8.2f  %s\n", time.Since(n.began).Seconds(), fmt.Sprintf(format, args...))
}

// happened is what has happened since the last time, and what of it was written
// for people.
func (n *node) happened() string {
	n.Lock()
	defer n.Unlock()
	out := n.log.String()
	n.log.Reset()
	text, err := os.ReadFile(n.dir.Path(file))
	if err == nil {
		var st State
		if st, err = Read(n.dir); err == nil {
			next := "under way"
			if st.NextTry != nil {
				next = fmt.Sprintf("%.2f", st.NextTry.Sub(n.began).Seconds())
			}
			return out + fmt.Sprintf("   state  since %.2f: %s; %d tries, next %s\n", st.Since.Sub(n.began).Seconds(), st.Why, st.Tries, next)
		}
		return out + string(text)
	}
	return out
}

// saying compares what guards have logged.
func (n *node) saying(want string) {
	n.t.Helper()
	if got := n.said.String(); got != strings.TrimPrefix(want, "\n") {
		n.t.Errorf("it was logged:\n%swant:%s", got, want)
	}
	n.said.Reset()
}

func (n *node) set(do func()) {
	n.Lock()
	defer n.Unlock()
	do()
}

func (n *node) tell() {
	if n.mute {
		return
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *node) Changed(context.Context) <-chan struct{} { return n.changed }

func (n *node) Look(context.Context) (Snapshot, error) {
	n.Lock()
	defer n.Unlock()
	if n.deaf {
		return Snapshot{}, errors.New("systemd does not answer")
	}
	s := Snapshot{At: time.Since(n.booted), Resolver: n.resolver.state, Relay: n.relay.state.Unit, Socket: n.socket}
	s.Resolver.Load = n.load
	return s, nil
}

func (n *node) Do(_ context.Context, a Action) error {
	n.Lock()
	defer n.Unlock()
	n.note("guard: %s", a)
	if n.refuse[a] {
		return errors.New("transaction is destructive")
	}
	switch a {
	case StartSocket:
		if n.relay.state.Up() {
			return errors.New("its service is active already")
		}
		n.socket.Active = "active"
	case StartRelay:
		n.relay.begin(false)
	case StopRelay:
		n.relay.finish()
	case StartResolver:
		n.resolver.begin(false)
	case StopResolver:
		n.resolver.finish()
	}
	return nil
}

// What people do.

func (p *program) does(l life) { p.n.set(func() { p.life = l }) }

func (p *program) start()   { p.byHand("started", func() { p.begin(false) }) }
func (p *program) stop()    { p.byHand("stopped", p.finish) }
func (p *program) restart() { p.byHand("restarted", p.again) }

// kill ends the process, if there is one, and starts it as systemd does.
func (p *program) kill() {
	p.n.Lock()
	defer p.n.Unlock()
	p.die(life{result: "signal", status: 9})
}

func (p *program) byHand(what string, do func()) {
	p.n.Lock()
	p.n.note("%s is %s by hand", p.name, what)
	do()
	p.n.Unlock()
	synctest.Wait()
}

// What systemd does.

// later does something unless the state has changed before.
func (p *program) later(d time.Duration, do func()) {
	turn := p.turn
	time.AfterFunc(d, func() {
		p.n.Lock()
		defer p.n.Unlock()
		if p.turn == turn {
			do()
		}
	})
}

func (p *program) to(active, sub string, job bool) {
	p.turn++
	p.state.Active, p.state.Sub, p.state.Job = active, sub, job
	p.n.tell()
}

func (p *program) begin(automatic bool) {
	if p.state.Up() || p.state.Active == "activating" && !automatic && p.state.Sub == "start" {
		return
	}
	now := time.Since(p.n.booted)
	if p.starts == 0 || now-p.since > 10*time.Second { // StartLimitIntervalSec=
		p.since, p.starts = now, 0
	}
	if p.starts++; p.limit > 0 && p.starts > p.limit {
		p.n.note("%s is started too often, and the sockets are closed", p.name)
		p.n.socket.Active = "failed"
		p.fail()
		return
	}
	if automatic {
		p.state.Restarts++
	} else if p.flush {
		p.state.Restarts = 0
	}
	p.flush = false
	p.state.Result, p.state.Status = "success", 0
	p.n.note("%s starts", p.name)
	p.state.Begun = now
	p.to("activating", "start", true)
	l := p.life
	began := p.turn
	if l.ready > 0 {
		p.later(l.ready, func() {
			p.n.note("%s is ready", p.name)
			p.state.Ready = time.Since(p.n.booted)
			p.to("active", "running", false)
			began = p.turn
		})
	} else {
		p.later(30*time.Second, func() { p.die(life{result: "timeout", status: 15}) }) // TimeoutStartSec=
	}
	if l.end > 0 {
		time.AfterFunc(l.end, func() {
			p.n.Lock()
			defer p.n.Unlock()
			if p.turn == began {
				p.die(l)
			}
		})
	}
}

func (p *program) die(l life) {
	p.n.note("%s dies: %s %d", p.name, l.result, l.status)
	p.state.Result, p.state.Status = l.result, l.status
	if l.result == "exit-code" && l.status == 1 { // RestartPreventExitStatus=
		p.fail()
		return
	}
	p.state.Begun = time.Since(p.n.booted)
	p.to("activating", "auto-restart", false)
	p.later(p.pause, func() {
		p.wants()
		p.begin(true)
	})
}

// fail ends it for good, and starts the relay where it is the resolver
// (OnFailure=).
func (p *program) fail() {
	p.n.note("%s has failed", p.name)
	p.flush = true
	p.to("failed", "failed", false)
	if p == &p.n.resolver {
		p.n.relay.wants()
		p.n.relay.begin(false)
	}
}

func (p *program) finish() {
	switch {
	case p.state.Sub == "auto-restart":
		p.n.note("%s is stopped", p.name)
		p.to("inactive", "dead", false)
	case p.state.Up(), p.state.Active == "activating":
		p.to("deactivating", "stop-sigterm", true)
		p.later(min(p.stops, 10*time.Second), func() {
			if p.stops >= 10*time.Second {
				p.n.note("%s is stopped by SIGKILL", p.name)
				p.state.Result = "timeout"
				p.fail()
				return
			}
			p.n.note("%s is stopped", p.name)
			p.flush = true
			p.to("inactive", "dead", false)
		})
	}
}

// wants starts what it wants, as other starts than guard's do: the sockets, which
// cannot be made while a relay runs.
func (p *program) wants() {
	if p.n.socket.Active == "failed" && !p.n.relay.state.Up() {
		p.n.note("the sockets are made")
		p.n.socket.Active = "active"
	}
}

func (p *program) again() {
	if p.state.rests() {
		p.begin(false)
		return
	}
	p.to("deactivating", "stop-sigterm", true)
	p.later(p.stops, func() {
		p.flush = true
		p.to("inactive", "dead", true)
		p.begin(false)
	})
}

// expect compares what has happened with a timeline.
func (n *node) expect(want string) {
	n.t.Helper()
	if got := n.happened(); got != strings.TrimPrefix(want, "\n") {
		n.t.Errorf("it happened:\n%swant:%s", got, want)
	}
}

// nothing fails if guard has done anything, and forgets the rest.
func (n *node) nothing(when string) {
	n.t.Helper()
	if got := n.happened(); strings.Contains(got, "guard:") || strings.Contains(got, "state") {
		n.t.Errorf("%s:\n%s", when, got)
	}
}

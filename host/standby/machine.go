// Package standby puts the relay in the resolver's place when the resolver cannot
// run, tries the resolver again from time to time, and takes the relay away when
// it is back.
//
// What to do is decided by a [Machine], from what systemd says of the units at
// one moment, and done by [Run]. It takes no lock of those who change the node:
// it writes nothing that a record tells of, systemd itself puts the jobs of two
// askers in order, and the resolver must not be left to fail for as long as
// somebody else restarts a kubelet.
//
// While a resolver is down that systemd starts again, queries wait in the sockets;
// they cost their clients nothing for a second and five seconds each for ever. So
// the relay comes when
//
//   - the resolver was started again three times without being ready for two
//     seconds, as where it cannot start, or is killed for its memory again and
//     again, or
//   - systemd has given it up, or
//   - it has not been ready for two and a half seconds, for whatever reason.
//
// The relay is first; the resolver is stopped when the relay answers, and not at
// all while it cannot. Both have the same sockets and may answer at once.
//
// What people do holds: a resolver that is stopped by hand is not started, and one
// that is started by hand gets its place if it stays. Between two tries a stop
// cannot be seen, as there is nothing that runs; stopping the sockets can, and
// ends all of this.
package standby

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/units"
)

const (
	// inARow is how many restarts without being ready for settle are too many:
	// with each process dies what it has read. One that is killed every three
	// seconds is better than a relay: it has lost a tenth of a second each time.
	inARow = 3

	// patience is how long the resolver may be on its way, started or about to
	// be started again: with the start of the relay, three seconds.
	patience = 2500 * time.Millisecond

	// settle is how long a resolver must have been ready to be believed.
	settle = 2 * time.Second

	// The first try of the resolver is after firstWait, each next one after
	// twice that, up to lastWait; and from the beginning again when it has been
	// well for forget.
	firstWait = 10 * time.Second
	lastWait  = 5 * time.Minute
	forget    = 5 * time.Minute

	// askAgain is how soon systemd is asked for the same again that it has not
	// done.
	askAgain = 2 * time.Second

	// lookEvery is for what nobody has told us of.
	lookEvery = 10 * time.Second
)

// unseen is why, where nobody has seen how it ended: systemd forgets that at the
// next start, a moment later.
const unseen = "it ends as soon as it is started"

// A Unit is what systemd says of a unit.
type Unit struct {
	Load   string // LoadState
	Active string // ActiveState
	Sub    string // SubState
	Job    bool   // something is queued for it
}

// Up says that it serves.
func (u Unit) Up() bool {
	return u.Active == "active" || u.Active == "reloading" || u.Active == "refreshing"
}

// rests says that it does nothing and is not about to.
func (u Unit) rests() bool { return (u.Active == "inactive" || u.Active == "failed") && !u.Job }

// String is for timelines.
func (u Unit) String() string {
	text := u.Active + " (" + u.Sub + ")"
	if u.Job {
		text += " with a job"
	}
	return text
}

// A Resolver is what systemd says of the resolver's unit.
type Resolver struct {
	Unit
	Restarts uint32        // how often systemd has started it again by itself (NRestarts)
	Begun    time.Duration // when it was last started, or about to be again; as Snapshot.At
	Ready    time.Duration // when it last got ready, 0 for never
	Result   string        // how it ended last, or success
	Status   int32         // the exit status of its main process, or the signal that ended it
}

// A Snapshot is what systemd says of the units at one moment.
type Snapshot struct {
	At       time.Duration // by CLOCK_MONOTONIC, as are all moments here
	Resolver Resolver
	Relay    Unit
	Socket   Unit
}

// An Action is what systemd is to be asked for. None waits for its end.
type Action string

// The actions. What has failed is started all the same.
const (
	StartSocket   Action = "start the socket"
	StartRelay    Action = "start the relay"
	StopRelay     Action = "stop the relay"
	StartResolver Action = "start the resolver"
	StopResolver  Action = "stop the resolver"
)

// A Decision is what follows from a snapshot.
type Decision struct {
	Actions []Action
	Again   time.Duration // look again after this, if nothing changes before
	Absent  string        // why there is nothing to do here; empty: there is
}

// An Outage is that the relay is in the resolver's place because the resolver has
// failed.
type Outage struct {
	Since time.Duration
	Why   string // the last failure
	Tries int    // of the resolver, since
	Next  time.Duration
	Trial bool // one is under way, so there is no Next
}

// A stage is what a Machine is doing.
type stage int

const (
	watching stage = iota // nothing is wrong
	stopping              // the resolver has failed: it is stopped once the relay is up
	waiting               // for the next try
	trying                // the resolver runs, to show that it can
)

// A Machine decides. It is pure: all it knows are the snapshots that it has
// seen. The zero value has seen none.
type Machine struct {
	stage   stage
	outage  Outage
	backoff int // tries that the next wait counts from

	// Of the resolver.
	seen     bool
	restarts uint32
	ready    time.Duration
	base     uint32        // Restarts when it was last ready for settle
	cause    string        // how it ended last, in words
	late     bool          // it is on its way,
	since    time.Duration // since then
	ended    time.Duration // Begun of the last one whose end somebody has asked for

	// Of the end of a try, and of a try.
	asked time.Duration // when it was asked for, 0 for not yet
	taken bool          // systemd has started one for it
	entry time.Duration // Begun of that one; before, of the last

	last map[Action]time.Duration // when systemd was last asked for it
}

// Resume returns a Machine that goes on where another was in an outage, which
// was told in the present clock.
func Resume(o Outage, now time.Duration) *Machine {
	m := &Machine{stage: waiting, outage: o, backoff: o.Tries}
	if o.Trial {
		m.outage.Next = now + m.wait()
	}
	m.outage.Trial = false
	m.outage.Next = min(m.outage.Next, now+lastWait)
	return m
}

// Outage is what is wrong, if anything is.
func (m *Machine) Outage() (Outage, bool) { return m.outage, m.stage != watching }

// Next decides what to do now.
func (m *Machine) Next(s Snapshot) Decision {
	if why := absent(s); why != "" {
		*m = Machine{}
		return Decision{Again: lookEvery, Absent: why}
	}
	m.observe(s)
	t := turn{Machine: m, s: s, d: Decision{Again: lookEvery}}
	for again := true; again; {
		switch m.stage {
		case watching:
			again = t.watch()
		case stopping:
			again = t.stop()
		case waiting:
			again = t.await()
		case trying:
			again = t.try()
		}
	}
	if m.stage != watching && s.Relay.rests() {
		var first []Action
		if s.Socket.rests() {
			first = append(first, t.ask(StartSocket)...)
		}
		t.d.Actions = append(append(first, t.ask(StartRelay)...), t.d.Actions...)
	}
	return t.d
}

// absent says why the units are not to be started and stopped. Sockets that are
// stopped have been stopped by somebody, who wants nobody to answer or is taking
// away all of it; those that systemd has closed have failed.
func absent(s Snapshot) string {
	for _, u := range []struct{ name, load string }{{units.Resolver, s.Resolver.Load}, {units.Relay, s.Relay.Load}, {units.Socket, s.Socket.Load}} {
		if u.load == "masked" || u.load == "not-found" {
			return u.name + " is " + u.load
		}
	}
	if s.Socket.Active == "inactive" && s.Socket.rests() {
		return units.Socket + " is stopped"
	}
	return ""
}

// observe counts.
func (m *Machine) observe(s Snapshot) {
	r := s.Resolver
	switch {
	case !m.seen:
		m.seen = true
		if r.Ready != 0 {
			m.base = r.Restarts // how many of them were since is not known
		}
	case r.Restarts < m.restarts: // somebody has started it by hand
		m.base = 0
	}
	m.restarts = r.Restarts
	if r.Up() || r.Ready != m.ready {
		m.late = false
	}
	m.ready = r.Ready
	switch {
	case r.Up() && s.At-r.Ready >= settle:
		m.base, m.cause = r.Restarts, ""
	case r.Result != "" && r.Result != "success" && (r.Result != "start-limit-hit" || m.cause == ""):
		m.cause = r.Ended()
	}
	switch {
	case r.Active == "activating" && !m.late:
		m.late, m.since = true, s.At
	case r.Active == "inactive", r.Active == "failed":
		m.late = false
	case r.Active == "deactivating" && r.Job:
		m.ended = r.Begun
	}
}

// byHand says that somebody has asked for the end of the one that began then.
func (m *Machine) byHand(begun time.Duration) bool { return begun != 0 && begun == m.ended }

// Ended is how it ended last, as systemd calls it: exit-code 1, signal KILL,
// oom-kill, watchdog, …; success for nothing.
func (r Resolver) Ended() string {
	switch r.Result {
	case "exit-code":
		return fmt.Sprintf("%s %d%s", r.Result, r.Status, ofSystemd[r.Status])
	case "signal", "core-dump":
		if name := unix.SignalName(unix.Signal(r.Status)); name != "" {
			return r.Result + " " + strings.TrimPrefix(name, "SIG")
		}
		return fmt.Sprintf("%s %d", r.Result, r.Status)
	}
	return r.Result
}

// ofSystemd are exit statuses of systemd itself, where it could not start the
// program (systemd.exec(5)).
var ofSystemd = map[int32]string{200: "/CHDIR", 203: "/EXEC", 217: "/USER", 218: "/CAPABILITIES", 226: "/NAMESPACE"}

// wait is how long until the next try.
func (m *Machine) wait() time.Duration {
	return min(firstWait<<min(m.backoff, 10), lastWait)
}

// A turn is one decision on its way. Its methods return whether there is more to
// decide, in another stage.
type turn struct {
	*Machine
	s Snapshot
	d Decision
}

// again has us look again at that moment, if it is still to come.
func (t *turn) again(at time.Duration) {
	if at > t.s.At {
		t.d.Again = min(t.d.Again, at-t.s.At)
	}
}

// ask is the action, unless it was asked for just now.
func (t *turn) ask(a Action) []Action {
	if at, ok := t.last[a]; ok && t.s.At-at < askAgain {
		t.again(at + askAgain)
		return nil
	}
	if t.last == nil {
		t.last = map[Action]time.Duration{}
	}
	t.last[a] = t.s.At
	t.again(t.s.At + askAgain)
	return []Action{a}
}

// well says that the resolver has been ready for long enough; if it is only
// ready, it is looked at again when it has.
func (t *turn) well() bool {
	r := t.s.Resolver
	if !r.Up() {
		return false
	}
	if t.s.At-r.Ready < settle {
		t.again(r.Ready + settle)
		return false
	}
	return true
}

func (t *turn) watch() bool {
	r := t.s.Resolver
	why := t.cause
	if why == "" {
		why = unseen
	}
	switch {
	case r.Active == "failed" && r.rests() && !t.byHand(r.Begun), r.Active == "activating" && r.Restarts-t.base >= inARow:
	case t.late && r.Active == "activating" && t.s.At-t.since >= patience:
		why = fmt.Sprintf("not ready after %s", patience)
		t.outage = Outage{Since: t.s.At, Why: why, Trial: true}
		t.stage, t.taken, t.entry = trying, true, r.Begun
		return true
	default:
		if t.late && r.Active == "activating" {
			t.again(t.since + patience)
		}
		if !t.well() {
			return false
		}
		if relay := t.s.Relay; !relay.rests() && relay.Active != "deactivating" {
			t.d.Actions = t.ask(StopRelay)
		}
		if t.s.At-r.Ready >= forget {
			t.backoff = 0
		} else if t.backoff > 0 {
			t.again(r.Ready + forget)
		}
		return false
	}
	t.outage = Outage{Since: t.s.At, Why: why, Next: t.s.At + t.wait()}
	t.stage, t.asked = stopping, 0
	return true
}

func (t *turn) stop() bool {
	switch r := t.s.Resolver; {
	case r.rests():
		t.stage = waiting
		return true
	case t.well(): // before the relay was
		t.back()
		return true
	case t.asked != 0 && r.Up() && r.Ready > t.asked: // it was stopped, and somebody has started it
		t.outage.Trial = true
		t.stage, t.taken, t.entry = trying, true, r.Begun
		return true
	case t.s.Relay.Up() && r.Active != "deactivating":
		if t.d.Actions = t.ask(StopResolver); t.d.Actions != nil {
			t.asked = t.s.At
		}
	}
	return false
}

func (t *turn) await() bool {
	switch r := t.s.Resolver; {
	case r.Active == "activating", r.Up(): // somebody has started it
		t.outage.Trial = true
		t.stage, t.taken, t.entry = trying, true, r.Begun
		return true
	case !r.rests():
		return false
	}
	if t.s.At < t.outage.Next {
		t.again(t.outage.Next)
		return false
	}
	// A relay keeps sockets that systemd has closed. The resolver cannot make
	// others beside them; nor can systemd, as long as the relay runs.
	if t.s.Socket.Active == "failed" && !t.s.Relay.rests() {
		if t.s.Relay.Active != "deactivating" {
			t.d.Actions = t.ask(StopRelay)
		}
		return false
	}
	t.outage.Trial = true
	t.outage.Tries++
	t.backoff++
	t.stage, t.asked, t.taken, t.entry = trying, t.s.At, false, t.s.Resolver.Begun
	t.d.Actions = []Action{StartResolver}
	t.again(t.s.At + askAgain)
	return false
}

func (t *turn) try() bool {
	r := t.s.Resolver
	if r.Begun > t.entry && (!t.taken || t.byHand(t.entry)) {
		t.taken, t.entry = true, r.Begun
	}
	switch {
	case !t.taken && r.rests() && t.s.At-t.asked >= askAgain:
		t.fail("systemd has not started it")
		return true
	case !t.taken:
		t.again(t.asked + askAgain)
	case strings.HasPrefix(r.Sub, "auto-restart"), r.Active == "failed" && r.rests(), r.Begun > t.entry:
		t.fail(t.cause)
		return true
	case r.rests(): // somebody has stopped it, and means that
		t.back()
		t.backoff = 0
		return true
	case t.well():
		t.back()
		return true
	}
	return false
}

// fail ends a try.
func (t *turn) fail(why string) {
	if why != "" {
		t.outage.Why = why
	}
	t.outage.Trial, t.outage.Next = false, t.s.At+t.wait()
	t.stage, t.asked = stopping, 0
}

// back ends the outage. Restarts are counted from here.
func (t *turn) back() {
	t.stage, t.outage = watching, Outage{}
	t.base = t.restarts
}

package standby

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Whatever systemd says, in whatever order: nobody is left without an answer by
// what is asked for.
func FuzzAMachineTakesNoAnswerAway(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 2, 3, 0x41, 0x82, 0xc3, 4, 5, 0x46, 0x87, 8, 9, 0x4a, 11})
	f.Add([]byte(strings.Repeat("\x05\x11\x25\x31\x45\x51", 20)))
	f.Fuzz(func(t *testing.T, script []byte) {
		m := &Machine{}
		s := Snapshot{At: time.Hour, Resolver: Resolver{Unit: Unit{Active: "inactive"}}, Relay: Unit{Active: "inactive"}, Socket: Unit{Active: "active"}}
		states := []Unit{{Active: "inactive"}, {Active: "activating", Sub: "start", Job: true}, {Active: "active"}, {Active: "activating", Sub: "auto-restart"},
			{Active: "failed"}, {Active: "deactivating", Job: true}, {Active: "inactive", Job: true}, {Active: "reloading"}}
		for _, b := range script {
			s.At += time.Duration(1+b>>6) * time.Duration(1+b>>6) * 300 * time.Millisecond
			switch b >> 3 & 7 {
			case 0, 1, 2:
				u := states[b&7]
				if u.Up() && !s.Resolver.Up() {
					s.Resolver.Ready = s.At
				}
				if !u.rests() && u.Sub != s.Resolver.Sub {
					s.Resolver.Begun = s.At
				}
				if s.Resolver.Sub == "auto-restart" && u.Active != "inactive" {
					s.Resolver.Restarts++
				}
				s.Resolver.Unit = u
			case 3, 4:
				s.Relay = states[b&7]
			case 5:
				s.Socket = states[b&7]
			case 6:
				s.Resolver.Restarts += uint32(b & 7)
			case 7:
				s.Resolver.Restarts, s.Resolver.Result = 0, []string{"", "success", "exit-code", "signal", "start-limit-hit", "oom-kill", "core-dump", "timeout"}[b&7]
			}
			d := m.Next(s)
			o, out := m.Outage()
			has := func(a Action) bool { return slices.Contains(d.Actions, a) }
			switch {
			case has(StopResolver) && !s.Relay.Up():
				t.Fatalf("%v stops a resolver that has no relay: %+v", d.Actions, s)
			case has(StopRelay) && !(s.Resolver.Up() && s.At-s.Resolver.Ready >= settle) && !(s.Resolver.rests() && s.Socket.Active == "failed" && out):
				t.Fatalf("%v stops a relay that is needed: %+v", d.Actions, s)
			case has(StopRelay) && (has(StartRelay) || has(StopResolver)), has(StartResolver) && has(StopResolver):
				t.Fatalf("%v contradict each other", d.Actions)
			case out && s.Relay.rests() && !has(StartRelay) && d.Again > askAgain:
				t.Fatalf("there is no relay, and nobody looks before %s: %+v", d.Again, s)
			case !out && (has(StartRelay) || has(StartResolver) || has(StopResolver)):
				t.Fatalf("%v although nothing is wrong: %+v", d.Actions, s)
			case out && !o.Trial && o.Next > s.At+lastWait, d.Again <= 0, d.Again > lookEvery, out && o.Why == "":
				t.Fatalf("next look in %s, %+v", d.Again, o)
			}
		}
	})
}

func TestAnEndIsToldInSystemdsWords(t *testing.T) {
	for _, tt := range []struct {
		result string
		status int32
		want   string
	}{
		{"exit-code", 1, "exit-code 1"},
		{"exit-code", 203, "exit-code 203/EXEC"},
		{"signal", 9, "signal KILL"},
		{"core-dump", 11, "core-dump SEGV"},
		{"signal", 99, "signal 99"},
		{"oom-kill", 9, "oom-kill"},
		{"watchdog", 6, "watchdog"},
		{"timeout", 15, "timeout"},
		{"start-limit-hit", 0, "start-limit-hit"},
	} {
		if got := (Resolver{Result: tt.result, Status: tt.status}).Ended(); got != tt.want {
			t.Errorf("%s, %d: %s, want %s", tt.result, tt.status, got, tt.want)
		}
	}
}

// What is not seen of a resolver that fails, counts and states tell afterwards.
func TestAMachineGoesByWhatIsLeftOfWhatItHasNotSeen(t *testing.T) {
	const hour = time.Hour
	type look struct {
		after    time.Duration
		active   string // and SubState; what is not at rest has begun in between
		restarts uint32
		ready    time.Duration // before this look; 0: as before
		result   string
		want     string
	}
	for _, tt := range []struct {
		name  string
		looks []look
	}{
		{"it got ready between two looks, and not for long", []look{
			{0, "active running", 0, hour, "success", "[]"},
			{time.Second, "activating start", 2, 0, "exit-code", "[]"},
			{time.Second, "activating start", 3, time.Second / 2, "exit-code", "[start the relay]"},
		}},
		{"it was ready for two seconds", []look{
			{0, "active running", 0, hour, "success", "[]"},
			{time.Second, "activating start", 2, 0, "exit-code", "[]"},
			{3 * time.Second, "active running", 2, settle, "success", "[]"},
			{time.Second, "activating start", 4, 0, "exit-code", "[]"},
			{time.Second, "activating start", 5, 0, "exit-code", "[start the relay]"},
		}},
		{"it did not get ready", []look{
			{0, "active running", 0, hour, "success", "[]"},
			{time.Second, "activating start", 2, 0, "exit-code", "[]"},
			{time.Second, "activating start", 3, 0, "exit-code", "[start the relay]"},
		}},
		{"somebody has started it, and what was counted is over", []look{
			{0, "active running", 40, hour, "success", "[]"},
			{time.Second, "activating start", 0, 0, "success", "[]"},
			{time.Second, "activating start", 2, 0, "exit-code", "[]"},
			{time.Second, "activating start", 3, 0, "exit-code", "[start the relay]"},
		}},
		{"two of three restarts were counted before somebody started it", []look{
			{0, "active running", 0, hour, "success", "[]"},
			{time.Second, "activating start", 2, 0, "success", "[]"},
			{time.Second, "activating start", 0, 0, "success", "[]"},
			{time.Second, "activating start", 2, 0, "success", "[]"},
			{time.Second, "activating start", 3, 0, "success", "[start the relay]"},
		}},
		{"a try failed, and the next life has begun", []look{
			{0, "failed failed", 12, hour, "exit-code", "[start the relay]"},
			{10 * time.Second, "failed failed", 12, 0, "exit-code", "[start the relay start the resolver]"},
			{0, "activating start", 0, 0, "success", "[]"},
			{0, "activating start", 1, 0, "success", "[]"},
			{time.Second, "activating start", 2, 0, "success", "[stop the resolver]"},
		}},
		{"systemd gave it up", []look{
			{0, "active running", 0, hour, "success", "[]"},
			{time.Second, "activating auto-restart", 2, 0, "exit-code", "[]"},
			{time.Second, "failed failed", 2, 0, "start-limit-hit", "[start the relay]"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &Machine{}
			s := Snapshot{At: 2 * hour, Relay: Unit{Active: "inactive"}, Socket: Unit{Active: "active"}}
			for i, l := range tt.looks {
				s.At += l.after
				s.Resolver.Active, s.Resolver.Sub, _ = strings.Cut(l.active, " ")
				s.Resolver.Restarts, s.Resolver.Result, s.Resolver.Status = l.restarts, l.result, 1
				if l.ready != 0 {
					s.Resolver.Ready = s.At - l.ready
				}
				if !s.Resolver.rests() {
					s.Resolver.Begun = s.At
				}
				if l.after == 0 && i > 0 {
					s.Relay.Active = "active" // as asked for
				}
				if got := fmt.Sprint(m.Next(s).Actions); got != l.want {
					t.Errorf("look %d: %s, want %s", i+1, got, l.want)
				}
			}
			if o, ok := m.Outage(); !ok || strings.Contains(o.Why, "start-limit") {
				t.Errorf("the outage is %+v, %t", o, ok)
			}
		})
	}
}

// A clock that was set between two guards must not put the next try off for ever.
func TestTheNextTryOfAnotherGuardIsSoon(t *testing.T) {
	s := Snapshot{At: time.Hour, Resolver: Resolver{Unit: Unit{Active: "inactive"}}, Relay: Unit{Active: "active"}, Socket: Unit{Active: "active"}}
	m := Resume(Outage{Why: "exit-code 1", Next: 1000 * time.Hour}, s.At)
	m.Next(s)
	s.At += lastWait
	if got := m.Next(s).Actions; !slices.Equal(got, []Action{StartResolver}) {
		t.Errorf("after %s: %v", lastWait, got)
	}
}

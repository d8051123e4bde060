package standby

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestTheRelayTakesThePlaceOfAResolverThatCannotStart(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(time.Minute)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    0.21  resolver dies: exit-code 1
    0.41  resolver starts
    0.42  resolver dies: exit-code 1
    0.62  resolver starts
    0.62  guard: start the relay
    0.62  relay starts
    0.63  resolver dies: exit-code 1
    0.66  relay is ready
    0.67  guard: stop the resolver
    0.67  resolver is stopped
   10.62  guard: start the resolver
   10.62  resolver starts
   10.63  resolver dies: exit-code 1
   10.67  guard: stop the resolver
   10.67  resolver is stopped
   30.67  guard: start the resolver
   30.67  resolver starts
   30.68  resolver dies: exit-code 1
   30.72  guard: stop the resolver
   30.72  resolver is stopped
   state  since 0.62: exit-code 1; 2 tries, next 70.72
`)
		n.resolver.does(serves)
		after(time.Minute)
		n.expect(`
   70.72  guard: start the resolver
   70.72  resolver starts
   70.74  resolver is ready
   72.74  guard: stop the relay
   72.78  relay is stopped
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
level=INFO msg="trying the resolver again" try=1
level=WARN msg="the resolver has failed again" why="exit-code 1" next=20s
level=INFO msg="trying the resolver again" try=2
level=WARN msg="the resolver has failed again" why="exit-code 1" next=40s
level=INFO msg="trying the resolver again" try=3
level=INFO msg="nobody stands in for the resolver any more" why="it is back" tries=3
`)
	})
}

func TestAResolverThatIsKilledNowAndThenIsLeftToSystemd(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		for range 20 {
			n.resolver.kill()
			after(3 * time.Second)
		}
		n.nothing("killed every three seconds")
		after(10 * time.Second)
		for range 5 {
			for range 10 {
				n.resolver.restart()
				after(50 * time.Millisecond)
			}
			n.nothing("restarted by hand ten times in a row")
			after(10 * time.Second)
		}
		n.resolver.does(life{ready: 2 * time.Second})
		n.resolver.restart()
		after(time.Minute)
		n.nothing("slow to start")
	})
}

func TestAResolverThatRunsOutOfMemoryAgainAndAgainIsReplaced(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(life{ready: 20 * time.Millisecond, end: 1500 * time.Millisecond, result: "oom-kill", status: 9})
		n.resolver.kill()
		after(30 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    0.22  resolver is ready
    1.70  resolver dies: oom-kill 9
    1.90  resolver starts
    1.92  resolver is ready
    3.40  resolver dies: oom-kill 9
    3.60  resolver starts
    3.62  resolver is ready
    5.10  resolver dies: oom-kill 9
    5.30  resolver starts
    5.32  resolver is ready
    6.80  resolver dies: oom-kill 9
    7.00  resolver starts
    7.00  guard: start the relay
    7.00  relay starts
    7.02  resolver is ready
    7.04  relay is ready
    7.05  guard: stop the resolver
    7.07  resolver is stopped
   17.00  guard: start the resolver
   17.00  resolver starts
   17.02  resolver is ready
   18.50  resolver dies: oom-kill 9
   18.50  guard: stop the resolver
   18.50  resolver is stopped
   state  since 7.00: oom-kill; 1 tries, next 38.50
`)
	})
}

func TestAResolverThatIsLongInStartingIsHelpedOut(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(life{ready: 8 * time.Second})
		n.resolver.restart()
		after(30 * time.Second)
		n.expect(`
    0.00  resolver is restarted by hand
    0.02  resolver starts
    2.55  guard: start the relay
    2.55  relay starts
    2.58  relay is ready
    8.02  resolver is ready
   10.02  guard: stop the relay
   10.05  relay is stopped
`)
	})
}

func TestAResolverThatHangsInStartingIsTriedAgain(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(hangs)
		n.resolver.kill()
		after(time.Minute)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    2.55  guard: start the relay
    2.55  relay starts
    2.58  relay is ready
   30.20  resolver dies: timeout 15
   30.20  guard: stop the resolver
   30.20  resolver is stopped
   40.20  guard: start the resolver
   40.20  resolver starts
   state  since 2.55: timeout; 1 tries, next under way
`)
	})
}

func TestAResolverThatTakesLongToFailIsReplacedAsSoon(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(life{end: 2 * time.Second, result: "exit-code", status: 1})
		n.resolver.kill()
		after(12 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    2.20  resolver dies: exit-code 1
    2.40  resolver starts
    2.55  guard: start the relay
    2.55  relay starts
    2.58  relay is ready
    4.40  resolver dies: exit-code 1
    4.40  guard: stop the resolver
    4.40  resolver is stopped
   state  since 2.55: exit-code 1; 0 tries, next 14.40
`)
	})
}

func TestOneFailureEndsATry(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(5 * time.Second)
		n.happened()
		n.resolver.does(life{ready: 20 * time.Millisecond, end: time.Second, result: "watchdog", status: 6})
		after(10 * time.Second)
		n.expect(`
   10.62  guard: start the resolver
   10.62  resolver starts
   10.64  resolver is ready
   11.62  resolver dies: watchdog 6
   11.62  guard: stop the resolver
   11.62  resolver is stopped
   state  since 0.62: watchdog; 1 tries, next 31.62
`)
	})
}

func TestTriesAreEverLessFrequentUntilItHasBeenWellForFiveMinutes(t *testing.T) {
	on(t, func(n *node) {
		t := n.t
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		tries := func(want string) {
			t.Helper()
			var at []string
			for line := range strings.Lines(n.happened()) {
				if when, ok := strings.CutSuffix(strings.TrimSpace(line), "  guard: start the resolver"); ok {
					at = append(at, when)
				}
			}
			if got := strings.Join(at, " "); got != want {
				t.Errorf("tried at %s, want %s", got, want)
			}
		}
		after(25 * time.Minute)
		tries("10.62 30.67 70.72 150.77 310.82 610.87 910.92 1210.97")

		// Well for four minutes is not well.
		n.resolver.does(serves)
		after(4*time.Minute + 30*time.Second)
		tries("1511.02")
		n.resolver.does(fails)
		n.resolver.kill()
		after(20 * time.Minute)
		tries("2070.62 2370.67 2670.72")

		n.resolver.does(serves)
		after(11 * time.Minute)
		n.resolver.does(fails)
		n.resolver.kill()
		after(30 * time.Second)
		tries("2970.77 3640.62")
	})
}

func TestWhoStopsTheResolverMeansThat(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.stop()
		after(time.Hour)
		n.nothing("stopped")
		n.relay.start() // as the next query does
		after(time.Hour)
		n.nothing("stopped, with a relay")
		n.resolver.start()
		after(time.Minute)
		n.expect(`
 7200.00  resolver is started by hand
 7200.00  resolver starts
 7200.02  resolver is ready
 7202.02  guard: stop the relay
 7202.06  relay is stopped
`)

		// Its end takes a SIGKILL.
		n.set(func() { n.resolver.stops = time.Minute })
		n.resolver.stop()
		after(time.Hour)
		n.nothing("killed because it did not stop")
		n.set(func() { n.resolver.stops = 20 * time.Millisecond })
		n.resolver.start()
		after(time.Minute)
		n.happened()

		// In the middle of failing.
		n.resolver.does(fails)
		n.resolver.kill()
		after(500 * time.Millisecond)
		n.resolver.stop()
		after(time.Hour)
		n.nothing("stopped while it failed")
		n.unguarded()
		n.guarded()
		after(time.Hour)
		n.nothing("stopped while it failed, and guard was started again")
	})
}

func TestWhoStopsATryMeansThat(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(5 * time.Second)
		n.resolver.does(hangs)
		after(10 * time.Second)
		n.happened()
		n.resolver.stop()
		after(time.Hour)
		n.expect(`
   15.00  resolver is stopped by hand
   15.02  resolver is stopped
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
level=INFO msg="trying the resolver again" try=1
level=INFO msg="nobody stands in for the resolver any more" why="it was stopped" tries=1
`)
	})
}

func TestAResolverThatIsStartedByHandIsGivenItsPlace(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(2 * time.Minute)
		n.happened()
		n.resolver.start() // in vain
		after(5 * time.Second)
		n.expect(`
  120.00  resolver is started by hand
  120.00  resolver starts
  120.01  resolver dies: exit-code 1
  120.05  guard: stop the resolver
  120.05  resolver is stopped
   state  since 0.62: exit-code 1; 3 tries, next 200.05
`)
		n.resolver.does(serves)
		n.resolver.start()
		after(time.Minute)
		n.expect(`
  125.00  resolver is started by hand
  125.00  resolver starts
  125.02  resolver is ready
  127.02  guard: stop the relay
  127.06  relay is stopped
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
level=INFO msg="trying the resolver again" try=1
level=WARN msg="the resolver has failed again" why="exit-code 1" next=20s
level=INFO msg="trying the resolver again" try=2
level=WARN msg="the resolver has failed again" why="exit-code 1" next=40s
level=INFO msg="trying the resolver again" try=3
level=WARN msg="the resolver has failed again" why="exit-code 1" next=1m20s
level=INFO msg="somebody tries the resolver again"
level=WARN msg="the resolver has failed again" why="exit-code 1" next=1m20s
level=INFO msg="somebody tries the resolver again"
level=INFO msg="nobody stands in for the resolver any more" why="it is back" tries=3
`)
	})
}

func TestAResolverThatIsStartedByHandJustAfterItsStopIsGivenItsPlace(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(670 * time.Millisecond)
		n.resolver.does(serves)
		n.resolver.start() // before guard has seen that it is stopped
		after(time.Minute)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    0.21  resolver dies: exit-code 1
    0.41  resolver starts
    0.42  resolver dies: exit-code 1
    0.62  resolver starts
    0.62  guard: start the relay
    0.62  relay starts
    0.63  resolver dies: exit-code 1
    0.66  relay is ready
    0.67  guard: stop the resolver
    0.67  resolver is stopped
    0.67  resolver is started by hand
    0.67  resolver starts
    0.69  resolver is ready
    2.69  guard: stop the relay
    2.73  relay is stopped
`)
	})
}

func TestAGuardGoesOnWhereAnotherWasKilled(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(15 * time.Second)
		n.happened()
		n.unguarded() // while it waits
		after(time.Second)
		n.guarded()
		after(20 * time.Second)
		n.expect(`
   30.67  guard: start the resolver
   30.67  resolver starts
   30.68  resolver dies: exit-code 1
   30.72  guard: stop the resolver
   30.72  resolver is stopped
   state  since 0.62: exit-code 1; 2 tries, next 70.72
`)
		n.resolver.does(serves)
		after(35500 * time.Millisecond)
		n.unguarded() // while it tries
		after(10 * time.Second)
		n.guarded()
		after(time.Second)
		n.expect(`
   70.72  guard: start the resolver
   70.72  resolver starts
   70.74  resolver is ready
   81.50  guard: stop the relay
   81.53  relay is stopped
`)
	})
}

func TestAGuardThatFindsAllOfItFailedActsAtOnce(t *testing.T) {
	on(t, func(n *node) {
		n.resolver.does(fails)
		n.resolver.kill()
		after(time.Minute)
		n.happened()
		n.guarded()
		after(time.Second)
		n.expect(`
   60.00  guard: start the relay
   60.00  relay starts
   60.03  relay is ready
   state  since 60.00: exit-code 1; 0 tries, next 70.00
`)
	})
	on(t, func(n *node) { // as after a boot with a broken configuration
		n.resolver.stop()
		n.set(func() { n.resolver.state.Ready = 0 })
		n.resolver.does(fails)
		n.resolver.start()
		after(900 * time.Millisecond)
		n.happened()
		n.guarded()
		after(time.Second)
		n.expect(`
    0.90  guard: start the relay
    0.90  relay starts
    0.94  relay is ready
    0.95  guard: stop the resolver
    0.95  resolver is stopped
   state  since 0.90: exit-code 1; 0 tries, next 10.90
`)
	})
}

func TestTheResolverIsNotStoppedWhileThereIsNoRelay(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.relay.does(life{end: 15 * time.Millisecond, result: "exit-code", status: 203})
		n.resolver.does(fails)
		n.resolver.kill()
		after(12 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    0.21  resolver dies: exit-code 1
    0.41  resolver starts
    0.42  resolver dies: exit-code 1
    0.62  resolver starts
    0.62  guard: start the relay
    0.62  relay starts
    0.63  resolver dies: exit-code 1
    0.64  relay dies: exit-code 203
    0.83  resolver starts
    0.84  resolver dies: exit-code 1
    1.04  resolver starts
    1.05  resolver dies: exit-code 1
    1.25  resolver starts
    1.26  resolver dies: exit-code 1
    1.46  resolver starts
    1.47  resolver dies: exit-code 1
    1.64  relay starts
    1.65  relay dies: exit-code 203
    1.67  resolver starts
    1.68  resolver dies: exit-code 1
    1.88  resolver starts
    1.89  resolver dies: exit-code 1
    2.09  resolver starts
    2.10  resolver dies: exit-code 1
    2.30  resolver starts
    2.31  resolver dies: exit-code 1
    2.51  resolver starts
    2.52  resolver dies: exit-code 1
    2.65  relay starts
    2.67  relay dies: exit-code 203
    2.72  resolver has failed: started too often
    3.67  relay starts
    3.68  relay dies: exit-code 203
    4.68  relay starts
    4.70  relay dies: exit-code 203
    5.70  relay starts
    5.71  relay dies: exit-code 203
    6.71  relay starts
    6.72  relay dies: exit-code 203
    7.72  relay starts
    7.74  relay dies: exit-code 203
    8.74  relay starts
    8.76  relay dies: exit-code 203
    9.76  relay starts
    9.77  relay dies: exit-code 203
   10.62  guard: start the resolver
   10.62  resolver starts
   10.63  resolver dies: exit-code 1
   10.77  relay starts
   10.79  relay dies: exit-code 203
   10.83  resolver starts
   10.84  resolver dies: exit-code 1
   11.04  resolver starts
   11.05  resolver dies: exit-code 1
   11.25  resolver starts
   11.26  resolver dies: exit-code 1
   11.46  resolver starts
   11.47  resolver dies: exit-code 1
   11.67  resolver starts
   11.68  resolver dies: exit-code 1
   11.79  relay starts
   11.80  relay dies: exit-code 203
   11.88  resolver starts
   11.89  resolver dies: exit-code 1
   state  since 0.62: exit-code 1; 1 tries, next 30.67
`)
		n.relay.does(relays)
		after(2 * time.Second)
		n.expect(`
   12.09  resolver starts
   12.10  resolver dies: exit-code 1
   12.30  resolver starts
   12.31  resolver dies: exit-code 1
   12.51  resolver starts
   12.52  resolver dies: exit-code 1
   12.72  resolver starts
   12.73  resolver dies: exit-code 1
   12.80  relay starts
   12.84  relay is ready
   12.87  guard: stop the resolver
   12.87  resolver is stopped
   state  since 0.62: exit-code 1; 1 tries, next 30.67
`)
	})
	on(t, func(n *node) { // and one that comes to itself is left alone
		n.guarded()
		n.relay.does(life{end: 15 * time.Millisecond, result: "exit-code", status: 203})
		n.resolver.does(fails)
		n.resolver.kill()
		after(time.Second)
		n.resolver.does(serves)
		after(10 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    0.21  resolver dies: exit-code 1
    0.41  resolver starts
    0.42  resolver dies: exit-code 1
    0.62  resolver starts
    0.62  guard: start the relay
    0.62  relay starts
    0.63  resolver dies: exit-code 1
    0.64  relay dies: exit-code 203
    0.83  resolver starts
    0.84  resolver dies: exit-code 1
    1.04  resolver starts
    1.06  resolver is ready
    1.64  relay starts
    1.65  relay dies: exit-code 203
    2.65  relay starts
    2.67  relay dies: exit-code 203
    3.06  guard: stop the relay
    3.06  relay is stopped
`)
	})
}

func TestARelayThatIsGoneIsStartedAgain(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(5 * time.Second)
		n.happened()
		n.relay.stop()
		after(time.Second)
		n.expect(`
    5.00  relay is stopped by hand
    5.04  relay is stopped
    5.05  guard: start the relay
    5.05  relay starts
    5.08  relay is ready
   state  since 0.62: exit-code 1; 0 tries, next 10.62
`)
	})
}

func TestSocketsThatSystemdHasClosedAreMadeAgain(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.set(func() { n.socket.Active = "failed" })
		n.resolver.does(fails)
		n.resolver.kill()
		after(3 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    0.21  resolver dies: exit-code 1
    0.41  resolver starts
    0.42  resolver dies: exit-code 1
    0.62  resolver starts
    0.62  guard: start the socket
    0.62  guard: start the relay
    0.62  relay starts
    0.63  resolver dies: exit-code 1
    0.66  relay is ready
    0.67  guard: stop the resolver
    0.67  resolver is stopped
   state  since 0.62: exit-code 1; 0 tries, next 10.62
`)
	})
}

func TestWhoStopsTheSocketsWantsNobodyToAnswer(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(5 * time.Second)
		n.happened()
		n.set(func() { n.socket.Active = "inactive"; n.tell() })
		n.relay.stop()
		after(time.Hour)
		n.expect(`
    5.00  relay is stopped by hand
    5.04  relay is stopped
`)
		n.set(func() { n.socket.Active = "active"; n.tell() })
		after(time.Hour)
		n.nothing("started again")
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
level=INFO msg="nobody stands in for the resolver any more" why="nodelocaldns.socket is stopped" tries=0
level=WARN msg="nothing stands by for the resolver" why="nodelocaldns.socket is stopped"
`)
	})
}

func TestWhatNobodyTellsIsSeenWithinTenSeconds(t *testing.T) {
	on(t, func(n *node) {
		n.set(func() { n.mute = true })
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(30 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.20  resolver starts
    0.21  resolver dies: exit-code 1
    0.41  resolver starts
    0.42  resolver dies: exit-code 1
    0.62  resolver starts
    0.63  resolver dies: exit-code 1
    0.83  resolver starts
    0.84  resolver dies: exit-code 1
    1.04  resolver starts
    1.05  resolver dies: exit-code 1
    1.25  resolver starts
    1.26  resolver dies: exit-code 1
    1.46  resolver starts
    1.47  resolver dies: exit-code 1
    1.67  resolver starts
    1.68  resolver dies: exit-code 1
    1.88  resolver starts
    1.89  resolver dies: exit-code 1
    2.09  resolver starts
    2.10  resolver dies: exit-code 1
    2.30  resolver starts
    2.31  resolver dies: exit-code 1
    2.51  resolver starts
    2.52  resolver dies: exit-code 1
    2.55  guard: start the relay
    2.55  relay starts
    2.58  relay is ready
    2.72  resolver has failed: started too often
   12.55  guard: start the resolver
   12.55  resolver starts
   12.56  resolver dies: exit-code 1
   12.76  resolver starts
   12.77  resolver dies: exit-code 1
   12.97  resolver starts
   12.98  resolver dies: exit-code 1
   13.18  resolver starts
   13.19  resolver dies: exit-code 1
   13.39  resolver starts
   13.40  resolver dies: exit-code 1
   13.55  guard: stop the resolver
   13.55  resolver is stopped
   state  since 2.55: exit-code 1; 1 tries, next 33.55
`)
	})
}

func TestASystemdThatDoesNotAnswerIsAskedAgain(t *testing.T) {
	on(t, func(n *node) {
		n.set(func() { n.deaf = true })
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(time.Second)
		n.happened()
		n.set(func() { n.deaf = false })
		after(2 * time.Second)
		n.expect(`
    1.04  resolver starts
    1.05  resolver dies: exit-code 1
    1.25  resolver starts
    1.26  resolver dies: exit-code 1
    1.46  resolver starts
    1.47  resolver dies: exit-code 1
    1.67  resolver starts
    1.67  guard: start the relay
    1.67  relay starts
    1.68  resolver dies: exit-code 1
    1.71  relay is ready
    1.72  guard: stop the resolver
    1.72  resolver is stopped
   state  since 1.67: exit-code 1; 0 tries, next 11.67
`)
		n.saying(`
level=WARN msg="the resolver's unit is not seen" error="systemd does not answer"
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
`)
	})
}

func TestNothingIsDoneWhereTheUnitsAreNotThere(t *testing.T) {
	on(t, func(n *node) {
		n.set(func() { n.load = "masked" })
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(time.Hour)
		n.nothing("masked")
		n.saying(`
level=WARN msg="nothing stands by for the resolver" why="nodelocaldns.service is masked"
`)
		n.set(func() { n.load = "loaded" })
		after(11 * time.Second)
		n.expect(`
 3602.72  guard: start the relay
 3602.72  relay starts
 3602.76  relay is ready
   state  since 3602.72: exit-code 1; 0 tries, next 3612.72
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
`)
	})
}

func TestNothingIsDoneAfterARollback(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(fails)
		n.resolver.kill()
		after(5 * time.Second)
		n.set(func() { n.offErr = errors.New("reading the off switch: input/output error") })
		n.happened()
		after(20 * time.Second)
		n.expect(`
   state  since 0.62: exit-code 1; 0 tries, next 10.62
`)
		n.set(func() { n.off, n.offErr = true, nil })
		after(time.Hour)
		n.expect(``)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
level=WARN msg="not known whether the resolver is wanted" error="reading the off switch: input/output error"
level=INFO msg="nobody stands in for the resolver any more" why="a rollback has taken it back" tries=0
`)
	})
}

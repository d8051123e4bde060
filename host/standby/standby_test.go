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
    0.10  resolver starts
    0.11  resolver dies: exit-code 2
    0.21  resolver starts
    0.22  resolver dies: exit-code 2
    0.32  resolver starts
    0.32  guard: start the relay
    0.32  relay starts
    0.33  resolver dies: exit-code 2
    0.35  relay is ready
    0.37  guard: stop the resolver
    0.37  resolver is stopped
   10.32  guard: start the resolver
   10.32  resolver starts
   10.33  resolver dies: exit-code 2
   10.37  guard: stop the resolver
   10.37  resolver is stopped
   30.37  guard: start the resolver
   30.37  resolver starts
   30.38  resolver dies: exit-code 2
   30.42  guard: stop the resolver
   30.42  resolver is stopped
   state  since 0.32: exit-code 2; 2 tries, next 70.42
`)
		n.resolver.does(serves)
		after(time.Minute)
		n.expect(`
   70.42  guard: start the resolver
   70.42  resolver starts
   70.44  resolver is ready
   72.44  guard: stop the relay
   72.47  relay is stopped
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
level=INFO msg="trying the resolver again" try=1
level=WARN msg="the resolver has failed again" why="exit-code 2" next=20s
level=INFO msg="trying the resolver again" try=2
level=WARN msg="the resolver has failed again" why="exit-code 2" next=40s
level=INFO msg="trying the resolver again" try=3
level=INFO msg="nobody stands in for the resolver any more" why="it is back" tries=3
`)
	})
}

func TestOneThatSystemdDoesNotStartAgainIsTriedAllTheSame(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(quits)
		n.resolver.restart() // by whoever has broken its configuration
		after(15 * time.Second)
		n.expect(`
    0.00  resolver is restarted by hand
    0.02  resolver starts
    0.03  resolver dies: exit-code 1
    0.03  resolver has failed
    0.03  relay starts
    0.07  relay is ready
   10.05  guard: start the resolver
   10.05  resolver starts
   10.06  resolver dies: exit-code 1
   10.06  resolver has failed
   state  since 0.05: exit-code 1; 1 tries, next 30.10
`)
		n.resolver.does(serves)
		after(20 * time.Second)
		n.expect(`
   30.10  guard: start the resolver
   30.10  resolver starts
   30.12  resolver is ready
   32.12  guard: stop the relay
   32.16  relay is stopped
`)

		// Stopped and started, and all of it is over before anybody has looked.
		n.resolver.does(life{end: time.Millisecond, result: "exit-code", status: 1})
		n.resolver.stop()
		after(21 * time.Millisecond)
		n.resolver.start()
		after(time.Second)
		n.expect(`
   35.00  resolver is stopped by hand
   35.02  resolver is stopped
   35.02  resolver is started by hand
   35.02  resolver starts
   35.02  resolver dies: exit-code 1
   35.02  resolver has failed
   35.02  relay starts
   35.06  relay is ready
   state  since 35.05: exit-code 1; 0 tries, next 75.05
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
		n.set(func() { n.resolver.stops = time.Second })
		for range 10 {
			n.resolver.restart()
			after(1030 * time.Millisecond) // it is ready for 10 ms, and seldom seen so
		}
		n.nothing("restarted by hand ten times in a row, and slow to end")
		after(10 * time.Second)
		n.set(func() { n.resolver.stops = 20 * time.Millisecond })
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
    0.10  resolver starts
    0.12  resolver is ready
    1.60  resolver dies: oom-kill 9
    1.70  resolver starts
    1.72  resolver is ready
    3.20  resolver dies: oom-kill 9
    3.30  resolver starts
    3.32  resolver is ready
    4.80  resolver dies: oom-kill 9
    4.90  resolver starts
    4.92  resolver is ready
    6.40  resolver dies: oom-kill 9
    6.50  resolver starts
    6.50  guard: start the relay
    6.50  relay starts
    6.52  resolver is ready
    6.54  relay is ready
    6.55  guard: stop the resolver
    6.57  resolver is stopped
   16.50  guard: start the resolver
   16.50  resolver starts
   16.52  resolver is ready
   18.00  resolver dies: oom-kill 9
   18.00  guard: stop the resolver
   18.00  resolver is stopped
   state  since 6.50: oom-kill; 1 tries, next 38.00
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

func TestARestartByHandDoesNotEndATry(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(hangs)
		n.resolver.restart()
		after(5 * time.Second)
		n.happened()
		n.set(func() { n.resolver.stops = 200 * time.Millisecond })
		n.resolver.does(serves)
		n.resolver.restart()
		after(time.Minute)
		n.expect(`
    5.00  resolver is restarted by hand
    5.20  resolver starts
    5.22  resolver is ready
    7.22  guard: stop the relay
    7.25  relay is stopped
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
    0.10  resolver starts
    2.55  guard: start the relay
    2.55  relay starts
    2.58  relay is ready
   30.10  resolver dies: timeout 15
   30.10  guard: stop the resolver
   30.10  resolver is stopped
   40.10  guard: start the resolver
   40.10  resolver starts
   state  since 2.55: timeout; 1 tries, next under way
`)
	})
}

func TestAResolverThatTakesLongToFailIsReplacedAsSoon(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(life{end: 2 * time.Second, result: "exit-code", status: 2})
		n.resolver.kill()
		after(12 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.10  resolver starts
    2.10  resolver dies: exit-code 2
    2.20  resolver starts
    2.55  guard: start the relay
    2.55  relay starts
    2.58  relay is ready
    4.20  resolver dies: exit-code 2
    4.20  guard: stop the resolver
    4.20  resolver is stopped
   state  since 2.55: exit-code 2; 0 tries, next 14.20
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
   10.32  guard: start the resolver
   10.32  resolver starts
   10.34  resolver is ready
   11.32  resolver dies: watchdog 6
   11.32  guard: stop the resolver
   11.32  resolver is stopped
   state  since 0.32: watchdog; 1 tries, next 31.32
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
		tries("10.32 30.37 70.42 150.47 310.52 610.57 910.62 1210.67")

		// Well for four minutes is not well.
		n.resolver.does(serves)
		after(4*time.Minute + 30*time.Second)
		tries("1510.72")
		n.resolver.does(fails)
		n.resolver.kill()
		after(20 * time.Minute)
		tries("2070.32 2370.37 2670.42")

		n.resolver.does(serves)
		after(11 * time.Minute)
		n.resolver.does(fails)
		n.resolver.kill()
		after(30 * time.Second)
		tries("2970.47 3640.32")
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
		after(250 * time.Millisecond)
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
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
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
  120.01  resolver dies: exit-code 2
  120.05  guard: stop the resolver
  120.05  resolver is stopped
   state  since 0.32: exit-code 2; 3 tries, next 200.05
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
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
level=INFO msg="trying the resolver again" try=1
level=WARN msg="the resolver has failed again" why="exit-code 2" next=20s
level=INFO msg="trying the resolver again" try=2
level=WARN msg="the resolver has failed again" why="exit-code 2" next=40s
level=INFO msg="trying the resolver again" try=3
level=WARN msg="the resolver has failed again" why="exit-code 2" next=1m20s
level=INFO msg="somebody tries the resolver again"
level=WARN msg="the resolver has failed again" why="exit-code 2" next=1m20s
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
		after(370 * time.Millisecond)
		n.resolver.does(serves)
		n.resolver.start() // before guard has seen that it is stopped
		after(time.Minute)
		n.expect(`
    0.00  resolver dies: signal 9
    0.10  resolver starts
    0.11  resolver dies: exit-code 2
    0.21  resolver starts
    0.22  resolver dies: exit-code 2
    0.32  resolver starts
    0.32  guard: start the relay
    0.32  relay starts
    0.33  resolver dies: exit-code 2
    0.35  relay is ready
    0.37  guard: stop the resolver
    0.37  resolver is stopped
    0.37  resolver is started by hand
    0.37  resolver starts
    0.39  resolver is ready
    2.39  guard: stop the relay
    2.42  relay is stopped
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
   30.37  guard: start the resolver
   30.37  resolver starts
   30.38  resolver dies: exit-code 2
   30.42  guard: stop the resolver
   30.42  resolver is stopped
   state  since 0.32: exit-code 2; 2 tries, next 70.42
`)
		n.resolver.does(serves)
		after(35500 * time.Millisecond)
		n.unguarded() // while it tries
		after(10 * time.Second)
		n.guarded()
		after(time.Second)
		n.expect(`
   70.42  guard: start the resolver
   70.42  resolver starts
   70.44  resolver is ready
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
   state  since 60.00: exit-code 2; 0 tries, next 70.00
`)
	})
	on(t, func(n *node) { // as after a boot with a broken configuration
		n.resolver.stop()
		n.set(func() { n.resolver.state.Ready = 0 })
		n.resolver.does(fails)
		n.resolver.start()
		after(450 * time.Millisecond)
		n.happened()
		n.guarded()
		after(time.Second)
		n.expect(`
    0.45  guard: start the relay
    0.45  relay starts
    0.48  relay is ready
    0.50  guard: stop the resolver
    0.50  resolver is stopped
   state  since 0.45: exit-code 2; 0 tries, next 10.45
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
    0.10  resolver starts
    0.11  resolver dies: exit-code 2
    0.21  resolver starts
    0.22  resolver dies: exit-code 2
    0.32  resolver starts
    0.32  guard: start the relay
    0.32  relay starts
    0.33  resolver dies: exit-code 2
    0.34  relay dies: exit-code 203
    0.43  resolver starts
    0.44  resolver dies: exit-code 2
    0.54  resolver starts
    0.55  resolver dies: exit-code 2
    0.65  resolver starts
    0.66  resolver dies: exit-code 2
    0.76  resolver starts
    0.77  resolver dies: exit-code 2
    0.87  resolver starts
    0.88  resolver dies: exit-code 2
    0.98  resolver starts
    0.99  resolver dies: exit-code 2
    1.09  resolver starts
    1.10  resolver dies: exit-code 2
    1.20  resolver starts
    1.21  resolver dies: exit-code 2
    1.31  resolver starts
    1.32  resolver dies: exit-code 2
    1.33  relay starts
    1.35  relay dies: exit-code 203
    1.42  resolver starts
    1.43  resolver dies: exit-code 2
    1.53  resolver starts
    1.54  resolver dies: exit-code 2
    1.64  resolver starts
    1.65  resolver dies: exit-code 2
    1.75  resolver starts
    1.76  resolver dies: exit-code 2
    1.86  resolver starts
    1.87  resolver dies: exit-code 2
    1.97  resolver starts
    1.98  resolver dies: exit-code 2
    2.08  resolver starts
    2.09  resolver dies: exit-code 2
    2.19  resolver starts
    2.20  resolver dies: exit-code 2
    2.30  resolver is started too often, and the sockets are closed
    2.30  resolver has failed
    2.30  the sockets are made
    2.30  relay starts
    2.31  relay dies: exit-code 203
    3.31  relay starts
    3.33  relay dies: exit-code 203
    4.33  relay starts
    4.34  relay dies: exit-code 203
    5.34  relay starts
    5.36  relay dies: exit-code 203
    6.36  relay starts
    6.38  relay dies: exit-code 203
    7.38  relay starts
    7.39  relay dies: exit-code 203
    8.39  relay starts
    8.40  relay dies: exit-code 203
    9.40  relay starts
    9.42  relay dies: exit-code 203
   10.32  guard: start the resolver
   10.32  resolver starts
   10.33  resolver dies: exit-code 2
   10.42  relay starts
   10.43  resolver starts
   10.44  relay dies: exit-code 203
   10.44  resolver dies: exit-code 2
   10.54  resolver starts
   10.55  resolver dies: exit-code 2
   10.65  resolver starts
   10.66  resolver dies: exit-code 2
   10.76  resolver starts
   10.77  resolver dies: exit-code 2
   10.87  resolver starts
   10.88  resolver dies: exit-code 2
   10.98  resolver starts
   10.99  resolver dies: exit-code 2
   11.09  resolver starts
   11.10  resolver dies: exit-code 2
   11.20  resolver starts
   11.21  resolver dies: exit-code 2
   11.31  resolver starts
   11.32  resolver dies: exit-code 2
   11.42  resolver starts
   11.43  resolver dies: exit-code 2
   11.44  relay starts
   11.45  relay dies: exit-code 203
   11.53  resolver starts
   11.54  resolver dies: exit-code 2
   11.64  resolver starts
   11.65  resolver dies: exit-code 2
   11.75  resolver starts
   11.76  resolver dies: exit-code 2
   11.86  resolver starts
   11.87  resolver dies: exit-code 2
   11.97  resolver starts
   11.98  resolver dies: exit-code 2
   state  since 0.32: exit-code 2; 1 tries, next 30.37
`)
		n.relay.does(relays)
		after(2 * time.Second)
		n.expect(`
   12.08  resolver starts
   12.09  resolver dies: exit-code 2
   12.19  resolver starts
   12.20  resolver dies: exit-code 2
   12.30  resolver starts
   12.31  resolver dies: exit-code 2
   12.41  resolver starts
   12.42  resolver dies: exit-code 2
   12.45  relay starts
   12.48  relay is ready
   12.51  guard: stop the resolver
   12.51  resolver is stopped
   state  since 0.32: exit-code 2; 1 tries, next 30.37
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
    0.10  resolver starts
    0.11  resolver dies: exit-code 2
    0.21  resolver starts
    0.22  resolver dies: exit-code 2
    0.32  resolver starts
    0.32  guard: start the relay
    0.32  relay starts
    0.33  resolver dies: exit-code 2
    0.34  relay dies: exit-code 203
    0.43  resolver starts
    0.44  resolver dies: exit-code 2
    0.54  resolver starts
    0.55  resolver dies: exit-code 2
    0.65  resolver starts
    0.66  resolver dies: exit-code 2
    0.76  resolver starts
    0.77  resolver dies: exit-code 2
    0.87  resolver starts
    0.88  resolver dies: exit-code 2
    0.98  resolver starts
    0.99  resolver dies: exit-code 2
    1.09  resolver starts
    1.11  resolver is ready
    1.33  relay starts
    1.35  relay dies: exit-code 203
    2.35  relay starts
    2.37  relay dies: exit-code 203
    3.11  guard: stop the relay
    3.11  relay is stopped
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
   state  since 0.32: exit-code 2; 0 tries, next 10.32
`)
	})
}

func TestSocketsThatSystemdHasClosedAreMadeAgain(t *testing.T) {
	on(t, func(n *node) {
		n.guarded()
		n.resolver.does(quits)
		n.resolver.kill()
		after(5 * time.Second)
		n.happened()
		n.set(func() { n.socket.Active = "failed" })
		n.relay.stop()
		after(time.Second)
		n.expect(`
    5.00  relay is stopped by hand
    5.04  relay is stopped
    5.05  guard: start the socket
    5.05  guard: start the relay
    5.05  relay starts
    5.08  relay is ready
   state  since 0.15: exit-code 1; 0 tries, next 10.15
`)
	})
	on(t, func(n *node) { // under a relay that goes on with those that it has
		n.guarded()
		n.resolver.does(quits)
		n.resolver.kill()
		after(5 * time.Second)
		n.happened()
		n.resolver.does(serves)
		n.set(func() { n.socket.Active = "failed" })
		after(10 * time.Second)
		n.expect(`
   10.15  guard: stop the relay
   10.19  relay is stopped
   10.20  guard: start the socket
   10.20  guard: start the relay
   10.20  relay starts
   10.20  guard: start the resolver
   10.20  resolver starts
   10.22  resolver is ready
   10.23  relay is ready
   12.22  guard: stop the relay
   12.26  relay is stopped
`)
	})
}

func TestAJobThatSystemdRefusesIsAskedForAgain(t *testing.T) {
	on(t, func(n *node) { // such as the start of a resolver on a node that goes down
		n.guarded()
		n.set(func() { n.refuse = map[Action]bool{StartResolver: true} })
		n.resolver.does(quits)
		n.resolver.kill()
		after(20 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.10  resolver starts
    0.11  resolver dies: exit-code 1
    0.11  resolver has failed
    0.11  relay starts
    0.14  relay is ready
   10.15  guard: start the resolver
   state  since 0.15: systemd has not started it; 1 tries, next 32.15
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 1" hint="journalctl -u nodelocaldns says why"
level=INFO msg="trying the resolver again" try=1
level=WARN msg="cannot start the resolver" error="transaction is destructive"
level=WARN msg="the resolver has failed again" why="systemd has not started it" next=20s
`)
	})
	on(t, func(n *node) { // sockets that cannot be made cost one stop of the relay a try
		n.guarded()
		n.resolver.does(quits)
		n.resolver.kill()
		after(5 * time.Second)
		n.happened()
		n.set(func() { n.socket.Active, n.refuse = "failed", map[Action]bool{StartSocket: true} })
		after(20 * time.Second)
		n.expect(`
   10.15  guard: stop the relay
   10.19  relay is stopped
   10.20  guard: start the socket
   10.20  guard: start the relay
   10.20  relay starts
   10.20  guard: start the resolver
   10.20  resolver starts
   10.21  resolver dies: exit-code 1
   10.21  resolver has failed
   10.21  the sockets are made
   10.23  relay is ready
   state  since 0.15: exit-code 1; 1 tries, next 30.25
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
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
level=INFO msg="nobody stands in for the resolver any more" why="nodelocaldns.socket is stopped" tries=0
level=WARN msg="nothing stands by for the resolver" why="nodelocaldns.socket is stopped"
`)
	})
}

func TestWhatNobodyTellsIsSeenWithinTenSeconds(t *testing.T) {
	on(t, func(n *node) {
		n.set(func() { n.mute = true })
		n.guarded()
		after(time.Second)
		n.resolver.does(quits)
		n.resolver.kill()
		after(15 * time.Second)
		n.expect(`
    1.00  resolver dies: signal 9
    1.10  resolver starts
    1.11  resolver dies: exit-code 1
    1.11  resolver has failed
    1.11  relay starts
    1.15  relay is ready
   state  since 10.05: exit-code 1; 0 tries, next 20.05
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
    1.09  resolver starts
    1.10  resolver dies: exit-code 2
    1.20  resolver starts
    1.21  resolver dies: exit-code 2
    1.31  resolver starts
    1.31  guard: start the relay
    1.31  relay starts
    1.32  resolver dies: exit-code 2
    1.34  relay is ready
    1.36  guard: stop the resolver
    1.36  resolver is stopped
   state  since 1.31: exit-code 2; 0 tries, next 11.31
`)
		n.saying(`
level=WARN msg="the resolver's unit is not seen" error="systemd does not answer"
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
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
   state  since 3602.35: exit-code 2; 0 tries, next 3612.35
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
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
   state  since 0.32: exit-code 2; 0 tries, next 10.32
`)
		n.set(func() { n.off, n.offErr = true, nil })
		after(time.Hour)
		n.expect(``)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
level=WARN msg="not known whether the resolver is wanted" error="reading the off switch: input/output error"
level=INFO msg="nobody stands in for the resolver any more" why="a rollback has taken it back" tries=0
`)
	})
}

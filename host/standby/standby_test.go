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
    0.00  resolver starts
    0.03  resolver dies: exit-code 2
    0.03  resolver starts
    0.06  resolver dies: exit-code 2
    0.07  resolver starts
    0.07  guard: start the relay
    0.07  relay starts
    0.10  resolver dies: exit-code 2
    0.10  resolver starts
    0.11  relay is ready
    0.12  guard: stop the resolver
    0.14  resolver is stopped
   10.07  guard: start the resolver
   10.07  resolver starts
   10.10  resolver dies: exit-code 2
   10.10  guard: stop the resolver
   10.10  resolver is stopped
   30.10  guard: start the resolver
   30.10  resolver starts
   30.13  resolver dies: exit-code 2
   30.13  guard: stop the resolver
   30.13  resolver is stopped
   state  since 0.07: exit-code 2; 2 tries, next 70.13
`)
		n.resolver.does(serves)
		after(time.Minute)
		n.expect(`
   70.13  guard: start the resolver
   70.13  resolver starts
   70.15  resolver is ready
   72.15  guard: stop the relay
   72.19  relay is stopped
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
    0.05  resolver dies: exit-code 1
    0.05  resolver has failed
    0.05  relay starts
    0.09  relay is ready
   10.05  guard: start the resolver
   10.05  resolver starts
   10.08  resolver dies: exit-code 1
   10.08  resolver has failed
   state  since 0.05: exit-code 1; 1 tries, next 30.08
`)
		n.resolver.does(serves)
		after(20 * time.Second)
		n.expect(`
   30.08  guard: start the resolver
   30.08  resolver starts
   30.10  resolver is ready
   32.10  guard: stop the relay
   32.13  relay is stopped
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
   state  since 35.03: exit-code 1; 0 tries, next 75.03
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
    0.00  resolver starts
    0.02  resolver is ready
    1.50  resolver dies: oom-kill 9
    1.50  resolver starts
    1.52  resolver is ready
    3.00  resolver dies: oom-kill 9
    3.01  resolver starts
    3.01  guard: start the relay
    3.01  relay starts
    3.03  resolver is ready
    3.05  relay is ready
    3.05  guard: stop the resolver
    3.07  resolver is stopped
   13.01  guard: start the resolver
   13.01  resolver starts
   13.03  resolver is ready
   14.51  resolver dies: oom-kill 9
   14.51  guard: stop the resolver
   14.51  resolver is stopped
   state  since 3.01: oom-kill; 1 tries, next 34.51
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
    2.52  guard: start the relay
    2.52  relay starts
    2.56  relay is ready
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
    0.00  resolver starts
    2.51  guard: start the relay
    2.51  relay starts
    2.54  relay is ready
   30.00  resolver dies: timeout 15
   30.00  guard: stop the resolver
   30.00  resolver is stopped
   40.00  guard: start the resolver
   40.00  resolver starts
   state  since 2.51: timeout; 1 tries, next under way
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
    0.00  resolver starts
    2.00  resolver dies: exit-code 2
    2.00  resolver starts
    2.51  guard: start the relay
    2.51  relay starts
    2.54  relay is ready
    4.00  resolver dies: exit-code 2
    4.00  guard: stop the resolver
    4.00  resolver is stopped
   state  since 2.51: exit-code 2; 0 tries, next 14.00
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
   10.07  guard: start the resolver
   10.07  resolver starts
   10.09  resolver is ready
   11.07  resolver dies: watchdog 6
   11.07  guard: stop the resolver
   11.07  resolver is stopped
   state  since 0.07: watchdog; 1 tries, next 31.07
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
		tries("10.07 30.10 70.13 150.16 310.19 610.22 910.25 1210.28")

		// Well for four minutes is not well.
		n.resolver.does(serves)
		after(4*time.Minute + 30*time.Second)
		tries("1510.31")
		n.resolver.does(fails)
		n.resolver.kill()
		after(20 * time.Minute)
		tries("2070.07 2370.10 2670.13")

		n.resolver.does(serves)
		after(11 * time.Minute)
		n.resolver.does(fails)
		n.resolver.kill()
		after(30 * time.Second)
		tries("2970.16 3640.07")
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
		after(50 * time.Millisecond)
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
  120.03  resolver dies: exit-code 2
  120.03  guard: stop the resolver
  120.03  resolver is stopped
   state  since 0.07: exit-code 2; 3 tries, next 200.03
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
		after(142 * time.Millisecond)
		n.resolver.does(serves)
		n.resolver.start() // before guard has seen that it is stopped
		after(time.Minute)
		n.expect(`
    0.00  resolver dies: signal 9
    0.00  resolver starts
    0.03  resolver dies: exit-code 2
    0.03  resolver starts
    0.06  resolver dies: exit-code 2
    0.07  resolver starts
    0.07  guard: start the relay
    0.07  relay starts
    0.10  resolver dies: exit-code 2
    0.10  resolver starts
    0.11  relay is ready
    0.12  guard: stop the resolver
    0.14  resolver is stopped
    0.14  resolver is started by hand
    0.14  resolver starts
    0.16  resolver is ready
    2.16  guard: stop the relay
    2.20  relay is stopped
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
   30.10  guard: start the resolver
   30.10  resolver starts
   30.13  resolver dies: exit-code 2
   30.13  guard: stop the resolver
   30.13  resolver is stopped
   state  since 0.07: exit-code 2; 2 tries, next 70.13
`)
		n.resolver.does(serves)
		after(35500 * time.Millisecond)
		n.unguarded() // while it tries
		after(10 * time.Second)
		n.guarded()
		after(time.Second)
		n.expect(`
   70.13  guard: start the resolver
   70.13  resolver starts
   70.15  resolver is ready
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
		after(80 * time.Millisecond)
		n.happened()
		n.guarded()
		after(time.Second)
		n.expect(`
    0.09  resolver dies: exit-code 2
    0.10  resolver starts
    0.10  guard: start the relay
    0.10  relay starts
    0.13  resolver dies: exit-code 2
    0.13  resolver starts
    0.14  relay is ready
    0.14  guard: stop the resolver
    0.16  resolver is stopped
   state  since 0.10: it ends as soon as it is started; 0 tries, next 10.10
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
    0.00  resolver starts
    0.03  resolver dies: exit-code 2
    0.03  resolver starts
    0.06  resolver dies: exit-code 2
    0.07  resolver starts
    0.07  guard: start the relay
    0.07  relay starts
    0.09  relay dies: exit-code 203
    0.10  resolver dies: exit-code 2
    0.10  resolver starts
    0.13  resolver dies: exit-code 2
    0.13  resolver starts
    0.16  resolver dies: exit-code 2
    0.16  resolver starts
    0.19  resolver dies: exit-code 2
    0.19  resolver starts
    0.22  resolver dies: exit-code 2
    0.23  resolver starts
    0.26  resolver dies: exit-code 2
    0.26  resolver starts
    0.29  resolver dies: exit-code 2
    0.29  resolver starts
    0.32  resolver dies: exit-code 2
    0.32  resolver starts
    0.35  resolver dies: exit-code 2
    0.35  resolver starts
    0.38  resolver dies: exit-code 2
    0.39  resolver starts
    0.42  resolver dies: exit-code 2
    0.42  resolver starts
    0.45  resolver dies: exit-code 2
    0.45  resolver starts
    0.48  resolver dies: exit-code 2
    0.48  resolver starts
    0.51  resolver dies: exit-code 2
    0.51  resolver starts
    0.54  resolver dies: exit-code 2
    0.55  resolver starts
    0.58  resolver dies: exit-code 2
    0.58  resolver starts
    0.61  resolver dies: exit-code 2
    0.61  resolver starts
    0.64  resolver dies: exit-code 2
    0.64  resolver starts
    0.67  resolver dies: exit-code 2
    0.67  resolver starts
    0.70  resolver dies: exit-code 2
    0.71  resolver starts
    0.74  resolver dies: exit-code 2
    0.74  resolver starts
    0.77  resolver dies: exit-code 2
    0.77  resolver starts
    0.80  resolver dies: exit-code 2
    0.80  resolver starts
    0.83  resolver dies: exit-code 2
    0.83  resolver starts
    0.86  resolver dies: exit-code 2
    0.87  resolver starts
    0.90  resolver dies: exit-code 2
    0.90  resolver starts
    0.93  resolver dies: exit-code 2
    0.93  resolver starts
    0.96  resolver dies: exit-code 2
    0.96  resolver is started too often, and the sockets are closed
    0.96  resolver has failed
    0.96  the sockets are made
    0.96  relay starts
    0.98  relay dies: exit-code 203
    1.98  relay starts
    1.99  relay dies: exit-code 203
    2.99  relay starts
    3.01  relay dies: exit-code 203
    4.01  relay starts
    4.02  relay dies: exit-code 203
    5.02  relay starts
    5.04  relay dies: exit-code 203
    6.04  relay starts
    6.05  relay dies: exit-code 203
    7.05  relay starts
    7.07  relay dies: exit-code 203
    8.07  relay starts
    8.08  relay dies: exit-code 203
    9.08  relay starts
    9.10  relay dies: exit-code 203
   10.07  guard: start the resolver
   10.07  resolver starts
   10.10  relay starts
   10.10  resolver dies: exit-code 2
   10.11  resolver starts
   10.11  relay dies: exit-code 203
   10.14  resolver dies: exit-code 2
   10.14  resolver starts
   10.17  resolver dies: exit-code 2
   10.17  resolver starts
   10.20  resolver dies: exit-code 2
   10.20  resolver starts
   10.23  resolver dies: exit-code 2
   10.23  resolver starts
   10.26  resolver dies: exit-code 2
   10.27  resolver starts
   10.30  resolver dies: exit-code 2
   10.30  resolver starts
   10.33  resolver dies: exit-code 2
   10.33  resolver starts
   10.36  resolver dies: exit-code 2
   10.36  resolver starts
   10.39  resolver dies: exit-code 2
   10.39  resolver starts
   10.42  resolver dies: exit-code 2
   10.43  resolver starts
   10.46  resolver dies: exit-code 2
   10.46  resolver starts
   10.49  resolver dies: exit-code 2
   10.49  resolver starts
   10.52  resolver dies: exit-code 2
   10.52  resolver starts
   10.55  resolver dies: exit-code 2
   10.55  resolver starts
   10.58  resolver dies: exit-code 2
   10.59  resolver starts
   10.62  resolver dies: exit-code 2
   10.62  resolver starts
   10.65  resolver dies: exit-code 2
   10.65  resolver starts
   10.68  resolver dies: exit-code 2
   10.68  resolver starts
   10.71  resolver dies: exit-code 2
   10.71  resolver starts
   10.74  resolver dies: exit-code 2
   10.75  resolver starts
   10.78  resolver dies: exit-code 2
   10.78  resolver starts
   10.81  resolver dies: exit-code 2
   10.81  resolver starts
   10.84  resolver dies: exit-code 2
   10.84  resolver starts
   10.87  resolver dies: exit-code 2
   10.87  resolver starts
   10.90  resolver dies: exit-code 2
   10.91  resolver starts
   10.94  resolver dies: exit-code 2
   10.94  resolver starts
   10.97  resolver dies: exit-code 2
   10.97  resolver starts
   11.00  resolver dies: exit-code 2
   11.00  resolver starts
   11.03  resolver dies: exit-code 2
   11.03  resolver is started too often, and the sockets are closed
   11.03  resolver has failed
   11.03  the sockets are made
   11.03  relay starts
   11.05  relay dies: exit-code 203
   state  since 0.07: exit-code 2; 1 tries, next 30.11
`)
		n.relay.does(relays)
		after(2 * time.Second)
		n.expect(`
   12.05  relay starts
   12.08  relay is ready
   state  since 0.07: exit-code 2; 1 tries, next 30.11
`)
	})
	on(t, func(n *node) { // and one that comes to itself is left alone
		n.guarded()
		n.relay.does(life{end: 15 * time.Millisecond, result: "exit-code", status: 203})
		n.resolver.does(fails)
		n.resolver.kill()
		after(300 * time.Millisecond)
		n.resolver.does(serves)
		after(10 * time.Second)
		n.expect(`
    0.00  resolver dies: signal 9
    0.00  resolver starts
    0.03  resolver dies: exit-code 2
    0.03  resolver starts
    0.06  resolver dies: exit-code 2
    0.07  resolver starts
    0.07  guard: start the relay
    0.07  relay starts
    0.09  relay dies: exit-code 203
    0.10  resolver dies: exit-code 2
    0.10  resolver starts
    0.13  resolver dies: exit-code 2
    0.13  resolver starts
    0.16  resolver dies: exit-code 2
    0.16  resolver starts
    0.19  resolver dies: exit-code 2
    0.19  resolver starts
    0.22  resolver dies: exit-code 2
    0.23  resolver starts
    0.26  resolver dies: exit-code 2
    0.26  resolver starts
    0.29  resolver dies: exit-code 2
    0.29  resolver starts
    0.32  resolver dies: exit-code 2
    0.32  resolver starts
    0.34  resolver is ready
    1.09  relay starts
    1.10  relay dies: exit-code 203
    2.10  relay starts
    2.12  relay dies: exit-code 203
    2.34  guard: stop the relay
    2.34  relay is stopped
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
    5.04  guard: start the relay
    5.04  relay starts
    5.07  relay is ready
   state  since 0.07: exit-code 2; 0 tries, next 10.07
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
    5.04  guard: start the socket
    5.04  guard: start the relay
    5.04  relay starts
    5.07  relay is ready
   state  since 0.03: exit-code 1; 0 tries, next 10.03
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
   10.03  guard: stop the relay
   10.07  relay is stopped
   10.07  guard: start the socket
   10.07  guard: start the relay
   10.07  relay starts
   10.07  guard: start the resolver
   10.07  resolver starts
   10.09  resolver is ready
   10.10  relay is ready
   12.09  guard: stop the relay
   12.12  relay is stopped
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
    0.00  resolver starts
    0.03  resolver dies: exit-code 1
    0.03  resolver has failed
    0.03  relay starts
    0.07  relay is ready
   10.03  guard: start the resolver
   state  since 0.03: systemd has not started it; 1 tries, next 32.03
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
   10.03  guard: stop the relay
   10.07  relay is stopped
   10.07  guard: start the socket
   10.07  guard: start the relay
   10.07  relay starts
   10.07  guard: start the resolver
   10.07  resolver starts
   10.10  resolver dies: exit-code 1
   10.10  resolver has failed
   10.10  the sockets are made
   10.10  relay is ready
   state  since 0.03: exit-code 1; 1 tries, next 30.10
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
    1.00  resolver starts
    1.03  resolver dies: exit-code 1
    1.03  resolver has failed
    1.03  relay starts
    1.07  relay is ready
   state  since 10.01: exit-code 1; 0 tries, next 20.01
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
   state  since 2.00: exit-code 2; 0 tries, next 12.00
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
 3611.00  guard: start the resolver
 3611.00  resolver starts
   state  since 3601.00: exit-code 2; 1 tries, next under way
`)
		n.saying(`
level=WARN msg="the resolver has failed: the relay takes its place" why="exit-code 2" hint="journalctl -u nodelocaldns says why"
level=INFO msg="trying the resolver again" try=1
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
   state  since 0.07: exit-code 2; 0 tries, next 10.07
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

package main

import (
	"context"
	"log/slog"
	"time"

	"nodelocaldns/dnscache"
)

// A watchdog tells systemd that we live as long as every socket of ours is read.
//
// The kernel deals queries out to the sockets of an address by the client's port,
// so one that nobody reads loses the queries of some clients and of no others, and
// a question of our own may well come to its neighbour. So each is looked at by
// itself: whether something waits in it, and whether anything has been read since.
// That also tells a hang from overload, where questions of our own are lost and the
// sockets are read all the time, and from a firewall that drops them. They are
// asked all the same, so that there is something to read where nobody else asks.
//
// An address that is not on the node is guard's business.
type watchdog struct {
	every   time.Duration // feedings
	ask     func(ctx context.Context)
	sockets func() []dnscache.SocketState
	feed    func()
	log     *slog.Logger
}

const (
	// watchdogShare is how often the watchdog is fed in the time that systemd
	// waits. Two of three may be late.
	watchdogShare = 3

	// lookAgain is how soon a socket in which something waits is looked at again.
	lookAgain = 20 * time.Millisecond

	// watchdogHung is how long nothing may be read before it is said. The one who
	// reads may have to wait for a CPU.
	watchdogHung = time.Second
)

// run feeds until ctx ends. A question over UDP and one over TCP to one address,
// and a look at its three sockets, cost 0.5 ms of CPU a second with a WatchdogSec
// of 4 s.
func (w *watchdog) run(ctx context.Context) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		w.ask(ctx)
		if !w.read(ctx) {
			return
		}
		w.feed()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// read returns when all that waits in a socket has been read, or something in
// front of it. It is false if ctx ended first.
func (w *watchdog) read(ctx context.Context) bool {
	begun := time.Now()
	hung := false
	first := w.sockets()
	for {
		if ctx.Err() != nil {
			return false
		}
		left := unread(first, w.sockets())
		if left == nil {
			break
		}
		if !hung && time.Since(begun) >= watchdogHung {
			hung = true
			w.log.Error("nobody reads a socket of ours: the watchdog is not fed", "address", left.Addr, "protocol", left.Proto)
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
	if hung {
		w.log.Info("our sockets are read again")
	}
	return true
}

// unread is a socket in which something waited, and waits, and of which nothing has
// been read in between.
func unread(before, now []dnscache.SocketState) *dnscache.SocketState {
	for i, s := range now {
		if before[i].Waiting && s.Waiting && s.Read == before[i].Read {
			return &s
		}
	}
	return nil
}

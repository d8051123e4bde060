package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"nodelocaldns/host/fsys"
	"nodelocaldns/host/standby"
	"nodelocaldns/host/systemd"
	"nodelocaldns/units"
)

// standing is who answers pods' queries, by what systemd and guard say.
type standing struct {
	units  *standby.Snapshot // nil: our units are not asked about, or systemd does not say
	outage *standby.State    // nil: the resolver has not failed
}

// standing asks systemd, where our units run.
func (a *app) standing(ctx context.Context) (standing, error) {
	d, err := a.durableDeps(a.voice())
	if err != nil || a.rootDir != "" || !a.hasUnits(d) {
		return standing{}, err
	}
	var w standing
	st, err := standby.Read(fsys.Dir(d.RunDir))
	if err == nil {
		w.outage = &st
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var bus systemd.Bus
	defer bus.Close()
	if s, err := (standby.Units{Bus: &bus}).Look(ctx); err == nil && s.Resolver.Load != "not-found" {
		w.units = &s
	}
	return w, err
}

// quiet says that the control socket is not to be asked: nobody is there to
// answer, and systemd would start the relay to have somebody.
func (w standing) quiet() bool {
	u := w.units
	return u != nil && u.Socket.Up() && !u.Resolver.Up() && !u.Relay.Up()
}

// correct says of a resolver that does not answer what systemd knows better.
func (w standing) correct(rs resolverStatus) resolverStatus {
	if w.units == nil || rs.Running {
		return rs
	}
	switch r, relay := w.units.Resolver, w.units.Relay; {
	case r.Up():
		if rs.Relay == nil {
			return rs
		}
		rs.Why = "it runs, and the relay beside it"
	case w.outage != nil:
		rs.Why = units.Resolver + " failed: " + w.outage.Why
	case r.Active == "failed":
		rs.Why = units.Resolver + " has failed: " + r.Ended()
	case r.Sub == "auto-restart":
		rs.Why = fmt.Sprintf("%s has ended (%s) and is being started again", units.Resolver, r.Ended())
	case r.Active != "inactive":
		rs.Why = units.Resolver + " is " + r.Active
	case relay.Up():
		rs.Why = "stopped; the relay answers, kube-dns is asked for everything"
	case w.units.Socket.Up():
		rs.Why = "stopped; the next query starts the relay"
	default:
		rs.Why = fmt.Sprintf("stopped, and %s too: nobody answers", units.Socket)
	}
	return rs
}

// relay is the line about the relay, empty where there is nothing to say.
func (w standing) relay(now time.Time) string {
	up := w.units != nil && w.units.Relay.Up()
	switch o := w.outage; {
	case o != nil && (up || w.units == nil):
		return fmt.Sprintf("answers in the resolver's place since %s: %s failed: %s", w.since(now), units.Resolver, tries(*o, now))
	case o != nil:
		return fmt.Sprintf("%s is %s, and nobody answers since %s: %s failed: %s", units.Relay, w.units.Relay.Active, w.since(now), units.Resolver, tries(*o, now))
	case up && w.units.Resolver.Up():
		return "answers beside the resolver, until guard stops it"
	}
	return ""
}

func (w standing) since(now time.Time) string {
	layout := time.TimeOnly
	if now.Sub(w.outage.Since) > 12*time.Hour {
		layout = time.DateTime
	}
	return fmt.Sprintf("%s (%s)", w.outage.Since.In(now.Location()).Format(layout), ago(now.Sub(w.outage.Since)))
}

// tries is why the resolver failed, how often it has been tried, and when it
// will be.
func tries(o standby.State, now time.Time) string {
	text := o.Why + ", "
	switch o.Tries {
	case 0:
		text += "not tried again yet"
	case 1:
		text += "1 try"
	default:
		text += fmt.Sprintf("%d tries", o.Tries)
	}
	switch {
	case o.NextTry == nil:
		return text + ", one is under way"
	case o.NextTry.After(now):
		return text + ", next in " + ago(o.NextTry.Sub(now))
	}
	return text + ", next now"
}

// trouble is an error if the resolver has failed for good: guard says so, or
// systemd has given it up.
func (w standing) trouble() error {
	switch {
	case w.outage != nil:
		return withHint(fmt.Errorf("%s has failed: %s", units.Resolver, w.outage.Why), "%s", standby.Hint)
	case w.units != nil && w.units.Resolver.Active == "failed":
		return withHint(fmt.Errorf("%s has failed: %s", units.Resolver, w.units.Resolver.Ended()), "%s", standby.Hint)
	}
	return nil
}

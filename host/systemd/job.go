package systemd

import (
	"context"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// A Verb is what a job does.
type Verb string

// The verbs. TryRestart is for a unit that runs and does nothing for others,
// where Restart starts them.
const (
	Start      Verb = "StartUnit"
	Stop       Verb = "StopUnit"
	Restart    Verb = "RestartUnit"
	TryRestart Verb = "TryRestartUnit"
)

// A Mode is what becomes of other jobs and other units.
type Mode string

const (
	// Fail refuses the job if another of the same unit would have to be
	// cancelled for it, such as the stop of a node that goes down.
	Fail Mode = "fail"

	// IgnoreRequirements starts nothing that the unit wants, and stops nothing
	// that it is in conflict with. The order of jobs is kept.
	IgnoreRequirements Mode = "ignore-requirements"
)

// Done is the result of a job that did what it was for.
const Done = "done"

// Queue queues a job and does not wait for it: when it returns, the unit has
// that job, or is as the job was to make it.
func (b *Bus) Queue(ctx context.Context, v Verb, unit string, m Mode) error {
	return b.call(ctx, manager, name+".Manager."+string(v), unit, string(m)).Err
}

// Job queues a job and waits for its result: done, canceled, timeout, failed,
// dependency, skipped, … The error is that there is none to be had: systemd does
// not take the job, or ctx has ended, and the job has not.
func (b *Bus) Job(ctx context.Context, v Verb, unit string, m Mode) (string, error) {
	c, err := b.get(ctx)
	if err != nil {
		return "", err
	}
	rule := "type='signal',sender='" + name + "',interface='" + name + ".Manager',member='JobRemoved'"
	if err := c.match(ctx, "AddMatch", rule); err != nil {
		return "", fmt.Errorf("waiting for jobs: %w", err)
	}
	defer func() { _ = c.match(context.WithoutCancel(ctx), "RemoveMatch", rule) }()
	path, done, err := c.queue(ctx, v, unit, m)
	if err != nil {
		return "", err
	}
	defer c.forget(path)
	select {
	case result := <-done:
		return result, nil
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the job of %s: %w", unit, ctx.Err())
	case <-c.Context().Done():
		return "", fmt.Errorf("waiting for the job of %s: the connection to systemd ended", unit)
	}
}

// match says to the bus, if there is one, which signals are to come. Rules are
// counted: a second one of the same text is taken away by a second removal.
func (c *conn) match(ctx context.Context, method, rule string) error {
	if !c.bus {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.call(ctx, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus."+method, rule).Err
}

// queue queues a job. Its result may come before we know which job it is.
func (c *conn) queue(ctx context.Context, v Verb, unit string, m Mode) (dbus.ObjectPath, <-chan string, error) {
	c.mu.Lock()
	c.asking++
	c.mu.Unlock()
	asked, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var path dbus.ObjectPath
	err := c.call(asked, name, manager, name+".Manager."+string(v), unit, string(m)).Store(&path)

	c.mu.Lock()
	defer c.mu.Unlock()
	done := make(chan string, 1)
	if result, ok := c.early[path]; ok {
		done <- result
	} else if err == nil {
		c.jobs[path] = done
	}
	if c.asking--; c.asking == 0 {
		clear(c.early)
	}
	return path, done, err
}

func (c *conn) forget(job dbus.ObjectPath) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs, job)
}

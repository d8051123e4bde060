// Package systemd asks the node's systemd about units, and queues jobs for
// them, over D-Bus.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// dialTimeout is for each of the two ways to systemd. A bus that takes a
	// connection and says nothing must not keep us from the other.
	dialTimeout = 2 * time.Second

	// callTimeout is for one question. While systemd reads its files again it
	// answers nobody, for seconds where it has thousands of units
	// (kubernetes/kubernetes#120103).
	callTimeout = 5 * time.Second

	// pingEvery is how often systemd is asked whether it listens.
	pingEvery = 5 * time.Millisecond

	// redialPause is between two attempts of a watch to connect.
	redialPause = time.Second

	name    = "org.freedesktop.systemd1"
	manager = dbus.ObjectPath("/org/freedesktop/systemd1")
	private = "unix:path=/run/systemd/private"

	propertiesChanged = "org.freedesktop.DBus.Properties.PropertiesChanged"
	jobRemoved        = name + ".Manager.JobRemoved"
)

// A Bus is the systemd of the running node: over the system bus, and for root,
// where that is not to be had, over systemd's own socket. On the bus only the
// signals come that somebody waits for; systemd's socket brings those of all
// units.
//
// It keeps one connection, and makes another when that has ended, as after a
// restart of dbus, or of systemd itself (daemon-reexec). A question that gets no
// answer ends its connection. The zero value is ready; its methods may be called
// from several goroutines. Questions need no right where there is a system bus;
// all else needs root.
type Bus struct {
	mu   sync.Mutex // held while connecting
	conn *conn      // the last one made, nil for none
}

// Close ends the connection. The next question makes another.
func (b *Bus) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		b.conn.end()
		b.conn = nil
	}
}

// get is the connection, made now if there is none that lives.
func (b *Bus) get(ctx context.Context) (*conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	c, err := dial(ctx, func(opts ...dbus.ConnOption) (*dbus.Conn, error) { return dbus.SystemBusPrivate(opts...) }, true)
	if err != nil && os.Geteuid() == 0 {
		var perr error
		c, perr = dial(ctx, func(opts ...dbus.ConnOption) (*dbus.Conn, error) { return dbus.Dial(private, opts...) }, false)
		if perr == nil {
			err = nil
		} else {
			err = errors.Join(err, perr)
		}
	} else if err != nil {
		err = fmt.Errorf("%w: %w", fs.ErrPermission, err) // who is root needs no bus
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	b.conn = c
	return c, nil
}

// A conn is one connection. It is a dbus.SignalHandler.
type conn struct {
	*dbus.Conn
	bus    bool // there is a bus in between, which wants to know whose signals are to come
	cancel context.CancelFunc

	mu      sync.Mutex
	watches []*watch
	asking  int                             // jobs that are being queued
	early   map[dbus.ObjectPath]string      // what was over before we knew that it was ours
	jobs    map[dbus.ObjectPath]chan string // what is waited for
}

func dial(ctx context.Context, open func(...dbus.ConnOption) (*dbus.Conn, error), bus bool) (*conn, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &conn{bus: bus, cancel: cancel, early: map[dbus.ObjectPath]string{}, jobs: map[dbus.ObjectPath]chan string{}}
	ctx, done := context.WithTimeout(ctx, dialTimeout)
	defer done()
	stop := context.AfterFunc(ctx, cancel) // which ends all that is being waited for
	raw, err := open(dbus.WithContext(life), dbus.WithSignalHandler(c))
	if err == nil {
		c.Conn = raw
		// The number, and not the name: a static program cannot look that up.
		err = raw.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	}
	switch {
	case err == nil && bus:
		err = raw.Hello()
	case err == nil:
		err = c.ping(ctx)
	}
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return c, nil
}

// ping returns when systemd listens at its own socket. What it reads together
// with the end of the handshake, it looks at only when more comes (sd-bus of
// systemd 252: of 200 first questions, 124 hung), so it is asked
// again until it has replied once.
func (c *conn) ping(ctx context.Context) error {
	again := time.NewTicker(pingEvery)
	defer again.Stop()
	replies := make(chan *dbus.Call, dialTimeout/pingEvery+2)
	for {
		c.Object(name, manager).GoWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0, replies)
		select {
		case call := <-replies:
			return call.Err
		case <-again.C:
		}
	}
}

func (c *conn) end() {
	_ = c.Close()
	c.cancel()
}

// DeliverSignal is dbus.SignalHandler. The connection reads nothing meanwhile.
func (c *conn) DeliverSignal(_, _ string, s *dbus.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s.Name {
	case propertiesChanged:
		for _, w := range c.watches {
			if w.paths[s.Path] {
				w.notify()
			}
		}
	case jobRemoved: // id, path, unit, result
		if len(s.Body) != 4 {
			return
		}
		path, _ := s.Body[1].(dbus.ObjectPath)
		result, _ := s.Body[3].(string)
		if done := c.jobs[path]; done != nil {
			done <- result
			delete(c.jobs, path)
		} else if c.asking > 0 {
			c.early[path] = result
		}
	}
}

// call asks one question.
func (c *conn) call(ctx context.Context, dest string, path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	call := c.Object(dest, path).CallWithContext(ctx, method, 0, args...)
	if call.Err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		c.end()
	}
	return call
}

// call asks systemd one question, for as long as that may take.
func (b *Bus) call(ctx context.Context, path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	c, err := b.get(ctx)
	if err != nil {
		return &dbus.Call{Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.call(ctx, name, path, method, args...)
}

// Reload has systemd read its files again, and waits for that as long as ctx
// does: it takes seconds where a node has thousands of units
// (kubernetes/kubernetes#120103).
func (b *Bus) Reload(ctx context.Context) error {
	c, err := b.get(ctx)
	if err != nil {
		return err
	}
	return c.call(ctx, name, manager, name+".Manager.Reload").Err
}

// ResetFailed forgets that the unit failed, and how often it was started.
func (b *Bus) ResetFailed(ctx context.Context, unit string) error {
	return b.call(ctx, manager, name+".Manager.ResetFailedUnit", unit).Err
}

// A State is how a unit is.
type State struct {
	Load, Active, Sub string // LoadState, ActiveState, SubState
	Job               string // what is queued for it: start, stop, restart, …; empty for nothing
}

// States are how units are at one moment, in the order of their names. One that
// does not exist has a state too.
func (b *Bus) States(ctx context.Context, units ...string) ([]State, error) {
	var list []struct { // ssssssouso
		Name, Description, Load, Active, Sub, Following string
		Path                                            dbus.ObjectPath
		JobID                                           uint32
		JobType                                         string
		JobPath                                         dbus.ObjectPath
	}
	err := b.call(ctx, manager, name+".Manager.ListUnitsByNames", units).Store(&list)
	if err == nil && len(list) != len(units) {
		err = fmt.Errorf("%d of %d are known", len(list), len(units))
	}
	if err != nil {
		return nil, fmt.Errorf("asking systemd for %s: %w", strings.Join(units, ", "), err)
	}
	out := make([]State, len(list))
	for i, u := range list {
		out[i] = State{Load: u.Load, Active: u.Active, Sub: u.Sub, Job: u.JobType}
	}
	return out, nil
}

// Properties are those of a unit at one moment, by their names on D-Bus: of all
// units, and of its kind. One that this systemd does not know is not there.
type Properties map[string]any

// Properties asks for all properties of a unit. One that does not exist has
// properties too, such as its LoadState.
func (b *Bus) Properties(ctx context.Context, unit string) (Properties, error) {
	var all map[string]dbus.Variant
	if err := b.call(ctx, unitPath(unit), "org.freedesktop.DBus.Properties.GetAll", "").Store(&all); err != nil {
		return nil, fmt.Errorf("asking systemd for %s: %w", unit, err)
	}
	p := make(Properties, len(all))
	for name, v := range all {
		p[name] = v.Value()
	}
	return p, nil
}

// Some asks for a few properties of a unit, one after the other: for them all,
// systemd reads the counters of its control group, and we four hundred values.
// kind is whose they are: Unit for those of all units, Service, Socket, ….
func (b *Bus) Some(ctx context.Context, unit, kind string, names ...string) (Properties, error) {
	p := make(Properties, len(names))
	for _, n := range names {
		var v dbus.Variant
		if err := b.call(ctx, unitPath(unit), "org.freedesktop.DBus.Properties.Get", name+"."+kind, n).Store(&v); err != nil {
			return nil, fmt.Errorf("asking systemd for %s of %s: %w", n, unit, err)
		}
		p[n] = v.Value()
	}
	return p, nil
}

// Value is a property, or the zero value where it is not there or of another
// type.
func Value[T any](p Properties, name string) T {
	v, _ := p[name].(T)
	return v
}

// JobType is what is queued for the unit of these properties: start, stop,
// restart, …; empty for nothing.
func (b *Bus) JobType(ctx context.Context, p Properties) (string, error) {
	path, ok := p.job()
	if !ok {
		return "", nil
	}
	var kind dbus.Variant
	err := b.call(ctx, path, "org.freedesktop.DBus.Properties.Get", name+".Job", "JobType").Store(&kind)
	if derr := new(dbus.Error); errors.As(err, derr) && derr.Name == "org.freedesktop.DBus.Error.UnknownObject" {
		return "", nil // over by now
	} else if err != nil {
		return "", fmt.Errorf("asking systemd for a job: %w", err)
	}
	s, _ := kind.Value().(string)
	return s, nil
}

// job is the property Job, of the type (uo): number and path.
func (p Properties) job() (dbus.ObjectPath, bool) {
	job := Value[[]any](p, "Job")
	if len(job) != 2 || job[0] == uint32(0) {
		return "", false
	}
	path, ok := job[1].(dbus.ObjectPath)
	return path, ok
}

// unitPath is the object of a unit: bytes that a path cannot have are written
// as _ and two hexadecimal digits, and so is a digit in the first place.
func unitPath(unit string) dbus.ObjectPath {
	out := []byte(manager + "/unit/")
	for i := range len(unit) {
		switch c := unit[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9' && i > 0:
			out = append(out, c)
		default:
			out = fmt.Appendf(out, "_%02x", c)
		}
	}
	return dbus.ObjectPath(out)
}

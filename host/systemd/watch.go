package systemd

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
)

// A watch is somebody who waits for changes of some units.
type watch struct {
	paths map[dbus.ObjectPath]bool
	ch    chan struct{} // with room for one
}

func (w *watch) notify() {
	select {
	case w.ch <- struct{}{}:
	default: // it is known already
	}
}

// Watch tells of changes of the units until ctx ends: there is something on the
// channel when one of them may have changed since the last time, and when
// changes may have been missed, as after a reconnection. It says neither which
// nor how. Who cannot do with late news looks from time to time as well: a
// connection may be dead and nobody knows.
func (b *Bus) Watch(ctx context.Context, units ...string) <-chan struct{} {
	w := &watch{paths: map[dbus.ObjectPath]bool{}, ch: make(chan struct{}, 1)}
	for _, u := range units {
		w.paths[unitPath(u)] = true
	}
	go func() {
		for ctx.Err() == nil {
			b.listen(ctx, w)
			w.notify()
			select {
			case <-ctx.Done():
			case <-time.After(redialPause):
			}
		}
	}()
	return w.ch
}

// listen returns when the connection or ctx has ended.
func (b *Bus) listen(ctx context.Context, w *watch) {
	c, err := b.get(ctx)
	if err != nil {
		return // whoever asks systemd about the units says so
	}
	c.mu.Lock()
	c.watches = append(c.watches, w)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.watches = slices.DeleteFunc(c.watches, func(o *watch) bool { return o == w })
	}()
	for path := range w.paths {
		rule := "type='signal',sender='" + name + "',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path='" + string(path) + "'"
		if c.match(ctx, "AddMatch", rule) != nil {
			return
		}
		defer func() { _ = c.match(context.WithoutCancel(ctx), "RemoveMatch", rule) }()
	}
	asked, cancel := context.WithTimeout(ctx, callTimeout)
	err = c.call(asked, name, manager, name+".Manager.Subscribe").Err
	cancel()
	if derr := new(dbus.Error); err != nil && !(errors.As(err, derr) && derr.Name == name+".AlreadySubscribed") {
		return
	}
	w.notify()
	select {
	case <-ctx.Done():
	case <-c.Context().Done():
	}
}

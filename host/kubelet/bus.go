package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Bus is the Verifier of the running node: it asks its systemd over D-Bus. A
// connection is made for each question, so that a restart of the bus between
// two costs nothing. It needs root.
type Bus struct{}

func (Bus) connect(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	return conn, nil
}

// Reload is Verifier. It takes seconds where a node has thousands of units
// (kubernetes/kubernetes#120103): ctx should allow for that.
func (b Bus) Reload(ctx context.Context) error {
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.ReloadContext(ctx)
}

// Accepts is Verifier.
func (b Bus) Accepts(ctx context.Context, unit, file string, argv []string) error {
	conn, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	general, err := conn.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return fmt.Errorf("asking systemd for %s: %w", unit, err)
	}
	service, err := conn.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return fmt.Errorf("asking systemd for %s: %w", unit, err)
	}
	return accepts(general, service, file, argv)
}

// accepts judges the properties of a unit.
func accepts(general, service map[string]any, file string, argv []string) error {
	if state, _ := general["LoadState"].(string); state != "loaded" {
		return fmt.Errorf("its load state is %s", state)
	}
	if need, _ := general["NeedDaemonReload"].(bool); need {
		return errors.New("it is to be reloaded again: its files change while we look")
	}
	files, _ := general["DropInPaths"].([]string)
	fragment, _ := general["FragmentPath"].(string)
	if fragment != file && !slices.Contains(files, file) {
		return fmt.Errorf("it does not read the file, only %s", strings.Join(append([]string{fragment}, files...), ", "))
	}
	got, err := execStart(service["ExecStart"])
	if err != nil {
		return err
	}
	if !slices.Equal(got, argv) {
		return fmt.Errorf("it would start %q, and not %q", got, argv)
	}
	return nil
}

// execStart is the one argument vector in the property ExecStart, of the D-Bus
// type a(sasbttttuii).
func execStart(property any) ([]string, error) {
	commands, ok := property.([][]any)
	if !ok || len(commands) != 1 || len(commands[0]) < 2 {
		return nil, fmt.Errorf("it has not one command in ExecStart: %v", property)
	}
	argv, ok := commands[0][1].([]string)
	if !ok {
		return nil, fmt.Errorf("it has an ExecStart of another kind: %v", property)
	}
	return argv, nil
}

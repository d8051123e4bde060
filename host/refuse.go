package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/kubelet"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unit"
)

// refusedFile is in StateDir: what was refused must not be done by the next
// boot instead.
const refusedFile = "refused"

// ErrRefused is returned by Boot after a Refuse, with its reason.
var ErrRefused = errors.New("the last apply refused to change the kubelet")

// Refuse records that pods must not be sent to us, and why, for boots to come:
// Boot then leaves the kubelet alone. The next Apply of it forgets that.
func (n *Durable) Refuse(why error) error {
	text := strings.ReplaceAll(strings.TrimSpace(why.Error()), "\n", "; ")
	return n.state.WriteAtomic(refusedFile, []byte(text+"\n"), 0o644)
}

// Refused is an error that wraps ErrRefused if pods must not be sent to us.
func (n *Durable) Refused() error {
	text, err := n.state.ReadFile(refusedFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: %s", ErrRefused, strings.TrimSpace(string(text)))
}

// refusing is the window of an apply. What does not settle in it is refused
// before anything is taken back: where the power goes in between, no boot tries
// it again.
type refusing struct {
	step.Window
	refuse func(why error) error
	done   bool
}

// Settle is step.Window.
func (w *refusing) Settle(ctx context.Context) error {
	err := w.Window.Settle(ctx)
	if err != nil && !w.done {
		w.done = true
		_ = w.refuse(err) // Apply tries again at its end, and then it is an error
	}
	return err
}

// back takes back what was done to the kubelet in the window that is open, and
// is refused by now; then, with live, it brings the window to its end. It does
// nothing where another process has gone on since.
func (n *Durable) back(ctx context.Context, live fitter) error {
	w, err := n.left()
	if w == nil || err != nil {
		return err
	}
	keep := []string{unit.StepName}
	if w.Stage != engine.Opened {
		keep = append(keep, kubelet.StepName) // it is older than the window, or has settled in it
	}
	if live == nil {
		keep = append(keep, kubelet.WindowName)
	}
	overtaken := false
	k := n.keeper
	k.live = live
	err = k.rollback(ctx, func() error {
		refused := n.Refused()
		if refused != nil && !errors.Is(refused, ErrRefused) {
			return refused
		}
		now, err := n.left()
		if err != nil {
			return err
		}
		if overtaken = refused == nil || now == nil || now.Stage != w.Stage || !now.Since.Equal(w.Since); overtaken {
			return errors.New("another process has gone on")
		}
		return nil
	}, keep)
	if overtaken {
		return nil
	}
	return err
}

// concernsKubelet says whether the kubelet is among the steps that are asked
// for; all are where none is named.
func concernsKubelet(steps []string) bool {
	noun, _, _ := strings.Cut(kubelet.StepName, "/")
	return len(steps) == 0 || slices.Contains(steps, noun) || slices.Contains(steps, kubelet.StepName)
}

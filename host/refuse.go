package host

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"nodelocaldns/host/kubelet"
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

// concernsKubelet says whether the kubelet is among the steps that are asked
// for; all are where none is named.
func concernsKubelet(steps []string) bool {
	noun, _, _ := strings.Cut(kubelet.StepName, "/")
	return len(steps) == 0 || slices.Contains(steps, noun) || slices.Contains(steps, kubelet.StepName)
}

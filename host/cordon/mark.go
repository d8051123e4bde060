package cordon

import (
	"fmt"
	"strings"
	"time"
)

// Annotation is the mark on a node that we have cordoned.
const Annotation = "nodelocaldns.io/cordoned-by"

// A Mark says who has cordoned a node, and in which window.
type Mark struct {
	Machine string    // machine-id(5)
	Boot    string    // of the machine, when it was cordoned; for people
	Since   time.Time // when the window was opened, as its record says
}

// String is the mark as the annotation has it.
func (m Mark) String() string {
	return fmt.Sprintf("machine=%s boot=%s since=%s", m.Machine, m.Boot, m.Since.UTC().Format(time.RFC3339Nano))
}

// ParseMark reads a mark. What it does not know it passes over; a text that is
// no mark of ours is the zero Mark.
func ParseMark(text string) Mark {
	var m Mark
	for _, word := range strings.Fields(text) {
		switch key, value, _ := strings.Cut(word, "="); key {
		case "machine":
			m.Machine = value
		case "boot":
			m.Boot = value
		case "since":
			m.Since, _ = time.Parse(time.RFC3339Nano, value) // none is another window's
		}
	}
	return m
}

// SameWindow says whether both are of one window: that a cordon is ours takes
// the mark and the journal. The boot may have ended meanwhile.
func (m Mark) SameWindow(o Mark) bool {
	return m.Machine != "" && m.Machine == o.Machine && !m.Since.IsZero() && m.Since.Equal(o.Since)
}

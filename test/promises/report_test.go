package promises

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nodelocaldns/test/promises/load"
)

// out is the environment variable with the name of the results' files, without
// its end: .json and .md.
const out = "NODELOCALDNS_PROMISES"

// A row is what was promised for a case, and what was measured.
type row struct {
	order    int
	Case     string         `json:"case"`
	Promised string         `json:"promised"`
	Measured string         `json:"measured"`
	Verdict  string         `json:"verdict"` // held; late, where only a time was not kept; broken
	Loads    []load.Summary `json:"loads,omitempty"`
}

// A cell is what became of a client's lookups in a state.
type cell struct {
	order   int
	State   string        `json:"state"`
	Client  string        `json:"client"`
	Lookups int           `json:"lookups"`
	Failed  int           `json:"failed"`
	Slow    int           `json:"slow"` // took a second or longer
	Worst   time.Duration `json:"worst"`
}

// results are those of this run.
var results = collection{late: map[string]bool{}}

type collection struct {
	mu    sync.Mutex
	Rows  []row  `json:"promises"`
	Cells []cell `json:"clients"`

	late map[string]bool // by the name of a test, until its next report
}

// report adds a row. Its promise is broken where the test has failed until now;
// order is where it stands in the table.
func report(t *testing.T, order int, name, promised string, loads []load.Summary, measured string, args ...any) {
	t.Helper()
	results.mu.Lock()
	defer results.mu.Unlock()
	r := row{order, name, promised, fmt.Sprintf(measured, args...), "held", loads}
	if t.Failed() {
		r.Verdict = "broken"
	} else if results.late[t.Name()] {
		r.Verdict = "late"
	}
	delete(results.late, t.Name())
	results.Rows = append(results.Rows, r)
	t.Logf("%s: %s", r.Case, r.Measured)
	for _, l := range loads {
		t.Logf("%+v", l)
	}
}

func (c *collection) add(x cell) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Cells = append(c.Cells, x)
}

// write writes the results where the environment says.
func (c *collection) write() error {
	name := os.Getenv(out)
	if name == "" {
		return nil
	}
	slices.SortStableFunc(c.Rows, func(a, b row) int { return cmp.Compare(a.order, b.order) })
	slices.SortStableFunc(c.Cells, func(a, b cell) int { return cmp.Compare(a.order, b.order) })
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(name+".json", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(name+".md", []byte(c.markdown()), 0o644)
}

func (c *collection) markdown() string {
	var b strings.Builder
	b.WriteString("| case | promised | measured | |\n|---|---|---|---|\n")
	for _, r := range c.Rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.Case, r.Promised, r.Measured, r.Verdict)
	}
	if len(c.Cells) == 0 {
		return b.String()
	}
	var states, clients []string
	cells := map[[2]string]cell{}
	for _, x := range c.Cells {
		if !slices.Contains(states, x.State) {
			states = append(states, x.State)
		}
		if !slices.Contains(clients, x.Client) {
			clients = append(clients, x.Client)
		}
		cells[[2]string{x.State, x.Client}] = x
	}
	fmt.Fprintf(&b, "\nfailed of %d lookups, and the slowest:\n\n| state | %s |\n|---|%s\n", c.Cells[0].Lookups, strings.Join(clients, " | "), strings.Repeat("---|", len(clients)))
	for _, s := range states {
		fmt.Fprintf(&b, "| %s |", s)
		for _, name := range clients {
			x := cells[[2]string{s, name}]
			fmt.Fprintf(&b, " %d, %s |", x.Failed, short(x.Worst))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// short is a duration as a person wants it: three digits.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// slowest is the slowest answer, and how much the machine was behind meanwhile.
func slowest(s load.Summary) string {
	return fmt.Sprintf("slowest %s (load up to %s behind)", short(s.Slowest), short(s.Lag))
}

// inTime notes that a time is longer than promised, and fails the test where it is
// four times that, or ten times in a quick run, see the package's comment.
func inTime(t *testing.T, what string, took, promised time.Duration) {
	t.Helper()
	note(t, took, promised)
	most := 4 * promised
	if quick() {
		most = 10 * promised
	}
	if took > most {
		t.Errorf("%s took %s, promised are %s", what, short(took), short(promised))
	}
}

// note notes that a time is longer than promised.
func note(t *testing.T, took, promised time.Duration) {
	t.Helper()
	if took > promised {
		results.mu.Lock()
		results.late[t.Name()] = true
		results.mu.Unlock()
	}
}

// none fails the test where a count that must be 0 is not.
func none(t *testing.T, what string, count int, s load.Summary) {
	t.Helper()
	if count != 0 {
		t.Errorf("%s: %d of %d, want none; such as %s", what, count, s.Sent, s.Example)
	}
}

package bench

import (
	"fmt"
	"slices"
	"time"
)

// figures are what was counted. Failed lookups are among those that were timed:
// their clients have waited, too.
type figures struct {
	begin, end  time.Time // end is zero while it runs
	interrupted bool

	outcomes [outcomes]uint64
	over     uint64 // above the limit
	queries  uint64
	lost     uint64 // queries without a reply in time
	overTCP  uint64 // questions asked again, after a truncated reply
	trouble  error  // the first, of those with the outcome Other

	least, most, sum time.Duration
	times            histogram
	rows             [len(edges) + 1]uint64
}

// edges are the upper ones of the rows of the histogram that is shown; the last
// row has none.
var edges = [...]time.Duration{
	10 * time.Microsecond, 20 * time.Microsecond, 50 * time.Microsecond,
	100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	1 * time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	1 * time.Second, 2 * time.Second, 5 * time.Second,
	10 * time.Second, 20 * time.Second, 50 * time.Second,
}

// record counts a lookup that took that long. What was cut off is counted as
// over the limit if it was so by then, and not timed.
func (b *Bench) record(o Outcome, took time.Duration, t tally) {
	if o == unreachable {
		o = Refused
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	f := &b.figures
	f.outcomes[o]++
	f.queries += t.queries
	f.lost += t.lost
	f.overTCP += t.overTCP
	if o == Other && f.trouble == nil {
		f.trouble = t.trouble
	}
	if took > b.cfg.Limit {
		f.over++
	}
	if o == Unfinished {
		return
	}
	if f.times.n == 0 || took < f.least {
		f.least = took
	}
	f.most = max(f.most, took)
	f.sum += took
	f.times.add(took)
	row, _ := slices.BinarySearch(edges[:], took)
	f.rows[row]++
}

// failed are the lookups that ended without an answer.
func (f *figures) failed() uint64 { return f.times.n - f.outcomes[Answered] }

// elapsed is how long it has run.
func (f *figures) elapsed(now time.Time) time.Duration {
	switch {
	case f.begin.IsZero():
		return 0
	case !f.end.IsZero():
		now = f.end
	}
	return now.Sub(f.begin)
}

// Progress is how far the run is, in a line that most terminals have room for.
// It is for any goroutine.
func (b *Bench) Progress() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := &b.figures
	elapsed := f.elapsed(time.Now())
	at := fmt.Sprintf("%s/%s", elapsed.Round(time.Second), b.cfg.Duration)
	if elapsed > b.cfg.Duration {
		at = fmt.Sprintf("%s, ending", elapsed.Round(time.Second))
	}
	return fmt.Sprintf("%s: %d lookups, %.0f/s, %d failed, %d over %s, max %s",
		at, f.times.n, rate(f.times.n, elapsed), f.failed(), f.over, b.cfg.Limit, human(f.most))
}

func rate(n uint64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// human is a duration with three digits.
func human(d time.Duration) string {
	switch ms := d.Seconds() * 1e3; {
	case ms < .0995:
		return fmt.Sprintf("%.0f us", ms*1e3)
	case ms < 9.995:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 99.95:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 999.5:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

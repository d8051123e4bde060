package dnscache

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Whatever is set and stopped in whatever order, each is called for at its time.
func TestDeadlinesAreCalledForAtTheirTime(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			var d deadlines
			start := time.Now()
			var want, got []string
			var set []*deadline
			var mu sync.Mutex
			stopped := map[*deadline]bool{}
			names := map[*deadline]string{}
			for i := range 500 {
				x := new(deadline)
				after := time.Duration(random.IntN(2000)) * time.Millisecond
				name := fmt.Sprintf("%v %d", time.Since(start)+after, i)
				names[x] = name
				x.due = func() {
					if at, _, _ := strings.Cut(name, " "); at != time.Since(start).String() {
						t.Errorf("%s was called for at %v", name, time.Since(start))
					}
					mu.Lock()
					got = append(got, name)
					mu.Unlock()
				}
				d.set(x, after)
				set = append(set, x)
				if other := set[random.IntN(len(set))]; random.IntN(3) == 0 && !other.at.Equal(time.Now()) {
					d.stop(other) // again, or too late, is no harm
					stopped[other] = stopped[other] || other.at.After(time.Now())
				}
				if random.IntN(10) == 0 {
					time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
					synctest.Wait()
				}
			}
			time.Sleep(3 * time.Second)
			synctest.Wait()
			for _, x := range set {
				if !stopped[x] {
					want = append(want, names[x])
				}
			}
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("called for (-want +got):\n%s", diff)
			}
			if len(d.heap) > 0 || !d.next.IsZero() {
				t.Errorf("%d are left, the timer fires at %v", len(d.heap), d.next)
			}
		})
	}
}

package deadline

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

type owner func()

func (o owner) Due(*Deadline) { o() }

// Whatever is set and stopped in whatever order, each is called for at its time.
func TestDeadlinesAreCalledForAtTheirTime(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			var d Queue
			start := time.Now()
			var want, got []string
			var set []*Deadline
			var mu sync.Mutex
			stopped := map[*Deadline]bool{}
			names := map[*Deadline]string{}
			for i := range 500 {
				x := new(Deadline)
				after := time.Duration(random.IntN(2000)) * time.Millisecond
				name := fmt.Sprintf("%v %d", time.Since(start)+after, i)
				names[x] = name
				d.Set(x, owner(func() {
					if at, _, _ := strings.Cut(name, " "); at != time.Since(start).String() {
						t.Errorf("%s was called for at %v", name, time.Since(start))
					}
					mu.Lock()
					got = append(got, name)
					mu.Unlock()
				}), after)
				set = append(set, x)
				if other := set[random.IntN(len(set))]; random.IntN(3) == 0 && !other.at.Equal(time.Now()) {
					d.Stop(other) // again, or too late, is no harm
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

func TestADeadlineThatIsSetAgainIsCalledForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Queue
		start := time.Now()
		x := new(Deadline)
		var got []time.Duration
		o := owner(func() { got = append(got, time.Since(start)) })
		d.Set(x, o, time.Second)
		d.Set(x, o, 2*time.Second)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		d.Set(x, o, time.Second)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]time.Duration{2 * time.Second, 4 * time.Second}, got); diff != "" {
			t.Errorf("called for (-want +got):\n%s", diff)
		}
	})
}

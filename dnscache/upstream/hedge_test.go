package upstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheDelayIsLearnt(t *testing.T) {
	for _, tt := range []struct {
		what  string
		add   func(i int) time.Duration
		n     int
		least time.Duration
		most  time.Duration
	}{
		{"too few replies", func(int) time.Duration { return time.Second }, latencyFew - 1, startDelay, startDelay},
		{"a server in the cluster", func(int) time.Duration { return 300 * time.Microsecond }, 100, minDelay, minDelay},
		{"40 ms away", func(int) time.Duration { return 40 * time.Millisecond }, 100, 40 * time.Millisecond, 58 * time.Millisecond},
		{"one in twenty-five takes long", func(i int) time.Duration {
			if i%25 == 0 {
				return 150 * time.Millisecond
			}
			return 20 * time.Millisecond
		}, 500, 20 * time.Millisecond, 29 * time.Millisecond},
		{"one in ten takes long", func(i int) time.Duration {
			if i%10 == 0 {
				return 150 * time.Millisecond
			}
			return 20 * time.Millisecond
		}, 500, maxDelay, maxDelay},
		{"slow", func(int) time.Duration { return 3 * time.Second }, 100, maxDelay, maxDelay},
		{"it was slow, and is not any more", func(i int) time.Duration {
			if i < 500 {
				return time.Second
			}
			return time.Millisecond
		}, 4000, minDelay, minDelay},
		{"it becomes slow", func(i int) time.Duration {
			if i < 5000 {
				return time.Millisecond
			}
			return 100 * time.Millisecond
		}, 5100, 100 * time.Millisecond, 142 * time.Millisecond},
	} {
		var l latency
		for i := range tt.n {
			l.add(tt.add(i))
		}
		if d := l.wait(); d < tt.least || d > tt.most {
			t.Errorf("%s: %v, want %v to %v", tt.what, d, tt.least, tt.most)
		}
	}
}

func TestThreeTriesAreMadeInside100ms(t *testing.T) {
	if startDelay*(quickTries-1) >= 100*time.Millisecond || minDelay*(quickTries-1) >= 100*time.Millisecond {
		t.Error("they are not")
	}
	if last := maxDelay*(quickTries-1) + patience*(tries-quickTries); last >= 900*time.Millisecond {
		t.Errorf("the last try is made after %v", last)
	}
}

// A queue is a server that takes its time for each query, one after the other,
// and drops some of them.
type queue struct {
	takes time.Duration
	drops float64

	mu    sync.Mutex
	rand  *rand.Rand
	until time.Time
	asked int
}

func (q *queue) Exchange(ctx context.Context, query, _ []byte) ([]byte, error) {
	q.mu.Lock()
	q.asked++
	now := time.Now()
	if q.until.Before(now) {
		q.until = now
	}
	q.until = q.until.Add(q.takes)
	at, dropped := q.until, q.rand.Float64() < q.drops
	q.mu.Unlock()
	if dropped || !pause(ctx, time.Until(at)) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return benchReply(nil, query), nil
}

func TestAServerWithTooMuchToDoIsNeverAskedDouble(t *testing.T) {
	for _, tt := range []struct {
		what  string
		takes time.Duration
		drops float64
		most  float64
	}{
		{"as fast as it is asked", time.Millisecond, 0, 1.15},
		{"half as fast as it is asked", 2 * time.Millisecond, 0, 1.15},
		{"slow, and drops some", 2 * time.Millisecond, 0.3, 2},
		{"drops a fifth", 0, 0.2, 1.3},
		{"drops half", 0, 0.5, 2},
		{"drops three quarters", 0, 0.75, 1.4},
		{"drops nearly all", 0, 0.95, 1.3},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &queue{takes: tt.takes, drops: tt.drops, rand: rand.New(rand.NewPCG(3, 4))}
				g := over(nil, q)
				var wg sync.WaitGroup
				const n = 5000
				for i := range n {
					wg.Go(func() { _ = question(t, g, fmt.Sprintf("n%d.example", i)) })
					time.Sleep(time.Millisecond)
				}
				wg.Wait()
				if share := float64(q.asked) / n; share > tt.most {
					t.Errorf("%.2f queries for a question, want at most %.2f", share, tt.most)
				} else {
					t.Logf("%.2f queries for a question", share)
				}
			})
		})
	}
}

func TestTriesThatAFailureCausedCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{after: time.Millisecond, err: errDown}
		g, _ := group(t, f, &fake{after: time.Millisecond})
		for range 1000 {
			if err := question(t, g, "www.example"); err != nil {
				t.Fatal(err)
			}
		}
		if spent := g.budget.spent.Load(); spent != 0 {
			t.Errorf("%d tenths of a try spent", spent)
		}
	})
}

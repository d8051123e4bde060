package sim_test

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nodelocaldns/test/sim"
)

// large is an API server with eight times the throughput: what one must do that
// has 10,000 nodes. That is assumed, not measured.
var large = sim.Costs{
	Read:  sim.Cost{Latency: measured.Read.Latency, Throughput: 8 * measured.Read.Throughput},
	Write: sim.Cost{Latency: measured.Write.Latency, Throughput: 8 * measured.Write.Throughput},
}

// measured is what the API server of TestNodesTakeTurnsAtARealAPIServer did, with
// etcd and its clients on the same two cores.
var measured = sim.Costs{
	Read:  sim.Cost{Latency: 2700 * time.Microsecond, Throughput: 260},
	Write: sim.Cost{Latency: 5200 * time.Microsecond, Throughput: 290},
}

// window is how long a window lasts where kubelet.settle is 30 s.
func window(r float64) time.Duration {
	return 35*time.Second + time.Duration(r*float64(10*time.Second))
}

// A rollout is one that is simulated.
type rollout struct {
	what       string
	nodes, max int
	faults     sim.Faults
	fate       func(i int) sim.Fate
	wait       time.Duration
	costs      sim.Costs // zero: as measured
}

// run is a rollout at the model of an API server, in a bubble. What must hold for
// each is tested.
func (r rollout) run(t *testing.T) (got sim.Result, made sim.Requests, left *sim.Server) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		names := sim.Names(r.nodes)
		left = sim.NewServer(names, cmp.Or(r.costs, measured), r.faults, 1)
		got = sim.Roll{
			Nodes: names, Max: r.max, Fate: r.fate, Wait: r.wait, Seed: 2,
			API: func(string) sim.API { return left }, Ready: left.Ready,
			Window: window, Begin: 10 * time.Second, Away: 15 * time.Minute,
		}.Run(t.Context())
		made = left.Requests()
	})
	t.Logf("%s: %d nodes, %d at once: %+v, %+v", r.what, r.nodes, r.max, got, made)
	if got.AtOnce > r.max {
		t.Errorf("%s: %d nodes were cordoned at once, want %d at most", r.what, got.AtOnce, r.max)
	}
	if got.Rolled+got.Left+got.Waited != r.nodes {
		t.Errorf("%s: %d of %d nodes are accounted for", r.what, got.Rolled+got.Left+got.Waited, r.nodes)
	}
	return got, made, left
}

// troubled are faults that are many more than an API server has that is well.
var troubled = sim.Faults{Busy: 0.02, Broken: 0.01, Lost: 0.01, Conflict: 0.02}

// someDie are processes that end with a Lease, on nodes that are away for a
// quarter of an hour: every eighth before it is cordoned, every eighth after.
func someDie(i int) sim.Fate {
	switch i % 8 {
	case 3:
		return sim.DiesBefore
	case 5:
		return sim.Dies
	}
	return sim.Well
}

// oneBreaks does not come back Ready.
func oneBreaks(i int) sim.Fate {
	if i == 4 {
		return sim.NotReady
	}
	return sim.Well
}

func TestAllNodesHaveTheirWindowAndNeverMoreThanAllowedAtOnce(t *testing.T) {
	for _, r := range []rollout{
		{what: "all are well", nodes: 10, max: 1},
		{what: "all are well", nodes: 10, max: 3},
		{what: "the API server is in trouble", nodes: 10, max: 3, faults: troubled},
		{what: "the API server is in trouble", nodes: 1000, max: 10, faults: troubled},
		{what: "nodes die", nodes: 10, max: 3, fate: someDie},
		{what: "nodes die, and the API server is in trouble", nodes: 100, max: 10, faults: troubled, fate: someDie},
	} {
		got, _, left := r.run(t)
		if got.Rolled != r.nodes || len(left.Held()) > 0 || len(left.Cordoned()) > 0 {
			t.Errorf("%s: %d of %d nodes had their window; %v hold a lease, %v are cordoned", r.what, got.Rolled, r.nodes, left.Held(), left.Cordoned())
		}
	}
}

func TestANodeThatComesBackNotReadyGoesOnToCount(t *testing.T) {
	got, _, left := rollout{what: "one node breaks", nodes: 100, max: 2, fate: oneBreaks}.run(t)
	if got.Rolled != 99 || fmt.Sprint(left.Held(), left.Cordoned()) != "[sim-4] [sim-4]" {
		t.Errorf("%+v; %v hold a lease, %v are cordoned; want sim-4 alone", got, left.Held(), left.Cordoned())
	}
	all := func(int) sim.Fate { return sim.NotReady }
	got, _, left = rollout{what: "the change breaks every node", nodes: 200, max: 10, fate: all, wait: time.Hour}.run(t)
	if got.Left != 10 || got.Waited != 190 || len(left.Held()) != 10 {
		t.Errorf("%+v; %v hold a lease; want the change to end at 10 nodes", got, left.Held())
	}
}

// Where every node that waits asks as often as the first, four times the nodes make
// sixteen times the requests.
func TestRequestsDoNotGrowWithTheSquareOfTheNodes(t *testing.T) {
	each := func(nodes int) float64 {
		_, made, _ := rollout{what: "all are well", nodes: nodes, max: 10}.run(t)
		return float64(made.Reads + made.Writes)
	}
	if grown := math.Log(each(400)/each(100)) / math.Log(4); grown > 1.6 {
		t.Errorf("requests grow with the nodes to the power of %.2f, want 1.5 or so", grown)
	}
}

// NODELOCALDNS_SIM_TABLE=1 prints the table of figures, in a minute or two.
func TestTable(t *testing.T) {
	if os.Getenv("NODELOCALDNS_SIM_TABLE") == "" {
		t.Skip("NODELOCALDNS_SIM_TABLE is not set")
	}
	var b strings.Builder
	b.WriteString("| nodes | `--max-unavailable` | what happens | takes | most cordoned at once | requests | in the worst second | conflicts |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range []rollout{
		{what: "all are well", nodes: 10, max: 1},
		{what: "all are well", nodes: 10, max: 3},
		{what: "all are well", nodes: 1000, max: 10},
		{what: "the API server is in trouble", nodes: 1000, max: 10, faults: troubled},
		{what: "every fourth node dies with its Lease", nodes: 1000, max: 10, fate: someDie},
		{what: "all are well", nodes: 10000, max: 10, costs: large},
	} {
		got, made, _ := r.run(t)
		fmt.Fprintf(&b, "| %d | %d | %s | %s | %d | %d | %d | %d |\n", r.nodes, r.max, r.what, got.Wall.Round(time.Second), got.AtOnce, made.Reads+made.Writes, made.Peak, made.Conflicts)
	}
	fmt.Print(b.String()) // whole lines, without the name of a file before them
}

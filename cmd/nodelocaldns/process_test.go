package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// gather are the families that a collector has, as they are described, by name.
func gather(t *testing.T, c prometheus.Collector) map[string]string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range families {
		out[f.GetName()] = f.GetType().String() + " " + f.GetHelp()
	}
	return out
}

func TestAProcessWithoutProcIsDescribedAsOthersAre(t *testing.T) {
	began := time.UnixMilli(1795331844190)
	ours := newProcessWithoutProc(began)
	theirs := gather(t, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	want := map[string]string{}
	for _, name := range []string{"process_cpu_seconds_total", "process_start_time_seconds"} {
		want[name] = theirs[name]
	}
	if diff := cmp.Diff(want, gather(t, ours)); diff != "" {
		t.Errorf("(-theirs +ours):\n%s", diff)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(ours)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if cpu := families[0].GetMetric()[0].GetCounter().GetValue(); cpu <= 0 {
		t.Errorf("CPU time of %v s", cpu)
	}
	if got := families[1].GetMetric()[0].GetGauge().GetValue(); got != 1795331844.19 {
		t.Errorf("it began at %f", got)
	}
}

package main

import (
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sys/unix"
)

// newProcess is the collector of the metrics of this process that the ecosystem
// knows: client_golang's, where there is a proc file system. In the resolver's unit
// there is none, and it has what the kernel tells without.
func newProcess() prometheus.Collector {
	if _, err := os.Stat("/proc/self/stat"); err == nil {
		return collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})
	}
	return newProcessWithoutProc(time.Now())
}

// newProcessWithoutProc is that of a process that began at that time. Names and words
// are client_golang's. What is missing is the memory in use: the control group's is
// the node's to tell, and Go's own are beside these.
func newProcessWithoutProc(began time.Time) prometheus.Collector {
	return both{
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "process_cpu_seconds_total",
			Help: "Total user and system CPU time spent in seconds.",
		}, cpuSeconds),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "process_start_time_seconds",
			Help: "Start time of the process since unix epoch in seconds.",
		}, func() float64 { return float64(began.UnixMilli()) / 1000 }),
	}
}

// cpuSeconds is the CPU time of this process.
func cpuSeconds() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0 // not reached: both arguments are right
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// both is two collectors in one.
type both [2]prometheus.Collector

func (b both) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range b {
		c.Describe(ch)
	}
}

func (b both) Collect(ch chan<- prometheus.Metric) {
	for _, c := range b {
		c.Collect(ch)
	}
}

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
)

// The unit of the resolver reloads it so.
func TestReloadTellsOneProcess(t *testing.T) {
	program, err := exec.LookPath("nodelocaldns")
	if err != nil {
		t.Fatal(err)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	if out, err := exec.CommandContext(t.Context(), program, "reload", strconv.Itoa(os.Getpid())).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	<-hup
	// 0 and negative numbers are groups of processes, and an empty one is what
	// systemd makes of a process that is gone.
	for _, pid := range []string{"", "0", "-1", "1", "x"} {
		if out, err := exec.CommandContext(t.Context(), program, "reload", "--", pid).CombinedOutput(); err == nil {
			t.Errorf("%q: no error\n%s", pid, out)
		}
	}
	if len(hup) > 0 {
		t.Error("a second signal came")
	}
}

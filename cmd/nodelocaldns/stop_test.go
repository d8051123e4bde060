package main

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
)

func TestWhatChangesTheNodeIsStoppedWhenItsTerminalGoes(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		ctx, stop := stoppable(t.Context())
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		stop()
	}
}

func TestNohupIsObeyed(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	_, stop := stoppable(t.Context())
	defer stop()
	if !signal.Ignored(syscall.SIGHUP) {
		t.Error("SIGHUP stops it")
	}
}

// apply | head must not leave a node cordoned.
func TestWhatChangesTheNodeGoesOnWhenNobodyListens(t *testing.T) {
	program, err := exec.LookPath("nodelocaldns")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	_ = r.Close()
	dir := t.TempDir()
	for _, command := range []string{"apply", "rollback"} {
		cmd := exec.CommandContext(t.Context(), program, "--root", dir, command)
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Run(); cmd.ProcessState == nil || !cmd.ProcessState.Exited() {
			t.Errorf("%s: %v", command, err)
		}
	}
}

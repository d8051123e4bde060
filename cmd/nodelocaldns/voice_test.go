package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestACommandSpeaksWhereADaemonLogs(t *testing.T) {
	var stderr bytes.Buffer
	a := &app{term: term{stderr: &stderr}, level: slog.LevelInfo, format: "text"}
	log := a.voice().With("unit", "kubelet.service")
	log.Debug("not said")
	log.Info("restarting the kubelet", "for", "30s")
	a.voice().Warn("skipped\nhere", "why", "too much")
	want := "nodelocaldns: restarting the kubelet (unit kubelet.service, for 30s)\n" +
		"nodelocaldns: warning: skipped; here (why too much)\n"
	if got := stderr.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	stderr.Reset()
	a.format = "json"
	a.voice().Info("restarting")
	if got := stderr.String(); !strings.HasPrefix(got, `{"time":`) {
		t.Errorf("as JSON: %s", got)
	}
}

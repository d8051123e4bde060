package main

import (
	"log/slog"
	"testing"

	"nodelocaldns/cmd/nodelocaldns/internal/config"
	"nodelocaldns/host"
	"nodelocaldns/host/drain"
)

func TestResumeEvictsNobody(t *testing.T) {
	for _, tt := range []struct {
		d          disturbance
		configured drain.Mode
		want       drain.Mode
	}{
		{disturbance{}, drain.Drain, drain.Drain},
		{disturbance{resume: true}, drain.Drain, drain.Cordon},
		{disturbance{resume: true}, drain.Auto, drain.Auto},
		{disturbance{resume: true}, drain.Never, drain.Never},
		{disturbance{resume: true, drain: "cordon"}, drain.Drain, drain.Cordon},
		{disturbance{resume: true, drain: "never"}, drain.Drain, drain.Never},
	} {
		cfg := config.Default()
		cfg.Kubelet.Drain = tt.configured
		c, err := new(app).cordon(&tt.d, cfg, slog.New(slog.DiscardHandler), func() *host.Durable { return nil })
		if err != nil || c.Mode != tt.want {
			t.Errorf("%+v, configured %s: %+v, %v; want %s", tt.d, tt.configured, c, err, tt.want)
		}
	}
}

func TestResumeTakesNoFlagThatItWouldNotObey(t *testing.T) {
	for _, tt := range []struct{ flag, value, err, hint string }{
		{"--drain", "drain", "--resume evicts nobody, whatever --drain drain says", "apply --drain drain, without --resume, evicts pods and brings what was cut off to its end too"},
		{"--step", "link", "--resume and --step contradict each other", "--resume ends what was begun, whatever steps it was for"},
	} {
		code, stdout, stderr := runHere(t, "", "apply", "--resume", tt.flag, tt.value)
		want := "nodelocaldns: error: " + tt.err + "\nnodelocaldns: hint: " + tt.hint + "\n"
		if code != exitUsage || stdout != "" || stderr != want {
			t.Errorf("%s: exit code %d, %q, %s\nwant %s", tt.flag, code, stdout, stderr, want)
		}
	}
}

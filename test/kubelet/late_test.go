package kubelet_test

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/units"
)

// late is how much later than without us the kubelet may start.
const late = 30 * time.Second

// Every program of ours hangs and ignores SIGTERM: by what the units say, added up
// as if one came after the other, that ends before the kubelet is too late.
func TestTheKubeletIsNotLateWhateverHangs(t *testing.T) {
	files, err := units.Render(units.Settings{})
	must(t, err)
	all := map[string]settings{}
	for _, f := range files {
		all[f.Name] = readSettings(string(f.Content))
	}
	waitsFor := []string{kubeletUnit}
	for i := 0; i < len(waitsFor); i++ { // and for those that these wait for
		for _, f := range files {
			first := slices.Contains(all[f.Name]["Before"], waitsFor[i]) || slices.Contains(all[waitsFor[i]]["After"], f.Name)
			if first && !slices.Contains(waitsFor, f.Name) {
				waitsFor = append(waitsFor, f.Name)
			}
		}
	}
	want := []string{kubeletUnit, units.Guard, units.Kubelet}
	if !slices.Equal(waitsFor, want) {
		t.Errorf("before the kubelet: %q, want %q", waitsFor, want)
	}
	var sum time.Duration
	for _, name := range waitsFor[1:] {
		bound := all[name].duration(t, "JobRunningTimeoutSec")
		if bound == 0 {
			// Killed at the end. It is started again with whatever wants it, for
			// which the kubelet would wait again.
			bound = all[name].duration(t, "TimeoutStartSec") + all[name].duration(t, "TimeoutStopSec")
			if n := all[name]["StartLimitBurst"]; !slices.Equal(n, []string{"1"}) || all[name].duration(t, "StartLimitIntervalSec") < late {
				t.Errorf("%s may be started more than once while the kubelet waits", name)
			}
		}
		t.Logf("%s: %s", name, bound)
		sum += bound
	}

	golden, err := txtar.ParseFile("corpus/01-kubeadm-deb.txtar")
	must(t, err)
	at := slices.IndexFunc(golden.Files, func(f txtar.File) bool { return path.Base(f.Name) == path.Base(ourDropIn) })
	timeout := regexp.MustCompile(`ExecStartPre=-/usr/bin/timeout -k ([0-9]+) ([0-9]+) `)
	for line := range strings.Lines(string(golden.Files[at].Data)) {
		if !strings.HasPrefix(line, "ExecStartPre=") || strings.HasPrefix(line, "ExecStartPre=-/usr/bin/rm ") {
			continue
		}
		m := timeout.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("nothing bounds %s", line)
		}
		s := settings{"term": {m[2]}, "kill": {m[1]}}
		bound := s.duration(t, "term") + s.duration(t, "kill")
		t.Logf("%s: %s", strings.TrimSpace(line), bound)
		sum += bound
	}
	if t.Logf("sum: %s", sum); sum > late {
		t.Errorf("the kubelet may be %s late, want %s at the most", sum, late)
	}
}

// settings are the words of a unit's settings; those of one that is given several
// times follow each other.
type settings map[string][]string

func readSettings(unit string) settings {
	s := settings{}
	for line := range strings.Lines(unit) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			s[key] = append(s[key], strings.Fields(value)...)
		}
	}
	return s
}

// duration is that of a setting, 0 for one that is not there. A number alone
// counts seconds (systemd.time(7)).
func (s settings) duration(t *testing.T, key string) time.Duration {
	t.Helper()
	if s[key] == nil {
		return 0
	}
	text := s[key][0]
	if strings.Trim(text, "0123456789") == "" {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	must(t, err)
	return d
}

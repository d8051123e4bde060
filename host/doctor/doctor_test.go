package doctor_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"nodelocaldns/host/doctor"
	"nodelocaldns/host/hosttest/doctortest"
)

var update = flag.Bool("update", false, "write what the nodes in testdata are found to have; review each by eye")

const layouts = "../../test/kubelet/corpus"

// report is what doctor says of a node, in lines.
func report(t *testing.T, file string) []string {
	t.Helper()
	var out []string
	for _, f := range doctor.Run(t.Context(), doctortest.Load(t, file, layouts).Checks(), time.Minute) {
		out = append(out, fmt.Sprintf("%-7s  %-17s  %s", f.Level, f.Check, f.Why))
		if f.Hint != "" {
			out = append(out, "         hint: "+f.Hint)
		}
	}
	return out
}

// Each file is a node. One with a base is that node with a trouble: it wants
// what is said beyond what is said of the base.
func TestWhatIsSaidOfANode(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no nodes", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := func(name string) int {
				return slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == name })
			}
			got := report(t, file)
			if i := part("base"); i >= 0 {
				known := report(t, filepath.Join("testdata", strings.TrimSpace(string(a.Files[i].Data))+".txtar"))
				got = slices.DeleteFunc(got, func(line string) bool { return slices.Contains(known, line) })
			}
			text := strings.Join(got, "\n") + "\n"
			i := part("want")
			if *update {
				if i < 0 {
					a.Files = append(a.Files, txtar.File{Name: "want"})
					i = len(a.Files) - 1
				}
				a.Files[i].Data = []byte(text)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if i < 0 {
				t.Fatal("no part want")
			}
			if diff := cmp.Diff(string(a.Files[i].Data), text); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestACheckThatHangsIsReportedAndStopsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		checks := []doctor.Check{
			{Name: "hangs", Run: func(context.Context) []doctor.Result { <-end; return nil }},
			{Name: "obeys", Run: func(ctx context.Context) []doctor.Result {
				<-ctx.Done()
				return []doctor.Result{{Level: doctor.Info, Why: "asked for as long as was allowed"}}
			}},
			{Name: "answers", Run: func(context.Context) []doctor.Result { return []doctor.Result{{Why: "fine"}} }},
			{Name: "has no meaning here", Run: func(context.Context) []doctor.Result { return nil }},
		}
		var got []string
		for _, f := range doctor.Run(t.Context(), checks, 10*time.Second) {
			got = append(got, fmt.Sprintf("%s: %s: %s", f.Check, f.Level, f.Why))
		}
		close(end)
		want := []string{
			"hangs: warning: not seen: no end within 10s",
			"obeys: info: asked for as long as was allowed",
			"answers: ok: fine",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestTheNameOfTheNodeIsHiddenWhereItStandsAlone(t *testing.T) {
	for text, want := range map[string]string{
		"web-1: refused by web-1.":       "NODE: refused by NODE.",
		"web-10 and my-web-1 and web-1x": "web-10 and my-web-1 and web-1x",
		"web-1":                          "NODE",
		"web-1web-1 web-1":               "web-1web-1 NODE",
		"":                               "",
	} {
		all := []doctor.Finding{{Check: "c", Result: doctor.Result{Why: text, Hint: text}}}
		doctor.Hide(all, "web-1", "NODE")
		if all[0].Why != want || all[0].Hint != want {
			t.Errorf("%q: got %q and %q, want %q", text, all[0].Why, all[0].Hint, want)
		}
	}
	for _, word := range []string{"node", ""} {
		all := []doctor.Finding{{Result: doctor.Result{Why: "one node at a time"}}}
		doctor.Hide(all, word, "NODE")
		if all[0].Why != "one node at a time" {
			t.Errorf("%q: got %q", word, all[0].Why)
		}
	}
}

// Bench measures what a DNS query costs nodelocaldns and other servers, on a node
// made of network namespaces, one after the other, in rounds. Servers that are not
// installed are left out, and it says so.
//
// It needs root, and nodelocaldns, kubedns and what else there is in PATH. The
// machine should have nothing else to do.
//
// usage: bench [-quick] [-only NAME,...] [-micro FILE] [-o PREFIX]
//
//	bench chart RUN.json
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/test/bench/load"
	"nodelocaldns/test/bench/report"
)

// The main thread stays main's: a thread that has been in another namespace ends
// with its goroutine, and what is killed with the thread that started it lives as
// long as main does.
func init() { runtime.LockOSThread() }

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (int, error) {
	if len(os.Args) == 2 && os.Args[1] == "load" {
		return 0, runLoad()
	}
	if len(os.Args) == 3 && os.Args[1] == "chart" {
		return 0, chart(os.Args[2])
	}
	quick := flag.Bool("quick", false, "one short round of the main cases")
	only := flag.String("only", "", "`names` of the servers to measure, separated by commas; empty for all that are installed")
	micro := flag.String("micro", "", "`file` with what go test -bench printed")
	out := flag.String("o", "bin/bench", "`prefix` of the files .json, .md and .svg that are written")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		return 2, nil
	}
	if os.Getenv(inside) == "" {
		return enter()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	s := thorough
	if *quick {
		s = brief
	}
	r, err := measure(ctx, s, *only, *micro)
	if err != nil {
		return 1, err
	}
	fmt.Print(r.Text())
	return 0, write(r, *out)
}

// runLoad is what the rig runs in the pod.
func runLoad() error {
	var p load.Plan
	if err := json.NewDecoder(os.Stdin).Decode(&p); err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	r, err := load.Run(p)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// chart prints that of a run.
func chart(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r report.Run
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	fmt.Print(r.Chart())
	return nil
}

// write writes what came of a run.
func write(r report.Run, prefix string) error {
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(prefix+".json", append(text, '\n'), 0o644),
		os.WriteFile(prefix+".md", []byte(r.Markdown()), 0o644),
		os.WriteFile(prefix+".svg", []byte(r.Chart()), 0o644))
}

// choose returns the subjects that are to be measured and installed, and tells of
// those that are not.
func choose(only string) ([]subject, error) {
	var out []subject
	wanted := strings.FieldsFunc(only, func(r rune) bool { return r == ',' })
	for _, s := range subjects {
		i := slices.IndexFunc(wanted, func(name string) bool { return name == s.Name || name == s.program })
		if len(wanted) > 0 && i < 0 {
			continue
		}
		if _, err := exec.LookPath(s.program); err != nil {
			hint := ""
			if s.pkg != "" {
				hint = ": `test/setup.sh bench-peers` installs it"
			}
			fmt.Fprintf(os.Stderr, "bench: %s is not installed%s\n", s.Name, hint)
			continue
		}
		s.Version = s.versionOf()
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("none of the servers is installed: %q", only)
	}
	return out, nil
}

// measure does a whole run.
func measure(ctx context.Context, s scale, only, micro string) (report.Run, error) {
	r := report.Run{When: time.Now(), Rounds: s.rounds, Rate: rate}
	var err error
	if r.Machine, err = machine(); err != nil {
		return r, err
	}
	if micro != "" {
		text, err := os.ReadFile(micro)
		if err != nil {
			return r, err
		}
		if r.Micro, err = report.ParseMicro(string(text)); err != nil {
			return r, err
		}
	}
	chosen, err := choose(only)
	if err != nil {
		return r, err
	}
	for _, subject := range chosen {
		r.Subjects = append(r.Subjects, subject.Subject)
	}
	r.Cases = append(r.Cases, report.Case{Name: report.StartCase, Title: "start to first answer", Shows: report.Start})
	for _, st := range s.steps() {
		r.Cases = append(r.Cases, st.Case)
	}
	rig, err := newRig(ctx, os.Getenv(inside))
	if err != nil {
		return r, fmt.Errorf("making a node: %w", err)
	}
	for round := range s.rounds {
		busy, err := otherWork(ctx)
		if err != nil {
			return r, err
		}
		r.Machine.Busy = max(r.Machine.Busy, busy)
		for i := range chosen {
			subject := chosen[(i+round)%len(chosen)] // nobody is always the first
			fmt.Fprintf(os.Stderr, "bench: round %d of %d: %s\n", round+1, s.rounds, subject.Name)
			samples, troubles, err := rig.measure(ctx, subject, s.steps())
			for _, sample := range samples {
				sample.Subject, sample.Round = subject.Name, round
				r.Samples = append(r.Samples, sample)
			}
			for _, trouble := range troubles {
				trouble.Subject = subject.Name
				r.Failures = append(r.Failures, trouble)
			}
			if ctx.Err() != nil {
				return r, errors.New("told to end")
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "bench: %s: %v\n", subject.Name, err)
				r.Failures = append(r.Failures, report.Trouble{Subject: subject.Name, Case: fmt.Sprintf("round %d", round+1), What: err.Error()})
			}
		}
	}
	return r, nil
}

// measure does all steps with one server, which it starts and stops. Troubles are
// what went wrong between the steps.
func (r *rig) measure(ctx context.Context, s subject, steps []step) (samples []report.Sample, troubles []report.Trouble, err error) {
	if err := post(ctx, "reset", nil); err != nil { // or it would know a million names in the end
		return nil, nil, fmt.Errorf("having kube-dns forget: %w", err)
	}
	p, took, err := r.serve(ctx, s)
	if err != nil {
		return nil, nil, fmt.Errorf("starting: %w", err)
	}
	defer p.stop()
	samples = append(samples, report.Sample{Case: report.StartCase, Start: took})
	filled := map[load.Set]bool{}
	for _, st := range steps {
		if s.Floor && !st.floors {
			continue
		}
		if !s.Floor && st.fill.Count > 0 && !filled[st.fill] {
			trouble, err := r.fill(ctx, st.fill)
			if err != nil {
				return samples, troubles, fmt.Errorf("%s: filling the cache: %w", st.Title, err)
			}
			if trouble != "" {
				troubles = append(troubles, report.Trouble{Case: "before: " + st.Title, What: trouble})
			}
			filled[st.fill] = true
		}
		if st.calm {
			if err := r.calm(ctx); err != nil {
				return samples, troubles, err
			}
		}
		sample, err := r.step(ctx, s, p, st)
		if err != nil {
			return samples, troubles, fmt.Errorf("%s: %w", st.Title, err)
		}
		samples = append(samples, sample)
	}
	return samples, troubles, nil
}

// step measures one.
func (r *rig) step(ctx context.Context, s subject, p *process, st step) (report.Sample, error) {
	sample := report.Sample{Case: st.Name}
	var err error
	if st.Shows == report.Memory {
		sample.RSS, err = resident(p.Process.Pid)
		return sample, err
	}
	before, err := receiveDrops()
	if err != nil {
		return sample, err
	}
	plan := st.plan
	plan.PID, plan.AnyAddress = p.Process.Pid, s.Floor
	if sample.Load, err = r.load(ctx, plan); err != nil {
		return sample, fmt.Errorf("%w; the server said: %s", err, p.said())
	}
	after, err := receiveDrops()
	sample.Drops = after - before
	return sample, err
}

// calm lets a server come to itself, with a few queries now and then, as there always
// are on a node: while there is too much to do ours refuses those who ask for many
// new names, until a second after there was and the last of them did.
func (r *rig) calm(ctx context.Context) error {
	_, err := r.load(ctx, load.Plan{Kind: load.UDP, Names: load.Set{Kind: load.Pod, Count: 10}, Rate: 200, Sockets: 4, Time: 1500 * time.Millisecond})
	return err
}

// fill has a server ask for names and keep them. What was not answered is asked for
// again; trouble is what was wrong the first time.
func (r *rig) fill(ctx context.Context, names load.Set) (trouble string, err error) {
	const tries = 5
	for try := 1; ; try++ {
		got, err := r.load(ctx, load.Plan{Kind: load.UDP, Names: names, Count: names.Count, Window: 32, Sockets: 8, Timeout: 2 * time.Second})
		if err != nil || got.Right == names.Count {
			return trouble, err
		}
		what := fmt.Sprintf("%d of %d names were not answered: %s", names.Count-got.Right, names.Count, got.Example)
		if try == tries {
			return trouble, errors.New(what)
		}
		if try == 1 {
			trouble = what
		}
		if err := r.calm(ctx); err != nil {
			return trouble, err
		}
	}
}

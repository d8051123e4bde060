// Load asks a name server as a plan says and writes what became of each query.
// It ends by itself; it ends early, and writes just the same, when its standard
// input ends or SIGTERM tells it to.
//
// usage: load <PLAN.json >RESULT.json
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"nodelocaldns/test/promises/load"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "load: error:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	in := json.NewDecoder(os.Stdin)
	var p load.Plan
	if err := in.Decode(&p); err != nil {
		return fmt.Errorf("reading the plan: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	r, err := load.Run(ctx, p)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

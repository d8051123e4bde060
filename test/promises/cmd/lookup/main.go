// Lookup looks a name up with Go's own resolver as the programs in
// test/promises/clients do with theirs, and prints the same: for each of COUNT
// lookups, one every INTERVAL milliseconds, when it began and what it took, in
// nanoseconds, and the addresses or "error: …". It waits for the last of them for
// LIMIT milliseconds.
//
// usage: lookup COUNT INTERVAL LIMIT NAME
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lookup: error:", err)
		os.Exit(2)
	}
}

func run(args []string) error {
	const usage = "usage: lookup COUNT INTERVAL LIMIT NAME"
	if len(args) != 4 {
		return errors.New(usage)
	}
	var numbers [3]int
	for i := range numbers {
		var err error
		if numbers[i], err = strconv.Atoi(args[i]); err != nil {
			return fmt.Errorf("%s: %w", usage, err)
		}
	}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	count, interval, limit := numbers[0], ms(numbers[1]), ms(numbers[2])

	ctx, cancel := context.WithCancel(context.Background())
	lines := make([]string, count)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range count {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * interval)))
		wg.Go(func() {
			when := time.Now()
			found := lookup(ctx, args[3])
			lines[i] = fmt.Sprintln(when.Sub(begin).Nanoseconds(), time.Since(when).Nanoseconds(), found)
		})
	}
	time.AfterFunc(limit, cancel)
	wg.Wait()
	_, err := fmt.Print(strings.Join(lines, ""))
	return err
}

func lookup(ctx context.Context, name string) string {
	// One that is shared asks once for all who ask at the same time.
	found, err := (&net.Resolver{PreferGo: true}).LookupIPAddr(ctx, name)
	if err != nil {
		return "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	var text []string
	for _, a := range found {
		text = append(text, a.String())
	}
	slices.Sort(text)
	return strings.Join(slices.Compact(text), ",")
}

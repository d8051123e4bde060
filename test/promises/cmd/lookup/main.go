// Lookup looks a name up with Go's own resolver as the programs in
// test/promises/clients do with theirs, and prints the same: for each of COUNT
// lookups, one every INTERVAL milliseconds, when it began and what it took, in
// nanoseconds, and the addresses or "error: …".
//
// usage: lookup COUNT INTERVAL NAME
package main

import (
	"context"
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
	if len(args) != 3 {
		return fmt.Errorf("usage: lookup COUNT INTERVAL NAME")
	}
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	interval, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	lines := make([]string, count)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range count {
		time.Sleep(time.Until(begin.Add(time.Duration(i*interval) * time.Millisecond)))
		wg.Go(func() {
			when := time.Now()
			found := lookup(args[2])
			lines[i] = fmt.Sprintln(when.Sub(begin).Nanoseconds(), time.Since(when).Nanoseconds(), found)
		})
	}
	wg.Wait()
	_, err = fmt.Print(strings.Join(lines, ""))
	return err
}

func lookup(name string) string {
	// One that is shared asks once for all who ask at the same time.
	found, err := (&net.Resolver{PreferGo: true}).LookupIPAddr(context.Background(), name)
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

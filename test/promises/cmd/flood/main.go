// Flood asks a name server for random names below com. at a rate, or as fast as
// it can, and reads no answer. It prints how many queries it has sent a second.
//
// usage: flood SERVER:PORT QUERIES-A-SECOND DURATION
package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "flood: error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: flood SERVER:PORT QUERIES-A-SECOND DURATION")
	}
	rate, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	lasts, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	const length = 12
	query, err := new(dns.Msg).SetQuestion("aaaaaaaaaaaa.com.", dns.TypeA).Pack()
	if err != nil {
		return err
	}
	var conns []net.Conn
	for range 64 {
		c, err := net.Dial("udp", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		conns = append(conns, c)
	}
	begun := time.Now()
	sent := 0
	for {
		took := time.Since(begun)
		if took >= lasts {
			fmt.Printf("%.0f\n", float64(sent)/took.Seconds())
			return nil
		}
		due := int(took.Seconds() * float64(rate))
		if sent >= due {
			time.Sleep(200 * time.Microsecond)
			continue
		}
		for ; sent < due && sent%1024 != 1023; sent++ {
			query[0], query[1] = byte(sent>>8), byte(sent)
			for i := range length {
				query[13+i] = 'a' + byte(rand.N(26))
			}
			_, _ = conns[sent%len(conns)].Write(query) // what the kernel has no room for is lost
		}
		sent++
	}
}

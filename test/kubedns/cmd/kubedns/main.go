// Kubedns runs the stand-in of package kubedns until it is told to end.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"nodelocaldns/test/kubedns"
)

func main() {
	addr := flag.String("listen", "127.0.0.1:5300", "`address:port` of the DNS server, UDP and TCP")
	control := flag.String("control", "", "`address:port` of /count, /reset and /behave over HTTP; empty for none")
	flag.Parse()
	if err := run(*addr, *control); err != nil {
		fmt.Fprintln(os.Stderr, "kubedns: error:", err)
		os.Exit(1)
	}
}

func run(addr, control string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := kubedns.Listen(addr)
	if err != nil {
		return err
	}
	defer s.Close()
	if control != "" {
		l, err := net.Listen("tcp", control)
		if err != nil {
			return err
		}
		h := &http.Server{Handler: s.Control(), ReadHeaderTimeout: 5 * time.Second}
		go func() { _ = h.Serve(l) }() // until Close
		defer h.Close()
	}
	<-ctx.Done()
	return nil
}

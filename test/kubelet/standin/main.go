// Command standin is a kubelet as its unit and its node see it: it is called
// kubelet, answers at 127.0.0.1:10248/healthz, and stays. It exits with status 1
// if one of its arguments contains the text of /etc/refuse, as a kubelet does
// that is given a flag that it does not have, or finds no configuration yet.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	refuse, err := os.ReadFile("/etc/refuse")
	if err == nil && strings.Contains(strings.Join(os.Args, " "), strings.TrimSpace(string(refuse))) {
		fmt.Fprintf(os.Stderr, "unknown flag: %s", refuse)
		os.Exit(1)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	server := &http.Server{Addr: "127.0.0.1:10248", Handler: mux, ReadHeaderTimeout: time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}

package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOnlyThePageIsServed(t *testing.T) {
	page := func() []byte { return []byte("x 1\n") }
	for _, tt := range []struct{ request, want string }{
		{"GET /p HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Type: text/x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nx 1\n"},
		{"GET /p?x=y HTTP/1.0\n\n", "HTTP/1.0 200 OK\r\nContent-Type: text/x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nx 1\n"},
		{"HEAD /p HTTP/1.1\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Type: text/x\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"},
		{"GET / HTTP/1.1\r\n\r\n", "HTTP/1.0 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 7\r\nConnection: close\r\n\r\nGET /p\n"},
		{"POST /p HTTP/1.1\r\n\r\n", "HTTP/1.0 405 Method Not Allowed\r\nContent-Type: text/plain\r\nContent-Length: 7\r\nConnection: close\r\n\r\nGET /p\n"},
		{"GET /p HTTP/1.1\r\nHost: a\r\n", ""},
		{"GET /p\r\n\r\n", ""},
		{"PRI * HTTP/2.0\r\n\r\n", ""},
		{"GET /p HTTP/1.1\r\nX: " + strings.Repeat("x", maxHeader) + "\r\n\r\n", ""},
		{"", ""},
	} {
		if got := string(answer(strings.NewReader(tt.request), "/p", "text/x", page)); got != tt.want {
			t.Errorf("%.60q: got %q, want %q", tt.request, got, tt.want)
		}
	}
}

// Every reply is one that Go's own client takes, with its length right.
func FuzzHTTPRequest(f *testing.F) {
	f.Add([]byte("GET /p HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("HEAD / HTTP/1.0\n\n"))
	f.Fuzz(func(t *testing.T, request []byte) {
		got := answer(bytes.NewReader(request), "/p", "text/x", func() []byte { return []byte("x 1\n") })
		if got == nil {
			return
		}
		method, _, _ := strings.Cut(strings.TrimSpace(string(request)), " ")
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(got)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%v: %q", err, got)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatalf("%v: %q", err, got)
		}
	})
}

// visits are a listener whose visitors come over pipes.
type visits struct {
	come chan net.Conn
	once sync.Once
	over chan struct{}
}

func newVisits() *visits { return &visits{come: make(chan net.Conn), over: make(chan struct{})} }

func (v *visits) Accept() (net.Conn, error) {
	select {
	case conn := <-v.come:
		return conn, nil
	case <-v.over:
		return nil, net.ErrClosed
	}
}

func (v *visits) Close() error {
	v.once.Do(func() { close(v.over) })
	return nil
}
func (v *visits) Addr() net.Addr { return &net.UnixAddr{} }

// ask asks for path on a connection of its own and returns all that is said.
func (v *visits) ask(path string) string {
	ours, theirs := net.Pipe()
	v.come <- theirs
	go func() { _, _ = io.WriteString(ours, "GET "+path+" HTTP/1.1\r\n\r\n") }()
	text, _ := io.ReadAll(ours)
	return string(text)
}

func TestMetricsComeWhenTheirPortIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var tries []time.Duration
		here, there := newVisits(), newVisits()
		var log bytes.Buffer
		var wg sync.WaitGroup
		e := &endpoint{log: slog.New(slog.NewTextHandler(&log, nil)), page: func() []byte { return []byte("x 1\n") }, wg: &wg}
		e.listen = func(addr string) (net.Listener, error) {
			if addr == "there" {
				return there, nil
			}
			tries = append(tries, time.Since(began))
			if len(tries) < 3 {
				return nil, errors.New("taken")
			}
			return here, nil
		}
		e.set(t.Context(), "here")
		time.Sleep(2 * listenRetry)
		synctest.Wait()
		e.set(t.Context(), "here") // nothing new
		if got := here.ask("/metrics"); !strings.HasSuffix(got, "\r\n\r\nx 1\n") {
			t.Errorf("got %q", got)
		}
		if want := []time.Duration{0, listenRetry, 2 * listenRetry}; len(tries) != 3 || tries[1] != want[1] || tries[2] != want[2] {
			t.Errorf("tried after %v, want %v", tries, want)
		}
		if n := strings.Count(log.String(), "cannot listen"); n != 1 {
			t.Errorf("said %d times that it cannot listen, want once:\n%s", n, &log)
		}
		e.set(t.Context(), "there")
		<-here.over
		if got := there.ask("/metrics"); !strings.HasSuffix(got, "\r\n\r\nx 1\n") {
			t.Errorf("elsewhere: got %q", got)
		}
		e.set(t.Context(), "")
		<-there.over
		wg.Wait()
	})
}

// They would else hold a file each for as long as they like.
func TestVisitorsThatSayNothingAreSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisits()
		var wg sync.WaitGroup
		wg.Go(func() { serveHTTP(t.Context(), v, "/p", "text/x", func() []byte { return nil }) })
		began := time.Now()
		for range maxVisitors {
			_, theirs := net.Pipe()
			v.come <- theirs
		}
		if got := v.ask("/p"); !strings.HasPrefix(got, "HTTP/1.0 200 OK") || time.Since(began) != httpTimeout {
			t.Errorf("got %q after %s, want it after %s", got, time.Since(began), httpTimeout)
		}
		_ = v.Close()
		wg.Wait()
	})
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"
)

// Two pages of text need no net/http, which makes this program twice as large: one
// request a connection, its header read and left alone, and one reply with its
// length in front, as HTTP/1.0 has it (RFC 1945).
const (
	// maxHeader is the longest request that is read.
	maxHeader = 8 << 10
	// httpTimeout bounds request and reply.
	httpTimeout = 5 * time.Second
	// maxVisitors bounds the requests at a time; more wait in the kernel.
	maxVisitors = 8
	// listenRetry is how long /metrics waits before it tries its address again:
	// the resolver has it until it has ended.
	listenRetry = 3 * time.Second
	// acceptPause keeps a listener that fails at every try from using a CPU.
	acceptPause = 100 * time.Millisecond
)

// serveHTTP serves one page on l until ctx ends, and closes l. page may be called
// from many goroutines.
func serveHTTP(ctx context.Context, l net.Listener, path, kind string, page func() []byte) {
	var visitors sync.WaitGroup
	defer visitors.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	room := make(chan struct{}, maxVisitors)
	for {
		room <- struct{}{}
		conn, err := l.Accept()
		if err != nil {
			<-room
			if errors.Is(err, net.ErrClosed) || !pause(ctx, acceptPause) {
				return
			}
			continue
		}
		visitors.Go(func() {
			defer func() { <-room }()
			defer conn.Close()
			left := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer left()
			_ = conn.SetDeadline(time.Now().Add(httpTimeout))
			if reply := answer(conn, path, kind, page); reply != nil {
				_, _ = conn.Write(reply)
			}
		})
	}
}

// answer reads a request and returns the reply to it, nil for what is none.
func answer(conn io.Reader, path, kind string, page func() []byte) []byte {
	in := bufio.NewReader(io.LimitReader(conn, maxHeader))
	first, err := in.ReadString('\n')
	for line := first; err == nil && strings.TrimRight(line, "\r\n") != ""; {
		line, err = in.ReadString('\n')
	}
	words := strings.Fields(first)
	if err != nil || len(words) != 3 || !strings.HasPrefix(words[2], "HTTP/1.") {
		return nil
	}
	asked, _, _ := strings.Cut(words[1], "?")
	status, body := "200 OK", []byte(nil)
	switch {
	case words[0] != "GET" && words[0] != "HEAD":
		status, kind, body = "405 Method Not Allowed", "text/plain", []byte("GET "+path+"\n")
	case asked != path:
		status, kind, body = "404 Not Found", "text/plain", []byte("GET "+path+"\n")
	default:
		body = page()
	}
	head := fmt.Sprintf("HTTP/1.0 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", status, kind, len(body))
	if words[0] == "HEAD" {
		body = nil
	}
	return append([]byte(head), body...)
}

// An endpoint serves /metrics at an address that may be taken. That is a line in
// the log, never a reason to stop answering DNS. It is used from one goroutine.
type endpoint struct {
	log    *slog.Logger
	page   func() []byte
	listen func(addr string) (net.Listener, error)
	wg     *sync.WaitGroup // of its goroutines

	addr string
	stop context.CancelFunc
	done chan struct{}
}

// set moves the endpoint to addr, until ctx ends; nowhere if addr is empty. It has
// its address when this returns, if it can be had.
func (e *endpoint) set(ctx context.Context, addr string) {
	if addr == e.addr {
		return
	}
	if e.stop != nil {
		e.stop()
		<-e.done
	}
	e.addr, e.stop = addr, nil
	if addr == "" {
		return
	}
	ctx, e.stop = context.WithCancel(ctx)
	done := make(chan struct{})
	e.done = done
	l, err := e.listen(addr)
	e.wg.Go(func() {
		defer close(done)
		e.serve(ctx, addr, l, err)
	})
}

// serve serves on l, or, where there was none for err, on one that can be had
// later.
func (e *endpoint) serve(ctx context.Context, addr string, l net.Listener, err error) {
	if err != nil {
		e.log.Warn("cannot listen: trying again", "endpoint", "metrics", "address", addr, "every", listenRetry, "error", err)
	}
	for ; err != nil; l, err = e.listen(addr) {
		if !pause(ctx, listenRetry) {
			return
		}
	}
	e.log.Info("listening", "endpoint", "metrics", "address", addr)
	serveHTTP(ctx, l, "/metrics", "text/plain; version=0.0.4; charset=utf-8", e.page)
}

// pause waits; it is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// asJSON is v on a line of its own.
func asJSON(v any) []byte {
	text, _ := json.Marshal(v) // of numbers, text and addresses
	return append(text, '\n')
}

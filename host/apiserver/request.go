package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

// A request is one that the API server decides at once.
type request struct {
	what         string // after "asking HOST ", such as "for node n1"
	method, path string
	query        url.Values
	patch        bool // body is a JSON merge patch (RFC 7396)
	body         any  // nil: none
	kind         string
	reply        any // where the object of that kind in the reply goes; nil: it is not read
	// list reads the reply instead, and may be called again.
	list func(*json.Decoder) error
}

// do makes a request, and makes it again where that is harmless and may help.
func (c *Client) do(ctx context.Context, r request) error {
	for try := 1; ; try++ {
		now, err := c.connection()
		if err != nil {
			return err
		}
		fault := c.once(ctx, now, r)
		if fault == nil {
			return nil
		}
		again := ctx.Err() == nil && (fault.cut && r.method == http.MethodGet && try < tries ||
			// Nothing was done. The certificate of an open connection may have
			// run out, and a program may have a new token by now.
			fault.refusal != nil && fault.refusal.code == http.StatusUnauthorized && try == 1)
		if fault.cut || again {
			c.leave(now) // what is silent stays so for who asks next
		}
		if !again {
			return c.explain(fault, now, r)
		}
	}
}

// A fault is why a request failed.
type fault struct {
	err     error
	cut     bool     // the way there or back failed: trying again may help
	secret  bool     // there was no credential to ask with
	ended   bool     // the caller had enough
	refusal *refusal // what the API server said; err is the same
}

// A refusal is a reply that is no success.
type refusal struct {
	code   int
	line   string // "403 Forbidden"
	status status
	after  time.Duration // not to be asked again before
}

func (r *refusal) Error() string {
	if r.status.Message == "" {
		return r.line
	}
	return r.line + ": " + r.status.Message
}

// status is meta/v1 Status, what an API server replies where it fails.
type status struct {
	Message string `json:"message"`
	Reason  string `json:"reason"`
	Details struct {
		Name   string `json:"name"`
		Causes []struct {
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"causes"`
	} `json:"details"`
}

// once makes one attempt.
func (c *Client) once(ctx context.Context, now *connection, r request) *fault {
	bound := c.one
	if r.list != nil {
		bound = c.list
	}
	bounded, cancel := context.WithTimeout(ctx, bound.time)
	defer cancel()
	lost := func(err error) *fault {
		switch {
		case ctx.Err() != nil:
			return &fault{err: context.Cause(ctx), ended: true}
		case bounded.Err() != nil:
			return &fault{err: fmt.Errorf("no reply within %s", bound.time), cut: true}
		}
		return &fault{err: err, cut: true}
	}

	var dialed atomic.Bool
	trace := &httptrace.ClientTrace{GetConn: func(string) { dialed.Store(true) }}
	req, err := newRequest(httptrace.WithClientTrace(bounded, trace), now.base, r)
	if err != nil {
		return &fault{err: err}
	}
	resp, err := now.send(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // it repeats the address
		}
		if !dialed.Load() && ctx.Err() == nil {
			return &fault{err: err, secret: true}
		}
		return lost(err)
	}
	defer resp.Body.Close()
	body := &reader{from: resp.Body, left: bound.size}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		said := &refusal{code: resp.StatusCode, line: resp.Status, after: retryAfter(resp.Header)}
		// What is in front of an API server speaks HTML.
		_ = json.NewDecoder(body).Decode(&said.status)
		return &fault{err: said, refusal: said}
	}
	switch {
	case r.list != nil:
		err = r.list(json.NewDecoder(body))
	case r.reply != nil:
		err = decode(body, r.kind, r.reply)
	}
	switch {
	case err == nil:
		return nil
	case body.failed != nil:
		return lost(fmt.Errorf("reading the reply: %w", body.failed))
	case body.left <= 0:
		err = fmt.Errorf("it is longer than %d bytes", bound.size)
	}
	return &fault{err: fmt.Errorf("reading the reply: %w", err)}
}

// decode reads an object of a kind.
func decode(body io.Reader, kind string, into any) error {
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	var head struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return err
	}
	if err := isKind(head.Kind, kind); err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// isKind is an error unless kind is the one that was asked for: what answers
// everything with 200 OK and an empty object is no API server, and its node
// would have no pods.
func isKind(kind, want string) error {
	if kind != want {
		return fmt.Errorf("its kind is %q, not %s", kind, want)
	}
	return nil
}

func newRequest(ctx context.Context, base *url.URL, r request) (*http.Request, error) {
	var body io.Reader
	if r.body != nil {
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	at := base.JoinPath(r.path)
	at.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, at.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	switch {
	case r.patch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case r.body != nil:
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// send is Do that ends with the request's context also while a program of the
// kubeconfig runs: client-go waits for that one without end. "aws eks get-token"
// does so where the instance's metadata cannot be reached.
func (c *connection) send(req *http.Request) (*http.Response, error) {
	if c.config.ExecProvider == nil {
		return c.client.Do(req)
	}
	type result struct {
		resp *http.Response
		err  error
	}
	done := make(chan result, 1)
	go func() {
		resp, err := c.client.Do(req)
		done <- result{resp, err}
	}()
	select {
	case r := <-done:
		return r.resp, r.err
	case <-req.Context().Done():
		go func() {
			if r := <-done; r.err == nil {
				r.resp.Body.Close()
			}
		}()
		return nil, req.Context().Err()
	}
}

// retryAfter is the header Retry-After in seconds, as API servers send it.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(n) * time.Second
}

// A reader reads so much and no more, and remembers why it failed.
type reader struct {
	from   io.Reader
	left   int64
	failed error // nil where what came is all that was sent
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.from.Read(p)
	r.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		r.failed = err
	}
	return n, err
}

// explain makes the error that callers see.
func (c *Client) explain(f *fault, now *connection, r request) error {
	host := now.base.Host
	e := &Error{Doing: "asking " + host + " " + r.what, Err: f.err}
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(f.err, &untrusted):
		e.kinds = append(e.kinds, ErrUnreachable)
		e.Next = fmt.Sprintf("either %s is not the API server that %s is of, or its certificate has changed", host, c.file)
	case f.cut:
		e.kinds = append(e.kinds, ErrUnreachable)
		e.Next = fmt.Sprintf("see whether the kubelet reaches %s: journalctl -u kubelet", host)
	case f.secret:
		e.kinds = append(e.kinds, ErrUnauthorized)
		e.Next = "the credential in " + c.file + " cannot be used; if it names a program, run that by hand"
	case f.refusal != nil:
		return c.refused(e, f.refusal)
	case !f.ended:
		e.kinds = append(e.kinds, ErrUnreachable)
		e.Next = host + " does not reply as an API server does; see what " + c.file + " says of it"
	}
	return e
}

func (c *Client) refused(e *Error, r *refusal) error {
	switch r.code {
	case http.StatusUnauthorized:
		e.kinds = append(e.kinds, ErrUnauthorized)
		e.Next = "the API server does not accept the credential in " + c.file + ": it may have run out"
	case http.StatusForbidden:
		e.kinds = append(e.kinds, ErrForbidden)
		e.Next = "the user of the credential in " + c.file + " has no right to this"
	case http.StatusNotFound:
		e.kinds = append(e.kinds, ErrNotFound)
	case http.StatusConflict:
		return &Conflict{Err: e}
	case http.StatusTooManyRequests:
		return &Busy{RetryAfter: r.after, Err: e}
	}
	// Of a server whose etcd is away, or of what stands in front of it.
	if r.code < 400 || r.code >= 500 {
		e.kinds = append(e.kinds, ErrUnreachable)
		e.Next = "the API server is not well; its own log tells why"
	}
	return e
}

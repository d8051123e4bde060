package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"nodelocaldns/host/apiserver"
	"nodelocaldns/host/cordon"
	"nodelocaldns/host/limit"
)

// A limiter holds one of the Leases that bound how many nodes are away at once.
// It connects anew for each: what it holds outlives the connection of a window.
type limiter struct {
	connect func(ctx context.Context) (*apiserver.Client, string, error)
	cfg     limit.Config // without API and Node
	client  *apiserver.Client
	held    *limit.Held
}

var _ cordon.Limit = (*limiter)(nil)

func (a *app) limiter(n int, timeout time.Duration, connect func(ctx context.Context) (*apiserver.Client, string, error)) *limiter {
	said := ""
	return &limiter{connect: connect, cfg: limit.Config{
		Max: n, Mark: cordon.Annotation,
		Timeout: timeout - timeout/10, // before the window's own, which knows of no lease
		Now:     time.Now, Rand: rand.Float64, Log: a.voice(),
		Waiting: func(w limit.Waiting) {
			if text := "waiting for --max-unavailable: " + w.String(); text != said {
				said = text
				a.note(text)
			}
		},
	}}
}

// releaseWithin bounds the search for a Lease that an earlier process held.
const releaseWithin = 10 * time.Second

// Acquire is cordon.Limit.
func (l *limiter) Acquire(ctx context.Context) error {
	if l.held != nil {
		return nil
	}
	if l.client == nil {
		client, node, err := l.connect(ctx)
		if err != nil {
			return err
		}
		l.client, l.cfg.API, l.cfg.Node = client, client, node
	}
	var err error
	l.held, err = limit.Acquire(ctx, l.cfg)
	return err
}

// Renew is cordon.Limit.
func (l *limiter) Renew(ctx context.Context) error {
	if l.held == nil {
		return errors.New("no lease is held")
	}
	return l.held.Renew(ctx)
}

// Release is cordon.Limit.
func (l *limiter) Release(ctx context.Context) error {
	if l.held == nil {
		// One that an earlier process of this node held is taken up at once,
		// and another node's is not waited for.
		l.cfg.Timeout = releaseWithin
		if err := l.Acquire(ctx); err != nil {
			return nil //nolint:nilerr // what is not to be had is not ours
		}
	}
	err := l.held.Release(ctx)
	if err == nil {
		l.held = nil
		l.client.Close()
		l.client = nil
	}
	return err
}

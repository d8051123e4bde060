package link

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// resubscribe is how long Watch waits before it opens another socket after one
// failed, so that a kernel which refuses one does not cost a core.
const resubscribe = time.Second

// Watch tells of changes to links and addresses in the network namespace of
// this process, until ctx ends. It does not say which: the channel holds
// one signal at most, and a reader looks for itself. When the kernel could not
// keep up and dropped messages (ENOBUFS), that is a signal too, and the
// subscription is made anew.
func Watch(ctx context.Context, log *slog.Logger) (<-chan struct{}, error) {
	sock, err := subscribe()
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	signal := func() {
		select {
		case out <- struct{}{}:
		default:
		}
	}
	go func() {
		for ctx.Err() == nil {
			if sock != nil {
				receive(ctx, sock, signal)
				signal() // whatever ended it, something may have been missed
			}
			if ctx.Err() != nil {
				return
			}
			log.Debug("netlink subscription ended, making it anew")
			select {
			case <-ctx.Done():
				return
			case <-time.After(resubscribe):
			}
			if sock, err = subscribe(); err != nil {
				log.Warn("subscribing to netlink", "error", err)
				sock = nil
				continue
			}
			signal()
		}
	}()
	return out, nil
}

func subscribe() (*nl.NetlinkSocket, error) {
	return nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
}

// receive signals for each batch of messages until the socket fails or ctx ends.
func receive(ctx context.Context, sock *nl.NetlinkSocket, signal func()) {
	stop := context.AfterFunc(ctx, sock.Close)
	defer func() {
		if stop() {
			sock.Close()
		}
	}()
	for ctx.Err() == nil {
		_, _, err := sock.Receive()
		switch {
		case err == nil:
			signal()
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		default:
			return
		}
	}
}

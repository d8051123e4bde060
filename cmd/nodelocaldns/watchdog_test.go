package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/dnscache"
	"nodelocaldns/test/ports"
)

func TestTheWatchdogIsFedAsLongAsEverySocketIsRead(t *testing.T) {
	const never = time.Hour
	// reader is a socket into which something comes every time we look from the
	// first second on, and whose reader stands still for some time.
	reader := func(p dnscache.Proto, from, to time.Duration) func(time.Duration) dnscache.SocketState {
		return func(now time.Duration) dnscache.SocketState {
			s := dnscache.SocketState{Proto: p, Addr: netip.MustParseAddrPort("169.254.20.10:53"), Waiting: now >= from}
			switch {
			case now < from:
				s.Read = uint64(now)
			case now < to:
				s.Read = uint64(from)
			default:
				s.Read = uint64(now)
			}
			return s
		}
	}
	idle := func(time.Duration) dnscache.SocketState { return dnscache.SocketState{} }
	for _, tt := range []struct {
		name    string
		sockets []func(now time.Duration) dnscache.SocketState
		want    string
	}{
		{"nobody asks", []func(time.Duration) dnscache.SocketState{idle, idle}, "fed 0s\nfed 1s\nfed 2s\nfed 3s\nfed 4s\n"},
		{
			"more is asked than can be answered", []func(time.Duration) dnscache.SocketState{reader(dnscache.UDP, 0, 0), reader(dnscache.TCP, 0, 0)},
			"fed 20ms\nfed 1.02s\nfed 2.02s\nfed 3.02s\nfed 4.02s\n",
		},
		{
			"one of two sockets hangs", []func(time.Duration) dnscache.SocketState{idle, reader(dnscache.UDP, time.Second, never)},
			`fed 0s
2s level=ERROR msg="nobody reads a socket of ours: the watchdog is not fed" address=169.254.20.10:53 protocol=udp
`,
		},
		{
			"no connection is accepted", []func(time.Duration) dnscache.SocketState{reader(dnscache.UDP, 0, 0), reader(dnscache.TCP, 1500*time.Millisecond, never)},
			`fed 20ms
fed 1.02s
3s level=ERROR msg="nobody reads a socket of ours: the watchdog is not fed" address=169.254.20.10:53 protocol=tcp
`,
		},
		{
			"a reader waits for a CPU", []func(time.Duration) dnscache.SocketState{reader(dnscache.UDP, time.Second, 1300*time.Millisecond)},
			"fed 0s\nfed 1.3s\nfed 2.02s\nfed 3.02s\nfed 4.02s\n",
		},
		{
			"a reader hangs and goes on", []func(time.Duration) dnscache.SocketState{reader(dnscache.UDP, time.Second, 3500*time.Millisecond)},
			`fed 0s
2s level=ERROR msg="nobody reads a socket of ours: the watchdog is not fed" address=169.254.20.10:53 protocol=udp
3.5s level=INFO msg="our sockets are read again"
fed 3.5s
fed 3.52s
fed 4.02s
`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got strings.Builder
				begun := time.Now()
				text := slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
					fmt.Fprintf(&got, "%s %s", time.Since(begun), p)
					return len(p), nil
				}), &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
					if a.Key == slog.TimeKey {
						return slog.Attr{}
					}
					return a
				}})
				w := watchdog{
					every: time.Second,
					ask:   func(context.Context) {},
					sockets: func() (out []dnscache.SocketState) {
						for _, s := range tt.sockets {
							out = append(out, s(time.Since(begun)))
						}
						return out
					},
					feed: func() { fmt.Fprintf(&got, "fed %s\n", time.Since(begun)) },
					log:  slog.New(text),
				}
				ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
				defer cancel()
				w.run(ctx)
				if diff := cmp.Diff(tt.want, got.String()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// What is asked comes to sockets of ours over both protocols, and systemd hears of
// it.
func TestTheResolverFeedsTheWatchdogOfSystemd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	pc, l := ports.Listen(t)
	defer pc.Close()
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	var log bytes.Buffer
	s := &serving{log: slog.New(slog.NewTextHandler(&log, nil)), probe: &prober{[]netip.AddrPort{at}}, resolver: unreadSockets{}}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watchdog(time.Millisecond).run(ctx)
	}()
	buf := make([]byte, 512)
	if n, err := systemd.Read(buf); err != nil || string(buf[:n]) != "WATCHDOG=1" {
		t.Errorf("systemd hears %q, %v", buf[:n], err)
	}
	stop()
	<-done
	if n, _, err := pc.ReadFromUDPAddrPort(buf); err != nil || n < 12 {
		t.Errorf("over UDP: %d bytes, %v", n, err)
	}
	if c, err := l.Accept(); err != nil {
		t.Errorf("over TCP: %v", err)
	} else {
		_ = c.Close()
	}
	if log.Len() > 0 {
		t.Errorf("the log says %s", &log)
	}
}

// unreadSockets is a resolver of which nothing but its sockets is asked for.
type unreadSockets struct{ resolver }

func (unreadSockets) Sockets() []dnscache.SocketState { return nil }

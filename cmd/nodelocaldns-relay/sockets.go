package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"strconv"
	"syscall"

	"nodelocaldns/cmd/internal/sockets"
	"nodelocaldns/cmd/nodelocaldns-relay/internal/relay"
)

// given are the sockets that systemd opened for us. It has them too: what is in
// them when we end is there for the next process.
type given struct {
	packets []relay.PacketConn
	streams []relay.Listener
	control []net.Listener
}

// listenFDsStart is where the files begin (sd_listen_fds(3)).
const listenFDsStart = 3

// handedOver are the files that systemd passes to this process, by the protocol
// of sd_listen_fds(3). The library for it brings crypto/tls along, and this
// program would be a quarter larger.
func handedOver() []*os.File {
	pid, perr := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if perr != nil || err != nil || pid != os.Getpid() {
		return nil
	}
	var files []*os.File
	for fd := listenFDsStart; fd < listenFDsStart+n; fd++ {
		syscall.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "handed over file "+strconv.Itoa(fd)))
	}
	return files
}

// adopt takes over all of files: where the resolver would close a socket that is
// not in its configuration, there is none here, and one that nobody reads would
// be silence for its share of the clients. Files are closed.
func adopt(files []*os.File, log *slog.Logger) (given, error) {
	var g given
	for _, f := range files {
		conn, _ := sockets.Adopt(f)
		_ = f.Close() // conn is a copy
		switch c := conn.(type) {
		case *net.UDPConn:
			g.packets = append(g.packets, c)
		case *net.TCPListener:
			g.streams = append(g.streams, c)
		case *net.UnixListener:
			g.control = append(g.control, c)
		default:
			log.Warn("closing a handed over file that is no UDP, listening TCP or control socket", "file", f.Name())
		}
	}
	if len(files) > 0 && len(g.packets)+len(g.streams) == 0 {
		return g, errors.New("none of the files that were handed over is a socket for queries")
	}
	return g, nil
}

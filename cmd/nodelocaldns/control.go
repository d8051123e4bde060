package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/cmd/internal/control"
	"nodelocaldns/dnscache"
)

// controlSocket is where in the run directory a resolver can be asked about
// itself: HTTP, JSON, for root and the resolver's own user.
const controlSocket = "control.sock"

// takenError says that another resolver has the control socket.
type takenError struct{ path string }

func (e *takenError) Error() string {
	return fmt.Sprintf("another resolver answers at %s", e.path)
}

func (e *takenError) Hint() string {
	return "stop it, or give this one its own --run-dir"
}

// listenControl makes the control socket in dir. The socket file of a dead
// process is replaced; with a living one the error is a *takenError.
func listenControl(dir string) (net.Listener, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, controlSocket)
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return nil, &takenError{path}
	case errors.Is(err, syscall.ECONNREFUSED): // nobody behind it, or no socket
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s is there and is no socket", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	case errors.Is(err, fs.ErrNotExist):
	default:
		return nil, err
	}
	// The mode must be right from the first moment: a connection made before
	// a later chmod would stay.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	return l, err
}

// resolverStatus is what a resolver says about itself at the control socket,
// and the resolver part of status --json.
type resolverStatus struct {
	Running   bool             `json:"running"`
	Why       string           `json:"why,omitempty"` // it is not running, or cannot be seen
	PID       int              `json:"pid,omitempty"`
	Version   *version         `json:"version,omitempty"`
	Since     *time.Time       `json:"since,omitempty"`
	Uptime    *int64           `json:"uptime_seconds,omitempty"`
	Config    *configFacts     `json:"config,omitempty"`
	Queries   *queryFacts      `json:"queries,omitempty"`
	Cache     *cacheFacts      `json:"cache,omitempty"`
	Upstreams []upstreamStatus `json:"upstreams,omitempty"`
	Relay     *relayStatus     `json:"relay,omitempty"` // answers in its place; it is not Running then
}

// relayStatus is what a relay says about itself at the same socket.
type relayStatus = control.Relay

type configFacts struct {
	File       string           `json:"file"`
	Loaded     time.Time        `json:"loaded"`
	Listen     []netip.AddrPort `json:"listen"`
	ClusterDNS []netip.AddrPort `json:"cluster_dns"`
	DNSSource  string           `json:"cluster_dns_source"` // what names them: cluster.dns, what guard found, or that it has found none yet
}

type queryFacts struct {
	UDP         uint64 `json:"udp"`
	TCP         uint64 `json:"tcp"`
	Malformed   uint64 `json:"malformed"`
	Timeouts    uint64 `json:"timeouts"`
	Loops       uint64 `json:"loops"`
	Shed        uint64 `json:"shed"`
	SocketDrops uint64 `json:"socket_drops"`
}

type cacheFacts struct {
	Hits      uint64 `json:"hits"`
	Misses    uint64 `json:"misses"`
	Entries   int64  `json:"entries"`
	Bytes     int64  `json:"bytes"`
	MaxBytes  int64  `json:"max_bytes"`
	Evictions uint64 `json:"evictions"`
}

type upstreamStatus struct {
	Server  netip.AddrPort `json:"server"`
	Proto   string         `json:"proto"`
	Queries uint64         `json:"queries"`
	Errors  uint64         `json:"errors"` // without a usable reply
	Down    bool           `json:"down"`   // failed lately, so asked last
	Mean    float64        `json:"mean_seconds"`
}

func (s *serving) status(now time.Time) resolverStatus {
	st, cfg, v := s.Stats(), s.config.Load(), thisVersion()
	t, up := total(st), int64(now.Sub(s.started)/time.Second)
	rs := resolverStatus{
		Running: true,
		PID:     os.Getpid(),
		Version: &v,
		Since:   &s.started,
		Uptime:  &up,
		Config: &configFacts{
			File:       s.path,
			Loaded:     cfg.at,
			Listen:     s.probe.addrs,
			ClusterDNS: append([]netip.AddrPort{}, cfg.resolver().ClusterDNS...),
			DNSSource:  cfg.source(),
		},
		Queries: &queryFacts{
			UDP: st.Queries[dnscache.UDP], TCP: st.Queries[dnscache.TCP],
			Malformed: st.Malformed, Timeouts: st.Timeouts, Loops: st.Loops, Shed: st.Shed, SocketDrops: st.SocketDrops,
		},
		Cache: &cacheFacts{
			Hits: t.hits, Misses: t.misses, Entries: t.entries,
			Bytes: st.CacheBytes, MaxBytes: st.CacheMax, Evictions: st.Evictions,
		},
	}
	for _, u := range st.Upstreams {
		rs.Upstreams = append(rs.Upstreams, upstreamStatus{
			Server: u.Server, Proto: u.Proto.String(), Queries: u.Queries, Errors: u.Errors, Down: u.Down,
			Mean: meanLatency(u).Seconds(),
		})
	}
	return rs
}

func (s *serving) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.status(time.Now())) // the client went away
	})
	mux.HandleFunc("GET /why", func(w http.ResponseWriter, r *http.Request) {
		q, err := parseWhy(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Explain(q.name, q.types)) // the client went away
	})
	return mux
}

// getControl reads a page of the control socket at path into what v points at.
func getControl(ctx context.Context, path, page string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control"+page, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

// unseen is why a resolver cannot be seen by who has no right to ask it.
const unseen = "not seen: needs root"

// askControl asks the resolver of dir, or the relay that stands in for it, about
// itself. That there is none, or that it cannot be asked, is part of the answer.
func askControl(ctx context.Context, dir string) resolverStatus {
	path := filepath.Join(dir, controlSocket)
	var rs resolverStatus
	switch err := getControl(ctx, path, "/status", &rs); {
	case err == nil:
		return rs
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return resolverStatus{Why: "no resolver at " + path}
	case errors.Is(err, fs.ErrPermission):
		return resolverStatus{Why: unseen}
	default:
		return resolverStatus{Why: fmt.Sprintf("asking %s: %v", path, err)}
	}
}

package dnscache

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"nodelocaldns/dnscache/cache"
)

// SaveCache writes what the cache holds for the process that comes after this
// one, and returns how many replies that are. Failures are left out. Times are
// those of CLOCK_BOOTTIME: what was written must not outlive the boot of the
// machine. It may be called while the server serves, and after Serve has returned.
func (s *Server) SaveCache(w io.Writer) (int, error) {
	from := s.origin()
	return s.cache.Snapshot(w, from, s.now(), s.uptime())
}

// LoadCache takes over what another process has written with SaveCache, whole
// or not at all, and returns how many replies are still fresh: TTLs go on
// counting while no process serves. The error says why nothing was taken: it
// cannot be read, is damaged or of another version, or names went to other
// servers then. It is called before Serve.
func (s *Server) LoadCache(r io.Reader) (int, error) {
	return s.cache.Restore(r, s.origin(), s.now(), s.uptime())
}

// origin is all that decides which servers answer which names.
func (s *Server) origin() cache.Origin {
	st := s.state.Load()
	text, err := json.Marshal([]any{
		st.cfg.ClusterDomain, st.cfg.ClusterDNS, st.cfg.AwaitClusterDNS, st.cfg.Upstreams, st.cfg.StubDomains, st.node,
	})
	if err != nil {
		panic(fmt.Sprintf("addresses and names cannot be written as JSON: %v", err)) // not reached
	}
	return sha256.Sum256(text)
}

// sinceBoot is the time since the machine was started, the time that it slept
// included.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err)) // Linux has had it since 2.6.39
	}
	return time.Duration(t.Nano())
}

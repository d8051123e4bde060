package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// warmFile is where in the unit's runtime directory the cache waits for the next
// process. The directory is the resolver's own, in memory, and systemd keeps it
// over a restart and removes it when the unit stops: what is in it can be neither
// older than the boot nor left behind.
const warmFile = "cache"

// warmPath is the file of the cache, "" where this process has no directory to
// put it in (systemd.exec(5), RuntimeDirectory=).
func warmPath() string {
	dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, warmFile)
}

// takeOver begins with the replies that the process before has left, if it has,
// and removes them: another process is not to begin with what is older than its
// predecessor. What cannot be taken over is one line in the log.
func (s *serving) takeOver(path string) {
	if path == "" {
		return
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	n := 0
	if err == nil {
		n, err = s.LoadCache(f)
		_ = f.Close()
	}
	if err != nil {
		s.log.Warn("beginning with an empty cache: that of the process before cannot be used", "file", path, "error", err)
	} else {
		s.log.Info("cache taken over", "replies", n)
	}
	if err := os.Remove(path); err != nil {
		s.log.Warn("removing the cache of the process before", "error", err)
	}
}

// leave writes the cache for the next process, whole or not at all.
func (s *serving) leave(path string) {
	if path == "" || !s.config.Load().Cache.Persist {
		return
	}
	n, err := func() (int, error) {
		f, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(0o600))
		if err != nil {
			return 0, err
		}
		defer f.Cleanup()
		n, err := s.SaveCache(f)
		if err != nil {
			return 0, err
		}
		return n, f.CloseAtomicallyReplace()
	}()
	if err != nil {
		s.log.Warn("the next process begins with an empty cache", "error", err)
		return
	}
	s.log.Info("cache left for the next process", "replies", n)
}

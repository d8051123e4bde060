package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Lock is held by the one process that runs the engine. The kernel lets go
// of it when the process ends, however it ends.
type Lock struct {
	f *os.File
}

// retry is how often Acquire asks again. Holders keep the lock for a pass of
// some tens of milliseconds, or for a window of minutes; either way 20 ms is
// not noticed.
const retry = 20 * time.Millisecond

// A HeldError says who else runs the engine.
type HeldError struct {
	Path string
	PID  string // as the holder wrote it; empty when it had not yet
}

func (e *HeldError) Error() string {
	if e.PID == "" {
		return fmt.Sprintf("%s is held by another process", e.Path)
	}
	return fmt.Sprintf("%s is held by process %s", e.Path, e.PID)
}

// Hint says what to do next.
func (e *HeldError) Hint() string {
	if e.PID == "" {
		return "another nodelocaldns changes this node; try again when it is done"
	}
	return fmt.Sprintf("another nodelocaldns changes this node (ps -p %s); try again when it is done", e.PID)
}

// Acquire takes the lock at path, making the file and its directory if they
// are missing. While somebody else holds it, Acquire waits until ctx ends and
// then returns a *HeldError that names the holder. The file is never removed:
// two processes could then each hold a lock of that name.
func Acquire(ctx context.Context, path string) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			held := &HeldError{Path: path, PID: holder(f)}
			f.Close()
			return nil, held
		case <-time.After(retry):
		}
	}
	pid := fmt.Appendf(nil, "%d\n", os.Getpid())
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, fmt.Errorf("writing %s: %w", path, err)
	}
	if _, err := f.WriteAt(pid, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("writing %s: %w", path, err)
	}
	return &Lock{f: f}, nil
}

// Release lets go of the lock.
func (l *Lock) Release() error { return l.f.Close() }

func holder(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

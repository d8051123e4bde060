package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// A speaker is the log of a command that a person waits for: an event is a line
// in the voice of this program, without a time. What runs in the background
// logs; see logger.
type speaker struct {
	term  *term
	level slog.Level
	attrs []slog.Attr
}

// voice is where a command says what it is about, by the flags of the log.
func (a *app) voice() *slog.Logger {
	if a.format == "json" {
		return a.logger()
	}
	return slog.New(&speaker{term: &a.term, level: a.level})
}

// Enabled is slog.Handler.
func (s *speaker) Enabled(_ context.Context, l slog.Level) bool { return l >= s.level }

// Handle is slog.Handler.
func (s *speaker) Handle(_ context.Context, r slog.Record) error {
	var details []string
	add := func(at slog.Attr) bool {
		details = append(details, fmt.Sprintf("%s %v", at.Key, at.Value))
		return true
	}
	for _, at := range s.attrs {
		add(at)
	}
	r.Attrs(add)
	text := r.Message
	if len(details) > 0 {
		text += " (" + strings.Join(details, ", ") + ")"
	}
	if r.Level >= slog.LevelWarn {
		s.term.warn(text)
	} else {
		s.term.note(text)
	}
	return nil
}

// WithAttrs is slog.Handler.
func (s *speaker) WithAttrs(more []slog.Attr) slog.Handler {
	return &speaker{s.term, s.level, append(slices.Clone(s.attrs), more...)}
}

// WithGroup is slog.Handler. Nothing here groups: a line has no place for it.
func (s *speaker) WithGroup(string) slog.Handler { return s }

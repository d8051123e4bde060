package main

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// A screen is a terminal with a live line below all that is written to it: one
// that is drawn anew in place. What else is written, by whomever, comes above.
type screen struct {
	tty *os.File

	mu    sync.Mutex
	text  func() string // of the live line; nil: there is none
	drawn bool          // it stands where the cursor is
	apart bool          // the cursor is in a line that somebody else has begun
	stop  chan struct{} // ends the redrawing
}

// drawEvery is how often the live line is drawn anew: it counts seconds.
const drawEvery = time.Second

// newScreen is the terminal that w is; nil where it is none, or one that cannot
// go back in a line. kind is $TERM: terminals without one are taken for such.
func newScreen(w io.Writer, kind string) *screen {
	if kind == "" || kind == "dumb" || !isTerminal(w) {
		return nil
	}
	return &screen{tty: w.(*os.File)}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// above is w, and what is written to it comes above the live line, if both are
// on a terminal: that is then the same.
func (s *screen) above(w io.Writer) io.Writer {
	if s == nil || !isTerminal(w) {
		return w
	}
	return above{s, w}
}

type above struct {
	*screen
	to io.Writer
}

func (a above) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.erase()
	n, err := a.to.Write(p)
	if n > 0 {
		a.apart = p[n-1] != '\n'
	}
	a.draw()
	return n, err
}

// show makes what text returns the live line from now on, asked for it each
// time that it is drawn; nil takes it away.
func (s *screen) show(text func() string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.text = text; {
	case text == nil && s.stop != nil:
		s.erase()
		close(s.stop)
		s.stop = nil
	case text != nil && s.stop == nil:
		s.stop = make(chan struct{})
		go s.redraw(s.stop)
	}
	s.draw()
}

func (s *screen) redraw(stop <-chan struct{}) {
	tick := time.NewTicker(drawEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			s.mu.Lock()
			s.draw()
			s.mu.Unlock()
		}
	}
}

// eraseRest is EL of ECMA-48: the line from the cursor on.
const eraseRest = "\x1b[K"

// erase takes the live line off the terminal. One that a narrower terminal has
// broken in two leaves its first part there: a terminal does not say whether it
// breaks lines, and to go up might be to erase what others have said.
func (s *screen) erase() {
	if s.drawn {
		_, _ = io.WriteString(s.tty, "\r"+eraseRest)
		s.drawn = false
	}
}

func (s *screen) draw() {
	if s.text == nil || s.apart {
		return
	}
	// The last column stays free: whoever writes there may be in the next line.
	_, _ = io.WriteString(s.tty, "\r"+cut(prefix+s.text(), s.columns()-1)+eraseRest)
	s.drawn = true
}

// columns is how wide the terminal is now. A serial console does not know, and
// is taken for what terminals have always been.
func (s *screen) columns() int {
	size, err := unix.IoctlGetWinsize(int(s.tty.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}

// cut is text in one line of at most n columns.
func cut(text string, n int) string {
	line := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text))
	switch {
	case len(line) <= n:
		return string(line)
	case n <= 0:
		return ""
	}
	return string(line[:n-1]) + "…"
}

package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// redrawPause is the minimum time between two updates of a progress in bytes.
const redrawPause = 100 * time.Millisecond

// A progress shows what is going on: on a terminal in one line that changes in place,
// otherwise in plain lines.
type progress struct {
	mu       sync.Mutex
	w        io.Writer // nil for none
	terminal bool
	width    func() int // of the terminal
	shown    bool       // a line is shown that the next one replaces
	last     string     // the last plain line
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, terminal: isTerminal(w), width: func() int { return 80 }}
	if quiet {
		p.w = nil
	}
	if f, ok := w.(*os.File); ok && p.terminal {
		p.width = func() int {
			if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
				return width
			}
			return 80
		}
	}
	return p
}

// step shows what the work on a resource has come to.
func (p *progress) step(subject, text string) {
	p.show(oneLine(subject + ": " + text))
}

func (p *progress) show(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.w == nil:
	case p.terminal:
		if limit := p.width() - 1; utf8.RuneCountInString(line) > limit {
			line = string([]rune(line)[:limit])
		}
		fmt.Fprint(p.w, "\r\x1b[K"+line)
		p.shown = true
	case line != p.last:
		fmt.Fprintln(p.w, line)
		p.last = line
	}
}

// clear removes the shown line, before other output.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// A meter shows how many bytes have been transferred, with rate and remaining time.
type meter struct {
	p       *progress
	subject string
	total   int64 // -1 if unknown
	begin   int64 // done before this transfer
	done    int64
	since   time.Time
	drawn   time.Time
	tenth   int64 // the last tenth that a plain line has shown
	now     func() time.Time
}

func (p *progress) meter(subject string, begin, total int64) *meter {
	return &meter{p: p, subject: subject, total: total, begin: begin, done: begin, since: time.Now(), now: time.Now}
}

// Write counts bytes; it is for io.TeeReader and io.MultiWriter.
func (m *meter) Write(b []byte) (int, error) {
	m.done += int64(len(b))
	now := m.now()
	if m.p.terminal && now.Sub(m.drawn) < redrawPause && m.done != m.total {
		return len(b), nil
	}
	m.drawn = now
	if !m.p.terminal {
		if m.total <= 0 || m.done*10/m.total == m.tenth {
			return len(b), nil
		}
		m.tenth = m.done * 10 / m.total
	}
	m.p.step(m.subject, m.text(now))
	return len(b), nil
}

func (m *meter) text(now time.Time) string {
	text := formatSize(m.done)
	if m.total > 0 {
		text = fmt.Sprintf("%d %%, %s of %s", m.done*100/m.total, text, formatSize(m.total))
	}
	seconds := now.Sub(m.since).Seconds()
	rate := float64(m.done-m.begin) / max(seconds, 0.001)
	if seconds >= 1 && rate > 0 {
		text += fmt.Sprintf(", %s/s", formatSize(int64(rate)))
		if m.total > m.done {
			left := time.Duration(float64(m.total-m.done) / rate * float64(time.Second))
			text += fmt.Sprintf(", %s left", left.Round(time.Second))
		}
	}
	return text
}

package harness

import (
	"bufio"
	"encoding/hex"
	"sync"
)

// A Sniffer captures the frames that arrive on an interface.
type Sniffer struct {
	mu     sync.Mutex
	frames [][]byte
}

// Sniff captures the frames that arrive on an interface of the namespace until the test
// ends.
func (n *Namespace) Sniff(name string) *Sniffer {
	n.T.Helper()
	cmd := n.background("capture", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.T.Fatal(err)
	}
	if err := n.Start(cmd); err != nil {
		n.T.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	if !lines.Scan() || lines.Text() != "capturing" {
		n.T.Fatalf("namespace %s: the capture on %s printed %q", n.Name, name, lines.Text())
	}
	s := &Sniffer{}
	go func() {
		for lines.Scan() {
			frame, err := hex.DecodeString(lines.Text())
			if err != nil {
				continue
			}
			s.mu.Lock()
			s.frames = append(s.frames, frame)
			s.mu.Unlock()
		}
	}()
	return s
}

// Count returns how many of the frames so far contain text.
func (s *Sniffer) Count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return CountFrames(s.frames, text)
}

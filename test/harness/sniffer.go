package harness

import (
	"bufio"
	"encoding/hex"
	"strings"
	"sync"
)

// A Sniffer has what arrived on an interface since it was made.
type Sniffer struct {
	mu     sync.Mutex
	frames [][]byte
}

// Sniff captures what arrives on an interface of the namespace until the test ends.
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
		n.T.Fatalf("%s: the capture on %s said %q", n.Name, name, lines.Text())
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

// Count reports how many frames had the words in them.
func (s *Sniffer) Count(words string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return CountFrames(s.frames, words)
}

// CountFrames returns how many of the frames contain the words.
func CountFrames(frames [][]byte, words string) int {
	n := 0
	for _, f := range frames {
		if strings.Contains(string(f), words) {
			n++
		}
	}
	return n
}

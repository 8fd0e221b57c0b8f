package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxOutput    = 4 << 10 // bytes of a program's output that Run looks at
	outputLines  = 4       // of them, the last lines that Run returns
	pollInterval = 250 * time.Millisecond
)

// Run runs the program to its end and returns the last lines of what it wrote to
// stdout and stderr. The process ends with vmand, and Run kills it when ctx is
// done. An exit status other than 0 is an error. progress, if not nil, is called
// every 250 ms with the file that holds the output. Files must be empty.
func (p Program) Run(ctx context.Context, progress func(output *os.File)) (string, error) {
	out, err := MemoryFile("output")
	if err != nil {
		return "", err
	}
	defer out.Close()
	p.Files, p.EndsWithVmand = []*os.File{nil, out, out}, true
	process, err := p.Start()
	if err != nil {
		return "", err
	}
	if err := process.finish(ctx, out, progress); err != nil {
		return "", err
	}
	text := LastLines(Tail(out, maxOutput), outputLines)
	if process.State() != "exit status 0" {
		return text, errors.New(process.State())
	}
	return text, nil
}

// finish waits for the end of a process. It kills the process when ctx is done.
func (p *Process) finish(ctx context.Context, out *os.File, progress func(*os.File)) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		select {
		case <-p.done:
			p.Release()
			return nil
		case <-poll.C:
			if progress != nil {
				progress(out)
			}
		case <-ctx.Done():
			p.Kill()
			return ctx.Err()
		}
	}
}

// MemoryFile returns a file in memory, for the output of a process. It is freed
// when its last descriptor is closed.
func MemoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Tail returns the end of a file, at most so many bytes, as text without the
// white space around it. It returns "" if the file cannot be read.
func Tail(f *os.File, bytesMax int64) string {
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, min(st.Size(), bytesMax))
	n, _ := f.ReadAt(buf, st.Size()-int64(len(buf)))
	return string(bytes.ToValidUTF8(bytes.TrimSpace(buf[:n]), []byte("?")))
}

// LastLines returns the last n lines of a text.
func LastLines(text string, n int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

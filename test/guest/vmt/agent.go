package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// A request makes the agent run a shell command. A reply is the result of a command. Each is
// one line of JSON on the port, and replies are sent in the order in which commands end.
type request struct {
	ID    int64  `json:"id"`
	Shell string `json:"shell"`
	Stdin string `json:"stdin"`
}

type reply struct {
	ID   int64  `json:"id"`
	Out  string `json:"out"`  // standard output and error
	Code int    `json:"code"` // exit status; -1 if a signal ended it
}

// portPause is the delay before the agent reads again from a port whose other end is closed:
// such a read returns the end of the file at once.
const portPause = 50 * time.Millisecond

// agent PORT runs the commands that the host sends over a virtio serial port.
func agent(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: vmt agent PORT")
	}
	port, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	var mu sync.Mutex // one reply at a time
	in := bufio.NewReader(port)
	for ctx.Err() == nil {
		line, err := in.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF):
			pause(ctx, portPause)
			continue
		case err != nil:
			return fmt.Errorf("read %s: %w", args[0], err)
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			continue // the rest of a line that was cut when the host closed its end
		}
		go func() {
			text, err := json.Marshal(execute(r))
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			// An error cannot be reported: the port is the only connection to the host.
			_, _ = port.Write(append(text, '\n'))
		}()
	}
	return nil
}

func execute(r request) reply {
	cmd := exec.Command("/bin/sh", "-c", r.Shell)
	if r.Stdin != "" {
		file, err := spool(r.Stdin)
		if err != nil {
			return reply{ID: r.ID, Out: err.Error(), Code: 126}
		}
		defer file.Close()
		cmd.Stdin = file
	}
	out, err := os.CreateTemp("/run", "out")
	if err != nil {
		return reply{ID: r.ID, Out: err.Error(), Code: 126}
	}
	defer out.Close()
	defer os.Remove(out.Name())
	// A file, not a pipe: a background command would keep a pipe open.
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		return reply{ID: r.ID, Out: err.Error(), Code: 127}
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		return reply{ID: r.ID, Out: err.Error(), Code: 126}
	}
	return reply{ID: r.ID, Out: string(text), Code: code}
}

// spool returns an unlinked file with text, positioned at its start.
func spool(text string) (*os.File, error) {
	file, err := os.CreateTemp("/run", "in")
	if err != nil {
		return nil, err
	}
	os.Remove(file.Name())
	if _, err := file.WriteString(text); err != nil {
		file.Close()
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

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

// A request asks the agent to run a line of shell, a reply says how it ended.
// Both are one line of JSON on the port; replies come as the commands end.
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

// portPause is how long the agent leaves a port alone whose host's end is closed:
// reading it gives the end of the file at once.
const portPause = 50 * time.Millisecond

// agent PORT runs what the host asks for on a virtio serial port.
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
			continue // half a line from before the host's end was closed
		}
		go func() {
			text, err := json.Marshal(execute(r))
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			// Nobody is there to be told of an error: it is the way to the host.
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
	// A file and not a pipe: a command left in the background would hold a pipe open.
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

// spool returns a file without a name that holds text, to be read from its start.
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

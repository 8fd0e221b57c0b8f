package qga

import (
	"context"
	"fmt"
	"time"
)

// How long to wait before an agent is asked again how its program does.
const (
	firstPoll = 10 * time.Millisecond
	lastPoll  = time.Second
)

// longTimeout is how long an agent may take for a reply with a program's output.
const longTimeout = 30 * time.Second

// A Program is to run in a guest.
type Program struct {
	Path  string
	Args  []string
	Env   []string // NAME=value; none for the agent's own
	Stdin []byte
}

// A Result is how a program ended.
type Result struct {
	Exited         bool // false: it still runs
	ExitCode       int
	Signal         int // that ended it, 0 for none
	Stdout, Stderr []byte
	Truncated      bool // the agent has kept only a part of the output
}

// Exec runs a program and waits for its end, at most until the time limit: then
// it is reported as still running. Of ctx it knows only that it is done.
func (c *Client) Exec(ctx context.Context, p Program, limit time.Duration) (Result, error) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	args := struct {
		Path    string   `json:"path"`
		Args    []string `json:"arg,omitempty"`
		Env     []string `json:"env,omitempty"`
		Stdin   []byte   `json:"input-data,omitempty"` // base64
		Capture bool     `json:"capture-output"`
	}{p.Path, p.Args, p.Env, p.Stdin, true}
	var started struct {
		PID *int64 `json:"pid"`
	}
	if err := c.call(ctx, askTimeout, maxLine, "guest-exec", args, &started); err != nil {
		return Result{}, err
	}
	if started.PID == nil {
		return Result{}, fmt.Errorf("%w: a program without a pid", ErrGarbage)
	}
	for wait := firstPoll; ; wait = min(wait*3/2, lastPoll) {
		pause := time.NewTimer(wait)
		late := false
		select {
		case <-pause.C:
		case <-deadline.C:
			late = true
		case <-ctx.Done():
		}
		pause.Stop()
		r, err := c.execStatus(ctx, *started.PID)
		if err != nil || r.Exited || late {
			return r, err
		}
	}
}

func (c *Client) execStatus(ctx context.Context, pid int64) (Result, error) {
	var r struct {
		Exited          bool   `json:"exited"`
		ExitCode        int32  `json:"exitcode"`
		Signal          int32  `json:"signal"`
		Stdout          []byte `json:"out-data"` // base64
		Stderr          []byte `json:"err-data"`
		StdoutTruncated bool   `json:"out-truncated"`
		StderrTruncated bool   `json:"err-truncated"`
	}
	args := map[string]int64{"pid": pid}
	if err := c.call(ctx, longTimeout, maxLong, "guest-exec-status", args, &r); err != nil {
		return Result{}, err
	}
	return Result{Exited: r.Exited, ExitCode: int(r.ExitCode), Signal: int(r.Signal), Stdout: r.Stdout, Stderr: r.Stderr,
		Truncated: r.StdoutTruncated || r.StderrTruncated}, nil
}

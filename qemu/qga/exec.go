package qga

import (
	"context"
	"fmt"
	"time"
)

// Pauses between two queries of the status of a program.
const (
	firstPoll = 10 * time.Millisecond
	lastPoll  = time.Second
)

const (
	// longTimeout limits a command with a program's output in its reply.
	longTimeout = 30 * time.Second
	// execGrace is how long after the time limit of a program the agent may take to begin
	// the reply to the last query of its status.
	execGrace = time.Second
)

// A Program is a program to run in a guest.
type Program struct {
	Path  string
	Args  []string
	Env   []string // NAME=value; empty for the environment of the agent
	Stdin []byte
}

// A Result is the state of a program, and its output.
type Result struct {
	Exited         bool // false if the program still runs
	ExitCode       int
	Signal         int // the signal that ended the program, 0 for none
	Stdout, Stderr []byte
	Truncated      bool // the agent kept only a part of the output
}

// Exec runs a program and blocks until it has ended or limit has passed. A program that
// still runs then is not ended: the result has Exited false. If ctx is done, Exec fails
// and the program keeps running. An agent that does not answer makes Exec fail within
// execGrace of limit.
func (c *Client) Exec(ctx context.Context, p Program, limit time.Duration) (Result, error) {
	end := time.Now().Add(limit)
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
	patience := min(queryTimeout, limit+execGrace)
	if err := c.call(ctx, patience, maxLine, "guest-exec", args, &started); err != nil {
		return Result{}, err
	}
	if started.PID == nil {
		return Result{}, fmt.Errorf("%w: guest-exec returns no pid", ErrGarbage)
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
		r, err := c.execStatus(ctx, *started.PID, time.Until(end)+execGrace)
		if err != nil || r.Exited || late {
			return r, err
		}
	}
}

// execStatus returns the state of a program that guest-exec started. The reply must begin
// within patience, and may then take longTimeout: it has the output.
func (c *Client) execStatus(ctx context.Context, pid int64, patience time.Duration) (Result, error) {
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
	t := timeLimit{begin: patience, whole: longTimeout}
	if err := c.callWithin(ctx, t, maxLong, "guest-exec-status", args, &r); err != nil {
		return Result{}, err
	}
	return Result{
		Exited:    r.Exited,
		ExitCode:  int(r.ExitCode),
		Signal:    int(r.Signal),
		Stdout:    r.Stdout,
		Stderr:    r.Stderr,
		Truncated: r.StdoutTruncated || r.StderrTruncated,
	}, nil
}

package vmtest

import (
	"bytes"
	"context"
	"io"
	"strings"

	"vmand/vm"
)

// Console joins a console on which a guest says "login: " and hears what is
// typed.
func (d *Driver) Console(ctx context.Context, id string, o vm.ConsoleOptions) (vm.Console, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.procs[id] == nil {
		return nil, &vm.Fault{Code: vm.CodeState, Detail: "vm " + id + " does not run"}
	}
	r, w := io.Pipe()
	go io.WriteString(w, "login: ")
	return &console{r: r, w: w, write: o.Write}, nil
}

type console struct {
	r     *io.PipeReader
	w     *io.PipeWriter
	write bool
}

func (c *console) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *console) Write(p []byte) (int, error) {
	if !c.write {
		return 0, &vm.Fault{Code: vm.CodeState, Detail: "this connection only reads"}
	}
	return c.w.Write(p) // as a terminal echoes
}

func (c *console) Close() error { return c.r.Close() }

// ConsoleLog returns "login: ".
func (d *Driver) ConsoleLog(ctx context.Context, id string, offset int64) (io.ReadCloser, int64, error) {
	return io.NopCloser(strings.NewReader("login: ")), 7, nil
}

// guest reports whether the VM has a guest that answers.
func (d *Driver) answers(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.procs[id]; p == nil || p.status != vm.StatusRunning {
		return &vm.Fault{Code: vm.CodeAgentUnavailable, Detail: "no guest agent of vm " + id + " answers"}
	}
	return nil
}

// Agent is connected while the VM runs.
func (d *Driver) Agent(id string) vm.Agent {
	if d.answers(id) != nil {
		return vm.Agent{State: vm.AgentAbsent}
	}
	return vm.Agent{State: vm.AgentConnected, Version: "7.2.0"}
}

// GuestInfo returns an invented guest.
func (d *Driver) GuestInfo(ctx context.Context, id string) (vm.GuestInfo, error) {
	return vm.GuestInfo{Hostname: id, OS: vm.GuestOS{ID: "debian", Name: "Debian GNU/Linux"}}, d.answers(id)
}

// Exec echoes the input of the command "cat", and does nothing else.
func (d *Driver) Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error) {
	r := vm.GuestResult{Exited: true}
	if c.Path == "cat" {
		r.Stdout = c.Stdin
	}
	return r, d.answers(id)
}

// ReadFile copies "content".
func (d *Driver) ReadFile(ctx context.Context, id, path string, w io.Writer, limit int64) error {
	if err := d.answers(id); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewBufferString("content"))
	return err
}

// WriteFile reads r to its end.
func (d *Driver) WriteFile(ctx context.Context, id, path string, r io.Reader) error {
	if err := d.answers(id); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r)
	return err
}

// SetPassword does nothing.
func (d *Driver) SetPassword(ctx context.Context, id, user, password string) error {
	return d.answers(id)
}

// Trim does nothing.
func (d *Driver) Trim(ctx context.Context, id string) error { return d.answers(id) }

// Freeze does nothing.
func (d *Driver) Freeze(ctx context.Context, id string) (int, error) { return 1, d.answers(id) }

// Thaw does nothing.
func (d *Driver) Thaw(ctx context.Context, id string) error { return d.answers(id) }

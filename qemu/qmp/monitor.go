package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// eventsBuffer is the queue of events for a user of go-qemu's interface.
const eventsBuffer = 256

// Connect is part of go-qemu's Monitor interface. A Conn is connected from the
// start, so Connect only returns the error with which it ended, if it has.
func (c *Conn) Connect() error { return c.Err() }

// Disconnect is part of go-qemu's Monitor interface. It is [Conn.Close].
func (c *Conn) Disconnect() error { return c.Close() }

// Run is part of go-qemu's Monitor interface. It runs the [Command] encoded in
// command and returns QEMU's answer as an object with the one member "return".
// It blocks for at most [DefaultTimeout] and fails as [Conn.Execute] does.
func (c *Conn) Run(command []byte) ([]byte, error) {
	var args json.RawMessage
	cmd := Command{Args: &args} // kept as they are: no number changes
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("qmp: decode command: %w", err)
	}
	if cmd.Execute == "" {
		return nil, errors.New("qmp: decode command: it names none to execute")
	}
	var in any
	if cmd.Args != nil && args != nil {
		in = args
	}
	var value json.RawMessage
	if err := c.Execute(context.Background(), cmd.Execute, in, &value); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{"return":%s}`, value), nil
}

// Events is part of go-qemu's Monitor interface. The channel is closed when ctx
// is done or the connection ends. A reader that falls behind by more than 256
// events loses some without being told; [Conn.Subscribe] tells.
func (c *Conn) Events(ctx context.Context) (<-chan Event, error) {
	if err := c.Err(); err != nil {
		return nil, err
	}
	s := c.Subscribe(eventsBuffer)
	context.AfterFunc(ctx, s.Close)
	return s.C(), nil
}

package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// eventsBuffer is the size of the queue that Events returns.
const eventsBuffer = 256

// Connect is part of go-qemu's Monitor interface. A Conn is always connected, so Connect
// is [Conn.Err].
func (c *Conn) Connect() error { return c.Err() }

// Disconnect is part of go-qemu's Monitor interface. It is [Conn.Close].
func (c *Conn) Disconnect() error { return c.Close() }

// Run is part of go-qemu's Monitor interface. It runs the [Command] that is encoded in
// command, and returns an object with the return value as its member "return". It blocks
// for at most [DefaultTimeout] and fails as [Conn.Execute] does.
func (c *Conn) Run(command []byte) ([]byte, error) {
	var args json.RawMessage
	cmd := Command{Args: &args} // not decoded, so that no number changes
	if err := json.Unmarshal(command, &cmd); err != nil {
		return nil, fmt.Errorf("qmp: decode command: %w", err)
	}
	if cmd.Execute == "" {
		return nil, errors.New("qmp: decode command: it has no \"execute\"")
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

// Events is part of go-qemu's Monitor interface. The channel is closed when ctx is done
// or the connection ends. If more than 256 events are queued, events are dropped without
// notice; a [Conn.Subscribe] reports the loss.
func (c *Conn) Events(ctx context.Context) (<-chan Event, error) {
	if err := c.Err(); err != nil {
		return nil, err
	}
	s := c.Subscribe(eventsBuffer)
	context.AfterFunc(ctx, s.Close)
	return s.C(), nil
}

package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/digitalocean/go-qemu/qemu"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

func TestADomainOfGoQEMUWorks(t *testing.T) {
	t.Parallel()
	s := qmptest.NewServer(t)
	s.Handle(func(command string, _ qmptest.Args) (any, error) {
		switch command {
		case "query-status":
			return map[string]any{"running": false, "singlestep": false, "status": "prelaunch"}, nil
		case "query-block":
			return []map[string]any{{"device": "root", "inserted": map[string]any{"file": "/x"}}}, nil
		case "system_powerdown":
			s.Event("POWERDOWN", nil)
			return nil, nil
		}
		return nil, qmptest.Refuse(qmp.CommandNotFound, "The command "+command+" has not been found")
	})
	c := dial(t, s)
	d, err := qemu.NewDomain(c, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Status(); err != nil || got != qemu.StatusPreLaunch {
		t.Errorf("Status = %v, %v", got, err)
	}
	if _, err := d.BlockDevice("root"); err != nil {
		t.Errorf("BlockDevice: %v", err)
	}
	var refused *qmp.Error
	if _, err := d.Version(); !errors.As(err, &refused) || refused.Class != qmp.CommandNotFound {
		t.Errorf("Version: error %v, want CommandNotFound", err)
	}
	events, done, err := d.Events()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SystemPowerdown(); err != nil {
		t.Error(err)
	}
	if e := <-events; e.Event != "POWERDOWN" {
		t.Errorf("event %+v, want POWERDOWN", e)
	}
	close(done)
	for range events { // until go-qemu closes it
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wait(t, c.Done(), "the end of the connection")
}

func TestRun(t *testing.T) {
	t.Parallel()
	s := qmptest.NewServer(t)
	s.Handle(func(command string, args qmptest.Args) (any, error) {
		if command == "echo" {
			return json.RawMessage(args), nil
		}
		return command, nil
	})
	c := dial(t, s)
	tests := map[string]struct{ command, want, fails string }{
		"no arguments":   {command: `{"execute": "stop"}`, want: `{"return":"stop"}`},
		"null arguments": {command: `{"execute": "stop", "arguments": null}`, want: `{"return":"stop"}`},
		"a number beyond float64": {
			command: `{"execute": "echo", "arguments": {"n": 9007199254740993}}`,
			want:    `{"return":{"n":9007199254740993}}`,
		},
		"not JSON":                {command: `{`, fails: "decode command"},
		"no name":                 {command: `{"arguments": {}}`, fails: `no "execute"`},
		"a name that is a number": {command: `{"execute": 5}`, fails: "decode command"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := c.Run([]byte(tt.command))
			if string(got) != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if (err != nil) != (tt.fails != "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("error %v, want %q", err, tt.fails)
			}
		})
	}
}

func TestTheMonitorOfAnEndedConnectionFails(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(*qmptest.Peer) {})
	if err := c.Connect(); err != nil {
		t.Errorf("Connect on an open connection: %v", err)
	}
	if err := c.Disconnect(); err != nil {
		t.Error(err)
	}
	if err := c.Connect(); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("Connect: error %v, want ErrClosed", err)
	}
	if _, err := c.Events(context.Background()); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("Events: error %v, want ErrClosed", err)
	}
	if _, err := c.Run([]byte(`{"execute": "stop"}`)); !errors.Is(err, qmp.ErrNotSent) {
		t.Errorf("Run: error %v, want ErrNotSent", err)
	}
}

func TestEventsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) { p.Event("STOP", nil) })
	ctx, cancel := context.WithCancel(context.Background())
	events, err := c.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Event != "STOP" {
		t.Errorf("event %+v, want STOP", e)
	}
	cancel()
	for range events { // until the channel is closed
	}
	if err := c.Err(); err != nil {
		t.Errorf("the connection ended too: %v", err)
	}
}

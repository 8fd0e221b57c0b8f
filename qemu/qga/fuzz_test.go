package qga

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// tape is a connection to a guest that sends a fixed text. SYNC in the text stands for
// the number that the guest must repeat.
type tape struct {
	net.Conn // nil: the client calls only the methods below
	text     []byte
	synced   bool
}

var syncID = regexp.MustCompile(`"id":(\d+)`)

func (p *tape) Write(b []byte) (int, error) {
	if id := syncID.FindSubmatch(b); id != nil && !p.synced {
		p.synced = true
		p.text = bytes.ReplaceAll(p.text, []byte("SYNC"), id[1])
	}
	return len(b), nil
}

func (p *tape) Read(b []byte) (int, error) {
	if len(p.text) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.text)
	p.text = p.text[n:]
	return n, nil
}

func (p *tape) Close() error                { return nil }
func (p *tape) SetDeadline(time.Time) error { return nil }

func FuzzReply(f *testing.F) {
	sync := "\xff{\"return\": SYNC}\n"
	for _, text := range []string{
		sync + pong,
		"junk" + sync + sync + pong,
		"\xff\xff" + pong,
	} {
		f.Add([]byte(text))
	}
	for _, replies := range [][]string{
		{`{"error": {"class": "GenericError", "desc": "no"}}`},
		{`{"return": {"version": "7.2", "supported_commands": [{"name": "guest-ping", "enabled": true}]}}`},
		{`{"return": {"host-name": "a\u0000\ud800b"}}`},
		{`{"return": {"id": "debian", "name": "Debian", "version": "12"}}`},
		{`{"return": [{"name": "e", "hardware-address": "52:54:00:00:00:01",` +
			` "ip-addresses": [{"ip-address": "fe80::1%e", "prefix": 64}]}]}`},
		{`{"return": [{"mountpoint": "/", "type": "x", "used-bytes": 18446744073709551615,` +
			` "total-bytes": 1, "disk": [{"serial": "s"}]}]}`},
		{
			`{"return": {"pid": 1}}`,
			`{"return": {"exited": true, "exitcode": 1, "out-data": "aGk=", "err-data": "aGk=", "out-truncated": true}}`,
		},
		{`{"return": 1}`, `{"return": {"count": 2, "buf-b64": "aGk=", "eof": true}}`, strings.TrimSpace(pong)},
		{`{"return": {"paths": [{"path": "/", "error": "no"}]}}`},
		{`{"return": "frozen"}`},
	} {
		f.Add([]byte(sync + strings.Join(replies, "\n") + "\n"))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ask := func(question func(*Client) error) {
			dialed := false
			c := NewClient(func(context.Context) (net.Conn, error) {
				if dialed {
					return nil, io.EOF
				}
				dialed = true
				// With a line break at the end, the client does not pause.
				return &tape{text: append(bytes.Clone(text), '\n')}, nil
			}, func() {})
			defer c.Close()
			err := question(c)
			var refused *Error
			known := err == nil || errors.As(err, &refused) || errors.Is(err, ErrSilent) || errors.Is(err, ErrGarbage)
			if !known {
				t.Errorf("unexpected error: %v", err)
			}
			if refused != nil {
				mustBeClean(t, maxDesc, refused.Class, refused.Desc)
			}
		}
		askAll(t, ask)
	})
}

func mustBeClean(t *testing.T, most int, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if len(text) > most || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			t.Errorf("not clean: %q", text)
		}
	}
}

// askAll calls every method and checks the results.
func askAll(t *testing.T, ask func(func(*Client) error)) {
	ctx := t.Context()
	ask(func(c *Client) error { return c.Ping(ctx) })
	ask(func(c *Client) error {
		i, err := c.Info(ctx)
		mustBeClean(t, maxText, i.Version)
		return err
	})
	ask(func(c *Client) error {
		name, err := c.Hostname(ctx)
		mustBeClean(t, maxText, name)
		return err
	})
	ask(func(c *Client) error {
		o, err := c.OS(ctx)
		mustBeClean(t, maxText, o.ID, o.Name, o.Version, o.Kernel, o.Machine)
		return err
	})
	ask(func(c *Client) error {
		all, err := c.Interfaces(ctx)
		for _, i := range all {
			mustBeClean(t, maxText, i.Name, i.MAC)
			for _, a := range i.Addresses {
				if !a.IsValid() || a.Addr().Zone() != "" {
					t.Errorf("address %v", a)
				}
			}
		}
		return err
	})
	ask(func(c *Client) error {
		all, err := c.Filesystems(ctx)
		for _, f := range all {
			mustBeClean(t, maxPath, f.MountPoint, f.Type)
			mustBeClean(t, maxText, f.Device)
			for _, d := range f.Disks {
				mustBeClean(t, maxText, d.Serial, d.BusType)
			}
			if f.UsedBytes < 0 || f.TotalBytes < 0 {
				t.Errorf("sizes %d, %d", f.UsedBytes, f.TotalBytes)
			}
		}
		return err
	})
	ask(func(c *Client) error {
		_, err := c.Exec(ctx, Program{}, 0)
		return err
	})
	ask(func(c *Client) error {
		var b bytes.Buffer
		err := c.ReadFile(ctx, "f", &b, 100)
		if b.Len() > 100 {
			t.Errorf("%d bytes of a file", b.Len())
		}
		if errors.Is(err, ErrTooLarge) {
			return nil
		}
		return err
	})
	ask(func(c *Client) error { return c.WriteFile(ctx, "f", strings.NewReader("text"), 100) })
	ask(func(c *Client) error { return c.Trim(ctx) })
	ask(func(c *Client) error {
		n, err := c.Freeze(ctx)
		if n < 0 {
			return fmt.Errorf("%d file systems", n)
		}
		return err
	})
	ask(func(c *Client) error {
		_, err := c.Frozen(ctx)
		return err
	})
}

package vm

import (
	"strings"
	"testing"
	"time"
)

func TestGuestCommandCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*GuestCommand)
		field  string // of the fault; empty: valid
	}{
		{"valid", func(*GuestCommand) {}, ""},
		{"an empty value", func(c *GuestCommand) { c.Env = []string{"A="} }, ""},
		{"no path", func(c *GuestCommand) { c.Path = "" }, "/command/0"},
		{"a variable without a value", func(c *GuestCommand) { c.Env = []string{"A"} }, "/env"},
		{"a variable without a name", func(c *GuestCommand) { c.Env = []string{"=a"} }, "/env"},
		{"a control character in a name", func(c *GuestCommand) { c.Env = []string{"A\n=a"} }, "/env"},
		{"a long input", func(c *GuestCommand) { c.Stdin = make([]byte, MaxGuestStdin+1) }, "/stdin"},
		{"no timeout", func(c *GuestCommand) { c.Timeout = 0 }, "/timeout_seconds"},
		{"a long timeout", func(c *GuestCommand) { c.Timeout = maxGuestTimeout + 1 }, "/timeout_seconds"},
	} {
		command := GuestCommand{
			Path:    "/bin/true",
			Env:     []string{"A=b=c"},
			Stdin:   make([]byte, MaxGuestStdin),
			Timeout: maxGuestTimeout,
		}
		c.change(&command)
		wantField(t, c.name, command.Check(), "", c.field, "")
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"":                           "",
		" a \t\n b ":                 "a b",
		"a\x1b[31mb\x00":             "a [31mb",
		"ä\u202eb":                   "ä b",
		strings.Repeat("ä", 500):     strings.Repeat("ä", 500),
		strings.Repeat("ä", 501):     strings.Repeat("ä", 499) + "…",
		"a" + strings.Repeat(" ", 9): "a",
	} {
		if got := Printable(s); got != want {
			t.Errorf("Printable(%q) = %q; want %q", s, got, want)
		}
	}
}

func TestParseCondition(t *testing.T) {
	for s, want := range map[string]Condition{
		"ip":         {IP: true},
		"agent":      {Agent: true},
		"cloud-init": {CloudInit: true},
		"port:1":     {Port: 1},
		"port:65535": {Port: 65535},
	} {
		if got, err := ParseCondition(s); err != nil || got != want {
			t.Errorf("ParseCondition(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "IP", "port", "port:", "port:0", "port:65536", "port:+1", "port:01", "port:22 "} {
		_, err := ParseCondition(s)
		if err == nil {
			t.Errorf("ParseCondition(%q) succeeds", s)
			continue
		}
		wantField(t, s, err, "", "wait_for", "port:N")
	}
	for c, want := range map[Condition]time.Duration{
		{IP: true}:        0,
		{Port: 22}:        100 * time.Millisecond,
		{Agent: true}:     250 * time.Millisecond,
		{CloudInit: true}: 2 * time.Second,
	} {
		if got := c.Interval(); got != want {
			t.Errorf("%+v: Interval = %s; want %s", c, got, want)
		}
	}
}

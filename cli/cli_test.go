package cli

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	if c, err := Parse(nil, ConsoleFlags{}); c != nil || err != nil {
		t.Errorf("without arguments: %+v, %v; want no command", c, err)
	}
	flags := ConsoleFlags{TakeOver: true}
	c, err := Parse([]string{"console", "web"}, flags)
	if err != nil || *c != (Command{name: "console", operand: "web", console: flags}) {
		t.Errorf("console: %+v, %v", c, err)
	}
	for _, args := range [][]string{{"backup", "f"}, {"restore", "f"}, {"network", "teardown"}} {
		if c, err := Parse(args, ConsoleFlags{}); err != nil || *c != (Command{name: args[0], operand: args[1]}) {
			t.Errorf("%q: %+v, %v", args, c, err)
		}
	}
}

func TestParseRefusesUnknownCommandsAndMissingOperands(t *testing.T) {
	for _, args := range [][]string{
		{"start"},
		{"backup"},
		{"backup", ""},
		{"backup", "a", "b"},
		{"restore"},
		{"console"},
		{"network"},
		{"network", "setup"},
		{"guests"},
		{"guests", "stop|start"},
	} {
		if _, err := Parse(args, ConsoleFlags{}); err == nil || !strings.Contains(err.Error(), "--help") {
			t.Errorf("%q: error %v, want one that names --help", args, err)
		}
	}
	for _, tt := range []struct {
		args  []string
		flags ConsoleFlags
	}{
		{nil, ConsoleFlags{ReadOnly: true}},
		{[]string{"backup", "x"}, ConsoleFlags{TakeOver: true}},
		{[]string{"console", "web"}, ConsoleFlags{ReadOnly: true, TakeOver: true}},
	} {
		if _, err := Parse(tt.args, tt.flags); err == nil || !strings.Contains(err.Error(), "--help") {
			t.Errorf("%q with %+v: error %v, want one that names --help", tt.args, tt.flags, err)
		}
	}
}

// A fakeHost records the files it gets and answers with fixed values.
type fakeHost struct {
	file    string
	kept    string
	removed []string
	err     error
}

func (h *fakeHost) host() Host {
	return Host{
		Backup: func(_ context.Context, file string) (string, error) {
			h.file = file
			return "/state/vman.db", h.err
		},
		Restore: func(_ context.Context, file string) (string, error) {
			h.file = file
			return h.kept, h.err
		},
		Teardown: func(context.Context) ([]string, error) { return h.removed, h.err },
	}
}

func TestCommandsReportTheirResult(t *testing.T) {
	full, err := filepath.Abs("f")
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no space left")
	tests := map[string]struct {
		args []string
		host fakeHost
		want []string // in the output
		fail string   // the error
		file string
	}{
		"a backup": {
			args: []string{"backup", "f"},
			want: []string{"/state/vman.db", full},
			file: full,
		},
		"a restore": {
			args: []string{"restore", "f"},
			host: fakeHost{kept: "/state/old"},
			want: []string{full, "/state/old", "start vmand"},
			file: full,
		},
		"a restore on a new host": {
			args: []string{"restore", "f"},
			want: []string{full, "no previous database"},
			file: full,
		},
		"a teardown": {
			args: []string{"network", "teardown"},
			host: fakeHost{removed: []string{"bridge vman0", "tap vm1"}},
			want: []string{"removed bridge vman0\nremoved tap vm1\n"},
		},
		"a teardown without networks": {
			args: []string{"network", "teardown"},
			want: []string{"nothing to remove\n"},
		},
		"a backup that fails": {
			args: []string{"backup", "f"},
			host: fakeHost{err: broken},
			fail: "backup: no space left",
			file: full,
		},
		"a restore that fails": {
			args: []string{"restore", "f"},
			host: fakeHost{err: broken},
			fail: "restore: no space left",
			file: full,
		},
		"a teardown that fails halfway": {
			args: []string{"network", "teardown"},
			host: fakeHost{removed: []string{"tap vm1"}, err: broken},
			want: []string{"removed tap vm1\n"},
			fail: "network teardown: no space left",
		},
		"a console without a socket": {
			args: []string{"console", "web"},
			fail: "console of VM web: the daemon has no unix socket in this configuration: set --socket",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := Parse(tt.args, ConsoleFlags{})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = c.Run(t.Context(), tt.host.host(), Streams{Out: &out})
			if got := errorText(err); got != tt.fail {
				t.Errorf("error %q, want %q", got, tt.fail)
			}
			if tt.host.file != tt.file {
				t.Errorf("file %q, want %q", tt.host.file, tt.file)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output %q, want %q in it", out.String(), want)
				}
			}
			if tt.want == nil && out.Len() > 0 {
				t.Errorf("output %q, want none", out.String())
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

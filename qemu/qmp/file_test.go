package qmp_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

// open returns an open file with the given content.
func open(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFilesArePassedWithTheirCommand(t *testing.T) {
	t.Parallel()
	heard := make(chan struct{})
	c := scripted(t, func(p *qmptest.Peer) {
		plain := p.Expect("query-status")
		close(heard)
		passed := p.Expect("getfd", map[string]string{"fdname": "state"})
		if len(plain.Files) != 0 || len(passed.Files) != 2 {
			t.Errorf("got %d and %d files, want none and 2", len(plain.Files), len(passed.Files))
		}
		var got []string
		for _, f := range passed.Files {
			content, err := io.ReadAll(f)
			if err != nil {
				t.Error(err)
			}
			got = append(got, string(content))
		}
		p.Reply(plain, nil)
		p.Reply(passed, got)
	})
	plain := make(chan error, 1)
	go func() { plain <- c.Execute(patient(t), "query-status", nil, nil) }()
	wait(t, heard, "the first command")
	a, b := open(t, "alpha"), open(t, "beta")
	var got []string
	if err := c.Execute(patient(t), "getfd", map[string]string{"fdname": "state"}, &got, a, b); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != "alpha" || got[1] != "beta" {
		t.Errorf("the server read %q, want alpha and beta", got)
	}
	if err := <-plain; err != nil {
		t.Error(err)
	}
	if _, err := a.Seek(0, io.SeekStart); err != nil {
		t.Errorf("the file of the caller was closed: %v", err)
	}
}

func TestFilesArePassedWithACommandLongerThanTheSocketBuffer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("z", 1<<20)
	c := scripted(t, func(p *qmptest.Peer) {
		cmd := p.Expect("add-fd", map[string]string{"opaque": long})
		p.Reply(cmd, len(cmd.Files))
	})
	var files int
	err := c.Execute(patient(t), "add-fd", map[string]string{"opaque": long}, &files, open(t, "content"))
	if err != nil || files != 1 {
		t.Errorf("%d files, %v; want 1", files, err)
	}
}

func TestOneCommandWithFilesIsInFlightAtATime(t *testing.T) {
	t.Parallel()
	late := make(chan struct{})
	c := scripted(t, func(p *qmptest.Peer) {
		first := p.Expect("getfd", map[string]string{"fdname": "first"})
		p.Reply(p.Expect("query-status"), nil)
		<-late
		p.Reply(first, nil)
		p.Reply(p.Expect("getfd", map[string]string{"fdname": "third"}), nil)
	})
	f := open(t, "content")
	getfd := func(name string) error {
		return c.Execute(soon(t), "getfd", map[string]string{"fdname": name}, nil, f)
	}
	if err := getfd("first"); !errors.Is(err, qmp.ErrUnknownOutcome) {
		t.Fatalf("first: error %v, want ErrUnknownOutcome", err)
	}
	if err := getfd("second"); !errors.Is(err, qmp.ErrNotSent) {
		t.Errorf("second, while the first may still be executed: error %v, want ErrNotSent", err)
	}
	if err := c.Execute(patient(t), "query-status", nil, nil); err != nil {
		t.Errorf("a command without files: %v", err)
	}
	close(late)
	if err := c.Execute(patient(t), "getfd", map[string]string{"fdname": "third"}, nil, f); err != nil {
		t.Errorf("third, after the late reply: %v", err)
	}
}

func TestAClosedFileIsNotSent(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) { p.Reply(p.Expect("getfd"), nil) })
	f := open(t, "content")
	closed := open(t, "")
	closed.Close()
	for _, bad := range []*os.File{closed, nil} {
		if err := c.Execute(patient(t), "add-fd", nil, nil, f, bad); !errors.Is(err, qmp.ErrNotSent) {
			t.Errorf("error %v, want ErrNotSent", err)
		}
	}
	if err := c.Execute(patient(t), "getfd", nil, nil, f); err != nil {
		t.Errorf("next command with a file: %v", err)
	}
}

func TestTooManyFilesAreNotSent(t *testing.T) {
	t.Parallel()
	c := scripted(t, func(p *qmptest.Peer) { p.Reply(p.Expect("getfd"), nil) })
	f := open(t, "content")
	many := make([]*os.File, 300) // SCM_MAX_FD is 253
	for i := range many {
		many[i] = f
	}
	if err := c.Execute(patient(t), "add-fd", nil, nil, many...); !errors.Is(err, qmp.ErrNotSent) {
		t.Errorf("error %v, want ErrNotSent", err)
	}
	if err := c.Execute(patient(t), "getfd", nil, nil, f); err != nil {
		t.Errorf("next command with a file: %v", err)
	}
}

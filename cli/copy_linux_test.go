package cli

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A copy to a FIFO writes to it and does not replace it.
func TestCopyWritesToAFIFO(t *testing.T) {
	f := newFakeDaemon(t)
	f.answer("GET /vms/web/files", 200, "text")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	received := make(chan string, 1)
	go func() {
		in, err := os.Open(fifo)
		if err != nil {
			received <- err.Error()
			return
		}
		text, err := io.ReadAll(in)
		received <- string(text) + errorText(errors.Join(err, in.Close()))
	}()
	vman(t, "cp", "web:/x", fifo).want(t, 0)
	info, err := os.Lstat(fifo)
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		t.Fatalf("the FIFO is now %v, %v", info, err)
	}
	if got := <-received; got != "\"text\"\n" {
		t.Errorf("the FIFO carried %q", got)
	}
}

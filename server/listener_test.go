package server

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// accepting accepts connections of l, and closes them, until l is closed.
func accepting(t *testing.T, l *Listener) {
	t.Helper()
	done := make(chan error)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				done <- err
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept returns %v", err)
		}
	})
}

// connects waits until a connection succeeds.
func connects(t *testing.T, network, address string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestATCPAddressThatIsTakenIsOpenedWhenItIsFree(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	l, err := KeepTCP(other.Addr().String(), slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if p := l.Problem(); !strings.Contains(p, "in use") || !strings.Contains(p, other.Addr().String()) {
		t.Errorf("the problem is %q", p)
	}
	accepting(t, l)
	other.Close()
	connects(t, "tcp", other.Addr().String())
	if p := l.Problem(); p != "" {
		t.Errorf("the problem is still %q", p)
	}
	if !strings.Contains(log.String(), "is not open") || !strings.Contains(log.String(), "is open") {
		t.Errorf("log %s", log)
	}
}

func TestAnAddressThatTheHostDoesNotHaveIsNoError(t *testing.T) {
	t.Parallel()
	l, err := KeepTCP("192.0.2.1:8000", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if p := l.Problem(); !strings.Contains(p, "192.0.2.1:8000") {
		t.Errorf("the problem is %q", p)
	}
	accepting(t, l) // its end shows that Close ends the wait
}

func TestASocketFileThatIsRemovedOrReplacedIsMadeAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	log := &logBuffer{}
	l, err := KeepUnix(path, "", slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	accepting(t, l)
	connects(t, "unix", path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	connects(t, "unix", path)
	if !strings.Contains(log.String(), "is lost and is made again") {
		t.Errorf("log %s", log)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket made again: %v, %v", info, err)
	}
	// A file of another kind is not removed: the problem is reported.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); l.Problem() == ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no problem is reported")
		}
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "precious" {
		t.Errorf("the file: %q, %v", content, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	connects(t, "unix", path)
}

package api

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/test/harness"
)

// tcpDaemon starts a daemon with a TCP address.
func tcpDaemon(t *testing.T) *harness.Daemon {
	t.Helper()
	return harness.StartDaemon(t, "VMAN_LISTEN=127.0.0.1:0")
}

func TestNoSignalButTheOnesForItEndsTheDaemon(t *testing.T) {
	d := harness.StartDaemon(t)
	pid := d.PID()
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM} {
		if err := unix.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
		d.Call("GET", "/vms", nil).Want(200)
	}
	if d.PID() != pid {
		t.Error("another daemon runs")
	}
}

func TestSIGHUPReloadsTheAdminToken(t *testing.T) {
	d := tcpDaemon(t)
	secret := strings.Repeat("x", 40)
	if err := os.WriteFile(filepath.Join(d.StateDir, "admin.token"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(d.PID(), unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(d.Log(), "the tokens are reloaded"); {
		if time.Now().After(deadline) {
			t.Fatal("the tokens are not reloaded")
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.Call("GET", "/vms", nil).Want(200)
}

// The log of the daemon is a pipe whose reader ends.
func TestADaemonWithoutAReaderOfItsLogGoesOn(t *testing.T) {
	d := harness.NewDaemon(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := d.Command()
	cmd.Stdout, cmd.Stderr = writer, writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	writer.Close()
	if _, err := reader.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	reader.Close()
	socket := filepath.Join(d.RuntimeDir, "vmand.sock")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the daemon has no socket")
		}
	}
	for range 20 { // each request writes a line
		d.Call("GET", "/vms", nil).Want(200)
	}
	select {
	case err := <-exited:
		t.Fatalf("the daemon ended: %v", err)
	default:
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}
